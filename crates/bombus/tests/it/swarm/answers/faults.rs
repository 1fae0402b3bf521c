//! Workers that die, freeze and lose their network while they answer. `BOMBUS_FAULT_ROUNDS` repeats each loop more often.

use std::time::Duration;

use futures::future::{join, join_all};
use serde_json::json;

use super::client::{Answer, Question, Stream, words};
use super::{Swarm, slow_worker, team, team_of, team_on_a_network, worker};
use crate::faults::rounds;
use crate::harness::{LIMIT, Signal, no_backends, within};
use crate::swarm::State;

/// Words of an answer, one a token.
const WORDS: usize = 60;
/// How long a stream may stand still when its worker is killed.
const GAP_AT_KILL: Duration = Duration::from_millis(1_500);
/// How long it may where its worker is silent: the default time to a stall, and the way to the next.
const GAP_AT_STALL: Duration = Duration::from_millis(4_500);
/// How long it may on any machine.
const GAP_MAX: Duration = Duration::from_secs(15);
/// So many rounds may be late on a busy machine, as long as one is in time.
const LATE_MAX: usize = 3;

/// Says whether the rounds up to now, in which streams stood still for so long, settle that it is within a limit.
fn is_within(limit: Duration, gaps: &[Duration]) -> bool {
    let late = gaps.iter().filter(|gap| **gap > limit).count();
    let is_too_long = gaps.iter().any(|gap| *gap > GAP_MAX);
    assert!(late <= LATE_MAX.max(rounds() / 10) && !is_too_long, "{limit:?} are allowed: {gaps:?}");
    gaps.len() >= rounds() && late < gaps.len()
}

/// When a worker dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    BeforeItAccepts,
    BeforeTheFirstToken,
    InTheMiddle,
    AtTheEnd,
}

/// Kills at this stage of an answer the node that gives it, of two that could. Returns the answer, what was expected, and who died.
async fn killed_at(swarm: &Swarm, stage: Stage, round: usize) -> (Answer, String, usize) {
    let text = words(round, WORDS);
    let question = Question::new(&text);
    let kill = |victim: usize| swarm.member(victim).signal(Signal::Kill);
    let (stream, victim) = match stage {
        Stage::BeforeItAccepts => {
            let victim = swarm.index_of(&swarm.best("fake").await[0]);
            // Frozen, it gets the offer and cannot accept it.
            swarm.pause(victim);
            let dies = async {
                within("the request", swarm.member(0).answers(1)).await;
                kill(victim);
            };
            (join(question.ask(swarm.member(0)), dies).await.0, victim)
        }
        Stage::BeforeTheFirstToken => {
            let dies = async {
                let victim = swarm.busy_one(&[1, 2]).await;
                kill(victim);
                victim
            };
            join(question.ask(swarm.member(0)), dies).await
        }
        Stage::InTheMiddle | Stage::AtTheEnd => {
            let mut stream = question.ask(swarm.member(0)).await;
            let victim = swarm.index_of(stream.so_far().node());
            stream.until_words(if stage == Stage::AtTheEnd { WORDS - 1 - round % 2 } else { 1 + round * 7 % 30 }).await;
            kill(victim);
            (stream, victim)
        }
    };
    (stream.rest().await, text, victim)
}

async fn survives(stage: Stage) {
    // What is to be cut off takes seconds, so that a busy machine is in time for it.
    let (first_token_ms, token_ms) = match stage {
        Stage::BeforeItAccepts | Stage::AtTheEnd => (150, 8),
        Stage::BeforeTheFirstToken => (3_000, 8),
        Stage::InTheMiddle => (150, 60),
    };
    let pace = worker(first_token_ms, token_ms, "");
    let mut swarm = team(&[pace.clone(), pace]).await;
    let mut gaps = Vec::new();
    let mut seams = 0;
    while !is_within(GAP_AT_KILL, &gaps) {
        let round = gaps.len();
        let (answer, text, victim) = killed_at(&swarm, stage, round).await;
        answer.assert_whole(&text, "stop");
        match stage {
            Stage::BeforeItAccepts | Stage::BeforeTheFirstToken => {
                assert_ne!(swarm.index_of(answer.node()), victim, "the answer is another's");
                assert!(answer.seams.is_empty(), "nothing had come yet: {:?}", answer.seams);
            }
            Stage::InTheMiddle => {
                assert_eq!(answer.seams.len(), 1, "{answer:?}");
                assert!(answer.seams[0].starts_with(swarm.id(3 - victim)), "{:?}", answer.seams);
            }
            Stage::AtTheEnd => assert!(answer.seams.len() <= 1, "{answer:?}"),
        }
        seams += answer.seams.len();
        // The worker that goes on takes its time to the first token, too.
        gaps.push(answer.longest_gap.saturating_sub(Duration::from_millis(first_token_ms)));
        swarm.kill(victim).await;
        swarm.restart(victim).await;
        swarm.all_see_each_other().await;
        swarm.offers_of("fake", &[1, 2]).await;
    }
    let longest = gaps.iter().max().map_or(0, Duration::as_millis);
    println!("{stage:?}: {} answers whole, {seams} seams, longest gap {longest} ms", gaps.len());
    swarm.stop_all().await;
}

