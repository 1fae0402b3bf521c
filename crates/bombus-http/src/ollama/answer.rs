//! Answers as lines of JSON, or as one object.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bombus_core::chat::{ChatEvent, FinishReason, TokenLogprob, ToolCallDelta};
use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::response::{
    AnswerFunctionCall, AnswerMessage, AnswerToolCall, ChatResponse, GenerateResponse, Logprob, Metrics,
};
use super::timestamp;
use crate::error::ApiError;
use crate::inference::{Answers, Continuation, ROUTE_HEADER, Truncation, body_of};

const LINES_TYPE: &str = "application/x-ndjson";
const OBJECT_TYPE: &str = "application/json; charset=utf-8";

/// What an answer is an answer to, and so how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Generate,
    Chat,
}

/// What stands in every line of an answer, or decides what stands there.
pub(super) struct Head {
    pub(super) form: Form,
    /// The model's name as the client wrote it.
    pub(super) model: String,
    /// When the request came.
    pub(super) begun: Instant,
    pub(super) with_logprobs: bool,
}

/// Some or all of an answer.
#[derive(Default)]
struct Piece {
    text: String,
    thinking: String,
    calls: Vec<AnswerToolCall>,
    logprobs: Vec<TokenLogprob>,
}

impl Piece {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.thinking.is_empty() && self.calls.is_empty() && self.logprobs.is_empty()
    }

    fn append(&mut self, more: Self) {
        self.text.push_str(&more.text);
        self.thinking.push_str(&more.thinking);
        self.calls.extend(more.calls);
        self.logprobs.extend(more.logprobs);
    }
}

/// The end of an answer.
#[derive(Default)]
struct End {
    reason: &'static str,
    metrics: Metrics,
    context: Vec<u32>,
    continued: Vec<Continuation>,
}

impl Head {
    /// Writes a line, without its line feed.
    fn write(&self, piece: Piece, end: Option<End>) -> Vec<u8> {
        let logprobs: Vec<_> = piece.logprobs.into_iter().map(Logprob::of).collect();
        let done = end.is_some();
        let done_reason = end.as_ref().map(|end| end.reason);
        let End { metrics, context, continued, .. } = end.unwrap_or_default();
        let written = match self.form {
            Form::Generate => serde_json::to_vec(&GenerateResponse {
                model: &self.model,
                created_at: timestamp::now(),
                response: &piece.text,
                thinking: &piece.thinking,
                tool_calls: &piece.calls,
                done,
                done_reason,
                context: &context,
                logprobs: &logprobs,
                continued: &continued,
                metrics,
            }),
            Form::Chat => serde_json::to_vec(&ChatResponse {
                model: &self.model,
                created_at: timestamp::now(),
                message: AnswerMessage {
                    role: "assistant",
                    content: &piece.text,
                    thinking: &piece.thinking,
                    tool_calls: &piece.calls,
                },
                done,
                done_reason,
                logprobs: &logprobs,
                continued: &continued,
                metrics,
            }),
        };
        written.expect("an answer has a JSON form, and a buffer takes it")
    }

    /// Answers a request that only had a model loaded or unloaded.
    pub(super) fn without_text(&self, reason: &'static str, route: HeaderValue) -> Response {
        let body = self.write(Piece::default(), Some(End { reason, ..End::default() }));
        ([(header::CONTENT_TYPE, HeaderValue::from_static(OBJECT_TYPE)), (ROUTE_HEADER, route)], body).into_response()
    }
}

/// Takes an answer's events apart into pieces and the end.
struct Reader {
    begun: Instant,
    with_logprobs: bool,
    /// Calls of tools as far as they have come. They are told whole, at the end.
    calls: Vec<ToolCallDelta>,
}

impl Reader {
    /// Waits for the next event and reads it.
    async fn next(&mut self, answers: &mut Answers) -> Result<Option<(Piece, Option<End>)>, ApiError> {
        let Some(event) = answers.next().await.transpose()? else { return Ok(None) };
        let (piece, mut end) = self.read(event.1);
        if let Some(end) = &mut end {
            end.continued = answers.take_continued(event.0);
        }
        Ok(Some((piece, end)))
    }

