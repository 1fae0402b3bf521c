use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::names::read_key;
use super::{
    BatchInfo, BatchStatus, Computed, Endpoint, FileInfo, FileName, LineError, PURPOSE, RequestCounts, fact_key,
};

/// How long the lines of a batch may take, in seconds.
pub const WINDOW_S: u64 = 24 * 3_600;

/// A document about a file. One that is removed stays as a mark, so that every node removes what it has of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileDocument {
    /// The file.
    #[serde(rename = "_id")]
    pub id: String,
    /// What it was called.
    pub filename: String,
    /// Its size.
    pub bytes: u64,
    /// The hash of the block that names its parts.
    pub root: String,
    /// The node that took it.
    pub by: String,
    /// When, in milliseconds since 1970.
    pub created_at: u64,
    /// When it was removed, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_at: Option<u64>,
}

impl FileDocument {
    /// Tells of the file.
    #[must_use]
    pub fn info(&self) -> FileInfo {
        FileInfo {
            id: self.id.clone(),
            bytes: self.bytes,
            created_at: self.created_at / 1_000,
            filename: self.filename.clone(),
            purpose: PURPOSE,
        }
    }
}

/// The document that makes a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchDocument {
    /// The batch.
    #[serde(rename = "_id")]
    pub id: String,
    /// Its file of requests.
    pub input_file: String,
    /// The hash of the block that names the parts of that file, which stay as long as the batch does.
    pub root: String,
    /// The size of that file.
    pub bytes: u64,
    /// What its lines are requests to.
    pub endpoint: Endpoint,
    /// Words of whoever made it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The node that took it, and that looks after it.
    pub by: String,
    /// When, in milliseconds since 1970.
    pub created_at: u64,
}

/// What came of the look at a batch's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckedDocument {
    /// [`fact_key`] of `checked`.
    #[serde(rename = "_id")]
    pub id: String,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Lines of the file.
    pub lines: u32,
    /// Lines that ask what a task cannot do.
    pub refused: u32,
    /// The hash of the block that names the parts of the list of these, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusals: Option<String>,
    /// Why the file is none of requests; nothing of it is done then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<LineError>,
}

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchEnd {
    /// All lines have ended by themselves.
    Completed,
    /// It took too long.
    Expired,
    /// Somebody wanted that.
    Cancelled,
}

/// Says that a batch has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndedDocument {
    /// [`fact_key`] of `ended`.
    #[serde(rename = "_id")]
    pub id: String,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// How.
    pub how: BatchEnd,
    /// All lines.
    pub total: u32,
    /// Lines with an answer.
    pub completed: u32,
    /// Lines that failed or were refused.
    pub failed: u32,
}

/// Says that something was done about a batch: that it is to be cancelled, or that a file which is computed of it was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FactDocument {
    /// [`fact_key`] of `cancelled`, or of the word for the file.
    #[serde(rename = "_id")]
    pub id: String,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// The node at which that was asked for.
    pub by: String,
}

/// A document, as its key says what it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Parsed {
    /// About a file.
    File(FileDocument),
    /// About a batch.
    Batch(BatchDocument),
    /// What came of the look at the file of a batch.
    Checked(String, CheckedDocument),
    /// How a batch ended.
    Ended(String, EndedDocument),
    /// Somebody wants a batch cancelled.
    Cancelled(String, FactDocument),
    /// A file that is computed of a batch was removed.
    Hidden(String, Computed),
}

impl Parsed {
    /// Reads a document; none where it is none of these, which anybody may have written.
    #[must_use]
    pub fn read(key: &str, value: Value) -> Option<Self> {
        if let Some(FileName::Stored(_)) = FileName::read(key) {
            return serde_json::from_value(value).ok().filter(|file: &FileDocument| file.id == key).map(Self::File);
        }
        let (batch, fact) = read_key(key)?;
        let owned = batch.to_owned();
        match fact {
            "" => serde_json::from_value(value).ok().filter(|made: &BatchDocument| made.id == key).map(Self::Batch),
            "checked" => serde_json::from_value(value).ok().map(|checked| Self::Checked(owned, checked)),
            "ended" => serde_json::from_value(value).ok().map(|ended| Self::Ended(owned, ended)),
            "cancelled" => serde_json::from_value(value).ok().map(|cancelled| Self::Cancelled(owned, cancelled)),
            "output" => Some(Self::Hidden(owned, Computed::Output)),
            "errors" => Some(Self::Hidden(owned, Computed::Errors)),
            _ => None,
        }
    }
}

