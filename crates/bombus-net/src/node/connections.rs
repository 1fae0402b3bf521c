//! Connections: that they stand, that they end, and why there is none.

use std::io;
use std::time::Instant;

use bombus_core::identity::NodeId;
use libp2p::core::ConnectedPoint;
use libp2p::swarm::{ConnectionError, ConnectionId, DialError, ListenError};
use libp2p::{Multiaddr, PeerId, TransportError, allow_block_list, connection_limits, memory_connection_limits, ping};

use super::{Attempt, Node};
use crate::behaviour::streams::path_of;
use crate::conflict::End;
use crate::dialer::Input;
use crate::events::NetEvent;
use crate::failure::DialFailure;
use crate::peer::{AddressSource, Path};
use crate::{address, id, reservations, transport};

impl Node {
    pub(super) fn on_connected(
        &mut self,
        peer_id: PeerId,
        connection: ConnectionId,
        endpoint: &ConnectedPoint,
        failed: Vec<(Multiaddr, TransportError<io::Error>)>,
    ) {
        // The behaviour of streams let in nobody without a node id.
        let Some(peer) = id::node_id(&peer_id) else {
            return;
        };
        let path = path_of(endpoint);
        let dialled = match endpoint {
            ConnectedPoint::Dialer { address, .. } => Some(address::split_peer(address.clone()).0),
            ConnectedPoint::Listener { .. } => None,
        };
        for (addr, error) in failed {
            let why = transport::explain(&addr, &error);
            self.feed(Input::Failed { peer: peer.clone(), addr, why });
        }
        match self.attempts.remove(&connection) {
            Some(Attempt::Seed(addr)) => self.feed(Input::SeedReached { addr, peer: peer.clone() }),
            Some(Attempt::Manual { addr, reply }) => {
                self.learn(peer.clone(), addr, AddressSource::Manual, Some(peer.clone()));
                // Who asked may have given up.
                let _ = reply.send(Ok(peer.clone()));
            }
            Some(Attempt::Peer(_)) | None => {}
        }
        if let (ConnectedPoint::Listener { local_addr, .. }, Path::Direct { .. }) = (endpoint, &path) {
            self.inbound_seen = true;
            // A peer came in this way, so it is one: relays name it to those that reserve.
            self.swarm.add_external_address(local_addr.clone());
            self.review_reservations(Instant::now());
        } else if matches!(path, Path::Direct { .. }) {
            self.first_outbound.get_or_insert_with(Instant::now);
        }
        self.shared.membership.connected(&peer, dialled.as_ref().map(ToString::to_string).as_deref());
        self.feed(Input::Connected { peer: peer.clone(), connection, path, addr: dialled });
        for reply in self.waiting.remove(&peer).unwrap_or_default() {
            // Who asked may have given up.
            let _ = reply.send(Ok(()));
        }
        self.looked_up.remove(&peer);
    }

    pub(super) fn on_closed(&mut self, peer_id: &PeerId, connection: ConnectionId, cause: Option<&ConnectionError>) {
        let Some(peer) = id::node_id(peer_id) else {
            return;
        };
        let why = match cause {
            None | Some(ConnectionError::KeepAliveTimeout) => None,
            Some(ConnectionError::IO(error)) => Some(transport::chain(error)),
        };
        self.feed(Input::Closed { peer: peer.clone(), connection, why });
        self.on_rewired(peer_id);
        if !self.swarm.is_connected(peer_id) {
            self.show_gone_from_topics(&peer);
        }
        if !self.memory.dialer.is_connected(&peer) {
            self.introductions.remove(&peer);
            self.feed_reservations(reservations::Input::Withdrawn { relay: peer.clone() });
            if self.state.removed.contains(&peer) {
                self.feed(Input::Forget { peer });
            }
        }
    }

    pub(super) fn on_dial_failed(&mut self, connection: ConnectionId, peer_id: Option<PeerId>, error: DialError) {
        let attempt = self.attempts.remove(&connection);
        let peer = match &attempt {
            Some(Attempt::Peer(peer)) => Some(peer.clone()),
            _ => peer_id.as_ref().and_then(id::node_id),
        };
        if let DialError::LocalPeerId { address } = &error {
            let addr = address::split_peer(address.clone()).0.to_string();
            self.memory.conflicts.seen(Instant::now(), End::Dialled, addr);
        }
        let (failures, why) = explain(error);
        if let Some(peer) = &peer {
            for (addr, why) in failures {
                self.shared.membership.failed(peer, &addr.to_string());
                self.feed(Input::Failed { peer: peer.clone(), addr, why });
            }
        }
        match attempt {
            Some(Attempt::Peer(peer)) => self.feed(Input::DialEnded { peer, why }),
            Some(Attempt::Seed(addr)) => self.feed(Input::SeedFailed { addr, why }),
            Some(Attempt::Manual { addr, reply }) => {
                if peer.is_none() {
                    self.tell(NetEvent::DialFailed { addr: addr.to_string(), peer: None, why: why.clone() });
                }
                // Who asked may have given up.
                let _ = reply.send(Err(why));
            }
            None => {}
        }
    }

