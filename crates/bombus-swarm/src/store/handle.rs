//! What is known of tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bombus_core::identity::{NodeId, NodeKey};
use bombus_core::tasks::{ResultDocument, TaskDocument, TaskId, TaskStatus, TaskView, resolve};
use bombus_core::topics::TaskGenerations;
use orbitdb::manifest::Address;
use orbitdb::{Database, DatabaseError};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::audit::AuditEvent;
use super::catalogue::{ListFilter, ListPage, TaskSummary};
use super::contents::Contents;
use super::documents::{Histories, History, of_value, read_all};
use super::error::StoreError;
use super::generations::Generations;
use super::limits::StoreLimits;
use super::service::TaskStoreService;
use super::sweep::{TEXTS, TextsOfTasks};
use super::table::Table;
use super::updates::TaskUpdates;
use crate::clock::WallClock;
use crate::db::{DbError, DbHandle};

/// How large a generation of the databases is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GenerationSize {
    /// Which one, from 1.
    pub generation: u64,
    /// Tasks in it.
    pub tasks: usize,
    /// Those of them that have not ended.
    pub unfinished: usize,
    /// Entries of its three databases.
    pub entries: u64,
    /// Bytes that these take in the storage.
    pub stored_bytes: u64,
}

/// How large the store is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StoreSize {
    /// Tasks that are known.
    pub tasks: usize,
    /// Those of them that nobody has the right to run yet.
    pub pending: usize,
    /// Those that a worker has the right to run and has not begun.
    pub claimed: usize,
    /// Those that run.
    pub running: usize,
    /// Those that have a result.
    pub completed: usize,
    /// Those that have failed.
    pub failed: usize,
    /// Those that were cancelled.
    pub cancelled: usize,
    /// The generations that are open, oldest first. New tasks go to the last one.
    pub generations: Vec<GenerationSize>,
    /// The name of the newest database of tasks.
    pub newest: String,
    /// Its address, by which peers of other programs open it.
    pub address: String,
    /// Entries of all databases.
    pub entries: u64,
    /// Bytes of these entries.
    pub log_bytes: u64,
    /// Bytes that the databases take in the storage.
    pub stored_bytes: u64,
    /// Bytes that large texts take in the storage.
    pub text_bytes: u64,
    /// Entries that do not count, by reason: those that keep no rule, and those that came too late.
    pub refused: BTreeMap<&'static str, u64>,
    /// Audit events that were left out since the start, because too many waited.
    pub audit_lost: u64,
}

/// The task store; clones stand for the same.
///
/// What it writes is safe when the method returns. Methods for different tasks do not wait for each other: what is written at once goes to
/// the disk in one go.
#[derive(Clone)]
pub struct TaskStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) node: NodeId,
    pub(super) key: Arc<NodeKey>,
    /// The id of the identity that writes.
    pub(super) identity: String,
    pub(super) generations: Generations,
    /// What peers that are there say that they have.
    pub(super) told: Mutex<BTreeMap<NodeId, TaskGenerations>>,
    /// The batches that have not ended; none where that is not known.
    pub(super) batches: Mutex<Option<BTreeSet<String>>>,
    /// The farthest generation that was warned of.
    pub(super) warned_of: AtomicU64,
    pub(super) limits: StoreLimits,
    pub(super) table: Arc<Table>,
    pub(super) contents: Contents,
    pub(super) audit: mpsc::Sender<AuditEvent>,
    pub(super) audit_lost: AtomicU64,
    pub(super) clock: WallClock,
    /// Cancelled when the databases were let go.
    pub(super) ended: CancellationToken,
    pub(super) db: DbHandle,
}

impl fmt::Debug for TaskStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generations = self.inner.generations.numbers();
        f.debug_struct("TaskStore").field("generations", &generations).finish_non_exhaustive()
    }
}

impl TaskStore {
    /// Opens the databases of tasks, which are made where there are none, and reads what is in them. `key` is the node's own: it proves that
    /// what this node writes about a task is by this node.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when one cannot be opened, or another database has its name.
    pub async fn open(
        db: DbHandle,
        key: Arc<NodeKey>,
        limits: StoreLimits,
    ) -> Result<(Self, TaskStoreService), StoreError> {
        let limits = limits.clamped();
        db.ready().await?;
        let table = Arc::new(Table::new(limits.updates, limits.finished_views));
        let clock = WallClock::default();
        let generations = Generations::open(&db, &table, now_ms(&clock)).await?;
        let (audit, audits) = mpsc::channel(limits.audit_queue);
        let inner = Inner {
            node: key.node_id(),
            key,
            identity: db.orbit().identity().id().to_owned(),
            generations,
            told: Mutex::default(),
            batches: Mutex::new(Some(BTreeSet::new())),
            warned_of: AtomicU64::new(0),
            limits: limits.clone(),
            table,
            contents: Contents::new(db.clone(), &limits),
            audit,
            audit_lost: AtomicU64::new(0),
            clock,
            ended: CancellationToken::new(),
            db,
        };
        let store = Self { inner: Arc::new(inner) };
        store.inner.db.hold_blocks(TEXTS, Arc::new(TextsOfTasks(Arc::downgrade(&store.inner))));
        store.recall().await;
        let service = TaskStoreService::new(store.clone(), audits, limits);
        Ok((store, service))
    }

