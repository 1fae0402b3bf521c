//! Entries: the signed operations of which a log consists.
//!
//! Structure and authority are apart. A block that names its ancestors is a part of the log's graph, whatever else is wrong with it: peers
//! that judge more mildly may have built on it. Whether it counts is another question, and [`Refusal`] says why it does not.

mod codec;
mod key;
mod operation;
#[cfg(test)]
pub(crate) mod tests;

pub use codec::{BlockError, Codec, Draft, Limits, WriteError, Written};
pub use key::Key;
pub use operation::{Op, Operation};

use std::ops::Range;

use crate::{
    cbor::Value,
    cid::Hash,
    identity::Identity,
    key::{KeyBytes, bytes_of_hex},
};

/// What a block says about its place in the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// The name of the block.
    pub hash: Hash,
    /// The heads when it was written.
    pub next: Vec<Hash>,
    /// Further ancestors.
    pub refs: Vec<Hash>,
    /// The Lamport time that it states.
    pub time: u64,
}

/// A block of a log: its place in the graph, and the entry that it holds if its form is right.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its place in the graph.
    pub links: Links,
    /// The entry, or what is wrong with its form.
    pub entry: Result<Entry, Refusal>,
}

/// An entry of the right form. Whether its signature holds is said by [`Entry::examine`].
#[derive(Clone, Debug)]
pub struct Entry {
    hash: Hash,
    key: String,
    signature: String,
    clock_id: String,
    time: u64,
    payload: Value,
    identity: Hash,
    /// The nine fields as they were before encryption.
    plain: Vec<u8>,
    /// What of them is signed, behind the head of a map of six.
    signed: [Range<usize>; 2],
}

/// Why an entry does not count. It stays in the graph all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    /// Its fields or values are not those of an entry, or JavaScript would change them.
    #[error("its form is not that of an entry")]
    Form = 1,
    /// It is larger than [`Limits::entry_bytes`], or names more ancestors than [`Limits::links`].
    #[error("it is too large")]
    Oversize = 2,
    /// The identity that it names is none.
    #[error("the identity that it names is not valid")]
    Identity = 3,
    /// It is signed by another key than that of the identity that it names.
    #[error("it is signed by another key than that of its identity")]
    Key = 4,
    /// Its clock is that of another writer.
    #[error("its clock is that of another writer")]
    ClockId = 5,
    /// Its signature does not hold.
    #[error("its signature does not hold")]
    Signature = 6,
    /// Its time is not above those of all it follows, or too far above.
    #[error("its time does not follow from that of its ancestors")]
    Clock = 7,
    /// The access controller does not admit its writer, now.
    #[error("its writer is not admitted")]
    Access = 8,
}

/// The first byte of the signed bytes: a map of six.
const SIGNED_HEAD: &[u8] = &[0xa6];

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Form,
        Self::Oversize,
        Self::Identity,
        Self::Key,
        Self::ClockId,
        Self::Signature,
        Self::Clock,
        Self::Access,
    ];

    /// Returns the reason that a stored number stands for.
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| *refusal as u8 == code)
    }

    /// Returns a short name for counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::Oversize => "oversize",
            Self::Identity => "identity",
            Self::Key => "key",
            Self::ClockId => "clock_id",
            Self::Signature => "signature",
            Self::Clock => "clock",
            Self::Access => "access",
        }
    }
}

impl Entry {
    /// Returns the name of its block.
    #[must_use]
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// Returns the Lamport time that it states.
    #[must_use]
    pub const fn time(&self) -> u64 {
        self.time
    }

    /// Returns the key that it says to be signed by, in hex.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the name of its writer's identity block.
    #[must_use]
    pub const fn identity(&self) -> Hash {
        self.identity
    }

    /// Returns its payload as it stands in the block: bytes where payloads are encrypted.
    #[must_use]
    pub const fn payload(&self) -> &Value {
        &self.payload
    }

    /// Returns the bytes over which the signature is, in their parts.
    pub(crate) fn signed_parts(&self) -> [&[u8]; 3] {
        [SIGNED_HEAD, &self.plain[self.signed[0].clone()], &self.plain[self.signed[1].clone()]]
    }

    /// Checks everything that the entry and its writer's identity show by themselves; none stands for an identity that is not valid.
    ///
    /// Stricter than `@orbitdb/core`, which takes any key that names an admitted writer's identity.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] when one of them is wrong.
    pub fn examine(&self, identity: Option<&Identity>) -> Result<KeyBytes, Refusal> {
        let identity = identity.ok_or(Refusal::Identity)?;
        let key = identity.key().to_bytes();
        if bytes_of_hex(&self.key) != Some(key) {
            return Err(Refusal::Key);
        }
        if self.clock_id != self.key {
            return Err(Refusal::ClockId);
        }
        identity.key().verify_parts(&self.signed_parts(), &self.signature).map_err(|_| Refusal::Signature)?;
        Ok(key)
    }
}
