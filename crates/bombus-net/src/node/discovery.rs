//! How addresses become known: the local network, what peers say of themselves, lookups; and whether this node is reachable.

use std::time::{Duration, Instant};

use bombus_core::identity::NodeId;
use libp2p::kad::{GetClosestPeersError, GetClosestPeersOk, QueryResult};
use libp2p::{Multiaddr, autonat, identify, kad, mdns};
use rand::RngExt;
use rand::seq::SliceRandom;

use super::{Introduction, Node};
use crate::behaviour::HOP;
use crate::dialer::Input;
use crate::peer::{AddressSource, Path};
use crate::report::Reachability;
use crate::shared::lock;
use crate::{address, id, reservations};

/// How many addresses a peer may say it has.
const OWN_ADDRESSES_MAX: usize = 16;
/// How many addresses of one peer a lookup may bring.
const FOUND_ADDRESSES_MAX: usize = 8;
/// How many protocols a peer may say it speaks, and how long what it says of its program may be, in characters.
const PROTOCOLS_MAX: usize = 256;
const AGENT_CHARS_MAX: usize = 128;
/// After a peer came, others may have to tell of it: a lookup follows.
const LOOKUP_SOON: Duration = Duration::from_millis(200);
/// Between two lookups while nothing changes.
const LOOKUP_EVERY: Duration = Duration::from_secs(300);
/// The same while a known peer is not connected: it may have got a relay, or another address.
const LOOKUP_MISSING_EVERY: Duration = Duration::from_secs(5);
/// From so many peers on, a lookup of the own place does not bring all of them.
const MANY: usize = 16;
/// Of how many peers that are said to be there, but whose addresses nobody has told yet, a lookup asks at once.
const SOUGHT_AT_ONCE: usize = 4;

impl Node {
    /// Tells the dialer an address, unless it is one that cannot be meant for this node.
    pub(super) fn learn(&mut self, peer: NodeId, addr: Multiaddr, source: AddressSource, teller: Option<NodeId>) {
        let (addr, named) = address::split_peer(addr);
        let is_other = named.is_some_and(|named| id::peer_id(&peer) != Some(named));
        let through_me = address::relay_of(&addr).is_some_and(|relay| relay == self.shared.node_id);
        if !is_other && !through_me && !self.state.removed.contains(&peer) {
            self.feed(Input::Learned { peer, addr, source, teller });
        }
    }

    pub(super) fn on_mdns(&mut self, event: mdns::Event) {
        let mdns::Event::Discovered(found) = event else {
            // An address that is announced no longer may still be good; it goes when it fails.
            return;
        };
        for (peer_id, addr) in found {
            let Some(peer) = id::node_id(&peer_id) else {
                continue;
            };
            self.memory.counts.announced.add(Instant::now(), &peer, &addr);
            self.learn(peer.clone(), addr, AddressSource::Mdns, Some(peer));
        }
    }

    pub(super) fn on_identify(&mut self, event: identify::Event) {
        // What a peer pushes is received, too. `Pushed` has what this node has told.
        let identify::Event::Received { peer_id, info, .. } = event else {
            return;
        };
        let Some(peer) = id::node_id(&peer_id) else {
            return;
        };
        let Some((path, dialled)) = self.memory.dialer.peers().get(&peer).and_then(|known| {
            let best = known.links.best()?;
            Some((best.path.clone(), known.addresses.best_first().first().map(|address| address.addr.clone())))
        }) else {
            return;
        };
        let remote: Option<Multiaddr> = match &path {
            Path::Direct { addr } => addr.parse().ok(),
            Path::Relayed { .. } => None,
        };
        if remote.is_some() {
            self.note_observed(&info.observed_addr);
        }
        // Another machine's loopback addresses lead to this one.
        let is_here = remote.as_ref().is_some_and(address::is_loopback);
        for addr in info.listen_addrs.into_iter().take(OWN_ADDRESSES_MAX) {
            let (addr, _) = address::split_peer(addr);
            if address::is_dialable(&addr) && (is_here || !address::is_loopback(&addr)) {
                tracing::debug!(peer.id = %peer, %addr, "a peer tells where it is reached");
                // Through a relay, too: for a peer behind a router that is the only way that others can be told.
                self.swarm.behaviour_mut().kademlia.add_address(&peer_id, addr.clone());
                self.learn(peer.clone(), addr, AddressSource::Peer, Some(peer.clone()));
            }
        }
        let relays = info.protocols.iter().any(|protocol| protocol.as_ref() == HOP);
        let agent = info.agent_version.chars().filter(|c| !c.is_control()).take(AGENT_CHARS_MAX).collect();
        let protocols = info.protocols.iter().take(PROTOCOLS_MAX).map(ToString::to_string).collect();
        let is_new = self.introductions.insert(peer.clone(), Introduction { agent, protocols }).is_none();
        if let (true, Some(remote)) = (relays, remote) {
            let is_near = self.is_on_own_link(&remote);
            // Where the peer came by itself, the remote address has a port that nothing listens on.
            let addr = dialled.filter(|addr| !address::is_relayed(addr)).unwrap_or(remote);
            self.feed_reservations(reservations::Input::Offered { relay: peer, addr, is_near });
        } else {
            self.feed_reservations(reservations::Input::Withdrawn { relay: peer });
        }
        if is_new {
            self.lookup_at = Some(Instant::now() + LOOKUP_SOON);
        }
        self.is_changed = true;
    }

