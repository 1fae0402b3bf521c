//! What requests leave in the log, and what they must not.

use bombus_core::chat::{Message, Role};
use bombus_testkit::upstream::{Script, Upstream};
use serde_json::json;

use super::upstreams::{Dialect, Ollama, OpenAi, known};
use super::*;
use crate::captured::Log;
use crate::{OllamaBackend, OllamaConfig, OpenAiBackend, OpenAiConfig};

const PROMPT: &str = "the meadow behind the hive";
const KEY: &str = "sk-bumblebee-0815";

/// A client of the server with a key.
fn with_key(dialect: Dialect, upstream: &Upstream, directory: &tempfile::TempDir) -> Arc<dyn Backend> {
    let path = directory.path().join("key");
    std::fs::write(&path, KEY).unwrap();
    let (url, api_key_file) = (upstream.url(), Some(path));
    match dialect {
        Ollama => {
            let config = OllamaConfig { url, api_key_file, retry_delay_ms: 1, ..OllamaConfig::default() };
            Arc::new(OllamaBackend::new("far", config).unwrap())
        }
        OpenAi => {
            let config = OpenAiConfig { url, api_key_file, ..OpenAiConfig::default() };
            Arc::new(OpenAiBackend::new("far", config).unwrap())
        }
    }
}

/// Asks with the prompt, and returns how that ended.
async fn outcome(backends: &Backends) -> Result<usize, BackendError> {
    let request = ChatRequest::new("m", Prompt::Chat(vec![Message::text(Role::User, PROMPT)]));
    words(backends.route("m", &text()).await?.chat(request).await?).await
}

#[tokio::test]
async fn each_request_leaves_a_line_and_each_error_one_that_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    for dialect in [Ollama, OpenAi] {
        let upstream = dialect.server().await;
        let backends = known(vec![named("a", with_key(dialect, &upstream, &directory))]).await;
        let path = if dialect == Ollama { "api/chat" } else { "chat/completions" };
        let is_told = |line: &serde_json::Value| {
            let url = line["upstream.url"].as_str().unwrap();
            url.starts_with(&upstream.url()) && line["model.name"] == "m" && line["ms"].is_f64()
        };

        upstream.once(dialect.chat(), dialect.answer());
        let log = Log::capture();
        assert_eq!(outcome(&backends).await, Ok(1));
        let lines = log.lines("DEBUG", "upstream answered");
        let line = lines.iter().find(|line| line["path"] == path).unwrap();
        assert!(is_told(line) && line["status"] == 200 && line["method"] == "POST", "{line}");
        assert!(!log.text().contains("ERROR"), "{}", log.text());

        upstream.on(dialect.chat(), Script::json(502, &json!({"error": {"message": "no"}})));
        assert!(outcome(&backends).await.is_err());
        let lines = log.lines("ERROR", "upstream request failed");
        let tries = if dialect == Ollama { 4 } else { 1 };
        assert_eq!(lines.len(), tries, "each try has its own");
        assert!(lines.iter().all(|line| is_told(line) && line["status"] == 502 && line["error.kind"] == "status"));

        upstream.on(dialect.chat(), dialect.begun().then_cut());
        assert!(outcome(&backends).await.is_err());
        let message = if dialect == Ollama { "upstream stream failed" } else { "an upstream answer broke off" };
        let [line] = &log.lines("ERROR", message)[..] else { panic!("{}", log.text()) };
        assert!(is_told(line) && line["error.kind"] == "broken", "{line}");
    }
}

