use std::path::PathBuf;

use bombus_http::LimitsError;
use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider};
use serde_json::Value as Json;

use super::layers::{self, Layer};
use super::{BackendConfig, Config, ConfigError, DiscoverConfig, node_config};

/// Where configuration is looked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    /// The file; not read if `None`.
    pub(crate) file: Option<PathBuf>,
    /// The process's environment.
    pub(crate) environment: Vec<(String, String)>,
    /// Flags: their name, the key that they set, and the value.
    pub(crate) flags: Vec<(&'static str, &'static str, String)>,
}

impl Sources {
    /// Takes the named file, else the default one if it is there, and this process's environment.
    pub(crate) fn of_process(file: Option<PathBuf>, flags: Vec<(&'static str, &'static str, String)>) -> Self {
        let file = file.or_else(|| layers::default_file().filter(|path| path.exists()));
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { file, environment, flags }
    }
}

/// The configuration with the origin of each value.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What holds.
    pub(crate) config: Config,
    /// Each value by its path, in the order of the documentation.
    pub(crate) entries: Vec<Entry>,
    /// Remarks for the person who wrote it.
    pub(crate) notices: Vec<String>,
}

/// One value of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// Its path, for example `api.listen` or `backends.0.kind`.
    pub(crate) key: String,
    /// The value that holds.
    pub(crate) value: Json,
    /// `default`, `file PATH`, `environment NAME` or `flag --NAME`.
    pub(crate) origin: String,
}

const DEFAULT: &str = "default";

impl Settings {
    /// Reads all sources.
    pub(crate) fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let defaults = Config::default();
        let values = tree(&defaults);
        let mut known = values.clone();
        known.insert("backends".to_owned(), Value::from(Vec::<Value>::new()));
        let mut notices = Vec::new();
        let mut figment = Figment::from(Layer { origin: DEFAULT.to_owned(), values });
        for layer in layers_of(sources, &known, &mut notices)? {
            figment = figment.merge(layer);
        }
        let merged = Merged::new(figment)?;
        let mut config: Config = merged.figment.extract().map_err(|error| merged.explain(error))?;
        let unfit = |key: &str, reason: String| {
            let path: Vec<String> = key.split('.').map(str::to_owned).collect();
            ConfigError::WrongValue { key: key.to_owned(), origin: merged.origin(&path), reason }
        };
        let of_limit = |error: LimitsError| unfit(&format!("api.limits.{}", error.setting), error.to_string());
        config.api.limits.check().map_err(of_limit)?;
        config.tasks.check().map_err(|error| unfit("tasks", error.to_string()))?;
        config.db.check().map_err(|error| unfit("db", error.to_string()))?;
        config.backends = merged.backends(config.discover)?;
        let listen = config.api.listen;
        if let Some(itself) = config.backends.iter().position(|backend| backend.is_at(listen)) {
            let reason = format!(
                "this is the node itself, whose api.listen is {listen}; give it the address of another server, or take the backend out"
            );
            return Err(unfit(&format!("backends.{itself}.url"), reason));
        }
        let entries = merged.entries(&config);
        Ok(Self { config, entries, notices })
    }

    /// Returns where the value of a key comes from.
    pub(crate) fn origin(&self, key: &str) -> &str {
        self.entries.iter().find(|entry| entry.key == key).map_or(DEFAULT, |entry| &entry.origin)
    }

    /// Says whether a value was set by anyone.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.origin(key) != DEFAULT
    }
}

fn layers_of(sources: &Sources, known: &Dict, notices: &mut Vec<String>) -> Result<Vec<Layer>, ConfigError> {
    let mut all = Vec::new();
    if let Some(path) = &sources.file {
        let mut layer = layers::read_file(path)?;
        let remark = node_config::translate(&mut layer.values, &layer.origin)?;
        notices.extend(remark.map(|remark| format!("{}: {remark}", path.display())));
        layers::unknown_key(&layer.values, known, &layer.origin)?;
        all.push(layer);
    }
    let (environment, remarks) = layers::environment(&sources.environment, known);
    all.extend(environment);
    notices.extend(remarks);
    all.extend(sources.flags.iter().map(|(flag, key, value)| layers::flag(flag, key, value, known)));
    Ok(all)
}

