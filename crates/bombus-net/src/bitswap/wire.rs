//! Messages as they are written: protobuf behind its length.
//!
//! Source: <https://specs.ipfs.tech/bitswap-protocol/#bitswap-1-2-0>.

use std::io;

use cid::multihash::Multihash;
use prost::Message as _;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Cid;

/// The code of SHA-256 among hashes, the only one that names are checked by.
const SHA2_256: u64 = 0x12;
/// How the part of a name ends that stands before the digest: SHA-256, 32 bytes.
const SHA2_256_HEADER: [u8; 2] = [0x12, 0x20];
/// The part before the digest of a name of version 0, written out in full.
const VERSION_0: [u8; 4] = [0x00, 0x70, 0x12, 0x20];
/// How many wants, blocks and presences one message may have together. Each costs memory, also where it takes two bytes.
const ELEMENTS_MAX: usize = 64 << 10;
/// The longest length of a message, in bytes.
const LENGTH_BYTES_MAX: u32 = 5;

/// A message, field by field.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Message {
    #[prost(message, optional, tag = "1")]
    pub(crate) wantlist: Option<Wantlist>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) payload: Vec<Block>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) presences: Vec<Presence>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Wantlist {
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<Entry>,
    /// Whether it takes the place of all that was wanted before.
    #[prost(bool, tag = "2")]
    pub(crate) full: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Entry {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) cid: Vec<u8>,
    #[prost(int32, tag = "2")]
    pub(crate) priority: i32,
    #[prost(bool, tag = "3")]
    pub(crate) cancel: bool,
    /// 0: the block; 1: whether it is there.
    #[prost(int32, tag = "4")]
    pub(crate) want_type: i32,
    #[prost(bool, tag = "5")]
    pub(crate) send_dont_have: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Block {
    /// The name without its digest.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) prefix: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) data: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Presence {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) cid: Vec<u8>,
    /// 0: the block is there; 1: it is not.
    #[prost(int32, tag = "2")]
    pub(crate) r#type: i32,
}

impl Entry {
    /// Asks for a block, and for word if it is not there.
    pub(crate) fn want(cid: &Cid) -> Self {
        Self { cid: cid.to_bytes(), priority: 1, cancel: false, want_type: 0, send_dont_have: true }
    }

    /// Takes that back.
    pub(crate) fn cancel(cid: &Cid) -> Self {
        Self { cid: cid.to_bytes(), priority: 0, cancel: true, want_type: 0, send_dont_have: false }
    }
}

impl Block {
    /// Sends a block.
    pub(crate) fn new(cid: &Cid, data: Vec<u8>) -> Self {
        let prefix = match cid.version() {
            cid::Version::V0 => VERSION_0.to_vec(),
            cid::Version::V1 => {
                let mut name = cid.to_bytes();
                name.truncate(name.len() - cid.hash().digest().len());
                name
            }
        };
        Self { prefix, data }
    }

    /// Returns the name that the block's bytes have. None where it would have another hash than SHA-256.
    pub(crate) fn name(&self) -> Option<Cid> {
        if !self.prefix.ends_with(&SHA2_256_HEADER) {
            return None;
        }
        let digest = Sha256::digest(&self.data);
        if self.prefix == VERSION_0 {
            return Cid::new_v0(Multihash::wrap(SHA2_256, &digest).ok()?).ok();
        }
        // Without a version, it would be the short form of version 0.
        let name = [self.prefix.as_slice(), digest.as_slice()].concat();
        read_cid(&name).filter(|cid| cid.version() == cid::Version::V1)
    }
}

impl Presence {
    /// Says whether a block is there.
    pub(crate) fn new(cid: &Cid, is_here: bool) -> Self {
        Self { cid: cid.to_bytes(), r#type: i32::from(!is_here) }
    }
}

/// What a peer says in one message.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Heard {
    /// Whether its wants take the place of all before.
    pub(crate) is_full: bool,
    pub(crate) wants: Vec<Want>,
    pub(crate) blocks: Vec<Block>,
    /// Whether blocks are there.
    pub(crate) presences: Vec<(Cid, bool)>,
    /// Wants and presences with names that are none here.
    pub(crate) unreadable: usize,
}

/// One want of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) cid: Cid,
    pub(crate) priority: i32,
    /// It wants it no longer.
    pub(crate) is_cancel: bool,
    /// It wants the block, and not only to know whether it is there.
    pub(crate) wants_block: bool,
    /// It wants to be told if the block is not there.
    pub(crate) tell_absent: bool,
}

/// Why a message is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it has more than {ELEMENTS_MAX} wants and blocks")]
    TooMany,
    #[error("it is cut off, or no protobuf")]
    Malformed,
    #[error(transparent)]
    Decode(#[from] prost::DecodeError),
}

