//! Why something could not be done with the task store.

use bombus_core::tasks::{DocumentError, Epoch, TaskId, TaskStatus};
use orbitdb::DatabaseError;

use crate::db::DbError;

/// Why something could not be done with the task store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The databases cannot be used.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A task of this id is there, or is just being created.
    #[error("a task {0} exists already: ask for it, or take another id")]
    Exists(TaskId),
    /// There is no such task here.
    #[error("there is no task {0} here: it has not come yet, or was never submitted")]
    NotFound(TaskId),
    /// Somebody has it.
    #[error("task {id} is claimed already: its newest grant has the epoch {newest}")]
    Claimed {
        /// The task.
        id: TaskId,
        /// The epoch of the newest grant, or the one that is just being written.
        newest: Epoch,
    },
    /// It has ended.
    #[error("task {id} has ended, it is {status}: nothing more can be done with it")]
    Over {
        /// The task.
        id: TaskId,
        /// How it ended.
        status: TaskStatus,
    },
    /// Only its requester may do so.
    #[error("only the node that submitted task {0} may do this")]
    NotRequester(TaskId),
    /// A document cannot be written.
    #[error("a document cannot be written: {0}")]
    Document(String),
    /// A document that is here cannot be read.
    #[error(transparent)]
    Read(#[from] DocumentError),
    /// A text is too large.
    #[error("a text of {bytes} bytes is too large: at most {max} are taken")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The greatest.
        max: usize,
    },
    /// The block of a large text is none.
    #[error("the block {0} does not hold the text that it should")]
    Text(String),
}
