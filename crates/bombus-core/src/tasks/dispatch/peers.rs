use std::collections::BTreeMap;
use std::time::Duration;

use crate::identity::NodeId;
use crate::liveness::PeerState;

/// So many nodes are known at most; of those that are gone the oldest are forgotten.
const NODES_MAX: usize = 4_096;

/// What the failure detector says about other nodes.
#[derive(Debug)]
pub(super) struct Peers {
    started: Duration,
    states: BTreeMap<NodeId, (PeerState, Duration)>,
}

impl Peers {
    pub(super) fn new(started: Duration) -> Self {
        Self { started, states: BTreeMap::new() }
    }

    /// Takes a verdict. Returns the state before.
    pub(super) fn set(&mut self, node: &NodeId, state: PeerState, now: Duration) -> Option<PeerState> {
        let before = self.states.get(node).copied();
        if before.is_none_or(|(before, _)| before != state) {
            self.states.insert(node.clone(), (state, now));
        }
        if self.states.len() > NODES_MAX {
            let gone = self.states.iter().filter(|(_, (state, _))| *state == PeerState::Gone);
            let oldest = gone.min_by_key(|(_, (_, since))| *since).map(|(node, _)| node.clone());
            oldest.and_then(|oldest| self.states.remove(&oldest));
        }
        before.map(|(before, _)| before)
    }

    /// Returns since when a node is gone; since the start where it was never seen. `None` while it is there.
    pub(super) fn gone_since(&self, node: &NodeId) -> Option<Duration> {
        match self.states.get(node) {
            None => Some(self.started),
            Some((PeerState::Gone, since)) => Some(*since),
            Some((PeerState::Alive | PeerState::Suspect, _)) => None,
        }
    }

    /// Returns whether the failure detector calls a node gone. One that was never seen is not.
    pub(super) fn is_gone(&self, node: &NodeId) -> bool {
        matches!(self.states.get(node), Some((PeerState::Gone, _)))
    }

    /// Notes that this node slept: whoever was gone then may be there now, so their absence counts from here on.
    pub(super) fn woke(&mut self, now: Duration) {
        self.started = now;
        for (state, since) in self.states.values_mut() {
            if *state == PeerState::Gone {
                *since = now;
            }
        }
    }
}