    /// Returns this node.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.inner.node
    }

    /// Returns the id of the identity under which this node writes.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.inner.identity
    }

    /// Returns the addresses of the databases of the newest generation: tasks, results, audit log.
    #[must_use]
    pub fn addresses(&self) -> [Address; 3] {
        self.inner.generations.newest().databases().map(Database::address)
    }

    /// Returns the generation that has a task, and for one that is not known here, that to which new ones go.
    pub(super) fn home_or_newest(&self, id: &TaskId) -> u64 {
        let generations = &self.inner.generations;
        self.inner.table.home(id).unwrap_or_else(|| generations.for_new().number)
    }

    /// Returns whether entries about tasks are being fetched in bulk.
    #[must_use]
    pub fn is_catching_up(&self) -> bool {
        let inner = &self.inner;
        inner.generations.all().iter().any(|generation| !inner.db.catching_up(&generation.tasks.address()).is_empty())
    }

    /// Returns the time of day by which documents are dated, in milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        now_ms(&self.inner.clock)
    }

    /// Makes the document of a new task of this node, with a random id and the time, to be filled in and given to
    /// [`TaskStore::create_task`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Document`] when the system has no random numbers.
    pub fn draft(&self) -> Result<TaskDocument, StoreError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|error| StoreError::Document(format!("there are no random numbers: {error}")))?;
        Ok(TaskDocument::new(TaskId::random(random), self.inner.node.as_str(), self.now_ms()))
    }

    /// Returns a task as the database shows it: as it was submitted, and where it stands. What is large may stand in a block of its own:
    /// [`TaskStore::whole_task`] puts it in its place.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`] when it cannot be read.
    pub fn get_task(&self, id: &TaskId) -> Result<Option<TaskDocument>, StoreError> {
        let home = self.inner.table.home(id).and_then(|home| self.inner.generations.get(home));
        let row = home.and_then(|home| home.tasks.get(id.as_str()));
        Ok(row.map(|row| of_value(&row.value)).transpose()?)
    }

    /// Returns the result of a task that counts, whole; none while there is none.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when it cannot be read, or is large and no connected peer has it.
    pub async fn get_result(&self, id: &TaskId) -> Result<Option<ResultDocument>, StoreError> {
        match self.view(id).await?.and_then(|view| view.result.clone()) {
            Some(result) => self.whole_result(&result).await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns the generation in which a task stands; none while nothing is known of it.
    #[must_use]
    pub fn generation_of(&self, id: &TaskId) -> Option<u64> {
        self.inner.table.home(id)
    }

    /// Returns everything that is known of a task, as all that was written about it says. What is large may stand in blocks of its own.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the storage fails.
    pub async fn view(&self, id: &TaskId) -> Result<Option<Arc<TaskView>>, StoreError> {
        let table = &self.inner.table;
        let Some(version) = table.version(id) else { return Ok(None) };
        if let Some(view) = table.finished(id) {
            return Ok(Some(view));
        }
        let (mut tasks, mut results) = (Vec::new(), Vec::new());
        for history in self.histories(id).await? {
            tasks.extend(history.tasks);
            results.extend(history.results);
        }
        let holds = |node: &_, task: &_, identity: &str, proof: &str| table.proofs.holds(node, task, identity, proof);
        let view = resolve(id, &tasks, &results, holds).map(Arc::new);
        if let Some(view) = view.as_ref().filter(|view| view.is_over()) {
            table.keep_finished(version, view);
        }
        Ok(view)
    }

    /// Reads all entries about a task, where that holds up nobody else.
    pub(super) async fn histories(&self, id: &TaskId) -> Result<Histories, StoreError> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        let read = move || -> Result<Histories, DatabaseError> {
            let mut histories = Vec::new();
            for generation in inner.generations.all() {
                let number = generation.number;
                let history = |database: &Database| match database.history(id.as_str()) {
                    // It was dropped just now.
                    Err(DatabaseError::Closed) if inner.generations.get(number).is_none() => Ok(Vec::new()),
                    history => history,
                };
                let (tasks, results) = (history(&generation.tasks)?, history(&generation.results)?);
                let (tasks, results) = (read_all(number, &tasks).0, read_all(number, &results).0);
                histories.push(History { generation: number, tasks, results });
            }
            Ok(histories)
        };
        let read = spawn_blocking(read).await.map_err(|error| DbError::Failed(error.to_string()))?;
        Ok(read?)
    }

    /// Returns what is known of a task that is not over, at once and without what may be large: prompt, messages, instructions, options,
    /// the answer and what is sealed. None for one that is over or not known.
    #[must_use]
    pub fn unfinished_view(&self, id: &TaskId) -> Option<Arc<TaskView>> {
        self.inner.table.held_view(id).filter(|view| !view.is_over())
    }

    /// Returns the same of all tasks that are not over.
    #[must_use]
    pub fn unfinished(&self) -> Vec<Arc<TaskView>> {
        self.inner.table.unfinished()
    }

    /// Returns a task in short, at once.
    #[must_use]
    pub fn summary(&self, id: &TaskId) -> Option<Arc<TaskSummary>> {
        self.inner.table.summary(id)
    }

    /// Returns the parts of a task, in their order.
    #[must_use]
    pub fn parts(&self, parent: &TaskId) -> Vec<Arc<TaskSummary>> {
        self.inner.table.read_catalogue(|catalogue| catalogue.parts(parent))
    }

    /// Returns the tasks that nobody has the right to run yet, newest first, up to a number of 1,000; [`TaskStore::list`] goes on.
    #[must_use]
    pub fn pending(&self) -> Vec<Arc<TaskSummary>> {
        let filter = ListFilter { status: Some(TaskStatus::Pending), limit: usize::MAX, ..ListFilter::default() };
        self.list(&filter).tasks
    }

    /// Returns the tasks of a requester, by its peer id, newest first, up to a number of 1,000; [`TaskStore::list`] goes on.
    #[must_use]
    pub fn by_requester(&self, requester: &str) -> Vec<Arc<TaskSummary>> {
        let requester = Some(requester.to_owned());
        self.list(&ListFilter { requester, limit: usize::MAX, ..ListFilter::default() }).tasks
    }

    /// Returns a page of tasks, newest first.
    #[must_use]
    pub fn list(&self, filter: &ListFilter) -> ListPage {
        self.inner.table.read_catalogue(|catalogue| catalogue.list(filter))
    }

    /// Returns a stream of all changes from now on: of tasks of this node and of others.
    #[must_use]
    pub fn updates(&self) -> TaskUpdates {
        TaskUpdates::new(self.inner.table.subscribe(), self.inner.ended.clone())
    }

    /// Returns a task with what stands in blocks in its place. What is not here is fetched from peers, for up to 30 s.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when no connected peer has it.
    pub async fn whole_task(&self, task: &TaskDocument) -> Result<TaskDocument, StoreError> {
        self.inner.contents.whole_task(task).await
    }

    /// Returns a task with what is large in blocks of its own, which are safe when this returns: for documents that are sent and not written.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when it is too large, or cannot be written.
    pub async fn laid_out(&self, mut task: TaskDocument) -> Result<TaskDocument, StoreError> {
        self.inner.contents.move_out_of_task(&mut task).await?;
        Ok(task)
    }

    /// Returns a result with what stands in blocks in its place. What is not here is fetched from peers, for up to 30 s.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when no connected peer has it.
    pub async fn whole_result(&self, result: &ResultDocument) -> Result<ResultDocument, StoreError> {
        self.inner.contents.whole_result(result).await
    }

    /// Returns how many entries do not count, by reason: what is no document (`form`, `deletion`), and what [`resolve()`] refuses.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.inner.table.refused()
    }

    /// Returns how large the store is.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when that cannot be seen, or the databases are closed.
    pub fn size(&self) -> Result<StoreSize, StoreError> {
        let inner = &self.inner;
        let counted = inner.table.read_catalogue(|catalogue| StoreSize {
            tasks: catalogue.len(),
            pending: catalogue.count(TaskStatus::Pending),
            claimed: catalogue.count(TaskStatus::Claimed),
            running: catalogue.count(TaskStatus::Running),
            completed: catalogue.count(TaskStatus::Completed),
            failed: catalogue.count(TaskStatus::Failed),
            cancelled: catalogue.count(TaskStatus::Cancelled),
            ..StoreSize::default()
        });
        let text_bytes = inner.db.blocks_bytes();
        let audit_lost = inner.audit_lost.load(Ordering::Relaxed);
        let mut size = StoreSize { text_bytes, audit_lost, refused: inner.table.refused(), ..counted };
        for generation in inner.generations.all() {
            let number = generation.number;
            let (tasks, unfinished) = inner.table.read_catalogue(|catalogue| catalogue.of_generation(number));
            let mut of_it = GenerationSize { generation: number, tasks, unfinished, ..GenerationSize::default() };
            for database in generation.databases() {
                let info = match database.info() {
                    // It was dropped just now.
                    Err(DatabaseError::Closed) if inner.generations.get(number).is_none() => continue,
                    info => info?,
                };
                of_it.entries += info.entries;
                of_it.stored_bytes += info.stored_bytes;
                size.log_bytes += info.log_bytes;
            }
            size.entries += of_it.entries;
            size.stored_bytes += of_it.stored_bytes;
            size.generations.push(of_it);
        }
        let newest = inner.generations.newest();
        size.newest.clone_from(&newest.tasks.manifest().name);
        size.address = newest.tasks.address().to_string();
        Ok(size)
    }

    /// Closes the databases of tasks; what was written is safe. Whoever has the store gets errors from then on.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when something could not be written.
    pub async fn close(&self) -> Result<(), StoreError> {
        for generation in self.inner.generations.all() {
            for database in generation.databases() {
                database.close().await?;
            }
        }
        Ok(())
    }
}

fn now_ms(clock: &WallClock) -> u64 {
    u64::try_from(clock.now().unix_ms()).unwrap_or(0)
}
