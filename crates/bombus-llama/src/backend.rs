mod library;
mod pieces;

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bombus_core::chat::{ChatEvent, ChatRequest, EmbedRequest, EmbedResponse, KeepAlive, ToolChoice};
use bombus_core::model::{ModelCapability, ModelDetails, ModelInfo, ModelName, RunningModel};
use bombus_infer::models::{LocalModel, ModelStore, PullConfig, StoreError, StoreLibrary};
use bombus_infer::{Backend, BackendError, ChatStream, Health, LoadRequest, ModelLibrary};
use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::pieces::pieces;
use crate::EmbeddedConfig;
use crate::child::{ChatRun, RunFailure};
use crate::pool::{EngineState, Lease, Machine, Pool, PoolHandle, RETRY_AFTER, context_tokens};

/// A request whose engine process dies before the first token is tried once more, on the process that takes its place.
const TRIES: u32 = 2;

/// Runs the models of a [`ModelStore`] in engine processes of this node.
pub struct EmbeddedBackend {
    config: EmbeddedConfig,
    store: ModelStore,
    library: StoreLibrary,
    pool: PoolHandle,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedBackend {
    /// Starts without any model loaded. `program` is the executable that understands the argument `engine-worker`, normally this
    /// process's own. Has to be called within a tokio runtime. Where models are fetched from is what the environment says (see
    /// [`PullConfig::from_env`]).
    #[must_use]
    pub fn start(config: EmbeddedConfig, store: ModelStore, program: PathBuf) -> Self {
        let stop = CancellationToken::new();
        let (pool, handle) = Pool::new(config.clone(), Machine::probe(), program, stop.clone());
        let task = tokio::spawn(async {
            // Every request from then on is told so; it cannot be repaired from within.
            if AssertUnwindSafe(pool.run()).catch_unwind().await.is_err() {
                tracing::error!("the engine's pool failed; restart the node");
            }
        });
        let library = StoreLibrary::new(store.clone(), PullConfig::from_env());
        Self { config, store, library, pool: handle, stop, task: Mutex::new(Some(task)) }
    }

    /// Ends all engine processes.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    /// Returns what the engine has in memory and to do at this moment. Does not block.
    #[must_use]
    pub fn state(&self) -> EngineState {
        self.pool.state(self.config.slots)
    }

    async fn find(&self, model: &str) -> Result<LocalModel, BackendError> {
        let not_found = || BackendError::ModelNotFound { model: model.to_owned() };
        let name = ModelName::parse(model).map_err(|_| not_found())?;
        self.get(name).await?.ok_or_else(not_found)
    }

    async fn get(&self, name: ModelName) -> Result<Option<LocalModel>, BackendError> {
        self.in_store(move |store| store.get(&name)).await
    }

    /// Reads the store on a thread that may block.
    async fn in_store<T: Send + 'static>(
        &self,
        read: impl FnOnce(&ModelStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || read(&store)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(BackendError::Unavailable { reason: "the model store could not be read".into() }),
        }
    }

    fn describe(&self, model: &LocalModel) -> ModelInfo {
        ModelInfo {
            context_tokens: Some(context_tokens(model, &self.config)),
            warm: self.pool.is_warm(&model.path),
            continues: model.capabilities().contains(&ModelCapability::Completion),
            ..model.to_model_info()
        }
    }
}

/// Waits for a process that has the model loaded, and has fewer requests than it may have.
async fn acquire(
    pool: &PoolHandle,
    requests_max: usize,
    model: &LocalModel,
    keep_alive: Option<KeepAlive>,
) -> Result<Lease, BackendError> {
    let lease = pool.acquire(model.clone(), keep_alive).await?;
    if lease.process.requests().get() >= requests_max {
        return Err(BackendError::Overloaded { retry_after: RETRY_AFTER });
    }
    Ok(lease)
}

/// A request that may be tried again, as long as nothing has come of it.
struct Attempts {
    pool: PoolHandle,
    requests_max: usize,
    model: LocalModel,
    request: ChatRequest,
    left: u32,
}

/// A run of which the first event is there.
struct Begun {
    lease: Lease,
    run: ChatRun,
    first: ChatEvent,
}

