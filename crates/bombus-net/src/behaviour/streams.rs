//! Streams by protocol, over the best connection of each peer.
//!
//! `libp2p-stream` would do this over a random connection of a peer, and loses streams that come in bursts: its queue for a protocol has
//! one place.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::vec;

use bombus_core::identity::NodeId;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::address;
use crate::id;
use crate::peer::Path;
use crate::shared::lock;
use crate::stream::{NetStream, Protocols};

/// How many requests for streams wait at one connection; more wait at the callers.
const REQUESTS_MAX: usize = 32;

/// Why a stream could not be opened.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// There is no connection to the peer.
    NotConnected,
    /// The peer does not speak the protocol.
    UnsupportedProtocol,
    /// The connection broke meanwhile, or the negotiation took too long.
    Broken(String),
}

/// The peer's key is none that node ids are made of.
#[derive(Debug, thiserror::Error)]
#[error("the peer's key is not an Ed25519 one")]
pub(crate) struct NotEd25519;

struct Request {
    protocol: StreamProtocol,
    reply: oneshot::Sender<Result<Stream, NotOpened>>,
}

struct Link {
    connection: ConnectionId,
    path: Path,
    requests: mpsc::Sender<Request>,
    open: OpenStreams,
}

/// Counts the streams of a connection that are open, by the copies of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenStreams(Arc<()>);

type Links = Arc<Mutex<HashMap<PeerId, Vec<Link>>>>;

/// Opens streams; cheap to clone.
#[derive(Clone)]
pub(crate) struct StreamControl {
    links: Links,
    rebuilt: CancellationToken,
}

impl StreamControl {
    /// Opens a stream over the best connection of a peer. The caller sets the limit.
    pub(crate) async fn open(&self, peer: &PeerId, protocol: StreamProtocol) -> Result<NetStream, NotOpened> {
        let node = id::node_id(peer).ok_or(NotOpened::NotConnected)?;
        let (requests, path, open) = {
            let links = lock(&self.links);
            let best = links.get(peer).and_then(|links| links.first()).ok_or(NotOpened::NotConnected)?;
            (best.requests.clone(), best.path.clone(), best.open.clone())
        };
        let gone = || NotOpened::Broken("the connection was closed".to_owned());
        let (reply, answer) = oneshot::channel();
        requests.send(Request { protocol, reply }).await.map_err(|_| gone())?;
        let stream = answer.await.map_err(|_| gone())??;
        Ok(NetStream::new(stream, node, path, open, self.rebuilt.clone()))
    }
}

/// The behaviour: knows all connections, and whether each is to be kept.
pub(crate) struct Behaviour {
    protocols: Arc<Protocols>,
    links: Links,
    rebuilt: CancellationToken,
    outputs: VecDeque<ToSwarm<Infallible, Tell>>,
    waiting: HashMap<ConnectionId, (mpsc::Sender<Request>, OpenStreams)>,
}

/// What a connection is told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tell {
    /// Whether it stays open while nothing uses it.
    Keep(bool),
    /// To look whether any of its protocols has something to do.
    Wake,
}

impl Behaviour {
    /// `rebuilt` ends when the swarm that this is part of does.
    pub(crate) fn new(protocols: Arc<Protocols>, rebuilt: CancellationToken) -> Self {
        Self { protocols, links: Links::default(), rebuilt, outputs: VecDeque::new(), waiting: HashMap::new() }
    }

    pub(crate) fn control(&self) -> StreamControl {
        StreamControl { links: Arc::clone(&self.links), rebuilt: self.rebuilt.clone() }
    }

    /// Says over which connection of a peer streams are opened from now on.
    pub(crate) fn prefer(&mut self, peer: &PeerId, connection: ConnectionId) {
        if let Some(links) = lock(&self.links).get_mut(peer)
            && let Some(at) = links.iter().position(|link| link.connection == connection)
        {
            links[..=at].rotate_right(1);
        }
    }

    /// Says whether streams are open on a connection.
    pub(crate) fn is_busy(&self, peer: &PeerId, connection: ConnectionId) -> bool {
        let links = lock(&self.links);
        let link = links.get(peer).and_then(|links| links.iter().find(|link| link.connection == connection));
        // One copy is this one, another the connection's own.
        link.is_some_and(|link| Arc::strong_count(&link.open.0) > 2)
    }

    /// Says whether a connection stays open while nothing uses it.
    pub(crate) fn keep(&mut self, peer: PeerId, connection: ConnectionId, keep: bool) {
        self.outputs.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: Tell::Keep(keep),
        });
    }

    /// Has all connections of a peer look whether their protocols have something to do.
    pub(crate) fn wake(&mut self, peer: &PeerId) {
        for link in lock(&self.links).get(peer).into_iter().flatten() {
            self.outputs.push_back(ToSwarm::NotifyHandler {
                peer_id: *peer,
                handler: NotifyHandler::One(link.connection),
                event: Tell::Wake,
            });
        }
    }

    fn handler(&mut self, connection: ConnectionId, peer: &PeerId, path: Path) -> Result<Handler, ConnectionDenied> {
        let node = id::node_id(peer).ok_or_else(|| ConnectionDenied::new(NotEd25519))?;
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let open = OpenStreams::default();
        self.waiting.insert(connection, (requests, open.clone()));
        Ok(Handler {
            protocols: Arc::clone(&self.protocols),
            rebuilt: self.rebuilt.clone(),
            peer: node,
            path,
            requests: receiver,
            open,
            keep: true,
        })
    }
}

