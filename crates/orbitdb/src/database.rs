//! An open database: its replica, its index and its storage in one handle.

mod bulk;
mod entries;
mod event;
mod queued;
mod read;
mod shared;
mod writer;

pub use bulk::{Gain, Told};
pub(crate) use entries::fuzzing as entries_fuzzing;
pub use event::{Event, Output, Update};
pub use read::{Bounds, Info, Pages, Take};

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::{
    cbor::Value,
    cid::Hash,
    entry::{Key, Operation},
    identity::Signer,
    index::Row,
    log::Admission,
    manifest::{Address, ControllerAddress, DatabaseType, Manifest, ManifestError},
    replica::{AppendError, Appended, Effect, Input, Replica, Stored},
    storage::{Durability, Space, StorageError},
    sync::Request,
};

use queued::{Place, Queued};
pub(crate) use shared::{Parts, Shared};
use writer::{Job, Store};

/// How many changes may wait to be written, as long as their blocks are not too many bytes. Further ones wait for room.
const JOBS_MAX: usize = 1024;

/// How far the clock jumps after a crash that may have taken entries which peers have seen.
pub(crate) const JUMP: u64 = 100;

/// Why something could not be done with a database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// The entry cannot be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The storage failed. The database takes nothing more until it is opened anew.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The database is closed.
    #[error("the database is closed")]
    Closed,
    /// A database of this type cannot do that.
    #[error("a database of the type \"{}\" has no such operation", .0.name())]
    Type(DatabaseType),
    /// A document has no key.
    #[error("a document needs the field \"{0}\", with a text, a number, true or false in it")]
    Key(String),
    /// An entry that bounds a range is not there.
    #[error("the entry {0} is not there")]
    NotFound(Hash),
    /// The access controller is a list that never changes.
    #[error(
        "the writers of this database were fixed when it was created: create it with capabilities to change them later"
    )]
    Fixed,
    /// What is to be revoked was not granted.
    #[error("the identity {id} was not granted the capability \"{capability}\", so there is nothing to revoke")]
    NotGranted {
        /// The capability.
        capability: String,
        /// The id of the identity.
        id: String,
    },
    /// A block is not of its form.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// A handle to an open database; clones stand for the same.
#[derive(Clone)]
pub struct Database {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    queued: Arc<Queued>,
    signer: Signer,
    index_by: String,
    guard: Option<Database>,
    /// Held while a list of capabilities is read, changed and put, where this database guards others: one at a time changes it.
    granting: tokio::sync::Mutex<()>,
    /// Held while what waits for nothing more is checked and joins, part by part and each after those that it follows.
    joining: tokio::sync::Mutex<()>,
    /// Told once, by whoever opened the database, when the last handle is gone.
    on_drop: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let told = self.on_drop.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tell) = told {
            tell();
        }
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Database").field(&self.address()).finish()
    }
}

impl Database {
    /// Opens a database on what its space holds. The receiver ends once nothing of it is written any more.
    pub(crate) fn start(
        parts: Parts,
        signer: Signer,
        index_by: String,
        guard: Option<Self>,
        on_drop: Box<dyn FnOnce() + Send>,
    ) -> Result<(Self, watch::Receiver<()>), DatabaseError> {
        let (jobs, receiver) = mpsc::channel(JOBS_MAX);
        let shared = Arc::new(Shared::load(parts)?);
        let (finished, ended) = watch::channel(());
        if let Some(guard) = &guard {
            guard.inner.shared.watch(&jobs);
        }
        writer::start(Arc::clone(&shared), receiver, finished)?;
        let (granting, joining) = (tokio::sync::Mutex::default(), tokio::sync::Mutex::default());
        let on_drop = Mutex::new(Some(on_drop));
        let inner = Inner { shared, jobs, queued: Arc::default(), signer, index_by, guard, granting, joining, on_drop };
        Ok((Self { inner: Arc::new(inner) }, ended))
    }

    /// Returns the address.
    #[must_use]
    pub fn address(&self) -> Address {
        self.inner.shared.address
    }

