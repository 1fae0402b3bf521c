//! The swarm key.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// First line of a key file, which names its format.
const HEADER: &str = "/key/swarm/psk/1.0.0/";
/// Second line: how the key is written.
const ENCODING: &str = "/base16/";
/// What keeps the hash of a key apart from other hashes.
const HASH_DOMAIN: &[u8] = b"bombus/membership/key/1\0";

/// The secret that the members of a swarm share: 32 bytes. It is wiped from memory when dropped, and `Debug` does not show it.
#[derive(Clone)]
pub struct SwarmKey([u8; 32]);

impl SwarmKey {
    /// Makes a key from the system's random source.
    ///
    /// # Errors
    ///
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Takes the 32 bytes of a key.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 secret bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Writes the key as libp2p's key file, which peers in other languages read: three lines, the last in 64 hexadecimal digits.
    ///
    /// Source: the libp2p specification `pnet/Private-Networks-PSK-V1.md`.
    #[must_use]
    pub fn to_key_file(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex::encode(self.0));
        Zeroizing::new(format!("{HEADER}\n{ENCODING}\n{}\n", digits.as_str()))
    }

    /// Returns the hash by which signed changes name the key.
    pub(super) fn hash(&self) -> KeyHash {
        KeyHash(Sha256::new().chain_update(HASH_DOMAIN).chain_update(self.0).finalize().into())
    }
}

impl Drop for SwarmKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PartialEq for SwarmKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SwarmKey {}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwarmKey(secret)")
    }
}

impl FromStr for SwarmKey {
    type Err = ParseSwarmKeyError;

    fn from_str(text: &str) -> Result<Self, ParseSwarmKeyError> {
        let mut lines = text.lines().map(str::trim_end);
        if lines.next() != Some(HEADER) {
            return Err(ParseSwarmKeyError::Header);
        }
        if lines.next() != Some(ENCODING) {
            return Err(ParseSwarmKeyError::Encoding);
        }
        let mut bytes = [0; 32];
        let digits = lines.next().unwrap_or_default();
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| ParseSwarmKeyError::Digits)?;
        if lines.any(|line| !line.is_empty()) {
            return Err(ParseSwarmKeyError::More);
        }
        Ok(Self(bytes))
    }
}

/// Says why a text is no swarm key. It never holds a part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseSwarmKeyError {
    /// The first line names another format.
    #[error("its first line should be {HEADER}")]
    Header,
    /// The key is written in another way.
    #[error("its second line should be {ENCODING}")]
    Encoding,
    /// The key is cut off or mistyped.
    #[error("its third line should have 64 hexadecimal digits")]
    Digits,
    /// Something follows the key.
    #[error("it goes on after the key")]
    More,
}

/// The hash of a swarm key: it names the key and does not tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct KeyHash(pub(super) [u8; 32]);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_key_file_is_the_one_that_libp2p_reads() {
        let key = SwarmKey::from_bytes(std::array::from_fn(|i| i as u8));
        let file = key.to_key_file();
        let theirs: libp2p::pnet::PreSharedKey = file.parse().unwrap();
        assert_eq!(theirs, libp2p::pnet::PreSharedKey::new(*key.as_bytes()));
        assert_eq!(theirs.to_key_file().parse::<SwarmKey>().unwrap(), key);
    }

    #[test]
    fn what_is_wrong_with_a_key_file_is_told() {
        let digits = "ab".repeat(32);
        let parse = |text: String| text.parse::<SwarmKey>();
        assert_eq!(parse(String::new()), Err(ParseSwarmKeyError::Header));
        assert_eq!(parse(format!("{HEADER}\n/base64/\n{digits}")), Err(ParseSwarmKeyError::Encoding));
        assert_eq!(parse(format!("{HEADER}\n{ENCODING}\n{}", &digits[2..])), Err(ParseSwarmKeyError::Digits));
        assert_eq!(parse(format!("{HEADER}\n{ENCODING}\n{digits}\nmore")), Err(ParseSwarmKeyError::More));
        // As an editor on Windows leaves it.
        assert!(parse(format!("{HEADER}\r\n{ENCODING}\r\n{digits}\r\n\r\n")).is_ok());
    }

    #[test]
    fn debug_output_does_not_show_the_key() {
        assert_eq!(format!("{:?}", SwarmKey::from_bytes([7; 32])), "SwarmKey(secret)");
    }

    proptest! {
        #[test]
        fn a_key_file_is_read_back(bytes: [u8; 32]) {
            let key = SwarmKey::from_bytes(bytes);
            prop_assert_eq!(key.to_key_file().parse::<SwarmKey>(), Ok(key));
        }

        #[test]
        fn no_text_brings_the_parser_down(text in "(/key/swarm/psk/1.0.0/\n)?(/base16/\n)?.{0,80}") {
            let _ = text.parse::<SwarmKey>();
        }
    }
}
