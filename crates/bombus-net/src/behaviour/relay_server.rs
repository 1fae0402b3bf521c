//! Relaying for others.
//!
//! libp2p's relay tells every connection when this node begins or ceases to relay, also those that are relayed themselves; but these have
//! a handler that takes nothing, and end the program when they get something (libp2p-relay 0.22, libp2p-swarm 0.48). So what is for them
//! is left out here.

use std::collections::HashSet;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, relay};

use crate::address;

/// libp2p's relay, without what its relayed connections cannot take.
pub(crate) struct Behaviour {
    inner: relay::Behaviour,
    relayed: HashSet<ConnectionId>,
}

impl Behaviour {
    /// Puts it around libp2p's.
    pub(crate) fn new(inner: relay::Behaviour) -> Self {
        Self { inner, relayed: HashSet::new() }
    }

    /// Says whether this node offers to relay: only where others reach it without a relay itself. libp2p would take an address through
    /// another relay for one of those.
    pub(crate) fn serve(&mut self, serves: bool) {
        self.inner.set_status(Some(if serves { relay::Status::Enable } else { relay::Status::Disable }));
    }

    fn note(&mut self, connection: ConnectionId, addr: &Multiaddr) {
        if address::is_relayed(addr) {
            self.relayed.insert(connection);
        }
    }

    fn takes_nothing(&self, handler: &NotifyHandler) -> bool {
        matches!(handler, NotifyHandler::One(connection) if self.relayed.contains(connection))
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = THandler<relay::Behaviour>;
    type ToSwarm = relay::Event;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local_addr: &Multiaddr,
        remote_addr: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(connection, local_addr, remote_addr)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local_addr: &Multiaddr,
        remote_addr: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.note(connection, local_addr);
        self.inner.handle_established_inbound_connection(connection, peer, local_addr, remote_addr)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(connection, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.note(connection, addr);
        self.inner.handle_established_outbound_connection(connection, peer, addr, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match &event {
            FromSwarm::ConnectionClosed(closed) => self.relayed.remove(&closed.connection_id),
            FromSwarm::DialFailure(failure) => self.relayed.remove(&failure.connection_id),
            FromSwarm::ListenFailure(failure) => self.relayed.remove(&failure.connection_id),
            _ => false,
        };
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            match self.inner.poll(cx) {
                Poll::Ready(ToSwarm::NotifyHandler { ref handler, .. }) if self.takes_nothing(handler) => {}
                polled => return polled,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use libp2p::core::ConnectedPoint;
    use libp2p::swarm::behaviour::{ConnectionEstablished, ExternalAddrConfirmed};

    use super::*;

    /// Counts what the behaviour tells connections, when it begins to relay with one connection that goes over `remote`.
    fn told(remote: &str) -> usize {
        let (local, peer) = (PeerId::random(), PeerId::random());
        let mut behaviour = Behaviour::new(relay::Behaviour::new(local, relay::Config::default()));
        let connection = ConnectionId::new_unchecked(1);
        let addr: Multiaddr = remote.parse().unwrap();
        behaviour
            .handle_established_outbound_connection(connection, peer, &addr, Endpoint::Dialer, PortUse::Reuse)
            .unwrap();
        let endpoint =
            ConnectedPoint::Dialer { address: addr, role_override: Endpoint::Dialer, port_use: PortUse::Reuse };
        behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: peer,
            connection_id: connection,
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established: 0,
        }));
        let own = "/ip4/192.0.2.1/tcp/7891".parse().unwrap();
        behaviour.on_swarm_event(FromSwarm::ExternalAddrConfirmed(ExternalAddrConfirmed { addr: &own }));
        let mut context = Context::from_waker(Waker::noop());
        let mut told = 0;
        while let Poll::Ready(event) = behaviour.poll(&mut context) {
            told += usize::from(matches!(event, ToSwarm::NotifyHandler { .. }));
        }
        told
    }

    #[test]
    fn relayed_connections_are_told_nothing() {
        let relay = PeerId::random();
        assert_eq!(told("/ip4/192.0.2.2/tcp/7891"), 1);
        assert_eq!(told(&format!("/ip4/192.0.2.2/tcp/7891/p2p/{relay}/p2p-circuit")), 0);
    }
}
