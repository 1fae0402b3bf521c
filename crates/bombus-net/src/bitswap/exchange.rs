//! What the handle, the service and the tasks of peers share.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use bombus_core::identity::NodeId;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::asking::{Asking, Wanted};
use super::config::BitswapConfig;
use super::ledger::{Ledger, Lookup, Outcome};
use super::wire::{self, Want};
use super::{BitswapReport, BlockStore, Cid};
use crate::shared::lock;

/// How many wants of a peer are looked up for one message.
const LOOKUPS_PER_MESSAGE: usize = 256;
/// How many ended wants may wait for their events. What is more has none: whoever asks so much has to have a limit of its own.
const ABSENT_MAX: usize = 64 << 10;

/// What the handle, the service and the tasks of peers share. No lock is held for longer than what one message takes to be noted.
pub(super) struct Exchange {
    pub(super) config: BitswapConfig,
    pub(super) store: Arc<dyn BlockStore>,
    /// The service has something to do.
    pub(super) wake: Notify,
    /// Who looks blocks up has one of these.
    pub(super) lookups: Arc<Semaphore>,
    /// Who reads a message has one of these for each of its KiB.
    pub(super) receiving: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    peers: HashMap<NodeId, Peer>,
    /// Peers to whom somebody has to begin to talk.
    silent: Vec<NodeId>,
    absent: VecDeque<(NodeId, Cid)>,
    report: BitswapReport,
    has_ended: bool,
}

struct Peer {
    asking: Asking,
    ledger: Ledger,
    /// Somebody talks to it, or is about to.
    is_talked_to: bool,
    news: Arc<Notify>,
    /// How many of its streams are read.
    streams: usize,
    /// What it has of [`Exchange::receiving`].
    receiving: Arc<Semaphore>,
}

/// What whoever talks to a peer does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Tells it these wants.
    Ask(Vec<wire::Entry>),
    /// Looks up what it wants, and sends that.
    Answer(Vec<Lookup>),
    /// Waits for news; at the latest until then, if there is a time.
    Wait(Option<Instant>),
    /// Ends: there is nothing to be said.
    Done,
}

impl Exchange {
    pub(super) fn new(config: BitswapConfig, store: Arc<dyn BlockStore>) -> Self {
        Self {
            config,
            store,
            wake: Notify::new(),
            lookups: Arc::new(Semaphore::new(config.lookups)),
            receiving: Semaphore::new(kibibytes(config.receive_bytes_max)),
            state: Mutex::default(),
        }
    }

    pub(super) fn want(&self, peer: &NodeId, cids: &[Cid]) {
        {
            let mut state = lock(&self.state);
            if state.has_ended {
                return;
            }
            let mut over = Vec::new();
            match state.peer(peer, &self.config) {
                Some(found) => {
                    for cid in cids {
                        if !wire::is_checkable(cid) || found.asking.want(*cid) == Wanted::TooMany {
                            over.push(*cid);
                        }
                    }
                }
                None => over.extend(cids),
            }
            state.end(peer, over);
            state.rouse(peer);
        }
        self.wake.notify_one();
    }

    pub(super) fn cancel(&self, peer: &NodeId, cids: &[Cid]) {
        {
            let mut state = lock(&self.state);
            if let Some(found) = state.peers.get_mut(peer) {
                for cid in cids {
                    found.asking.cancel(cid);
                }
                state.rouse(peer);
            }
        }
        self.wake.notify_one();
    }

    pub(super) fn report(&self) -> BitswapReport {
        let state = lock(&self.state);
        BitswapReport { peers: state.peers.len(), ..state.report }
    }

