//! The engine processes of a node: which models are in memory, and which have to leave for others.

mod memory;
mod plan;
#[cfg(test)]
#[cfg(unix)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bombus_core::chat::KeepAlive;
use bombus_infer::BackendError;
use bombus_infer::models::LocalModel;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use self::memory::Waiting;
pub(crate) use self::plan::{Machine, context_tokens};
use self::plan::{Need, load_options};
use crate::EmbeddedConfig;
use crate::child::{EngineProcess, LoadError, RequestCount};

/// Suggested to clients that find too many before them.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Requests for models that may wait to be looked at. When it is full, requests wait.
const INBOX_MAX: usize = 256;
/// How often unused models are looked for.
const IDLE_CHECK: Duration = Duration::from_secs(1);
/// Pause before a process that died again is started again; it doubles with every death.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest such pause.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Rest of such a pause that requests wait for; before a longer one they fail.
const BACKOFF_WAIT_MAX: Duration = Duration::from_secs(5);
/// A process that has lived this long has earned a fresh start.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Identifies the weights of a model, whatever its name.
type Key = PathBuf;
type Reply = oneshot::Sender<Result<Lease, BackendError>>;

/// Hands out engine processes with loaded models.
#[derive(Clone)]
pub(crate) struct PoolHandle {
    inbox: mpsc::Sender<Input>,
    shown: watch::Receiver<Shown>,
    deaths: watch::Receiver<u64>,
    stop: CancellationToken,
}

/// The right to use an engine process. As long as one is held, the model stays in memory.
pub(crate) struct Lease {
    pub(crate) process: EngineProcess,
    /// How long this request waited for the model to load, zero where it was loaded already.
    pub(crate) load: Duration,
    _use: InUse,
}

/// Counts the users of a process, and tells the pool when one is done. The count falls before the pool is told.
#[derive(Clone)]
struct InUse {
    count: Arc<()>,
    _told: TellOnDrop,
}

#[derive(Clone)]
struct TellOnDrop(Arc<Notify>);

impl Drop for TellOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// What an engine has in memory and to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineState {
    /// Models in memory, each in a process of its own.
    pub models: usize,
    /// Memory that these may take, in bytes, estimated from their files.
    pub memory_bytes: u64,
    /// Requests that have a slot.
    pub running: usize,
    /// Requests that wait for one, or for their model to be loaded.
    pub waiting: usize,
    /// Processes that died since the start.
    pub deaths: u64,
}

/// What the pool shows at any time, without being asked.
#[derive(Default)]
struct Shown {
    loaded: HashMap<Key, Loaded>,
    /// Requests whose model is not loaded yet.
    waiting: usize,
}

struct Loaded {
    memory_mb: u64,
    requests: RequestCount,
}

/// A model in memory.
pub(crate) struct RunningEngine {
    pub(crate) model: LocalModel,
    pub(crate) memory_mb: u64,
    /// How long it stays if nobody uses it; `None`: until the memory is needed.
    pub(crate) expires_in: Option<Duration>,
}

enum Input {
    Acquire { model: Box<LocalModel>, keep_alive: Option<KeepAlive>, reply: Reply, span: Span },
    Unload { key: Key, reply: oneshot::Sender<()> },
    Running { reply: oneshot::Sender<Vec<RunningEngine>> },
    Loaded { key: Key, start: u64, result: Result<EngineProcess, LoadError> },
    Exited { key: Key, start: u64, reason: String },
}

impl PoolHandle {
    /// Waits for a process that has the model loaded. `keep_alive` says from then on how long it stays unused; without it that remains
    /// as it was, and is what the configuration says at first.
    ///
    /// # Errors
    ///
    /// [`BackendError::OutOfMemory`], [`BackendError::ModelUnusable`], [`BackendError::Overloaded`], [`BackendError::Unavailable`].
    pub(crate) async fn acquire(
        &self,
        model: LocalModel,
        keep_alive: Option<KeepAlive>,
    ) -> Result<Lease, BackendError> {
        let model = Box::new(model);
        self.ask(|reply| Input::Acquire { model, keep_alive, reply, span: Span::current() }).await?
    }

