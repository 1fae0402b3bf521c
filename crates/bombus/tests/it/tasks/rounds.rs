//! Rounds of SIGKILL while many tasks run: at requesters, at workers, at both. `BOMBUS_FAULT_ROUNDS` says how many, five for each two of it;
//! `BOMBUS_FAULT_SEED` repeats one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::after::Acknowledged;
use super::{idle, team, words, worker};
use crate::harness::{LIMIT, client, within};
use crate::model::eventually;
use crate::swarm::Swarm;

/// Tasks of a round.
const TASKS: usize = 100;
/// Where tasks are submitted, as long as these are there; the others only do them.
const REQUESTERS: [usize; 2] = [0, 1];
const WORKERS: [usize; 2] = [2, 3];
/// For how long tasks are submitted.
const SUBMITTING_MS: u64 = 3_000;
/// Until when nodes are killed, and how long they stay dead.
const STRIKES_MS: std::ops::Range<u64> = 200..5_000;
const DEAD_MS: std::ops::Range<u64> = 50..4_500;
/// How long a client waits for an answer, and before it asks elsewhere.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// Returns the seed that was asked for, else another one each time, and says so.
pub(super) fn seed() -> u64 {
    let seed = std::env::var("BOMBUS_FAULT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| std::process::id().into());
    eprintln!("BOMBUS_FAULT_SEED={seed}");
    seed
}

/// How many rounds there are: two where nothing is said, fifty where there are twenty of others.
fn rounds() -> usize {
    let rounds = crate::faults::rounds();
    if rounds <= 2 { rounds } else { rounds * 5 / 2 }
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Kill(usize),
    Start(usize),
}

/// Chooses who is killed when, and for how long.
fn acts(chance: &mut StdRng) -> Vec<(u64, Act)> {
    let mut acts = Vec::new();
    let mut dead_until = [0; 4];
    let mut times: Vec<u64> = (0..chance.random_range(2..=4)).map(|_| chance.random_range(STRIKES_MS)).collect();
    times.sort_unstable();
    for at in times {
        let (requester, worker) = (REQUESTERS[chance.random_range(0..2)], WORKERS[chance.random_range(0..2)]);
        let victims = match chance.random_range(0..16) {
            0..5 => vec![requester],
            5..9 => vec![worker],
            9..13 => vec![requester, worker],
            13 => REQUESTERS.to_vec(),
            14 => WORKERS.to_vec(),
            _ => [REQUESTERS, WORKERS].concat(),
        };
        for victim in victims {
            if dead_until[victim] >= at {
                continue;
            }
            let back = at + chance.random_range(DEAD_MS);
            // It takes a while to start, in which it can be killed, too.
            dead_until[victim] = back;
            acts.extend([(at, Act::Kill(victim)), (back, Act::Start(victim))]);
        }
    }
    acts.sort_by_key(|(at, _)| *at);
    acts
}

/// Where the nodes are that run, as clients know it.
type Places = Arc<Mutex<Vec<Option<String>>>>;

/// Submits a task, at the next node where one does not answer, until one has acknowledged it. Returns its id.
async fn submit(places: Places, first: usize, key: String, body: Value) -> String {
    let client = client();
    let mut last = String::new();
    let began = Instant::now();
    for at in (0..4).cycle().skip(first) {
        assert!(began.elapsed() < LIMIT, "nobody takes {key}: {last}");
        let place = places.lock().unwrap()[at].clone();
        if let Some(place) = place {
            let request = client.post(place).header("idempotency-key", &key).timeout(PATIENCE).json(&body);
            match request.send().await {
                Ok(answer) if answer.status() == 202 => {
                    let told: Value = answer.json().await.unwrap_or_default();
                    if let Some(id) = told["task_id"].as_str() {
                        return id.to_owned();
                    }
                }
                Ok(answer) => {
                    assert!(answer.status().is_server_error(), "{key}: {}", answer.status());
                    last = answer.text().await.unwrap_or_default();
                }
                Err(error) => last = error.to_string(),
            }
        }
        sleep(PAUSE).await;
    }
    unreachable!("the nodes are asked without an end")
}

/// Submits all tasks of a round over some seconds.
async fn submit_all(places: Places, round: usize, mut chance: StdRng) -> Acknowledged {
    let began = Instant::now();
    let submitting = (0..TASKS).map(|number| {
        let text = words(round * TASKS + number, chance.random_range(5..30));
        let at = began + Duration::from_millis(chance.random_range(0..SUBMITTING_MS));
        let first = REQUESTERS[chance.random_range(0..2)];
        let body = json!({
            "payload": { "prompt": text }, "max_attempts": 10,
            "batch": { "id": format!("round-{round}"), "item": number.to_string() },
        });
        let places = Arc::clone(&places);
        async move {
            sleep_until(at).await;
            (submit(places, first, format!("round-{round}-{number}"), body).await, text)
        }
    });
    join_all(submitting).await.into_iter().collect()
}

/// Kills and starts nodes at their times.
async fn strike(swarm: &mut Swarm, places: &Places, acts: &[(u64, Act)]) {
    let began = Instant::now();
    for (at, act) in acts {
        sleep_until(began + Duration::from_millis(*at)).await;
        match *act {
            Act::Kill(victim) => {
                places.lock().unwrap()[victim] = None;
                swarm.kill(victim).await;
            }
            Act::Start(victim) => {
                swarm.restart(victim).await;
                places.lock().unwrap()[victim] = Some(swarm.member(victim).url("/task"));
            }
        }
    }
}

/// Waits until a node that was just started has opened its tasks: with much history on a busy machine that takes a while.
async fn has_opened(swarm: &Swarm, index: usize) {
    let member = swarm.member(index);
    let answers = async || {
        let answer = member.client().get(member.url("/tasks?limit=1")).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    };
    eventually("the tasks of a node that was just started", answers).await;
}

#[tokio::test]
async fn whoever_is_killed_while_a_hundred_tasks_run_none_is_lost_and_each_has_one_result() {
    let seed = seed();
    let more = "max_attempts = 10";
    let pace = worker(40, more);
    let mut swarm = team(&[idle(more), pace.clone(), pace.clone(), pace]).await;
    for round in 0..rounds() {
        let began = Instant::now();
        let mut chance = StdRng::seed_from_u64(seed.wrapping_add(round as u64));
        let acts = acts(&mut chance);
        let what = format!("seed {seed}, round {round}, {acts:?}");
        let urls = (0..swarm.len()).map(|index| Some(swarm.member(index).url("/task"))).collect();
        let places: Places = Arc::new(Mutex::new(urls));
        let submitting = submit_all(Arc::clone(&places), round, chance);
        let (tasks, ()) = tokio::join!(submitting, strike(&mut swarm, &places, &acts));
        assert_eq!(tasks.len(), TASKS, "{what}: each has an id of its own");
        let struck = began.elapsed().as_secs_f64();
        let batch = format!("round-{round}");
        for index in 0..swarm.len() {
            has_opened(&swarm, index).await;
        }
        swarm.none_is_lost(&what, &batch, &tasks).await;
        let known = began.elapsed().as_secs_f64();
        swarm.all_are_settled_alike(&what, &batch, &tasks).await;
        let settled = began.elapsed().as_secs_f64();
        eprintln!(
            "{what}: submitted after {struck:.1} s, known everywhere after {known:.1} s, settled after {settled:.1} s"
        );
    }
    within("the end of all nodes", swarm.stop_all()).await;
}
