use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bombus_core::chat::{ChatRequest, EmbedRequest, EmbedResponse};
use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
use bombus_core::placement::{Offer, Ranked, decisive};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::entry::{Entry, NoTurn, Place};
use super::run::{Turn, Work};
use super::{Backends, NamedBackend, is_busy};
use crate::{BackendError, ChatStream};

/// Longest wait for a slot where all backends are busy.
const SLOT_WAIT_MAX: Duration = Duration::from_secs(30);
/// When it may be worth trying again where all backends stay busy.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Where a request may go, best first. Clones are the same route.
#[derive(Clone)]
pub struct Route(Arc<Inner>);

struct Inner {
    backends: Backends,
    /// The model's name as it was asked for.
    model: String,
    ranking: Vec<Ranked>,
    gave_up: Arc<AtomicBool>,
}

/// What a backend answered, and which one it was.
#[derive(Debug)]
pub struct Routed<T> {
    /// The answer.
    pub value: T,
    /// The backend's name.
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
    backends: Vec<Arc<str>>,
    /// The error that is told if nobody answers.
    error: Option<BackendError>,
    /// Only a context of more tokens than this is of use.
    context_tokens: Option<u32>,
    waited: bool,
}

impl Route {
    pub(super) fn new(backends: Backends, model: &str, ranking: Vec<Ranked>) -> Self {
        let gave_up = Arc::default();
        Self(Arc::new(Inner { backends, model: model.to_owned(), ranking, gave_up }))
    }

    /// Returns the judgement on every backend, best first.
    #[must_use]
    pub fn explain(&self) -> &[Ranked] {
        &self.0.ranking
    }

    /// Returns the backend that is asked first, and what it has.
    ///
    /// # Panics
    ///
    /// Never: a route has at least one backend that has the model.
    #[must_use]
    pub fn best(&self) -> (&NamedBackend, &ModelInfo) {
        let best = &self.0.ranking[0];
        let info = best.model().expect("the best of a route has the model");
        (&self.0.backends.all()[best.candidate.preference as usize], info)
    }

    /// Says that whoever asked has waited for too long: what is dropped after this counts as a failure of the backend, and not as
    /// a client that lost interest.
    pub fn give_up(&self) {
        self.0.gave_up.store(true, Ordering::Relaxed);
    }

    /// Starts an answer, on the next backend where one fails before the first token. Waits for the first token, and, where all
    /// backends are busy, for a slot. Dropping the stream ends the run.
    ///
    /// # Errors
    ///
    /// Any [`BackendError`]: at once what is wrong with the request itself, else the one that says most of those that came.
    /// [`BackendError::Overloaded`] where no slot became free within 30 s, or too many wait already.
    pub async fn chat(&self, request: ChatRequest) -> Result<Routed<ChatStream>, BackendError> {
        self.send(request).await
    }

    /// Makes embedding vectors, on the next backend where one fails. Vectors are cut to the length that was asked for where the
    /// backend does not do that.
    ///
    /// # Errors
    ///
    /// As [`Route::chat`].
    pub async fn embed(&self, request: EmbedRequest) -> Result<Routed<EmbedResponse>, BackendError> {
        self.send(request).await
    }

    async fn send<W: Work>(&self, work: W) -> Result<Routed<W::Answer>, BackendError> {
        let mut work = Some(work);
        let mut tried = Tried::default();
        let mut busy = Vec::new();
        let usable = || self.0.ranking.iter().take_while(|ranked| ranked.score().is_some() || is_busy(ranked));
        let count = usable().count();
        for (place, ranked) in usable().enumerate() {
            if is_busy(ranked) {
                busy.push(ranked);
                continue;
            }
            if !tried.may_help(ranked) {
                continue;
            }
            let last = place + 1 == count && busy.is_empty();
            match self.entry(ranked).begin() {
                Ok(turn) => {
                    if let Some(answer) = self.attempt(turn, ranked, &mut work, last, &mut tried).await? {
                        return Ok(answer);
                    }
                }
                Err(NoTurn::Busy) => busy.push(ranked),
                Err(NoTurn::Broken(retry_ms)) => {
                    tried.note(ranked, self.0.backends.broken(&ranked.candidate.backend, retry_ms));
                }
            }
        }
        busy.retain(|ranked| tried.may_help(ranked));
        while !busy.is_empty() {
            let Some((at, permit)) = self.slot(&busy).await else {
                tried.error_of(BackendError::Overloaded { retry_after: RETRY_AFTER });
                break;
            };
            tried.waited = true;
            let ranked = busy.remove(at);
            match self.entry(ranked).begin_with(Some(permit)) {
                Ok(turn) => {
                    if let Some(answer) = self.attempt(turn, ranked, &mut work, busy.is_empty(), &mut tried).await? {
                        return Ok(answer);
                    }
                }
                Err(NoTurn::Busy) => {}
                Err(NoTurn::Broken(retry_ms)) => {
                    tried.note(ranked, self.0.backends.broken(&ranked.candidate.backend, retry_ms));
                }
            }
            busy.retain(|ranked| tried.may_help(ranked));
        }
        Err(tried.error.unwrap_or_else(|| BackendError::ModelNotFound { model: self.0.model.clone() }))
    }

