//! Which peers are dialled, when, and which of several connections to a peer stays (pure: no sockets, and times are handed in).
//!
//! Up to [`Settings::mesh_max`] connected peers, everyone known is dialled; beyond that, only who is wanted. A failed try is followed by
//! the next one after a pause that doubles, with jitter. Of two connections to one peer, the side with the smaller node id decides which
//! one goes, so that the two never close both: a direct one beats a relayed one, a much shorter round trip beats a longer one, and of two
//! that were dialled at the same time the one dialled by the smaller id stays.

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
mod dials;
mod due;
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
/// How long the side with the greater id leaves a newly found peer to the other side, so that they do not dial each other at once.
const COURTESY: Duration = Duration::from_millis(150);
/// Before the first try to reach a peer directly that is only reached through a relay; it doubles.
const DIRECT_FIRST: Duration = Duration::from_secs(3);
/// How long after a change of the own key another key at a member says nothing: the last of them goes over 30 s after the first at most,
/// and has to be reached then.
const KEY_CHANGE_GRACE: Duration = Duration::from_secs(40);
/// How long a peer is left alone whose connection ended while more peers are known than fit.
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
    pub(crate) idle_limit: Duration,
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
    /// A connection that was to be closed is in use.
    InUse { peer: NodeId },
    /// Somebody needs the peer.
    Want { peer: NodeId },
    /// The peer is no member any more.
    Forget { peer: NodeId },
    /// This node has an address that it did not have: a network came, or came back.
    NetworkCame,
    /// A new key of the swarm is on its way to the members, or was a moment ago.
    KeyChanges,
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
    /// Close a connection beyond the mesh, unless something uses it.
    CloseIdle { peer: NodeId, connection: ConnectionId },
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
    /// How often in a row another swarm's key was spoken there.
    foreign_keys: u32,
    is_dialled: bool,
}

/// What is known of one peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) addresses: Addresses,
    pub(crate) links: Links,
    pub(crate) last_seen: Option<Instant>,
    /// When a connection beyond the mesh was last seen in use.
    used: Option<Instant>,
    known_since: Instant,
    wanted_until: Option<Instant>,
    pauses: Pauses,
    /// Dials that run for it.
    dials: usize,
    dial_began: Option<Instant>,
    /// At how many addresses somebody else answered since it was last given up for a while.
    strangers: usize,
    relays_tried: bool,
    better_at: Instant,
    /// How often a hole through routers was looked for while the peer was only reached through a relay.
    punches: u32,
}

/// When the next try may be made.
#[derive(Debug)]
struct Pauses {
    next: Instant,
    failures: u32,
}

/// How often addresses were dialled, by where they are from. Configured ones are counted one by one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tries {
    pub(crate) mdns_v4: u64,
    pub(crate) mdns_v6: u64,
    /// Told by peers, those through relays included.
    pub(crate) learned: u64,
    pub(crate) tickets: u64,
}

impl Tries {
    fn count(&mut self, addr: &Multiaddr, source: Option<AddressSource>) {
        let tried = match source {
            Some(AddressSource::Mdns) if address::ip_of(addr).is_some_and(|ip| ip.is_ipv6()) => &mut self.mdns_v6,
            Some(AddressSource::Mdns) => &mut self.mdns_v4,
            Some(AddressSource::Peer | AddressSource::Relay) => &mut self.learned,
            Some(AddressSource::Ticket) => &mut self.tickets,
            Some(AddressSource::Seed | AddressSource::Manual | AddressSource::Incoming) | None => return,
        };
        *tried += 1;
    }
}

/// The state machine.
pub(crate) struct Dialer {
    me: NodeId,
    settings: Settings,
    peers: BTreeMap<NodeId, Peer>,
    seeds: Vec<Seed>,
    random: StdRng,
    last_sweep: Option<Instant>,
    key_changes_until: Option<Instant>,
    /// Addresses that were told beyond what one teller may tell.
    pub(crate) addresses_dropped: u64,
    pub(crate) tries: Tries,
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
            key_changes_until: None,
            addresses_dropped: 0,
            tries: Tries::default(),
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

