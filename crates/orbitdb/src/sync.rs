//! Sync as a state machine: without I/O, without a clock, without cryptography.
//!
//! It knows which peers are there, which blocks wait for which others, and when to ask whom. A block that is missing holds up only what
//! follows it; it is asked for again, from other peers, at growing intervals. What a peer can make this node keep in memory is bounded, and a
//! log that is larger joins all the same.

mod park;
#[cfg(test)]
mod tests;
mod wants;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use crate::cid::Hash;

use park::{Park, Released};
use wants::Wants;

/// How soon heads are exchanged again with a peer that was just met; each time it is four times as long, up to [`SyncConfig::resend`]. Then it is
/// one peer's turn after the other, so that a crowd costs a node no more than one of them.
const AGAIN: Duration = Duration::from_millis(500);

/// A peer, by whatever name the network gives it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(Arc<str>);

impl Peer {
    /// Takes the name of a peer.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Times and bounds of sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncConfig {
    /// How often heads are exchanged with one of the peers, by turns; more often after one was met. Default 60 s.
    pub resend: Duration,
    /// How long a peer has for a block before another one is asked. Default 5 s.
    pub want_timeout: Duration,
    /// First pause after all peers were asked in vain, or an exchange of heads failed; it doubles each time. Default 500 ms.
    pub backoff: Duration,
    /// Greatest pause. Default 60 s.
    pub backoff_max: Duration,
    /// How often all peers are asked for a block before it and what follows it are given up, until somebody names them again. Default 16.
    pub rounds: u32,
    /// Greatest memory for blocks that wait for others, in bytes. Of a log that does not fit little more than the names is kept, and its blocks
    /// are asked for again, oldest first; what still does not fit comes again with the next heads. Default 256 MiB.
    pub parked_bytes: usize,
    /// Greatest part of it for the blocks of one peer. Default 192 MiB.
    pub parked_bytes_per_peer: usize,
    /// Greatest number of peers that are kept in mind; further ones are passed over. Default 4,096.
    pub peers: usize,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            resend: Duration::from_secs(60),
            want_timeout: Duration::from_secs(5),
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
            rounds: 16,
            parked_bytes: 256 << 20,
            parked_bytes_per_peer: 192 << 20,
            peers: 4096,
        }
    }
}

impl SyncConfig {
    /// Returns how soon after so many exchanges of heads the next one is, as long as they are few.
    fn again(&self, worked: u32) -> Duration {
        AGAIN.saturating_mul(1 << (2 * worked.min(10)))
    }

    fn pause(&self, failures: u32) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << failures.min(20));
        doubled.min(self.backoff_max)
    }
}

/// What the machine asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Exchange heads with a peer, and tell by [`Sync::exchanged`] how that went.
    OpenHeads(Peer),
    /// Ask a peer for blocks, each at most once at a time.
    Want {
        /// Whom to ask.
        peer: Peer,
        /// For what.
        hashes: Vec<Hash>,
    },
}

/// As what a block is needed. The same name may be needed as both, by different blocks: what it stands for shows only when it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An entry of the log.
    Entry,
    /// The identity of a writer.
    Identity,
}

/// What became of a block that was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It can join now.
    Ready,
    /// It waits for others.
    Parked,
    /// It waits already.
    Known,
    /// It follows a block that is no entry, and can never join.
    Broken,
    /// There is no room for it.
    Full,
}

/// What stands for an exchange of heads with one peer.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    due: Duration,
    /// When it was this peer's turn last, or is next.
    turn: Duration,
    failures: u32,
    worked: u32,
}

/// The state machine. Times are durations since any one moment.
#[derive(Clone, Debug)]
pub struct Sync {
    config: SyncConfig,
    exchanges: BTreeMap<Peer, Exchange>,
    park: Park,
    wants: Wants,
}

impl Sync {
    /// Makes the machine of a database without peers.
    #[must_use]
    pub fn new(config: SyncConfig) -> Self {
        Self { config, exchanges: BTreeMap::new(), park: Park::new(config), wants: Wants::new(config) }
    }

    /// Takes note of a peer that has the database open: heads are exchanged with it at once. Returns whether it is new.
    pub fn subscribed(&mut self, now: Duration, peer: Peer) -> bool {
        if self.exchanges.contains_key(&peer) || self.exchanges.len() >= self.config.peers {
            return false;
        }
        self.wants.add_peer(now, &peer);
        self.exchanges.insert(peer, Exchange { due: now, turn: now, failures: 0, worked: 0 });
        true
    }

    /// Forgets a peer. What it was asked for is asked of others. Returns whether it was known.
    pub fn unsubscribed(&mut self, now: Duration, peer: &Peer) -> bool {
        self.wants.remove_peer(now, peer);
        self.exchanges.remove(peer).is_some()
    }

    /// Takes note of how an exchange of heads went.
    pub fn exchanged(&mut self, now: Duration, peer: &Peer, worked: bool) {
        if worked {
            self.worked(now, peer, self.config.resend);
        } else if let Some(exchange) = self.exchanges.get_mut(peer) {
            exchange.due = now + self.config.pause(exchange.failures);
            exchange.failures = exchange.failures.saturating_add(1);
        }
    }

    /// Takes note of an exchange of heads that a peer began, and that went well. It serves both: this side begins the next one only if the peer
    /// does not do so in time. Returns whether the peer is known.
    pub fn answered(&mut self, now: Duration, peer: &Peer) -> bool {
        self.worked(now, peer, self.config.resend * 3 / 2)
    }