/// All that is known of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchFacts {
    /// What it is.
    pub made: BatchDocument,
    /// What came of the look at its file.
    pub checked: Option<CheckedDocument>,
    /// How it ended.
    pub ended: Option<EndedDocument>,
    /// When somebody wanted it cancelled, in milliseconds since 1970.
    pub cancelled_at: Option<u64>,
    /// Whether the file of its answers was removed.
    pub output_hidden: bool,
    /// Whether the file of its errors was removed.
    pub errors_hidden: bool,
}

impl BatchFacts {
    /// Begins with what the batch is.
    #[must_use]
    pub fn new(made: BatchDocument) -> Self {
        Self { made, checked: None, ended: None, cancelled_at: None, output_hidden: false, errors_hidden: false }
    }

    /// Adds what a document about it says.
    pub fn add(&mut self, parsed: Parsed) {
        match parsed {
            Parsed::Checked(_, checked) => self.checked = Some(checked),
            Parsed::Ended(_, ended) => self.ended = Some(ended),
            Parsed::Cancelled(_, cancelled) => self.cancelled_at = Some(cancelled.at),
            Parsed::Hidden(_, Computed::Output) => self.output_hidden = true,
            Parsed::Hidden(_, Computed::Errors) => self.errors_hidden = true,
            Parsed::File(_) | Parsed::Batch(_) => {}
        }
    }

    /// Returns the key of a document about it.
    #[must_use]
    pub fn key(&self, fact: &str) -> String {
        fact_key(&self.made.id, fact)
    }

    /// Returns when its time is over, in milliseconds since 1970.
    #[must_use]
    pub fn expires_at_ms(&self) -> u64 {
        self.made.created_at.saturating_add(WINDOW_S * 1_000)
    }

