//! What travels: frames, and the messages in them.
//!
//! A message is CBOR in one or several frames. A frame is a length as four bytes, big-endian, and so many bytes, at most 1 MiB; the highest bit
//! of the length says that the message goes on in the next frame. Fields and kinds of messages that are not known are passed over, so that
//! later versions can say more.

mod frames;
pub(crate) mod fuzzing;
mod heard;
mod offers;
mod reply;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub(crate) use frames::{Messages, push};
pub(super) use heard::Heard;
pub(super) use offers::{Load, Telling, Told};
pub(super) use reply::{Embedded, Reply, Vector};

/// Most bytes of a frame, without its length.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of a request: 32 MiB of texts and pictures, and room for what stands around them.
pub const REQUEST_BYTES_MAX: usize = 32 * 1024 * 1024 + 64 * 1024;
/// Most bytes of any other message to a requester: room for the tokens of the longest contexts.
pub(super) const REPLY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most bytes of the message that announces a request.
pub(super) const ASK_BYTES_MAX: usize = 4 * 1024;
/// Most bytes of a message about what a node offers.
pub(super) const OFFER_BYTES_MAX: usize = 1024 * 1024;
/// Most models that a node offers; those beyond are left out.
pub(super) const MODELS_MAX: usize = 256;
/// The version of both protocols that this program speaks. Whoever answers takes the lower one of both sides.
pub(super) const VERSION: u32 = 1;
/// Most bytes of names that come from peers.
pub(super) const NAME_BYTES_MAX: usize = 256;
/// Most bytes of sentences that come from peers.
pub(super) const TEXT_BYTES_MAX: usize = 2 * 1024;

/// Cuts a text from a peer to at most so many bytes.
pub(super) fn cut(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

/// Announces a request, which is the message that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ask {
    /// The highest version that the requester speaks.
    pub(super) v: u32,
    /// Names the request in logs on both sides.
    #[serde(default)]
    pub(super) id: String,
    /// `chat` or `embed`; or a question about models, which takes no slot: `details` of one, or which are `loaded`.
    pub(super) kind: String,
    /// The model, as in the request.
    pub(super) model: String,
    /// How many bytes the request has, without the lengths of its frames.
    pub(super) bytes: u64,
}

/// What a worker says first: that it takes the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Accepted {
    /// The version that is spoken from here on.
    pub(super) v: u32,
}

/// What a worker says first: that it does not take the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Declined {
    pub(super) reason: Reason,
    /// The same for people.
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) load: Load,
}

/// Why a request is declined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reason {
    /// The node answers for nobody else.
    NotServing,
    /// It does not answer for this peer.
    NotAllowed,
    /// It does not share this model.
    NotShared,
    /// Its owner keeps it for himself for now.
    Paused,
    /// It is about to go.
    Draining,
    /// All slots and places in the queue are taken.
    Full,
    /// The request is larger than it may be.
    TooLarge,
    /// The request cannot be read.
    Malformed,
    /// Something that a later version says.
    #[serde(other)]
    Unknown,
}

impl Reason {
    /// Says it in words, about the node that declines.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::NotServing => "it answers for no other node",
            Self::NotAllowed => "its owner answers for other nodes only",
            Self::NotShared => "it does not share this model",
            Self::Paused => "its owner keeps it for himself for now",
            Self::Draining => "it is about to go",
            Self::Full => "it has too much to do",
            Self::TooLarge => "the request is too large",
            Self::Malformed | Self::Unknown => {
                "it cannot read the request; the versions of the two nodes may be too far apart"
            }
        }
    }
}
