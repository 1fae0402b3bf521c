//! What travels: frames, and the messages in them.
//!
//! A message is CBOR in one or several frames. A frame is a length as four bytes, big-endian, and so many bytes, at most 1 MiB; the highest bit
//! of the length says that the message goes on in the next frame. Fields and kinds of messages that are not known are passed over, so that
//! later versions can say more.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bombus_core::chat::{Answerer, ChatEvent, Delta, FinishReason, Timings, ToolCallDelta, Usage};
use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::io::AsyncRead;
use tokio_util::bytes::{Buf, BytesMut};
use tokio_util::io::poll_read_buf;

use super::failure::Failure;

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

const MORE: u32 = 1 << 31;
/// How much is read at once.
const READ_BYTES: usize = 16 * 1024;

/// Appends a message in as many frames as it needs.
///
/// # Errors
///
/// When it cannot be written as CBOR, which what is sent here always can.
pub(super) fn push(out: &mut Vec<u8>, message: &impl Serialize) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let written = ciborium::into_writer(message, &mut *out);
    if let Err(error) = written {
        out.truncate(start);
        return Err(io::Error::other(error.to_string()));
    }
    let length = out.len() - start - 4;
    if length <= FRAME_BYTES_MAX {
        out[start..start + 4].copy_from_slice(&(length as u32).to_be_bytes());
        return Ok(());
    }
    let message = out.split_off(start + 4);
    out.truncate(start);
    let mut frames = message.chunks(FRAME_BYTES_MAX).peekable();
    while let Some(frame) = frames.next() {
        let more = if frames.peek().is_some() { MORE } else { 0 };
        out.extend_from_slice(&(frame.len() as u32 | more).to_be_bytes());
        out.extend_from_slice(frame);
    }
    Ok(())
}

/// Takes messages out of the bytes of a stream.
pub(super) struct Messages {
    bytes: BytesMut,
    /// The frames so far of a message that takes several.
    begun: Vec<u8>,
    max: usize,
}

impl Messages {
    /// Reads messages of at most so many bytes.
    pub(super) fn up_to(max: usize) -> Self {
        Self { bytes: BytesMut::new(), begun: Vec::new(), max }
    }

    /// Reads larger or smaller messages from now on.
    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Forgets what was read and is no whole message.
    pub(super) fn discard(&mut self) {
        self.bytes.clear();
    }

    /// Takes the next message, if all of it is there.
    ///
    /// # Errors
    ///
    /// When it is larger than it may be, or is none.
    pub(super) fn next<T: for<'de> Deserialize<'de>>(&mut self) -> io::Result<Option<T>> {
        while let Some(head) = self.bytes.first_chunk::<4>() {
            let head = u32::from_be_bytes(*head);
            let (length, more) = ((head & !MORE) as usize, head & MORE != 0);
            if length > FRAME_BYTES_MAX || self.begun.len() + length > self.max {
                return Err(invalid(format!("a message of more than {} bytes", self.max.min(FRAME_BYTES_MAX))));
            }
            if length == 0 && more {
                return Err(invalid("an empty frame where more was announced".to_owned()));
            }
            if self.bytes.len() < 4 + length {
                return Ok(None);
            }
            self.bytes.advance(4);
            let frame = self.bytes.split_to(length);
            if more {
                self.begun.extend_from_slice(&frame);
                continue;
            }
            if self.begun.is_empty() {
                return decode(&frame).map(Some);
            }
            let mut message = std::mem::take(&mut self.begun);
            message.extend_from_slice(&frame);
            return decode(&message).map(Some);
        }
        Ok(None)
    }

    /// Reads more bytes; none at the stream's end. To be called only where [`Messages::next`] has nothing, so that no more waits here than
    /// one frame and what was read with its end.
    pub(super) fn poll_fill(
        &mut self,
        stream: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.bytes.reserve(READ_BYTES);
        Poll::Ready(ready!(poll_read_buf(stream, cx, &mut self.bytes)))
    }
}

fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> io::Result<T> {
    ciborium::from_reader(bytes).map_err(|error| invalid(error.to_string()))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

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
    /// `chat` or `embed`.
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

/// How busy a node is, as one peer is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Load {
    /// Requests that it answers, for whomever.
    pub(super) running: u32,
    /// Requests that wait, for whomever.
    pub(super) waiting: u32,
    /// How many of both are the peer's.
    pub(super) ours: u32,
    /// How many it answers at a time.
    pub(super) slots: Option<u32>,
    pub(super) draining: bool,
    pub(super) paused: bool,
}

/// What a node tells a peer of what it offers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Telling<'a> {
    pub(super) v: u32,
    /// All models that the peer may use, where they have changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) models: Option<&'a [ModelInfo]>,
    pub(super) load: Load,
}

/// The same as it is heard.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Told {
    #[serde(default)]
    models: Option<Vec<ToldModel>>,
    #[serde(default)]
    pub(super) load: Load,
}

impl Told {
    /// Takes the models, without those that are none.
    pub(super) fn models(&mut self) -> Option<Vec<ModelInfo>> {
        let models = self.models.take()?;
        Some(models.into_iter().take(MODELS_MAX).filter_map(ToldModel::info).collect())
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct ToldModel {
    name: String,
    #[serde(default)]
    size_bytes: Option<u64>,
    #[serde(default)]
    sha256: Option<String>,
    #[serde(default)]
    modified_unix_s: u64,
    #[serde(default)]
    family: Option<String>,
    #[serde(default)]
    parameters: Option<u64>,
    #[serde(default)]
    quantization: Option<String>,
    #[serde(default)]
    context_tokens: Option<u32>,
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default)]
    warm: bool,
    #[serde(default)]
    continues: bool,
}

