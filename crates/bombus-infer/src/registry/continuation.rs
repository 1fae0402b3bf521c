//! Answers that go on elsewhere when whoever gives them breaks off.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bombus_core::chat::{Answerer, ChatEvent, ChatRequest, Delta, Prompt, Resume, ToolChoice};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{Stream, StreamExt};

use super::entry::Entry;
use super::route::{Attempted, Route};
use super::run::{Begun, Run, without_end};
use super::search::{Found, Search};
use super::stall::Stall;
use crate::BackendError;

/// An answer that is longer than this in bytes is not gone on with: as the beginning of another run it fits into no context.
const CONTINUED_BYTES_MAX: usize = 16 << 20;

/// Returns whether the answer to a request could be gone on with. A call of a tool cannot: half of one cannot be taken back.
pub(super) fn is_continuable(request: &ChatRequest) -> bool {
    request.tools.is_empty() || request.tool_choice == ToolChoice::None
}

/// Returns whether a request has tokens in it that mean something to the weights that it was sent to alone.
pub(super) fn is_bound_to_weights(request: &ChatRequest) -> bool {
    let has_tokens = matches!(request.prompt, Prompt::Tokens(_)) || !request.earlier_tokens.is_empty();
    has_tokens || !request.sampling.logit_bias.is_empty()
}

/// An answer that goes on elsewhere when it breaks off.
///
/// What was handed on stays as it is: the run that takes over gets it as the beginning of its answer and hands on what comes after.
pub(super) struct Unbroken {
    route: Route,
    request: Box<ChatRequest>,
    state: State,
    told: Told,
    answering: Answering,
    /// The names of those that broke off.
    failed: Vec<Arc<str>>,
    /// How often another one took over.
    continued: u32,
    /// Time that earlier runs spent on writing, in milliseconds.
    earlier_ms: f64,
    /// How many bytes the answer had when the run before this one broke off.
    earlier_bytes: usize,
    /// Whether the answer has come to its end.
    is_done: bool,
}

enum State {
    Running(Box<Run>),
    /// Another one is asked to go on, for this reason.
    Asking(BoxFuture<'static, Result<Attempted<Begun>, BackendError>>, BackendError),
    Ended,
}

/// Who gives the answer now.
struct Answering {
    entry: Arc<Entry>,
    by: Answerer,
    /// Peers are watched too: that one says every second that it is there says nothing of the backend behind it.
    stall: Stall,
}

impl Answering {
    fn new(route: &Route, attempted: &Attempted<Begun>) -> Self {
        let entry = attempted.entry.clone();
        let stall = Stall::new(*route.config(), entry.expected_gap(&attempted.info.name));
        Self { by: attempted.answerer(), entry, stall }
    }
}

/// What was handed on of an answer, and what stands behind it.
struct Told {
    resume: Resume,
    /// Whether whoever asked wants to know what stands behind each piece, too.
    keeps_traces: bool,
    /// Whether the next trace has all tokens of the answer: so it is where a run goes on by the text.
    retold: bool,
    /// Whether a piece came of which the tokens are not known.
    untraced: bool,
    /// Whether something came that nobody can go on from, which is a call of a tool.
    is_final: bool,
}

impl Told {
    fn take(&mut self, delta: &mut Delta, is_thought: bool) {
        let said = if is_thought { &mut self.resume.thinking } else { &mut self.resume.text };
        said.push_str(&delta.text);
        let Some(trace) = &delta.trace else {
            self.untraced = true;
            self.resume.tokens.clear();
            self.resume.held.clear();
            // A piece has one token at least.
            self.resume.completion_tokens = self.resume.completion_tokens.saturating_add(1);
            return;
        };
        let tokens = &mut self.resume.tokens;
        let came = u32::try_from(trace.tokens.len()).unwrap_or(u32::MAX);
        // What should be the next few tokens and is more than all so far is what a run tells that could not use those.
        let retold = std::mem::take(&mut self.retold) || (tokens.len() > 8 && trace.tokens.len() >= tokens.len());
        if retold {
            tokens.clone_from(&trace.tokens);
            self.resume.completion_tokens = came.max(self.resume.completion_tokens.saturating_add(1));
        } else {
            if !self.untraced {
                tokens.extend_from_slice(&trace.tokens);
            }
            self.resume.completion_tokens = self.resume.completion_tokens.saturating_add(came);
        }
        self.resume.held.clone_from(&trace.held);
        if !self.keeps_traces {
            delta.trace = None;
        }
    }

    /// Takes note that what comes now comes from a run that went on from here, with these weights.
    fn taken_over(&mut self, sha256: Option<String>) {
        let same = self.resume.tokens_for(sha256.as_deref()).is_some();
        self.retold = !same;
        self.untraced = false;
        self.resume.sha256 = sha256;
    }
}

impl Unbroken {
    /// Watches over an answer that has begun. `request` is what was asked for, with the beginning that the answer had already where it
    /// had one; `keeps_traces` says whether whoever asked wants the traces.
    pub(super) fn new(
        route: Route,
        request: Box<ChatRequest>,
        keeps_traces: bool,
        attempted: Attempted<Begun>,
    ) -> Self {
        let answering = Answering::new(&route, &attempted);
        let sha256 = attempted.info.sha256.clone();
        let told = match request.resume.clone() {
            None => Told {
                resume: Resume { sha256, ..Resume::default() },
                keeps_traces,
                retold: false,
                untraced: false,
                is_final: false,
            },
            Some(resume) => {
                let mut told = Told { resume, keeps_traces, retold: false, untraced: false, is_final: false };
                told.taken_over(sha256);
                told
            }
        };
        Self {
            route,
            request,
            state: State::Running(Box::new(attempted.answer.run)),
            told,
            answering,
            failed: Vec::new(),
            continued: 0,
            earlier_ms: 0.0,
            earlier_bytes: 0,
            is_done: false,
        }
    }

