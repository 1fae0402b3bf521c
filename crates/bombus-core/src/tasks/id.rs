use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Builder;

/// The longest id of a task, in bytes.
const ID_BYTES_MAX: usize = 128;

/// The name of a task: the `_id` of its documents. Bombus' own are UUIDs; others may choose any short text without spaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(String);

impl TaskId {
    /// Reads an id.
    ///
    /// # Errors
    ///
    /// Says what is wrong with a text that is not 1 to 128 ASCII letters, digits and `.`, `_`, `:`, `-`.
    pub fn parse(text: &str) -> Result<Self, ParseTaskIdError> {
        if text.is_empty() || text.len() > ID_BYTES_MAX {
            return Err(ParseTaskIdError::Length);
        }
        let fits = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte));
        if fits { Ok(Self(text.to_owned())) } else { Err(ParseTaskIdError::Character) }
    }

    /// Makes a UUID of version 4 (RFC 9562) out of 16 random bytes.
    #[must_use]
    pub fn random(bytes: [u8; 16]) -> Self {
        Self(Builder::from_random_bytes(bytes).into_uuid().to_string())
    }

    /// Makes a UUID of version 8 (RFC 9562) out of an idempotency key: the first 16 bytes of its SHA-256. So a request that is
    /// repeated at another node means the same task.
    #[must_use]
    pub fn of_key(key: &str) -> Self {
        Self::of_bytes(b"bombus idempotency key\0", key.as_bytes())
    }

    /// Returns the id of a part of this task, such as `chunk-3`. The same part has the same id on every node.
    #[must_use]
    pub fn part(&self, name: &str) -> Self {
        Self::of_bytes(b"bombus part\0", format!("{}\0{name}", self.0).as_bytes())
    }

    fn of_bytes(domain: &[u8], bytes: &[u8]) -> Self {
        let digest = Sha256::new().chain_update(domain).chain_update(bytes).finalize();
        let first: [u8; 16] = std::array::from_fn(|i| digest[i]);
        Self(Builder::from_custom_bytes(first).into_uuid().to_string())
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is no [`TaskId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseTaskIdError {
    /// It is empty or too long.
    #[error("the id of a task has 1 to 128 characters")]
    Length,
    /// It has a character that ids lack.
    #[error("the id of a task has only ASCII letters, digits and the characters . _ : -")]
    Character,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TaskId {
    type Err = ParseTaskIdError;

    fn from_str(text: &str) -> Result<Self, ParseTaskIdError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for TaskId {
    type Error = ParseTaskIdError;

    fn try_from(text: String) -> Result<Self, ParseTaskIdError> {
        Self::parse(&text)
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> Self {
        id.0
    }
}

/// Counts the grants of a task. It grows with every grant and is never used twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Before the first grant.
    pub const NONE: Self = Self(0);

    /// Returns the epoch of the next grant.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_texts_without_spaces() {
        for text in ["a", "task:1", "0b3f1f9e-51a5-4c3e-9f0c-1f2b1d8a9e10", &"x".repeat(128)] {
            assert_eq!(TaskId::parse(text).unwrap().as_str(), text);
        }
        assert_eq!(TaskId::parse(""), Err(ParseTaskIdError::Length));
        assert_eq!(TaskId::parse(&"x".repeat(129)), Err(ParseTaskIdError::Length));
        for text in ["a b", "a/b", "ä", "a\n", "../a"] {
            assert_eq!(TaskId::parse(text), Err(ParseTaskIdError::Character), "{text:?}");
        }
        assert!(serde_json::from_str::<TaskId>("\"a b\"").is_err());
    }

    #[test]
    fn ids_of_keys_and_parts_are_the_same_everywhere_and_of_version_8() {
        let id = TaskId::of_key("invoice 17");
        assert_eq!(id, TaskId::of_key("invoice 17"));
        assert_ne!(id, TaskId::of_key("invoice 18"));
        let uuid = uuid::Uuid::parse_str(id.as_str()).unwrap();
        assert_eq!(uuid.get_version_num(), 8);
        assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
        assert_eq!(id.part("chunk-0"), id.part("chunk-0"));
        assert_ne!(id.part("chunk-0"), id.part("chunk-1"));
        assert_ne!(id.part("chunk-0"), TaskId::of_key("invoice 18").part("chunk-0"));
        let random = TaskId::random([0xff; 16]);
        assert_eq!(random.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
