//! Blocks of their own: named by their bytes, in no log, kept beside the databases.
//!
//! They stand in one file that is made when the first one is kept. A thread writes what has gathered while it wrote, and makes that safe in
//! one go, so that many at once cost little more than one. The same thread removes them: what was put meanwhile, or just before, stays.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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

/// How long it is known which blocks were put, at most.
const YOUNG_MAX: Duration = Duration::from_secs(600);
/// How many blocks are removed in one go.
const REMOVED_AT_ONCE: usize = 1_000;
/// When so much of the file is empty, one part of so many, its room is given back.
const EMPTY_PART: u64 = 4;

/// What the thread does.
enum Job {
    Put(Put),
    Remove { blocks: Vec<Hash>, young: Duration, done: oneshot::Sender<Result<Removed, StorageError>> },
}

/// Blocks to be written together.
struct Put {
    blocks: Vec<(Hash, Vec<u8>)>,
    done: oneshot::Sender<Result<(), StorageError>>,
}

/// What became of blocks that were to be removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many are gone.
    pub blocks: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Those that stay since they were put a short time before.
    pub young: Vec<Hash>,
}

/// When blocks were put, of those that were put lately. They are marked before they are written.
#[derive(Default)]
struct Lately(Mutex<HashMap<Hash, Instant>>);

impl Lately {
    fn mark(&self, blocks: &[(Hash, Vec<u8>)]) {
        let mut lately = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        // Only then are the old ones looked for, so that a mark costs little on average.
        if lately.len() + blocks.len() > lately.capacity() {
            lately.retain(|_, put| now.duration_since(*put) < YOUNG_MAX);
        }
        lately.extend(blocks.iter().map(|(hash, _)| (*hash, now)));
    }

    fn is_within(&self, hash: &Hash, young: Duration) -> bool {
        let lately = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lately.get(hash).is_some_and(|put| put.elapsed() < young)
    }
}