    /// Takes note of an event, and says whether it is handed on.
    fn take(&mut self, event: &mut ChatEvent) -> bool {
        self.answering.stall.came();
        match event {
            ChatEvent::Delta(delta) => self.told.take(delta, false),
            ChatEvent::Thinking(delta) => self.told.take(delta, true),
            ChatEvent::ToolCall(_) => self.told.is_final = true,
            ChatEvent::Done { timings, .. } => {
                self.is_done = true;
                timings.generate_ms += self.earlier_ms;
            }
            // A run that goes on says anew what was said at the beginning.
            ChatEvent::Truncated { .. } => return self.continued == 0,
            ChatEvent::AnsweredBy(_) | ChatEvent::Waiting {} => return false,
            ChatEvent::Continued { by, .. } => {
                by.node = self.answering.entry.node.as_deref().cloned();
                if *by != self.answering.by {
                    // Which weights those are is not known.
                    self.told.taken_over(None);
                    self.answering.by = by.clone();
                }
            }
        }
        true
    }

    /// Returns what it takes to look for somebody who goes on, where anybody could.
    fn search(&self) -> Option<Search> {
        let config = self.route.config();
        let is_too_long = self.told.resume.bytes() > CONTINUED_BYTES_MAX;
        if self.told.is_final || self.is_done || is_too_long || self.continued >= config.continuations_max() {
            return None;
        }
        let request = ChatRequest { resume: Some(self.told.resume.clone()), ..(*self.request).clone() };
        Some(Search::new(self.route.clone(), request, self.failed.clone()))
    }

    /// Asks another one to go on where one can; else the answer ends with the error.
    fn go_on(&mut self, cause: BackendError, failed_too: bool) -> Result<(), BackendError> {
        let mut is_full = false;
        if let State::Running(run) = std::mem::replace(&mut self.state, State::Ended) {
            self.earlier_ms += run.first_token_at().elapsed().as_secs_f64() * 1_000.0;
            (self.earlier_bytes, is_full) = (run.bytes(), run.is_full());
        }
        if is_full || !breaks_off(&cause) {
            return Err(cause);
        }
        let name = &self.answering.entry.name;
        if !self.failed.contains(name) {
            self.failed.push(name.clone());
        }
        let Some(mut search) = self.search() else { return Err(cause) };
        let found = if failed_too { search.look() } else { search.look_for_others() };
        if matches!(found, Found::Nobody) {
            return Err(cause);
        }
        self.continued += 1;
        tracing::warn!(backend.name = self.answering.entry.label(), error = %cause.in_log(), "an answer goes on elsewhere");
        self.state = State::Asking(search.ask(found).boxed(), cause);
        Ok(())
    }

    /// Lets a run go on that has taken over, and tells who it is.
    fn taken_over(&mut self, mut attempted: Attempted<Begun>, cause: &BackendError) -> ChatEvent {
        attempted.answer.run.goes_on_after(self.earlier_bytes);
        self.answering = Answering::new(&self.route, &attempted);
        self.told.taken_over(attempted.info.sha256.clone());
        self.state = State::Running(Box::new(attempted.answer.run));
        let reason = cause.to_string().replace(|c: char| c.is_control(), " ");
        ChatEvent::Continued { by: self.answering.by.clone(), reason }
    }
}

/// Returns whether an error means that a run broke off which another one can go on with. A server that refuses in the middle of an answer
/// what it has begun may stand alone with that; a prompt that was cut spoils what came after it.
fn breaks_off(error: &BackendError) -> bool {
    !matches!(error, BackendError::ContextExceeded { .. })
}

impl Stream for Unbroken {
    type Item = Result<ChatEvent, BackendError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let (cause, failed_too) = match &mut this.state {
                State::Ended => return Poll::Ready(None),
                State::Running(run) => match run.poll_next_unpin(cx) {
                    Poll::Ready(Some(Ok(mut event))) => {
                        if this.take(&mut event) {
                            return Poll::Ready(Some(Ok(event)));
                        }
                        continue;
                    }
                    Poll::Ready(None) if this.is_done => {
                        this.state = State::Ended;
                        continue;
                    }
                    Poll::Ready(ended) => (ended.and_then(Result::err).unwrap_or_else(without_end), true),
                    Poll::Pending => {
                        let stall = &mut this.answering.stall;
                        let after = ready!(stall.poll(cx));
                        stall.excuse();
                        // Where nobody else can go on, the answer may still come.
                        this.failed.push(this.answering.entry.name.clone());
                        let others = this.search().map(|mut search| search.look_for_others());
                        this.failed.pop();
                        let (State::Running(run), Some(Found::Plan(_))) = (&mut this.state, others) else { continue };
                        let cause = BackendError::TimedOut { after };
                        run.stalled(&cause);
                        (cause, false)
                    }
                },
                State::Asking(attempt, _) => {
                    let attempted = ready!(attempt.poll_unpin(cx));
                    let State::Asking(_, cause) = std::mem::replace(&mut this.state, State::Ended) else { continue };
                    return Poll::Ready(Some(match attempted {
                        Ok(attempted) => Ok(this.taken_over(attempted, &cause)),
                        Err(error) => {
                            tracing::warn!(error = %error.in_log(), "nobody went on with an answer that broke off");
                            Err(cause)
                        }
                    }));
                }
            };
            if let Err(error) = this.go_on(cause, failed_too) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}
