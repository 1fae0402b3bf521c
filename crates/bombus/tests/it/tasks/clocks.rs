//! Clocks that leap, as those of a machine that slept, and the time of day when somebody sets it. A library that stands before the C library of
//! a node adds to what its clocks say.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::after::Acknowledged;
use super::openai::{line, question};
use super::words;
use crate::faults::rounds;
use crate::harness::{fake, no_backends, within};
use crate::lab::{is_program, skip};
use crate::model::eventually;
use crate::swarm::{Member, Plan, Swarm};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/tasks/clocks.c");
const HOUR_MS: i64 = 3_600_000;
/// Leases that a busy machine renews in time, so that they run out by naps alone.
const LEASES: &str =
    "[tasks]\nlease_ms = 6000\nrenew_ms = 2000\ngrace_ms = 12000\nrank_step_ms = 100\nsettle_ms = 200\n";
/// Several leases, and the grace time.
const NAP_MS: i64 = 40_000;
/// Pace of a worker whose tasks are still running when somebody wakes.
const SLOW_TOKEN_MS: u64 = 80;

/// What changes the clocks of nodes.
struct Clocks {
    folder: TempDir,
}

/// The clocks of a node, as it reads them.
struct NodeClocks {
    file: File,
}

impl Clocks {
    /// Makes the library; `None` where there is no compiler (the test is skipped).
    async fn new() -> Option<Self> {
        if !is_program("cc") {
            skip("`cc` is missing (Debian: gcc); `make setup` installs it");
            return None;
        }
        let clocks = Self { folder: TempDir::new().unwrap() };
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(clocks.library()).arg(SOURCE);
        let compiled = within("cc", compiler.output()).await.unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        Some(clocks)
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("clocks.so")
    }

    /// Has a node read its clocks there, from its next start on.
    fn give_to(&self, member: &mut Member, number: usize) -> NodeClocks {
        let path = self.folder.path().join(format!("clocks-{number}"));
        std::fs::write(&path, [0; 32]).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        member.set_variable("LD_PRELOAD", &text(&self.library()));
        member.set_variable("TEST_CLOCKS", &text(&path));
        NodeClocks { file: File::options().read(true).write(true).open(path).unwrap() }
    }
}

impl NodeClocks {
    fn number(&self, at: u64) -> i64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at * 8).unwrap();
        i64::from_ne_bytes(bytes)
    }

    fn set(&self, at: u64, number: i64) {
        self.file.write_all_at(&number.to_ne_bytes(), at * 8).unwrap();
    }

    /// Adds to the time of day.
    fn step(&self, ms: i64) {
        self.set(0, self.number(0) + ms);
    }

    /// Has the machine sleep: the time of day and the clock that counts sleep go on, the others do not.
    fn sleep(&self, ms: i64) {
        self.step(ms);
        self.set(1, self.number(1) + ms);
    }

    /// Expects the node to read both clocks here, the time of day and the one that counts sleep.
    async fn are_read(&self) {
        for (what, at) in [("the time of day", 2), ("the clock that counts sleep", 3)] {
            let before = self.number(at);
            eventually(what, async || self.number(at) > before).await;
        }
    }
}

/// Starts a requester and two workers of this pace, all of which read their clocks where the test can change them.
async fn team(token_ms: u64) -> Option<(Swarm, Vec<NodeClocks>, Clocks)> {
    let clocks = Clocks::new().await?;
    let mut swarm = Plan::of(3).prepared().await;
    let mut own = Vec::new();
    let worker = fake(&format!("token_ms = {token_ms}"));
    for (index, config) in [&no_backends(), &worker, &worker].into_iter().enumerate() {
        swarm.member_mut(index).configure(&format!("{config}{LEASES}"));
        own.push(clocks.give_to(swarm.member_mut(index), index));
    }
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    for index in 0..3 {
        swarm.member(index).knows_workers(2).await;
    }
    Some((swarm, own, clocks))
}

/// Submits a task of a batch of its own at the requester.
async fn submit(swarm: &Swarm, batch: &str, number: usize) -> (String, Acknowledged) {
    let text = words(number, 60);
    let body = json!({ "payload": { "prompt": text }, "batch": { "id": batch, "item": "1" }, "max_attempts": 10 });
    let (status, told) = swarm.member(0).post("/task", &body).await;
    assert_eq!(status, 202, "{told}");
    let id = told["task_id"].as_str().unwrap().to_owned();
    (id.clone(), Acknowledged::from([(id, text)]))
}

async fn ends_well(swarm: &Swarm, batch: &str, tasks: &Acknowledged) {
    swarm.none_is_lost(batch, batch, tasks).await;
    swarm.all_are_settled_alike(batch, batch, tasks).await;
}

