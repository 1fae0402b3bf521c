//! Many requests at once, and requests that nobody waits for any more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;

use super::client::{Question, words};
use super::{team, worker};
use crate::faults::rounds;
use crate::harness::no_backends;
use crate::model::eventually;

/// How soon the slot of an answer that nobody wants is free, where nothing holds the machine up.
const FREE_WITHIN: Duration = Duration::from_millis(100);
/// How soon it is on any machine: the answer would take a minute.
const FREE_WITHIN_BUSY: Duration = Duration::from_secs(5);

#[tokio::test]
async fn two_hundred_requests_at_once_are_shared_by_capacity_and_none_starves() {
    const REQUESTS: usize = 200;
    const WORDS: usize = 12;
    let slots = [1, 2, 4, 8];
    // Limits of two kinds: what the backend takes, and what its owner gives to others.
    let limit = |slots: u32| match slots {
        1 | 4 => format!("max_concurrent = {slots}"),
        _ => format!("max_concurrent = 16\n[share]\nmax_slots = {slots}"),
    };
    let swarm = team(&slots.map(|slots| worker(40, 10, &limit(slots)))).await;
    let texts: Vec<_> = (0..REQUESTS).map(|number| words(number, WORDS)).collect();
    let began = Instant::now();
    let asked = texts.iter().map(async |text| {
        let answer = Question::new(text).answer(swarm.member(0)).await;
        answer.assert_whole(text, "stop");
        assert!(answer.seams.is_empty(), "{answer:?}");
        (swarm.index_of(answer.node()), began.elapsed())
    });
    let ended = join_all(asked).await;
    let whole = began.elapsed();
    let mut counts = BTreeMap::new();
    for (node, _) in &ended {
        *counts.entry(*node).or_insert(0_usize) += 1;
    }
    let capacity: u32 = slots.iter().sum();
    for (index, slots) in slots.iter().enumerate() {
        let share = REQUESTS as f64 * f64::from(*slots) / f64::from(capacity);
        let had = counts.get(&(index + 1)).copied().unwrap_or(0) as f64;
        println!("{slots} of {capacity} slots: {had} of {REQUESTS} answers, {share:.0} are its share");
        assert!(
            had >= share / 2.0 && had <= share * 2.0,
            "{slots} of {capacity} slots had {had} of {REQUESTS}: {counts:?}"
        );
    }
    // Each takes 150 ms, and 15 run at a time; one after the other they would take 15 times as long. A busy machine may take ten times.
    let ideal = Duration::from_millis(150 * REQUESTS as u64 / u64::from(capacity));
    println!("all of them took {} ms, {} ms without any loss", whole.as_millis(), ideal.as_millis());
    assert!(whole < ideal * 10, "{whole:?} where {ideal:?} is ideal");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_slot_of_the_worker_at_once() {
    let swarm = team(&[worker(0, 20, "max_concurrent = 1")]).await;
    let mut times = Vec::new();
    for round in 0..rounds().max(5) {
        let mut stream = Question::new(&words(round, 3_000)).ask(swarm.member(0)).await;
        stream.until_words(2).await;
        assert_eq!(swarm.member(1).running().await, 1);
        let left = Instant::now();
        drop(stream);
        swarm.member(1).runs(0).await;
        times.push(left.elapsed());
        // And it is the slot that the next one gets.
        let text = words(round, 2);
        Question::new(&text).answer(swarm.member(0)).await.assert_whole(&text, "stop");
    }
    times.sort_unstable();
    println!("free after {times:?}");
    assert!(times[0] < FREE_WITHIN && times[times.len() / 2] < FREE_WITHIN_BUSY, "{times:?}");
}

#[tokio::test]
async fn a_client_that_goes_away_before_the_first_token_leaves_nothing_behind() {
    let swarm = team(&[worker(60_000, 0, "max_concurrent = 2")]).await;
    for round in 0..rounds().max(5) {
        let question = Question::new(&words(round, 5));
        let asking = Box::pin(question.ask(swarm.member(0)));
        let seen = Box::pin(swarm.member(1).runs(1));
        futures::future::select(asking, seen).await;
        swarm.member(1).runs(0).await;
        let state = swarm.member(1).get("/node/sharing").await;
        assert_eq!((&state["running"], &state["waiting"]), (&0.into(), &0.into()), "{state}");
    }
}

#[tokio::test]
async fn several_nodes_that_ask_at_once_do_not_all_run_to_the_same_one() {
    // Each of three nodes without a model knows of two with one. What the others have sent is not told to it, except by load.
    let slow = worker(50, 10, "max_concurrent = 8");
    let swarm = team(&[slow.clone(), slow, no_backends(), no_backends()]).await;
    for asker in [3, 4] {
        let known = async || swarm.best_at(asker, "fake").await.len() == 2;
        eventually("the offers of two", known).await;
    }
    let texts: Vec<_> = (0..30).map(|number| words(number, 30)).collect();
    let asked = texts.iter().enumerate().map(async |(number, text)| {
        let answer = Question::new(text).answer(swarm.member([0, 3, 4][number % 3])).await;
        answer.assert_whole(text, "stop");
        swarm.index_of(answer.node())
    });
    let nodes = join_all(asked).await;
    let first = nodes.iter().filter(|node| **node == 1).count();
    println!("of 30 answers at three nodes, {first} came from one of two workers");
    assert!((8..=22).contains(&first), "{nodes:?}");
}
