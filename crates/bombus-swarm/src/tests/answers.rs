//! Answers between nodes, over real connections on the loopback address.

mod crowd;
mod owner;
mod questions;
mod raw;
mod runs;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::chat::{
    ChatEvent, ChatRequest, Delta, EmbedRequest, EmbedResponse, FinishReason, Message, Prompt, Role, Timings, Usage,
};
use bombus_core::identity::NodeId;
use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
use bombus_infer::fake::{FakeBackend, FakeConfig};
use bombus_infer::{Backend, BackendError, BackendState, Backends, ChatStream, Health, NamedBackend, PeerNow};
use futures::{StreamExt, stream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::harness::{LIMIT, Mesh, Node, until_it_shows};
use crate::SwarmConfig;
use crate::route::{RouteHandle, RunConfig, ShareConfig, route};

/// A node that answers others.
struct Answering {
    node: Node,
    backends: Backends,
    route: RouteHandle,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Answering {
    async fn start(number: u8, seeds: &[&Mesh], backends: Vec<NamedBackend>, config: RunConfig) -> Self {
        Self::start_with(number, seeds, backends, config, SwarmConfig::default()).await
    }

    async fn start_with(
        number: u8,
        seeds: &[&Mesh],
        backends: Vec<NamedBackend>,
        config: RunConfig,
        swarm: SwarmConfig,
    ) -> Self {
        Self::on(Node::start_with(number, seeds, swarm).await, backends, config).await
    }

    async fn on(node: Node, backends: Vec<NamedBackend>, config: RunConfig) -> Self {
        let backends = Backends::new(backends);
        for named in backends.all() {
            backends.refresh(&named.name).await;
        }
        let (handle, service) = route(config, node.mesh.net.clone(), node.swarm.clone(), backends.clone());
        let stop = CancellationToken::new();
        let task = tokio::spawn(service.run(stop.clone()));
        Self { node, backends, route: handle, stop, task }
    }

    fn mesh(&self) -> &Mesh {
        &self.node.mesh
    }

    fn id(&self) -> NodeId {
        self.node.id()
    }

    fn state_of(&self, peer: &NodeId) -> Option<BackendState> {
        self.backends.states().into_iter().find(|state| state.node.as_ref() == Some(peer))
    }

    /// Waits until a peer is known to offer anything, and looks in a certain way.
    async fn sees(&self, peer: &NodeId, looks: impl Fn(&BackendState, &PeerNow) -> bool) {
        let shows = || {
            self.state_of(peer).is_some_and(|state| {
                let now = state.peer.unwrap_or_default();
                looks(&state, &now)
            })
        };
        until_it_shows(|| async {}, shows).await;
    }

    /// Waits until a peer offers models, and returns it as a backend.
    async fn peer(&self, peer: &NodeId) -> Arc<dyn Backend> {
        self.sees(peer, |state, now| state.models > 0 && now.reachable).await;
        self.backends.named(peer.as_str()).expect("it is listed").backend.clone()
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(LIMIT, self.task).await.expect("answering ends").unwrap();
        self.node.stop().await;
    }
}

/// Two nodes: the first has no model, and the second has these backends.
async fn pair(backends: Vec<NamedBackend>, config: RunConfig) -> (Answering, Answering) {
    let asking = Answering::start(1, &[], Vec::new(), RunConfig::default()).await;
    let answering = Answering::start(2, &[asking.mesh()], backends, config).await;
    (asking, answering)
}

fn fake() -> Vec<NamedBackend> {
    vec![NamedBackend::new("fake", "fake", Arc::new(FakeBackend::new(FakeConfig::default())))]
}

fn named(backend: Arc<dyn Backend>) -> Vec<NamedBackend> {
    vec![NamedBackend::new("scripted", "fake", backend)]
}

fn sharing(share: ShareConfig) -> RunConfig {
    RunConfig { share, ..RunConfig::default() }
}

fn ask(text: &str) -> ChatRequest {
    ChatRequest::new("fake", Prompt::Chat(vec![Message::text(Role::User, text)]))
}

fn text_of(events: &[ChatEvent]) -> String {
    let texts = events.iter().filter_map(|event| match event {
        ChatEvent::Delta(delta) => Some(delta.text.as_str()),
        _ => None,
    });
    texts.collect()
}

fn done() -> ChatEvent {
    let (usage, timings) = (Usage::default(), Timings::default());
    ChatEvent::Done { finish: FinishReason::Stop, usage, timings, tokens: Vec::new() }
}

async fn collect(stream: ChatStream) -> Vec<Result<ChatEvent, BackendError>> {
    timeout(LIMIT, stream.collect()).await.expect("the answer ends")
}

/// Waits for something that is counted elsewhere.
async fn until(mut shows: impl FnMut() -> bool) {
    let shown = async {
        while !shows() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, shown).await.expect("it shows");
}

/// How the answers of a [`Scripted`] backend go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Script {
    /// One word, and then nothing.
    Hang,
    /// So many words, and then each second that others are before it.
    Wait(usize),
    /// Words without end, as fast as they are taken.
    Endless,
    /// An answer at once, of a word.
    Short,
}

/// A backend that counts what runs.
struct Scripted {
    script: Script,
    running: Arc<AtomicU32>,
    produced: Arc<AtomicUsize>,
    /// How many inputs each request for vectors had.
    inputs: Mutex<Vec<usize>>,
    /// Has it make the last of the vectors.
    last: Notify,
}

impl Scripted {
    fn new(script: Script) -> Arc<Self> {
        let (running, produced) = (Arc::default(), Arc::default());
        Arc::new(Self { script, running, produced, inputs: Mutex::default(), last: Notify::new() })
    }

    fn running(&self) -> u32 {
        self.running.load(Ordering::SeqCst)
    }

    fn produced(&self) -> usize {
        self.produced.load(Ordering::SeqCst)
    }
}

struct Counted(Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Backend for Scripted {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        let info = ModelInfo::named(ModelName::parse("fake").unwrap());
        let capabilities = vec![ModelCapability::Completion, ModelCapability::Embedding];
        Ok(vec![ModelInfo { capabilities, ..info }])
    }

    async fn chat(&self, _request: ChatRequest) -> Result<ChatStream, BackendError> {
        self.running.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(Arc::clone(&self.running));
        let word = |text: &str| Ok(ChatEvent::Delta(Delta::text(text)));
        Ok(match self.script {
            Script::Short => stream::iter([word("short"), Ok(done())])
                .inspect(move |_| {
                    let _counted = &counted;
                })
                .boxed(),
            Script::Hang => stream::iter([word("first")])
                .chain(stream::pending())
                .inspect(move |_| {
                    let _counted = &counted;
                })
                .boxed(),
            Script::Wait(words) => stream::iter(std::iter::repeat_n(word("word"), words))
                .chain(stream::iter([Ok(ChatEvent::Waiting {})]))
                .chain(stream::repeat(()).then(|()| async {
                    sleep(Duration::from_secs(1)).await;
                    Ok(ChatEvent::Waiting {})
                }))
                .inspect(move |_| {
                    let _counted = &counted;
                })
                .boxed(),
            Script::Endless => {
                let produced = Arc::clone(&self.produced);
                stream::repeat_with(move || {
                    let _counted = &counted;
                    produced.fetch_add(1, Ordering::SeqCst);
                    Ok(ChatEvent::Delta(Delta::text("x".repeat(1_000))))
                })
                .boxed()
            }
        })
    }

    async fn embed(&self, _request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        std::future::pending().await
    }

    /// Says again and again that a piece is there, until the test wants the last one.
    async fn embed_in_pieces(
        &self,
        request: EmbedRequest,
        came: &(dyn Fn() + Send + Sync),
    ) -> Result<EmbedResponse, BackendError> {
        let inputs = request.inputs.len();
        self.inputs.lock().unwrap().push(inputs);
        while timeout(Duration::from_millis(10), self.last.notified()).await.is_err() {
            came();
        }
        Ok(EmbedResponse::new(vec![vec![1.0]; inputs], 1))
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}
