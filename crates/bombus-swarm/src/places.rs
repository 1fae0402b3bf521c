//! Places that there are few of, for peers.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bombus_core::identity::NodeId;
use tokio::sync::Notify;

/// Places that peers take, up to a number of all and of each.
pub(crate) struct Places {
    max: usize,
    per_peer_max: usize,
    taken: Mutex<HashMap<NodeId, usize>>,
    /// Told when nobody has a place any more.
    freed: Notify,
}

/// A peer's place, as long as this lives.
pub(crate) struct Place {
    places: Arc<Places>,
    peer: NodeId,
}

impl Places {
    pub(crate) fn new(max: usize, per_peer_max: usize) -> Arc<Self> {
        Arc::new(Self { max, per_peer_max, taken: Mutex::default(), freed: Notify::new() })
    }

    /// Takes a place for a peer, where there is one left of all and of this peer's.
    pub(crate) fn take(self: &Arc<Self>, peer: &NodeId) -> Option<Place> {
        let mut taken = self.taken();
        let of_peer = taken.get(peer).copied().unwrap_or(0);
        if taken.values().sum::<usize>() >= self.max || of_peer >= self.per_peer_max {
            return None;
        }
        taken.insert(peer.clone(), of_peer + 1);
        Some(Place { places: Arc::clone(self), peer: peer.clone() })
    }

    /// Waits until nobody has a place.
    pub(crate) async fn none_taken(&self) {
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if self.taken().is_empty() {
                return;
            }
            freed.await;
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<NodeId, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
        if taken.is_empty() {
            self.places.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    #[test]
    fn neither_one_peer_nor_all_together_take_more_than_there_is() {
        let peer = |number| NodeKey::from_secret(&[number; 32]).node_id();
        let places = Places::new(3, 2);
        let first = places.take(&peer(1)).unwrap();
        let _second = places.take(&peer(1)).unwrap();
        assert!(places.take(&peer(1)).is_none());
        let _third = places.take(&peer(2)).unwrap();
        assert!(places.take(&peer(3)).is_none());
        drop(first);
        assert!(places.take(&peer(3)).is_some());
    }
}
