//! Blocks that wait for others.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use super::{Block, Kind, Offered, Peer, SyncConfig};
use crate::cid::Hash;

/// How many blocks that are no entries are remembered; the oldest are forgotten, and looked at anew when they come again.
const BROKEN_MAX: usize = 4096;

/// What a waiting block takes besides its bytes, and besides each block that it waits for.
const BLOCK_OVERHEAD: usize = 512;
const NEED_OVERHEAD: usize = 64;

/// A block, and as what it is needed.
type Need = (Hash, Kind);

#[derive(Clone, Debug)]
struct Waiting {
    peer: Option<Peer>,
    joins: bool,
    /// None once they had to give way: the block is asked for again when what it waits for is there.
    bytes: Option<Arc<[u8]>>,
    missing: HashSet<Need>,
    /// The last that it named of those that it waited for when it came.
    oldest: Option<Need>,
    /// As how many others had come before.
    number: u64,
}

impl Waiting {
    fn cost(&self) -> usize {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len()) + BLOCK_OVERHEAD + NEED_OVERHEAD * self.missing.len()
    }
}

/// What waits of what one peer sent.
#[derive(Clone, Debug, Default)]
struct Share {
    bytes: usize,
    /// Blocks that something follows, by when they came. Their bytes can give way.
    whole: BTreeMap<u64, Hash>,
    /// Blocks whose bytes gave way, by when they came.
    bare: BTreeMap<u64, Hash>,
}

/// What a block that arrived gives free.
#[derive(Debug, Default)]
pub(super) struct Released {
    /// What waits for nothing more, each after what it follows.
    pub(super) ready: Vec<Block>,
    /// What is to be asked for again, and who sent it.
    pub(super) again: Vec<(Hash, Option<Peer>)>,
}

/// Blocks come newest first: a log is followed from its heads down, and nothing of it joins before the oldest entry is there. Where it is
/// larger than the room, the bytes of those that came first give way, and of each one link stays: the oldest of those that it waits for.
/// Once that has joined the block is asked for again, so that the log comes a second time, oldest first and as many at a time as an entry
/// has links. Where even the links are too many, those that came first go with all that follows them, and come again with the heads after
/// the others have joined.
#[derive(Clone, Debug)]
pub(super) struct Park {
    config: SyncConfig,
    waiting: HashMap<Hash, Waiting>,
    /// For each block that something waits for, what does, in the order in which that came.
    followers: HashMap<Need, VecDeque<Hash>>,
    /// Blocks that are no entries, and what followed them. As identities they may be needed all the same.
    broken: HashSet<Hash>,
    broken_order: VecDeque<Hash>,
    bytes: usize,
    shares: BTreeMap<Option<Peer>, Share>,
    /// How many blocks have come.
    count: u64,
    unneeded: Vec<Hash>,
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
            shares: BTreeMap::new(),
            count: 0,
            unneeded: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn contains(&self, hash: &Hash) -> bool {
        self.waiting.contains_key(hash)
    }

    pub(super) fn is_needed(&self, hash: &Hash, kind: Kind) -> bool {
        self.followers.contains_key(&(*hash, kind))
    }

    /// Returns whether something waits for a block, as whatever that may be.
    pub(super) fn is_awaited(&self, hash: &Hash) -> bool {
        self.is_needed(hash, Kind::Entry) || self.is_needed(hash, Kind::Identity)
    }

