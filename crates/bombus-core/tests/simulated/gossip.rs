//! How messages of topics get around among the nodes: by gossipsub as they have set it (`bombus-net/src/behaviour.rs`).
//!
//! Who publishes sends to all peers that it is connected to. Nobody passes on what it heard; at each heartbeat a node tells a few of its
//! peers the names of what is new, and who lacks something asks for it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use bombus_testkit::simulator::SimulatorRandom;

/// Between two heartbeats, in milliseconds: `NetTiming::gossip_heartbeat`.
const HEARTBEAT_MS: u64 = 4_000;
/// How many peers are told in each heartbeat, and topic, what came since the last one: `gossip_lazy`.
const PEERS_TOLD_MIN: usize = 2;
/// Which share of the peers are told, where that is more: `gossip_factor`.
const SHARE_TOLD: f64 = 0.33;
/// For how many heartbeats a message is kept for those who ask: `history_length`.
const HEARTBEATS_KEPT: usize = 5;
/// How long nobody else is asked for a message, in milliseconds: `iwant_followup_time`.
const PATIENCE_MS: u64 = 3_000;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Topic {
    Presence,
    Capabilities,
    TaskBroadcast,
}

/// A message, which is its own name here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Message {
    pub(crate) topic: Topic,
    pub(crate) author: usize,
    /// Greater than those of the author's earlier messages, also of its earlier runs.
    pub(crate) number: u64,
}

/// What travels.
#[derive(Debug, Clone)]
pub(crate) enum Parcel {
    /// A message itself.
    Message(Message),
    /// The names of messages of a topic that can be had.
    Have(Vec<Message>),
    /// The names of messages that are wanted.
    Want(Vec<Message>),
}

/// One node's part.
pub(crate) struct Gossip {
    random: SimulatorRandom,
    known: HashSet<Message>,
    /// What came in each of the last heartbeats, the latest one first.
    kept: VecDeque<Vec<Message>>,
    /// What was asked for, and until when nobody else is.
    asked: HashMap<Message, u64>,
    heartbeat_ms: u64,
}

impl Gossip {
    pub(crate) fn new(now_ms: u64, seed: u64) -> Self {
        Self {
            random: SimulatorRandom::new(seed),
            known: HashSet::new(),
            kept: VecDeque::from([Vec::new()]),
            asked: HashMap::new(),
            heartbeat_ms: now_ms + HEARTBEAT_MS / 2,
        }
    }

    /// Returns when the next heartbeat is.
    pub(crate) fn wake_ms(&self) -> u64 {
        self.heartbeat_ms
    }

    /// Sends an own message to all peers; with none it is lost.
    pub(crate) fn publish(&mut self, message: Message, peers: &BTreeSet<usize>) -> Vec<(usize, Parcel)> {
        if !peers.is_empty() {
            self.keep(message);
        }
        peers.iter().map(|peer| (*peer, Parcel::Message(message))).collect()
    }

    /// Takes a message. Returns whether it is new.
    pub(crate) fn hear(&mut self, message: Message) -> bool {
        let is_new = !self.known.contains(&message);
        if is_new {
            self.keep(message);
            self.asked.remove(&message);
        }
        is_new
    }

    /// Returns which of these messages to ask for.
    pub(crate) fn wants(&mut self, now_ms: u64, names: Vec<Message>) -> Vec<Message> {
        let lacks = |name: &Message| !self.known.contains(name) && !self.asked.contains_key(name);
        let wanted: Vec<Message> = names.into_iter().filter(lacks).collect();
        self.asked.extend(wanted.iter().map(|name| (*name, now_ms + PATIENCE_MS)));
        wanted
    }

    /// Returns those of the wanted messages that are still kept.
    pub(crate) fn has(&self, names: Vec<Message>) -> Vec<Message> {
        names.into_iter().filter(|name| self.kept.iter().any(|kept| kept.contains(name))).collect()
    }

    /// Tells some peers what is new, where a heartbeat is due.
    pub(crate) fn tick(&mut self, now_ms: u64, peers: &BTreeSet<usize>) -> Vec<(usize, Parcel)> {
        if now_ms < self.heartbeat_ms {
            return Vec::new();
        }
        self.heartbeat_ms = now_ms + HEARTBEAT_MS;
        self.asked.retain(|_, until_ms| *until_ms > now_ms);
        let new = self.kept[0].clone();
        self.kept.push_front(Vec::new());
        self.kept.truncate(HEARTBEATS_KEPT);
        let mut parcels = Vec::new();
        for topic in [Topic::Presence, Topic::Capabilities, Topic::TaskBroadcast] {
            let names: Vec<Message> = new.iter().copied().filter(|message| message.topic == topic).collect();
            if !names.is_empty() {
                parcels.extend(self.some(peers).into_iter().map(|peer| (peer, Parcel::Have(names.clone()))));
            }
        }
        parcels
    }

    fn keep(&mut self, message: Message) {
        self.known.insert(message);
        self.kept[0].push(message);
    }

    fn some(&mut self, peers: &BTreeSet<usize>) -> Vec<usize> {
        let mut others: Vec<usize> = peers.iter().copied().collect();
        let told = PEERS_TOLD_MIN.max((SHARE_TOLD * others.len() as f64) as usize).min(others.len());
        (0..told).map(|_| others.swap_remove(self.random.index(others.len()))).collect()
    }
}

impl Parcel {
    /// Returns how many bytes it takes: presence and capabilities of about 400, names of 44, and the topic's own name.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Message(_) => 400,
            Self::Have(names) => 64 + names.len() * 44,
            Self::Want(names) => names.len() * 44,
        }
    }
}
