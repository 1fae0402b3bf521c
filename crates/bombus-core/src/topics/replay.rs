//! Memory of what peers have published: against replays and floods, within bounds.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{CLOCK_SKEW_MS_MAX, IgnoreReason, Timestamp, Topic};
use crate::identity::NodeId;

/// How often a peer may publish on a topic. What is beyond is ignored, not rejected: another node may have counted otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// How many messages a minute in the long run.
    pub per_minute: u32,
    /// How many at once.
    pub burst: u32,
}

impl RateLimit {
    /// Returns the limit of a topic. Presence comes every 5 s and capabilities every 5 s at most, so both leave room for restarts.
    #[must_use]
    pub fn of(topic: Topic) -> Self {
        let (per_minute, burst) = match topic {
            Topic::PresencePing | Topic::Capabilities => (30, 10),
            Topic::TaskHelpRequest => (60, 20),
            Topic::TaskBroadcast | Topic::TaskHelpResponse => (120, 40),
            Topic::TaskClaim | Topic::TaskResult => (600, 60),
        };
        Self { per_minute, burst }
    }
}

/// Peers remembered. Beyond, the one heard of longest ago is forgotten.
const PEERS_MAX: usize = 1_024;
/// Messages remembered for each peer and topic; at least the largest burst.
const SEEN_MAX: usize = 64;

/// Remembers what peers have published, for [`super::judge`].
///
/// It holds 1,024 peers, and 64 messages for each of their topics (at most 8 MB in all, reached only by members who try). A message
/// that is older than what had to be forgotten counts as seen.
#[derive(Debug, Default)]
pub struct ReplayGuard {
    peers: HashMap<NodeId, Peer>,
}

#[derive(Debug)]
struct Peer {
    heard_ms: i64,
    channels: [Channel; Topic::ALL.len()],
}

#[derive(Debug)]
struct Channel {
    /// Messages that may come now, in thousandths.
    tokens: u32,
    filled_ms: i64,
    /// Timestamp and hash of accepted messages.
    seen: VecDeque<(i64, u64)>,
    /// The greatest timestamp that was dropped from `seen`.
    floor_ms: i64,
    /// The greatest timestamp of the messages whose clock was behind ours or right.
    newest_ms: i64,
    /// The greatest timestamp of the messages whose clock was ahead of ours.
    newest_ahead_ms: i64,
}

impl ReplayGuard {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Decides about one message, and remembers it where it is let through. Returns why it is to be ignored.
    pub(super) fn check(
        &mut self,
        signer: &NodeId,
        topic: Topic,
        at: Timestamp,
        bytes: &[u8],
        now: Timestamp,
    ) -> Option<IgnoreReason> {
        if !self.peers.contains_key(signer) {
            self.make_room();
        }
        let peer = self.peers.entry(signer.clone()).or_insert_with(|| Peer::new(now.unix_ms()));
        peer.heard_ms = now.unix_ms();
        let skew_ms = at.ms_after(now);
        let channel = &mut peer.channels[topic as usize];
        // Replays come first, so that replaying what a peer said does not use up what it may say.
        let verdict = if skew_ms > CLOCK_SKEW_MS_MAX {
            channel.check_ahead(at.unix_ms())
        } else if skew_ms < -CLOCK_SKEW_MS_MAX {
            channel.check_behind(at.unix_ms())
        } else {
            channel.check_near(at.unix_ms(), hash(bytes))
        };
        if verdict.is_some() {
            return verdict;
        }
        if !channel.take_token(RateLimit::of(topic), now.unix_ms()) {
            return Some(IgnoreReason::TooOften);
        }
        channel.remember(at.unix_ms(), hash(bytes), skew_ms);
        (skew_ms.abs() > CLOCK_SKEW_MS_MAX).then_some(IgnoreReason::ClockSkew { skew_ms })
    }

    /// Returns how many messages are remembered.
    #[cfg(test)]
    pub(super) fn messages_held(&self) -> usize {
        self.peers.values().flat_map(|peer| &peer.channels).map(|channel| channel.seen.len()).sum()
    }

    fn make_room(&mut self) {
        if self.peers.len() < PEERS_MAX {
            return;
        }
        if let Some(oldest) = self.peers.iter().min_by_key(|(_, peer)| peer.heard_ms).map(|(id, _)| id.clone()) {
            self.peers.remove(&oldest);
        }
    }
}

impl Peer {
    fn new(now_ms: i64) -> Self {
        let channels = Topic::ALL.map(|topic| Channel {
            tokens: RateLimit::of(topic).burst * 1_000,
            filled_ms: now_ms,
            seen: VecDeque::new(),
            floor_ms: i64::MIN,
            newest_ms: i64::MIN,
            newest_ahead_ms: i64::MIN,
        });
        Self { heard_ms: now_ms, channels }
    }
}

impl Channel {
    fn check_near(&self, at_ms: i64, hash: u64) -> Option<IgnoreReason> {
        let seen = at_ms <= self.floor_ms || self.seen.contains(&(at_ms, hash));
        seen.then_some(IgnoreReason::Replayed)
    }

    /// A clock that is off still runs forward, so what is not newer than the last is a recording. Without that rule an old message
    /// of a good clock, sent again, would slander that clock.
    fn check_behind(&self, at_ms: i64) -> Option<IgnoreReason> {
        (at_ms <= self.newest_ms).then_some(IgnoreReason::Replayed)
    }

    fn check_ahead(&self, at_ms: i64) -> Option<IgnoreReason> {
        (at_ms <= self.newest_ahead_ms).then_some(IgnoreReason::Replayed)
    }

    fn take_token(&mut self, limit: RateLimit, now_ms: i64) -> bool {
        // The wall clock may be set back; then nothing is refilled this once.
        let elapsed_ms = u64::try_from(now_ms - self.filled_ms).unwrap_or(0);
        self.filled_ms = now_ms;
        let refill = elapsed_ms.saturating_mul(u64::from(limit.per_minute)) / 60;
        let full = u64::from(limit.burst) * 1_000;
        let tokens = full.min(u64::from(self.tokens).saturating_add(refill));
        let taken = tokens.checked_sub(1_000);
        self.tokens = u32::try_from(taken.unwrap_or(tokens)).expect("a burst fits");
        taken.is_some()
    }

    fn remember(&mut self, at_ms: i64, hash: u64, skew_ms: i64) {
        if skew_ms > CLOCK_SKEW_MS_MAX {
            self.newest_ahead_ms = at_ms;
            return;
        }
        self.newest_ms = self.newest_ms.max(at_ms);
        if skew_ms < -CLOCK_SKEW_MS_MAX {
            return;
        }
        if self.seen.len() == SEEN_MAX
            && let Some((index, _)) = self.seen.iter().enumerate().min_by_key(|(_, (at_ms, _))| *at_ms)
            && let Some((dropped_ms, _)) = self.seen.swap_remove_back(index)
        {
            self.floor_ms = self.floor_ms.max(dropped_ms);
        }
        self.seen.push_back((at_ms, hash));
    }
}

/// Collisions harm nobody but the signer, within whose messages alone hashes are compared.
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
