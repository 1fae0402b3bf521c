//! Why something in the mesh did not work.

use std::time::Duration;

use bombus_core::identity::NodeId;
use serde::Serialize;

/// Why the mesh cannot run, or cannot take a subscription or a protocol.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The port was chosen, and something else listens there.
    #[error("{addr} is taken; stop what listens there, or choose another address for peers")]
    PortTaken {
        /// The address, as `ip:port`.
        addr: String,
    },
    /// The address cannot be listened on.
    #[error("peers cannot be listened for at {addr}: {why}")]
    Listen {
        /// The address, as `ip:port`.
        addr: String,
        /// Why.
        why: String,
    },
    /// A setting is no multiaddr.
    #[error("{text:?} is no multiaddr ({why}); one looks like /ip4/192.0.2.7/tcp/7891")]
    InvalidAddress {
        /// The setting.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A protocol name does not begin with a slash, or is longer than 140 bytes.
    #[error("{0:?} is no protocol name: it begins with a slash and has at most 140 bytes")]
    InvalidProtocol(String),
    /// A topic name is empty or longer than 256 bytes.
    #[error("a topic has 1 to 256 bytes, not {0}")]
    InvalidTopic(usize),
    /// The topic has a subscription already.
    #[error("{0} is subscribed to already")]
    AlreadySubscribed(String),
    /// The protocol is accepted already.
    #[error("{0} is accepted already")]
    AlreadyAccepted(String),
    /// As many topics or protocols are in use as there may be.
    #[error("no more than {0} may be in use at once")]
    TooMany(usize),
    /// The libp2p swarm cannot be built.
    #[error("the libp2p swarm cannot be built: {0}")]
    Build(String),
    /// The mesh has stopped.
    #[error("the mesh has stopped")]
    Stopped,
}

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It is larger than 1 MiB with its envelope.
    #[error("the message has {size} bytes, more than the {max} that peers take")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The most that peers take, in bytes.
        max: usize,
    },
    /// The queues to all peers are full.
    #[error("the queues to all peers are full; try again later")]
    QueuesFull,
    /// The mesh did not take it in time.
    #[error("the mesh is too busy; try again later")]
    Busy,
    /// The mesh has stopped.
    #[error("the mesh has stopped")]
    Stopped,
}

/// Why a stream was not opened.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// The peer is not connected and could not be reached.
    #[error("{peer} is not reached: {why}")]
    NotReached {
        /// The peer.
        peer: NodeId,
        /// Why the last address failed.
        why: DialFailure,
    },
    /// The peer does not speak the protocol.
    #[error("{peer} does not speak {protocol}")]
    UnsupportedProtocol {
        /// The peer.
        peer: NodeId,
        /// The protocol.
        protocol: String,
    },
    /// The name is no protocol.
    #[error("{0:?} is no protocol name")]
    InvalidProtocol(String),
    /// The connection broke while the stream was opened.
    #[error("the connection to {peer} broke: {why}")]
    Broken {
        /// The peer.
        peer: NodeId,
        /// Why.
        why: String,
    },
    /// It took too long.
    #[error("no stream to {peer} within {limit:?}")]
    Timeout {
        /// The peer.
        peer: NodeId,
        /// The limit.
        limit: Duration,
    },
    /// The mesh has stopped.
    #[error("the mesh has stopped")]
    Stopped,
}

/// Why a ping had no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PingError {
    /// No stream to the peer.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The answer was not what was sent, or the stream ended.
    #[error("the peer answered wrongly: {0}")]
    BadAnswer(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// Why a dial failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "failure", rename_all = "snake_case")]
pub enum DialFailure {
    /// The machine answers, and nothing listens at that port.
    #[error("nothing listens at that port")]
    NothingListens,
    /// No way leads to the machine.
    #[error("no way leads there: {why}")]
    Unreachable {
        /// What the system says.
        why: String,
    },
    /// The name has no address.
    #[error("the name cannot be resolved: {why}")]
    UnknownName {
        /// What the resolver says.
        why: String,
    },
    /// The address is an IPv6 one, and this machine has no IPv6.
    #[error("it has an IPv6 address only, and this machine has no IPv6")]
    OnlyIpv6,
    /// Nothing came back in time: a firewall that drops, or a machine that is off.
    #[error("no answer in time: the machine is off, or a firewall drops what is sent")]
    Timeout,
    /// A node of another private swarm listens there.
    #[error("a node with another swarm key listens there")]
    AnotherSwarmKey,
    /// A libp2p node without a swarm key listens there, and this one has a key.
    #[error("a node without a swarm key listens there")]
    NoSwarmKey,
    /// Something that does not speak libp2p listens there.
    #[error("what listens there does not speak libp2p")]
    NotLibp2p,
    /// The handshake broke in a way that tells no more.
    #[error("the handshake failed: {why}")]
    Handshake {
        /// What failed.
        why: String,
    },
    /// Another peer than the expected one is there.
    #[error("another peer is there: {found}")]
    WrongPeer {
        /// The one that is there.
        found: NodeId,
    },
    /// A process with this node's own identity is there, or the node itself.
    #[error("it is this node itself, or another process with the same identity")]
    SameIdentity,
    /// The peer was removed from the swarm.
    #[error("the peer was removed from this swarm")]
    NotAMember,
    /// The text is no address that can be dialled.
    #[error("not an address that can be dialled: {why}")]
    InvalidAddress {
        /// What is wrong with it.
        why: String,
    },
    /// No address of the peer is known.
    #[error("no address of it is known")]
    NoAddress,
    /// A limit of this node on connections was reached, or that on its memory.
    #[error("this node has too many connections, or uses too much memory for another one")]
    TooManyConnections,
    /// The mesh is too busy, or is being built anew.
    #[error("the mesh is too busy, or is being built anew; try again")]
    Busy,
    /// The mesh has stopped.
    #[error("the mesh has stopped")]
    Stopped,
}
