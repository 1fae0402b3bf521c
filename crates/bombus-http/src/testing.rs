//! What the tests of this crate share: services over a scripted backend, and answers in a form that snapshots can hold.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use bombus_core::chat::{
    ChatEvent, ChatRequest, Delta, EmbedRequest, EmbedResponse, FinishReason, Timings, TokenAlternative, TokenLogprob,
    Usage,
};
use bombus_core::identity::{NodeId, NodeKey};
use bombus_core::model::{ModelCapability, ModelDetails, ModelInfo, ModelName, RunningModel};
use bombus_infer::fake::{FakeBackend, FakeConfig};
use bombus_infer::{
    Backend, BackendError, Backends, ByteStream, ChatStream, CreateRequest, Health, LoadRequest, ModelLibrary,
    NamedBackend, PeerFacts, PeerNow, Progress, ProgressStream, PullRequest,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http_body_util::BodyExt;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tower::ServiceExt;

use crate::mesh::{
    FeedItem, Handed, Invitation, Listening, Membership, Mesh, MeshError, MeshReport, ModelSteps, ModelsError, Moved,
    Named, Peer, PeerState, Pong, RemoteModels, Rung, Sharing, SharingState, Trouble, Unreached,
};
use crate::{HttpConfig, KeyStore, Metrics, NodeFacts, NodeSample, Services, router};

/// A backend that plays back what a test gives it, and remembers what it was asked.
#[derive(Default)]
pub(crate) struct Scripted {
    pub(crate) models: Vec<ModelInfo>,
    /// Answers every request with this error before it begins.
    pub(crate) refusal: Option<BackendError>,
    /// The events of every answer; the stream stays open behind them where the last one is no end.
    pub(crate) events: Vec<Result<ChatEvent, BackendError>>,
    /// Repeats the events without end.
    pub(crate) endless: bool,
    /// Time before each event, and before each piece of vectors.
    pub(crate) gap: Duration,
    /// How many pieces of the vectors come before the last one.
    pub(crate) pieces: u32,
    pub(crate) seen: Arc<Mutex<Vec<ChatRequest>>>,
    pub(crate) watch: RunWatch,
    /// The vectors of every request for some.
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) embeds_seen: Arc<Mutex<Vec<EmbedRequest>>>,
    pub(crate) details: ModelDetails,
    /// Never tells the details of a model.
    pub(crate) keeps_details: bool,
    pub(crate) running: Vec<RunningModel>,
    pub(crate) loads_seen: Arc<Mutex<Vec<LoadRequest>>>,
    /// What was loaded and unloaded, in words.
    pub(crate) moves: Arc<Mutex<Vec<String>>>,
    pub(crate) library: Option<ScriptedLibrary>,
}

/// Keeps models as a test wants it, and remembers what it was told.
#[derive(Default, Clone)]
pub(crate) struct ScriptedLibrary {
    /// The steps of every long work; the work goes on without end where there are none.
    pub(crate) steps: Vec<Result<Progress, BackendError>>,
    /// What was asked for, in words.
    pub(crate) told: Arc<Mutex<Vec<String>>>,
    pub(crate) created: Arc<Mutex<Vec<CreateRequest>>>,
    pub(crate) blobs: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Keeps names alone, over models that somebody else manages.
    pub(crate) names_only: bool,
}

impl ScriptedLibrary {
    fn work(&self, what: String) -> ProgressStream {
        self.told.lock().unwrap().push(what);
        match self.steps.is_empty() {
            true => stream::pending().boxed(),
            false => stream::iter(self.steps.clone()).boxed(),
        }
    }

    fn tell(&self, what: String) -> bool {
        let known = !what.contains("unknown");
        self.told.lock().unwrap().push(what);
        known
    }
}

#[async_trait]
impl ModelLibrary for ScriptedLibrary {
    fn takes_weights(&self) -> bool {
        !self.names_only
    }

    async fn pull(&self, request: PullRequest) -> Result<ProgressStream, BackendError> {
        let how = if request.insecure { " insecurely" } else { "" };
        Ok(self.work(format!("pull {}{how}", request.name)))
    }

    async fn delete(&self, name: &ModelName) -> Result<bool, BackendError> {
        Ok(self.tell(format!("delete {name}")))
    }

    async fn copy(&self, from: &ModelName, to: &ModelName) -> Result<bool, BackendError> {
        Ok(self.tell(format!("copy {from} {to}")))
    }

