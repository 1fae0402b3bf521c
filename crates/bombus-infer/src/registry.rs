//! The backends of a node as one: what models there are, and which backend a request goes to.
//!
//! Lists of models are kept, so that no request waits for one: [`Backends::watch`] asks for them again and again, and a name that
//! nobody is known to have is looked for at once. Who gets a request is decided by `bombus_core::placement`, of what is known here:
//! the lists, what runs where, how fast it went, and each backend's breaker.

mod config;
mod continuation;
mod entry;
mod listing;
mod patience;
mod peer;
mod route;
mod run;
mod search;
mod stall;
#[cfg(test)]
mod tests;
mod vitals;

use std::collections::{BTreeMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::model::{ModelInfo, ModelName};
use bombus_core::placement::{Need, Offer, Ranked, Rejection, Scope, Verdict, lack, rank_by};
use futures::future::{FutureExt, join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

pub use self::config::RouteConfig;
use self::entry::{Entry, Shared};
use self::listing::Spelling;
pub use self::peer::{PeerFacts, PeerNow};
pub use self::route::{Route, Routed};
pub use self::run::ANSWER_MIB_MAX;
use crate::{Backend, BackendError, ModelLibrary};

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
/// Longest wait right after the start for this node's backends, where a peer has what is asked for.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(1);
/// So long a backend that cannot be asked may have any model. Later, it may have those that it had before, and those that its settings or names
/// kept here give it.
const TROUBLE_AGE_MAX: Duration = Duration::from_secs(60);
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
    /// The name, for example `embedded`; no two backends have the same. A peer's is its node id.
    pub name: String,
    /// Its kind: `embedded`, `fake`, `ollama`, `openai` or `peer`.
    pub kind: &'static str,
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// What the configuration says about it.
    pub options: BackendOptions,
    /// What is known about the other node that it stands for; `None`: it is on this one.
    pub peer: Option<Arc<dyn PeerFacts>>,
}

impl NamedBackend {
    /// Names a backend of this node that has no options.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: &'static str, backend: Arc<dyn Backend>) -> Self {
        Self { name: name.into(), kind, backend, options: BackendOptions::default(), peer: None }
    }

    /// Returns whether models can be fetched and taken in here.
    #[must_use]
    pub fn takes_weights(&self) -> bool {
        self.backend.library().is_some_and(ModelLibrary::takes_weights)
    }

    /// Returns whether the configuration makes a name an alias of one of its models. Another model of that name could not be asked for.
    #[must_use]
    pub fn has_alias(&self, name: &ModelName) -> bool {
        self.options.aliases.keys().any(|alias| ModelName::parse(alias).is_ok_and(|alias| alias == *name))
    }

    /// Makes a backend of another node, by its id. The backend's [`Backend::models`] has to answer without waiting.
    #[must_use]
    pub fn of_peer(peer: Arc<dyn PeerFacts>, backend: Arc<dyn Backend>) -> Self {
        let name = peer.node().as_str().to_owned();
        Self { peer: Some(peer), ..Self::new(name, "peer", backend) }
    }
}

/// The backends of this node, in order of preference, and the peers.
#[derive(Clone)]
pub struct Backends(Arc<Inner>);

struct Inner {
    /// How many of the entries are this node's.
    own: usize,
    /// This node's, in order of preference, then the peers.
    entries: RwLock<Entries>,
    shared: Arc<Shared>,
}

/// The entries as they were at some moment.
type Entries = Arc<[Arc<Entry>]>;

/// A model as one of the backends has it.
#[derive(Clone)]
pub struct Listed {
    /// The backend.
    pub backend: NamedBackend,
    /// What is known about the model, under the name by which it is offered.
    pub info: ModelInfo,
    /// The name that it has there, where the one it is offered by is an alias.
    pub alias_of: Option<String>,
    /// Whether no more preferred backend offers a model by this name.
    pub first: bool,
    /// The node that has it; `None`: this one.
    pub node: Option<NodeId>,
    /// What people call that node, where it is another one.
    pub node_name: Option<String>,
}

