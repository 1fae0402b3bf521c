//! A peer as a backend among others.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::chat::{Answerer, ChatRequest, EmbedRequest, EmbedResponse};
use bombus_core::identity::NodeId;
use bombus_core::liveness::PeerState;
use bombus_core::model::{ModelDetails, ModelInfo, ModelName, RunningModel};
use bombus_infer::{Backend, BackendError, ChatStream, Health, PeerFacts, PeerNow, goes_on_as_text};
use bombus_net::NetHandle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use super::config::RunConfig;
use super::conversation::Conversation;
use super::wire::{Embedded, Heard, Load, NAME_BYTES_MAX, cut};
use crate::handle::{SwarmHandle, Watched};
use crate::view::PeerView;

/// How many requests to one peer may wait for its first word at a time: as many as fit twice into what it has room for before it looks.
const OPENING_MAX: usize = 8;
/// How long a peer may take to say what it has in memory: a list of all nodes does not wait for one.
const LOADED_LIMIT: Duration = Duration::from_secs(2);
/// Most numbers of a vector.
const DIMENSIONS_MAX: usize = 65_536;

/// What is known about a peer that told what it offers, and what runs there for this node.
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) net: NetHandle,
    pub(super) config: RunConfig,
    pub(super) opening: Semaphore,
    swarm: SwarmHandle,
    info: Mutex<Info>,
    runs: Mutex<Runs>,
    /// Told when the peer begins to be watched.
    watching: Arc<Notify>,
}

struct Info {
    name: String,
    models: Arc<Vec<ModelInfo>>,
    /// Whether it told them itself; otherwise no more than their names is known.
    has_told: bool,
    /// Those of them that go on with answers of others by the text alone.
    by_text: HashSet<ModelName>,
    load: Load,
    reachable: bool,
    suspect: bool,
    latency_ms: Option<f64>,
    gpu_memory_mb: u64,
    /// Whether the view has ever shown it, so that its absence there means something.
    was_seen: bool,
    is_gone: bool,
    /// Ends when the peer is gone.
    gone: CancellationToken,
}

#[derive(Default)]
struct Runs {
    count: u32,
    /// Stays for a while after the last one, since the next may come soon.
    watched: Option<Watched>,
}

impl Peer {
    pub(super) fn new(
        node: NodeId,
        net: NetHandle,
        swarm: SwarmHandle,
        config: RunConfig,
        watching: Arc<Notify>,
    ) -> Self {
        let info = Info {
            name: String::new(),
            models: Arc::default(),
            has_told: false,
            by_text: HashSet::new(),
            load: Load::default(),
            reachable: false,
            suspect: false,
            latency_ms: None,
            gpu_memory_mb: 0,
            was_seen: false,
            is_gone: false,
            gone: CancellationToken::new(),
        };
        let opening = Semaphore::new(OPENING_MAX);
        Self { node, net, config, opening, swarm, info: Mutex::new(info), runs: Mutex::default(), watching }
    }

    fn info(&self) -> MutexGuard<'_, Info> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what people call it, or its id.
    pub(super) fn called(&self) -> String {
        let info = self.info();
        if info.name.is_empty() { self.node.to_string() } else { info.name.clone() }
    }

    /// Returns what ends when the peer is gone.
    pub(super) fn gone(&self) -> CancellationToken {
        self.info().gone.clone()
    }

    /// Says whether the view has ever shown it.
    pub(super) fn was_seen(&self) -> bool {
        self.info().was_seen
    }

    pub(super) fn is_gone(&self) -> bool {
        self.info().is_gone
    }

    /// Takes what it told: its models, and which of them go on by the text alone. Says whether the models are others now.
    pub(super) fn told(&self, models: Option<(Vec<ModelInfo>, HashSet<ModelName>)>, load: Load) -> bool {
        let mut info = self.info();
        info.load = load;
        let Some((mut models, by_text)) = models else { return false };
        info.has_told = true;
        info.by_text = by_text;
        let mut names = HashSet::new();
        models.retain(|model| names.insert(model.name.clone()));
        let changed = *info.models != models;
        info.models = Arc::new(models);
        changed
    }