    /// Takes note of what a peer wants, and of what it says that it has or has not.
    pub(super) fn heard(&self, peer: &NodeId, wants: Vec<Want>, is_full: bool, presences: &[(Cid, bool)]) {
        {
            let now = Instant::now();
            let mut state = lock(&self.state);
            let all = wants.len();
            let Some(found) = state.peer(peer, &self.config) else {
                state.report.wants_refused += all as u64;
                return;
            };
            let refused = found.ledger.take(now, wants, is_full);
            let absent = presences.iter().filter(|(cid, is_there)| !is_there && found.asking.denied(now, cid));
            let absent: Vec<Cid> = absent.map(|(cid, _)| *cid).collect();
            state.report.wants_refused += refused as u64;
            state.end(peer, absent);
            state.rouse(peer);
        }
        self.wake.notify_one();
    }

    /// Says whether a peer was asked for anything.
    pub(super) fn is_asked(&self, peer: &NodeId) -> bool {
        lock(&self.state).peers.get(peer).is_some_and(|peer| peer.asking.is_asked())
    }

    /// Takes note of a block with this name; says whether its sender was asked for it.
    pub(super) fn arrived(&self, peer: &NodeId, cid: &Cid, bytes: usize) -> bool {
        let mut state = lock(&self.state);
        let is_wanted = state.peers.get_mut(peer).is_some_and(|peer| peer.asking.arrived(Instant::now(), cid));
        if is_wanted {
            state.report.blocks_received += 1;
            state.report.bytes_received += bytes as u64;
            // There is room to ask for more.
            state.rouse(peer);
        }
        drop(state);
        self.wake.notify_one();
        is_wanted
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut BitswapReport)) {
        count(&mut lock(&self.state).report);
    }

    /// Says what is to be told to a peer next. After [`Next::Done`], nobody talks to it.
    pub(super) fn next(&self, peer: &NodeId, is_open: bool) -> Next {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let Some(found) = state.peers.get_mut(peer) else { return Next::Done };
        let entries = found.asking.tell(now);
        if !entries.is_empty() {
            return Next::Ask(entries);
        }
        let lookups = found.ledger.due(now, LOOKUPS_PER_MESSAGE);
        if !lookups.is_empty() {
            return Next::Answer(lookups);
        }
        let due = found.ledger.next_due();
        if due.is_some() || is_open {
            return Next::Wait(due);
        }
        found.is_talked_to = false;
        state.forget_if_idle(peer);
        Next::Done
    }

    /// Takes note of what became of lookups.
    pub(super) fn settle(&self, peer: &NodeId, outcomes: impl IntoIterator<Item = (Lookup, Outcome)>, bytes: u64) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let mut sent = 0;
        if let Some(found) = state.peers.get_mut(peer) {
            for (lookup, outcome) in outcomes {
                sent += u64::from(outcome == Outcome::Sent);
                found.ledger.settle(now, &lookup, outcome);
            }
            found.ledger.spend(now, bytes);
        }
        state.report.blocks_sent += sent;
        state.report.bytes_sent += bytes;
    }

    /// Ends everything with a peer: it is not reached. `is_talker` says whether that ends talking to it.
    pub(super) fn gone(&self, peer: &NodeId, is_talker: bool) {
        {
            let mut state = lock(&self.state);
            let Some(found) = state.peers.get_mut(peer) else { return };
            found.is_talked_to &= !is_talker;
            found.ledger.clear();
            let over = found.asking.fail();
            found.news.notify_one();
            state.end(peer, over);
            state.forget_if_idle(peer);
        }
        self.wake.notify_one();
    }

    /// Returns all peers.
    pub(super) fn peers(&self) -> Vec<NodeId> {
        lock(&self.state).peers.keys().cloned().collect()
    }

    /// Ends wants that have waited too long.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let late = state.peers.iter_mut().filter(|(_, peer)| peer.asking.is_asked());
        let late: Vec<_> = late.map(|(id, peer)| (id.clone(), peer.asking.expire(now))).collect();
        for (peer, over) in late.into_iter().filter(|(_, over)| !over.is_empty()) {
            tracing::debug!(peer.id = %peer, blocks = over.len(), "a peer did not answer in time");
            state.end(&peer, over);
            state.rouse(&peer);
        }
    }

    /// Takes the peers to whom somebody has to begin to talk, with what tells of news for them.
    pub(super) fn take_silent(&self) -> Vec<(NodeId, Arc<Notify>)> {
        let mut state = lock(&self.state);
        let silent = std::mem::take(&mut state.silent);
        let news = |peer: NodeId| state.peers.get(&peer).map(|found| (peer, Arc::clone(&found.news)));
        silent.into_iter().filter_map(news).collect()
    }

    pub(super) fn has_absent(&self) -> bool {
        !lock(&self.state).absent.is_empty()
    }

    pub(super) fn next_absent(&self) -> Option<(NodeId, Cid)> {
        lock(&self.state).absent.pop_front()
    }

    /// Takes note of a stream of a peer that is to be read. Returns the peer's share of [`Exchange::receiving`], which is to be had
    /// before that; none where there is no room for the stream.
    pub(super) fn stream_opened(&self, peer: &NodeId) -> Option<Arc<Semaphore>> {
        let mut state = lock(&self.state);
        let max = self.config.streams_per_peer;
        let found = state.peer(peer, &self.config).filter(|found| found.streams < max);
        let share = found.map(|found| {
            found.streams += 1;
            Arc::clone(&found.receiving)
        });
        state.report.streams_refused += u64::from(share.is_none());
        share
    }

    pub(super) fn stream_closed(&self, peer: &NodeId) {
        let mut state = lock(&self.state);
        if let Some(found) = state.peers.get_mut(peer) {
            found.streams -= 1;
        }
        state.forget_if_idle(peer);
    }

    /// Takes nothing any more.
    pub(super) fn end(&self) {
        let mut state = lock(&self.state);
        let report = state.report;
        *state = State { report, has_ended: true, ..State::default() };
    }
}

