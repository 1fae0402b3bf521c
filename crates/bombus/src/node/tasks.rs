//! The durable tasks of the swarm that this node belongs to, as the HTTP API needs them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::identity::{NodeId, NodeKey};
use bombus_core::tasks::report::TaskReport;
use bombus_core::tasks::{TaskId, TaskStatus, chunk};
use bombus_http::tasks::{
    BatchPlace, Chunking, DroppedGeneration, EmbeddingResult, FailedAttempt, InferenceResult, KeptGeneration, NewTask,
    PingResult, TaskChunk, TaskCounts, TaskFilter, TaskGeneration, TaskInfo, TaskInput, TaskNews, TaskNode,
    TaskOptions, TaskPage, TaskProgress, TaskPrune, TaskResult, TaskRuns as TaskRunTotals, TaskState, TaskType, Tasks,
    TasksError, TasksPruned, WhyKept, Work,
};
use bombus_infer::Backends;
use bombus_net::NetHandle;
use bombus_net::membership::MembershipHandle;
use bombus_swarm::SwarmHandle;
use bombus_swarm::db::DbHandle;
use bombus_swarm::route::RouteHandle;
use bombus_swarm::seal::SealKey;
use bombus_swarm::store::{self, GenerationSize, Pruned, Retention, StoreSize};
use bombus_swarm::tasks::{
    BatchItem, Input, Submission, TaskResultReport, TaskRunCounts, TaskRuns, TasksConfig, TasksHandle,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use super::files::SwarmFilesService;

/// Longest wait for tasks that are being opened.
const OPENING_WAIT_MAX: Duration = Duration::from_secs(10);

/// Time between two looks at how much there is.
const COUNT_EVERY: Duration = Duration::from_secs(2);

/// What there is of the tasks now.
#[derive(Clone)]
enum Current {
    /// They are being opened.
    Opening,
    /// They can be used.
    Open(TasksHandle),
    /// They cannot be used, and why.
    Failed(String),
}

/// The tasks, for whoever uses them.
#[derive(Clone)]
pub(super) struct SwarmTasks {
    current: watch::Receiver<Current>,
    counts: watch::Receiver<TaskCounts>,
    runs: TaskRuns,
    membership: MembershipHandle,
    swarm: SwarmHandle,
    me: NodeId,
    name: String,
}

/// What tasks are made of.
pub(super) struct TasksParts {
    pub(super) config: TasksConfig,
    pub(super) net: NetHandle,
    pub(super) membership: MembershipHandle,
    pub(super) swarm: SwarmHandle,
    pub(super) backends: Backends,
    pub(super) route: RouteHandle,
    pub(super) key: Arc<NodeKey>,
    /// What texts for the node are sealed to.
    pub(super) seal_key: SealKey,
    /// What people call the node.
    pub(super) name: String,
    /// What is kept going beside them.
    pub(super) files: SwarmFilesService,
}

/// What keeps the tasks of one swarm after the other going, each beside its databases.
pub(super) struct SwarmTasksService {
    parts: TasksParts,
    current: watch::Sender<Current>,
    counts: watch::Sender<TaskCounts>,
    runs: TaskRuns,
}

/// Makes the two halves of the tasks.
pub(super) fn tasks(parts: TasksParts) -> (SwarmTasks, SwarmTasksService) {
    let (current_sender, current) = watch::channel(Current::Opening);
    let (counts_sender, counts) = watch::channel(TaskCounts::default());
    let (membership, swarm) = (parts.membership.clone(), parts.swarm.clone());
    let (me, name) = (parts.key.node_id(), parts.name.clone());
    let runs = TaskRuns::default();
    let service = SwarmTasksService { parts, current: current_sender, counts: counts_sender, runs: runs.clone() };
    (SwarmTasks { current, counts, runs, membership, swarm, me, name }, service)
}

impl SwarmTasksService {
    /// Keeps the tasks in these databases going until `stop`. Where they end by themselves, the node goes on without them.
    pub(super) async fn run(&self, db: DbHandle, stop: CancellationToken) {
        let TasksParts { config, net, swarm, backends, route, key, seal_key, .. } = &self.parts;
        let (handle, service) = bombus_swarm::tasks::tasks(
            config.clone(),
            net.clone(),
            swarm.clone(),
            backends.clone(),
            route.clone(),
            db.clone(),
            Arc::clone(key),
            seal_key.clone(),
            self.runs.clone(),
        );
        self.current.send_replace(Current::Open(handle.clone()));
        let files = async {
            self.parts.files.run(config, db, swarm.clone(), handle.clone(), stop.clone()).await;
            // Whether the tasks go on is not theirs to say.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = service.run(stop.clone()) => {}
            () = files => {}
            () = self.count(handle.clone()) => {}
        }
        if stop.is_cancelled() {
            self.current.send_replace(Current::Opening);
            return;
        }
        tracing::error!("the tasks of the swarm ended by themselves, and cannot be used");
        self.current.send_replace(Current::Failed("they ended by themselves; the log of the node says why".into()));
        stop.cancelled().await;
    }

    /// Keeps what is told of how much there is true. Never ends.
    async fn count(&self, handle: TasksHandle) {
        let mut every = interval(COUNT_EVERY);
        loop {
            every.tick().await;
            // While they are being opened there is nothing to count.
            if let Ok(size) = handle.size().await {
                self.counts.send_replace(counts_of(&size));
            }
        }
    }

    /// Says that there are no tasks, and why.
    pub(super) fn none(&self, reason: &str) {
        self.current.send_replace(Current::Failed(reason.to_owned()));
    }
}

fn counts_of(size: &StoreSize) -> TaskCounts {
    TaskCounts {
        tasks: vec![
            (TaskState::Pending, (size.pending + size.claimed) as u64),
            (TaskState::Running, size.running as u64),
            (TaskState::Completed, size.completed as u64),
            (TaskState::Failed, size.failed as u64),
            (TaskState::Cancelled, size.cancelled as u64),
        ],
        running_here: 0,
        runs: TaskRunTotals::default(),
        entries: size.entries,
        stored_bytes: size.stored_bytes.saturating_add(size.text_bytes),
        refused: size.refused.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
        history_lost: size.audit_lost,
        generations: size.generations.iter().map(generation_of).collect(),
        database: Some(size.newest.clone()),
        address: Some(size.address.clone()),
    }
}

fn generation_of(size: &GenerationSize) -> TaskGeneration {
    TaskGeneration {
        generation: size.generation,
        tasks: size.tasks as u64,
        unfinished: size.unfinished as u64,
        entries: size.entries,
        stored_bytes: size.stored_bytes,
    }
}

fn pruned_of(pruned: Pruned, dry_run: bool) -> TasksPruned {
    let dropped: Vec<DroppedGeneration> = pruned
        .dropped
        .into_iter()
        .map(|dropped| DroppedGeneration {
            generation: dropped.generation,
            tasks: dropped.tasks as u64,
            bytes: dropped.bytes,
        })
        .collect();
    let kept = pruned.kept.into_iter().map(|kept| {
        let (why, unfinished, task_ids) = match kept.why {
            store::WhyKept::Newest => (WhyKept::Newest, 0, Vec::new()),
            store::WhyKept::Unfinished { tasks, first } => (WhyKept::Unfinished, tasks as u64, first),
            store::WhyKept::Young => (WhyKept::Young, 0, Vec::new()),
            store::WhyKept::JustOpened => (WhyKept::JustOpened, 0, Vec::new()),
            store::WhyKept::Busy => (WhyKept::Busy, 0, Vec::new()),
        };
        let task_ids = task_ids.iter().map(TaskId::to_string).collect();
        KeptGeneration { generation: kept.generation, tasks: kept.tasks as u64, why, unfinished, task_ids }
    });
    TasksPruned {
        dry_run,
        tasks: dropped.iter().map(|dropped| dropped.tasks).sum(),
        bytes: dropped.iter().map(|dropped| dropped.bytes).sum(),
        begun: pruned.begun,
        kept: kept.collect(),
        dropped,
    }
}

impl SwarmTasks {
    /// Has nothing running here when this returns, or the grace time is over: what can be finished in it is, and the rest goes back to its
    /// requesters.
    pub(super) async fn drain(&self, grace: Duration) {
        let open = match &*self.current.borrow() {
            Current::Open(handle) => Some(handle.clone()),
            Current::Opening | Current::Failed(_) => None,
        };
        if let Some(handle) = open {
            handle.drain(grace).await;
        }
    }

    /// Returns the tasks once they can be used; while they are being opened, as at the start of the node, it waits for a moment.
    async fn handle(&self) -> Result<TasksHandle, TasksError> {
        let mut current = self.current.clone();
        let opened = current.wait_for(|current| !matches!(current, Current::Opening));
        // Whether it was waited for in vain is seen in what there is.
        let _ = timeout(OPENING_WAIT_MAX, opened).await;
        match &*self.current.borrow() {
            Current::Open(handle) => Ok(handle.clone()),
            Current::Opening => Err(TasksError::Unavailable("the tasks are being opened; ask again".into())),
            Current::Failed(reason) => Err(TasksError::Unavailable(format!("the tasks cannot be used: {reason}"))),
        }
    }

    /// Names a peer as people call it.
    fn node(&self, peer: &str) -> TaskNode {
        let id = NodeId::parse(peer).ok();
        let name = match &id {
            Some(id) if *id == self.me => Some(self.name.clone()),
            Some(id) => self.swarm.peer(id).map(|view| view.name).filter(|name| !name.is_empty()),
            None => None,
        };
        TaskNode { node_id: peer.to_owned(), hostname: name.unwrap_or_else(|| peer.to_owned()) }
    }

    fn info_of(&self, report: TaskReport) -> TaskInfo {
        let worker = report.worker.as_deref().map(|worker| self.node(worker));
        let task_type = type_of(&report.kind);
        let attempts = report.failures.into_iter().map(|failure| FailedAttempt {
            epoch: failure.epoch.0,
            worker: self.node(&failure.worker_peer_id),
            reason: failure.reason,
            at: seconds(failure.at),
        });
        let chunks = report.parts.into_iter().map(|part| TaskChunk {
            task_id: part.id.to_string(),
            index: part.index,
            status: state_of(part.status),
            error: part.error,
        });
        TaskInfo {
            task_id: report.id.to_string(),
            task_type,
            status: state_of(report.status),
            settled: report.settled,
            cancelling: report.cancelling,
            result: None,
            error: report.error,
            waiting: None,
            duration_seconds: span(report.created_at, report.completed_at.unwrap_or_else(now_ms)),
            hostname: worker.as_ref().map(|worker| worker.hostname.clone()),
            node_id: worker.map(|worker| worker.node_id),
            model: (task_type != TaskType::Ping).then_some(report.model),
            mine: report.requester == self.me.as_str(),
            requester: self.node(&report.requester),
            created_at: seconds(report.created_at),
            completed_at: report.completed_at.map(seconds),
            priority: report.priority,
            epoch: report.epoch.0,
            encrypted: report.encrypted,
            attempt: report.attempt,
            attempts: attempts.collect(),
            progress: TaskProgress {
                done: report.progress.done.into(),
                total: report.progress.total.into(),
                tokens: report.progress.tokens,
            },
            chunks: chunks.collect(),
            parent: report.parent.map(|parent| parent.to_string()),
            batch: report.batch.map(|(id, item)| BatchPlace { id, item, total: report.batch_total }),
        }
    }

    /// Tells how a task stands, with what came of it.
    async fn info_with_result(&self, handle: &TasksHandle, report: TaskReport) -> Result<TaskInfo, TasksError> {
        let (id, completed) = (report.id.clone(), report.status == TaskStatus::Completed);
        let mut info = self.info_of(report);
        if completed
            && let Some(result) = handle.result(&id).await.map_err(refused)?
            // What is sealed to others is nothing that could be shown.
            && !result.sealed
        {
            info.result = Some(result_of(result));
        }
        Ok(info)
    }
}

#[async_trait]
impl Tasks for SwarmTasks {
    async fn submit(&self, task: NewTask) -> Result<TaskInfo, TasksError> {
        let handle = self.handle().await?;
        let report = handle.submit(submission(task)?).await.map_err(refused)?;
        self.membership.mark_used().await.map_err(|error| TasksError::Unavailable(error.to_string()))?;
        let waiting = handle.hindrance(&report).await;
        Ok(TaskInfo { waiting, ..self.info_of(report) })
    }

    async fn info(&self, task_id: &str, result: bool) -> Result<TaskInfo, TasksError> {
        let handle = self.handle().await?;
        let report = handle.report(&known(task_id)?).await.map_err(refused)?;
        let waiting = handle.hindrance(&report).await;
        let info = if result { self.info_with_result(&handle, report).await? } else { self.info_of(report) };
        Ok(TaskInfo { waiting, ..info })
    }

    async fn wait(&self, task_id: &str) -> Result<(), TasksError> {
        let handle = self.handle().await?;
        handle.wait(&known(task_id)?).await.map(drop).map_err(refused)
    }

    async fn cancel(&self, task_id: &str) -> Result<TaskInfo, TasksError> {
        let handle = self.handle().await?;
        Ok(self.info_of(handle.cancel(&known(task_id)?).await.map_err(refused)?))
    }

    async fn list(&self, filter: TaskFilter) -> Result<TaskPage, TasksError> {
        let handle = self.handle().await?;
        let TaskFilter { status, mine, batch, cursor, limit } = filter;
        let mut wanted = bombus_swarm::tasks::TaskFilter { mine, batch, cursor, limit, ..Default::default() };
        wanted.statuses = status.map(statuses_of).unwrap_or_default().to_vec();
        let page = handle.list(&wanted).await.map_err(refused)?;
        let tasks = page.tasks.into_iter().map(|report| self.info_of(report)).collect();
        Ok(TaskPage { tasks, next: page.next })
    }

    async fn follow(&self, task_id: &str) -> Result<BoxStream<'static, TaskNews>, TasksError> {
        use bombus_swarm::tasks::TaskNews as News;
        let handle = self.handle().await?;
        let news = handle.follow(&known(task_id)?).await.map_err(refused)?;
        let this = self.clone();
        let told = news.then(move |news| {
            let (this, handle) = (this.clone(), handle.clone());
            async move {
                match news {
                    News::Token { text } => TaskNews::Token(text),
                    News::Attempt { number, .. } => TaskNews::Attempt(number),
                    News::State(report) => TaskNews::State(Box::new(this.info_of(*report))),
                    News::Done(report) => {
                        let plain = this.info_of((*report).clone());
                        // An end without its result is still the end.
                        TaskNews::Done(Box::new(this.info_with_result(&handle, *report).await.unwrap_or(plain)))
                    }
                }
            }
        });
        Ok(told.boxed())
    }

    async fn prune(&self, wanted: TaskPrune) -> Result<TasksPruned, TasksError> {
        let handle = self.handle().await?;
        let configured = handle.retention();
        let retention = Retention {
            retain: wanted.older_than.unwrap_or(configured.retain),
            keep: wanted.keep.unwrap_or(configured.keep),
        };
        Ok(pruned_of(handle.prune(retention, wanted.dry_run).await.map_err(refused)?, wanted.dry_run))
    }

    fn counts(&self) -> TaskCounts {
        let running_here = match &*self.current.borrow() {
            Current::Open(handle) => handle.running().into(),
            Current::Opening | Current::Failed(_) => 0,
        };
        let TaskRunCounts { begun, completed, failed, stopped } = self.runs.now();
        let runs = TaskRunTotals { begun, completed, failed, stopped };
        TaskCounts { running_here, runs, ..self.counts.borrow().clone() }
    }
}