    /// Returns what the database is.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.inner.shared.manifest
    }

    /// Returns the field that holds the keys of documents.
    #[must_use]
    pub fn index_by(&self) -> &str {
        &self.inner.index_by
    }

    /// Returns the database of capabilities that guards this one, if there is one.
    #[must_use]
    pub fn guard(&self) -> Option<&Self> {
        self.inner.guard.as_ref()
    }

    /// Returns a stream of what happens from now on. One that lags 1,024 events behind is told how many it missed.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.shared.events.subscribe()
    }

    fn of_type(&self, types: &[DatabaseType]) -> Result<(), DatabaseError> {
        let r#type = self.manifest().r#type;
        if types.contains(&r#type) { Ok(()) } else { Err(DatabaseError::Type(r#type)) }
    }

    /// Appends an operation. It is safe when this returns, and published only then; it counts in what is read from then on.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] when this identity may not write, the value has no form, or the storage fails.
    pub async fn append(&self, operation: Operation) -> Result<Hash, DatabaseError> {
        let (hash, done) = {
            let permit = self.room().await?;
            let mut state = self.inner.shared.state();
            state.check_open()?;
            let step = state.step;
            let Appended { entry, block, stored } = state.replica.append(&self.inner.signer, operation, step)?;
            // What follows a jump must not be lost as well, or the next jump would lead to the same time.
            state.step = 1;
            let (done, receiver) = oneshot::channel();
            let place = self.place(&stored);
            permit.send(Job::Store(Store { stored, publish: Some(block), done: Some(done), full: step != 1, place }));
            (entry.hash(), receiver)
        };
        done.await.map_err(|_| DatabaseError::Closed)??;
        Ok(hash)
    }

    /// Gives a key its value, in a key-value database.
    ///
    /// # Errors
    ///
    /// As [`Database::append`], and for other types.
    pub async fn put(&self, key: &str, value: impl Into<Value>) -> Result<Hash, DatabaseError> {
        self.of_type(&[DatabaseType::KeyValue])?;
        self.append(Operation::put(key, value)).await
    }

    /// Puts a document under the value of the field by which the database is indexed: a text, a number, true or false.
    ///
    /// # Errors
    ///
    /// As [`Database::append`], for other types, and for a document without that field.
    pub async fn put_document(&self, document: impl Into<Value>) -> Result<Hash, DatabaseError> {
        self.of_type(&[DatabaseType::Documents])?;
        let document = document.into();
        let key = document.get(&self.inner.index_by).cloned().and_then(Key::of);
        let key = key.ok_or_else(|| DatabaseError::Key(self.inner.index_by.clone()))?;
        self.append(Operation::put(key, document)).await
    }

    /// Takes a key away, whatever its form: [`Key`] says which text names which keys.
    ///
    /// # Errors
    ///
    /// As [`Database::append`], and for events.
    pub async fn del(&self, key: &str) -> Result<Hash, DatabaseError> {
        self.of_type(&[DatabaseType::KeyValue, DatabaseType::Documents])?;
        self.append(Operation::del(self.key_named(key))).await
    }

    /// Returns the key that a text names, in the form of the entry that it shows: peers in JavaScript tell a number from its text.
    fn key_named(&self, text: &str) -> Key {
        let shown = self.inner.shared.index().get(text);
        let shown = shown.and_then(|row| {
            let space = self.inner.shared.space().ok()?;
            self.inner.shared.record(&*space, &row.hash)?.operation.key
        });
        shown.filter(|key| key.as_str() == text).unwrap_or_else(|| text.into())
    }

    /// Adds an event.
    ///
    /// # Errors
    ///
    /// As [`Database::append`], and for other types.
    pub async fn add(&self, value: impl Into<Value>) -> Result<Hash, DatabaseError> {
        self.of_type(&[DatabaseType::Events])?;
        self.append(Operation::add(value)).await
    }

    /// Gives an identity a capability, "write" or "admin", in the database that guards this one.
    ///
    /// # Errors
    ///
    /// As [`Database::append`], and [`DatabaseError::Fixed`] where the writers never change.
    pub async fn grant(&self, capability: &str, id: &str) -> Result<(), DatabaseError> {
        let guard = self.guard().ok_or(DatabaseError::Fixed)?;
        let _granting = guard.inner.granting.lock().await;
        let mut ids = guard.capability(capability);
        if ids.insert(id.to_owned()) {
            guard.set_capability(capability, ids).await?;
        }
        // The guard has told this database by now; so it knows when it has done all that it was told.
        self.flush().await
    }

    /// Takes a capability away. Entries of an identity that may no longer write do not count any more, older ones included.
    ///
    /// # Errors
    ///
    /// As [`Database::grant`], and [`DatabaseError::NotGranted`] where the identity has not got it.
    pub async fn revoke(&self, capability: &str, id: &str) -> Result<(), DatabaseError> {
        let guard = self.guard().ok_or(DatabaseError::Fixed)?;
        let _granting = guard.inner.granting.lock().await;
        let mut ids = guard.capability(capability);
        if !ids.remove(id) {
            return Err(DatabaseError::NotGranted { capability: capability.to_owned(), id: id.to_owned() });
        }
        guard.set_capability(capability, ids).await?;
        self.flush().await
    }

    fn capability(&self, name: &str) -> BTreeSet<String> {
        self.inner.shared.index().get(name).map(|row| shared::ids(&row.value)).unwrap_or_default()
    }

    async fn set_capability(&self, name: &str, ids: BTreeSet<String>) -> Result<(), DatabaseError> {
        if ids.is_empty() {
            self.del(name).await?;
        } else {
            self.put(name, ids.into_iter().map(Value::Text).collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// Returns whose entries count now.
    #[must_use]
    pub fn admission(&self) -> Admission {
        self.inner.shared.state().replica.log().admission().clone()
    }

    /// Takes what the network tells, at a time since any one moment. What is to be done for it comes out as [`Output`].
    ///
    /// Waits for room when too many changes are waiting to be written, so that peers cannot fill the memory.
    ///
    /// # Errors
    ///
    /// [`DatabaseError::Closed`] when the database is closed.
    pub async fn handle(&self, now: Duration, input: Input) -> Result<(), DatabaseError> {
        if let Input::Bulk(peer, blocks) = input {
            let examined = self.examine(&mut self.examiner(peer), &blocks);
            return self.join(now, examined).await.map(drop);
        }
        let is_tick = matches!(input, Input::Tick);
        self.step(now, is_tick, |replica| replica.begin(now, input)).await
    }

    /// Lets the replica take something, and has done what is to be done for it.
    async fn step(
        &self,
        now: Duration,
        is_tick: bool,
        take: impl FnOnce(&mut Replica) -> Vec<Effect>,
    ) -> Result<(), DatabaseError> {
        let permit = self.room().await?;
        self.take(permit, is_tick, take)?;
        self.join_released(now).await
    }

    /// Waits until one more change may wait to be written.
    async fn room(&self) -> Result<mpsc::Permit<'_, Job>, DatabaseError> {
        self.inner.queued.room().await;
        self.inner.jobs.reserve().await.map_err(|_| DatabaseError::Closed)
    }

    /// Counts blocks among those that wait to be written.
    fn place(&self, stored: &[Stored]) -> Place {
        self.inner.queued.add(stored.iter().map(|stored| stored.block.len()).sum())
    }

    /// Checks what waits for nothing more and lets it join: whoever writes meanwhile waits for one part of it at most.
    async fn join_released(&self, now: Duration) -> Result<(), DatabaseError> {
        let shared = &self.inner.shared;
        if !shared.state().replica.has_part() {
            return Ok(());
        }
        let _joining = self.inner.joining.lock().await;
        loop {
            let permit = self.room().await?;
            let Some(part) = shared.state().replica.part() else { return Ok(()) };
            let checked = part.check();
            self.take(permit, false, |replica| replica.take_part(now, checked))?;
            tokio::task::yield_now().await;
        }
    }

    fn take(
        &self,
        permit: mpsc::Permit<'_, Job>,
        is_tick: bool,
        take: impl FnOnce(&mut Replica) -> Vec<Effect>,
    ) -> Result<(), DatabaseError> {
        let shared = &self.inner.shared;
        let mut rest = Vec::new();
        {
            let mut state = shared.state();
            state.check_open()?;
            let mut stored = Vec::new();
            for effect in take(&mut state.replica) {
                match effect {
                    Effect::Store(store) => stored.push(store),
                    other => rest.push(other),
                }
            }
            if !stored.is_empty() {
                let place = self.place(&stored);
                permit.send(Job::Store(Store { stored, publish: None, done: None, full: true, place }));
            } else if is_tick && shared.durability == Durability::Relaxed {
                permit.send(Job::Flush(None));
            }
        }
        for effect in rest {
            self.tell(effect);
        }
        Ok(())
    }

    fn tell(&self, effect: Effect) {
        let shared = &self.inner.shared;
        let address = shared.address;
        match effect {
            Effect::Request(Request::OpenHeads(peer)) => shared.output(Output::OpenHeads { address, peer }),
            Effect::Request(Request::Want { peer, hashes }) => shared.output(Output::Want { address, peer, hashes }),
            Effect::PeerJoined(peer) => {
                let heads = shared.state().replica.log().heads().map(|position| position.hash).collect();
                shared.event(Event::Join { peer, heads });
            }
            Effect::PeerLeft(peer) => shared.event(Event::Leave { peer }),
            Effect::Refused(hash, refusal) => shared.event(Event::Refused { hash, refusal }),
            Effect::Broken(hash, error, dropped) => shared.event(Event::Broken { hash, error, dropped }),
            Effect::Store(_) => unreachable!("those were taken out before"),
        }
    }

    /// Returns when [`Database::handle`] wants a [`Input::Tick`] next, in the same measure of time.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let state = self.inner.shared.state();
        // What was given up halfway goes on at once.
        let goes_on = state.replica.has_part() && state.check_open().is_ok();
        if goes_on { Some(Duration::ZERO) } else { state.replica.sync().deadline() }
    }

    /// Returns the blocks of the heads that are safe, newest first: towards peers in JavaScript each goes on a stream of its own.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] when they cannot be read.
    pub fn head_blocks(&self) -> Result<Vec<Vec<u8>>, DatabaseError> {
        let heads: Vec<Hash> = self.inner.shared.state().replica.log().heads().map(|position| position.hash).collect();
        let space = self.inner.shared.space()?;
        let blocks = heads.iter().map(|head| Ok(self.inner.shared.entry_block(&*space, head)?));
        blocks.filter_map(Result::transpose).collect()
    }

    /// Returns a block of the database by its name, for a peer that asks: an entry, an identity, the manifest, the controller.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] when it cannot be read.
    pub fn block(&self, hash: &Hash) -> Result<Option<Vec<u8>>, DatabaseError> {
        let space = self.inner.shared.space()?;
        if let Some(block) = self.inner.shared.entry_block(&*space, hash)? {
            return Ok(Some(block));
        }
        Ok(space.get(crate::storage::Table::Blocks, hash.digest())?)
    }

    /// Waits until everything that was taken so far is safe and shown, what came from peers included.
    ///
    /// # Errors
    ///
    /// [`DatabaseError::Closed`] when the database is closed, and when the storage failed.
    pub async fn flush(&self) -> Result<(), DatabaseError> {
        let (done, receiver) = oneshot::channel();
        self.inner.jobs.send(Job::Flush(Some(done))).await.map_err(|_| DatabaseError::Closed)?;
        Ok(receiver.await.map_err(|_| DatabaseError::Closed)??)
    }

    /// Writes what is waiting, makes it safe and ends. Handles that are left answer [`DatabaseError::Closed`].
    ///
    /// # Errors
    ///
    /// [`DatabaseError::Storage`] when something could not be written.
    pub async fn close(&self) -> Result<(), DatabaseError> {
        // Who gives up here has closed nothing; from there on the writer ends.
        let Ok(permit) = self.inner.jobs.reserve().await else { return Ok(()) };
        let (done, receiver) = oneshot::channel();
        self.inner.shared.state().closed = true;
        permit.send(Job::Close(done));
        Ok(receiver.await.map_err(|_| DatabaseError::Closed)??)
    }

    /// Returns why nothing can be written any more, where the storage failed: what came after what was lost must not be kept. It can be used again
    /// once it was closed and opened.
    #[must_use]
    pub fn failure(&self) -> Option<StorageError> {
        self.inner.shared.state().failure.clone()
    }

    /// Returns whether it is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.shared.state().closed
    }

    /// Returns what the key shows that a text names. Events have their hashes for keys, and are read from the storage: one that cannot be read
    /// is none.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Row> {
        match self.manifest().r#type {
            DatabaseType::Events => self.event(&key.parse().ok()?),
            DatabaseType::Documents | DatabaseType::KeyValue => self.inner.shared.index().get(key),
        }
    }

    /// Returns the rows whose values fulfil a condition, ordered by key. Events have no order of keys, and come oldest first; they are read
    /// from the storage, and those that cannot be read are left out.
    pub fn query(&self, condition: impl Fn(&Value) -> bool) -> Vec<Row> {
        match self.manifest().r#type {
            DatabaseType::Events => self.events_that(condition),
            DatabaseType::Documents | DatabaseType::KeyValue => self.inner.shared.index().query(condition),
        }
    }
}

/// Returns whose entries count by a list that never changes, or by the database of capabilities that guards another.
pub(crate) fn admission(controller: &ControllerAddress, list: &[String], guard: Option<&Database>) -> Admission {
    match (controller, guard) {
        (ControllerAddress::OrbitDb(_), Some(guard)) => guard.inner.shared.granted(),
        _ => Admission::of_list(list.iter().map(String::as_str)),
    }
}

/// Returns the space of a database.
pub(crate) fn space_of(
    storage: &dyn crate::storage::Storage,
    address: Address,
) -> Result<Arc<dyn Space>, StorageError> {
    storage.open(&address.manifest().to_string())
}
