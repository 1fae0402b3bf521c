use bombus_infer::fake::FakeConfig;
use figment::error::{Error, Kind};
use figment::value::{Dict, Value};
use serde::Serialize;

/// Settings of the embedded engine.
#[cfg(feature = "embedded")]
pub(crate) type EmbeddedConfig = bombus_llama::EmbeddedConfig;
/// Settings of the embedded engine, which this build does not have: kept as they are written.
#[cfg(not(feature = "embedded"))]
pub(crate) type EmbeddedConfig = serde_json::Map<String, serde_json::Value>;

/// One entry of `[[backends]]`.
#[derive(Debug, Clone)]
pub(crate) struct BackendConfig {
    /// What logs, metrics and answers call it; the kind's name unless given.
    pub(crate) name: String,
    /// What it is, with its settings.
    pub(crate) kind: BackendKind,
}

/// The kinds of backends.
#[derive(Debug, Clone)]
pub(crate) enum BackendKind {
    /// llama.cpp inside Bombus.
    Embedded(EmbeddedConfig),
    /// A script.
    Fake(FakeConfig),
}

impl Default for BackendConfig {
    fn default() -> Self {
        Self { name: "embedded".to_owned(), kind: BackendKind::Embedded(EmbeddedConfig::default()) }
    }
}

/// The values of `kind`.
const KINDS: &[&str] = &["embedded", "fake"];

impl BackendConfig {
    /// Reads one table of the array. Paths in errors begin inside of it.
    pub(super) fn read(value: &Value) -> figment::Result<Self> {
        let Value::Dict(tag, table) = value else {
            return Err(Kind::InvalidType(value.to_actual(), "a table with the settings of a backend".into()).into());
        };
        let mut table = table.clone();
        let kind = take_text(&mut table, "kind")?.ok_or_else(|| Error::from(Kind::MissingField("kind".into())))?;
        let name = take_text(&mut table, "name")?.unwrap_or_else(|| kind.clone());
        let rest = Value::Dict(*tag, table);
        let kind = match kind.as_str() {
            "embedded" => BackendKind::Embedded(read_embedded(&rest)?),
            "fake" => BackendKind::Fake(rest.deserialize()?),
            _ => return Err(Error::from(Kind::UnknownVariant(kind, KINDS)).with_path("kind")),
        };
        Ok(Self { name, kind })
    }

    /// Returns every setting with its value, those at their defaults too.
    pub(super) fn settings(&self) -> serde_json::Map<String, serde_json::Value> {
        fn table(settings: &impl Serialize) -> serde_json::Map<String, serde_json::Value> {
            match serde_json::to_value(settings) {
                Ok(serde_json::Value::Object(table)) => table,
                _ => serde_json::Map::new(),
            }
        }
        let (kind, rest) = match &self.kind {
            BackendKind::Embedded(config) => ("embedded", table(config)),
            BackendKind::Fake(config) => ("fake", table(config)),
        };
        let mut all = serde_json::Map::new();
        all.insert("name".into(), self.name.clone().into());
        all.insert("kind".into(), kind.into());
        all.extend(rest);
        all
    }
}

fn take_text(table: &mut Dict, key: &str) -> figment::Result<Option<String>> {
    table.remove(key).map(|value| value.deserialize::<String>().map_err(|error| error.with_path(key))).transpose()
}

#[cfg(feature = "embedded")]
fn read_embedded(table: &Value) -> figment::Result<EmbeddedConfig> {
    let config: EmbeddedConfig = table.deserialize()?;
    config.check().map_err(Error::from)?;
    Ok(config)
}

#[cfg(not(feature = "embedded"))]
fn read_embedded(table: &Value) -> figment::Result<EmbeddedConfig> {
    table.deserialize()
}
