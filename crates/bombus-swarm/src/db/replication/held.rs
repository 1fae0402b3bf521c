//! What was published and follows what is not here: by itself, it would have its ancestors fetched one by one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bombus_core::identity::NodeId;

use super::Heard;
use crate::db::config::QueuesConfig;

/// Entries that wait for what they follow, in the order in which they came. Nobody can check them yet, so that no peer gets more than a share of
/// the room; all those whom no connection leads to have one share together, since anybody can make up as many of them as it likes.
pub(super) struct Held {
    limits: QueuesConfig,
    waiting: VecDeque<Waiting>,
    bytes: usize,
    shares: BTreeMap<Option<NodeId>, Share>,
}

/// An entry that waits.
pub(super) struct Waiting {
    pub(super) entry: Heard,
    /// The peer whose share it takes; none where no connection leads to who wrote it.
    source: Option<NodeId>,
}

#[derive(Clone, Copy, Default)]
struct Share {
    entries: usize,
    bytes: usize,
}

impl Held {
    pub(super) fn new(limits: QueuesConfig) -> Self {
        Self { limits, waiting: VecDeque::new(), bytes: 0, shares: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns who wrote what stands in front.
    pub(super) fn first(&self) -> Option<&NodeId> {
        self.waiting.front().map(|waiting| &waiting.entry.from)
    }

    /// Holds an entry back, where there is room for it, of all and of its source's.
    pub(super) fn hold(&mut self, source: Option<NodeId>, entry: Heard) -> bool {
        let bytes = entry.block.len();
        let share = self.shares.get(&source).copied().unwrap_or_default();
        let limits = &self.limits;
        let fits = self.waiting.len() < limits.held_max.max(1)
            && self.bytes + bytes <= limits.held_bytes_max()
            && share.entries < limits.held_per_peer_max.max(1)
            && share.bytes + bytes <= limits.held_bytes_per_peer_max();
        if fits {
            let waiting = Waiting { entry, source };
            self.count(&waiting);
            self.waiting.push_back(waiting);
        }
        fits
    }

    fn count(&mut self, waiting: &Waiting) {
        let bytes = waiting.entry.block.len();
        let share = self.shares.entry(waiting.source.clone()).or_default();
        share.entries += 1;
        share.bytes += bytes;
        self.bytes += bytes;
    }

    /// Takes out all that waits of those of whom the least does, up to so many entries.
    pub(super) fn take_few(&mut self, most: usize) -> VecDeque<Waiting> {
        let mut shares: Vec<_> = self.shares.iter().map(|(source, share)| (share.entries, source)).collect();
        shares.sort_unstable();
        let mut entries = 0;
        let sources: BTreeSet<Option<NodeId>> = shares
            .into_iter()
            .take_while(|(of_source, _)| {
                entries += of_source;
                entries <= most
            })
            .map(|(_, source)| source.clone())
            .collect();
        if sources.is_empty() {
            return VecDeque::new();
        }
        for source in &sources {
            let share = self.shares.remove(source).unwrap_or_default();
            self.bytes -= share.bytes;
        }
        let all = std::mem::take(&mut self.waiting).into_iter();
        let (few, rest) = all.partition(|waiting| sources.contains(&waiting.source));
        self.waiting = rest;
        few
    }

    /// Puts back in front what was taken out and still waits.
    pub(super) fn put_back(&mut self, few: VecDeque<Waiting>) {
        for waiting in few.into_iter().rev() {
            self.count(&waiting);
            self.waiting.push_front(waiting);
        }
    }

    /// Takes out everything.
    pub(super) fn take_all(&mut self) -> Vec<Heard> {
        self.shares.clear();
        self.bytes = 0;
        std::mem::take(&mut self.waiting).into_iter().map(|waiting| waiting.entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    fn peer(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    fn heard(from: &NodeId, bytes: usize) -> Heard {
        Heard { from: from.clone(), block: vec![0; bytes] }
    }

    /// Holds so many entries of a peer. Returns how many of them found room.
    fn hold(held: &mut Held, from: u8, count: usize) -> usize {
        let from = peer(from);
        (0..count).filter(|_| held.hold(Some(from.clone()), heard(&from, 100))).count()
    }

    #[test]
    fn who_sends_without_an_end_leaves_room_for_others() {
        let mut held = Held::new(QueuesConfig::default());
        assert_eq!(hold(&mut held, 1, 2_000), 256);
        assert_eq!((hold(&mut held, 2, 10), hold(&mut held, 3, 10)), (10, 10));
        // Those whom no connection leads to may all be one.
        let made_up: Vec<NodeId> = (100..200).map(peer).collect();
        let from_afar = made_up.iter().cycle().take(1_000).filter(|from| held.hold(None, heard(from, 100))).count();
        assert_eq!(from_afar, 256);
        assert_eq!(hold(&mut held, 4, 10), 10);
        assert_eq!(held.take_all().len(), 256 + 10 + 10 + 256 + 10);
        assert!(held.is_empty());
        assert_eq!(hold(&mut held, 1, 2_000), 256, "the room is free again");
    }

    #[test]
    fn neither_one_nor_all_together_take_more_bytes_than_there_are() {
        let limits =
            QueuesConfig { held_kb_max: 3, held_kb_per_peer_max: 2, held_per_peer_max: 9, ..QueuesConfig::default() };
        let mut held = Held::new(limits);
        let mut hold = |from: u8, bytes: usize| held.hold(Some(peer(from)), heard(&peer(from), bytes));
        assert!(!hold(1, 2_049) && hold(1, 1_024) && hold(1, 1_024) && !hold(1, 1));
        assert!(!hold(2, 1_025) && hold(2, 1_024) && !hold(3, 1));
    }

    #[test]
    fn of_whom_little_waits_is_tried_however_much_of_another_does() {
        let mut held = Held::new(QueuesConfig::default());
        hold(&mut held, 1, 20);
        hold(&mut held, 2, 3);
        hold(&mut held, 1, 20);
        hold(&mut held, 3, 1);
        let from = |waiting: &Waiting| waiting.entry.from.clone();
        let sources = |few: &VecDeque<Waiting>| few.iter().map(from).collect::<Vec<_>>();
        let mut few = held.take_few(32);
        assert_eq!(sources(&few), [peer(2), peer(2), peer(2), peer(3)], "in the order in which they came");
        few.pop_front();
        held.put_back(few);
        assert_eq!(held.first(), Some(&peer(2)));
        assert_eq!(sources(&held.take_few(3)), [peer(2), peer(2), peer(3)]);
        assert_eq!((held.take_few(39).len(), held.take_few(40).len(), held.is_empty()), (0, 40, true));
    }
}