impl Attempts {
    /// Sends the request, again where its process dies before anything came.
    async fn begin(&mut self) -> Result<Begun, BackendError> {
        loop {
            self.left = self.left.saturating_sub(1);
            let lease = acquire(&self.pool, self.requests_max, &self.model, self.request.keep_alive).await?;
            let failure = match lease.process.chat(self.request.clone()).await {
                Ok(mut run) => match run.next().await {
                    Some(Ok(first)) => return Ok(Begun { lease, run, first }),
                    Some(Err(failure)) => failure,
                    None => RunFailure::Died("the run ended without an event".into()),
                },
                Err(failure) => failure,
            };
            self.failed(failure)?;
        }
    }

    /// Sends it again where the process of a run died that had only waited.
    async fn begin_again(&mut self, failure: RunFailure) -> Result<Begun, BackendError> {
        self.failed(failure)?;
        self.begin().await
    }

    /// Takes note of a failure. An error where trying again makes no sense, or was done already.
    fn failed(&self, failure: RunFailure) -> Result<(), BackendError> {
        let reason = retry_reason(&self.model, failure)?;
        if self.left > 0 { Ok(()) } else { Err(BackendError::Interrupted { reason }) }
    }
}

#[async_trait]
impl Backend for EmbeddedBackend {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        let models = self.in_store(ModelStore::list).await?;
        Ok(models.iter().map(|model| self.describe(model)).collect())
    }

    async fn model(&self, name: &ModelName) -> Result<Option<ModelInfo>, BackendError> {
        Ok(self.get(name.clone()).await?.map(|model| self.describe(&model)))
    }

    async fn chat(&self, mut request: ChatRequest) -> Result<ChatStream, BackendError> {
        let model = self.find(&request.model).await?;
        if !model.capabilities().contains(&ModelCapability::Completion) {
            let message = format!("model '{}' makes embeddings, it does not generate text", model.name);
            return Err(BackendError::Unsupported { param: "model", message });
        }
        model.defaults.apply(&mut request);
        if let Some(resume) = request.resume.as_mut().filter(|resume| resume.tokens_for(Some(&model.sha256)).is_none())
        {
            // Those of other weights mean nothing to these.
            resume.tokens.clear();
        }
        let (pool, requests_max) = (self.pool.clone(), self.config.requests_max());
        let mut attempts = Attempts { pool, requests_max, model, request, left: TRIES };
        let begun = attempts.begin().await?;
        Ok(stream(attempts, begun))
    }

    fn can_resume(&self, request: &ChatRequest) -> bool {
        request.tools.is_empty() || request.tool_choice == ToolChoice::None
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        self.embed_in_pieces(request, &|| {}).await
    }

    async fn embed_in_pieces(
        &self,
        request: EmbedRequest,
        came: &(dyn Fn() + Send + Sync),
    ) -> Result<EmbedResponse, BackendError> {
        let model = self.find(&request.model).await?;
        if !model.capabilities().contains(&ModelCapability::Embedding) {
            let message = format!("model '{}' does not make embeddings", model.name);
            return Err(BackendError::Unsupported { param: "model", message });
        }
        embed(&self.pool, self.config.requests_max(), &model, request, came).await
    }

    async fn health(&self) -> Health {
        match crate::cpu::check() {
            Ok(()) => Health::Ready,
            Err(reason) => Health::Unavailable(reason),
        }
    }

    async fn details(&self, name: &ModelName) -> Result<Option<ModelDetails>, BackendError> {
        let name = name.clone();
        let read = |model: LocalModel| {
            model.details().map_err(|source| StoreError::Unusable { path: model.path.clone(), source })
        };
        self.in_store(move |store| store.get(&name)?.map(read).transpose()).await
    }

    async fn running(&self) -> Result<Vec<RunningModel>, BackendError> {
        let now = SystemTime::now();
        let unix_s = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let running = self.pool.running().await?.into_iter().map(|engine| {
            let memory_bytes = engine.memory_mb << 20;
            RunningModel {
                info: self.describe(&engine.model),
                memory_bytes,
                // Without a GPU's support in this build nothing goes there.
                gpu_bytes: if self.config.gpu_layers > 0 && crate::HAS_GPU { memory_bytes } else { 0 },
                context_tokens: context_tokens(&engine.model, &self.config),
                expires_unix_s: engine.expires_in.map(|rest| unix_s(now + rest)),
            }
        });
        Ok(running.collect())
    }

    async fn load(&self, request: LoadRequest) -> Result<(), BackendError> {
        if request.keep_alive == Some(KeepAlive::Seconds(0)) {
            return self.unload(&request.model).await;
        }
        let model = self.find(&request.model).await?;
        self.pool.acquire(model, request.keep_alive).await.map(drop)
    }

    async fn unload(&self, model: &str) -> Result<(), BackendError> {
        let model = self.find(model).await?;
        self.pool.unload(model.path).await
    }

    fn library(&self) -> Option<&dyn ModelLibrary> {
        Some(self)
    }
}