/// The blocks that are kept.
pub(super) struct KeptBlocks {
    directory: PathBuf,
    storage: Redb,
    state: Mutex<State>,
    lately: Arc<Lately>,
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
        Ok(Self {
            directory: directory.to_owned(),
            storage,
            state: Mutex::new(State::Unopened),
            lately: Arc::default(),
        })
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
                let open = start(self.storage.open(SPACE)?, Arc::clone(&self.lately))?;
                *state = State::Open(open.clone());
                Ok(Some(open))
            }
        }
    }

    /// Returns a block. It may block.
    pub(super) fn get(&self, hash: &Hash) -> Result<Option<Vec<u8>>, DbError> {
        let Some(open) = self.open(false)? else { return Ok(None) };
        let read = open.space.get(Table::Blocks, hash.digest());
        if read.is_err() {
            self.begin_anew();
        }
        Ok(read?)
    }

    /// Returns how many bytes the file takes.
    pub(super) fn bytes(&self) -> u64 {
        std::fs::metadata(self.path()).map_or(0, |metadata| metadata.len())
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
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
        self.lately.mark(&blocks);
        let (done, written) = oneshot::channel();
        open.jobs.send(Job::Put(Put { blocks, done })).await.map_err(|_| DbError::Stopped)?;
        // Else its sender would keep the thread from its end.
        drop(open);
        let written = written.await.map_err(|_| DbError::Stopped)?;
        if written.is_err() {
            self.begin_anew();
        }
        Ok(written?)
    }

    /// Lets a file go that failed. Whoever asks for it next opens it again: a disk that was full may have room by then.
    fn begin_anew(&self) {
        let mut state = self.state();
        if matches!(*state, State::Open(_)) {
            *state = State::Unopened;
        }
    }

    /// Removes blocks, but for those that were put within `young`, and gives back their room where it is much. Those that are not here are no
    /// error.
    pub(super) async fn remove(self: &Arc<Self>, blocks: Vec<Hash>, young: Duration) -> Result<Removed, DbError> {
        let kept = Arc::clone(self);
        let Some(open) = aside(async move { kept.open(false) }).await? else { return Ok(Removed::default()) };
        let (done, removed) = oneshot::channel();
        open.jobs.send(Job::Remove { blocks, young, done }).await.map_err(|_| DbError::Stopped)?;
        drop(open);
        Ok(removed.await.map_err(|_| DbError::Stopped)??)
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
fn start(space: Arc<dyn Space>, lately: Arc<Lately>) -> Result<Open, DbError> {
    let (jobs, receiver) = mpsc::channel(JOBS_MAX);
    let ended = CancellationToken::new();
    let open = Open { space: Arc::clone(&space), jobs, ended: ended.clone() };
    let run = move || {
        let _ended = ended.drop_guard();
        work(&*space, receiver, &lately);
        drop(space);
    };
    let started = thread::Builder::new().name("kept-blocks".to_owned()).spawn(run);
    started.map(|_| open).map_err(|error| DbError::Failed(format!("a thread cannot be started: {error}")))
}

fn work(space: &dyn Space, mut jobs: mpsc::Receiver<Job>, lately: &Lately) {
    let mut next = None;
    while let Some(job) = next.take().or_else(|| jobs.blocking_recv()) {
        match job {
            Job::Put(first) => next = write_all(space, first, &mut jobs),
            Job::Remove { blocks, young, done } => {
                // Who waits no more has given up.
                drop(done.send(remove(space, &blocks, young, lately)));
            }
        }
    }
}

/// Writes blocks, with those that wait behind them. Returns a job of another kind that it met.
fn write_all(space: &dyn Space, first: Put, jobs: &mut mpsc::Receiver<Job>) -> Option<Job> {
    let (mut batch, mut bytes, mut waiting, mut other) = (Batch::default(), 0, Vec::new(), None);
    let mut next = Some(first);
    while let Some(Put { blocks, done }) = next.take() {
        for (hash, block) in blocks {
            bytes += block.len();
            batch.put(Table::Blocks, hash.digest(), block);
        }
        waiting.push(done);
        if bytes < BATCH_BYTES {
            match jobs.try_recv() {
                Ok(Job::Put(put)) => next = Some(put),
                Ok(job) => other = Some(job),
                Err(_) => {}
            }
        }
    }
    let written = space.commit(&batch, Durability::Full);
    for done in waiting {
        drop(done.send(written.clone()));
    }
    other
}

fn remove(space: &dyn Space, blocks: &[Hash], young: Duration, lately: &Lately) -> Result<Removed, StorageError> {
    let mut removed = Removed::default();
    for some in blocks.chunks(REMOVED_AT_ONCE) {
        let mut batch = Batch::default();
        for hash in some {
            if lately.is_within(hash, young) {
                removed.young.push(*hash);
                continue;
            }
            let mut bytes = None;
            space.read(Table::Blocks, hash.digest(), &mut |block| bytes = Some(block.len() as u64))?;
            if let Some(bytes) = bytes {
                batch.delete(Table::Blocks, hash.digest());
                removed.blocks += 1;
                removed.bytes += bytes;
            }
        }
        if !batch.is_empty() {
            space.commit(&batch, Durability::Full)?;
        }
    }
    if removed.bytes > 0 && removed.bytes >= space.bytes()? / EMPTY_PART {
        space.compact()?;
    }
    Ok(removed)
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

    #[tokio::test]
    async fn what_is_removed_is_gone_with_its_room_but_for_what_was_put_just_before() {
        let directory = TempDir::new().unwrap();
        let large = |number: usize| {
            let block = format!("{number} ").repeat(40_000).into_bytes();
            (Hash::of(&block), block)
        };
        let kept = Arc::new(KeptBlocks::new(directory.path(), RedbConfig::default()).unwrap());
        let unknown = kept.remove(vec![block(0).0], Duration::ZERO).await.unwrap();
        assert_eq!((unknown, directory.path().read_dir().unwrap().count()), (Removed::default(), 0));
        for number in 0..100 {
            kept.put(vec![large(number)]).await.unwrap();
        }
        let full = kept.bytes();
        let blocks: Vec<Hash> = (0..95).map(|number| large(number).0).collect();
        let removed = kept.remove(blocks.clone(), YOUNG_MAX).await.unwrap();
        assert_eq!((removed.blocks, removed.young), (0, blocks.clone()));
        let removed = kept.remove(blocks.clone(), Duration::ZERO).await.unwrap();
        assert_eq!((removed.blocks, removed.young.len()), (95, 0));
        assert!(kept.bytes() < full / 4, "{} of {full}", kept.bytes());
        assert_eq!(kept.get(&blocks[0]).unwrap(), None);
        assert_eq!(kept.get(&large(95).0).unwrap(), Some(large(95).1));
        kept.put(vec![large(0)]).await.unwrap();
        kept.close().await;
        let again = KeptBlocks::new(directory.path(), RedbConfig::default()).unwrap();
        assert_eq!(again.get(&blocks[0]).unwrap(), Some(large(0).1), "what comes again is kept again");
    }
}