/// Translates what a client asks for.
fn submission(task: NewTask) -> Result<Submission, TasksError> {
    let id = match (&task.task_id, &task.idempotency_key) {
        (Some(id), _) => Some(TaskId::parse(id).map_err(|error| invalid("task_id", error))?),
        (None, Some(key)) => Some(TaskId::of_key(key)),
        (None, None) => None,
    };
    let to = task.to.as_deref().map(NodeId::parse).transpose().map_err(|error| invalid("to", error))?;
    let work = match task.work {
        Work::Inference { input, system, options } => bombus_swarm::tasks::Work::Inference {
            input: match input {
                TaskInput::Prompt(prompt) => Input::Prompt(prompt),
                TaskInput::Messages(messages) => Input::Messages(messages),
            },
            system,
            options: options_of(options),
        },
        Work::Embedding { text } => bombus_swarm::tasks::Work::Embedding { text },
        Work::Ping { payload } => bombus_swarm::tasks::Work::Ping { payload: Value::Object(payload) },
    };
    Ok(Submission {
        id,
        chunking: match task.chunking {
            Chunking::None => chunk::Chunking::None,
            Chunking::Paragraph => chunk::Chunking::Paragraph,
            Chunking::Size => chunk::Chunking::Size,
        },
        max_chunk: task.max_chunk,
        joiner: task.joiner,
        map: task.map,
        reduce: task.reduce,
        to,
        seal_to: task.seal_to,
        priority: task.priority,
        timeout: Some(task.timeout),
        max_attempts: task.max_attempts,
        batch: task.batch.map(|BatchPlace { id, item, total }| BatchItem { batch: id, item, total }),
        ..Submission::new(task.model.unwrap_or_default(), work)
    })
}

