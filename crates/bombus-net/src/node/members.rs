//! Who belongs to the swarm, and where its members were last.

use std::collections::BTreeMap;
use std::time::Instant;

use bombus_core::identity::NodeId;
use libp2p::PeerId;

use super::Node;
use crate::dialer::Input;
use crate::membership::MembershipState;
use crate::{address, id};

impl Node {
    /// Takes a new membership; says whether it needs another transport.
    pub(super) fn on_membership(&mut self, state: MembershipState) -> bool {
        if self.state.needs_new_transport(&state) {
            return true;
        }
        self.state = state;
        self.block_removed();
        self.recall();
        false
    }

    /// Blocks the peers that were taken out of the swarm, and nobody else.
    pub(super) fn block_removed(&mut self) {
        let removed: BTreeMap<PeerId, NodeId> =
            self.state.removed.iter().filter_map(|node| Some((id::peer_id(node)?, node.clone()))).collect();
        let blocked = self.swarm.behaviour().removed.blocked_peers().clone();
        for peer in blocked.iter().filter(|peer| !removed.contains_key(peer)) {
            self.swarm.behaviour_mut().removed.unblock_peer(*peer);
        }
        for (peer, node) in removed.into_iter().filter(|(peer, _)| !blocked.contains(peer)) {
            self.swarm.behaviour_mut().removed.block_peer(peer);
            if !self.memory.dialer.is_connected(&node) {
                self.feed(Input::Forget { peer: node });
            }
        }
    }

    /// Tells the dialer the addresses that are known from tickets and earlier runs.
    pub(super) fn recall(&mut self) {
        for known in self.shared.membership.known_addresses() {
            let Ok(target) = address::parse_target(&known.addr) else {
                continue;
            };
            match known.peer.or_else(|| target.peer.as_ref().and_then(id::node_id)) {
                Some(peer) => self.learn(peer.clone(), target.addr, crate::AddressSource::Ticket, Some(peer)),
                None => self.memory.dialer.add_seed(Instant::now(), target.addr),
            }
        }
    }
}
