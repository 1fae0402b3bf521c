use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bombus_core::breaker::{Breaker, BreakerState, Outcome, Ticket};
use bombus_core::model::ModelName;
use bombus_core::placement::Candidate;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::listing::{Listing, Names};
use super::{ASK_TIME_MAX, BackendState, NamedBackend};
use crate::{Backend, BackendError};

/// Most requests that wait for a slot of one backend.
const WAITING_MAX: u32 = 128;
/// How long a backend that refuses this node is tried after all others.
const REJECTED_REST: Duration = Duration::from_secs(30);
/// Longest time for which a backend that asked for less is tried after all others.
const OVERLOADED_REST_MAX: Duration = Duration::from_secs(60);
/// How much the latest measurement counts against those before it.
const LATEST_WEIGHT: f64 = 0.2;

/// Milliseconds since the registry was made.
#[derive(Clone, Copy)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now_ms(self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What the registry knows about one backend.
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    kind: &'static str,
    pub(super) backend: Arc<dyn Backend>,
    /// Whether asking for its models costs next to nothing.
    pub(super) lists_cheaply: bool,
    names: Names,
    listing: RwLock<Arc<Listing>>,
    /// Held by whoever asks for the list, so that one asks at a time.
    asking: Semaphore,
    attempts: AtomicU64,
    max_concurrent: Option<u32>,
    slots: Option<Arc<Semaphore>>,
    running: AtomicU32,
    waiting: AtomicU32,
    vitals: Mutex<Vitals>,
    clock: Clock,
}

/// What requests showed of a backend.
#[derive(Default)]
struct Vitals {
    breaker: Breaker,
    first_token_ms: Option<f64>,
    tokens_per_second: Option<f64>,
    /// Until when it is tried after all others.
    held_back_until_ms: u64,
    /// What went wrong last, as long as nothing has gone well since.
    error: Option<Arc<str>>,
}

/// Says why a request cannot begin at a backend.
pub(super) enum NoTurn {
    /// All slots are taken.
    Busy,
    /// The breaker is open for so many milliseconds more.
    Broken(u64),
}