    /// Has a model leave memory: now, or when its last request is done.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unavailable`] where the pool is gone.
    pub(crate) async fn unload(&self, key: Key) -> Result<(), BackendError> {
        self.ask(|reply| Input::Unload { key, reply }).await
    }

    /// Lists the models in memory.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unavailable`] where the pool is gone.
    pub(crate) async fn running(&self) -> Result<Vec<RunningEngine>, BackendError> {
        self.ask(|reply| Input::Running { reply }).await
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, BackendError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(input(reply)).await.map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())
    }

    fn gone(&self) -> BackendError {
        let stops = self.stop.is_cancelled();
        let reason = if stops { "the engine is shutting down" } else { "the engine's pool failed; restart the node" };
        BackendError::Unavailable { reason: reason.into() }
    }

    /// Returns whether the weights at a path are in memory.
    pub(crate) fn is_warm(&self, path: &Path) -> bool {
        self.shown.borrow().loaded.contains_key(path)
    }

    /// Returns what there is in memory and to do, where each process has so many slots.
    pub(crate) fn state(&self, slots: u32) -> EngineState {
        let shown = self.shown.borrow();
        let mut state = EngineState {
            models: shown.loaded.len(),
            memory_bytes: shown.loaded.values().map(|loaded| loaded.memory_mb << 20).sum(),
            running: 0,
            waiting: shown.waiting,
            deaths: *self.deaths.borrow(),
        };
        for requests in shown.loaded.values().map(|loaded| loaded.requests.get()) {
            let running = requests.min(slots as usize);
            state.running += running;
            state.waiting += requests - running;
        }
        state
    }
}

/// Owns the engine processes. Runs as one task until it is cancelled, and then ends them.
pub(crate) struct Pool {
    config: EmbeddedConfig,
    machine: Machine,
    program: PathBuf,
    inbox: mpsc::Receiver<Input>,
    own_inbox: mpsc::Sender<Input>,
    engines: HashMap<Key, Engine>,
    /// How long models stay that a request said it of.
    keep_alive: HashMap<Key, KeepAlive>,
    /// Processes that were told to end and have not yet, by their start, with the memory that they still take in MB.
    stopping: HashMap<u64, u64>,
    /// Processes started so far.
    starts: u64,
    /// Models for which there is no memory until others leave, in the order in which they were asked for.
    waiting: VecDeque<Waiting>,
    shown: watch::Sender<Shown>,
    deaths: watch::Sender<u64>,
    released: Arc<Notify>,
    stop: CancellationToken,
}

struct Engine {
    model: Box<LocalModel>,
    need: Need,
    state: State,
    /// Tells this process from those that had the model before.
    start: u64,
    /// Deaths since the last time that the process was stable.
    deaths: u32,
}

enum State {
    Loading { since: Instant, waiters: Vec<Reply> },
    Ready { process: EngineProcess, in_use: InUse, used_at: Instant, loaded_at: Instant },
    BackingOff { until: Instant, reason: String, waiters: Vec<Reply> },
}

impl Pool {
    pub(crate) fn new(
        config: EmbeddedConfig,
        machine: Machine,
        program: PathBuf,
        stop: CancellationToken,
    ) -> (Self, PoolHandle) {
        let (own_inbox, inbox) = mpsc::channel(INBOX_MAX);
        let (shown, shown_to_all) = watch::channel(Shown::default());
        let (deaths, deaths_seen) = watch::channel(0);
        let handle =
            PoolHandle { inbox: own_inbox.clone(), shown: shown_to_all, deaths: deaths_seen, stop: stop.clone() };
        let pool = Self {
            config,
            machine,
            program,
            inbox,
            own_inbox,
            engines: HashMap::new(),
            keep_alive: HashMap::new(),
            stopping: HashMap::new(),
            starts: 0,
            waiting: VecDeque::new(),
            shown,
            deaths,
            released: Arc::new(Notify::new()),
            stop,
        };
        (pool, handle)
    }

