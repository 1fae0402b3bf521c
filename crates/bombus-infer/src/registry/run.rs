use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bombus_core::chat::{
    Answerer, ChatEvent, ChatRequest, Delta, EmbedRequest, EmbedResponse, Resume, Think, TokenAlternative,
    TokenLogprob, ToolCallDelta, Usage,
};
use bombus_core::model::{ModelCapability, ModelInfo};
use futures::stream::{self, Stream, StreamExt};
use tokio::task::yield_now;
use tokio::time::Instant;

use super::entry::Place;
use super::patience::{Line, Patience};
use crate::{Backend, BackendError, ChatStream, LoadRequest};

/// Fewer tokens than this say nothing of a backend's speed.
const MEASURED_TOKENS_MIN: u32 = 8;
/// Events that may stand before an answer's first token.
const PREFACE_MAX: usize = 8;
/// Most that one answer may take in memory, in MiB, with what other runs wrote of it: text, thoughts, calls of tools, tokens and their log
/// probabilities. A token with 20 others beside it takes about 800 bytes, so that this is room for 80,000 of them; 32,768 take 25 MiB.
pub const ANSWER_MIB_MAX: usize = 64;

/// A request that can be sent to one backend after another.
pub(super) trait Work: Clone + Send {
    /// What comes of it.
    type Answer: Send;

    /// Names the model as the backend does.
    fn name_model(&mut self, model: &str);

    /// Leaves out what was not asked for by name and what this model cannot do.
    fn suit(&mut self, _: &ModelInfo) {}

    /// Returns whether it goes on with an answer that another run began.
    fn goes_on(&self) -> bool {
        false
    }

    /// Sends it. Comes back when nothing can be done elsewhere any more: with the first token, or with all of the answer.
    fn send(self, turn: Turn) -> impl Future<Output = Result<Self::Answer, BackendError>> + Send;
}

/// A request that runs at a backend. Dropped before its end it counts as abandoned.
pub(super) struct Turn {
    /// Taken when the outcome is known.
    place: Option<Place>,
    /// Says where whoever asked gave up waiting.
    patience: Arc<Patience>,
    /// Its place behind others, as long as that is the last that the backend said of it.
    line: Option<Line>,
    /// Whether nobody is left who could answer in its place.
    is_last: bool,
}

impl Turn {
    pub(super) fn new(place: Place, patience: Arc<Patience>, is_last: bool) -> Self {
        Self { place: Some(place), patience, line: None, is_last }
    }

    fn backend(&self) -> Arc<dyn Backend> {
        self.place().entry().backend(self.is_last).clone()
    }

    fn place(&self) -> &Place {
        self.place.as_ref().expect("a turn has its place until it ends")
    }

    /// Takes note that the backend is at work, but on others.
    fn waits(&mut self) {
        self.line = Some(self.patience.note_line());
    }

    /// Returns whether others are before it.
    fn is_in_line(&self) -> bool {
        self.line.is_some_and(Line::stands)
    }

    /// Takes note that nobody is before it any more.
    fn leave_line(&mut self) {
        if self.line.take().is_some() {
            self.patience.end_line();
        }
    }

    fn answered(&mut self, tokens_per_second: Option<f64>) {
        if let Some(place) = self.place.take() {
            place.answered(tokens_per_second);
        }
    }

    fn failed(&mut self, error: &BackendError) {
        if let Some(place) = self.place.take() {
            place.failed(error);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            // Whoever gave up on a place in a line found the backend at work.
            place.abandoned(self.patience.gave_up() && !self.is_in_line());
        }
        self.leave_line();
    }
}

/// An answer of which the first token is there.
pub(super) struct Begun {
    pub(super) run: Run,
    /// Who answers, where a peer told that.
    pub(super) by: Option<Answerer>,
}

impl Work for ChatRequest {
    type Answer = Begun;

    fn name_model(&mut self, model: &str) {
        model.clone_into(&mut self.model);
    }

    fn suit(&mut self, info: &ModelInfo) {
        // Whoever wants thoughts for sure is led to models that have them. Else they were chosen for the best backend's model alone.
        if !info.capabilities.contains(&ModelCapability::Thinking) {
            self.think.take_if(|think| *think != Think::Off);
        }
    }

    fn goes_on(&self) -> bool {
        self.resume.is_some()
    }

