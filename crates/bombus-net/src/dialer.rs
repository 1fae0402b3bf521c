//! Which peers are dialled, when, and which of several connections to a peer stays (pure: no sockets, and times are handed in).
//!
//! Up to [`Settings::mesh_max`] connected peers, everyone known is dialled; beyond that, only who is wanted. A failed try is followed by
//! the next one after a pause that doubles, with jitter. Of two connections to one peer, the side with the smaller node id decides which
//! one goes, so that the two never close both: a direct one beats a relayed one, a much shorter round trip beats a longer one, and of two
//! that were dialled at the same time the one dialled by the smaller id stays.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bombus_core::identity::NodeId;
use libp2p::Multiaddr;
use libp2p::swarm::ConnectionId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::address;
use crate::events::NetEvent;
use crate::failure::DialFailure;
use crate::peer::{AddressSource, Path};

mod book;
mod links;
#[cfg(test)]
mod tests;

use book::{Addresses, Hearsay};
pub(crate) use links::Link;
use links::Links;

/// How many peers are known at most.
const PEERS_MAX: usize = 1024;
/// How many addresses are dialled like configured ones.
const SEEDS_MAX: usize = 256;
/// How many addresses are dialled at once for one peer.
const ADDRESSES_AT_ONCE: usize = 8;
/// How long the direct addresses are tried before the relayed ones are tried as well.
const RELAY_AFTER: Duration = Duration::from_secs(1);
/// How long the side with the greater id leaves a newly found peer to the other side, so that they do not dial each other at once.
const COURTESY: Duration = Duration::from_millis(150);
/// A round trip below which no better address is looked for.
const NEAR: Duration = Duration::from_millis(3);
/// Between two tries to find a better address for a connected peer.
const BETTER_EVERY: Duration = Duration::from_secs(600);
/// The same while the peer is only reached through a relay.
const DIRECT_EVERY: Duration = Duration::from_secs(60);
/// How long streams keep a redundant connection open.
const BUSY_MAX: Duration = Duration::from_secs(60);
/// How long somebody who asked for a peer keeps it wanted.
const WANTED_FOR: Duration = Duration::from_secs(60);
/// How long a peer is left alone that closed its connection in an orderly way while more peers are known than fit.
const REST: Duration = Duration::from_secs(600);

/// What the dialer is told at its start.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) mesh_max: usize,
    pub(crate) redial_min: Duration,
    pub(crate) redial_max: Duration,
    pub(crate) foreign_key_pause: Duration,
    pub(crate) peer_expiry: Duration,
    pub(crate) redundant_grace: Duration,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// Somebody told an address of a peer: `teller`, or nobody who could be named.
    Learned { peer: NodeId, addr: Multiaddr, source: AddressSource, teller: Option<NodeId> },
    /// A connection stands. `addr` is the one that was dialled, where this side did.
    Connected { peer: NodeId, connection: ConnectionId, path: Path, addr: Option<Multiaddr> },
    /// A connection ended; without a reason in an orderly way.
    Closed { peer: NodeId, connection: ConnectionId, why: Option<String> },
    /// One address failed.
    Failed { peer: NodeId, addr: Multiaddr, why: DialFailure },
    /// A dial that [`Output::Dial`] asked for ended without a connection.
    DialEnded { peer: NodeId, why: DialFailure },
    /// A dial that [`Output::DialSeed`] asked for ended without a connection.
    SeedFailed { addr: Multiaddr, why: DialFailure },
    /// A seed answered, as this peer.
    SeedReached { addr: Multiaddr, peer: NodeId },
    /// A round trip was measured.
    RoundTrip { peer: NodeId, connection: ConnectionId, time: Duration },
    /// Somebody needs the peer.
    Want { peer: NodeId },
    /// The peer is no member any more.
    Forget { peer: NodeId },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Output {
    /// Dial a peer at these addresses at once, also while it is connected.
    Dial { peer: NodeId, addrs: Vec<Multiaddr> },
    /// Dial an address without knowing who is there.
    DialSeed { addr: Multiaddr },
    /// Close a connection, unless streams are open on it and `unless_busy` is set.
    Close { peer: NodeId, connection: ConnectionId, unless_busy: bool },
    /// Open streams to the peer over this connection from now on.
    Prefer { peer: NodeId, connection: ConnectionId },
    /// Keep a connection open while nothing uses it, or do not.
    Keep { peer: NodeId, connection: ConnectionId, keep: bool },
    /// Tell those who wait for the peer that it was not reached.
    NotReached { peer: NodeId, why: DialFailure },
    /// Tell everybody.
    Tell(NetEvent),
}

