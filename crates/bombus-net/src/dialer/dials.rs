//! Dials, and how they end.

use std::time::{Duration, Instant};

use bombus_core::identity::NodeId;
use libp2p::Multiaddr;
use rand::RngExt;

use super::book;
use super::{ADDRESSES_AT_ONCE, Dialer, Output, Pauses, Peer};
use crate::address;
use crate::events::NetEvent;
use crate::failure::DialFailure;
use crate::peer::AddressSource;

/// How long somebody who asked for a peer keeps it wanted.
const WANTED_FOR: Duration = Duration::from_secs(60);

impl Dialer {
    pub(super) fn failed(&mut self, now: Instant, id: &NodeId, addr: &Multiaddr, why: &DialFailure) -> Vec<Output> {
        let (addr, _) = address::split_peer(addr.clone());
        let mut outputs = vec![Output::Tell(NetEvent::DialFailed {
            addr: addr.to_string(),
            peer: Some(id.clone()),
            why: why.clone(),
        })];
        for seed in self.seeds.iter_mut().filter(|seed| seed.addr == addr) {
            seed.tried += 1;
            seed.last_failure = Some((now, why.clone()));
            // Another machine may have the address now.
            if matches!(why, DialFailure::WrongPeer { .. }) {
                seed.peer = None;
            }
        }
        let source = self.peers.get(id).and_then(|peer| peer.addresses.source(&addr));
        self.tries.count(&addr, source);
        let foreign_key_pause = (!self.is_between_keys(now, why)).then_some(self.settings.foreign_key_pause);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.addresses.failed(now, &addr, why, foreign_key_pause);
        }
        // Who is there has proved who it is.
        if let (DialFailure::WrongPeer { found }, Some(source)) = (why, source) {
            outputs.extend(self.learned(now, found.clone(), &addr, source, Some(found.clone())));
        }
        outputs
    }

    pub(super) fn dial_ended(&mut self, now: Instant, id: &NodeId, why: DialFailure) -> Vec<Output> {
        let Some(peer) = self.peers.get_mut(id) else {
            return vec![Output::NotReached { peer: id.clone(), why }];
        };
        peer.dials = peer.dials.saturating_sub(1);
        if !peer.links.is_empty() || peer.dials > 0 {
            return Vec::new();
        }
        // Whoever answers first ends a dial, be it somebody else. Its address is out now, and the others had no chance.
        if matches!(why, DialFailure::WrongPeer { .. }) && peer.strangers < ADDRESSES_AT_ONCE {
            peer.strangers += 1;
            let direct = peer.addresses.due(now, false);
            if !peer.relays_tried && !direct.is_empty() {
                return self.dial_at(id, direct);
            }
        }
        let relayed = peer.addresses.due(now, true);
        if !peer.relays_tried && !relayed.is_empty() {
            return self.dial_relayed(id, relayed);
        }
        peer.dial_began = None;
        peer.relays_tried = false;
        peer.strangers = 0;
        peer.pauses.failures += 1;
        let failures = peer.pauses.failures;
        let pause = self.pause(failures);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.pauses.next = now + pause;
        }
        vec![Output::NotReached { peer: id.clone(), why }]
    }

    pub(super) fn dial_relayed(&mut self, id: &NodeId, addrs: Vec<Multiaddr>) -> Vec<Output> {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.relays_tried = true;
        }
        self.dial_at(id, addrs)
    }

    fn dial_at(&mut self, id: &NodeId, mut addrs: Vec<Multiaddr>) -> Vec<Output> {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.dials += 1;
        }
        addrs.truncate(ADDRESSES_AT_ONCE);
        vec![Output::Dial { peer: id.clone(), addrs }]
    }

    fn pause(&mut self, failures: u32) -> Duration {
        let doubled = self.settings.redial_min.saturating_mul(1 << failures.saturating_sub(1).min(20));
        doubled.min(self.settings.redial_max).mul_f64(self.random.random_range(0.8..1.2))
    }

    pub(super) fn seed_failed(&mut self, now: Instant, addr: &Multiaddr, why: DialFailure) -> Vec<Output> {
        let (addr, _) = address::split_peer(addr.clone());
        let Some(at) = self.seeds.iter().position(|seed| seed.addr == addr) else {
            return Vec::new();
        };
        let failures = self.seeds[at].pauses.failures + 1;
        let mut pause = self.pause(failures);
        let is_foreign = why == DialFailure::AnotherSwarmKey && !self.is_between_keys(now, &why);
        let foreign_keys = if is_foreign { self.seeds[at].foreign_keys + 1 } else { 0 };
        if foreign_keys >= book::FOREIGN_KEY_TRIES {
            pause = self.settings.foreign_key_pause;
        }
        let seed = &mut self.seeds[at];
        seed.foreign_keys = foreign_keys;
        seed.is_dialled = false;
        seed.tried += 1;
        seed.last_failure = Some((now, why.clone()));
        seed.pauses = Pauses { next: now + pause, failures };
        vec![Output::Tell(NetEvent::DialFailed { addr: addr.to_string(), peer: None, why })]
    }

    pub(super) fn seed_reached(&mut self, now: Instant, addr: &Multiaddr, peer: &NodeId) -> Vec<Output> {
        let (addr, _) = address::split_peer(addr.clone());
        for seed in self.seeds.iter_mut().filter(|seed| seed.addr == addr) {
            seed.is_dialled = false;
            seed.peer = Some(peer.clone());
            seed.last_ok = Some(now);
            seed.tried += 1;
            seed.foreign_keys = 0;
            seed.pauses.failures = 0;
        }
        let mut outputs = self.learned(now, peer.clone(), &addr, AddressSource::Seed, Some(peer.clone()));
        if let Some(known) = self.peers.get_mut(peer) {
            known.addresses.worked(now, &addr);
        }
        outputs.retain(|output| matches!(output, Output::Tell(_)));
        outputs
    }

    pub(super) fn want(&mut self, now: Instant, id: NodeId) -> Vec<Output> {
        if id == self.me {
            return vec![Output::NotReached { peer: id, why: DialFailure::SameIdentity }];
        }
        let is_smaller = self.me < id;
        let peer = self.peers.entry(id.clone()).or_insert_with(|| Peer::new(now, is_smaller));
        peer.wanted_until = Some(now + WANTED_FOR);
        if !peer.links.is_empty() || peer.dials > 0 {
            return Vec::new();
        }
        // Somebody waits: pauses are for tries that nobody asked for.
        peer.addresses.forgive(now);
        peer.pauses.next = now;
        if peer.addresses.is_empty() {
            return vec![Output::NotReached { peer: id, why: DialFailure::NoAddress }];
        }
        self.dial(now, &id)
    }

    /// Dials a peer at its direct addresses, or at relayed ones where it has no other.
    pub(super) fn dial(&mut self, now: Instant, id: &NodeId) -> Vec<Output> {
        let Some(peer) = self.peers.get_mut(id) else {
            return Vec::new();
        };
        let mut addrs = peer.addresses.due(now, false);
        peer.relays_tried = addrs.is_empty();
        if addrs.is_empty() {
            addrs = peer.addresses.due(now, true);
        }
        if addrs.is_empty() {
            return Vec::new();
        }
        addrs.truncate(ADDRESSES_AT_ONCE);
        peer.dials += 1;
        peer.dial_began = Some(now);
        vec![Output::Dial { peer: id.clone(), addrs }]
    }
}