    /// Returns whether nothing more is to be done about it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ended.is_some() || self.checked.as_ref().is_some_and(|checked| !checked.errors.is_empty())
    }

    /// Returns how it has to end at a time, in milliseconds since 1970, though lines of it have not ended; none where it goes on.
    #[must_use]
    pub fn has_to_end(&self, now_ms: u64) -> Option<BatchEnd> {
        if self.cancelled_at.is_some() {
            return Some(BatchEnd::Cancelled);
        }
        (now_ms >= self.expires_at_ms()).then_some(BatchEnd::Expired)
    }

    /// Returns where it stands, by how many of its lines have ended as this node knows.
    #[must_use]
    pub fn status(&self, counts: &RequestCounts) -> BatchStatus {
        if let Some(ended) = &self.ended {
            return match ended.how {
                BatchEnd::Completed => BatchStatus::Completed,
                BatchEnd::Expired => BatchStatus::Expired,
                BatchEnd::Cancelled => BatchStatus::Cancelled,
            };
        }
        match &self.checked {
            Some(checked) if !checked.errors.is_empty() => BatchStatus::Failed,
            _ if self.cancelled_at.is_some() => BatchStatus::Cancelling,
            None => BatchStatus::Validating,
            Some(checked) if counts.completed + counts.failed >= checked.lines => BatchStatus::Finalizing,
            Some(_) => BatchStatus::InProgress,
        }
    }

    /// Returns whether one of its computed files can be read: it has ended, has something to be in there, and nobody removed it.
    #[must_use]
    pub fn has(&self, computed: Computed) -> bool {
        let Some(ended) = &self.ended else { return false };
        match computed {
            Computed::Output => ended.completed > 0 && !self.output_hidden,
            Computed::Errors => ended.total > ended.completed && !self.errors_hidden,
        }
    }

    /// Tells of it. `counts` is what this node knows of its lines; what was written at its end counts more.
    #[must_use]
    pub fn info(&self, counts: RequestCounts) -> BatchInfo {
        let status = self.status(&counts);
        let seconds = |ms: u64| ms / 1_000;
        let ended_at =
            |wanted: BatchStatus| self.ended.as_ref().filter(|_| status == wanted).map(|ended| seconds(ended.at));
        let checked_at = self.checked.as_ref().map(|checked| seconds(checked.at));
        let file = |computed: Computed| self.has(computed).then(|| computed.file_of(&self.made.id));
        let counts = self.ended.as_ref().map_or(counts, |ended| RequestCounts {
            total: ended.total,
            completed: ended.completed,
            failed: ended.failed,
        });
        BatchInfo {
            id: self.made.id.clone(),
            endpoint: self.made.endpoint,
            errors: self.checked.as_ref().map(|checked| checked.errors.clone()).unwrap_or_default(),
            input_file_id: self.made.input_file.clone(),
            status,
            output_file_id: file(Computed::Output),
            error_file_id: file(Computed::Errors),
            created_at: seconds(self.made.created_at),
            in_progress_at: checked_at.filter(|_| status != BatchStatus::Failed),
            expires_at: seconds(self.expires_at_ms()),
            finalizing_at: ended_at(BatchStatus::Completed),
            completed_at: ended_at(BatchStatus::Completed),
            failed_at: checked_at.filter(|_| status == BatchStatus::Failed),
            expired_at: ended_at(BatchStatus::Expired),
            cancelling_at: self.cancelled_at.map(seconds),
            cancelled_at: ended_at(BatchStatus::Cancelled),
            counts,
            metadata: self.made.metadata.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::batches::batch_id;

    fn facts() -> BatchFacts {
        BatchFacts::new(BatchDocument {
            id: batch_id([1; 16]),
            input_file: "file-a".into(),
            root: "z".into(),
            bytes: 9,
            endpoint: Endpoint::Chat,
            metadata: BTreeMap::new(),
            by: "me".into(),
            created_at: 5_000,
        })
    }

    fn checked(facts: &BatchFacts, lines: u32, errors: Vec<LineError>) -> Parsed {
        let id = facts.key("checked");
        Parsed::Checked(
            facts.made.id.clone(),
            CheckedDocument { id, at: 6_000, lines, refused: 1, refusals: None, errors },
        )
    }

    fn ended(facts: &BatchFacts, how: BatchEnd, completed: u32) -> Parsed {
        let id = facts.key("ended");
        Parsed::Ended(facts.made.id.clone(), EndedDocument { id, at: 9_000, how, total: 3, completed, failed: 1 })
    }

    fn counts(completed: u32, failed: u32) -> RequestCounts {
        RequestCounts { total: 3, completed, failed }
    }

    #[test]
    fn a_batch_stands_where_its_documents_say() {
        let mut facts = facts();
        assert_eq!(facts.status(&RequestCounts::default()), BatchStatus::Validating);
        assert_eq!((facts.has_to_end(5_000), facts.has_to_end(5_000 + 86_400_000)), (None, Some(BatchEnd::Expired)));
        facts.add(checked(&facts, 3, Vec::new()));
        assert_eq!(facts.status(&counts(1, 1)), BatchStatus::InProgress);
        assert_eq!(facts.status(&counts(2, 1)), BatchStatus::Finalizing);
        assert!(!facts.has(Computed::Output) && !facts.is_over());
        let mut cancelled = facts.clone();
        facts.add(ended(&facts, BatchEnd::Completed, 2));
        let info = facts.info(RequestCounts::default());
        assert_eq!((info.status, info.counts, info.completed_at), (BatchStatus::Completed, counts(2, 1), Some(9)));
        assert!(info.output_file_id.is_some() && info.error_file_id.is_some() && facts.is_over());
        facts.add(Parsed::Hidden(facts.made.id.clone(), Computed::Output));
        assert_eq!(facts.info(RequestCounts::default()).output_file_id, None);

        let by = FactDocument { id: cancelled.key("cancelled"), at: 7_000, by: "x".into() };
        cancelled.add(Parsed::Cancelled(cancelled.made.id.clone(), by));
        assert_eq!(cancelled.status(&counts(2, 1)), BatchStatus::Cancelling);
        assert_eq!(cancelled.has_to_end(7_000), Some(BatchEnd::Cancelled));
        cancelled.add(ended(&cancelled, BatchEnd::Cancelled, 0));
        let info = cancelled.info(counts(0, 0));
        assert_eq!((info.status, info.cancelling_at, info.cancelled_at), (BatchStatus::Cancelled, Some(7), Some(9)));
        assert!(info.output_file_id.is_none() && info.error_file_id.is_some(), "what was not done is told as errors");
    }

    #[test]
    fn a_file_that_is_none_of_requests_ends_its_batch() {
        let mut facts = facts();
        let error = LineError { code: "x".into(), message: "y".into(), param: None, line: Some(2) };
        facts.add(checked(&facts, 3, vec![error.clone()]));
        let info = facts.info(RequestCounts::default());
        assert_eq!((info.status, info.failed_at, info.errors), (BatchStatus::Failed, Some(6), vec![error]));
        assert!(facts.is_over() && info.in_progress_at.is_none());
    }

    #[test]
    fn documents_are_read_by_their_keys_and_what_is_none_is_left_out() {
        let facts = facts();
        let value = serde_json::to_value(&facts.made).unwrap();
        assert_eq!(Parsed::read(&facts.made.id, value.clone()), Some(Parsed::Batch(facts.made.clone())));
        assert_eq!(Parsed::read(&batch_id([2; 16]), value.clone()), None, "under another key");
        assert_eq!(Parsed::read(&facts.key("ended"), value), None);
        assert_eq!(Parsed::read(&facts.key("other"), json!({})), None);
        assert_eq!(Parsed::read("note", json!({ "_id": "note" })), None);
    }
}
