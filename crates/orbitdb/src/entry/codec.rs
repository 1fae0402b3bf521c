//! Blocks to entries and back.

use std::{borrow::Cow, sync::Arc};

use super::{Entry, Links, Operation, Received, Refusal, SIGNED_HEAD};
use crate::{
    cbor::{
        DEPTH_MAX, DecodeError, EncodeError, Value,
        read::{Major, Reader},
        write,
    },
    cid::Hash,
    crypt::{CipherError, Encryption},
    identity::Signer,
};

/// The version of the entries that are known.
const VERSION: u64 = 2;

/// Bounds of what is taken from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Greatest size of a block in bytes; a larger one is not looked at, and nothing that builds on it joins. Default 2 MiB, the most that
    /// bitswap carries.
    pub block_bytes: usize,
    /// Greatest size of an entry that counts, in bytes. Default 1,000 KiB: with its envelope it fits the message of 1 MiB that topics take.
    /// Peers in JavaScript cannot exchange heads of 256 KiB.
    pub entry_bytes: usize,
    /// Greatest number of `next`, and of `refs`, of an entry that counts. Default 1,024. Entries name up to [`REFS`](crate::log::REFS) `refs`,
    /// so that those of others would not count with fewer.
    pub links: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { block_bytes: 2 << 20, entry_bytes: 1000 << 10, links: 1024 }
    }
}

/// Why a block is no part of a log: nothing that builds on it can join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// It is larger than [`Limits::block_bytes`].
    #[error("the block is larger than the limit")]
    Size,
    /// It cannot be decrypted.
    #[error("the block cannot be decrypted: {0}")]
    Encryption(#[from] CipherError),
    /// Its ancestors cannot be made out.
    #[error("the block is no entry: {0}")]
    Form(#[from] DecodeError),
    /// It belongs to another log.
    #[error("the block belongs to another log")]
    Log,
}

/// Why an entry cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The value has no form that peers would read.
    #[error(transparent)]
    Value(#[from] EncodeError),
    /// It cannot be encrypted.
    #[error("the entry cannot be encrypted: {0}")]
    Encryption(#[from] CipherError),
    /// The entry would be larger than [`Limits::entry_bytes`], or its block than [`Limits::block_bytes`].
    #[error("the entry would take {bytes} bytes, and {limit} is the limit: put large values into blocks of their own")]
    Oversize {
        /// What it would take.
        bytes: usize,
        /// What it may take.
        limit: usize,
    },
    /// The entry would name more ancestors than [`Limits::links`].
    #[error("the entry would name {links} ancestors of one kind, and {limit} is the limit")]
    Links {
        /// How many `next`, or `refs`, it would name.
        links: usize,
        /// How many it may name.
        limit: usize,
    },
}

/// Where a new entry stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// Its Lamport time.
    pub time: u64,
    /// The heads, newest first.
    pub next: Vec<Hash>,
    /// Further ancestors, newest first.
    pub refs: Vec<Hash>,
}

/// A new entry and its block.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its place in the graph.
    pub links: Links,
    /// The entry.
    pub entry: Entry,
    /// The block that is stored and sent.
    pub block: Vec<u8>,
}

/// Reads and writes the entries of one log.
#[derive(Clone, Debug)]
pub struct Codec {
    log: Arc<str>,
    encryption: Encryption,
    limits: Limits,
}

impl Codec {
    /// Makes a codec for the log of an address, "/orbitdb/zdpu...".
    pub fn new(log: impl Into<Arc<str>>, encryption: Encryption, limits: Limits) -> Self {
        Self { log: log.into(), encryption, limits }
    }

    /// Returns the log's id: the address in full.
    #[must_use]
    pub fn log(&self) -> &str {
        &self.log
    }

