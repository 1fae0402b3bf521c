//! The dialect through the router, over scripted backends.

mod errors;
mod requests;
mod routing;

use bombus_core::chat::{ChatEvent, FinishReason, Timings, ToolCallDelta, Usage};
use bombus_infer::BackendError;
use bombus_infer::fake::FakeConfig;
use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::testing::{Answer, done, fake, get, loopback, model, post, scripted, services, text, token};

fn hello() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "hello there"}]})
}

fn with(mut request: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("an object is needed") };
    request.as_object_mut().unwrap().extend(more);
    request
}

async fn chat(events: Vec<Result<ChatEvent, BackendError>>, more: Value) -> Answer {
    post(&loopback(services(scripted(events))), "/v1/chat/completions", with(hello(), more)).await
}

async fn complete(events: Vec<Result<ChatEvent, BackendError>>, more: Value) -> Answer {
    let request = with(json!({"model": "m", "prompt": "Once"}), more);
    post(&loopback(services(scripted(events))), "/v1/completions", request).await
}

fn two_words() -> Vec<Result<ChatEvent, BackendError>> {
    vec![text("Good"), text(" day"), done(FinishReason::Stop)]
}

#[tokio::test]
async fn a_chat_is_answered_whole() {
    assert_snapshot!(chat(two_words(), json!({})).await.shown());
}

#[tokio::test]
async fn a_chat_is_answered_as_a_stream() {
    assert_snapshot!(chat(two_words(), json!({"stream": true})).await.shown());
}

#[tokio::test]
async fn a_stream_tells_its_usage_when_asked() {
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    assert_snapshot!(chat(two_words(), more).await.shown());
}

#[tokio::test]
async fn a_filter_of_the_server_and_its_count_of_thoughts_are_told() {
    let end = |tokens| {
        let usage = Usage { completion_tokens: 9, reasoning_tokens: tokens, ..Usage::default() };
        let (finish, timings) = (FinishReason::ContentFilter, Timings::default());
        vec![text("Well"), Ok(ChatEvent::Done { finish, usage, timings, tokens: Vec::new() })]
    };
    let answer = chat(end(7), json!({"n": 2})).await.json();
    assert_eq!(answer["choices"][1]["finish_reason"], "content_filter");
    assert_eq!(answer["usage"]["completion_tokens_details"], json!({"reasoning_tokens": 14}));
    let untold = chat(end(0), json!({})).await.json();
    assert_eq!(untold["usage"].get("completion_tokens_details"), None, "nothing is made up");
}

#[tokio::test]
async fn several_answers_come_whole_and_count_their_prompt_once() {
    assert_snapshot!(chat(two_words(), json!({"n": 2})).await.shown());
}

#[tokio::test]
async fn several_answers_come_as_one_stream_told_apart_by_index() {
    let answer = chat(two_words(), json!({"n": 3, "stream": true})).await;
    for index in 0..3 {
        let pieces =
            answer.body.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
        let own: Vec<_> = pieces.filter(|chunk| chunk["choices"][0]["index"] == index).collect();
        let words: String = own.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(words, "Good day");
        assert_eq!(own.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
    assert!(answer.body.ends_with("data: [DONE]\n\n"));
    assert_eq!(answer.body.matches("[DONE]").count(), 1);
}

#[tokio::test]
async fn tool_calls_come_whole() {
    assert_snapshot!(chat(tool_calls(), json!({"tools": [weather_tool()]})).await.shown());
}

#[tokio::test]
async fn tool_calls_come_as_a_stream() {
    assert_snapshot!(chat(tool_calls(), json!({"tools": [weather_tool()], "stream": true})).await.shown());
}

fn weather_tool() -> Value {
    json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}})
}

fn tool_calls() -> Vec<Result<ChatEvent, BackendError>> {
    let piece = |index, id: Option<&str>, arguments: &str| {
        let name = id.is_some().then(|| "weather".to_owned());
        Ok(ChatEvent::ToolCall(ToolCallDelta { index, id: id.map(Into::into), name, arguments: arguments.into() }))
    };
    vec![
        piece(0, Some("call_1"), ""),
        piece(0, None, "{\"at\":"),
        piece(0, None, "\"home\"}"),
        piece(1, Some("call_2"), "{}"),
        done(FinishReason::ToolCalls),
    ]
}

