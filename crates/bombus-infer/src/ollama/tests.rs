//! The client and the backend against a scripted server.

mod backend;
mod client;
mod faults;
mod library;
mod peers;
mod resume;
mod window;

use std::time::Duration;

use bombus_core::chat::{ChatEvent, ChatRequest, FinishReason, Message, Prompt, Role};
use bombus_testkit::upstream::{Received, Script, Upstream};
use futures::StreamExt;
use serde_json::{Value, json};

use super::{OllamaBackend, OllamaClient, OllamaClientBuilder};
use crate::{Backend, BackendError, ChatStream};

/// A wait that no test reaches but those that are about it.
const PATIENCE: Duration = Duration::from_secs(20);
/// A wait that tests of waiting wait for.
const IMPATIENCE: Duration = Duration::from_secs(2);

/// A scripted server with the model `small`, made for 8192 tokens, of which nothing is loaded.
async fn server() -> Upstream {
    let upstream = Upstream::start().await.unwrap();
    upstream.on("GET /", Script::text(200, "Ollama is running"));
    upstream.on("GET /api/version", Script::json(200, &json!({"version": "0.24.0"})));
    upstream.on("GET /api/tags", Script::json(200, &json!({"models": [listed("small:latest", "d1")]})));
    upstream.on("GET /api/ps", Script::json(200, &json!({"models": []})));
    upstream.on("POST /api/show", show(&json!({})));
    upstream
}

fn listed(name: &str, digest: &str) -> Value {
    json!({
        "name": name,
        "model": name,
        "modified_at": "2026-01-02T03:04:05.678Z",
        "size": 98_000_000,
        "digest": digest,
        "details": {"format": "gguf", "family": "llama", "families": null, "parameter_size": "134.52M", "quantization_level": "Q4_1"},
    })
}

fn loaded(name: &str, context_length: u32) -> Script {
    let model = json!({
        "name": name,
        "model": name,
        "size": 200,
        "size_vram": 50,
        "digest": "d1",
        "expires_at": "2318-01-01T00:00:00Z",
        "context_length": context_length,
    });
    Script::json(200, &json!({ "models": [model] }))
}

/// The description of a model made for 8192 tokens, with some keys set otherwise.
fn show(with: &Value) -> Script {
    let mut document = json!({
        "modelfile": format!("# FROM small\n\nFROM /models/blobs/sha256-{}\n", "a".repeat(64)),
        "details": {"parent_model": "", "family": "llama"},
        "model_info": {"general.architecture": "llama", "llama.context_length": 8192, "general.parameter_count": 134_515_008},
        "capabilities": ["completion", "tools"],
    });
    for (key, value) in with.as_object().unwrap() {
        document[key] = value.clone();
    }
    Script::json(200, &document)
}

/// A client of the server that waits little between tries.
fn patient(upstream: &Upstream) -> OllamaClientBuilder {
    OllamaClient::builder().url(upstream.url()).timeout(PATIENCE).retry(3, Duration::from_millis(1))
}

fn backend(upstream: &Upstream) -> OllamaBackend {
    OllamaBackend::of("far", patient(upstream).build().unwrap())
}

fn ask(text: &str) -> ChatRequest {
    ChatRequest::new("small", Prompt::Chat(vec![Message::text(Role::User, text)]))
}

fn said(text: &str) -> Value {
    json!({"model": "small", "message": {"role": "assistant", "content": text}, "done": false})
}

fn done() -> Value {
    json!({
        "model": "small", "message": {"role": "assistant", "content": ""}, "done": true, "done_reason": "stop",
        "total_duration": 9_000_000, "load_duration": 2_000_000, "prompt_eval_count": 12, "prompt_eval_duration": 3_000_000,
        "eval_count": 2, "eval_duration": 4_000_000,
    })
}

fn answer(texts: &[&str]) -> Script {
    let pieces = texts.iter().map(|text| said(text)).chain([done()]).collect::<Vec<_>>();
    Script::lines(&pieces)
}

fn too_long() -> Script {
    Script::json(400, &json!({"error": "the input length exceeds the context length"}))
}

/// What came from a stream: its text, how it ended, and its error.
#[derive(Debug, PartialEq)]
struct Outcome {
    text: String,
    finish: Option<FinishReason>,
    error: Option<BackendError>,
}

async fn collect(stream: Result<ChatStream, BackendError>) -> Outcome {
    let mut outcome = Outcome { text: String::new(), finish: None, error: None };
    match stream {
        Err(error) => outcome.error = Some(error),
        Ok(mut events) => {
            while let Some(event) = events.next().await {
                match event {
                    Ok(ChatEvent::Delta(delta)) => outcome.text.push_str(&delta.text),
                    Ok(ChatEvent::Done { finish, .. }) => outcome.finish = Some(finish),
                    Ok(_) => {}
                    Err(error) => outcome.error = Some(error),
                }
            }
        }
    }
    outcome
}

async fn run(backend: &OllamaBackend, request: ChatRequest) -> Outcome {
    collect(backend.chat(request).await).await
}

/// The requests of one kind that came.
fn requests(upstream: &Upstream, line: &str) -> Vec<Received> {
    upstream.requests().into_iter().filter(|request| request.line == line).collect()
}
