//! A node that answers and has others answer: the failure detector says who lives, offers say who is how busy, and placement chooses.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use bombus_core::identity::NodeId;
use bombus_core::liveness::PeerState;
use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
use bombus_core::placement::{Candidate, Need, Offer, Peer as PeerFacts, Ranked, rank};
use bombus_testkit::simulator::{Birth, Effect, Event, Machine, Network, Simulation};

use crate::peer::{self, Packet, Peer};

/// How often a worker tells its load at most, in milliseconds.
const TELL_EVERY_MS: u64 = 100;
/// How long a node waits for an answer, in milliseconds.
const PATIENCE_MS: u64 = 5_000;

/// What travels between the nodes.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// Of the failure detector.
    Liveness(Packet),
    /// How many requests run at the sender, and how many may.
    Load { running: u32, slots: u32 },
    /// A request with this number wants to be taken.
    Offer(u64),
    /// It was.
    Accepted(u64),
    /// It was not.
    Declined(u64),
    /// It has been answered.
    Done(u64),
}

/// What a test tells a node.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// Have this request answered.
    Ask(u64),
    /// Say goodbye, before the process ends.
    Leave,
}

/// What a node tells the test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A request was sent to a node.
    Chosen { worker: usize },
    /// Nobody could take a request.
    Refused,
    /// A request was answered.
    Answered,
}

pub(crate) type Routers = Simulation<Router>;

/// How a swarm of routers is made.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// How many requests each node may answer at a time; a node with 0 has no model.
    pub(crate) slots: Vec<u32>,
    /// How long an answer takes, in milliseconds.
    pub(crate) answer_ms: u64,
}

/// A request that a node has sent to another one.
struct Sent {
    at_ms: u64,
    worker: usize,
    /// What the worker tells of its load contains it.
    is_told: bool,
    accepted: bool,
    /// Who declined it.
    declined: BTreeSet<usize>,
}

pub(crate) struct Router {
    peer: Peer,
    peer_wake_ms: u64,
    ids: Rc<Vec<NodeId>>,
    lots: u64,
    linked: BTreeSet<usize>,
    slots: u32,
    answer_ms: u64,
    /// The requests that run here: when each ends, its number, and who asked.
    running: BTreeSet<(u64, u64, usize)>,
    told_ms: Option<u64>,
    changed: bool,
    /// What the others have told.
    loads: BTreeMap<usize, (u32, u32)>,
    sent: BTreeMap<u64, Sent>,
    info: Arc<ModelInfo>,
}

type Effects = Vec<Effect<Message, Seen>>;

impl Router {
    fn new(birth: Birth, ids: Rc<Vec<NodeId>>, shape: &Shape) -> Self {
        let capabilities = vec![ModelCapability::Completion];
        let named = ModelInfo::named(ModelName::parse("m").expect("a plain word is a model name"));
        Self {
            peer: Peer::new(birth, ids.clone(), false),
            peer_wake_ms: u64::MAX,
            ids,
            lots: birth.seed,
            linked: BTreeSet::new(),
            slots: shape.slots[birth.index],
            answer_ms: shape.answer_ms,
            running: BTreeSet::new(),
            told_ms: None,
            changed: true,
            loads: BTreeMap::new(),
            sent: BTreeMap::new(),
            info: Arc::new(ModelInfo { capabilities, warm: true, continues: true, ..named }),
        }
    }

    /// Returns what the node thinks of another one.
    pub(crate) fn state(&self, peer: usize) -> Option<PeerState> {
        self.peer.state(peer)
    }

    /// Judges all other nodes for a request.
    pub(crate) fn ranking(&self, declined: &BTreeSet<usize>) -> Vec<Ranked> {
        let candidates = self.loads.iter().filter(|(worker, _)| !declined.contains(worker));
        let candidates = candidates.map(|(worker, (running, slots))| {
            let state = self.peer.state(*worker);
            let mine = self.sent.values().filter(|sent| sent.worker == *worker && !sent.is_told).count();
            let facts = PeerFacts {
                reachable: self.linked.contains(worker) && state.is_some_and(|state| state != PeerState::Gone),
                suspect: state == Some(PeerState::Suspect),
                ..PeerFacts::new(self.ids[*worker].clone(), format!("node{worker}"))
            };
            let offer = Offer::Has { info: self.info.clone(), alias_of: None };
            Candidate {
                peer: Some(facts),
                running: running + u32::try_from(mine).expect("a test has few requests"),
                slots: Some(*slots),
                lot: lot(self.lots, *worker),
                ..Candidate::new(self.ids[*worker].to_string(), offer)
            }
        });
        rank(&Need::of([ModelCapability::Completion]), candidates.collect())
    }

    fn position(&self, id: &NodeId) -> usize {
        self.ids.iter().position(|other| other == id).expect("the candidates are nodes of the swarm")
    }

    fn ask(&mut self, now_ms: u64, number: u64, declined: BTreeSet<usize>, effects: &mut Effects) {
        let ranking = self.ranking(&declined);
        let best = ranking.first().filter(|best| best.score().is_some());
        let Some(worker) = best.and_then(|best| best.candidate.node()).map(|id| self.position(id)) else {
            effects.push(Effect::Observe(Seen::Refused));
            return;
        };
        self.sent.insert(number, Sent { at_ms: now_ms, worker, is_told: false, accepted: false, declined });
        effects.push(Effect::Observe(Seen::Chosen { worker }));
        effects.push(Effect::Send { to: worker, message: Message::Offer(number) });
    }

