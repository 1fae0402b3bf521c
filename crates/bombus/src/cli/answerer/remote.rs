use std::pin::pin;
use std::time::Instant;

use anyhow::Result;
use bombus_core::chat::{Answerer, ChatEvent, ChatRequest, Delta, FinishReason, Prompt, Role, Timings, Usage};
use bombus_core::identity::NodeId;
use bombus_infer::{ANSWER_MIB_MAX, BackendError};
use futures::{Stream, StreamExt, TryStreamExt};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncRead;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use super::{Route, Started};
use crate::cli::scope::ScopeArgs;
use crate::failure::{Exit, Failure};
use crate::node_client::{NodeClient, Refusal};

/// Bytes that JSON may need for one byte of a text: `\u001b`.
const ESCAPE_BYTES_MAX: usize = 6;
/// Longest accepted line of a stream of events. A server may answer whole, and a node hands that on as one piece: a line may have a whole
/// answer, with all of it escaped, and what stands around it.
const LINE_BYTES_MAX: usize = ESCAPE_BYTES_MAX * (ANSWER_MIB_MAX << 20) + (1 << 20);

/// Asks the running node over its HTTP API.
pub(super) async fn chat(node: &NodeClient, request: &ChatRequest, scope: &ScopeArgs) -> Result<Started> {
    let mut headers = HeaderMap::new();
    if let Some(scope) = scope.text() {
        let value = HeaderValue::from_bytes(scope.as_bytes());
        let value = value.map_err(|_| Failure::new(Exit::Usage, "a node's name has no control characters"))?;
        headers.insert("x-bombus-scope", value);
    }
    let response = node.send_with(Method::POST, "/v1/chat/completions", Some(&body(request)), headers).await?;
    let route = response.headers().get("x-bombus-route").and_then(|value| value.to_str().ok()).map(Route::parse);
    let lines = lines(StreamReader::new(response.bytes_stream().map_err(std::io::Error::other)));
    let (model, mut route) = route.unwrap_or_else(|| (request.model.clone(), Route::default()));
    route.node.get_or_insert_with(|| node.record().node_id.to_string());
    Ok(Started { model, route, events: events(lines).boxed() })
}

