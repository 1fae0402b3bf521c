//! With whom heads are to be exchanged, besides when sync asks for it.

use std::collections::BTreeSet;
use std::ops::Bound;

use bombus_core::identity::NodeId;

/// Exchanges of heads that are to make up for what was missed.
#[derive(Default)]
pub(super) struct Owed {
    peers: BTreeSet<NodeId>,
    /// Whether something of others than peers was missed, which any peer may have.
    of_others: bool,
    /// The peer that was asked for such last.
    asked: Option<NodeId>,
}

impl Owed {
    /// Takes note of all peers.
    pub(super) fn all(&mut self, peers: &BTreeSet<NodeId>) {
        self.peers.clone_from(peers);
    }

    /// Takes note that something was missed of a peer, or of somebody whom no connection leads to.
    pub(super) fn note(&mut self, source: Option<NodeId>) {
        match source {
            Some(peer) => {
                self.peers.insert(peer);
            }
            None => self.of_others = true,
        }
    }

    /// Returns with which peers heads are to be exchanged now. An exchange that runs may have begun before what was missed: the next one makes
    /// up for it.
    pub(super) fn due(&mut self, peers: &BTreeSet<NodeId>, is_meeting: impl Fn(&NodeId) -> bool) -> BTreeSet<NodeId> {
        if std::mem::take(&mut self.of_others) {
            // Another one each time: who has nothing of it keeps nobody from it.
            self.asked = after(self.asked.as_ref(), peers).cloned();
            self.peers.extend(self.asked.clone());
        }
        let noted = std::mem::take(&mut self.peers).into_iter();
        let (later, now): (BTreeSet<_>, BTreeSet<_>) = noted.partition(is_meeting);
        self.peers = later;
        &now & peers
    }
}

/// Returns the peer that follows another one, by turns.
fn after<'a>(last: Option<&NodeId>, peers: &'a BTreeSet<NodeId>) -> Option<&'a NodeId> {
    let next = last.and_then(|last| peers.range::<NodeId, _>((Bound::Excluded(last), Bound::Unbounded)).next());
    next.or_else(|| peers.first())
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    fn peer(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    #[test]
    fn who_sends_too_much_is_asked_and_nobody_else() {
        let peers: BTreeSet<NodeId> = (1..=3).map(peer).collect();
        let mut owed = Owed::default();
        for _ in 0..100 {
            owed.note(Some(peer(2)));
        }
        assert!(owed.due(&peers, |of| *of == peer(2)).is_empty(), "one with it runs");
        assert_eq!(owed.due(&peers, |_| false), BTreeSet::from([peer(2)]));
        assert!(owed.due(&peers, |_| false).is_empty());
        owed.note(Some(peer(9)));
        assert!(owed.due(&peers, |_| false).is_empty(), "it is gone");
    }

    #[test]
    fn for_what_comes_from_afar_one_peer_is_asked_at_a_time() {
        let peers: BTreeSet<NodeId> = (1..=3).map(peer).collect();
        let mut owed = Owed::default();
        let mut asked = Vec::new();
        for _ in 0..6 {
            (0..100).for_each(|_| owed.note(None));
            let due = owed.due(&peers, |_| false);
            assert_eq!(due.len(), 1);
            asked.extend(due);
        }
        assert!(asked[..3].iter().eq(&peers) && asked[3..].iter().eq(&peers), "each in its turn");
        owed.note(None);
        assert!(owed.due(&BTreeSet::new(), |_| false).is_empty());
        owed.all(&peers);
        assert_eq!(owed.due(&peers, |_| false), peers);
    }
}
