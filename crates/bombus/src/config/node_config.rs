//! The field names of `NodeConfig`, the configuration of an earlier swarm program whose JSON files people have.

use figment::value::{Dict, Value};

use super::ConfigError;

/// Fields that belong to parts that Bombus does not have yet.
const LATER: [&str; 6] =
    ["ollamaHost", "ollamaPort", "orbitDbDirectory", "bootstrapPeers", "listenAddresses", "maxConcurrentTasks"];

/// Replaces `NodeConfig` fields by the settings that they mean, and takes out those that mean nothing yet. Returns the names of the
/// latter.
///
/// `nodeId` was a free text there and becomes `name`; the first of `models` was the default model.
pub(super) fn translate(values: &mut Dict, origin: &str) -> Result<Vec<&'static str>, ConfigError> {
    if let Some(name) = values.remove("nodeId") {
        values.entry("name".to_owned()).or_insert(name);
    }
    if let Some(level) = values.remove("logLevel")
        && let Value::Dict(_, log) = values.entry("log".to_owned()).or_insert_with(|| Value::from(Dict::new()))
    {
        log.entry("level".to_owned()).or_insert(level);
    }
    if let Some(models) = values.remove("models") {
        let Value::Array(_, models) = models else {
            let reason = "expected a list of model names".to_owned();
            return Err(ConfigError::WrongValue { key: "models".into(), origin: origin.to_owned(), reason });
        };
        if let Some(first) = models.into_iter().next() {
            values.entry("default_model".to_owned()).or_insert(first);
        }
    }
    Ok(LATER.into_iter().filter(|name| values.remove(*name).is_some()).collect())
}
