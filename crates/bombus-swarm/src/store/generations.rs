//! The generations that are open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use bombus_core::topics::TaskGenerations;
use orbitdb::manifest::DatabaseType;
use orbitdb::{Access, Database, OpenOptions};
use tokio::sync::{OwnedRwLockReadGuard, RwLock as AsyncRwLock, watch};

use super::error::StoreError;
use super::ledger::Ledger;
use super::series::{generation_of, names};
use super::shown::{ShownResults, ShownTasks};
use super::table::Table;
use crate::db::{DbError, DbHandle};

/// After so long, new tasks go to a generation of which some peer has not said that it has it, too.
const KNOWN_AFTER: Duration = Duration::from_secs(60);
/// For so long after a peer has opened a database, what is published may not reach it.
const WAYS_ARE_FOUND: Duration = Duration::from_secs(2);

/// The three databases of a generation.
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) tasks: Database,
    pub(super) results: Database,
    pub(super) events: Database,
    /// When it was opened, unless that was at the start.
    pub(super) opened: Option<Instant>,
    /// Since when all peers that are there have it.
    known: Mutex<Option<Instant>>,
    /// Whether it is being dropped. Who writes holds it, so that nothing is dropped that is just being written.
    closing: Arc<AsyncRwLock<bool>>,
}

impl Generation {
    /// Opens the databases, which are made where there are none, with the views that show them in a table.
    pub(super) async fn open(
        db: &DbHandle,
        table: &Arc<Table>,
        number: u64,
        opened: Option<Instant>,
    ) -> Result<Self, DbError> {
        let [tasks, results, events] = names(number);
        // One that was opened without the view has to be opened again.
        for name in [&tasks, &results].into_iter().filter(|name| db.database(name).is_some()) {
            db.close(name).await?;
        }
        table.open(number);
        let documents = || OpenOptions::of(DatabaseType::Documents).access(Access::Everyone);
        // Results first: so each task is worked out once, with its result.
        let view = ShownResults { generation: number, table: Arc::downgrade(table) };
        let results = db.create(&results, documents().view(Arc::new(view))).await?;
        let events = db.create(&events, OpenOptions::of(DatabaseType::Events).access(Access::Everyone)).await?;
        // Tasks last: as soon as one shows, its generation can be written to.
        let view = ShownTasks { generation: number, table: Arc::downgrade(table) };
        let tasks = db.create(&tasks, documents().view(Arc::new(view))).await?;
        Ok(Self { number, tasks, results, events, opened, known: Mutex::default(), closing: Arc::default() })
    }

    /// Returns whether new tasks may go to it: these peers have it, and its topics have found their ways to them.
    fn is_known(&self, told: &[&TaskGenerations]) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.iter().all(|told| told.open.contains(&self.number)) {
            *known = None;
            return false;
        }
        let since = *known.get_or_insert_with(Instant::now);
        told.is_empty() || self.opened.is_none() || since.elapsed() >= WAYS_ARE_FOUND
    }

    pub(super) fn databases(&self) -> [&Database; 3] {
        [&self.tasks, &self.results, &self.events]
    }

    /// Keeps it from being dropped as long as what is returned is held; none where that has begun.
    pub(super) async fn writing(&self) -> Option<OwnedRwLockReadGuard<bool>> {
        let closing = Arc::clone(&self.closing).read_owned().await;
        (!*closing).then_some(closing)
    }

    /// Lets nobody write to it any more, once who does so has ended and nobody objects. Returns whether that is so.
    pub(super) async fn close_for_writers(&self, may: impl FnOnce() -> bool) -> bool {
        let mut closing = self.closing.write().await;
        *closing = may();
        *closing
    }
}

/// All generations that are open; there is always one.
pub(super) struct Generations {
    open: RwLock<BTreeMap<u64, Arc<Generation>>>,
    /// Where new tasks go.
    for_new: AtomicU64,
    /// Changed when one was opened.
    opened: watch::Sender<()>,
    /// Changed by one at a time, with the file first.
    pub(super) ledger: tokio::sync::Mutex<Ledger>,
    pub(super) path: PathBuf,
}