    /// Puts a peer with whom heads were exchanged behind the others, by this much. Returns whether it is known.
    fn worked(&mut self, now: Duration, peer: &Peer, behind: Duration) -> bool {
        let others = self.exchanges.iter().filter(|(other, _)| *other != peer).map(|(_, exchange)| exchange.turn);
        // Who is asked by many at once is not put off for ever.
        let round = behind.saturating_mul(u32::try_from(self.exchanges.len()).unwrap_or(u32::MAX));
        let turn = (others.fold(now, Duration::max) + behind).min(now + round);
        let Some(exchange) = self.exchanges.get_mut(peer) else { return false };
        // What was published while the two met may have reached neither way: they look again soon, and less and less often.
        let again = self.config.again(exchange.worked);
        exchange.turn = if again < behind { now + again } else { turn };
        exchange.due = exchange.turn;
        (exchange.failures, exchange.worked) = (0, exchange.worked.saturating_add(1));
        true
    }

    /// Offers a block that is an entry, with what it needs and is not there. A block that waits is given back by [`Sync::arrived`]. What needs
    /// this one as an identity was told before that it is none.
    pub fn offer(&mut self, now: Duration, block: Block, missing: &[(Hash, Kind)]) -> (Offered, Option<Block>) {
        if missing.is_empty() {
            self.wants.forget(&block.hash);
            return (Offered::Ready, Some(block));
        }
        let (peer, hash) = (block.peer.clone(), block.hash);
        let offered = self.park.add(block, missing);
        // What gave way to it may have been all that waited for something.
        self.forget_unneeded();
        // Where there is no room, those that wait for this block ask for it again later.
        if offered != Offered::Full {
            self.wants.forget(&hash);
        }
        if offered == Offered::Parked {
            for (need, _) in missing {
                if !self.park.contains(need) {
                    self.wants.add(now, *need, peer.as_ref());
                }
            }
        }
        if offered == Offered::Broken {
            self.broken(&hash);
        }
        (offered, None)
    }

    /// Takes note of an entry that has joined, or of an identity that is there or known to be none. Returns what waited for it as such and waits
    /// for nothing more, each after what it follows: those that join are taken to have done so. Those whose bytes gave way to others are asked
    /// for again.
    pub fn arrived(&mut self, now: Duration, hash: &Hash, kind: Kind) -> Vec<Block> {
        let Released { ready, again } = self.park.release((*hash, kind));
        self.forget_unless_awaited(hash);
        for (hash, peer) in again {
            self.wants.add(now, hash, peer.as_ref());
        }
        ready
    }

    /// Takes note of a block that is not kept.
    pub fn forget(&mut self, hash: &Hash) {
        self.wants.forget(hash);
    }

    /// Returns whether blocks wait for this one as such.
    #[must_use]
    pub fn is_needed(&self, hash: &Hash, kind: Kind) -> bool {
        self.park.is_needed(hash, kind)
    }

    /// Takes note of a block that is no part of the log. Drops what follows it and returns how many blocks that were. What waits for it as an
    /// identity goes on to do so.
    pub fn broken(&mut self, hash: &Hash) -> usize {
        let dropped = self.park.break_off(hash);
        self.forget_unless_awaited(hash);
        self.forget_unneeded();
        dropped
    }

    /// Takes note of a peer that has not got a block.
    pub fn absent(&mut self, now: Duration, peer: &Peer, hash: &Hash) {
        self.wants.absent(now, peer, hash);
    }

    /// Returns whether a block waits for others.
    #[must_use]
    pub fn is_parked(&self, hash: &Hash) -> bool {
        self.park.contains(hash)
    }

    /// Returns what blocks that wait take, in bytes.
    #[cfg(test)]
    pub(crate) fn parked_bytes(&self) -> usize {
        self.park.bytes()
    }

    /// Returns how many blocks wait, and how many are missing.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        (self.park.len(), self.wants.len())
    }

    /// Returns the peers that have the database open.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.exchanges.keys()
    }

    /// Returns what is to be done now. To be called after each input, and when [`Sync::deadline`] has come.
    pub fn poll(&mut self, now: Duration) -> Vec<Request> {
        let mut requests = Vec::new();
        for (peer, exchange) in &mut self.exchanges {
            if exchange.due <= now {
                // Until it is told how the exchange went.
                exchange.due = now + self.config.resend;
                requests.push(Request::OpenHeads(peer.clone()));
            }
        }
        let (asked, given_up) = self.wants.poll(now);
        requests.extend(asked);
        for hash in given_up {
            self.park.give_up(&hash);
        }
        self.forget_unneeded();
        requests
    }

    /// Returns when the machine wants to be polled next.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let exchange = self.exchanges.values().map(|exchange| exchange.due).min();
        exchange.into_iter().chain(self.wants.deadline()).min()
    }

    fn forget_unless_awaited(&mut self, hash: &Hash) {
        if !self.park.is_awaited(hash) {
            self.wants.forget(hash);
        }
    }

    fn forget_unneeded(&mut self) {
        for hash in self.park.take_unneeded() {
            self.wants.forget(&hash);
        }
    }
}

/// A block that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its name.
    pub hash: Hash,
    /// Its bytes.
    pub bytes: Arc<[u8]>,
    /// Who sent it.
    pub peer: Option<Peer>,
    /// Whether it joins once it has what it waits for; otherwise it is only looked at then.
    pub joins: bool,
}
