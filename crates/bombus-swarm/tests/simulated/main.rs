//! What nodes show of each other, in the simulated networks of `bombus-core`: its failure detector, cadence and gossip feed the [`View`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bombus_core::identity::{BootId, NodeId};
use bombus_core::liveness::PeerState;
use bombus_core::topics::{Capabilities, PresencePing, Timestamp, TopicMessage};
use bombus_swarm::{Link, Moment, PeerPath, View, ViewInput, ViewLimits};
use bombus_testkit::simulator::{Birth, Effect, Event, Machine, Network, Simulation, for_each_seed};

#[path = "../../../bombus-core/tests/simulated/gossip.rs"]
mod gossip;
#[expect(dead_code, reason = "the tests of the core use more of it")]
#[path = "../../../bombus-core/tests/simulated/peer.rs"]
mod peer;

use gossip::{Message, Topic};
use peer::{Order, Packet, Peer, Seen, trouble};

const NODES: usize = 100;
const TICK_MS: u64 = 1_000;
/// After so many ticks the view is told which links stand.
const TICKS_TO_LINKS: u64 = 5;
/// Longer than any node is silent on topics, so that the detector and the links alone decide.
const SILENT_AFTER_MS: u64 = 600_000;

/// A node with a view of the others.
struct Viewer {
    peer: Peer,
    view: View,
    ids: Rc<Vec<NodeId>>,
    /// When each message was written.
    written: Rc<RefCell<BTreeMap<Message, u64>>>,
    index: usize,
    links: BTreeSet<usize>,
    ticks: u64,
}

impl Viewer {
    fn new(birth: Birth, ids: Rc<Vec<NodeId>>, written: Rc<RefCell<BTreeMap<Message, u64>>>) -> Self {
        let (index, ticks) = (birth.index, birth.now_ms / TICK_MS);
        let view = View::new(ids[index].clone(), ViewLimits::default());
        let peer = Peer::new(birth, Rc::clone(&ids), true);
        Self { peer, view, ids, written, index, links: BTreeSet::new(), ticks }
    }

    fn tell(&mut self, now_ms: u64, input: ViewInput) {
        self.view.on(Moment { ms: now_ms, unix_ms: 1_700_000_000_000 + now_ms }, input);
    }

    fn path(peer: usize) -> PeerPath {
        PeerPath::Direct { addr: format!("/ip4/192.0.2.1/tcp/{peer}") }
    }

    /// Returns a message as it is on its topic. Each author has a clock of its own.
    fn read(&self, message: Message) -> Box<TopicMessage> {
        let written_ms = self.written.borrow()[&message] + 60_000 * message.author as u64;
        let timestamp = Timestamp::from_unix_ms(i64::try_from(written_ms).expect("the test is short"));
        let (node_id, name) = (self.ids[message.author].to_string(), format!("node{}", message.author));
        let boot = Some(BootId::new(message.number >> 32));
        Box::new(match message.topic {
            Topic::Capabilities => {
                let mut told = Capabilities::new(node_id, timestamp);
                (told.name, told.boot, told.models) = (Some(name), boot, vec![model(message)]);
                TopicMessage::Capabilities(told)
            }
            Topic::Presence | Topic::TaskBroadcast => {
                TopicMessage::PresencePing(PresencePing { node_id, name, timestamp, version: None, boot })
            }
        })
    }
}

/// Returns the model by which a message is known again.
fn model(message: Message) -> String {
    format!("model-{}", message.number)
}

impl Machine for Viewer {
    type Message = Packet;
    type Command = Order;
    type Observation = Seen;