/// The euro sign in two tokens, of which the first ends inside of the character.
fn tokens() -> Vec<Result<ChatEvent, BackendError>> {
    vec![token("a", b"a"), token("", b"\xe2\x82"), token("€", b"\xac"), done(FinishReason::Length)]
}

#[tokio::test]
async fn log_probabilities_of_a_chat_come_whole() {
    assert_snapshot!(chat(tokens(), json!({"logprobs": true, "top_logprobs": 2})).await.shown());
}

#[tokio::test]
async fn log_probabilities_of_a_chat_come_as_a_stream() {
    assert_snapshot!(chat(tokens(), json!({"logprobs": true, "top_logprobs": 2, "stream": true})).await.shown());
}

#[tokio::test]
async fn log_probabilities_of_a_completion_come_whole() {
    assert_snapshot!(complete(tokens(), json!({"logprobs": 2})).await.shown());
}

#[tokio::test]
async fn log_probabilities_of_a_completion_come_as_a_stream() {
    assert_snapshot!(complete(tokens(), json!({"logprobs": 2, "stream": true})).await.shown());
}

#[tokio::test]
async fn a_completion_is_answered_as_a_stream() {
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    assert_snapshot!(complete(two_words(), more).await.shown());
}

#[tokio::test(start_paused = true)]
async fn every_prompt_of_a_list_is_continued_and_echoed() {
    let request = json!({"model": "fake", "prompt": ["a b", "c"], "n": 2, "echo": true});
    let answer = post(&loopback(fake(FakeConfig::default())), "/v1/completions", request).await;
    assert_snapshot!(answer.shown());
}

#[tokio::test(start_paused = true)]
async fn an_echo_stands_before_the_first_token_of_a_stream() {
    let request = json!({"model": "fake", "prompt": "a", "echo": true, "stream": true});
    let answer = post(&loopback(fake(FakeConfig::default())), "/v1/completions", request).await;
    assert_snapshot!(answer.shown());
}

#[tokio::test]
async fn embeddings_come_as_numbers() {
    let request = json!({"model": "fake", "input": ["a", "b"], "dimensions": 8});
    assert_snapshot!(post(&loopback(fake(FakeConfig::default())), "/v1/embeddings", request).await.shown());
}

#[tokio::test]
async fn embeddings_in_base64_are_the_same_numbers() {
    use base64::Engine;
    let router = loopback(fake(FakeConfig::default()));
    for input in [json!("a"), json!(["a"]), json!([1, 2]), json!([[1, 2]])] {
        let request = json!({"model": "fake", "input": input});
        let numbers = post(&router, "/v1/embeddings", &request).await.json();
        let text = post(&router, "/v1/embeddings", with(request, json!({"encoding_format": "base64"}))).await.json();
        let text = text["data"][0]["embedding"].as_str().unwrap();
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        let decoded: Vec<f32> = bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
        let expected: Vec<f32> = serde_json::from_value(numbers["data"][0]["embedding"].clone()).unwrap();
        assert_eq!(decoded, expected);
    }
}

#[tokio::test]
async fn models_are_listed_and_described() {
    let router = loopback(fake(FakeConfig::default()));
    assert_snapshot!(get(&router, "/v1/models").await.shown());
    assert_eq!(get(&router, "/v1/models/fake").await.json()["id"], "fake:latest");
}

#[tokio::test]
async fn a_model_is_found_with_slashes_and_colons_in_its_name() {
    let backend = crate::testing::Scripted { models: vec![model("hf.co/a/b:Q4_K_M", &[])], ..Default::default() };
    let router = loopback(services(backend));
    for path in ["/v1/models/hf.co/a/b:Q4_K_M", "/v1/models/hf.co%2Fa%2Fb%3AQ4_K_M"] {
        assert_eq!(get(&router, path).await.json()["id"], "hf.co/a/b:Q4_K_M", "{path}");
    }
}

#[tokio::test]
async fn ids_are_unique() {
    let router = loopback(services(scripted(two_words())));
    let first = post(&router, "/v1/chat/completions", hello()).await.json();
    let second = post(&router, "/v1/chat/completions", hello()).await.json();
    assert_ne!(first["id"], second["id"]);
}
