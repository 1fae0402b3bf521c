//! Nodes that go as they should: they finish what they began, and the others know at once.

use super::client::{Question, words};
use super::{team, worker};
use crate::faults::rounds;
use crate::harness::{LIMIT, Signal};
use crate::swarm::State;

#[tokio::test]
async fn a_node_that_is_told_to_stop_ends_its_answers_and_says_goodbye() {
    let pace = worker(0, 30, "");
    let mut swarm = team(&[pace.clone(), pace]).await;
    for round in 0..rounds() {
        swarm.all_connected().await;
        let text = words(round, 100);
        let mut stream = Question::new(&text).ask(swarm.member(0)).await;
        let leaver = swarm.index_of(stream.so_far().node());
        let other = 3 - leaver;
        stream.until_words(5).await;
        let kind = "?kind=peer:left";
        let mut events = [swarm.member(0).events(kind).await, swarm.member(other).events(kind).await];
        swarm.member(leaver).signal(Signal::Terminate);
        // From now on the others get the requests, while it finishes.
        swarm.no_offers_of("fake", &[leaver]).await;
        assert!(stream.so_far().text.len() < text.len(), "it still answers");
        for number in 0..4 {
            let text = words(100 + number, 4);
            let answer = Question::new(&text).answer(swarm.member(0)).await;
            answer.assert_whole(&text, "stop");
            assert_eq!(answer.node(), swarm.id(other));
        }
        let answer = stream.rest().await;
        answer.assert_whole(&text, "stop");
        assert!(answer.seams.is_empty(), "it was finished where it began: {answer:?}");
        swarm.member_mut(leaver).stopped().await;
        for (index, events) in [0, other].into_iter().zip(&mut events) {
            let event = events.wait_for("peer:left", swarm.id(leaver)).await;
            assert_eq!(event.data["data"]["reason"], "it said goodbye", "not by its silence: {event:?}");
            swarm.wait_for_state(index, leaver, &[State::Gone], LIMIT).await;
        }
        swarm.restart(leaver).await;
        swarm.all_see_each_other().await;
        swarm.offers_of("fake", &[1, 2]).await;
    }
    swarm.stop_all().await;
}

#[tokio::test]
async fn an_answer_that_would_take_longer_than_the_grace_time_is_handed_over() {
    let hasty = worker(0, 20, "[api.limits]\ngrace_ms = 300");
    let mut swarm = team(&[hasty, worker(0, 5, "max_concurrent = 4")]).await;
    let text = words(1, 200);
    let mut stream = Question::new(&text).within("remote").ask(swarm.member(0)).await;
    let mut leaver = swarm.index_of(stream.so_far().node());
    let mut tries = 0;
    while leaver != 1 {
        // The other one is as good: ask again until the hasty one answers.
        stream = Question::new(&text).within("remote").ask(swarm.member(0)).await;
        leaver = swarm.index_of(stream.so_far().node());
        tries += 1;
        assert!(tries < 50, "node 1 never answers");
    }
    stream.until_words(5).await;
    swarm.member(1).signal(Signal::Terminate);
    let answer = stream.rest().await;
    answer.assert_whole(&text, "stop");
    assert_eq!(answer.seams.len(), 1, "{answer:?}");
    swarm.member_mut(1).stopped().await;
}
