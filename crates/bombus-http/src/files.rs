//! Files of requests and batches of them as the HTTP surface needs them. The node puts the real ones behind it.

use async_trait::async_trait;
use bombus_core::batches::{BatchInfo, BatchLine, Endpoint, FileInfo, NewBatch, Page};
use bombus_core::tasks::WholeRequest;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde_json::Value;

/// Files and batches of the swarm that this node belongs to.
#[async_trait]
pub trait Files: Send + Sync {
    /// Begins to take a file.
    async fn upload(&self) -> Result<Box<dyn FileUpload>, FilesError>;

    /// Tells of a file.
    async fn file(&self, id: &str) -> Result<FileInfo, FilesError>;

    /// Lists files.
    async fn files(&self, filter: FileFilter) -> Result<Page<FileInfo>, FilesError>;

    /// Returns what is in a file.
    async fn content(&self, id: &str) -> Result<FileContent, FilesError>;

    /// Removes a file.
    async fn remove(&self, id: &str) -> Result<(), FilesError>;

    /// Makes a batch. It is safe when this returns; its file is looked at afterwards.
    async fn create_batch(&self, batch: NewBatch) -> Result<BatchInfo, FilesError>;

    /// Tells how a batch stands.
    async fn batch(&self, id: &str) -> Result<BatchInfo, FilesError>;

    /// Lists batches, newest first, those after this one.
    async fn batches(&self, after: Option<&str>, limit: usize) -> Result<Page<BatchInfo>, FilesError>;

    /// Has a batch end.
    async fn cancel(&self, id: &str) -> Result<BatchInfo, FilesError>;
}

/// A file that is being taken. One that is dropped before it was finished is forgotten.
#[async_trait]
pub trait FileUpload: Send {
    /// Takes more of it.
    async fn write(&mut self, bytes: Bytes) -> Result<(), FilesError>;

    /// Ends it; the file is safe when this returns.
    async fn finish(self: Box<Self>, filename: &str) -> Result<FileInfo, FilesError>;
}

/// Which files to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileFilter {
    /// Only those of this purpose.
    pub purpose: Option<String>,
    /// The last one of the part before.
    pub after: Option<String>,
    /// Most files.
    pub limit: usize,
    /// The oldest first, where the newest are else.
    pub oldest_first: bool,
}

/// What is in a file.
pub enum FileContent {
    /// What was uploaded, by pieces.
    Bytes(BoxStream<'static, Result<Bytes, FilesError>>),
    /// What came of a batch, to be written as this dialect does.
    Lines(BoxStream<'static, Result<BatchLine, FilesError>>),
}

/// Why something was not done with a file or a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// No file has the id.
    #[error("{0}")]
    UnknownFile(String),
    /// No batch has the id.
    #[error("{0}")]
    UnknownBatch(String),
    /// A field cannot be taken.
    #[error("{message}")]
    Invalid {
        /// The field.
        param: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The file is too large.
    #[error("a file has at most {0} bytes")]
    TooLarge(u64),
    /// The batch has ended.
    #[error("{0}")]
    Ended(String),
    /// They cannot be used now.
    #[error("{0}")]
    Unavailable(String),
    /// The node failed at it.
    #[error("{0}")]
    Failed(String),
}

/// Reads what a line of a batch asks, as a request by itself would be read. `default_model` is for those that name none.
///
/// # Errors
///
/// The status and the body that a request by itself would have got.
pub fn read_batch_body(
    endpoint: Endpoint,
    body: &str,
    default_model: Option<&str>,
) -> Result<WholeRequest, (u16, Value)> {
    crate::openai::batches::read::read(endpoint, body.as_bytes(), default_model).map_err(|error| {
        let body = serde_json::to_value(error.openai_body()).unwrap_or_default();
        (error.status.as_u16(), body)
    })
}
