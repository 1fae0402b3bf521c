//! What one replica lacks of another's log.

use std::collections::{BinaryHeap, HashMap, HashSet};

use super::{Log, Position};
use crate::cid::Hash;

/// Most heads that are named to a peer.
const HEADS_MAX: usize = 1024;

/// What is known of a block while the log is walked.
#[derive(Clone, Copy)]
struct Mark {
    /// The peer has it, and so all that it follows.
    had: bool,
    /// It was looked at, and what it follows is marked.
    done: bool,
}

impl Log {
    /// Returns names that tell a peer what is here: the heads, and ever fewer of what lies behind them. All that these follow is here, too.
    #[must_use]
    pub fn have(&self) -> Vec<Hash> {
        let mut have: Vec<Hash> = self.heads().take(HEADS_MAX).map(|position| position.hash).collect();
        let greatest = self.heads().next().map_or(0, |position| position.time);
        let mut step = 1_u64;
        while let Some(time) = greatest.checked_sub(step).filter(|time| *time > 0) {
            let above = Position { time, writer: [0xff; 33], hash: Hash::from_digest([0xff; 32]) };
            let Some(position) = self.order.range(..=above).next_back() else { break };
            if !have.contains(&position.hash) {
                have.push(position.hash);
            }
            step = step.saturating_mul(2);
        }
        have
    }

    /// Returns the names of the blocks that a peer lacks which has those of `have` and all that they follow, each after those that it
    /// follows itself. Names that are not known here are passed over.
    ///
    /// It walks down from the heads as far as the peer lacks something, so its time grows with what is returned and not with the log.
    #[must_use]
    pub fn lacking(&self, have: &[Hash]) -> Vec<Hash> {
        lacking(self.ends(have), |hash| self.followed(hash))
    }

    /// Returns between what a walk lies that begins now.
    pub(crate) fn ends(&self, have: &[Hash]) -> Ends {
        let known = |hash: &Hash| Some((self.nodes.get(hash)?.time.counted, *hash));
        let heads = self.heads().map(|head| (head.time, head.hash)).collect();
        Ends { heads, had: have.iter().filter_map(known).collect() }
    }

    /// Returns what a block follows, each behind the time at which it counts.
    pub(crate) fn followed(&self, hash: &Hash) -> Vec<(u64, Hash)> {
        let followed = self.nodes.get(hash).map_or(&[][..], |node| node.next.as_slice());
        followed.iter().filter_map(|next| Some((self.nodes.get(next)?.time.counted, *next))).collect()
    }
}

/// Between what a walk lies: the heads of a log, and what the peer has of it, each behind the time at which it counts.
pub(crate) struct Ends {
    heads: Vec<(u64, Hash)>,
    had: Vec<(u64, Hash)>,
}

/// Does what [`Log::lacking`] does, and looks at the log for a moment at a time only. A log only grows, and what joins meanwhile is followed by
/// none of the heads that the walk began with.
pub(crate) fn lacking(ends: Ends, followed: impl Fn(&Hash) -> Vec<(u64, Hash)>) -> Vec<Hash> {
    let Ends { heads, had } = ends;
    let mut marks: HashMap<Hash, Mark> = HashMap::new();
    let mut queue: BinaryHeap<(u64, Hash)> = BinaryHeap::new();
    for (time, hash) in had {
        if marks.insert(hash, Mark { had: true, done: false }).is_none() {
            queue.push((time, hash));
        }
    }
    // Those in the queue that the peer may lack. When there are none, the rest is what it has.
    let mut open = 0_usize;
    for (time, hash) in &heads {
        marks.entry(*hash).or_insert_with(|| {
            queue.push((*time, *hash));
            open += 1;
            Mark { had: false, done: false }
        });
    }
    while open > 0
        && let Some((_, hash)) = queue.pop()
    {
        let Some(mark) = marks.get_mut(&hash) else { continue };
        let had = mark.had;
        if !had {
            open -= 1;
        }
        mark.done = true;
        for (time, next) in followed(&hash) {
            match marks.get_mut(&next) {
                None => {
                    marks.insert(next, Mark { had, done: false });
                    queue.push((time, next));
                    open += usize::from(!had);
                }
                Some(mark) if had && !mark.had => {
                    mark.had = true;
                    if mark.done {
                        // Only where a block does not count: it may stand at the time of what it follows.
                        queue.push((time, next));
                    } else {
                        open -= 1;
                    }
                }
                Some(_) => {}
            }
        }
    }
    let lacked = marks.into_iter().filter(|(_, mark)| !mark.had).map(|(hash, _)| hash);
    ancestors_first(&heads, lacked.collect(), followed)
}

