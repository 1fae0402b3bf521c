use std::pin::Pin;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use bombus_core::chat::{Answerer, ChatEvent, ChatRequest};
use bombus_core::identity::NodeId;
use bombus_infer::{BackendError, Route};
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{Continuation, ROUTE_HEADER, TRUNCATED_HEADER, Target, route_header};
use crate::Metrics;
use crate::app::SharedApp;
use crate::error::ApiError;
use crate::metrics::ModelLabels;

/// Most answers of one request that are generated at a time; the others follow as these end.
const RUNNING_MAX: usize = 16;

/// The answers to one request, all of them under way at once and told apart by their index.
///
/// Dropping it stops the model. Its first event is there before it is built, so that whatever fails until then has a status of its own.
pub(crate) struct Answers {
    pieces: BoxStream<'static, (usize, Result<Piece, BackendError>)>,
    first: Option<(usize, ChatEvent)>,
    /// Answers that have not ended.
    open: usize,
    timer: EventTimer,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    meter: Meter,
    target: Route,
    route: HeaderValue,
    truncation: Option<Truncation>,
    /// Who went on with answers that broke off, as far as the client was not told at their ends.
    continued: Vec<Continuation>,
    own: NodeId,
}

/// What comes of an answer.
enum Piece {
    /// A backend has taken it on.
    Begun { labels: ModelLabels, route: HeaderValue, remote: bool },
    /// More of it.
    Event(ChatEvent),
}

/// A prompt that was longer than the context and was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Truncation {
    /// Messages that were left out.
    pub(crate) messages: u32,
    /// Tokens of the prompt as it was used; `None` where the backend tells only at the end.
    pub(crate) prompt_tokens: Option<u32>,
}

impl Truncation {
    /// Writes it as the value of [`TRUNCATED_HEADER`].
    pub(crate) fn header(self) -> HeaderValue {
        let mut text = format!("messages={}", self.messages);
        if let Some(tokens) = self.prompt_tokens {
            text.push_str(&format!(";prompt_tokens={tokens}"));
        }
        HeaderValue::from_str(&text).expect("numbers and words are printable")
    }
}

impl Answers {
    /// Sends the requests to where the target leads and waits for the first event.
    ///
    /// # Errors
    ///
    /// What the backends say before the first event; a timeout; the end of the node.
    pub(crate) async fn begin(app: &SharedApp, target: Target, requests: Vec<ChatRequest>) -> Result<Self, ApiError> {
        let limits = &app.config.limits;
        let open = requests.len();
        let labels = target.labels(&app.services.metrics);
        let meter = Meter::begin(app.services.metrics.clone(), labels, open);
        let route = target.route;
        let runs = requests.into_iter().enumerate().map({
            let (app, route) = (app.clone(), route.clone());
            move |(index, request)| run(app.clone(), route.clone(), request).map(move |piece| (index, piece)).boxed()
        });
        let pieces = if open == 1 {
            stream::iter(runs).flatten().boxed()
        } else {
            stream::iter(runs).flatten_unordered(RUNNING_MAX).boxed()
        };
        let mut answers = Self {
            pieces,
            first: None,
            open,
            timer: EventTimer::new(open, limits.first_token_time(), limits.next_token_time()),
            cut: Box::pin(CancellationToken::cancelled_owned(app.cut.clone())),
            meter,
            target: route,
            route: HeaderValue::from_static(""),
            truncation: None,
            continued: Vec::new(),
            own: app.services.node.node_id.clone(),
        };
        answers.first = answers.next().await.transpose()?;
        Ok(answers)
    }

    /// Returns the value of the `x-bombus-route` header: who answers or, once another went on, who did so last.
    pub(crate) fn route(&self) -> HeaderValue {
        self.route.clone()
    }

    /// Returns how the prompt was cut, where it was.
    pub(crate) fn truncated(&self) -> Option<Truncation> {
        self.truncation
    }