impl Message {
    /// Says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.wantlist.is_none() && self.payload.is_empty() && self.presences.is_empty()
    }
}

impl Heard {
    /// Writes it as its sender may have, for tests.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let entry = |want: &Want| Entry {
            cid: want.cid.to_bytes(),
            priority: want.priority,
            cancel: want.is_cancel,
            want_type: i32::from(!want.wants_block),
            send_dont_have: want.tell_absent,
        };
        let message = Message {
            wantlist: Some(Wantlist { entries: self.wants.iter().map(entry).collect(), full: self.is_full }),
            payload: self.blocks.clone(),
            presences: self.presences.iter().map(|(cid, is_there)| Presence::new(cid, *is_there)).collect(),
        };
        message.encode_to_vec()
    }
}

/// Reads a message without its length.
pub(crate) fn decode(bytes: &[u8]) -> Result<Heard, Refused> {
    if count(bytes)? > ELEMENTS_MAX {
        return Err(Refused::TooMany);
    }
    let message = Message::decode(bytes)?;
    let mut heard = Heard { blocks: message.payload, ..Heard::default() };
    let wantlist = message.wantlist.unwrap_or_default();
    heard.is_full = wantlist.full;
    for entry in wantlist.entries {
        match read_cid(&entry.cid) {
            Some(cid) => heard.wants.push(Want {
                cid,
                priority: entry.priority,
                is_cancel: entry.cancel,
                wants_block: entry.want_type == 0,
                tell_absent: entry.send_dont_have,
            }),
            None => heard.unreadable += 1,
        }
    }
    for presence in message.presences {
        match read_cid(&presence.cid) {
            Some(cid) => heard.presences.push((cid, presence.r#type == 0)),
            None => heard.unreadable += 1,
        }
    }
    Ok(heard)
}

/// Reads a name that fills the bytes.
fn read_cid(bytes: &[u8]) -> Option<Cid> {
    Cid::try_from(bytes).ok().filter(|cid| cid.encoded_len() == bytes.len())
}

/// Says whether blocks can be checked against this name.
pub(crate) fn is_checkable(cid: &Cid) -> bool {
    cid.hash().code() == SHA2_256 && cid.hash().digest().len() == 32
}

/// Counts what a message would make in memory, before it does.
fn count(bytes: &[u8]) -> Result<usize, Refused> {
    let mut elements = 0;
    let mut rest = bytes;
    while let Some((field, content)) = next_field(&mut rest)? {
        match field {
            1 => {
                let mut entries = content;
                while let Some((field, _)) = next_field(&mut entries)? {
                    elements += usize::from(field == 1);
                }
            }
            3 | 4 => elements += 1,
            _ => {}
        }
    }
    Ok(elements)
}

/// Takes the next field, with its content where that has a length of its own.
fn next_field<'a>(rest: &mut &'a [u8]) -> Result<Option<(u64, &'a [u8])>, Refused> {
    if rest.is_empty() {
        return Ok(None);
    }
    let key = next_varint(rest)?;
    let length = match key & 7 {
        0 => {
            next_varint(rest)?;
            0
        }
        1 => 8,
        2 => usize::try_from(next_varint(rest)?).map_err(|_| Refused::Malformed)?,
        5 => 4,
        _ => return Err(Refused::Malformed),
    };
    let (content, after) = rest.split_at_checked(length).ok_or(Refused::Malformed)?;
    *rest = after;
    Ok(Some((key >> 3, content)))
}

fn next_varint(rest: &mut &[u8]) -> Result<u64, Refused> {
    let mut value = 0;
    for index in 0..10 {
        let (byte, after) = rest.split_first().ok_or(Refused::Malformed)?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Refused::Malformed)
}

/// Reads how long the next message is; none at the end of the stream.
pub(crate) async fn read_length(stream: &mut (impl AsyncRead + Unpin), max: usize) -> io::Result<Option<usize>> {
    let mut length = 0_u64;
    for index in 0..LENGTH_BYTES_MAX {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return if index == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        length |= u64::from(byte[0] & 0x7f) << (7 * index);
        if byte[0] & 0x80 == 0 {
            return match usize::try_from(length) {
                Ok(length) if length <= max => Ok(Some(length)),
                _ => Err(refused(format!("a message of {length} bytes, more than {max}"))),
            };
        }
    }
    Err(refused("the length of a message is no number"))
}

/// Reads a message of this length. Memory is taken as its bytes come.
pub(crate) async fn read_body(stream: &mut (impl AsyncRead + Unpin), length: usize) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body)
}

/// Makes the error for what no message is.
pub(crate) fn refused(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
