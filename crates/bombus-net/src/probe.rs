//! A look at one address: what listens there, and whether it is a member of this swarm.

use std::time::Duration;

use bombus_core::identity::{NodeId, NodeKey};
use serde::Serialize;

use crate::membership::Privacy;

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum ProbeVerdict {
    /// A member of this swarm answers there.
    Fine {
        /// Who.
        peer: NodeId,
        /// How long the connection and its handshakes took, in milliseconds.
        took_ms: u64,
    },
    /// The machine answers, and nothing listens at that port.
    NothingListens,
    /// No way leads to the machine.
    Unreachable {
        /// What the system says.
        why: String,
    },
    /// The name has no address.
    UnknownName {
        /// What the resolver says.
        why: String,
    },
    /// Nothing came back within the limit: a firewall that drops, or a machine that is off.
    Timeout,
    /// A node with another swarm key listens there.
    AnotherSwarmKey,
    /// A node without a swarm key listens there, and this one has a key.
    NoSwarmKey,
    /// What listens there does not speak libp2p.
    NotLibp2p,
    /// Another peer than the one that the address names is there.
    WrongPeer {
        /// The one that is there.
        found: NodeId,
    },
    /// This node itself, or another process with its identity.
    SameIdentity,
    /// The address is an IPv6 one, and this machine has no IPv6.
    OnlyIpv6,
    /// The handshake broke in a way that tells no more.
    Handshake {
        /// What failed.
        why: String,
    },
    /// The text is no address that can be probed.
    InvalidAddress {
        /// What is wrong with it.
        why: String,
    },
}

/// Connects to an address, goes through the handshakes as a node would, and says what it found.
///
/// It needs no running node, and takes at most `limit` for each of its up to two connections.
pub async fn probe(addr: &str, privacy: &Privacy, key: &NodeKey, limit: Duration) -> ProbeVerdict {
    todo_probe(addr, privacy, key, limit).await
}
