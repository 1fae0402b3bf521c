//! Answers as server-sent events.

use std::io::Write;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bombus_core::chat::{ChatEvent, Delta, FinishReason, ToolCallDelta};
use bytes::Bytes;
use serde::Serialize;

use super::response::{Timings, Usage};
use crate::error::ApiError;
use crate::inference::{Answers, Continuation, Extras, body_of};

/// How one of the two kinds of generation writes its chunks. Each method appends whole events.
pub(super) trait Chunks: Send + 'static {
    /// Opens an answer, before its first event.
    fn open(&mut self, index: usize, out: &mut EventWriter);
    /// More text.
    fn delta(&mut self, index: usize, delta: Delta, out: &mut EventWriter);
    /// More of what the model thinks before it answers.
    fn thinking(&mut self, index: usize, thinking: &str, out: &mut EventWriter);
    /// A piece of a tool call.
    fn tool_call(&mut self, index: usize, call: &ToolCallDelta, out: &mut EventWriter);
    /// The end of an answer.
    fn finish(&mut self, index: usize, end: End, out: &mut EventWriter);
    /// What all answers cost together.
    fn usage(&mut self, usage: Usage, out: &mut EventWriter);
}

/// The end of an answer.
pub(super) struct End {
    pub(super) reason: FinishReason,
    pub(super) timings: Option<Timings>,
    pub(super) extras: Option<Extras>,
}

/// What a stream needs to know about its request.
#[derive(Clone, Copy)]
pub(super) struct StreamPlan {
    pub(super) include_usage: bool,
    /// Answers to each prompt.
    pub(super) answers_per_prompt: usize,
    /// Answers altogether.
    pub(super) answers: usize,
}

/// Writes events into a buffer.
#[derive(Default)]
pub(super) struct EventWriter(Vec<u8>);

impl EventWriter {
    /// Appends an event.
    pub(super) fn event(&mut self, value: &impl Serialize) {
        self.0.reserve(256);
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, value).expect("a chunk has a JSON form, and a buffer takes it");
        self.0.extend_from_slice(b"\n\n");
    }

    /// Appends a comment, which clients leave out.
    fn comment(&mut self, continuation: &Continuation) {
        write!(self.0, ": {continuation}\n\n").expect("a buffer takes it");
    }

    fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.0).into()
    }
}

/// Streams the answers. An error ends the stream with an event of its own and without `[DONE]`.
pub(super) fn respond(mut answers: Answers, mut chunks: impl Chunks, plan: StreamPlan) -> Response {
    let told = answers.headers();
    let events = async_stream::stream! {
        let mut out = EventWriter::default();
        let mut opened = vec![false; plan.answers];
        let mut usage_total = Usage::default();
        while let Some(event) = answers.next().await {
            let (index, event) = match event {
                Ok(event) => event,
                Err(error) => {
                    out.event(&error.openai_body());
                    yield out.take();
                    return;
                }
            };
            if !std::mem::replace(&mut opened[index], true) {
                chunks.open(index, &mut out);
            }
            match event {
                ChatEvent::Delta(delta) if delta.text.is_empty() && delta.logprobs.is_empty() => {}
                ChatEvent::Delta(delta) => chunks.delta(index, delta, &mut out),
                ChatEvent::ToolCall(call) => chunks.tool_call(index, &call, &mut out),
                ChatEvent::Thinking(thinking) if thinking.text.is_empty() => {}
                ChatEvent::Thinking(thinking) => chunks.thinking(index, &thinking.text, &mut out),
                ChatEvent::Continued { .. } => {
                    if let Some(continuation) = answers.last_continuation() {
                        out.comment(continuation);
                    }
                }
                ChatEvent::AnsweredBy(_) | ChatEvent::Truncated { .. } | ChatEvent::Waiting {} => {}
                ChatEvent::Done { finish, usage, timings, .. } => {
                    usage_total.add(&usage, index % plan.answers_per_prompt == 0);
                    let timings = (plan.answers == 1).then(|| Timings::of(&timings, &usage));
                    let extras = Extras::of(answers.take_continued(index));
                    chunks.finish(index, End { reason: finish, timings, extras }, &mut out);
                }
            }
            if answers.ended() {
                if plan.include_usage {
                    chunks.usage(usage_total, &mut out);
                }
                out.done();
            }
            if !out.0.is_empty() {
                yield out.take();
            }
        }
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Proxies of the nginx kind collect an answer before they hand it on, unless they are told.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, told, body_of(events)).into_response()
}

/// Names why an answer ended.
pub(super) fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::ContentFilter => "content_filter",
    }
}

/// An answer put together from its events.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) text: String,
    pub(super) thinking: String,
    pub(super) logprobs: Vec<bombus_core::chat::TokenLogprob>,
    pub(super) tool_calls: Vec<ToolCallDelta>,
    pub(super) finish: Option<FinishReason>,
}

/// All answers put together.
pub(super) struct AllCollected {
    pub(super) answers: Vec<Collected>,
    pub(super) usage: Usage,
    pub(super) timings: Option<Timings>,
    pub(super) extras: Option<Extras>,
    /// The headers of the response, which are known only now: another backend may have gone on.
    pub(super) headers: HeaderMap,
}

/// Waits for the end of all answers.
pub(super) async fn collect(mut answers: Answers, plan: &StreamPlan) -> Result<AllCollected, ApiError> {
    let (usage, headers) = (Usage::default(), HeaderMap::new());
    let mut all = AllCollected { answers: Vec::new(), usage, timings: None, extras: None, headers };
    all.answers.resize_with(plan.answers, Collected::default);
    while let Some(event) = answers.next().await {
        let (index, event) = event?;
        let answer = &mut all.answers[index];
        match event {
            ChatEvent::Delta(delta) => {
                answer.text.push_str(&delta.text);
                answer.logprobs.extend(delta.logprobs);
            }
            ChatEvent::ToolCall(piece) => match answer.tool_calls.iter_mut().find(|call| call.index == piece.index) {
                Some(call) => call.arguments.push_str(&piece.arguments),
                None => answer.tool_calls.push(piece),
            },
            ChatEvent::Thinking(thinking) => answer.thinking.push_str(&thinking.text),
            ChatEvent::AnsweredBy(_)
            | ChatEvent::Continued { .. }
            | ChatEvent::Truncated { .. }
            | ChatEvent::Waiting {} => {}
            ChatEvent::Done { finish, usage, timings, .. } => {
                answer.finish = Some(finish);
                all.usage.add(&usage, index % plan.answers_per_prompt == 0);
                all.timings = (plan.answers == 1).then(|| Timings::of(&timings, &usage));
            }
        }
    }
    all.headers = answers.headers();
    all.extras = Extras::of(answers.into_continued());
    Ok(all)
}
