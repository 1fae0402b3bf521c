//! What the handles of a database and its writer share.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{broadcast, mpsc};

use super::{
    DatabaseError, Event, JUMP, Output,
    entries::{Entries, Packed, read_all},
    writer::Job,
};
use crate::{
    cbor::Value,
    cid::Hash,
    entry::{Codec, Key, Operation},
    index::{Index, Record, Rule},
    log::{Admission, Position},
    manifest::{Address, Manifest},
    replica::{Loader, Replica, Restored},
    storage::{Durability, Space, StorageError, Table},
    sync::SyncConfig,
};

/// How many events wait for a slow listener.
const EVENTS_MAX: usize = 1024;

/// Noted while a database is open whose puts may be lost in a crash.
pub(super) const RELAXED: &[u8] = b"relaxed";

/// What a database is opened from.
pub(crate) struct Parts {
    pub(crate) address: Address,
    pub(crate) manifest: Manifest,
    pub(crate) space: Arc<dyn Space>,
    pub(crate) codec: Codec,
    pub(crate) admission: Admission,
    /// The write list of the `ipfs` controller: admins, where this database guards another.
    pub(crate) admins: Vec<String>,
    pub(crate) rule: Rule,
    pub(crate) sync: SyncConfig,
    pub(crate) durability: Durability,
    pub(crate) outputs: mpsc::Sender<Output>,
}

pub(crate) struct State {
    pub(crate) replica: Replica,
    /// How far the time of the next own entry lies above the heads.
    pub(super) step: u64,
    pub(super) closed: bool,
    pub(super) failure: Option<StorageError>,
}

impl State {
    pub(super) fn check_open(&self) -> Result<(), DatabaseError> {
        match &self.failure {
            Some(failure) => Err(failure.clone().into()),
            None if self.closed => Err(DatabaseError::Closed),
            None => Ok(()),
        }
    }
}

pub(super) struct Sizes {
    /// Bytes of all entries.
    pub(super) bytes: AtomicU64,
    pub(super) bytes_at_open: u64,
    pub(super) entries_at_open: u64,
}

pub(crate) struct Shared {
    pub(crate) address: Address,
    pub(crate) manifest: Manifest,
    pub(super) codec: Codec,
    pub(super) durability: Durability,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) sizes: Sizes,
    admins: Vec<String>,
    outputs: mpsc::Sender<Output>,
    pub(super) entries: Entries,
    /// Where the writer goes on; nobody else asks for it.
    next_segment: AtomicU64,
    state: Mutex<State>,
    index: RwLock<Index>,
    /// Gone once the database is closed.
    space: Mutex<Option<Arc<dyn Space>>>,
    /// The databases that this one guards.
    watchers: Mutex<Vec<mpsc::WeakSender<Job>>>,
}

/// Returns the ids that a capability lists.
pub(super) fn ids(value: &Value) -> BTreeSet<String> {
    value.as_list().into_iter().flatten().filter_map(|id| id.as_text().map(str::to_owned)).collect()
}

/// How many entries are taken into an index at once, at least, while it is made.
const PART: usize = 1024;

/// An index that is being made anew. What views evaluate is gathered first, so that each key is evaluated once.
struct Building {
    index: Index,
    gathered: Vec<Gathered>,
}

/// An entry that waits for all others of its key. All of a database wait at the same time, so that each takes as little memory as it can.
struct Gathered {
    key: Box<str>,
    position: Position,
    writer: Arc<str>,
    operation: Kept,
}

enum Kept {
    Bytes(Box<[u8]>),
    /// It cannot be encoded.
    Whole(Box<Operation>),
}

impl Gathered {
    fn new(key: Box<str>, record: Record) -> Self {
        let Record { position, writer, operation } = record;
        let payload = operation.into_payload();
        let operation = match payload.encode() {
            Ok(bytes) => Kept::Bytes(bytes.into()),
            Err(_) => Kept::Whole(Box::new(Operation::from_payload(payload).expect("it was made of an operation"))),
        };
        Self { key, position, writer, operation }
    }

    fn record(self) -> Record {
        let operation = match self.operation {
            Kept::Bytes(bytes) => {
                let payload = Value::decode(&bytes).expect("what was encoded can be decoded");
                Operation::from_payload(payload).expect("it was made of an operation")
            }
            Kept::Whole(operation) => *operation,
        };
        Record { position: self.position, writer: self.writer, operation }
    }
}