/// A configured address that a connection is kept to.
#[derive(Debug)]
pub(crate) struct Seed {
    pub(crate) addr: Multiaddr,
    pub(crate) peer: Option<NodeId>,
    pub(crate) tried: u64,
    pub(crate) last_ok: Option<Instant>,
    pub(crate) last_failure: Option<(Instant, DialFailure)>,
    pauses: Pauses,
    is_dialled: bool,
}

/// What is known of one peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) addresses: Addresses,
    pub(crate) links: Links,
    pub(crate) last_seen: Option<Instant>,
    known_since: Instant,
    wanted_until: Option<Instant>,
    pauses: Pauses,
    /// Dials that run for it.
    dials: usize,
    dial_began: Option<Instant>,
    relays_tried: bool,
    better_at: Instant,
}

/// When the next try may be made.
#[derive(Debug)]
struct Pauses {
    next: Instant,
    failures: u32,
}

/// The state machine.
pub(crate) struct Dialer {
    me: NodeId,
    settings: Settings,
    peers: BTreeMap<NodeId, Peer>,
    seeds: Vec<Seed>,
    random: StdRng,
    last_sweep: Option<Instant>,
    /// Addresses that were told beyond what one teller may tell.
    pub(crate) addresses_dropped: u64,
}

impl Dialer {
    /// Begins with what is configured; `random` seeds the jitter.
    pub(crate) fn new(
        now: Instant,
        me: NodeId,
        settings: Settings,
        seeds: Vec<(Multiaddr, Option<NodeId>)>,
        random: u64,
    ) -> Self {
        let seeds = seeds.into_iter().take(SEEDS_MAX).map(|(addr, peer)| Seed::new(now, addr, peer)).collect();
        Self {
            me,
            settings,
            peers: BTreeMap::new(),
            seeds,
            random: StdRng::seed_from_u64(random),
            last_sweep: None,
            addresses_dropped: 0,
        }
    }

    /// Returns what is known of all peers.
    pub(crate) fn peers(&self) -> &BTreeMap<NodeId, Peer> {
        &self.peers
    }

    /// Returns the configured addresses.
    pub(crate) fn seeds(&self) -> &[Seed] {
        &self.seeds
    }

    /// Says whether a peer is connected.
    pub(crate) fn is_connected(&self, peer: &NodeId) -> bool {
        self.peers.get(peer).is_some_and(|peer| !peer.links.is_empty())
    }

    /// Adds an address to dial as those are that are configured.
    pub(crate) fn add_seed(&mut self, now: Instant, addr: Multiaddr) {
        if self.seeds.iter().all(|seed| seed.addr != addr) && self.seeds.len() < SEEDS_MAX {
            self.seeds.push(Seed::new(now, addr, None));
        }
    }

    /// Forgets all connections and dials: the swarm that had them is gone. All is tried again at once.
    pub(crate) fn restart(&mut self, now: Instant) -> Vec<Output> {
        let mut outputs = Vec::new();
        for (id, peer) in &mut self.peers {
            if !peer.links.is_empty() {
                let why = "the swarm was built anew".to_owned();
                outputs.push(Output::Tell(NetEvent::PeerDisconnected { peer: id.clone(), why }));
            }
            peer.links = Links::default();
            peer.dials = 0;
            peer.dial_began = None;
            peer.pauses = Pauses { next: now, failures: 0 };
            peer.addresses.forgive(now);
        }
        for seed in &mut self.seeds {
            seed.is_dialled = false;
            seed.pauses = Pauses { next: now, failures: 0 };
        }
        outputs
    }

