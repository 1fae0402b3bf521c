//! Catching up with one peer after the other, so that nothing comes twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bombus_core::identity::NodeId;
use serde::Serialize;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};
use tokio::time::{Instant, timeout};

/// Whoever brings nothing for so long holds up nobody else any more.
const PATIENCE: Duration = Duration::from_secs(1);
/// Whoever brings less than so many bytes within that time brings nothing: one entry now and then would hold up all others for as long as a log is.
const FLOW_BYTES: u64 = 64 << 10;
/// How many peers are remembered that brought nothing the last time. Beyond, all are given a chance again.
const IDLE_MAX: usize = 1_024;

/// How far catching up with a peer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatchUp {
    /// The peer that has what is missing here.
    pub peer: NodeId,
    /// How many entries it said it would send.
    pub entries: u64,
    /// How many blocks have come and were checked: the entries, and the identities that they name.
    pub blocks_done: u64,
    /// Their bytes.
    pub bytes_done: u64,
}

/// Who catches up with whom in one database.
#[derive(Debug, Default)]
pub(in super::super) struct Turns {
    turn: Arc<Turn<()>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<NodeId, Running>,
    /// Who brought nothing new the last time: one that only begins, again and again, would hold up all others.
    idle: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Running {
    state: CatchUp,
    /// When it last had brought enough that was not here, or began; none for one of whom only the former counts, and that has brought nothing yet.
    brought: Option<Instant>,
    /// How many bytes it brought since.
    bytes: u64,
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn: until nobody has it, or until whoever has it brings nothing.
    pub(super) async fn take(&self) -> Option<OwnedMutexGuard<()>> {
        loop {
            if let Ok(turn) = timeout(PATIENCE, Arc::clone(&self.turn).lock_owned()).await {
                return Some(turn);
            }
            if !self.is_flowing() {
                return None;
            }
        }
    }

    /// Returns whether entries are coming in bulk: what is published meanwhile can wait for them.
    pub(in super::super) fn is_flowing(&self) -> bool {
        let brings = |running: &Running| running.brought.is_some_and(|brought| brought.elapsed() < PATIENCE);
        self.state().running.values().any(brings)
    }

    /// Takes note that a peer has begun to send.
    pub(super) fn begin(self: &Arc<Self>, peer: &NodeId, entries: u64) -> Progress {
        let catch_up = CatchUp { peer: peer.clone(), entries, blocks_done: 0, bytes_done: 0 };
        let mut state = self.state();
        if state.idle.len() >= IDLE_MAX {
            state.idle.clear();
        }
        // Until it brings something it is one that brought nothing.
        let brought = state.idle.insert(peer.clone()).then(Instant::now);
        state.running.insert(peer.clone(), Running { state: catch_up, brought, bytes: 0 });
        Progress { turns: Arc::clone(self), peer: peer.clone() }
    }

    /// Returns how far each is.
    pub(in super::super) fn report(&self) -> Vec<CatchUp> {
        self.state().running.values().map(|running| running.state.clone()).collect()
    }
}

/// One that catches up, as long as this lives.
pub(super) struct Progress {
    turns: Arc<Turns>,
    peer: NodeId,
}

impl Progress {
    /// Takes note of a piece that was checked, and of how many of its blocks are entries that were not here.
    pub(super) fn done(&self, blocks: usize, bytes: usize, new: usize) {
        let mut state = self.turns.state();
        if new > 0 {
            state.idle.remove(&self.peer);
        }
        if let Some(running) = state.running.get_mut(&self.peer) {
            // Those that were not here are taken to be as large as the others.
            running.bytes += (bytes * new.min(blocks)).checked_div(blocks).unwrap_or_default() as u64;
            if running.bytes >= FLOW_BYTES || (new > 0 && running.brought.is_none()) {
                (running.brought, running.bytes) = (Some(Instant::now()), 0);
            }
            running.state.blocks_done += blocks as u64;
            running.state.bytes_done += bytes as u64;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.turns.state().running.remove(&self.peer);
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;
    use futures::FutureExt;
    use tokio::time::advance;

    use super::*;

    fn peer(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_one_waits_as_long_as_entries_come() {
        let turns = Arc::new(Turns::default());
        let first = turns.take().await.expect("nobody has it");
        let progress = turns.begin(&peer(1), 10);
        let mut second = Box::pin(turns.take());
        for _ in 0..20 {
            progress.done(100, 100_000, 100);
            assert!(second.as_mut().now_or_never().is_none());
            advance(PATIENCE / 2).await;
        }
        assert_eq!((turns.report()[0].blocks_done, turns.report()[0].bytes_done), (2_000, 2_000_000));
        drop((progress, first));
        assert!(second.await.is_some());
        assert!(turns.report().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_brings_nothing_holds_up_nobody() {
        let turns = Arc::new(Turns::default());
        let _first = turns.take().await;
        let _progress = turns.begin(&peer(1), 10);
        let begun = Instant::now();
        assert!(turns.take().await.is_none());
        assert!(begun.elapsed() < PATIENCE * 3 && !turns.is_flowing());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_brings_little_now_and_then_holds_up_nobody() {
        let turns = Arc::new(Turns::default());
        let _first = turns.take().await;
        let progress = turns.begin(&peer(1), u64::MAX);
        let mut second = Box::pin(turns.take());
        let mut waited = 0;
        // One new entry among many that are known is little, too.
        let drip = |number: u32| if number.is_multiple_of(2) { (1, 500, 1) } else { (1_000, 500_000, 1) };
        let taken = loop {
            if let Some(taken) = second.as_mut().now_or_never() {
                break taken;
            }
            let (blocks, bytes, new) = drip(waited);
            progress.done(blocks, bytes, new);
            advance(PATIENCE / 2).await;
            waited += 1;
            assert!(waited < 10, "it waits for as long as the log is");
        };
        assert!(taken.is_none() && !turns.is_flowing());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_sends_what_is_known_or_begins_again_and_again_holds_up_nobody() {
        let turns = Arc::new(Turns::default());
        let progress = turns.begin(&peer(1), 10);
        assert!(turns.is_flowing(), "it may have something");
        advance(PATIENCE).await;
        progress.done(1, 100, 0);
        assert!(!turns.is_flowing());
        drop(progress);
        let progress = turns.begin(&peer(1), 10);
        assert!(!turns.is_flowing(), "it brought nothing before");
        progress.done(1, 100, 1);
        assert!(turns.is_flowing());
        drop(progress);
        let _progress = turns.begin(&peer(1), 10);
        assert!(turns.is_flowing(), "it brought something before");
    }
}
