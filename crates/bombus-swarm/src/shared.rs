//! What the parts of the service and all handles share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bombus_core::identity::{BootId, NodeId};
use bombus_core::topics::{Capabilities, ReplayGuard, TaskGenerations, Timestamp, Topic, TopicMessage};
use bombus_net::NetHandle;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

use crate::clock::Clocks;
use crate::config::SwarmConfig;
use crate::counts::{Counts, count};
use crate::error::TellError;
use crate::events::EventLog;
use crate::facts::OwnFacts;
use crate::liveness::LinkCounts;
use crate::service::random;
use crate::topics::Heard;
use crate::view::{Change, Link, PeerPath, View, ViewInput, word_of};

/// How many accepted messages of a topic wait for a reader that is slow.
pub(crate) const MESSAGES_MAX: usize = 256;
/// How many first words wait for the failure detector.
pub(crate) const GREETED_MAX: usize = 256;
/// A clock that was set back by more than this is followed; by less, messages go on counting up from the last, in milliseconds.
const CLOCK_SET_BACK_MS: i64 = 60_000;

/// Its locks are held for some microseconds each, and never across a wait.
pub(crate) struct Shared {
    pub(crate) net: NetHandle,
    pub(crate) config: SwarmConfig,
    pub(crate) facts: watch::Receiver<OwnFacts>,
    pub(crate) clocks: Clocks,
    /// Told with a number that grows: all peers are to be said goodbye to. The other one tells up to which of those that was done.
    pub(crate) farewells: watch::Sender<u64>,
    pub(crate) farewells_said: watch::Sender<u64>,
    /// Peers whose first word was understood, so that they are nodes like this one. A reader that lags loses the oldest.
    pub(crate) greeted: broadcast::Sender<NodeId>,
    pub(crate) events: EventLog,
    pub(crate) counts: Counts,
    pub(crate) link_counts: Arc<LinkCounts>,
    /// The peers that are watched, and by how many.
    pub(crate) watched: watch::Sender<BTreeMap<NodeId, u32>>,
    /// What to do about another process with this node's identity, once one was met.
    pub(crate) same_identity: OnceLock<String>,
    pub(crate) started_unix_s: u64,
    /// Which generations of the databases of tasks are here, once that is known.
    pub(crate) task_generations: watch::Sender<Option<TaskGenerations>>,
    /// The view's revision.
    revision: watch::Sender<u64>,
    view: Mutex<View>,
    guard: Mutex<ReplayGuard>,
    messages: [broadcast::Sender<Heard>; Topic::ALL.len()],
    last_stamp_ms: AtomicI64,
    /// Of the run as peers see it: a new one begins when this node comes back after a goodbye.
    boot: AtomicU64,
    swarm_id: Mutex<String>,
}

impl Shared {
    pub(crate) fn new(config: SwarmConfig, net: NetHandle, facts: watch::Receiver<OwnFacts>, boot: BootId) -> Self {
        let clocks = Clocks::start(config.clock.clone());
        Self {
            view: Mutex::new(View::new(net.node_id().clone(), config.view.clone())),
            swarm_id: Mutex::new(net.swarm_id().to_string()),
            greeted: broadcast::Sender::new(GREETED_MAX),
            events: EventLog::new(clocks.unix_ms()),
            started_unix_s: clocks.unix_ms() / 1_000,
            net,
            config,
            facts,
            clocks,
            farewells: watch::Sender::new(0),
            farewells_said: watch::Sender::new(0),
            counts: Counts::default(),
            link_counts: Arc::default(),
            watched: watch::Sender::new(BTreeMap::new()),
            same_identity: OnceLock::new(),
            task_generations: watch::Sender::new(None),
            revision: watch::Sender::new(0),
            guard: Mutex::new(ReplayGuard::new()),
            messages: std::array::from_fn(|_| broadcast::Sender::new(MESSAGES_MAX)),
            last_stamp_ms: AtomicI64::new(i64::MIN),
            boot: AtomicU64::new(boot.bits()),
        }
    }

    /// Says whether there are more nodes than each keeps connections to.
    pub(crate) fn is_crowd(&self) -> bool {
        self.view().nodes() > self.config.mesh_max
    }

    /// Lets the view take something, and tells everybody what that changed.
    pub(crate) fn apply(&self, input: ViewInput) {
        let now = self.clocks.moment();
        let revision = {
            let mut view = self.view();
            for change in view.on(now, input) {
                // Under the view's lock, so that events stand in the order of the changes.
                log(&change);
                let (kind, data) = told_of(&change, &view);
                self.events.push(kind, self.clocks.wall(), data);
            }
            view.revision()
        };
        self.revision.send_if_modified(|known| {
            let is_newer = *known < revision;
            *known = revision.max(*known);
            is_newer
        });
    }

