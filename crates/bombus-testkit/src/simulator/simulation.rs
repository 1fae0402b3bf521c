//! The simulated swarm: nodes, links, and a queue of what happens when.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use super::{Effect, Event, Machine, Network, SimulatorRandom};

/// Nodes and the network between them, at a moment of virtual time.
pub struct Simulation<M: Machine> {
    now_ms: u64,
    random: SimulatorRandom,
    network: Network,
    nodes: Vec<Node<M>>,
    make: Box<dyn FnMut(Birth) -> M>,
    queue: BinaryHeap<Reverse<Due>>,
    happenings: BTreeMap<u64, Happening<M>>,
    sequence: u64,
    /// How much has happened since time last went on.
    standstill: u64,
    /// The side of a partition that each node is on.
    sides: Vec<usize>,
    /// Pairs between which nothing gets through, the smaller index first.
    blocked: BTreeSet<(usize, usize)>,
    /// Pairs that are linked again when both are there and reach each other, the smaller index first.
    wanted: BTreeSet<(usize, usize)>,
    /// When the last message of a link arrives, in one direction; for links that keep the order.
    last_ms: BTreeMap<(usize, usize), u64>,
    observed: Vec<Observed<M::Observation>>,
}

/// A process that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    /// The node's index.
    pub index: usize,
    /// How often its process has begun before.
    pub run: u32,
    /// Random bits of its own.
    pub seed: u64,
    /// When, in milliseconds.
    pub now_ms: u64,
}

/// What a node told the test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed<O> {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// Who.
    pub node: usize,
    /// What.
    pub what: O,
}

/// What a node has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages sent.
    pub messages: u64,
    /// Bytes sent.
    pub bytes: u64,
}

struct Node<M: Machine> {
    /// `None` while it is not running.
    machine: Option<M>,
    runs: u32,
    paused: bool,
    /// What came while it was paused.
    inbox: VecDeque<Happening<M>>,
    /// When it wants to be woken.
    wake_ms: Option<u64>,
    /// When that is looked at next.
    armed_ms: Option<u64>,
    /// The peers that it takes itself to be linked with, and by which link.
    links: BTreeMap<usize, u64>,
    traffic: Traffic,
}

enum Happening<M: Machine> {
    Start {
        node: usize,
    },
    Wake {
        node: usize,
    },
    Message {
        from: usize,
        to: usize,
        link: u64,
        message: M::Message,
    },
    LinkUp {
        node: usize,
        peer: usize,
        link: u64,
        run: u32,
    },
    LinkDown {
        node: usize,
        peer: usize,
        link: u64,
    },
    /// A dial arrives.
    Dialled {
        from: usize,
        to: usize,
    },
    /// It is time to see whether the pair can be linked.
    Relink {
        a: usize,
        b: usize,
    },
    /// It is time to see whether there is still no way through between the two.
    Break {
        a: usize,
        b: usize,
    },
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at_ms: u64,
    sequence: u64,
}

