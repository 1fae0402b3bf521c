//! A node of the simulated swarm: a failure detector, the cadence of presence and capabilities, and gossip between them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;

use bombus_core::identity::{BootId, NodeId, NodeKey};
use bombus_core::liveness::{Detector, DetectorConfig, LivenessInput, LivenessOutput, PeerState};
use bombus_core::topics::cadence::{Cadence, CadenceConfig, CadenceInput, CadenceOutput};
use bombus_testkit::simulator::{Birth, Effect, Event, Machine, Network, Observed, Simulation};

/// To how many peers a message on a topic is passed on, as gossipsub does by default.
const GOSSIP_DEGREE: usize = 6;

/// What travels between the nodes.
#[derive(Debug, Clone)]
pub(crate) enum Packet {
    /// A datagram of the detector.
    Liveness(Vec<u8>),
    /// A message on a topic, by its author and number.
    Topic { author: usize, number: u64 },
}

/// What a test tells a node.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Watch(usize),
    Leave,
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
    /// A message on a topic has come for the first time.
    Told {
        author: usize,
    },
}

pub(crate) type Swarm = Simulation<Peer>;

pub(crate) struct Peer {
    detector: Detector,
    cadence: Option<Cadence>,
    ids: Rc<Vec<NodeId>>,
    index: usize,
    /// Each node has a clock of its own, that began at another time.
    clock_ms: u64,
    linked: BTreeSet<usize>,
    states: BTreeMap<usize, PeerState>,
    told: HashSet<(usize, u64)>,
    published: u64,
    wake_ms: [u64; 2],
}

impl Peer {
    pub(crate) fn new(birth: Birth, ids: Rc<Vec<NodeId>>, with_topics: bool) -> Self {
        let boot = BootId::new(birth.seed);
        let detector = Detector::new(&ids[birth.index], boot, DetectorConfig::default(), birth.seed);
        Self {
            detector,
            cadence: with_topics.then(|| Cadence::new(CadenceConfig::default(), birth.seed)),
            ids,
            index: birth.index,
            clock_ms: birth.seed % 1_000_000,
            linked: BTreeSet::new(),
            states: BTreeMap::new(),
            told: HashSet::new(),
            published: birth.seed,
            wake_ms: [u64::MAX; 2],
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

    fn liveness(&mut self, now_ms: u64, input: LivenessInput, effects: &mut Vec<Effect<Packet, Seen>>) {
        for output in self.detector.on(now_ms + self.clock_ms, input) {
            match output {
                LivenessOutput::Send { to, bytes } => match self.linked.iter().find(|peer| self.ids[**peer] == to) {
                    Some(peer) => effects.push(Effect::Send { to: *peer, message: Packet::Liveness(bytes) }),
                    None => effects.push(Effect::Dial(self.position(&to))),
                },
                LivenessOutput::State { peer, state, reason } => {
                    let peer = self.position(&peer);
                    self.states.insert(peer, state);
                    effects.push(Effect::Observe(Seen::State { peer, state, reason }));
                }
                LivenessOutput::SameIdentity { peer, .. } => effects.push(Effect::Observe(Seen::SameIdentity { peer })),
                LivenessOutput::WakeAt(at_ms) => self.wake_ms[0] = at_ms.saturating_sub(self.clock_ms),
            }
        }
    }

    fn cadence(&mut self, now_ms: u64, input: CadenceInput, effects: &mut Vec<Effect<Packet, Seen>>) {
        let Some(cadence) = &mut self.cadence else { return };
        for output in cadence.on(now_ms, input) {
            match output {
                CadenceOutput::PublishPresence | CadenceOutput::PublishCapabilities => {
                    self.published += 1;
                    let message = Packet::Topic { author: self.index, number: self.published };
                    self.pass_on(&message, None, effects);
                }
                CadenceOutput::WakeAt(at_ms) => self.wake_ms[1] = at_ms,
            }
        }
    }

    fn pass_on(&self, message: &Packet, from: Option<usize>, effects: &mut Vec<Effect<Packet, Seen>>) {
        // The neighbours on a mesh of random edges: by distance that grows with the number of the edge.
        let peers: Vec<usize> = self.linked.iter().copied().filter(|peer| Some(*peer) != from).collect();
        let step = (peers.len() / GOSSIP_DEGREE).max(1);
        let chosen = peers.iter().skip(self.index % step).step_by(step).take(GOSSIP_DEGREE);
        effects.extend(chosen.map(|peer| Effect::Send { to: *peer, message: message.clone() }));
    }

    fn position(&self, id: &NodeId) -> usize {
        self.ids.iter().position(|other| other == id).expect("the detector names nodes of the swarm only")
    }
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
                if now_ms >= self.wake_ms[0] {
                    self.liveness(now_ms, LivenessInput::Tick, &mut effects);
                }
                if now_ms >= self.wake_ms[1] {
                    self.cadence(now_ms, CadenceInput::Tick, &mut effects);
                }
            }
            Event::Message { from, message: Packet::Liveness(bytes) } => {
                let from = self.ids[from].clone();
                self.liveness(now_ms, LivenessInput::Datagram { from, bytes }, &mut effects);
            }
            Event::Message { from, message: Packet::Topic { author, number } } => {
                if author != self.index && self.told.insert((author, number)) {
                    effects.push(Effect::Observe(Seen::Told { author }));
                    self.pass_on(&Packet::Topic { author, number }, Some(from), &mut effects);
                }
            }
            Event::LinkUp(peer) => {
                self.linked.insert(peer);
                self.liveness(now_ms, LivenessInput::Connected(self.ids[peer].clone()), &mut effects);
                self.cadence(now_ms, CadenceInput::Nodes(self.alive().len() + 1), &mut effects);
                self.cadence(now_ms, CadenceInput::Joined, &mut effects);
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
                self.wake_ms[0] = u64::MAX;
            }
        }
        effects.push(Effect::WakeAt(self.wake_ms[0].min(self.wake_ms[1])));
        effects
    }

    fn size(message: &Packet) -> usize {
        match message {
            Packet::Liveness(bytes) => bytes.len(),
            Packet::Topic { .. } => 400,
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
