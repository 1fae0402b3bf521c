//! The backends of a node as one: what models there are, and which backend a request goes to.
//!
//! Lists of models are kept, so that no request waits for one: [`Backends::watch`] asks for them again and again, and a name that
//! nobody is known to have is looked for at once. Who gets a request is decided by `bombus_core::placement`, of what is known here:
//! the lists, what runs where, how fast it went, and each backend's breaker.

mod entry;
mod listing;
mod route;
mod run;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::model::{ModelInfo, ModelName};
use bombus_core::placement::{Need, Offer, Ranked, Rejection, Verdict, lack, rank};
use futures::future::{FutureExt, join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use self::entry::{Clock, Entry};
pub use self::route::{Route, Routed};
use crate::{Backend, BackendError};

/// Longest wait for a backend to say what models it has: one that hangs must not make the others wait.
const ASK_TIME_MAX: Duration = Duration::from_secs(5);
/// Time between two looks at the models of a backend.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);
/// The same for a backend on this machine whose list costs next to nothing.
const WATCH_INTERVAL_CHEAP: Duration = Duration::from_secs(2);
/// A list older than this is asked for again before it is shown; only where nobody watches does it become so old.
const LIST_AGE_MAX: Duration = Duration::from_secs(15);
/// Shortest time between two looks at a backend for a name that nobody is known to have.
const MISS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a more preferred backend may still answer when a name was looked for and found.
const FOUND_GRACE: Duration = Duration::from_millis(200);

/// What the configuration says about a backend, whatever its kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendOptions {
    /// Further names for its models: the name that is asked for, and the model's name there.
    pub aliases: BTreeMap<String, String>,
    /// The models that are offered, by their names there; empty: all. Models with an alias are always offered by it.
    pub models: Vec<String>,
    /// Most requests at a time; further ones go elsewhere or wait.
    pub max_concurrent: Option<u32>,
}

/// A backend with the name that logs, metrics and the `x-bombus-route` header show.
#[derive(Clone)]
pub struct NamedBackend {
    /// The name, for example `embedded`; no two backends have the same.
    pub name: String,
    /// Its kind: `embedded`, `fake`, `ollama` or `openai`.
    pub kind: &'static str,
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// What the configuration says about it.
    pub options: BackendOptions,
}

impl NamedBackend {
    /// Names a backend that has no options.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: &'static str, backend: Arc<dyn Backend>) -> Self {
        Self { name: name.into(), kind, backend, options: BackendOptions::default() }
    }
}

/// The backends of this node, in order of preference.
#[derive(Clone)]
pub struct Backends(Arc<Inner>);

struct Inner {
    named: Vec<NamedBackend>,
    /// In the same order.
    entries: Vec<Arc<Entry>>,
    clock: Clock,
}

/// A model as one of the backends has it.
#[derive(Clone)]
pub struct Listed<'a> {
    /// The backend.
    pub backend: &'a NamedBackend,
    /// What is known about the model, under the name by which it is offered.
    pub info: ModelInfo,
    /// The name that it has there, where the one it is offered by is an alias.
    pub alias_of: Option<String>,
    /// Whether no more preferred backend offers a model by this name.
    pub first: bool,
}

impl Listed<'_> {
    /// Returns the name that the model has at its backend.
    #[must_use]
    pub fn name_there(&self) -> ModelName {
        let alias_of = self.alias_of.as_deref().and_then(|name| ModelName::parse(name).ok());
        alias_of.unwrap_or_else(|| self.info.name.clone())
    }
}

/// How a backend is doing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackendState {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// Whether its list of models could be had, and its breaker lets requests through.
    pub ready: bool,
    /// What went wrong last, as long as nothing has gone well since.
    pub error: Option<String>,
    /// `closed`, `open` or `half-open`.
    pub breaker: &'static str,
    /// Time until an open breaker lets the next request through, in milliseconds.
    pub retry_ms: Option<u64>,
    /// Requests that it is answering.
    pub running: u32,
    /// Requests that wait for one of its slots.
    pub waiting: u32,
    /// Most requests at a time, where that is limited.
    pub max_concurrent: Option<u32>,
    /// Time to the first token in milliseconds, recent requests counting most.
    pub first_token_ms: Option<f64>,
    /// Tokens per second of one request, recent requests counting most.
    pub tokens_per_second: Option<f64>,
    /// How many models it offers, aliases included.
    pub models: usize,
}

