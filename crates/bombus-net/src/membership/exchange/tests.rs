use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bombus_core::identity::NodeKey;
use proptest::prelude::*;

use super::super::rules::Rules;
use super::super::{Applied, Generation, IgnoredChanges, OwnerKey, SignedChange, SwarmKey};
use super::*;

fn node(seed: usize) -> NodeId {
    NodeKey::from_secret(&[u8::try_from(seed).unwrap() + 1; 32]).node_id()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn nodes(seeds: &[usize]) -> BTreeSet<NodeId> {
    seeds.iter().copied().map(node).collect()
}

/// A change that comes while nobody is known but those with a connection.
fn changed(cause: Cause, new_key: bool, removed: &[usize]) -> Input {
    changed_among(&[], cause, new_key, removed)
}

fn changed_among(members: &[usize], cause: Cause, new_key: bool, removed: &[usize]) -> Input {
    Input::Changed { cause, new_key, removed: Arc::new(nodes(removed)), members: nodes(members) }
}

fn pushed(outputs: &[Output]) -> BTreeSet<NodeId> {
    let peers = outputs.iter().filter_map(|output| match output {
        Output::Push { peer, .. } => Some(peer.clone()),
        _ => None,
    });
    peers.collect()
}

fn went_over(outputs: &[Output]) -> Option<BTreeSet<NodeId>> {
    outputs.iter().find_map(|output| match output {
        Output::GoOver { reached } => Some(reached.clone()),
        _ => None,
    })
}

fn owner() -> Cause {
    Cause::Owner { limit: ms(10_000) }
}

#[test]
fn whoever_connects_is_offered_everything() {
    let mut exchange = Exchange::default();
    let outputs = exchange.on(ms(0), Input::Connected(node(1)));
    assert_eq!(outputs, [Output::Push { peer: node(1), within: PUSH_LIMIT }]);
}

#[test]
fn a_new_key_waits_for_the_connected_and_not_for_the_removed() {
    let mut exchange = Exchange::default();
    for seed in 1..=3 {
        exchange.on(ms(0), Input::Connected(node(seed)));
        exchange.on(ms(0), Input::Pushed { peer: node(seed), heard: Some(Vec::new()) });
    }
    let outputs = exchange.on(ms(0), changed(owner(), true, &[3]));
    assert_eq!(pushed(&outputs), nodes(&[1, 2]));
    assert_eq!(went_over(&exchange.on(ms(10), Input::Pushed { peer: node(1), heard: Some(vec![node(5)]) })), None);
    let outputs = exchange.on(ms(20), Input::Pushed { peer: node(2), heard: None });
    assert_eq!(went_over(&outputs), Some(nodes(&[1, 5])));
    assert!(!exchange.is_handing_over());
}

#[test]
fn a_member_that_does_not_answer_is_not_waited_for_without_end() {
    let mut exchange = Exchange::default();
    exchange.on(ms(0), Input::Connected(node(1)));
    let outputs = exchange.on(ms(5), changed(owner(), true, &[]));
    assert!(outputs.contains(&Output::WakeAt(ms(10_005))), "{outputs:?}");
    assert_eq!(went_over(&exchange.on(ms(10_004), Input::Tick)), None);
    assert_eq!(went_over(&exchange.on(ms(10_005), Input::Tick)), Some(nodes(&[])));
}

#[test]
fn alone_there_is_nobody_to_wait_for() {
    let mut exchange = Exchange::default();
    assert_eq!(went_over(&exchange.on(ms(0), changed(owner(), true, &[1]))), Some(nodes(&[])));
}

#[test]
fn after_a_change_while_the_node_was_off_it_waits_for_those_who_may_come() {
    let mut exchange = Exchange::default();
    let cause = Cause::OwnerBefore { limit: ms(30_000) };
    assert_eq!(went_over(&exchange.on(ms(0), changed_among(&[1, 2], cause, true, &[2]))), None);
    assert_eq!(pushed(&exchange.on(ms(9), Input::Connected(node(1)))), nodes(&[1]));
    let outputs = exchange.on(ms(10), Input::Pushed { peer: node(1), heard: Some(Vec::new()) });
    assert_eq!(went_over(&outputs), Some(nodes(&[1])));
}

#[test]
fn a_newcomer_during_a_hand_over_is_neither_told_nor_waited_for() {
    let by_owner = Cause::OwnerBefore { limit: ms(30_000) };
    let passed_on = Cause::Peer { from: node(9), token: 7, within: ms(4_000) };
    for cause in [owner(), by_owner, passed_on] {
        let case = format!("{cause:?}");
        let mut exchange = Exchange::default();
        exchange.on(ms(0), Input::Connected(node(1)));
        exchange.on(ms(0), Input::Pushed { peer: node(1), heard: Some(Vec::new()) });
        // Node 2 was met before, and node 3 goes out; node 4 may be the same machine.
        let outputs = exchange.on(ms(1), changed_among(&[1, 2, 3], cause, true, &[3]));
        assert_eq!(pushed(&outputs), nodes(&[1]), "{case}");
        assert_eq!(pushed(&exchange.on(ms(2), Input::Connected(node(4)))), nodes(&[]), "{case}");
        let more = Cause::Peer { from: node(1), token: 8, within: ms(0) };
        let outputs = exchange.on(ms(3), changed_among(&[1, 2, 4], more, false, &[3, 5]));
        assert_eq!(pushed(&outputs), nodes(&[]), "nor with what comes after: {case}");
        assert_eq!(pushed(&exchange.on(ms(4), Input::Connected(node(2)))), nodes(&[2]), "a member is told: {case}");
        let mut outputs = Vec::new();
        for seed in [1, 2] {
            outputs.extend(exchange.on(ms(5), Input::Pushed { peer: node(seed), heard: Some(Vec::new()) }));
        }
        outputs.extend(exchange.on(ms(6), Input::Told { token: 7 }));
        assert_eq!(went_over(&outputs), Some(nodes(&[1, 2])), "{case}");
    }
}

#[test]
fn a_newcomer_during_a_hand_over_is_not_told_the_next_key_either() {
    let mut exchange = Exchange::default();
    exchange.on(ms(0), Input::Connected(node(1)));
    exchange.on(ms(1), changed(owner(), true, &[]));
    exchange.on(ms(2), Input::Connected(node(4)));
    // By now it is known, and connected.
    let outputs = exchange.on(ms(3), changed_among(&[1, 4], owner(), true, &[]));
    assert!(!pushed(&outputs).contains(&node(4)), "{outputs:?}");
    exchange.on(ms(4), Input::Disconnected(node(4)));
    assert_eq!(pushed(&exchange.on(ms(5), Input::Connected(node(4)))), nodes(&[]));
}

#[test]
fn when_the_hand_over_is_over_newcomers_are_told_everything() {
    let mut exchange = Exchange::default();
    assert!(went_over(&exchange.on(ms(0), changed(owner(), true, &[]))).is_some());
    assert_eq!(pushed(&exchange.on(ms(1), Input::Connected(node(4)))), nodes(&[4]));
}

#[test]
fn who_gave_the_key_hears_whom_it_reached_before_the_node_goes_over() {
    let mut exchange = Exchange::default();
    for seed in 1..=2 {
        exchange.on(ms(0), Input::Connected(node(seed)));
        exchange.on(ms(0), Input::Pushed { peer: node(seed), heard: Some(Vec::new()) });
    }
    let cause = Cause::Peer { from: node(1), token: 7, within: ms(4_000) };
    assert_eq!(pushed(&exchange.on(ms(0), changed(cause, true, &[]))), nodes(&[2]));
    let outputs = exchange.on(ms(10), Input::Pushed { peer: node(2), heard: Some(vec![node(3)]) });
    let reached = nodes(&[2, 3]).into_iter().collect();
    assert_eq!(outputs, [Output::Tell { token: 7, reached }, Output::WakeAt(ms(10) + TELL_LIMIT)]);
    assert!(went_over(&exchange.on(ms(11), Input::Told { token: 7 })).is_some());
}

#[test]
fn who_gave_the_key_and_is_gone_is_not_waited_for_without_end() {
    let mut exchange = Exchange::default();
    let cause = Cause::Peer { from: node(1), token: 7, within: ms(4_000) };
    assert!(exchange.on(ms(0), changed(cause, true, &[])).contains(&Output::Tell { token: 7, reached: Vec::new() }));
    assert!(went_over(&exchange.on(TELL_LIMIT, Input::Tick)).is_some());
}

#[test]
fn a_change_during_a_push_is_pushed_after_it() {
    let mut exchange = Exchange::default();
    exchange.on(ms(0), Input::Connected(node(1)));
    assert_eq!(pushed(&exchange.on(ms(1), changed(owner(), true, &[]))), nodes(&[]));
    let outputs = exchange.on(ms(2), Input::Pushed { peer: node(1), heard: Some(Vec::new()) });
    assert_eq!(pushed(&outputs), nodes(&[1]));
    assert_eq!(went_over(&outputs), None, "what it has from the first push is not the new key");
    assert!(went_over(&exchange.on(ms(3), Input::Pushed { peer: node(1), heard: Some(Vec::new()) })).is_some());
}

#[test]
fn a_newer_key_during_a_hand_over_takes_its_place() {
    let mut exchange = Exchange::default();
    exchange.on(ms(0), Input::Connected(node(1)));
    exchange.on(ms(0), Input::Pushed { peer: node(1), heard: Some(Vec::new()) });
    exchange.on(ms(0), changed(Cause::Peer { from: node(2), token: 1, within: ms(4_000) }, true, &[]));
    exchange.on(ms(1), changed(Cause::Peer { from: node(3), token: 2, within: ms(4_000) }, true, &[]));
    exchange.on(ms(2), Input::Pushed { peer: node(1), heard: Some(Vec::new()) });
    let outputs = exchange.on(ms(3), Input::Pushed { peer: node(1), heard: Some(Vec::new()) });
    let told: Vec<_> = outputs.iter().filter(|output| matches!(output, Output::Tell { .. })).collect();
    assert_eq!(told.len(), 2, "both hear of it: {outputs:?}");
}

#[test]
fn a_removal_without_a_new_key_is_told_and_nothing_is_waited_for() {
    let mut exchange = Exchange::default();
    for seed in 1..=3 {
        exchange.on(ms(0), Input::Connected(node(seed)));
        exchange.on(ms(0), Input::Pushed { peer: node(seed), heard: Some(Vec::new()) });
    }
    let cause = Cause::Peer { from: node(1), token: 7, within: ms(0) };
    let outputs = exchange.on(ms(0), changed(cause, false, &[2]));
    assert_eq!(pushed(&outputs), nodes(&[3]));
    assert!(!exchange.is_handing_over());
    assert_eq!(pushed(&exchange.on(ms(0), Input::Connected(node(2)))), nodes(&[]), "the removed one hears nothing");
}

// A swarm without sockets: nodes with rules and exchange, links with delays.

/// What is on its way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Two nodes get a connection, if their keys are alike.
    Link(usize, usize),
    /// A push arrives.
    Arrive {
        from: usize,
        to: usize,
        within_ms: u64,
    },
    /// The end of a push arrives back; the reached, if the other side is still there.
    Ended {
        from: usize,
        to: usize,
        reached: Option<Vec<usize>>,
    },
    /// Whoever waited has heard.
    Told {
        node: usize,
        token: Token,
    },
    /// The owner takes a peer out.
    Kick {
        by: usize,
        whom: usize,
    },
    Tick(usize),
}

