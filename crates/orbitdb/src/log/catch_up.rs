//! What one replica lacks of another's log.

use std::collections::{BinaryHeap, HashMap};

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
        let mut marks: HashMap<Hash, Mark> = HashMap::new();
        let mut queue: BinaryHeap<(u64, Hash)> = BinaryHeap::new();
        for hash in have {
            if let Some(node) = self.nodes.get(hash)
                && marks.insert(*hash, Mark { had: true, done: false }).is_none()
            {
                queue.push((node.time.counted, *hash));
            }
        }
        // Those in the queue that the peer may lack. When there are none, the rest is what it has.
        let mut open = 0_usize;
        for head in self.heads() {
            marks.entry(head.hash).or_insert_with(|| {
                queue.push((head.time, head.hash));
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
            for next in self.nodes.get(&hash).map_or(&[][..], |node| node.next.as_slice()) {
                let Some(node) = self.nodes.get(next) else { continue };
                match marks.get_mut(next) {
                    None => {
                        marks.insert(*next, Mark { had, done: false });
                        queue.push((node.time.counted, *next));
                        open += usize::from(!had);
                    }
                    Some(mark) if had && !mark.had => {
                        mark.had = true;
                        if mark.done {
                            // Only where a block does not count: it may stand at the time of what it follows.
                            queue.push((node.time.counted, *next));
                        } else {
                            open -= 1;
                        }
                    }
                    Some(_) => {}
                }
            }
        }
        self.ancestors_first(marks.into_iter().filter(|(_, mark)| !mark.had).map(|(hash, _)| (hash, false)).collect())
    }

    /// Orders blocks behind the heads so that each comes after those that it follows. A block that does not count may stand at the time of those.
    fn ancestors_first(&self, mut unseen: HashMap<Hash, bool>) -> Vec<Hash> {
        let mut ordered = Vec::with_capacity(unseen.len());
        let mut stack: Vec<(Hash, bool)> = self.heads().map(|head| (head.hash, false)).collect();
        while let Some((hash, follows_done)) = stack.pop() {
            if follows_done {
                ordered.push(hash);
            } else if unseen.remove(&hash).is_some() {
                stack.push((hash, true));
                let next = self.nodes.get(&hash).map_or(&[][..], |node| node.next.as_slice());
                stack.extend(next.iter().filter(|next| unseen.contains_key(*next)).map(|next| (*next, false)));
            }
        }
        ordered
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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
