//! Places for requests of peers, and a queue for them that is fair to each peer.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bombus_core::identity::NodeId;
use tokio::sync::oneshot;

use super::state::Standing;

/// The slots; clones are the same.
#[derive(Clone)]
pub(super) struct Slots(Arc<Inner>);

struct Inner {
    slots: u32,
    queue: u32,
    standing: Arc<Standing>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: u32,
    /// What each peer has here; peers that have nothing are not in it.
    peers: HashMap<NodeId, Counts>,
    /// In the order of their coming.
    waiting: VecDeque<Waiter>,
    next: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    running: u32,
    waiting: u32,
}

struct Waiter {
    number: u64,
    peer: NodeId,
    seat: oneshot::Sender<Seat>,
}

/// What becomes of a request.
pub(super) enum Admission {
    /// It may begin.
    Seat(Seat),
    /// It waits.
    Queued(Queued),
    /// Too many wait.
    Full,
}

/// The right to run one request; dropping it gives it to the next that waits.
pub(super) struct Seat {
    slots: Slots,
    peer: NodeId,
}

/// A place in the queue; dropping it leaves the queue.
pub(super) struct Queued {
    slots: Slots,
    number: u64,
    seat: oneshot::Receiver<Seat>,
}

impl Queued {
    /// Waits for a seat; nothing where the place went to a peer that had none. Safe to cancel.
    pub(super) async fn seat(&mut self) -> Option<Seat> {
        (&mut self.seat).await.ok()
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        let at = state.waiting.iter().position(|waiter| waiter.number == self.number);
        // Outside of the lock: a seat that was given meanwhile goes back.
        let gone = at.and_then(|at| state.remove(at));
        self.slots.tell(state);
        drop(gone);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.slots.free(&self.peer);
    }
}

impl Slots {
    pub(super) fn new(slots: u32, queue: u32, standing: Arc<Standing>) -> Self {
        Self(Arc::new(Inner { slots, queue, standing, state: Mutex::default() }))
    }

    /// Returns how many requests this peer has here, running or waiting.
    pub(super) fn of(&self, peer: &NodeId) -> u32 {
        self.state().peers.get(peer).map_or(0, |counts| counts.running + counts.waiting)
    }

    /// Says whether a request of this peer would be turned away now.
    pub(super) fn is_full(&self, peer: &NodeId) -> bool {
        let state = self.state();
        state.running >= self.0.slots
            && state.waiting.len() >= self.0.queue as usize
            && state.displaceable(peer).is_none()
    }

    /// Gives a request a seat, or a place in the queue. Where the queue is full, a peer with fewer in it takes the place of the youngest of
    /// the peer with most.
    pub(super) fn admit(&self, peer: &NodeId) -> Admission {
        let mut state = self.state();
        if state.running < self.0.slots {
            state.running += 1;
            state.peers.entry(peer.clone()).or_default().running += 1;
            self.tell(state);
            return Admission::Seat(Seat { slots: self.clone(), peer: peer.clone() });
        }
        let mut displaced = None;
        if state.waiting.len() >= self.0.queue as usize {
            let Some(at) = state.displaceable(peer) else { return Admission::Full };
            displaced = state.remove(at);
        }
        let number = state.next;
        state.next += 1;
        let (sender, seat) = oneshot::channel();
        state.waiting.push_back(Waiter { number, peer: peer.clone(), seat: sender });
        state.peers.entry(peer.clone()).or_default().waiting += 1;
        self.tell(state);
        drop(displaced);
        Admission::Queued(Queued { slots: self.clone(), number, seat })
    }

