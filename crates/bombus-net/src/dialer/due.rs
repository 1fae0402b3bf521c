//! What the time brings about: dials that are due, connections that are not needed, peers that led nowhere.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use super::{DIRECT_FIRST, Dialer, Output, Peer};
use crate::peer::{AddressSource, Path};

/// How long the direct addresses are tried before the relayed ones are tried as well.
pub(super) const RELAY_AFTER: Duration = Duration::from_secs(1);
/// A round trip below which no better address is looked for.
const NEAR: Duration = Duration::from_millis(3);
/// Between two tries to find a better address for a connected peer.
const BETTER_EVERY: Duration = Duration::from_secs(600);
/// The longest pause between two tries to reach a peer directly that is only reached through a relay.
const DIRECT_EVERY: Duration = Duration::from_secs(60);
/// How long streams keep a redundant connection open.
const BUSY_MAX: Duration = Duration::from_secs(60);

impl Dialer {
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Output> {
        let mut outputs = self.dial_seeds(now);
        outputs.extend(self.dial_due(now));
        outputs.extend(self.dial_relays(now));
        outputs.extend(self.look_for_better(now));
        outputs.extend(self.close_redundant(now));
        if self.last_sweep.is_none_or(|last| now.duration_since(last) >= Duration::from_secs(1)) {
            self.last_sweep = Some(now);
            self.sweep(now);
            outputs.extend(self.close_idle(now));
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
            let pause = DIRECT_FIRST.saturating_mul(2 << peer.punches.min(8)).min(DIRECT_EVERY);
            peer.better_at = now + if is_relayed { pause } else { BETTER_EVERY };
            let mut addrs = peer.addresses.due(now, false);
            addrs.retain(|addr| !matches!(&best.path, Path::Direct { addr: used } if *used == addr.to_string()));
            addrs.truncate(3);
            if !addrs.is_empty() {
                peer.dials += 1;
                outputs.push(Output::Dial { peer: id.clone(), addrs });
            }
            if is_relayed {
                peer.punches += 1;
            }
            // Both sides look for a hole at the same time whenever a relayed connection begins, and only then.
            let relayed = peer.addresses.due(now, true).into_iter().next();
            if let Some(addr) = relayed.filter(|_| is_relayed && self.me < *id) {
                peer.dials += 1;
                outputs.push(Output::Dial { peer: id.clone(), addrs: vec![addr] });
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

    /// Closes connections beyond the mesh that are not in use. libp2p alone would not: gossipsub keeps streams open on all of them.
    fn close_idle(&self, now: Instant) -> Vec<Output> {
        let mut connected: Vec<_> =
            self.peers.iter().filter_map(|(id, peer)| Some((peer.links.since()?, id, peer))).collect();
        connected.sort_by_key(|(since, _, _)| *since);
        let mut outputs = Vec::new();
        for (since, id, peer) in connected.into_iter().skip(self.settings.mesh_max) {
            let used = peer.used.map_or(since, |used| used.max(since));
            if now.duration_since(used) >= self.settings.idle_limit {
                let close = |connection| Output::CloseIdle { peer: id.clone(), connection };
                outputs.extend(peer.links.connections().map(close));
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

    /// Keeps connections to as many peers as the mesh may have, those that were there first.
    pub(super) fn keep(&mut self) -> Vec<Output> {
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
