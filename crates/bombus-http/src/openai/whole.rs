//! Whole numbers as clients write them: some write every number with a fraction, `150.0`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// Up to here every whole number has a floating-point number of its own.
const EXACT_MAX: f64 = (1_u64 << 53) as f64;

/// A whole number, written with or without a fraction of zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whole<T>(pub(super) T);

/// Reads a whole number that may be missing or `null`.
pub(crate) fn option<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: TryFrom<i128>,
    D: Deserializer<'de>,
{
    Ok(Option::<Whole<T>>::deserialize(deserializer)?.map(|whole| whole.0))
}

/// Returns the whole number that a floating-point number is.
pub(super) fn of_float(value: f64) -> Option<i128> {
    (value.fract() == 0.0 && value.abs() <= EXACT_MAX).then_some(value as i128)
}

impl<'de, T: TryFrom<i128>> Deserialize<'de> for Whole<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeVisitor<T>(PhantomData<T>);

        impl<T: TryFrom<i128>> WholeVisitor<T> {
            fn take<E: Error>(value: i128, found: Unexpected<'_>) -> Result<Whole<T>, E> {
                T::try_from(value).map(Whole).map_err(|_| E::custom(format!("{found} is out of range")))
            }
        }

        impl<T: TryFrom<i128>> Visitor<'_> for WholeVisitor<T> {
            type Value = Whole<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
                Self::take(value.into(), Unexpected::Unsigned(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
                Self::take(value.into(), Unexpected::Signed(value))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
                let found = Unexpected::Float(value);
                let whole = of_float(value).ok_or_else(|| E::invalid_value(found, &self))?;
                Self::take(whole, found)
            }
        }

        deserializer.deserialize_any(WholeVisitor(PhantomData))
    }
}