/// The right to send one request, and its place among those that run. Dropping it gives both back.
pub(super) struct Place {
    entry: Arc<Entry>,
    ticket: Ticket,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.entry.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place in the queue for a backend's slots.
pub(super) struct Waiting(Arc<Entry>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Waiting {
    /// Waits for a slot.
    pub(super) async fn slot(&self) -> OwnedSemaphorePermit {
        let slots = self.0.slots.clone().expect("only what is limited is waited for");
        slots.acquire_owned().await.expect("the semaphore is never closed")
    }
}

impl Entry {
    pub(super) fn new(named: &NamedBackend, clock: Clock) -> Self {
        let max_concurrent = named.options.max_concurrent.map(|slots| slots.max(1));
        Self {
            name: named.name.as_str().into(),
            kind: named.kind,
            backend: named.backend.clone(),
            lists_cheaply: matches!(named.kind, "embedded" | "fake"),
            names: Names::of(&named.name, &named.options),
            listing: RwLock::default(),
            asking: Semaphore::new(1),
            attempts: AtomicU64::new(0),
            max_concurrent,
            slots: max_concurrent.map(|slots| Arc::new(Semaphore::new(slots as usize))),
            running: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            vitals: Mutex::default(),
            clock,
        }
    }

    fn vitals(&self) -> MutexGuard<'_, Vitals> {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn listing(&self) -> Arc<Listing> {
        self.listing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn store(&self, listing: Listing) {
        *self.listing.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(listing);
    }

    /// Returns how old the list is, be it one that could not be had.
    pub(super) fn list_age(&self) -> Duration {
        let asked_ms = self.listing().asked_ms;
        asked_ms.map_or(Duration::MAX, |asked_ms| Duration::from_millis(self.clock.now_ms().saturating_sub(asked_ms)))
    }

    /// Asks the backend for its models. Whoever comes while it is being asked waits, and asks again only if nobody else has done so
    /// since: an answer that was under way already may be out of date.
    pub(super) async fn refresh(&self) {
        self.ask_after(self.attempts.load(Ordering::SeqCst)).await;
    }

    /// Asks the backend for its models, unless an attempt later than this one is over by the time that it could be asked.
    async fn ask_after(&self, before: u64) {
        let _asking = self.asking.acquire().await.expect("the semaphore is never closed");
        if self.listing().attempt > before {
            return;
        }
        let attempt = self.attempts.fetch_add(1, Ordering::SeqCst) + 1;
        let models = self.in_time(self.backend.models()).await;
        let now_ms = self.clock.now_ms();
        let earlier = self.listing();
        let mut listing = match models {
            Ok(models) => {
                if earlier.error.is_some() {
                    tracing::info!(backend.name = &*self.name, models = models.len(), "the backend can be asked again");
                }
                self.vitals().breaker.reachable(now_ms);
                Listing::of(&self.names, models)
            }
            Err(error) => {
                if earlier.error.is_none() {
                    tracing::warn!(backend.name = &*self.name, %error, "models could not be listed");
                } else {
                    tracing::debug!(backend.name = &*self.name, %error, "models could not be listed");
                }
                earlier.failed(error)
            }
        };
        (listing.asked_ms, listing.attempt) = (Some(now_ms), attempt);
        self.store(listing);
    }

    /// Asks the backend for a model that it was not known to have.
    pub(super) async fn look_for(&self, name: &ModelName) -> Result<(), BackendError> {
        if !self.lists_cheaply {
            // An answer that is under way does: the next miss asks again.
            self.ask_after(self.listing().attempt).await;
            return self.listing().error.clone().map_or(Ok(()), Err);
        }
        // One of many is found faster than all of them are listed, and a damaged one says what is wrong with it.
        let found = self.in_time(self.backend.model(self.names.there(name))).await?;
        let _asking = self.asking.acquire().await.expect("the semaphore is never closed");
        let listing = self.listing();
        let mut looked = match found {
            Some(info) => listing.with(&self.names, info),
            None if listing.asked_ms.is_none() => Listing::default(),
            None => return Ok(()),
        };
        looked.asked_ms = looked.asked_ms.or_else(|| Some(self.clock.now_ms()));
        self.store(looked);
        Ok(())
    }

    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
        timeout(ASK_TIME_MAX, answer).await.unwrap_or_else(|_| {
            let reason = format!("backend '{}' does not answer within {} s", self.name, ASK_TIME_MAX.as_secs());
            Err(BackendError::Unavailable { reason })
        })
    }

    /// Tells what is known of it as a candidate for a request.
    pub(super) fn candidate(&self, index: usize, name: &ModelName, now_ms: u64) -> Candidate {
        let offer = self.listing().offer(name);
        let vitals = self.vitals();
        Candidate {
            node: None,
            backend: self.name.clone(),
            preference: u32::try_from(index).unwrap_or(u32::MAX),
            offer,
            running: self.running.load(Ordering::Relaxed),
            slots: self.max_concurrent,
            tokens_per_second: vitals.tokens_per_second,
            first_token_ms: vitals.first_token_ms,
            breaker: vitals.breaker.state(),
            now_ms,
            held_back: vitals.held_back_until_ms > now_ms,
        }
    }

    /// Lets a request begin, where there is a slot and the breaker admits it.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Place, NoTurn> {
        let permit = match &self.slots {
            None => None,
            Some(slots) => Some(slots.clone().try_acquire_owned().map_err(|_| NoTurn::Busy)?),
        };
        self.begin_with(permit)
    }

    /// Lets a request begin that has a slot, where the breaker admits it.
    pub(super) fn begin_with(self: &Arc<Self>, permit: Option<OwnedSemaphorePermit>) -> Result<Place, NoTurn> {
        let now_ms = self.clock.now_ms();
        let mut vitals = self.vitals();
        let Some(ticket) = vitals.breaker.begin(now_ms) else {
            return Err(NoTurn::Broken(retry_ms(vitals.breaker.state(), now_ms).unwrap_or_default()));
        };
        self.running.fetch_add(1, Ordering::Relaxed);
        Ok(Place { entry: self.clone(), ticket, _permit: permit })
    }

    /// Takes a place in the queue for its slots, where there is one.
    pub(super) fn wait(self: &Arc<Self>) -> Option<Waiting> {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let mark = Waiting(self.clone());
        (waiting < WAITING_MAX).then_some(mark)
    }

    pub(super) fn error(&self) -> Option<String> {
        self.vitals().error.as_deref().map(str::to_owned)
    }

