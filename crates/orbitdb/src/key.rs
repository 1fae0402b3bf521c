//! Keys and signatures: ECDSA over secp256k1 and SHA-256, as lower-case hex of strict DER with a low S.

use std::{fmt, sync::LazyLock};

use secp256k1::{All, Message, Secp256k1, ecdsa};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// What signing and checking need. Signing takes the same time for all keys; random numbers of the system, once a process, also hide from who
/// measures power what is signed with.
static CURVE: LazyLock<Secp256k1<All>> = LazyLock::new(|| {
    let mut curve = Secp256k1::new();
    let mut seed = Zeroizing::new([0; 32]);
    // Keys cannot be made without random numbers either, which is where that is told.
    if getrandom::fill(seed.as_mut()).is_ok() {
        curve.seeded_randomize(&seed);
    }
    curve
});

/// A private key. Never shown, never logged.
#[derive(Clone)]
pub struct SecretKey(secp256k1::SecretKey);

/// A public key in its compressed form, known to be a point of the curve.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey {
    point: secp256k1::PublicKey,
}

/// The compressed bytes of a public key. Ordered as their hex is.
pub type KeyBytes = [u8; 33];

/// Why a key is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are no private key of the curve.
    #[error("this is no private key of secp256k1: 32 bytes, neither zero nor beyond the order of the curve")]
    Secret,
    /// The text is no public key.
    #[error("this is no public key of secp256k1: 66 lower-case hex digits of its compressed form")]
    Public,
    /// The system has no random numbers.
    #[error("the system has no random numbers: {0}")]
    Random(getrandom::Error),
}

/// Why a signature does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It is not lower-case hex of strict DER.
    #[error("a signature is not lower-case hex of strict DER")]
    Form,
    /// It is not by this key over these bytes, or its S is high.
    #[error("a signature is not by its key over its bytes, or has a high S")]
    Wrong,
}

/// Returns what is signed of a message that comes in parts.
fn digest(parts: &[&[u8]]) -> Message {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    Message::from_digest(hasher.finalize().into())
}

impl SecretKey {
    /// Makes a key of the system's random numbers.
    ///
    /// # Errors
    ///
    /// [`KeyError::Random`] when there are none.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; 32]);
        loop {
            getrandom::fill(bytes.as_mut()).map_err(KeyError::Random)?;
            if let Ok(key) = Self::from_bytes(&bytes) {
                return Ok(key);
            }
        }
    }

    /// Takes the 32 bytes of a key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Secret`] when they are none.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        secp256k1::SecretKey::from_byte_array(*bytes).map(Self).map_err(|_| KeyError::Secret)
    }

    /// Returns the bytes of the key, for the keystore.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.secret_bytes())
    }

    /// Returns its public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey { point: self.0.public_key(&CURVE) }
    }

    /// Signs bytes. The same bytes give the same signature (RFC 6979).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> String {
        self.sign_parts(&[message])
    }

    /// Signs bytes as others may: each number gives another signature of the same bytes.
    #[cfg(test)]
    pub(crate) fn sign_once_more(&self, message: &[u8], number: u8) -> String {
        hex::encode(CURVE.sign_ecdsa_with_noncedata(digest(&[message]), &self.0, &[number; 32]).serialize_der())
    }

    pub(crate) fn sign_parts(&self, parts: &[&[u8]]) -> String {
        hex::encode(CURVE.sign_ecdsa(digest(parts), &self.0).serialize_der())
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.non_secure_erase();
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretKey(..)")
    }
}

