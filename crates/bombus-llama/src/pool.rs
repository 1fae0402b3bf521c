//! The engine processes of a node: which models are in memory, and which have to leave for others.

mod plan;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bombus_infer::BackendError;
use bombus_infer::models::LocalModel;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

pub(crate) use self::plan::{Machine, context_tokens};
use self::plan::{Need, load_options};
use crate::EmbeddedConfig;
use crate::child::EngineProcess;

/// Requests for models that may wait to be looked at. When it is full, requests wait.
const INBOX_MAX: usize = 256;
/// How often unused models are looked for.
const IDLE_CHECK: Duration = Duration::from_secs(1);
/// Pause before a process that died again is started again; it doubles with every death.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest such pause.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A process that has lived this long has earned a fresh start.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Identifies the weights of a model, whatever its name.
type Key = PathBuf;
type Reply = oneshot::Sender<Result<Lease, BackendError>>;

/// Hands out engine processes with loaded models.
#[derive(Clone)]
pub(crate) struct PoolHandle {
    inbox: mpsc::Sender<Input>,
    warm: watch::Receiver<HashSet<Key>>,
    deaths: watch::Receiver<u64>,
}

/// The right to use an engine process. As long as one is held, the model stays in memory.
pub(crate) struct Lease {
    pub(crate) process: EngineProcess,
    /// How long this request waited for the model to load, zero where it was loaded already.
    pub(crate) load: Duration,
    _use: InUse,
}

/// Counts the users of a process, and tells the pool when one is done.
#[derive(Clone)]
struct InUse {
    count: Arc<()>,
    released: Arc<Notify>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.released.notify_one();
    }
}

enum Input {
    Acquire { model: Box<LocalModel>, reply: Reply, span: Span },
    Loaded { key: Key, result: Result<EngineProcess, String> },
    Exited { key: Key, start: u64, reason: String },
}