    async fn create(&self, request: CreateRequest) -> Result<ProgressStream, BackendError> {
        let work = self.work(format!("create {}", request.name));
        self.created.lock().unwrap().push(request);
        Ok(work)
    }

    async fn has_blob(&self, sha256: &str) -> Result<bool, BackendError> {
        Ok(self.blobs.lock().unwrap().contains_key(sha256))
    }

    async fn put_blob(&self, sha256: &str, mut bytes: ByteStream) -> Result<(), BackendError> {
        let mut blob = Vec::new();
        while let Some(piece) = bytes.next().await {
            let piece = piece.map_err(|error| BackendError::Unavailable { reason: error.to_string() })?;
            blob.extend_from_slice(&piece);
        }
        if hex::encode(Sha256::digest(&blob)) != sha256 {
            return Err(BackendError::InvalidRequest { param: None, message: "digest mismatch".into() });
        }
        self.blobs.lock().unwrap().insert(sha256.to_owned(), blob);
        Ok(())
    }
}

/// Tells how many runs are under way, and when one ends.
#[derive(Clone, Default)]
pub(crate) struct RunWatch(Arc<(AtomicUsize, Notify)>);

impl RunWatch {
    fn begin(&self) -> RunMark {
        self.0.0.fetch_add(1, Ordering::SeqCst);
        self.0.1.notify_waiters();
        RunMark(self.clone())
    }

