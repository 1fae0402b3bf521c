//! The name of a swarm.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::OwnerId;

/// What keeps the hash behind a swarm id apart from other hashes.
const HASH_DOMAIN: &[u8] = b"bombus/membership/swarm/1\0";
/// How many bytes of the hash the id has: 80 bits, so that nobody finds an owner key for the id of another swarm.
const HASH_BYTES: usize = 10;
/// Characters of an id: 5 bits each.
const CHARACTERS: usize = HASH_BYTES * 8 / 5;
/// The id of all swarms without a key.
const OPEN: &str = "open";

/// A swarm's id: 16 characters of lower-case base32, from the hash of its owner's public key; `open` for swarms without a key. It is
/// part of topics' names and a folder's name, and tells no secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SwarmId(String);

impl SwarmId {
    /// Derives the id of the swarm that an owner key began.
    #[must_use]
    pub fn of(owner: &OwnerId) -> Self {
        let hash = Sha256::new().chain_update(HASH_DOMAIN).chain_update(owner.as_bytes()).finalize();
        Self(BASE32_NOPAD.encode(&hash[..HASH_BYTES]).to_ascii_lowercase())
    }

    /// Returns the id that all swarms without a key have.
    #[must_use]
    pub fn open() -> Self {
        Self(OPEN.to_owned())
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SwarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SwarmId {
    type Err = ParseSwarmIdError;

    fn from_str(text: &str) -> Result<Self, ParseSwarmIdError> {
        let is_hash = text.len() == CHARACTERS && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
        if is_hash || text == OPEN { Ok(Self(text.to_owned())) } else { Err(ParseSwarmIdError) }
    }
}

impl TryFrom<String> for SwarmId {
    type Error = ParseSwarmIdError;

    fn try_from(text: String) -> Result<Self, ParseSwarmIdError> {
        text.parse()
    }
}

impl From<SwarmId> for String {
    fn from(id: SwarmId) -> Self {
        id.0
    }
}

/// Says that a text is no swarm id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a swarm's id has {CHARACTERS} characters, a to z and 2 to 7, or is \"{OPEN}\"")]
pub struct ParseSwarmIdError;

#[cfg(test)]
mod tests {
    use super::super::OwnerKey;
    use super::*;

    #[test]
    fn the_id_follows_from_the_owner_key_and_from_nothing_else() {
        let id = SwarmId::of(&OwnerKey::from_secret(&[1; 32]).id());
        assert_eq!(id, SwarmId::of(&OwnerKey::from_secret(&[1; 32]).id()));
        assert_ne!(id, SwarmId::of(&OwnerKey::from_secret(&[2; 32]).id()));
        assert_eq!(id.as_str().parse(), Ok(id));
    }

    #[test]
    fn only_what_can_be_a_folder_is_an_id() {
        for text in [
            "",
            "..",
            "open/..",
            "OPEN",
            "abcdefghijklmno",
            "abcdefghijklmnopq",
            "abcdefghijklmno1",
            "ABCDEFGHIJKLMNOP",
        ] {
            assert_eq!(text.parse::<SwarmId>(), Err(ParseSwarmIdError), "{text}");
        }
        assert_eq!("open".parse(), Ok(SwarmId::open()));
    }
}
