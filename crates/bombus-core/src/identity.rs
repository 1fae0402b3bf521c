//! Who a node is.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// A node's id: the libp2p peer id of its Ed25519 key, as base58btc text (`12D3Koo...`).
///
/// Source: the libp2p peer id specification. An Ed25519 public key in libp2p's protobuf form is 36 bytes, short enough for the
/// `identity` multihash, so the id carries the key itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

/// Multihash header (`identity`, 36 bytes) and protobuf header (field 1: key type Ed25519; field 2: 32 bytes).
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The longest text worth decoding: 38 bytes are 52 characters, and decoding takes time that grows with the square of the length.
const TEXT_LENGTH_MAX: usize = 64;

/// How many ids each thread remembers to have seen; it forgets all when it has more.
const KNOWN_MAX: usize = 256;

thread_local! {
    /// The same few ids stand in everything that nodes tell each other. To see that one is a point of the curve takes a hundred times as long as
    /// to see that it was one before.
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// Ids by their texts, and by their keys.
#[derive(Default)]
struct Known {
    keys: HashMap<Box<str>, [u8; 32]>,
    ids: HashMap<[u8; 32], NodeId>,
}

impl Known {
    fn add(&mut self, key: [u8; 32], id: &NodeId) {
        if self.ids.len() >= KNOWN_MAX {
            *self = Self::default();
        }
        self.keys.insert(id.as_str().into(), key);
        self.ids.insert(key, id.clone());
    }
}

impl NodeId {
    /// Derives the id of a public key.
    #[must_use]
    pub fn of(key: &VerifyingKey) -> Self {
        Self::encode(key.as_bytes())
    }

    /// Reads an id from its text.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with a text that is not the peer id of an Ed25519 key.
    pub fn parse(text: &str) -> Result<Self, ParseNodeIdError> {
        if text.len() > TEXT_LENGTH_MAX {
            return Err(ParseNodeIdError::Length);
        }
        if KNOWN.with_borrow(|known| known.keys.contains_key(text)) {
            return Ok(Self(text.to_owned()));
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| ParseNodeIdError::Base58)?;
        let key = bytes.strip_prefix(&PEER_ID_PREFIX).ok_or(ParseNodeIdError::NotEd25519)?;
        Self::from_public_key(key.try_into().map_err(|_| ParseNodeIdError::Length)?)
    }

    /// Makes the id of a public key of 32 bytes.
    ///
    /// # Errors
    ///
    /// Returns an error where the bytes are no Ed25519 public key.
    pub fn from_public_key(bytes: &[u8; 32]) -> Result<Self, ParseNodeIdError> {
        if let Some(known) = KNOWN.with_borrow(|known| known.ids.get(bytes).cloned()) {
            return Ok(known);
        }
        VerifyingKey::from_bytes(bytes).map_err(|_| ParseNodeIdError::NoKey)?;
        let id = Self::encode(bytes);
        KNOWN.with_borrow_mut(|known| known.add(*bytes, &id));
        Ok(id)
    }

    fn encode(key: &[u8; 32]) -> Self {
        let mut bytes = PEER_ID_PREFIX.to_vec();
        bytes.extend_from_slice(key);
        Self(bs58::encode(bytes).into_string())
    }

    /// Returns the base58btc text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the public key that the id carries, as 32 bytes.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        if let Some(known) = KNOWN.with_borrow(|known| known.keys.get(self.0.as_str()).copied()) {
            return known;
        }
        let bytes = bs58::decode(&self.0).into_vec().expect("an id is base58 text");
        bytes[PEER_ID_PREFIX.len()..].try_into().expect("an id carries 32 bytes")
    }

    /// Returns the key that the node's signatures are checked with.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey::from_bytes(&self.public_key()).expect("an id carries a public key")
    }

    /// Returns whether this node signed a message. Signatures that a small-order key could forge are refused.
    #[must_use]
    pub fn signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.verifying_key().verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

/// Why a text is no [`NodeId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseNodeIdError {
    /// It has characters that base58btc lacks.
    #[error("a node id is base58 text such as 12D3KooW...")]
    Base58,
    /// It is the peer id of something other than an Ed25519 key.
    #[error("this is not the peer id of an Ed25519 key (those begin with 12D3KooW)")]
    NotEd25519,
    /// It is too long or too short.
    #[error("a node id has 52 characters")]
    Length,
    /// The bytes in it are no point of the curve.
    #[error("this node id carries no valid public key")]
    NoKey,
}

impl TryFrom<String> for NodeId {
    type Error = ParseNodeIdError;