/// Waits until a node works on a task. Returns which, and under which epoch.
async fn given_to(swarm: &Swarm, id: &str) -> (usize, Value) {
    let task = swarm.member(0).task_when(id, "a node works on it", |task| task["status"] == "running").await;
    (swarm.number_of(&task["node_id"]), task["epoch"].clone())
}

/// Expects whoever had a task to have finished it, under the same grant.
async fn is_finished_by(swarm: &Swarm, given_to: (usize, Value), tasks: &Acknowledged) {
    for id in tasks.keys() {
        let task = swarm.member(0).task(id).await;
        let audits = swarm.member(0).audits(tasks).await;
        let finished = (swarm.number_of(&task["node_id"]), task["epoch"].clone());
        assert_eq!(finished, given_to, "{task} {audits:?}\n{}", swarm.member(0).log());
    }
}

#[tokio::test]
async fn a_worker_that_slept_through_its_lease_does_not_count_on_it() {
    let Some((swarm, clocks, _library)) = team(SLOW_TOKEN_MS).await else { return };
    for round in 0..rounds() {
        let batch = format!("worker-{round}");
        let (id, tasks) = submit(&swarm, &batch, round).await;
        let given_to = given_to(&swarm, &id).await;
        let worker = given_to.0;
        clocks[worker].are_read().await;
        clocks[worker].sleep(NAP_MS);
        ends_well(&swarm, &batch, &tasks).await;
        // Who gives the grants saw it live all the time: the lease is renewed, and nobody else begins.
        is_finished_by(&swarm, given_to, &tasks).await;
    }
}

#[tokio::test]
async fn a_requester_that_slept_finds_out_what_became_of_its_tasks() {
    let Some((swarm, clocks, _library)) = team(SLOW_TOKEN_MS).await else { return };
    for round in 0..rounds() {
        let batch = format!("requester-{round}");
        let (id, tasks) = submit(&swarm, &batch, round).await;
        let given_to = given_to(&swarm, &id).await;
        clocks[0].are_read().await;
        clocks[0].sleep(NAP_MS);
        ends_well(&swarm, &batch, &tasks).await;
        // It asks whoever had the grant before it gives another one.
        is_finished_by(&swarm, given_to, &tasks).await;
    }
}

#[tokio::test]
async fn the_time_of_day_decides_nothing() {
    let Some((swarm, clocks, _library)) = team(40).await else { return };
    for round in 0..rounds().div_ceil(2) {
        for (at, (step, of_worker)) in
            [(HOUR_MS, false), (-HOUR_MS, false), (-HOUR_MS, true), (HOUR_MS, true)].into_iter().enumerate()
        {
            let batch = format!("step-{round}-{at}");
            let (id, tasks) = submit(&swarm, &batch, 4 * round + at).await;
            let given_to = given_to(&swarm, &id).await;
            clocks[if of_worker { given_to.0 } else { 0 }].step(step);
            ends_well(&swarm, &batch, &tasks).await;
            is_finished_by(&swarm, given_to, &tasks).await;
            // One that is submitted while the clocks differ is done as well.
            let later = format!("later-{round}-{at}");
            let (_, tasks) = submit(&swarm, &later, 1_000 + 4 * round + at).await;
            ends_well(&swarm, &later, &tasks).await;
        }
        clocks.iter().for_each(|clocks| clocks.set(0, 0));
    }
}

#[tokio::test]
async fn a_batch_expires_after_a_day_with_what_is_done_by_then() {
    let Some((swarm, clocks, _library)) = team(40).await else { return };
    // The second one takes minutes.
    let content = line("done", &question("two words")) + &line("long", &question(&words(1, 8_000)));
    let file = swarm.member(0).upload(&content).await;
    let batch = swarm.member(0).batch_of(&file).await;
    let is_half_done = |batch: &Value| batch["request_counts"]["completed"] == 1;
    swarm.member(0).batch_when(&batch, "one line is done", is_half_done).await;
    clocks[0].step(25 * HOUR_MS);
    let expired = |batch: &Value| batch["status"] == "expired";
    let ended = swarm.member(0).batch_when(&batch, "it has expired", expired).await;
    assert_eq!(ended["request_counts"], json!({ "total": 2, "completed": 1, "failed": 1 }), "{ended}");
    let ended = swarm.member(1).batch_when(&batch, "that is told at another node", expired).await;
    let answers = swarm.member(1).results(&ended["output_file_id"]).await;
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["done"]);
    let errors = swarm.member(1).results(&ended["error_file_id"]).await;
    assert_eq!((errors.len(), &errors["long"]["error"]["code"]), (1, &json!("batch_expired")), "{errors:?}");
}