impl State {
    /// Finds a peer, or makes room for it; none where there are too many.
    fn peer(&mut self, peer: &NodeId, config: &BitswapConfig) -> Option<&mut Peer> {
        if !self.peers.contains_key(peer) {
            if self.has_ended || self.peers.len() >= config.peers {
                return None;
            }
            self.peers.insert(peer.clone(), Peer::new(config));
        }
        self.peers.get_mut(peer)
    }

    /// Tells whoever talks to the peer that there may be news; where nobody does, somebody is to begin.
    fn rouse(&mut self, peer: &NodeId) {
        let Some(found) = self.peers.get_mut(peer) else { return };
        if found.is_talked_to {
            found.news.notify_one();
        } else if found.asking.has_news() || !found.ledger.is_empty() {
            found.is_talked_to = true;
            self.silent.push(peer.clone());
        } else {
            self.forget_if_idle(peer);
        }
    }

    /// Notes that wants ended without their blocks.
    fn end(&mut self, peer: &NodeId, cids: Vec<Cid>) {
        self.report.absent += cids.len() as u64;
        let room = ABSENT_MAX.saturating_sub(self.absent.len());
        self.absent.extend(cids.into_iter().take(room).map(|cid| (peer.clone(), cid)));
    }

    fn forget_if_idle(&mut self, peer: &NodeId) {
        if self.peers.get(peer).is_some_and(|found| !found.is_talked_to && found.streams == 0 && found.is_idle()) {
            self.peers.remove(peer);
        }
    }
}

impl Peer {
    fn new(config: &BitswapConfig) -> Self {
        Self {
            asking: Asking::new(config.into()),
            ledger: Ledger::new(config.into(), Instant::now()),
            is_talked_to: false,
            news: Arc::new(Notify::new()),
            streams: 0,
            receiving: Arc::new(Semaphore::new(kibibytes(config.receive_bytes_per_peer()))),
        }
    }

    fn is_idle(&self) -> bool {
        self.asking.is_empty() && self.ledger.is_empty()
    }
}

/// Counts memory in steps that semaphores can count.
pub(super) fn kibibytes(bytes: usize) -> usize {
    bytes.div_ceil(1024).max(1)
}
