//! What is known about peers.

use std::time::Duration;

use bombus_core::identity::NodeId;
use serde::Serialize;

/// A peer as this node's mesh knows it.
#[derive(Debug, Clone, Serialize)]
pub struct NetPeer {
    /// Who it is.
    pub node_id: NodeId,
    /// Where it may be reached, best first.
    pub addresses: Vec<PeerAddress>,
    /// How it is reached now; `None` without a connection.
    pub connected: Option<Path>,
    /// The last measured round trip of the connection in use.
    #[serde(rename = "round_trip_s", serialize_with = "seconds")]
    pub round_trip: Option<Duration>,
    /// The program that it says it runs, such as `bombus/0.1.0`; at most 128 characters.
    pub agent: Option<String>,
    /// The protocols that it says it speaks; at most 256.
    pub protocols: Vec<String>,
    /// When something was last heard of it over an authenticated connection, in milliseconds of Unix time; 0 for never.
    pub last_seen_ms: u64,
    /// Gossipsub's score of it; below 0 its messages get less attention, far below they get none.
    pub score: f64,
}

/// One address of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerAddress {
    /// The multiaddr, without `/p2p/` at its end.
    pub addr: String,
    /// Where it was learned first.
    pub source: AddressSource,
    /// Why it failed the last time, if it failed since it last worked.
    pub last_error: Option<String>,
    /// When a connection over it last stood, in milliseconds of Unix time.
    pub last_ok_ms: Option<u64>,
}

/// Where an address is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressSource {
    /// The local network answered (multicast DNS).
    Mdns,
    /// The configuration names it.
    Seed,
    /// It was dialled by hand.
    Manual,
    /// The peer itself or another one told it.
    Peer,
    /// It is in a ticket or was known at an earlier run.
    Ticket,
    /// It leads through a relay.
    Relay,
    /// The peer came from there.
    Incoming,
}

/// How a peer is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "path", rename_all = "snake_case")]
pub enum Path {
    /// Without anybody between.
    Direct {
        /// The multiaddr at the other end.
        addr: String,
    },
    /// Through another member.
    Relayed {
        /// The member that carries the connection; it sees only ciphertext.
        via: NodeId,
    },
}

fn seconds<S: serde::Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.serialize_some(&value.as_secs_f64()),
        None => serializer.serialize_none(),
    }
}
