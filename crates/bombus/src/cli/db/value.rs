//! What people write for a value: JSON, or a text without quotes.

use std::io::Read;

use anyhow::{Context, Result};
use bombus_http::databases::exact_json;
use serde_json::Value;

use crate::failure::{Exit, Failure};

/// Longest value that is read from a pipe. The node takes less.
const VALUE_BYTES_MAX: u64 = 64 << 20;

/// Reads a value of the command line; `-` stands for what comes on stdin.
pub(super) fn of_argument(text: &str) -> Result<Value> {
    if text != "-" {
        return of_text(text);
    }
    let mut piped = String::new();
    std::io::stdin().take(VALUE_BYTES_MAX).read_to_string(&mut piped).context("stdin cannot be read")?;
    of_text(piped.trim_end_matches(['\r', '\n']))
}

/// Reads JSON; what is none is a text, unless it begins like an object, a list or a text in quotes.
pub(super) fn of_text(text: &str) -> Result<Value> {
    match exact_json(text.as_bytes()) {
        Ok(value) => Ok(value),
        Err(error) if error.is_data() => Err(Failure::new(Exit::Usage, error.to_string()).into()),
        Err(error) if text.trim_start().starts_with(['{', '[', '"']) => {
            let hint = "put single quotes around JSON, so that the shell leaves it as it is: '{\"a\": 1}'";
            Err(Failure::new(Exit::Usage, format!("the value is not valid JSON: {error}")).hint(hint).into())
        }
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_json_is_a_text() {
        for (text, wanted) in [
            ("Bern", json!("Bern")),
            ("", json!("")),
            ("3", json!(3)),
            ("\"3\"", json!("3")),
            ("03", json!("03")),
            ("true", json!(true)),
            ("{\"a\":[1.5]}", json!({ "a": [1.5] })),
            ("two words", json!("two words")),
        ] {
            assert_eq!(of_text(text).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn an_integer_that_no_64_bits_hold_is_neither_rounded_nor_a_text() {
        for text in ["18446744073709551616", "{\"n\": -9223372036854775809}"] {
            assert!(of_text(text).unwrap_err().to_string().contains("an integer is not from"), "{text}");
        }
        assert_eq!(of_text("18446744073709551615").unwrap(), json!(u64::MAX));
    }

    #[test]
    fn json_with_a_slip_in_it_is_not_taken_for_a_text() {
        for text in ["{a: 1}", "[1,", "\"open", " {"] {
            assert!(of_text(text).unwrap_err().to_string().contains("not valid JSON"), "{text}");
        }
    }
}