/// Makes vectors piece by piece, and calls `came` after each. One lease holds for all of them, as long as its process lives: a model that nobody
/// used between two pieces would have to leave for the next one that waits for memory. Where the process dies, the pieces that are left are
/// tried once more.
async fn embed(
    pool: &PoolHandle,
    requests_max: usize,
    model: &LocalModel,
    request: EmbedRequest,
    came: &(dyn Fn() + Send + Sync),
) -> Result<EmbedResponse, BackendError> {
    let EmbedRequest { inputs, truncate, dimensions, keep_alive, .. } = request;
    let mut left = VecDeque::from(pieces(inputs));
    let mut whole = EmbedResponse::new(Vec::new(), 0);
    let mut lease: Option<Lease> = None;
    let mut tries = 0;
    while let Some(piece) = left.front() {
        let held = match lease.take() {
            Some(held) => held,
            None => {
                tries += 1;
                let held = acquire(pool, requests_max, model, keep_alive).await?;
                whole.load_ms += held.load.as_secs_f64() * 1000.0;
                held
            }
        };
        match held.process.embed(piece.clone(), truncate).await {
            Ok(made) => {
                let made = shortened(made, dimensions)?;
                whole.vectors.extend(made.vectors);
                whole.prompt_tokens = whole.prompt_tokens.saturating_add(made.prompt_tokens);
                left.pop_front();
                lease = Some(held);
                came();
            }
            Err(failure) => {
                let reason = retry_reason(model, failure)?;
                if tries == TRIES {
                    return Err(BackendError::Interrupted { reason });
                }
            }
        }
    }
    Ok(whole)
}

/// Cuts vectors to the length that was asked for, and scales them to length 1 again.
fn shortened(mut response: EmbedResponse, dimensions: Option<u32>) -> Result<EmbedResponse, BackendError> {
    let Some(dimensions) = dimensions.map(|dimensions| dimensions as usize) else { return Ok(response) };
    for vector in &mut response.vectors {
        if dimensions == 0 || dimensions > vector.len() {
            let message =
                format!("dimensions is {dimensions}, but has to be from 1 to {} for this model", vector.len());
            return Err(BackendError::InvalidRequest { param: Some("dimensions"), message });
        }
        vector.truncate(dimensions);
        let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
        }
    }
    Ok(response)
}

/// Returns how the process died where trying again makes sense, else the error.
fn retry_reason(model: &LocalModel, failure: RunFailure) -> Result<String, BackendError> {
    match failure {
        RunFailure::Died(reason) => {
            tracing::warn!(model.name = %model.name, reason, "the engine process died before it answered");
            Ok(reason)
        }
        RunFailure::Run(error) => Err(error.into()),
    }
}

/// Passes a run's events on. The lease is held until the stream is dropped, so that the model stays.
fn stream(attempts: Attempts, begun: Begun) -> ChatStream {
    Box::pin(async_stream::stream! {
        // As a whole, since the stream would own no more of the lease than what it names.
        let Begun { mut lease, mut run, first } = begun;
        let mut attempts = Some(attempts);
        let mut next = Some(Ok(first));
        while let Some(event) = next {
            match event {
                Ok(ChatEvent::Waiting {}) => yield Ok(ChatEvent::Waiting {}),
                Ok(ChatEvent::Done { finish, usage, mut timings, tokens }) => {
                    timings.load_ms = lease.load.as_secs_f64() * 1000.0;
                    yield Ok(ChatEvent::Done { finish, usage, timings, tokens });
                }
                Ok(event) => {
                    attempts = None;
                    yield Ok(event);
                }
                Err(failure) => {
                    let again = match &mut attempts {
                        Some(attempts) => attempts.begin_again(failure).await,
                        None => Err(error_of(failure)),
                    };
                    match again {
                        Ok(begun) => {
                            (lease, run, next) = (begun.lease, begun.run, Some(Ok(begun.first)));
                            continue;
                        }
                        Err(error) => yield Err(error),
                    }
                }
            }
            next = run.next().await;
        }
    })
}

