//! What the handles of a database and its writer share.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{broadcast, mpsc};

use super::{DatabaseError, Event, JUMP, Output, writer::Job};
use crate::{
    cbor::Value,
    cid::Hash,
    entry::{Codec, Refusal},
    index::{Index, Record, Rule},
    log::Admission,
    manifest::{Address, Manifest},
    replica::{Loaded, Replica},
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
    state: Mutex<State>,
    index: RwLock<Index>,
    /// Gone once the database is closed.
    space: Mutex<Option<Arc<dyn Space>>>,
    /// The databases that this one guards.
    watchers: Mutex<Vec<mpsc::WeakSender<Job>>>,
}

/// Returns an entry's block.
pub(super) fn entry_block(space: &dyn Space, hash: &Hash) -> Result<Option<Vec<u8>>, StorageError> {
    let value = space.get(Table::Entries, hash.digest())?;
    Ok(value.and_then(|value| split(&value).map(|(_, block)| block.to_vec())))
}

/// Takes a value of the table of entries apart.
fn split(value: &[u8]) -> Option<(Option<Refusal>, &[u8])> {
    let (code, block) = value.split_first()?;
    Some((Refusal::from_code(*code), block))
}

/// Returns the ids that a capability lists.
pub(super) fn ids(value: &Value) -> BTreeSet<String> {
    value.as_list().into_iter().flatten().filter_map(|id| id.as_text().map(str::to_owned)).collect()
}

impl Shared {
    pub(super) fn load(parts: Parts) -> Result<Self, DatabaseError> {
        let Parts { address, manifest, space, codec, admission, admins, rule, sync, durability, outputs } = parts;
        let mut blocks = Vec::new();
        let mut bytes = 0;
        space.scan(Table::Blocks, &mut |_, block| blocks.push(Loaded::Identity(block.to_vec())))?;
        space.scan(Table::Entries, &mut |_, value| {
            if let Some((own, block)) = split(value) {
                bytes += block.len() as u64;
                blocks.push(Loaded::Entry(block.to_vec(), own));
            }
        })?;
        let replica = Replica::load(codec.clone(), admission, sync, blocks);
        // A crash may have taken entries that peers have seen: none is to be signed with their times.
        let step = if space.get(Table::Meta, RELAXED)?.is_some() { JUMP } else { 1 };
        let entries = replica.log().len() as u64;
        let shared = Self {
            address,
            manifest,
            codec,
            durability,
            events: broadcast::Sender::new(EVENTS_MAX),
            sizes: Sizes { bytes: bytes.into(), bytes_at_open: bytes, entries_at_open: entries },
            admins,
            outputs,
            state: Mutex::new(State { replica, step, closed: false, failure: None }),
            index: RwLock::new(Index::new(rule)),
            space: Mutex::new(Some(space)),
            watchers: Mutex::default(),
        };
        shared.rebuild()?;
        Ok(shared)
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

    pub(super) fn watch(&self, watcher: mpsc::WeakSender<Job>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(watcher);
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

    /// Returns an entry that counts and is stored, as views see it.
    pub(super) fn record(&self, space: &dyn Space, hash: &Hash) -> Option<Record> {
        let (position, writer) = {
            let state = self.state();
            let log = state.replica.log();
            (log.position(hash)?, Arc::clone(&log.stamp(hash)?.identity))
        };
        let block = entry_block(space, hash).ok()??;
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
        let space = self.space()?;
        let mut index = Index::new(self.index().rule().clone());
        let mut records = Vec::new();
        space.scan(Table::Entries, &mut |_, value| {
            let Some((None, block)) = split(value) else { return };
            let hash = Hash::of(block);
            let position = self.state().replica.log().position(&hash);
            let Some(position) = position else { return };
            let Some(mut operation) =
                self.codec.read(block).ok().and_then(|read| self.codec.operation(&read.entry.ok()?))
            else {
                return;
            };
            let Some(stamp) = self.state().replica.log().stamp(&hash).cloned() else { return };
            if matches!(index.rule(), Rule::All) {
                // The values of events stay in the storage.
                operation.value = Value::Null;
            }
            records.push(Record { position, writer: stamp.identity, operation });
        })?;
        index.apply(records, |hash| self.record(&*space, hash));
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        Ok(())
    }

    pub(super) fn grow(&self, bytes: u64) {
        self.sizes.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