    fn try_from(text: String) -> Result<Self, ParseNodeIdError> {
        Self::parse(&text)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.0
    }
}

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<Self, ParseNodeIdError> {
        Self::parse(text)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one run of a node's process: random, drawn anew at every start. Two of them alive under one [`NodeId`] mean that two
/// machines have the same key.
///
/// Its text is 16 hexadecimal digits, since JSON's numbers do not hold 64 bits everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId(u64);

impl BootId {
    /// Takes 64 random bits.
    #[must_use]
    pub fn new(random: u64) -> Self {
        Self(random)
    }

    /// Returns the 64 bits.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<BootId> for String {
    fn from(boot: BootId) -> Self {
        boot.to_string()
    }
}

impl TryFrom<String> for BootId {
    type Error = ParseBootIdError;

    fn try_from(text: String) -> Result<Self, ParseBootIdError> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digits {
            return Err(ParseBootIdError);
        }
        u64::from_str_radix(&text, 16).map(Self).map_err(|_| ParseBootIdError)
    }
}

/// Says that a text is no [`BootId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a run of a node is 16 hexadecimal digits")]
pub struct ParseBootIdError;

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

    /// Signs a message (Ed25519, RFC 8032).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
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

    #[test]
    fn an_id_is_read_back_from_its_text_and_carries_the_key() {
        let key = NodeKey::from_secret(&[7; 32]);
        let id = NodeId::parse(key.node_id().as_str()).unwrap();
        assert_eq!(id, key.node_id());
        assert_eq!(id.verifying_key(), key.0.verifying_key());
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<NodeId>(&json).unwrap(), id);
    }

    #[test]
    fn what_was_read_before_is_the_same_and_what_was_refused_stays_so() {
        let ids: Vec<NodeId> = (0..=u8::MAX).map(|number| NodeKey::from_secret(&[number; 32]).node_id()).collect();
        let no_key = NodeId::encode(&no_point()).0;
        for _ in 0..3 {
            assert!(ids.iter().all(|id| NodeId::parse(id.as_str()).as_ref() == Ok(id)));
            assert!(ids.iter().all(|id| NodeId::from_public_key(&id.public_key()).as_ref() == Ok(id)));
            assert_eq!(NodeId::from_public_key(&no_point()), Err(ParseNodeIdError::NoKey));
            assert_eq!(NodeId::parse(&no_key), Err(ParseNodeIdError::NoKey));
            assert_eq!(NodeId::parse(&format!("1{}", ids[0])), Err(ParseNodeIdError::NotEd25519));
        }
        let more = NodeKey::from_secret(&[1; 32]).node_id().to_string().replace('D', "d");
        assert!(NodeId::parse(&more).is_err());
        assert!(KNOWN.with_borrow(|known| known.ids.len().max(known.keys.len())) <= KNOWN_MAX);
    }

    #[test]
    fn what_is_no_id_is_refused_with_the_reason() {
        let text = NodeKey::from_secret(&[7; 32]).node_id().to_string();
        let cases = [
            (String::new(), ParseNodeIdError::NotEd25519),
            ("pi-node-1".to_owned(), ParseNodeIdError::Base58),
            ("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG".to_owned(), ParseNodeIdError::NotEd25519),
            (text[..51].to_owned(), ParseNodeIdError::NotEd25519),
            (text.repeat(1_000), ParseNodeIdError::Length),
            (NodeId::encode(&no_point()).0, ParseNodeIdError::NoKey),
        ];
        for (text, error) in cases {
            assert_eq!(NodeId::parse(&text), Err(error), "{text}");
            assert!(serde_json::from_value::<NodeId>(text.into()).is_err());
        }
    }

    #[test]
    fn a_signature_is_good_for_its_message_and_signer_alone() {
        let key = NodeKey::from_secret(&[7; 32]);
        let signature = key.sign(b"leave");
        assert!(key.node_id().signed(b"leave", &signature));
        assert!(!key.node_id().signed(b"stay", &signature));
        assert!(!NodeKey::from_secret(&[8; 32]).node_id().signed(b"leave", &signature));
    }

    #[test]
    fn a_boot_id_keeps_all_its_bits_in_json() {
        let boot = BootId::new(u64::MAX - 1);
        let json = serde_json::to_string(&boot).unwrap();
        assert_eq!(json, "\"fffffffffffffffe\"");
        assert_eq!(serde_json::from_str::<BootId>(&json).unwrap(), boot);
        assert!(serde_json::from_str::<BootId>("\"+ffffffffffffffe\"").is_err());
    }

    /// Returns 32 bytes that are no point of the curve: about half of all are none.
    fn no_point() -> [u8; 32] {
        (0..=u8::MAX).map(|byte| [byte; 32]).find(|bytes| VerifyingKey::from_bytes(bytes).is_err()).unwrap()
    }

    fn hex(text: &str) -> [u8; 32] {
        std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
    }
}
