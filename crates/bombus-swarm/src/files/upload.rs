//! A file that is being taken: its blocks are safe before its document names them.

use std::fmt;
use std::sync::Arc;

use bombus_core::batches::{FILE_BYTES_MAX, FileDocument, FileInfo, file_id};
use orbitdb::cbor::Value;
use orbitdb::cid::Hash;

use super::error::FilesError;
use super::shared::Shared;
use crate::db::DbHandle;
use crate::store::text::{PART_BYTES, encode_parts};

/// How many blocks are written together.
const TOGETHER: usize = 8;
/// Longest name of a file, in bytes.
const NAME_BYTES_MAX: usize = 512;

/// Writes something large as blocks, piece by piece.
pub(super) struct Blocks {
    db: DbHandle,
    part: Vec<u8>,
    waiting: Vec<Vec<u8>>,
    /// The parts that are safe.
    pub(super) parts: Vec<Hash>,
    pub(super) bytes: u64,
}

impl Blocks {
    pub(super) fn new(db: &DbHandle) -> Self {
        Self { db: db.clone(), part: Vec::new(), waiting: Vec::new(), parts: Vec::new(), bytes: 0 }
    }

    pub(super) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), FilesError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > FILE_BYTES_MAX {
            return Err(FilesError::TooLarge(FILE_BYTES_MAX));
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PART_BYTES - self.part.len()));
            self.part.extend_from_slice(now);
            bytes = later;
            if self.part.len() == PART_BYTES {
                self.end_part();
                if self.waiting.len() >= TOGETHER {
                    self.flush().await?;
                }
            }
        }
        Ok(())
    }

    fn end_part(&mut self) {
        let block = Value::Bytes(std::mem::take(&mut self.part)).encode().expect("bytes have a form");
        self.waiting.push(block);
    }

    async fn flush(&mut self) -> Result<(), FilesError> {
        let blocks = std::mem::take(&mut self.waiting);
        // Noted first: some of them may be safe though the whole failed.
        self.parts.extend(blocks.iter().map(|block| Hash::of(block)));
        self.db.put_blocks(blocks).await?;
        Ok(())
    }

    /// Returns the block that names the parts.
    pub(super) async fn finish(&mut self) -> Result<Hash, FilesError> {
        if !self.part.is_empty() || self.parts.is_empty() && self.waiting.is_empty() {
            self.end_part();
        }
        self.flush().await?;
        if let [only] = self.parts[..] {
            return Ok(only);
        }
        let root = encode_parts(&self.parts);
        let hash = Hash::of(&root);
        self.parts.push(hash);
        self.db.put_blocks(vec![root]).await?;
        Ok(hash)
    }
}

/// A file that is being taken. One that is dropped before it was finished is forgotten, with its blocks.
pub struct Upload {
    shared: Arc<Shared>,
    blocks: Blocks,
    finished: bool,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("bytes", &self.blocks.bytes).finish_non_exhaustive()
    }
}

impl Upload {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), blocks: Blocks::new(&shared.db), finished: false }
    }

    /// Takes more of it.
    ///
    /// # Errors
    ///
    /// [`FilesError::TooLarge`], and when it cannot be written.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), FilesError> {
        self.blocks.write(bytes).await.map_err(|error| self.shared.explained(error))
    }

    /// Ends it. The file is safe on this node's disk when this returns.
    ///
    /// # Errors
    ///
    /// [`FilesError`] where it has no name or is empty, and when it cannot be written.
    pub async fn finish(mut self, filename: &str) -> Result<FileInfo, FilesError> {
        self.end(filename).await.map_err(|error| self.shared.explained(error))
    }

    async fn end(&mut self, filename: &str) -> Result<FileInfo, FilesError> {
        if self.blocks.bytes == 0 {
            return Err(FilesError::invalid("file", "the file is empty"));
        }
        if filename.is_empty() || filename.len() > NAME_BYTES_MAX || filename.chars().any(char::is_control) {
            let message =
                format!("the file has to have a name of 1 to {NAME_BYTES_MAX} bytes, without control characters");
            return Err(FilesError::invalid("file", message));
        }
        let shared = Arc::clone(&self.shared);
        let table = shared.table().await?;
        let root = self.blocks.finish().await?;
        let document = FileDocument {
            id: file_id(random()?),
            filename: filename.to_owned(),
            bytes: self.blocks.bytes,
            root: root.to_string(),
            by: shared.me.to_string(),
            created_at: shared.now_ms(),
            removed_at: None,
        };
        table.put(&document).await?;
        self.finished = true;
        Ok(document.info())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let blocks = std::mem::take(&mut self.blocks.parts);
        // Where too many wait, these stay on the disk.
        if !self.finished && !blocks.is_empty() && self.shared.orphans.try_send(blocks).is_err() {
            tracing::debug!("the blocks of an upload that broke off stay on the disk");
        }
    }
}

pub(super) fn random() -> Result<[u8; 16], FilesError> {
    let mut random = [0; 16];
    let filled = getrandom::fill(&mut random);
    filled.map_err(|error| FilesError::Document(format!("there are no random numbers: {error}")))?;
    Ok(random)
}
