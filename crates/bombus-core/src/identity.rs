//! Who a node is.

use std::fmt;

use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// A node's id: the libp2p peer id of its Ed25519 key, as base58btc text (`12D3Koo...`).
///
/// Source: the libp2p peer id specification. An Ed25519 public key in libp2p's protobuf form is 36 bytes, short enough for the
/// `identity` multihash, so the id carries the key itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(String);

/// Multihash header (`identity`, 36 bytes) and protobuf header (field 1: key type Ed25519; field 2: 32 bytes).
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl NodeId {
    /// Derives the id of a public key.
    #[must_use]
    pub fn of(key: &VerifyingKey) -> Self {
        let mut bytes = PEER_ID_PREFIX.to_vec();
        bytes.extend_from_slice(key.as_bytes());
        Self(bs58::encode(bytes).into_string())
    }

    /// Returns the base58btc text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node's key pair, from which its [`NodeId`] follows.
pub struct NodeKey(SigningKey);

impl NodeKey {
    /// Takes 32 secret bytes, fresh from a cryptographic random source or read back from disk.
    #[must_use]
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// Returns the 32 secret bytes, for storage.
    #[must_use]
    pub fn secret(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Derives the node's id.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        NodeId::of(&self.0.verifying_key())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeKey").field(&self.node_id()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pair stands in the peer id specification of libp2p as the Ed25519 test vector.
    #[test]
    fn the_id_is_the_libp2p_peer_id_of_the_key() {
        let public = hex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e");
        let secret = hex("7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d");
        let key = NodeKey::from_secret(&secret);
        assert_eq!(key.0.verifying_key().as_bytes(), &public);
        let decoded = bs58::decode(key.node_id().as_str()).into_vec().unwrap();
        assert_eq!(decoded[..6], PEER_ID_PREFIX);
        assert_eq!(decoded[6..], public);
        assert!(key.node_id().as_str().starts_with("12D3KooW"));
    }

    #[test]
    fn debug_output_does_not_show_the_secret() {
        let key = NodeKey::from_secret(&[7; 32]);
        assert_eq!(format!("{key:?}"), format!("NodeKey({:?})", key.node_id()));
    }

    fn hex(text: &str) -> [u8; 32] {
        std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
    }
}
