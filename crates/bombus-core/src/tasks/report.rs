//! What is told of a task: of one that was submitted as it is, or of a parent, from its parts.
//!
//! A parent has no entries of its own that anybody would have to keep true: any reader computes where it stands.

use serde::{Deserialize, Serialize};

use super::chunk::JOINER;
use super::{AttemptFailure, Epoch, TaskDocument, TaskId, TaskKind, TaskStatus, TaskView};

/// What is told of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskReport {
    /// The task.
    pub id: TaskId,
    /// What is to be done.
    pub kind: TaskKind,
    /// The model.
    pub model: String,
    /// Where it stands.
    pub status: TaskStatus,
    /// Whether that is certain. A final status that is not settled may be taken back.
    pub settled: bool,
    /// Whether it is to be cancelled as soon as its requester is back.
    pub cancelling: bool,
    /// How far it is.
    pub progress: Progress,
    /// How urgent it is, from 1 to 10.
    pub priority: u8,
    /// The peer to which it belongs.
    pub requester: String,
    /// The peer that has the live or accepted grant, or made the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The epoch of that grant.
    pub epoch: Epoch,
    /// Which attempt runs, or was the last; 0 before the first.
    pub attempt: u32,
    /// How attempts ended without a result; of a parent, those of all parts.
    pub failures: Vec<AttemptFailure>,
    /// When it was submitted, in milliseconds since 1970.
    pub created_at: u64,
    /// When it was granted, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimed_at: Option<u64>,
    /// When it ended, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<u64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether its prompt and answer are sealed.
    pub encrypted: bool,
    /// The task that it is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<TaskId>,
    /// Which part that is; none for the one that sums up the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_index: Option<u32>,
    /// The batch that it came with, and its own id there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<(String, String)>,
    /// How many tasks that batch has, where that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_total: Option<u32>,
    /// Of a parent: its parts in order, the one that sums them up at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartReport>,
}

/// How far a task is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Parts with a result; 0 or 1 where there are no parts.
    pub done: u32,
    /// All parts; at least 1.
    pub total: u32,
    /// Tokens of the answers so far, as far as they are known.
    pub tokens: u64,
}

/// One part of a parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartReport {
    /// The part.
    pub id: TaskId,
    /// Its place; none for the one that sums up the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// Where it stands.
    pub status: TaskStatus,
    /// Whether that is certain.
    pub settled: bool,
    /// The peer that runs or ran it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl TaskReport {
    /// Tells of a task as it was submitted.
    #[must_use]
    pub fn of(view: &TaskView) -> Self {
        let TaskDocument { batch_id, batch_item, batch_total, .. } = &*view.task;
        let grant = view.grant.as_ref();
        let last = grant.or(view.grants.last());
        let has_result = u32::from(view.status == TaskStatus::Completed);
        Self {
            id: view.task.id.clone(),
            kind: view.task.kind(),
            model: view.task.model.clone(),
            status: view.status,
            settled: view.settled,
            cancelling: view.cancelling,
            progress: Progress { done: has_result, total: 1, tokens: tokens(view) },
            priority: view.task.priority(),
            requester: view.task.requester_peer_id.clone(),
            worker: worker(view),
            epoch: grant.map_or(view.highest_epoch, |grant| grant.epoch),
            attempt: last.map_or(view.attempts_failed(), |grant| grant.attempt),
            failures: view.failures.clone(),
            created_at: view.task.created_at,
            claimed_at: grant.and_then(|grant| grant.claimed_at),
            completed_at: view.completed_at.filter(|_| view.status.is_final()),
            error: view.error.clone(),
            encrypted: view.task.encrypted.unwrap_or_default(),
            parent: view.task.parent_task_id.clone(),
            chunk_index: view.task.chunk_index,
            batch: batch_id.clone().map(|batch| (batch, batch_item.clone().unwrap_or_default())),
            batch_total: *batch_total,
            parts: Vec::new(),
        }
    }

    /// Tells of a parent, from those of its parts that are known, in any order; none where no part is.
    ///
    /// It is FAILED as soon as one part is, else CANCELLED as soon as one part is, and COMPLETED once all are.
    #[must_use]
    pub fn of_parts(parent: &TaskId, parts: &[&TaskView]) -> Option<Self> {
        let parts = sorted(parent, parts);
        let first = parts.first()?;
        let total = parts.iter().filter_map(|part| part.task.total_chunks).max().unwrap_or(1);
        // The one that sums up is not counted in `totalChunks`.
        let all = total.saturating_add(parts.iter().filter(|part| sums_up(part)).count().try_into().unwrap_or(0));
        let count =
            |status| u32::try_from(parts.iter().filter(|part| part.status == status).count()).unwrap_or(u32::MAX);
        let done = count(TaskStatus::Completed);
        let status = if count(TaskStatus::Failed) > 0 {
            TaskStatus::Failed
        } else if count(TaskStatus::Cancelled) > 0 {
            TaskStatus::Cancelled
        } else if done >= all {
            TaskStatus::Completed
        } else if done + count(TaskStatus::Running) > 0 {
            TaskStatus::Running
        } else if count(TaskStatus::Claimed) > 0 {
            TaskStatus::Claimed
        } else {
            TaskStatus::Pending
        };
        let is_all_settled = parts.len() as u64 >= u64::from(all) && parts.iter().all(|part| part.settled);
        let failed = parts.iter().find(|part| part.status == TaskStatus::Failed);
        let settled = match status {
            // Nothing that comes can make it anything else.
            TaskStatus::Failed => parts.iter().any(|part| part.status == TaskStatus::Failed && part.settled),
            TaskStatus::Completed | TaskStatus::Cancelled => is_all_settled,
            _ => false,
        };
        let ended = if status == TaskStatus::Failed { failed.and_then(|part| part.completed_at) } else { None };
        Some(Self {
            id: parent.clone(),
            status,
            settled,
            cancelling: parts.iter().any(|part| part.cancelling),
            progress: Progress { done, total: all, tokens: parts.iter().map(|part| tokens(part)).sum() },
            worker: None,
            epoch: Epoch::NONE,
            attempt: 0,
            failures: parts.iter().flat_map(|part| part.failures.iter().cloned()).collect(),
            created_at: parts.iter().map(|part| part.task.created_at).min().unwrap_or_default(),
            claimed_at: parts.iter().filter_map(|part| part.grant.as_ref()?.claimed_at).min(),
            completed_at: ended
                .or_else(|| parts.iter().filter_map(|part| part.completed_at).max())
                .filter(|_| status.is_final()),
            error: failed.and_then(|part| part.error.clone()),
            parent: None,
            chunk_index: None,
            parts: parts.iter().map(|part| PartReport::of(part)).collect(),
            ..Self::of(first)
        })
    }

    /// Returns whether nothing more will happen.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.status.is_final()
    }
}

