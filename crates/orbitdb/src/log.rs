//! The log: a graph of entries, its total order and its heads. Pure: it holds who follows whom, and not the entries themselves.
//!
//! # When an entry counts
//!
//! That need not be the time that it states. A member may state any time, and peers in JavaScript take it: what they write on top of it
//! states one that lies higher still. They are honest, so what they write counts. But it must not be lifted by what does not: with one
//! entry far ahead and another on top of it, anybody who may write would win every key for good and bring the clock of all to its end.
//! Nor must it be lowered: an entry that states a time long past, and another on top, would make what everybody writes from then on older
//! than what is there.
//!
//! So each block of the graph has a time at which it counts, or would. It follows from the links of the block and of its ancestors alone,
//! so that it is the same wherever they come and in whatever order:
//!
//! - Where the stated time lies 1 to [`CLOCK_STEP_MAX`] above the greatest time at which something that the block follows counts, it counts at
//!   the time that it states. In a log without attacks all do.
//! - Otherwise, where the stated time lies 1 to [`CLOCK_STEP_MAX`] above the greatest that something it follows states, it counts by as much
//!   above the greatest time at which something that it follows counts. So counts what was written on top of a time that does not.
//! - Otherwise it is refused, and stands at the greatest time at which something that it follows counts: it lifts and lowers nothing.
//!
//! An entry that counts therefore always stands above all that it follows, and each block lifts the clock by [`CLOCK_STEP_MAX`] at most.

mod catch_up;
mod clock;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    cid::Hash,
    entry::{Draft, Links, Refusal},
    key::KeyBytes,
};
pub(crate) use catch_up::lacking;
use clock::Time;

/// How far the time of an entry may lie above the greatest among those it follows. What was written on top of a time that lies higher
/// counts all the same, without being lifted by it.
pub const CLOCK_STEP_MAX: u64 = 1024;

/// Greatest time: the greatest integer that JavaScript counts with, 2^53 - 1.
pub const CLOCK_MAX: u64 = (1 << 53) - 1;

/// How many further ancestors a new entry names.
pub const REFS: usize = 16;

/// Greatest number of heads that a new entry follows; further ones stay heads.
const NEXT_MAX: usize = 1024;

/// Where an entry stands in the total order: by time, then by its writer's key, then by hash. Greater is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The Lamport time at which it counts: the one that it states, unless that was lifted or lowered by an entry whose time is refused.
    pub time: u64,
    /// The inner public key of its writer.
    pub writer: KeyBytes,
    /// The name of its block.
    pub hash: Hash,
}

/// Who wrote an entry whose own checks all hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The inner public key.
    pub writer: KeyBytes,
    /// The id of the identity, which write lists hold.
    pub identity: Arc<str>,
}

/// Whose entries count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Everybody's.
    Everyone,
    /// Those of the identities with these ids.
    Only(BTreeSet<String>),
}

impl Admission {
    /// Makes an admission of a write list, in which "*" stands for everybody.
    pub fn of_list<'a>(ids: impl IntoIterator<Item = &'a str>) -> Self {
        let ids: BTreeSet<String> = ids.into_iter().map(str::to_owned).collect();
        if ids.contains("*") { Self::Everyone } else { Self::Only(ids) }
    }

    /// Returns whether the entries of an identity count.
    #[must_use]
    pub fn admits(&self, id: &str) -> bool {
        match self {
            Self::Everyone => true,
            Self::Only(ids) => ids.contains(id),
        }
    }
}

/// What became of a block that joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It was there already.
    Known,
    /// It counts.
    Admitted(Position),
    /// It is a part of the graph and does not count.
    Opaque(Refusal),
}

/// Some of what a block follows is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} ancestors are missing", .0.len())]
pub struct Missing(pub Vec<Hash>);

/// The clock of the log has come to its end, so that nothing can be written any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the clock of this log has come to its end: open a new database")]
pub struct ClockExhausted;

/// What a block follows. Most follow one.
#[derive(Clone, Debug)]
enum Next {
    One(Hash),
    Many(Box<[Hash]>),
}

impl Next {
    fn new(hashes: &[Hash]) -> Self {
        if let [one] = hashes { Self::One(*one) } else { Self::Many(hashes.into()) }
    }

    fn as_slice(&self) -> &[Hash] {
        match self {
            Self::One(hash) => std::slice::from_ref(hash),
            Self::Many(hashes) => hashes,
        }
    }
}

