//! What the parts of the tasks and all handles share.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bombus_core::identity::{NodeId, NodeKey};
use bombus_core::tasks::dispatch::{Answer, Dispatcher, Input, Load, Output, RunId};
use bombus_core::tasks::report::TaskReport;
use bombus_core::tasks::{Epoch, TaskDocument, TaskId, TaskStatus, TaskView};
use bombus_infer::Backends;
use bombus_net::NetHandle;
use futures::FutureExt;
use futures::stream::{self, StreamExt};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::TasksConfig;
use super::counts::TaskRuns;
use super::error::TasksError;
use super::live::LiveTasks;
use super::offer::Offering;
use super::run::Running;
use super::serve::{Listener, TakenTask};
use crate::SwarmHandle;
use crate::db::{DbError, DbHandle};
use crate::platform::time_with_sleep;
use crate::room;
use crate::route::RouteHandle;
use crate::seal::SealKey;
use crate::service::random;
use crate::store::{StoreError, StoreSize, TaskStore};

/// Longest wait for a store that is being opened.
const OPENING_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long nothing is taken on for others when what came of a run could not be written.
const TROUBLE_TIME: Duration = Duration::from_secs(5);
/// How many offers to one peer may wait for its first word at a time: as many as fit into what it has room for before it looks.
const OPENING_MAX: usize = 14;
/// How many views of parts are read at once.
const VIEWS_AT_ONCE: usize = 16;

/// No lock is held across a wait.
pub(super) struct Shared {
    pub(super) config: TasksConfig,
    pub(super) net: NetHandle,
    pub(super) swarm: SwarmHandle,
    pub(super) backends: Backends,
    pub(super) route: RouteHandle,
    pub(super) db: DbHandle,
    pub(super) key: Arc<NodeKey>,
    pub(super) seal_key: SealKey,
    /// How often tasks were run here.
    pub(super) counted: TaskRuns,
    pub(super) me: NodeId,
    /// Ends with the service.
    pub(super) stop: CancellationToken,
    /// What is being done.
    pub(super) doing: TaskTracker,
    dispatcher: Mutex<Dispatcher>,
    /// What the dispatcher wants written, in the order of each task.
    lines: Mutex<HashMap<TaskId, VecDeque<Output>>>,
    /// When the dispatcher is to be told that time has passed.
    due: watch::Sender<Option<Duration>>,
    store: watch::Sender<Option<TaskStore>>,
    drained: watch::Sender<bool>,
    pub(super) live: LiveTasks,
    /// The streams over which this node offers its tasks.
    offers: Mutex<HashMap<TaskId, Offering>>,
    /// The streams over which others offer theirs.
    listeners: Mutex<HashMap<(TaskId, Epoch), Listener>>,
    runs: Mutex<HashMap<RunId, Running>>,
    /// Tasks that were offered and have not begun, as the offer said.
    documents: Mutex<HashMap<TaskId, TakenTask>>,
    /// The batches that have not ended; none until that is known.
    batches: Mutex<Option<BTreeSet<String>>>,
    /// Tasks that were submitted here since the start.
    fresh: Mutex<HashSet<TaskId>>,
    /// Those of them of which nothing is written yet.
    drafts: Mutex<HashMap<TaskId, Draft>>,
    opening: Mutex<HashMap<NodeId, Arc<Semaphore>>>,
    /// Until then nothing is taken on for others: what came of it could not be written.
    trouble_until: Mutex<Duration>,
    numbers: AtomicU64,
}

