//! Requests over the clients of real servers, which fail as servers do.

use bombus_core::chat::{EmbedInput, Message, Role};
use bombus_testkit::upstream::{Script, Upstream};
use serde_json::{Value, json};

use super::*;
use crate::captured::Log;
use crate::{OllamaBackend, OllamaConfig, OpenAiBackend, OpenAiConfig};

/// A wait that no test reaches.
const PATIENCE: Duration = Duration::from_secs(20);
/// A wait between two tries that no test waits for.
const RETRY_DELAY_MS: u64 = 3_600_000;

/// The dialect of a scripted server that has the model `m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Ollama,
    OpenAi,
}

pub(super) use Dialect::{Ollama, OpenAi};

impl Dialect {
    pub(super) async fn server(self) -> Upstream {
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
    pub(super) fn chat(self) -> &'static str {
        if self == Ollama { "POST /api/chat" } else { "POST /v1/chat/completions" }
    }

    pub(super) fn backend(self, upstream: &Upstream) -> Arc<dyn Backend> {
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
    pub(super) fn answer(self) -> Script {
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
            Ollama => json!({"message": {"role": "assistant", "content": "clover"}, "done": false}),
            OpenAi => json!({"choices": [{"index": 0, "delta": {"content": "clover"}, "finish_reason": null}]}),
        }
    }

    /// An answer that ends after its first word, without saying why.
    pub(super) fn begun(self) -> Script {
        self.stream(&[self.word()])
    }

    /// An answer that ends after its first word with an error of this code.
    pub(super) fn then_error(self, code: u16) -> Script {
        self.stream(&[self.word(), json!({"error": {"message": "no", "code": code}})])
    }

    pub(super) fn stream(self, documents: &[Value]) -> Script {
        if self == Ollama { Script::lines(documents) } else { Script::events(documents) }
    }

    /// A client of the server that sends everything once.
    pub(super) fn hasty(self, upstream: &Upstream) -> Arc<dyn Backend> {
        let backend = self.backend(upstream);
        backend.without_retries().unwrap_or(backend)
    }
}

pub(super) fn ollama(config: OllamaConfig) -> Arc<dyn Backend> {
    Arc::new(OllamaBackend::new("far", config).unwrap())
}

/// The backends, with their lists read.
pub(super) async fn known(backends: Vec<NamedBackend>) -> Backends {
    let backends = Backends::new(backends);
    backends.models().await;
    backends
}

/// Sends a conversation for `m` where it leads.
pub(super) async fn converse(backends: &Backends) -> Result<Routed<ChatStream>, BackendError> {
    let request = ChatRequest::new("m", Prompt::Chat(vec![Message::text(Role::User, "x")]));
    let routed = async { backends.route("m", &text()).await?.chat(request).await };
    timeout(PATIENCE, routed).await.expect("nobody waits for a backend while another one can answer")
}

