//! The mesh as the membership's service needs it.

use std::io;

use bombus_core::identity::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};

use super::wire::PROTOCOL;
use crate::{AddressSource, Incoming, NetError, NetEvent, NetEvents, NetHandle, NetStream};

/// What happens in the mesh.
#[derive(Debug)]
pub(super) enum LinkEvent<S> {
    /// There is a connection to a peer.
    Connected(NodeId),
    /// There is none any more.
    Disconnected(NodeId),
    /// There is no connection any more to anybody.
    NoneConnected,
    /// A peer opened a stream.
    Incoming(NodeId, S),
}

/// An address at which a peer was seen, or that somebody told.
#[derive(Debug)]
pub(super) struct SeenAddress {
    pub(super) peer: NodeId,
    pub(super) addr: String,
    /// When it last worked, in seconds since 1970.
    pub(super) last_ok_s: Option<u64>,
}

/// Connections and streams. The mesh has them, and tests without sockets do.
pub(super) trait Links: Send + 'static {
    /// A stream.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Returns this node.
    fn own(&self) -> NodeId;

    /// Opens a stream to a peer.
    fn open(&self, peer: NodeId) -> impl Future<Output = io::Result<Self::Stream>> + Send + 'static;

    /// Returns addresses that are worth to be remembered.
    fn seen(&self) -> Vec<SeenAddress>;

    /// Waits for what happens next; `None` once the mesh has stopped. Safe to cancel.
    fn next(&mut self) -> impl Future<Output = Option<LinkEvent<Self::Stream>>> + Send;
}

fn connected(net: &NetHandle) -> Vec<NodeId> {
    net.peers().into_iter().filter(|peer| peer.connected.is_some()).map(|peer| peer.node_id).collect()
}

/// The real mesh.
pub(super) struct NetLinks {
    net: NetHandle,
    events: NetEvents,
    incoming: Incoming,
    /// Peers that are connected and of which no event tells.
    untold: Vec<NodeId>,
}

impl NetLinks {
    pub(super) fn new(net: NetHandle) -> Result<Self, NetError> {
        let (events, incoming) = (net.events(), net.accept(PROTOCOL)?);
        let untold = connected(&net);
        Ok(Self { net, events, incoming, untold })
    }
}

impl Links for NetLinks {
    type Stream = NetStream;

    fn own(&self) -> NodeId {
        self.net.node_id().clone()
    }

    fn open(&self, peer: NodeId) -> impl Future<Output = io::Result<NetStream>> + Send + 'static {
        let net = self.net.clone();
        async move { net.open_stream(&peer, PROTOCOL).await.map_err(io::Error::other) }
    }

    fn seen(&self) -> Vec<SeenAddress> {
        let mut seen = Vec::new();
        for peer in self.net.peers() {
            // Where a peer came from says nothing of where it listens.
            let worth = peer.addresses.into_iter().filter(|address| address.source != AddressSource::Incoming);
            let trusted = peer.connected.is_some();
            for address in worth.filter(|address| trusted || address.last_ok_ms.is_some()) {
                let last_ok_s = address.last_ok_ms.map(|ms| ms / 1_000);
                seen.push(SeenAddress { peer: peer.node_id.clone(), addr: address.addr, last_ok_s });
            }
        }
        seen
    }

    async fn next(&mut self) -> Option<LinkEvent<NetStream>> {
        loop {
            if let Some(peer) = self.untold.pop() {
                return Some(LinkEvent::Connected(peer));
            }
            tokio::select! {
                event = self.events.next() => match event? {
                    NetEvent::PeerConnected { peer, .. } => return Some(LinkEvent::Connected(peer)),
                    NetEvent::PeerDisconnected { peer, .. } => return Some(LinkEvent::Disconnected(peer)),
                    NetEvent::Rebuilt { .. } => return Some(LinkEvent::NoneConnected),
                    // Who is told of twice is only asked twice, and who is gone cannot be asked.
                    NetEvent::Lagged(_) => self.untold = connected(&self.net),
                    _ => {}
                },
                incoming = self.incoming.next() => {
                    let (peer, stream) = incoming?;
                    return Some(LinkEvent::Incoming(peer, stream));
                }
            }
        }
    }
}
