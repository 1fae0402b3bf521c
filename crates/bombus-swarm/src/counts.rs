//! What became of messages, counted for each peer that signed them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bombus_core::identity::NodeId;
use bombus_core::topics::{IgnoreReason, RejectReason};
use serde::Serialize;

/// Most peers that are counted one by one.
const PEERS_MAX: usize = 1_024;

/// What became of the messages that one peer signed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MessageCounts {
    /// Accepted.
    pub accepted: u64,
    /// Ignored, by reason.
    pub ignored: BTreeMap<&'static str, u64>,
    /// Rejected, by reason.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Why the last one was ignored or rejected, in words.
    pub last_reason: Option<String>,
}

/// Counters of the swarm's parts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    messages: Mutex<PerPeer>,
    pub(crate) hello: HelloCounts,
    pub(crate) frames: FrameCounts,
    pub(crate) help_answered: AtomicU64,
    pub(crate) publish_failures: AtomicU64,
    /// Messages that were lost since this node was too slow.
    pub(crate) lost: AtomicU64,
}

/// Hellos.
#[derive(Debug, Default)]
pub(crate) struct HelloCounts {
    pub(crate) exchanged: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// Datagrams of the failure detector that came in.
#[derive(Debug, Default)]
pub(crate) struct FrameCounts {
    pub(crate) received: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) held_up: AtomicU64,
    pub(crate) malformed: AtomicU64,
}

#[derive(Debug, Default)]
struct PerPeer {
    peers: HashMap<NodeId, MessageCounts>,
    /// Of those peers that found no place.
    rest: MessageCounts,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counts {
    pub(crate) fn accepted(&self, signer: &NodeId) {
        self.messages().of(signer).accepted += 1;
    }

    pub(crate) fn ignored(&self, signer: &NodeId, reason: &IgnoreReason) {
        let mut messages = self.messages();
        let counts = messages.of(signer);
        *counts.ignored.entry(ignored_for(reason)).or_default() += 1;
        counts.last_reason = Some(reason.to_string());
    }

    pub(crate) fn rejected(&self, signer: &NodeId, reason: &RejectReason) {
        let mut messages = self.messages();
        let counts = messages.of(signer);
        *counts.rejected.entry(rejected_for(reason)).or_default() += 1;
        counts.last_reason = Some(reason.to_string());
    }

    /// Returns the counts of each peer, and those of all others together.
    pub(crate) fn snapshot(&self) -> (Vec<(NodeId, MessageCounts)>, MessageCounts) {
        let messages = self.messages();
        let mut peers: Vec<_> = messages.peers.iter().map(|(peer, counts)| (peer.clone(), counts.clone())).collect();
        peers.sort_by(|a, b| a.0.cmp(&b.0));
        (peers, messages.rest.clone())
    }

    fn messages(&self) -> MutexGuard<'_, PerPeer> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PerPeer {
    fn of(&mut self, peer: &NodeId) -> &mut MessageCounts {
        if !self.peers.contains_key(peer) && self.peers.len() < PEERS_MAX {
            self.peers.insert(peer.clone(), MessageCounts::default());
        }
        self.peers.get_mut(peer).unwrap_or(&mut self.rest)
    }
}

fn ignored_for(reason: &IgnoreReason) -> &'static str {
    match reason {
        IgnoreReason::ClockSkew { .. } => "clock_skew",
        IgnoreReason::Replayed => "replayed",
        IgnoreReason::TooOften => "too_often",
        IgnoreReason::UnknownType(_) => "unknown_type",
        IgnoreReason::NewerSchema(_) => "newer_schema",
    }
}

fn rejected_for(reason: &RejectReason) -> &'static str {
    match reason {
        RejectReason::Bounds(_) => "too_large",
        RejectReason::NotJson => "not_json",
        RejectReason::NoType => "no_type",
        RejectReason::WrongTopic { .. } => "wrong_topic",
        RejectReason::Schema(_) => "schema",
        RejectReason::SenderNotSigner { .. } => "sender_not_signer",
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    #[test]
    fn each_reason_is_counted_for_its_signer_and_strangers_take_bounded_memory() {
        let counts = Counts::default();
        for number in 0..1_030_u16 {
            let mut secret = [0; 32];
            secret[..2].copy_from_slice(&number.to_be_bytes());
            let signer = NodeKey::from_secret(&secret).node_id();
            counts.accepted(&signer);
            counts.ignored(&signer, &IgnoreReason::Replayed);
            counts.rejected(&signer, &RejectReason::NotJson);
        }
        let (peers, rest) = counts.snapshot();
        assert_eq!((peers.len(), rest.accepted), (PEERS_MAX, 6));
        let (_, first) = &peers[0];
        assert_eq!((first.ignored["replayed"], first.rejected["not_json"]), (1, 1));
        assert_eq!(first.last_reason.as_deref(), Some("the message is no JSON object"));
    }
}