impl PublicKey {
    /// Reads a key from its hex.
    ///
    /// # Errors
    ///
    /// [`KeyError::Public`] for everything but 66 lower-case hex digits of a point.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let bytes = bytes_of_hex(text).ok_or(KeyError::Public)?;
        let point = secp256k1::PublicKey::from_byte_array_compressed(bytes).map_err(|_| KeyError::Public)?;
        Ok(Self { point })
    }

    /// Returns the compressed bytes.
    #[must_use]
    pub fn to_bytes(&self) -> KeyBytes {
        self.point.serialize()
    }

    /// Checks a signature over bytes.
    ///
    /// # Errors
    ///
    /// [`SignatureError`] when it does not hold.
    pub fn verify(&self, message: &[u8], signature: &str) -> Result<(), SignatureError> {
        self.verify_parts(&[message], signature)
    }

    pub(crate) fn verify_parts(&self, parts: &[&[u8]], signature: &str) -> Result<(), SignatureError> {
        // 72 bytes are the most that DER takes for two numbers of the curve's order.
        if signature.len() > 2 * 72 || signature.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return Err(SignatureError::Form);
        }
        let der = hex::decode(signature).map_err(|_| SignatureError::Form)?;
        // libsecp256k1 itself refuses every DER but the strict one, and a high S.
        let parsed = ecdsa::Signature::from_der(&der).map_err(|_| SignatureError::Form)?;
        CURVE.verify_ecdsa(digest(parts), &parsed, &self.point).map_err(|_| SignatureError::Wrong)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.to_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Returns the bytes of 66 lower-case hex digits.
pub(crate) fn bytes_of_hex(text: &str) -> Option<KeyBytes> {
    let mut bytes = [0; 33];
    let lower = !text.bytes().any(|digit| digit.is_ascii_uppercase());
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_key_and_bytes_only() {
        let key = SecretKey::generate().unwrap();
        let signature = key.sign(b"message");
        let public = PublicKey::from_hex(&key.public_key().to_string()).unwrap();
        assert_eq!(public.verify(b"message", &signature), Ok(()));
        assert_eq!(public.verify(b"massage", &signature), Err(SignatureError::Wrong));
        let other = SecretKey::generate().unwrap().public_key();
        assert_eq!(other.verify(b"message", &signature), Err(SignatureError::Wrong));
        assert_eq!(key.sign(b"message"), signature, "deterministic");
        assert_eq!(public.verify(b"message", &signature.to_uppercase()), Err(SignatureError::Form));
        assert_eq!(public.verify(b"message", &format!("{signature}00")), Err(SignatureError::Form));
        assert_eq!(public.verify(b"message", ""), Err(SignatureError::Form));
        // The same numbers in other DER: a zero too many in front of the first, and a length in two bytes.
        let (length, first) =
            (u8::from_str_radix(&signature[2..4], 16).unwrap(), u8::from_str_radix(&signature[6..8], 16).unwrap());
        let padded = format!("30{:02x}02{:02x}00{}", length + 1, first + 1, &signature[8..]);
        let long = format!("3081{}", &signature[2..]);
        for other in [padded, long] {
            assert_eq!(public.verify(b"message", &other), Err(SignatureError::Form), "{other}");
        }
    }

    #[test]
    fn a_high_s_is_refused() {
        // The order of the curve; n - s is the other S for which a signature holds mathematically.
        let order = hex::decode("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141").unwrap();
        let key = SecretKey::generate().unwrap();
        let low = ecdsa::Signature::from_der(&hex::decode(key.sign(b"m")).unwrap()).unwrap();
        let mut compact = low.serialize_compact();
        let mut borrow = 0;
        for (byte, minuend) in compact[32..].iter_mut().zip(order).rev() {
            let difference = i16::from(minuend) - i16::from(*byte) - borrow;
            borrow = i16::from(difference < 0);
            *byte = u8::try_from(difference.rem_euclid(256)).unwrap();
        }
        let high = ecdsa::Signature::from_compact(&compact).unwrap();
        let mut normal = high;
        normal.normalize_s();
        assert_eq!(normal, low);
        assert_ne!(high, low);
        let refused = key.public_key().verify(b"m", &hex::encode(high.serialize_der()));
        assert_eq!(refused, Err(SignatureError::Wrong));
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        assert_eq!(SecretKey::from_bytes(&[0; 32]).unwrap_err(), KeyError::Secret);
        let good = SecretKey::from_bytes(&[1; 32]).unwrap().public_key().to_string();
        for text in [
            "",
            "zz",
            &good.to_uppercase(),
            &good[2..],
            &format!("04{}", &good[2..]),
            &format!("02{}", "ff".repeat(32)),
        ] {
            assert_eq!(PublicKey::from_hex(text), Err(KeyError::Public), "{text}");
        }
        assert_eq!(format!("{:?}", SecretKey::from_bytes(&[1; 32]).unwrap()), "SecretKey(..)");
    }
}