fn options_of(options: TaskOptions) -> bombus_core::tasks::TaskOptions {
    bombus_core::tasks::TaskOptions {
        temperature: options.temperature.map(plainly),
        top_p: options.top_p.map(plainly),
        top_k: options.top_k.map(Into::into),
        num_predict: options.max_tokens.map(Into::into),
        stop: Some(options.stop).filter(|stop| !stop.is_empty()),
        seed: options.seed.map(Into::into),
        format: options.json.then(|| "json".into()),
        ..Default::default()
    }
}

/// Writes a number with the digits that the client gave: 0.1 stays 0.1.
fn plainly(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| number.into())
}

fn result_of(result: TaskResultReport) -> TaskResult {
    match (type_of(&result.kind), result.embedding) {
        (TaskType::Embedding, Some(embedding)) => {
            let dimensions = embedding.len();
            TaskResult::Embedding(EmbeddingResult { embedding, model: result.model, dimensions })
        }
        (TaskType::Ping, _) => {
            let echo = serde_json::from_str(&result.response).unwrap_or(Value::String(result.response));
            TaskResult::Ping(PingResult { echo, message: "pong" })
        }
        _ => {
            let ms = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e6);
            let eval_duration_ms = ms(result.eval_duration_ns);
            let speed = |ms: f64| Some(result.eval_count? as f64 / ms * 1_000.0);
            TaskResult::Inference(InferenceResult {
                response: result.response,
                model: result.model,
                total_duration_ms: ms(result.total_duration_ns),
                prompt_eval_count: result.prompt_eval_count,
                eval_count: result.eval_count,
                eval_duration_ms,
                tokens_per_second: eval_duration_ms.filter(|ms| *ms > 0.0).and_then(speed),
            })
        }
    }
}