/// Splits the body of an answer.
fn lines(body: impl AsyncRead + Send + 'static) -> impl Stream<Item = Result<String, String>> + Send + 'static {
    FramedRead::new(body, LinesCodec::new_with_max_length(LINE_BYTES_MAX)).map_err(|error| error.to_string())
}

fn body(request: &ChatRequest) -> Value {
    let messages: Vec<Value> = match &request.prompt {
        Prompt::Chat(messages) => messages
            .iter()
            .map(|message| json!({ "role": Role::as_str(message.role), "content": message.joined_text() }))
            .collect(),
        Prompt::Raw(_) | Prompt::Tokens(_) => Vec::new(),
    };
    let mut body = json!({
        "model": request.model,
        "messages": messages,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    let options = [
        ("max_completion_tokens", request.max_tokens.map(Value::from)),
        ("temperature", request.sampling.temperature.map(Value::from)),
        ("seed", request.sampling.seed.map(Value::from)),
        ("ignore_eos", request.ignore_eos.then(|| true.into())),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    body
}

impl Route {
    /// Reads `node;model;backend;reason`.
    fn parse(header: &str) -> (String, Self) {
        let mut parts = header.split(';').map(|part| part.trim().to_owned());
        let node = parts.next().filter(|node| !node.is_empty());
        let model = parts.next().unwrap_or_default();
        let backend = parts.next().unwrap_or_default();
        (model, Self { node, node_name: None, backend, reason: parts.next() })
    }
}

/// Reads who went on with an answer out of a comment, `continued by NODE;MODEL;BACKEND; REASON`; `None` where it says something else.
fn continued(comment: &str) -> Option<ChatEvent> {
    let mut parts = comment.trim().strip_prefix("continued by ")?.splitn(4, ';');
    let (node, model, backend) = (parts.next()?, parts.next()?, parts.next()?);
    let by = Answerer { node: NodeId::parse(node).ok(), backend: backend.to_owned(), model: model.to_owned() };
    Some(ChatEvent::Continued { by, reason: parts.next().unwrap_or_default().trim().to_owned() })
}

/// One event of the stream.
#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<ChunkUsage>,
    #[serde(default)]
    timings: Option<ChunkTimings>,
}

/// Durations in the names of llama.cpp's server.
#[derive(Debug, Deserialize)]
struct ChunkTimings {
    #[serde(default)]
    load_ms: f64,
    #[serde(default)]
    queue_ms: f64,
    prompt_ms: f64,
    predicted_ms: f64,
}

impl From<ChunkTimings> for Timings {
    fn from(timings: ChunkTimings) -> Self {
        let ChunkTimings { load_ms, queue_ms, prompt_ms, predicted_ms } = timings;
        Self { load_ms, queue_ms, prompt_ms, generate_ms: predicted_ms }
    }
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    delta: ChoiceDelta,
    #[serde(default)]
    finish_reason: Option<FinishReason>,
}

#[derive(Debug, Default, Deserialize)]
struct ChoiceDelta {
    #[serde(default)]
    content: Option<String>,
    /// What the model thinks, in the field's two names.
    #[serde(default, alias = "reasoning")]
    reasoning_content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ChunkUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
    #[serde(default)]
    prompt_tokens_details: Option<PromptTokensDetails>,
    #[serde(default)]
    completion_tokens_details: Option<CompletionTokensDetails>,
}

#[derive(Debug, Deserialize)]
struct PromptTokensDetails {
    #[serde(default)]
    cached_tokens: u32,
}

#[derive(Debug, Deserialize)]
struct CompletionTokensDetails {
    #[serde(default)]
    reasoning_tokens: u32,
}

impl From<ChunkUsage> for Usage {
    fn from(usage: ChunkUsage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.prompt_tokens_details.map_or(0, |details| details.cached_tokens),
            completion_tokens: usage.completion_tokens,
            reasoning_tokens: usage.completion_tokens_details.map_or(0, |details| details.reasoning_tokens),
        }
    }
}

/// Measures an answer from here, for nodes that do not tell their own timings.
struct Clock {
    begun: Instant,
    first_token: Option<Instant>,
    last_token: Instant,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self { begun: now, first_token: None, last_token: now }
    }

    fn token(&mut self) {
        self.last_token = Instant::now();
        self.first_token.get_or_insert(self.last_token);
    }

    fn timings(&self) -> Timings {
        let first = self.first_token.unwrap_or(self.last_token);
        let ms = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1000.0;
        Timings { prompt_ms: ms(self.begun, first), generate_ms: ms(first, self.last_token), ..Timings::default() }
    }
}

fn broken(reason: impl Into<String>) -> BackendError {
    BackendError::Interrupted { reason: reason.into() }
}

/// Turns the lines of a stream of server-sent events into the events of an answer.
fn events(
    lines: impl Stream<Item = Result<String, String>> + Send + 'static,
) -> impl Stream<Item = Result<ChatEvent, BackendError>> + Send {
    async_stream::try_stream! {
        let mut lines = pin!(lines);
        let mut finish = FinishReason::Stop;
        let mut usage = Usage::default();
        let mut timings = None;
        let mut clock = Clock::start();
        while let Some(line) = lines.next().await {
            let line = line.map_err(broken)?;
            if let Some(event) = line.strip_prefix(':').and_then(continued) {
                yield event;
                continue;
            }
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                let timings = timings.unwrap_or_else(|| clock.timings());
                yield ChatEvent::Done { finish, usage, timings, tokens: Vec::new() };
                return;
            }
            if let Some((reason, _)) = Refusal::message(data) {
                // Nothing may be added to what the node says: it has this form already.
                Err(BackendError::Unavailable { reason })?;
            }
            let chunk: Chunk = serde_json::from_str(data).map_err(|error| broken(format!("the node sent {error}")))?;
            for choice in chunk.choices {
                finish = choice.finish_reason.unwrap_or(finish);
                if let Some(thought) = choice.delta.reasoning_content.filter(|thought| !thought.is_empty()) {
                    clock.token();
                    yield ChatEvent::Thinking(Delta::text(thought));
                }
                if let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) {
                    clock.token();
                    yield ChatEvent::Delta(Delta { text, ..Delta::default() });
                }
            }
            usage = chunk.usage.map_or(usage, Usage::from);
            timings = chunk.timings.map(Timings::from).or(timings);
        }
        Err(broken("the node closed the connection"))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(lines: &[&str]) -> Vec<Result<ChatEvent, BackendError>> {
        let lines: Vec<Result<String, String>> = lines.iter().map(|line| Ok((*line).to_owned())).collect();
        events(futures::stream::iter(lines)).collect().await
    }

    #[tokio::test]
    async fn an_answer_is_read_from_its_stream() {
        let events = read(&[
            r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            "",
            ": a comment",
            r#"data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}"#,
            r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
            r#"data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":2}}}"#,
            "data: [DONE]",
        ])
        .await;
        let usage = Usage { prompt_tokens: 3, cached_tokens: 2, completion_tokens: 1, ..Usage::default() };
        assert_eq!(events[0], Ok(ChatEvent::Delta(Delta { text: "hi".into(), ..Delta::default() })));
        let Ok(ChatEvent::Done { finish, usage: counted, .. }) = &events[1] else { panic!("{events:?}") };
        assert_eq!((*finish, *counted, events.len()), (FinishReason::Length, usage, 2));
    }

    #[tokio::test]
    async fn an_answer_may_come_whole_in_one_line() {
        // Longer in its escapes than the longest answer that a server of OpenAI's dialect may give whole.
        let text = "\u{1b}".repeat(6 << 20);
        let chunk = json!({ "choices": [{ "delta": { "content": text }, "finish_reason": "stop" }] });
        let body = std::io::Cursor::new(format!("data: {chunk}\n\ndata: [DONE]\n"));
        let events: Vec<_> = events(lines(body)).collect().await;
        let [Ok(ChatEvent::Delta(delta)), Ok(ChatEvent::Done { .. })] = events.as_slice() else {
            panic!("{} events", events.len())
        };
        assert!(delta.text == text);
    }

    #[tokio::test]
    async fn thoughts_are_told_apart_from_the_answer() {
        let events = read(&[
            r#"data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"},"finish_reason":null}]}"#,
            r#"data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}"#,
            "data: [DONE]",
        ])
        .await;
        assert!(matches!(&events[0], Ok(ChatEvent::Thinking(thought)) if thought.text == "hm"), "{events:?}");
        assert!(matches!(&events[1], Ok(ChatEvent::Delta(delta)) if delta.text == "hi"), "{events:?}");
    }

    #[tokio::test]
    async fn who_goes_on_in_the_middle_is_read_from_a_comment() {
        let id = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
        let events = read(&[
            r#"data: {"choices":[{"delta":{"content":"one "}}]}"#,
            &format!(": continued by {id};m:latest;embedded; hive is gone; it was stopped"),
            "",
            r#"data: {"choices":[{"delta":{"content":"two"},"finish_reason":"stop"}]}"#,
            "data: [DONE]",
        ])
        .await;
        let Ok(ChatEvent::Continued { by, reason }) = &events[1] else { panic!("{events:?}") };
        let parts = (by.node.as_ref().map(NodeId::as_str), by.model.as_str(), by.backend.as_str());
        assert_eq!(parts, (Some(id), "m:latest", "embedded"));
        assert_eq!(reason, "hive is gone; it was stopped");
        assert_eq!(events.len(), 4);
    }

    #[test]
    fn a_route_header_names_node_model_backend_and_reason() {
        let (model, route) = Route::parse("12D3;m:latest;embedded;warm");
        let parts = (model.as_str(), route.node.as_deref(), route.backend.as_str(), route.reason.as_deref());
        assert_eq!(parts, ("m:latest", Some("12D3"), "embedded", Some("warm")));
    }

    #[tokio::test]
    async fn an_error_event_ends_the_answer_with_what_the_node_says() {
        let events =
            read(&[r#"data: {"error":{"message":"the engine died","type":"server_error","code":null}}"#]).await;
        assert_eq!(events, [Err(BackendError::Unavailable { reason: "the engine died".into() })]);
    }

    #[tokio::test]
    async fn a_stream_without_its_end_is_an_error() {
        let events = read(&[r#"data: {"choices":[{"delta":{"content":"half"}}]}"#]).await;
        assert!(matches!(events.as_slice(), [Ok(_), Err(BackendError::Interrupted { .. })]));
    }
}
