//! Node ids as the 32 bytes of their public key, which is how they stand in signed and sent data.

use bombus_core::identity::NodeId;
use ed25519_dalek::VerifyingKey;
use minicbor::bytes::ByteArray;

/// Returns the public key of a node.
pub(super) fn to_bytes(node: &NodeId) -> [u8; 32] {
    node.verifying_key().to_bytes()
}

/// Returns the node of a public key; none where the bytes are no point of the curve.
pub(super) fn from_bytes(bytes: &[u8; 32]) -> Option<NodeId> {
    VerifyingKey::from_bytes(bytes).ok().map(|key| NodeId::of(&key))
}

/// Returns nodes as they are sent, sorted by their bytes.
pub(super) fn to_sorted<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> Vec<ByteArray<32>> {
    let mut keys: Vec<_> = nodes.into_iter().map(|node| ByteArray::from(to_bytes(node))).collect();
    keys.sort_unstable();
    keys
}
