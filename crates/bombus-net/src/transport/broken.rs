//! How a connection broke before it stood.

use std::error::Error;
use std::io;

use libp2p::dns;

use crate::failure::DialFailure;
use crate::transport::guard::{ForeignKey, NoGreeting};
use crate::transport::{chain, find};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// Nothing came back to the attempt to connect.
    #[error("no answer in time")]
    ConnectTimeout,
    /// The system says that there is no connection.
    #[error("{why}")]
    Connect {
        /// The system's kind of error.
        kind: io::ErrorKind,
        /// The system's words.
        why: String,
    },
    /// The socket is connected to itself.
    #[error("it is this node itself")]
    ItsOwnEnd,
    /// The name cannot be resolved.
    #[error("the name cannot be resolved: {0}")]
    Name(String),
    /// The relay does not connect.
    #[error("the relay does not connect: {0}")]
    Relay(String),
    /// It does not speak the private network's protocol.
    #[error("it does not answer as a member of a private swarm")]
    NotPrivate,
    /// It does, with another key.
    #[error("another swarm key")]
    ForeignKey,
    /// It does not greet as libp2p nodes do.
    #[error("it does not greet as a libp2p node")]
    NotLibp2p,
    /// The handshakes took too long.
    #[error("the handshake took too long")]
    HandshakeTimeout,
    /// A handshake failed.
    #[error("{0}")]
    Handshake(String),
}

impl Broken {
    /// Reads what TCP, with names, says.
    pub(super) fn of_tcp(error: dns::Error<io::Error>) -> Self {
        match error {
            dns::Error::Transport(error) => Self::Connect { kind: error.kind(), why: error.to_string() },
            dns::Error::ResolveError(error) => Self::Name(error.to_string()),
            dns::Error::TooManyLookups => Self::Name("it leads through too many others".to_owned()),
            dns::Error::MultiaddrNotSupported(_) => Self::Name("it stands for no address with TCP".to_owned()),
            // All of its addresses failed; the last one tells.
            dns::Error::Dial(mut errors) => match errors.pop() {
                Some(error) => Self::of_tcp(error),
                None => Self::Name("it has no address".to_owned()),
            },
        }
    }

    /// Reads what the upgrade to an authenticated, multiplexed connection says.
    pub(super) fn of_upgrade(error: &(dyn Error + 'static)) -> Self {
        if find::<ForeignKey>(error).is_some() {
            return Self::ForeignKey;
        }
        if find::<NoGreeting>(error).is_some() {
            return Self::NotLibp2p;
        }
        Self::Handshake(chain(error))
    }

    /// Says it in the words of the mesh.
    pub(super) fn explain(&self, is_ipv6: bool) -> DialFailure {
        match self {
            Self::ConnectTimeout => DialFailure::Timeout,
            Self::Connect { kind: io::ErrorKind::ConnectionRefused, .. } => DialFailure::NothingListens,
            Self::Connect { kind: io::ErrorKind::TimedOut, .. } => DialFailure::Timeout,
            Self::Connect {
                kind: io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported,
                ..
            } if is_ipv6 => DialFailure::OnlyIpv6,
            Self::Connect { why, .. } => DialFailure::Unreachable { why: why.clone() },
            Self::Name(why) => DialFailure::UnknownName { why: why.clone() },
            Self::Relay(_) => DialFailure::Unreachable { why: self.to_string() },
            Self::ItsOwnEnd => DialFailure::SameIdentity,
            // Whether it is an open node, a closed one, or none at all takes another look.
            Self::NotPrivate | Self::NotLibp2p => DialFailure::Handshake { why: self.to_string() },
            Self::ForeignKey => DialFailure::AnotherSwarmKey,
            Self::HandshakeTimeout => DialFailure::Handshake { why: "it took too long".to_owned() },
            Self::Handshake(why) => DialFailure::Handshake { why: why.clone() },
        }
    }
}
