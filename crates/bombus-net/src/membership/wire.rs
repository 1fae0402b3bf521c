//! Frames of `/bombus/membership/1`: a length of 4 bytes (big-endian) and a CBOR map of at most 64 KiB.
//!
//! Who has news opens a stream. It goes like this, and either side may end it at any time:
//!
//! ```text
//! opener                                    other side
//! offer   (swarm, hashes of its changes) ->
//!                                        <- want   (hashes that it lacks; none ends the stream)
//! change  (signed change, perhaps key)   ->           for each hash wanted
//!                                        <- ack    (whether it is on its disk)
//!                                        <- passed (once only: whom it reached in turn, if the key is another one)
//! ```

use std::io;

use bombus_core::identity::NodeId;
use futures::{SinkExt, StreamExt};
use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use zeroize::Zeroize;

use super::change::REMOVED_MAX;
use super::rules::CHANGES_MAX;
use super::{ChangeError, SignedChange, SwarmKey, peer_key};

/// The protocol's name.
pub const PROTOCOL: &str = "/bombus/membership/1";
/// The most that a frame has, without its length.
pub(super) const FRAME_BYTES_MAX: usize = 64 * 1024;
/// How many nodes a frame names.
pub(super) const NODES_MAX: usize = REMOVED_MAX;

/// The hash that names a change.
pub(super) type ChangeHash = [u8; 32];

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Offer {
        swarm_id: String,
        changes: Vec<ChangeHash>,
    },
    Want {
        changes: Vec<ChangeHash>,
    },
    Change {
        change: Box<SignedChange>,
        key: Option<SwarmKey>,
        within_ms: u32,
    },
    Ack {
        change: ChangeHash,
        stored: bool,
    },
    Passed {
        reached: Vec<NodeId>,
    },
    /// Of a kind that a later version may have.
    Unknown {
        kind: u32,
    },
}

/// Says why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// They are not the CBOR that is expected.
    #[error("a frame is not encoded as it should be: {0}")]
    Encoding(String),
    /// They name too many changes or nodes.
    #[error("a frame names {found}, and at most {max} are allowed")]
    TooMany {
        /// How many it names.
        found: usize,
        /// How many there may be.
        max: usize,
    },
    /// A node is none.
    #[error("a frame names what is no node")]
    Node,
    /// The change is none.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

const OFFER: u32 = 0;
const WANT: u32 = 1;
const CHANGE: u32 = 2;
const ACK: u32 = 3;
const PASSED: u32 = 4;

/// All fields of all kinds, so that what a later version adds is passed over.
#[derive(Default, Encode, Decode)]
#[cbor(map)]
struct Sent {
    #[n(0)]
    kind: u32,
    #[n(1)]
    swarm_id: Option<String>,
    #[n(2)]
    changes: Option<Vec<ByteArray<32>>>,
    #[n(3)]
    change: Option<ByteVec>,
    #[n(4)]
    key: Option<ByteArray<32>>,
    #[n(5)]
    within_ms: Option<u32>,
    #[n(6)]
    stored: Option<bool>,
    #[n(7)]
    reached: Option<Vec<ByteArray<32>>>,
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(key) = &mut self.key {
            key.zeroize();
        }
    }
}