/// Makes a tree of the defaults: it has every key, with a value of the key's type.
fn tree(defaults: &Config) -> Dict {
    match Value::serialize(defaults) {
        Ok(Value::Dict(_, values)) => values,
        _ => unreachable!("a struct of plain data serialises to a table"),
    }
}

/// All layers put together.
struct Merged {
    figment: Figment,
    values: Value,
}

impl Merged {
    fn new(figment: Figment) -> Result<Self, ConfigError> {
        let failed = |error: figment::Error| ConfigError::of_value(error.path.join("."), DEFAULT.into(), error.kind);
        let values = figment.data().map_err(failed)?.remove(&Profile::Default).unwrap_or_default();
        Ok(Self { figment, values: Value::from(values) })
    }

    /// Names the origin of the value at a path, or of the nearest value around it.
    fn origin(&self, path: &[String]) -> String {
        let found = (0..=path.len()).rev().find_map(|depth| find(&self.values, &path[..depth]));
        let metadata = found.and_then(|value| self.figment.get_metadata(value.tag()));
        metadata.map_or(DEFAULT, |metadata| metadata.name.as_ref()).to_owned()
    }

    fn explain(&self, error: figment::Error) -> ConfigError {
        let mut at = error.path.clone();
        if let figment::error::Kind::UnknownField(field, _) = &error.kind {
            at.push(field.clone());
        }
        ConfigError::of_value(error.path.join("."), self.origin(&at), error.kind)
    }

    fn backends(&self, discover: DiscoverConfig) -> Result<Vec<BackendConfig>, ConfigError> {
        match find(&self.values, &["backends".to_owned()]) {
            None => Ok(BackendConfig::defaults(discover)),
            Some(Value::Array(_, tables)) => BackendConfig::read_all(tables).map_err(|mut error| {
                error.path.insert(0, "backends".to_owned());
                self.explain(error)
            }),
            Some(other) => {
                let expected = "a list of tables, written [[backends]]".to_owned();
                let kind = figment::error::Kind::InvalidType(other.to_actual(), expected);
                Err(self.explain(figment::Error::from(kind).with_path("backends")))
            }
        }
    }

    fn entries(&self, config: &Config) -> Vec<Entry> {
        let mut entries = Vec::new();
        let top = serde_json::to_value(config).unwrap_or_default();
        self.flatten(&mut entries, &mut Vec::new(), &top);
        for (index, backend) in config.backends.iter().enumerate() {
            for (key, value) in backend.settings() {
                let path = ["backends".to_owned(), index.to_string(), key];
                // Inside a table that somebody wrote, what is not written is at its default.
                let origin = if find(&self.values, &path).is_some() { self.origin(&path) } else { DEFAULT.to_owned() };
                entries.push(Entry { key: path.join("."), value, origin });
            }
        }
        entries
    }

    fn flatten(&self, entries: &mut Vec<Entry>, path: &mut Vec<String>, value: &Json) {
        match value {
            Json::Object(table) => {
                for (key, value) in table {
                    path.push(key.clone());
                    self.flatten(entries, path, value);
                    path.pop();
                }
            }
            leaf => entries.push(Entry { key: path.join("."), value: leaf.clone(), origin: self.origin(path) }),
        }
    }
}

/// Follows a path through tables and lists.
fn find<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    let Some((first, rest)) = path.split_first() else { return Some(value) };
    let inner = match value {
        Value::Dict(_, table) => table.get(first)?,
        Value::Array(_, list) => list.get(first.parse::<usize>().ok()?)?,
        _ => return None,
    };
    find(inner, rest)
}
