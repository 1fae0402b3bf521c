//! Many blocks at once, as a peer sends them to one that lacks much.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry::Vacant},
    sync::Arc,
    time::Duration,
};

use super::{Effect, Replica, check, links_of};
use crate::{
    cid::Hash,
    entry::{BlockError, Codec, Entry, Received, Refusal},
    identity::Identity,
    log::Stamp,
    sync::{Block, Kind, Peer},
};

/// How many identities are remembered from one piece to the next; where more are named, all are looked for anew.
const IDENTITIES_MAX: usize = 4096;

/// Reads and checks what one peer sends, piece by piece and on all cores. It does so without the replica, so that nobody waits for it.
#[derive(Clone, Debug)]
pub struct Examiner {
    codec: Codec,
    peer: Peer,
    /// Those that were known or have come; none for a block that is no valid identity.
    identities: HashMap<Hash, Option<Identity>>,
}

/// What a replica knows of some blocks.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Those that have joined.
    joined: HashSet<Hash>,
    identities: HashMap<Hash, Option<Identity>>,
}

/// Blocks that were read and checked.
#[derive(Clone, Debug)]
pub struct Examined {
    /// The names of all entries, those that had joined before included.
    names: Vec<Hash>,
    identities: Vec<(Hash, Arc<[u8]>, Option<Identity>)>,
    entries: Vec<Looked>,
}

#[derive(Clone, Debug)]
struct Looked {
    block: Block,
    received: Result<Received, BlockError>,
    /// What its own checks said; none where the identity that it names was not there.
    stamp: Option<Result<Stamp, Refusal>>,
}

/// A block, what was read of it, and what its own checks said.
type Judged = (Block, Result<Received, BlockError>, Result<Stamp, Refusal>);

impl Examiner {
    /// Begins with what a peer sends of the log of a codec.
    #[must_use]
    pub fn new(codec: Codec, peer: Peer) -> Self {
        Self { codec, peer, identities: HashMap::new() }
    }

    /// Reads and checks a piece: entries and identities. `known` says what the replica knows, as [`Replica::known`] does, of these names:
    /// of blocks, and of identities that are named in them.
    pub fn examine(&mut self, blocks: &[Vec<u8>], known: impl FnOnce(&[Hash], &HashSet<Hash>) -> Known) -> Examined {
        let codec = &self.codec;
        let read = check::on_all_cores(blocks, |bytes| {
            let received = codec.read(bytes);
            let hash = received.as_ref().map_or_else(|_| Hash::of(bytes), |received| received.links.hash);
            let block = Block { hash, bytes: bytes.as_slice().into(), peer: Some(self.peer.clone()), joins: true };
            (block, received)
        });
        let named = read.iter().filter_map(|(_, read)| read.as_ref().ok()?.entry.as_ref().ok().map(Entry::identity));
        let named: HashSet<Hash> = named.collect();
        // A stranger may name an entry as an identity: it is looked at as both.
        let of_named = read.iter().filter(|(block, _)| named.contains(&block.hash));
        let identities: Vec<(Hash, Arc<[u8]>)> =
            of_named.map(|(block, _)| (block.hash, Arc::clone(&block.bytes))).collect();
        let entries: Vec<_> =
            read.into_iter().filter(|(block, read)| read.is_ok() || !named.contains(&block.hash)).collect();
        let names: Vec<Hash> = entries.iter().map(|(block, _)| block.hash).collect();

        if self.identities.len() > IDENTITIES_MAX {
            self.identities.clear();
        }
        let unknown = named.into_iter().filter(|hash| !self.identities.contains_key(hash)).collect();
        let Known { joined, identities: found } = known(&names, &unknown);
        self.identities.extend(found);
        let mut new = Vec::new();
        for (hash, bytes) in identities {
            if let Vacant(place) = self.identities.entry(hash) {
                let identity = place.insert(Identity::read(&bytes).ok()).clone();
                new.push((hash, bytes, identity));
            }
        }
        let entries: Vec<_> = entries.into_iter().filter(|(block, _)| !joined.contains(&block.hash)).collect();
        let stamps = check::stamps(&entries, &self.identities);
        let looked = |((block, received), stamp)| Looked { block, received, stamp };
        Examined { names, identities: new, entries: entries.into_iter().zip(stamps).map(looked).collect() }
    }
}