impl Building {
    fn new(rule: Rule) -> Self {
        Self { index: Index::new(rule), gathered: Vec::new() }
    }

    fn take(&mut self, records: impl Iterator<Item = Record>) {
        if let Rule::View(view) = self.index.rule() {
            let gathered = |record| {
                let key = view.key(&record)?.into();
                Some(Gathered::new(key, record))
            };
            self.gathered.extend(records.filter_map(gathered));
        } else {
            self.index.apply(records.collect(), |_| None);
        }
    }

    fn finish(mut self) -> Index {
        self.gathered.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let (mut part, mut key) = (Vec::new(), Box::default());
        for gathered in self.gathered {
            if part.len() >= PART && gathered.key != key {
                self.index.apply(std::mem::take(&mut part), |_| None);
            }
            key.clone_from(&gathered.key);
            part.push(gathered.record());
        }
        self.index.apply(part, |_| None);
        self.index
    }
}

impl Shared {
    pub(super) fn load(parts: Parts) -> Result<Self, DatabaseError> {
        let Parts { address, manifest, space, codec, admission, admins, rule, sync, durability, outputs } = parts;
        let mut loader = Loader::new(codec.clone(), admission);
        let mut building = Building::new(rule);
        let mut bytes = 0;
        space.scan(Table::Blocks, &mut |_, block| loader.identity(block))?;
        let entries = Entries::default();
        let next_segment = entries.load(&*space, |kept| {
            bytes += kept.iter().map(|(block, _)| block.len() as u64).sum::<u64>();
            building.take(loader.entries(&kept).into_iter().filter_map(|restored| {
                let Restored { position, writer, operation } = restored;
                Some(Record { position, writer, operation: operation? })
            }));
        })?;
        let replica = loader.finish(sync);
        // A crash may have taken entries that peers have seen: none is to be signed with their times.
        let step = if space.get(Table::Meta, RELAXED)?.is_some() { JUMP } else { 1 };
        let entries_at_open = replica.log().len() as u64;
        Ok(Self {
            address,
            manifest,
            codec,
            durability,
            events: broadcast::Sender::new(EVENTS_MAX),
            sizes: Sizes { bytes: bytes.into(), bytes_at_open: bytes, entries_at_open },
            admins,
            outputs,
            entries,
            next_segment: next_segment.into(),
            state: Mutex::new(State { replica, step, closed: false, failure: None }),
            index: RwLock::new(building.finish()),
            space: Mutex::new(Some(space)),
            watchers: Mutex::default(),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn space(&self) -> Result<Arc<dyn Space>, DatabaseError> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(DatabaseError::Closed)
    }

    pub(super) fn take_space(&self) {
        drop(self.space.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Asks something of the network. Where nobody takes it in time it is dropped: requests are repeated, and heads make up for what was
    /// not published.
    pub(super) fn output(&self, output: Output) {
        drop(self.outputs.try_send(output));
    }

    /// Tells those who listen.
    pub(super) fn event(&self, event: Event) {
        drop(self.events.send(event));
    }

    /// Tells a database that this one guards, whose queue is empty yet, whose entries count now and whenever that changes. A change comes behind
    /// what it changes: the writer finds the database only after this, or has made the change before it.
    pub(super) fn watch(&self, watcher: &mpsc::Sender<Job>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(watcher.downgrade());
        drop(watcher.try_send(Job::Readmit(self.granted())));
    }

    /// Returns whose entries count in the databases that this one guards.
    pub(crate) fn granted(&self) -> Admission {
        let index = self.index();
        let rows = ["write", "admin"].into_iter().filter_map(|name| index.get(name));
        let granted: BTreeSet<String> = rows.flat_map(|row| ids(&row.value)).collect();
        Admission::of_list(granted.iter().chain(&self.admins).map(String::as_str))
    }

    /// Tells the databases that this one guards whose entries count. Only for the writer, which may wait.
    pub(super) fn tell_watchers(&self) {
        let watchers: Vec<mpsc::Sender<Job>> = {
            let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
            watchers.iter().filter_map(mpsc::WeakSender::upgrade).collect()
        };
        if watchers.is_empty() {
            return;
        }
        let admission = self.granted();
        for watcher in watchers {
            drop(watcher.blocking_send(Job::Readmit(admission.clone())));
        }
    }

    /// Returns where an entry that counts stands, and who wrote it.
    fn place(&self, hash: &Hash) -> Option<(Position, Arc<str>)> {
        let state = self.state();
        let log = state.replica.log();
        Some((log.position(hash)?, Arc::clone(&log.stamp(hash)?.identity)))
    }

    /// Returns an entry that counts and is stored, as views see it.
    pub(super) fn record(&self, space: &dyn Space, hash: &Hash) -> Option<Record> {
        let (position, writer) = self.place(hash)?;
        let block = self.entries.block(space, hash).ok()??;
        let operation = self.codec.operation(&self.codec.read(&block).ok()?.entry.ok()?)?;
        Some(Record { position, writer, operation })
    }

    /// Takes entries into the index that count and are stored.
    pub(super) fn apply(&self, space: &dyn Space, records: Vec<Record>) {
        if !records.is_empty() {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            index.apply(records, |hash| self.record(space, hash));
        }
    }

    /// Makes the index anew of what is stored and counts.
    pub(super) fn rebuild(&self) -> Result<(), DatabaseError> {
        let mut building = Building::new(self.index().rule().clone());
        self.read_records(|records| building.take(records))?;
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = building.finish();
        Ok(())
    }

    /// Returns the entries of a key that count, oldest first, of the whole log.
    pub(super) fn records_of(&self, key: &str) -> Result<Vec<Record>, DatabaseError> {
        let mut found = Vec::new();
        self.read_records(|records| {
            found.extend(records.filter(|record| record.operation.key.as_ref().map(Key::as_str) == Some(key)));
        })?;
        found.sort_by_key(|record| record.position);
        Ok(found)
    }

    /// Shows all that is stored and counts, in the order in which it came.
    pub(super) fn read_records(
        &self,
        mut each: impl FnMut(&mut dyn Iterator<Item = Record>),
    ) -> Result<(), DatabaseError> {
        let space = self.space()?;
        read_all(&*space, |kept| {
            each(&mut kept.into_iter().filter_map(|(block, _)| {
                let hash = Hash::of(&block);
                let (position, writer) = self.place(&hash)?;
                let operation = self.codec.operation(&self.codec.read(&block).ok()?.entry.ok()?)?;
                Some(Record { position, writer, operation })
            }));
        })?;
        Ok(())
    }

    /// Returns the block of an entry that is safe.
    pub(super) fn entry_block(&self, space: &dyn Space, hash: &Hash) -> Result<Option<Vec<u8>>, StorageError> {
        self.entries.block(space, hash)
    }

    /// Returns the number of the segment that the writer writes next.
    pub(super) fn next_segment(&self) -> u64 {
        self.next_segment.load(Ordering::Relaxed)
    }

    /// Takes note of entries that are stored now.
    pub(super) fn grow(&self, packed: Packed) {
        self.sizes.bytes.fetch_add(packed.bytes, Ordering::Relaxed);
        self.next_segment.store(packed.next, Ordering::Relaxed);
        self.entries.add(packed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::View;

    /// Shows the values of a key in their order, and counts how often it is asked.
    #[derive(Default)]
    struct Listed(AtomicU64);

    impl View for Listed {
        fn evaluate(&self, _: &str, records: &[Record]) -> Option<Value> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Some(records.iter().map(|record| record.operation.value.clone()).collect::<Vec<_>>().into())
        }
    }

    #[test]
    fn an_index_that_is_made_anew_evaluates_each_key_once_with_all_of_its_entries() {
        let (keys, each) = (700, 5);
        let record = |time: u64| {
            let position = Position { time, writer: [1; 33], hash: Hash::of(&time.to_be_bytes()) };
            let value = if time == 7 { f64::NAN.into() } else { Value::from(time) };
            let operation = Operation::put(format!("key {}", time % keys), value);
            Record { position, writer: "writer".into(), operation }
        };
        let view = Arc::new(Listed::default());
        let mut building = Building::new(Rule::View(Arc::clone(&view) as Arc<dyn View>));
        for part in (0..keys * each).collect::<Vec<_>>().chunks(64) {
            building.take(part.iter().rev().map(|time| record(*time)));
        }
        let index = building.finish();
        assert_eq!((index.len() as u64, view.0.load(Ordering::Relaxed)), (keys, keys));
        for key in [0, 1, keys - 1] {
            let expected: Vec<Value> = (0..each).map(|round| (key + round * keys).into()).collect();
            assert_eq!(*index.get(&format!("key {key}")).unwrap().value, Value::from(expected));
        }
        assert!(index.get("key 7").is_some(), "what cannot be encoded is shown, too");
    }
}
