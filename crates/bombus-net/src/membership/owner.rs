//! The owner key.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::one_line::{self, OWNER_KEY, ParseLineError};

/// The secret with which a swarm's owner takes peers out and changes the swarm's key. `Debug` does not show it; `Display` does, as one
/// line of text for a safe place (`bombus owner export`).
#[derive(Clone)]
pub struct OwnerKey(SigningKey);

impl OwnerKey {
    /// Makes a key from the system's random source.
    ///
    /// # Errors
    ///
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(secret.as_mut())?;
        Ok(Self::from_secret(&secret))
    }

    /// Takes the 32 secret bytes of a key.
    #[must_use]
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// Returns the public half.
    #[must_use]
    pub fn id(&self) -> OwnerId {
        OwnerId(self.0.verifying_key().to_bytes())
    }

    pub(super) fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }
}

impl fmt::Debug for OwnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnerKey").field(&self.id()).finish()
    }
}

impl fmt::Display for OwnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = Zeroizing::new(self.0.to_bytes());
        f.write_str(&one_line::encode(&OWNER_KEY, secret.as_ref()))
    }
}

impl FromStr for OwnerKey {
    type Err = ParseLineError;

    fn from_str(text: &str) -> Result<Self, ParseLineError> {
        let content = one_line::decode(&OWNER_KEY, text)?;
        let secret: Result<&[u8; 32], _> = content.as_slice().try_into();
        match secret {
            Ok(secret) => Ok(Self::from_secret(secret)),
            Err(_) => Err(ParseLineError::Content {
                wanted: OWNER_KEY.called,
                reason: format!("it has {} bytes and should have 32", content.len()),
            }),
        }
    }
}

/// The public half of an owner key: every member knows it, and checks changes by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId([u8; 32]);

impl OwnerId {
    /// Takes the 32 bytes of a public key; none where they are no point of the curve, or one of those that check nothing.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Option<Self> {
        let key = VerifyingKey::from_bytes(&bytes).ok()?;
        (!key.is_weak()).then_some(Self(bytes))
    }

    /// Returns the 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn verifies(&self, bytes: &[u8], signature: &[u8; 64]) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.0) else { return false };
        key.verify_strict(bytes, &Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnerId({self})")
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_from_its_line() {
        let key = OwnerKey::from_secret(&[9; 32]);
        let line = key.to_string();
        assert!(line.starts_with("bombusowner1"), "{line}");
        assert_eq!(line.parse::<OwnerKey>().unwrap().id(), key.id());
        assert_eq!(format!("  {}\n", line.to_uppercase()).parse::<OwnerKey>().unwrap().id(), key.id());
    }

    #[test]
    fn debug_output_does_not_show_the_secret() {
        let key = OwnerKey::from_secret(&[9; 32]);
        let shown = format!("{key:?}");
        assert!(!shown.contains(&key.to_string()) && !shown.contains(&hex::encode([9; 32])), "{shown}");
    }

    #[test]
    fn a_signature_is_of_one_key_and_one_text() {
        let key = OwnerKey::from_secret(&[9; 32]);
        let signature = key.sign(b"text");
        assert!(key.id().verifies(b"text", &signature));
        assert!(!key.id().verifies(b"texts", &signature));
        assert!(!OwnerKey::from_secret(&[8; 32]).id().verifies(b"text", &signature));
        assert!(!key.id().verifies(b"text", &[0; 64]));
    }

    #[test]
    fn a_public_key_that_checks_nothing_is_none() {
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(OwnerId::from_bytes(neutral), None, "any signature holds under the neutral point");
    }
}
