use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bombus_core::chat::{Answerer, ChatRequest, EmbedRequest, EmbedResponse};
use bombus_core::identity::NodeId;
use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
use bombus_core::placement::{Need, Offer, Ranked, Rejection, decisive};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, timeout};

use super::continuation::{Unbroken, is_continuable};
use super::entry::{Entry, NoTurn, Place, Seat};
use super::patience::Patience;
use super::run::{Begun, Turn, Work};
use super::{Backends, NamedBackend, Plan, RouteConfig, Troubles, broken, entry_of, is_busy, name_for, usable};
use crate::{BackendError, ChatStream, LoadRequest};

/// Longest wait for a slot where all backends are busy.
const SLOT_WAIT_MAX: Duration = Duration::from_secs(30);
/// So many backends that find fault with the request itself speak for all: it is the request's fault then.
const REFUSALS_MAX: u32 = 3;
/// When it may be worth trying again where all backends stay busy.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Where a request may go, best first. Clones are the same route.
#[derive(Clone)]
pub struct Route {
    inner: Arc<Inner>,
    /// Whether answers may go on elsewhere.
    continuation: bool,
}

struct Inner {
    backends: Backends,
    /// The model's name as it was asked for.
    model: String,
    name: ModelName,
    need: Need,
    plan: Arc<Plan>,
    patience: Arc<Patience>,
}

/// What a backend answered, and which one it was.
#[derive(Debug)]
pub struct Routed<T> {
    /// The answer.
    pub value: T,
    /// The node that answers; `None`: this one.
    pub node: Option<NodeId>,
    /// The backend's name on its node.
    pub backend: String,
    /// The model's name at that backend.
    pub model: ModelName,
    /// Why that backend, in a few words without semicolons: `only`, what it was ahead in (`warm`, `load`, `preference`, ...), `slot`
    /// where it was the first with a free slot, or `after` and the backends that failed before it.
    pub reason: String,
}

/// What has been tried for a request.
#[derive(Default)]
struct Tried {
    /// The backends that failed.
    backends: Vec<String>,
    /// The error that is told if nobody answers.
    error: Option<BackendError>,
    /// Only a context of more tokens than this is of use.
    context_tokens: Option<u32>,
    /// How many backends found fault with the request itself.
    refusals: u32,
    waited: bool,
}

/// What one of the backends answered.
pub(super) struct Attempted<A> {
    pub(super) answer: A,
    pub(super) entry: Arc<Entry>,
    /// The model, under the name that it is offered by.
    pub(super) info: Arc<ModelInfo>,
    /// The model's name there.
    pub(super) model: ModelName,
    pub(super) reason: String,
}

impl Attempted<Begun> {
    /// Says who gives the answer.
    pub(super) fn answerer(&self) -> Answerer {
        let node = self.entry.node.as_deref().cloned();
        match &self.answer.by {
            Some(by) => Answerer { node, ..by.clone() },
            None => Answerer { node, backend: self.entry.name.to_string(), model: self.model.to_string() },
        }
    }
}

impl Route {
    pub(super) fn new(backends: Backends, model: &str, name: ModelName, need: Need, plan: Plan) -> Self {
        let (model, plan, patience) = (model.to_owned(), Arc::new(plan), Arc::default());
        Self { inner: Arc::new(Inner { backends, model, name, need, plan, patience }), continuation: true }
    }

    /// Returns the same route, on which an answer that breaks off ends with its error. For requests with several answers, of which one
    /// that goes on elsewhere could not be told apart by whoever reads them.
    #[must_use]
    pub fn without_continuation(self) -> Self {
        Self { continuation: false, ..self }
    }

    /// Returns the judgement on every backend, and on every peer that has the model, best first.
    #[must_use]
    pub fn explain(&self) -> &[Ranked] {
        &self.inner.plan.ranking
    }

    /// Returns the backend that is asked first, and what it has.
    ///
    /// # Panics
    ///
    /// Never: a route has at least one backend that has the model.
    #[must_use]
    pub fn best(&self) -> (&NamedBackend, &ModelInfo) {
        let best = &self.inner.plan.ranking[0];
        let info = best.model().expect("the best of a route has the model");
        (&entry_of(&self.inner.plan.entries, best).named, info)
    }

