//! The picture of the mesh that handles see.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bombus_core::identity::NodeId;

use super::Node;
use crate::address;
use crate::dialer::Peer;
use crate::failure::DialFailure;
use crate::id;
use crate::membership::Privacy;
use crate::peer::{NetPeer, PeerAddress};
use crate::report::{DialReport, DropCounts, MdnsReport, NetReport, RelayReport};
use crate::shared::lock;

/// How many failed dials the report names.
const FAILURES_MAX: usize = 64;

/// Turns points of the monotonic clock into Unix time.
#[derive(Clone, Copy)]
struct Clock {
    now: Instant,
    unix_ms: u64,
}

impl Clock {
    fn read() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { now: Instant::now(), unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
    }

    fn unix_ms(self, at: Instant) -> u64 {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (ago, ahead) = (self.now.saturating_duration_since(at), at.saturating_duration_since(self.now));
        self.unix_ms.saturating_sub(ms(ago)).saturating_add(ms(ahead))
    }
}

impl Node {
    /// Shows the state as it is now to all handles.
    pub(super) fn publish_picture(&mut self) {
        let clock = Clock::read();
        let known = self.memory.dialer.peers();
        let peers: Vec<_> = known.iter().map(|(node, peer)| self.show(clock, node, peer)).collect();
        let report = self.report(clock, &peers);
        *lock(&self.shared.peers) = Arc::new(peers);
        *lock(&self.shared.report) = Arc::new(report);
    }

    fn show(&self, clock: Clock, node: &NodeId, peer: &Peer) -> NetPeer {
        let best = peer.links.best();
        let introduction = self.introductions.get(node);
        let addresses = peer.addresses.best_first().into_iter().map(|address| PeerAddress {
            addr: address.addr.to_string(),
            source: address.source,
            last_error: address.failure.as_ref().map(ToString::to_string),
            last_ok_ms: address.last_ok.map(|at| clock.unix_ms(at)),
        });
        let last_seen_ms = match (best, peer.last_seen) {
            // Its connection shows that it is there, pings included.
            (Some(_), Some(_)) => clock.unix_ms,
            (_, last_seen) => last_seen.map_or(0, |at| clock.unix_ms(at)),
        };
        NetPeer {
            node_id: node.clone(),
            addresses: addresses.collect(),
            connected: best.map(|link| link.path.clone()),
            round_trip: best.and_then(|link| link.round_trip),
            agent: introduction.map(|introduction| introduction.agent.clone()),
            protocols: introduction.map(|introduction| introduction.protocols.clone()).unwrap_or_default(),
            last_seen_ms,
            score: id::peer_id(node)
                .and_then(|peer| self.swarm.behaviour().gossip.peer_score(&peer))
                .unwrap_or_default(),
        }
    }

