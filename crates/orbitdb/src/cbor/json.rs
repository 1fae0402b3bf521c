//! Values as JSON, where bytes and links stand as DAG-JSON writes them: `{"/": {"bytes": "<base64>"}}` and `{"/": "<cid>"}`.
//!
//! Two things that peers in JavaScript may write have no form there, and get one after the same pattern: an integer below -2^63, and a map
//! whose only key is "/".
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
    /// A map whose only key is "/" and that is none of those that mean something else.
    #[error(
        "a map with the one key \"/\" must be {{\"/\": {{\"bytes\": \"<base64 without padding>\"}}}} or {{\"/\": \"<cid in base32>\"}}; \
         one that means itself is {{\"/\": {{\"map\": {{\"/\": ...}}}}}}, and {{\"/\": {{\"integer\": \"-...\"}}}} is an integer below -2^63"
    )]
    Reserved,
}

impl Value {
    /// Returns the value as JSON. Bytes become `{"/": {"bytes": "<base64 without padding>"}}`, links `{"/": "<cid in base32>"}`, integers below
    /// -2^63 `{"/": {"integer": "<decimal>"}}`, and a map whose only key is "/" `{"/": {"map": <the map>}}`. [`Value::from_json`] gives the same
    /// value back.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Bool(is) => Json::Bool(*is),
            Self::Unsigned(number) => Json::from(*number),
            Self::Negative(number) => {
                let number = -1 - i128::from(*number);
                let large = |_| json!({ "/": { "integer": number.to_string() } });
                i64::try_from(number).map_or_else(large, Json::from)
            }
            Self::Float(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
            Self::Text(text) => Json::String(text.clone()),
            Self::Bytes(bytes) => json!({ "/": { "bytes": BASE64_NOPAD.encode(bytes) } }),
            Self::List(list) => Json::Array(list.iter().map(Self::to_json).collect()),
            Self::Map(map) => {
                let pairs = map.iter().map(|(key, value)| (key.to_owned(), value.to_json()));
                let object = Json::Object(pairs.collect::<Object<_, _>>());
                if map.len() == 1 && map.get("/").is_some() { json!({ "/": { "map": object } }) } else { object }
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
                Some(inner) if object.len() == 1 => Self::from_reserved(inner)?,
                _ => Self::from_pairs(object)?,
            },
        })
    }

    fn from_pairs(object: &Object<String, Json>) -> Result<Self, JsonError> {
        let pairs = object.iter().map(|(key, value)| Ok((key.clone(), Self::from_json(value)?)));
        Ok(Self::Map(pairs.collect::<Result<Map, _>>()?))
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

    fn from_reserved(inner: &Json) -> Result<Self, JsonError> {
        if let Some(text) = inner.as_str() {
            return link(text).ok_or(JsonError::Reserved);
        }
        let object = inner.as_object().filter(|object| object.len() == 1);
        let (name, value) = object.and_then(|object| object.iter().next()).ok_or(JsonError::Reserved)?;
        let read = match (name.as_str(), value) {
            ("bytes", Json::String(text)) => BASE64_NOPAD.decode(text.as_bytes()).ok().map(Self::Bytes),
            ("integer", Json::String(text)) => large_negative(text),
            ("map", Json::Object(map)) if map.len() == 1 && map.contains_key("/") => return Self::from_pairs(map),
            _ => None,
        };
        read.ok_or(JsonError::Reserved)
    }
}

fn link(text: &str) -> Option<Value> {
    let cid = BASE32_NOPAD.decode(text.strip_prefix('b')?.to_uppercase().as_bytes()).ok()?;
    (!cid.is_empty()).then_some(Value::Link(cid))
}

/// Reads an integer from -2^64 to below -2^63: others are numbers in JSON.
fn large_negative(text: &str) -> Option<Value> {
    let number: i128 = text.parse().ok()?;
    let below = u64::try_from(-1 - number).ok()?;
    i64::try_from(number).is_err().then_some(Value::Negative(below))
}