    fn read(&mut self, event: ChatEvent) -> (Piece, Option<End>) {
        let mut piece = Piece::default();
        match event {
            ChatEvent::AnsweredBy(_)
            | ChatEvent::Continued { .. }
            | ChatEvent::Truncated { .. }
            | ChatEvent::Waiting {} => {}
            ChatEvent::Thinking(thinking) => piece.thinking = thinking.text,
            ChatEvent::Delta(delta) => {
                piece.text = delta.text;
                if self.with_logprobs {
                    piece.logprobs = delta.logprobs;
                }
            }
            ChatEvent::ToolCall(more) => match self.calls.iter_mut().find(|call| call.index == more.index) {
                Some(call) => call.arguments.push_str(&more.arguments),
                None => self.calls.push(more),
            },
            ChatEvent::Done { finish, usage, timings, tokens } => {
                for call in std::mem::take(&mut self.calls) {
                    add_call(call, &mut piece);
                }
                let reason = match finish {
                    // This dialect has no word for a filter.
                    FinishReason::Stop | FinishReason::ToolCalls | FinishReason::ContentFilter => "stop",
                    FinishReason::Length => "length",
                };
                let metrics = Metrics::of(self.begun.elapsed(), &timings, &usage);
                return (piece, Some(End { reason, metrics, context: tokens, continued: Vec::new() }));
            }
        }
        (piece, None)
    }
}

/// Adds a call to a piece; one whose arguments are no object, which this dialect cannot write, as the text that it is.
fn add_call(call: ToolCallDelta, piece: &mut Piece) {
    let name = call.name.unwrap_or_default();
    let written = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
    if let Ok(arguments) = serde_json::from_str(written) {
        let id = call.id.unwrap_or_else(|| format!("call_{}", Uuid::new_v4().simple()));
        let function = AnswerFunctionCall { index: call.index, name, arguments };
        piece.calls.push(AnswerToolCall { id, function });
    } else {
        tracing::warn!(
            tool.name = name,
            "the arguments of a tool call are no JSON object, so the call is answered as text"
        );
        piece.text.push_str(&format!("{{\"name\": {}, \"arguments\": {written}}}", Value::from(name)));
    }
}

/// Answers a request, as lines or as one object.
///
/// # Errors
///
/// What fails before the first token; of one object, whatever fails.
pub(super) async fn respond(mut answers: Answers, head: Head, stream: bool) -> Result<Response, ApiError> {
    if let Some(Truncation { messages, prompt_tokens }) = answers.truncated() {
        tracing::info!(
            model = head.model,
            truncated.messages = messages,
            prompt.tokens = prompt_tokens,
            "the oldest turns of a conversation that is longer than the context were left out"
        );
    }
    let mut reader = Reader { begun: head.begun, with_logprobs: head.with_logprobs, calls: Vec::new() };
    let mut next = reader.next(&mut answers).await?;
    let mut headers;
    let (content_type, body) = if stream {
        headers = answers.headers();
        let lines = async_stream::stream! {
            while let Some((piece, end)) = next.take() {
                if end.is_some() && !piece.is_empty() {
                    yield line(head.write(piece, None));
                    yield line(head.write(Piece::default(), end));
                } else if end.is_some() || !piece.is_empty() {
                    yield line(head.write(piece, end));
                }
                next = match reader.next(&mut answers).await {
                    Ok(next) => next,
                    Err(error) => {
                        let told = serde_json::to_vec(&error.ollama_body()).expect("an error has a JSON form");
                        yield line(told);
                        return;
                    }
                };
            }
        };
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // Proxies of the nginx kind collect an answer before they hand it on, unless they are told.
        headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        (LINES_TYPE, body_of(lines))
    } else {
        let (mut whole, mut end) = (Piece::default(), None);
        while let Some((piece, ended)) = next {
            whole.append(piece);
            end = end.or(ended);
            next = reader.next(&mut answers).await?;
        }
        // Another backend may have gone on meanwhile.
        headers = answers.headers();
        (OBJECT_TYPE, Body::from(head.write(whole, end)))
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok((headers, body).into_response())
}

fn line(mut json: Vec<u8>) -> Bytes {
    json.push(b'\n');
    json.into()
}
