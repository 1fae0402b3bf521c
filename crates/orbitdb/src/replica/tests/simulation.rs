//! Replicas over a network that delays, loses, reorders, repeats, splits, and that crash: all from a seed, which a failure prints.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

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

enum Message {
    Heads(Vec<u8>),
    Published(Vec<u8>),
    Wants(Vec<Hash>),
    Block(Vec<u8>),
    Absent(Hash),
}

struct Node {
    replica: Replica,
    signer: Signer,
    disk: BTreeMap<Hash, (Vec<u8>, Option<Option<Refusal>>)>,
}

struct World {
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
}

fn name(node: usize) -> Peer {
    Peer::new(node.to_string())
}

impl World {
    fn new(count: usize, seed: u64) -> Self {
        let node = |number: usize| Node {
            replica: replica(Admission::Everyone),
            signer: signer(u8::try_from(number + 1).unwrap()),
            disk: BTreeMap::new(),
        };
        let nodes = (0..count).map(node).collect();
        let mut world = Self {
            nodes,
            queue: BTreeMap::new(),
            now: Duration::ZERO,
            sent: 0,
            dice: Dice(seed),
            loss: 20,
            sides: vec![0; count],
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
                    self.send(node, peer.as_str().parse().unwrap(), Message::Wants(hashes));
                }
                Effect::Request(Request::OpenHeads(peer)) => {
                    let other = peer.as_str().parse().unwrap();
                    let worked = self.sides[node] == self.sides[other] && self.dice.roll(100) >= self.loss;
                    if worked {
                        self.send_heads(node, other);
                        self.send_heads(other, node);
                    }
                    self.input(node, Input::Exchanged(peer, worked));
                }
                Effect::Refused(..) | Effect::Broken(..) => panic!("all are honest here: {effect:?}"),
                Effect::PeerJoined(_) | Effect::PeerLeft(_) => {}
            }
        }
    }

    fn keep(&mut self, node: usize, stored: &Stored) {
        let own = if let What::Entry { own, .. } = stored.what { Some(own) } else { None };
        self.nodes[node].disk.insert(stored.hash, (stored.block.to_vec(), own));
    }

    fn send_heads(&mut self, from: usize, to: usize) {
        let heads: Vec<Hash> = self.nodes[from].replica.log().heads().map(|position| position.hash).collect();
        for head in heads {
            let block = self.nodes[from].disk[&head].0.clone();
            self.send(from, to, Message::Heads(block));
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if self.sides[from] != self.sides[to] || self.dice.roll(100) < self.loss {
            return;
        }
        self.sent += 1;
        let delay = Duration::from_millis(1 + self.dice.roll(300));
        let repeated = match &message {
            Message::Published(block) => Some(Message::Published(block.clone())),
            Message::Block(block) => Some(Message::Block(block.clone())),
            _ => None,
        };
        if let Some(repeated) = repeated.filter(|_| self.dice.roll(10) == 0) {
            self.queue.insert((self.now + delay * 3, self.sent), (from, to, repeated));
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
            Message::Absent(hash) => self.input(to, Input::Absent(peer, hash)),
            Message::Wants(hashes) => {
                for hash in hashes {
                    let answer = self.nodes[to]
                        .disk
                        .get(&hash)
                        .map_or(Message::Absent(hash), |(block, _)| Message::Block(block.clone()));
                    self.send(to, from, answer);
                }
            }
        }
    }

    fn append(&mut self, node: usize) {
        let signer = self.nodes[node].signer.clone();
        let operation = Operation::put(self.dice.roll(5).to_string(), self.sent);
        let Appended { block, stored, .. } = self.nodes[node].replica.append(&signer, operation, 1).unwrap();
        for stored in stored {
            self.keep(node, &stored);
        }
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.send(node, other, Message::Published(block.to_vec()));
        }
    }

    /// Takes a node down, and up again with what it had kept.
    fn crash(&mut self, node: usize) {
        let mut loader = Loader::new(codec(), Admission::Everyone);
        let (mut identities, mut entries) = (Vec::new(), Vec::new());
        for (block, own) in self.nodes[node].disk.values() {
            match own {
                None => identities.push(block),
                Some(own) => entries.push((block.clone(), *own)),
            }
        }
        identities.into_iter().for_each(|block| loader.identity(block));
        loader.entries(&entries);
        self.nodes[node].replica = loader.finish(SyncConfig::default());
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
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn replicas_converge_over_a_bad_network(seed: u64) {
        let mut world = World::new(4, seed);
        let mut appended = 0;
        for _ in 0..60 {
            match world.dice.roll(12) {
                0 => world.sides = (0..4).map(|_| world.dice.roll(2)).collect(),
                1 => world.sides = vec![0; 4],
                2 => {
                    let node = world.dice.index(4);
                    world.crash(node);
                }
                3..=4 => world.run(Duration::from_millis(700)),
                _ => {
                    let node = world.dice.index(4);
                    world.append(node);
                    appended += 1;
                    world.run(Duration::from_millis(40));
                }
            }
        }
        world.sides = vec![0; 4];
        world.loss = 0;
        world.run(Duration::from_secs(240));
        let state = |node: &Node| node.replica.log().newest_first().copied().collect::<Vec<_>>();
        prop_assert_eq!(state(&world.nodes[0]).len(), appended);
        for node in &world.nodes {
            prop_assert_eq!(state(node), state(&world.nodes[0]));
            prop_assert_eq!(node.replica.sync().waiting(), (0, 0));
        }
    }
}
