//! The audit log: what happened to tasks, who did it and when, for people who want to know afterwards. Nothing is decided by it.

use bombus_core::identity::NodeId;
use bombus_core::tasks::{Epoch, TaskId};
use serde::{Deserialize, Serialize};

/// What happened to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditKind {
    /// It was submitted.
    Created,
    /// A grant was written by the requester.
    Granted,
    /// A worker claimed it for itself.
    SelfClaimed,
    /// A worker refused the grant that it was offered.
    Declined,
    /// A worker began.
    Running,
    /// A worker wrote a result.
    Result,
    /// A grant was taken back.
    Released,
    /// A run was stopped, or its result was thrown away.
    Abandoned,
    /// Its worker wrote how it ended, since its requester gives no grants and settles nothing.
    Concluded,
    /// The requester settled it as completed.
    Completed,
    /// The requester settled it as failed.
    Failed,
    /// Somebody asked to cancel it.
    CancelAsked,
    /// The requester settled it as cancelled.
    Cancelled,
}

/// An event of the audit log. An entry of `swarm-events` is a list of them, as they happened on one node: the signature and the links of an entry
/// take several times the room and the time of what is said in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// The task.
    pub task_id: TaskId,
    /// What happened.
    pub event: AuditKind,
    /// When, by the actor's clock, in milliseconds since 1970.
    pub at: u64,
    /// The node that did it.
    pub actor: NodeId,
    /// The grant that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The node that has, or had, that grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_peer_id: Option<String>,
    /// The entry that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl AuditEvent {
    /// Makes an event about a task, at a time in milliseconds since 1970.
    #[must_use]
    pub fn new(task_id: TaskId, event: AuditKind, at: u64, actor: NodeId) -> Self {
        Self { task_id, event, at, actor, epoch: None, worker_peer_id: None, entry: None, reason: None }
    }
}
