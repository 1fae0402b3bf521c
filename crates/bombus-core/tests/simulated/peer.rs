//! A node of the simulated swarm: a failure detector, the cadence of presence and capabilities, and gossip between them.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bombus_core::identity::{BootId, NodeId, NodeKey};
use bombus_core::liveness::{Detector, DetectorConfig, LivenessInput, LivenessOutput, PeerState};
use bombus_core::topics::cadence::{Cadence, CadenceConfig, CadenceInput, CadenceOutput};
use bombus_testkit::simulator::{Birth, Effect, Event, Machine, Network, Observed, Simulation};

use crate::gossip::{Gossip, Message, Parcel, Topic};

/// To how many peers a node keeps connections: `NetConfig::mesh_max`.
pub(crate) const MESH_MAX: usize = 32;

/// What travels between the nodes.
#[derive(Debug, Clone)]
pub(crate) enum Packet {
    /// A datagram of the detector.
    Liveness(Vec<u8>),
    /// What has to do with messages on topics.
    Gossip(Parcel),
    /// The first word to a new neighbour: the capabilities that the sender told last.
    Hello(Message),
}

/// What a test tells a node.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Watch(usize),
    Leave,
    /// Publish a `task_broadcast`.
    Publish,
}

/// What a node tells the test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    State {
        peer: usize,
        state: PeerState,
        reason: &'static str,
    },
    SameIdentity {
        peer: NodeId,
    },
    /// A message on a topic was published, or has come for the first time.
    Told(Message),
}

pub(crate) type Swarm = Simulation<Peer>;

pub(crate) struct Peer {
    detector: Detector,
    topics: Option<Topics>,
    ids: Rc<Vec<NodeId>>,
    index: usize,
    /// Each node has a clock of its own, that began at another time.
    clock_ms: u64,
    linked: BTreeSet<usize>,
    states: BTreeMap<usize, PeerState>,
    wake_ms: u64,
}

/// What a node says and hears on topics.
struct Topics {
    cadence: Cadence,
    cadence_ms: u64,
    gossip: Gossip,
    /// The last message that was published.
    number: u64,
    /// The capabilities that each node told last, as far as they came here; this node's own, too.
    capabilities: BTreeMap<usize, Message>,
}

impl Peer {
    pub(crate) fn new(birth: Birth, ids: Rc<Vec<NodeId>>, with_topics: bool) -> Self {
        let boot = BootId::new(birth.seed);
        let detector = Detector::new(&ids[birth.index], boot, DetectorConfig::default(), birth.seed);
        Self {
            detector,
            topics: with_topics.then(|| Topics::new(birth)),
            ids,
            index: birth.index,
            clock_ms: birth.seed % 1_000_000,
            linked: BTreeSet::new(),
            states: BTreeMap::new(),
            wake_ms: u64::MAX,
        }
    }

    /// Returns a peer's state as it was told.
    pub(crate) fn state(&self, peer: usize) -> Option<PeerState> {
        self.states.get(&peer).copied()
    }

    /// Returns those that count as alive.
    pub(crate) fn alive(&self) -> BTreeSet<usize> {
        self.states.iter().filter(|(_, state)| **state == PeerState::Alive).map(|(peer, _)| *peer).collect()
    }

    /// Returns the capabilities that a node told last, as far as they came here.
    pub(crate) fn capabilities(&self, of: usize) -> Option<Message> {
        self.topics.as_ref()?.capabilities.get(&of).copied()
    }

    fn liveness(&mut self, now_ms: u64, input: LivenessInput, effects: &mut Vec<Effect<Packet, Seen>>) {
        let mut resized = false;
        for output in self.detector.on(now_ms + self.clock_ms, input) {
            match output {
                LivenessOutput::Send { to, bytes } => match self.linked.iter().find(|peer| self.ids[**peer] == to) {
                    Some(peer) => effects.push(Effect::Send { to: *peer, message: Packet::Liveness(bytes) }),
                    None => effects.push(Effect::Dial(self.position(&to))),
                },
                LivenessOutput::State { peer, state, reason } => {
                    let peer = self.position(&peer);
                    resized |= self.states.insert(peer, state) != Some(state);
                    effects.push(Effect::Observe(Seen::State { peer, state, reason }));
                }
                LivenessOutput::SameIdentity { peer, .. } => effects.push(Effect::Observe(Seen::SameIdentity { peer })),
                LivenessOutput::WakeAt(at_ms) => self.wake_ms = at_ms.saturating_sub(self.clock_ms),
            }
        }
        if resized {
            self.cadence(now_ms, CadenceInput::Nodes(self.alive().len() + 1), effects);
        }
    }

