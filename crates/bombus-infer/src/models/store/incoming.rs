//! Files that clients send, to make models of.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::{ModelStore, StoreError, is_sha256};

/// A file on its way in. Dropping it deletes what came so far.
pub struct IncomingBlob {
    store: ModelStore,
    sha256: String,
    staged: NamedTempFile,
    hasher: Sha256,
    bytes: u64,
}

impl ModelStore {
    /// Says whether the file with this SHA-256 (64 lower-case hex digits) is here. It then stays for at least another day.
    #[must_use]
    pub fn has_blob(&self, sha256: &str) -> bool {
        if !is_sha256(sha256) {
            return false;
        }
        let blob = self.blob_path(sha256);
        // A file that is linked from an Ollama's store may belong to somebody else; it has a name then, by which it stays.
        let _ = OpenOptions::new().append(true).open(&blob).and_then(|file| file.set_modified(SystemTime::now()));
        blob.is_file()
    }

    /// Begins to take in a file that is said to have this SHA-256.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotSupported`] where the text is no SHA-256 in lower-case hex; [`StoreError::Io`].
    pub fn receive(&self, sha256: &str) -> Result<IncomingBlob, StoreError> {
        if !is_sha256(sha256) {
            let reason = "invalid digest format: write sha256: and 64 lower-case hex digits".to_owned();
            return Err(StoreError::NotSupported { reason });
        }
        self.delete_left_blobs();
        Ok(IncomingBlob {
            store: self.clone(),
            sha256: sha256.to_owned(),
            staged: self.staging_file()?,
            hasher: Sha256::new(),
            bytes: 0,
        })
    }
}

impl IncomingBlob {
    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// [`StoreError::DiskFull`], [`StoreError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        let written = self.staged.write_all(bytes);
        written.map_err(|error| self.store.write_error(self.staged.path(), error, self.bytes))
    }

    /// Puts the file among the blobs.
    ///
    /// # Errors
    ///
    /// [`StoreError::WrongHash`], [`StoreError::DiskFull`], [`StoreError::Io`].
    pub fn finish(self) -> Result<(), StoreError> {
        let Self { store, sha256, staged, hasher, bytes } = self;
        let found = hex::encode(hasher.finalize());
        if found != sha256 {
            return Err(StoreError::WrongHash { expected: sha256, found });
        }
        staged.as_file().sync_all().map_err(|error| store.write_error(staged.path(), error, bytes))?;
        let _lock = store.lock()?;
        let blob = store.blob_path(&sha256);
        if fs::metadata(&blob).is_ok_and(|metadata| metadata.len() == bytes) && store.has_blob(&sha256) {
            return Ok(());
        }
        staged.persist(&blob).map_err(|error| StoreError::io(&blob)(error.error))?;
        Ok(())
    }
}