    pub(super) fn on_incoming_failed(&mut self, from: &Multiaddr, error: ListenError) {
        match error {
            ListenError::Denied { cause } => {
                if cause.downcast_ref::<allow_block_list::Blocked>().is_some() {
                    self.memory.counts.refused_removed += 1;
                    tracing::info!(peer.addr = %from, "a peer that was removed from the swarm was refused");
                } else {
                    tracing::debug!(peer.addr = %from, error = transport::chain(&cause), "a connection was refused");
                }
            }
            ListenError::Transport(error) => {
                self.memory.counts.refused_strangers += 1;
                let why = transport::explain(from, &error);
                tracing::debug!(peer.addr = %from, %why, "an incoming connection did not get through the handshake");
            }
            // The transport has noticed the own identity already.
            ListenError::LocalPeerId { .. } | ListenError::Aborted | ListenError::WrongPeerId { .. } => {}
        }
        self.is_changed = true;
    }

    pub(super) fn on_ping(&mut self, event: &ping::Event) {
        let Some(peer) = id::node_id(&event.peer) else {
            return;
        };
        match &event.result {
            Ok(time) => self.feed(Input::RoundTrip { peer, connection: event.connection, time: *time }),
            Err(ping::Failure::Timeout) => {
                tracing::info!(peer.id = %peer, "a connection does not answer and is closed");
                self.swarm.close_connection(event.connection);
            }
            // A peer without the protocol is as good as others, and a broken connection ends by itself.
            Err(ping::Failure::Unsupported | ping::Failure::Other { .. }) => {}
        }
    }

    /// Tells those who wait for a peer that it was not reached; where nobody knew an address, the others are asked first.
    pub(super) fn on_not_reached(&mut self, peer: &NodeId, why: &DialFailure) {
        if !self.waiting.contains_key(peer) {
            return;
        }
        if *why == DialFailure::NoAddress && self.looked_up.insert(peer.clone()) && self.look_up(peer) {
            return;
        }
        self.looked_up.remove(peer);
        for reply in self.waiting.remove(peer).unwrap_or_default() {
            // Who asked may have given up.
            let _ = reply.send(Err(why.clone()));
        }
    }
}

/// Says why a dial failed: for each address that was tried, and in one word.
pub(super) fn explain(error: DialError) -> (Vec<(Multiaddr, DialFailure)>, DialFailure) {
    let plain = |addr: Multiaddr| address::split_peer(addr).0;
    match error {
        DialError::LocalPeerId { address } => {
            (vec![(plain(address), DialFailure::SameIdentity)], DialFailure::SameIdentity)
        }
        DialError::WrongPeerId { obtained, address } => {
            let why = match id::node_id(&obtained) {
                Some(found) => DialFailure::WrongPeer { found },
                None => DialFailure::Handshake { why: "the peer there has no Ed25519 key".to_owned() },
            };
            (vec![(plain(address), why.clone())], why)
        }
        DialError::Transport(errors) => {
            let failures: Vec<_> = errors
                .into_iter()
                .map(|(addr, error)| {
                    let why = transport::explain(&addr, &error);
                    (plain(addr), why)
                })
                .collect();
            let most_telling = failures.iter().map(|(_, why)| why).max_by_key(|why| tells(why)).cloned();
            (failures, most_telling.unwrap_or(DialFailure::NoAddress))
        }
        DialError::NoAddresses => (Vec::new(), DialFailure::NoAddress),
        DialError::Denied { cause } => {
            let why = if cause.downcast_ref::<allow_block_list::Blocked>().is_some() {
                DialFailure::NotAMember
            } else if cause.downcast_ref::<connection_limits::Exceeded>().is_some()
                || cause.downcast_ref::<memory_connection_limits::MemoryUsageLimitExceeded>().is_some()
            {
                DialFailure::TooManyConnections
            } else {
                DialFailure::Handshake { why: transport::chain(&cause) }
            };
            (Vec::new(), why)
        }
        DialError::DialPeerConditionFalse(_) | DialError::Aborted => (Vec::new(), DialFailure::Busy),
    }
}

/// Of several failures, what was met at the address tells more than that nothing was.
fn tells(why: &DialFailure) -> u8 {
    match why {
        DialFailure::AnotherSwarmKey | DialFailure::NoSwarmKey => 5,
        DialFailure::NotLibp2p | DialFailure::Handshake { .. } => 4,
        DialFailure::NothingListens => 3,
        DialFailure::Timeout => 2,
        DialFailure::Unreachable { .. } | DialFailure::UnknownName { .. } => 1,
        _ => 0,
    }
}
