//! Configuration: defaults, then the file, then the environment, then flags; each value remembers where it came from.

use std::path::PathBuf;

use bombus_core::model::ModelName;
use bombus_http::HttpConfig;
use bombus_infer::RouteConfig;
use bombus_infer::models::catalogue::DEFAULT_MODEL;
use bombus_swarm::db::DbConfig;
use bombus_swarm::route::ShareConfig;
use bombus_swarm::tasks::TasksConfig;
use serde::{Deserialize, Deserializer, Serialize};

#[expect(clippy::result_large_err, reason = "the error is figment's own, and made at most once")]
mod backends;
mod error;
mod layers;
mod load;
mod node_config;
mod p2p;

pub(crate) use backends::{BackendConfig, BackendKind, EmbeddedConfig};
pub(crate) use error::ConfigError;
pub(crate) use load::{Entry, Settings, Sources};
pub(crate) use p2p::P2pConfig;

/// The whole configuration of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// What people call the node.
    pub(crate) name: String,
    /// The model that answers where none is named.
    pub(crate) default_model: ModelName,
    /// The HTTP API.
    pub(crate) api: HttpConfig,
    /// The other nodes.
    pub(crate) p2p: P2pConfig,
    /// What this node does for them.
    pub(crate) share: ShareConfig,
    /// Replicated databases.
    pub(crate) db: DbConfig,
    /// Durable tasks.
    pub(crate) tasks: TasksConfig,
    /// Where requests go.
    pub(crate) route: RouteConfig,
    /// Logging.
    pub(crate) log: LogConfig,
    /// What is used without having been configured.
    pub(crate) discover: DiscoverConfig,
    /// What runs models, most preferred first. Read apart from the rest, since each kind has settings of its own.
    #[serde(skip_serializing, default, deserialize_with = "read_apart")]
    pub(crate) backends: Vec<BackendConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: sysinfo::System::host_name().unwrap_or_else(|_| "node".to_owned()),
            default_model: ModelName::parse(DEFAULT_MODEL).expect("the catalogue's names are model names"),
            api: HttpConfig::default(),
            p2p: P2pConfig::default(),
            share: ShareConfig::default(),
            db: DbConfig::default(),
            tasks: TasksConfig::default(),
            route: RouteConfig::default(),
            log: LogConfig::default(),
            discover: DiscoverConfig::default(),
            backends: BackendConfig::defaults(DiscoverConfig::default()),
        }
    }
}

/// The section `[log]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives by module as in `info,bombus_http=debug`.
    #[serde(deserialize_with = "log_level")]
    pub(crate) level: String,
    /// Logs go to this file instead; warnings still go to stderr.
    pub(crate) file: Option<PathBuf>,
    /// How often a new file is begun.
    pub(crate) rotation: Rotation,
    /// How many log files are kept at most, the one that is written included; 1 counts as 2, and 0 keeps them all.
    pub(crate) files_max: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), file: None, rotation: Rotation::Daily, files_max: 7 }
    }
}

/// How often a new log file is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rotation {
    /// Every hour.
    Hourly,
    /// Every day.
    Daily,
    /// Not at all.
    Never,
}

/// The section `[discover]`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiscoverConfig {
    /// Uses an Ollama on its usual port of this machine whenever one runs; only where no `[[backends]]` are configured.
    pub(crate) ollama: bool,
}

impl Default for DiscoverConfig {
    fn default() -> Self {
        Self { ollama: true }
    }
}

fn read_apart<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BackendConfig>, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| Vec::new())
}

fn log_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match crate::telemetry::parse_level(&text) {
        Ok(_) => Ok(text),
        Err(reason) => Err(serde::de::Error::custom(reason)),
    }
}

#[cfg(test)]
mod tests;