/// Reads the way that a connection takes from its endpoint.
pub(crate) fn path_of(endpoint: &ConnectedPoint) -> Path {
    let (own_side, remote) = match endpoint {
        ConnectedPoint::Dialer { address, .. } => (address, address),
        // The remote address of a relayed connection that comes in names only the peer; the relay is in the local one.
        ConnectedPoint::Listener { local_addr, send_back_addr } => (local_addr, send_back_addr),
    };
    path_between(own_side, remote)
}

fn path_between(own_side: &Multiaddr, remote: &Multiaddr) -> Path {
    match address::relay_of(own_side) {
        Some(via) => Path::Relayed { via },
        None => Path::Direct { addr: address::split_peer(remote.clone()).0.to_string() },
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local_addr: &Multiaddr,
        remote_addr: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(connection, &peer, path_between(local_addr, remote_addr))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(connection, &peer, path_between(addr, addr))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                if let Some((requests, open)) = self.waiting.remove(&event.connection_id) {
                    let path = path_of(event.endpoint);
                    let link = Link { connection: event.connection_id, path, requests, open };
                    lock(&self.links).entry(event.peer_id).or_default().push(link);
                }
            }
            FromSwarm::ConnectionClosed(event) => {
                let mut links = lock(&self.links);
                if let Some(of_peer) = links.get_mut(&event.peer_id) {
                    of_peer.retain(|link| link.connection != event.connection_id);
                    if of_peer.is_empty() {
                        links.remove(&event.peer_id);
                    }
                }
            }
            // Another behaviour refused the connection.
            FromSwarm::DialFailure(event) => {
                self.waiting.remove(&event.connection_id);
            }
            FromSwarm::ListenFailure(event) => {
                self.waiting.remove(&event.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // Outputs are only made while the swarm's owner runs, who polls the swarm next.
        self.outputs.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// One connection's part.
pub(crate) struct Handler {
    protocols: Arc<Protocols>,
    rebuilt: CancellationToken,
    peer: NodeId,
    path: Path,
    requests: mpsc::Receiver<Request>,
    open: OpenStreams,
    keep: bool,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Tell;
    type ToBehaviour = Infallible;
    type InboundProtocol = OneOf;
    type OutboundProtocol = OneOf;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Reply;

    fn listen_protocol(&self) -> SubstreamProtocol<OneOf> {
        SubstreamProtocol::new(OneOf(self.protocols.names()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<OneOf, Reply, Infallible>> {
        match self.requests.poll_recv(cx) {
            Poll::Ready(Some(Request { protocol, reply })) => {
                let protocol = SubstreamProtocol::new(OneOf(Arc::new(vec![protocol])), Reply(reply));
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, told: Tell) {
        match told {
            Tell::Keep(keep) => self.keep = keep,
            // Whoever is told something is asked afterwards what there is to do, all protocols beside this one included.
            Tell::Wake => {}
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, OneOf, OneOf, (), Reply>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: (stream, name), .. }) => {
                let (peer, path) = (self.peer.clone(), self.path.clone());
                let stream = NetStream::new(stream, peer, path, self.open.clone(), self.rebuilt.clone());
                if !self.protocols.deliver(name.as_ref(), stream) {
                    tracing::debug!(peer.id = %self.peer, protocol = name.as_ref(), "a stream was reset: too many wait");
                }
            }
            // Who asked may have given up; then the stream is reset.
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: (stream, _), info }) => {
                let _ = info.0.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let _ = info.0.send(Err(match error {
                    StreamUpgradeError::NegotiationFailed => NotOpened::UnsupportedProtocol,
                    StreamUpgradeError::Timeout => NotOpened::Broken("the negotiation took too long".to_owned()),
                    StreamUpgradeError::Io(error) => NotOpened::Broken(error.to_string()),
                    StreamUpgradeError::Apply(never) => match never {},
                }));
            }
            _ => {}
        }
    }
}

/// Where the stream goes that was asked for.
pub(crate) struct Reply(oneshot::Sender<Result<Stream, NotOpened>>);

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// Negotiates one of some protocols and leaves the stream as it is.
#[derive(Debug, Clone)]
pub(crate) struct OneOf(Arc<Vec<StreamProtocol>>);

impl UpgradeInfo for OneOf {
    type Info = StreamProtocol;
    type InfoIter = vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.as_ref().clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for OneOf {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, name: StreamProtocol) -> Self::Future {
        ready(Ok((stream, name)))
    }
}

impl OutboundUpgrade<Stream> for OneOf {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, name: StreamProtocol) -> Self::Future {
        ready(Ok((stream, name)))
    }
}
