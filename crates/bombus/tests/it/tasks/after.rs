//! What has to hold of tasks once a fault is over, whatever it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::harness::LIMIT;
use crate::swarm::{Member, Swarm};

/// How often something is looked at that takes a while to read.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What happened is written behind what decides, and goes to the other nodes after that.
const AUDITS_LIMIT: Duration = Duration::from_secs(60);
/// Entries of the audit log that are read at once, the newest.
const AUDITS_READ: usize = 4_000;

/// Tasks that a node has acknowledged, by their ids, and the answers that they have to come to.
pub(super) type Acknowledged = BTreeMap<String, String>;

/// What all nodes have to tell alike of a task.
const ALIKE: [&str; 5] = ["status", "settled", "node_id", "epoch", "attempts"];

impl Member {
    /// Returns the tasks of a batch that this node knows, by their ids.
    async fn tasks_of_batch(&self, batch: &str) -> BTreeMap<String, Value> {
        let (mut tasks, mut cursor) = (BTreeMap::new(), String::new());
        loop {
            let page = self.get(&format!("/tasks?batch={batch}&limit=1000{cursor}")).await;
            for task in page["tasks"].as_array().unwrap() {
                tasks.insert(task["task_id"].as_str().unwrap().to_owned(), task.clone());
            }
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return tasks,
            }
        }
    }

    /// Returns what stands under a key of a database.
    pub(super) async fn stored(&self, database: &str, key: &str) -> Value {
        self.get(&format!("/db/{database}/get?key={key}")).await
    }

    /// Returns what the audit log says of these tasks, the oldest first.
    pub(super) async fn audits(&self, tasks: &Acknowledged) -> BTreeMap<String, Vec<Value>> {
        let text = self.text(&format!("/db/swarm-events/all?newest=true&amount={AUDITS_READ}")).await;
        let mut audits: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for row in text.lines().rev() {
            let row: Value = serde_json::from_str(row).unwrap();
            let events = row["value"].as_array().cloned().unwrap_or_else(|| vec![row["value"].clone()]);
            for event in events {
                let task = event["taskId"].as_str().unwrap();
                if tasks.contains_key(task) {
                    audits.entry(task.to_owned()).or_default().push(event);
                }
            }
        }
        audits
    }
}

impl Swarm {
    /// Expects all nodes to know all of these tasks of a batch, and each of them to have a place: it is over, or somebody's.
    pub(super) async fn none_is_lost(&self, what: &str, batch: &str, tasks: &Acknowledged) {
        let began = Instant::now();
        for index in 0..self.len() {
            let known = loop {
                let known = self.member(index).tasks_of_batch(batch).await;
                let missing: Vec<_> = tasks.keys().filter(|id| !known.contains_key(*id)).collect();
                if missing.is_empty() {
                    break known;
                }
                let log = self.member(index).log();
                assert!(began.elapsed() < LIMIT, "{what}: node {index} knows nothing of {missing:?}\n{log}");
                sleep(LOOK_EVERY).await;
            };
            let nodes: BTreeSet<&str> = (0..self.len()).map(|node| self.id(node)).collect();
            for (id, task) in &known {
                let is_over = ["completed", "failed", "cancelled"].iter().any(|end| task["status"] == *end);
                let owner = task["requester"]["node_id"].as_str().unwrap_or_default();
                assert!(is_over || nodes.contains(owner), "{what}: {id} is nobody's: {task}");
            }
            assert!(known.keys().all(|id| tasks.contains_key(id)), "{what}: nobody submitted the others of {known:?}");
        }
    }

    /// Expects each of these tasks of a batch to come to its answer, once and for all, and all nodes to tell the same of it, with an audit log
    /// that fits.
    pub(super) async fn all_are_settled_alike(&self, what: &str, batch: &str, tasks: &Acknowledged) {
        let began = Instant::now();
        loop {
            let told = join_all((0..self.len()).map(|index| self.member(index).tasks_of_batch(batch))).await;
            let Some(unlike) = tasks.keys().find_map(|id| unlike(id, &told)) else { break };
            if began.elapsed() > LIMIT {
                let logs: Vec<_> = (0..self.len()).map(|index| self.member(index).log()).collect();
                panic!("{what}: not within {LIMIT:?}: {unlike:?}\nthe logs:\n{}", logs.join("\n---\n"));
            }
            sleep(LOOK_EVERY).await;
        }
        for index in 0..self.len() {
            self.all_have_their_answers(what, index, tasks).await;
        }
        self.audits_fit(what, tasks).await;
    }

