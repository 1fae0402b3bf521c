//! The handle through which everybody but the service uses the mesh.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use libp2p::StreamProtocol;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::events::NetEvents;
use crate::failure::{DialFailure, NetError, OpenError, PingError, PublishError};
use crate::membership::SwarmId;
use crate::peer::{NetPeer, Path};
use crate::report::NetReport;
use crate::shared::{Command, Shared, TopicEntry, lock};
use crate::stream::{Incoming, NetStream, NotAccepted};
use crate::topic::{Judge, Subscription, TopicQueue};

/// How many topics may be subscribed to at once, and how many protocols accepted.
const WISHES_MAX: usize = 128;
/// The longest name of a protocol, in bytes: the negotiation of protocols takes no longer one.
const PROTOCOL_BYTES_MAX: usize = 140;
/// How many peers may be expected at a time.
const EXPECTED_MAX: usize = 1024;
/// How long a request waits for its place in the service's queue and for its answer.
const PUBLISH_LIMIT: Duration = Duration::from_secs(5);
/// The longest message of a topic in bytes, so that with its envelope it stays under the 1 MiB that peers take.
pub const MESSAGE_MAX: usize = 1024 * 1024 - 1024;

/// A cheap handle to the mesh.
///
/// Requests go to the service over a channel of 256. When it is full, they wait, each up to its own limit, and then fail as busy.
#[derive(Clone)]
pub struct NetHandle {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for NetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetHandle").field("node_id", &self.shared.node_id).finish_non_exhaustive()
    }
}