    /// Says that whoever asked has waited for too long, and returns what to tell them. What is dropped after this counts as a failure of
    /// the backend, and not as a client that lost interest; but for what waits there for others, which tells of much to do.
    pub fn give_up(&self, after: Duration) -> BackendError {
        self.inner.patience.give_up();
        match self.waits() {
            true => BackendError::Overloaded { retry_after: RETRY_AFTER },
            false => BackendError::TimedOut { after },
        }
    }

    /// Returns whether what was asked for waits for others at a backend, by what that backend said last, and within the last 5 s.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.inner.patience.has_line()
    }

    /// Returns when a backend last said that it is at work, though it had nothing to hand on.
    #[must_use]
    pub fn last_sign(&self) -> Option<Instant> {
        self.inner.patience.last_sign()
    }

    /// Starts an answer, on the next backend where one fails before the first token. Waits for the first token, and, where all
    /// backends are busy, for a slot. Dropping the stream ends the run.
    ///
    /// Where a run breaks off after the first token, or comes to a standstill, another one that can do so goes on with the answer: the
    /// stream then has a [`bombus_core::chat::ChatEvent::Continued`] at the seam, and what comes after it is what was missing. The
    /// usage at the end is that of the whole answer, and so is the time of generating; the other timings are those of the last run.
    /// Answers that may call tools end with their error, and so do those with which nobody can go on.
    ///
    /// # Errors
    ///
    /// Any [`BackendError`]: the one that says most of those that came. What is wrong with the request itself says more than what is wrong
    /// with a backend, and is told as soon as three of them have found it.
    /// [`BackendError::Overloaded`] where no slot became free within 30 s, or too many wait already.
    pub async fn chat(&self, mut request: ChatRequest) -> Result<Routed<ChatStream>, BackendError> {
        let plan = self.plan();
        let goes_on = self.continuation && self.config().continuations_max() > 0 && is_continuable(&request);
        let (attempted, kept) = if goes_on {
            let keeps_traces = request.traced;
            let continues = |ranked: &Ranked| ranked.model().is_some_and(|info| info.continues);
            request.traced = keeps_traces || plan.ranking.iter().any(continues);
            let kept = Box::new(request.clone());
            (self.send(&plan, request).await?, Some((kept, keeps_traces)))
        } else {
            (self.send(&plan, request).await?, None)
        };
        let Answerer { node, backend, model } = attempted.answerer();
        let model = ModelName::parse(&model).unwrap_or_else(|_| attempted.model.clone());
        let reason = attempted.reason.clone();
        let value: ChatStream = match kept {
            Some((kept, keeps_traces)) => Unbroken::new(self.clone(), kept, keeps_traces, attempted).boxed(),
            None => attempted.answer.run.boxed(),
        };
        Ok(Routed { value, node, backend, model, reason })
    }

    /// Makes embedding vectors, on the next backend where one fails. Vectors are cut to the length that was asked for where the
    /// backend does not do that.
    ///
    /// # Errors
    ///
    /// As [`Route::chat`].
    pub async fn embed(&self, request: EmbedRequest) -> Result<Routed<EmbedResponse>, BackendError> {
        let Attempted { mut answer, entry, model, reason, .. } = self.send(&self.plan(), request).await?;
        let node = entry.node.as_deref().cloned();
        let (backend, model) = match answer.by.take() {
            Some(by) => (by.backend, ModelName::parse(&by.model).unwrap_or(model)),
            None => (entry.name.to_string(), model),
        };
        Ok(Routed { value: answer, node, backend, model, reason })
    }

    /// Brings the model into memory, at the next backend where one fails.
    ///
    /// # Errors
    ///
    /// As [`Route::chat`].
    pub async fn load(&self, request: LoadRequest) -> Result<Routed<()>, BackendError> {
        let Attempted { entry, model, reason, .. } = self.send(&self.plan(), request).await?;
        Ok(Routed { value: (), node: entry.node.as_deref().cloned(), backend: entry.name.to_string(), model, reason })
    }

    pub(super) fn config(&self) -> &RouteConfig {
        self.inner.backends.config()
    }

    /// Returns who could go on with an answer of these weights, best first: now, or, of peers that are not reached, when they are.
    pub(super) fn plan_to_go_on(&self, weights: Option<String>) -> Plan {
        let Inner { backends, name, need, .. } = &*self.inner;
        let need = Need { continuation: true, weights, ..need.clone() };
        let mut plan = backends.rank_now(name, &need, &Troubles::new(), false);
        let is_away = |ranked: &Ranked| {
            let is_able = ranked.model().is_some_and(|info| info.continues);
            is_able && matches!(ranked.rejection(), Some(Rejection::Unreachable))
        };
        plan.ranking.retain(|ranked| ranked.score().is_some() || is_busy(ranked) || is_away(ranked));
        plan
    }

    /// Has another one go on with an answer.
    pub(super) async fn go_on(self, plan: Plan, request: ChatRequest) -> Result<Attempted<Begun>, BackendError> {
        self.send(&plan, request).await
    }

    /// Returns the ranking as it is now: other requests may have begun since the route was found.
    fn plan(&self) -> Arc<Plan> {
        let Inner { backends, name, need, plan, .. } = &*self.inner;
        if backends.0.shared.begun.load(Ordering::Relaxed) == plan.begun {
            return plan.clone();
        }
        let now = backends.rank_now(name, need, &Troubles::new(), false);
        if usable(&now.ranking) { Arc::new(now) } else { plan.clone() }
    }

    async fn send<W: Work>(&self, plan: &Plan, work: W) -> Result<Attempted<W::Answer>, BackendError> {
        let mut work = Some(work);
        let mut tried = Tried::default();
        let mut busy = Vec::new();
        let usable = || plan.ranking.iter().take_while(|ranked| ranked.score().is_some() || is_busy(ranked));
        let count = usable().count();
        for (place, ranked) in usable().enumerate() {
            if is_busy(ranked) {
                busy.push(ranked);
                continue;
            }
            let Offer::Has { info, .. } = &ranked.candidate.offer else { continue };
            if !tried.may_help(ranked) {
                continue;
            }
            let last = place + 1 == count && busy.is_empty();
            let entry = entry_of(&plan.entries, ranked);
            match entry.begin(info) {
                Ok(turn) => {
                    if let Some(answer) = self.attempt(turn, (plan, ranked), &mut work, last, &mut tried).await? {
                        return Ok(answer);
                    }
                }
                Err(NoTurn::Busy) => busy.push(ranked),
                Err(NoTurn::Broken(retry_ms)) => tried.note(entry, broken(entry, retry_ms)),
            }
        }
        busy.retain(|ranked| tried.may_help(ranked));
        while !busy.is_empty() {
            let Some((at, seat)) = slot(plan, &busy).await else {
                tried.error_of(BackendError::Overloaded { retry_after: RETRY_AFTER });
                break;
            };
            tried.waited = true;
            let ranked = busy.remove(at);
            let Offer::Has { info, .. } = &ranked.candidate.offer else { continue };
            match Entry::begin_with(seat, info) {
                Ok(turn) => {
                    let last = busy.is_empty();
                    if let Some(answer) = self.attempt(turn, (plan, ranked), &mut work, last, &mut tried).await? {
                        return Ok(answer);
                    }
                }
                Err(NoTurn::Busy) => {}
                Err(NoTurn::Broken(retry_ms)) => {
                    let entry = entry_of(&plan.entries, ranked);
                    tried.note(entry, broken(entry, retry_ms));
                }
            }
            busy.retain(|ranked| tried.may_help(ranked));
        }
        Err(tried.error.unwrap_or_else(|| BackendError::ModelNotFound { model: self.inner.model.clone() }))
    }

    /// Sends the request to one backend. Returns nothing where the next one may do better.
    async fn attempt<W: Work>(
        &self,
        place: Place,
        (plan, ranked): (&Plan, &Ranked),
        work: &mut Option<W>,
        last: bool,
        tried: &mut Tried,
    ) -> Result<Option<Attempted<W::Answer>>, BackendError> {
        let entry = place.entry().clone();
        let turn = Turn::new(place, self.inner.patience.clone(), last);
        let Offer::Has { info, alias_of } = &ranked.candidate.offer else { return Ok(None) };
        let Some(mut work) = (if last { work.take() } else { work.clone() }) else { return Ok(None) };
        work.name_model(name_for(&self.inner.model, info, alias_of.as_deref()));
        work.suit(info);
        let goes_on = work.goes_on();
        match work.send(turn).await {
            Ok(answer) => {
                let alias_of = alias_of.as_deref().and_then(|name| ModelName::parse(name).ok());
                let model = alias_of.unwrap_or_else(|| info.name.clone());
                let reason = reason(plan, ranked, tried);
                Ok(Some(Attempted { answer, entry, info: info.clone(), model, reason }))
            }
            Err(error) => {
                tried.note(&entry, error.clone());
                // What one backend cannot go on with says nothing of the request.
                tried.refusals += u32::from(matches!(error, BackendError::InvalidRequest { .. }) && !goes_on);
                if tried.refusals >= REFUSALS_MAX {
                    return Err(tried.error.take().unwrap_or(error));
                }
                if !last {
                    let error = error.in_log();
                    tracing::warn!(backend.name = entry.label(), %error, "moving on to the next backend");
                }
                Ok(None)
            }
        }
    }
}