    fn cadence(&mut self, now_ms: u64, input: CadenceInput, effects: &mut Vec<Effect<Packet, Seen>>) {
        let Some(topics) = &mut self.topics else { return };
        for output in topics.cadence.on(now_ms, input) {
            match output {
                CadenceOutput::PublishPresence => topics.publish(self.index, Topic::Presence, &self.linked, effects),
                CadenceOutput::PublishCapabilities => {
                    topics.publish(self.index, Topic::Capabilities, &self.linked, effects);
                }
                CadenceOutput::WakeAt(at_ms) => topics.cadence_ms = at_ms,
            }
        }
    }

    fn position(&self, id: &NodeId) -> usize {
        self.ids.iter().position(|other| other == id).expect("the detector names nodes of the swarm only")
    }
}

impl Topics {
    fn new(birth: Birth) -> Self {
        Self {
            cadence: Cadence::new(CadenceConfig::default(), birth.seed),
            cadence_ms: u64::MAX,
            gossip: Gossip::new(birth.now_ms, birth.seed),
            // Timestamps do so for real nodes: what a run says is newer than what those before it said.
            number: u64::from(birth.run) << 32,
            capabilities: BTreeMap::new(),
        }
    }

    fn wake_ms(&self) -> u64 {
        self.cadence_ms.min(self.gossip.wake_ms())
    }

    fn publish(
        &mut self,
        author: usize,
        topic: Topic,
        peers: &BTreeSet<usize>,
        effects: &mut Vec<Effect<Packet, Seen>>,
    ) {
        self.number += 1;
        let message = Message { topic, author, number: self.number };
        self.note(message);
        effects.push(Effect::Observe(Seen::Told(message)));
        effects.extend(self.gossip.publish(message, peers).into_iter().map(send));
    }

    fn hear(&mut self, now_ms: u64, from: usize, parcel: Parcel, effects: &mut Vec<Effect<Packet, Seen>>) {
        match parcel {
            Parcel::Message(message) => {
                if self.gossip.hear(message) {
                    self.note(message);
                    effects.push(Effect::Observe(Seen::Told(message)));
                }
            }
            Parcel::Have(names) => {
                let wanted = self.gossip.wants(now_ms, names);
                if !wanted.is_empty() {
                    effects.push(send((from, Parcel::Want(wanted))));
                }
            }
            Parcel::Want(names) => {
                let found = self.gossip.has(names).into_iter();
                effects.extend(found.map(|message| send((from, Parcel::Message(message)))));
            }
        }
    }

    fn note(&mut self, message: Message) {
        if message.topic == Topic::Capabilities {
            let latest = self.capabilities.entry(message.author).or_insert(message);
            *latest = message.max(*latest);
        }
    }
}

fn send((to, parcel): (usize, Parcel)) -> Effect<Packet, Seen> {
    Effect::Send { to, message: Packet::Gossip(parcel) }
}

impl Machine for Peer {
    type Message = Packet;
    type Command = Order;
    type Observation = Seen;

    fn on(&mut self, now_ms: u64, event: Event<Packet, Order>) -> Vec<Effect<Packet, Seen>> {
        let mut effects = Vec::new();
        match event {
            Event::Start => {
                self.liveness(now_ms, LivenessInput::Tick, &mut effects);
                self.cadence(now_ms, CadenceInput::Tick, &mut effects);
            }
            Event::Wake => {
                if now_ms >= self.wake_ms {
                    self.liveness(now_ms, LivenessInput::Tick, &mut effects);
                }
                if self.topics.as_ref().is_some_and(|topics| now_ms >= topics.cadence_ms) {
                    self.cadence(now_ms, CadenceInput::Tick, &mut effects);
                }
                if let Some(topics) = &mut self.topics {
                    effects.extend(topics.gossip.tick(now_ms, &self.linked).into_iter().map(send));
                }
            }
            Event::Message { from, message: Packet::Liveness(bytes) } => {
                let from = self.ids[from].clone();
                self.liveness(now_ms, LivenessInput::Datagram { from, bytes }, &mut effects);
            }
            Event::Message { from, message: Packet::Gossip(parcel) } => {
                if let Some(topics) = &mut self.topics {
                    topics.hear(now_ms, from, parcel, &mut effects);
                }
            }
            Event::Message { from: _, message: Packet::Hello(message) } => {
                if let Some(topics) = &mut self.topics {
                    topics.note(message);
                }
            }
            Event::LinkUp(peer) => {
                self.linked.insert(peer);
                self.liveness(now_ms, LivenessInput::Connected(self.ids[peer].clone()), &mut effects);
                if let Some(own) = self.capabilities(self.index) {
                    effects.push(Effect::Send { to: peer, message: Packet::Hello(own) });
                }
            }
            Event::LinkDown(peer) => {
                self.linked.remove(&peer);
                // Another node may have the same identity.
                if !self.linked.iter().any(|other| self.ids[*other] == self.ids[peer]) {
                    self.liveness(now_ms, LivenessInput::Disconnected(self.ids[peer].clone()), &mut effects);
                }
            }
            Event::Command(Order::Watch(peer)) => {
                self.liveness(now_ms, LivenessInput::Watch(self.ids[peer].clone()), &mut effects);
            }
            Event::Command(Order::Leave) => {
                self.liveness(now_ms, LivenessInput::Leave, &mut effects);
                self.wake_ms = u64::MAX;
            }
            Event::Command(Order::Publish) => {
                if let Some(topics) = &mut self.topics {
                    topics.publish(self.index, Topic::TaskBroadcast, &self.linked, &mut effects);
                }
            }
        }
        let topics_ms = self.topics.as_ref().map_or(u64::MAX, Topics::wake_ms);
        effects.push(Effect::WakeAt(self.wake_ms.min(topics_ms)));
        effects
    }