    /// Lets the view take the links that stand now.
    pub(crate) fn look_at_links(&self) {
        let links = self.net.peers().into_iter().filter_map(|peer| {
            let latency_ms = peer.round_trip.map(|round_trip| round_trip.as_secs_f64() * 1_000.0);
            Some(Link { peer: peer.node_id, path: PeerPath::from(peer.connected?), latency_ms })
        });
        self.apply(ViewInput::Links(links.collect()));
    }

    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn guard(&self) -> MutexGuard<'_, ReplayGuard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Returns the swarm that this node is in now; after a change, the peers of the one before are peers no more.
    pub(crate) fn enter_swarm(&self) -> String {
        let now = self.net.swarm_id().to_string();
        let before = {
            let mut known = self.swarm_id.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *known, now.clone())
        };
        if before != now {
            *self.guard() = ReplayGuard::new();
            self.begin_another_run();
            self.apply(ViewInput::SwarmChanged);
        }
        now
    }

    pub(crate) fn boot(&self) -> BootId {
        BootId::new(self.boot.load(Ordering::Relaxed))
    }

    /// Lets peers take this node for one that was started anew: who said goodbye in one run is there again in another.
    pub(crate) fn begin_another_run(&self) {
        self.boot.store(random(), Ordering::Relaxed);
    }

    /// Returns a time for a message: that of the clock, but later than that of the message before.
    pub(crate) fn stamp(&self) -> Timestamp {
        let now_ms = self.clocks.wall().unix_ms();
        let next = |last_ms: i64| {
            let set_back = last_ms.saturating_sub(now_ms) > CLOCK_SET_BACK_MS;
            if set_back { now_ms } else { now_ms.max(last_ms.saturating_add(1)) }
        };
        let before =
            self.last_stamp_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last_ms| Some(next(last_ms)));
        Timestamp::from_unix_ms(next(before.unwrap_or_else(|last_ms| last_ms)))
    }

    /// Returns what this node says of itself now.
    pub(crate) fn own(&self) -> Capabilities {
        let stamp = self.stamp();
        let told = self.facts.borrow().capabilities(self.net.node_id(), self.boot(), stamp);
        Capabilities { task_generations: self.task_generations.borrow().clone(), ..told }
    }

    /// Publishes a message on its topic.
    pub(crate) async fn publish(&self, message: &TopicMessage) -> Result<(), TellError> {
        let published = self.try_publish(message).await;
        if let Err(error) = &published {
            count(&self.counts.publish_failures);
            tracing::debug!(topic = message.topic().name(), %error, "a message was not published");
        }
        published
    }

    async fn try_publish(&self, message: &TopicMessage) -> Result<(), TellError> {
        if let Some(sender) = message.sender().filter(|sender| *sender != self.net.node_id().as_str()) {
            return Err(TellError::NotOwn(sender.to_owned()));
        }
        let bytes = message.encode()?;
        let topic = message.topic().full_name(&self.net.swarm_id().to_string());
        Ok(self.net.publish(&topic, bytes).await?)
    }

    pub(crate) fn messages(&self, topic: Topic) -> &broadcast::Sender<Heard> {
        &self.messages[topic as usize]
    }

    /// Notes that another process has this node's identity, and says so once.
    pub(crate) fn note_same_identity(&self, seen: &str) {
        let advice = format!(
            "another process has this node's identity ({seen}): stop one of the two, or give it an identity of its own by a data directory \
             that is not a copy of this one"
        );
        if self.same_identity.set(advice).is_ok() {
            tracing::error!(seen, "another process has this node's identity; stop one of them");
        }
    }
}

fn log(change: &Change) {
    match change {
        Change::Joined { peer, name } => tracing::info!(peer.id = %peer, peer.name = name, "a peer joined"),
        Change::Left { peer, name, reason } => {
            tracing::info!(peer.id = %peer, peer.name = name, reason, "a peer left");
        }
        Change::Suspected { peer, name, reason } => {
            tracing::info!(peer.id = %peer, peer.name = name, reason, "a peer may be gone");
        }
        Change::Updated { .. } => {}
    }
}

fn told_of(change: &Change, view: &View) -> (&'static str, Value) {
    match change {
        Change::Joined { peer, name } => ("peer:joined", json!({ "node_id": peer, "name": name })),
        Change::Left { peer, name, reason } => {
            ("peer:left", json!({ "node_id": peer, "name": name, "reason": reason }))
        }
        Change::Suspected { peer, name, reason } => {
            ("peer:suspect", json!({ "node_id": peer, "name": name, "reason": reason }))
        }
        Change::Updated { peer, name, fields } => {
            let state = view.peer(peer).map(|peer| word_of(peer.state));
            ("peer:updated", json!({ "node_id": peer, "name": name, "state": state, "fields": fields }))
        }
    }
}