    fn hear(&mut self, now_ms: u64, from: usize, message: Message, effects: &mut Effects) {
        match message {
            Message::Liveness(packet) => {
                self.detector(now_ms, Event::Message { from, message: packet }, effects);
            }
            Message::Load { running, slots } => {
                self.loads.insert(from, (running, slots));
                for sent in self.sent.values_mut().filter(|sent| sent.worker == from) {
                    sent.is_told = sent.accepted;
                }
            }
            Message::Offer(number) => {
                let takes = self.running.len() < self.slots as usize;
                if takes {
                    self.running.insert((now_ms + self.answer_ms, number, from));
                    self.changed = true;
                }
                let message = if takes { Message::Accepted(number) } else { Message::Declined(number) };
                effects.push(Effect::Send { to: from, message });
            }
            Message::Accepted(number) => {
                if let Some(sent) = self.sent.get_mut(&number) {
                    sent.accepted = true;
                }
            }
            Message::Declined(number) => {
                if let Some(mut sent) = self.sent.remove(&number) {
                    sent.declined.insert(from);
                    self.ask(now_ms, number, sent.declined, effects);
                }
            }
            Message::Done(number) => {
                if self.sent.remove(&number).is_some() {
                    effects.push(Effect::Observe(Seen::Answered));
                }
            }
        }
    }

    /// Ends what has run for long enough, and tells the others how busy this node is where that is due.
    fn work(&mut self, now_ms: u64, effects: &mut Effects) {
        self.sent.retain(|_, sent| now_ms < sent.at_ms + PATIENCE_MS);
        while let Some((at_ms, number, from)) = self.running.first().copied().filter(|(at_ms, ..)| *at_ms <= now_ms) {
            self.running.remove(&(at_ms, number, from));
            self.changed = true;
            effects.push(Effect::Send { to: from, message: Message::Done(number) });
        }
        let due = self.told_ms.is_none_or(|told_ms| now_ms >= told_ms + TELL_EVERY_MS);
        if self.slots > 0 && self.changed && due {
            self.changed = false;
            self.told_ms = Some(now_ms);
            effects.extend(self.linked.iter().map(|peer| Effect::Send { to: *peer, message: self.load() }));
        }
    }

    fn load(&self) -> Message {
        let running = u32::try_from(self.running.len()).expect("slots are few");
        Message::Load { running, slots: self.slots }
    }

    fn detector(&mut self, now_ms: u64, event: Event<Packet, peer::Order>, effects: &mut Effects) {
        for effect in self.peer.on(now_ms, event) {
            match effect {
                Effect::Send { to, message } => effects.push(Effect::Send { to, message: Message::Liveness(message) }),
                Effect::Dial(to) => effects.push(Effect::Dial(to)),
                Effect::WakeAt(at_ms) => self.peer_wake_ms = at_ms,
                Effect::Observe(_) => {}
            }
        }
    }

    fn wake_ms(&self) -> u64 {
        let ends_ms = self.running.first().map_or(u64::MAX, |(at_ms, ..)| *at_ms);
        let tell_ms = match self.told_ms {
            Some(told_ms) if self.changed && self.slots > 0 => told_ms + TELL_EVERY_MS,
            _ => u64::MAX,
        };
        self.peer_wake_ms.min(ends_ms).min(tell_ms)
    }
}

/// Draws a lot for a peer, as each node does for itself.
fn lot(of: u64, worker: usize) -> u64 {
    let mixed = (of ^ (worker as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

impl Machine for Router {
    type Message = Message;
    type Command = Order;
    type Observation = Seen;

    fn on(&mut self, now_ms: u64, event: Event<Message, Order>) -> Effects {
        let mut effects = Vec::new();
        match event {
            Event::Start => self.detector(now_ms, Event::Start, &mut effects),
            Event::Wake => self.detector(now_ms, Event::Wake, &mut effects),
            Event::Message { from, message } => self.hear(now_ms, from, message, &mut effects),
            Event::LinkUp(peer) => {
                self.linked.insert(peer);
                self.detector(now_ms, Event::LinkUp(peer), &mut effects);
                // The other end may not know of the link yet, so it is told a moment later.
                (self.changed, self.told_ms) = (true, Some(now_ms));
            }
            Event::LinkDown(peer) => {
                self.linked.remove(&peer);
                self.loads.remove(&peer);
                self.sent.retain(|_, sent| sent.worker != peer);
                self.detector(now_ms, Event::LinkDown(peer), &mut effects);
            }
            Event::Command(Order::Ask(number)) => self.ask(now_ms, number, BTreeSet::new(), &mut effects),
            Event::Command(Order::Leave) => {
                self.detector(now_ms, Event::Command(peer::Order::Leave), &mut effects);
            }
        }
        self.work(now_ms, &mut effects);
        effects.push(Effect::WakeAt(self.wake_ms()));
        effects
    }
}

/// Makes a swarm of routers in which all are linked with all, and lets it settle.
pub(crate) fn routers(seed: u64, network: Network, shape: &Shape) -> Routers {
    let nodes = shape.slots.len();
    let ids = Rc::new((0..nodes).map(peer::id).collect::<Vec<_>>());
    let shape = shape.clone();
    let mut swarm = Simulation::new(seed, network, nodes, move |birth| Router::new(birth, ids.clone(), &shape));
    swarm.connect_all();
    swarm.run_until(5_000 + seed * 37 % 1_000);
    swarm.take_observed();
    swarm
}