    /// Serves until it is told to stop.
    pub(crate) async fn run(mut self) {
        let mut idle_check = tokio::time::interval(IDLE_CHECK);
        let (released, stop) = (Arc::clone(&self.released), self.stop.clone());
        loop {
            let next_start = self.next_start();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(input) = self.inbox.recv() => self.on_input(input),
                () = released.notified() => self.unload_unused(),
                () = tokio::time::sleep_until(next_start.unwrap_or_else(Instant::now)), if next_start.is_some() => {}
                _ = idle_check.tick() => self.on_tick(),
            }
            self.start_after_pause();
            self.serve_waiting();
            self.show();
        }
    }

    fn on_input(&mut self, input: Input) {
        match input {
            // What a request causes is logged under its id.
            Input::Acquire { model, keep_alive, reply, span } => span.in_scope(|| {
                self.note_keep_alive(&model.path, keep_alive);
                self.on_acquire(model, reply);
            }),
            Input::Unload { key, reply } => {
                self.on_unload(key);
                let _ = reply.send(());
            }
            Input::Running { reply } => drop(reply.send(self.running())),
            Input::Loaded { key, start, result } => self.on_loaded(&key, start, result),
            Input::Exited { key, start, reason } => self.on_exited(&key, start, reason),
        }
    }

    fn note_keep_alive(&mut self, key: &Path, keep_alive: Option<KeepAlive>) {
        match keep_alive {
            Some(keep_alive) => drop(self.keep_alive.insert(key.to_owned(), keep_alive)),
            // It was about to leave, and is wanted again.
            None if self.keep_alive.get(key) == Some(&KeepAlive::Seconds(0)) => drop(self.keep_alive.remove(key)),
            None => {}
        }
    }

    fn on_unload(&mut self, key: Key) {
        if self.engines.contains_key(&key) {
            self.keep_alive.insert(key, KeepAlive::Seconds(0));
            self.unload_unused();
            self.show();
        }
    }

    fn running(&self) -> Vec<RunningEngine> {
        let running = |(key, engine): (&Key, &Engine)| {
            let used_at = engine.used_at()?;
            let unused = if engine.is_idle() { used_at.elapsed() } else { Duration::ZERO };
            Some(RunningEngine {
                model: (*engine.model).clone(),
                memory_mb: engine.need.total_mb(),
                expires_in: self.idle_limit(key).map(|limit| limit.saturating_sub(unused)),
            })
        };
        self.engines.iter().filter_map(running).collect()
    }

    fn on_acquire(&mut self, model: Box<LocalModel>, reply: Reply) {
        // Several names may stand for the same weights; the last one used is shown.
        if let Some(engine) = self.engines.get_mut(&model.path)
            && engine.model.name != model.name
        {
            engine.model.clone_from(&model);
        }
        // A request that saw its process die may be here before the news of the death.
        if let Some(Engine { state: State::Ready { process, .. }, start, .. }) = self.engines.get(&model.path)
            && let Some(reason) = process.death()
        {
            self.on_exited(&model.path, *start, reason);
        }
        let request = Waiting::new(model, vec![reply]);
        if self.has_to_wait(&request.model.path) {
            self.wait(request);
        } else if let Some(request) = self.serve(request) {
            self.wait(request);
        }
    }

    /// Hands out leases, now or when the model is loaded. Returns the requests where there is no memory for their model yet.
    fn serve(&mut self, request: Waiting) -> Option<Waiting> {
        let now = Instant::now();
        let requests_max = self.config.requests_max();
        match self.engines.get_mut(&request.model.path).map(|engine| &mut engine.state) {
            Some(State::Loading { waiters, .. }) => join(waiters, request.replies, requests_max),
            Some(State::Ready { process, in_use, used_at, .. }) => {
                *used_at = now;
                for reply in request.replies {
                    let lease = Lease { process: process.clone(), load: Duration::ZERO, _use: in_use.clone() };
                    let _ = reply.send(Ok(lease));
                }
            }
            Some(State::BackingOff { until, reason, waiters }) if *until > now => {
                let rest = *until - now;
                if rest <= BACKOFF_WAIT_MAX {
                    join(waiters, request.replies, requests_max);
                } else {
                    let reason = format!("{reason}; it is started again in {:.1} s", rest.as_secs_f64());
                    refuse(request.replies, &BackendError::Unavailable { reason });
                }
            }
            Some(State::BackingOff { .. }) | None => return self.load(request),
        }
        None
    }

    /// Starts to load a model if there is room for it, else makes room and returns the requests.
    fn load(&mut self, request: Waiting) -> Option<Waiting> {
        let need = Need::of(&request.model, &self.config);
        let budget_mb = self.machine.budget_mb(&self.config);
        if need.total_mb() > budget_mb {
            let message = format!(
                "model '{}' needs about {} MB ({} MB weights, {} MB context), but {budget_mb} MB may be used; choose a smaller \
                 model or context_tokens, or raise memory_mb",
                request.model.name,
                need.total_mb(),
                need.weights_mb,
                need.cache_mb + need.shelf_mb,
            );
            refuse(request.replies, &BackendError::OutOfMemory { message });
        } else if self.make_room(&request.model.path, need.total_mb()) {
            let deaths = self.engines.get(&request.model.path).map_or(0, |engine| engine.deaths);
            self.start(request.model, need, deaths, request.replies);
        } else {
            return Some(request);
        }
        None
    }

    fn start(&mut self, model: Box<LocalModel>, need: Need, deaths: u32, waiters: Vec<Reply>) {
        let key = model.path.clone();
        let options = load_options(&model, &self.config, &self.machine);
        let timeout = Duration::from_secs(self.config.load_timeout_s);
        let (program, inbox, task_key) = (self.program.clone(), self.own_inbox.clone(), key.clone());
        self.starts += 1;
        let start = self.starts;
        tracing::info!(model.name = %model.name, memory_mb = need.total_mb(), "loading");
        let name = model.name.clone();
        // The process serves other requests than the one that it is started for, so its own lines have none's id.
        let span = tracing::info_span!(parent: None, "engine", model.name = %name);
        let load = async move {
            let begun = Instant::now();
            let started = EngineProcess::start(&program, options, timeout, span).await;
            let load_ms = begun.elapsed().as_millis();
            match started {
                Ok((process, exited)) => {
                    tracing::info!(model.name = %name, load_ms, "loaded");
                    (Ok(process), Some(exited))
                }
                Err(error) => {
                    tracing::warn!(model.name = %name, load_ms, %error, "not loaded");
                    (Err(error), None)
                }
            }
        };
        let load = load.instrument(Span::current());
        let accompany = async move {
            let (result, exited) = load.await;
            let _ = inbox.send(Input::Loaded { key: task_key.clone(), start, result }).await;
            if let Some(exited) = exited {
                let reason = exited.await.unwrap_or_else(|_| "the engine process ended".into());
                let _ = inbox.send(Input::Exited { key: task_key, start, reason }).await;
            }
        };
        // The task only reports to the pool, which decides what a failure means.
        tokio::spawn(accompany);
        let state = State::Loading { since: Instant::now(), waiters };
        self.engines.insert(key, Engine { model, need, state, start, deaths });
    }

    fn on_loaded(&mut self, key: &Path, start: u64, result: Result<EngineProcess, LoadError>) {
        let Some(engine) = self.engines.get_mut(key).filter(|engine| engine.start == start) else { return };
        let State::Loading { since, waiters } = &mut engine.state else { return };
        let (load, waiters) = (since.elapsed(), std::mem::take(waiters));
        let process = match result {
            Ok(process) => process,
            Err(LoadError::Died(reason)) => return self.on_death(key, reason, waiters),
            Err(LoadError::Failed(failure)) => {
                // The next request tries again: the file may have been replaced.
                let model = engine.model.name.to_string();
                self.engines.remove(key);
                self.keep_alive.remove(key);
                let error = if failure.out_of_memory {
                    BackendError::OutOfMemory {
                        message: format!("model '{model}' cannot be loaded: {}", failure.reason),
                    }
                } else {
                    BackendError::ModelUnusable { model, reason: failure.reason }
                };
                return refuse(waiters, &error);
            }
        };
        if let Some(reason) = process.death() {
            return self.on_death(key, reason, waiters);
        }
        let in_use = InUse { count: Arc::new(()), _told: TellOnDrop(Arc::clone(&self.released)) };
        for reply in waiters {
            let _ = reply.send(Ok(Lease { process: process.clone(), load, _use: in_use.clone() }));
        }
        let now = Instant::now();
        engine.state = State::Ready { process, in_use, used_at: now, loaded_at: now };
    }

    fn on_exited(&mut self, key: &Path, start: u64, reason: String) {
        if self.stopping.remove(&start).is_some() {
            return;
        }
        let is_current = |engine: &Engine| engine.start == start && matches!(engine.state, State::Ready { .. });
        if self.engines.get(key).is_some_and(is_current) {
            self.on_death(key, reason, Vec::new());
        }
    }

    /// A process died. It is started again at once the first time, and when it is asked for after a pause from then on. Those who waited
    /// for it to load wait for its successor only if that begins at once.
    fn on_death(&mut self, key: &Path, reason: String, waiters: Vec<Reply>) {
        let Some(engine) = self.engines.remove(key) else { return };
        self.deaths.send_modify(|deaths| *deaths += 1);
        let was_stable = matches!(&engine.state, State::Ready { loaded_at, .. } if loaded_at.elapsed() >= STABLE_AFTER);
        let deaths = if was_stable { 1 } else { engine.deaths + 1 };
        let pause = backoff(deaths);
        let pause_ms = pause.as_millis();
        tracing::error!(model.name = %engine.model.name, reason, deaths, pause_ms, "an engine process died");
        if pause.is_zero() {
            self.start(engine.model, engine.need, deaths, waiters);
        } else {
            let error = BackendError::ModelUnusable { model: engine.model.name.to_string(), reason: reason.clone() };
            refuse(waiters, &error);
            let state = State::BackingOff { until: Instant::now() + pause, reason, waiters: Vec::new() };
            self.engines.insert(key.to_owned(), Engine { state, deaths, ..engine });
        }
    }

    /// Returns when the next process that somebody waits for may be started again.
    fn next_start(&self) -> Option<Instant> {
        let start = |engine: &Engine| match &engine.state {
            State::BackingOff { until, waiters, .. } if !waiters.is_empty() => Some(*until),
            _ => None,
        };
        self.engines.values().filter_map(start).min()
    }

    /// Starts processes again whose pause is over, where somebody waits for them.
    fn start_after_pause(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for engine in self.engines.values_mut() {
            if let State::BackingOff { until, waiters, .. } = &mut engine.state
                && *until <= now
                && !waiters.is_empty()
            {
                due.push(Waiting::new(engine.model.clone(), std::mem::take(waiters)));
            }
        }
        for request in due {
            self.wait(request);
        }
    }

    fn unload(&mut self, key: &Path, why: &str) {
        self.keep_alive.remove(key);
        if let Some(engine) = self.engines.remove(key) {
            tracing::info!(model.name = %engine.model.name, why, "unloaded");
            self.stopping.insert(engine.start, engine.memory_mb());
        }
    }

    fn on_tick(&mut self) {
        for engine in self.engines.values_mut() {
            engine.note_use();
        }
        self.unload_unused();
        self.refuse_overdue();
    }

    /// Ends processes that nobody has used for as long as they may stay.
    fn unload_unused(&mut self) {
        let is_over = |(key, engine): &(&Key, &Engine)| {
            let unused = engine.used_at().filter(|_| engine.is_idle()).map(|used_at| used_at.elapsed());
            self.idle_limit(key).zip(unused).is_some_and(|(limit, unused)| unused >= limit)
        };
        let over: Vec<Key> = self.engines.iter().filter(is_over).map(|(key, _)| key.clone()).collect();
        for key in over {
            self.unload(&key, "unused");
        }
    }

    /// Returns how long a model may stay unused; `None`: until its memory is needed.
    fn idle_limit(&self, key: &Path) -> Option<Duration> {
        match self.keep_alive.get(key) {
            Some(KeepAlive::Forever) => None,
            Some(KeepAlive::Seconds(seconds)) => Some(Duration::from_secs(*seconds)),
            None => Some(Duration::from_secs(self.config.idle_unload_s)).filter(|limit| !limit.is_zero()),
        }
    }

    fn show(&self) {
        let loaded = self.engines.iter().filter_map(|(key, engine)| match &engine.state {
            State::Ready { process, .. } => {
                Some((key.clone(), Loaded { memory_mb: engine.need.total_mb(), requests: process.requests() }))
            }
            State::Loading { .. } | State::BackingOff { .. } => None,
        });
        let for_loading = self.engines.values().filter_map(|engine| match &engine.state {
            State::Loading { waiters, .. } | State::BackingOff { waiters, .. } => Some(waiters),
            State::Ready { .. } => None,
        });
        let for_memory = self.waiting.iter().map(|waiting| &waiting.replies);
        let waiting = for_loading.chain(for_memory).flatten().filter(|reply| !reply.is_closed()).count();
        self.shown.send_replace(Shown { loaded: loaded.collect(), waiting });
    }
}