impl NetHandle {
    /// Returns this node's id.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.shared.node_id
    }

    /// Returns the swarm that this node is in.
    #[must_use]
    pub fn swarm_id(&self) -> SwarmId {
        self.shared.membership.current().borrow().swarm_id.clone()
    }

    /// Returns the multiaddrs that this node listens on, with `/p2p/` at their end, and follows their changes.
    #[must_use]
    pub fn listen_addrs(&self) -> watch::Receiver<Vec<String>> {
        self.shared.listen.subscribe()
    }

    /// Publishes a message of at most 1 MiB (with an envelope of some 200 bytes) to a topic.
    ///
    /// That no peer takes part in the topic is no error; it is counted in the report.
    ///
    /// # Errors
    ///
    /// When it is too large, when the queues to all peers are full, or when the service did not take it within 5 s.
    pub async fn publish(&self, topic: &str, data: Vec<u8>) -> Result<(), PublishError> {
        if data.len() > MESSAGE_MAX {
            return Err(PublishError::TooLarge { size: data.len(), max: MESSAGE_MAX });
        }
        let (reply, answer) = oneshot::channel();
        let asked = self.shared.ask(Command::Publish { topic: topic.to_owned(), data, reply }, answer);
        match timeout(PUBLISH_LIMIT, asked).await {
            Ok(Some(result)) => result,
            Ok(None) => Err(PublishError::Stopped),
            Err(_) => Err(PublishError::Busy),
        }
    }

    /// Subscribes to a topic. Each message is put to `judge` before it is handed out and passed on.
    ///
    /// At most 128 topics may be subscribed to at once. The subscription survives a rebuild.
    ///
    /// # Errors
    ///
    /// When the name is no topic, or the topic has a subscription already, or there are too many.
    pub async fn subscribe(&self, topic: &str, judge: Arc<dyn Judge>) -> Result<Subscription, NetError> {
        if topic.is_empty() || topic.len() > 256 {
            return Err(NetError::InvalidTopic(topic.len()));
        }
        let queue = Arc::new(TopicQueue::default());
        {
            let mut topics = lock(&self.shared.topics);
            if self.shared.stopped.is_cancelled() {
                return Err(NetError::Stopped);
            }
            if topics.contains_key(topic) {
                return Err(NetError::AlreadySubscribed(topic.to_owned()));
            }
            if topics.len() >= WISHES_MAX {
                return Err(NetError::TooMany(WISHES_MAX));
            }
            topics.insert(topic.to_owned(), TopicEntry { judge, queue: Arc::clone(&queue) });
        }
        self.shared.wishes.notify_one();
        let (shared, topic) = (Arc::clone(&self.shared), topic.to_owned());
        let end = move || {
            lock(&shared.topics).remove(&topic);
            shared.wishes.notify_one();
        };
        Ok(Subscription { queue, on_drop: Some(Box::new(end)) })
    }

    /// Follows which connected peers take part in a topic, whether or not this node does; ordered by id.
    ///
    /// It says no more once the mesh has stopped: [`watch::Receiver::changed`] fails then.
    #[must_use]
    pub fn topic_peers(&self, topic: &str) -> watch::Receiver<Vec<NodeId>> {
        let receiver = {
            let mut watched = lock(&self.shared.topic_peers);
            if self.shared.stopped.is_cancelled() {
                return watch::channel(Vec::new()).1;
            }
            watched.retain(|_, peers| peers.receiver_count() > 0);
            watched.entry(topic.to_owned()).or_default().subscribe()
        };
        self.shared.wishes.notify_one();
        receiver
    }

    /// Opens a stream to a peer, and dials it before if there is no connection.
    ///
    /// # Errors
    ///
    /// When the peer is not reached, does not speak the protocol, or all that takes longer than 10 s.
    pub async fn open_stream(&self, peer: &NodeId, protocol: &str) -> Result<NetStream, OpenError> {
        if protocol.len() > PROTOCOL_BYTES_MAX {
            return Err(OpenError::InvalidProtocol(protocol.to_owned()));
        }
        let limit = self.shared.timing.open_limit;
        match timeout(limit, self.shared.open(peer, protocol)).await {
            Ok(result) => result,
            Err(_) => Err(OpenError::Timeout { peer: peer.clone(), limit }),
        }
    }

    /// Begins to accept streams of a protocol; it ends when the value is dropped.
    ///
    /// At most 128 protocols may be accepted at once.
    ///
    /// # Errors
    ///
    /// When the name is no protocol, or it is accepted already, or there are too many.
    pub fn accept(&self, protocol: &str) -> Result<Incoming, NetError> {
        let invalid = || NetError::InvalidProtocol(protocol.to_owned());
        let name = StreamProtocol::try_from_owned(protocol.to_owned()).map_err(|_| invalid())?;
        if protocol.len() > PROTOCOL_BYTES_MAX {
            return Err(invalid());
        }
        if self.shared.stopped.is_cancelled() {
            return Err(NetError::Stopped);
        }
        let queue = self.shared.protocols.add(name, WISHES_MAX).map_err(|why| match why {
            NotAccepted::Already => NetError::AlreadyAccepted(protocol.to_owned()),
            NotAccepted::TooMany => NetError::TooMany(WISHES_MAX),
        })?;
        let (shared, protocol) = (Arc::clone(&self.shared), protocol.to_owned());
        let end = move || shared.protocols.remove(&protocol);
        Ok(Incoming { queue, on_drop: Some(Box::new(end)) })
    }

    /// Returns what is known of all peers, as of some tenths of a second ago; ordered by id.
    #[must_use]
    pub fn peers(&self) -> Vec<NetPeer> {
        lock(&self.shared.peers).as_ref().clone()
    }

    /// Tells the mesh which peers are said to be there, for example by others that reach them; it takes the place of what was told before.
    ///
    /// For those of them that are not connected, and to which no way is known, the connected peers are asked every few seconds. Of more
    /// than 1,024 the rest is left out.
    pub fn expect(&self, peers: BTreeSet<NodeId>) {
        *lock(&self.shared.expected) = peers.into_iter().take(EXPECTED_MAX).collect();
    }

    /// Begins to read events; those before are not among them.
    #[must_use]
    pub fn events(&self) -> NetEvents {
        NetEvents { receiver: self.shared.events.subscribe(), stopped: self.shared.stopped.clone() }
    }

    /// Dials an address and remembers it for the peer that it finds there. With `/p2p/` at its end, it must be that peer.
    ///
    /// # Errors
    ///
    /// Why it failed, as exactly as can be told; at the latest after four times [`crate::NetTiming::handshake_limit`].
    pub async fn dial(&self, addr: &str) -> Result<NodeId, DialFailure> {
        let (reply, answer) = oneshot::channel();
        let asked = self.shared.ask(Command::Dial { addr: addr.to_owned(), reply }, answer);
        let limit = self.shared.timing.handshake_limit;
        match timeout(limit * 3, asked).await {
            Ok(Some(Err(DialFailure::Handshake { why }))) => {
                Err(crate::probe::look(addr, limit).await.unwrap_or(DialFailure::Handshake { why }))
            }
            Ok(Some(result)) => result,
            Ok(None) => Err(DialFailure::Stopped),
            Err(_) => Err(DialFailure::Timeout),
        }
    }

    /// Sends 32 bytes to a peer and waits for them to come back (libp2p's ping); dials before if there is no connection.
    ///
    /// Returns the round trip, and how the peer is reached.
    ///
    /// # Errors
    ///
    /// When the peer is not reached, or its answer is wrong or late ([`crate::NetTiming::ping_limit`]).
    pub async fn ping(&self, peer: &NodeId) -> Result<(Duration, Path), PingError> {
        crate::ping::ping(self, peer, self.shared.timing.ping_limit).await
    }

    /// Closes all connections to a peer. It may come back, as may this node to it.
    pub async fn disconnect(&self, peer: &NodeId) {
        let (reply, answer) = oneshot::channel();
        // Either it is done, or the service is gone and all connections with it.
        self.shared.ask(Command::Disconnect { peer: peer.clone(), reply }, answer).await;
    }

    /// Returns what the mesh has tried and seen.
    #[must_use]
    pub fn report(&self) -> NetReport {
        lock(&self.shared.report).as_ref().clone()
    }
}
