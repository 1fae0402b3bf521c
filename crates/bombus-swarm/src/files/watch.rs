//! Whose it is to look after a batch (pure): the node that made it, and when that is gone, the others one after the other. What two do at once
//! does no harm, so that nobody has to agree with anybody.

use std::collections::HashMap;
use std::time::Duration;

use bombus_core::identity::NodeId;
use orbitdb::cid::Hash;

/// Who is there.
#[derive(Debug, Clone, Default)]
pub(super) struct Present {
    /// Nodes that live, or may.
    pub(super) alive: Vec<NodeId>,
}

/// Since when nodes are gone that have batches.
#[derive(Debug)]
pub(super) struct Watch {
    me: NodeId,
    grace: Duration,
    step: Duration,
    gone: HashMap<String, Duration>,
}

impl Watch {
    pub(super) fn new(me: NodeId, grace: Duration, step: Duration) -> Self {
        Self { me, grace, step, gone: HashMap::new() }
    }

    /// Returns whether this node is to look after a batch now.
    pub(super) fn is_ours(&mut self, now: Duration, batch: &str, maker: &str, present: &Present) -> bool {
        if maker == self.me.as_str() {
            return true;
        }
        if present.alive.iter().any(|node| node.as_str() == maker) {
            self.gone.remove(maker);
            return false;
        }
        let since = *self.gone.entry(maker.to_owned()).or_insert(now);
        let rank = rank(batch, &self.me, &present.alive);
        now.saturating_sub(since) >= self.grace + self.step.saturating_mul(rank)
    }
}

/// Returns the place of a node among those that are there; each batch has an order of its own.
fn rank(batch: &str, me: &NodeId, others: &[NodeId]) -> u32 {
    let place = |node: &NodeId| *Hash::of(format!("{batch} {node}").as_bytes()).digest();
    let mine = place(me);
    let before = others.iter().filter(|node| *node != me && place(node) < mine).count();
    u32::try_from(before).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    const GRACE: Duration = Duration::from_secs(3);
    const STEP: Duration = Duration::from_secs(1);

    fn node(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    #[test]
    fn the_maker_looks_after_its_batch_and_others_do_once_it_is_gone_for_long() {
        let (me, maker) = (node(1), node(2));
        let mut watch = Watch::new(me.clone(), GRACE, STEP);
        assert!(watch.is_ours(Duration::ZERO, "b", me.as_str(), &Present::default()));
        let there = Present { alive: vec![maker.clone()] };
        let mut at =
            |seconds, present: &Present| watch.is_ours(Duration::from_secs(seconds), "b", maker.as_str(), present);
        assert!(!at(0, &there) && !at(100, &there));
        assert!(!at(101, &Present::default()) && !at(103, &Present::default()));
        assert!(at(104, &Present::default()));
        assert!(!at(105, &there), "it is back");
        assert!(!at(106, &Present::default()), "and has the whole time again");
    }

    #[test]
    fn of_several_one_begins() {
        let nodes: Vec<NodeId> = (1..=4).map(node).collect();
        let mut ranks: Vec<u32> = nodes.iter().map(|me| rank("b", me, &nodes)).collect();
        ranks.sort_unstable();
        assert_eq!(ranks, [0, 1, 2, 3]);
    }
}