impl Default for Backends {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Backends {
    /// Takes the backends in order of preference. Nothing is asked of them yet.
    #[must_use]
    pub fn new(backends: Vec<NamedBackend>) -> Self {
        let clock = Clock::start();
        let entries = backends.iter().map(|named| Arc::new(Entry::new(named, clock))).collect();
        Self(Arc::new(Inner { named: backends, entries, clock }))
    }

    /// Returns all of them, most preferred first.
    #[must_use]
    pub fn all(&self) -> &[NamedBackend] {
        &self.0.named
    }

    /// Keeps the lists of models fresh, until it is dropped. A backend that panics meanwhile is logged and asked again later.
    pub async fn watch(&self) {
        let watches = self.0.entries.iter().map(async |entry| {
            let interval = if entry.lists_cheaply { WATCH_INTERVAL_CHEAP } else { WATCH_INTERVAL };
            loop {
                if AssertUnwindSafe(entry.refresh()).catch_unwind().await.is_err() {
                    tracing::error!(backend.name = &*entry.name, "the backend failed when it was asked for its models");
                }
                sleep(interval).await;
            }
        });
        join_all(watches).await;
    }

    /// Asks a backend for its models now. Whoever changes them calls this, so that what comes next sees the change.
    pub async fn refresh(&self, backend: &str) {
        for entry in self.0.entries.iter().filter(|entry| *entry.name == *backend) {
            entry.refresh().await;
        }
    }

    /// Lists the models of all backends, one for each name and backend, most preferred backend first. Backends that cannot be asked,
    /// or do not answer within 5 s, are left out and logged.
    pub async fn models(&self) -> Vec<Listed<'_>> {
        let stale = self.0.entries.iter().filter(|entry| entry.lists_cheaply || entry.list_age() > LIST_AGE_MAX);
        join_all(stale.map(|entry| entry.refresh())).await;
        let mut listed: Vec<Listed<'_>> = Vec::new();
        let mut seen = HashSet::new();
        for (named, entry) in self.0.named.iter().zip(&self.0.entries) {
            for offered in entry.listing().offers() {
                let first = seen.insert(offered.info.name.clone());
                let alias_of = offered.alias_of.as_deref().map(str::to_owned);
                listed.push(Listed { backend: named, info: (*offered.info).clone(), alias_of, first });
            }
        }
        listed
    }

