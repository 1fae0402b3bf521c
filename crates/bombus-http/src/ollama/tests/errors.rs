//! What a client is told when something is wrong.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bombus_core::model::ModelCapability;
use bombus_infer::BackendError;
use insta::assert_snapshot;
use serde_json::{Value, json};

use super::saying_good_day;
use crate::testing::{Scripted, loopback, model, post, refusing, send, services};

async fn told(path: &str, request: &Value) -> (u16, String) {
    let answer = post(&loopback(services(saying_good_day())), path, request).await;
    let error = answer.json()["error"].as_str().unwrap_or_else(|| panic!("{request}: {}", answer.body)).to_owned();
    (answer.status.as_u16(), error)
}

#[tokio::test]
async fn unknown_models_are_told_before_a_stream_begins() {
    let nope = |more: Value| super::with(json!({"model": "nope"}), more);
    let hello = json!({"messages": [{"role": "user", "content": "x"}]});
    for (path, request, error) in [
        ("/api/generate", nope(json!({"prompt": "x"})), "model 'nope' not found"),
        ("/api/generate", nope(json!({})), "model 'nope' not found"),
        ("/api/generate", nope(json!({"keep_alive": 0})), "model 'nope' not found"),
        ("/api/chat", nope(hello), "model 'nope' not found"),
        ("/api/show", nope(json!({})), "model 'nope' not found"),
        ("/api/embed", nope(json!({"input": "x"})), "model \"nope\" not found, try pulling it first"),
        ("/api/embeddings", nope(json!({"prompt": "x"})), "model \"nope\" not found, try pulling it first"),
        ("/api/copy", json!({"source": "nope", "destination": "n"}), "model \"nope\" not found"),
    ] {
        assert_eq!(told(path, &request).await, (404, error.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn requests_at_fault_are_told_in_the_words_of_the_dialect() {
    let generate = |more: Value| super::with(json!({"model": "m", "prompt": "x"}), more);
    for (path, request, error) in [
        ("/api/generate", json!({"prompt": "x"}), "model is required"),
        ("/api/show", json!({"model": "", "name": ""}), "model is required"),
        ("/api/pull", json!({}), "model is required"),
        ("/api/chat", json!({"model": "a b"}), "invalid model name"),
        ("/api/create", json!({"from": "m"}), "invalid model name"),
        ("/api/create", json!({"model": "n"}), "neither 'from' or 'files' was specified"),
        ("/api/create", json!({"model": "n", "files": {"../x": "sha256:0"}}), "file path must be relative"),
        ("/api/create", json!({"model": "n", "files": {"x": "sha256:0"}}), "invalid digest format"),
        ("/api/copy", json!({"source": "a b", "destination": "n"}), "source \"a b\" is invalid"),
        ("/api/copy", json!({"source": "m", "destination": ""}), "destination \"\" is invalid"),
        ("/api/generate", generate(json!({"top_logprobs": 21})), "top_logprobs must be between 0 and 20"),
        ("/api/generate", generate(json!({"options": {"num_ctx": "x"}})), "option \"num_ctx\" must be of type integer"),
        (
            "/api/generate",
            generate(json!({"raw": true, "system": "s"})),
            "raw mode does not support template, system, or context",
        ),
        (
            "/api/generate",
            generate(json!({"format": "yaml"})),
            "invalid format; expected \"json\" or a valid JSON Schema object",
        ),
        ("/api/generate", generate(json!({"think": true})), "model 'm' does not support thinking"),
        (
            "/api/generate",
            generate(json!({"context": [1, 2_147_483_648_u32]})),
            "'context' has the token 2147483648, which no vocabulary has",
        ),
        ("/api/embed", json!({"model": "m", "input": [5]}), "invalid input type"),
        ("/api/embed", json!({"model": "m", "input": 5}), "invalid input type"),
    ] {
        assert_eq!(told(path, &request).await, (400, error.to_owned()), "{path} {request}");
    }
    let (status, error) = told("/api/generate", &generate(json!({"keep_alive": "soon"}))).await;
    assert_eq!((status, error.contains("invalid duration \"soon\"")), (400, true), "{error}");
    let (_, error) = told("/api/generate", &generate(json!({"think": "hard"}))).await;
    assert!(error.contains("invalid think value: \"hard\""), "{error}");
    let (status, error) = told("/api/push", &json!({"model": "m"})).await;
    assert_eq!((status, error.contains("cannot be pushed")), (400, true), "{error}");
}

#[tokio::test]
async fn bodies_that_are_none_are_told() {
    let router = loopback(services(saying_good_day()));
    assert_snapshot!("no_body", post(&router, "/api/chat", "").await.shown());
    assert_eq!(post(&router, "/api/chat", "{").await.status, 400);
    assert_eq!(post(&router, "/api/chat", "[]").await.status, 400);
}

#[tokio::test]
async fn a_model_that_cannot_do_something_says_what() {
    let only = |capability| Scripted { models: vec![model("m", &[capability])], ..saying_good_day() };
    let tools = json!([{"function": {"name": "f"}}]);
    let picture = json!([{"role": "user", "images": ["AAAA"]}]);
    let hello = json!([{"role": "user", "content": "x"}]);
    for (capability, path, more, error) in [
        (ModelCapability::Embedding, "/api/generate", json!({"prompt": "x"}), "\"m\" does not support generate"),
        (ModelCapability::Embedding, "/api/chat", json!({"messages": hello}), "\"m\" does not support chat"),
        (
            ModelCapability::Completion,
            "/api/chat",
            json!({"messages": hello, "tools": tools}),
            "model 'm' does not support tools",
        ),
        (ModelCapability::Completion, "/api/chat", json!({"messages": picture}), "model 'm' does not see pictures"),
    ] {
        let request = super::with(json!({"model": "m"}), more);
        let answer = post(&loopback(services(only(capability))), path, request).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]), (400, &json!(error)));
    }
}

#[tokio::test]
async fn failures_of_a_backend_have_the_statuses_of_the_dialect() {
    let long = BackendError::ContextExceeded { prompt_tokens: 9_000, context_tokens: 8_192 };
    for (error, status, words) in [
        (long, 400, "the input length exceeds the context length"),
        (BackendError::Overloaded { retry_after: Duration::from_secs(2) }, 503, "server busy, please try again"),
        (BackendError::Unavailable { reason: "gone".into() }, 503, "gone"),
        (BackendError::TimedOut { after: Duration::from_secs(5) }, 504, "no answer within 5 s"),
        (BackendError::ModelUnusable { model: "m".into(), reason: "torn".into() }, 500, "cannot be loaded: torn"),
    ] {
        let answer = super::chat(refusing(error.clone()), json!({})).await;
        let told = answer.json()["error"].as_str().unwrap().to_owned();
        assert_eq!((answer.status.as_u16(), told.contains(words)), (status, true), "{error:?}: {told}");
        let waits = matches!(error, BackendError::Overloaded { .. });
        assert_eq!(answer.header("retry-after"), waits.then_some("2"));
    }
}

#[tokio::test]
async fn wrong_methods_are_not_allowed() {
    let router = loopback(services(saying_good_day()));
    for (method, path) in [
        ("GET", "/api/generate"),
        ("POST", "/api/tags"),
        ("POST", "/api/delete"),
        ("DELETE", "/api/chat"),
        ("POST", "/"),
        ("GET", "/api/blobs/sha256:0"),
    ] {
        let answer = send(&router, Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, 405, "{method} {path}");
        assert!(answer.json()["error"].as_str().unwrap().contains("does not answer"));
    }
}
