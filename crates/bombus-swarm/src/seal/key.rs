//! The key of a node that texts for it are sealed to.

use std::fmt;
use std::str::FromStr;

use bombus_core::identity::{NodeId, NodeKey};
use bombus_core::topics::SealKeyClaim;
use data_encoding::BASE64;
use hpke::{Deserializable, Kem as _, Serializable};

use super::Kem;

/// What a node signs before its public key, so that the signature is good for nothing else.
const CLAIM: &[u8] = b"bombus seal key 1\0";

/// A node's X25519 key pair. It is overwritten in memory when it is dropped.
#[derive(Clone)]
pub struct SealKey {
    secret: <Kem as hpke::Kem>::PrivateKey,
    public: PublicSealKey,
}

impl SealKey {
    /// Takes 32 secret bytes, fresh from a cryptographic random source or read back from disk.
    #[must_use]
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        let secret = <Kem as hpke::Kem>::PrivateKey::from_bytes(secret).expect("any 32 bytes are an X25519 key");
        let public = PublicSealKey(Kem::sk_to_pk(&secret).to_bytes().into());
        Self { secret, public }
    }

    /// Returns the public half.
    #[must_use]
    pub fn public(&self) -> PublicSealKey {
        self.public
    }

    pub(super) fn secret(&self) -> &<Kem as hpke::Kem>::PrivateKey {
        &self.secret
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SealKey").field(&self.public).finish()
    }
}

/// The public half of a node's key: 32 bytes, as text in base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicSealKey([u8; 32]);

impl PublicSealKey {
    /// Returns the 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns a node's word that this is its key (Ed25519, RFC 8032), for peers.
    #[must_use]
    pub fn claimed_by(&self, node: &NodeKey) -> SealKeyClaim {
        let signature = node.sign(&self.claim());
        SealKeyClaim { key: self.to_string(), signature: BASE64.encode(&signature) }
    }

    /// Takes the key of the node `node` from its word for it.
    ///
    /// # Errors
    ///
    /// When the key is none, or that node has not signed it.
    pub fn verified(claim: &SealKeyClaim, node: &NodeId) -> Result<Self, SealKeyError> {
        let key: Self = claim.key.parse()?;
        let signature = decoded::<64>(&claim.signature).ok_or(SealKeyError::Signature)?;
        if node.signed(&key.claim(), &signature) { Ok(key) } else { Err(SealKeyError::Signature) }
    }

    fn claim(&self) -> Vec<u8> {
        [CLAIM, &self.0].concat()
    }

    pub(super) fn to_hpke(self) -> <Kem as hpke::Kem>::PublicKey {
        <Kem as hpke::Kem>::PublicKey::from_bytes(&self.0).expect("any 32 bytes are a point of X25519")
    }
}

/// Reads exactly `N` bytes from base64. Longer texts are not decoded.
pub(super) fn decoded<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() > N.div_ceil(3) * 4 {
        return None;
    }
    BASE64.decode(text.as_bytes()).ok()?.try_into().ok()
}

impl FromStr for PublicSealKey {
    type Err = SealKeyError;

    fn from_str(text: &str) -> Result<Self, SealKeyError> {
        decoded(text).map(Self).ok_or(SealKeyError::Key)
    }
}

impl fmt::Display for PublicSealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.0))
    }
}

impl fmt::Debug for PublicSealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicSealKey({self})")
    }
}

/// Why a text is no public key of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealKeyError {
    /// It is not 32 bytes in base64.
    #[error("a key that texts are sealed to is 32 bytes in base64")]
    Key,
    /// The node's signature is missing or is not its own.
    #[error("the node has not signed its key")]
    Signature,
}