fn type_of(kind: &bombus_core::tasks::TaskKind) -> TaskType {
    use bombus_core::tasks::TaskKind;
    match kind {
        TaskKind::Embedding => TaskType::Embedding,
        TaskKind::Ping => TaskType::Ping,
        TaskKind::Inference | TaskKind::Other(_) => TaskType::Inference,
    }
}

/// Translates how far a task is. One that a worker has and has not begun still waits.
fn state_of(status: TaskStatus) -> TaskState {
    match status {
        TaskStatus::Pending | TaskStatus::Claimed => TaskState::Pending,
        TaskStatus::Running => TaskState::Running,
        TaskStatus::Completed => TaskState::Completed,
        TaskStatus::Failed => TaskState::Failed,
        TaskStatus::Cancelled => TaskState::Cancelled,
    }
}

/// Translates it back.
fn statuses_of(state: TaskState) -> &'static [TaskStatus] {
    match state {
        TaskState::Pending => &[TaskStatus::Pending, TaskStatus::Claimed],
        TaskState::Running => &[TaskStatus::Running],
        TaskState::Completed => &[TaskStatus::Completed],
        TaskState::Failed => &[TaskStatus::Failed],
        TaskState::Cancelled => &[TaskStatus::Cancelled],
    }
}

fn known(task_id: &str) -> Result<TaskId, TasksError> {
    TaskId::parse(task_id).map_err(|_| TasksError::UnknownTask(format!("no task is called '{task_id}'")))
}

fn invalid(param: &'static str, error: impl std::fmt::Display) -> TasksError {
    TasksError::Invalid { param, message: error.to_string() }
}

fn refused(error: bombus_swarm::tasks::TasksError) -> TasksError {
    use bombus_swarm::tasks::TasksError as Refusal;
    let message = error.to_string();
    match error {
        Refusal::UnknownTask(_) => TasksError::UnknownTask(message),
        Refusal::Conflict(_) => TasksError::Conflict(message),
        Refusal::Invalid { param, message } => TasksError::Invalid { param, message },
        Refusal::Full { .. } => TasksError::Full(message),
        Refusal::Unavailable | Refusal::NoRoom(_) => TasksError::Unavailable(message),
        Refusal::Store(_) => TasksError::Failed(message),
    }
}

fn now_ms() -> u64 {
    use std::time::{SystemTime, UNIX_EPOCH};
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

/// Returns the seconds between two times. Clocks of two nodes may differ; no task ends before it begins.
fn span(from_ms: u64, to_ms: u64) -> f64 {
    seconds(to_ms.saturating_sub(from_ms))
}