    /// Returns the headers of a response with these answers: who answers, and how the prompt was cut where it was.
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(ROUTE_HEADER, self.route());
        if let Some(truncation) = self.truncation {
            headers.insert(TRUNCATED_HEADER, truncation.header());
        }
        headers
    }

    /// Returns who has just gone on with an answer.
    pub(crate) fn last_continuation(&self) -> Option<&Continuation> {
        self.continued.last()
    }

    /// Takes out who went on with an answer each time that it broke off.
    pub(crate) fn take_continued(&mut self, index: usize) -> Vec<Continuation> {
        if self.meter.answers.len() == 1 {
            return std::mem::take(&mut self.continued);
        }
        self.continued.extract_if(.., |one| one.index == Some(index)).collect()
    }

    /// Returns who went on with answers each time that one broke off.
    pub(crate) fn into_continued(self) -> Vec<Continuation> {
        self.continued
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
        loop {
            let (index, piece) = tokio::select! {
                biased;
                () = &mut self.cut => return Some(Err(ApiError::shutting_down())),
                piece = self.pieces.next() => match piece {
                    Some((index, Ok(piece))) => (index, piece),
                    Some((index, Err(error))) => return Some(Err(self.fail(index, error))),
                    None => {
                        let reason = "the backend ended it without saying why".to_owned();
                        return Some(Err(self.fail(0, BackendError::Interrupted { reason })));
                    }
                },
                after = self.timer.spent(&self.target) => {
                    let error = self.target.give_up(after);
                    return Some(Err(self.fail(0, error)));
                }
            };
            let event = match piece {
                Piece::Begun { labels, route, remote } => {
                    self.meter.begun(index, labels, remote);
                    if self.route.is_empty() {
                        self.route = route;
                    }
                    continue;
                }
                Piece::Event(event) => event,
            };
            self.timer.renew(index);
            self.meter.count(index, &event);
            match &event {
                ChatEvent::Truncated { messages, prompt_tokens } => {
                    let (messages, prompt_tokens) = (*messages, Some(*prompt_tokens).filter(|tokens| *tokens > 0));
                    self.truncation.get_or_insert(Truncation { messages, prompt_tokens });
                }
                ChatEvent::Continued { by, reason } => self.note_continuation(index, by, reason),
                ChatEvent::Done { .. } => self.open -= 1,
                ChatEvent::AnsweredBy(_)
                | ChatEvent::Waiting {}
                | ChatEvent::Thinking(_)
                | ChatEvent::Delta(_)
                | ChatEvent::ToolCall(_) => {}
            }
            return Some(Ok((index, event)));
        }
    }

    fn note_continuation(&mut self, index: usize, by: &Answerer, reason: &str) {
        self.meter.continued(index, by);
        let told_apart = (self.meter.answers.len() > 1).then_some(index);
        let continuation = Continuation::new(told_apart, by, &self.own, reason);
        self.route = continuation.route();
        self.continued.push(continuation);
    }

    fn fail(&mut self, index: usize, error: BackendError) -> ApiError {
        let model = self.target.best().1.name.as_str();
        let backend = self.meter.answers[index].labels.backend();
        let told = error.in_log();
        match &error {
            BackendError::InvalidRequest { .. }
            | BackendError::Unsupported { .. }
            | BackendError::ContextExceeded { .. }
            | BackendError::ModelNotFound { .. } => {
                tracing::debug!(model, backend.name = backend, error = %told, "request refused by the backend");
            }
            _ => tracing::warn!(model, backend.name = backend, error = %told, "answer failed"),
        }
        self.open = 0;
        error.into()
    }
}

/// Sends a request to where its route leads and returns what comes of it.
fn run(
    app: SharedApp,
    route: Route,
    request: ChatRequest,
) -> impl Stream<Item = Result<Piece, BackendError>> + Send + 'static {
    let begun = async move {
        let routed = route.chat(request).await?;
        let model = &route.best().1.name;
        let labels = app.services.metrics.labels(model, routed.node.as_ref(), &routed.backend);
        let begun = Piece::Begun { labels, route: route_header(&app, &routed), remote: routed.node.is_some() };
        Ok::<_, BackendError>(stream::iter([Ok(begun)]).chain(routed.value.map_ok(Piece::Event)))
    };
    stream::once(begun).try_flatten()
}