impl Frame {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut sent = Sent::default();
        match self {
            Self::Offer { swarm_id, changes } => {
                sent.kind = OFFER;
                sent.swarm_id = Some(swarm_id.clone());
                sent.changes = Some(changes.iter().map(|hash| (*hash).into()).collect());
            }
            Self::Want { changes } => {
                sent.kind = WANT;
                sent.changes = Some(changes.iter().map(|hash| (*hash).into()).collect());
            }
            Self::Change { change, key, within_ms } => {
                sent.kind = CHANGE;
                sent.change = Some(change.to_bytes().into());
                sent.key = key.as_ref().map(|key| (*key.as_bytes()).into());
                sent.within_ms = Some(*within_ms);
            }
            Self::Ack { change, stored } => {
                sent.kind = ACK;
                sent.changes = Some(vec![(*change).into()]);
                sent.stored = Some(*stored);
            }
            Self::Passed { reached } => {
                sent.kind = PASSED;
                sent.reached = Some(peer_key::to_sorted(reached.iter().take(NODES_MAX)));
            }
            Self::Unknown { kind } => sent.kind = *kind,
        }
        minicbor::to_vec(&sent).expect("memory takes all that is written")
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut sent: Sent = minicbor::decode(bytes).map_err(|error| FrameError::Encoding(error.to_string()))?;
        Ok(match sent.kind {
            OFFER => Self::Offer { swarm_id: sent.swarm_id.take().ok_or_else(missing)?, changes: hashes(&sent)? },
            WANT => Self::Want { changes: hashes(&sent)? },
            CHANGE => {
                let change = SignedChange::from_bytes(sent.change.as_ref().ok_or_else(missing)?)?;
                let key = sent.key.map(|key| SwarmKey::from_bytes(*key));
                Self::Change { change: Box::new(change), key, within_ms: sent.within_ms.unwrap_or(0) }
            }
            ACK => {
                let change = hashes(&sent)?.first().copied().ok_or_else(missing)?;
                Self::Ack { change, stored: sent.stored.ok_or_else(missing)? }
            }
            PASSED => {
                let sent_nodes = sent.reached.as_deref().ok_or_else(missing)?;
                at_most(sent_nodes.len(), NODES_MAX)?;
                let nodes = sent_nodes.iter().map(|key| peer_key::from_bytes(key).ok_or(FrameError::Node));
                Self::Passed { reached: nodes.collect::<Result<_, _>>()? }
            }
            kind => Self::Unknown { kind },
        })
    }
}

/// Says whether bytes are a frame of the protocol, without its length. Frames of unknown kinds are, too.
///
/// # Errors
///
/// See [`FrameError`].
pub fn decode_frame(bytes: &[u8]) -> Result<(), FrameError> {
    Frame::decode(bytes).map(drop)
}

fn hashes(sent: &Sent) -> Result<Vec<ChangeHash>, FrameError> {
    let hashes = sent.changes.as_deref().ok_or_else(missing)?;
    at_most(hashes.len(), CHANGES_MAX)?;
    Ok(hashes.iter().map(|hash| **hash).collect())
}

fn missing() -> FrameError {
    FrameError::Encoding("a field is missing".to_owned())
}

fn at_most(found: usize, max: usize) -> Result<(), FrameError> {
    if found > max { Err(FrameError::TooMany { found, max }) } else { Ok(()) }
}

/// Frames over a stream.
pub(super) struct Frames<S> {
    framed: Framed<S, LengthDelimitedCodec>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    pub(super) fn new(stream: S) -> Self {
        let codec =
            LengthDelimitedCodec::builder().length_field_length(4).max_frame_length(FRAME_BYTES_MAX).new_codec();
        Self { framed: Framed::new(stream, codec) }
    }

