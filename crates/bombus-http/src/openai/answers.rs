use std::pin::Pin;
use std::time::Duration;

use axum::http::HeaderValue;
use bombus_core::chat::{ChatEvent, ChatRequest};
use bombus_infer::BackendError;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::target::Target;
use crate::Metrics;
use crate::app::App;
use crate::error::ApiError;
use crate::metrics::ModelLabels;

/// Most answers of one request that are generated at a time; the others follow as these end.
const RUNNING_MAX: usize = 16;

/// The answers to one request, all of them under way at once and told apart by their index.
///
/// Dropping it stops the model. Its first event is there before it is built, so that whatever fails until then has a status of its own.
pub(crate) struct Answers {
    events: BoxStream<'static, (usize, Result<ChatEvent, BackendError>)>,
    first: Option<(usize, ChatEvent)>,
    /// Answers that have not ended.
    open: usize,
    patience: Patience,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    meter: Meter,
    route: HeaderValue,
}

impl Answers {
    /// Sends the requests to the backend and waits for the first event.
    ///
    /// # Errors
    ///
    /// What the backend says before the first event; a timeout; the end of the node.
    pub(crate) async fn begin(app: &App, target: Target, requests: Vec<ChatRequest>) -> Result<Self, ApiError> {
        let limits = &app.config.limits;
        let open = requests.len();
        let backend = target.backend;
        let runs = requests.into_iter().enumerate().map(move |(index, request)| {
            let backend = backend.clone();
            let run = stream::once(async move { backend.chat(request).await }).try_flatten();
            run.map(move |event| (index, event)).boxed()
        });
        let events = if open == 1 {
            stream::iter(runs).flatten().boxed()
        } else {
            stream::iter(runs).flatten_unordered(RUNNING_MAX).boxed()
        };
        let mut answers = Self {
            events,
            first: None,
            open,
            patience: Patience::new(limits.first_token_time(), limits.next_token_time()),
            cut: Box::pin(CancellationToken::cancelled_owned(app.cut.clone())),
            meter: Meter::begin(app.services.metrics.clone(), target.labels, open),
            route: target.route,
        };
        answers.first = answers.next().await.transpose()?;
        Ok(answers)
    }

    /// Returns the value of the `x-bombus-route` header.
    pub(crate) fn route(&self) -> HeaderValue {
        self.route.clone()
    }

    /// Returns whether every answer has ended.
    pub(crate) fn ended(&self) -> bool {
        self.open == 0
    }

    /// Waits for the next event and says to which answer it belongs. After an error, or when every answer has ended, there is none.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, ChatEvent), ApiError>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        if self.open == 0 {
            return None;
        }
        let (index, event) = tokio::select! {
            biased;
            () = &mut self.cut => return Some(Err(ApiError::shutting_down())),
            event = self.events.next() => match event {
                Some((index, Ok(event))) => (index, event),
                Some((_, Err(error))) => return Some(Err(self.fail(error))),
                None => {
                    let reason = "the backend ended it without saying why".to_owned();
                    return Some(Err(self.fail(BackendError::Interrupted { reason })));
                }
            },
            after = self.patience.spent() => return Some(Err(self.fail(BackendError::TimedOut { after }))),
        };
        self.patience.renew();
        self.meter.count(index, &event);
        if matches!(event, ChatEvent::Done { .. }) {
            self.open -= 1;
        }
        Some(Ok((index, event)))
    }

    fn fail(&mut self, error: BackendError) -> ApiError {
        let ModelLabels { model, backend } = &self.meter.labels;
        // What is wrong with a request may quote it, and is no trouble of the node's.
        match &error {
            BackendError::InvalidRequest { .. }
            | BackendError::Unsupported { .. }
            | BackendError::ContextExceeded { .. }
            | BackendError::ModelNotFound { .. } => {
                tracing::debug!(model, backend.name = backend, %error, "request refused by the backend");
            }
            _ => tracing::warn!(model, backend.name = backend, %error, "answer failed"),
        }
        self.open = 0;
        error.into()
    }
}

/// The longest waits for the first event and between events. One timer serves them all: it is set anew only when it fires, not at every
/// token.
struct Patience {
    timer: Pin<Box<Sleep>>,
    since: Instant,
    limit: Duration,
    next_limit: Duration,
}

impl Patience {
    fn new(first_limit: Duration, next_limit: Duration) -> Self {
        let since = Instant::now();
        Self { timer: Box::pin(sleep_until(since + first_limit)), since, limit: first_limit, next_limit }
    }

    fn renew(&mut self) {
        self.since = Instant::now();
        if self.limit != self.next_limit {
            self.limit = self.next_limit;
            self.timer.as_mut().reset(self.since + self.limit);
        }
    }

    /// Waits until nothing has come for too long, and returns how long that is.
    async fn spent(&mut self) -> Duration {
        loop {
            self.timer.as_mut().await;
            let end = self.since + self.limit;
            if Instant::now() >= end {
                return self.limit;
            }
            self.timer.as_mut().reset(end);
        }
    }
}

/// Counts what the answers cost.
struct Meter {
    metrics: Metrics,
    labels: ModelLabels,
    begun: Instant,
    saw_token: bool,
    /// Tokens of each answer that were counted as they came, so that those of an answer that is cancelled count too.
    counted: Vec<u32>,
}

impl Meter {
    fn begin(metrics: Metrics, labels: ModelLabels, answers: usize) -> Self {
        metrics.answer_begun();
        Self { metrics, labels, begun: Instant::now(), saw_token: false, counted: vec![0; answers] }
    }

    fn count(&mut self, index: usize, event: &ChatEvent) {
        match event {
            ChatEvent::Truncated { .. } => {}
            ChatEvent::Delta(_) | ChatEvent::Thinking(_) | ChatEvent::ToolCall(_) => {
                if !std::mem::replace(&mut self.saw_token, true) {
                    self.metrics.first_token(&self.labels, self.begun.elapsed());
                }
                // An event tells at least one token; the end tells how many there really were.
                self.written(index, 1);
            }
            ChatEvent::Done { usage, timings, .. } => {
                self.metrics.tokens_read(&self.labels, usage.prompt_tokens, usage.cached_tokens);
                self.written(index, usage.completion_tokens.saturating_sub(self.counted[index]));
                self.metrics.queued(&self.labels, timings.queue_ms);
            }
        }
    }

    fn written(&mut self, index: usize, tokens: u32) {
        self.counted[index] += tokens;
        self.metrics.tokens_written(&self.labels, tokens);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.metrics.answer_ended();
    }
}
