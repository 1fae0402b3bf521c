//! Who fetches which bytes (pure): ranges in order, the rest of a slow one for whoever is idle, and who sent what.

use std::ops::Range;

use super::ranges::RangeSet;

/// A range is not divided any more when this part of a whole one is left, or less.
const DIVIDED_PARTS: u64 = 16;

/// A range that a peer sends now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taken {
    id: u64,
    peer: usize,
    /// Where the next byte goes that is not written.
    at: u64,
    /// Up to where it is being written.
    writing: u64,
    /// It may move down, when others take over the rest.
    end: u64,
}

/// The plan of one file. Peers are known by their numbers.
#[derive(Debug)]
pub(super) struct Plan {
    size_bytes: u64,
    range_bytes: u64,
    have: RangeSet,
    taken: Vec<Taken>,
    ids: u64,
    /// Who sent what of that which is here; what an earlier pull left is nobody's.
    sent: Vec<(Range<u64>, usize)>,
}

impl Plan {
    /// Begins with what is here. A peer is asked for `range_bytes` at once.
    pub(super) fn new(size_bytes: u64, range_bytes: u64, have: RangeSet) -> Self {
        Self { size_bytes, range_bytes: range_bytes.max(1), have, taken: Vec::new(), ids: 0, sent: Vec::new() }
    }

    pub(super) fn have(&self) -> &RangeSet {
        &self.have
    }

    pub(super) fn is_whole(&self) -> bool {
        self.have.bytes() == self.size_bytes
    }

    /// Gives a peer something to send: the first bytes that nobody sends, or else the second half of the range that another peer is
    /// furthest from the end of. `None` while there is nothing.
    pub(super) fn take(&mut self, peer: usize) -> Option<(u64, Range<u64>)> {
        let mut busy = self.have.clone();
        self.taken.iter().for_each(|taken| busy.add(taken.at..taken.end));
        let range = match busy.gap(0, self.size_bytes) {
            Some(gap) => gap.start..gap.end.min(gap.start.saturating_add(self.range_bytes)),
            None => {
                let left = |taken: &Taken| taken.end - taken.writing;
                let least = self.range_bytes / DIVIDED_PARTS;
                let others = self.taken.iter_mut().filter(|taken| taken.peer != peer);
                let slowest = others.max_by_key(|taken| left(taken)).filter(|taken| left(taken) > least.max(1))?;
                let middle = slowest.writing + left(slowest) / 2;
                let range = middle..slowest.end;
                slowest.end = middle;
                range
            }
        };
        self.ids += 1;
        self.taken.push(Taken { id: self.ids, peer, at: range.start, writing: range.start, end: range.end });
        Some((self.ids, range))
    }

    /// Returns what is left of a range.
    pub(super) fn left(&self, id: u64) -> Range<u64> {
        self.taken.iter().find(|taken| taken.id == id).map_or(0..0, |taken| taken.at..taken.end)
    }

    /// Says where the next bytes of a range go that are being written, and how many of them: others send what is beyond its end. They
    /// are not given to anybody else meanwhile.
    pub(super) fn begin_write(&mut self, id: u64, bytes: u64) -> Range<u64> {
        let Some(taken) = self.taken.iter_mut().find(|taken| taken.id == id) else { return 0..0 };
        taken.writing = taken.end.min(taken.at.saturating_add(bytes));
        taken.at..taken.writing
    }

    /// Notes that what was being written of a range is here.
    pub(super) fn written(&mut self, id: u64) {
        let Some(taken) = self.taken.iter_mut().find(|taken| taken.id == id) else { return };
        let new = taken.at..taken.writing;
        if new.is_empty() {
            return;
        }
        taken.at = new.end;
        let peer = taken.peer;
        self.have.add(new.clone());
        match self.sent.last_mut() {
            Some((range, by)) if *by == peer && range.end == new.start => range.end = new.end,
            _ => self.sent.push((new, peer)),
        }
    }

    /// Ends a range; what is left of it is for others.
    pub(super) fn release(&mut self, id: u64) {
        self.taken.retain(|taken| taken.id != id);
    }

    /// Ends all ranges.
    pub(super) fn release_all(&mut self) {
        self.taken.clear();
    }

    /// Returns who sent most of what is here.
    pub(super) fn most_from(&self) -> Option<usize> {
        let of = |peer: usize| -> u64 {
            self.sent.iter().filter(|(_, by)| *by == peer).map(|(range, _)| range.end - range.start).sum()
        };
        self.sent.iter().map(|(_, peer)| *peer).max_by_key(|peer| of(*peer))
    }

    /// Says whether all that is here came from this peer, now.
    pub(super) fn is_all_from(&self, peer: usize) -> bool {
        let mut of_peer = RangeSet::default();
        self.sent.iter().filter(|(_, by)| *by == peer).for_each(|(range, _)| of_peer.add(range.clone()));
        of_peer == self.have
    }

