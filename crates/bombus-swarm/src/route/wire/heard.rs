//! What a worker says, as the requester hears it.

use std::fmt;

use bombus_core::chat::{Answerer, ChatEvent, Delta, FinishReason, Timings, ToolCallDelta, Usage};
use bombus_core::model::{ModelDetails, RunningModel};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::super::failure::Failure;
use super::offers::ToldRunning;
use super::{Accepted, Declined, Embedded, MODELS_MAX, Vector};

/// A message of a worker as the requester hears it.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::route) enum Heard {
    Accepted(Accepted),
    Declined(Declined),
    Alive,
    Progress,
    Event(ChatEvent),
    Vector(Vector),
    Embedded(Embedded),
    Details(Box<ModelDetails>),
    Loaded(Vec<RunningModel>),
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
    Progress,
    AnsweredBy,
    Continued,
    Truncated,
    Waiting,
    Thinking,
    Delta,
    ToolCall,
    Done,
    Vector,
    Embedded,
    Details,
    Loaded,
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
                        Kind::Progress => {
                            map.next_value::<IgnoredAny>()?;
                            Heard::Progress
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
                        Kind::Waiting => {
                            map.next_value::<IgnoredAny>()?;
                            Heard::Event(ChatEvent::Waiting {})
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
                        Kind::Details => Heard::Details(map.next_value()?),
                        Kind::Loaded => {
                            let told: Vec<ToldRunning> = map.next_value()?;
                            Heard::Loaded(told.into_iter().take(MODELS_MAX).filter_map(ToldRunning::model).collect())
                        }
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
