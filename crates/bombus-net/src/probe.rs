//! A look at one address: what listens there, and whether it is a member of this swarm.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bombus_core::identity::{NodeId, NodeKey};
use libp2p::Transport;
use libp2p::core::Endpoint;
use libp2p::core::transport::{DialOpts, PortUse};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, TransportError};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::address::{self, Target};
use crate::failure::DialFailure;
use crate::id;
use crate::membership::Privacy;
use crate::transport;

/// How long a node gets to say something by itself, as members of private swarms do.
const SPEAKS_FIRST_WITHIN: Duration = Duration::from_millis(700);
/// The first words of libp2p.
const GREETING: &[u8] = b"\x13/multistream/1.0.0\n";

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

impl From<DialFailure> for ProbeVerdict {
    fn from(failure: DialFailure) -> Self {
        match failure {
            DialFailure::NothingListens => Self::NothingListens,
            DialFailure::Unreachable { why } => Self::Unreachable { why },
            DialFailure::UnknownName { why } => Self::UnknownName { why },
            DialFailure::Timeout => Self::Timeout,
            DialFailure::AnotherSwarmKey => Self::AnotherSwarmKey,
            DialFailure::NoSwarmKey => Self::NoSwarmKey,
            DialFailure::NotLibp2p => Self::NotLibp2p,
            DialFailure::WrongPeer { found } => Self::WrongPeer { found },
            DialFailure::SameIdentity => Self::SameIdentity,
            DialFailure::OnlyIpv6 => Self::OnlyIpv6,
            DialFailure::InvalidAddress { why } => Self::InvalidAddress { why },
            DialFailure::Handshake { why } => Self::Handshake { why },
            // A running node's own limits; a probe has none of them.
            other => Self::Handshake { why: other.to_string() },
        }
    }
}

/// Connects to an address, goes through the handshakes as a node would, and says what it found.
///
/// It shows a passing identity, and `key` only says which one would be this node's own.
/// It needs no running node. `limit` bounds each step; all of them together take at most five times as long. Addresses through relays
/// cannot be probed.
pub async fn probe(addr: &str, privacy: &Privacy, key: &NodeKey, limit: Duration) -> ProbeVerdict {
    probe_member(addr, privacy, key, limit).await.unwrap_or_else(ProbeVerdict::from)
}

async fn probe_member(
    addr: &str,
    privacy: &Privacy,
    key: &NodeKey,
    limit: Duration,
) -> Result<ProbeVerdict, DialFailure> {
    let invalid = |why: &str| DialFailure::InvalidAddress { why: why.to_owned() };
    let target = address::parse_target(addr)?;
    if address::is_relayed(&target.addr) {
        return Err(invalid("an address through a relay cannot be probed; probe the relay"));
    }
    // With the node's own key, the node itself would take the probe for another process with its identity.
    let handshake = |why: String| DialFailure::Handshake { why };
    let passing =
        Keypair::ed25519_from_bytes(rand::random::<[u8; 32]>()).map_err(|error| handshake(error.to_string()))?;
    let mut transport = transport::direct(&passing, privacy, limit).map_err(|error| handshake(error.to_string()))?;
    let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
    let begun = Instant::now();
    let dialled = match transport.dial(target.addr.clone(), options) {
        Ok(dial) => dial.await.map_err(TransportError::Other),
        Err(error) => Err(error),
    };
    let (found, _) = match dialled {
        Ok(upgraded) => upgraded,
        Err(error) => {
            let why = transport::explain(&target.addr, &error);
            // Who has greeted behind the key is a member, whatever went wrong then; of the others it takes another look what they are.
            return Err(if transport::is_unclear(&error) {
                look_at(&target.addr, limit).await.unwrap_or(why)
            } else {
                why
            });
        }
    };
    let found = id::node_id(&found).ok_or_else(|| invalid("the peer there has no Ed25519 key"))?;
    if found == key.node_id() {
        return Err(DialFailure::SameIdentity);
    }
    if target.peer.as_ref().and_then(id::node_id).is_some_and(|expected| expected != found) {
        return Err(DialFailure::WrongPeer { found });
    }
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(ProbeVerdict::Fine { peer: found, took_ms })
}

/// Looks at an address at which the handshake failed: what kind of listener is it?
pub(crate) async fn look(addr: &str, limit: Duration) -> Option<DialFailure> {
    let Target { addr, .. } = address::parse_target(addr).ok()?;
    look_at(&addr, limit).await
}

async fn look_at(addr: &Multiaddr, limit: Duration) -> Option<DialFailure> {
    timeout(limit, async {
        let mut socket = connect(addr).await.ok()?;
        let mut first = [0; 24];
        // A member of a private swarm sends 24 random bytes by itself.
        match timeout(SPEAKS_FIRST_WITHIN, socket.read_exact(&mut first)).await {
            Ok(Ok(_)) if !is_text(&first) => return Some(DialFailure::AnotherSwarmKey),
            Ok(_) => return Some(DialFailure::NotLibp2p),
            Err(_) => {}
        }
        socket.write_all(GREETING).await.ok()?;
        let mut answer = [0; GREETING.len()];
        match socket.read_exact(&mut answer).await {
            Ok(_) if answer == *GREETING => Some(DialFailure::NoSwarmKey),
            _ => Some(DialFailure::NotLibp2p),
        }
    })
    .await
    // It takes connections and says nothing to anybody.
    .unwrap_or(Some(DialFailure::NotLibp2p))
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

async fn connect(addr: &Multiaddr) -> io::Result<TcpStream> {
    let mut parts = addr.iter();
    let (Some(host), Some(Protocol::Tcp(port))) = (parts.next(), parts.next()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match host {
        Protocol::Ip4(ip) => TcpStream::connect(SocketAddr::new(ip.into(), port)).await,
        Protocol::Ip6(ip) => TcpStream::connect(SocketAddr::new(ip.into(), port)).await,
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
            TcpStream::connect((name.as_ref(), port)).await
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