    /// Takes in what happened, and says what is to be done.
    pub(crate) fn on(&mut self, now: Instant, input: Input) -> Vec<Output> {
        match input {
            Input::Learned { peer, addr, source, teller } => self.learned(now, peer, &addr, source, teller),
            Input::Connected { peer, connection, path, addr } => {
                self.connected(now, &peer, connection, path, addr.as_ref())
            }
            Input::Closed { peer, connection, why } => self.closed(now, &peer, connection, why),
            Input::Failed { peer, addr, why } => self.failed(now, &peer, &addr, &why),
            Input::DialEnded { peer, why } => self.dial_ended(now, &peer, why),
            Input::SeedFailed { addr, why } => self.seed_failed(now, &addr, why),
            Input::SeedReached { addr, peer } => self.seed_reached(now, &addr, &peer),
            Input::RoundTrip { peer, connection, time } => self.round_trip(now, &peer, connection, time),
            Input::Want { peer } => self.want(now, peer),
            Input::Forget { peer } => {
                self.peers.remove(&peer);
                Vec::new()
            }
            Input::Tick => self.tick(now),
        }
    }

    fn learned(
        &mut self,
        now: Instant,
        peer: NodeId,
        addr: &Multiaddr,
        source: AddressSource,
        teller: Option<NodeId>,
    ) -> Vec<Output> {
        if peer == self.me || !address::is_dialable(addr) {
            return Vec::new();
        }
        // What a peer tells of itself is bounded by the room that its own addresses have.
        let hearsay = (source == AddressSource::Peer && teller.as_ref() != Some(&peer)).then_some(Hearsay(teller));
        let source = if address::is_relayed(addr) { AddressSource::Relay } else { source };
        let knows = self.peers.get(&peer).is_some_and(|known| known.addresses.contains(addr));
        if let (false, Some(hearsay)) = (knows, &hearsay) {
            let told: usize = self.peers.values().map(|peer| peer.addresses.told_by(hearsay)).sum();
            if told >= hearsay.max() {
                self.addresses_dropped += 1;
                return Vec::new();
            }
        }
        if !self.peers.contains_key(&peer) && self.peers.len() >= PEERS_MAX && !self.make_room() {
            self.addresses_dropped += 1;
            return Vec::new();
        }
        let is_smaller = self.me < peer;
        let known = self.peers.entry(peer.clone()).or_insert_with(|| Peer::new(now, is_smaller));
        if !known.addresses.learn(now, addr, source, hearsay) {
            self.addresses_dropped += u64::from(!knows);
            return Vec::new();
        }
        // A new address deserves a try, whatever the old ones did.
        if known.links.is_empty() && known.dials == 0 {
            known.pauses = Pauses { next: now + if is_smaller { Duration::ZERO } else { COURTESY }, failures: 0 };
        }
        vec![Output::Tell(NetEvent::Discovered { peer, addr: addr.to_string(), source })]
    }

    /// Drops the least promising peer; says whether there was one.
    fn make_room(&mut self) -> bool {
        let candidates = self.peers.iter().filter(|(_, peer)| peer.links.is_empty() && peer.last_seen.is_none());
        let least = candidates.max_by_key(|(_, peer)| peer.pauses.failures).map(|(id, _)| id.clone());
        least.is_some_and(|id| self.peers.remove(&id).is_some())
    }

    fn connected(
        &mut self,
        now: Instant,
        id: &NodeId,
        connection: ConnectionId,
        path: Path,
        addr: Option<&Multiaddr>,
    ) -> Vec<Output> {
        let is_smaller = self.me < *id;
        let dialled_by_smaller = addr.is_some() == is_smaller;
        let peer = self.peers.entry(id.clone()).or_insert_with(|| Peer::new(now, is_smaller));
        if let Some(addr) = addr {
            let (addr, _) = address::split_peer(addr.clone());
            let is_relayed = address::is_relayed(&addr);
            let source = if is_relayed { AddressSource::Relay } else { AddressSource::Peer };
            peer.addresses.learn(now, &addr, source, None);
            peer.addresses.worked(now, &addr);
        }
        peer.last_seen = Some(now);
        peer.pauses.failures = 0;
        peer.dials = 0;
        peer.dial_began = None;
        peer.better_at = now + DIRECT_EVERY.min(Duration::from_secs(5));
        let is_first = peer.links.is_empty();
        peer.links.add(Link { connection, path: path.clone(), dialled_by_smaller, since: now, round_trip: None });
        let mut outputs = Vec::new();
        for seed in self.seeds.iter_mut().filter(|seed| seed.peer.as_ref() == Some(id)) {
            seed.last_ok = Some(now);
            seed.pauses.failures = 0;
        }
        if is_first {
            outputs.push(Output::Prefer { peer: id.clone(), connection });
            outputs.push(Output::Tell(NetEvent::PeerConnected { peer: id.clone(), path }));
        } else {
            outputs.extend(self.choose(id));
        }
        outputs.extend(self.keep());
        outputs
    }