    async fn send(self, mut turn: Turn) -> Result<Begun, BackendError> {
        let backend = turn.backend();
        let earlier_tokens = self.resume.as_ref().map_or(0, |resume: &Resume| resume.completion_tokens);
        let bytes = self.resume.as_ref().map_or(0, Resume::bytes);
        let logprobs = self.logprobs.map(usize::from);
        let begun = Instant::now();
        let mut events = match backend.chat(self).await {
            Ok(events) => with_logprobs(events, logprobs),
            Err(error) => {
                turn.failed(&error);
                return Err(error);
            }
        };
        let mut first = Vec::with_capacity(1);
        let mut by = None;
        loop {
            match events.next().await {
                Some(Ok(ChatEvent::AnsweredBy(answerer))) if by.is_none() => by = Some(answerer),
                Some(Ok(ChatEvent::Waiting {})) => {
                    turn.waits();
                    // Others get their turn beside a backend that says nothing else.
                    yield_now().await;
                }
                Some(Ok(event)) => {
                    let preface = matches!(event, ChatEvent::Truncated { .. }) && first.len() < PREFACE_MAX;
                    first.push(event);
                    if !preface {
                        break;
                    }
                }
                ended => {
                    let error = ended.and_then(Result::err).unwrap_or_else(without_end);
                    turn.failed(&error);
                    return Err(error);
                }
            }
        }
        turn.leave_line();
        turn.place().began(begun.elapsed());
        let run = Run { first: first.into_iter(), events, turn, first_token: Instant::now(), earlier_tokens, bytes };
        Ok(Begun { run, by })
    }
}

impl Work for EmbedRequest {
    type Answer = EmbedResponse;

    fn name_model(&mut self, model: &str) {
        model.clone_into(&mut self.model);
    }

    async fn send(self, mut turn: Turn) -> Result<EmbedResponse, BackendError> {
        let (backend, patience) = (turn.backend(), turn.patience.clone());
        let dimensions = self.dimensions;
        let came = || patience.note_sign();
        match backend.embed_in_pieces(self, &came).await {
            Ok(mut response) => {
                turn.answered(None);
                if let Some(dimensions) = dimensions {
                    response.vectors.iter_mut().for_each(|vector| shorten(vector, dimensions as usize));
                }
                Ok(response)
            }
            Err(error) => {
                turn.failed(&error);
                Err(error)
            }
        }
    }
}

impl Work for LoadRequest {
    type Answer = ();

    fn name_model(&mut self, model: &str) {
        model.clone_into(&mut self.model);
    }

    async fn send(self, mut turn: Turn) -> Result<(), BackendError> {
        let backend = turn.backend();
        backend.load(self).await.inspect_err(|error| turn.failed(error))?;
        // The breaker is not told: a backend whose server loads models by itself says yes without asking it.
        turn.place().loaded();
        Ok(())
    }
}

/// Cuts a vector and brings it to length 1 again. Not every backend can.
fn shorten(vector: &mut Vec<f32>, dimensions: usize) {
    if vector.len() <= dimensions {
        return;
    }
    vector.truncate(dimensions);
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
}

/// Returns about how much memory an event takes where an answer is put together: also pieces without text may be kept.
fn bytes_of(event: &ChatEvent) -> usize {
    match event {
        ChatEvent::Thinking(delta) | ChatEvent::Delta(delta) => bytes_of_delta(delta),
        ChatEvent::ToolCall(call) => {
            let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
            size_of::<ToolCallDelta>() + text(&call.id) + text(&call.name) + call.arguments.len()
        }
        ChatEvent::Continued { by, reason } => {
            size_of::<ChatEvent>() + by.backend.len() + by.model.len() + reason.len()
        }
        ChatEvent::AnsweredBy(_) | ChatEvent::Truncated { .. } | ChatEvent::Waiting {} | ChatEvent::Done { .. } => 0,
    }
}

fn bytes_of_delta(delta: &Delta) -> usize {
    let tokens = delta.trace.as_ref().map_or(0, |trace| size_of_val(trace.tokens.as_slice()));
    let others = |one: &TokenAlternative| size_of::<TokenAlternative>() + one.bytes.len();
    let probable = |one: &TokenLogprob| {
        size_of::<TokenLogprob>() + one.token.bytes.len() + one.top.iter().map(others).sum::<usize>()
    };
    delta.text.len() + tokens + delta.logprobs.iter().map(probable).sum::<usize>()
}

