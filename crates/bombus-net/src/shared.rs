//! What the service and its handles share.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bombus_core::identity::NodeId;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::config::NetTiming;
use crate::events::NetEvent;
use crate::failure::{DialFailure, PublishError};
use crate::membership::MembershipHandle;
use crate::peer::NetPeer;
use crate::report::NetReport;
use crate::stream::NetStream;
use crate::topic::{Judge, TopicQueue};

/// How many requests wait for the service; those that find the channel full wait outside, each up to its own limit.
pub(crate) const COMMANDS_MAX: usize = 256;

/// A request of a handle.
pub(crate) enum Command {
    /// Publishes a message.
    Publish { topic: String, data: Vec<u8>, reply: oneshot::Sender<Result<(), PublishError>> },
    /// Makes sure that there is a connection to a peer.
    Connect { peer: NodeId, reply: oneshot::Sender<Result<(), DialFailure>> },
    /// Dials an address.
    Dial { addr: String, reply: oneshot::Sender<Result<NodeId, DialFailure>> },
    /// Closes the connections to a peer.
    Disconnect { peer: NodeId, reply: oneshot::Sender<()> },
}

/// A topic that somebody subscribes to.
#[derive(Clone)]
pub(crate) struct TopicEntry {
    pub(crate) judge: Arc<dyn Judge>,
    pub(crate) queue: Arc<TopicQueue>,
}

/// A protocol that somebody accepts.
#[derive(Clone)]
pub(crate) struct ProtocolEntry {
    pub(crate) streams: mpsc::Sender<(NodeId, NetStream)>,
    pub(crate) refused: Arc<AtomicU64>,
}

/// What the service and its handles share. No lock is held for longer than a few lines.
pub(crate) struct Shared {
    pub(crate) node_id: NodeId,
    pub(crate) timing: NetTiming,
    pub(crate) membership: MembershipHandle,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) events: broadcast::Sender<NetEvent>,
    pub(crate) listen: watch::Sender<Vec<String>>,
    pub(crate) topics: Mutex<HashMap<String, TopicEntry>>,
    pub(crate) protocols: Mutex<HashMap<String, ProtocolEntry>>,
    /// Topics or protocols have changed.
    pub(crate) wishes: Notify,
    pub(crate) peers: Mutex<Arc<Vec<NetPeer>>>,
    pub(crate) report: Mutex<NetReport>,
    pub(crate) published_to_nobody: AtomicU64,
    /// The service has ended.
    pub(crate) stopped: CancellationToken,
}

/// Locks what no panic can leave half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