    /// Waits, for at most ten seconds, until this many runs are under way.
    pub(crate) async fn until(&self, count: usize) {
        let wait = async {
            loop {
                let changed = self.0.1.notified();
                if self.0.0.load(Ordering::SeqCst) == count {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the runs do not become so many");
    }
}

struct RunMark(RunWatch);

impl Drop for RunMark {
    fn drop(&mut self) {
        self.0.0.0.fetch_sub(1, Ordering::SeqCst);
        self.0.0.1.notify_waiters();
    }
}

#[async_trait]
impl Backend for Scripted {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        Ok(self.models.clone())
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, BackendError> {
        self.seen.lock().unwrap().push(request);
        if let Some(error) = &self.refusal {
            return Err(error.clone());
        }
        let mark = self.watch.begin();
        let events = self.events.clone();
        let stays_open = self.endless || !matches!(events.last(), Some(Err(_) | Ok(ChatEvent::Done { .. })));
        let (endless, gap) = (self.endless, self.gap);
        Ok(async_stream::stream! {
            let _mark = mark;
            loop {
                for event in &events {
                    if gap > Duration::ZERO {
                        tokio::time::sleep(gap).await;
                    }
                    yield event.clone();
                }
                if !endless {
                    break;
                }
                tokio::task::yield_now().await;
            }
            if stays_open {
                std::future::pending::<()>().await;
            }
        }
        .boxed())
    }

    async fn embed_in_pieces(
        &self,
        request: EmbedRequest,
        came: &(dyn Fn() + Send + Sync),
    ) -> Result<EmbedResponse, BackendError> {
        for _ in 0..self.pieces {
            tokio::time::sleep(self.gap).await;
            came();
        }
        self.embed(request).await
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        self.embeds_seen.lock().unwrap().push(request);
        if self.gap > Duration::ZERO {
            tokio::time::sleep(self.gap).await;
        }
        match &self.refusal {
            Some(error) => Err(error.clone()),
            None if self.vectors.is_empty() => Err(BackendError::Unavailable { reason: "no vectors here".into() }),
            None => Ok(EmbedResponse { load_ms: 2.5, ..EmbedResponse::new(self.vectors.clone(), 5) }),
        }
    }

    async fn details(&self, _: &ModelName) -> Result<Option<ModelDetails>, BackendError> {
        if self.keeps_details {
            std::future::pending::<()>().await;
        }
        self.refusal.clone().map_or_else(|| Ok(Some(self.details.clone())), Err)
    }

    async fn running(&self) -> Result<Vec<RunningModel>, BackendError> {
        Ok(self.running.clone())
    }

    async fn load(&self, request: LoadRequest) -> Result<(), BackendError> {
        let model = ModelName::parse(&request.model).unwrap();
        self.moves.lock().unwrap().push(format!("load {model} {:?}", request.keep_alive));
        self.loads_seen.lock().unwrap().push(request);
        self.refusal.clone().map_or(Ok(()), Err)
    }

    async fn unload(&self, model: &str) -> Result<(), BackendError> {
        self.moves.lock().unwrap().push(format!("unload {model}"));
        self.refusal.clone().map_or(Ok(()), Err)
    }

    fn library(&self) -> Option<&dyn ModelLibrary> {
        self.library.as_ref().map(|library| library as &dyn ModelLibrary)
    }

    async fn health(&self) -> Health {
        self.refusal.as_ref().map_or(Health::Ready, |error| Health::Unavailable(error.to_string()))
    }
}

/// Describes a model of which only name and capabilities are known.
pub(crate) fn model(name: &str, capabilities: &[ModelCapability]) -> ModelInfo {
    ModelInfo { capabilities: capabilities.to_vec(), ..ModelInfo::named(ModelName::parse(name).unwrap()) }
}

/// A scripted backend with the model `m`, which can do everything.
pub(crate) fn scripted(events: Vec<Result<ChatEvent, BackendError>>) -> Scripted {
    use ModelCapability::{Completion, Embedding, Insert, Thinking, Tools, Vision};
    Scripted {
        models: vec![model("m", &[Completion, Tools, Embedding, Vision, Thinking, Insert])],
        events,
        ..Scripted::default()
    }
}

/// A scripted backend that refuses everything.
pub(crate) fn refusing(error: BackendError) -> Scripted {
    Scripted { refusal: Some(error), ..scripted(Vec::new()) }
}

/// A piece of text.
pub(crate) fn text(text: &str) -> Result<ChatEvent, BackendError> {
    Ok(ChatEvent::Delta(Delta::text(text)))
}

/// A piece of text with its token and one alternative.
pub(crate) fn token(text: &str, bytes: &[u8]) -> Result<ChatEvent, BackendError> {
    let alternative = |id, bytes: &[u8], logprob| TokenAlternative { id, bytes: bytes.to_vec(), logprob };
    let chosen = alternative(7, bytes, -0.25);
    let top = vec![chosen.clone(), alternative(8, b" or", f32::NEG_INFINITY)];
    Ok(ChatEvent::Delta(Delta { text: text.into(), logprobs: vec![TokenLogprob { token: chosen, top }], trace: None }))
}

/// The end of an answer.
pub(crate) fn done(finish: FinishReason) -> Result<ChatEvent, BackendError> {
    Ok(ChatEvent::Done {
        finish,
        usage: Usage { prompt_tokens: 10, cached_tokens: 4, completion_tokens: 3, ..Usage::default() },
        timings: Timings { load_ms: 0.0, queue_ms: 1.0, prompt_ms: 12.0, generate_ms: 30.0 },
        tokens: Vec::new(),
    })
}

/// Services over one backend, with the keys of an empty file in a directory that lives as long as the test process.
pub(crate) fn services(backend: impl Backend) -> Services {
    services_over(vec![NamedBackend::new("test", "fake", Arc::new(backend))])
}

/// Services over several backends.
pub(crate) fn services_over(backends: Vec<NamedBackend>) -> Services {
    let key = NodeKey::from_secret(&[1; 32]);
    let (sender, sample) = watch::channel(sample());
    // The last sample stays readable without its sender.
    drop(sender);
    Services {
        backends: Backends::new(backends),
        node: NodeFacts {
            node_id: key.node_id(),
            name: "bee".into(),
            version: "0.0.0-test".into(),
            started: Instant::now(),
            sample,
        },
        keys: KeyStore::open("/nonexistent/keys.json"),
        metrics: Metrics::new(),
        default_model: None,
        mesh: Some(Arc::new(ScriptedMesh::default())),
        databases: None,
        tasks: None,
        files: None,
    }
}

/// A key that opens what needs one on loopback too, and the services that know it.
pub(crate) fn with_session_key(services: Services) -> (Services, String) {
    let (keys, key) = services.keys.clone().with_session_key().unwrap();
    (Services { keys, ..services }, key)
}

/// A mesh of two peers that does what a test wants, and remembers what it was told.
#[derive(Clone, Default)]
pub(crate) struct ScriptedMesh {
    pub(crate) peers: Vec<Peer>,
    /// The feed of every reader; it stays open behind them.
    pub(crate) feed: Vec<FeedItem>,
    /// Where readers began.
    pub(crate) read_after: Arc<Mutex<Vec<Option<u64>>>>,
    /// Answers everything that can fail.
    pub(crate) refusal: Option<MeshError>,
    /// What was asked for, in words.
    pub(crate) told: Arc<Mutex<Vec<String>>>,
    pub(crate) sharing: Arc<Mutex<SharingState>>,
    pub(crate) listening: Listening,
    /// How works on the models of nodes go, by node id; without an entry they succeed at once.
    pub(crate) model_steps: BTreeMap<String, Vec<Result<Progress, ModelsError>>>,
}

impl ScriptedMesh {
    fn share(&self, what: &str, change: impl FnOnce(&mut SharingState)) -> Result<SharingState, MeshError> {
        change(&mut self.sharing.lock().unwrap());
        let state = self.sharing.lock().unwrap().clone();
        self.answer(what.to_owned(), state)
    }

    fn answer<T>(&self, what: String, value: T) -> Result<T, MeshError> {
        self.told.lock().unwrap().push(what);
        self.refusal.clone().map_or(Ok(value), Err)
    }
}

/// A peer of which only what is given is known.
pub(crate) fn peer(node_id: &str, hostname: &str) -> Peer {
    Peer {
        node_id: node_id.into(),
        hostname: hostname.into(),
        ip: None,
        port: None,
        node_tier: None,
        capabilities: Vec::new(),
        gpu_name: None,
        vram_total_mb: 0,
        available_models: Vec::new(),
        last_seen: 1_763_700_000.5,
        version: None,
        state: PeerState::Alive,
        reason: "connected".into(),
        since: None,
        status: None,
        path: None,
        latency_ms: None,
        running: None,
        slots: None,
        cpu_usage_percent: None,
        gpu_tier: None,
        backends: Vec::new(),
        installed: Vec::new(),
        clock_skew_ms: None,
    }
}

#[async_trait]
impl Mesh for ScriptedMesh {
    async fn membership(&self) -> Membership {
        Membership {
            swarm_id: "abcdefghijklmnop".into(),
            open: false,
            generation: 2,
            owner: true,
            listen: vec!["/ip4/127.0.0.1/tcp/7891/p2p/12D3KooWSelf".into()],
        }
    }

    fn listening(&self) -> Listening {
        self.listening.clone()
    }

    fn own(&self) -> Peer {
        Peer {
            node_tier: Some("light".into()),
            available_models: vec!["m:latest".into()],
            cpu_usage_percent: Some(12.5),
            running: Some(1),
            slots: Some(8),
            ..peer("12D3KooWSelf", "bee")
        }
    }

    fn peers(&self) -> Vec<Peer> {
        self.peers.clone()
    }

    fn events(&self, after: Option<u64>) -> BoxStream<'static, FeedItem> {
        self.read_after.lock().unwrap().push(after);
        let ends = self.feed.iter().any(|item| matches!(item, FeedItem::Lagged { .. }));
        let items = stream::iter(self.feed.clone());
        if ends { items.boxed() } else { items.chain(stream::pending()).boxed() }
    }

    async fn report(&self) -> MeshReport {
        MeshReport {
            node_id: "12D3KooWSelf".into(),
            membership: self.membership().await,
            connected: self.peers.len(),
            rungs: vec![Rung { name: "mdns-v4".into(), enabled: true, tried: 3, seen: 2, problem: None, detail: None }],
            failures: vec![Unreached {
                address: "/ip4/192.0.2.9/tcp/7891".into(),
                code: "nothing_listens".into(),
                reason: "nothing listens at that port".into(),
                ago_s: 2.5,
            }],
            strangers_refused: 1,
            lowest_score: Some(0.5),
            troubles: vec![Trouble { code: "clock".into(), text: "its clock is off".into() }],
            net: serde_json::json!({ "learned": 3 }),
            swarm: serde_json::json!({ "lost": 0 }),
        }
    }

    async fn ping(&self, node_id: &str) -> Result<Pong, MeshError> {
        let pong = Pong {
            node_id: node_id.into(),
            hostname: "hive".into(),
            round_trip_ms: 0.75,
            path: "direct".into(),
            via: "/ip4/192.0.2.8/tcp/7891".into(),
        };
        self.answer(format!("ping {node_id}"), pong)
    }

    async fn invite(&self) -> Result<Invitation, MeshError> {
        let invitation = Invitation {
            ticket: "bombus1ticket".into(),
            swarm_id: "abcdefghijklmnop".into(),
            addresses: vec!["/ip4/192.0.2.7/tcp/7891".into()],
        };
        self.answer("invite".into(), invitation)
    }

    async fn join(&self, ticket: &str, switch: bool) -> Result<Moved, MeshError> {
        let moved = Moved { swarm_id: "ponmlkjihgfedcba".into(), left: "abcdefghijklmnop".into() };
        self.answer(format!("join {ticket} {switch}"), moved)
    }

    async fn leave(&self) -> Result<Moved, MeshError> {
        let moved = Moved { swarm_id: "ponmlkjihgfedcba".into(), left: "abcdefghijklmnop".into() };
        self.answer("leave".into(), moved)
    }

    async fn kick(&self, node_id: &str) -> Result<Handed, MeshError> {
        let missed = vec![Named { node_id: "12D3KooWFar".into(), hostname: "far".into() }];
        self.answer(format!("kick {node_id}"), Handed { generation: 3, reached: Vec::new(), missed })
    }

    async fn rekey(&self) -> Result<Handed, MeshError> {
        let reached = vec![Named { node_id: "12D3KooWHive".into(), hostname: "hive".into() }];
        self.answer("rekey".into(), Handed { generation: 3, reached, missed: Vec::new() })
    }

    async fn import_owner(&self, key: &str) -> Result<(), MeshError> {
        self.answer(format!("import {key}"), ())
    }

    fn sharing(&self) -> Option<&dyn Sharing> {
        Some(self)
    }

    fn remote_models(&self) -> Option<&dyn RemoteModels> {
        Some(self)
    }
}

impl RemoteModels for ScriptedMesh {
    fn pull(&self, node_id: &str, model: &str) -> ModelSteps {
        self.told.lock().unwrap().push(format!("pull {model} at {node_id}"));
        stream::iter(self.model_steps.get(node_id).cloned().unwrap_or_default()).boxed()
    }

    fn remove(&self, node_id: &str, model: &str) -> ModelSteps {
        self.told.lock().unwrap().push(format!("remove {model} at {node_id}"));
        stream::iter(self.model_steps.get(node_id).cloned().unwrap_or_default()).boxed()
    }
}

#[async_trait]
impl Sharing for ScriptedMesh {
    fn state(&self) -> SharingState {
        self.sharing.lock().unwrap().clone()
    }

    async fn pause(&self) -> Result<SharingState, MeshError> {
        self.share("pause", |state| state.paused = true)
    }

    async fn resume(&self) -> Result<SharingState, MeshError> {
        self.share("resume", |state| state.paused = false)
    }

    async fn drain(&self) -> Result<SharingState, MeshError> {
        self.share("drain", |state| state.draining = true)
    }

    async fn undrain(&self) -> Result<SharingState, MeshError> {
        self.share("undrain", |state| state.draining = false)
    }
}

/// What is known about another node.
struct KnownPeer {
    node: NodeId,
    name: String,
    now: PeerNow,
}

impl PeerFacts for KnownPeer {
    fn node(&self) -> &NodeId {
        &self.node
    }

    fn node_name(&self) -> String {
        self.name.clone()
    }

    fn now(&self) -> PeerNow {
        self.now
    }
}

/// The id of a node of a test, a different one for each number. 1 is the node itself.
pub(crate) fn node_id(number: u8) -> NodeId {
    NodeKey::from_secret(&[number; 32]).node_id()
}

/// Another node with what it answers, connected and idle.
pub(crate) fn other_node(number: u8, name: &str, backend: impl Backend) -> NamedBackend {
    let now = PeerNow { reachable: true, latency_ms: Some(0.5), slots: Some(4), ..PeerNow::default() };
    other_node_at(number, name, now, backend)
}

/// Another node that stands as the test wants it.
pub(crate) fn other_node_at(number: u8, name: &str, now: PeerNow, backend: impl Backend) -> NamedBackend {
    NamedBackend::of_peer(Arc::new(KnownPeer { node: node_id(number), name: name.into(), now }), Arc::new(backend))
}

/// Services of a node with backends of its own and other nodes, which its mesh knows too.
pub(crate) async fn swarm_of(own: Vec<NamedBackend>, others: Vec<NamedBackend>) -> Services {
    let facts = others.iter().filter_map(|named| named.peer.as_ref());
    let peers = facts.map(|facts| peer(facts.node().as_str(), &facts.node_name())).collect();
    let services = services_over(own);
    services.backends.set_peers(others);
    // A node that runs keeps its lists fresh; here nobody does, and what peers have is known at once.
    services.backends.models().await;
    Services { mesh: Some(Arc::new(ScriptedMesh { peers, ..ScriptedMesh::default() })), ..services }
}

fn sample() -> NodeSample {
    let hardware = bombus_core::capability::Hardware {
        cpu_model: "Test CPU".into(),
        cpu_threads: 8,
        cpu_cores: 4,
        ram_total_mb: 16_384,
        ram_available_mb: 8_000,
        disk_total_gb: 100.0,
        disk_free_gb: 60.04,
        gpus: Vec::new(),
        lan_ip: Some("192.0.2.7".into()),
        interfaces: Vec::new(),
        os: "linux".into(),
        architecture: "x86_64".into(),
    };
    NodeSample { hardware, cpu_usage_percent: 12.5 }
}

/// Services over the fake backend.
pub(crate) fn fake(config: FakeConfig) -> Services {
    services(FakeBackend::new(config))
}

pub(crate) const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 7890);
pub(crate) const OPEN: ([u8; 4], u16) = ([192, 0, 2, 7], 7890);

/// The router of a loopback listener.
pub(crate) fn loopback(services: Services) -> Router {
    build(HttpConfig::default(), services, LOOPBACK)
}

/// The router of a listener with any configuration and address.
pub(crate) fn build(config: HttpConfig, services: Services, bound: ([u8; 4], u16)) -> Router {
    router::build(config, services, SocketAddr::from(bound)).0
}

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Writes the answer out, with everything that differs between runs taken away.
    pub(crate) fn shown(&self) -> String {
        let mut shown = format!("{}\n", self.status);
        for (name, value) in &self.headers {
            if name != "x-request-id" && name != "content-length" {
                shown += &format!("{name}: {}\n", value.to_str().unwrap());
            }
        }
        shown.push('\n');
        if self.header("content-type") == Some("text/event-stream") {
            for event in self.body.split_terminator("\n\n") {
                if event.starts_with(": ") {
                    shown += &format!("{event}\n");
                    continue;
                }
                let data = event.strip_prefix("data: ").expect("every event has data");
                match serde_json::from_str::<Value>(data) {
                    Ok(value) => shown += &format!("data: {}\n", steady(value)),
                    Err(_) => shown += &format!("data: {data}\n"),
                }
            }
        } else if self.header("content-type") == Some("application/x-ndjson") {
            for line in self.body.split_terminator('\n') {
                let value = serde_json::from_str(line).expect("every line is JSON");
                shown += &format!("{}\n", steady(value));
            }
        } else if let Ok(value) = serde_json::from_str::<Value>(&self.body) {
            shown += &serde_json::to_string_pretty(&steady(value)).unwrap();
        } else {
            shown += &self.body;
        }
        shown
    }
}