    /// Takes the names of models that all are told of, where it has told this node nothing yet. Says whether they are others now.
    pub(super) fn heard_of(&self, names: &[String]) -> bool {
        let names: BTreeSet<ModelName> = names.iter().filter_map(|name| ModelName::parse(name).ok()).collect();
        let mut info = self.info();
        if info.has_told || info.models.iter().map(|model| &model.name).eq(&names) {
            return false;
        }
        info.models = Arc::new(names.into_iter().map(ModelInfo::named).collect());
        true
    }

    /// Takes what the view shows of it; says whether its name is another now. In a crowd a connection is made when it is needed.
    pub(super) fn seen(&self, view: &PeerView, is_crowd: bool) -> bool {
        let mut info = self.info();
        let renamed = info.name != view.name;
        info.name.clone_from(&view.name);
        info.was_seen = true;
        info.suspect = view.state == PeerState::Suspect;
        info.reachable = view.state != PeerState::Gone && (is_crowd || view.path.is_some());
        info.latency_ms = view.latency_ms;
        info.gpu_memory_mb = view.vram_total_mb.unwrap_or(0);
        match (view.state, info.is_gone) {
            (PeerState::Gone, false) => {
                info.is_gone = true;
                info.gone.cancel();
            }
            (PeerState::Alive | PeerState::Suspect, true) => {
                info.is_gone = false;
                info.gone = CancellationToken::new();
            }
            _ => {}
        }
        renamed
    }

    /// Takes that the view does not show it; says whether it is to be forgotten, since it did before.
    pub(super) fn unseen(&self) -> bool {
        let mut info = self.info();
        info.reachable = false;
        if info.was_seen {
            info.is_gone = true;
            info.gone.cancel();
        }
        info.was_seen
    }

    /// Ends what runs there.
    pub(super) fn end(&self) {
        self.info().gone.cancel();
    }

    /// Lets go of the peer where nothing runs there; says whether it is still watched closely.
    pub(super) fn rest(&self) -> bool {
        let mut runs = self.runs();
        let released = (runs.count == 0).then(|| runs.watched.take()).flatten();
        let watched = runs.watched.is_some();
        drop(runs);
        drop(released);
        watched
    }
}

/// A request that runs at a peer: as long as there is one, the failure detector watches the peer closely.
pub(super) struct Running(Arc<Peer>);

impl Running {
    pub(super) fn at(peer: &Arc<Peer>) -> Self {
        let mut runs = peer.runs();
        runs.count += 1;
        if runs.watched.is_none() {
            runs.watched = Some(peer.swarm.watch(&peer.node));
            peer.watching.notify_one();
        }
        drop(runs);
        Self(Arc::clone(peer))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.runs().count -= 1;
    }
}

/// A peer as the registry has it.
pub(super) struct PeerBackend(pub(super) Arc<Peer>);

impl PeerBackend {
    /// Says who made vectors, where the peer told that.
    fn maker(&self, end: &Embedded) -> Option<Answerer> {
        let short = |text: &String| cut(text.clone(), NAME_BYTES_MAX);
        let node = Some(self.0.node.clone());
        (!end.backend.is_empty()).then(|| Answerer { node, backend: short(&end.backend), model: short(&end.model) })
    }
}

impl PeerFacts for PeerBackend {
    fn node(&self) -> &NodeId {
        &self.0.node
    }

    fn node_name(&self) -> String {
        self.0.info().name.clone()
    }

    fn now(&self) -> PeerNow {
        let info = self.0.info();
        PeerNow {
            reachable: info.reachable,
            suspect: info.suspect,
            latency_ms: info.latency_ms,
            running: info.load.running,
            waiting: info.load.waiting,
            ours: info.load.ours,
            slots: info.load.slots,
            draining: info.load.draining,
            paused: info.load.paused,
            gpu_memory_mb: info.gpu_memory_mb,
        }
    }
}

