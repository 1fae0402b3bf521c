//! What the doctor is told.

use bombus_core::identity::NodeId;
use serde::Serialize;

use crate::counts::MessageCounts;
use crate::liveness::LivenessReport;

/// What became of messages since the start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SwarmReport {
    /// For each peer that signed any; at most 1,024.
    pub peers: Vec<PeerReport>,
    /// Of all further peers together.
    pub others: MessageCounts,
    /// Peers that found no place in the view.
    pub refused_peers: u64,
    /// First words between nodes.
    pub hello: HelloReport,
    /// The failure detector's datagrams.
    pub liveness: LivenessReport,
    /// Requests for help that this node answered.
    pub help_answered: u64,
    /// Messages that could not be published.
    pub publish_failures: u64,
    /// Messages of topics that were lost since this node was too slow.
    pub lost: u64,
    /// What to do about another process with this node's identity, where one was met.
    pub same_identity: Option<String>,
}

/// What became of one peer's messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerReport {
    /// The peer.
    pub node_id: NodeId,
    /// Its name, where it stands in the view.
    pub name: Option<String>,
    /// How far its clock is ahead of this node's, in milliseconds, where that is more than messages may be.
    pub clock_skew_ms: Option<i64>,
    /// Its messages.
    #[serde(flatten)]
    pub messages: MessageCounts,
}

/// First words between nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct HelloReport {
    /// How often a peer's came and counted.
    pub exchanged: u64,
    /// How often an exchange failed.
    pub failed: u64,
    /// How often a stream was refused since there were too many.
    pub refused: u64,
}
