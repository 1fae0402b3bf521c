//! Why something was not done with a task.

use std::path::PathBuf;

use bombus_core::tasks::TaskId;

use crate::store::StoreError;

/// Why something was not done with a task.
#[derive(Debug, thiserror::Error)]
pub enum TasksError {
    /// No task has this id.
    #[error("no task '{0}' is known here; tasks of other nodes are known once their entries have come")]
    UnknownTask(TaskId),
    /// Another task has this id, or the key that it was made of.
    #[error("the task '{0}' is there already and asks for something else: use another id or key")]
    Conflict(TaskId),
    /// A part of the submission cannot be taken.
    #[error("{message}")]
    Invalid {
        /// The field of [`super::Submission`].
        param: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// As many tasks wait as may.
    #[error("{open} tasks have not ended, and no more are taken: wait until some have, or cancel some")]
    Full {
        /// How many have not ended.
        open: usize,
    },
    /// The tasks cannot be used now.
    #[error("the tasks are not open yet, or the node is stopping; try again")]
    Unavailable,
    /// The disk is full.
    #[error(
        "the disk is full on which this node keeps tasks: make room for {}, and it goes on by itself", .0.display()
    )]
    NoRoom(PathBuf),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TasksError {
    pub(super) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { param, message: message.into() }
    }
}