impl Generations {
    /// Opens what the file says; where there is none, what is stored.
    pub(super) async fn open(db: &DbHandle, table: &Arc<Table>, now_ms: u64) -> Result<Self, StoreError> {
        let path = Ledger::path(db.directory());
        let read = {
            let path = path.clone();
            aside(move || Ledger::read(&path)).await?
        };
        let ledger = match read {
            Some(ledger) if !ledger.open.is_empty() => ledger,
            found => {
                let stored = db.list()?.into_iter().filter_map(|known| generation_of(&known.name));
                let stored: BTreeSet<u64> = stored.collect();
                let mut ledger = found.unwrap_or_else(|| Ledger::of([], now_ms));
                let dropping = ledger.dropping.clone();
                for number in stored.into_iter().filter(|number| !dropping.contains(number)) {
                    ledger.keep(number, now_ms);
                }
                if ledger.open.is_empty() {
                    let first = (1..).find(|number| !dropping.contains(number) && !ledger.has_dropped(*number));
                    ledger.keep(first.unwrap_or(1), now_ms);
                }
                ledger
            }
        };
        let mut open = BTreeMap::new();
        for number in ledger.open.keys() {
            open.insert(*number, Arc::new(Generation::open(db, table, *number, None).await?));
        }
        let newest = ledger.open.keys().next_back().copied().unwrap_or(1);
        let written = ledger.clone();
        let generations = Self {
            open: RwLock::new(open),
            for_new: AtomicU64::new(newest),
            opened: watch::Sender::new(()),
            ledger: tokio::sync::Mutex::new(ledger),
            path,
        };
        generations.write(written).await?;
        Ok(generations)
    }

    /// Writes the file.
    pub(super) async fn write(&self, ledger: Ledger) -> Result<(), DbError> {
        let path = self.path.clone();
        aside(move || ledger.write(&path)).await
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Arc<Generation>>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Arc<Generation>>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<Generation>> {
        self.read().get(&number).cloned()
    }

    /// Returns all, lowest first.
    pub(super) fn all(&self) -> Vec<Arc<Generation>> {
        self.read().values().cloned().collect()
    }

    pub(super) fn numbers(&self) -> BTreeSet<u64> {
        self.read().keys().copied().collect()
    }

    pub(super) fn newest(&self) -> Arc<Generation> {
        Arc::clone(self.read().values().next_back().expect("one generation is always open"))
    }

    /// Returns the one to which new tasks go.
    pub(super) fn for_new(&self) -> Arc<Generation> {
        self.get(self.for_new.load(Ordering::Acquire)).unwrap_or_else(|| self.newest())
    }

    pub(super) fn insert(&self, generation: Generation) {
        self.change().insert(generation.number, Arc::new(generation));
        self.opened.send_replace(());
    }

    /// Returns one that may be about to be opened, as soon as that is so.
    pub(super) async fn when_open(&self, number: u64) -> Arc<Generation> {
        let mut opened = self.opened.subscribe();
        loop {
            if let Some(generation) = self.get(number) {
                return generation;
            }
            // Its other end is in here.
            let _ = opened.changed().await;
        }
    }

    pub(super) fn remove(&self, number: u64) {
        self.change().remove(&number);
    }

    /// Has new tasks go to the newest one that all these peers have, too, or that has been here for a while: so the entries about a task come
    /// to everybody at once. They never go back to an older one, which peers may drop from then on.
    pub(super) fn choose_for_new(&self, told: &[&TaskGenerations]) {
        let chosen = {
            let open = self.read();
            let newest = open.keys().next_back().copied();
            let is_late = |generation: &Generation| {
                let opened = generation.opened.filter(|_| Some(generation.number) == newest);
                opened.is_some_and(|opened| opened.elapsed() >= KNOWN_AFTER)
            };
            // One that peers have dropped is for nothing new.
            let chosen = open.values().rev().find(|generation| generation.is_known(told) || is_late(generation));
            chosen.map(|generation| generation.number).or(newest)
        };
        if let Some(chosen) = chosen {
            self.for_new.fetch_max(chosen, Ordering::AcqRel);
        }
    }

    /// Returns the one before which nothing new comes any more, from here or from these peers.
    pub(super) fn new_from(&self, told: &[&TaskGenerations]) -> u64 {
        let new = told.iter().filter_map(|told| told.new.filter(|new| told.open.contains(new)));
        new.fold(self.for_new().number, u64::min)
    }
}

/// Does work with files where it holds up nobody.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, DbError> + Send + 'static) -> Result<T, DbError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(DbError::Failed(error.to_string())))
}
