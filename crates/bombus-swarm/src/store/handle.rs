//! What is known of tasks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bombus_core::identity::{NodeId, NodeKey};
use bombus_core::tasks::{ResultDocument, TaskDocument, TaskId, TaskStatus, TaskView, Written, resolve};
use orbitdb::manifest::{Address, DatabaseType};
use orbitdb::{Access, Database, DatabaseError, OpenOptions};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::audit::AuditEvent;
use super::catalogue::{ListFilter, ListPage, TaskSummary};
use super::contents::Contents;
use super::documents::{of_value, read_all};
use super::error::StoreError;
use super::limits::StoreLimits;
use super::service::TaskStoreService;
use super::shown::{ShownResults, ShownTasks};
use super::table::Table;
use super::updates::TaskUpdates;
use super::{EVENTS, RESULTS, TASKS};
use crate::clock::WallClock;
use crate::db::{DbError, DbHandle};

/// How large the store is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
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
    /// Entries of the three databases.
    pub entries: u64,
    /// Bytes of these entries.
    pub log_bytes: u64,
    /// Bytes that the databases take in the storage.
    pub stored_bytes: u64,
    /// Bytes that large texts take in the storage.
    pub text_bytes: u64,
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
    pub(super) tasks: Database,
    pub(super) results: Database,
    pub(super) events: Database,
    pub(super) table: Arc<Table>,
    pub(super) contents: Contents,
    pub(super) audit: mpsc::Sender<AuditEvent>,
    pub(super) audit_lost: AtomicU64,
    pub(super) clock: WallClock,
    pub(super) db: DbHandle,
}

impl fmt::Debug for TaskStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskStore").field("tasks", &self.inner.tasks.address()).finish_non_exhaustive()
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
        // One that was opened without the view has to be opened again.
        for name in [TASKS, RESULTS].into_iter().filter(|name| db.database(name).is_some()) {
            db.close(name).await?;
        }
        let table = Arc::new(Table::new(limits.updates, limits.finished_views));
        let documents = || OpenOptions::of(DatabaseType::Documents).access(Access::Everyone);
        // Results first: so each task is worked out once, with its result.
        let results = ShownResults(Arc::downgrade(&table));
        let results = db.create(RESULTS, documents().view(Arc::new(results))).await?;
        let tasks = ShownTasks(Arc::downgrade(&table));
        let tasks = db.create(TASKS, documents().view(Arc::new(tasks))).await?;
        let events = db.create(EVENTS, OpenOptions::of(DatabaseType::Events).access(Access::Everyone)).await?;
        let (audit, audits) = mpsc::channel(limits.audit_queue);
        let inner = Inner {
            node: key.node_id(),
            key,
            identity: db.orbit().identity().id().to_owned(),
            tasks,
            results,
            events,
            table,
            contents: Contents::new(db.clone(), &limits),
            audit,
            audit_lost: AtomicU64::new(0),
            clock: WallClock::default(),
            db,
        };
        let store = Self { inner: Arc::new(inner) };
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

    /// Returns the addresses of the databases: tasks, results, audit log.
    #[must_use]
    pub fn addresses(&self) -> [Address; 3] {
        [&self.inner.tasks, &self.inner.results, &self.inner.events].map(Database::address)
    }

    /// Returns the time of day by which documents are dated, in milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.inner.clock.now().unix_ms()).unwrap_or(0)
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
        let row = self.inner.tasks.get(id.as_str());
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
        let (tasks, results) = self.histories(id).await?;
        let holds = |node: &_, task: &_, identity: &str, proof: &str| table.proofs.holds(node, task, identity, proof);
        let view = resolve(id, &tasks, &results, holds).map(Arc::new);
        if let Some(view) = view.as_ref().filter(|view| view.is_over()) {
            table.keep_finished(version, view);
        }
        Ok(view)
    }

    /// Reads all entries about a task, where that holds up nobody else.
    pub(super) async fn histories(&self, id: &TaskId) -> Result<Histories, StoreError> {
        let (tasks, results, id) = (self.inner.tasks.clone(), self.inner.results.clone(), id.clone());
        let read = move || -> Result<Histories, DatabaseError> {
            let (tasks, results) = (tasks.history(id.as_str())?, results.history(id.as_str())?);
            Ok((read_all(&tasks).0, read_all(&results).0))
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
        TaskUpdates::new(self.inner.table.subscribe())
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
        let mut size = StoreSize { text_bytes, audit_lost, ..counted };
        for database in [&inner.tasks, &inner.results, &inner.events] {
            let info = database.info()?;
            size.entries += info.entries;
            size.log_bytes += info.log_bytes;
            size.stored_bytes += info.stored_bytes;
        }
        Ok(size)
    }

    /// Closes the databases of tasks; what was written is safe. Whoever has the store gets errors from then on.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when something could not be written.
    pub async fn close(&self) -> Result<(), StoreError> {
        for database in [&self.inner.tasks, &self.inner.results, &self.inner.events] {
            database.close().await?;
        }
        Ok(())
    }
}

/// All entries about a task.
pub(super) type Histories = (Vec<Written<TaskDocument>>, Vec<Written<ResultDocument>>);
