//! Which changes of a swarm count.
//!
//! The state is a function of the set of valid changes that were seen, so that any order of arrival gives the same one: the key is that
//! of the change with the highest generation, then the lower hash; removed is who any of them removes. A change is dropped once another
//! outranks it and removes all that it removes, since it then has no part in the state any more.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bombus_core::identity::NodeId;

use super::change::{GENERATION_MAX, REMOVED_MAX};
use super::key::KeyHash;
use super::{Generation, OwnerId, OwnerKey, SignedChange, SwarmId, SwarmKey};

/// How many changes are kept at once. More than one there are only where an owner key is used on several machines at the same time,
/// until its next change merges them.
pub(super) const CHANGES_MAX: usize = 16;

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It says nothing new, or counts for nothing.
    Nothing,
    /// More peers are removed; the key stays.
    Removals,
    /// The key is another one, and more peers may be removed.
    NewKey,
}

/// Counts the changes from peers that changed nothing, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct IgnoredChanges {
    /// The owner did not sign them.
    pub forged: u64,
    /// They are about another swarm.
    pub other_swarm: u64,
    /// They were there before.
    pub known: u64,
    /// A newer one says all that they say.
    pub older: u64,
    /// They change the key, and the key that came with them is another one or missing.
    pub without_key: u64,
    /// There are too many at once.
    pub too_many: u64,
}

/// Decides between changes: the higher generation, then the lower hash of the key, then the lower hash of all that is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    generation: Generation,
    key_hash: Reverse<KeyHash>,
    hash: Reverse<[u8; 32]>,
}

impl Rank {
    fn of(change: &SignedChange) -> Self {
        Self { generation: change.generation(), key_hash: Reverse(change.key_hash()), hash: Reverse(change.hash()) }
    }

    fn same_key(self, other: Self) -> bool {
        self.key_hash == other.key_hash
    }
}

/// What a swarm's state stands on, without the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    owner: OwnerId,
    swarm_id: SwarmId,
    base: Rank,
    kept: BTreeMap<Rank, SignedChange>,
    removed: Arc<BTreeSet<NodeId>>,
}

impl Rules {
    /// Begins with a key that no change brought: the swarm's first one, or that of a ticket.
    pub(super) fn new(owner: OwnerId, generation: Generation, key_hash: KeyHash) -> Self {
        let base = Rank { generation, key_hash: Reverse(key_hash), hash: Reverse([u8::MAX; 32]) };
        Self { owner, swarm_id: SwarmId::of(&owner), base, kept: BTreeMap::new(), removed: Arc::default() }
    }

    pub(super) fn owner(&self) -> &OwnerId {
        &self.owner
    }

    pub(super) fn swarm_id(&self) -> &SwarmId {
        &self.swarm_id
    }

    /// Returns what it began with.
    pub(super) fn base(&self) -> (Generation, KeyHash) {
        (self.base.generation, self.base.key_hash.0)
    }

    pub(super) fn generation(&self) -> Generation {
        self.top().generation
    }

    /// Returns the hash of the key that counts.
    pub(super) fn key_hash(&self) -> KeyHash {
        self.top().key_hash.0
    }

    pub(super) fn removed(&self) -> &Arc<BTreeSet<NodeId>> {
        &self.removed
    }

    /// Returns the changes that the state stands on, the one that counts first.
    pub(super) fn changes(&self) -> impl Iterator<Item = &SignedChange> {
        self.kept.values().rev()
    }

    /// Says whether a change is among those that the state stands on.
    pub(super) fn has(&self, hash: &[u8; 32]) -> bool {
        self.kept.keys().any(|rank| rank.hash.0 == *hash)
    }

    /// Compares a key that comes without a change, from a ticket, with the one that counts: `None` where they are the same.
    pub(super) fn outranked_by(&self, generation: Generation, key_hash: KeyHash) -> Option<bool> {
        let top = self.top();
        let other = Rank { generation, key_hash: Reverse(key_hash), hash: top.hash };
        (!top.same_key(other)).then(|| other > top)
    }

    /// Goes on from another key that no change brought. Who was removed stays removed.
    pub(super) fn rebase(&mut self, generation: Generation, key_hash: KeyHash) {
        self.base = Rank { generation, key_hash: Reverse(key_hash), hash: Reverse([u8::MAX; 32]) };
    }

    /// Takes a change, with the key that came with it, and counts it where it changes nothing.
    pub(super) fn apply(
        &mut self,
        change: &SignedChange,
        key: Option<&SwarmKey>,
        ignored: &mut IgnoredChanges,
    ) -> Applied {
        let nothing = |counter: &mut u64| {
            *counter = counter.saturating_add(1);
            Applied::Nothing
        };
        if *change.swarm_id() != self.swarm_id {
            return nothing(&mut ignored.other_swarm);
        }
        let rank = Rank::of(change);
        if self.kept.contains_key(&rank) {
            return nothing(&mut ignored.known);
        }
        if !change.is_signed_by(&self.owner) {
            return nothing(&mut ignored.forged);
        }
        if self.is_covered(rank, change) {
            return nothing(&mut ignored.older);
        }
        let top = self.top();
        let new_key = rank > top && !rank.same_key(top);
        if new_key && key.is_none_or(|key| key.hash() != change.key_hash()) {
            return nothing(&mut ignored.without_key);
        }
        if self.kept.len() >= CHANGES_MAX && rank < top {
            return nothing(&mut ignored.too_many);
        }
        self.insert(rank, change);
        if new_key { Applied::NewKey } else { Applied::Removals }
    }

    /// Takes a change back from disk, whose key is known to be the right one; `false` where the owner did not sign it.
    pub(super) fn restore(&mut self, change: &SignedChange) -> bool {
        if *change.swarm_id() != self.swarm_id || !change.is_signed_by(&self.owner) {
            return false;
        }
        self.insert(Rank::of(change), change);
        true
    }

    /// Signs the next change: another key, and perhaps one more removed peer. It says all that the changes before it say.
    ///
    /// None where nothing more fits: too many are removed, or the last generation is reached.
    pub(super) fn next(&self, owner: &OwnerKey, key: &SwarmKey, remove: Option<&NodeId>) -> Option<SignedChange> {
        let generation = self.generation().0 + 1;
        let removed: BTreeSet<_> = self.removed.iter().chain(remove).cloned().collect();
        if removed.len() > REMOVED_MAX || generation > GENERATION_MAX {
            return None;
        }
        Some(SignedChange::sign(owner, Generation(generation), key, removed))
    }

    fn top(&self) -> Rank {
        self.kept.last_key_value().map_or(self.base, |(rank, _)| self.base.max(*rank))
    }

    fn insert(&mut self, rank: Rank, change: &SignedChange) {
        self.kept.retain(|other, kept| !(*other < rank && kept.removed().is_subset(change.removed())));
        self.kept.insert(rank, change.clone());
        if self.kept.len() > CHANGES_MAX {
            self.kept.pop_first();
        }
        // Who was removed once stays so, also where the change that did it had to make room.
        self.removed = Arc::new(self.removed.union(change.removed()).cloned().collect());
    }

    fn is_covered(&self, rank: Rank, change: &SignedChange) -> bool {
        let by_base = rank < self.base && change.removed().is_empty();
        by_base || self.kept.range(rank..).any(|(_, kept)| change.removed().is_subset(kept.removed()))
    }
}

#[cfg(test)]
mod tests;