fn error_of(failure: RunFailure) -> BackendError {
    match failure {
        RunFailure::Run(error) => error.into(),
        RunFailure::Died(reason) => BackendError::Interrupted { reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    mod streams {
        use std::time::Duration;

        use bombus_core::chat::EmbedInput;
        use futures::StreamExt;
        use tokio::time::{sleep, timeout};
        use tokio_util::sync::DropGuard;

        use super::*;
        use crate::scripted;

        const LIMIT: Duration = Duration::from_secs(30);

        /// Starts a pool over scripted engines that may use this memory.
        fn pool(memory_mb: u64) -> (PoolHandle, DropGuard) {
            let (stop, config) = (CancellationToken::new(), EmbeddedConfig { memory_mb, ..EmbeddedConfig::default() });
            let machine = Machine { ram_mb: 1_000, cores: 1 };
            let (pool, handle) = Pool::new(config, machine, scripted::program().to_owned(), stop.clone());
            // Ends with the guard; where it fails, every request does.
            tokio::spawn(pool.run());
            (handle, stop.drop_guard())
        }

        /// Starts a pool, and prepares a request to a model there.
        fn attempts(folder: &tempfile::TempDir, prompt: &str) -> (Attempts, DropGuard) {
            let (pool, stop) = pool(800);
            let model = scripted::model(folder.path(), "a", 1, "load");
            let request = scripted::request(prompt);
            (Attempts { pool, requests_max: 8, model, request, left: TRIES }, stop)
        }

        #[tokio::test]
        async fn a_model_stays_as_long_as_an_answer_of_it_goes_on() {
            let folder = tempfile::tempdir().unwrap();
            let (mut attempts, _stop) = attempts(&folder, "hold");
            let (pool, path) = (attempts.pool.clone(), attempts.model.path.clone());
            let begun = timeout(LIMIT, attempts.begin()).await.unwrap().unwrap();
            let mut answer = stream(attempts, begun);
            assert!(matches!(answer.next().await, Some(Ok(ChatEvent::Delta(_)))));
            pool.unload(path.clone()).await.unwrap();
            assert!(pool.is_warm(&path), "the answer goes on");
            drop(answer);
            let leaves = async {
                while pool.is_warm(&path) {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(LIMIT, leaves).await.expect("nobody uses it any more");
        }

        #[tokio::test]
        async fn a_request_that_only_waited_is_tried_again_when_its_process_dies() {
            let folder = tempfile::tempdir().unwrap();
            let (mut attempts, _stop) = attempts(&folder, "queue die");
            let begun = timeout(LIMIT, attempts.begin()).await.unwrap().unwrap();
            let answer = stream(attempts, begun).filter(|event| {
                let is_shown = *event != Ok(ChatEvent::Waiting {});
                async move { is_shown }
            });
            let events: Vec<_> = timeout(LIMIT, answer.collect()).await.unwrap();
            assert!(matches!(&events[..], [Ok(ChatEvent::Delta(_)), Ok(ChatEvent::Done { .. })]), "{events:?}");
        }

        #[tokio::test]
        async fn a_model_stays_between_two_pieces_of_vectors_though_another_one_waits_for_its_memory() {
            let folder = tempfile::tempdir().unwrap();
            // Each needs 100 MB and 96 for its process.
            let (pool, _stop) = pool(200);
            let [model, other] = ["a", "b"].map(|name| scripted::model(folder.path(), name, 100, "load"));
            let waiting = Mutex::new(None);
            let came = || {
                waiting.lock().unwrap().get_or_insert_with(|| {
                    let (pool, other) = (pool.clone(), other.clone());
                    let mut turn = async move { pool.acquire(other, None).await }.boxed();
                    assert!(turn.as_mut().now_or_never().is_none(), "the pool has yet to hear of it");
                    turn
                });
            };
            let request = EmbedRequest::new("a", vec![EmbedInput::Text("x".into()); 600]);
            let made = timeout(LIMIT, embed(&pool, 8, &model, request, &came)).await.unwrap().unwrap();
            assert_eq!((made.vectors.len(), scripted::starts(&model)), (600, 1));
            let turn = waiting.into_inner().unwrap().expect("pieces came");
            assert!(timeout(LIMIT, turn).await.unwrap().is_ok(), "it has its turn after all of them");
        }
    }

    #[test]
    fn shorter_vectors_have_length_one_again() {
        let response = || EmbedResponse::new(vec![vec![0.6, 0.0, 0.8]], 1);
        assert_eq!(shortened(response(), None), Ok(response()));
        assert_eq!(shortened(response(), Some(2)).unwrap().vectors, [[1.0, 0.0]]);
        for refused in [0, 4] {
            let error = shortened(response(), Some(refused)).unwrap_err();
            assert!(error.to_string().contains("from 1 to 3"), "{error}");
        }
    }
}