/// The longest waits for the first events and between events. One timer serves them all: it is set anew only when it fires, not at every
/// token.
struct EventTimer {
    sleep: Pin<Box<Sleep>>,
    since: Instant,
    limit: Duration,
    first_limit: Duration,
    next_limit: Duration,
    /// Which answers had a first event. While others have not, an answer may stand still for as long as theirs takes.
    begun: Vec<bool>,
}

impl EventTimer {
    fn new(answers: usize, first_limit: Duration, next_limit: Duration) -> Self {
        let since = Instant::now();
        let sleep = Box::pin(sleep_until(since + first_limit));
        Self { sleep, since, limit: first_limit, first_limit, next_limit, begun: vec![false; answers] }
    }

    fn renew(&mut self, index: usize) {
        self.since = Instant::now();
        if std::mem::replace(&mut self.begun[index], true) {
            return;
        }
        let have_begun = self.begun.iter().all(|begun| *begun);
        self.limit = if have_begun { self.next_limit } else { self.first_limit.max(self.next_limit) };
        self.sleep.as_mut().reset(self.since + self.limit);
    }

    /// Waits until nothing has come for too long, and returns how long that is. What has begun and waits for others at its backend is waited
    /// for as long as that backend says so.
    async fn spent(&mut self, target: &Route) -> Duration {
        loop {
            self.sleep.as_mut().await;
            let has_begun = self.begun.contains(&true);
            if let Some(sign) = target.last_sign().filter(|_| has_begun) {
                self.since = self.since.max(sign);
            }
            let end = self.since + self.limit;
            if Instant::now() >= end {
                return self.limit;
            }
            self.sleep.as_mut().reset(end);
        }
    }
}

/// Counts what the answers cost.
struct Meter {
    metrics: Metrics,
    begun: Instant,
    saw_token: bool,
    answers: Vec<Counted>,
}

/// What is counted of one answer.
#[derive(Clone)]
struct Counted {
    labels: ModelLabels,
    /// Tokens that were counted as they came, so that those of an answer that is cancelled count too.
    tokens: u32,
}

impl Meter {
    fn begin(metrics: Metrics, labels: ModelLabels, answers: usize) -> Self {
        metrics.answer_begun();
        let answers = vec![Counted { labels, tokens: 0 }; answers.max(1)];
        Self { metrics, begun: Instant::now(), saw_token: false, answers }
    }

    /// A backend has taken an answer on.
    fn begun(&mut self, index: usize, labels: ModelLabels, remote: bool) {
        self.metrics.routed(remote);
        self.answers[index].labels = labels;
    }

    /// Another backend goes on with an answer.
    fn continued(&mut self, index: usize, by: &Answerer) {
        self.metrics.continued(by.node.is_some());
        self.answers[index].labels.move_to(by.node.as_ref(), &by.backend);
    }

    fn count(&mut self, index: usize, event: &ChatEvent) {
        let Counted { labels, tokens } = &mut self.answers[index];
        // An event tells at least one token; the end tells how many there really were.
        let written = match event {
            ChatEvent::AnsweredBy(_)
            | ChatEvent::Continued { .. }
            | ChatEvent::Truncated { .. }
            | ChatEvent::Waiting {} => 0,
            ChatEvent::Delta(_) | ChatEvent::Thinking(_) | ChatEvent::ToolCall(_) => {
                if !std::mem::replace(&mut self.saw_token, true) {
                    self.metrics.first_token(labels, self.begun.elapsed());
                }
                1
            }
            ChatEvent::Done { usage, timings, .. } => {
                self.metrics.tokens_read(labels, usage.prompt_tokens, usage.cached_tokens);
                self.metrics.queued(labels, timings.queue_ms);
                usage.completion_tokens.saturating_sub(*tokens)
            }
        };
        *tokens += written;
        self.metrics.tokens_written(labels, written);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.metrics.answer_ended();
    }
}
