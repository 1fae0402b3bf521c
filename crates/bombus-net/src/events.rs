//! What happens in the mesh, as it happens.

use bombus_core::identity::NodeId;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::failure::DialFailure;
use crate::peer::{AddressSource, Path};

/// How many events wait for a reader that is slow; then the oldest go, and it is told with [`NetEvent::Lagged`].
pub(crate) const EVENTS_MAX: usize = 1024;

/// One thing that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NetEvent {
    /// The first connection to a peer stands.
    PeerConnected {
        /// The peer.
        peer: NodeId,
        /// How it is reached.
        path: Path,
    },
    /// A connected peer is reached in another way now: directly after having been relayed, or at another address.
    PathChanged {
        /// The peer.
        peer: NodeId,
        /// How it is reached now.
        path: Path,
    },
    /// The last connection to a peer ended.
    PeerDisconnected {
        /// The peer.
        peer: NodeId,
        /// Why, in words; empty when it was closed in an orderly way.
        why: String,
    },
    /// A peer takes part in a topic that this node subscribes to as well.
    PeerSubscribed {
        /// The peer.
        peer: NodeId,
        /// The topic.
        topic: String,
    },
    /// A peer left a topic that this node subscribes to.
    PeerUnsubscribed {
        /// The peer.
        peer: NodeId,
        /// The topic.
        topic: String,
    },
    /// An address of a peer became known. Whether it is true shows when it is dialled.
    Discovered {
        /// The peer.
        peer: NodeId,
        /// The multiaddr.
        addr: String,
        /// Where it is from.
        source: AddressSource,
    },
    /// A dial failed.
    DialFailed {
        /// The multiaddr; empty where the peer had no address at all.
        addr: String,
        /// The peer that was expected there, if one was.
        peer: Option<NodeId>,
        /// Why.
        why: DialFailure,
    },
    /// Listening at an address failed or ended.
    ListenFailed {
        /// The multiaddr.
        addr: String,
        /// Why.
        why: String,
    },
    /// Another process has this node's identity.
    IdentityConflict {
        /// Where it was met.
        addr: String,
    },
    /// The libp2p swarm was built anew for another key or swarm: all connections and streams ended.
    Rebuilt {
        /// The generation of the membership that it was built for.
        generation: u64,
    },
    /// This reader was too slow and lost so many events; what follows is newer. [`crate::NetHandle::peers`] has the state.
    Lagged(u64),
}

/// One reader's events, from the moment on at which it was made.
///
/// At most 1,024 wait; when a reader is slower, the oldest go and it is told how many ([`NetEvent::Lagged`]).
#[derive(Debug)]
pub struct NetEvents {
    pub(crate) receiver: broadcast::Receiver<NetEvent>,
    pub(crate) stopped: CancellationToken,
}

impl NetEvents {
    /// Waits for the next event; `None` once the mesh has stopped. Safe to cancel.
    pub async fn next(&mut self) -> Option<NetEvent> {
        let received = tokio::select! {
            biased;
            received = self.receiver.recv() => received,
            () = self.stopped.cancelled() => return None,
        };
        match received {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(NetEvent::Lagged(count)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
