//! Replicas over a network that delays, loses, reorders, repeats, splits, with peers that crash, leave, come back, write two entries at
//! one time, or mean harm: all from a seed, which a failure prints. `BOMBUS_FAULT_ROUNDS` tries more of them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::log::CLOCK_MAX;

/// A generator of numbers from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.roll(len as u64)).unwrap()
    }
}

#[derive(Clone)]
enum Message {
    Heads(Vec<u8>),
    Published(Vec<u8>),
    Wants(Vec<Hash>),
    Block(Vec<u8>),
    Bulk(Vec<Vec<u8>>),
    Absent(Hash),
}

/// How many seeds are tried in a round.
const SEEDS: u32 = 24;

fn rounds() -> u32 {
    std::env::var("BOMBUS_FAULT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2)
}

/// Whose entries count: those of all nodes, and of one that may write and means harm.
fn admitted(count: usize) -> Admission {
    let nodes = (1..=count).map(|number| signer(u8::try_from(number).unwrap()));
    let signers: Vec<Signer> = nodes.chain([insider()]).collect();
    Admission::of_list(signers.iter().map(|signer| signer.identity().id()))
}

/// One that may write, and states what times it likes.
fn insider() -> Signer {
    signer(98)
}

/// One that sends what it likes, and never answers.
fn mallory() -> Peer {
    Peer::new("mallory")
}

/// In half of the runs there is little room for what waits, so that it gives way.
fn room(seed: u64) -> SyncConfig {
    if seed.is_multiple_of(2) {
        SyncConfig::default()
    } else {
        SyncConfig { parked_bytes: 160_000, parked_bytes_per_peer: 48_000, ..SyncConfig::default() }
    }
}

struct Node {
    replica: Replica,
    signer: Signer,
    disk: BTreeMap<Hash, OnDisk>,
}

/// What was kept of a block.
struct OnDisk {
    /// As how many others were there before.
    number: usize,
    block: Vec<u8>,
    /// None for an identity.
    own: Option<Option<Refusal>>,
}

struct World {
    sync: SyncConfig,
    nodes: Vec<Node>,
    /// By time of arrival, then by order of sending.
    queue: BTreeMap<(Duration, u64), (usize, usize, Message)>,
    now: Duration,
    sent: u64,
    dice: Dice,
    /// Of a hundred messages, how many are lost.
    loss: u64,
    /// Which side of the split each node is on.
    sides: Vec<u64>,
    /// What is to count: what honest nodes wrote, and what a member wrote with a time that can be.
    counts: BTreeSet<Hash>,
}

fn name(node: usize) -> Peer {
    Peer::new(node.to_string())
}

impl World {
    fn new(count: usize, seed: u64) -> Self {
        let sync = room(seed);
        let node = |number: usize| Node {
            replica: Replica::new(codec(), admitted(count), sync),
            signer: signer(u8::try_from(number + 1).unwrap()),
            disk: BTreeMap::new(),
        };
        let nodes = (0..count).map(node).collect();
        let mut world = Self {
            sync,
            nodes,
            queue: BTreeMap::new(),
            now: Duration::ZERO,
            sent: 0,
            dice: Dice(seed),
            loss: 20,
            sides: vec![0; count],
            counts: BTreeSet::new(),
        };
        for node in 0..count {
            world.meet(node);
        }
        world
    }

    fn meet(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            if other != node {
                self.input(node, Input::Subscribed(name(other)));
            }
        }
    }

    fn input(&mut self, node: usize, input: Input) {
        let effects = self.nodes[node].replica.on(self.now, input);
        for effect in effects {
            match effect {
                Effect::Store(stored) => self.keep(node, &stored),
                Effect::Request(Request::Want { peer, hashes }) => {
                    if peer != mallory() {
                        self.send(node, peer.as_str().parse().unwrap(), Message::Wants(hashes));
                    }
                }
                Effect::Request(Request::OpenHeads(peer)) => {
                    let other = peer.as_str().parse().unwrap();
                    let worked = self.sides[node] == self.sides[other] && self.dice.roll(100) >= self.loss;
                    if worked {
                        self.send_heads(node, other);
                        self.send_heads(other, node);
                        self.input(other, Input::Answered(name(node)));
                    }
                    self.input(node, Input::Exchanged(peer, worked));
                }
                Effect::Refused(hash, _) | Effect::Broken(hash, ..) => {
                    assert!(!self.counts.contains(&hash), "what is to count was refused: {effect:?}");
                }
                Effect::PeerJoined(_) | Effect::PeerLeft(_) => {}
            }
        }
    }

    fn keep(&mut self, node: usize, stored: &Stored) {
        let own = if let What::Entry { own, .. } = stored.what { Some(own) } else { None };
        let disk = &mut self.nodes[node].disk;
        let number = disk.len();
        disk.entry(stored.hash).or_insert_with(|| OnDisk { number, block: stored.block.to_vec(), own });
    }

    fn send_heads(&mut self, from: usize, to: usize) {
        let heads: Vec<Hash> = self.nodes[from].replica.log().heads().map(|position| position.hash).collect();
        for head in heads {
            let block = self.nodes[from].disk[&head].block.clone();
            self.send(from, to, Message::Heads(block));
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if self.sides[from] != self.sides[to] || self.dice.roll(100) < self.loss {
            return;
        }
        self.sent += 1;
        let delay = Duration::from_millis(1 + self.dice.roll(300));
        if self.dice.roll(10) == 0 {
            self.queue.insert((self.now + delay * 3, self.sent), (from, to, message.clone()));
            self.sent += 1;
        }
        self.queue.insert((self.now + delay, self.sent), (from, to, message));
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let peer = name(from);
        match message {
            Message::Heads(bytes) => self.input(to, Input::Heads(peer, bytes)),
            Message::Published(block) => self.input(to, Input::Published(peer, block)),
            Message::Block(block) => self.input(to, Input::Block(peer, block)),
            Message::Bulk(blocks) => self.input(to, Input::Bulk(peer, blocks)),
            Message::Absent(hash) => self.input(to, Input::Absent(peer, hash)),
            Message::Wants(hashes) => {
                for hash in hashes {
                    let answer = self.nodes[to]
                        .disk
                        .get(&hash)
                        .map_or(Message::Absent(hash), |kept| Message::Block(kept.block.clone()));
                    self.send(to, from, answer);
                }
            }
        }
    }

    fn append(&mut self, node: usize) {
        let signer = self.nodes[node].signer.clone();
        let operation = Operation::put(self.dice.roll(5).to_string(), self.sent);
        let draft = self.nodes[node].replica.log().draft(1).unwrap();
        let Appended { entry, block, stored } = self.nodes[node].replica.append(&signer, operation, 1).unwrap();
        self.counts.insert(entry.hash());
        for stored in stored {
            self.keep(node, &stored);
        }
        self.publish(node, &block);
        if self.dice.roll(8) == 0 {
            // As two processes with one key do: another entry of the same time.
            let twin = codec().write(&signer, draft, Operation::put("twin", self.sent).into_payload()).unwrap();
            self.counts.insert(twin.links.hash);
            self.input(node, Input::Published(name(node), twin.block.clone()));
            self.publish(node, &twin.block);
        }
    }

    fn publish(&mut self, node: usize, block: &[u8]) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.send(node, other, Message::Published(block.to_vec()));
        }
    }

    /// Sends all that one node has to another, in order, as a stream of the whole log does.
    fn send_all(&mut self, from: usize, to: usize) {
        let node = &self.nodes[from];
        let order: Vec<Hash> = node.replica.log().newest_first().rev().map(|position| position.hash).collect();
        let identities = node.disk.values().filter(|kept| kept.own.is_none()).map(|kept| kept.block.clone());
        let blocks = identities.chain(order.iter().map(|hash| node.disk[hash].block.clone())).collect();
        self.send(from, to, Message::Bulk(blocks));
    }

    /// Lets one that means harm send something to a node: by a stranger, by a writer with another's identity or an entry for one, by a member on
    /// top of an identity, cut off, or without an end.
    fn attack(&mut self, node: usize) {
        let stranger = signer(99);
        let mut next: Vec<Hash> = self.nodes[node].replica.log().heads().map(|position| position.hash).collect();
        if self.dice.roll(2) == 0 {
            next.push(Hash::of(&self.sent.to_be_bytes()));
        }
        let time = 1 + self.dice.roll(1 << 20);
        let write = |writer: &Signer, next| {
            let draft = Draft { time, next, refs: vec![] };
            codec().write(writer, draft, Operation::del("0").into_payload()).unwrap()
        };
        let written = write(&stranger, next);
        let (peer, identity) = (mallory(), stranger.block().to_vec());
        // What one node has, another may lack yet.
        let other = self.dice.index(self.nodes.len());
        let other = &self.nodes[other];
        let input = match self.dice.roll(8) {
            0 => Input::Published(peer, written.block),
            1 => Input::Bulk(peer, vec![identity, written.block]),
            2 => Input::Heads(peer, written.block[..written.block.len() / 2].to_vec()),
            3 => Input::Block(peer, identity),
            4 => Input::Published(peer, vec![0x81; 1000]),
            5 => Input::Published(peer, naming(written, self.nodes[node].signer.identity().hash()).block),
            6 => {
                let entry = other.replica.log().heads().next().map_or(Hash::of(&[]), |position| position.hash);
                Input::Published(peer, naming(written, entry).block)
            }
            _ => {
                let on_identity = write(&insider(), vec![other.signer.identity().hash()]);
                Input::Bulk(peer, vec![insider().block().to_vec(), on_identity.block])
            }
        };
        self.input(node, input);
    }

    /// Lets a member state a time far ahead or long past, which may be refused, and another on top of it, which counts.
    fn skew(&mut self, node: usize) {
        let next = self.nodes[node].replica.log().heads().map(|position| position.hash).collect();
        let time = if self.dice.roll(2) == 0 { 1 + self.dice.roll(3) } else { CLOCK_MAX - 1 - self.dice.roll(8) };
        let write = |time, next| {
            let draft = Draft { time, next, refs: vec![] };
            codec().write(&insider(), draft, Operation::put("0", time).into_payload()).unwrap()
        };
        let first = write(time, next);
        let second = write(time + 1, vec![first.links.hash]);
        let blocks = vec![insider().block().to_vec(), first.block, second.block];
        self.input(node, Input::Bulk(mallory(), blocks));
        let log = self.nodes[node].replica.log();
        assert!(log.position(&second.links.hash).is_some(), "it states a time that follows from the one before");
        self.counts.insert(second.links.hash);
        if log.position(&first.links.hash).is_some() {
            self.counts.insert(first.links.hash);
        }
    }

    /// Lets nodes on different sides of the split know that the others are gone, or back.
    fn split(&mut self, sides: Vec<u64>) {
        let before = std::mem::replace(&mut self.sides, sides);
        for node in 0..self.nodes.len() {
            for other in (0..self.nodes.len()).filter(|other| *other != node) {
                let (was_apart, is_apart) = (before[node] != before[other], self.sides[node] != self.sides[other]);
                // Some notice at once; the others have to do without.
                match (was_apart, is_apart) {
                    (false, true) if self.dice.roll(2) == 0 => self.input(node, Input::Unsubscribed(name(other))),
                    (true, false) => self.input(node, Input::Subscribed(name(other))),
                    _ => {}
                }
            }
        }
    }

    /// Takes a node down, and up again with what it had kept.
    fn crash(&mut self, node: usize) {
        let mut loader = Loader::new(codec(), admitted(self.nodes.len()));
        let mut kept: Vec<&OnDisk> = self.nodes[node].disk.values().collect();
        kept.sort_by_key(|kept| kept.number);
        kept.iter().filter(|kept| kept.own.is_none()).for_each(|kept| loader.identity(&kept.block));
        let entries: Vec<Kept> = kept.iter().filter_map(|kept| Some((kept.block.clone(), kept.own?))).collect();
        loader.entries(&entries);
        self.nodes[node].replica = loader.finish(self.sync);
        self.queue.retain(|_, (_, to, _)| *to != node);
        self.meet(node);
    }

    /// Lets time pass, up to the next thing that happens, and not beyond a limit. Returns whether anything is left to happen before it.
    fn step(&mut self, limit: Duration) -> bool {
        let arrival = self.queue.first_key_value().map(|((time, _), _)| *time);
        let deadlines =
            self.nodes.iter().enumerate().filter_map(|(node, it)| Some((it.replica.sync().deadline()?, node)));
        let timer = deadlines.min();
        let next = arrival.into_iter().chain(timer.map(|(time, _)| time)).min().unwrap_or(limit);
        if next >= limit {
            self.now = limit;
            return false;
        }
        self.now = self.now.max(next);
        if arrival == Some(next) {
            let (_, (from, to, message)) = self.queue.pop_first().unwrap();
            self.deliver(from, to, message);
        } else if let Some((_, node)) = timer {
            self.input(node, Input::Tick);
        }
        true
    }

    fn run(&mut self, span: Duration) {
        let limit = self.now + span;
        while self.step(limit) {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: SEEDS * rounds(), max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn replicas_converge_over_a_bad_network(seed: u64) {
        let mut world = World::new(4, seed);
        for _ in 0..60 {
            let (node, other) = (world.dice.index(4), world.dice.index(4));
            match world.dice.roll(16) {
                0 => {
                    let sides = (0..4).map(|_| world.dice.roll(2)).collect();
                    world.split(sides);
                }
                1 => world.split(vec![0; 4]),
                2 => world.crash(node),
                3..=4 => world.run(Duration::from_millis(700)),
                5 if node != other => world.send_all(node, other),
                6..=7 => world.attack(node),
                8 => world.skew(node),
                _ => {
                    world.append(node);
                    world.run(Duration::from_millis(40));
                }
            }
        }
        world.split(vec![0; 4]);
        world.loss = 0;
        // Long enough to give up what nobody has.
        world.run(Duration::from_secs(1500));
        let state = |node: &Node| node.replica.log().newest_first().copied().collect::<Vec<_>>();
        let counted: BTreeSet<Hash> = state(&world.nodes[0]).into_iter().map(|position| position.hash).collect();
        prop_assert_eq!(&counted, &world.counts);
        for node in &world.nodes {
            prop_assert_eq!(state(node), state(&world.nodes[0]));
            prop_assert_eq!(node.replica.sync().waiting(), (0, 0));
        }
    }
}