    /// Returns the bounds of what is read and written.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Reads a block.
    ///
    /// # Errors
    ///
    /// [`BlockError`] when its place in the graph cannot be made out. What else is wrong with it stands in [`Received::entry`].
    pub fn read(&self, block: &[u8]) -> Result<Received, BlockError> {
        if block.len() > self.limits.block_bytes {
            return Err(BlockError::Size);
        }
        let plain = match &self.encryption.replication {
            Some(cipher) => {
                let mut reader = Reader::new(block);
                let encrypted = reader.bytes()?;
                reader.end()?;
                Cow::Owned(cipher.decrypt(encrypted)?)
            }
            None => Cow::Borrowed(block),
        };
        let hash = Hash::of(block);
        if plain.len() > self.limits.entry_bytes {
            return Ok(Received { links: self.outline(hash, &plain)?, entry: Err(Refusal::Oversize) });
        }
        if let Ok((links, mut entry)) = self.strict(hash, &plain) {
            if links_of(&links.next, &links.refs) > self.limits.links {
                return Ok(Received { links, entry: Err(Refusal::Oversize) });
            }
            entry.plain = plain.into_owned();
            return Ok(Received { links, entry: Ok(entry) });
        }
        Ok(Received { links: self.outline(hash, &plain)?, entry: Err(Refusal::Form) })
    }

    /// Reads nine fields in their one right form; the bytes themselves are left out.
    fn strict(&self, hash: Hash, plain: &[u8]) -> Result<(Links, Entry), DecodeError> {
        let mut reader = Reader::new(plain);
        let shape = |right: bool| if right { Ok(()) } else { Err(DecodeError::Kind) };
        shape(reader.map_len()? == 9)?;
        let start = reader.position();
        reader.key("v")?;
        shape(reader.unsigned()? == VERSION)?;
        reader.key("id")?;
        shape(reader.text()? == &*self.log)?;
        let front = start..reader.position();
        reader.key("key")?;
        let key = reader.text()?.to_owned();
        reader.key("sig")?;
        let signature = reader.text()?.to_owned();
        let start = reader.position();
        reader.key("next")?;
        let next = hashes(&mut reader)?;
        reader.key("refs")?;
        let refs = hashes(&mut reader)?;
        reader.key("clock")?;
        shape(reader.map_len()? == 2)?;
        reader.key("id")?;
        let clock_id = reader.text()?.to_owned();
        reader.key("time")?;
        let time = reader.unsigned()?;
        reader.key("payload")?;
        let payload = reader.value()?;
        let back = start..reader.position();
        reader.key("identity")?;
        let identity = hash_of(reader.text()?)?;
        reader.end()?;
        let links = Links { hash, next, refs, time };
        let signed = [front, back];
        Ok((links, Entry { hash, key, signature, clock_id, time, payload, identity, plain: Vec::new(), signed }))
    }