#[tokio::test]
async fn a_worker_that_dies_before_it_accepts_is_not_noticed() {
    survives(Stage::BeforeItAccepts).await;
}

#[tokio::test]
async fn a_worker_that_dies_before_the_first_token_is_not_noticed() {
    survives(Stage::BeforeTheFirstToken).await;
}

#[tokio::test]
async fn an_answer_whose_worker_dies_in_the_middle_goes_on_at_the_same_character() {
    survives(Stage::InTheMiddle).await;
}

#[tokio::test]
async fn an_answer_whose_worker_dies_at_its_last_words_ends_well() {
    survives(Stage::AtTheEnd).await;
}

#[tokio::test]
async fn many_answers_of_a_worker_that_dies_all_go_on_and_those_of_the_others_are_left_alone() {
    // Twelve have begun before one is killed, and none may have ended by then.
    let pace = worker(20, 50, "");
    let mut swarm = team(&[pace.clone(), pace.clone(), pace]).await;
    for round in 0..rounds() {
        let texts: Vec<_> = (0..12).map(|number| words(round * 12 + number, 120)).collect();
        let streams = join_all(texts.iter().map(async |text| {
            let mut stream = Question::new(text).ask(swarm.member(0)).await;
            stream.until_first_text().await;
            stream
        }))
        .await;
        let victim = swarm.index_of(streams[round % streams.len()].so_far().node());
        let of_victim = streams.iter().map(|stream| stream.so_far().node() == swarm.id(victim)).collect::<Vec<_>>();
        assert!(of_victim.iter().any(|is| !is), "12 answers are given by several");
        swarm.member(victim).signal(Signal::Kill);
        let answers = join_all(streams.into_iter().map(Stream::rest)).await;
        for ((answer, text), of_victim) in answers.iter().zip(&texts).zip(of_victim) {
            answer.assert_whole(text, "stop");
            assert_eq!(answer.seams.len(), usize::from(of_victim), "{answer:?}");
        }
        swarm.kill(victim).await;
        swarm.restart(victim).await;
        swarm.offers_of("fake", &[1, 2, 3]).await;
    }
}

#[tokio::test]
async fn an_answer_survives_one_worker_after_the_other_and_ends_at_the_node_that_was_asked() {
    let pace = slow_worker("");
    // The first has the model too, but answers one at a time.
    let mut swarm = team_of(&worker(20, 10, "max_concurrent = 1"), &[pace.clone(), pace]).await;
    for round in 0..rounds() {
        let mut full = Question::new(&words(1_000, 6_000)).within("local").ask(swarm.member(0)).await;
        full.until_first_text().await;
        let text = words(round, 90);
        let mut stream = Question::new(&text).ask(swarm.member(0)).await;
        let first = swarm.index_of(stream.so_far().node());
        assert_ne!(first, 0, "it is full");
        stream.until_words(20).await;
        swarm.kill(first).await;
        stream.until_words(50).await;
        drop(full);
        swarm.member(0).runs(0).await;
        swarm.kill(3 - first).await;
        let answer = stream.rest().await;
        answer.assert_whole(&text, "stop");
        assert_eq!(answer.seams.len(), 2, "{answer:?}");
        assert!(answer.seams[0].starts_with(swarm.id(3 - first)), "{answer:?}");
        assert!(answer.seams[1].starts_with(swarm.id(0)), "{answer:?}");
        for index in [1, 2] {
            swarm.restart(index).await;
        }
        swarm.offers_of("fake", &[1, 2]).await;
    }
}

#[tokio::test]
async fn where_nobody_is_left_the_answer_ends_with_an_error_and_keeps_what_came() {
    let pace = slow_worker("");
    let mut swarm = team(&[pace.clone(), pace]).await;
    let text = words(1, 90);
    let mut stream = Question::new(&text).ask(swarm.member(0)).await;
    let first = swarm.index_of(stream.so_far().node());
    stream.until_words(20).await;
    swarm.kill(first).await;
    stream.until_words(50).await;
    swarm.kill(3 - first).await;
    let answer = stream.rest().await;
    assert!(answer.error.as_ref().is_some_and(|error| error["message"].is_string()), "{answer:?}");
    assert!(!answer.done && answer.finish.is_none(), "{answer:?}");
    assert!(text.starts_with(&answer.text) && answer.text.split(' ').count() > 50, "{answer:?}");
    // And the next one is told at once that nobody is there.
    let refused = Question::new(&text).answer(swarm.member(0)).await;
    assert!(refused.status >= 400 && refused.error.is_some(), "{refused:?}");
}