impl Examined {
    /// Returns the names of all entries in it.
    #[must_use]
    pub fn names(&self) -> &[Hash] {
        &self.names
    }
}

impl Replica {
    /// Returns what it knows of some blocks, and of identities.
    #[must_use]
    pub fn known(&self, blocks: &[Hash], identities: &HashSet<Hash>) -> Known {
        let identity = |hash: &Hash| Some((*hash, self.identities.get(hash)?.clone()));
        Known {
            joined: blocks.iter().filter(|hash| self.log.contains(hash)).copied().collect(),
            identities: identities.iter().filter_map(identity).collect(),
        }
    }

    /// Takes blocks that were examined, in their order. Returns what is to be done.
    pub fn take(&mut self, now: Duration, examined: Examined) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.bulk(now, examined, &mut effects);
        self.ask(now, &mut effects);
        effects
    }

    pub(super) fn bulk(&mut self, now: Duration, examined: Examined, effects: &mut Vec<Effect>) {
        for (hash, block, identity) in examined.identities {
            if !self.is_judged(&hash) {
                self.identity(now, hash, block, identity, effects);
            }
        }
        let fresh = examined.entries.into_iter().filter(|looked| !self.log.contains(&looked.block.hash));
        let entries: Vec<Judged> = fresh
            .map(|Looked { block, received, stamp }| {
                // What identity was not there may have come since.
                let own = || received.as_ref().map_or(Err(Refusal::Form), |read| check::own(read, &self.identities));
                let stamp = stamp.unwrap_or_else(own);
                (block, received, stamp)
            })
            .collect();
        let needed = self.needed(&entries);
        for (block, received, stamp) in entries {
            match received {
                Ok(received) => {
                    let needed = needed.contains(&block.hash);
                    self.bulk_entry(now, block, received, stamp, needed, effects);
                }
                // An identity that no entry names is of no use, and no harm.
                Err(_) if Identity::read(&block.bytes).is_ok() => {}
                Err(error) => {
                    let dropped = self.sync.broken(&block.hash);
                    self.report_broken(block.hash, error, dropped, effects);
                }
            }
        }
    }

    fn bulk_entry(
        &mut self,
        now: Duration,
        block: Block,
        received: Received,
        stamp: Result<Stamp, Refusal>,
        needed: bool,
        effects: &mut Vec<Effect>,
    ) {
        if !self.is_whole(&received) || !(needed || self.admits(&stamp)) {
            // As if it had come by itself.
            self.consider(now, block, received, effects);
            return;
        }
        self.no_identity(now, &block, effects);
        self.join(block.bytes, block.peer, received, stamp, effects);
        let ready = self.sync.arrived(now, &block.hash, Kind::Entry);
        self.settle(now, ready, effects);
    }

    fn admits(&self, stamp: &Result<Stamp, Refusal>) -> bool {
        stamp.as_ref().is_ok_and(|stamp| self.log.admission().admits(&stamp.identity))
    }

    /// Returns which of many blocks that are in order others build on that count, directly or over others that do not.
    fn needed(&self, entries: &[Judged]) -> HashSet<Hash> {
        let mut needed = HashSet::new();
        for (block, received, stamp) in entries.iter().rev() {
            let Ok(received) = received else { continue };
            if self.admits(stamp) || needed.contains(&block.hash) || self.sync.is_needed(&block.hash, Kind::Entry) {
                needed.extend(links_of(&received.links).map(|(hash, _)| hash));
            }
        }
        needed
    }
}