impl Listed {
    fn of(entry: &Entry, info: ModelInfo, alias_of: Option<&str>, first: bool) -> Self {
        Self {
            backend: (*entry.named).clone(),
            info,
            alias_of: alias_of.map(str::to_owned),
            first,
            node: entry.node.as_deref().cloned(),
            node_name: entry.node_name().map(|name| name.to_string()),
        }
    }

    /// Chooses among places of a model the one whose backend manages its models: one that has the weights, too, before one that keeps names
    /// alone.
    #[must_use]
    pub fn managed(places: &[Self]) -> Option<&Self> {
        let managed = || places.iter().find(|place| place.backend.backend.library().is_some());
        places.iter().find(|place| place.backend.takes_weights()).or_else(managed)
    }

    /// Returns the name to ask its backend by, where it was found by this one: that name itself, unless it is an alias or written in
    /// another way.
    #[must_use]
    pub fn name_for(&self, asked: &str) -> String {
        name_for(asked, &self.info, self.alias_of.as_deref()).to_owned()
    }

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
    /// Its name; a peer's is its node id.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// The node that it stands for; `None`: it is on this one.
    pub node: Option<NodeId>,
    /// What people call that node, where it is another one.
    pub node_name: Option<String>,
    /// How that node is, where it is another one.
    pub peer: Option<PeerNow>,
    /// Whether its list of models could be had, its breaker lets requests through, and, of a peer, whether it takes any.
    pub ready: bool,
    /// What went wrong last, as long as nothing has gone well since.
    pub error: Option<String>,
    /// `closed`, `open` or `half-open`.
    pub breaker: &'static str,
    /// Time until an open breaker lets the next request through, in milliseconds.
    pub retry_ms: Option<u64>,
    /// Requests of this node that it is answering.
    pub running: u32,
    /// Requests that wait here for one of its slots.
    pub waiting: u32,
    /// Most requests at a time, where the configuration limits that.
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
    /// Takes this node's backends in order of preference. Nothing is asked of them yet.
    #[must_use]
    pub fn new(backends: Vec<NamedBackend>) -> Self {
        Self::configured(backends, RouteConfig::default())
    }

    /// Takes this node's backends as [`Backends::new`] does, with settings for the ways of requests.
    #[must_use]
    pub fn configured(backends: Vec<NamedBackend>, config: RouteConfig) -> Self {
        let shared = Arc::new(Shared::new(config));
        let own = backends.len();
        let entries = backends.into_iter().map(|named| Arc::new(Entry::new(named, &shared, None)));
        Self(Arc::new(Inner { own, entries: RwLock::new(entries.collect()), shared }))
    }

    /// Takes the peers that there are now, made by [`NamedBackend::of_peer`]. What was seen of those that were there before is kept;
    /// requests that run at one that is not among them any more go on.
    pub fn set_peers(&self, peers: Vec<NamedBackend>) {
        let mut entries = self.0.entries.write().unwrap_or_else(PoisonError::into_inner);
        let (own, before) = entries.split_at(self.0.own);
        let earlier: BTreeMap<&str, &Arc<Entry>> = before.iter().map(|entry| (&*entry.name, entry)).collect();
        let mut names = HashSet::new();
        let mut now: Vec<Arc<Entry>> = own.to_vec();
        for named in peers {
            if named.peer.is_none() || !names.insert(named.name.clone()) {
                tracing::error!(
                    backend.name = named.name,
                    "a peer without a node, or one that is there twice, is left out"
                );
                continue;
            }
            now.push(match earlier.get(named.name.as_str()).copied() {
                Some(entry) if entry.is_of(&named) => entry.clone(),
                earlier => Arc::new(Entry::new(named, &self.0.shared, earlier.map(|entry| &**entry))),
            });
        }
        *entries = now.into();
        drop(entries);
        self.peers_changed();
    }

