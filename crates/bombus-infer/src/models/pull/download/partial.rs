//! The part of a file that is here already, with the state of its hash.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use super::super::super::store::ModelStore;
use super::super::blocking::watched;
use super::super::{PullStage, Report};

/// Returns where the unfinished file with this hash lies.
pub(in crate::models::pull) fn partial_path(store: &ModelStore, sha256: &str) -> PathBuf {
    store.blob_path(sha256).with_extension("partial")
}

/// An unfinished file. It survives the process: what it holds is hashed when it is opened again.
pub(super) struct Partial {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    bytes: u64,
}

struct State {
    file: File,
    hasher: Sha256,
    /// Goes with the last writer.
    _lock: Arc<File>,
}

impl Partial {
    /// Opens what is there, and empties it if it is larger than the whole may be.
    pub(super) async fn open(path: &Path, bytes_max: u64, lock: Arc<File>, report: Report<'_>) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut bytes = file.metadata()?.len();
        if bytes > bytes_max {
            file.set_len(0)?;
            bytes = 0;
        }
        let mut hasher = Sha256::new();
        if bytes > 0 {
            (file, hasher) = watched(report, PullStage::Verifying, Some(bytes), move |done| {
                let mut counted = Counted { inner: &mut hasher, done };
                io::copy(&mut file, &mut counted)?;
                io::Result::Ok((file, hasher))
            })
            .await?;
        }
        Ok(Self { path: path.to_owned(), state: Arc::new(Mutex::new(State { file, hasher, _lock: lock })), bytes })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the hash of what is here, in lower-case hex.
    pub(super) fn sha256(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        hex::encode(state.hasher.clone().finalize())
    }

    /// Adds a piece at the end and returns its memory, emptied.
    pub(super) async fn append(&mut self, mut piece: Vec<u8>) -> io::Result<Vec<u8>> {
        let state = Arc::clone(&self.state);
        let bytes = piece.len() as u64;
        let piece = spawn_blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.file.write_all(&piece)?;
            state.hasher.update(&piece);
            piece.clear();
            io::Result::Ok(piece)
        })
        .await
        .map_err(io::Error::other)??;
        self.bytes += bytes;
        Ok(piece)
    }

    /// Empties the file.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.file.set_len(0)?;
        state.hasher = Sha256::new();
        self.bytes = 0;
        Ok(())
    }
}

/// Counts what goes into a hash.
struct Counted<'a> {
    inner: &'a mut Sha256,
    done: &'a std::sync::atomic::AtomicU64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.update(bytes);
        self.done.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