/// Says why a request went where it did.
fn reason(plan: &Plan, ranked: &Ranked, tried: &Tried) -> String {
    if !tried.backends.is_empty() {
        return format!("after {}", tried.backends.join(","));
    }
    let best = &plan.ranking[0];
    match () {
        () if tried.waited => "slot".to_owned(),
        () if Arc::ptr_eq(&best.candidate.backend, &ranked.candidate.backend) => decisive(&plan.ranking).to_owned(),
        () => "load".to_owned(),
    }
}

/// Waits for a slot of any of these backends and returns which one it is.
async fn slot(plan: &Plan, busy: &[&Ranked]) -> Option<(usize, Seat)> {
    let wait = |ranked: &Ranked| entry_of(&plan.entries, ranked).wait(busy.len());
    let queued = busy.iter().enumerate().filter_map(|(at, ranked)| Some((at, wait(ranked)?)));
    let seats = queued.map(async |(at, waiting)| (at, waiting.seat().await));
    let mut seats: FuturesUnordered<_> = seats.collect();
    timeout(SLOT_WAIT_MAX, seats.next()).await.ok().flatten()
}

impl Tried {
    fn note(&mut self, entry: &Entry, error: BackendError) {
        self.backends.push(entry.label());
        if let BackendError::ContextExceeded { context_tokens, .. } = &error {
            self.context_tokens = self.context_tokens.max(Some(*context_tokens));
        }
        self.error_of(error);
    }

