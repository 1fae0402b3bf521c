//! The seven topics of the mesh: what nodes tell all others, as JSON.
//!
//! Each message is a JSON object with a `type`, at most 64 KiB, sent over a publish-subscribe topic named
//! `bombus/<swarm>/<name>`. Fields that are unknown are ignored, so that versions may differ. [`judge`] decides what is passed on.
//!
//! What travels between nodes one version apart: a field more or less (optional fields have defaults), a `type` that is unknown
//! (ignored), and a `schema` greater than [`SCHEMA`] (ignored: it says that the message cannot be understood by the rules of today).

mod bounds;
pub mod cadence;
mod help;
mod judge;
mod messages;
mod replay;
mod timestamp;

use serde::{Deserialize, Serialize};

pub use bounds::{BoundsError, MESSAGE_BYTES_MAX};
pub use help::{Helper, answer_help, eligible_helpers, provides};
pub use judge::{CLOCK_SKEW_MS_MAX, IgnoreReason, Judgement, RejectReason, judge};
pub use messages::{
    Capabilities, NodeStatus, PresencePing, SealKeyClaim, TaskBroadcast, TaskClaim, TaskGenerations, TaskHelpRequest,
    TaskHelpResponse, TaskResult,
};
pub use replay::{RateLimit, ReplayGuard};
pub use timestamp::{ParseTimestampError, Timestamp};

/// The version of the messages that this program writes and understands. A message without a `schema` field is of version 1.
pub const SCHEMA: u64 = 1;

/// One of the seven topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// What a node can do and how loaded it is.
    Capabilities,
    /// A task that anyone may claim.
    TaskBroadcast,
    /// A node takes a task.
    TaskClaim,
    /// What became of a task.
    TaskResult,
    /// A node is there.
    PresencePing,
    /// A node asks for help with a task.
    TaskHelpRequest,
    /// A node answers such a request.
    TaskHelpResponse,
}

impl Topic {
    /// All seven.
    pub const ALL: [Self; 7] = [
        Self::Capabilities,
        Self::TaskBroadcast,
        Self::TaskClaim,
        Self::TaskResult,
        Self::PresencePing,
        Self::TaskHelpRequest,
        Self::TaskHelpResponse,
    ];

    /// Returns the last part of the topic's name, for example `presence_ping`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Capabilities => "capabilities",
            Self::TaskBroadcast => "task_broadcast",
            Self::TaskClaim => "task_claim",
            Self::TaskResult => "task_result",
            Self::PresencePing => "presence_ping",
            Self::TaskHelpRequest => "task_help_request",
            Self::TaskHelpResponse => "task_help_response",
        }
    }

    /// Returns the `type` of its messages: the topic's name, but `task` for `task_broadcast`.
    #[must_use]
    pub fn message_type(self) -> &'static str {
        match self {
            Self::TaskBroadcast => "task",
            other => other.name(),
        }
    }

    /// Returns the name that peers subscribe to: `bombus/<swarm_id>/<name>`.
    #[must_use]
    pub fn full_name(self, swarm_id: &str) -> String {
        format!("bombus/{swarm_id}/{}", self.name())
    }

    /// Reads back a full name; `None` for another swarm's topics and for those that are none of the seven.
    #[must_use]
    pub fn parse(full: &str, swarm_id: &str) -> Option<Self> {
        let name = full.strip_prefix("bombus/")?.strip_prefix(swarm_id)?.strip_prefix('/')?;
        Self::ALL.into_iter().find(|topic| topic.name() == name)
    }

    /// Returns the topic whose messages have this `type`.
    #[must_use]
    pub fn of_message_type(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.message_type() == name)
    }
}

/// A message of one of the seven topics. Written, `type` comes first and the fields follow in the order of its struct.
#[expect(clippy::large_enum_variant, reason = "the largest is what is sent most, and few are held at a time")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TopicMessage {
    /// On `capabilities`.
    Capabilities(Capabilities),
    /// On `task_broadcast`; its `type` is `task`.
    Task(TaskBroadcast),
    /// On `task_claim`.
    TaskClaim(TaskClaim),
    /// On `task_result`.
    TaskResult(TaskResult),
    /// On `presence_ping`.
    PresencePing(PresencePing),
    /// On `task_help_request`.
    TaskHelpRequest(TaskHelpRequest),
    /// On `task_help_response`.
    TaskHelpResponse(TaskHelpResponse),
}

impl TopicMessage {
    /// Returns the topic that the message belongs on.
    #[must_use]
    pub fn topic(&self) -> Topic {
        match self {
            Self::Capabilities(_) => Topic::Capabilities,
            Self::Task(_) => Topic::TaskBroadcast,
            Self::TaskClaim(_) => Topic::TaskClaim,
            Self::TaskResult(_) => Topic::TaskResult,
            Self::PresencePing(_) => Topic::PresencePing,
            Self::TaskHelpRequest(_) => Topic::TaskHelpRequest,
            Self::TaskHelpResponse(_) => Topic::TaskHelpResponse,
        }
    }

    /// Returns the `node_id` or `from_node` that the message names. A task names none: its sender is whoever signed it.
    #[must_use]
    pub fn sender(&self) -> Option<&str> {
        match self {
            Self::Capabilities(message) => Some(&message.node_id),
            Self::Task(_) => None,
            Self::TaskClaim(message) => Some(&message.node_id),
            Self::TaskResult(message) => Some(&message.node_id),
            Self::PresencePing(message) => Some(&message.node_id),
            Self::TaskHelpRequest(message) => Some(&message.from_node),
            Self::TaskHelpResponse(message) => Some(&message.from_node),
        }
    }

    /// Returns when its sender made it, by the sender's clock.
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        match self {
            Self::Capabilities(message) => message.timestamp,
            Self::Task(message) => message.timestamp,
            Self::TaskClaim(message) => message.timestamp,
            Self::TaskResult(message) => message.timestamp,
            Self::PresencePing(message) => message.timestamp,
            Self::TaskHelpRequest(message) => message.timestamp,
            Self::TaskHelpResponse(message) => message.timestamp,
        }
    }

    /// Writes the message as compact JSON.
    ///
    /// # Errors
    ///
    /// Returns which field is too large: every peer would refuse such a message, so it must not be published.
    pub fn encode(&self) -> Result<Vec<u8>, BoundsError> {
        bounds::check(self)?;
        let bytes = serde_json::to_vec(self).expect("a message has text keys only");
        bounds::check_size(&bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
