use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bombus_core::breaker::{BreakerState, Outcome, Ticket};
use bombus_core::identity::NodeId;
use bombus_core::model::{ModelInfo, ModelName};
use bombus_core::placement::{Candidate, Offer, Peer};
use futures::FutureExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::listing::{Listing, Names, Spelling};
use super::vitals::Vitals;
use super::{ASK_TIME_MAX, BackendState, NamedBackend, PeerNow, RouteConfig, TROUBLE_AGE_MAX};
use crate::{Backend, BackendError};

/// Most requests that wait for a slot, for each backend that they wait for.
const WAITING_MAX: u32 = 128;
/// Time between two looks at a peer that is waited for, where it tells nothing.
const PEER_LOOK_INTERVAL: Duration = Duration::from_millis(250);

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

/// What all entries of a registry share.
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) config: RouteConfig,
    /// Requests that have begun since the registry was made: a ranking from before the last of them may be out of date.
    pub(super) begun: AtomicU64,
    /// Memory of this node's GPUs.
    pub(super) gpu_memory_mb: AtomicU64,
    /// Draws this node's lots.
    lots: RandomState,
}

impl Shared {
    pub(super) fn new(config: RouteConfig) -> Self {
        let (begun, gpu_memory_mb) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { clock: Clock::start(), config, begun, gpu_memory_mb, lots: RandomState::new() }
    }
}

/// What the registry knows about one backend.
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    pub(super) named: Arc<NamedBackend>,
    /// The same backend without its own retries, where it has some.
    hasty: Option<Arc<dyn Backend>>,
    /// The node that it stands for; `None`: it is on this one.
    pub(super) node: Option<Arc<NodeId>>,
    /// Whether asking for its models costs next to nothing.
    pub(super) lists_cheaply: bool,
    is_cloud: bool,
    names: Names,
    max_concurrent: Option<u32>,
    slots: Option<Arc<Semaphore>>,
    lot: u64,
    record: Arc<Record>,
    pub(super) shared: Arc<Shared>,
}

/// What was seen of a backend. A peer keeps it when it comes back.
struct Record {
    listing: RwLock<Arc<Listing>>,
    /// Held by whoever asks for the list, so that one asks at a time.
    asking: Semaphore,
    attempts: AtomicU64,
    /// What people call the peer.
    node_name: RwLock<Arc<str>>,
    running: AtomicU32,
    waiting: AtomicU32,
    /// Those that wait for a peer, by the numbers that they drew. A slot of this node has a queue of its own.
    queue: Mutex<BTreeSet<u64>>,
    numbers: AtomicU64,
    /// Told where a peer may have a slot again.
    freed: Notify,
    vitals: Mutex<Vitals>,
}

/// Says why a request cannot begin at a backend.
pub(super) enum NoTurn {
    /// All slots are taken.
    Busy,
    /// The breaker is open for so many milliseconds more.
    Broken(u64),
}

/// A slot of a backend. Whoever has one counts among those that run; dropping it gives it back.
pub(super) struct Seat {
    entry: Arc<Entry>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Seat {
    /// Takes a seat that is counted already.
    fn new(entry: &Arc<Entry>, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { entry: entry.clone(), _permit: permit }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let record = &self.entry.record;
        record.running.fetch_sub(1, Ordering::Relaxed);
        if self.entry.is_peer() {
            record.freed.notify_waiters();
        }
    }
}

/// The right to send one request, and its place among those that run. Dropping it gives both back.
pub(super) struct Place {
    seat: Seat,
    ticket: Ticket,
    /// The model that is asked for there.
    info: Arc<ModelInfo>,
}

/// A place in the queue for a backend's slots.
pub(super) struct Waiting {
    entry: Arc<Entry>,
    /// Whoever has a lower one gets a slot before.
    number: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.entry.record.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.entry.is_peer() {
            self.entry.record.queue().remove(&self.number);
            // Whoever is next may have left a slot to this one, which has another one now.
            if self.entry.free() > 0 {
                self.entry.freed();
            }
        }
    }
}

impl Waiting {
    /// Waits for a slot.
    pub(super) async fn seat(&self) -> Seat {
        let entry = &self.entry;
        if let Some(slots) = &entry.slots {
            let permit = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            entry.record.running.fetch_add(1, Ordering::Relaxed);
            return Seat::new(entry, Some(permit));
        }
        loop {
            let freed = entry.record.freed.notified();
            tokio::pin!(freed);
            // From here on no word of a free slot is missed.
            freed.as_mut().enable();
            if let Some(seat) = entry.seat(Some(self.number)) {
                return seat;
            }
            let _ = timeout(PEER_LOOK_INTERVAL, freed).await;
        }
    }
}

