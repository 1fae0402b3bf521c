//! Blocks that wait for others.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::{Block, Offered, Peer, SyncConfig};
use crate::cid::Hash;

/// How many blocks that are no entries are remembered; the oldest are forgotten, and looked at anew when they come again.
const BROKEN_MAX: usize = 4096;

/// What a waiting block takes besides its bytes, and besides each block that it waits for.
const BLOCK_OVERHEAD: usize = 256;
const NEED_OVERHEAD: usize = 64;

#[derive(Clone, Debug)]
struct Waiting {
    block: Block,
    missing: HashSet<Hash>,
}

#[derive(Clone, Debug)]
pub(super) struct Park {
    config: SyncConfig,
    waiting: HashMap<Hash, Waiting>,
    /// For each block that something waits for, what does.
    followers: HashMap<Hash, Vec<Hash>>,
    broken: HashSet<Hash>,
    broken_order: VecDeque<Hash>,
    bytes: usize,
    bytes_per_peer: BTreeMap<Option<Peer>, usize>,
    unneeded: Vec<Hash>,
}

fn cost(waiting: &Waiting) -> usize {
    waiting.block.bytes.len() + BLOCK_OVERHEAD
}

impl Park {
    pub(super) fn new(config: SyncConfig) -> Self {
        Self {
            config,
            waiting: HashMap::new(),
            followers: HashMap::new(),
            broken: HashSet::new(),
            broken_order: VecDeque::new(),
            bytes: 0,
            bytes_per_peer: BTreeMap::new(),
            unneeded: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn contains(&self, hash: &Hash) -> bool {
        self.waiting.contains_key(hash)
    }

    pub(super) fn is_needed(&self, hash: &Hash) -> bool {
        self.followers.contains_key(hash)
    }

    pub(super) fn add(&mut self, block: Block, missing: impl Iterator<Item = Hash>) -> Offered {
        let hash = block.hash;
        if self.contains(&hash) {
            return Offered::Known;
        }
        let waiting = Waiting { block, missing: missing.collect() };
        if waiting.missing.iter().any(|need| self.broken.contains(need)) {
            return Offered::Broken;
        }
        let cost = cost(&waiting) + NEED_OVERHEAD * waiting.missing.len();
        let of_peer = self.bytes_per_peer.entry(waiting.block.peer.clone()).or_default();
        if self.bytes + cost > self.config.parked_bytes || *of_peer + cost > self.config.parked_bytes_per_peer {
            // Those that wait for this one ask for it again when there is room: their want stays.
            return Offered::Full;
        }
        self.bytes += cost;
        *of_peer += cost;
        for need in &waiting.missing {
            self.followers.entry(*need).or_default().push(hash);
        }
        self.waiting.insert(hash, waiting);
        Offered::Parked
    }

    fn take(&mut self, hash: &Hash) -> Option<Block> {
        let waiting = self.waiting.remove(hash)?;
        self.release_bytes(&waiting.block.peer, cost(&waiting) + NEED_OVERHEAD * waiting.missing.len());
        Some(waiting.block)
    }

    #[expect(clippy::ref_option, reason = "the key of the map is the option itself")]
    fn release_bytes(&mut self, peer: &Option<Peer>, bytes: usize) {
        self.bytes -= bytes;
        if let Some(of_peer) = self.bytes_per_peer.get_mut(peer) {
            *of_peer -= bytes;
            if *of_peer == 0 {
                self.bytes_per_peer.remove(peer);
            }
        }
    }

    /// Takes out what waits for nothing more once a block is there, and once those of it that join have done so in their turn.
    pub(super) fn release(&mut self, hash: &Hash) -> Vec<Block> {
        let mut arrived = VecDeque::from([*hash]);
        let mut ready = Vec::new();
        while let Some(hash) = arrived.pop_front() {
            for follower in self.followers.remove(&hash).unwrap_or_default() {
                let Some(waiting) = self.waiting.get_mut(&follower) else { continue };
                if waiting.missing.remove(&hash) {
                    let peer = waiting.block.peer.clone();
                    let is_ready = waiting.missing.is_empty();
                    self.release_bytes(&peer, NEED_OVERHEAD);
                    if is_ready && let Some(block) = self.take(&follower) {
                        if block.joins {
                            arrived.push_back(follower);
                        }
                        ready.push(block);
                    }
                }
            }
        }
        ready
    }

    /// Drops what follows a block that is no entry, and remembers all of it.
    pub(super) fn break_off(&mut self, hash: &Hash) -> usize {
        let dropped = self.give_up(hash);
        self.remember(*hash);
        for hash in &dropped {
            self.remember(*hash);
        }
        dropped.len()
    }

    fn remember(&mut self, hash: Hash) {
        if self.broken.insert(hash) {
            self.broken_order.push_back(hash);
        }
        if self.broken_order.len() > BROKEN_MAX
            && let Some(oldest) = self.broken_order.pop_front()
        {
            self.broken.remove(&oldest);
        }
    }

    /// Drops what follows a block that nobody has.
    pub(super) fn give_up(&mut self, hash: &Hash) -> Vec<Hash> {
        let mut lost = vec![*hash];
        let mut dropped = Vec::new();
        while let Some(hash) = lost.pop() {
            for follower in self.followers.remove(&hash).unwrap_or_default() {
                let Some(waiting) = self.waiting.get(&follower) else { continue };
                let needs: Vec<Hash> = waiting.missing.iter().copied().collect();
                self.take(&follower);
                dropped.push(follower);
                lost.push(follower);
                self.leave(&follower, &needs);
            }
        }
        dropped
    }

    /// Takes a follower off the lists of what it waited for; what nobody waits for any more is not needed.
    fn leave(&mut self, follower: &Hash, needs: &[Hash]) {
        for need in needs {
            if let Some(followers) = self.followers.get_mut(need) {
                followers.retain(|other| other != follower);
                if followers.is_empty() {
                    self.followers.remove(need);
                    self.unneeded.push(*need);
                }
            }
        }
    }

    pub(super) fn take_unneeded(&mut self) -> Vec<Hash> {
        std::mem::take(&mut self.unneeded)
    }
}