    fn on(&mut self, now_ms: u64, event: Event<Packet, Order>) -> Vec<Effect<Packet, Seen>> {
        match &event {
            Event::LinkUp(peer) => {
                self.links.insert(*peer);
                let connected = ViewInput::Connected { peer: self.ids[*peer].clone(), path: Self::path(*peer) };
                self.tell(now_ms, connected);
            }
            Event::LinkDown(peer) => {
                self.links.remove(peer);
                self.tell(now_ms, ViewInput::Disconnected { peer: self.ids[*peer].clone() });
            }
            Event::Message { from, message: Packet::Hello(hello) } => {
                let (peer, message) = (self.ids[*from].clone(), self.read(*hello));
                self.tell(now_ms, ViewInput::Hello { peer, message, skew_ms: None });
            }
            Event::Message { from, message: Packet::Liveness(_) } => {
                self.tell(now_ms, ViewInput::Heard { peer: self.ids[*from].clone() });
            }
            _ => {}
        }
        let mut effects = self.peer.on(now_ms, event);
        for effect in &effects {
            match effect {
                Effect::Observe(Seen::State { peer, state, reason }) => {
                    self.tell(now_ms, ViewInput::Judged { peer: self.ids[*peer].clone(), state: *state, reason });
                }
                Effect::Observe(Seen::Told(told)) if told.author == self.index => {
                    self.written.borrow_mut().insert(*told, now_ms);
                }
                Effect::Observe(Seen::Told(told)) => {
                    let (peer, message) = (self.ids[told.author].clone(), self.read(*told));
                    self.tell(now_ms, ViewInput::Message { peer, message, skew_ms: None });
                }
                _ => {}
            }
        }
        if now_ms / TICK_MS > self.ticks {
            self.ticks = now_ms / TICK_MS;
            if self.ticks.is_multiple_of(TICKS_TO_LINKS) {
                let link =
                    |peer: &usize| Link { peer: self.ids[*peer].clone(), path: Self::path(*peer), latency_ms: None };
                let links = self.links.iter().map(link).collect();
                self.tell(now_ms, ViewInput::Links(links));
            }
            self.tell(now_ms, ViewInput::Tick { silent_after_ms: SILENT_AFTER_MS });
        }
        let next_tick_ms = (self.ticks + 1) * TICK_MS;
        for effect in &mut effects {
            if let Effect::WakeAt(at_ms) = effect {
                *at_ms = next_tick_ms.min(*at_ms);
            }
        }
        effects
    }
}

/// Asserts that each node that runs shows exactly the others that run as alive, each with its name and what it told last.
fn assert_shown(swarm: &Simulation<Viewer>) {
    let there: BTreeSet<usize> = swarm.nodes().map(|(index, _)| index).collect();
    for (index, node) in swarm.nodes() {
        for other in (0..NODES).filter(|other| *other != index) {
            let shown = node.view.peer(&node.ids[other]);
            let state = shown.as_ref().map_or(PeerState::Gone, |shown| shown.state);
            let wanted = if there.contains(&other) { PeerState::Alive } else { PeerState::Gone };
            assert_eq!(state, wanted, "at {} ms node {index} shows {other}: {shown:?}", swarm.now_ms());
            if let Some(shown) = shown.filter(|_| there.contains(&other)) {
                let told = node.peer.capabilities(other).expect("it was heard of");
                assert_eq!(
                    (shown.name, shown.models),
                    (format!("node{other}"), vec![model(told)]),
                    "{index} of {other}"
                );
            }
        }
    }
}

#[test]
fn a_hundred_nodes_show_the_same_after_loss_delays_partitions_and_churn() {
    for_each_seed(0..2, |seed| {
        let ids: Rc<Vec<NodeId>> = Rc::new((0..NODES).map(peer::id).collect());
        let network = Network { broken_after_ms: Some(15_000), ..Network::rough(0.05, 300) };
        let written = Rc::default();
        let viewer = move |birth| Viewer::new(birth, Rc::clone(&ids), Rc::clone(&written));
        let mut swarm = Simulation::new(seed, network, NODES, viewer);
        swarm.connect_all();
        swarm.run_for(15_000);
        trouble(&mut swarm, NODES, 25);
        // Capabilities are told anew every 300 s among a hundred nodes, so what was lost with the network comes with them. Who was restarted and
        // then heard an old message of one that is gone gives it up when it has been silent for long.
        swarm.set_network(Network::lan());
        swarm.run_for(SILENT_AFTER_MS + 60_000);
        assert_shown(&swarm);
    });
}
