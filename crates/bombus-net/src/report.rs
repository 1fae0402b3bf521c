//! What the mesh has tried and seen, for people who ask why.

use bombus_core::identity::NodeId;
use serde::Serialize;

use crate::failure::DialFailure;

/// The state of the mesh, rung by rung of the ladder on which peers are found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NetReport {
    /// Where this node listens, as multiaddrs with `/p2p/`.
    pub listen: Vec<String>,
    /// At how many addresses it is to listen.
    pub listen_on: usize,
    /// Listening addresses that failed, and why. They are tried again.
    pub listen_failures: Vec<(String, String)>,
    /// Multiaddrs under which others reach it, as far as it knows.
    pub external: Vec<String>,
    /// The generation of the membership that the swarm runs with.
    pub generation: u64,
    /// Whether a swarm key is needed.
    pub closed: bool,
    /// From when on another key at a member says something, in milliseconds of Unix time. Until then, which may be still to come, this node's
    /// own key was changing, and not all members had the new one. `None`: it did not change while the node ran.
    pub foreign_keys_from_ms: Option<u64>,
    /// First rung: the local network.
    pub mdns: MdnsReport,
    /// Second rung: the configured seeds.
    pub seeds: Vec<DialReport>,
    /// Third rung: how many addresses other peers told.
    pub learned: usize,
    /// How often such addresses were dialled.
    pub learned_tried: u64,
    /// Fourth rung: how many addresses are from tickets or earlier runs.
    pub tickets: usize,
    /// How often such addresses were dialled.
    pub tickets_tried: u64,
    /// Last rung: relays.
    pub relay: RelayReport,
    /// Whether other members can reach this node directly.
    pub reachability: Reachability,
    /// Peers that are connected.
    pub connected: usize,
    /// Peers that are known.
    pub known: usize,
    /// The last failed dials, newest first; at most 64.
    pub failures: Vec<DialReport>,
    /// Where another process with this identity was met.
    pub identity_conflicts: Vec<String>,
    /// Incoming connections that did not get through the handshake: strangers, or other keys.
    pub refused_strangers: u64,
    /// Connections of removed peers that were refused.
    pub refused_removed: u64,
    /// What was dropped because something was full.
    pub dropped: DropCounts,
}

/// One address that was dialled.
#[derive(Debug, Clone, Serialize)]
pub struct DialReport {
    /// The multiaddr.
    pub addr: String,
    /// The peer that is expected there, or that was found.
    pub peer: Option<NodeId>,
    /// How often it was tried.
    pub tried: u64,
    /// When it last worked, in milliseconds of Unix time.
    pub last_ok_ms: Option<u64>,
    /// When it last failed, in milliseconds of Unix time.
    pub last_failure_ms: Option<u64>,
    /// Why it last failed, if it did since it last worked.
    pub failure: Option<DialFailure>,
}

/// What multicast DNS showed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MdnsReport {
    /// Whether it is wanted.
    pub enabled: bool,
    /// Why it does not run over IPv4, if it does not.
    pub ipv4_failure: Option<String>,
    /// Why it does not run over IPv6, if it does not.
    pub ipv6_failure: Option<String>,
    /// How often IPv4 addresses that were announced were dialled.
    pub ipv4_tried: u64,
    /// How often IPv6 addresses that were announced were dialled.
    pub ipv6_tried: u64,
    /// Addresses of interfaces that it could use.
    pub interfaces: Vec<String>,
    /// How many addresses were announced by others.
    pub answers: u64,
    /// How many of those were IPv4 ones.
    pub ipv4_answers: u64,
    /// How many of those were IPv6 ones.
    pub ipv6_answers: u64,
    /// How many different peers announced themselves.
    pub peers: usize,
    /// How many of them by an IPv4 address.
    pub ipv4_peers: usize,
    /// How many of them by an IPv6 address.
    pub ipv6_peers: usize,
    /// When the last announcement came, in milliseconds of Unix time.
    pub last_answer_ms: Option<u64>,
}

/// What is known of relays.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RelayReport {
    /// Whether this node carries connections of others.
    pub serving: bool,
    /// How many it carries now.
    pub circuits: usize,
    /// Members at which this node has a reservation.
    pub reservations: Vec<NodeId>,
    /// Members that offer to relay.
    pub offered: Vec<NodeId>,
    /// Why the last reservation failed.
    pub last_failure: Option<String>,
    /// How many connections became direct after they had been relayed.
    pub punched: u64,
    /// How many tries to do so failed.
    pub punch_failures: u64,
}

/// Whether others reach this node directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reachability {
    /// Nobody has tried yet.
    #[default]
    Unknown,
    /// Others dialled one of its addresses.
    Public,
    /// Others tried and could not.
    Private,
}

/// How much was dropped because something was full or not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DropCounts {
    /// Messages of topics that subscribers were too slow for.
    pub messages: u64,
    /// Streams that were reset since too many waited.
    pub streams: u64,
    /// Messages that were published while no peer was there.
    pub published_to_nobody: u64,
    /// Messages that their judge rejected.
    pub rejected: u64,
    /// Messages that their judge ignored.
    pub ignored: u64,
    /// Addresses told by peers that were beyond what one peer may tell.
    pub addresses: u64,
}
