//! What one peer wants of this node: pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::Cid;
use super::config::BitswapConfig;
use super::wire::Want;

/// After so long a want that could not be met is looked at again; then after twice as long, and so on.
const AGAIN: Duration = Duration::from_millis(50);
/// For how many seconds what a peer may get adds up.
const BURST_SECONDS: u64 = 4;

/// The limits of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct LedgerLimits {
    /// How many wants are remembered.
    pub(super) wants: usize,
    /// How long one is remembered that cannot be met.
    pub(super) memory: Duration,
    /// How many bytes the peer gets in a second; 0: as many as it likes.
    pub(super) bytes_per_second: u64,
}

impl From<&BitswapConfig> for LedgerLimits {
    fn from(config: &BitswapConfig) -> Self {
        Self {
            wants: config.wants_per_peer,
            memory: config.want_memory(),
            bytes_per_second: config.bytes_per_second_per_peer,
        }
    }
}

/// A want to be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lookup {
    pub(super) cid: Cid,
    /// Whether the peer wants the block, or only to know whether it is there.
    pub(super) wants_block: bool,
    /// Whether it is to be told that the block is not there.
    pub(super) tell_absent: bool,
}

/// What became of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The peer got the block.
    Sent,
    /// The peer was told that it is here.
    Told,
    /// It is not here.
    Absent,
    /// There was no room for it in the message.
    Later,
}

struct Owed {
    wants_block: bool,
    tell_absent: bool,
    /// The peer was told that the block is not here.
    is_told: bool,
    priority: i32,
    since: Instant,
    tries: u32,
    /// Its place in the queue; none while it is looked up.
    place: Option<Place>,
}

/// When it is due, how important it is, and when it came.
type Place = (Instant, Reverse<i32>, u64);

/// What one peer wants of this node.
pub(super) struct Ledger {
    limits: LedgerLimits,
    wants: HashMap<Cid, Owed>,
    queue: BTreeMap<Place, Cid>,
    number: u64,
    allowance: Allowance,
}

impl Ledger {
    pub(super) fn new(limits: LedgerLimits, now: Instant) -> Self {
        let allowance = Allowance::new(limits.bytes_per_second, now);
        Self { limits, wants: HashMap::new(), queue: BTreeMap::new(), number: 0, allowance }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wants.is_empty()
    }

    /// Takes what a peer wants; returns how many wants were refused since it has too many.
    pub(super) fn take(&mut self, now: Instant, wants: Vec<Want>, is_full: bool) -> usize {
        if is_full {
            self.clear();
        }
        let mut refused = 0;
        for want in wants {
            if want.is_cancel {
                self.forget(&want.cid);
            } else if let Some(owed) = self.wants.get_mut(&want.cid) {
                owed.wants_block |= want.wants_block;
                owed.tell_absent |= want.tell_absent;
                // It asks again, so it wants to be told again; and perhaps the block is here now.
                owed.is_told = false;
                owed.priority = want.priority;
                owed.since = now;
                owed.tries = 0;
                self.enqueue(now, &want.cid);
            } else if self.wants.len() >= self.limits.wants {
                refused += 1;
            } else {
                let Want { cid, priority, wants_block, tell_absent, .. } = want;
                let owed =
                    Owed { wants_block, tell_absent, is_told: false, priority, since: now, tries: 0, place: None };
                self.wants.insert(cid, owed);
                self.enqueue(now, &cid);
            }
        }
        refused
    }

    /// Takes out up to so many wants that are to be looked up now.
    pub(super) fn due(&mut self, now: Instant, max: usize) -> Vec<Lookup> {
        let mut lookups = Vec::new();
        while lookups.len() < max && self.next_due().is_some_and(|due| due <= now) {
            let Some((_, cid)) = self.queue.pop_first() else { break };
            if let Some(owed) = self.wants.get_mut(&cid) {
                owed.place = None;
                let tell_absent = owed.tell_absent && !owed.is_told;
                lookups.push(Lookup { cid, wants_block: owed.wants_block, tell_absent });
            }
        }
        lookups
    }

    /// Returns when the next want is to be looked up.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let (due, ..) = self.queue.first_key_value()?.0;
        Some(self.allowance.earliest().map_or(*due, |earliest| earliest.max(*due)))
    }

    /// Takes note of what became of a lookup. Meanwhile the peer may have taken its want back, or asked again.
    pub(super) fn settle(&mut self, now: Instant, lookup: &Lookup, outcome: Outcome) {
        let Some(owed) = self.wants.get_mut(&lookup.cid) else { return };
        match outcome {
            Outcome::Sent => self.forget(&lookup.cid),
            Outcome::Told if owed.wants_block => self.enqueue(now, &lookup.cid),
            Outcome::Told => self.forget(&lookup.cid),
            Outcome::Later => self.enqueue(now, &lookup.cid),
            Outcome::Absent => {
                owed.is_told |= lookup.tell_absent;
                let pause = AGAIN.saturating_mul(1 << owed.tries.min(16));
                owed.tries += 1;
                if now + pause > owed.since + self.limits.memory {
                    self.forget(&lookup.cid);
                } else if owed.place.is_none() {
                    self.enqueue(now + pause, &lookup.cid);
                }
            }
        }
    }

    /// Takes note of what the peer got.
    pub(super) fn spend(&mut self, now: Instant, bytes: u64) {
        self.allowance.spend(now, bytes);
    }

    /// Forgets all wants.
    pub(super) fn clear(&mut self) {
        self.wants.clear();
        self.queue.clear();
    }

    fn enqueue(&mut self, due: Instant, cid: &Cid) {
        let Some(owed) = self.wants.get_mut(cid) else { return };
        if let Some(place) = owed.place.take() {
            self.queue.remove(&place);
        }
        self.number += 1;
        let place = (due, Reverse(owed.priority), self.number);
        owed.place = Some(place);
        self.queue.insert(place, *cid);
    }

    fn forget(&mut self, cid: &Cid) {
        if let Some(place) = self.wants.remove(cid).and_then(|owed| owed.place) {
            self.queue.remove(&place);
        }
    }
}

/// How much a peer may get: what it did not take adds up for some seconds, and what was too much is made up for by a pause.
struct Allowance {
    bytes_per_second: u64,
    /// Until then, what the peer got is made up for.
    paid: Instant,
}

impl Allowance {
    fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self { bytes_per_second, paid: now }
    }

    fn spend(&mut self, now: Instant, bytes: u64) {
        let Some(millis) = bytes.saturating_mul(1_000).checked_div(self.bytes_per_second) else { return };
        self.paid = self.paid.max(now) + Duration::from_millis(millis.min(60_000));
    }

    /// Returns from when on the peer gets more; none where that is not limited.
    fn earliest(&self) -> Option<Instant> {
        let burst = Duration::from_secs(BURST_SECONDS);
        (self.bytes_per_second > 0).then(|| self.paid.checked_sub(burst).unwrap_or(self.paid))
    }
}

#[cfg(test)]
mod tests;