impl ToldModel {
    fn info(self) -> Option<ModelInfo> {
        let short = |text: String| cut(text, NAME_BYTES_MAX);
        let is_hash = |hash: &String| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(ModelInfo {
            name: ModelName::parse(&self.name).ok()?,
            size_bytes: self.size_bytes,
            sha256: self.sha256.filter(is_hash).map(|hash| hash.to_ascii_lowercase()),
            modified_unix_s: self.modified_unix_s,
            family: self.family.map(short),
            parameters: self.parameters,
            quantization: self.quantization.map(short),
            context_tokens: self.context_tokens,
            capabilities: self.capabilities.iter().take(16).filter_map(|word| capability(word)).collect(),
            warm: self.warm,
            continues: self.continues,
        })
    }
}

fn capability(word: &str) -> Option<ModelCapability> {
    Some(match word {
        "completion" => ModelCapability::Completion,
        "tools" => ModelCapability::Tools,
        "embedding" => ModelCapability::Embedding,
        "vision" => ModelCapability::Vision,
        "thinking" => ModelCapability::Thinking,
        "insert" => ModelCapability::Insert,
        _ => return None,
    })
}

/// What a worker says beside the [`ChatEvent`]s of an answer, which are messages of their own.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    Accepted(Accepted),
    Declined(Declined),
    /// It is still at it.
    Alive {},
    /// One of the vectors that were asked for, in the order of the inputs.
    Vector(Vector),
    /// All vectors have been said.
    Embedded(Embedded),
    /// It ended with an error.
    Error(Failure),
}

/// The end of what came of a request for vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Embedded {
    #[serde(default)]
    pub(super) prompt_tokens: u32,
}

/// An embedding vector: its numbers with four bytes each, little-endian.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Vector(pub(super) Vec<f32>);

impl Serialize for Vector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|number| number.to_le_bytes()).collect();
        serializer.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Vector;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a vector")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Vector, E> {
                let (numbers, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                Ok(Vector(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect()))
            }
        }

        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// A message of a worker as the requester hears it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Heard {
    Accepted(Accepted),
    Declined(Declined),
    Alive,
    Event(ChatEvent),
    Vector(Vector),
    Embedded(Embedded),
    Error(Failure),
    /// Something that a later version says.
    Unknown,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Kind {
    Accepted,
    Declined,
    Alive,
    AnsweredBy,
    Continued,
    Truncated,
    Thinking,
    Delta,
    ToolCall,
    Done,
    Vector,
    Embedded,
    Error,
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct Continued {
    by: Answerer,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Truncated {
    #[serde(default)]
    messages: u32,
    #[serde(default)]
    prompt_tokens: u32,
}

#[derive(Deserialize)]
struct Done {
    finish: FinishReason,
    usage: Usage,
    timings: Timings,
    #[serde(default)]
    tokens: Vec<u32>,
}

impl<'de> Deserialize<'de> for Heard {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Message;

        impl<'de> Visitor<'de> for Message {
            type Value = Heard;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a message by its kind")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Heard, A::Error> {
                let mut heard = Heard::Unknown;
                while let Some(kind) = map.next_key::<Kind>()? {
                    if heard != Heard::Unknown {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    heard = match kind {
                        Kind::Accepted => Heard::Accepted(map.next_value()?),
                        Kind::Declined => Heard::Declined(map.next_value()?),
                        Kind::Alive => {
                            map.next_value::<IgnoredAny>()?;
                            Heard::Alive
                        }
                        Kind::AnsweredBy => Heard::Event(ChatEvent::AnsweredBy(map.next_value()?)),
                        Kind::Continued => {
                            let Continued { by, reason } = map.next_value()?;
                            Heard::Event(ChatEvent::Continued { by, reason })
                        }
                        Kind::Truncated => {
                            let Truncated { messages, prompt_tokens } = map.next_value()?;
                            Heard::Event(ChatEvent::Truncated { messages, prompt_tokens })
                        }
                        Kind::Thinking => Heard::Event(ChatEvent::Thinking(map.next_value::<Delta>()?)),
                        Kind::Delta => Heard::Event(ChatEvent::Delta(map.next_value::<Delta>()?)),
                        Kind::ToolCall => Heard::Event(ChatEvent::ToolCall(map.next_value::<ToolCallDelta>()?)),
                        Kind::Done => {
                            let Done { finish, usage, timings, tokens } = map.next_value()?;
                            Heard::Event(ChatEvent::Done { finish, usage, timings, tokens })
                        }
                        Kind::Vector => Heard::Vector(map.next_value()?),
                        Kind::Embedded => Heard::Embedded(map.next_value()?),
                        Kind::Error => Heard::Error(map.next_value()?),
                        Kind::Unknown => {
                            map.next_value::<IgnoredAny>()?;
                            Heard::Unknown
                        }
                    };
                }
                Ok(heard)
            }
        }

        deserializer.deserialize_map(Message)
    }
}

#[cfg(test)]
mod tests;
