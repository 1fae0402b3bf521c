use std::path::PathBuf;

use figment::error::{Actual, Kind};

/// Says what is wrong with the configuration, where it stands, and where it can, what to write instead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file that was named is not there, or cannot be read.
    #[error("the configuration file {} cannot be read: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The file is neither TOML nor JSON by its name.
    #[error("the configuration file {} should end in .toml or .json", path.display())]
    UnknownType { path: PathBuf },
    /// The file breaks the rules of its language.
    #[error("{} is not valid {language}: {reason}", path.display())]
    Syntax { path: PathBuf, language: &'static str, reason: String },
    /// A key that means nothing.
    #[error("unknown key `{key}` in {origin}{}", did_you_mean(suggestion.as_deref()))]
    UnknownKey { key: String, origin: String, suggestion: Option<String> },
    /// A value of the wrong type, or outside its range.
    #[error("`{key}` in {origin}: {reason}")]
    WrongValue { key: String, origin: String, reason: String },
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|known| format!("; did you mean `{known}`?")).unwrap_or_default()
}

impl ConfigError {
    /// Translates what figment says about the value at `key`.
    pub(super) fn of_value(mut key: String, origin: String, kind: Kind) -> Self {
        let reason = match kind {
            Kind::UnknownField(field, known) => {
                let suggestion = nearest(&field, LIKE_AT_ALL, known.iter().copied());
                let prefix = if key.is_empty() { String::new() } else { format!("{key}.") };
                let suggestion = suggestion.map(|known| format!("{prefix}{known}"));
                // figment's path ends with the unknown field already in some cases.
                if !key.ends_with(&field) {
                    key = format!("{prefix}{field}");
                }
                return Self::UnknownKey { key, origin, suggestion };
            }
            Kind::InvalidType(found, expected) => format!("expected {}, found {}", plain(&expected), describe(&found)),
            Kind::InvalidValue(found, expected) => format!("expected {}, found {}", plain(&expected), describe(&found)),
            Kind::UnknownVariant(found, known) => format!("{found:?} is not one of {}", known.join(", ")),
            Kind::MissingField(field) => format!("`{field}` is missing"),
            Kind::ISizeOutOfRange(found) => format!("{found} is out of range"),
            Kind::USizeOutOfRange(found) => format!("{found} is out of range"),
            Kind::Message(reason) if reason.contains("socket address") => {
                "expected ADDR:PORT, for example 127.0.0.1:7890 or [::1]:7890; port 0 takes a free one".to_owned()
            }
            Kind::Message(reason) => reason,
            other => other.to_string(),
        };
        Self::WrongValue { key, origin, reason }
    }
}

/// Says what serde expected in words of people who write configuration.
fn plain(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "bool" | "a boolean" => "true or false",
        "string" | "a string" | "str" | "path string" => "a text in quotes",
        "a sequence" => "a list",
        other => other.strip_prefix("struct ").map_or(other, |_| "a table"),
    }
}

fn describe(found: &Actual) -> String {
    match found {
        Actual::Bool(value) => format!("{value}"),
        Actual::Unsigned(value) => format!("the number {value}"),
        Actual::Signed(value) => format!("the number {value}"),
        Actual::Float(value) => format!("the number {value}"),
        Actual::Str(value) => format!("the text {value:?}"),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// How like a known word an unknown one is that may be meant for it, from 0 to 1.
pub(super) const LIKE_AT_ALL: f64 = 0.75;
/// How like a known word an unknown one is that is surely meant for it.
pub(super) const LIKE_A_TYPO: f64 = 0.9;

/// Finds the known word that is most like `word`, if one is at least so like it.
pub(super) fn nearest<'a>(word: &str, least: f64, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(&word.to_lowercase(), candidate), candidate))
        .filter(|(likeness, _)| *likeness >= least)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