#[derive(Clone, Debug)]
struct Node {
    time: Time,
    next: Next,
    /// The index of its writer, or what its own checks and its clock said.
    own: Result<u32, Refusal>,
}

/// A log.
#[derive(Clone, Debug)]
pub struct Log {
    admission: Admission,
    nodes: HashMap<Hash, Node>,
    stamps: Vec<Stamp>,
    stamp_index: HashMap<Stamp, u32>,
    order: BTreeSet<Position>,
    heads: BTreeSet<Position>,
    /// Those that do not count and that one that counts follows, directly or over others that do not count.
    covered: HashSet<Hash>,
    refused: BTreeMap<Refusal, u64>,
}

impl Log {
    /// Makes an empty log.
    #[must_use]
    pub fn new(admission: Admission) -> Self {
        Self {
            admission,
            nodes: HashMap::new(),
            stamps: Vec::new(),
            stamp_index: HashMap::new(),
            order: BTreeSet::new(),
            heads: BTreeSet::new(),
            covered: HashSet::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Takes a block back that had joined before, in the order in which they did, with what its own checks had said; [`Log::judge`] follows
    /// when all are there. Returns where it stands; none when it does not count.
    pub(crate) fn restore(&mut self, links: &Links, stamp: Result<Stamp, Refusal>) -> Option<Position> {
        let node = self.node(links, stamp);
        let position = self.position_of(links.hash, &node).ok();
        self.nodes.insert(links.hash, node);
        position
    }

    /// Makes the node of a block whose ancestors are there: judges its clock, where its own checks hold.
    fn node(&mut self, links: &Links, stamp: Result<Stamp, Refusal>) -> Node {
        let followed = links.next.iter().filter_map(|hash| self.nodes.get(hash)).map(|node| node.time);
        let (time, is_allowed) = Time::greatest(followed).follow(links.time);
        let stamp = if is_allowed { stamp } else { stamp.and(Err(Refusal::Clock)) };
        Node { time, next: Next::new(&links.next), own: stamp.map(|stamp| self.intern(stamp)) }
    }

    fn intern(&mut self, stamp: Stamp) -> u32 {
        let next = u32::try_from(self.stamps.len()).expect("fewer writers than 2^32 entries");
        *self.stamp_index.entry(stamp).or_insert_with_key(|stamp| {
            self.stamps.push(stamp.clone());
            next
        })
    }

    /// Returns whether a block has joined.
    #[must_use]
    pub fn contains(&self, hash: &Hash) -> bool {
        self.nodes.contains_key(hash)
    }

    /// Returns where an entry stands in the order; none when it is not there or does not count.
    #[must_use]
    pub fn position(&self, hash: &Hash) -> Option<Position> {
        self.position_of(*hash, self.nodes.get(hash)?).ok()
    }

    /// Returns who wrote an entry; none when its own checks do not hold.
    #[must_use]
    pub fn stamp(&self, hash: &Hash) -> Option<&Stamp> {
        Some(&self.stamps[self.nodes.get(hash)?.own.ok()? as usize])
    }

    /// Returns what the own checks of a block and its clock said, without the admission of its writer.
    #[must_use]
    pub fn own_refusal(&self, hash: &Hash) -> Option<Refusal> {
        self.nodes.get(hash)?.own.err()
    }

    fn position_of(&self, hash: Hash, node: &Node) -> Result<Position, Refusal> {
        let stamp = &self.stamps[node.own? as usize];
        if !self.admission.admits(&stamp.identity) {
            return Err(Refusal::Access);
        }
        Ok(Position { time: node.time.counted, writer: stamp.writer, hash })
    }

    /// Lets a block join that has been checked by itself; `stamp` is what that gave.
    ///
    /// # Errors
    ///
    /// [`Missing`] when something that it follows, or refers to, has not joined.
    pub fn join(&mut self, links: &Links, stamp: Result<Stamp, Refusal>) -> Result<Joined, Missing> {
        if self.contains(&links.hash) {
            return Ok(Joined::Known);
        }
        let missing: Vec<Hash> =
            links.next.iter().chain(&links.refs).filter(|hash| !self.contains(hash)).copied().collect();
        if !missing.is_empty() {
            return Err(Missing(missing));
        }
        let node = self.node(links, stamp);
        let position = self.position_of(links.hash, &node);
        self.nodes.insert(links.hash, node);
        Ok(match position {
            Ok(position) => {
                self.cover(&links.next);
                self.order.insert(position);
                self.heads.insert(position);
                Joined::Admitted(position)
            }
            Err(refusal) => {
                *self.refused.entry(refusal).or_default() += 1;
                Joined::Opaque(refusal)
            }
        })
    }

    /// Takes from the heads what an entry that counts follows. What stands behind one that counts has been covered by it before.
    fn cover(&mut self, next: &[Hash]) {
        let mut stack = next.to_vec();
        while let Some(hash) = stack.pop() {
            let Some(node) = self.nodes.get(&hash) else { continue };
            if let Ok(position) = self.position_of(hash, node) {
                self.heads.remove(&position);
            } else if self.covered.insert(hash) {
                stack.extend(self.nodes[&hash].next.as_slice());
            }
        }
    }

    /// Counts the entries of others from now on. Returns whether anything changed.
    pub fn readmit(&mut self, admission: Admission) -> bool {
        if self.admission == admission {
            return false;
        }
        self.admission = admission;
        self.judge();
        true
    }

    /// Works out anew who counts, and which are the heads.
    pub(crate) fn judge(&mut self) {
        let mut refused = BTreeMap::new();
        let mut order = Vec::with_capacity(self.nodes.len());
        for (hash, node) in &self.nodes {
            match self.position_of(*hash, node) {
                Ok(position) => order.push(position),
                Err(refusal) => *refused.entry(refusal).or_default() += 1,
            }
        }
        self.refused = refused;
        self.covered.clear();
        let mut followed = HashSet::with_capacity(order.len());
        let mut stack: Vec<Hash> = Vec::new();
        for position in &order {
            stack.extend(self.nodes[&position.hash].next.as_slice());
            while let Some(hash) = stack.pop() {
                let Some(node) = self.nodes.get(&hash) else { continue };
                if self.position_of(hash, node).is_ok() {
                    followed.insert(hash);
                } else if self.covered.insert(hash) {
                    stack.extend(node.next.as_slice());
                }
            }
        }
        self.heads = order.iter().filter(|position| !followed.contains(&position.hash)).copied().collect();
        self.order = order.into_iter().collect();
    }

    /// Returns the heads, newest first.
    pub fn heads(&self) -> impl ExactSizeIterator<Item = &Position> + DoubleEndedIterator {
        self.heads.iter().rev()
    }

    /// Returns all entries that count, newest first.
    pub fn newest_first(&self) -> impl ExactSizeIterator<Item = &Position> + DoubleEndedIterator {
        self.order.iter().rev()
    }

    /// Returns the entries that count within bounds of the order.
    pub fn range(&self, bounds: impl std::ops::RangeBounds<Position>) -> impl DoubleEndedIterator<Item = &Position> {
        self.order.range(bounds)
    }

    /// Returns how many entries count.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Returns whether no entry counts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Returns how many blocks do not count, by reason.
    #[must_use]
    pub const fn refused(&self) -> &BTreeMap<Refusal, u64> {
        &self.refused
    }

    /// Returns whose entries count.
    #[must_use]
    pub const fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Returns where the next entry stands, with its time `step` above those of the heads: it counts as newer than all that is here.
    ///
    /// # Errors
    ///
    /// [`ClockExhausted`] when there is no such time.
    pub fn draft(&self, step: u64) -> Result<Draft, ClockExhausted> {
        self.draft_within(step, NEXT_MAX)
    }

    /// Returns the same for an entry that names at most so many `next`, and as many `refs`. Heads that it does not name stay heads, and the
    /// entries after it name them. One head, the newest, is named in any case.
    ///
    /// # Errors
    ///
    /// As [`Log::draft`].
    pub fn draft_within(&self, step: u64, links_max: usize) -> Result<Draft, ClockExhausted> {
        let next_max = links_max.clamp(1, NEXT_MAX);
        let next: Vec<Hash> = self.heads().take(next_max).map(|position| position.hash).collect();
        let followed = next.iter().map(|hash| self.nodes[hash].time);
        let time = Time::greatest(followed).next(step).ok_or(ClockExhausted)?;
        let refs = self.newest_first().skip(next.len()).take(REFS.min(links_max));
        Ok(Draft { time, refs: refs.map(|position| position.hash).collect(), next })
    }
}
