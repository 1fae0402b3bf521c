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
    /// When it brought something that was not here, or began; none for one of whom only the former counts, and that has not yet done so.
    brought: Option<Instant>,
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
        state.running.insert(peer.clone(), Running { state: catch_up, brought });
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
    /// Takes note of a piece that was checked, and of whether something in it was not here.
    pub(super) fn done(&self, blocks: usize, bytes: usize, is_new: bool) {
        let mut state = self.turns.state();
        if is_new {
            state.idle.remove(&self.peer);
        }
        if let Some(running) = state.running.get_mut(&self.peer) {
            if is_new {
                running.brought = Some(Instant::now());
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
            progress.done(1, 100, true);
            assert!(second.as_mut().now_or_never().is_none());
            advance(PATIENCE / 2).await;
        }
        assert_eq!((turns.report()[0].blocks_done, turns.report()[0].bytes_done), (20, 2_000));
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
    async fn a_peer_that_sends_what_is_known_or_begins_again_and_again_holds_up_nobody() {
        let turns = Arc::new(Turns::default());
        let progress = turns.begin(&peer(1), 10);
        assert!(turns.is_flowing(), "it may have something");
        advance(PATIENCE).await;
        progress.done(1, 100, false);
        assert!(!turns.is_flowing());
        drop(progress);
        let progress = turns.begin(&peer(1), 10);
        assert!(!turns.is_flowing(), "it brought nothing before");
        progress.done(1, 100, true);
        assert!(turns.is_flowing());
        drop(progress);
        let _progress = turns.begin(&peer(1), 10);
        assert!(turns.is_flowing(), "it brought something before");
    }
}
