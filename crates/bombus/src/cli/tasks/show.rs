//! Tasks as people read them.

use std::io::IsTerminal;

use anyhow::Result;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cli::output;
use crate::failure::{Exit, Failure};
use crate::printable::{self, one_line};

/// Longest name of a node or a model that a column is made for.
const NAME_MAX: usize = 24;

/// A part of the list of tasks.
#[derive(Debug, Deserialize)]
pub(in crate::cli) struct Page {
    pub(in crate::cli) tasks: Vec<Task>,
    pub(in crate::cli) next: Option<String>,
}

/// A task as the node tells it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(in crate::cli) struct Task {
    pub(in crate::cli) task_id: String,
    task_type: String,
    pub(in crate::cli) status: String,
    pub(in crate::cli) settled: bool,
    cancelling: bool,
    /// Why nobody does it, where nobody could.
    #[serde(default)]
    pub(in crate::cli) waiting: Option<String>,
    #[serde(default)]
    pub(in crate::cli) result: Option<Value>,
    #[serde(default)]
    pub(in crate::cli) error: Option<String>,
    #[serde(default)]
    encrypted: bool,
    duration_seconds: f64,
    node_id: Option<String>,
    hostname: Option<String>,
    model: Option<String>,
    requester: Node,
    created_at: f64,
    priority: u8,
    epoch: u64,
    attempt: u32,
    attempts: Vec<Attempt>,
    progress: Progress,
    chunks: Vec<Chunk>,
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    batch: Option<Batch>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Node {
    node_id: String,
    hostname: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Attempt {
    epoch: u64,
    worker: Node,
    reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Progress {
    done: u64,
    total: u64,
    tokens: u64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Chunk {
    task_id: String,
    index: Option<u32>,
    status: String,
    #[serde(default)]
    error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Batch {
    id: String,
    item: String,
    #[serde(default)]
    total: Option<usize>,
}

/// Reads what the node tells.
pub(in crate::cli) fn read<T: DeserializeOwned>(told: Value) -> Result<T> {
    serde_json::from_value(told).map_err(|error| {
        Failure::new(Exit::Failure, format!("what the node tells of tasks is not understood: {error}"))
            .hint("the node may be of another version than this command; start it again")
            .into()
    })
}

/// Returns whether a task has ended, as the node tells it.
pub(in crate::cli) fn has_ended(told: &Value) -> bool {
    matches!(told["status"].as_str(), Some("completed" | "failed" | "cancelled"))
}

/// Lays tasks out in columns.
pub(in crate::cli) fn table(tasks: &[Task], now: f64) -> String {
    let rows = tasks.iter().map(|task| {
        [
            task.task_id.clone(),
            task.state(),
            short(task.model.as_deref().unwrap_or(&task.task_type)),
            task.hostname.as_deref().map_or_else(|| "-".to_owned(), short),
            task.amount(),
            age(now - task.created_at),
        ]
    });
    output::table(["TASK", "STATUS", "MODEL", "NODE", "DONE", "AGE"], rows)
}

impl Task {
    /// Says that the answer is not for this node's eyes, and for whose it is.
    pub(in crate::cli) fn sealed_to(&self) -> Option<&str> {
        let is_sealed = self.encrypted && self.status == "completed" && self.result.is_none();
        is_sealed.then_some(self.requester.hostname.as_str())
    }

    /// Leaves out what is different at every look.
    pub(super) fn steady(&self) -> Self {
        Self { duration_seconds: 0.0, ..self.clone() }
    }

    /// What the task is called within its batch.
    pub(in crate::cli) fn item(&self) -> Option<&str> {
        self.batch.as_ref().map(|batch| batch.item.as_str())
    }

    /// How many tasks its batch has, where that was said.
    pub(in crate::cli) fn batch_total(&self) -> Option<usize> {
        self.batch.as_ref()?.total
    }

    /// Says how far it is, and whether that may change yet.
    fn state(&self) -> String {
        match self.status.as_str() {
            "completed" if !self.settled => "completed, not settled".to_owned(),
            status if self.cancelling => format!("{status}, cancelling"),
            status => status.to_owned(),
        }
    }

    fn amount(&self) -> String {
        let Progress { done, total, tokens } = self.progress;
        match (total, tokens) {
            (2.., _) => format!("{done}/{total}"),
            (_, 1..) => counted(tokens, "token"),
            _ => "-".to_owned(),
        }
    }

    /// Writes everything that there is to know, but the result.
    pub(in crate::cli) fn text(&self, width: usize) -> String {
        let mut text = format!("{}\n", one_line(&self.task_id));
        let mut line = |name: &str, value: &str| {
            text.push_str(&output::wrapped(&format!("  {name:9} "), &one_line(value), width));
        };
        line("status", &format!("{}, after {}", self.state(), seconds(self.duration_seconds)));
        if let Some(waiting) = &self.waiting {
            line("waits", waiting);
        }
        let kind = self.model.as_ref().map_or_else(String::new, |model| format!(", model {model}"));
        line("kind", &format!("{}{kind}, priority {}", self.task_type, self.priority));
        if self.encrypted {
            line("sealed", "only its requester and those who may do it can read it");
        }
        line("requester", &named(&self.requester.node_id, &self.requester.hostname));
        if let Some(id) = &self.node_id {
            line("worker", &named(id, self.hostname.as_deref().unwrap_or(id)));
        }
        if self.amount() != "-" {
            line("done", &self.amount());
        }
        if let Some(error) = &self.error {
            line("error", error);
        }
        if let Some(parent) = &self.parent {
            line("part of", parent);
        }
        if let Some(Batch { id, item, total }) = &self.batch {
            let total = total.map(|total| format!(" of {total}")).unwrap_or_default();
            line("batch", &format!("{id}, item {item}{total}"));
        }
        for Attempt { epoch, worker, reason } in &self.attempts {
            line("failed", &format!("grant {epoch} at {}: {reason}", worker.hostname));
        }
        if self.attempt > 1 {
            line("attempt", &format!("{}, under grant {}", self.attempt, self.epoch));
        }
        for Chunk { task_id, index, status, error } in &self.chunks {
            let why = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            let place = index.map_or_else(|| "sum".to_owned(), |index| index.to_string());
            line("chunk", &format!("{place} {status} ({task_id}){why}"));
        }
        text
    }

    /// Writes what came of it as a line of the results of a batch.
    pub(in crate::cli) fn line(&self) -> String {
        let result = self.result.as_ref();
        let fact = |name: &str| result.and_then(|result| result.get(name)).cloned().unwrap_or(Value::Null);
        let mut line = json!({
            "id": self.item().unwrap_or(&self.task_id),
            "task_id": self.task_id,
            "status": self.status,
            "settled": self.settled,
            "encrypted": self.encrypted,
            "response": fact("response"),
            "model": result.and_then(|result| result.get("model")).cloned().or(self.model.clone().map(Value::from)),
            "node_id": self.node_id,
            "duration_seconds": self.duration_seconds,
            "prompt_eval_count": fact("prompt_eval_count"),
            "eval_count": fact("eval_count"),
            "tokens_per_second": fact("tokens_per_second"),
        });
        for name in ["embedding", "echo"] {
            if let Some(value) = result.and_then(|result| result.get(name)) {
                line[name] = value.clone();
            }
        }
        if let Some(error) = &self.error {
            line["error"] = error.as_str().into();
        }
        format!("{line}\n")
    }

    /// Writes what came of it, as it is; on a terminal without what could control it.
    pub(in crate::cli) fn answer(&self) -> String {
        let result = self.result.as_ref();
        let Some(response) = result.and_then(|result| result["response"].as_str()) else {
            return format!("{}\n", result.unwrap_or(&Value::Null));
        };
        let mut text =
            if std::io::stdout().is_terminal() { printable::lines(response).into_owned() } else { response.to_owned() };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }

    /// Says who did it, how fast, and whether it may change yet.
    pub(in crate::cli) fn summary(&self) -> String {
        let number = |name: &str| self.result.as_ref().and_then(|result| result[name].as_f64());
        let count = number("eval_count").map(|count| count as u64);
        let tokens = count.map(|count| format!(", {}", counted(count, "token"))).unwrap_or_default();
        // One token takes no time that could be measured.
        let speed = number("tokens_per_second").filter(|_| count > Some(1));
        let speed = speed.map(|speed| format!(" at {speed:.0}/s")).unwrap_or_default();
        let place = self.hostname.as_ref().map(|name| format!(" by {name}")).unwrap_or_default();
        let settled = if self.settled { "" } else { "; not settled by its requester yet, so it may be replaced" };
        let model = self.model.as_deref().unwrap_or(&self.task_type);
        one_line(&format!("{model}{place}, {}{tokens}{speed}{settled}", seconds(self.duration_seconds)))
    }
}

fn named(id: &str, name: &str) -> String {
    if id == name { id.to_owned() } else { format!("{name} ({id})") }
}

fn short(name: &str) -> String {
    let name = one_line(name);
    if name.chars().count() <= NAME_MAX {
        return name;
    }
    name.chars().take(NAME_MAX - 3).chain("...".chars()).collect()
}

fn seconds(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds.max(0.0) * 1_000.0),
        ..10.0 => format!("{seconds:.1} s"),
        _ => age(seconds),
    }
}

/// Counts things as people do.
fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Writes a time span as people say it.
fn age(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..120 => format!("{whole} s"),
        120..7_200 => format!("{} min", whole / 60),
        7_200..172_800 => format!("{} h", whole / 3_600),
        _ => format!("{} days", whole / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Value {
        json!({
            "task_id": "t1", "task_type": "inference", "status": "completed", "settled": false, "cancelling": false,
            "result": { "response": "Hello\u{1b}", "model": "m:latest", "eval_count": 5, "tokens_per_second": 25.0 },
            "duration_seconds": 1.5, "node_id": "12D3KooWHive", "hostname": "hive", "model": "m",
            "requester": { "node_id": "12D3KooWBee", "hostname": "bee" }, "mine": true, "created_at": 100.0,
            "completed_at": 101.5, "priority": 5, "epoch": 2, "attempt": 2,
            "attempts": [{ "epoch": 1, "worker": { "node_id": "w", "hostname": "wasp" }, "reason": "it died", "at": 1.0 }],
            "progress": { "done": 1, "total": 1, "tokens": 5 },
            "chunks": [{ "task_id": "t1-0", "index": 0, "status": "completed" }],
            "batch": { "id": "nightly", "item": "a", "total": 3 },
        })
    }

    #[test]
    fn a_task_is_one_row() {
        let task: Task = read(told()).unwrap();
        let shown = table(&[task], 400.0);
        assert!(shown.ends_with("t1    completed, not settled  m      hive  5 tokens  5 min\n"), "{shown}");
        assert_eq!(table(&[], 0.0), "");
    }

    #[test]
    fn a_task_tells_its_attempts_its_chunks_and_its_worker() {
        let text = read::<Task>(told()).unwrap().text(100);
        for wanted in [
            "  status    completed, not settled, after 1.5 s\n",
            "  worker    hive (12D3KooWHive)\n",
            "  failed    grant 1 at wasp: it died\n",
            "  attempt   2, under grant 2\n",
            "  chunk     0 completed (t1-0)\n",
            "  batch     nightly, item a of 3\n",
        ] {
            assert!(text.contains(wanted), "{text}\nlacks {wanted:?}");
        }
    }

    #[test]
    fn what_a_task_waits_for_and_one_of_something_are_said_as_people_say_them() {
        let mut waiting = told();
        waiting["status"] = json!("pending");
        waiting["waiting"] = json!("no node that is here has the model 'm' for it");
        waiting["progress"]["tokens"] = json!(1);
        waiting["result"]["eval_count"] = json!(1);
        waiting["duration_seconds"] = json!(0.041);
        let task: Task = read(waiting).unwrap();
        let text = task.text(100);
        for wanted in [
            "  status    pending, after 41 ms\n",
            "  waits     no node that is here has the model 'm' for it\n",
            "  done      1 token\n",
        ] {
            assert!(text.contains(wanted), "{text}\nlacks {wanted:?}");
        }
        let summary = task.summary();
        assert!(summary.contains("1 token;") && !summary.contains("/s"), "{summary}");
        let refused = crate::cli::tasks::without_result(&task);
        assert!(refused.to_string().contains("no result yet: no node"), "{refused}");
    }

    #[test]
    fn a_result_is_one_json_object_with_the_clients_own_id() {
        let line: Value = serde_json::from_str(&read::<Task>(told()).unwrap().line()).unwrap();
        assert_eq!(
            (&line["id"], &line["task_id"], &line["response"]),
            (&json!("a"), &json!("t1"), &json!("Hello\u{1b}"))
        );
        assert_eq!((&line["eval_count"], line.get("error")), (&json!(5), None));
        let alone = json!({ "batch": null, "result": null, "error": "no", "status": "failed" });
        let mut other = told();
        for (name, value) in alone.as_object().unwrap() {
            other[name] = value.clone();
        }
        let line: Value = serde_json::from_str(&read::<Task>(other).unwrap().line()).unwrap();
        assert_eq!((&line["id"], &line["response"], &line["error"]), (&json!("t1"), &Value::Null, &json!("no")));
    }
}