    /// Returns what all that waits takes, in bytes, counted anew.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let bytes = self.waiting.values().map(Waiting::cost).sum();
        assert_eq!(bytes, self.bytes, "the sum is kept right");
        bytes
    }

    pub(super) fn add(&mut self, block: Block, missing: &[Need]) -> Offered {
        let Block { hash, bytes, peer, joins } = block;
        if self.contains(&hash) {
            return Offered::Known;
        }
        if missing.iter().any(|(need, kind)| *kind == Kind::Entry && self.broken.contains(need)) {
            return Offered::Broken;
        }
        let oldest = missing.last().copied();
        let missing: HashSet<Need> = missing.iter().copied().collect();
        let waiting = Waiting { peer, joins, bytes: Some(bytes), missing, oldest, number: self.count };
        let (cost, is_needed) = (waiting.cost(), self.is_needed(&hash, Kind::Entry));
        while !self.has_room(&waiting.peer, cost) {
            // Those that wait for this one ask for it again when there is room: their want stays. For a block that nothing waits for, nothing
            // gives way.
            if !is_needed || !self.give_way(&waiting.peer) {
                return Offered::Full;
            }
        }
        if is_needed && !self.is_needed(&hash, Kind::Entry) {
            // What waited for it had to go.
            return Offered::Full;
        }
        self.count += 1;
        self.bytes += cost;
        let share = self.shares.entry(waiting.peer.clone()).or_default();
        share.bytes += cost;
        if is_needed {
            share.whole.insert(waiting.number, hash);
        }
        for need in &waiting.missing {
            let followers = self.followers.entry(*need).or_default();
            followers.push_back(hash);
            if followers.len() == 1
                && let (need, Kind::Entry) = need
                && let Some(needed) = self.waiting.get(need)
                && needed.bytes.is_some()
                && let Some(share) = self.shares.get_mut(&needed.peer)
            {
                share.whole.insert(needed.number, *need);
            }
        }
        self.waiting.insert(hash, waiting);
        Offered::Parked
    }

    #[expect(clippy::ref_option, reason = "the key of the map is the option itself")]
    fn has_room(&self, peer: &Option<Peer>, cost: usize) -> bool {
        let of_peer = self.shares.get(peer).map_or(0, |share| share.bytes);
        self.bytes + cost <= self.config.parked_bytes && of_peer + cost <= self.config.parked_bytes_per_peer
    }

    /// Makes room among what a peer sent: takes the bytes of what came first or, where no bytes are left, drops what came first with all that
    /// follows it. Returns whether there was any such.
    #[expect(clippy::ref_option, reason = "the key of the map is the option itself")]
    fn give_way(&mut self, peer: &Option<Peer>) -> bool {
        let Some(share) = self.shares.get_mut(peer) else { return false };
        if let Some((_, hash)) = share.whole.pop_first() {
            self.strip(&hash);
        } else if let Some((_, hash)) = share.bare.pop_first() {
            if let Some(waiting) = self.take(&hash) {
                self.leave(&hash, &waiting.missing);
            }
            self.give_up(&hash);
        } else {
            return false;
        }
        true
    }

    /// Takes the bytes of a block. It waits for one other from then on.
    fn strip(&mut self, hash: &Hash) {
        let Some(waiting) = self.waiting.get_mut(hash) else { return };
        let oldest = waiting.oldest.filter(|oldest| waiting.missing.contains(oldest));
        let Some(kept) = oldest.or_else(|| waiting.missing.iter().min().copied()) else { return };
        let before = waiting.cost();
        waiting.bytes = None;
        let mut left = std::mem::replace(&mut waiting.missing, HashSet::from([kept]));
        left.remove(&kept);
        let (peer, number, freed) = (waiting.peer.clone(), waiting.number, before - waiting.cost());
        self.release_bytes(&peer, freed);
        self.shares.entry(peer).or_default().bare.insert(number, *hash);
        self.leave(hash, &left);
    }

    fn take(&mut self, hash: &Hash) -> Option<Waiting> {
        let waiting = self.waiting.remove(hash)?;
        if let Some(share) = self.shares.get_mut(&waiting.peer) {
            share.whole.remove(&waiting.number);
            share.bare.remove(&waiting.number);
        }
        self.release_bytes(&waiting.peer, waiting.cost());
        Some(waiting)
    }

    #[expect(clippy::ref_option, reason = "the key of the map is the option itself")]
    fn release_bytes(&mut self, peer: &Option<Peer>, bytes: usize) {
        self.bytes -= bytes;
        if let Some(share) = self.shares.get_mut(peer) {
            share.bytes -= bytes;
            if share.bytes == 0 {
                self.shares.remove(peer);
            }
        }
    }

    /// Takes out what waits for nothing more once a block is there, and once those of it that join have done so in their turn.
    pub(super) fn release(&mut self, need: Need) -> Released {
        let mut arrived = VecDeque::from([need]);
        let mut released = Released::default();
        while let Some(need) = arrived.pop_front() {
            for follower in self.followers.remove(&need).unwrap_or_default() {
                let Some(waiting) = self.waiting.get_mut(&follower) else { continue };
                if !waiting.missing.remove(&need) {
                    continue;
                }
                let (peer, is_ready) = (waiting.peer.clone(), waiting.missing.is_empty());
                self.release_bytes(&peer, NEED_OVERHEAD);
                if !is_ready {
                    continue;
                }
                let Some(Waiting { peer, joins, bytes, .. }) = self.take(&follower) else { continue };
                if let Some(bytes) = bytes {
                    if joins {
                        arrived.push_back((follower, Kind::Entry));
                    }
                    released.ready.push(Block { hash: follower, bytes, peer, joins });
                } else if self.is_needed(&follower, Kind::Entry) {
                    released.again.push((follower, peer));
                }
            }
        }
        released
    }

    /// Drops what follows a block that is no entry, and remembers all of it.
    pub(super) fn break_off(&mut self, hash: &Hash) -> usize {
        let dropped = self.drop_followers(vec![(*hash, Kind::Entry)]);
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

    /// Drops what waits for a block that nobody has.
    pub(super) fn give_up(&mut self, hash: &Hash) {
        self.drop_followers(vec![(*hash, Kind::Entry), (*hash, Kind::Identity)]);
    }

    /// Drops what waits for these, and what follows that. Returns all of it.
    fn drop_followers(&mut self, mut lost: Vec<Need>) -> Vec<Hash> {
        let mut dropped = Vec::new();
        while let Some(need) = lost.pop() {
            for follower in self.followers.remove(&need).unwrap_or_default() {
                let Some(waiting) = self.take(&follower) else { continue };
                dropped.push(follower);
                lost.push((follower, Kind::Entry));
                self.leave(&follower, &waiting.missing);
            }
        }
        dropped
    }

    /// Takes a follower off the lists of what it waited for; what nobody waits for any more is not needed.
    fn leave(&mut self, follower: &Hash, needs: &HashSet<Need>) {
        for need in needs {
            if let Some(followers) = self.followers.get_mut(need) {
                // Those that give way came first, so that they stand in front.
                if let Some(place) = followers.iter().position(|other| other == follower) {
                    followers.remove(place);
                }
                if followers.is_empty() {
                    self.followers.remove(need);
                    self.unneeded.push(need.0);
                }
            }
        }
    }

    /// Returns what is needed no more, unless it is needed again.
    pub(super) fn take_unneeded(&mut self) -> Vec<Hash> {
        let mut unneeded = std::mem::take(&mut self.unneeded);
        unneeded.retain(|hash| !self.is_awaited(hash));
        unneeded
    }
}