    /// Forgets all that this peer did not send, and returns what others did, each with who it was.
    pub(super) fn keep_only(&mut self, peer: Option<usize>) -> Vec<(Range<u64>, usize)> {
        let (kept, gone) = std::mem::take(&mut self.sent).into_iter().partition(|(_, by)| Some(*by) == peer);
        self.sent = kept;
        self.have = RangeSet::default();
        for (range, _) in &self.sent {
            self.have.add(range.clone());
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn put(plan: &mut Plan, id: u64, bytes: u64) {
        plan.begin_write(id, bytes);
        plan.written(id);
    }

    #[test]
    fn what_is_being_written_is_given_to_nobody_else() {
        let mut plan = Plan::new(16 * MIB, 16 * MIB, RangeSet::default());
        let (id, _) = plan.take(0).unwrap();
        assert_eq!(plan.begin_write(id, 12 * MIB), 0..12 * MIB);
        assert_eq!(plan.take(1).map(|(_, range)| range), Some(14 * MIB..16 * MIB));
        plan.written(id);
        assert_eq!(plan.left(id), 12 * MIB..14 * MIB);
    }

    #[test]
    fn ranges_are_given_in_order_and_the_rest_of_a_slow_one_to_whoever_is_idle() {
        let mut plan = Plan::new(40 * MIB, 16 * MIB, RangeSet::default());
        let (first, range) = plan.take(0).unwrap();
        assert_eq!(range, 0..16 * MIB);
        let (second, range) = plan.take(1).unwrap();
        assert_eq!(range, 16 * MIB..32 * MIB);
        let (third, range) = plan.take(1).unwrap();
        assert_eq!(range, 32 * MIB..40 * MIB);
        put(&mut plan, first, 4 * MIB);
        for (id, bytes) in [(second, 16 * MIB), (third, 8 * MIB)] {
            put(&mut plan, id, bytes);
            plan.release(id);
        }
        let (fourth, range) = plan.take(1).unwrap();
        assert_eq!((range, plan.left(first)), (10 * MIB..16 * MIB, 4 * MIB..10 * MIB));
        assert_eq!(plan.take(0).map(|(_, range)| range), Some(13 * MIB..16 * MIB), "nobody divides what is its own");
        put(&mut plan, first, 100 * MIB);
        assert_eq!(plan.left(first), 10 * MIB..10 * MIB, "what others send is not counted twice");
        put(&mut plan, fourth, MIB);
        plan.release(fourth);
        assert_eq!(plan.take(1).map(|(_, range)| range), Some(11 * MIB..13 * MIB), "what is given up is given again");
        assert!(!plan.is_whole());
    }

    #[test]
    fn what_is_kept_is_what_one_peer_sent() {
        let have = {
            let mut set = RangeSet::default();
            set.add(0..10);
            set
        };
        let mut plan = Plan::new(30, 1_000, have);
        let (id, range) = plan.take(0).unwrap();
        assert_eq!(range, 10..30);
        put(&mut plan, id, 5);
        plan.release(id);
        let (id, _) = plan.take(1).unwrap();
        put(&mut plan, id, 15);
        plan.release(id);
        assert!(plan.is_whole() && !plan.is_all_from(1));
        assert_eq!(plan.most_from(), Some(1));
        assert_eq!(plan.keep_only(Some(1)), [(10..15, 0)]);
        assert_eq!(plan.have().gap(0, 30), Some(0..15));
        assert!(plan.is_all_from(1));
    }

    proptest! {
        #[test]
        fn every_byte_comes_once_whoever_gives_up(
            size in 1_u64..200, steps in prop::collection::vec((0_usize..3, any::<bool>(), 1_u64..40), 0..60),
        ) {
            let size_bytes = size * MIB / 4;
            let mut plan = Plan::new(size_bytes, 16 * MIB, RangeSet::default());
            let mut came = 0;
            let mut running: Vec<u64> = Vec::new();
            let mut finish = |plan: &mut Plan, id: u64, bytes: u64| {
                let left = plan.left(id);
                came += bytes.min(left.end - left.start);
                put(plan, id, bytes);
            };
            for (peer, gives_up, bytes) in steps {
                running.extend(plan.take(peer).map(|(id, _)| id));
                if gives_up && !running.is_empty() {
                    let id = running.remove(0);
                    finish(&mut plan, id, bytes * MIB / 4);
                    plan.release(id);
                }
            }
            for id in running {
                finish(&mut plan, id, u64::MAX / 4);
                plan.release(id);
            }
            while let Some((id, range)) = plan.take(0) {
                finish(&mut plan, id, range.end - range.start);
                plan.release(id);
            }
            prop_assert!(plan.is_whole());
            prop_assert_eq!(came, size_bytes);
        }
    }
}