/// How many conversations a server was asked for.
pub(super) fn conversations(upstream: &Upstream, dialect: Dialect) -> usize {
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

/// Ways of a server to refuse a request that say nothing about the next one.
fn refusals() -> Vec<Script> {
    let told = |status| Script::json(status, &json!({"error": {"message": "no"}}));
    let page = |status| Script::text(status, "404 page not found");
    let codes = [301, 400, 401, 402, 403, 405, 408, 413, 422, 429];
    // As llama-server tells what is wrong with a conversation.
    let template = Script::json(500, &json!({"error": {"message": "Jinja Exception: roles must alternate"}}));
    codes.into_iter().map(told).chain([404, 405].map(page)).chain([template]).collect()
}

/// Ways of a server to fail.
fn failures(dialect: Dialect) -> Vec<Script> {
    let error = json!({"error": {"message": "no"}});
    vec![
        Script::json(500, &error),
        Script::text(502, "bad gateway"),
        Script::json(503, &error),
        Script::raw("SSH-2.0-OpenSSH_9.6\r\n"),
        Script::raw(""),
        Script::stream("text/html").piece("<html>It works!</html>\n"),
        dialect.begun().then_cut(),
        dialect.begun().piece("data: }{\n\n"),
        dialect.then_error(500),
    ]
}

/// Sends conversations to a server that always answers so, and returns its breaker and how many it got.
async fn breaker_after(count: usize, dialect: Dialect, script: Script) -> (&'static str, usize) {
    let upstream = dialect.server().await;
    upstream.on(dialect.chat(), script);
    let backends = known(vec![named("a", dialect.hasty(&upstream))]).await;
    for _ in 0..count {
        let ended = match converse(&backends).await {
            Ok(routed) => words(routed).await.map(|_| ()),
            Err(error) => Err(error),
        };
        assert!(ended.is_err());
    }
    (state(&backends, "a").breaker, conversations(&upstream, dialect))
}

#[tokio::test]
async fn what_servers_refuse_leaves_the_breaker_closed() {
    for dialect in [Ollama, OpenAi] {
        for script in refusals() {
            let told = format!("{dialect:?} {script:?}");
            assert_eq!(breaker_after(5, dialect, script).await, ("closed", 5), "{told}");
        }
        for code in [400, 404, 405, 429] {
            let script = dialect.then_error(code);
            assert_eq!(breaker_after(5, dialect, script).await, ("closed", 5), "{dialect:?} {code} in the stream");
        }
    }
}

#[tokio::test]
async fn servers_that_fail_break_off_or_answer_what_cannot_be_read_open_the_breaker() {
    for dialect in [Ollama, OpenAi] {
        for script in failures(dialect) {
            let told = format!("{dialect:?} {script:?}");
            assert_eq!(breaker_after(4, dialect, script).await.0, "open", "{told}");
        }
    }
}

#[tokio::test]
async fn a_server_that_works_again_gets_requests_again() {
    for dialect in [Ollama, OpenAi] {
        let upstream = dialect.server().await;
        let backends = known(vec![named("a", dialect.hasty(&upstream))]).await;
        upstream.stop();
        for _ in 0..4 {
            assert!(converse(&backends).await.is_err());
        }
        assert_eq!(state(&backends, "a").breaker, "open");
        upstream.on(dialect.chat(), dialect.answer());
        upstream.restart().await.unwrap();
        // Its list is there again, which lets a request through before the time of the breaker has come.
        backends.refresh("a").await;
        assert_eq!(words(converse(&backends).await.unwrap()).await, Ok(1));
        assert_eq!(state(&backends, "a").breaker, "closed");
    }
}

/// A server of OpenAI's dialect whose model `m` is given.
fn with_given_models(url: String) -> Arc<dyn Backend> {
    let config = OpenAiConfig { url, models: vec!["m".into()], timeout_ms: 20_000, ..OpenAiConfig::default() };
    Arc::new(OpenAiBackend::new("far", config).unwrap())
}

#[tokio::test]
async fn given_models_make_no_server_ready_that_is_away_or_refuses_the_key() {
    let upstream = Upstream::start().await.unwrap();
    let away = Upstream::refusing().await.unwrap();
    for (url, status, told) in
        [(away, 200, "Is the server running?"), (upstream.url(), 401, "Incorrect key"), (upstream.url(), 500, "500")]
    {
        let refusal = Script::json(status, &json!({"error": {"message": "Incorrect key"}}));
        upstream.on("GET /v1/models", refusal.clone());
        upstream.on(OpenAi.chat(), refusal);
        let backends = known(vec![named("a", with_given_models(url))]).await;
        let seen = state(&backends, "a");
        assert!(!seen.ready && seen.error.as_deref().is_some_and(|error| error.contains(told)), "{status}: {seen:?}");
        backends.refresh("a").await;
        assert_eq!(backends.rank("m", &text()).await.unwrap()[0].score(), None, "{status}: nobody is sent there");
        let error = converse(&backends).await.err().unwrap();
        assert!(error.to_string().contains(told), "{error}");
        assert_eq!(conversations(&upstream, OpenAi), 0, "{status}");
    }
}

#[tokio::test]
async fn given_models_are_used_at_a_server_that_has_no_list() {
    for status in [200, 400, 403, 404, 405, 429, 501] {
        let upstream = Upstream::start().await.unwrap();
        upstream.on("GET /v1/models", Script::text(status, "no list"));
        upstream.on(OpenAi.chat(), OpenAi.answer());
        let log = Log::capture();
        let backends = known(vec![named("a", with_given_models(upstream.url()))]).await;
        for _ in 0..3 {
            backends.refresh("a").await;
            let seen = state(&backends, "a");
            assert!(seen.ready && seen.models == 1 && seen.error.is_none(), "{status}: {seen:?}");
        }
        assert_eq!(words(converse(&backends).await.unwrap()).await, Ok(1), "{status}");
        assert!(!log.text().contains("ERROR") && !log.text().contains("WARN"), "{status}: {}", log.text());
    }
}

#[tokio::test]
async fn what_one_server_refuses_another_one_may_take() {
    for (dialect, status) in [Ollama, OpenAi].into_iter().flat_map(|dialect| [400, 404, 422, 501].map(|s| (dialect, s)))
    {
        let (first, second) = (dialect.server().await, dialect.server().await);
        first.on(dialect.chat(), Script::json(status, &json!({"error": {"message": "no such option"}})));
        second.on(dialect.chat(), dialect.answer());
        let pair = [("a", &first), ("b", &second)];
        let backends = known(pair.map(|(name, server)| named(name, dialect.backend(server))).into()).await;
        let routed = converse(&backends).await.unwrap();
        assert_eq!(routed.backend, "b", "{dialect:?} {status}");
        assert_eq!(words(routed).await, Ok(1));

        second.on(dialect.chat(), Script::json(400, &json!({"error": {"message": "not here either"}})));
        let error = converse(&backends).await.err().unwrap();
        let told = if matches!(status, 404 | 501) { "not here either" } else { "no such option" };
        assert!(error.to_string().contains(told), "{dialect:?} {status}: {error}");
    }
}

#[tokio::test]
async fn a_server_without_a_path_leaves_what_is_asked_there_to_others() {
    let (first, second) = (OpenAi.server().await, OpenAi.server().await);
    first.on(OpenAi.chat(), OpenAi.answer());
    second.on("POST /v1/embeddings", Script::json(200, &json!({"data": [{"index": 0, "embedding": [1.0]}]})));
    second.on(
        "POST /v1/completions",
        Script::events(&[json!({"choices": [{"index": 0, "text": "word", "finish_reason": "stop"}]})]).done(),
    );
    let pair = [("a", &first), ("b", &second)];
    let backends = known(pair.map(|(name, server)| named(name, OpenAi.backend(server))).into()).await;
    let embed = async |backends: &Backends| {
        let route = backends.route("m", &Need::default()).await?;
        route.embed(EmbedRequest::new("m", vec![EmbedInput::Text("x".into())])).await
    };
    assert_eq!(embed(&backends).await.unwrap().backend, "b");
    assert_eq!(chat(&backends).await.unwrap().backend, "b");
    assert_eq!(converse(&backends).await.unwrap().backend, "a", "it still gets what it can do");

    let alone = known(vec![named("a", OpenAi.backend(&first))]).await;
    assert!(matches!(embed(&alone).await.err(), Some(BackendError::Unsupported { param: "model", .. })));
    assert!(matches!(chat(&alone).await.err(), Some(BackendError::Unsupported { param: "prompt", .. })));
}

#[tokio::test]
async fn a_server_that_has_too_much_to_do_is_left_alone_for_as_long_as_it_says() {
    for dialect in [Ollama, OpenAi] {
        let (first, second) = (dialect.server().await, dialect.server().await);
        let busy = |seconds: &str| {
            Script::json(429, &json!({"error": {"message": "slow down"}})).header("Retry-After", seconds)
        };
        first.on(dialect.chat(), busy("30"));
        second.on(dialect.chat(), dialect.answer());
        let pair = [("a", &first), ("b", &second)];
        let backends = known(pair.map(|(name, server)| named(name, dialect.backend(server))).into()).await;
        for _ in 0..3 {
            let routed = converse(&backends).await.unwrap();
            assert_eq!(routed.backend, "b", "{dialect:?}");
            assert_eq!(words(routed).await, Ok(1));
        }
        assert_eq!(conversations(&first, dialect), 1, "{dialect:?}: it is asked after all others");

        second.on(dialect.chat(), busy("20"));
        let told = BackendError::Overloaded { retry_after: Duration::from_secs(20) };
        assert_eq!(converse(&backends).await.err(), Some(told), "{dialect:?}");
        assert_eq!(conversations(&first, dialect), 2, "{dialect:?}: once more, since nobody else is left");
    }
}