#[tokio::test]
async fn a_worker_that_freezes_is_left_within_the_time_to_a_stall() {
    let pace = slow_worker("");
    let mut swarm = team(&[pace.clone(), pace]).await;
    let mut gaps = Vec::new();
    while !is_within(GAP_AT_STALL, &gaps) {
        let round = gaps.len();
        let text = words(round, WORDS);
        let mut stream = Question::new(&text).ask(swarm.member(0)).await;
        let victim = swarm.index_of(stream.so_far().node());
        stream.until_words(5 + round % 30).await;
        swarm.pause(victim);
        let answer = stream.rest().await;
        answer.assert_whole(&text, "stop");
        assert_eq!(answer.seams.len(), 1, "{answer:?}");
        // Nor does a new request wait for it.
        let text = words(round + 100, 10);
        let next = Question::new(&text).answer(swarm.member(0)).await;
        next.assert_whole(&text, "stop");
        gaps.push(answer.longest_gap.max(next.longest_gap));
        swarm.resume(victim);
        swarm.all_see_each_other().await;
        swarm.offers_of("fake", &[1, 2]).await;
        // What it began is no longer wanted, and it knows.
        swarm.member(victim).runs(0).await;
    }
    swarm.stop_all().await;
}

#[tokio::test]
async fn a_shorter_time_to_a_stall_holds_for_other_nodes_too() {
    // No slower than it has to be: while the answer comes from the one that is left, a busy machine must not look like a stall to it.
    let pace = worker(20, 30, "");
    let hasty = no_backends() + "[route]\nstall_ms = 1000\n";
    let swarm = team_of(&hasty, &[pace.clone(), pace]).await;
    let mut gaps = Vec::new();
    // Without the setting it would be 3 s.
    while !is_within(Duration::from_millis(2_600), &gaps) {
        let text = words(gaps.len(), WORDS);
        let mut stream = Question::new(&text).ask(swarm.member(0)).await;
        let victim = swarm.index_of(stream.so_far().node());
        stream.until_words(10).await;
        swarm.pause(victim);
        let answer = stream.rest().await;
        answer.assert_whole(&text, "stop");
        assert!(!answer.seams.is_empty(), "{answer:?}");
        gaps.push(answer.longest_gap);
        swarm.resume(victim);
        swarm.all_see_each_other().await;
        swarm.offers_of("fake", &[1, 2]).await;
    }
}

#[tokio::test]
async fn a_cut_cable_moves_an_answer_and_a_healed_one_brings_the_worker_back() {
    let pace = slow_worker("");
    let Some(mut swarm) = team_on_a_network(&[pace.clone(), pace]).await else { return };
    let mut gaps = Vec::new();
    while !is_within(GAP_AT_STALL, &gaps) {
        let text = words(gaps.len(), WORDS);
        let mut stream = Question::new(&text).ask(swarm.member(0)).await;
        let victim = swarm.index_of(stream.so_far().node());
        stream.until_words(10).await;
        swarm.cut(0, &[victim]).await;
        let answer = stream.rest().await;
        assert!(answer.done, "{answer:?}\nits log:\n{}", swarm.member(0).log_end());
        answer.assert_whole(&text, "stop");
        assert_eq!(answer.seams.len(), 1, "{answer:?}");
        gaps.push(answer.longest_gap);
        swarm.heal().await;
        swarm.wait_for_state(0, victim, &[State::Alive], LIMIT).await;
        swarm.offers_of("fake", &[1, 2]).await;
    }
    swarm.stop_all().await;
}

#[tokio::test]
async fn an_answer_that_may_call_tools_ends_with_an_error_when_its_worker_dies() {
    let pace = slow_worker("");
    let mut swarm = team(&[pace.clone(), pace]).await;
    let tool = json!({ "type": "function", "function": { "name": "hive", "parameters": { "type": "object" } } });
    for round in 0..rounds() {
        let text = words(round, WORDS);
        let mut stream = Question::new(&text).with(&json!({ "tools": [tool] })).ask(swarm.member(0)).await;
        let victim = swarm.index_of(stream.so_far().node());
        stream.until_words(10).await;
        swarm.kill(victim).await;
        let answer = stream.rest().await;
        assert!(answer.error.as_ref().is_some_and(|error| error["message"].is_string()), "{answer:?}");
        assert!(!answer.done && answer.finish.is_none() && text.starts_with(&answer.text), "{answer:?}");
        swarm.restart(victim).await;
        swarm.offers_of("fake", &[1, 2]).await;
    }
}

#[tokio::test]
async fn an_answer_that_was_wanted_of_one_node_is_continued_by_no_other() {
    let pace = slow_worker("");
    let mut swarm = team(&[pace.clone(), pace]).await;
    let id = swarm.id(2).to_owned();
    let text = words(1, WORDS);
    let mut stream = Question::new(&text).within(&format!("node={id}")).ask(swarm.member(0)).await;
    assert_eq!(stream.so_far().node(), id);
    stream.until_words(10).await;
    swarm.kill(2).await;
    let answer = stream.rest().await;
    assert!(answer.error.is_some() && !answer.done && text.starts_with(&answer.text), "{answer:?}");
}