    /// Reads the lists of models of all peers again, and has those that wait for a peer look again. Whoever calls this holds no
    /// lock that [`Backend::models`] of a peer needs.
    pub fn peers_changed(&self) {
        for entry in self.peers(&self.entries()) {
            entry.reread();
            entry.freed();
        }
    }

    /// Has those that wait for a peer look again whether it has a slot: called when it told of its load.
    pub fn peer_told(&self, node: &NodeId) {
        let entries = self.entries();
        if let Some(entry) = self.peers(&entries).iter().find(|entry| entry.node.as_deref() == Some(node)) {
            entry.freed();
        }
    }

    /// Takes note of the memory of this node's GPUs, from which speed is estimated as long as nothing was measured.
    pub fn set_gpu_memory_mb(&self, mb: u64) {
        self.0.shared.gpu_memory_mb.store(mb, Ordering::Relaxed);
    }

    /// Returns how requests are spread and kept going.
    #[must_use]
    pub fn config(&self) -> &RouteConfig {
        &self.0.shared.config
    }

    /// Returns all of them: this node's, most preferred first, then the peers.
    #[must_use]
    pub fn all(&self) -> Vec<NamedBackend> {
        self.entries().iter().map(|entry| (*entry.named).clone()).collect()
    }

    /// Returns this node's, most preferred first.
    #[must_use]
    pub fn own(&self) -> Vec<NamedBackend> {
        self.entries()[..self.0.own].iter().map(|entry| (*entry.named).clone()).collect()
    }

