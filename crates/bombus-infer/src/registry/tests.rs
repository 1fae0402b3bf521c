mod continuation;
mod failover;
mod flapping;
mod lists;
mod logs;
mod peers;
mod quantity;
mod scribe;
mod slots;
mod upstreams;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bombus_core::chat::{
    ChatEvent, ChatRequest, Delta, EmbedRequest, EmbedResponse, FinishReason, Prompt, Think, Timings, Usage,
};
use bombus_core::model::ModelCapability;
use tokio::sync::Notify;

use super::*;
use crate::{ChatStream, Health, LoadRequest};

/// What a [`Player`] does with a request.
#[derive(Clone)]
enum Play {
    /// Answers in so many words.
    Say(u32),
    /// Does so, and refuses to think.
    SayAtOnce(u32),
    /// Fails before it begins.
    Refuse(BackendError),
    /// Fails in the stream, before the first word.
    RefuseInStream(BackendError),
    /// Breaks off after a word.
    BreakOff,
    /// Says a word and then nothing more.
    Stall,
    /// Never begins.
    Hang,
    /// After so many words says so often, once a second, that others are before the request, and then nothing more.
    Wait { words: u32, times: u32 },
    /// Says the same so many times, and breaks off.
    Flood(Arc<ChatEvent>, usize),
}

/// A backend that does what the test wants, and remembers what it was asked.
struct Player {
    models: Mutex<Result<Vec<ModelInfo>, BackendError>>,
    given: Vec<ModelName>,
    play: Box<dyn Fn() -> Play + Send + Sync>,
    asked: Mutex<Vec<String>>,
    lists: AtomicU32,
    /// Asks of the list wait for this, where it is there.
    gate: Option<Notify>,
}

impl Player {
    fn new(play: impl Fn() -> Play + Send + Sync + 'static) -> Self {
        Self {
            models: Mutex::new(Ok(vec![text_model("m")])),
            given: Vec::new(),
            play: Box::new(play),
            asked: Mutex::default(),
            lists: AtomicU32::new(0),
            gate: None,
        }
    }

    fn always(play: Play) -> Arc<Self> {
        Arc::new(Self::new(move || play.clone()))
    }

    fn with_models(models: Vec<ModelInfo>) -> Arc<Self> {
        let player = Self::always(Play::Say(8));
        *player.models.lock().unwrap() = Ok(models);
        player
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait]
impl Backend for Player {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        self.models.lock().unwrap().clone()
    }

    fn given(&self) -> Vec<ModelName> {
        self.given.clone()
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, BackendError> {
        let thinks = request.think.is_some_and(|think| think != Think::Off);
        self.asked.lock().unwrap().push(request.model);
        let play = (self.play)();
        let words = match &play {
            Play::SayAtOnce(_) if thinks => {
                return Err(BackendError::Unsupported { param: "think", message: "it does not think".into() });
            }
            Play::Refuse(error) => return Err(error.clone()),
            Play::Hang => std::future::pending().await,
            Play::RefuseInStream(_) | Play::Flood(..) => 0,
            Play::BreakOff | Play::Stall => 1,
            Play::Say(words) | Play::SayAtOnce(words) | Play::Wait { words, .. } => *words,
        };
        Ok(async_stream::stream! {
            for _ in 0..words {
                yield Ok(word());
            }
            match play {
                Play::RefuseInStream(error) => yield Err(error),
                Play::BreakOff => yield Err(BackendError::Interrupted { reason: "broken".into() }),
                Play::Stall => std::future::pending().await,
                Play::Wait { times, .. } => {
                    for _ in 0..times {
                        yield Ok(ChatEvent::Waiting {});
                        sleep(Duration::from_secs(1)).await;
                    }
                    std::future::pending::<()>().await;
                }
                Play::Flood(event, times) => {
                    for _ in 0..times {
                        yield Ok((*event).clone());
                    }
                    yield Err(BackendError::Interrupted { reason: "broken".into() });
                }
                _ => yield Ok(done(words)),
            }
        }
        .boxed())
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        self.asked.lock().unwrap().push(request.model);
        match (self.play)() {
            Play::Refuse(error) => Err(error),
            _ => Ok(EmbedResponse::new(vec![vec![3.0, 4.0, 12.0]; request.inputs.len()], 1)),
        }
    }

    async fn load(&self, request: LoadRequest) -> Result<(), BackendError> {
        self.asked.lock().unwrap().push(request.model);
        match (self.play)() {
            Play::Refuse(error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

fn word() -> ChatEvent {
    ChatEvent::Delta(Delta::text("word"))
}

fn done(words: u32) -> ChatEvent {
    let usage = Usage { completion_tokens: words, ..Usage::default() };
    let timings = Timings { generate_ms: f64::from(words) * 10.0, ..Timings::default() };
    ChatEvent::Done { finish: FinishReason::Stop, usage, timings, tokens: Vec::new() }
}

fn text_model(name: &str) -> ModelInfo {
    ModelInfo::named(ModelName::parse(name).unwrap())
}

fn named(name: &str, backend: Arc<dyn Backend>) -> NamedBackend {
    NamedBackend::new(name, "openai", backend)
}

/// Backends called `a`, `b`, and so on.
fn backends_of(players: &[Arc<Player>]) -> Backends {
    let names = ["a", "b", "c", "d"];
    Backends::new(players.iter().zip(names).map(|(player, name)| named(name, player.clone())).collect())
}

fn text() -> Need {
    Need::of([ModelCapability::Completion])
}

fn ask(model: &str) -> ChatRequest {
    ChatRequest::new(model, Prompt::Raw("x".into()))
}

fn unavailable() -> BackendError {
    BackendError::Unavailable { reason: "it is down".into() }
}

/// Sends a request for `m` where it leads.
async fn chat(backends: &Backends) -> Result<Routed<ChatStream>, BackendError> {
    backends.route("m", &text()).await?.chat(ask("m")).await
}

/// Reads an answer to its end and returns how many words it has.
async fn words(routed: Routed<ChatStream>) -> Result<usize, BackendError> {
    let events: Vec<_> = routed.value.collect().await;
    let words = events.iter().filter(|event| matches!(event, Ok(ChatEvent::Delta(_)))).count();
    events.into_iter().find_map(Result::err).map_or(Ok(words), Err)
}

fn state(backends: &Backends, name: &str) -> BackendState {
    backends.states().into_iter().find(|state| state.name == name).unwrap()
}