struct SimNode {
    rules: Rules,
    exchange: Exchange,
    /// The key that the node has, and the one that its transport uses.
    key: SwarmKey,
    used: SwarmKey,
    /// Who waits behind a token.
    waiting: BTreeMap<Token, usize>,
    reached: BTreeSet<NodeId>,
}

struct Sim {
    now_ms: u64,
    delays: Vec<u64>,
    drawn: usize,
    nodes: Vec<SimNode>,
    wires: BTreeSet<(usize, usize)>,
    links: BTreeSet<(usize, usize)>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
}

impl Sim {
    fn of(count: usize, wires: BTreeSet<(usize, usize)>, delays: Vec<u64>) -> Self {
        let key = SwarmKey::from_bytes([0; 32]);
        let new = |_| SimNode {
            rules: Rules::new(OwnerKey::from_secret(&[1; 32]).id(), Generation(0), key.hash()),
            exchange: Exchange::default(),
            key: key.clone(),
            used: key.clone(),
            waiting: BTreeMap::new(),
            reached: BTreeSet::new(),
        };
        let nodes = (0..count).map(new).collect();
        let mut sim = Self {
            now_ms: 0,
            delays,
            drawn: 0,
            nodes,
            wires: wires.clone(),
            links: BTreeSet::new(),
            events: BinaryHeap::new(),
            sequence: 0,
        };
        for (a, b) in wires {
            sim.later(0, Event::Link(a, b));
        }
        sim
    }