    pub(super) async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.framed.send(frame.encode().as_slice()).await
    }

    /// Reads the next frame of a known kind; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> io::Result<Option<Frame>> {
        while let Some(bytes) = self.framed.next().await {
            let mut bytes = bytes?;
            let frame = Frame::decode(&bytes);
            // A key may be in it.
            bytes[..].zeroize();
            match frame.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
                Frame::Unknown { kind } => tracing::debug!(kind, "a frame of an unknown kind is passed over"),
                frame => return Ok(Some(frame)),
            }
        }
        Ok(None)
    }

    /// Ends this side of the stream.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        // All frames were flushed when they were sent.
        self.framed.get_mut().shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::super::{Generation, OwnerKey};
    use super::*;

    fn node(seed: u8) -> NodeId {
        NodeKey::from_secret(&[seed; 32]).node_id()
    }

    fn frames() -> Vec<Frame> {
        let key = SwarmKey::from_bytes([3; 32]);
        let change = SignedChange::sign(&OwnerKey::from_secret(&[1; 32]), Generation(2), &key, [node(7)].into());
        let change = Box::new(change);
        vec![
            Frame::Offer { swarm_id: "open".to_owned(), changes: vec![[1; 32], [2; 32]] },
            Frame::Want { changes: vec![] },
            Frame::Change { change: change.clone(), key: Some(key), within_ms: 5_000 },
            Frame::Change { change, key: None, within_ms: 0 },
            Frame::Ack { change: [1; 32], stored: true },
            Frame::Passed {
                reached: peer_key::to_sorted([&node(1), &node(2)])
                    .iter()
                    .map(|k| peer_key::from_bytes(k).unwrap())
                    .collect(),
            },
        ]
    }

    #[tokio::test]
    async fn frames_are_read_as_they_were_sent_and_unknown_ones_are_passed_over() {
        let (here, there) = tokio::io::duplex(1 << 20);
        let (mut here, mut there) = (Frames::new(here), Frames::new(there));
        for frame in frames() {
            here.send(&Frame::Unknown { kind: 99 }).await.unwrap();
            here.send(&frame).await.unwrap();
        }
        here.finish().await.unwrap();
        for frame in frames() {
            assert_eq!(there.next().await.unwrap(), Some(frame));
        }
        assert_eq!(there.next().await.unwrap(), None);
    }

    /// As the first version wrote them, with their lengths: these bytes are what peers of that version send and expect.
    const RECORDED: [&str; 6] = [
        "0000004fa3000001646f70656e02825820010101010101010101010101010101010101010101010101010101010101010158\
         200202020202020202020202020202020202020202020202020202020202020202",
        "00000005a200010280",
        "000000cca4000203589fa5007072726f7767626174696a637a3361336201020258209d546fd02ae5bac1860f087999422130\
         a3d9517b33a6927fde2984ecb251d6be03815820ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446\
         d22c045840db72d1a0c7bf3bfc8a9f6d2539da20dbd455cef6b6f307b073a5bdd1f0accdf6157213e4ad670d8f1a5b8c01d5\
         5cbc414ba50aedc5fae9cf6f695a5d6e18860c04582003030303030303030303030303030303030303030303030303030303\
         0303030305191388",
        "000000a7a3000203589fa5007072726f7767626174696a637a3361336201020258209d546fd02ae5bac1860f087999422130\
         a3d9517b33a6927fde2984ecb251d6be03815820ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446\
         d22c045840db72d1a0c7bf3bfc8a9f6d2539da20dbd455cef6b6f307b073a5bdd1f0accdf6157213e4ad670d8f1a5b8c01d5\
         5cbc414ba50aedc5fae9cf6f695a5d6e18860c0500",
        "00000029a3000302815820010101010101010101010101010101010101010101010101010101010101010106f5",
        "00000049a20004078258208139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b39458208a88e3dd74\
         09f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c",
    ];

    #[tokio::test]
    async fn frames_look_as_they_always_did() {
        let mut written = Vec::new();
        for frame in frames() {
            let (here, mut there) = tokio::io::duplex(1 << 10);
            Frames::new(here).send(&frame).await.unwrap();
            let mut bytes = Vec::new();
            there.read_to_end(&mut bytes).await.unwrap();
            written.push(hex::encode(&bytes));
        }
        assert_eq!(written, RECORDED);
    }

    #[tokio::test]
    async fn recorded_frames_are_read() {
        for (frame, recorded) in frames().into_iter().zip(RECORDED) {
            let (mut here, there) = tokio::io::duplex(1 << 10);
            here.write_all(&hex::decode(recorded).unwrap()).await.unwrap();
            drop(here);
            assert_eq!(Frames::new(there).next().await.unwrap(), Some(frame));
        }
    }

    #[tokio::test]
    async fn a_frame_that_says_it_is_long_is_refused_before_it_is_read() {
        let (mut here, there) = tokio::io::duplex(1 << 20);
        here.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let error = Frames::new(there).next().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn more_than_there_can_be_is_refused() {
        let offer = Frame::Offer { swarm_id: String::new(), changes: vec![[0; 32]; CHANGES_MAX + 1] };
        assert!(matches!(Frame::decode(&offer.encode()), Err(FrameError::TooMany { .. })));
        let mut sent = Sent::default();
        (sent.kind, sent.reached) = (PASSED, Some(vec![[0; 32].into(); NODES_MAX + 1]));
        assert!(matches!(Frame::decode(&minicbor::to_vec(&sent).unwrap()), Err(FrameError::TooMany { .. })));
    }

    #[test]
    fn a_list_that_says_it_is_long_takes_no_memory() {
        // {0: 1, 2: [2^63 elements
        let bytes = [0xa2, 0x00, 0x01, 0x02, 0x9b, 0x80, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(Frame::decode(&bytes), Err(FrameError::Encoding(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_bring_the_decoder_down(bytes: Vec<u8>, which in 0..6_usize, at: usize, flip: u8) {
            let _ = decode_frame(&bytes);
            let mut near = frames()[which].encode();
            let at = at % near.len();
            near[at] ^= flip;
            let _ = decode_frame(&near);
        }
    }
}
