//! What answers look like.

use bombus_core::chat::{ChatEvent, Delta, FinishReason, ToolCallDelta};
use bombus_core::model::ModelCapability;
use bombus_infer::BackendError;
use futures::StreamExt;
use insta::assert_snapshot;
use serde_json::{Value, json};

use super::{chat, generate, saying_good_day, two_words};
use crate::testing::{Scripted, capture_log, done, loopback, model, post, scripted, services, text, token};

type Event = Result<ChatEvent, BackendError>;

fn with_tokens(mut events: Vec<Event>) -> Scripted {
    if let Some(Ok(ChatEvent::Done { tokens, .. })) = events.last_mut() {
        *tokens = vec![1, 2, 3];
    }
    scripted(events)
}

#[tokio::test]
async fn a_prompt_is_answered_in_lines() {
    assert_snapshot!(generate(with_tokens(two_words()), json!({})).await.shown());
}

#[tokio::test]
async fn a_prompt_is_answered_whole() {
    assert_snapshot!(generate(with_tokens(two_words()), json!({"stream": false})).await.shown());
}

#[tokio::test]
async fn a_conversation_is_answered_in_lines() {
    assert_snapshot!(chat(saying_good_day(), json!({})).await.shown());
}

#[tokio::test]
async fn a_conversation_is_answered_whole() {
    assert_snapshot!(chat(saying_good_day(), json!({"stream": false})).await.shown());
}

#[tokio::test]
async fn times_are_those_of_the_request_and_the_run() {
    let answer = chat(saying_good_day(), json!({"stream": false})).await.json();
    let created = answer["created_at"].as_str().unwrap();
    assert!(created.starts_with("20") && created.contains('T') && created.ends_with('Z'), "{created}");
    assert!(answer["total_duration"].as_u64().unwrap() > 0);
    assert_eq!(answer["prompt_eval_duration"], 12_000_000);
    assert_eq!(answer["eval_duration"], 30_000_000);
}

fn thinking() -> Vec<Event> {
    let thought = |text: &str| Ok(ChatEvent::Thinking(Delta::text(text)));
    vec![thought("Let me"), thought(" see."), text("Yes."), done(FinishReason::Length)]
}

#[tokio::test]
async fn thoughts_stand_apart_from_the_answer() {
    assert_snapshot!("thoughts_in_lines", chat(scripted(thinking()), json!({})).await.shown());
    let whole = chat(scripted(thinking()), json!({"stream": false})).await.json();
    assert_eq!(whole["message"], json!({"role": "assistant", "content": "Yes.", "thinking": "Let me see."}));
    assert_eq!(whole["done_reason"], "length");
    let whole = generate(scripted(thinking()), json!({"stream": false})).await.json();
    assert_eq!((&whole["response"], &whole["thinking"]), (&json!("Yes."), &json!("Let me see.")));
}

fn call(index: u32, id: Option<&str>, arguments: &str) -> Event {
    let name = id.map(|_| "weather".to_owned());
    Ok(ChatEvent::ToolCall(ToolCallDelta { index, id: id.map(Into::into), name, arguments: arguments.into() }))
}

fn weather() -> Value {
    json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}])
}

#[tokio::test]
async fn calls_of_tools_come_whole_with_arguments_in_the_models_order() {
    let events = || {
        vec![
            call(0, Some("call_1"), "{\"to\": \"home\",\n"),
            call(1, Some("call_2"), ""),
            call(0, None, "\"at\": [1, 2.5]}"),
            done(FinishReason::ToolCalls),
        ]
    };
    assert_snapshot!("calls_in_lines", chat(scripted(events()), json!({"tools": weather()})).await.shown());
    let whole = chat(scripted(events()), json!({"tools": weather(), "stream": false})).await.json();
    assert_eq!(whole["message"]["tool_calls"].as_array().unwrap().len(), 2);
    assert_eq!(whole["done_reason"], "stop");
}

#[tokio::test]
async fn a_call_whose_arguments_are_no_object_is_told_as_text() {
    let events = vec![call(0, Some("call_1"), "[1"), done(FinishReason::ToolCalls)];
    let whole = chat(scripted(events), json!({"tools": weather(), "stream": false})).await.json();
    assert_eq!(whole["message"]["content"], "{\"name\": \"weather\", \"arguments\": [1}");
    assert_eq!(whole["message"]["tool_calls"], Value::Null);
}

