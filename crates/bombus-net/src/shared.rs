//! What the service and its handles share.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bombus_core::identity::NodeId;
use libp2p::StreamProtocol;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::behaviour::streams::{NotOpened, StreamControl};
use crate::config::NetTiming;
use crate::events::NetEvent;
use crate::failure::{DialFailure, OpenError, PublishError};
use crate::id;
use crate::membership::MembershipHandle;
use crate::peer::NetPeer;
use crate::report::NetReport;
use crate::stream::{NetStream, Protocols};
use crate::topic::{Judge, TopicQueue};

/// How many requests wait for the service; those that find the channel full wait outside, each up to its own limit.
pub(crate) const COMMANDS_MAX: usize = 256;
/// How often a stream is opened anew when its connection breaks meanwhile.
const TRIES: usize = 3;

/// A request of a handle.
pub(crate) enum Command {
    /// Publishes a message.
    Publish { topic: String, data: Vec<u8>, reply: oneshot::Sender<Result<(), PublishError>> },
    /// Makes sure that there is a connection to a peer.
    Connect { peer: NodeId, reply: oneshot::Sender<Result<(), DialFailure>> },
    /// Dials an address.
    Dial { addr: String, reply: oneshot::Sender<Result<NodeId, DialFailure>> },
    /// Fails as libp2p may.
    #[cfg(test)]
    Panic,
    /// Closes the connections to a peer.
    Disconnect { peer: NodeId, reply: oneshot::Sender<()> },
}

/// A topic that somebody subscribes to.
#[derive(Clone)]
pub(crate) struct TopicEntry {
    pub(crate) judge: Arc<dyn Judge>,
    pub(crate) queue: Arc<TopicQueue>,
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
    /// Who takes part in the topics for which somebody wants to know that; ordered.
    pub(crate) topic_peers: Mutex<HashMap<String, watch::Sender<Vec<NodeId>>>>,
    pub(crate) protocols: Arc<Protocols>,
    /// Peers that are said to be there, whether or not this node has a way to them.
    pub(crate) expected: Mutex<BTreeSet<NodeId>>,
    /// What is wanted of topics has changed.
    pub(crate) wishes: Notify,
    pub(crate) control: Mutex<Option<StreamControl>>,
    pub(crate) peers: Mutex<Arc<Vec<NetPeer>>>,
    pub(crate) report: Mutex<Arc<NetReport>>,
    pub(crate) published_to_nobody: AtomicU64,
    /// The service has ended.
    pub(crate) stopped: CancellationToken,
}

impl Shared {
    /// Ends what waits for the service.
    pub(crate) fn end(&self) {
        self.stopped.cancel();
        for (_, entry) in lock(&self.topics).drain() {
            entry.queue.close();
        }
        lock(&self.topic_peers).clear();
        self.protocols.close();
    }

    pub(crate) fn count_published_to_nobody(&self) {
        self.published_to_nobody.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends a request and waits for its answer; `None` once the service is gone.
    pub(crate) async fn ask<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Option<T> {
        let asked = async {
            self.commands.send(command).await.ok()?;
            answer.await.ok()
        };
        self.stopped.run_until_cancelled(asked).await.flatten()
    }

    /// Opens a stream, with a dial before if there is no connection. The caller sets the limit.
    pub(crate) async fn open(&self, peer: &NodeId, protocol: &str) -> Result<NetStream, OpenError> {
        let invalid = || OpenError::InvalidProtocol(protocol.to_owned());
        let name = StreamProtocol::try_from_owned(protocol.to_owned()).map_err(|_| invalid())?;
        let not_reached = |why| OpenError::NotReached { peer: peer.clone(), why };
        let peer_id = id::peer_id(peer)
            .ok_or_else(|| not_reached(DialFailure::InvalidAddress { why: "it is no peer id".to_owned() }))?;
        let mut last = "the connection was closed".to_owned();
        for _ in 0..TRIES {
            let control = lock(&self.control).clone();
            let opened = match control {
                Some(control) => control.open(&peer_id, name.clone()).await,
                None => Err(NotOpened::NotConnected),
            };
            match opened {
                Ok(stream) => return Ok(stream),
                Err(NotOpened::UnsupportedProtocol) => {
                    return Err(OpenError::UnsupportedProtocol { peer: peer.clone(), protocol: protocol.to_owned() });
                }
                Err(NotOpened::Broken(why)) => {
                    last = why;
                    // What broke may have been one of two connections, or about to be replaced.
                    tokio::task::yield_now().await;
                    continue;
                }
                Err(NotOpened::NotConnected) => {}
            }
            let (reply, answer) = oneshot::channel();
            match self.ask(Command::Connect { peer: peer.clone(), reply }, answer).await {
                Some(Ok(())) => {}
                Some(Err(why)) => return Err(not_reached(why)),
                None => return Err(OpenError::Stopped),
            }
        }
        Err(OpenError::Broken { peer: peer.clone(), why: last })
    }
}

/// Locks what no panic can leave half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