    fn size(message: &Packet) -> usize {
        match message {
            Packet::Liveness(bytes) => bytes.len(),
            Packet::Gossip(parcel) => parcel.size(),
            Packet::Hello(message) => Parcel::Message(*message).size(),
        }
    }
}

/// Returns the id of the node with this index: of the same nodes in every run.
pub(crate) fn id(index: usize) -> NodeId {
    let mut secret = [3; 32];
    secret[..8].copy_from_slice(&(index as u64).to_le_bytes());
    NodeKey::from_secret(&secret).node_id()
}

/// Makes a swarm of detectors, not yet linked.
pub(crate) fn detectors(seed: u64, network: Network, nodes: usize) -> Swarm {
    of_ids(seed, network, (0..nodes).map(id).collect(), false)
}

/// Makes a swarm of detectors that publish on topics too, not yet linked.
pub(crate) fn with_topics(seed: u64, network: Network, nodes: usize) -> Swarm {
    of_ids(seed, network, (0..nodes).map(id).collect(), true)
}

/// Makes a swarm of nodes with these identities.
pub(crate) fn of_ids(seed: u64, network: Network, ids: Vec<NodeId>, with_topics: bool) -> Swarm {
    let nodes = ids.len();
    let ids = Rc::new(ids);
    Simulation::new(seed, network, nodes, move |birth| Peer::new(birth, Rc::clone(&ids), with_topics))
}

/// Links nodes as they do themselves: each with all others, or where they are more than that with [`MESH_MAX`] of them.
pub(crate) fn connect_mesh(swarm: &mut Swarm, nodes: usize) {
    let mut links = vec![0; nodes];
    for node in 0..nodes {
        let mut others: Vec<usize> = (node + 1..nodes).collect();
        while links[node] < MESH_MAX && !others.is_empty() {
            let other = others.swap_remove(swarm.random().index(others.len()));
            if links[other] < MESH_MAX {
                swarm.connect(node, other);
                links[node] += 1;
                links[other] += 1;
            }
        }
    }
}

/// Lets random things happen for a while: crashes, pauses, restarts, partitions. In the end who sleeps wakes, and the network
/// is whole.
pub(crate) fn trouble<M: Machine>(swarm: &mut Simulation<M>, nodes: usize, rounds: usize) {
    for _ in 0..rounds {
        let node = swarm.random().index(nodes);
        match swarm.random().index(7) {
            0 => swarm.kill(node),
            1 => swarm.pause(node),
            2 => swarm.resume(node),
            3 | 4 => swarm.restart(node),
            5 => {
                let part: Vec<usize> = (0..nodes).filter(|_| swarm.random().chance(0.4)).collect();
                swarm.partition(&[&[], &part]);
            }
            _ => swarm.heal(),
        }
        let wait_ms = swarm.random().within(&(0..=5_000));
        swarm.run_for(wait_ms);
    }
    swarm.heal();
    for node in 0..nodes {
        swarm.resume(node);
    }
}

/// Makes a swarm in which all are linked with all, and lets it settle for a while that depends on the seed.
pub(crate) fn settled(seed: u64, network: Network, nodes: usize) -> Swarm {
    let mut swarm = detectors(seed, network, nodes);
    swarm.connect_all();
    swarm.run_until(5_000 + seed * 37 % 1_000);
    swarm.take_observed();
    swarm
}

/// Returns when each node first told that a peer is in one of these states.
pub(crate) fn first_told(observed: &[Observed<Seen>], peer: usize, states: &[PeerState]) -> BTreeMap<usize, u64> {
    let mut first = BTreeMap::new();
    for seen in observed {
        if let Seen::State { peer: about, state, .. } = &seen.what
            && *about == peer
            && states.contains(state)
        {
            first.entry(seen.node).or_insert(seen.at_ms);
        }
    }
    first
}

/// Returns what was told about states of this kind, for messages of failed tests.
pub(crate) fn told_of(observed: &[Observed<Seen>], wanted: PeerState) -> Vec<String> {
    let text = |seen: &Observed<Seen>| match &seen.what {
        Seen::State { peer, state, reason } if *state == wanted => {
            Some(format!("{} ms: node {} says of {peer}: {state:?}, {reason}", seen.at_ms, seen.node))
        }
        _ => None,
    };
    observed.iter().filter_map(text).collect()
}
