//! Values as JSON, where bytes and links stand as DAG-JSON writes them: `{"/": {"bytes": "<base64>"}}` and `{"/": "<cid>"}`.
//!
//! Source: <https://ipld.io/specs/codecs/dag-json/spec/>.

use data_encoding::{BASE32_NOPAD, BASE64_NOPAD};
use serde_json::{Map as Object, Number, Value as Json, json};

use super::{Map, Value};

/// Why JSON is not a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// A number that no peer would read back.
    #[error("the number {0} is out of range")]
    Number(String),
    /// A map whose only key is "/" and that is neither bytes nor a link.
    #[error(
        "a map with the one key \"/\" must be {{\"/\": {{\"bytes\": \"<base64 without padding>\"}}}} or {{\"/\": \"<cid in base32>\"}}"
    )]
    Reserved,
}

impl Value {
    /// Returns the value as JSON. Bytes become `{"/": {"bytes": "<base64 without padding>"}}`, links `{"/": "<cid in base32>"}`.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Bool(is) => Json::Bool(*is),
            Self::Unsigned(number) => Json::from(*number),
            Self::Negative(number) => {
                let number = -1 - i128::from(*number);
                i64::try_from(number).map_or_else(|_| json!(number.to_string()), Json::from)
            }
            Self::Float(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
            Self::Text(text) => Json::String(text.clone()),
            Self::Bytes(bytes) => json!({ "/": { "bytes": BASE64_NOPAD.encode(bytes) } }),
            Self::List(list) => Json::Array(list.iter().map(Self::to_json).collect()),
            Self::Map(map) => {
                Json::Object(map.iter().map(|(key, value)| (key.to_owned(), value.to_json())).collect::<Object<_, _>>())
            }
            Self::Link(cid) => json!({ "/": format!("b{}", BASE32_NOPAD.encode(cid).to_lowercase()) }),
        }
    }

    /// Makes a value of JSON, with bytes and links as [`Value::to_json`] writes them.
    ///
    /// # Errors
    ///
    /// [`JsonError`] for numbers out of range and for maps with the one key "/" that are neither.
    pub fn from_json(json: &Json) -> Result<Self, JsonError> {
        Ok(match json {
            Json::Null => Self::Null,
            Json::Bool(is) => Self::Bool(*is),
            Json::Number(number) => Self::from_number(number)?,
            Json::String(text) => Self::Text(text.clone()),
            Json::Array(list) => Self::List(list.iter().map(Self::from_json).collect::<Result<_, _>>()?),
            Json::Object(object) => match object.get("/") {
                Some(inner) if object.len() == 1 => Self::from_reserved(inner).ok_or(JsonError::Reserved)?,
                _ => {
                    let pairs = object.iter().map(|(key, value)| Ok((key.clone(), Self::from_json(value)?)));
                    Self::Map(pairs.collect::<Result<Map, _>>()?)
                }
            },
        })
    }

    fn from_number(number: &Number) -> Result<Self, JsonError> {
        if let Some(unsigned) = number.as_u64() {
            return Ok(unsigned.into());
        }
        if let Some(signed) = number.as_i64() {
            return Ok(signed.into());
        }
        let float = number.as_f64().filter(|float| float.is_finite());
        float.map(Self::from).ok_or_else(|| JsonError::Number(number.to_string()))
    }

    fn from_reserved(inner: &Json) -> Option<Self> {
        if let Some(text) = inner.as_str() {
            let cid = BASE32_NOPAD.decode(text.strip_prefix('b')?.to_uppercase().as_bytes()).ok()?;
            return (!cid.is_empty()).then_some(Self::Link(cid));
        }
        let object = inner.as_object().filter(|object| object.len() == 1)?;
        let bytes = object.get("bytes")?.as_str()?;
        BASE64_NOPAD.decode(bytes.as_bytes()).ok().map(Self::Bytes)
    }
}
