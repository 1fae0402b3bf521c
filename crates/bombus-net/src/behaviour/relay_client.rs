//! Being reached through relays.
//!
//! libp2p's client forgets a reservation with its listener, and ends the program when the relay's answer to it, or to its renewal, comes
//! after that (libp2p-relay 0.22). So the end of a listener is not told to it: what it remembers goes with the connection to the relay.

use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, relay};

/// libp2p's client of relays, without the ends of its listeners.
pub(crate) struct Behaviour(relay::client::Behaviour);

impl Behaviour {
    /// Puts it around libp2p's.
    pub(crate) fn new(inner: relay::client::Behaviour) -> Self {
        Self(inner)
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = THandler<relay::client::Behaviour>;
    type ToSwarm = relay::client::Event;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local_addr: &Multiaddr,
        remote_addr: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.0.handle_pending_inbound_connection(connection, local_addr, remote_addr)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local_addr: &Multiaddr,
        remote_addr: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_inbound_connection(connection, peer, local_addr, remote_addr)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.0.handle_pending_outbound_connection(connection, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_outbound_connection(connection, peer, addr, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if !matches!(event, FromSwarm::ListenerClosed(_)) {
            self.0.on_swarm_event(event);
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, connection: ConnectionId, event: THandlerOutEvent<Self>) {
        self.0.on_connection_handler_event(peer, connection, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.0.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt;
    use libp2p::Swarm;
    use libp2p::identity::Keypair;
    use libp2p::multiaddr::Protocol;
    use libp2p::swarm::{Config, SwarmEvent};
    use tokio::time::timeout;

    use super::*;
    use crate::membership::Privacy;
    use crate::transport::{self, MetSelf};

    const LIMIT: Duration = Duration::from_secs(30);

    /// A relay that listens on this machine, and its address.
    async fn relay() -> (Swarm<relay::Behaviour>, Multiaddr) {
        let key = Keypair::generate_ed25519();
        let local = key.public().to_peer_id();
        let mut behaviour = relay::Behaviour::new(local, relay::Config::default());
        behaviour.set_status(Some(relay::Status::Enable));
        let transport = transport::direct(&key, &Privacy::Open, LIMIT).unwrap();
        let mut relay = Swarm::new(transport, behaviour, local, Config::with_tokio_executor());
        relay.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = relay.select_next_some().await {
                relay.add_external_address(address.clone());
                return (relay, address.with(Protocol::P2p(local)));
            }
        }
    }

    fn hidden() -> Swarm<Behaviour> {
        let key = Keypair::generate_ed25519();
        let local = key.public().to_peer_id();
        let (relayed, client) = relay::client::new(local);
        let transport = transport::with_relay(&key, &Privacy::Open, relayed, &MetSelf::default(), LIMIT, None).unwrap();
        Swarm::new(transport, Behaviour::new(client), local, Config::with_tokio_executor())
    }

    #[tokio::test]
    async fn an_answer_of_a_relay_that_comes_after_the_end_of_the_listener_ends_nothing_else() {
        let (mut relay, addr) = relay().await;
        let mut hidden = hidden();
        hidden.dial(addr.clone()).unwrap();
        let connected = async {
            loop {
                tokio::select! {
                    event = hidden.select_next_some() => if matches!(event, SwarmEvent::ConnectionEstablished { .. }) {
                        return;
                    },
                    _ = relay.select_next_some() => {}
                }
            }
        };
        timeout(LIMIT, connected).await.expect("they connect");

        // The relay does not run, so that its answer waits.
        let listener = hidden.listen_on(addr.with(Protocol::P2pCircuit)).unwrap();
        for _ in 0..64 {
            while futures::poll!(hidden.next()).is_ready() {}
            tokio::task::yield_now().await;
        }
        assert!(hidden.remove_listener(listener));
        let closed = async { while !matches!(hidden.select_next_some().await, SwarmEvent::ListenerClosed { .. }) {} };
        timeout(LIMIT, closed).await.expect("the listener ends");

        let answered = async {
            loop {
                tokio::select! {
                    event = hidden.select_next_some() => if let SwarmEvent::Behaviour(event) = event {
                        return event;
                    },
                    _ = relay.select_next_some() => {}
                }
            }
        };
        let answer = timeout(LIMIT, answered).await.expect("the relay answers");
        assert!(matches!(answer, relay::client::Event::ReservationReqAccepted { .. }), "{answer:?}");
    }
}