#[tokio::test]
async fn what_a_server_says_in_place_of_its_list_is_not_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let quoting = json!({"error": {"message": format!("you asked {PROMPT:?} with {KEY}")}});
    for dialect in [Ollama, OpenAi] {
        let list = if dialect == Ollama { "GET /api/tags" } else { "GET /v1/models" };
        for status in [400, 401, 500, 501] {
            let upstream = dialect.server().await;
            upstream.on(list, Script::json(status, &quoting));
            let log = Log::capture();
            let backends = known(vec![named("a", with_key(dialect, &upstream, &directory))]).await;
            backends.refresh("a").await;
            for level in ["WARN", "DEBUG"] {
                assert_eq!(log.lines(level, "models could not be listed").len(), 1, "{dialect:?} {status} {level}");
            }
            let text = log.text();
            assert!(!text.contains(PROMPT) && !text.contains(KEY), "{text}");
            let told = state(&backends, "a").error.unwrap();
            assert!(told.contains(PROMPT) && !told.contains(KEY), "whoever asks for it is told: {told}");
        }
    }
}

#[tokio::test]
async fn neither_prompts_nor_answers_nor_keys_are_in_the_log_whatever_a_server_says() {
    let directory = tempfile::tempdir().unwrap();
    let quoting = json!({"error": {"message": format!("you asked {PROMPT:?} with {KEY}")}});
    let refusals = [400, 401, 404, 422, 429, 500, 501, 503].map(|status| Script::json(status, &quoting));
    for dialect in [Ollama, OpenAi] {
        let upstream = dialect.server().await;
        let backend = with_key(dialect, &upstream, &directory);
        let documents = [quoting.clone(), json!({"choices": PROMPT, "message": PROMPT}), json!(PROMPT)];
        let streams = documents.iter().map(|document| dialect.stream(std::slice::from_ref(document)));
        let later = documents.iter().map(|document| dialect.begun().piece(format!("data: {document}\n\n")));
        let scripts = refusals.iter().cloned().chain(streams).chain(later).chain([dialect.answer()]);
        let log = Log::capture();
        for script in scripts {
            upstream.on(dialect.chat(), script);
            let next = named("b", Player::always(Play::Say(1)));
            for others in [vec![], vec![next]] {
                let backends = known([named("a", backend.clone())].into_iter().chain(others).collect()).await;
                for _ in 0..3 {
                    if let Err(error) = outcome(&backends).await {
                        assert!(!error.to_string().contains(KEY), "{error}");
                    }
                }
            }
        }
        let text = log.text();
        for secret in [PROMPT, "clover", KEY] {
            let line = text.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{dialect:?}: {secret}");
        }
        for line in ["moving on to the next backend", "the backend gets no requests for a while"] {
            assert!(!log.lines("WARN", line).is_empty(), "{line}");
        }
    }
}

#[tokio::test]
async fn what_a_server_says_of_one_request_is_told_to_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let quoting = json!({"error": {"message": format!("you asked {PROMPT:?}")}});
    for dialect in [Ollama, OpenAi] {
        for (status, told, advice) in [
            (500, "status 500", ""),
            (401, "status 401", "Set `api_key_env` or `api_key_file`"),
            (402, "status 402", "balance of the account"),
            (404, "status 404", "Check the `url`"),
        ] {
            let upstream = dialect.server().await;
            let backends = known(vec![named("a", with_key(dialect, &upstream, &directory))]).await;
            upstream.on(dialect.chat(), Script::json(status, &quoting));
            let own = outcome(&backends).await.unwrap_err().to_string();
            assert!(own.contains(PROMPT), "whoever asked is told all of it: {own}");
            let shown = state(&backends, "a").error.unwrap();
            assert!(shown.contains(told) && !shown.contains(PROMPT), "{dialect:?}: {shown}");
            assert!(shown.contains(advice), "what to do is told to all: {shown}");
        }

        let upstream = dialect.server().await;
        let backends = known(vec![named("a", with_key(dialect, &upstream, &directory))]).await;
        upstream.on(dialect.chat(), Script::json(500, &quoting));
        while state(&backends, "a").breaker == "closed" {
            outcome(&backends).await.unwrap_err();
        }
        let others = outcome(&backends).await.unwrap_err().to_string();
        assert!(others.contains("failed several times in a row") && others.contains("status 500"), "{others}");
        assert!(!others.contains(PROMPT), "{dialect:?}: {others}");
    }
}
