//! Which blocks are missing, and whom to ask when.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use super::{Peer, Request, SyncConfig};
use crate::cid::Hash;

/// How many of those that named a block are asked before all others.
const SOURCES_MAX: usize = 4;

#[derive(Clone, Debug)]
struct Want {
    /// Those that sent what follows the block: they most likely have it.
    sources: Vec<Peer>,
    tried: BTreeSet<Peer>,
    asked: Option<Peer>,
    round: u32,
    due: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Wants {
    config: SyncConfig,
    peers: BTreeSet<Peer>,
    wants: HashMap<Hash, Want>,
    due: BTreeSet<(Duration, Hash)>,
}

impl Wants {
    pub(super) fn new(config: SyncConfig) -> Self {
        Self { config, peers: BTreeSet::new(), wants: HashMap::new(), due: BTreeSet::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.wants.len()
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| *due)
    }

    pub(super) fn add(&mut self, now: Duration, hash: Hash, source: Option<&Peer>) {
        let want = self.wants.entry(hash).or_insert_with(|| {
            self.due.insert((now, hash));
            Want { sources: Vec::new(), tried: BTreeSet::new(), asked: None, round: 0, due: now }
        });
        if let Some(source) = source
            && want.sources.len() < SOURCES_MAX
            && !want.sources.contains(source)
        {
            want.sources.push(source.clone());
        }
    }

    pub(super) fn forget(&mut self, hash: &Hash) {
        if let Some(want) = self.wants.remove(hash) {
            self.due.remove(&(want.due, *hash));
        }
    }

    fn reschedule(&mut self, hash: &Hash, due: Duration) {
        if let Some(want) = self.wants.get_mut(hash) {
            self.due.remove(&(want.due, *hash));
            want.due = due;
            self.due.insert((due, *hash));
        }
    }

    /// A new peer may have what nobody had.
    pub(super) fn add_peer(&mut self, now: Duration, peer: &Peer) {
        self.peers.insert(peer.clone());
        let mut idle = Vec::new();
        for (hash, want) in &mut self.wants {
            if want.asked.is_none() {
                want.sources.insert(0, peer.clone());
                want.sources.truncate(SOURCES_MAX);
                idle.push(*hash);
            }
        }
        for hash in idle {
            self.reschedule(&hash, now);
        }
    }

    pub(super) fn remove_peer(&mut self, now: Duration, peer: &Peer) {
        self.peers.remove(peer);
        let mut asked = Vec::new();
        for (hash, want) in &mut self.wants {
            want.sources.retain(|source| source != peer);
            if want.asked.as_ref() == Some(peer) {
                want.asked = None;
                asked.push(*hash);
            }
        }
        for hash in asked {
            self.reschedule(&hash, now);
        }
    }

    pub(super) fn absent(&mut self, now: Duration, peer: &Peer, hash: &Hash) {
        let Some(want) = self.wants.get_mut(hash) else { return };
        if want.asked.as_ref() == Some(peer) {
            want.tried.insert(peer.clone());
            want.asked = None;
            self.reschedule(hash, now);
        }
    }

    /// Asks for what is due. Returns the requests, and what is given up.
    pub(super) fn poll(&mut self, now: Duration) -> (Vec<Request>, Vec<Hash>) {
        let mut asks: BTreeMap<Peer, Vec<Hash>> = BTreeMap::new();
        let mut given_up = Vec::new();
        while let Some((due, hash)) = self.due.first().copied().filter(|(due, _)| *due <= now) {
            let Some(want) = self.wants.get_mut(&hash) else {
                self.due.remove(&(due, hash));
                continue;
            };
            want.tried.extend(want.asked.take());
            let next = if let Some(peer) = choose(want, &self.peers, &hash) {
                want.asked = Some(peer.clone());
                asks.entry(peer).or_default().push(hash);
                now + self.config.want_timeout
            } else {
                want.tried.clear();
                want.round += 1;
                if want.round > self.config.rounds {
                    self.forget(&hash);
                    given_up.push(hash);
                    continue;
                }
                now + self.config.pause(want.round - 1)
            };
            self.reschedule(&hash, next);
        }
        (asks.into_iter().map(|(peer, hashes)| Request::Want { peer, hashes }).collect(), given_up)
    }
}

/// Chooses whom to ask: those that named the block first, then any other, spread by the hash.
fn choose(want: &Want, peers: &BTreeSet<Peer>, hash: &Hash) -> Option<Peer> {
    if let Some(source) = want.sources.iter().find(|source| !want.tried.contains(*source)) {
        return Some(source.clone());
    }
    let untried: Vec<&Peer> = peers.iter().filter(|peer| !want.tried.contains(*peer)).collect();
    let turn = usize::from(hash.digest()[0]).checked_rem(untried.len())?;
    Some(untried[turn].clone())
}
