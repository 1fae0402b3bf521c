//! The hash of a file that is being fetched: it follows the bytes as they come, so that little is left to do at the end.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::platform::read_exact_at;

/// How much is hashed at once; until then, nothing stops it.
const STEP_BYTES: u64 = 64 << 20;
/// Less than this is not worth a step, unless it is the end.
const STEP_BYTES_MIN: u64 = 4 << 20;
/// How much is read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// The hash of the bytes from the first on.
pub(super) struct Chase {
    file: Arc<File>,
    lock: Arc<File>,
    hasher: Sha256,
    done: u64,
    step: Option<JoinHandle<io::Result<(Sha256, u64)>>>,
}

impl Chase {
    pub(super) fn new(file: Arc<File>, lock: Arc<File>) -> Self {
        Self { file, lock, hasher: Sha256::new(), done: 0, step: None }
    }

    /// Returns how many bytes are hashed.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    pub(super) fn is_busy(&self) -> bool {
        self.step.is_some()
    }

    /// Begins the next step, if there is one: the bytes up to `prefix` are here, which may be all.
    pub(super) fn go(&mut self, prefix: u64, is_whole: bool) {
        let range = self.done..prefix.min(self.done + STEP_BYTES).max(self.done);
        let is_worth_it = is_whole || range.end - range.start >= STEP_BYTES_MIN;
        if self.step.is_some() || range.is_empty() || !is_worth_it {
            return;
        }
        let (file, lock, mut hasher) = (Arc::clone(&self.file), Arc::clone(&self.lock), self.hasher.clone());
        self.step = Some(spawn_blocking(move || {
            let _lock = lock;
            let end = range.end;
            hash_range(&file, range, &mut hasher)?;
            Ok((hasher, end))
        }));
    }

    /// Waits for the end of the step. Safe to cancel.
    pub(super) async fn step(&mut self) -> io::Result<()> {
        let Some(step) = self.step.as_mut() else { return Ok(()) };
        let ended = step.await;
        self.step = None;
        let (hasher, done) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        (self.hasher, self.done) = (hasher, done);
        Ok(())
    }

    /// Returns the hash of what was hashed, in lower-case hex.
    pub(super) fn finish(self) -> String {
        hex::encode(self.hasher.finalize())
    }
}

/// Returns the SHA-256 of some bytes of a file. Blocks.
pub(super) fn digest_of(file: &File, range: Range<u64>) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    hash_range(file, range, &mut hasher)?;
    Ok(hasher.finalize().into())
}

fn hash_range(file: &File, range: Range<u64>, hasher: &mut Sha256) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = range.start;
    while at < range.end {
        let count = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(BUFFER_BYTES);
        read_exact_at(file, &mut buffer[..count], at)?;
        hasher.update(&buffer[..count]);
        at += count as u64;
    }
    Ok(())
}
