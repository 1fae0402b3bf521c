use std::fs;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Json, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};

use super::ConfigError;
use super::error::{LIKE_A_TYPO, LIKE_AT_ALL, nearest};

/// Values of one origin.
pub(super) struct Layer {
    /// Where they come from, as `config show` and errors name it.
    pub(super) origin: String,
    /// The values.
    pub(super) values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// Reads a configuration file, TOML or JSON by its name.
pub(super) fn read_file(path: &Path) -> Result<Layer, ConfigError> {
    let read = || fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source });
    let syntax = |language, reason| ConfigError::Syntax { path: path.to_owned(), language, reason };
    let values = match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => Toml::from_str(&read()?).map_err(|error| syntax("TOML", error.to_string()))?,
        Some("json") => Json::from_str(&read()?).map_err(|error| syntax("JSON", error.to_string()))?,
        _ => return Err(ConfigError::UnknownType { path: path.to_owned() }),
    };
    Ok(Layer { origin: format!("file {}", path.display()), values })
}

/// Names in the environment that are no configuration keys: they say where to look, and how to ask.
const NOT_KEYS: [&str; 2] = ["BOMBUS_DATA_DIR", "BOMBUS_CONFIG"];

/// Makes a layer of each variable `BOMBUS_*` whose name is a key's (`BOMBUS_API__LISTEN` for `api.listen`).
///
/// A name that is no key is never refused, and noted only if it looks like a mistyped one: other programs put such names into the
/// environment too, for example Kubernetes `BOMBUS_PORT` and `BOMBUS_SERVICE_HOST` for a service called `bombus`.
pub(super) fn environment(variables: &[(String, String)], known: &Dict) -> (Vec<Layer>, Vec<String>) {
    let mut layers = Vec::new();
    let mut notices = Vec::new();
    let mut variables: Vec<_> = variables.iter().filter(|(name, _)| !NOT_KEYS.contains(&name.as_str())).collect();
    variables.sort();
    for (name, text) in variables {
        let Some(rest) = name.strip_prefix("BOMBUS_") else { continue };
        let key = if rest == "LOG" { "log.level".to_owned() } else { rest.to_lowercase().replace("__", ".") };
        match leaf(known, &key) {
            Some(default) => {
                let origin = format!("environment {name}");
                layers.push(Layer { origin, values: nest(&key, parse(text, default)) });
            }
            None => {
                let keys = leaves(known);
                if let Some(meant) = nearest(&key, LIKE_A_TYPO, keys.iter().map(String::as_str)) {
                    let meant = format!("BOMBUS_{}", meant.replace('.', "__").to_uppercase());
                    notices.push(format!(
                        "the environment variable {name} is no setting and is ignored; did you mean {meant}?"
                    ));
                }
            }
        }
    }
    (layers, notices)
}

/// Makes a layer of a value that was given by a command-line flag. Of several values for a list each stands on a line of its own.
pub(super) fn flag(flag: &str, key: &str, text: &str, known: &Dict) -> Layer {
    let value = match leaf(known, key) {
        Some(Value::Array(..)) => Value::from(text.lines().collect::<Vec<_>>()),
        Some(Value::Bool(..)) => parse(text, &Value::from(true)),
        _ => Value::from(text),
    };
    Layer { origin: format!("flag {flag}"), values: nest(key, value) }
}

/// Finds the first key of a file that means nothing.
pub(super) fn unknown_key(values: &Dict, known: &Dict, origin: &str) -> Result<(), ConfigError> {
    check_table(values, known, "", &leaves(known), origin)
}

fn check_table(
    values: &Dict,
    known: &Dict,
    prefix: &str,
    all_known: &[String],
    origin: &str,
) -> Result<(), ConfigError> {
    for (key, value) in values {
        let path = format!("{prefix}{key}");
        match (known.get(key), value) {
            (Some(Value::Dict(_, known)), Value::Dict(_, values)) => {
                check_table(values, known, &format!("{path}."), all_known, origin)?;
            }
            (Some(_), _) => {}
            (None, _) => {
                let sections = known.keys().map(|key| format!("{prefix}{key}"));
                let candidates: Vec<String> = sections.chain(all_known.iter().cloned()).collect();
                // One that only lacks its section; of two such the first.
                let without_section = all_known.iter().find(|known| known.rsplit('.').next() == Some(path.as_str()));
                let alike = || nearest(&path, LIKE_AT_ALL, candidates.iter().map(String::as_str));
                let suggestion = without_section.map(String::as_str).or_else(alike).map(str::to_owned);
                return Err(ConfigError::UnknownKey { key: path, origin: origin.to_owned(), suggestion });
            }
        }
    }
    Ok(())
}

/// Lists the paths of all values that are not tables.
pub(super) fn leaves(table: &Dict) -> Vec<String> {
    let mut paths = Vec::new();
    for (key, value) in table {
        match value {
            Value::Dict(_, inner) => paths.extend(leaves(inner).into_iter().map(|path| format!("{key}.{path}"))),
            _ => paths.push(key.clone()),
        }
    }
    paths
}

fn leaf<'a>(known: &'a Dict, key: &str) -> Option<&'a Value> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    match (known.get(first)?, rest) {
        (Value::Dict(_, inner), Some(rest)) => leaf(inner, rest),
        (Value::Dict(..), None) | (_, Some(_)) => None,
        (value, None) => Some(value),
    }
}

/// Reads a variable's text as the type that the setting has by default: a name of digits stays a text, a list may be written
/// `a,b` as well as `["a", "b"]`.
fn parse(text: &str, default: &Value) -> Value {
    match default {
        Value::String(..) | Value::Empty(..) => Value::from(text),
        Value::Array(..) => match text.parse() {
            Ok(list @ Value::Array(..)) => list,
            // An address such as [::]:7891 begins with a bracket too.
            _ => Value::from(text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect::<Vec<_>>()),
        },
        _ => text.parse().unwrap_or_else(|never| match never {}),
    }
}

fn nest(key: &str, value: Value) -> Dict {
    match key.split_once('.') {
        Some((first, rest)) => Dict::from([(first.to_owned(), Value::from(nest(rest, value)))]),
        None => Dict::from([(key.to_owned(), value)]),
    }
}

/// Returns the configuration file that is read where none is named.
pub(crate) fn default_file() -> Option<PathBuf> {
    use etcetera::BaseStrategy;
    let dirs = etcetera::choose_base_strategy().ok()?;
    Some(dirs.config_dir().join("bombus").join("config.toml"))
}
