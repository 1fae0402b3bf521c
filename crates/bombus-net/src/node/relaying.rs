//! Relays: this node's reservations at others, and what it carries for them.

use std::time::{Duration, Instant};

use bombus_core::identity::NodeId;
use libp2p::multiaddr::Protocol;
use libp2p::{dcutr, relay};

use super::Node;
use crate::id;
use crate::peer::Path;
use crate::report::Reachability;
use crate::reservations::{Input, Output};
use crate::transport;

/// How long a node waits for somebody to reach it before it takes itself for unreachable.
const REACHED_WITHIN: Duration = Duration::from_secs(5);

impl Node {
    /// Decides whether this node needs relays to be reached.
    pub(super) fn review_reservations(&mut self, now: Instant) {
        let waited_in_vain =
            self.first_outbound.is_some_and(|at| now.duration_since(at) >= REACHED_WITHIN) && !self.inbound_seen;
        let is_configured = !self.memory.external.is_empty();
        let is_reached = is_configured || self.inbound_seen || self.reachability == Reachability::Public;
        if let Some(relay) = self.swarm.behaviour_mut().relay_server.as_mut() {
            relay.serve(is_reached);
        }
        let is_needed = !is_configured
            && match self.reachability {
                Reachability::Public => false,
                Reachability::Private => true,
                Reachability::Unknown => waited_in_vain || self.is_behind_router,
            };
        self.feed_reservations(Input::Needed(is_needed));
    }

    pub(super) fn on_reservation(&mut self, output: Output) {
        match output {
            Output::Reserve { relay, addr } => {
                let Some(relay_id) = id::peer_id(&relay) else {
                    return;
                };
                let addr = addr.with(Protocol::P2p(relay_id)).with(Protocol::P2pCircuit);
                match self.swarm.listen_on(addr) {
                    Ok(listener) => {
                        self.circuits.insert(listener, relay);
                    }
                    Err(error) => {
                        self.memory.counts.relay_failure = Some(error.to_string());
                        self.feed_reservations(Input::Ended { relay });
                    }
                }
            }
            Output::Release { relay } => {
                let listener = self.circuits.iter().find(|(_, of)| **of == relay).map(|(listener, _)| *listener);
                if let Some(listener) = listener {
                    self.circuits.remove(&listener);
                    self.swarm.remove_listener(listener);
                }
            }
        }
        self.is_changed = true;
    }

    /// Takes the end of a relayed listener.
    pub(super) fn on_circuit_closed(&mut self, relay: NodeId, reason: Result<(), std::io::Error>) {
        if let Err(error) = reason {
            let why = transport::chain(&error);
            tracing::debug!(relay.id = %relay, why, "a reservation at a relay ended");
            self.memory.counts.relay_failure = Some(why);
        }
        self.feed_reservations(Input::Ended { relay });
        self.is_changed = true;
    }

    pub(super) fn on_relay_client(&mut self, event: &relay::client::Event) {
        if let relay::client::Event::ReservationReqAccepted { relay_peer_id, renewal, .. } = event
            && let Some(relay) = id::node_id(relay_peer_id)
        {
            if !renewal {
                tracing::info!(relay.id = %relay, "peers that cannot reach this node get to it through a relay");
            }
            self.feed_reservations(Input::Accepted { relay });
            self.is_changed = true;
        }
    }

    pub(super) fn on_relay_server(&mut self, event: &relay::Event) {
        match event {
            relay::Event::CircuitReqAccepted { src_peer_id, dst_peer_id } => {
                self.circuits_served += 1;
                for peer in [src_peer_id, dst_peer_id] {
                    *self.carried.entry(*peer).or_default() += 1;
                }
            }
            relay::Event::CircuitClosed { src_peer_id, dst_peer_id, .. } => {
                self.circuits_served = self.circuits_served.saturating_sub(1);
                for peer in [src_peer_id, dst_peer_id] {
                    if let Some(count) = self.carried.get_mut(peer) {
                        *count -= 1;
                        if *count == 0 {
                            self.carried.remove(peer);
                        }
                    }
                }
            }
            _ => {}
        }
        self.is_changed = true;
    }

    /// Says whether a connection to a peer may be what a circuit goes over: one that this node carries for it, or that the peer carries, or
    /// may have to carry, for this node. Over which of several it goes nobody tells.
    pub(super) fn may_carry_circuits(&self, peer: &NodeId) -> bool {
        let for_it = id::peer_id(peer).is_some_and(|peer| self.carried.contains_key(&peer));
        let is_via = |path: &Path| matches!(path, Path::Relayed { via } if via == peer);
        let mut known = self.memory.dialer.peers().values();
        for_it || self.circuits.values().any(|relay| relay == peer) || known.any(|known| known.links.any(is_via))
    }

    pub(super) fn on_hole_punching(&mut self, event: &dcutr::Event) {
        match &event.result {
            Ok(_) => self.memory.counts.punched += 1,
            Err(error) => {
                self.memory.counts.punch_failures += 1;
                tracing::debug!(peer.id = %event.remote_peer_id, %error, "no direct connection could be made");
            }
        }
        self.is_changed = true;
    }
}
