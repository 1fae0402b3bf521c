//! Files and batches in memory, as a test wants them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bombus_core::batches::{
    BatchInfo, BatchLine, BatchStatus, Computed, Endpoint, FileInfo, LineError, NewBatch, PURPOSE, Page, RequestCounts,
    batch_id, file_id,
};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;

use crate::files::{FileContent, FileFilter, FileUpload, Files, FilesError};

/// Files with their bytes, by their ids.
type Stored = BTreeMap<String, (FileInfo, Vec<u8>)>;

/// Files in memory, and batches of which each stands where the test says.
#[derive(Clone, Default)]
pub(crate) struct ScriptedFiles {
    pub(crate) stored: Arc<Mutex<Stored>>,
    pub(crate) made: Arc<Mutex<Vec<NewBatch>>>,
    /// How many uploads were dropped before their end.
    pub(crate) dropped: Arc<Mutex<u32>>,
    /// What came of the lines of every batch.
    pub(crate) lines: Vec<BatchLine>,
    pub(crate) errors: Vec<LineError>,
    pub(crate) status: Option<BatchStatus>,
}

/// The file that there is in [`ScriptedFiles::with_a_batch`].
pub(crate) fn the_file() -> String {
    file_id([0; 16])
}

/// The batch that there is.
pub(crate) fn the_batch() -> String {
    batch_id([7; 16])
}

impl ScriptedFiles {
    /// Makes a file and a batch of it.
    pub(crate) fn with_a_batch() -> Self {
        let files = Self::default();
        let info = FileInfo { id: the_file(), bytes: 4, created_at: 0, filename: "a.jsonl".into(), purpose: PURPOSE };
        files.stored.lock().unwrap().insert(the_file(), (info, b"none".to_vec()));
        let (endpoint, metadata) = (Endpoint::Chat, BTreeMap::new());
        files.made.lock().unwrap().push(NewBatch { input_file_id: the_file(), endpoint, metadata });
        files
    }

    fn info(&self) -> BatchInfo {
        let made = self.made.lock().unwrap();
        let made = made.last().expect("a batch was made");
        let status = self.status.unwrap_or(BatchStatus::Validating);
        let ended = status == BatchStatus::Completed;
        BatchInfo {
            id: the_batch(),
            endpoint: made.endpoint,
            errors: self.errors.clone(),
            input_file_id: made.input_file_id.clone(),
            status,
            output_file_id: ended.then(|| Computed::Output.file_of(&the_batch())),
            error_file_id: None,
            created_at: 1_700_000_000,
            in_progress_at: ended.then_some(1_700_000_001),
            expires_at: 1_700_086_400,
            finalizing_at: ended.then_some(1_700_000_002),
            completed_at: ended.then_some(1_700_000_002),
            failed_at: None,
            expired_at: None,
            cancelling_at: None,
            cancelled_at: None,
            counts: if ended { RequestCounts { total: 2, completed: 1, failed: 1 } } else { RequestCounts::default() },
            metadata: made.metadata.clone(),
        }
    }

    fn known(&self, id: &str) -> Result<BatchInfo, FilesError> {
        let is_it = id == the_batch() && !self.made.lock().unwrap().is_empty();
        is_it.then(|| self.info()).ok_or_else(|| FilesError::UnknownBatch(format!("no such batch: '{id}'")))
    }
}

fn unknown(id: &str) -> FilesError {
    FilesError::UnknownFile(format!("no such file: '{id}'"))
}

struct ScriptedUpload {
    files: ScriptedFiles,
    bytes: Vec<u8>,
    finished: bool,
}

impl Drop for ScriptedUpload {
    fn drop(&mut self) {
        *self.files.dropped.lock().unwrap() += u32::from(!self.finished);
    }
}

#[async_trait]
impl FileUpload for ScriptedUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), FilesError> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, filename: &str) -> Result<FileInfo, FilesError> {
        let number = u8::try_from(self.files.stored.lock().unwrap().len()).unwrap();
        let info = FileInfo {
            id: file_id([number; 16]),
            bytes: self.bytes.len() as u64,
            created_at: 1_700_000_000 + u64::from(number),
            filename: filename.to_owned(),
            purpose: PURPOSE,
        };
        self.finished = true;
        let bytes = std::mem::take(&mut self.bytes);
        self.files.stored.lock().unwrap().insert(info.id.clone(), (info.clone(), bytes));
        Ok(info)
    }
}

#[async_trait]
impl Files for ScriptedFiles {
    async fn upload(&self) -> Result<Box<dyn FileUpload>, FilesError> {
        Ok(Box::new(ScriptedUpload { files: self.clone(), bytes: Vec::new(), finished: false }))
    }

    async fn file(&self, id: &str) -> Result<FileInfo, FilesError> {
        let stored = self.stored.lock().unwrap();
        stored.get(id).map(|(info, _)| info.clone()).ok_or_else(|| unknown(id))
    }

    async fn files(&self, filter: FileFilter) -> Result<Page<FileInfo>, FilesError> {
        let mut data: Vec<FileInfo> = self.stored.lock().unwrap().values().map(|(info, _)| info.clone()).collect();
        if !filter.oldest_first {
            data.reverse();
        }
        let has_more = data.len() > filter.limit;
        data.truncate(filter.limit);
        Ok(Page { data, has_more })
    }

    async fn content(&self, id: &str) -> Result<FileContent, FilesError> {
        if id == Computed::Output.file_of(&the_batch()) {
            return Ok(FileContent::Lines(stream::iter(self.lines.clone().into_iter().map(Ok)).boxed()));
        }
        let stored = self.stored.lock().unwrap().get(id).map(|(_, bytes)| bytes.clone());
        let bytes = stored.ok_or_else(|| unknown(id))?;
        let pieces: Vec<_> = bytes.chunks(3).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(FileContent::Bytes(stream::iter(pieces).boxed()))
    }

    async fn remove(&self, id: &str) -> Result<(), FilesError> {
        self.stored.lock().unwrap().remove(id).map(drop).ok_or_else(|| unknown(id))
    }

    async fn create_batch(&self, batch: NewBatch) -> Result<BatchInfo, FilesError> {
        if !self.stored.lock().unwrap().contains_key(&batch.input_file_id) {
            let message = format!("there is no file '{}'", batch.input_file_id);
            return Err(FilesError::Invalid { param: "input_file_id", message });
        }
        self.made.lock().unwrap().push(batch);
        Ok(self.info())
    }

    async fn batch(&self, id: &str) -> Result<BatchInfo, FilesError> {
        self.known(id)
    }

    async fn batches(&self, _: Option<&str>, _: usize) -> Result<Page<BatchInfo>, FilesError> {
        let data = if self.made.lock().unwrap().is_empty() { Vec::new() } else { vec![self.info()] };
        Ok(Page { data, has_more: false })
    }

    async fn cancel(&self, id: &str) -> Result<BatchInfo, FilesError> {
        let info = self.known(id)?;
        match info.status.is_final() {
            true => Err(FilesError::Ended(format!("the batch is {}", info.status.name()))),
            false => Ok(BatchInfo { status: BatchStatus::Cancelling, cancelling_at: Some(1_700_000_003), ..info }),
        }
    }
}