    /// Takes the address at which a peer sees this node: where it is none of its own, a router translates.
    fn note_observed(&mut self, observed: &Multiaddr) {
        let Some(seen) = address::ip_of(observed).filter(|ip| !ip.is_loopback()) else {
            return;
        };
        let listens = self.swarm.listeners().filter(|addr| !address::is_relayed(addr));
        let own: Vec<_> = listens.filter_map(address::ip_of).filter(|own| !own.is_loopback()).collect();
        // Before the interfaces are known nothing can be told.
        if !own.is_empty() && !own.contains(&seen) {
            self.is_behind_router = true;
            self.review_reservations(Instant::now());
        }
    }

    /// Says whether an address is on a link of this machine.
    fn is_on_own_link(&self, addr: &Multiaddr) -> bool {
        let Some(ip) = address::ip_of(addr) else {
            return false;
        };
        let mut own = self.swarm.listeners().filter_map(address::ip_of);
        own.any(|own| address::same_link(own, ip))
    }

    /// Looks around when it is time: near the own place among the peers, and where there are many, elsewhere too.
    pub(super) fn look_up_if_due(&mut self, now: Instant) {
        if self.lookup_at.is_none_or(|at| at > now) {
            return;
        }
        let misses_some = self.memory.dialer.peers().values().any(|peer| peer.links.best().is_none());
        let sought = self.sought();
        let every = if misses_some || !sought.is_empty() { LOOKUP_MISSING_EVERY } else { LOOKUP_EVERY };
        self.lookup_at = Some(now + every.mul_f64(rand::rng().random_range(0.8..1.2)));
        let local = self.local;
        let is_large = self.introductions.len() >= MANY;
        let kademlia = &mut self.swarm.behaviour_mut().kademlia;
        kademlia.get_closest_peers(local);
        if is_large {
            for _ in 0..2 {
                kademlia.get_closest_peers(libp2p::PeerId::random());
            }
        }
        for peer in sought.iter().filter_map(id::peer_id).take(SOUGHT_AT_ONCE) {
            kademlia.get_closest_peers(peer);
        }
    }

    /// Looks around soon where somebody is said to be there to whom no way is known: who told of addresses may do so only after the lookup
    /// that followed its coming.
    pub(super) fn look_for_expected(&mut self, now: Instant) {
        let soon = now + LOOKUP_MISSING_EVERY;
        // What is due then has been hurried already.
        if self.lookup_at.is_some_and(|at| at > soon + LOOKUP_MISSING_EVERY) && !self.sought().is_empty() {
            self.lookup_at = Some(now);
        }
    }

    /// Returns the peers that are said to be there, but of which no address is known, in an order of chance.
    fn sought(&self) -> Vec<NodeId> {
        let known = self.memory.dialer.peers();
        let expected = lock(&self.shared.expected);
        let unknown = expected.iter().filter(|peer| !known.contains_key(*peer) && !self.state.removed.contains(*peer));
        let mut sought: Vec<NodeId> = unknown.filter(|peer| **peer != self.shared.node_id).cloned().collect();
        drop(expected);
        sought.shuffle(&mut rand::rng());
        sought
    }

    /// Asks the others for the addresses of a peer; says whether there is anybody to ask.
    pub(super) fn look_up(&mut self, peer: &NodeId) -> bool {
        let Some(peer_id) = id::peer_id(peer) else {
            return false;
        };
        if self.swarm.connected_peers().next().is_none() {
            return false;
        }
        let query = self.swarm.behaviour_mut().kademlia.get_closest_peers(peer_id);
        self.lookups.insert(query, peer.clone());
        true
    }

    pub(super) fn on_kademlia(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed {
            id: query, result: QueryResult::GetClosestPeers(result), step, ..
        } = event
        else {
            return;
        };
        let peers = match result {
            Ok(GetClosestPeersOk { peers, .. }) | Err(GetClosestPeersError::Timeout { peers, .. }) => peers,
        };
        // Loopback addresses are only good where the whole swarm is on one machine.
        let is_here = self.memory.dialer.peers().values().filter_map(|peer| peer.links.best()).any(|link| {
            matches!(&link.path, Path::Direct { addr } if addr.parse().is_ok_and(|addr| address::is_loopback(&addr)))
        });
        for found in peers {
            let Some(peer) = id::node_id(&found.peer_id) else {
                continue;
            };
            for addr in found.addrs.into_iter().take(FOUND_ADDRESSES_MAX) {
                if is_here || !address::is_loopback(&addr) {
                    self.learn(peer.clone(), addr, AddressSource::Peer, None);
                }
            }
        }
        if step.last
            && let Some(peer) = self.lookups.remove(&query)
            && self.waiting.contains_key(&peer)
        {
            self.feed(Input::Want { peer });
        }
    }

    pub(super) fn on_autonat(&mut self, event: &autonat::v2::client::Event) {
        // What a relay makes possible says nothing of how this node is reached without one.
        if address::is_relayed(&event.tested_addr) {
            return;
        }
        match &event.result {
            Ok(()) => self.reachability = Reachability::Public,
            Err(error) => {
                tracing::debug!(addr = %event.tested_addr, %error, "a peer could not reach this node");
                if self.reachability == Reachability::Unknown {
                    self.reachability = Reachability::Private;
                }
            }
        }
        self.is_changed = true;
    }
}