    pub(super) fn state(&self) -> BackendState {
        let listing = self.listing();
        let now_ms = self.clock.now_ms();
        let vitals = self.vitals();
        let breaker = vitals.breaker.state();
        let list_error = listing.error.as_ref().map(ToString::to_string);
        BackendState {
            name: self.name.to_string(),
            kind: self.kind,
            ready: listing.asked_ms.is_some() && list_error.is_none() && vitals.breaker.admits(now_ms),
            error: list_error.or_else(|| vitals.error.as_deref().map(str::to_owned)),
            breaker: match breaker {
                BreakerState::Closed => "closed",
                BreakerState::Open { .. } => "open",
                BreakerState::HalfOpen { .. } => "half-open",
            },
            retry_ms: retry_ms(breaker, now_ms),
            running: self.running.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
            max_concurrent: self.max_concurrent,
            first_token_ms: vitals.first_token_ms,
            tokens_per_second: vitals.tokens_per_second,
            models: listing.offers().len(),
        }
    }
}

impl Place {
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Takes note of the time to the first token.
    pub(super) fn began(&self, after: Duration) {
        let mut vitals = self.entry.vitals();
        vitals.end(self, self.entry.clock.now_ms(), Outcome::Began);
        average(&mut vitals.first_token_ms, after.as_secs_f64() * 1_000.0);
    }

    /// Ends with an answer, at this speed where it could be measured.
    pub(super) fn answered(self, tokens_per_second: Option<f64>) {
        let mut vitals = self.entry.vitals();
        vitals.end(&self, self.entry.clock.now_ms(), Outcome::Answered);
        if let Some(speed) = tokens_per_second {
            average(&mut vitals.tokens_per_second, speed);
        }
        vitals.error = None;
    }

    /// Ends with an error.
    pub(super) fn failed(self, error: &BackendError) {
        let now_ms = self.entry.clock.now_ms();
        let mut vitals = self.entry.vitals();
        let rest = match error {
            BackendError::Overloaded { retry_after } => (*retry_after).min(OVERLOADED_REST_MAX),
            BackendError::Rejected { .. } => REJECTED_REST,
            _ => Duration::ZERO,
        };
        let until_ms = now_ms.saturating_add(u64::try_from(rest.as_millis()).unwrap_or(u64::MAX));
        vitals.held_back_until_ms = vitals.held_back_until_ms.max(until_ms);
        let outcome = outcome_of(error);
        if outcome != Outcome::Answered || matches!(error, BackendError::Rejected { .. }) {
            vitals.error = Some(error.to_string().into());
        }
        vitals.end(&self, now_ms, outcome);
    }

    /// Ends without an outcome: whoever asked went away, or had waited for too long.
    pub(super) fn abandoned(self, timed_out: bool) {
        let mut vitals = self.entry.vitals();
        let mut outcome = Outcome::Abandoned;
        if timed_out {
            vitals.error = Some("nothing came in time".into());
            outcome = Outcome::TimedOut;
        }
        vitals.end(&self, self.entry.clock.now_ms(), outcome);
    }
}

impl Vitals {
    /// Tells the breaker how a request ended, and the log what comes of it.
    fn end(&mut self, place: &Place, now_ms: u64, outcome: Outcome) {
        let before = self.breaker.state();
        self.breaker.on(now_ms, place.ticket, outcome);
        let after = self.breaker.state();
        let name = &*place.entry.name;
        match after {
            BreakerState::Open { until_ms } if after != before => {
                let (error, retry_ms) = (self.error.as_deref(), until_ms.saturating_sub(now_ms));
                tracing::warn!(backend.name = name, error, retry_ms, "the backend gets no requests for a while");
            }
            BreakerState::Closed if after != before => tracing::info!(backend.name = name, "the backend works again"),
            _ => {}
        }
    }
}

/// Says what an error means for the breaker: what is wrong with a request or a model is no failure of the backend.
fn outcome_of(error: &BackendError) -> Outcome {
    match error {
        BackendError::Unavailable { .. } | BackendError::Interrupted { .. } => Outcome::Failed,
        BackendError::TimedOut { .. } => Outcome::TimedOut,
        BackendError::ModelNotFound { .. }
        | BackendError::ContextExceeded { .. }
        | BackendError::InvalidRequest { .. }
        | BackendError::Unsupported { .. }
        | BackendError::Overloaded { .. }
        | BackendError::OutOfMemory { .. }
        | BackendError::ModelUnusable { .. }
        | BackendError::Rejected { .. } => Outcome::Answered,
    }
}

fn retry_ms(state: BreakerState, now_ms: u64) -> Option<u64> {
    match state {
        BreakerState::Closed => None,
        BreakerState::Open { until_ms } | BreakerState::HalfOpen { until_ms } => Some(until_ms.saturating_sub(now_ms)),
    }
}

fn average(value: &mut Option<f64>, latest: f64) {
    *value = Some(value.map_or(latest, |earlier| earlier + LATEST_WEIGHT * (latest - earlier)));
}