    fn delay(&mut self) -> u64 {
        self.drawn += 1;
        self.delays[self.drawn % self.delays.len()]
    }

    fn later(&mut self, in_ms: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now_ms + in_ms, self.sequence, event)));
    }

    fn run(&mut self) {
        for _ in 0..20_000 {
            let Some(Reverse((at, _, event))) = self.events.pop() else { return };
            self.now_ms = at;
            self.happen(event);
        }
        panic!("it never becomes quiet");
    }

    fn linked(&self, a: usize, b: usize) -> bool {
        self.links.contains(&(a.min(b), a.max(b)))
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Link(a, b) => {
                let [x, y] = [&self.nodes[a], &self.nodes[b]];
                let refused = x.rules.removed().contains(&node(b)) || y.rules.removed().contains(&node(a));
                if x.used == y.used && !refused && self.links.insert((a, b)) {
                    self.give(a, Input::Connected(node(b)));
                    self.give(b, Input::Connected(node(a)));
                }
            }
            Event::Arrive { from, to, within_ms } => self.arrive(from, to, within_ms),
            Event::Ended { from, to, reached } => {
                let heard = reached.map(|reached| reached.into_iter().map(node).collect());
                self.give(from, Input::Pushed { peer: node(to), heard });
            }
            Event::Told { node, token } => self.give(node, Input::Told { token }),
            Event::Kick { by, whom } => {
                let owner = OwnerKey::from_secret(&[1; 32]);
                let key = SwarmKey::from_bytes([u8::try_from(self.sequence % 250).unwrap() + 1; 32]);
                let sim = &mut self.nodes[by];
                let change = sim.rules.next(&owner, &key, Some(&node(whom))).unwrap();
                assert_eq!(sim.rules.apply(&change, Some(&key), &mut IgnoredChanges::default()), Applied::NewKey);
                sim.key = key;
                self.changed(by, Cause::Owner { limit: ms(10_000) }, true);
            }
            Event::Tick(of) => self.give(of, Input::Tick),
        }
    }

    fn arrive(&mut self, from: usize, to: usize, within_ms: u64) {
        let back = self.delay();
        if !self.linked(from, to) {
            self.later(back, Event::Ended { from, to, reached: None });
            return;
        }
        let changes: Vec<SignedChange> = self.nodes[from].rules.changes().cloned().collect();
        let key = self.nodes[from].key.clone();
        let mut applied = Applied::Nothing;
        for change in changes {
            let sim = &mut self.nodes[to];
            let with = (change.key_hash() == key.hash()).then_some(&key);
            let this = sim.rules.apply(&change, with, &mut IgnoredChanges::default());
            if this == Applied::NewKey {
                sim.key = key.clone();
            }
            if applied != Applied::NewKey {
                applied = this;
            }
        }
        if applied == Applied::NewKey {
            self.sequence += 1;
            let token = self.sequence;
            self.nodes[to].waiting.insert(token, from);
            let within = ms(within_ms / 2);
            self.changed(to, Cause::Peer { from: node(from), token, within }, true);
        } else {
            if applied == Applied::Removals {
                self.changed(to, Cause::Peer { from: node(from), token: 0, within: ms(0) }, false);
            }
            self.later(back, Event::Ended { from, to, reached: Some(Vec::new()) });
        }
    }

    fn changed(&mut self, of: usize, cause: Cause, new_key: bool) {
        let removed = Arc::clone(self.nodes[of].rules.removed());
        // As the transport does, the removed are put out at once.
        for other in 0..self.nodes.len() {
            if removed.contains(&node(other)) {
                self.unlink(of, other);
            }
        }
        let members = (0..self.nodes.len()).map(node).collect();
        self.give(of, Input::Changed { cause, new_key, removed, members });
    }

    fn unlink(&mut self, a: usize, b: usize) {
        if self.links.remove(&(a.min(b), a.max(b))) {
            self.give(a, Input::Disconnected(node(b)));
            self.give(b, Input::Disconnected(node(a)));
        }
    }

    fn give(&mut self, to: usize, input: Input) {
        let now = ms(self.now_ms);
        for output in self.nodes[to].exchange.on(now, input) {
            self.obey(to, output);
        }
    }

    fn obey(&mut self, of: usize, output: Output) {
        match output {
            Output::Push { peer, within } => {
                let peer = (0..self.nodes.len()).find(|i| node(*i) == peer).unwrap();
                let (delay, within_ms) = (self.delay(), u64::try_from(within.as_millis()).unwrap());
                self.later(delay, Event::Arrive { from: of, to: peer, within_ms });
            }
            Output::Tell { token, reached } => {
                let Some(from) = self.nodes[of].waiting.remove(&token) else { return };
                let reached = (0..self.nodes.len()).filter(|i| reached.contains(&node(*i))).collect();
                let (there, back) = (self.delay(), self.delay());
                self.later(there, Event::Ended { from, to: of, reached: Some(reached) });
                self.later(there + back, Event::Told { node: of, token });
            }
            Output::GoOver { reached } => {
                let sim = &mut self.nodes[of];
                sim.reached = reached;
                sim.used = sim.key.clone();
                for other in 0..self.nodes.len() {
                    self.unlink(of, other);
                }
                let wires: Vec<_> = self.wires.iter().copied().filter(|(a, b)| *a == of || *b == of).collect();
                for (a, b) in wires {
                    let delay = self.delay();
                    self.later(delay, Event::Link(a, b));
                }
            }
            Output::WakeAt(at) => {
                let at_ms = u64::try_from(at.as_millis()).unwrap();
                self.later(at_ms.saturating_sub(self.now_ms), Event::Tick(of));
            }
        }
    }
}