    /// Returns the backend of this name, be it a peer.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Arc<NamedBackend>> {
        self.entries().iter().find(|entry| *entry.name == *name).map(|entry| entry.named.clone())
    }

    /// Keeps the lists of this node's models fresh, until it is dropped. A backend that panics meanwhile is logged and asked again
    /// later. Peers tell by themselves.
    pub async fn watch(&self) {
        let entries = self.entries();
        let watches = entries[..self.0.own].iter().map(async |entry| {
            let interval = if entry.lists_cheaply { WATCH_INTERVAL_CHEAP } else { WATCH_INTERVAL };
            loop {
                if AssertUnwindSafe(entry.refresh()).catch_unwind().await.is_err() {
                    tracing::error!(backend.name = &*entry.name, "the backend failed when it was asked for its models");
                }
                sleep(interval).await;
            }
        });
        join_all(watches).await;
        // Without backends there is nothing to keep fresh.
        std::future::pending::<()>().await;
    }

    /// Asks a backend for its models now. Whoever changes them calls this, so that what comes next sees the change.
    pub async fn refresh(&self, backend: &str) {
        for entry in self.entries().iter().filter(|entry| *entry.name == *backend) {
            entry.refresh().await;
        }
    }

    /// Lists the models of all backends, one for each name and backend, most preferred backend first and peers last. Backends that
    /// cannot be asked, or do not answer within 5 s, are left out and logged; so are peers that take no requests now.
    pub async fn models(&self) -> Vec<Listed> {
        let entries = self.entries();
        self.refresh_stale(&entries).await;
        let mut listed: Vec<Listed> = Vec::new();
        let mut seen = HashSet::new();
        for entry in entries.iter().filter(|entry| self.shows(entry)) {
            for offered in entry.listing().offers() {
                let first = seen.insert(offered.info.name.clone());
                listed.push(Listed::of(entry, (*offered.info).clone(), offered.alias_of.as_deref(), first));
            }
        }
        listed
    }

    /// Lists what this node's own backends are known to have, one for each name and backend, most preferred backend first. Nothing is
    /// asked of them.
    #[must_use]
    pub fn known(&self) -> Vec<Listed> {
        let mut listed: Vec<Listed> = Vec::new();
        let mut seen = HashSet::new();
        for entry in &self.entries()[..self.0.own] {
            for offered in entry.listing().offers() {
                let first = seen.insert(offered.info.name.clone());
                listed.push(Listed::of(entry, (*offered.info).clone(), offered.alias_of.as_deref(), first));
            }
        }
        listed
    }

    /// Finds the most preferred backend that has a model, whether it works now or not, or a peer that takes requests for it.
    ///
    /// # Errors
    ///
    /// [`BackendError::ModelNotFound`]; or, where no backend has the model but one could not be asked, that backend's error, as long as the
    /// model may well be there: for a minute, or where that backend had it, or its settings or names kept here give it, or where none of this
    /// node's could be asked. A backend that does not answer within 5 s is [`BackendError::Unavailable`].
    pub async fn find(&self, model: &str) -> Result<Listed, BackendError> {
        let name = parse(model)?;
        if let Some(found) = self.listed(&name) {
            return Ok(found);
        }
        let troubles = self.look_for(&name, || self.listed(&name).is_some()).await;
        self.listed(&name).ok_or_else(|| self.absence(model, &name, &troubles))
    }

    /// Finds all that have a model, most preferred backend first and peers last. Names are compared as for a request, so that it may have names
    /// there that are only like this one. There is at least one.
    ///
    /// # Errors
    ///
    /// As [`Backends::find`].
    pub async fn having(&self, model: &str) -> Result<Vec<Listed>, BackendError> {
        let name = parse(model)?;
        let first = self.find(model).await?;
        self.refresh_stale(&self.entries()).await;
        let places: Vec<_> = self.places(&self.entries(), &name).collect();
        Ok(if places.is_empty() { vec![first] } else { places })
    }

    /// Judges all backends and peers for a request, best first.
    ///
    /// # Errors
    ///
    /// [`BackendError::ModelNotFound`] where the name cannot be one of a model.
    pub async fn rank(&self, model: &str, need: &Need) -> Result<Vec<Ranked>, BackendError> {
        let name = parse(model)?;
        let (_, troubles) = self.rank_and_look(&name, need).await;
        Ok(self.rank_now(&name, need, &troubles, true).ranking)
    }

    /// Decides which backends and peers a request may go to, and in which order. Nothing is asked of a backend, unless none that is
    /// known to have the model could answer.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] where the model is there but cannot do what is needed; [`BackendError::Unavailable`] where
    /// those that have it do not work, or take no requests now; else as [`Backends::find`].
    pub async fn route(&self, model: &str, need: &Need) -> Result<Route, BackendError> {
        let name = parse(model)?;
        let (plan, troubles) = self.rank_and_look(&name, need).await;
        if usable(&plan.ranking) {
            return Ok(Route::new(self.clone(), model, name, need.clone(), plan));
        }
        Err(self.refusal(model, &name, need, &troubles))
    }

    /// Tells how each backend is doing, this node's first, most preferred first, then the peers.
    #[must_use]
    pub fn states(&self) -> Vec<BackendState> {
        self.entries().iter().map(|entry| entry.state()).collect()
    }

    fn entries(&self) -> Entries {
        self.0.entries.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn peers<'a>(&self, entries: &'a Entries) -> &'a [Arc<Entry>] {
        &entries[self.0.own..]
    }

    /// Returns whether what an entry has is shown: what a peer has is, as long as requests may go there.
    fn shows(&self, entry: &Entry) -> bool {
        entry
            .peer_now()
            .is_none_or(|peer| self.0.shared.config.remote && peer.reachable && !peer.paused && !peer.draining)
    }

    /// Returns how a name is compared: where a model is shown by it as it is written, all others are other models.
    fn spelling(&self, entries: &Entries, name: &ModelName) -> Spelling {
        let is_written_so = entries.iter().any(|entry| entry.listing().has(name) && self.shows(entry));
        if is_written_so { Spelling::Exact } else { Spelling::Alike }
    }

    /// Asks those of this node's backends for their models whose lists may be out of date.
    async fn refresh_stale(&self, entries: &Entries) {
        let stale = entries[..self.0.own].iter().filter(|entry| entry.lists_cheaply || entry.list_age() > LIST_AGE_MAX);
        join_all(stale.map(|entry| entry.refresh())).await;
    }

    fn listed(&self, name: &ModelName) -> Option<Listed> {
        self.places(&self.entries(), name).next()
    }

    /// Lists what is shown to be there by a name, compared as for a request.
    fn places(&self, entries: &Entries, name: &ModelName) -> impl Iterator<Item = Listed> {
        let spelling = self.spelling(entries, name);
        let mut seen = HashSet::new();
        let place = move |entry: &Arc<Entry>| {
            let Offer::Has { info, alias_of } = entry.listing().offer(name, spelling) else { return None };
            let first = seen.insert(info.name.clone());
            Some(Listed::of(entry, (*info).clone(), alias_of.as_deref(), first))
        };
        entries.iter().filter(move |entry| self.shows(entry)).filter_map(place)
    }

    /// Asks this node's backends of which nothing is known yet, where a peer has the model: what is here is not asked of others only
    /// because the node has just started.
    async fn look_here_first(&self, name: &ModelName, need: &Need) {
        if !matches!(need.scope, Scope::Anywhere) {
            return;
        }
        let entries = self.entries();
        let (own, peers) = entries.split_at(self.0.own);
        let unread: Vec<_> = own.iter().filter(|entry| entry.listing().asked_ms.is_none()).collect();
        let has = |entry: &Arc<Entry>| matches!(entry.listing().offer(name, Spelling::Alike), Offer::Has { .. });
        if unread.is_empty() || !peers.iter().any(has) {
            return;
        }
        // What goes wrong is seen again when the backend is asked as ever.
        let _ = timeout(FIRST_LOOK_MAX, join_all(unread.iter().map(|entry| entry.look_for(name)))).await;
    }

    async fn rank_and_look(&self, name: &ModelName, need: &Need) -> (Plan, Troubles) {
        self.look_here_first(name, need).await;
        let plan = self.rank_now(name, need, &Troubles::new(), false);
        if usable(&plan.ranking) {
            return (plan, Troubles::new());
        }
        let found = || usable(&self.rank_now(name, need, &Troubles::new(), false).ranking);
        let troubles = self.look_for(name, found).await;
        (self.rank_now(name, need, &troubles, false), troubles)
    }

    /// Judges the backends by what is known now; peers that do not have the model are left out unless all are asked for.
    fn rank_now(&self, name: &ModelName, need: &Need, troubles: &Troubles, all: bool) -> Plan {
        let entries = self.entries();
        let shared = &self.0.shared;
        let begun = shared.begun.load(Ordering::Relaxed);
        let now_ms = shared.clock.now_ms();
        let spelling = self.spelling(&entries, name);
        let candidates = entries.iter().enumerate().filter_map(|(index, entry)| {
            if entry.is_peer() && !all && !matches!(entry.listing().offer(name, spelling), Offer::Has { .. }) {
                return None;
            }
            let mut candidate = entry.candidate(index, (name, spelling), now_ms);
            if let (Offer::Missing, Some(trouble)) = (&candidate.offer, troubles.get(&index)) {
                candidate.offer = Offer::Unknown(trouble.to_string().into());
            }
            Some(candidate)
        });
        let ranking = rank_by(&shared.config.weights, need, candidates.collect());
        Plan { ranking, entries, begun }
    }

    /// Asks this node's backends whether they have a model that nobody was known to have, until it is found. Returns what went wrong,
    /// by the backend's place.
    async fn look_for(&self, name: &ModelName, found: impl Fn() -> bool) -> Troubles {
        let entries = self.entries();
        let own = entries[..self.0.own].iter().enumerate();
        let due = own.filter(|(_, entry)| entry.lists_cheaply || entry.list_age() >= MISS_INTERVAL);
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

    /// Says why a model is not there: with the trouble of the most preferred backend that may have it. What peers have is known, or they
    /// do not count.
    fn absence(&self, model: &str, name: &ModelName, troubles: &Troubles) -> BackendError {
        let entries = self.entries();
        let own = entries[..self.0.own].iter().enumerate();
        let troubled: Vec<_> = own
            .filter_map(|(index, entry)| {
                let trouble = troubles.get(&index).cloned().or_else(|| entry.listing().error.clone());
                Some((entry, trouble?))
            })
            .collect();
        let nobody_knows = troubled.len() == self.0.own;
        let mut possible =
            troubled.into_iter().filter(|(entry, trouble)| nobody_knows || entry.may_have(name, trouble));
        let missing = || BackendError::ModelNotFound { model: model.to_owned() };
        possible.next().map_or_else(missing, |(_, trouble)| trouble)
    }

    /// Says why nobody can answer.
    fn refusal(&self, model: &str, name: &ModelName, need: &Need, troubles: &Troubles) -> BackendError {
        let unavailable = |reason: String| BackendError::Unavailable { reason };
        let Plan { ranking, entries, .. } = self.rank_now(name, need, troubles, true);
        if let Scope::Node(node) = &need.scope
            && !self.peers(&entries).iter().any(|entry| entry.node.as_deref() == Some(node))
        {
            return unavailable(format!("node {node} is not connected; bombus peers lists those that are"));
        }
        let rejected = |wanted: fn(&Rejection) -> bool| {
            let mut rejected = ranking.iter().filter_map(|ranked| Some((ranked, ranked.rejection()?)));
            rejected.find(|(ranked, rejection)| ranked.model().is_some() && wanted(rejection))
        };
        if let Some((ranked, Rejection::Broken { retry_ms })) = rejected(|one| matches!(one, Rejection::Broken { .. }))
        {
            return broken(entry_of(&entries, ranked), *retry_ms);
        }
        if let Some((_, Rejection::Lacks(capability))) = rejected(|one| matches!(one, Rejection::Lacks(_))) {
            let message = format!("model '{model}' {}", lack(*capability));
            return BackendError::Unsupported { param: route::param_of(*capability), message };
        }
        let closed = |one: &Rejection| {
            use Rejection::{Barred, CannotContinue, Draining, Paused, Unreachable};
            matches!(one, Barred | CannotContinue | Draining | Paused | Unreachable)
        };
        if let Some((ranked, rejection)) = rejected(closed) {
            let label = entry_of(&entries, ranked).label();
            return unavailable(format!("model '{model}' is at '{label}' alone: {rejection}"));
        }
        // What is wrong with this node's backends is no reason where the request must not go there.
        if matches!(need.scope, Scope::Remote | Scope::Node(_)) {
            return BackendError::ModelNotFound { model: model.to_owned() };
        }
        self.absence(model, name, troubles)
    }
}

