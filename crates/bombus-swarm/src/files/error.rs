//! Why something was not done with a file or a batch.

use std::path::PathBuf;

use bombus_core::batches::BatchStatus;
use orbitdb::DatabaseError;

use crate::db::DbError;

/// Why something was not done with a file or a batch.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// No file has this id.
    #[error("no such file: '{0}'; files of other nodes are known once their entries have come")]
    UnknownFile(String),
    /// No batch has this id.
    #[error("no such batch: '{0}'; batches of other nodes are known once their entries have come")]
    UnknownBatch(String),
    /// It cannot be taken.
    #[error("{message}")]
    Invalid {
        /// The field at fault.
        param: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The file is larger than files may be.
    #[error("the file has more than {0} bytes; cut it into several")]
    TooLarge(u64),
    /// The batch has ended.
    #[error("the batch is {}: only one that goes on can be cancelled", .0.name())]
    Ended(BatchStatus),
    /// What is in the file is neither here nor at a node that is reached.
    #[error("what is in the file cannot be reached: {0}")]
    Unreached(String),
    /// They cannot be used now.
    #[error("files and batches are not open yet, or the node is stopping; try again")]
    Unavailable,
    /// The disk is full.
    #[error("the disk is full on which this node keeps files: make room for {}, and it goes on by itself", .0.display())]
    NoRoom(PathBuf),
    /// The databases failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A document cannot be written.
    #[error("a document cannot be written: {0}")]
    Document(String),
}

impl From<DatabaseError> for FilesError {
    fn from(error: DatabaseError) -> Self {
        Self::Db(error.into())
    }
}

impl FilesError {
    pub(super) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { param, message: message.into() }
    }
}