    async fn all_have_their_answers(&self, what: &str, index: usize, tasks: &Acknowledged) {
        for (id, text) in tasks {
            let task = self.member(index).get(&format!("/task/{id}")).await;
            let stands = (&task["status"], &task["result"]["response"]);
            assert_eq!(stands, (&json!("completed"), &json!(text)), "{what}: at node {index}: {task}");
        }
    }

    /// Waits until the audit log says how each task came to its accepted result, in an order in which that can have happened.
    pub(super) async fn audits_fit(&self, what: &str, tasks: &Acknowledged) {
        let mut accepted = BTreeMap::new();
        for id in tasks.keys() {
            accepted.insert(id.clone(), self.accepted(what, id).await);
        }
        let began = Instant::now();
        let mut last = 0;
        for index in (0..self.len()).cycle() {
            let audits = self.member(index).audits(tasks).await;
            let misfit = accepted.iter().find_map(|(id, accepted)| {
                let events = audits.get(id).map(Vec::as_slice).unwrap_or_default();
                misfit(events, accepted).map(|reason| (id.clone(), reason, events.to_vec(), accepted.clone()))
            });
            match misfit {
                None => last += 1,
                Some(misfit) => {
                    last = 0;
                    assert!(began.elapsed() < AUDITS_LIMIT, "{what}: at node {index}: {misfit:?}");
                    sleep(LOOK_EVERY).await;
                }
            }
            if last == self.len() {
                return;
            }
        }
    }

    /// Returns how a task was settled. Which result was accepted is put in where that is seen: the database of results shows the newest one, which
    /// may be that of the other side of a network that was parted.
    async fn accepted(&self, what: &str, id: &str) -> Value {
        let mut task = self.member(0).stored("swarm-tasks", id).await["value"].clone();
        assert_eq!((&task["status"], &task["settled"]), (&json!("COMPLETED"), &json!(true)), "{what}: {task}");
        let result = self.member(0).stored("swarm-results", id).await;
        if result["value"]["grant"] == task["grant"] {
            assert_eq!(result["value"]["workerPeerId"], task["workerPeerId"], "{what}: {task} {result}");
            task["result"] = result["hash"].clone();
        }
        task
    }
}

/// Returns what nodes tell of a task, where it is not settled at all of them, or not the same.
fn unlike(id: &str, told: &[BTreeMap<String, Value>]) -> Option<Vec<Value>> {
    let of_it = |known: &BTreeMap<String, Value>| known.get(id).cloned().unwrap_or_default();
    let alike = |task: &Value| (ALIKE.map(|field| task[field].clone()), task["requester"]["node_id"].clone());
    let told: Vec<Value> = told.iter().map(of_it).collect();
    let is_same = told.iter().all(|task| task["settled"] == true && alike(task) == alike(&told[0]));
    (!is_same).then_some(told)
}

/// Says what is wrong with the audit log of a task that was settled so.
fn misfit(events: &[Value], task: &Value) -> Option<String> {
    let (requester, worker, epoch) = (&task["requesterPeerId"], &task["workerPeerId"], &task["epoch"]);
    let by = |kind: &str, actor: &Value| {
        let events = events.iter().enumerate();
        let found = events.filter(|(_, event)| event["event"] == kind && event["actor"] == *actor);
        found.map(|(at, event)| (at, event.clone())).collect::<Vec<_>>()
    };
    if by("created", requester).len() != 1 {
        return Some("it was not created once".to_owned());
    }
    let granted = by("granted", requester);
    let epochs: Vec<u64> = granted.iter().filter_map(|(_, event)| event["epoch"].as_u64()).collect();
    if !epochs.is_sorted_by(|a, b| a < b) {
        return Some(format!("epochs do not grow: {epochs:?}"));
    }
    let claimed = by("self_claimed", worker);
    let of_epoch = |event: &Value| event["epoch"] == *epoch && event["workerPeerId"] == *worker;
    if !granted.iter().chain(&claimed).any(|(_, event)| of_epoch(event)) {
        return Some("the accepted grant is missing".to_owned());
    }
    let results = by("result", worker);
    let result = &task["result"];
    let is_accepted = |event: &Value| event["epoch"] == *epoch && (result.is_null() || event["entry"] == *result);
    if !results.iter().any(|(_, event)| is_accepted(event)) {
        return Some("the accepted result is missing".to_owned());
    }
    let settled = by("completed", requester);
    let [(end, completed)] = settled.as_slice() else { return Some("it was not settled once".to_owned()) };
    if completed["epoch"] != *epoch || completed["workerPeerId"] != *worker {
        return Some("another grant was settled".to_owned());
    }
    let steps = ["created", "granted", "released"].iter().flat_map(|kind| by(kind, requester));
    let late = steps.map(|(at, _)| at).any(|at| at > *end);
    late.then(|| "its requester went on after the end".to_owned())
}