/// A ranking, and what it was made of.
struct Plan {
    ranking: Vec<Ranked>,
    entries: Entries,
    /// Requests that had begun when it was made.
    begun: u64,
}

/// Returns the entry that a candidate was made of.
fn entry_of<'a>(entries: &'a [Arc<Entry>], ranked: &Ranked) -> &'a Arc<Entry> {
    let is_it = |entry: &&Arc<Entry>| Arc::ptr_eq(&entry.name, &ranked.candidate.backend);
    entries.iter().find(is_it).expect("a ranking is made of the entries beside it")
}

/// Says that a backend is left alone for a while.
fn broken(entry: &Entry, retry_ms: u64) -> BackendError {
    let last = entry.error().map(|error| format!(": {error}")).unwrap_or_default();
    let seconds = retry_ms.div_ceil(1_000).max(1);
    let who = if entry.is_peer() { "node" } else { "backend" };
    let label = entry.label();
    let reason = format!("{who} '{label}' failed several times in a row and is tried again in {seconds} s{last}");
    BackendError::Unavailable { reason }
}

/// Returns the name to ask a backend by for a model that was found by a name.
fn name_for<'a>(asked: &'a str, info: &'a ModelInfo, alias_of: Option<&'a str>) -> &'a str {
    let is_written_so = || ModelName::parse(asked).is_ok_and(|name| name == info.name);
    alias_of.unwrap_or_else(|| if is_written_so() { asked } else { info.name.as_str() })
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
