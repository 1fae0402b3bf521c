//! Crashes of a whole system, which take what was written and is not safe: what a database acknowledges and publishes, and when, and that
//! what is lost harms nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use orbitdb::{
    Access, Database, OpenOptions, OrbitDb, Output,
    cid::Hash,
    crypt::Encryption,
    entry::{Codec, Limits},
    manifest::DatabaseType,
    replica::Input,
    storage::{Batch, Durability, Memory, Space, Storage, StorageError, Table},
    sync::Peer,
};
use tokio::{sync::mpsc, task::JoinSet};

/// How many own entries a crash may take.
const UNSAFE_MAX: u64 = 64;

/// How far the clock jumps after one.
const JUMP: u64 = 100;

/// A storage that loses in a crash what is not safe, and that looks at what was published whenever something is about to be written.
#[derive(Clone, Default)]
struct Disk {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    memory: Memory,
    /// In the order in which it was written.
    written: Mutex<Vec<Written>>,
    outputs: Mutex<Option<mpsc::Receiver<Output>>>,
    published: Mutex<Vec<Published>>,
}

#[derive(Clone)]
struct Written {
    space: String,
    batch: Batch,
    durability: Durability,
}

/// A block that was published.
#[derive(Clone)]
struct Published {
    hash: Hash,
    /// Whether it was written when that was seen.
    was_written: bool,
    /// Whether a crash would have left it.
    was_safe: bool,
}

struct DiskSpace {
    disk: Disk,
    name: String,
    inner: Arc<dyn Space>,
}

impl Disk {
    /// Opens the log of a node with this disk.
    async fn open(&self, relaxed: bool) -> (OrbitDb, Database) {
        let (orbit, outputs) = OrbitDb::builder().storage(Arc::new(self.clone())).build().unwrap();
        *self.state.outputs.lock().unwrap() = Some(outputs);
        let log = orbit.open("log", options().relaxed(relaxed)).await.unwrap();
        (orbit, log)
    }

    /// Returns what a crash leaves now.
    fn crash(&self) -> Self {
        let after = Self::default();
        let written = self.state.written.lock().unwrap();
        for (number, Written { space, batch, .. }) in written.iter().enumerate() {
            let mut later = written[number..].iter().filter(|later| later.space == *space);
            if later.any(|later| later.durability == Durability::Full) {
                after.open_space(space).unwrap().commit(batch, Durability::Full).unwrap();
            }
        }
        after
    }

    fn open_space(&self, space: &str) -> Result<DiskSpace, StorageError> {
        Ok(DiskSpace { disk: self.clone(), name: space.to_owned(), inner: self.state.memory.open(space)? })
    }

    /// Returns how safe each of the changes to a database was made, in their order.
    fn durabilities(&self, database: &Database) -> Vec<Durability> {
        let space = database.address().manifest().to_string();
        let written = self.state.written.lock().unwrap();
        written.iter().filter(|written| written.space == space).map(|written| written.durability).collect()
    }

    fn holds_entry(&self, block: &[u8]) -> bool {
        let spaces: BTreeSet<String> =
            self.state.written.lock().unwrap().iter().map(|written| written.space.clone()).collect();
        let mut holds = false;
        for space in spaces {
            let space = self.state.memory.open(&space).unwrap();
            // Entries stand behind one another in a value, each as it is.
            let mut look = |_: &[u8], value: &[u8]| holds |= value.windows(block.len()).any(|part| part == block);
            space.scan(Table::Entries, &mut look).unwrap();
        }
        holds
    }

    /// Takes note of what was published.
    fn look(&self) {
        let mut outputs = self.state.outputs.lock().unwrap();
        let Some(outputs) = outputs.as_mut() else { return };
        while let Ok(output) = outputs.try_recv() {
            let Output::Publish { block, .. } = output else { continue };
            let (was_written, was_safe) = (self.holds_entry(&block), self.crash().holds_entry(&block));
            self.state.published.lock().unwrap().push(Published { hash: Hash::of(&block), was_written, was_safe });
        }
    }

    /// Returns all that was published.
    fn published(&self) -> Vec<Published> {
        self.look();
        self.state.published.lock().unwrap().clone()
    }
}

impl Storage for Disk {
    fn open(&self, space: &str) -> Result<Arc<dyn Space>, StorageError> {
        Ok(Arc::new(self.open_space(space)?))
    }

    fn remove(&self, space: &str) -> Result<(), StorageError> {
        self.state.memory.remove(space)
    }
}