/// The euro sign in two tokens, of which the first ends inside of the character.
fn tokens() -> Vec<Event> {
    vec![token("a", b"a"), token("", b"\xe2\x82"), token("€", b"\xac"), done(FinishReason::Stop)]
}

#[tokio::test]
async fn log_probabilities_carry_their_bytes() {
    let more = json!({"logprobs": true, "top_logprobs": 2});
    assert_snapshot!("logprobs_in_lines", generate(scripted(tokens()), more).await.shown());
    let more = json!({"logprobs": true, "top_logprobs": 2, "stream": false});
    assert_eq!(chat(scripted(tokens()), more).await.json()["logprobs"].as_array().unwrap().len(), 3);
    assert_eq!(chat(scripted(tokens()), json!({"stream": false})).await.json()["logprobs"], Value::Null);
}

#[tokio::test]
async fn what_was_left_out_of_a_conversation_is_told_in_a_header_and_the_log() {
    let (log, _guard) = capture_log();
    for (stream, prompt_tokens, header) in [
        (true, 2_000, "messages=3;prompt_tokens=2000"),
        (false, 2_000, "messages=3;prompt_tokens=2000"),
        (true, 0, "messages=3"),
    ] {
        let mut events = two_words();
        events.insert(0, Ok(ChatEvent::Truncated { messages: 3, prompt_tokens }));
        let answer = chat(scripted(events), json!({"stream": stream})).await;
        assert_eq!(answer.header("x-bombus-truncated"), Some(header));
    }
    let lines = log.lines();
    let told: Vec<_> = lines.iter().filter(|line| line.contains("oldest turns")).collect();
    assert_eq!(told.len(), 3);
    let with_tokens = told.iter().filter(|line| line.contains("prompt.tokens")).count();
    assert_eq!(with_tokens, 2, "a number that is not known is not told: {told:?}");
    assert_eq!(chat(saying_good_day(), json!({})).await.header("x-bombus-truncated"), None);
}

#[tokio::test]
async fn an_answer_that_breaks_off_ends_with_a_line_that_says_why() {
    let broken = || vec![text("Good"), Err(BackendError::Interrupted { reason: "the engine died".into() })];
    let answer = chat(scripted(broken()), json!({})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body.lines().last(), Some("{\"error\":\"the answer broke off: the engine died\"}"));
    assert_eq!(chat(scripted(broken()), json!({"stream": false})).await.status, 503);
}

#[tokio::test]
async fn a_client_that_goes_away_stops_the_model() {
    let backend = scripted(vec![text("a")]);
    let watch = backend.watch.clone();
    let router = loopback(services(backend));
    let body = json!({"model": "m", "prompt": "x"}).to_string();
    let request = axum::http::Request::post("/api/generate").body(axum::body::Body::from(body)).unwrap();
    let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
    let mut pieces = response.into_body().into_data_stream();
    assert!(pieces.next().await.unwrap().unwrap().starts_with(b"{\"model\":\"m\""));
    watch.until(1).await;
    drop(pieces);
    watch.until(0).await;
}

#[tokio::test]
async fn vectors_are_made_of_texts() {
    let backend = Scripted { vectors: vec![vec![0.5, 0.25], vec![1.0, 0.0]], ..scripted(Vec::new()) };
    let seen = backend.embeds_seen.clone();
    let router = loopback(services(backend));
    let request = json!({"model": "m", "input": ["a", "b"], "keep_alive": "1m", "options": {"num_ctx": 512}});
    assert_snapshot!("embed", post(&router, "/api/embed", request).await.shown());
    let one = post(&router, "/api/embeddings", json!({"model": "m", "prompt": "a"})).await;
    assert_snapshot!("embeddings", one.shown());
    let seen = seen.lock().unwrap();
    assert_eq!((seen[0].truncate, seen[0].inputs.len(), seen[1].truncate), (true, 2, false));
    assert_eq!(seen[0].context_tokens, Some(512));
}

#[tokio::test]
async fn a_model_that_only_makes_vectors_makes_them_too() {
    let models = vec![model("m", &[ModelCapability::Embedding])];
    let backend = Scripted { models, vectors: vec![vec![1.0]], ..Scripted::default() };
    let answer = post(&loopback(services(backend)), "/api/embed", json!({"model": "m", "input": "a"})).await;
    assert_eq!(answer.json()["embeddings"], json!([[1.0]]));
}
