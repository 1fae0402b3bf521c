//! Answers as they stream in, told in our own events.

use std::sync::Arc;
use std::time::Duration;

use bombus_core::chat::{ChatEvent, Delta, FinishReason, Timings, ToolCallDelta, Usage};
use futures::{Stream, StreamExt};
use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout, timeout_at};

use super::chunk::{Choice, Chunk, ChunkLogprobs, finish_reason};
use super::tool_calls::ToolCalls;
use crate::BackendError;
use crate::upstream::{UpstreamClient, UpstreamError, unreadable};

/// Longest wait for the rest (usage, and the mark of the end) of an answer whose reason to end is known.
const REST_TIME_MAX: Duration = Duration::from_secs(2);
/// Longest wait, after the last event was handed on, for the body's own end: then the connection can be used again.
const END_TIME_MAX: Duration = Duration::from_millis(20);
/// Largest answer that comes whole.
const WHOLE_BYTES_MAX: usize = 32 << 20;

/// Reads an answer. `begun`: when it was asked for. Dropping the stream closes the connection, which stops the server's work.
pub(super) fn read(
    client: Arc<UpstreamClient>,
    model: String,
    response: Response,
    begun: Instant,
) -> impl Stream<Item = Result<ChatEvent, BackendError>> + Send + 'static {
    let mut told = false;
    events(Arc::clone(&client), response, Answer::new(begun)).map(move |event| match event {
        Ok(event) => {
            told = true;
            Ok(event)
        }
        Err(error) => {
            let ms = begun.elapsed().as_secs_f64() * 1000.0;
            let (backend, url, kind, status) = (client.name(), client.url(), error.kind(), error.status());
            tracing::error!(
                backend.name = backend,
                upstream.url = url,
                model.name = model,
                status,
                ms,
                error.kind = kind,
                "an upstream answer broke off"
            );
            Err(client.without_secrets(error).into_backend(backend, &model, told))
        }
    })
}

fn events(
    client: Arc<UpstreamClient>,
    response: Response,
    mut answer: Answer,
) -> impl Stream<Item = Result<ChatEvent, UpstreamError>> + Send + 'static {
    async_stream::try_stream! {
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if content_type.is_some_and(|value| value.starts_with("application/json")) {
            // Some servers answer whole what was asked for as a stream, and some tell errors so.
            let body = client.read(response, WHOLE_BYTES_MAX).await?;
            for event in answer.on_document(&body)? {
                yield event;
            }
            answer.check_whole()?;
            yield answer.done()?;
        } else {
            let lines = UpstreamClient::lines(response, client.timeout());
            tokio::pin!(lines);
            while let Some(data) = next_data(&mut lines, answer.rest_until).await? {
                for event in answer.on_document(data.as_bytes())? {
                    yield event;
                }
            }
            yield answer.done()?;
            // A server that does not end its body now has its connection closed when this stream is dropped.
            let rest = async { while let Some(Ok(_)) = lines.next().await {} };
            timeout(END_TIME_MAX, rest).await.unwrap_or_default();
        }
    }
}

/// Waits for the data of the next event. `None`: the answer is at its end, or whole at `rest_until`, and nothing more of it came.
async fn next_data<L>(lines: &mut L, rest_until: Option<Instant>) -> Result<Option<String>, UpstreamError>
where
    L: Stream<Item = Result<String, UpstreamError>> + Unpin,
{
    loop {
        let line = match rest_until {
            // What is missing after the reason to end is no part of the answer, so no fault in it matters.
            Some(end) => match timeout_at(end, lines.next()).await {
                Ok(Some(Ok(line))) => line,
                _ => return Ok(None),
            },
            None => lines.next().await.unwrap_or_else(|| {
                Err(UpstreamError::Broken { reason: "the answer ended without a reason to end".to_owned() })
            })?,
        };
        match event_data(&line)? {
            None => {}
            Some(data) if data == "[DONE]" => return Ok(None),
            Some(data) => return Ok(Some(data)),
        }
    }
}

/// Takes the data out of a line of an event stream. Every event of this dialect has its data in one line, so nothing has to be joined.
fn event_data(line: &str) -> Result<Option<String>, UpstreamError> {
    if let Some(data) = line.strip_prefix("data:") {
        let data = data.trim();
        return Ok((!data.is_empty()).then(|| data.to_owned()));
    }
    if line.is_empty() || [":", "event:", "id:", "retry:"].iter().any(|known| line.starts_with(known)) {
        return Ok(None);
    }
    // Proxies tell errors of their own as they are.
    let told = serde_json::from_str::<Value>(line).ok().and_then(|document| UpstreamError::of_event(&document));
    Err(told.unwrap_or_else(|| garbage("it answers something else than a stream of events")))
}