impl Space for DiskSpace {
    fn read(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<(), StorageError> {
        self.inner.read(table, key, show)
    }

    fn scan(&self, table: Table, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StorageError> {
        self.inner.scan(table, each)
    }

    fn commit(&self, batch: &Batch, durability: Durability) -> Result<(), StorageError> {
        self.disk.look();
        self.inner.commit(batch, durability)?;
        let written = Written { space: self.name.clone(), batch: batch.clone(), durability };
        self.disk.state.written.lock().unwrap().push(written);
        Ok(())
    }

    fn bytes(&self) -> Result<u64, StorageError> {
        self.inner.bytes()
    }
}

fn options() -> OpenOptions {
    OpenOptions::of(DatabaseType::Events).access(Access::Everyone)
}

/// Returns the time that an entry of a log states.
fn time_of(log: &Database, entry: &Hash) -> u64 {
    let codec = Codec::new(log.address().to_string(), Encryption::default(), Limits::default());
    codec.read(&log.block(entry).unwrap().unwrap()).unwrap().links.time
}

fn greatest_time(log: &Database) -> u64 {
    log.info().unwrap().heads.iter().map(|head| time_of(log, head)).max().unwrap_or_default()
}

#[tokio::test]
async fn a_put_is_safe_when_it_returns_and_published_only_then() {
    let disk = Disk::default();
    let (_orbit, log) = disk.open(false).await;
    let mut acknowledged = BTreeSet::new();
    for number in 0..10_u64 {
        let before = disk.durabilities(&log).len();
        acknowledged.insert(log.add(number).await.unwrap());
        assert_eq!(disk.durabilities(&log)[before..], [Durability::Full]);
    }
    let mut running = JoinSet::new();
    for number in 0..64_u64 {
        let log = log.clone();
        running.spawn(async move { log.add(number).await });
    }
    acknowledged.extend(running.join_all().await.into_iter().map(Result::unwrap));
    assert!(disk.durabilities(&log).iter().all(|durability| *durability == Durability::Full));

    let published = disk.published();
    assert_eq!(published.iter().map(|published| published.hash).collect::<BTreeSet<_>>(), acknowledged);
    assert!(published.iter().all(|published| published.was_safe), "something was published before it was safe");
    let (_orbit, after) = disk.crash().open(false).await;
    assert!(acknowledged.iter().all(|hash| after.contains(hash)));
    assert_eq!(after.all().unwrap(), log.all().unwrap());
}

#[tokio::test]
async fn what_a_peer_wrote_is_safe_after_a_flush_and_behind_every_own_entry() {
    let disk = Disk::default();
    let (_orbit, log) = disk.open(false).await;
    let (other, _outputs) = OrbitDb::builder().build().unwrap();
    let source = other.open("log", options()).await.unwrap();
    let bulk = async || {
        let mut blocks = vec![other.block(&other.identity().hash()).unwrap().unwrap()];
        for number in 0..5_u64 {
            let entry = source.add(number).await.unwrap();
            blocks.push(source.block(&entry).unwrap().unwrap());
        }
        log.handle(Duration::ZERO, Input::Bulk(Peer::new("other"), blocks)).await.unwrap();
    };
    bulk().await;
    log.flush().await.unwrap();
    assert_eq!(disk.crash().open(false).await.1.info().unwrap().entries, 5);
    bulk().await;
    let own = log.add("on top").await.unwrap();
    let (_orbit, after) = disk.crash().open(false).await;
    assert_eq!((after.info().unwrap().entries, after.info().unwrap().heads), (11, vec![own]));
}

#[tokio::test]
async fn a_relaxed_database_that_lost_entries_signs_none_with_their_times() {
    let mut disk = Disk::default();
    let mut signed: BTreeMap<u64, Hash> = BTreeMap::new();
    let mut before = 0;
    for puts in [10, UNSAFE_MAX + 1, UNSAFE_MAX + 5, 3] {
        let (_orbit, log) = disk.open(true).await;
        let (left, last) = (log.info().unwrap().entries, greatest_time(&log));
        assert!(left + UNSAFE_MAX >= before, "of {before} entries {left} are left");
        for number in 0..puts {
            let hash = log.add(number).await.unwrap();
            let time = time_of(&log, &hash);
            if number == 0 && before > 0 {
                assert!(left < before, "the crash took something");
                assert_eq!(time, last + JUMP);
            }
            assert_eq!(signed.insert(time, hash), None, "two entries are signed with time {time}");
        }
        assert!(disk.published().iter().all(|published| published.was_written));
        before = left + puts;
        disk = disk.crash();
    }
}

#[tokio::test]
async fn a_database_that_is_durable_again_jumps_once() {
    let disk = Disk::default();
    let (_orbit, log) = disk.open(true).await;
    for number in 0..5_u64 {
        log.add(number).await.unwrap();
    }
    let mut disk = disk.crash();
    for (number, expected) in [JUMP, JUMP + 1, JUMP + 2].into_iter().enumerate() {
        let (_orbit, log) = disk.open(false).await;
        let hash = log.add(number as u64).await.unwrap();
        assert_eq!(time_of(&log, &hash), expected);
        disk = disk.crash();
    }
}