/// Orders blocks behind the heads so that each comes after those that it follows. A block that does not count may stand at the time of those.
fn ancestors_first(
    heads: &[(u64, Hash)],
    mut unseen: HashSet<Hash>,
    followed: impl Fn(&Hash) -> Vec<(u64, Hash)>,
) -> Vec<Hash> {
    let mut ordered = Vec::with_capacity(unseen.len());
    let mut stack: Vec<(Hash, bool)> = heads.iter().map(|(_, hash)| (*hash, false)).collect();
    while let Some((hash, follows_done)) = stack.pop() {
        if follows_done {
            ordered.push(hash);
        } else if unseen.remove(&hash) {
            stack.push((hash, true));
            let next = followed(&hash).into_iter().map(|(_, next)| next);
            stack.extend(next.filter(|next| unseen.contains(next)).map(|next| (next, false)));
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::super::{Admission, Stamp};
    use super::*;
    use crate::{
        entry::{Links, Refusal},
        key::KeyBytes,
    };

    fn name(number: usize) -> Hash {
        Hash::of(&number.to_be_bytes())
    }

    fn stamp() -> Stamp {
        let writer: KeyBytes = [2; 33];
        Stamp { writer, identity: "writer".into() }
    }

    /// A log in which each block follows some before it; some do not count.
    fn log(shape: &[(Vec<usize>, bool)]) -> Log {
        let mut log = Log::new(Admission::Everyone);
        let mut times: Vec<u64> = Vec::new();
        for (number, (next, counts)) in shape.iter().enumerate() {
            let next: HashSet<usize> = next.iter().filter(|_| number > 0).map(|next| next % number.max(1)).collect();
            let time = 1 + next.iter().map(|next| times[*next]).max().unwrap_or_default();
            times.push(time);
            let links =
                Links { hash: name(number), next: next.into_iter().map(name).collect(), refs: Vec::new(), time };
            log.join(&links, if *counts { Ok(stamp()) } else { Err(Refusal::Signature) }).unwrap();
        }
        log
    }

    fn behind(log: &Log, from: impl IntoIterator<Item = Hash>) -> HashSet<Hash> {
        let mut seen = HashSet::new();
        let mut stack: Vec<Hash> = from.into_iter().collect();
        while let Some(hash) = stack.pop() {
            if let Some(node) = log.nodes.get(&hash)
                && seen.insert(hash)
            {
                stack.extend(node.next.as_slice());
            }
        }
        seen
    }

    proptest! {
        #[test]
        fn a_peer_gets_what_it_lacks_in_an_order_that_joins(
            shape in prop::collection::vec((prop::collection::vec(any::<usize>(), 0..3), prop::bool::weighted(0.8)), 1..60),
            have in prop::collection::vec(0_usize..80, 0..5),
        ) {
            let log = log(&shape);
            let have: Vec<Hash> = have.into_iter().map(name).collect();
            let had = behind(&log, have.iter().copied());
            let wanted: HashSet<Hash> =
                behind(&log, log.heads().map(|head| head.hash)).difference(&had).copied().collect();
            let lacking = log.lacking(&have);
            prop_assert_eq!(lacking.iter().copied().collect::<HashSet<_>>(), wanted);
            let mut there = had;
            for hash in &lacking {
                prop_assert!(log.nodes[hash].next.as_slice().iter().all(|next| there.contains(next)));
                prop_assert!(there.insert(*hash));
            }
        }

        #[test]
        fn what_joins_meanwhile_changes_nothing(
            shape in prop::collection::vec((prop::collection::vec(any::<usize>(), 0..3), prop::bool::weighted(0.8)), 1..60),
            have in prop::collection::vec(0_usize..80, 0..5),
        ) {
            let log = log(&shape);
            let have: Vec<Hash> = have.into_iter().map(name).collect();
            let (ends, mut wanted) = (log.ends(&have), log.lacking(&have));
            let growing = RefCell::new(log);
            let mut found = lacking(ends, |hash| {
                let mut log = growing.borrow_mut();
                let followed = log.followed(hash);
                let draft = log.draft(1).unwrap();
                let links = Links { hash: name(100 + log.nodes.len()), next: draft.next, refs: Vec::new(), time: draft.time };
                log.join(&links, Ok(stamp())).unwrap();
                followed
            });
            prop_assert!(growing.borrow().nodes.len() > shape.len() || wanted.is_empty());
            found.sort();
            wanted.sort();
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn a_replica_that_says_what_it_has_lacks_nothing(
            shape in prop::collection::vec((prop::collection::vec(any::<usize>(), 0..3), Just(true)), 1..60),
        ) {
            let log = log(&shape);
            prop_assert!(log.lacking(&log.have()).is_empty());
        }
    }

    #[test]
    fn of_a_long_log_few_names_are_told_and_a_fork_costs_little() {
        let chain: Vec<_> = (0..5_000).map(|number: usize| (vec![number.wrapping_sub(1)], true)).collect();
        let there = log(&chain);
        let mut here = log(&chain[..4_900]);
        let fork = Links { hash: name(99_999), next: vec![name(4_899)], refs: Vec::new(), time: 4_901 };
        here.join(&fork, Ok(stamp())).unwrap();
        let have = here.have();
        assert!(have.len() < 20, "{}", have.len());
        let lacking = there.lacking(&have);
        assert!((100..200).contains(&lacking.len()), "{}", lacking.len());
    }
}