impl PartReport {
    fn of(view: &TaskView) -> Self {
        Self {
            id: view.task.id.clone(),
            index: view.task.chunk_index,
            status: view.status,
            settled: view.settled,
            worker: worker(view),
            error: view.error.clone(),
        }
    }
}

/// Returns the answer of a parent: that of the part that sums up, else those of all parts in order, with the parent's joiner between.
/// None where one is missing. `text` gives the answer of a part, which may stand in a block or be sealed.
pub fn joined(parent: &TaskId, parts: &[&TaskView], text: impl Fn(&TaskView) -> Option<String>) -> Option<String> {
    let parts = sorted(parent, parts);
    if let Some(sum) = parts.iter().find(|part| sums_up(part)) {
        return text(sum);
    }
    let first = parts.first()?;
    let total = parts.iter().filter_map(|part| part.task.total_chunks).max().unwrap_or(1);
    let indices = parts.iter().filter_map(|part| part.task.chunk_index);
    if !indices.eq(0..total) {
        return None;
    }
    let texts: Option<Vec<String>> = parts.iter().map(|part| text(part)).collect();
    Some(texts?.join(first.task.join.as_deref().unwrap_or(JOINER)))
}

/// Returns the parts of a parent in order, the one that sums up at the end. Of two with the same place the first by its id counts.
fn sorted<'a>(parent: &TaskId, parts: &[&'a TaskView]) -> Vec<&'a TaskView> {
    let mut sorted: Vec<_> =
        parts.iter().copied().filter(|part| part.task.parent_task_id.as_ref() == Some(parent)).collect();
    sorted.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| a.task.id.cmp(&b.task.id)));
    sorted.dedup_by(|later, first| place(later) == place(first));
    sorted
}

fn place(part: &TaskView) -> (bool, Option<u32>) {
    (sums_up(part), part.task.chunk_index)
}

fn sums_up(part: &TaskView) -> bool {
    part.task.chunk_index.is_none()
}

fn tokens(view: &TaskView) -> u64 {
    view.result.as_ref().and_then(|result| result.eval_count).unwrap_or_default()
}

fn worker(view: &TaskView) -> Option<String> {
    let of_result = view.result.as_ref().map(|result| result.worker_peer_id.clone());
    of_result
        .or_else(|| view.grant.as_ref().map(|grant| grant.worker.peer().to_owned()))
        .or_else(|| view.bids.first().filter(|_| !view.requester.proven).map(|bid| bid.worker.clone()))
}

#[cfg(test)]
mod tests;