impl PoolHandle {
    /// Waits for a process that has the model loaded.
    ///
    /// # Errors
    ///
    /// [`BackendError::OutOfMemory`], [`BackendError::ModelUnusable`], [`BackendError::Unavailable`].
    pub(crate) async fn acquire(&self, model: LocalModel) -> Result<Lease, BackendError> {
        let stopping = || BackendError::Unavailable { reason: "the engine is shutting down".into() };
        let (reply, answer) = oneshot::channel();
        let input = Input::Acquire { model: Box::new(model), reply, span: Span::current() };
        self.inbox.send(input).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Returns whether the weights at a path are in memory.
    pub(crate) fn is_warm(&self, path: &Path) -> bool {
        self.warm.borrow().contains(path)
    }

    /// Returns how many engine processes have died since the start.
    pub(crate) fn deaths(&self) -> u64 {
        *self.deaths.borrow()
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
    /// Processes started so far.
    starts: u64,
    /// Requests for which there is no memory until others end.
    waiting_for_memory: Vec<(Box<LocalModel>, Reply)>,
    warm: watch::Sender<HashSet<Key>>,
    deaths: watch::Sender<u64>,
    released: Arc<Notify>,
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
    BackingOff { until: Instant, reason: String },
}

impl Pool {
    pub(crate) fn new(config: EmbeddedConfig, machine: Machine, program: PathBuf) -> (Self, PoolHandle) {
        let (own_inbox, inbox) = mpsc::channel(INBOX_MAX);
        let (warm, warm_seen) = watch::channel(HashSet::new());
        let (deaths, deaths_seen) = watch::channel(0);
        let handle = PoolHandle { inbox: own_inbox.clone(), warm: warm_seen, deaths: deaths_seen };
        let pool = Self {
            config,
            machine,
            program,
            inbox,
            own_inbox,
            engines: HashMap::new(),
            starts: 0,
            waiting_for_memory: Vec::new(),
            warm,
            deaths,
            released: Arc::new(Notify::new()),
        };
        (pool, handle)
    }

    /// Serves until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut idle_check = tokio::time::interval(IDLE_CHECK);
        let released = Arc::clone(&self.released);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(input) = self.inbox.recv() => self.on_input(input),
                () = released.notified() => self.on_released(),
                _ = idle_check.tick() => self.on_tick(),
            }
            self.publish_warm();
        }
    }

    fn on_input(&mut self, input: Input) {
        match input {
            // What a request causes is logged under its id.
            Input::Acquire { model, reply, span } => span.in_scope(|| self.on_acquire(model, reply)),
            Input::Loaded { key, result } => self.on_loaded(&key, result),
            Input::Exited { key, start, reason } => self.on_exited(&key, start, reason),
        }
    }

    fn on_acquire(&mut self, model: Box<LocalModel>, reply: Reply) {
        // A request that saw its process die may be here before the news of the death.
        if let Some(Engine { state: State::Ready { process, .. }, start, .. }) = self.engines.get(&model.path)
            && let Some(reason) = process.death()
        {
            self.on_exited(&model.path, *start, reason);
        }
        match self.engines.get_mut(&model.path).map(|engine| &mut engine.state) {
            Some(State::Loading { waiters, .. }) => waiters.push(reply),
            Some(State::Ready { process, in_use, used_at, .. }) => {
                *used_at = Instant::now();
                let lease = Lease { process: process.clone(), load: Duration::ZERO, _use: in_use.clone() };
                let _ = reply.send(Ok(lease));
            }
            Some(State::BackingOff { until, reason }) if *until > Instant::now() => {
                let wait_s = until.saturating_duration_since(Instant::now()).as_secs_f64();
                let reason = format!("{reason}; it is started again in {wait_s:.1} s");
                let _ = reply.send(Err(BackendError::Unavailable { reason }));
            }
            Some(State::BackingOff { .. }) | None => self.load(model, reply),
        }
    }

    /// Starts to load a model, after room is made for it.
    fn load(&mut self, model: Box<LocalModel>, reply: Reply) {
        let need = Need::of(&model, &self.config);
        let budget_mb = self.machine.budget_mb(&self.config);
        if need.total_mb() > budget_mb {
            let message = format!(
                "model '{}' needs about {} MB ({} MB weights, {} MB context), but {budget_mb} MB may be used; choose a smaller \
                 model or context_tokens, or raise memory_mb",
                model.name,
                need.total_mb(),
                need.weights_mb,
                need.cache_mb,
            );
            let _ = reply.send(Err(BackendError::OutOfMemory { message }));
        } else if self.make_room(&model.path, need.total_mb(), budget_mb) {
            let deaths = self.engines.get(&model.path).map_or(0, |engine| engine.deaths);
            self.start(model, need, deaths, vec![reply]);
        } else {
            self.waiting_for_memory.push((model, reply));
        }
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
        let load = async move {
            let (exit_inbox, exit_key) = (inbox.clone(), task_key.clone());
            let on_exit = move |reason| {
                tokio::spawn(
                    async move { drop(exit_inbox.send(Input::Exited { key: exit_key, start, reason }).await) },
                );
            };
            let begun = Instant::now();
            let result = EngineProcess::start(&program, options, timeout, on_exit).await;
            let load_ms = begun.elapsed().as_millis();
            match &result {
                Ok(_) => tracing::info!(model.name = %name, load_ms, "loaded"),
                Err(reason) => tracing::warn!(model.name = %name, load_ms, reason, "not loaded"),
            }
            let _ = inbox.send(Input::Loaded { key: task_key, result }).await;
        };
        // Both tasks only report to the pool, which decides what a failure means.
        tokio::spawn(load.instrument(Span::current()));
        let state = State::Loading { since: Instant::now(), waiters };
        self.engines.insert(key, Engine { model, need, state, start, deaths });
    }

    fn on_loaded(&mut self, key: &Path, result: Result<EngineProcess, String>) {
        let Some(engine) = self.engines.get_mut(key) else { return };
        let State::Loading { since, waiters } = &mut engine.state else { return };
        let (load, waiters) = (since.elapsed(), std::mem::take(waiters));
        match result {
            Ok(process) => {
                let in_use = InUse { count: Arc::new(()), released: Arc::clone(&self.released) };
                for reply in waiters {
                    let _ = reply.send(Ok(Lease { process: process.clone(), load, _use: in_use.clone() }));
                }
                let now = Instant::now();
                engine.state = State::Ready { process, in_use, used_at: now, loaded_at: now };
            }
            Err(reason) => {
                let model = engine.model.name.to_string();
                for reply in waiters {
                    let (model, reason) = (model.clone(), reason.clone());
                    let _ = reply.send(Err(BackendError::ModelUnusable { model, reason }));
                }
                self.engines.remove(key);
                self.on_released();
            }
        }
    }

    /// A process died. It is started again at once the first time, and when it is asked for after a pause from then on.
    fn on_exited(&mut self, key: &Path, start: u64, reason: String) {
        if self.engines.get(key).is_none_or(|engine| engine.start != start) {
            return;
        }
        let Some(engine) = self.engines.remove(key) else { return };
        self.deaths.send_modify(|deaths| *deaths += 1);
        let was_stable = matches!(&engine.state, State::Ready { loaded_at, .. } if loaded_at.elapsed() >= STABLE_AFTER);
        let deaths = if was_stable { 1 } else { engine.deaths + 1 };
        let pause = backoff(deaths);
        let pause_ms = pause.as_millis();
        tracing::error!(model.name = %engine.model.name, reason, deaths, pause_ms, "an engine process died");
        if pause.is_zero() {
            self.start(engine.model, engine.need, deaths, Vec::new());
        } else {
            let state = State::BackingOff { until: Instant::now() + pause, reason };
            self.engines.insert(key.to_owned(), Engine { state, deaths, ..engine });
        }
    }

    /// Ends processes that nobody uses, the longest unused first, until there is room. Returns whether there is.
    fn make_room(&mut self, wanted: &Path, need_mb: u64, budget_mb: u64) -> bool {
        loop {
            let others = || self.engines.iter().filter(|(key, _)| *key != wanted);
            let used_mb: u64 = others().map(|(_, engine)| engine.memory_mb()).sum();
            if used_mb + need_mb <= budget_mb {
                return true;
            }
            let idle = others().filter(|(_, engine)| engine.is_idle());
            let Some(oldest) = idle.min_by_key(|(_, engine)| engine.used_at()).map(|(key, _)| key.clone()) else {
                return false;
            };
            self.unload(&oldest, "another model needs the memory");
        }
    }

    fn unload(&mut self, key: &Path, why: &str) {
        if let Some(engine) = self.engines.remove(key) {
            tracing::info!(model.name = %engine.model.name, why, "unloaded");
        }
    }

    /// Somebody is done with a model, so there may be room for those who wait.
    fn on_released(&mut self) {
        for (model, reply) in std::mem::take(&mut self.waiting_for_memory) {
            if !reply.is_closed() {
                self.on_acquire(model, reply);
            }
        }
    }

    fn on_tick(&mut self) {
        for engine in self.engines.values_mut() {
            engine.note_use();
        }
        let limit = Duration::from_secs(self.config.idle_unload_s);
        if !limit.is_zero() {
            let is_over = |engine: &Engine| engine.used_at().is_some_and(|used_at| used_at.elapsed() >= limit);
            let over: Vec<Key> = self.engines.iter().filter(|(_, e)| is_over(e)).map(|(key, _)| key.clone()).collect();
            for key in over {
                self.unload(&key, "unused");
            }
        }
        self.on_released();
    }

    fn publish_warm(&self) {
        let ready = self.engines.iter().filter(|(_, engine)| matches!(engine.state, State::Ready { .. }));
        let warm: HashSet<Key> = ready.map(|(key, _)| key.clone()).collect();
        self.warm.send_if_modified(|known| {
            let changed = *known != warm;
            *known = warm;
            changed
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_a_death_grows_to_its_limit() {
        let pauses: Vec<u128> = [1, 2, 3, 8, 40].map(|deaths| backoff(deaths).as_millis()).to_vec();
        assert_eq!(pauses, [0, 500, 1_000, 30_000, 30_000]);
    }
}
