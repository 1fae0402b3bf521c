//! Keys, in the form in which entries have them.

use crate::cbor::Value;

/// A key: a text, or a number, true or false, each of which has a text that names it.
///
/// As peers in JavaScript show it, what has the same text is one key, 5 and "5" as well, and its newest entry decides. They get and delete a document
/// by the value itself, though, so its form is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    text: String,
    /// None for a text.
    value: Option<Box<Value>>,
}

impl Key {
    /// Makes a key of a value; none of what is no text, no finite number, and neither true nor false.
    #[must_use]
    pub fn of(value: Value) -> Option<Self> {
        let value = match value {
            Value::Text(text) => return Some(text.into()),
            // One that is whole is written as an integer, and so named as one.
            Value::Float(number) => number.into(),
            other => other,
        };
        let text = match &value {
            Value::Bool(is) => is.to_string(),
            Value::Unsigned(number) => number.to_string(),
            Value::Negative(number) => (-1 - i128::from(*number)).to_string(),
            Value::Float(number) => text_of(*number)?,
            _ => return None,
        };
        Some(Self { text, value: Some(Box::new(value)) })
    }

    /// Returns the text that names it: as JavaScript writes a number, and `true` or `false`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns what stands in an entry.
    #[must_use]
    pub fn into_value(self) -> Value {
        self.value.map_or(Value::Text(self.text), |value| *value)
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self { text, value: None }
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.text
    }
}

/// Writes a number as JavaScript does; none if it is not finite.
///
/// Source: ECMA-262, Number::toString.
fn text_of(number: f64) -> Option<String> {
    if !number.is_finite() {
        return None;
    }
    if (1e-6..1e21).contains(&number.abs()) {
        return Some(number.to_string());
    }
    let text = format!("{number:e}");
    Some(if text.contains("e-") { text } else { text.replace('e', "e+") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_as_javascript_names_it_and_keeps_its_form() {
        for (value, text) in [
            (Value::from("5"), "5"),
            (5_u64.into(), "5"),
            (u64::MAX.into(), "18446744073709551615"),
            ((-3_i64).into(), "-3"),
            (1.5.into(), "1.5"),
            ((-0.25).into(), "-0.25"),
            (1e-6.into(), "0.000001"),
            (1.5e-7.into(), "1.5e-7"),
            (5e-324.into(), "5e-324"),
            (1e20.into(), "100000000000000000000"),
            (2_f64.powi(60).into(), "1152921504606847000"),
            (1e21.into(), "1e+21"),
            ((-1.25e300).into(), "-1.25e+300"),
            (true.into(), "true"),
            (false.into(), "false"),
        ] {
            let key = Key::of(value.clone()).unwrap();
            assert_eq!((key.as_str(), key.clone().into_value()), (text, value));
        }
        // As they are written, and come back.
        assert_eq!(Key::of(Value::Float(-0.0)), Key::of(0_u64.into()));
        assert_eq!(Key::of(Value::Float(7.0)), Key::of(7_u64.into()));
    }

    #[test]
    fn what_names_nothing_is_no_key() {
        for value in [
            Value::Null,
            Value::Float(f64::NAN),
            Value::Float(f64::INFINITY),
            vec![1_u8].into(),
            vec![Value::Null].into(),
            Value::map([("a", 1_u64)]),
        ] {
            assert_eq!(Key::of(value.clone()), None, "{value:?}");
        }
    }
}
