//! Durable tasks of real nodes: whichever node is given the work, another one may do it, and any of them tells what came of it, whoever
//! dies meanwhile. Leases are a tenth of what they are else.

use serde_json::Value;

use crate::harness::{Finished, Home, fake, no_backends, within};
use crate::model::eventually;
use crate::swarm::{Member, Plan, Swarm};

mod after;
mod alone;
mod batch;
mod clocks;
mod commands;
mod disk;
mod faults;
mod freezes;
mod openai;
mod partitions;
mod prune;
mod real;
mod rounds;
mod sealed;
mod shared;

/// The pace of leases in tests.
const QUICK: &str = "[tasks]\nlease_ms = 1500\nrenew_ms = 500\ngrace_ms = 3000\nrank_step_ms = 100\nsettle_ms = 200\n";

/// A node whose model `fake` repeats what it is told at this pace, with more lines of `[tasks]`.
pub(crate) fn worker(token_ms: u64, more: &str) -> String {
    format!("{}{QUICK}{more}\n", fake(&format!("token_ms = {token_ms}")))
}

/// A node without models, with more lines of `[tasks]`.
pub(crate) fn idle(more: &str) -> String {
    format!("{}{QUICK}{more}\n", no_backends())
}

/// Starts a node for each of these configurations, and returns when all know what the others have.
async fn team(configs: &[String]) -> Swarm {
    let mut swarm = Plan::of(configs.len()).prepared().await;
    for (index, config) in configs.iter().enumerate() {
        swarm.member_mut(index).configure(config);
    }
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    let workers = configs.iter().filter(|config| config.contains("[[backends]]")).count();
    for index in 0..swarm.len() {
        swarm.member(index).knows_workers(workers).await;
    }
    swarm
}

/// A text of so many words, a different one for each number.
fn words(number: usize, count: usize) -> String {
    (0..count).map(|word| format!("{number}-{word}")).collect::<Vec<_>>().join(" ")
}

/// Runs a command and reads its stdout as one JSON object.
async fn object(home: &Home, arguments: &[&str]) -> Value {
    let said = run(home, arguments, 0).await.stdout;
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
}

/// Runs a command and expects this exit code.
async fn run(home: &Home, arguments: &[&str], code: i32) -> Finished {
    let finished = home.run(arguments).await;
    assert_eq!(finished.code, Some(code), "{arguments:?}: {}{}", finished.stdout, finished.stderr);
    finished
}

impl Member {
    /// Waits until a node would send a request for the model `fake` to so many places.
    async fn knows_workers(&self, count: usize) {
        eventually("the offers of the others", async || {
            let route = self.get("/route?model=fake").await;
            let candidates = route["candidates"].as_array().expect("a route has candidates");
            candidates.iter().filter(|candidate| candidate["score"].is_number()).count() >= count
        })
        .await;
    }

    /// Submits a prompt, and returns the task's id.
    pub(crate) async fn submit(&self, prompt: &str, flags: &[&str]) -> String {
        let id = self.done(&[&["submit", "--quiet", prompt], flags].concat()).await.trim().to_owned();
        assert!(!id.is_empty() && !id.contains(char::is_whitespace), "an id and nothing else: {id:?}");
        id
    }

    /// Waits for the answer to a task.
    async fn result(&self, id: &str) -> String {
        self.done(&["result", id, "--wait"]).await.trim_end().to_owned()
    }

    /// Returns how a task stands, by this node; null where it does not know the task.
    pub(crate) async fn task(&self, id: &str) -> Value {
        let sent = self.client().get(self.url(&format!("/task/{id}"))).send();
        let response = within("a task", sent).await.unwrap();
        if response.status() == 404 {
            return Value::Null;
        }
        assert!(response.status().is_success(), "{id}: {}", response.status());
        within("a task", response.json()).await.unwrap()
    }

    /// Waits until a task stands so by this node, and returns it.
    pub(crate) async fn task_when(&self, id: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut task = Value::Null;
        let seen = async {
            while !holds(&task) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                task = self.task(id).await;
            }
        };
        let in_time = tokio::time::timeout(crate::harness::LIMIT, seen).await.is_ok();
        assert!(in_time, "{what}: {task}\nthe node's log:\n{}", self.log());
        task
    }

    /// Waits until this node says that a task is settled, and returns it.
    async fn settled(&self, id: &str) -> Value {
        self.task_when(id, "it is settled", |task| task["settled"] == true).await
    }
}

impl Swarm {
    /// Returns the number of the node with this id.
    fn number_of(&self, id: &Value) -> usize {
        (0..self.len()).find(|index| id == self.id(*index)).unwrap_or_else(|| panic!("{id} is none of these nodes"))
    }

    /// Waits until one of the nodes works on a task, as this node tells, and returns which.
    async fn worker_of(&self, index: usize, id: &str) -> usize {
        let task = self.member(index).task_when(id, "a node works on it", |task| task["status"] == "running").await;
        self.number_of(&task["node_id"])
    }
}