/// A task that is submitted, before its first entry is written.
pub(super) struct Draft {
    pub(super) document: Arc<TaskDocument>,
    /// Told whether it is safe; none while it is being written.
    pub(super) written: Option<oneshot::Sender<Result<(), TasksError>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    #[expect(clippy::too_many_arguments, reason = "each is a part of the node that tasks stand on")]
    pub(super) fn new(
        config: TasksConfig,
        net: NetHandle,
        swarm: SwarmHandle,
        backends: Backends,
        route: RouteHandle,
        db: DbHandle,
        key: Arc<NodeKey>,
        seal_key: SealKey,
        counted: TaskRuns,
    ) -> Self {
        let me = key.node_id();
        let dispatcher = Dispatcher::new(me.clone(), config.dispatch(route.slots()), time_with_sleep(), random());
        Self {
            config,
            net,
            swarm,
            backends,
            route,
            db,
            key,
            seal_key,
            counted,
            me,
            stop: CancellationToken::new(),
            doing: TaskTracker::new(),
            dispatcher: Mutex::new(dispatcher),
            lines: Mutex::default(),
            due: watch::Sender::new(None),
            store: watch::Sender::new(None),
            drained: watch::Sender::new(false),
            live: LiveTasks::default(),
            offers: Mutex::default(),
            listeners: Mutex::default(),
            runs: Mutex::default(),
            documents: Mutex::default(),
            batches: Mutex::default(),
            fresh: Mutex::default(),
            drafts: Mutex::default(),
            opening: Mutex::default(),
            trouble_until: Mutex::default(),
            numbers: AtomicU64::new(0),
        }
    }

    /// Does something beside; it ends with the service. One that panics is logged.
    pub(super) fn spawn(&self, what: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.doing.spawn(async move {
            if let Some(Err(_)) = stop.run_until_cancelled(AssertUnwindSafe(work).catch_unwind()).await {
                tracing::error!(task = what, "something about a task panicked");
            }
        });
    }

    /// Returns a number that was not given before.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells the dispatcher what has happened, and begins what it says is to be done.
    pub(super) fn input(self: &Arc<Self>, input: Input) {
        let due = {
            let mut dispatcher = lock(&self.dispatcher);
            let outputs = dispatcher.on(time_with_sleep(), input);
            // Under the lock, so that what is said about a task is done in this order.
            for output in outputs {
                super::driver::begin(self, output);
            }
            dispatcher.deadline()
        };
        self.due.send_if_modified(|known| std::mem::replace(known, due) != due);
    }

