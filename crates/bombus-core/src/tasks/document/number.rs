//! Numbers that JavaScript wrote: times may have fractions there.

use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Whole(u64),
    Real(f64),
}

impl From<Number> for u64 {
    fn from(number: Number) -> Self {
        match number {
            Number::Whole(number) => number,
            // Saturates; what is negative becomes 0.
            Number::Real(number) => number as Self,
        }
    }
}

pub(crate) fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(Number::deserialize(deserializer)?.into())
}

pub(crate) fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<Number>::deserialize(deserializer)?.map(Into::into))
}