#[async_trait]
impl Backend for PeerBackend {
    /// Returns what the peer told last; never waits.
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        let models = Arc::clone(&self.0.info().models);
        Ok((*models).clone())
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, BackendError> {
        let conversation = Conversation::begin(&self.0, "chat", &request.model, &request).await?;
        Ok(Box::pin(Answer::of(conversation)))
    }

    /// Says what the peer told: where it goes on by the text alone, an answer of a form cannot go on there.
    fn can_resume(&self, request: &ChatRequest) -> bool {
        let by_text = ModelName::parse(&request.model).is_ok_and(|name| self.0.info().by_text.contains(&name));
        !by_text || goes_on_as_text(request)
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        self.embed_in_pieces(request, &|| {}).await
    }

    async fn embed_in_pieces(
        &self,
        request: EmbedRequest,
        came: &(dyn Fn() + Send + Sync),
    ) -> Result<EmbedResponse, BackendError> {
        let mut conversation = Conversation::begin(&self.0, "embed", &request.model, &request).await?;
        let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(request.inputs.len());
        loop {
            match conversation.heard().await? {
                Heard::Progress => {
                    came();
                    // Others get their turn beside a peer that says nothing else.
                    yield_now().await;
                }
                Heard::Vector(vector) if vectors.len() < request.inputs.len() && vector.0.len() <= DIMENSIONS_MAX => {
                    vectors.push(vector.0);
                    came();
                }
                Heard::Embedded(end) if vectors.len() == request.inputs.len() => {
                    return Ok(EmbedResponse {
                        by: self.maker(&end),
                        load_ms: end.load_ms.unwrap_or_default(),
                        ..EmbedResponse::new(vectors, end.prompt_tokens)
                    });
                }
                Heard::Error(failure) => return Err(failure.error()),
                _ => return Err(conversation.broke("it said something else than the vectors that were asked for")),
            }
        }
    }

    async fn details(&self, name: &ModelName) -> Result<Option<ModelDetails>, BackendError> {
        if self.model(name).await?.is_none() {
            return Ok(None);
        }
        let asked = async {
            let mut conversation = Conversation::begin(&self.0, "details", name.as_str(), &()).await?;
            match conversation.heard().await? {
                Heard::Details(details) => Ok(Some(*details)),
                Heard::Error(failure) => Err(failure.error()),
                _ => Err(conversation.broke("it said something else than what was asked about a model")),
            }
        };
        match asked.await {
            Err(BackendError::ModelNotFound { .. }) => Ok(None),
            // One that tells nothing now may still be known to have it.
            Err(BackendError::Rejected { .. }) => Ok(Some(ModelDetails::default())),
            told => told,
        }
    }

    /// Asks a peer that told of models in memory for more about them. What cannot be had within 2 s is left out.
    async fn running(&self) -> Result<Vec<RunningModel>, BackendError> {
        let warm = {
            let info = self.0.info();
            let warm = info.models.iter().find(|model| info.reachable && model.warm);
            warm.map(|model| model.name.clone())
        };
        let Some(one) = warm else { return Ok(Vec::new()) };
        let asked = async {
            let mut conversation = Conversation::begin(&self.0, "loaded", one.as_str(), &()).await?;
            match conversation.heard().await? {
                Heard::Loaded(loaded) => Ok(loaded),
                Heard::Error(failure) => Err(failure.error()),
                _ => Err(conversation.broke("it said something else than what it has in memory")),
            }
        };
        match timeout(LOADED_LIMIT, asked).await {
            Ok(Err(BackendError::Rejected { .. })) | Err(_) => Ok(Vec::new()),
            Ok(told) => told,
        }
    }

    async fn health(&self) -> Health {
        let now = self.now();
        let reason = match () {
            () if !now.reachable => "there is no connection to it",
            () if now.draining => "it is about to go",
            () if now.paused => "its owner keeps it for himself for now",
            () => return Health::Ready,
        };
        Health::Unavailable(reason.to_owned())
    }
}