/// Leaves out log probabilities, and the pieces that have nothing else, or all but the wanted number of others beside each token: some
/// servers and peers tell them without being asked.
fn with_logprobs(events: ChatStream, wanted: Option<usize>) -> ChatStream {
    let stripped = events.filter_map(move |mut event| async move {
        let is_left_out = match (&mut event, wanted) {
            (Ok(ChatEvent::Delta(delta) | ChatEvent::Thinking(delta)), Some(others)) => {
                delta.logprobs.iter_mut().for_each(|one| one.top.truncate(others));
                false
            }
            (Ok(ChatEvent::Delta(delta) | ChatEvent::Thinking(delta)), None) if !delta.logprobs.is_empty() => {
                delta.logprobs = Vec::new();
                delta.text.is_empty() && delta.trace.is_none()
            }
            _ => false,
        };
        if is_left_out {
            // Others get their turn beside a backend that says nothing else.
            yield_now().await;
        }
        (!is_left_out).then_some(event)
    });
    stripped.boxed()
}

pub(super) fn without_end() -> BackendError {
    BackendError::Interrupted { reason: "the backend ended it without saying why".into() }
}

/// The events of an answer, with an eye on how it ends. What says only that it waits is taken note of and not handed on.
pub(super) struct Run {
    first: std::vec::IntoIter<ChatEvent>,
    events: ChatStream,
    turn: Turn,
    first_token: Instant,
    /// Tokens of the answer that other runs have written.
    earlier_tokens: u32,
    /// Bytes of the answer so far, with those of other runs.
    bytes: usize,
}

impl Run {
    /// Returns when the first token came.
    pub(super) fn first_token_at(&self) -> Instant {
        self.first_token
    }

    /// Returns how many bytes the answer has so far, with those of other runs.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns whether it ended the answer for its length.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > ANSWER_MIB_MAX << 20
    }

    /// Takes note of how many bytes the answer had before: what it goes on from does not have all of them.
    pub(super) fn goes_on_after(&mut self, bytes: usize) {
        self.bytes = self.bytes.max(bytes);
    }

    /// Takes note that it came to a standstill. That it waits for others is no failure of the backend.
    pub(super) fn stalled(&mut self, error: &BackendError) {
        if !self.turn.is_in_line() {
            self.turn.failed(error);
        }
    }

    /// Counts an event, or ends the run where the answer becomes too long with it: whoever puts an answer together holds all of it.
    fn count(&mut self, event: &ChatEvent) -> Result<(), BackendError> {
        self.bytes = self.bytes.saturating_add(bytes_of(event));
        if !self.is_full() {
            return Ok(());
        }
        let error = BackendError::Interrupted { reason: format!("it is longer than {ANSWER_MIB_MAX} MiB") };
        self.turn.failed(&error);
        (self.first, self.events) = (Vec::new().into_iter(), stream::empty().boxed());
        Err(error)
    }

    fn observe(&mut self, event: &ChatEvent) {
        if let ChatEvent::Done { usage, timings, .. } = event {
            let written =
                Usage { completion_tokens: usage.completion_tokens.saturating_sub(self.earlier_tokens), ..*usage };
            let measured = || {
                let took = self.first_token.elapsed().as_secs_f64();
                (written.completion_tokens > 1 && took > 0.0).then(|| f64::from(written.completion_tokens - 1) / took)
            };
            let is_enough = written.completion_tokens >= MEASURED_TOKENS_MIN;
            let speed = timings.tokens_per_second(&written).or_else(measured);
            self.turn.answered(speed.filter(|_| is_enough));
        }
    }
}

impl Stream for Run {
    type Item = Result<ChatEvent, BackendError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let item = match this.first.next() {
            Some(event) => Some(Ok(event)),
            None => ready!(this.events.poll_next_unpin(cx)),
        };
        match &item {
            Some(Ok(ChatEvent::Waiting {})) => {
                this.turn.waits();
                // Others get their turn beside a backend that says nothing else.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Ok(event)) => {
                this.turn.leave_line();
                if let Err(error) = this.count(event) {
                    return Poll::Ready(Some(Err(error)));
                }
                this.observe(event);
            }
            Some(Err(error)) => this.turn.failed(error),
            None => this.turn.failed(&without_end()),
        }
        Poll::Ready(item)
    }
}
