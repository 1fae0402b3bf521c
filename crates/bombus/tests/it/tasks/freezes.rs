//! Nodes that freeze for longer than a lease while tasks run, and wake again: a worker, the requester, both. `BOMBUS_FAULT_ROUNDS` says how
//! often, `BOMBUS_FAULT_SEED` repeats one.

use std::time::Duration;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::after::Acknowledged;
use super::rounds::seed;
use super::{QUICK, idle, team, words, worker};
use crate::faults::rounds;
use crate::harness::within;
use crate::model::eventually;
use crate::swarm::Swarm;

/// Tasks of a round, more than are worked on at a time.
const TASKS: usize = 12;
/// Who submits, and who works.
const REQUESTER: usize = 0;
const WORKERS: [usize; 2] = [1, 2];
/// Words of an answer: at the pace of the workers some take less than a lease, and some nearly two.
const WORDS: std::ops::Range<usize> = 30..70;
/// How long nodes are frozen, in tenths of a lease: at least longer than who gave a grant counts with it, at most longer than the grace time.
const FROZEN_TENTHS: std::ops::Range<u32> = 12..42;

/// Returns how long a grant holds here unless it is renewed.
fn lease() -> Duration {
    let lease_ms = QUICK.lines().find_map(|line| line.strip_prefix("lease_ms = "));
    Duration::from_millis(lease_ms.expect("the pace of leases is given").parse().unwrap())
}

/// Chooses who freezes in a round: in turn a worker, the requester, both.
fn victims(round: usize, worker: usize) -> Vec<usize> {
    match round % 3 {
        0 => vec![worker],
        1 => vec![REQUESTER],
        _ => vec![REQUESTER, worker],
    }
}

/// Submits a task of a batch for each of these texts.
async fn submit(swarm: &Swarm, batch: &str, texts: Vec<String>) -> Acknowledged {
    let submitting = texts.into_iter().enumerate().map(|(item, text)| async move {
        let body = json!({
            "payload": { "prompt": text }, "max_attempts": 10, "batch": { "id": batch, "item": item.to_string() },
        });
        let (status, told) = swarm.member(REQUESTER).post("/task", &body).await;
        assert_eq!(status, 202, "{told}");
        (told["task_id"].as_str().unwrap().to_owned(), text)
    });
    join_all(submitting).await.into_iter().collect()
}

#[tokio::test]
async fn whoever_freezes_for_longer_than_a_lease_while_tasks_run_each_has_one_result_when_it_wakes() {
    let seed = seed();
    let pace = worker(40, "max_attempts = 10\nmax_concurrent = 4");
    let mut swarm = team(&[idle("max_attempts = 10"), pace.clone(), pace]).await;
    for round in 0..rounds() {
        for index in 0..swarm.len() {
            swarm.member(index).knows_workers(WORKERS.len()).await;
        }
        let began = Instant::now();
        let mut chance = StdRng::seed_from_u64(seed.wrapping_add(round as u64));
        let busy = WORKERS[chance.random_range(0..WORKERS.len())];
        let victims = victims(round, busy);
        let frozen = lease() * chance.random_range(FROZEN_TENTHS) / 10;
        let what = format!("seed {seed}, round {round}, {victims:?} for {frozen:?}");
        let texts = (0..TASKS).map(|item| words(round * TASKS + item, chance.random_range(WORDS))).collect();
        let batch = format!("round-{round}");
        let tasks = submit(&swarm, &batch, texts).await;
        assert_eq!(tasks.len(), TASKS, "{what}: each has an id of its own");

        let works = async || swarm.member(busy).get("/status").await["tasks_active"].as_u64() > Some(0);
        eventually("work at a worker", works).await;
        for victim in &victims {
            swarm.pause(*victim);
        }
        sleep(frozen).await;
        for victim in &victims {
            swarm.resume(*victim);
        }
        swarm.all_see_each_other().await;
        swarm.none_is_lost(&what, &batch, &tasks).await;
        swarm.all_are_settled_alike(&what, &batch, &tasks).await;
        eprintln!("{what}: settled after {:.1} s", began.elapsed().as_secs_f64());
    }
    within("the end of all nodes", swarm.stop_all()).await;
}