    /// Keeps the error that says most; of equals the first, which came from the better backend. Where all have too much to do, whoever
    /// asked may come back when the first of them has room.
    fn error_of(&mut self, error: BackendError) {
        if let (Some(BackendError::Overloaded { retry_after: kept }), BackendError::Overloaded { retry_after }) =
            (&mut self.error, &error)
        {
            *kept = (*kept).min(*retry_after);
        }
        if self.error.as_ref().is_none_or(|kept| weight(&error) > weight(kept)) {
            self.error = Some(error);
        }
    }

    /// Returns whether a backend may do better than those before it.
    fn may_help(&self, ranked: &Ranked) -> bool {
        let Some(too_few) = self.context_tokens else { return true };
        ranked.model().and_then(|info| info.context_tokens).is_some_and(|tokens| tokens > too_few)
    }
}

/// Orders errors by how much they help whoever gets only one of them. That a backend cannot do what is asked for says less than that one
/// failed which may be able to.
fn weight(error: &BackendError) -> u8 {
    match error {
        BackendError::ContextExceeded { .. } | BackendError::InvalidRequest { .. } => 9,
        BackendError::Overloaded { .. } => 8,
        BackendError::TimedOut { .. } => 7,
        BackendError::Interrupted { .. } | BackendError::DeadEnd { .. } => 6,
        BackendError::OutOfMemory { .. } => 5,
        BackendError::Unavailable { .. } => 4,
        BackendError::Unsupported { .. } => 3,
        BackendError::ModelUnusable { .. } => 2,
        BackendError::Rejected { .. } => 1,
        BackendError::ModelNotFound { .. } => 0,
    }
}

/// Names the field of a request that asks for a capability.
pub(super) fn param_of(capability: ModelCapability) -> &'static str {
    match capability {
        ModelCapability::Completion | ModelCapability::Embedding => "model",
        ModelCapability::Tools => "tools",
        ModelCapability::Vision => "messages",
        ModelCapability::Thinking => "think",
        ModelCapability::Insert => "suffix",
    }
}