/// Replaces ids and times.
fn steady(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match key.as_str() {
                    "id" if value.as_str().is_some_and(|id| id.contains("cmpl-")) => *value = "ID".into(),
                    "created" | "timestamp" | "uptime_seconds" | "total_duration" => *value = 0.into(),
                    "created_at" => *value = "NOW".into(),
                    _ => *value = steady(value.take()),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| *value = steady(value.take())),
        _ => {}
    }
    value
}

/// Sends a request and reads the answer to its end.
pub(crate) async fn send(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

/// Sends a GET request.
pub(crate) async fn get(router: &Router, path: &str) -> Answer {
    send(router, Request::get(path).body(Body::empty()).unwrap()).await
}

/// Sends a POST request with a body, without saying what is in it.
pub(crate) async fn post(router: &Router, path: &str, body: impl ToString) -> Answer {
    send(router, Request::post(path).body(Body::from(body.to_string())).unwrap()).await
}

/// Lines logged by the current thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.0.lock().unwrap()).lines().map(str::to_owned).collect()
    }
}

thread_local! {
    static CAPTURED: RefCell<Option<Log>> = const { RefCell::new(None) };
}

/// Writes to the log of the current thread, where it has one.
struct ThreadLog;

impl std::io::Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        CAPTURED.with_borrow(|log| {
            if let Some(log) = log {
                log.0.lock().unwrap().extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Ends the capture when it is dropped.
pub(crate) struct Capture;

impl Drop for Capture {
    fn drop(&mut self) {
        CAPTURED.set(None);
    }
}

/// Captures what the current thread logs while the guard lives.
///
/// One subscriber serves all threads: with one for each, a place in the code that another thread without a subscriber comes to first
/// would be noted as one that nobody listens to.
pub(crate) fn capture_log() -> (Log, Capture) {
    static SUBSCRIBER: Once = Once::new();
    SUBSCRIBER.call_once(|| {
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(|| ThreadLog)
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("nobody else sets one");
    });
    let log = Log::default();
    CAPTURED.set(Some(log.clone()));
    (log, Capture)
}