    /// Takes a seat back and gives it to the next.
    fn free(&self, peer: &NodeId) {
        let mut state = self.state();
        state.running -= 1;
        state.end(peer, |counts| &mut counts.running);
        let next = state.next_waiting().and_then(|at| state.remove(at));
        if let Some(waiter) = &next {
            state.running += 1;
            state.peers.entry(waiter.peer.clone()).or_default().running += 1;
        }
        self.tell(state);
        if let Some(waiter) = next {
            let seat = Seat { slots: self.clone(), peer: waiter.peer };
            // One that has just left gives it back by dropping it.
            drop(waiter.seat.send(seat));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how many there are, in the order of the changes, and unlocks.
    #[expect(clippy::needless_pass_by_value, reason = "the lock ends here")]
    fn tell(&self, state: MutexGuard<'_, State>) {
        let waiting = u32::try_from(state.waiting.len()).unwrap_or(u32::MAX);
        self.0.standing.set_load(state.running, waiting);
    }
}

impl State {
    /// Chooses who is next: of the peers that run least the one that has waited for longest.
    fn next_waiting(&self) -> Option<usize> {
        let running = |peer: &NodeId| self.peers.get(peer).map_or(0, |counts| counts.running);
        (0..self.waiting.len()).min_by_key(|at| (running(&self.waiting[*at].peer), self.waiting[*at].number))
    }

    /// Chooses who leaves a full queue for a request of this peer: the youngest of the peer with most in it, where that has two more.
    fn displaceable(&self, peer: &NodeId) -> Option<usize> {
        let waiting = |peer: &NodeId| self.peers.get(peer).map_or(0, |counts| counts.waiting);
        let (at, most) = (0..self.waiting.len())
            .map(|at| (at, waiting(&self.waiting[at].peer)))
            .max_by_key(|(at, most)| (*most, *at))?;
        (most >= waiting(peer) + 2).then_some(at)
    }

    fn remove(&mut self, at: usize) -> Option<Waiter> {
        let waiter = self.waiting.remove(at)?;
        self.end(&waiter.peer.clone(), |counts| &mut counts.waiting);
        Some(waiter)
    }

    fn end(&mut self, peer: &NodeId, which: impl FnOnce(&mut Counts) -> &mut u32) {
        if let Some(counts) = self.peers.get_mut(peer) {
            *which(counts) -= 1;
            if counts.running == 0 && counts.waiting == 0 {
                self.peers.remove(peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;
    use futures::FutureExt;

    use super::*;

    fn peer(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    fn slots(count: u32, queue: u32) -> (Slots, Arc<Standing>) {
        let standing = Arc::new(Standing::default());
        (Slots::new(count, queue, Arc::clone(&standing)), standing)
    }

    fn seat(admission: Admission) -> Seat {
        match admission {
            Admission::Seat(seat) => seat,
            _ => panic!("no seat"),
        }
    }

    fn queued(admission: Admission) -> Queued {
        match admission {
            Admission::Queued(queued) => queued,
            _ => panic!("not queued"),
        }
    }

    fn load(standing: &Standing) -> (u32, u32) {
        let state = standing.now();
        (state.running, state.waiting)
    }

    #[test]
    fn what_is_beyond_the_queue_is_turned_away_and_a_seat_goes_to_the_next() {
        let (slots, standing) = slots(1, 1);
        let first = seat(slots.admit(&peer(1)));
        let mut second = queued(slots.admit(&peer(1)));
        assert!(slots.is_full(&peer(1)) && matches!(slots.admit(&peer(1)), Admission::Full));
        assert_eq!((load(&standing), slots.of(&peer(1)), slots.of(&peer(2))), ((1, 1), 2, 0));
        assert!(second.seat().now_or_never().is_none());
        drop(first);
        let second = second.seat().now_or_never().unwrap().unwrap();
        assert_eq!(load(&standing), (1, 0));
        drop(second);
        assert_eq!((load(&standing), slots.of(&peer(1))), ((0, 0), 0));
    }

    #[test]
    fn peers_take_turns_whoever_came_first() {
        let (slots, _) = slots(2, 8);
        let (one, two) = (seat(slots.admit(&peer(1))), seat(slots.admit(&peer(1))));
        let mut loud: Vec<_> = (0..3).map(|_| queued(slots.admit(&peer(1)))).collect();
        let mut quiet = queued(slots.admit(&peer(2)));
        drop(one);
        assert!(loud[0].seat().now_or_never().is_none(), "it runs one already");
        let quiet = quiet.seat().now_or_never().unwrap().unwrap();
        drop(two);
        assert!(loud[0].seat().now_or_never().is_some());
        drop(quiet);
    }

    #[test]
    fn one_peer_cannot_keep_others_out_of_the_queue() {
        let (slots, standing) = slots(1, 3);
        let _running = seat(slots.admit(&peer(1)));
        let mut loud: Vec<_> = (0..3).map(|_| queued(slots.admit(&peer(1)))).collect();
        assert!(slots.is_full(&peer(1)) && !slots.is_full(&peer(2)));
        let _quiet = queued(slots.admit(&peer(2)));
        assert!(loud[2].seat().now_or_never().unwrap().is_none(), "its youngest gave way");
        assert_eq!(load(&standing), (1, 3));
        assert!(matches!(slots.admit(&peer(2)), Admission::Full), "and not more than that");
    }

    #[test]
    fn who_leaves_the_queue_gets_nothing_and_loses_nothing() {
        let (slots, standing) = slots(1, 4);
        let running = seat(slots.admit(&peer(1)));
        let left = queued(slots.admit(&peer(2)));
        let given = queued(slots.admit(&peer(3)));
        drop(left);
        assert_eq!(load(&standing), (1, 1));
        drop(running);
        assert_eq!(load(&standing), (1, 0));
        drop(given);
        assert_eq!(load(&standing), (0, 0), "a seat that nobody took is free again");
    }
}
