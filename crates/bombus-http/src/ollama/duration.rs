//! How long a model stays loaded, as clients write it: a number of seconds, or a text in Go's notation of durations.

use std::fmt;

use bombus_core::chat::KeepAlive;
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// The value of `keep_alive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeepAliveField(pub(super) KeepAlive);

/// From here on a time is for ever: Go counts nanoseconds in 63 bits.
const FOREVER_S: f64 = 9_223_372_036.0;

fn keep_alive(seconds: f64) -> KeepAlive {
    if (0.0..FOREVER_S).contains(&seconds) {
        // A part of a second is not nothing: only 0 unloads at once.
        KeepAlive::Seconds(seconds.ceil() as u64)
    } else {
        KeepAlive::Forever
    }
}

/// Reads a text such as `5m`, `1h30m`, `1.5s` or `-1m`, or a plain number of seconds.
fn seconds(text: &str) -> Option<f64> {
    if let Ok(number) = text.parse::<f64>() {
        return number.is_finite().then_some(number);
    }
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let is_number = |character: char| character.is_ascii_digit() || character == '.';
    let mut total = 0.0;
    loop {
        let (number, from_unit) = rest.split_at(rest.find(|character| !is_number(character))?);
        let (unit, next) = from_unit.split_at(from_unit.find(is_number).unwrap_or(from_unit.len()));
        total += number.parse::<f64>().ok()? * unit_seconds(unit)?;
        if next.is_empty() {
            return Some(sign * total);
        }
        rest = next;
    }
}

fn unit_seconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "µs" | "μs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return None,
    })
}

impl<'de> Deserialize<'de> for KeepAliveField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeepAliveVisitor;

        impl Visitor<'_> for KeepAliveVisitor {
            type Value = KeepAliveField;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds or a duration such as \"5m\"")
            }

            fn visit_f64<E: Error>(self, seconds: f64) -> Result<Self::Value, E> {
                Ok(KeepAliveField(keep_alive(seconds)))
            }

            fn visit_u64<E: Error>(self, seconds: u64) -> Result<Self::Value, E> {
                self.visit_f64(seconds as f64)
            }

            fn visit_i64<E: Error>(self, seconds: i64) -> Result<Self::Value, E> {
                self.visit_f64(seconds as f64)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                let seconds = seconds(text).ok_or_else(|| E::custom(format!("invalid duration {text:?}")))?;
                self.visit_f64(seconds)
            }
        }

        deserializer.deserialize_any(KeepAliveVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> Option<KeepAlive> {
        serde_json::from_value::<KeepAliveField>(value).ok().map(|field| field.0)
    }

    #[test]
    fn numbers_are_seconds_and_texts_are_go_durations() {
        for (written, seconds) in [
            (json!(300), 300),
            (json!(0), 0),
            (json!(1.2), 2),
            (json!("0"), 0),
            (json!("0s"), 0),
            (json!("-0s"), 0),
            (json!("300"), 300),
            (json!("5m"), 300),
            (json!("5m0s"), 300),
            (json!("1h30m"), 5_400),
            (json!(".5m"), 30),
            (json!("+1.5h"), 5_400),
            (json!("1ns"), 1),
            (json!("1500ms"), 2),
            (json!("3µs"), 1),
        ] {
            assert_eq!(read(written.clone()), Some(KeepAlive::Seconds(seconds)), "{written}");
        }
    }

    #[test]
    fn what_is_negative_or_longer_than_go_can_count_is_for_ever() {
        for written in [json!(-1), json!(-0.5), json!("-1"), json!("-1m"), json!("2562048h"), json!(1e300)] {
            assert_eq!(read(written.clone()), Some(KeepAlive::Forever), "{written}");
        }
    }

    #[test]
    fn other_texts_and_types_are_refused() {
        for written in ["", "-", "m", "5 m", "5x", "5m5", "..m", "five", "inf", "NaN", "5mm"] {
            assert_eq!(read(json!(written)), None, "{written:?}");
        }
        for written in [json!(true), json!([5]), json!({})] {
            assert_eq!(read(written), None);
        }
    }

    proptest! {
        #[test]
        fn no_text_brings_it_down(text in "[-+0-9.hmsuµn]{0,40}") {
            read(json!(text));
        }

        #[test]
        fn parts_add_up(hours in 0_u64..1_000, minutes in 0_u64..10_000, seconds in 0_u64..100_000) {
            let total = hours * 3_600 + minutes * 60 + seconds;
            prop_assert_eq!(read(json!(format!("{hours}h{minutes}m{seconds}s"))), Some(KeepAlive::Seconds(total)));
        }
    }
}