/// A connected network without the last node, which is linked to some of the others.
fn network() -> impl Strategy<Value = (usize, BTreeSet<(usize, usize)>)> {
    (3..9_usize).prop_flat_map(|count| {
        let parents: Vec<_> = (1..count - 1).map(|i| 0..i).collect();
        let more = prop::collection::vec((0..count, 0..count), 0..12);
        (Just(count), parents, more).prop_map(|(count, parents, more)| {
            let tree = parents.into_iter().enumerate().map(|(i, parent)| (parent, i + 1));
            let more = more.into_iter().filter(|(a, b)| a != b).map(|(a, b)| (a.min(b), a.max(b)));
            (count, tree.chain(more).collect())
        })
    })
}

proptest! {
    #[test]
    fn everybody_in_reach_goes_over_together_and_the_removed_one_stays_out(
        (count, wires) in network(),
        by in 0..100_usize,
        delays in prop::collection::vec(1..40_u64, 7..30),
        twice: bool,
    ) {
        let whom = count - 1;
        let by = by % whom;
        let mut sim = Sim::of(count, wires.clone(), delays);
        sim.later(1_000, Event::Kick { by, whom });
        sim.run();
        if twice {
            // Somebody else takes the same peer out, too: it changes nothing but the key.
            let other = (by + 1) % whom;
            sim.later(0, Event::Kick { by: other, whom });
            sim.run();
        }
        let key = sim.nodes[by].used.clone();
        for (i, of) in sim.nodes[..whom].iter().enumerate() {
            prop_assert!(of.used == key && of.key == key, "node {} has another key", i);
            prop_assert!(of.rules.removed().contains(&node(whom)));
            prop_assert!(!of.exchange.is_handing_over());
        }
        prop_assert!(sim.nodes[whom].used != key);
        for (a, b) in wires {
            prop_assert_eq!(sim.linked(a, b), b != whom, "between {} and {}", a, b);
        }
        if !twice {
            // Some of them reached the owner in turn.
            let mut reached = sim.nodes[by].reached.clone();
            reached.insert(node(by));
            prop_assert_eq!(reached, (0..whom).map(node).collect(), "the owner knows whom it reached");
        }
    }
}
