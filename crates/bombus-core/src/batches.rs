//! Batches: files of requests, each line of which becomes a durable task.
//!
//! What is known of a batch is a handful of documents, each written once and by any member: that it was made, what came of the look at its
//! file, that somebody wants it cancelled, how it ended. [`BatchFacts`] makes of them where the batch stands.

mod facts;
mod line;
mod names;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use facts::{
    BatchDocument, BatchEnd, BatchFacts, CheckedDocument, EndedDocument, FactDocument, FileDocument, Parsed, WINDOW_S,
};
pub use line::{BatchLine, LineOutcome, RequestLine, RequestLineError, read_request_line};
pub use names::{Computed, FileName, batch_id, fact_key, file_id, task_of_line};

/// The only purpose that files may have.
pub const PURPOSE: &str = "batch";
/// The purpose of the files that are computed of the results of a batch.
pub const OUTPUT_PURPOSE: &str = "batch_output";
/// The only completion window there is.
pub const WINDOW: &str = "24h";
/// Largest file, in bytes.
pub const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most lines of a file of requests.
pub const LINES_MAX: u32 = 50_000;
/// Longest line, in bytes.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// Longest `custom_id`, in bytes.
pub const CUSTOM_ID_BYTES_MAX: usize = 256;

/// What each line of a batch is a request to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Endpoint {
    /// Conversations.
    #[serde(rename = "/v1/chat/completions")]
    Chat,
    /// Texts that go on.
    #[serde(rename = "/v1/completions")]
    Completions,
    /// Vectors.
    #[serde(rename = "/v1/embeddings")]
    Embeddings,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Completions, Self::Embeddings];

    /// Returns its path.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// Returns the one with a path.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.path())
    }
}

/// Where a batch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchStatus {
    /// Its file is being looked at.
    Validating,
    /// Its file is none of requests.
    Failed,
    /// Its lines are being done.
    InProgress,
    /// All lines have ended.
    Finalizing,
    /// It has ended.
    Completed,
    /// It has taken too long; what was done by then can be read.
    Expired,
    /// Somebody wants it cancelled.
    Cancelling,
    /// It was cancelled; what was done by then can be read.
    Cancelled,
}

impl BatchStatus {
    /// Returns whether it stays so.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }

    /// Returns the word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileInfo {
    /// Its id.
    pub id: String,
    /// Its size; 0 for one that is computed when it is read.
    pub bytes: u64,
    /// When it came, in seconds since 1970.
    pub created_at: u64,
    /// What it was called.
    pub filename: String,
    /// [`PURPOSE`] or [`OUTPUT_PURPOSE`].
    pub purpose: &'static str,
}

/// A batch that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBatch {
    /// The file of requests.
    pub input_file_id: String,
    /// What its lines are requests to.
    pub endpoint: Endpoint,
    /// Words of whoever made it.
    pub metadata: BTreeMap<String, String>,
}

/// What is wrong with a line of a file of requests, or with the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineError {
    /// A word for programs.
    pub code: String,
    /// What is wrong, and what to do about it.
    pub message: String,
    /// The field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// Which line, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// How many lines of a batch stand how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// All lines; 0 as long as the file has not been looked at.
    pub total: u32,
    /// Those with an answer.
    pub completed: u32,
    /// Those that failed, or asked what a task cannot do.
    pub failed: u32,
}

/// A batch as it is told. Times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of OpenAI's batch object, by the same names")]
pub struct BatchInfo {
    pub id: String,
    pub endpoint: Endpoint,
    pub errors: Vec<LineError>,
    pub input_file_id: String,
    pub status: BatchStatus,
    pub output_file_id: Option<String>,
    pub error_file_id: Option<String>,
    pub created_at: u64,
    pub in_progress_at: Option<u64>,
    pub expires_at: u64,
    pub finalizing_at: Option<u64>,
    pub completed_at: Option<u64>,
    pub failed_at: Option<u64>,
    pub expired_at: Option<u64>,
    pub cancelling_at: Option<u64>,
    pub cancelled_at: Option<u64>,
    pub counts: RequestCounts,
    pub metadata: BTreeMap<String, String>,
}

/// A part of a list, with whether there is more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// What is listed.
    pub data: Vec<T>,
    /// Whether more follows.
    pub has_more: bool,
}