    fn report(&self, clock: Clock, peers: &[NetPeer]) -> NetReport {
        let counts = &self.memory.counts;
        let tries = self.memory.dialer.tries;
        let of_source = |sources: &[crate::AddressSource]| {
            let addresses = peers.iter().flat_map(|peer| &peer.addresses);
            addresses.filter(|address| sources.contains(&address.source)).count()
        };
        let mut interfaces: Vec<String> = self
            .swarm
            .listeners()
            .filter(|addr| !address::is_relayed(addr))
            .filter_map(address::ip_of)
            .filter(|ip| !ip.is_loopback())
            .map(|ip| ip.to_string())
            .collect();
        interfaces.sort();
        interfaces.dedup();
        NetReport {
            listen: self.shared.listen.borrow().clone(),
            listen_on: self.memory.listen.len(),
            listen_failures: counts.listen_failures.clone().into_iter().collect(),
            external: self.swarm.external_addresses().map(ToString::to_string).collect(),
            generation: self.state.generation.0,
            closed: matches!(self.state.privacy, Privacy::Closed(_)),
            foreign_keys_from_ms: self.memory.dialer.foreign_keys_from().map(|at| clock.unix_ms(at)),
            mdns: MdnsReport {
                enabled: self.config.mdns,
                ipv4_failure: self.mdns_failures.ipv4.clone(),
                ipv6_failure: self.mdns_failures.ipv6.clone(),
                ipv4_tried: tries.mdns_v4,
                ipv6_tried: tries.mdns_v6,
                interfaces,
                answers: counts.announced.ipv4.answers + counts.announced.ipv6.answers,
                ipv4_answers: counts.announced.ipv4.answers,
                ipv6_answers: counts.announced.ipv6.answers,
                peers: counts.announced.peers(),
                ipv4_peers: counts.announced.ipv4.peers(),
                ipv6_peers: counts.announced.ipv6.peers(),
                last_answer_ms: counts.announced.last.map(|at| clock.unix_ms(at)),
            },
            seeds: self.show_seeds(clock),
            learned: of_source(&[crate::AddressSource::Peer, crate::AddressSource::Relay]),
            learned_tried: tries.learned,
            tickets_tried: tries.tickets,
            tickets: of_source(&[crate::AddressSource::Ticket]),
            relay: RelayReport {
                serving: self.swarm.behaviour().relay_server.is_enabled(),
                circuits: self.circuits_served,
                reservations: self.reservations.reserved(),
                offered: self.reservations.offered(),
                last_failure: counts.relay_failure.clone(),
                punched: counts.punched,
                punch_failures: counts.punch_failures,
            },
            reachability: self.reachability,
            connected: peers.iter().filter(|peer| peer.connected.is_some()).count(),
            known: peers.len(),
            failures: counts.failures.iter().cloned().collect(),
            identity_conflicts: counts.identity_conflicts.iter().cloned().collect(),
            refused_strangers: counts.refused_strangers,
            refused_removed: counts.refused_removed,
            dropped: DropCounts {
                messages: counts.messages_lost,
                streams: self.shared.protocols.refused(),
                published_to_nobody: self.shared.published_to_nobody.load(Ordering::Relaxed),
                rejected: counts.rejected,
                ignored: counts.ignored,
                addresses: self.memory.dialer.addresses_dropped,
            },
        }
    }

    fn show_seeds(&self, clock: Clock) -> Vec<DialReport> {
        let seeds = self.memory.dialer.seeds().iter();
        seeds
            .map(|seed| {
                let is_good = seed.last_ok.is_some()
                    && seed.last_failure.as_ref().is_none_or(|(at, _)| seed.last_ok.is_some_and(|ok| ok > *at));
                DialReport {
                    addr: seed.addr.to_string(),
                    peer: seed.peer.clone(),
                    tried: seed.tried,
                    last_ok_ms: seed.last_ok.map(|at| clock.unix_ms(at)),
                    last_failure_ms: seed.last_failure.as_ref().map(|(at, _)| clock.unix_ms(*at)),
                    failure: seed.last_failure.as_ref().filter(|_| !is_good).map(|(_, why)| why.clone()),
                }
            })
            .collect()
    }

    /// Keeps a failed dial for the report: one entry for each address, the last one first.
    pub(super) fn remember_failure(&mut self, addr: &str, peer: Option<&NodeId>, why: &DialFailure) {
        let clock = Clock::read();
        let failures = &mut self.memory.counts.failures;
        let before = failures.iter().position(|failure| failure.addr == addr && failure.peer.as_ref() == peer);
        let tried = before.and_then(|at| failures.remove(at)).map_or(0, |failure| failure.tried);
        failures.truncate(FAILURES_MAX - 1);
        failures.push_front(DialReport {
            addr: addr.to_owned(),
            peer: peer.cloned(),
            tried: tried + 1,
            last_ok_ms: None,
            last_failure_ms: Some(clock.unix_ms),
            failure: Some(why.clone()),
        });
        self.is_changed = true;
    }
}
