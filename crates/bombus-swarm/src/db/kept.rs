//! Blocks of their own: named by their bytes, in no log, kept beside the databases.
//!
//! They stand in one file that is made when the first one is kept. A thread writes what has gathered while it wrote, and makes that safe in
//! one go, so that many at once cost little more than one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use orbitdb::cid::Hash;
use orbitdb::storage::{Batch, Durability, Redb, RedbConfig, Space, Storage, StorageError, Table};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::error::DbError;
use super::shared::aside;

/// Greatest size of a block of its own, in bytes: what peers of any kind exchange.
pub const KEPT_BLOCK_BYTES_MAX: usize = 256 << 10;

/// What the file is called, without its ending.
const SPACE: &str = "blocks";
/// How many groups of blocks wait to be written; further ones wait for room.
const JOBS_MAX: usize = 256;
/// About how many bytes are written in one go.
const BATCH_BYTES: usize = 16 << 20;

/// Blocks to be written together.
struct Job {
    blocks: Vec<(Hash, Vec<u8>)>,
    done: oneshot::Sender<Result<(), StorageError>>,
}

/// The blocks that are kept.
pub(super) struct KeptBlocks {
    directory: PathBuf,
    storage: Redb,
    state: Mutex<State>,
}

enum State {
    /// Nothing was asked for yet, or there is no file.
    Unopened,
    Open(Open),
    Closed,
}

#[derive(Clone)]
struct Open {
    space: Arc<dyn Space>,
    jobs: mpsc::Sender<Job>,
    /// Cancelled when the thread has ended, however it did.
    ended: CancellationToken,
}

impl KeptBlocks {
    /// Keeps blocks in a directory that is there.
    pub(super) fn new(directory: &Path, config: RedbConfig) -> Result<Self, StorageError> {
        let storage = Redb::new(directory, config)?;
        Ok(Self { directory: directory.to_owned(), storage, state: Mutex::new(State::Unopened) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file; where there is none it is made if `make` says so. It may block.
    fn open(&self, make: bool) -> Result<Option<Open>, DbError> {
        let mut state = self.state();
        match &*state {
            State::Open(open) => Ok(Some(open.clone())),
            State::Closed => Err(DbError::Stopped),
            State::Unopened if !make && !self.path().exists() => Ok(None),
            State::Unopened => {
                let open = start(self.storage.open(SPACE)?)?;
                *state = State::Open(open.clone());
                Ok(Some(open))
            }
        }
    }

    /// Returns a block. It may block.
    pub(super) fn get(&self, hash: &Hash) -> Result<Option<Vec<u8>>, DbError> {
        let Some(open) = self.open(false)? else { return Ok(None) };
        Ok(open.space.get(Table::Blocks, hash.digest())?)
    }

    /// Returns how many bytes the file takes.
    pub(super) fn bytes(&self) -> u64 {
        std::fs::metadata(self.path()).map_or(0, |metadata| metadata.len())
    }

    fn path(&self) -> PathBuf {
        self.directory.join(format!("{SPACE}.redb"))
    }

    /// Keeps blocks; they are safe when this returns.
    pub(super) async fn put(self: &Arc<Self>, blocks: Vec<(Hash, Vec<u8>)>) -> Result<(), DbError> {
        let opened = match &*self.state() {
            State::Open(open) => Some(open.clone()),
            State::Unopened => None,
            State::Closed => return Err(DbError::Stopped),
        };
        let open = match opened {
            Some(open) => open,
            None => {
                let kept = Arc::clone(self);
                aside(async move { kept.open(true) }).await?.ok_or(DbError::Stopped)?
            }
        };
        let (done, written) = oneshot::channel();
        open.jobs.send(Job { blocks, done }).await.map_err(|_| DbError::Stopped)?;
        // Else its sender would keep the thread from its end.
        drop(open);
        Ok(written.await.map_err(|_| DbError::Stopped)??)
    }

    /// Writes what is waiting and lets the file go. What is asked for from then on is refused.
    pub(super) async fn close(&self) {
        let before = std::mem::replace(&mut *self.state(), State::Closed);
        if let State::Open(Open { space, jobs, ended }) = before {
            // The thread ends when nobody has these and everything is written.
            drop((space, jobs));
            ended.cancelled().await;
        }
    }
}

/// Starts the thread that writes. It ends when nobody is left who could give it something.
fn start(space: Arc<dyn Space>) -> Result<Open, DbError> {
    let (jobs, receiver) = mpsc::channel(JOBS_MAX);
    let ended = CancellationToken::new();
    let open = Open { space: Arc::clone(&space), jobs, ended: ended.clone() };
    let run = move || {
        let _ended = ended.drop_guard();
        write_all(&*space, receiver);
        drop(space);
    };
    let started = thread::Builder::new().name("kept-blocks".to_owned()).spawn(run);
    started.map(|_| open).map_err(|error| DbError::Failed(format!("a thread cannot be started: {error}")))
}

fn write_all(space: &dyn Space, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let (mut batch, mut bytes, mut waiting) = (Batch::default(), 0, Vec::new());
        let mut next = Some(first);
        while let Some(Job { blocks, done }) = next.take() {
            for (hash, block) in blocks {
                bytes += block.len();
                batch.put(Table::Blocks, hash.digest(), block);
            }
            waiting.push(done);
            if bytes < BATCH_BYTES {
                next = jobs.try_recv().ok();
            }
        }
        let written = space.commit(&batch, Durability::Full);
        for done in waiting {
            // Who waits no more has given up.
            drop(done.send(written.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn block(number: usize) -> (Hash, Vec<u8>) {
        let block = format!("block {number}").into_bytes();
        (Hash::of(&block), block)
    }

    #[tokio::test]
    async fn what_was_kept_is_there_after_opening_again_and_nothing_is_taken_after_the_end() {
        let directory = TempDir::new().unwrap();
        let kept = Arc::new(KeptBlocks::new(directory.path(), RedbConfig::default()).unwrap());
        assert_eq!((kept.get(&block(0).0).unwrap(), kept.bytes()), (None, 0));
        assert_eq!(directory.path().read_dir().unwrap().count(), 0, "no file without a block");
        let puts = (0..200).map(|number| kept.put(vec![block(number)]));
        assert!(futures::future::join_all(puts).await.into_iter().all(|put| put.is_ok()));
        kept.close().await;
        assert!(matches!(kept.put(vec![block(200)]).await, Err(DbError::Stopped)));
        assert!(matches!(kept.get(&block(0).0), Err(DbError::Stopped)));
        let again = KeptBlocks::new(directory.path(), RedbConfig::default()).unwrap();
        for number in 0..200 {
            assert_eq!(again.get(&block(number).0).unwrap(), Some(block(number).1));
        }
        assert_eq!(again.get(&block(200).0).unwrap(), None);
    }
}
