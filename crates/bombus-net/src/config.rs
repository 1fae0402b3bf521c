//! What the mesh is told at its start.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bombus_core::identity::NodeKey;

/// The port that nodes listen on for peers unless told otherwise.
pub const DEFAULT_PORT: u16 = 7891;

/// Settings of the mesh.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Where to listen for peers. Empty: the node only dials.
    pub listen: Vec<ListenOn>,
    /// Multiaddrs of peers to dial at the start and whenever there is no connection to them; `/p2p/` at their end is optional.
    pub seeds: Vec<String>,
    /// Whether peers are looked for on the local network by multicast DNS.
    pub mdns: bool,
    /// Multiaddrs under which this node is reached from outside, where it cannot see that itself (a forwarded port).
    pub external: Vec<String>,
    /// Whether this node carries connections between members that cannot reach each other.
    pub relay: bool,
    /// How many bytes a second each of those connections may take through this node, both directions together; 0 for as many as there are.
    pub relay_bytes_per_s: u32,
    /// Up to how many known peers a connection is kept to each; beyond that, connections are made when they are needed.
    pub mesh_max: usize,
    /// Intervals and limits.
    pub timing: NetTiming,
    /// How many connections there may be.
    pub limits: NetLimits,
}

impl Default for NetConfig {
    /// Listens on [`DEFAULT_PORT`] of every interface, or on a free port where that one is taken.
    fn default() -> Self {
        Self {
            listen: vec![ListenOn::any_v4(DEFAULT_PORT), ListenOn::any_v6(DEFAULT_PORT)],
            seeds: Vec::new(),
            mdns: true,
            external: Vec::new(),
            relay: true,
            relay_bytes_per_s: 2 * 1024 * 1024,
            mesh_max: 32,
            timing: NetTiming::default(),
            limits: NetLimits::default(),
        }
    }
}

/// How many connections there may be. What is beyond is refused, what stands stays, and there is room again when one has ended.
#[derive(Debug, Clone, Copy)]
pub struct NetLimits {
    /// Incoming connections in their handshakes, which are short.
    pub pending_incoming: u32,
    /// Dials at a time.
    pub pending_outgoing: u32,
    /// Incoming connections.
    pub incoming: u32,
    /// Connections in both directions together.
    pub connections: u32,
    /// Connections of one peer: it needs more than one only for moments.
    pub per_peer: u32,
    /// Memory of this process in bytes, above which no connection is taken or made.
    pub memory_bytes: usize,
}

impl Default for NetLimits {
    fn default() -> Self {
        Self {
            pending_incoming: 128,
            pending_outgoing: 128,
            incoming: 384,
            connections: 512,
            per_peer: 8,
            memory_bytes: 4 * 1024 * 1024 * 1024,
        }
    }
}

/// One address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenOn {
    /// The interface's address, or the unspecified one for all interfaces of that family.
    pub ip: IpAddr,
    /// The TCP port; 0 takes a free one.
    pub port: u16,
    /// Whether somebody chose the port: if it is taken, that is an error at the start, and waited for later. Otherwise a free one is used
    /// instead.
    pub port_is_fixed: bool,
}

impl ListenOn {
    /// Listens on a port of every IPv4 interface; a free one if that port is taken.
    #[must_use]
    pub const fn any_v4(port: u16) -> Self {
        Self { ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED), port, port_is_fixed: false }
    }

    /// Listens on a port of every IPv6 interface; a free one if that port is taken.
    #[must_use]
    pub const fn any_v6(port: u16) -> Self {
        Self { ip: IpAddr::V6(Ipv6Addr::UNSPECIFIED), port, port_is_fixed: false }
    }

    /// Listens on an address and port that somebody chose.
    #[must_use]
    pub const fn fixed(ip: IpAddr, port: u16) -> Self {
        Self { ip, port, port_is_fixed: true }
    }

    pub(crate) fn addr(self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

/// Intervals and limits of the mesh. Tests shorten them; the defaults suit nodes.
#[derive(Debug, Clone)]
pub struct NetTiming {
    /// How long the private network, Noise and Yamux handshakes of one connection may take together, and a dial by address.
    pub handshake_limit: Duration,
    /// How long opening a stream may take, with the dial that it may need.
    pub open_limit: Duration,
    /// Between two pings of a connection.
    pub ping_interval: Duration,
    /// How long the answer to a ping may take; then the connection is closed.
    pub ping_limit: Duration,
    /// Before the first new try to reach a peer; it doubles with every failure, with up to a fifth of jitter.
    pub redial_min: Duration,
    /// The longest pause between two tries to reach a peer.
    pub redial_max: Duration,
    /// The pause after an address has shown for the third time that another swarm's key is spoken there.
    pub foreign_key_pause: Duration,
    /// How long a peer that is never reached stays known.
    pub peer_expiry: Duration,
    /// How long a redundant connection stays open after the better one stands, so that what runs on it can end.
    pub redundant_grace: Duration,
    /// How long a connection beyond [`NetConfig::mesh_max`] stays open without streams.
    pub idle_limit: Duration,
    /// Between two questions for peers on the local network.
    pub mdns_interval: Duration,
    /// Gossipsub's heartbeat.
    pub gossip_heartbeat: Duration,
    /// Before an address is listened on again after that failed.
    pub relisten_pause: Duration,
    /// How long a port that nobody chose is waited for where another process took it while the node ran; then a free one is used.
    pub port_patience: Duration,
}

impl Default for NetTiming {
    fn default() -> Self {
        Self {
            handshake_limit: Duration::from_secs(5),
            open_limit: Duration::from_secs(10),
            ping_interval: Duration::from_secs(60),
            ping_limit: Duration::from_secs(10),
            redial_min: Duration::from_millis(500),
            redial_max: Duration::from_secs(60),
            foreign_key_pause: Duration::from_secs(600),
            peer_expiry: Duration::from_secs(24 * 3600),
            redundant_grace: Duration::from_secs(2),
            idle_limit: Duration::from_secs(60),
            mdns_interval: Duration::from_secs(60),
            gossip_heartbeat: Duration::from_secs(4),
            relisten_pause: Duration::from_secs(2),
            port_patience: Duration::from_secs(6),
        }
    }
}

/// Who this node is towards its peers.
#[derive(Debug)]
pub struct NetIdentity {
    /// The key that the node id follows from.
    pub key: NodeKey,
    /// What people call the node.
    pub name: String,
    /// The program's version; peers see it as `bombus/<version>`.
    pub version: String,
}
