//! Requests over the clients of real servers, which fail as servers do.

use bombus_core::chat::{EmbedInput, Message, Role};
use bombus_testkit::upstream::{Script, Upstream};
use serde_json::{Value, json};

use super::*;
use crate::{OllamaBackend, OllamaConfig, OpenAiBackend, OpenAiConfig};

/// A wait that no test reaches.
const PATIENCE: Duration = Duration::from_secs(20);
/// A wait between two tries that no test waits for.
const RETRY_DELAY_MS: u64 = 3_600_000;

/// The dialect of a scripted server that has the model `m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Ollama,
    OpenAi,
}

use Dialect::{Ollama, OpenAi};

impl Dialect {
    async fn server(self) -> Upstream {
        let upstream = Upstream::start().await.unwrap();
        let models = match self {
            Ollama => json!({"models": [{"name": "m:latest", "digest": "d1"}]}),
            OpenAi => json!({"data": [{"id": "m"}]}),
        };
        upstream.on(if self == Ollama { "GET /api/tags" } else { "GET /v1/models" }, Script::json(200, &models));
        upstream.on("GET /api/ps", Script::json(200, &json!({"models": []})));
        let facts = json!({"model_info": {}, "capabilities": ["completion", "embedding"]});
        upstream.on("POST /api/show", Script::json(200, &facts));
        upstream
    }

    /// The line of a conversation.
    fn chat(self) -> &'static str {
        if self == Ollama { "POST /api/chat" } else { "POST /v1/chat/completions" }
    }

    fn backend(self, upstream: &Upstream) -> Arc<dyn Backend> {
        let (url, timeout_ms) = (upstream.url(), 20_000);
        match self {
            Ollama => {
                ollama(OllamaConfig { url, timeout_ms, retry_delay_ms: RETRY_DELAY_MS, ..OllamaConfig::default() })
            }
            OpenAi => {
                let config = OpenAiConfig { url, timeout_ms, ..OpenAiConfig::default() };
                Arc::new(OpenAiBackend::new("far", config).unwrap())
            }
        }
    }

    /// An answer of one word.
    fn answer(self) -> Script {
        match self {
            Ollama => Script::lines(&[self.word(), json!({"message": {"content": ""}, "done": true})]),
            OpenAi => {
                let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
                Script::events(&[self.word(), end]).done()
            }
        }
    }

    fn word(self) -> Value {
        match self {
            Ollama => json!({"message": {"role": "assistant", "content": "word"}, "done": false}),
            OpenAi => json!({"choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": null}]}),
        }
    }
}

fn ollama(config: OllamaConfig) -> Arc<dyn Backend> {
    Arc::new(OllamaBackend::new("far", config).unwrap())
}

/// The backends, with their lists read.
async fn known(backends: Vec<NamedBackend>) -> Backends {
    let backends = Backends::new(backends);
    backends.models().await;
    backends
}

/// Sends a conversation for `m` where it leads.
async fn converse(backends: &Backends) -> Result<Routed<ChatStream>, BackendError> {
    let request = ChatRequest::new("m", Prompt::Chat(vec![Message::text(Role::User, "x")]));
    let routed = async { backends.route("m", &text()).await?.chat(request).await };
    timeout(PATIENCE, routed).await.expect("nobody waits for a backend while another one can answer")
}

/// How many conversations a server was asked for.
fn conversations(upstream: &Upstream, dialect: Dialect) -> usize {
    upstream.requests().iter().filter(|request| request.line == dialect.chat()).count()
}

#[tokio::test]
async fn another_backend_answers_at_once_what_the_first_would_try_again_after_a_wait() {
    for failure in [None, Some(500), Some(503)] {
        let first = Ollama.server().await;
        let second = OpenAi.server().await;
        second.on(OpenAi.chat(), OpenAi.answer());
        second.on("POST /v1/embeddings", Script::json(200, &json!({"data": [{"index": 0, "embedding": [1.0]}]})));
        let backends = known(vec![named("a", Ollama.backend(&first)), named("b", OpenAi.backend(&second))]).await;
        match failure {
            None => first.stop(),
            Some(status) => {
                let refusal = Script::json(status, &json!({"error": "the runner stopped"}));
                first.on(Ollama.chat(), refusal.clone());
                first.on("POST /api/embed", refusal);
            }
        }
        let routed = converse(&backends).await.unwrap();
        assert_eq!((routed.backend.as_str(), routed.reason.as_str()), ("b", "after a"), "{failure:?}");
        assert_eq!(words(routed).await, Ok(1));

        let route = backends.route("m", &Need::default()).await.unwrap();
        let vectors = route.embed(EmbedRequest::new("m", vec![EmbedInput::Text("x".into())]));
        let routed = timeout(PATIENCE, vectors).await.expect("vectors do not wait either").unwrap();
        assert_eq!(routed.backend, "b", "{failure:?}");
    }
}

#[tokio::test]
async fn a_backend_tries_again_where_nobody_else_is_left() {
    for others in [vec![], vec![named("a", Player::always(Play::Refuse(unavailable())))]] {
        let upstream = Ollama.server().await;
        for _ in 0..2 {
            upstream.once(Ollama.chat(), Script::json(500, &json!({"error": "the runner stopped"})));
        }
        upstream.on(Ollama.chat(), Ollama.answer());
        let config = OllamaConfig { url: upstream.url(), retry_delay_ms: 1, ..OllamaConfig::default() };
        let last = named("b", ollama(config));
        let backends = known(others.into_iter().chain([last]).collect()).await;
        let routed = converse(&backends).await.unwrap();
        assert_eq!(routed.backend, "b");
        assert_eq!((words(routed).await, conversations(&upstream, Ollama)), (Ok(1), 3));
    }
}