impl Engine {
    fn memory_mb(&self) -> u64 {
        match self.state {
            State::Loading { .. } | State::Ready { .. } => self.need.total_mb(),
            State::BackingOff { .. } => 0,
        }
    }

    fn is_idle(&self) -> bool {
        matches!(&self.state, State::Ready { in_use, .. } if Arc::strong_count(&in_use.count) == 1)
    }

    fn used_at(&self) -> Option<Instant> {
        match self.state {
            State::Ready { used_at, .. } => Some(used_at),
            State::Loading { .. } | State::BackingOff { .. } => None,
        }
    }

    /// A long answer counts as use until its end.
    fn note_use(&mut self) {
        let is_idle = self.is_idle();
        if let State::Ready { used_at, .. } = &mut self.state
            && !is_idle
        {
            *used_at = Instant::now();
        }
    }
}

fn backoff(deaths: u32) -> Duration {
    match deaths {
        0 | 1 => Duration::ZERO,
        more => BACKOFF_MIN.saturating_mul(1 << (more - 2).min(16)).min(BACKOFF_MAX),
    }
}

/// Lets requests wait for what others wait for already, as many as may; refuses the rest.
fn join(waiters: &mut Vec<Reply>, replies: Vec<Reply>, requests_max: usize) {
    if waiters.len() + replies.len() > requests_max {
        waiters.retain(|reply| !reply.is_closed());
    }
    for reply in replies {
        if waiters.len() < requests_max {
            waiters.push(reply);
        } else {
            let _ = reply.send(Err(BackendError::Overloaded { retry_after: RETRY_AFTER }));
        }
    }
}

fn refuse(replies: Vec<Reply>, error: &BackendError) {
    for reply in replies {
        let _ = reply.send(Err(error.clone()));
    }
}