impl Entry {
    /// Begins to watch a backend, or, where there is one, goes on with what was seen of it before.
    pub(super) fn new(named: NamedBackend, shared: &Arc<Shared>, earlier: Option<&Self>) -> Self {
        let max_concurrent = named.options.max_concurrent.map(|slots| slots.max(1));
        let node = named.peer.as_ref().map(|peer| Arc::new(peer.node().clone()));
        let record = earlier.map_or_else(Default::default, |earlier| earlier.record.clone());
        if let Some(peer) = &named.peer {
            *record.node_name.write().unwrap_or_else(PoisonError::into_inner) = peer.node_name().into();
        }
        Self {
            name: named.name.as_str().into(),
            is_cloud: node.is_none() && named.backend.is_cloud(),
            lists_cheaply: node.is_some() || matches!(named.kind, "embedded" | "fake"),
            names: Names::of(&named.name, &named.options),
            max_concurrent,
            slots: max_concurrent.filter(|_| node.is_none()).map(|slots| Arc::new(Semaphore::new(slots as usize))),
            lot: node.as_ref().map_or(0, |node| shared.lots.hash_one(node)),
            record,
            shared: shared.clone(),
            hasty: named.backend.without_retries(),
            node,
            named: Arc::new(named),
        }
    }

    /// Returns whether it stands for the same objects.
    pub(super) fn is_of(&self, named: &NamedBackend) -> bool {
        let same_peer = match (&self.named.peer, &named.peer) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        same_peer && Arc::ptr_eq(&self.named.backend, &named.backend) && self.named.options == named.options
    }

    pub(super) fn is_peer(&self) -> bool {
        self.node.is_some()
    }

    /// Returns how the peer is that it stands for.
    pub(super) fn peer_now(&self) -> Option<PeerNow> {
        self.named.peer.as_ref().map(|peer| peer.now())
    }