    pub(super) fn lines(&self) -> MutexGuard<'_, HashMap<TaskId, VecDeque<Output>>> {
        lock(&self.lines)
    }

    /// Returns when the dispatcher wants to be told that time has passed.
    pub(super) fn due(&self) -> watch::Receiver<Option<Duration>> {
        self.due.subscribe()
    }

    pub(super) fn answer(&self, task: &TaskId, requester: Option<&NodeId>) -> Answer {
        lock(&self.dispatcher).answer(task, requester)
    }

    pub(super) fn load(&self) -> Load {
        lock(&self.dispatcher).load()
    }

    /// Returns how many tasks the dispatcher looks after.
    pub(super) fn open_tasks(&self) -> usize {
        lock(&self.dispatcher).tasks()
    }

    pub(super) fn set_store(&self, store: Option<TaskStore>) {
        if let Some(store) = &store {
            store.hold_batches(self.batches().clone());
        }
        self.store.send_replace(store);
    }

    /// Returns the store, once it is open.
    pub(super) async fn store(&self) -> Result<TaskStore, TasksError> {
        if let Some(store) = self.store_now() {
            return Ok(store);
        }
        let mut opened = self.store.subscribe();
        let opened = timeout(OPENING_WAIT_MAX, opened.wait_for(Option::is_some)).await;
        match opened {
            Ok(Ok(store)) => store.clone().ok_or(TasksError::Unavailable),
            _ => Err(TasksError::Unavailable),
        }
    }

    pub(super) fn store_now(&self) -> Option<TaskStore> {
        self.store.borrow().clone()
    }

    /// Says of an error of the store that the disk is full, where it is.
    pub(super) fn explained(&self, error: TasksError) -> TasksError {
        match error {
            TasksError::Unavailable | TasksError::Store(StoreError::Db(_) | StoreError::Database(_))
                if room::is_full(self.db.directory()) =>
            {
                TasksError::NoRoom(self.db.directory().to_owned())
            }
            error => error,
        }
    }

    /// Notes that what came of a run could not be written.
    pub(super) fn note_trouble(&self) {
        *lock(&self.trouble_until) = time_with_sleep() + TROUBLE_TIME;
    }

    /// Says whether what would come of a run could be written, as far as that can be known.
    pub(super) fn can_write(&self) -> bool {
        let in_trouble = time_with_sleep() < *lock(&self.trouble_until);
        !in_trouble && self.store_now().is_some_and(|store| store.failure().is_none())
    }

    pub(super) fn offers(&self) -> MutexGuard<'_, HashMap<TaskId, Offering>> {
        lock(&self.offers)
    }

    pub(super) fn listeners(&self) -> MutexGuard<'_, HashMap<(TaskId, Epoch), Listener>> {
        lock(&self.listeners)
    }

    pub(super) fn runs(&self) -> MutexGuard<'_, HashMap<RunId, Running>> {
        lock(&self.runs)
    }

    pub(super) fn documents(&self) -> MutexGuard<'_, HashMap<TaskId, TakenTask>> {
        lock(&self.documents)
    }

    pub(super) fn batches(&self) -> MutexGuard<'_, Option<BTreeSet<String>>> {
        lock(&self.batches)
    }

    pub(super) fn fresh(&self) -> MutexGuard<'_, HashSet<TaskId>> {
        lock(&self.fresh)
    }

    pub(super) fn drafts(&self) -> MutexGuard<'_, HashMap<TaskId, Draft>> {
        lock(&self.drafts)
    }

    /// Returns what bounds how many offers to a peer are under way.
    pub(super) fn opening(&self, peer: &NodeId) -> Arc<Semaphore> {
        let mut opening = lock(&self.opening);
        let new = || Arc::new(Semaphore::new(OPENING_MAX));
        Arc::clone(opening.entry(peer.clone()).or_insert_with(new))
    }

    /// Forgets what is kept about a peer that is gone.
    pub(super) fn forget_peer(&self, peer: &NodeId) {
        lock(&self.opening).remove(peer);
    }

    /// Returns all that is known of a task; it may lack what is large.
    pub(super) async fn view(&self, id: &TaskId) -> Result<Option<Arc<TaskView>>, TasksError> {
        let store = self.store().await?;
        match store.unfinished_view(id) {
            Some(view) => Ok(Some(view)),
            None => Ok(store.view(id).await?),
        }
    }

    /// Returns the views of all parts of a parent, in their order.
    pub(super) async fn parts(&self, parent: &TaskId) -> Result<Vec<Arc<TaskView>>, TasksError> {
        let parts = self.store().await?.parts(parent);
        let views = stream::iter(parts).map(async |part| self.view(&part.id).await).buffered(VIEWS_AT_ONCE);
        let views: Vec<_> = views.collect().await;
        views.into_iter().filter_map(Result::transpose).collect()
    }

    /// Tells how a task stands.
    pub(super) async fn report(&self, id: &TaskId) -> Result<TaskReport, TasksError> {
        if let Some(view) = self.view(id).await? {
            return Ok(self.report_of(&view));
        }
        let parts = self.parts(id).await?;
        let report = TaskReport::of_parts(id, &parts.iter().map(|part| &**part).collect::<Vec<_>>());
        let mut report = report.ok_or_else(|| TasksError::UnknownTask(id.clone()))?;
        let unfinished = parts.iter().filter(|part| !part.status.is_final());
        report.progress.tokens += unfinished.map(|part| self.live.tokens(&part.task.id)).sum::<u64>();
        Ok(report)
    }

    /// Tells how a task stands that is no parent.
    pub(super) fn report_of(&self, view: &TaskView) -> TaskReport {
        let mut report = TaskReport::of(view);
        if !report.status.is_final() && self.live.epoch(&report.id) == Some(report.epoch) {
            report.progress.tokens = self.live.tokens(&report.id);
            if report.status == TaskStatus::Claimed {
                report.status = TaskStatus::Running;
            }
        }
        report
    }

    pub(super) async fn size(&self) -> Result<StoreSize, TasksError> {
        let store = self.store().await?;
        let looked = spawn_blocking(move || store.size()).await;
        Ok(looked.map_err(|error| StoreError::from(DbError::Failed(error.to_string())))??)
    }

    pub(super) fn set_drained(&self) {
        self.drained.send_replace(true);
    }

    pub(super) async fn drain(self: &Arc<Self>, grace: Duration) {
        let mut drained = self.drained.subscribe();
        self.input(Input::Drain { grace });
        // Beyond the grace time only what is handed back is still written.
        let waited = timeout(grace + Duration::from_secs(2), drained.wait_for(|drained| *drained));
        drop(self.stop.run_until_cancelled(waited).await);
    }
}