    /// Returns from when on another key at a member says something: some time after the last change of the own one.
    pub(crate) fn foreign_keys_from(&self) -> Option<Instant> {
        self.key_changes_until
    }

    /// Says whether a failure only says that the members do not all have the new key yet.
    fn is_between_keys(&self, now: Instant, why: &DialFailure) -> bool {
        *why == DialFailure::AnotherSwarmKey && self.key_changes_until.is_some_and(|until| now < until)
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
        self.key_changes_until = Some(now + KEY_CHANGE_GRACE);
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
            peer.addresses.begin_anew(now);
        }
        for seed in &mut self.seeds {
            seed.is_dialled = false;
            seed.foreign_keys = 0;
            seed.pauses = Pauses { next: now, failures: 0 };
        }
        outputs
    }

    /// Forgets the pauses that were made while a network was missing: who was not reached without it may be reached with it.
    fn network_came(&mut self, now: Instant) {
        for (id, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.links.is_empty() && peer.dials == 0) {
            if peer.pauses.failures > 0 {
                let wait = if self.me < *id { Duration::ZERO } else { COURTESY };
                peer.pauses = Pauses { next: now + wait, failures: 0 };
                peer.addresses.forgive(now);
            }
        }
        for seed in self.seeds.iter_mut().filter(|seed| !seed.is_dialled && seed.pauses.failures > 0) {
            seed.foreign_keys = 0;
            seed.pauses = Pauses { next: now, failures: 0 };
        }
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
            Input::InUse { peer } => {
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.used = Some(now);
                }
                Vec::new()
            }
            Input::Want { peer } => self.want(now, peer),
            Input::Forget { peer } => {
                self.peers.remove(&peer);
                Vec::new()
            }
            Input::NetworkCame => {
                self.network_came(now);
                Vec::new()
            }
            Input::KeyChanges => {
                self.key_changes_until = Some(now + KEY_CHANGE_GRACE);
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
            self.tries.count(&addr, peer.addresses.source(&addr));
        }
        peer.last_seen = Some(now);
        peer.pauses.failures = 0;
        peer.dials = 0;
        peer.dial_began = None;
        peer.strangers = 0;
        let is_first = peer.links.is_empty();
        if is_first || matches!(path, Path::Direct { .. }) {
            peer.punches = 0;
            peer.better_at = now + DIRECT_FIRST;
        }
        peer.links.add(Link { connection, path: path.clone(), dialled_by_smaller, since: now, round_trip: None });
        let mut outputs = Vec::new();
        for seed in self.seeds.iter_mut().filter(|seed| seed.peer.as_ref() == Some(id)) {
            seed.last_ok = Some(now);
            seed.foreign_keys = 0;
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
        let connected = self.peers.iter().filter(|(other, peer)| *other != id && !peer.links.is_empty()).count();
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
        // A peer that closes what it does not need looks like one that died. While many others are connected, it is no loss either way; with
        // few left, it may be this node's network that failed.
        let rests = is_crowded && (why.is_none() || connected >= self.settings.mesh_max.div_ceil(2));
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

    fn round_trip(&mut self, now: Instant, id: &NodeId, connection: ConnectionId, time: Duration) -> Vec<Output> {
        let Some(peer) = self.peers.get_mut(id) else {
            return Vec::new();
        };
        peer.last_seen = Some(now);
        peer.links.measured(connection, time);
        self.choose(id)
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
            foreign_keys: 0,
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
            used: None,
            known_since: now,
            wanted_until: None,
            pauses: Pauses { next, failures: 0 },
            dials: 0,
            dial_began: None,
            strangers: 0,
            relays_tried: false,
            better_at: now,
            punches: 0,
        }
    }

    fn is_wanted(&self, now: Instant) -> bool {
        self.wanted_until.is_some_and(|until| now < until)
    }
}