    /// Finds the most preferred backend that has a model, whether it works now or not.
    ///
    /// # Errors
    ///
    /// [`BackendError::ModelNotFound`]; or, where no backend has the model but one could not be asked, that backend's error, since
    /// the model may well be there. A backend that does not answer within 5 s is [`BackendError::Unavailable`].
    pub async fn find(&self, model: &str) -> Result<Listed<'_>, BackendError> {
        let name = parse(model)?;
        if let Some(found) = self.listed(&name) {
            return Ok(found);
        }
        let troubles = self.look_for(&name, || self.listed(&name).is_some()).await;
        self.listed(&name).ok_or_else(|| self.absence(model, &troubles))
    }

    /// Judges all backends for a request, best first.
    ///
    /// # Errors
    ///
    /// [`BackendError::ModelNotFound`] where the name cannot be one of a model.
    pub async fn rank(&self, model: &str, need: &Need) -> Result<Vec<Ranked>, BackendError> {
        Ok(self.rank_and_look(&parse(model)?, need).await.0)
    }

    /// Decides which backends a request may go to, and in which order. Nothing is asked of a backend, unless none that is known to
    /// have the model could answer.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] where the model is there but cannot do what is needed; [`BackendError::Unavailable`] where
    /// those that have it do not work; else as [`Backends::find`].
    pub async fn route(&self, model: &str, need: &Need) -> Result<Route, BackendError> {
        let name = parse(model)?;
        let (ranking, troubles) = self.rank_and_look(&name, need).await;
        if usable(&ranking) {
            return Ok(Route::new(self.clone(), model, ranking));
        }
        Err(self.refusal(model, &ranking, &troubles))
    }

    /// Tells how each backend is doing, most preferred first.
    #[must_use]
    pub fn states(&self) -> Vec<BackendState> {
        self.0.entries.iter().map(|entry| entry.state()).collect()
    }

    fn entry(&self, index: usize) -> &Arc<Entry> {
        &self.0.entries[index]
    }

    fn listed(&self, name: &ModelName) -> Option<Listed<'_>> {
        self.0.named.iter().zip(&self.0.entries).find_map(|(named, entry)| {
            let Offer::Has { info, alias_of } = entry.listing().offer(name) else { return None };
            let alias_of = alias_of.as_deref().map(str::to_owned);
            Some(Listed { backend: named, info: (*info).clone(), alias_of, first: true })
        })
    }

    async fn rank_and_look(&self, name: &ModelName, need: &Need) -> (Vec<Ranked>, Troubles) {
        let ranking = self.rank_now(name, need, &Troubles::new());
        if usable(&ranking) {
            return (ranking, Troubles::new());
        }
        let troubles = self.look_for(name, || usable(&self.rank_now(name, need, &Troubles::new()))).await;
        (self.rank_now(name, need, &troubles), troubles)
    }

    fn rank_now(&self, name: &ModelName, need: &Need, troubles: &Troubles) -> Vec<Ranked> {
        let now_ms = self.0.clock.now_ms();
        let candidates = self.0.entries.iter().enumerate().map(|(index, entry)| {
            let mut candidate = entry.candidate(index, name, now_ms);
            if let (Offer::Missing, Some(trouble)) = (&candidate.offer, troubles.get(&index)) {
                candidate.offer = Offer::Unknown(trouble.to_string().into());
            }
            candidate
        });
        rank(need, candidates.collect())
    }

    /// Asks the backends whether they have a model that nobody was known to have, until it is found. Returns what went wrong, by the
    /// backend's place.
    async fn look_for(&self, name: &ModelName, found: impl Fn() -> bool) -> Troubles {
        let due = self
            .0
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.lists_cheaply || entry.list_age() >= MISS_INTERVAL);
        let looks = due.map(async |(index, entry)| (index, entry.look_for(name).await.err()));
        let mut looks: FuturesUnordered<_> = looks.collect();
        let mut troubles = Troubles::new();
        while let Some((index, trouble)) = looks.next().await {
            troubles.extend(trouble.map(|trouble| (index, trouble)));
            if found() {
                // Whether the others are in time makes no difference to the request, only to who gets it.
                let _ = timeout(FOUND_GRACE, async { while looks.next().await.is_some() {} }).await;
                break;
            }
        }
        troubles
    }

    /// Says why a model is not there.
    fn absence(&self, model: &str, troubles: &Troubles) -> BackendError {
        let of_entry = |(index, entry): (usize, &Arc<Entry>)| {
            troubles.get(&index).cloned().or_else(|| entry.listing().error.clone())
        };
        let mut troubles = self.0.entries.iter().enumerate().filter_map(of_entry);
        troubles.next_back().unwrap_or_else(|| BackendError::ModelNotFound { model: model.to_owned() })
    }

    /// Says why nobody can answer.
    fn refusal(&self, model: &str, ranking: &[Ranked], troubles: &Troubles) -> BackendError {
        let broken = ranking.iter().find_map(|ranked| match &ranked.verdict {
            Verdict::Rejected(Rejection::Broken { retry_ms }) => Some((&ranked.candidate.backend, *retry_ms)),
            _ => None,
        });
        if let Some((backend, retry_ms)) = broken {
            return self.broken(backend, retry_ms);
        }
        let lacking = ranking.iter().find_map(|ranked| match &ranked.verdict {
            Verdict::Rejected(Rejection::Lacks(capability)) => Some(*capability),
            _ => None,
        });
        if let Some(capability) = lacking {
            let message = format!("model '{model}' {}", lack(capability));
            return BackendError::Unsupported { param: route::param_of(capability), message };
        }
        self.absence(model, troubles)
    }

    /// Says that a backend is left alone for a while.
    fn broken(&self, backend: &str, retry_ms: u64) -> BackendError {
        let entry = self.0.entries.iter().find(|entry| *entry.name == *backend);
        let last = entry.and_then(|entry| entry.error()).map(|error| format!(": {error}")).unwrap_or_default();
        let seconds = retry_ms.div_ceil(1_000).max(1);
        let reason =
            format!("backend '{backend}' failed several times in a row and is tried again in {seconds} s{last}");
        BackendError::Unavailable { reason }
    }
}

/// What went wrong when backends were looked at, by their places.
type Troubles = BTreeMap<usize, BackendError>;

fn parse(model: &str) -> Result<ModelName, BackendError> {
    ModelName::parse(model).map_err(|_| BackendError::ModelNotFound { model: model.to_owned() })
}

/// Returns whether any backend of a ranking could answer, be it after a wait.
fn usable(ranking: &[Ranked]) -> bool {
    ranking.first().is_some_and(|best| best.score().is_some() || is_busy(best))
}

fn is_busy(ranked: &Ranked) -> bool {
    matches!(ranked.verdict, Verdict::Rejected(Rejection::Busy { .. }))
}
