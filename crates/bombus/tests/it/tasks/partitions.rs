//! Networks that part and heal while tasks run. `BOMBUS_FAULT_ROUNDS` says how often, `BOMBUS_FAULT_SEED` repeats one.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::after::Acknowledged;
use super::rounds::seed;
use super::{words, worker};
use crate::faults::rounds;
use crate::harness::within;
use crate::lab::Network;
use crate::swarm::{Plan, Swarm};

/// Tasks of a batch, of which a round has two: one from before, one from while the network is parted.
const TASKS: usize = 12;
/// How long the network is parted: less than a lease, or more than it takes until others are taken for gone and the grace time is over.
const SHORT_MS: std::ops::Range<u64> = 200..1_400;
const LONG_MS: std::ops::Range<u64> = 6_000..15_000;

/// Submits a file of prompts at a node.
async fn submit(swarm: &Swarm, index: usize, batch: &str, first: usize) -> Acknowledged {
    let member = swarm.member(index);
    let texts: Vec<String> = (0..TASKS).map(|number| words(first + number, 30)).collect();
    let lines = texts.iter().map(|text| format!("{}\n", json!({ "prompt": text }))).collect::<String>();
    let file = member.home().path("prompts.jsonl");
    std::fs::write(&file, lines).unwrap();
    let file = file.to_str().unwrap();
    let told = member.done(&["submit", "--quiet", "--file", file, "--key", batch, "--attempts", "10", "--json"]).await;
    let told: Value = serde_json::from_str(&told).unwrap();
    let ids = told["tasks"].as_array().unwrap().iter().map(|task| {
        let id = task["task_id"].as_str().or(task.as_str());
        id.unwrap_or_else(|| panic!("the ids of a batch: {told}")).to_owned()
    });
    let tasks: Acknowledged = ids.zip(texts).collect();
    assert_eq!(tasks.len(), TASKS, "{told}");
    tasks
}

#[tokio::test]
async fn however_the_network_parts_while_tasks_run_each_has_one_result_when_it_is_whole_again() {
    let Some(network) = Network::of(4).await else { return };
    let seed = seed();
    let mut swarm = Plan::of(4).on(network).prepared().await;
    for index in 0..4 {
        swarm.member_mut(index).configure(&worker(40, "max_attempts = 10"));
    }
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    swarm.all_connected().await;
    for round in 0..rounds() {
        for index in 0..4 {
            swarm.member(index).knows_workers(4).await;
        }
        let began = Instant::now();
        let mut chance = StdRng::seed_from_u64(seed.wrapping_add(round as u64));
        let mut order = [0, 1, 2, 3];
        order.shuffle(&mut chance);
        let (left, right) = order.split_at(if round / 2 % 2 == 0 { 2 } else { 1 });
        let parted = Duration::from_millis(chance.random_range(if round % 2 == 0 { LONG_MS } else { SHORT_MS }));
        let what = format!("seed {seed}, round {round}, {left:?} and {right:?} for {parted:?}");

        let batches = [format!("before-{round}"), format!("within-{round}")];
        let before = submit(&swarm, left[0], &batches[0], 2 * round * TASKS).await;
        for index in left {
            swarm.cut(*index, right).await;
        }
        let cut = Instant::now();
        let within = submit(&swarm, right[0], &batches[1], (2 * round + 1) * TASKS).await;
        sleep(parted.saturating_sub(cut.elapsed())).await;
        swarm.heal().await;
        swarm.all_see_each_other().await;
        let healed = began.elapsed();
        for (batch, tasks) in batches.iter().zip([before, within]) {
            swarm.none_is_lost(&what, batch, &tasks).await;
            swarm.all_are_settled_alike(&what, batch, &tasks).await;
        }
        eprintln!("{what}: whole after {:.1} s, {:.1} s", healed.as_secs_f64(), began.elapsed().as_secs_f64());
    }
    within("the end of all nodes", swarm.stop_all()).await;
}
