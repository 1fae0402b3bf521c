//! What an entry does to its database.

use super::Key;
use crate::cbor::Value;

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Gives a key its value.
    Put,
    /// Takes a key away.
    Del,
    /// Adds an event.
    Add,
}

/// What an entry does to its database.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// The kind.
    pub op: Op,
    /// The key; none for events.
    pub key: Option<Key>,
    /// The value; [`Value::Null`] when a key is taken away.
    pub value: Value,
}

impl Op {
    const fn name(self) -> &'static str {
        match self {
            Self::Put => "PUT",
            Self::Del => "DEL",
            Self::Add => "ADD",
        }
    }
}

impl Operation {
    /// Gives a key its value.
    pub fn put(key: impl Into<Key>, value: impl Into<Value>) -> Self {
        Self { op: Op::Put, key: Some(key.into()), value: value.into() }
    }

    /// Takes a key away.
    pub fn del(key: impl Into<Key>) -> Self {
        Self { op: Op::Del, key: Some(key.into()), value: Value::Null }
    }

    /// Adds an event.
    pub fn add(value: impl Into<Value>) -> Self {
        Self { op: Op::Add, key: None, value: value.into() }
    }

    /// Returns the payload that says this.
    #[must_use]
    pub fn into_payload(self) -> Value {
        let key = self.key.map_or(Value::Null, Key::into_value);
        Value::map([("op", self.op.name().into()), ("key", key), ("value", self.value)])
    }

    /// Reads a payload; none when it is no operation that is known.
    #[must_use]
    pub fn from_payload(payload: Value) -> Option<Self> {
        let Value::Map(mut fields) = payload else { return None };
        let op = match fields.get("op")?.as_text()? {
            "PUT" => Op::Put,
            "DEL" => Op::Del,
            "ADD" => Op::Add,
            _ => return None,
        };
        let key = fields.remove("key").and_then(Key::of);
        // A put or a deletion without a key touches nothing.
        (key.is_some() || op == Op::Add).then(|| Self { op, key, value: fields.remove("value").unwrap_or(Value::Null) })
    }
}
