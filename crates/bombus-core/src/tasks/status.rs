use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TaskStatus {
    /// Nobody has the right to run it.
    Pending,
    /// A worker has it.
    Claimed,
    /// The worker has begun.
    Running,
    /// There is a result.
    Completed,
    /// It will not be tried again.
    Failed,
    /// It is not to be run any more.
    Cancelled,
}

impl TaskStatus {
    /// Returns whether it ends a task.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Returns the word in documents, such as `PENDING`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Claimed => "CLAIMED",
            Self::Running => "RUNNING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

impl fmt::Display for TaskStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Says that a word is no [`TaskStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the status of a task is one of pending, claimed, running, completed, failed, cancelled")]
pub struct ParseTaskStatusError;

impl FromStr for TaskStatus {
    type Err = ParseTaskStatusError;

    /// Reads the word in capital or small letters, as people type it.
    fn from_str(text: &str) -> Result<Self, ParseTaskStatusError> {
        let all = [Self::Pending, Self::Claimed, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];
        all.into_iter().find(|status| status.as_str().eq_ignore_ascii_case(text)).ok_or(ParseTaskStatusError)
    }
}

/// What is to be done, in the field `taskType`; tasks without that field are inference.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TaskKind {
    /// A model answers a prompt or goes on with a conversation.
    #[default]
    Inference,
    /// A model makes a vector of a text.
    Embedding,
    /// The worker says that it is there.
    Ping,
    /// Something that this version does not know; such tasks are left to others.
    Other(String),
}

impl TaskKind {
    /// Returns the word in documents.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Inference => "inference",
            Self::Embedding => "embedding",
            Self::Ping => "ping",
            Self::Other(word) => word,
        }
    }
}

impl From<String> for TaskKind {
    fn from(word: String) -> Self {
        match word.as_str() {
            "inference" => Self::Inference,
            "embedding" => Self::Embedding,
            "ping" => Self::Ping,
            _ => Self::Other(word),
        }
    }
}

impl From<TaskKind> for String {
    fn from(kind: TaskKind) -> Self {
        kind.as_str().to_owned()
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Who gave a worker its right to run a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GrantedBy {
    /// The node to which the task belongs.
    #[serde(rename = "requester")]
    Requester,
    /// The worker itself, since the requester is away or gives no grants.
    #[serde(rename = "self")]
    SelfClaim,
}
