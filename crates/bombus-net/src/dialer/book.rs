//! The addresses of one peer.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use bombus_core::identity::NodeId;
use libp2p::Multiaddr;

use crate::address;
use crate::failure::DialFailure;
use crate::peer::AddressSource;

/// How many addresses a peer has at most.
const ADDRESSES_MAX: usize = 16;
/// How many unproven addresses of others one teller may tell.
const TOLD_MAX: usize = 64;
/// The same for all together whose teller is not known: the results of lookups.
const TOLD_BY_NOBODY_MAX: usize = 512;
/// An unproven address goes after so many failures.
const FAILURES_MAX: u32 = 4;
/// After so many times in a row, an address that speaks another swarm's key is left alone for long.
pub(super) const FOREIGN_KEY_TRIES: u32 = 3;
/// How long a configured address is left alone at which another peer answered.
const STRANGER_PAUSE: Duration = Duration::from_secs(30);

/// Who told an address of somebody else; `None` where it is the result of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hearsay(pub(super) Option<NodeId>);

impl Hearsay {
    /// How many unproven addresses may come from there.
    pub(super) fn max(&self) -> usize {
        if self.0.is_some() { TOLD_MAX } else { TOLD_BY_NOBODY_MAX }
    }
}

/// One address, and what it was good for.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub(crate) addr: Multiaddr,
    pub(crate) source: AddressSource,
    pub(crate) last_ok: Option<Instant>,
    pub(crate) failure: Option<DialFailure>,
    hearsay: Option<Hearsay>,
    learned: Instant,
    failures: u32,
    not_before: Instant,
}

impl Address {
    /// Configured addresses and those that worked once are not dropped for failing.
    fn is_steady(&self) -> bool {
        self.last_ok.is_some()
            || matches!(self.source, AddressSource::Seed | AddressSource::Ticket | AddressSource::Manual)
    }
}

/// All addresses of one peer.
#[derive(Debug, Default)]
pub(crate) struct Addresses(Vec<Address>);

impl Addresses {
    /// Returns them, the most promising first.
    pub(crate) fn best_first(&self) -> Vec<&Address> {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_by_key(|address| Self::promise(address));
        all
    }

    fn promise(address: &Address) -> impl Ord + use<> {
        (
            address::is_relayed(&address.addr),
            address.failures,
            Reverse(address.last_ok),
            address.source,
            address.addr.clone(),
        )
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, addr: &Multiaddr) -> bool {
        self.0.iter().any(|address| address.addr == *addr)
    }

    pub(super) fn source(&self, addr: &Multiaddr) -> Option<AddressSource> {
        self.0.iter().find(|address| address.addr == *addr).map(|address| address.source)
    }

    /// Counts the addresses from one source of hearsay that have not worked yet.
    pub(super) fn told_by(&self, hearsay: &Hearsay) -> usize {
        let unproven = self.0.iter().filter(|address| address.last_ok.is_none());
        unproven.filter(|address| address.hearsay.as_ref() == Some(hearsay)).count()
    }

    /// Adds an address; says whether it is a new one that was taken. One that worked is never displaced.
    pub(super) fn learn(
        &mut self,
        now: Instant,
        addr: &Multiaddr,
        source: AddressSource,
        hearsay: Option<Hearsay>,
    ) -> bool {
        if let Some(known) = self.0.iter_mut().find(|address| address.addr == *addr) {
            // A better source counts, and whoever tells it anew may know that it works again.
            known.source = known.source.min(source);
            known.learned = now;
            return false;
        }
        if self.0.len() >= ADDRESSES_MAX && !self.make_room(source) {
            return false;
        }
        self.0.push(Address {
            addr: addr.clone(),
            source,
            last_ok: None,
            failure: None,
            hearsay,
            learned: now,
            failures: 0,
            not_before: now,
        });
        true
    }

    /// Drops an unproven address that failed, or that came from a worse source than the new one.
    fn make_room(&mut self, source: AddressSource) -> bool {
        let unsteady = self.0.iter().enumerate().filter(|(_, address)| !address.is_steady());
        let worst = unsteady.max_by_key(|(_, address)| (address.failures, address.source));
        match worst.map(|(at, address)| (at, address.failures > 0 || address.source > source)) {
            Some((at, true)) => {
                self.0.swap_remove(at);
                true
            }
            _ => false,
        }
    }

    /// Returns the addresses that may be dialled now, direct or relayed ones, the most promising first.
    pub(super) fn due(&self, now: Instant, relayed: bool) -> Vec<Multiaddr> {
        let best = self.best_first().into_iter();
        best.filter(|address| address.not_before <= now && address::is_relayed(&address.addr) == relayed)
            .map(|address| address.addr.clone())
            .collect()
    }

    pub(super) fn worked(&mut self, now: Instant, addr: &Multiaddr) {
        let (addr, _) = address::split_peer(addr.clone());
        if let Some(address) = self.0.iter_mut().find(|address| address.addr == addr) {
            address.last_ok = Some(now);
            address.failures = 0;
            address.failure = None;
            address.not_before = now;
        }
    }

    /// Takes a failure. Without a pause for foreign keys, the own key changes just now, and that another one is spoken says nothing against
    /// an address.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        addr: &Multiaddr,
        why: &DialFailure,
        foreign_key_pause: Option<Duration>,
    ) {
        let Some(at) = self.0.iter().position(|address| address.addr == *addr) else {
            return;
        };
        let address = &mut self.0[at];
        if *why == DialFailure::AnotherSwarmKey && foreign_key_pause.is_none() {
            address.failure = Some(why.clone());
            return;
        }
        address.failures = address.failures.saturating_add(1);
        match why {
            // Somebody else is there for certain.
            DialFailure::WrongPeer { .. } | DialFailure::SameIdentity | DialFailure::InvalidAddress { .. }
                if !matches!(address.source, AddressSource::Seed | AddressSource::Manual) =>
            {
                self.0.swap_remove(at);
                return;
            }
            DialFailure::WrongPeer { .. } => address.not_before = now + STRANGER_PAUSE,
            DialFailure::AnotherSwarmKey if address.failures >= FOREIGN_KEY_TRIES => {
                address.not_before = now + foreign_key_pause.unwrap_or_default();
            }
            _ => {}
        }
        self.0[at].failure = Some(why.clone());
    }

    /// Lets all addresses be tried again, without forgetting which failed.
    pub(super) fn forgive(&mut self, now: Instant) {
        for address in &mut self.0 {
            address.not_before = now;
            address.learned = now;
            address.failures = address.failures.min(FOREIGN_KEY_TRIES - 1);
        }
    }

    /// Lets all addresses be tried again, as if none had failed.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        self.forgive(now);
        self.0.iter_mut().for_each(|address| address.failures = 0);
    }

    pub(super) fn expire(&mut self, now: Instant, expiry: Duration) {
        self.0.retain(|address| {
            let is_dead = !address.is_steady() && address.failures >= FAILURES_MAX;
            let since = address.last_ok.unwrap_or(address.learned).max(address.learned);
            let is_configured = address.source == AddressSource::Seed;
            is_configured || !is_dead && now.duration_since(since) < expiry
        });
    }
}
