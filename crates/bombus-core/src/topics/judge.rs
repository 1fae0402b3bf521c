//! Which messages are passed on.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{BoundsError, ReplayGuard, SCHEMA, Timestamp, Topic, TopicMessage, bounds};
use crate::identity::NodeId;

/// How far a message's timestamp may be from the clock of whoever reads it, in milliseconds either way.
pub const CLOCK_SKEW_MS_MAX: i64 = 5 * 60 * 1_000;

/// How much of a word of someone else is kept for display, in characters.
const EXCERPT_MAX: usize = 64;

/// What to do with a message.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "it is made and taken apart at once, and most messages are accepted")]
pub enum Judgement {
    /// Pass it on and act on it.
    Accept(TopicMessage),
    /// Do not pass it on, and hold it against nobody.
    Ignore {
        /// Why.
        reason: IgnoreReason,
        /// The message, where it holds apart from the reason. A node acts on it where the reason is the clock alone: whose clock
        /// is off is there all the same.
        message: Option<Box<TopicMessage>>,
    },
    /// Do not pass it on, and hold it against whoever did. All nodes judge these alike.
    Reject(RejectReason),
}

/// Why a message is ignored: by reasons that other nodes may see differently.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreReason {
    /// The sender's clock and ours are too far apart.
    #[error("the sender's clock is {} s {} ours", .skew_ms.unsigned_abs() / 1_000, if *.skew_ms > 0 { "ahead of" } else { "behind" })]
    ClockSkew {
        /// Milliseconds that the sender's clock is ahead of ours; negative where it is behind.
        skew_ms: i64,
    },
    /// It has been seen before, or is older than what has been forgotten.
    #[error("the message has been seen before")]
    Replayed,
    /// The sender publishes more than [`super::RateLimit::of`] this topic.
    #[error("the sender publishes too often")]
    TooOften,
    /// Its `type` is none of the seven.
    #[error("the message's type `{0}` is unknown here")]
    UnknownType(String),
    /// Its `schema` is newer than this program.
    #[error("the message is of schema {0}, which is newer than this program")]
    NewerSchema(u64),
}

/// Why a message is rejected: by reasons that all nodes see alike.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    /// The message or one of its fields is too large.
    #[error(transparent)]
    Bounds(#[from] BoundsError),
    /// It is no JSON object.
    #[error("the message is no JSON object")]
    NotJson,
    /// It has no `type`, or one that is no text.
    #[error("the message has no type")]
    NoType,
    /// It belongs on another topic.
    #[error("a message of type `{}` does not belong on the topic `{}`", .found.message_type(), .topic.name())]
    WrongTopic {
        /// Where it came.
        topic: Topic,
        /// Where it belongs.
        found: Topic,
    },
    /// A field is missing or of another type.
    #[error("the message is not as it should be: {0}")]
    Schema(String),
    /// The node that it names did not sign it.
    #[error("the message names `{claimed}` as its sender, which did not sign it")]
    SenderNotSigner {
        /// Who is named.
        claimed: String,
    },
}

/// Judges a message that `signer` signed, at the time `now` of the local wall clock. What is accepted is remembered in `seen`, so that
/// it is accepted once.
///
/// First comes what all nodes judge alike: size, JSON, schema, sender. Then what depends on this node's clock and memory: a message
/// seen before, a clock that is off by more than [`CLOCK_SKEW_MS_MAX`], a sender beyond its [`super::RateLimit`].
#[must_use]
pub fn judge(topic: Topic, signer: &NodeId, bytes: &[u8], now: Timestamp, seen: &mut ReplayGuard) -> Judgement {
    let message = match read(topic, bytes) {
        Ok(message) => message,
        Err(Refusal::Ignore(reason)) => return Judgement::Ignore { reason, message: None },
        Err(Refusal::Reject(reason)) => return Judgement::Reject(reason),
    };
    if let Some(claimed) = message.sender()
        && claimed != signer.as_str()
    {
        return Judgement::Reject(RejectReason::SenderNotSigner { claimed: excerpt(claimed) });
    }
    match seen.check(signer, topic, message.timestamp(), bytes, now) {
        None => Judgement::Accept(message),
        Some(reason) => {
            let holds = matches!(reason, IgnoreReason::ClockSkew { .. });
            Judgement::Ignore { reason, message: holds.then(|| Box::new(message)) }
        }
    }
}

/// Why a message is not even looked at further.
enum Refusal {
    Ignore(IgnoreReason),
    Reject(RejectReason),
}

impl From<RejectReason> for Refusal {
    fn from(reason: RejectReason) -> Self {
        Self::Reject(reason)
    }
}

impl From<BoundsError> for Refusal {
    fn from(error: BoundsError) -> Self {
        Self::Reject(error.into())
    }
}

/// Reads a message without regard to who sent it and when.
fn read(topic: Topic, bytes: &[u8]) -> Result<TopicMessage, Refusal> {
    bounds::check_size(bytes)?;
    let Ok(Value::Object(object)) = serde_json::from_slice(bytes) else {
        return Err(RejectReason::NotJson.into());
    };
    let Some(Value::String(name)) = object.get("type") else {
        return Err(RejectReason::NoType.into());
    };
    // Both before the fields: what a later version means by a message, today's rules cannot tell.
    let Some(found) = Topic::of_message_type(name) else {
        return Err(Refusal::Ignore(IgnoreReason::UnknownType(excerpt(name))));
    };
    if let Some(schema) = object.get("schema").and_then(Value::as_u64)
        && schema > SCHEMA
    {
        return Err(Refusal::Ignore(IgnoreReason::NewerSchema(schema)));
    }
    if found != topic {
        return Err(RejectReason::WrongTopic { topic, found }.into());
    }
    let message = body(topic, Value::Object(object))?;
    bounds::check(&message)?;
    Ok(message)
}

fn body(topic: Topic, value: Value) -> Result<TopicMessage, RejectReason> {
    Ok(match topic {
        Topic::Capabilities => TopicMessage::Capabilities(typed(value)?),
        Topic::TaskBroadcast => TopicMessage::Task(typed(value)?),
        Topic::TaskClaim => TopicMessage::TaskClaim(typed(value)?),
        Topic::TaskResult => TopicMessage::TaskResult(typed(value)?),
        Topic::PresencePing => TopicMessage::PresencePing(typed(value)?),
        Topic::TaskHelpRequest => TopicMessage::TaskHelpRequest(typed(value)?),
        Topic::TaskHelpResponse => TopicMessage::TaskHelpResponse(typed(value)?),
    })
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, RejectReason> {
    serde_json::from_value(value).map_err(|error| RejectReason::Schema(excerpt(&error.to_string())))
}

/// Shortens foreign text and takes out what could control a terminal, since reasons are logged.
fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT_MAX).map(|character| if character.is_control() { '?' } else { character }).collect()
}
