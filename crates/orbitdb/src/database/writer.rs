//! The one thread that writes a database. It takes what has gathered while it wrote, and makes that safe in one go.

use std::{sync::Arc, thread};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    DatabaseError, Event, JUMP, Output, Update,
    entries::pack,
    queued::Place,
    shared::{RELAXED, Shared},
};
use crate::{
    index::Record,
    log::{Admission, Position},
    replica::{Stored, What},
    storage::{Batch, Durability, Space, StorageError, Table},
};

/// Greatest number of changes that are written in one go.
const BATCH_MAX: usize = 256;

/// Greatest number of own entries that a crash may take: fewer than the clock jumps after it.
const UNSAFE_MAX: usize = 64;

const _: () = assert!((UNSAFE_MAX as u64) < JUMP, "a jump must pass over all times that may have been lost");

type Done = oneshot::Sender<Result<(), StorageError>>;

/// Blocks to be kept.
pub(super) struct Store {
    pub(super) stored: Vec<Stored>,
    /// An own entry, to be published once it is safe.
    pub(super) publish: Option<Arc<[u8]>>,
    pub(super) done: Option<Done>,
    /// Whether it must be safe at once, whatever the database is opened with.
    pub(super) full: bool,
    /// Makes room for others once they are kept.
    pub(super) place: Place,
}

/// What the writer is asked to do, in this order.
pub(super) enum Job {
    Store(Store),
    /// Count the entries of others from now on.
    Readmit(Admission),
    /// Make everything safe, and tell when it is.
    Flush(Option<Done>),
    /// Make everything safe, and end.
    Close(Done),
}

struct Writer {
    shared: Arc<Shared>,
    space: Arc<dyn Space>,
    jobs: mpsc::Receiver<Job>,
    /// Own entries that a crash would take now.
    unsafe_entries: usize,
}

/// Starts the writer. It ends when it is told to, or when no handle is left and everything is written.
pub(super) fn start(
    shared: Arc<Shared>,
    jobs: mpsc::Receiver<Job>,
    finished: watch::Sender<()>,
) -> Result<(), DatabaseError> {
    let space = shared.space()?;
    if shared.durability == Durability::Relaxed {
        let mut batch = Batch::default();
        batch.put(Table::Meta, RELAXED, vec![1]);
        space.commit(&batch, Durability::Full)?;
    }
    let writer = Writer { shared, space, jobs, unsafe_entries: 0 };
    let run = move || {
        writer.run();
        drop(finished);
    };
    let started = thread::Builder::new().name("orbitdb-writer".to_owned()).spawn(run);
    let failed =
        |error: std::io::Error| StorageError::Failed { place: "a thread".to_owned(), reason: error.to_string() };
    started.map(drop).map_err(|error| failed(error).into())
}

impl Writer {
    fn run(mut self) {
        let mut gathered = Vec::new();
        while let Some(job) = self.jobs.blocking_recv() {
            let mut next = Some(job);
            while let Some(job) = next.take() {
                match job {
                    Job::Store(store) => gathered.push(store),
                    other => {
                        self.store(std::mem::take(&mut gathered));
                        if let Some(done) = self.other(other) {
                            let closed = self.finish();
                            self.release();
                            drop(done.send(closed));
                            return;
                        }
                    }
                }
                if gathered.len() < BATCH_MAX {
                    next = self.jobs.try_recv().ok();
                }
            }
            self.store(std::mem::take(&mut gathered));
        }
        drop(self.finish());
        self.release();
    }

    /// Does a job that stores nothing. Returns whom to tell when it is the last.
    fn other(&mut self, job: Job) -> Option<Done> {
        match job {
            Job::Close(done) => return Some(done),
            Job::Flush(done) => {
                if self.unsafe_entries > 0 {
                    self.flush();
                }
                if let Some(done) = done {
                    let failure = self.shared.state().failure.clone();
                    drop(done.send(failure.map_or(Ok(()), Err)));
                }
            }
            Job::Readmit(admission) => {
                let readmitted = self.shared.state().replica.readmit(admission);
                if let Some(peers) = readmitted {
                    if let Err(DatabaseError::Storage(error)) = self.shared.rebuild() {
                        self.fail(&error);
                    }
                    self.shared.event(Event::Readmitted);
                    for peer in peers {
                        self.shared.output(Output::OpenHeads { address: self.shared.address, peer });
                    }
                }
            }
            Job::Store(_) => unreachable!("those are gathered"),
        }
        None
    }

    fn flush(&mut self) {
        match self.space.commit(&Batch::default(), Durability::Full) {
            Ok(()) => self.unsafe_entries = 0,
            Err(error) => self.fail(&error),
        }
    }