/// What can happen at one moment, before it counts as an endless loop.
const STANDSTILL_MAX: u64 = 1_000_000;

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl<M: Machine> Simulation<M> {
    /// Begins at time 0 with so many running nodes and no links. `make` makes the machine of each process that begins.
    pub fn new(seed: u64, network: Network, nodes: usize, make: impl FnMut(Birth) -> M + 'static) -> Self {
        let mut simulation = Self {
            now_ms: 0,
            random: SimulatorRandom::new(seed),
            network,
            nodes: Vec::new(),
            make: Box::new(make),
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            sequence: 0,
            standstill: 0,
            sides: Vec::new(),
            blocked: BTreeSet::new(),
            wanted: BTreeSet::new(),
            last_ms: BTreeMap::new(),
            observed: Vec::new(),
        };
        for _ in 0..nodes {
            simulation.add();
        }
        simulation
    }

    /// Adds a running node and returns its index.
    pub fn add(&mut self) -> usize {
        let index = self.nodes.len();
        self.nodes.push(Node {
            machine: None,
            runs: 0,
            paused: false,
            inbox: VecDeque::new(),
            wake_ms: None,
            armed_ms: None,
            links: BTreeMap::new(),
            traffic: Traffic::default(),
        });
        self.sides.push(0);
        self.begin(index);
        index
    }

    /// Returns the virtual time in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Returns the source of chance, for tests that choose.
    pub fn random(&mut self) -> &mut SimulatorRandom {
        &mut self.random
    }

    /// Changes how links behave from now on.
    pub fn set_network(&mut self, network: Network) {
        self.network = network;
    }

    /// Returns a node's machine; `None` while it does not run.
    pub fn node(&self, index: usize) -> Option<&M> {
        self.nodes[index].machine.as_ref()
    }

    /// Returns the machines of the nodes that run, those that are paused too.
    pub fn nodes(&self) -> impl Iterator<Item = (usize, &M)> {
        self.nodes.iter().enumerate().filter_map(|(index, node)| Some((index, node.machine.as_ref()?)))
    }

    /// Returns what a node has sent since it was added.
    pub fn traffic(&self, index: usize) -> Traffic {
        self.nodes[index].traffic
    }

    /// Takes what nodes told since it was taken last.
    pub fn take_observed(&mut self) -> Vec<Observed<M::Observation>> {
        std::mem::take(&mut self.observed)
    }

    /// Wants a link between two nodes: now, and again whenever it was lost and both are there.
    pub fn connect(&mut self, a: usize, b: usize) {
        if a != b && self.wanted.insert(pair(a, b)) {
            self.relink_soon(a, b);
        }
    }

    /// Wants links between all nodes.
    pub fn connect_all(&mut self) {
        for a in 0..self.nodes.len() {
            for b in 0..a {
                self.connect(a, b);
            }
        }
    }

    /// Ends a node's process at once. Those linked with it notice, where a message from its machine gets through.
    pub fn kill(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.machine = None;
        node.paused = false;
        node.inbox.clear();
        node.wake_ms = None;
        node.armed_ms = None;
        let links = std::mem::take(&mut node.links);
        for (peer, link) in links {
            if self.reach(index, peer) {
                self.after_delay(Happening::LinkDown { node: peer, peer: index, link });
            } else {
                // Nothing tells the peer until there is a way through again.
                self.at(self.now_ms + 1_000, Happening::Break { a: peer, b: index });
            }
        }
    }

    /// Begins a node's process anew.
    pub fn restart(&mut self, index: usize) {
        self.kill(index);
        self.begin(index);
        self.relink_all_of(index);
    }

    /// Stops a node in its tracks, as SIGSTOP does: its links stand, and nobody is told.
    pub fn pause(&mut self, index: usize) {
        self.nodes[index].paused = true;
    }

    /// Lets a paused node go on. What came meanwhile comes now.
    pub fn resume(&mut self, index: usize) {
        if !std::mem::take(&mut self.nodes[index].paused) {
            return;
        }
        for happening in std::mem::take(&mut self.nodes[index].inbox) {
            self.at(self.now_ms, happening);
        }
        self.relink_all_of(index);
    }

    /// Lets nothing through between these groups; who is in none of them is with the first.
    pub fn partition(&mut self, groups: &[&[usize]]) {
        self.sides.fill(0);
        for (side, group) in groups.iter().enumerate() {
            for index in *group {
                self.sides[*index] = side;
            }
        }
        self.watch_breaks();
    }

    /// Cuts one node off from all others.
    pub fn cut(&mut self, index: usize) {
        self.sides[index] = usize::MAX - index;
        self.watch_breaks();
    }

    /// Lets everything through again.
    pub fn heal(&mut self) {
        self.sides.fill(0);
        self.blocked.clear();
        for (a, b) in self.wanted.clone() {
            self.relink_soon(a, b);
        }
    }

    /// Lets nothing through between two nodes, and breaks their link.
    pub fn block(&mut self, a: usize, b: usize) {
        self.blocked.insert(pair(a, b));
        self.break_link(a, b);
    }

    /// Lets nothing through between two nodes, whose link stands all the same.
    pub fn swallow(&mut self, a: usize, b: usize) {
        self.blocked.insert(pair(a, b));
    }

    /// Closes the link of two nodes, which is made again soon where it is wanted.
    pub fn break_link(&mut self, a: usize, b: usize) {
        for (node, peer) in [(a, b), (b, a)] {
            if let Some(link) = self.nodes[node].links.get(&peer).copied() {
                self.after_delay(Happening::LinkDown { node, peer, link });
            }
        }
        if self.wanted.contains(&pair(a, b)) {
            self.at(self.now_ms + 1_000, Happening::Relink { a, b });
        }
    }

    /// Tells a node something; lost on one that does not run or is paused.
    pub fn command(&mut self, index: usize, command: M::Command) {
        if !self.nodes[index].paused {
            self.give(index, Event::Command(command));
        }
    }

    /// Lets time pass until `until_ms`.
    pub fn run_until(&mut self, until_ms: u64) {
        while self.queue.peek().is_some_and(|Reverse(due)| due.at_ms <= until_ms) {
            self.step();
        }
        self.now_ms = self.now_ms.max(until_ms);
    }

    /// Lets so much time pass.
    pub fn run_for(&mut self, ms: u64) {
        self.run_until(self.now_ms + ms);
    }

    /// Lets the next thing happen. Returns false where nothing is left to happen.
    ///
    /// # Panics
    ///
    /// Panics where time stands still, for example since a machine wants to be woken at a time that has passed.
    pub fn step(&mut self) -> bool {
        let Some(Reverse(due)) = self.queue.pop() else {
            return false;
        };
        self.standstill = if due.at_ms > self.now_ms { 0 } else { self.standstill + 1 };
        assert!(self.standstill < STANDSTILL_MAX, "so much happens at {} ms that time stands still", self.now_ms);
        self.now_ms = self.now_ms.max(due.at_ms);
        if let Some(happening) = self.happenings.remove(&due.sequence) {
            self.happen(happening);
        }
        true
    }

    fn begin(&mut self, index: usize) {
        let birth = Birth { index, run: self.nodes[index].runs, seed: self.random.next_u64(), now_ms: self.now_ms };
        let machine = (self.make)(birth);
        let node = &mut self.nodes[index];
        node.machine = Some(machine);
        node.runs += 1;
        self.at(self.now_ms, Happening::Start { node: index });
    }

    fn at(&mut self, at_ms: u64, happening: Happening<M>) {
        self.sequence += 1;
        self.queue.push(Reverse(Due { at_ms: at_ms.max(self.now_ms), sequence: self.sequence }));
        self.happenings.insert(self.sequence, happening);
    }

    fn after_delay(&mut self, happening: Happening<M>) {
        let delay_ms = self.random.within(&self.network.delay_ms.clone());
        self.at(self.now_ms + delay_ms, happening);
    }

    fn reach(&self, a: usize, b: usize) -> bool {
        self.sides[a] == self.sides[b] && !self.blocked.contains(&pair(a, b))
    }

    fn runs(&self, index: usize) -> bool {
        self.nodes[index].machine.is_some() && !self.nodes[index].paused
    }

    fn relink_soon(&mut self, a: usize, b: usize) {
        self.after_delay(Happening::Relink { a, b });
    }

    fn relink_all_of(&mut self, index: usize) {
        for (a, b) in self.wanted.clone() {
            if a == index || b == index {
                self.relink_soon(a, b);
            }
        }
    }

    fn watch_breaks(&mut self) {
        let Some(after_ms) = self.network.broken_after_ms else {
            return;
        };
        for a in 0..self.nodes.len() {
            for b in 0..a {
                if !self.reach(a, b) {
                    self.at(self.now_ms + after_ms, Happening::Break { a, b });
                }
            }
        }
    }

    fn happen(&mut self, happening: Happening<M>) {
        let node = match &happening {
            Happening::Start { node } | Happening::Wake { node } => *node,
            Happening::Message { to, .. } => *to,
            Happening::LinkUp { node, .. } | Happening::LinkDown { node, .. } => *node,
            Happening::Dialled { from, to } => return self.dialled(*from, *to),
            Happening::Relink { a, b } => return self.relink(*a, *b),
            Happening::Break { a, b } => return self.break_if_cut(*a, *b),
        };
        if self.nodes[node].paused {
            self.nodes[node].inbox.push_back(happening);
            return;
        }
        match happening {
            Happening::Start { node } => self.give(node, Event::Start),
            Happening::Wake { node } => {
                self.nodes[node].armed_ms = None;
                match self.nodes[node].wake_ms {
                    Some(wake_ms) if wake_ms <= self.now_ms => {
                        self.nodes[node].wake_ms = None;
                        self.give(node, Event::Wake);
                    }
                    Some(wake_ms) => self.arm(node, wake_ms),
                    None => {}
                }
            }
            Happening::Message { from, to, link, message } => {
                if self.nodes[to].links.get(&from) == Some(&link) {
                    self.give(to, Event::Message { from, message });
                }
            }
            Happening::LinkUp { node, peer, link, run } => {
                let now = &mut self.nodes[node];
                if now.runs == run && now.machine.is_some() && now.links.get(&peer).is_none_or(|other| *other < link) {
                    now.links.insert(peer, link);
                    self.give(node, Event::LinkUp(peer));
                }
            }
            Happening::LinkDown { node, peer, link } => {
                if self.nodes[node].links.get(&peer) == Some(&link) {
                    self.nodes[node].links.remove(&peer);
                    self.give(node, Event::LinkDown(peer));
                }
            }
            Happening::Dialled { .. } | Happening::Relink { .. } | Happening::Break { .. } => {}
        }
    }

    fn dialled(&mut self, from: usize, to: usize) {
        if self.runs(from) && self.runs(to) && self.reach(from, to) && !self.linked(from, to) {
            self.link(from, to);
        }
    }

    fn relink(&mut self, a: usize, b: usize) {
        if self.linked(a, b) || self.nodes[a].machine.is_none() || self.nodes[b].machine.is_none() {
            return;
        }
        if self.runs(a) && self.runs(b) && self.reach(a, b) {
            self.link(a, b);
        } else if self.reach(a, b) {
            self.at(self.now_ms + 1_000, Happening::Relink { a, b });
        }
    }

    /// Returns whether both ends hold the same link.
    fn linked(&self, a: usize, b: usize) -> bool {
        let link = self.nodes[a].links.get(&b);
        link.is_some() && link == self.nodes[b].links.get(&a)
    }

    fn link(&mut self, a: usize, b: usize) {
        self.sequence += 1;
        let link = self.sequence;
        for (node, peer) in [(a, b), (b, a)] {
            let run = self.nodes[node].runs;
            self.after_delay(Happening::LinkUp { node, peer, link, run });
        }
    }

    fn break_if_cut(&mut self, a: usize, b: usize) {
        let gone = self.nodes[a].machine.is_none() || self.nodes[b].machine.is_none();
        if self.reach(a, b) && !gone {
            return;
        }
        if !self.reach(a, b) && gone && self.network.broken_after_ms.is_none() {
            self.at(self.now_ms + 1_000, Happening::Break { a, b });
            return;
        }
        for (node, peer) in [(a, b), (b, a)] {
            if let Some(link) = self.nodes[node].links.get(&peer).copied() {
                self.at(self.now_ms, Happening::LinkDown { node, peer, link });
            }
        }
    }

    fn give(&mut self, index: usize, event: Event<M::Message, M::Command>) {
        let now_ms = self.now_ms;
        let Some(machine) = &mut self.nodes[index].machine else {
            return;
        };
        for effect in machine.on(now_ms, event) {
            match effect {
                Effect::Send { to, message } => self.send(index, to, message),
                Effect::Dial(to) => self.after_delay(Happening::Dialled { from: index, to }),
                Effect::WakeAt(at_ms) => {
                    self.nodes[index].wake_ms = Some(at_ms);
                    self.arm(index, at_ms);
                }
                Effect::Observe(what) => self.observed.push(Observed { at_ms: now_ms, node: index, what }),
            }
        }
    }

    /// Sees to it that a node's wish to be woken is looked at by this time.
    fn arm(&mut self, index: usize, at_ms: u64) {
        let node = &mut self.nodes[index];
        if node.armed_ms.is_none_or(|armed_ms| armed_ms > at_ms) {
            node.armed_ms = Some(at_ms);
            self.at(at_ms, Happening::Wake { node: index });
        }
    }

    fn send(&mut self, from: usize, to: usize, message: M::Message) {
        let traffic = &mut self.nodes[from].traffic;
        traffic.messages += 1;
        traffic.bytes += M::size(&message) as u64;
        let Some(link) = self.nodes[from].links.get(&to).copied() else {
            return;
        };
        if !self.reach(from, to) || self.random.chance(self.network.loss) {
            return;
        }
        let mut at_ms = self.now_ms + self.random.within(&self.network.delay_ms.clone());
        if self.network.ordered {
            let last_ms = self.last_ms.entry((from, to)).or_default();
            at_ms = at_ms.max(*last_ms);
            *last_ms = at_ms;
        }
        self.at(at_ms, Happening::Message { from, to, link, message });
    }
}

#[cfg(test)]
mod tests;