    fn closed(&mut self, now: Instant, id: &NodeId, connection: ConnectionId, why: Option<String>) -> Vec<Output> {
        let is_crowded = self.peers.len() > self.settings.mesh_max;
        let is_smaller = self.me < *id;
        let pause = self.first_pause(is_smaller);
        let Some(peer) = self.peers.get_mut(id) else {
            return Vec::new();
        };
        if !peer.links.remove(connection) {
            return Vec::new();
        }
        if !peer.links.is_empty() {
            return self.choose(id);
        }
        peer.last_seen = Some(now);
        // Which of the addresses were good may have changed with the connection.
        peer.addresses.forgive(now);
        peer.relays_tried = false;
        let rests = is_crowded && why.is_none();
        peer.pauses = Pauses { next: now + if rests { REST } else { pause }, failures: 0 };
        let mut outputs =
            vec![Output::Tell(NetEvent::PeerDisconnected { peer: id.clone(), why: why.unwrap_or_default() })];
        outputs.extend(self.keep());
        outputs
    }

    /// After a lost connection the smaller id tries first.
    fn first_pause(&mut self, is_smaller: bool) -> Duration {
        let share = if is_smaller { self.random.random_range(0.1..0.4) } else { self.random.random_range(0.6..1.0) };
        self.settings.redial_min.mul_f64(share)
    }

    fn failed(&mut self, now: Instant, id: &NodeId, addr: &Multiaddr, why: &DialFailure) -> Vec<Output> {
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
        if let Some(peer) = self.peers.get_mut(id) {
            peer.addresses.failed(now, &addr, why, self.settings.foreign_key_pause);
        }
        // Who is there has proved who it is.
        if let (DialFailure::WrongPeer { found }, Some(source)) = (why, source) {
            outputs.extend(self.learned(now, found.clone(), &addr, source, Some(found.clone())));
        }
        outputs
    }