    /// Notes for good that the storage failed: what comes after what was lost must not be kept.
    fn fail(&self, error: &StorageError) {
        let mut state = self.shared.state();
        if state.failure.is_none() {
            state.failure = Some(error.clone());
            drop(state);
            self.shared.event(Event::Error(error.clone()));
        }
    }

    fn store(&mut self, mut stores: Vec<Store>) {
        if stores.is_empty() {
            return;
        }
        // What others wrote is told before it is synced: it stands in the storage by then, where a process that dies leaves it, and it comes
        // again should the whole system crash. An own entry that follows it stands behind it, and is never safe without it.
        let has_own = stores.iter().any(|store| store.publish.is_some() || store.done.is_some());
        let failure = self.shared.state().failure.clone();
        let result = failure.map_or_else(|| self.commit(&stores, has_own), Err);
        match &result {
            Ok(()) => {
                // Others get it while it is taken into the index here.
                for block in stores.iter_mut().filter_map(|store| store.publish.take()) {
                    self.shared.output(Output::Publish { address: self.shared.address, block });
                }
                self.show(stores.iter_mut().flat_map(|store| std::mem::take(&mut store.stored)).collect());
                if !has_own {
                    self.flush();
                }
            }
            Err(error) => self.fail(error),
        }
        for Store { done, place, .. } in stores {
            drop(place);
            if let Some(done) = done {
                drop(done.send(result.clone()));
            }
        }
    }

    fn commit(&mut self, stores: &[Store], has_own: bool) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        let stored = || stores.iter().flat_map(|store| &store.stored);
        for stored in stored().filter(|stored| matches!(stored.what, What::Identity)) {
            batch.put(Table::Blocks, stored.hash.digest(), stored.block.to_vec());
        }
        let entries = stored().filter_map(|stored| match stored.what {
            What::Entry { own, .. } => Some((stored.hash, own, &*stored.block)),
            What::Identity => None,
        });
        let packed = pack(&mut batch, self.shared.next_segment(), entries);
        let own = stores.iter().filter(|store| store.publish.is_some()).count();
        let may_wait = self.shared.durability == Durability::Relaxed
            && stores.iter().all(|store| !store.full)
            && self.unsafe_entries + own <= UNSAFE_MAX;
        let relaxed = may_wait || !has_own;
        let jumped = stores.iter().any(|store| store.full && store.publish.is_some());
        if jumped && self.shared.durability == Durability::Full {
            // The jump over what a relaxed run may have lost is safe with this.
            batch.delete(Table::Meta, RELAXED);
        }
        self.space.commit(&batch, if relaxed { Durability::Relaxed } else { Durability::Full })?;
        self.unsafe_entries = if relaxed { self.unsafe_entries + own } else { 0 };
        self.shared.grow(packed);
        Ok(())
    }

    /// Takes what was stored into the index, and tells those who listen.
    fn show(&self, stored: Vec<Stored>) {
        let listened = self.shared.events.receiver_count() > 0;
        let counted: Vec<(Stored, Position)> = {
            let state = self.shared.state();
            // Whether one counts is looked up now: the access controller may have changed its mind since it joined.
            let counts = |stored: Stored| state.replica.log().position(&stored.hash).map(|position| (stored, position));
            stored.into_iter().filter_map(counts).collect()
        };
        let (mut records, mut updates) = (Vec::with_capacity(counted.len()), Vec::new());
        for (stored, position) in counted {
            let What::Entry { entry: Some(entry), writer: Some(writer), peer, .. } = stored.what else { continue };
            let time = entry.time();
            let operation = match Arc::try_unwrap(entry) {
                Ok(entry) => self.shared.codec.operation_of(entry),
                Err(entry) => self.shared.codec.operation(&entry),
            };
            if listened {
                let (hash, operation) = (stored.hash, operation.clone());
                updates.push(Update { hash, time, writer: Arc::clone(&writer), operation, peer });
            }
            if let Some(operation) = operation {
                records.push(Record { position, writer, operation });
            }
        }
        let changed = !records.is_empty();
        self.shared.apply(&*self.space, records);
        for update in updates {
            self.shared.event(Event::Update(update));
        }
        if changed {
            self.shared.tell_watchers();
        }
    }

    /// Makes everything safe, and notes that nothing can have been lost.
    fn finish(&self) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        let (jumped, failure) = {
            let state = self.shared.state();
            (state.step == 1, state.failure.clone())
        };
        if let Some(failure) = failure {
            return Err(failure);
        }
        if self.shared.durability == Durability::Relaxed && jumped {
            batch.delete(Table::Meta, RELAXED);
        } else if self.unsafe_entries == 0 {
            return Ok(());
        }
        self.space.commit(&batch, Durability::Full)
    }

    /// Lets the space go, so that it can be removed.
    fn release(self) {
        let shared = Arc::clone(&self.shared);
        drop(self);
        shared.take_space();
    }
}
