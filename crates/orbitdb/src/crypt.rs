//! Encryption of what is stored and sent: two optional hooks, known to those who hold the key and announced to nobody.

use std::{fmt, sync::Arc};

use aes_gcm::Aes256Gcm;
use chacha20poly1305::{
    XChaCha20Poly1305,
    aead::{Aead, KeyInit, Nonce},
};
use data_encoding::BASE64;
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// A pair of functions over bytes.
pub trait Cipher: Send + Sync {
    /// Encrypts bytes.
    ///
    /// # Errors
    ///
    /// [`CipherError`] when that is not possible now.
    fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, CipherError>;

    /// Decrypts what [`Cipher::encrypt`] gave.
    ///
    /// # Errors
    ///
    /// [`CipherError::Foreign`] when the bytes are not by the same key.
    fn decrypt(&self, encrypted: &[u8]) -> Result<Vec<u8>, CipherError>;
}

/// Why encryption or decryption failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// The bytes were not encrypted with this key, or were changed.
    #[error("the bytes were not encrypted with this key, or were changed")]
    Foreign,
    /// A key is not of the form that its algorithm asks for.
    #[error("a key pair is two texts in base64, the private one of 32 bytes or more")]
    Key,
    /// The cipher does not work now.
    #[error("the cipher does not work now: {0}")]
    Unavailable(&'static str),
}

/// What of a database is encrypted. Whoever opens the same database must give the same.
#[derive(Clone, Default)]
pub struct Encryption {
    /// Encrypts the payload of each entry: peers without the key still pass the log on, but cannot read it.
    pub data: Option<Arc<dyn Cipher>>,
    /// Encrypts whole entries: peers without the key cannot even follow them.
    pub replication: Option<Arc<dyn Cipher>>,
}

/// A cipher that encrypts with one symmetric key and a random nonce in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// XChaCha20-Poly1305, with a nonce of 24 bytes: any number of messages.
    XChaCha20Poly1305,
    /// AES-256-GCM, with a nonce of 12 bytes: up to 2^32 messages of one key.
    Aes256Gcm,
}

/// Two keys as text in base64, as an application's crypto module hands them out.
#[derive(Clone)]
pub struct KeyPair {
    /// The public key.
    pub public_key: String,
    /// The private key, of 32 bytes or more.
    pub private_key: Zeroizing<String>,
}

impl Encryption {
    /// Encrypts payloads and whole entries by a key that all members of a swarm share. Each of the two gets a key of its own.
    #[must_use]
    pub fn of_swarm_key(algorithm: Algorithm, key: &[u8; 32]) -> Self {
        Self::derived(algorithm, b"orbitdb swarm key", key)
    }

    /// Encrypts payloads and whole entries for the holders of a key pair, by AES-256-GCM: the counterpart of `createEncryptionModule(keyPair)`.
    ///
    /// # Errors
    ///
    /// [`CipherError::Key`] when the pair is not in base64, or the private key shorter than 32 bytes.
    pub fn of_key_pair(pair: &KeyPair) -> Result<Self, CipherError> {
        let decode = |text: &str| BASE64.decode(text.as_bytes()).map_err(|_| CipherError::Key);
        let (public, private) = (decode(&pair.public_key)?, Zeroizing::new(decode(&pair.private_key)?));
        if public.is_empty() || private.len() < 32 {
            return Err(CipherError::Key);
        }
        Ok(Self::derived(Algorithm::Aes256Gcm, &public, &private))
    }

    fn derived(algorithm: Algorithm, salt: &[u8], secret: &[u8]) -> Self {
        let derivation = Hkdf::<Sha256>::new(Some(salt), secret);
        let cipher = |purpose: &[u8]| -> Arc<dyn Cipher> {
            let mut key = Zeroizing::new([0; 32]);
            derivation.expand(purpose, key.as_mut()).expect("32 bytes are one block of SHA-256");
            match algorithm {
                Algorithm::XChaCha20Poly1305 => Arc::new(Sealed(XChaCha20Poly1305::new(&(*key).into()))),
                Algorithm::Aes256Gcm => Arc::new(Sealed(Aes256Gcm::new(&(*key).into()))),
            }
        };
        Self { data: Some(cipher(b"data")), replication: Some(cipher(b"replication")) }
    }
}

impl fmt::Debug for Encryption {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Encryption");
        shown.field("data", &self.data.is_some()).field("replication", &self.replication.is_some()).finish()
    }
}

/// Authenticated encryption with the nonce in front.
struct Sealed<A>(A);

impl<A: Aead + Send + Sync> Cipher for Sealed<A> {
    fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, CipherError> {
        let mut nonce = Nonce::<A>::default();
        getrandom::fill(&mut nonce).map_err(|_| CipherError::Unavailable("the system has no random numbers"))?;
        let sealed = self.0.encrypt(&nonce, plain).map_err(|_| CipherError::Unavailable("the bytes are too many"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    fn decrypt(&self, encrypted: &[u8]) -> Result<Vec<u8>, CipherError> {
        let mut nonce = Nonce::<A>::default();
        let (front, sealed) = encrypted.split_at_checked(nonce.len()).ok_or(CipherError::Foreign)?;
        nonce.copy_from_slice(front);
        self.0.decrypt(&nonce, sealed).map_err(|_| CipherError::Foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(seed: u8) -> KeyPair {
        KeyPair { public_key: BASE64.encode(&[seed; 32]), private_key: BASE64.encode(&[seed + 1; 32]).into() }
    }

    #[test]
    fn what_was_encrypted_is_decrypted_by_the_same_key_only() {
        let of = |seed| {
            [
                Encryption::of_swarm_key(Algorithm::XChaCha20Poly1305, &[seed; 32]),
                Encryption::of_swarm_key(Algorithm::Aes256Gcm, &[seed; 32]),
                Encryption::of_key_pair(&pair(seed)).unwrap(),
            ]
        };
        for (mine, others) in of(1).into_iter().zip(of(3)) {
            let (data, replication) = (mine.data.unwrap(), mine.replication.unwrap());
            let sealed = data.encrypt(b"plain").unwrap();
            assert_eq!(data.decrypt(&sealed).unwrap(), b"plain");
            assert_ne!(data.encrypt(b"plain").unwrap(), sealed, "the nonce is random");
            assert_eq!(replication.decrypt(&sealed), Err(CipherError::Foreign));
            assert_eq!(others.data.unwrap().decrypt(&sealed), Err(CipherError::Foreign));
            let mut changed = sealed;
            *changed.last_mut().unwrap() ^= 1;
            assert_eq!(data.decrypt(&changed), Err(CipherError::Foreign));
            assert_eq!(data.decrypt(&[]), Err(CipherError::Foreign));
        }
    }

    #[test]
    fn key_pairs_of_another_form_are_refused() {
        let short = KeyPair { private_key: BASE64.encode(&[1; 31]).into(), ..pair(1) };
        let no_text = KeyPair { public_key: "not base64".into(), ..pair(1) };
        for pair in [short, no_text] {
            assert!(matches!(Encryption::of_key_pair(&pair), Err(CipherError::Key)));
        }
    }
}
