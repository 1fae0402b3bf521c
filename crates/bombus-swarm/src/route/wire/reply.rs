//! What a worker says, beside the events of an answer.

use std::fmt;

use bombus_core::model::{ModelDetails, RunningModel};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::failure::Failure;
use super::{Accepted, Declined};

/// What a worker says beside the [`ChatEvent`]s of an answer, which are messages of their own.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::route) enum Reply {
    Accepted(Accepted),
    Declined(Declined),
    /// It is still at it.
    Alive {},
    /// The same, and more of the vectors that were asked for has been made. Earlier versions pass it over.
    Progress {},
    /// One of the vectors that were asked for, in the order of the inputs.
    Vector(Vector),
    /// All vectors have been said.
    Embedded(Embedded),
    /// What there is to know about the model that was asked about.
    Details(Box<ModelDetails>),
    /// The models in memory that the requester may use.
    Loaded(Vec<RunningModel>),
    /// It ended with an error.
    Error(Failure),
}

/// The end of what came of a request for vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::route) struct Embedded {
    #[serde(default)]
    pub(in crate::route) prompt_tokens: u32,
    /// How long the model took to load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::route) load_ms: Option<f64>,
    /// The backend that made them, and the model's name there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(in crate::route) backend: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(in crate::route) model: String,
}

/// An embedding vector: its numbers with four bytes each, little-endian.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::route) struct Vector(pub(in crate::route) Vec<f32>);

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