    /// Returns what people call the peer that it stands for.
    pub(super) fn node_name(&self) -> Option<Arc<str>> {
        self.is_peer().then(|| self.record.node_name.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Returns what it is called in a few words: its name, or the peer's.
    pub(super) fn label(&self) -> String {
        match self.node_name() {
            Some(name) if !name.is_empty() => {
                let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
                name.chars().take(64).map(plain).collect()
            }
            _ => self.name.to_string(),
        }
    }

    /// Returns what a request is sent to. Where others can answer it, too, its time is not spent on tries that are like the first one.
    pub(super) fn backend(&self, is_last: bool) -> &Arc<dyn Backend> {
        let hasty = self.hasty.as_ref().filter(|_| !is_last);
        hasty.unwrap_or(&self.named.backend)
    }

    fn now_ms(&self) -> u64 {
        self.shared.clock.now_ms()
    }

    fn vitals(&self) -> MutexGuard<'_, Vitals> {
        self.record.vitals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn listing(&self) -> Arc<Listing> {
        self.record.listing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn store(&self, listing: Listing) {
        *self.record.listing.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(listing);
    }

    /// Returns how old the list is, be it one that could not be had.
    pub(super) fn list_age(&self) -> Duration {
        let asked_ms = self.listing().asked_ms;
        asked_ms.map_or(Duration::MAX, |asked_ms| Duration::from_millis(self.now_ms().saturating_sub(asked_ms)))
    }

    /// Takes note that a model is in memory, since it has begun to answer: the next list may be seconds away. Of other servers nobody
    /// knows what they have in memory, and lists would take it back.
    fn warmed(&self, name: &ModelName) {
        if !matches!(self.named.kind, "embedded" | "ollama") {
            return;
        }
        let mut listing = self.record.listing.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(warmed) = listing.warmed(name) {
            *listing = Arc::new(warmed);
        }
    }

    /// Asks the backend for its models. Whoever comes while it is being asked waits, and asks again only if nobody else has done so
    /// since: an answer that was under way already may be out of date.
    pub(super) async fn refresh(&self) {
        if self.is_peer() {
            return self.reread();
        }
        self.ask_after(self.record.attempts.load(Ordering::SeqCst)).await;
    }

    /// Takes over what a peer has told of its models.
    pub(super) fn reread(&self) {
        // The lock makes the last to read the last to write.
        let mut listing = self.record.listing.write().unwrap_or_else(PoisonError::into_inner);
        let models = self.named.backend.models().now_or_never().unwrap_or_else(|| {
            Err(BackendError::Unavailable { reason: "what the peer has is not known yet".to_owned() })
        });
        let mut told = match models {
            Ok(models) => Listing::of(&self.names, models),
            Err(error) => Listing::default().failed(error, self.now_ms()),
        };
        told.asked_ms = Some(self.now_ms());
        *listing = Arc::new(told);
        drop(listing);
        if let Some(peer) = &self.named.peer {
            *self.record.node_name.write().unwrap_or_else(PoisonError::into_inner) = peer.node_name().into();
        }
    }

    /// Tells those that wait for the peer to look again.
    pub(super) fn freed(&self) {
        self.record.freed.notify_waiters();
    }

    /// Asks the backend for its models, unless an attempt later than this one is over by the time that it could be asked.
    async fn ask_after(&self, before: u64) {
        let _asking = self.record.asking.acquire().await.expect("the semaphore is never closed");
        if self.listing().attempt > before {
            return;
        }
        let attempt = self.record.attempts.fetch_add(1, Ordering::SeqCst) + 1;
        let models = self.in_time(self.named.backend.models()).await;
        let now_ms = self.now_ms();
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
                self.vitals().breaker.unreachable();
                if earlier.error.is_none() {
                    tracing::warn!(backend.name = &*self.name, error = %error.in_log(), "models could not be listed");
                } else {
                    tracing::debug!(backend.name = &*self.name, error = %error.in_log(), "models could not be listed");
                }
                earlier.failed(error, now_ms)
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
        let Some(info) = self.in_time(self.named.backend.model(self.names.there(name))).await? else {
            if self.listing().asked_ms.is_some() {
                return Ok(());
            }
            // It may have one by a name that is like this one.
            self.ask_after(self.listing().attempt).await;
            return self.listing().error.clone().map_or(Ok(()), Err);
        };
        let _asking = self.record.asking.acquire().await.expect("the semaphore is never closed");
        let mut looked = self.listing().with(&self.names, info);
        looked.asked_ms = looked.asked_ms.or_else(|| Some(self.now_ms()));
        self.store(looked);
        Ok(())
    }

    /// Returns whether a model that is not listed may well be there, where it could not be asked for this reason.
    pub(super) fn may_have(&self, name: &ModelName, trouble: &BackendError) -> bool {
        let listing = self.listing();
        let age = |since_ms| Duration::from_millis(self.now_ms().saturating_sub(since_ms));
        matches!(trouble, BackendError::ModelUnusable { .. })
            || listing.failing_since_ms.is_none_or(|since_ms| age(since_ms) < TROUBLE_AGE_MAX)
            || self.names.mention(name)
            || self.named.backend.given().iter().any(|given| given.is_like(self.names.there(name)))
            || listing.offered_before(name)
    }

    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
        timeout(ASK_TIME_MAX, answer).await.unwrap_or_else(|_| {
            let reason = format!("backend '{}' does not answer within {} s", self.name, ASK_TIME_MAX.as_secs());
            Err(BackendError::Unavailable { reason })
        })
    }

    /// Tells what is known of it as a candidate for a request.
    pub(super) fn candidate(&self, index: usize, (name, spelling): (&ModelName, Spelling), now_ms: u64) -> Candidate {
        let offer = self.listing().offer(name, spelling);
        let (config, record) = (&self.shared.config, &self.record);
        let ours = record.running.load(Ordering::Relaxed);
        let mut candidate = Candidate { lot: self.lot, now_ms, ..Candidate::new(self.name.clone(), offer) };
        if let (Some(node), Some(now)) = (&self.node, self.peer_now()) {
            let all = now.of_others().saturating_add(ours);
            candidate.running = now.slots.map_or(all, |slots| all.min(slots));
            candidate.waiting = all - candidate.running;
            candidate.slots = now.slots;
            candidate.gpu_memory_mb = now.gpu_memory_mb;
            candidate.peer = Some(Peer {
                node: node.clone(),
                name: self.node_name().unwrap_or_default(),
                reachable: now.reachable,
                suspect: now.suspect,
                draining: now.draining,
                paused: now.paused,
                barred: !config.remote,
                latency_ms: now.latency_ms,
            });
        } else {
            candidate.cloud = self.is_cloud;
            candidate.preference = u32::try_from(index).unwrap_or(u32::MAX);
            candidate.running = ours;
            candidate.waiting = record.waiting.load(Ordering::Relaxed);
            candidate.slots = self.max_concurrent;
            // A server elsewhere does not run on this machine's GPUs.
            if matches!(self.named.kind, "embedded" | "ollama") {
                candidate.gpu_memory_mb = self.shared.gpu_memory_mb.load(Ordering::Relaxed);
            }
        }
        if let Offer::Has { info, .. } = &candidate.offer {
            let vitals = self.vitals();
            let pace = vitals.pace_of(&info.name);
            candidate.tokens_per_second = pace.tokens_per_second(config, now_ms);
            candidate.first_token_ms = pace.first_token_ms(config, now_ms);
            candidate.breaker = vitals.breaker.state();
            candidate.held_back = vitals.held_back_until_ms > now_ms;
        }
        candidate
    }

    /// Lets a request for a model begin, where there is a slot and the breaker admits it. Where others wait already, it does not
    /// get ahead of them.
    pub(super) fn begin(self: &Arc<Self>, info: &Arc<ModelInfo>) -> Result<Place, NoTurn> {
        let seat = self.seat(None).ok_or(NoTurn::Busy)?;
        Self::begin_with(seat, info)
    }

    /// Lets a request begin that has a slot, where the breaker admits it.
    pub(super) fn begin_with(seat: Seat, info: &Arc<ModelInfo>) -> Result<Place, NoTurn> {
        let now_ms = seat.entry.now_ms();
        let mut vitals = seat.entry.vitals();
        let Some(ticket) = vitals.breaker.begin(now_ms) else {
            let retry_ms = retry_ms(vitals.breaker.state(), now_ms).unwrap_or_default();
            drop(vitals);
            return Err(NoTurn::Broken(retry_ms));
        };
        drop(vitals);
        seat.entry.shared.begun.fetch_add(1, Ordering::Relaxed);
        Ok(Place { seat, ticket, info: info.clone() })
    }

    /// Returns how many slots of a peer are free.
    fn free(&self) -> u32 {
        // One that is gone is not waited for: whoever is sent there learns of it at once.
        let peer = self.peer_now().filter(|peer| peer.reachable);
        let Some((slots, of_others)) = peer.and_then(|now| Some((now.slots?, now.of_others()))) else {
            return u32::MAX;
        };
        slots.saturating_sub(of_others).saturating_sub(self.record.running.load(Ordering::Relaxed))
    }

    /// Takes a slot, where one is free beyond those that are for whoever waits already, or has a lower number than this.
    fn seat(self: &Arc<Self>, number: Option<u64>) -> Option<Seat> {
        let running = &self.record.running;
        if let Some(slots) = &self.slots {
            // The semaphore itself lets nobody get ahead of those that wait.
            let permit = slots.clone().try_acquire_owned().ok()?;
            running.fetch_add(1, Ordering::Relaxed);
            return Some(Seat::new(self, Some(permit)));
        }
        if self.is_peer() {
            // The queue is held until the slot is taken, so that nobody else takes it in between.
            let queue = self.record.queue();
            let free = self.free();
            let least = usize::try_from(free).unwrap_or(usize::MAX);
            let ahead = queue.range(..number.unwrap_or(u64::MAX)).take(least).count();
            if ahead >= least {
                return None;
            }
            running.fetch_add(1, Ordering::Relaxed);
            return Some(Seat::new(self, None));
        }
        running.fetch_add(1, Ordering::Relaxed);
        Some(Seat::new(self, None))
    }

    /// Takes a place in the queue for its slots, where there is one for a request that waits for so many backends.
    pub(super) fn wait(self: &Arc<Self>, backends: usize) -> Option<Waiting> {
        let most = WAITING_MAX.saturating_mul(u32::try_from(backends).unwrap_or(u32::MAX));
        let waiting = self.record.waiting.fetch_add(1, Ordering::Relaxed);
        let number = self.record.numbers.fetch_add(1, Ordering::Relaxed);
        let mark = Waiting { entry: self.clone(), number };
        if waiting >= most {
            return None;
        }
        if self.is_peer() {
            self.record.queue().insert(number);
        }
        Some(mark)
    }

    /// Returns how far apart the pieces of an answer by a model are expected to come, where that was measured lately.
    pub(super) fn expected_gap(&self, model: &ModelName) -> Option<Duration> {
        let speed = self.vitals().pace_of(model).tokens_per_second(&self.shared.config, self.now_ms())?;
        Duration::try_from_secs_f64(1.0 / speed).ok()
    }

    pub(super) fn error(&self) -> Option<String> {
        self.vitals().error.as_deref().map(str::to_owned)
    }

    pub(super) fn state(&self) -> BackendState {
        let listing = self.listing();
        let now_ms = self.now_ms();
        let peer = self.peer_now();
        let vitals = self.vitals();
        let (config, record) = (&self.shared.config, &self.record);
        let breaker = vitals.breaker.state();
        let list_error = listing.error.as_ref().map(ToString::to_string);
        let open = peer.is_none_or(|peer| peer.reachable && !peer.paused && !peer.draining);
        BackendState {
            name: self.name.to_string(),
            kind: self.named.kind,
            node: self.node.as_deref().cloned(),
            node_name: self.node_name().map(|name| name.to_string()),
            peer,
            ready: listing.asked_ms.is_some() && list_error.is_none() && vitals.breaker.admits(now_ms) && open,
            error: list_error.or_else(|| vitals.error.as_deref().map(str::to_owned)),
            breaker: match breaker {
                BreakerState::Closed => "closed",
                BreakerState::Open { .. } => "open",
                BreakerState::HalfOpen { .. } => "half-open",
            },
            retry_ms: retry_ms(breaker, now_ms),
            running: record.running.load(Ordering::Relaxed),
            waiting: record.waiting.load(Ordering::Relaxed),
            max_concurrent: self.max_concurrent,
            first_token_ms: vitals.overall.first_token_ms(config, now_ms),
            tokens_per_second: vitals.overall.tokens_per_second(config, now_ms),
            models: listing.offers().len(),
        }
    }
}

impl Record {
    fn queue(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Record {
    fn default() -> Self {
        Self {
            listing: RwLock::default(),
            asking: Semaphore::new(1),
            attempts: AtomicU64::new(0),
            node_name: RwLock::new("".into()),
            running: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            queue: Mutex::default(),
            numbers: AtomicU64::new(0),
            freed: Notify::new(),
            vitals: Mutex::default(),
        }
    }
}

impl Place {
    pub(super) fn entry(&self) -> &Arc<Entry> {
        &self.seat.entry
    }

    /// Takes note of the time to the first token.
    pub(super) fn began(&self, after: Duration) {
        let entry = self.entry();
        let now_ms = entry.now_ms();
        let mut vitals = entry.vitals();
        vitals.end(&entry.name, now_ms, self.ticket, Outcome::Began);
        vitals.began(&entry.shared.config, now_ms, &self.info.name, after.as_secs_f64() * 1_000.0);
        drop(vitals);
        self.loaded();
    }

    /// Takes note that the model is in memory.
    pub(super) fn loaded(&self) {
        if !self.info.warm {
            self.entry().warmed(&self.info.name);
        }
    }

    /// Ends with an answer, at this speed where it could be measured.
    pub(super) fn answered(self, tokens_per_second: Option<f64>) {
        let entry = self.entry();
        let now_ms = entry.now_ms();
        let mut vitals = entry.vitals();
        vitals.end(&entry.name, now_ms, self.ticket, Outcome::Answered);
        if let Some(speed) = tokens_per_second {
            vitals.wrote(&entry.shared.config, now_ms, &self.info.name, speed);
        }
        vitals.error = None;
    }

    /// Ends with an error.
    pub(super) fn failed(self, error: &BackendError) {
        let entry = self.entry();
        let now_ms = entry.now_ms();
        let mut vitals = entry.vitals();
        let outcome = match vitals.failed(now_ms, error) {
            // Each of its models has a process of its own, which rests after it died: that says nothing of the others.
            Outcome::Failed if entry.named.kind == "embedded" => Outcome::Abandoned,
            outcome => outcome,
        };
        vitals.end(&entry.name, now_ms, self.ticket, outcome);
    }

    /// Ends without an outcome: whoever asked went away, or had waited for too long.
    pub(super) fn abandoned(self, timed_out: bool) {
        let entry = self.entry();
        let mut vitals = entry.vitals();
        let mut outcome = Outcome::Abandoned;
        if timed_out {
            vitals.error = Some("nothing came in time".into());
            outcome = Outcome::TimedOut;
        }
        vitals.end(&entry.name, entry.now_ms(), self.ticket, outcome);
    }
}

fn retry_ms(state: BreakerState, now_ms: u64) -> Option<u64> {
    match state {
        BreakerState::Closed => None,
        BreakerState::Open { until_ms } | BreakerState::HalfOpen { until_ms } => Some(until_ms.saturating_sub(now_ms)),
    }
}
