//! DAG-CBOR values, read and written in the one form that JavaScript keeps.
//!
//! A peer of `@orbitdb/core` checks a signature over bytes that it encodes anew from what it decoded. A value that comes out of that with other
//! bytes is refused there, so this codec is strict in both directions: what it writes survives, and what would not survive is not
//! read. The DAG-CBOR libraries at hand accept integral floats or unsorted keys, which is why this one stands here.
//!
//! Source: <https://ipld.io/specs/codecs/dag-cbor/spec/>, and section 4.2 of RFC 8949.

mod json;
mod map;
pub(crate) mod read;
#[cfg(test)]
mod tests;
pub(crate) mod write;

pub use json::JsonError;
pub use map::Map;

use read::Reader;

/// Greatest nesting of lists and maps in a value.
pub const DEPTH_MAX: usize = 64;

/// From this magnitude on JavaScript keeps an integral number as a float: 2^53.
const SAFE_INTEGER_LIMIT: f64 = 9_007_199_254_740_992.0;

/// A value of a block: what DAG-CBOR can say.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// An integer from 0 on. JavaScript reads those of 2^53 and above as `BigInt`, which JSON does not know.
    Unsigned(u64),
    /// The integer -1 - n.
    Negative(u64),
    /// A number with a fraction, or an integral one from 2^53 on. Written as an integer where JavaScript would.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Value>),
    /// A map, sorted by its keys.
    Map(Map),
    /// A link to another block: the bytes of its CID.
    Link(Vec<u8>),
}

/// Why bytes are not a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a value.
    #[error("the bytes end inside a value")]
    End,
    /// Bytes follow the value.
    #[error("bytes follow the value")]
    Trailing,
    /// An integer or a length is not in its shortest form.
    #[error("an integer or a length is not in its shortest form")]
    NotShortest,
    /// A form that DAG-CBOR leaves out: lengths without an end, simple values, short floats, other tags.
    #[error("a form that DAG-CBOR leaves out")]
    Form,
    /// A number that JavaScript would write otherwise: not finite, or an integral float.
    #[error("a number that JavaScript would write otherwise")]
    Number,
    /// Text is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// The keys of a map are not text, not sorted, or not different.
    #[error("the keys of a map are not text, not sorted, or not different")]
    Keys,
    /// Lists and maps are nested deeper than [`DEPTH_MAX`].
    #[error("lists and maps are nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// The value is of another kind than its place asks for.
    #[error("a value is of another kind than its place asks for")]
    Kind,
}

/// Why a value cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A number is infinite or not a number.
    #[error("a number is infinite or not a number: no peer would read it")]
    NotFinite,
    /// Lists and maps are nested deeper than [`DEPTH_MAX`].
    #[error("lists and maps are nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
}

impl Value {
    /// Reads the one value that the bytes are.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] for everything that would not be written back to the same bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let value = reader.value()?;
        reader.end()?;
        Ok(value)
    }

    /// Writes the value. Floats that JavaScript holds for integers are written as integers.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] for values that no peer would read.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = Vec::with_capacity(256);
        write::value(&mut bytes, self, DEPTH_MAX)?;
        Ok(bytes)
    }

    /// Returns the value under a key, of a map.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(map) => map.get(key),
            _ => None,
        }
    }

    /// Returns the text that this is.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the integer that this is, from 0 on.
    #[must_use]
    pub const fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(*number),
            _ => None,
        }
    }

    /// Returns the list that this is.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    /// Returns the map that this is.
    #[must_use]
    pub const fn as_map(&self) -> Option<&Map> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    /// Makes a map of pairs; of two with one key the later counts.
    pub fn map<K: Into<String>, V: Into<Self>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self::Map(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

/// Returns the integer as which JavaScript writes a float, if it does so.
fn integral(number: f64) -> Option<Value> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "integral and below 2^53 by the check")]
    (number.fract() == 0.0 && number.abs() < SAFE_INTEGER_LIMIT).then(|| {
        if number < 0.0 { Value::Negative((-number) as u64 - 1) } else { Value::Unsigned(number.abs() as u64) }
    })
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Unsigned(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Unsigned(value.into())
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        u64::try_from(value).map_or_else(|_| Self::Negative(!value.cast_unsigned()), Self::Unsigned)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        i64::from(value).into()
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        integral(value).unwrap_or(Self::Float(value))
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(value)
    }
}

impl From<Vec<Self>> for Value {
    fn from(value: Vec<Self>) -> Self {
        Self::List(value)
    }
}

impl From<Map> for Value {
    fn from(value: Map) -> Self {
        Self::Map(value)
    }
}
