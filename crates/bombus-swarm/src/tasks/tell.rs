//! Tells those who only watch what becomes of tasks: the log of events, and the topics.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bombus_core::tasks::{ResultDocument, TaskId, TaskKind, TaskStatus, TaskView};
use bombus_core::topics::{TaskBroadcast, TaskClaim, TaskResult, TopicMessage};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::shared::Shared;

/// So many messages of tasks go to the topics at once, and so many a second after that. Those who watch may miss some.
const TOPICS_BURST: f64 = 16.0;
const TOPICS_PER_SECOND: f64 = 8.0;
/// Of so many tasks it is remembered that their end was told.
const ENDED_MAX: usize = 1_024;

/// Tells of changes.
pub(super) struct Teller {
    shared: Arc<Shared>,
    /// What was told of tasks that are not over: how they stand, and under which epoch.
    told: HashMap<TaskId, (TaskStatus, u64)>,
    /// The last tasks whose end was told, the newest first: more may come about them.
    ended: VecDeque<TaskId>,
    /// The time of day at which it began, by which this node dates its results, too.
    began_ms: u64,
    tokens: f64,
    filled: Instant,
}

impl Teller {
    pub(super) fn new(shared: &Arc<Shared>, began_ms: u64) -> Self {
        let (shared, told, ended) = (Arc::clone(shared), HashMap::new(), VecDeque::new());
        Self { shared, told, ended, began_ms, tokens: TOPICS_BURST, filled: Instant::now() }
    }

    /// Takes note of a task that was there before.
    pub(super) fn knows(&mut self, view: &TaskView) {
        self.told.insert(view.task.id.clone(), standing(view));
    }

    /// Tells what has changed.
    pub(super) fn changed(&mut self, view: &TaskView) {
        let id = &view.task.id;
        let now = standing(view);
        let before = if view.is_over() { self.told.remove(id) } else { self.told.insert(id.clone(), now) };
        if before == Some(now) && !view.is_over() {
            return;
        }
        // What was over before it came here is history, unless this node did it just now.
        if before.is_none() && view.is_over() && (self.ended.contains(id) || !self.has_just_done(view)) {
            return;
        }
        if view.is_over() {
            self.ended.truncate(ENDED_MAX - 1);
            self.ended.push_front(id.clone());
        }
        if before.is_none() {
            self.created(view);
        }
        // Several changes may come at once: whoever has it done has claimed it.
        if before.map_or(0, |(_, epoch)| epoch) < now.1 {
            self.claimed(view);
        }
        match view.status {
            TaskStatus::Completed if view.is_over() => self.completed(view),
            TaskStatus::Failed if view.is_over() => {
                self.note("task:failed", view, json!({ "error": view.error }));
                self.ended(view, "failure");
            }
            TaskStatus::Cancelled if view.is_over() => {
                self.note("task:cancelled", view, json!({}));
                self.ended(view, "cancelled");
            }
            _ => {}
        }
    }

    fn created(&mut self, view: &TaskView) {
        self.note("task:created", view, json!({}));
        if self.is_mine(view) && self.may_publish() {
            let task = &view.task;
            let params = json!({
                "task_type": task.kind().to_string(),
                "priority": task.priority(),
                "encrypted": task.encrypted.unwrap_or_default(),
            });
            // What is asked is nobody's business here: whoever keeps the databases has it.
            self.publish(TopicMessage::Task(TaskBroadcast {
                task_id: task.id.to_string(),
                repo: String::new(),
                issue_url: path_of(&task.id),
                model: task.model.clone(),
                input: String::new(),
                params: params.as_object().cloned().unwrap_or_default(),
                timestamp: self.shared.swarm.stamp(),
            }));
        }
    }

    fn claimed(&mut self, view: &TaskView) {
        let Some(grant) = &view.grant else { return };
        self.note("task:claimed", view, json!({ "worker": grant.worker.peer(), "epoch": grant.epoch }));
        if grant.worker.node() == Some(&self.shared.me) && self.may_publish() {
            let (task_id, node_id) = (view.task.id.to_string(), self.shared.me.to_string());
            self.publish(TopicMessage::TaskClaim(TaskClaim { task_id, node_id, timestamp: self.shared.swarm.stamp() }));
        }
    }

    fn completed(&mut self, view: &TaskView) {
        let Some(result) = &view.result else {
            return self.note("task:completed", view, json!({}));
        };
        self.note("task:completed", view, json!({ "worker": result.worker_peer_id }));
        if result.worker_peer_id == self.shared.me.as_str() {
            let duration_ms = result.total_duration_ns.unwrap_or_default() / 1_000_000;
            self.share(view, view.task.kind().to_string(), duration_ms);
        }
    }

    /// Tells that there will be no result. Its worker may be gone, so that the requester says so.
    fn ended(&mut self, view: &TaskView, result_type: &str) {
        if self.is_mine(view) {
            let ended = view.completed_at.unwrap_or(view.task.created_at);
            self.share(view, result_type.to_owned(), ended.saturating_sub(view.task.created_at));
        }
    }

    fn share(&mut self, view: &TaskView, result_type: String, duration_ms: u64) {
        if self.may_publish() {
            self.publish(TopicMessage::TaskResult(TaskResult {
                task_id: view.task.id.to_string(),
                node_id: self.shared.me.to_string(),
                result_type,
                result_url: path_of(&view.task.id),
                duration_ms,
                timestamp: self.shared.swarm.stamp(),
            }));
        }
    }

    /// Says whether the result is this node's, from after its start.
    fn has_just_done(&self, view: &TaskView) -> bool {
        let is_own = |result: &ResultDocument| result.worker_peer_id == self.shared.me.as_str();
        view.result.as_deref().is_some_and(|result| is_own(result) && result.completed_at >= self.began_ms)
    }

    fn is_mine(&self, view: &TaskView) -> bool {
        view.requester.proven && view.requester.peer.as_ref() == Some(&self.shared.me)
    }

    fn note(&self, kind: &'static str, view: &TaskView, more: Value) {
        let task = &view.task;
        let mut data = json!({
            "task_id": task.id,
            "task_type": task.task_type.as_ref().unwrap_or(&TaskKind::Inference),
            "model": task.model,
            "status": view.status,
            "requester": task.requester_peer_id,
        });
        if let (Some(data), Value::Object(more)) = (data.as_object_mut(), more) {
            data.extend(more);
            if let Some(parent) = &task.parent_task_id {
                data.insert("parent_id".to_owned(), json!(parent));
            }
        }
        self.shared.swarm.note(kind, data);
    }

    fn may_publish(&mut self) -> bool {
        let now = Instant::now();
        let filled = now.saturating_duration_since(self.filled).as_secs_f64() * TOPICS_PER_SECOND;
        (self.tokens, self.filled) = ((self.tokens + filled).min(TOPICS_BURST), now);
        let may = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(may));
        may
    }

    fn publish(&self, message: TopicMessage) {
        let swarm = self.shared.swarm.clone();
        // Who watches may miss it; failures are counted there.
        self.shared.spawn("a message about a task", async move { drop(swarm.publish(message).await) });
    }
}

/// Returns where every node tells of a task, in its API.
fn path_of(task: &TaskId) -> String {
    format!("/task/{task}")
}

fn standing(view: &TaskView) -> (TaskStatus, u64) {
    (view.status, view.grant.as_ref().map_or(0, |grant| grant.epoch.0))
}
