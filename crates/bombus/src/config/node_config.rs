//! The field names of `NodeConfig`, the configuration of an earlier swarm program whose JSON files people have.

use std::net::Ipv6Addr;

use figment::value::{Dict, Value};

use super::ConfigError;

/// Fields with the sections and settings that they become.
const SETTINGS: [(&str, &str, &str); 5] = [
    ("logLevel", "log", "level"),
    ("listenAddresses", "p2p", "listen"),
    ("bootstrapPeers", "p2p", "seeds"),
    ("models", "share", "models"),
    ("maxConcurrentTasks", "tasks", "max_concurrent"),
];
/// What there is to say about the field that becomes none.
const NO_DIRECTORY: &str =
    "orbitDbDirectory is ignored: databases lie in the data directory, which --data-dir or BOMBUS_DATA_DIR chooses";

/// Replaces `NodeConfig` fields by the settings that they mean, and takes out the one that means none. Returns what there is to say about
/// the latter.
///
/// `nodeId` was a free text there and becomes `name`; `models` were those that the node serves to others, and the first of them was the default
/// model. Its Ollama comes after the embedded engine, where the build has one.
pub(super) fn translate(values: &mut Dict, origin: &str) -> Result<Option<&'static str>, ConfigError> {
    if let Some(name) = values.remove("nodeId") {
        values.entry("name".to_owned()).or_insert(name);
    }
    if let Some(models) = values.get("models") {
        let Value::Array(_, models) = models else {
            let reason = "expected a list of model names".to_owned();
            return Err(ConfigError::WrongValue { key: "models".into(), origin: origin.to_owned(), reason });
        };
        if let Some(first) = models.first().cloned() {
            values.entry("default_model".to_owned()).or_insert(first);
        }
    }
    for (field, section, setting) in SETTINGS {
        if let Some(value) = values.remove(field)
            && let Value::Dict(_, table) = values.entry(section.to_owned()).or_insert_with(|| Value::from(Dict::new()))
        {
            table.entry(setting.to_owned()).or_insert(value);
        }
    }
    let (host, port) = (values.remove("ollamaHost"), values.remove("ollamaPort"));
    if host.is_some() || port.is_some() {
        let host = host.map_or_else(|| Ok("127.0.0.1".to_owned()), |host| text(&host, "ollamaHost", origin))?;
        let host = if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host };
        let port = port.map_or_else(|| Ok("11434".to_owned()), |port| text(&port, "ollamaPort", origin))?;
        let engine = cfg!(feature = "embedded").then(|| vec![("kind", "embedded".to_owned())]);
        let ollama = vec![("kind", "ollama".to_owned()), ("url", format!("http://{host}:{port}"))];
        let tables: Vec<Value> = engine.into_iter().chain([ollama]).map(|table| Value::from(dict(table))).collect();
        values.entry("backends".to_owned()).or_insert_with(|| Value::from(tables));
    }
    Ok(values.remove("orbitDbDirectory").map(|_| NO_DIRECTORY))
}

fn dict(entries: Vec<(&str, String)>) -> Dict {
    entries.into_iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect()
}

/// Reads a text, or a number as a text.
fn text(value: &Value, key: &str, origin: &str) -> Result<String, ConfigError> {
    let number = || value.to_u128().map(|number| number.to_string());
    value.as_str().map(str::to_owned).or_else(number).ok_or_else(|| ConfigError::WrongValue {
        key: key.to_owned(),
        origin: origin.to_owned(),
        reason: "expected a text or a number".to_owned(),
    })
}