    fn entry(&self, ranked: &Ranked) -> &Arc<Entry> {
        self.0.backends.entry(ranked.candidate.preference as usize)
    }

    /// Sends the request to one backend. Returns nothing where the next one may do better.
    async fn attempt<W: Work>(
        &self,
        place: Place,
        ranked: &Ranked,
        work: &mut Option<W>,
        last: bool,
        tried: &mut Tried,
    ) -> Result<Option<Routed<W::Answer>>, BackendError> {
        let turn = Turn::new(place, self.0.gave_up.clone());
        let Offer::Has { info, alias_of } = &ranked.candidate.offer else { return Ok(None) };
        let Some(mut work) = (if last { work.take() } else { work.clone() }) else { return Ok(None) };
        work.name_model(alias_of.as_deref().unwrap_or(&self.0.model));
        let backend = &ranked.candidate.backend;
        match work.send(turn).await {
            Ok(value) => {
                let alias_of = alias_of.as_deref().and_then(|name| ModelName::parse(name).ok());
                let model = alias_of.unwrap_or_else(|| info.name.clone());
                Ok(Some(Routed { value, backend: backend.to_string(), model, reason: self.reason(ranked, tried) }))
            }
            Err(error) if ends_it(&error) => Err(error),
            Err(error) => {
                if !last {
                    tracing::warn!(backend.name = &**backend, %error, "moving on to the next backend");
                }
                tried.note(ranked, error);
                Ok(None)
            }
        }
    }

    fn reason(&self, ranked: &Ranked, tried: &Tried) -> String {
        if !tried.backends.is_empty() {
            return format!("after {}", tried.backends.join(","));
        }
        let best = &self.0.ranking[0];
        match () {
            () if tried.waited => "slot".to_owned(),
            () if best.candidate.preference == ranked.candidate.preference => decisive(&self.0.ranking).to_owned(),
            () => "load".to_owned(),
        }
    }

    /// Waits for a slot of any of these backends and returns which one it is.
    async fn slot(&self, busy: &[&Ranked]) -> Option<(usize, OwnedSemaphorePermit)> {
        let queued = busy.iter().enumerate().filter_map(|(at, ranked)| Some((at, self.entry(ranked).wait()?)));
        let slots = queued.map(async |(at, waiting)| (at, waiting.slot().await));
        let mut slots: FuturesUnordered<_> = slots.collect();
        timeout(SLOT_WAIT_MAX, slots.next()).await.ok().flatten()
    }
}

impl Tried {
    fn note(&mut self, ranked: &Ranked, error: BackendError) {
        self.backends.push(ranked.candidate.backend.clone());
        if let BackendError::ContextExceeded { context_tokens, .. } = &error {
            self.context_tokens = self.context_tokens.max(Some(*context_tokens));
        }
        self.error_of(error);
    }

    /// Keeps the error that says most; of equals the first, which came from the better backend.
    fn error_of(&mut self, error: BackendError) {
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

/// Returns whether an error is the request's own, which no other backend would mend.
fn ends_it(error: &BackendError) -> bool {
    matches!(error, BackendError::InvalidRequest { .. } | BackendError::Unsupported { .. })
}

/// Orders errors by how much they help whoever gets only one of them.
fn weight(error: &BackendError) -> u8 {
    match error {
        BackendError::ContextExceeded { .. } => 8,
        BackendError::Overloaded { .. } => 7,
        BackendError::TimedOut { .. } => 6,
        BackendError::Interrupted { .. } => 5,
        BackendError::OutOfMemory { .. } => 4,
        BackendError::Unavailable { .. } => 3,
        BackendError::ModelUnusable { .. } => 2,
        BackendError::Rejected { .. } => 1,
        BackendError::ModelNotFound { .. } | BackendError::InvalidRequest { .. } | BackendError::Unsupported { .. } => {
            0
        }
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