    /// Finds the ancestors in whatever JavaScript might have taken for an entry, and passes over the rest.
    fn outline(&self, hash: Hash, plain: &[u8]) -> Result<Links, BlockError> {
        let mut reader = Reader::new(plain);
        let (mut is_ours, mut next, mut refs, mut time) = (false, None, None, None);
        for _ in 0..reader.map_len()? {
            match reader.text()? {
                "id" => is_ours = reader.text()? == &*self.log,
                "next" => next = Some(hashes(&mut reader)?),
                "refs" => refs = Some(hashes(&mut reader)?),
                "clock" => {
                    for _ in 0..reader.map_len()? {
                        match reader.text()? {
                            "time" => time = Some(reader.unsigned()?),
                            _ => reader.skip()?,
                        }
                    }
                }
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        match (next, refs, time) {
            _ if !is_ours => Err(BlockError::Log),
            (Some(next), Some(refs), Some(time)) => Ok(Links { hash, next, refs, time }),
            _ => Err(DecodeError::Keys.into()),
        }
    }

    /// Writes and signs an entry.
    ///
    /// # Errors
    ///
    /// [`WriteError`] when the payload has no form, cannot be encrypted, or is too large, and when the draft names too many ancestors.
    pub fn write(&self, signer: &Signer, draft: Draft, payload: Value) -> Result<Written, WriteError> {
        let (links, limit) = (links_of(&draft.next, &draft.refs), self.limits.links);
        if links > limit {
            return Err(WriteError::Links { links, limit });
        }
        let payload = match &self.encryption.data {
            Some(cipher) => Value::Bytes(cipher.encrypt(&payload.encode()?)?),
            None => payload,
        };
        let key = signer.identity().key().to_string();
        let mut front = Vec::with_capacity(80);
        write::text(&mut front, "v");
        write::head(&mut front, Major::Unsigned, VERSION);
        field(&mut front, "id", &self.log);
        let back = back(&key, &draft, &payload)?;
        let signature = signer.key().sign_parts(&[SIGNED_HEAD, &front, &back]);

        let mut plain = Vec::with_capacity(front.len() + back.len() + 320);
        write::head(&mut plain, Major::Map, 9);
        let signed_front = plain.len()..plain.len() + front.len();
        plain.extend(front);
        field(&mut plain, "key", &key);
        field(&mut plain, "sig", &signature);
        let signed_back = plain.len()..plain.len() + back.len();
        plain.extend(back);
        let identity = signer.identity().hash();
        field(&mut plain, "identity", &identity.to_string());
        let block = self.block(&plain)?;
        let hash = Hash::of(&block);
        let (clock_id, time, signed) = (key.clone(), draft.time, [signed_front, signed_back]);
        let links = Links { hash, next: draft.next, refs: draft.refs, time };
        Ok(Written {
            links,
            entry: Entry { hash, key, signature, clock_id, time, payload, identity, plain, signed },
            block,
        })
    }

    /// Returns the block of nine fields.
    fn block(&self, plain: &[u8]) -> Result<Vec<u8>, WriteError> {
        let fits = |bytes: usize, limit: usize| {
            if bytes <= limit { Ok(()) } else { Err(WriteError::Oversize { bytes, limit }) }
        };
        fits(plain.len(), self.limits.entry_bytes)?;
        let block = match &self.encryption.replication {
            Some(cipher) => {
                let encrypted = cipher.encrypt(plain)?;
                let mut block = Vec::with_capacity(encrypted.len() + 5);
                write::byte_string(&mut block, &encrypted);
                block
            }
            None => plain.to_vec(),
        };
        fits(block.len(), self.limits.block_bytes)?;
        Ok(block)
    }

    /// Returns what an entry does; none when its payload is no operation that is known, or cannot be decrypted with the key at hand.
    #[must_use]
    pub fn operation(&self, entry: &Entry) -> Option<Operation> {
        match &self.encryption.data {
            Some(_) => self.decrypted(entry.payload()),
            None => Operation::from_payload(entry.payload().clone()),
        }
    }

    /// Returns what an entry does that is needed no more.
    pub(crate) fn operation_of(&self, entry: Entry) -> Option<Operation> {
        match &self.encryption.data {
            Some(_) => self.decrypted(entry.payload()),
            None => Operation::from_payload(entry.payload),
        }
    }

    fn decrypted(&self, payload: &Value) -> Option<Operation> {
        let (Some(cipher), Value::Bytes(encrypted)) = (&self.encryption.data, payload) else { return None };
        Operation::from_payload(Value::decode(&cipher.decrypt(encrypted).ok()?).ok()?)
    }
}

/// Writes the signed fields from `next` on.
fn back(key: &str, draft: &Draft, payload: &Value) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::with_capacity(1280);
    for (name, hashes) in [("next", &draft.next), ("refs", &draft.refs)] {
        write::text(&mut bytes, name);
        write::head(&mut bytes, Major::List, hashes.len() as u64);
        for hash in hashes {
            write::text(&mut bytes, str::from_utf8(&hash.to_text()).expect("base58 is ASCII"));
        }
    }
    write::text(&mut bytes, "clock");
    write::head(&mut bytes, Major::Map, 2);
    field(&mut bytes, "id", key);
    write::text(&mut bytes, "time");
    write::head(&mut bytes, Major::Unsigned, draft.time);
    write::text(&mut bytes, "payload");
    write::value(&mut bytes, payload, DEPTH_MAX)?;
    Ok(bytes)
}

/// Returns how many ancestors an entry names, of the kind of which it names more.
fn links_of(next: &[Hash], refs: &[Hash]) -> usize {
    next.len().max(refs.len())
}

fn field(bytes: &mut Vec<u8>, name: &str, text: &str) {
    write::text(bytes, name);
    write::text(bytes, text);
}

fn hashes(reader: &mut Reader<'_>) -> Result<Vec<Hash>, DecodeError> {
    (0..reader.list_len()?).map(|_| hash_of(reader.text()?)).collect()
}

fn hash_of(text: &str) -> Result<Hash, DecodeError> {
    text.parse().map_err(|_| DecodeError::Kind)
}
