//! Between node ids, which everybody else uses, and the peer ids of libp2p.

use bombus_core::identity::NodeId;
use libp2p::PeerId;

/// Returns the node id of a peer; `None` where its key is not an Ed25519 one.
pub(crate) fn node_id(peer: &PeerId) -> Option<NodeId> {
    NodeId::parse(&peer.to_base58()).ok()
}

/// Returns the peer id of a node; `None` where the text is none.
pub(crate) fn peer_id(node: &NodeId) -> Option<PeerId> {
    node.as_str().parse().ok()
}