    fn dial_ended(&mut self, now: Instant, id: &NodeId, why: DialFailure) -> Vec<Output> {
        let Some(peer) = self.peers.get_mut(id) else {
            return vec![Output::NotReached { peer: id.clone(), why }];
        };
        peer.dials = peer.dials.saturating_sub(1);
        if !peer.links.is_empty() || peer.dials > 0 {
            return Vec::new();
        }
        let relayed = peer.addresses.due(now, true);
        if !peer.relays_tried && !relayed.is_empty() {
            return self.dial_relayed(id, relayed);
        }
        peer.dial_began = None;
        peer.relays_tried = false;
        peer.pauses.failures += 1;
        let failures = peer.pauses.failures;
        let pause = self.pause(failures);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.pauses.next = now + pause;
        }
        vec![Output::NotReached { peer: id.clone(), why }]
    }

    fn dial_relayed(&mut self, id: &NodeId, mut addrs: Vec<Multiaddr>) -> Vec<Output> {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.relays_tried = true;
            peer.dials += 1;
        }
        addrs.truncate(ADDRESSES_AT_ONCE);
        vec![Output::Dial { peer: id.clone(), addrs }]
    }

    fn pause(&mut self, failures: u32) -> Duration {
        let doubled = self.settings.redial_min.saturating_mul(1 << failures.saturating_sub(1).min(20));
        doubled.min(self.settings.redial_max).mul_f64(self.random.random_range(0.8..1.2))
    }

    fn seed_failed(&mut self, now: Instant, addr: &Multiaddr, why: DialFailure) -> Vec<Output> {
        let (addr, _) = address::split_peer(addr.clone());
        let Some(at) = self.seeds.iter().position(|seed| seed.addr == addr) else {
            return Vec::new();
        };
        let failures = self.seeds[at].pauses.failures + 1;
        let mut pause = self.pause(failures);
        if why == DialFailure::AnotherSwarmKey && failures >= book::FOREIGN_KEY_TRIES {
            pause = self.settings.foreign_key_pause;
        }
        let seed = &mut self.seeds[at];
        seed.is_dialled = false;
        seed.tried += 1;
        seed.last_failure = Some((now, why.clone()));
        seed.pauses = Pauses { next: now + pause, failures };
        vec![Output::Tell(NetEvent::DialFailed { addr: addr.to_string(), peer: None, why })]
    }

    fn seed_reached(&mut self, now: Instant, addr: &Multiaddr, peer: &NodeId) -> Vec<Output> {
        let (addr, _) = address::split_peer(addr.clone());
        for seed in self.seeds.iter_mut().filter(|seed| seed.addr == addr) {
            seed.is_dialled = false;
            seed.peer = Some(peer.clone());
            seed.last_ok = Some(now);
            seed.tried += 1;
            seed.pauses.failures = 0;
        }
        let mut outputs = self.learned(now, peer.clone(), &addr, AddressSource::Seed, Some(peer.clone()));
        if let Some(known) = self.peers.get_mut(peer) {
            known.addresses.worked(now, &addr);
        }
        outputs.retain(|output| matches!(output, Output::Tell(_)));
        outputs
    }

    fn round_trip(&mut self, now: Instant, id: &NodeId, connection: ConnectionId, time: Duration) -> Vec<Output> {
        let Some(peer) = self.peers.get_mut(id) else {
            return Vec::new();
        };
        peer.last_seen = Some(now);
        peer.links.measured(connection, time);
        self.choose(id)
    }

    fn want(&mut self, now: Instant, id: NodeId) -> Vec<Output> {
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
    fn dial(&mut self, now: Instant, id: &NodeId) -> Vec<Output> {
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

    fn tick(&mut self, now: Instant) -> Vec<Output> {
        let mut outputs = self.dial_seeds(now);
        outputs.extend(self.dial_due(now));
        outputs.extend(self.dial_relays(now));
        outputs.extend(self.look_for_better(now));
        outputs.extend(self.close_redundant(now));
        if self.last_sweep.is_none_or(|last| now.duration_since(last) >= Duration::from_secs(1)) {
            self.last_sweep = Some(now);
            self.sweep(now);
        }
        outputs
    }

    /// A seed whose peer is known is that peer's address; the others are dialled as they are.
    fn dial_seeds(&mut self, now: Instant) -> Vec<Output> {
        let mut outputs = Vec::new();
        let mut known = Vec::new();
        for seed in &mut self.seeds {
            if let Some(peer) = &seed.peer {
                let has = self.peers.get(peer).is_some_and(|peer| peer.addresses.contains(&seed.addr));
                if !has {
                    known.push((peer.clone(), seed.addr.clone()));
                }
            } else if !seed.is_dialled && seed.pauses.next <= now {
                seed.is_dialled = true;
                outputs.push(Output::DialSeed { addr: seed.addr.clone() });
            }
        }
        for (peer, addr) in known {
            outputs.extend(self.learned(now, peer.clone(), &addr, AddressSource::Seed, Some(peer)));
        }
        outputs
    }

    fn dial_due(&mut self, now: Instant) -> Vec<Output> {
        let connected = self.peers.values().filter(|peer| !peer.links.is_empty() || peer.dials > 0).count();
        let mut room = self.settings.mesh_max.saturating_sub(connected);
        let mut due: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.links.is_empty() && peer.dials == 0 && peer.pauses.next <= now)
            .map(|(id, peer)| (Reverse(peer.is_wanted(now)), peer.pauses.failures, id.clone()))
            .collect();
        due.sort();
        let mut outputs = Vec::new();
        for (Reverse(is_wanted), _, id) in due {
            if room == 0 && !is_wanted {
                break;
            }
            let dialled = self.dial(now, &id);
            if !dialled.is_empty() {
                room = room.saturating_sub(1);
                outputs.extend(dialled);
            }
        }
        outputs
    }

    /// Dials the relayed addresses as well where the direct ones do not answer soon.
    fn dial_relays(&mut self, now: Instant) -> Vec<Output> {
        let late = |peer: &Peer| peer.dial_began.is_some_and(|began| now.duration_since(began) >= RELAY_AFTER);
        let waiting: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.links.is_empty() && peer.dials > 0 && !peer.relays_tried && late(peer))
            .map(|(id, peer)| (id.clone(), peer.addresses.due(now, true)))
            .filter(|(_, relayed)| !relayed.is_empty())
            .collect();
        waiting.into_iter().flat_map(|(id, relayed)| self.dial_relayed(&id, relayed)).collect()
    }

    fn look_for_better(&mut self, now: Instant) -> Vec<Output> {
        let mut outputs = Vec::new();
        for (id, peer) in &mut self.peers {
            let Some(best) = peer.links.best() else {
                continue;
            };
            if peer.dials > 0 || now < peer.better_at {
                continue;
            }
            let is_relayed = matches!(best.path, Path::Relayed { .. });
            let is_far = best.round_trip.is_some_and(|time| time > NEAR);
            let is_worth_it = is_relayed || is_far && self.me < *id;
            if !is_worth_it {
                continue;
            }
            peer.better_at = now + if is_relayed { DIRECT_EVERY } else { BETTER_EVERY };
            let mut addrs = peer.addresses.due(now, false);
            addrs.retain(|addr| !matches!(&best.path, Path::Direct { addr: used } if *used == addr.to_string()));
            addrs.truncate(3);
            if !addrs.is_empty() {
                peer.dials += 1;
                outputs.push(Output::Dial { peer: id.clone(), addrs });
            }
        }
        outputs
    }

    fn close_redundant(&self, now: Instant) -> Vec<Output> {
        let mut outputs = Vec::new();
        for (id, peer) in &self.peers {
            // Where the other side does not decide, because it is another program, this side does later.
            let grace = self.settings.redundant_grace * if self.me < *id { 1 } else { 10 };
            for link in peer.links.redundant(now, grace) {
                let unless_busy = peer.links.redundant_for(now) < grace + BUSY_MAX;
                outputs.push(Output::Close { peer: id.clone(), connection: link.connection, unless_busy });
            }
        }
        outputs
    }

    /// Drops addresses and peers that led nowhere for long.
    fn sweep(&mut self, now: Instant) {
        let expiry = self.settings.peer_expiry;
        for peer in self.peers.values_mut().filter(|peer| peer.links.is_empty()) {
            peer.addresses.expire(now, expiry);
        }
        self.peers.retain(|_, peer| {
            let last = peer.last_seen.unwrap_or(peer.known_since);
            let is_stale = peer.addresses.is_empty() || now.duration_since(last) >= expiry;
            !peer.links.is_empty() || peer.dials > 0 || peer.is_wanted(now) || !is_stale
        });
    }

    /// Prefers the best connection of a peer, if that changed.
    fn choose(&mut self, id: &NodeId) -> Vec<Output> {
        let Some((connection, path, path_changed)) = self.peers.get_mut(id).and_then(|peer| peer.links.choose()) else {
            return Vec::new();
        };
        let mut outputs = vec![Output::Prefer { peer: id.clone(), connection }];
        if path_changed {
            outputs.push(Output::Tell(NetEvent::PathChanged { peer: id.clone(), path }));
        }
        outputs
    }

    /// Keeps connections to as many peers as the mesh may have, those that were there first.
    fn keep(&mut self) -> Vec<Output> {
        let mut connected: Vec<_> =
            self.peers.iter_mut().filter_map(|(id, peer)| Some((peer.links.since()?, id, peer))).collect();
        connected.sort_by_key(|(since, _, _)| *since);
        let mut outputs = Vec::new();
        for (at, (_, id, peer)) in connected.into_iter().enumerate() {
            for (connection, keep) in peer.links.keep(at < self.settings.mesh_max) {
                outputs.push(Output::Keep { peer: id.clone(), connection, keep });
            }
        }
        outputs
    }
}

impl Seed {
    fn new(now: Instant, addr: Multiaddr, peer: Option<NodeId>) -> Self {
        Self {
            addr,
            peer,
            tried: 0,
            last_ok: None,
            last_failure: None,
            pauses: Pauses { next: now, failures: 0 },
            is_dialled: false,
        }
    }
}

impl Peer {
    fn new(now: Instant, is_smaller: bool) -> Self {
        let next = now + if is_smaller { Duration::ZERO } else { COURTESY };
        Self {
            addresses: Addresses::default(),
            links: Links::default(),
            last_seen: None,
            known_since: now,
            wanted_until: None,
            pauses: Pauses { next, failures: 0 },
            dials: 0,
            dial_began: None,
            relays_tried: false,
            better_at: now,
        }
    }

    fn is_wanted(&self, now: Instant) -> bool {
        self.wanted_until.is_some_and(|until| now < until)
    }
}