fn garbage(reason: impl Into<String>) -> UpstreamError {
    UpstreamError::Garbage { reason: reason.into() }
}

/// An answer so far.
struct Answer {
    begun: Instant,
    /// When its first and its last piece came.
    first_last: Option<(Instant, Instant)>,
    pieces: u32,
    usage: Option<Usage>,
    timings: Option<Timings>,
    cached_tokens: u32,
    calls: ToolCalls,
    finish: Option<FinishReason>,
    /// Until when the rest is waited for, once the reason to end is known.
    rest_until: Option<Instant>,
}

impl Answer {
    fn new(begun: Instant) -> Self {
        Self {
            begun,
            first_last: None,
            pieces: 0,
            usage: None,
            timings: None,
            cached_tokens: 0,
            calls: ToolCalls::default(),
            finish: None,
            rest_until: None,
        }
    }

    /// Takes one document and tells what is new in it.
    fn on_document(&mut self, bytes: &[u8]) -> Result<Vec<ChatEvent>, UpstreamError> {
        let chunk: Chunk = serde_json::from_slice(bytes).map_err(|error| {
            garbage(format!("it sends something else than the JSON expected: {}", unreadable(&error)))
        })?;
        if let Some(error) = chunk.error
            && let Some(told) = UpstreamError::of_event(&json!({"error": error}))
        {
            return Err(told);
        }
        if let Some(usage) = chunk.usage {
            self.usage = Some(usage.usage());
        }
        if let Some(timings) = chunk.timings {
            self.cached_tokens = timings.cache_n.unwrap_or(0);
            self.timings = Some(timings.timings());
        }
        let mut events = Vec::new();
        for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
            self.on_choice(choice, &mut events)?;
        }
        if !events.is_empty() {
            let now = Instant::now();
            self.first_last = Some((self.first_last.map_or(now, |(first, _)| first), now));
        }
        Ok(events)
    }

    fn on_choice(&mut self, mut choice: Choice, events: &mut Vec<ChatEvent>) -> Result<(), UpstreamError> {
        let logprobs = choice.logprobs.take().map(ChunkLogprobs::into_list).unwrap_or_default();
        let mut delta = choice.take_delta();
        let (thoughts, mut text) = delta.take_text();
        text.push_str(&choice.text.unwrap_or_default());
        if !thoughts.is_empty() {
            events.push(ChatEvent::Thinking(Delta::text(thoughts)));
        }
        if !text.is_empty() || !logprobs.is_empty() {
            self.pieces = self.pieces.saturating_add(logprobs.len().max(1) as u32);
            events.push(ChatEvent::Delta(Delta { text, logprobs, trace: None }));
        } else if !events.is_empty() {
            self.pieces = self.pieces.saturating_add(1);
        }
        let mut pass_on = |piece: Result<Option<ToolCallDelta>, String>| {
            events.extend(piece.map_err(garbage)?.map(ChatEvent::ToolCall));
            Ok(())
        };
        for call in delta.tool_calls {
            pass_on(self.calls.on(call))?;
        }
        if let Some(function) = delta.function_call {
            pass_on(self.calls.on_function(function))?;
        }
        // Some servers write an empty reason as long as there is none.
        if let Some(reason) = choice.finish_reason.filter(|reason| !reason.is_empty()) {
            self.finish = Some(finish_reason(&reason));
            self.rest_until.get_or_insert_with(|| Instant::now() + REST_TIME_MAX);
        }
        Ok(())
    }

    /// Fails where a document that should hold a whole answer holds none.
    fn check_whole(&self) -> Result<(), UpstreamError> {
        let holds_one = self.finish.is_some() || self.first_last.is_some();
        if holds_one { Ok(()) } else { Err(garbage("it answers JSON that holds no answer")) }
    }

    /// Tells the end. What the server does not tell is counted and measured here.
    fn done(&self) -> Result<ChatEvent, UpstreamError> {
        self.calls.finish().map_err(garbage)?;
        let finish = match self.finish.unwrap_or(FinishReason::Stop) {
            FinishReason::Stop if !self.calls.is_empty() => FinishReason::ToolCalls,
            finish => finish,
        };
        let counted = Usage { completion_tokens: self.pieces, ..Usage::default() };
        let mut usage = self.usage.unwrap_or(counted);
        if usage.cached_tokens == 0 {
            usage.cached_tokens = self.cached_tokens;
        }
        usage.cached_tokens = usage.cached_tokens.min(usage.prompt_tokens);
        let (first, last) = self.first_last.unwrap_or_else(|| (Instant::now(), Instant::now()));
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let measured =
            || Timings { prompt_ms: ms(first - self.begun), generate_ms: ms(last - first), ..Timings::default() };
        Ok(ChatEvent::Done { finish, usage, timings: self.timings.unwrap_or_else(measured), tokens: Vec::new() })
    }
}
