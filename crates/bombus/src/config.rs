//! Configuration: defaults, then the file, then the environment, then flags; each value remembers where it came from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bombus_core::model::ModelName;
use serde::{Deserialize, Deserializer, Serialize};

mod backends;
mod error;
mod layers;
mod load;
mod node_config;

pub(crate) use backends::{BackendConfig, BackendKind};
pub(crate) use error::ConfigError;
pub(crate) use load::{Entry, Settings, Sources};

/// The port that a node listens on unless told otherwise.
const PORT: u16 = 7890;

/// The whole configuration of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// What people call the node.
    pub(crate) name: String,
    /// The model that answers where none is named.
    pub(crate) default_model: ModelName,
    /// The HTTP API.
    pub(crate) api: ApiConfig,
    /// Logging.
    pub(crate) log: LogConfig,
    /// What runs models, most preferred first. Read apart from the rest, since each kind has settings of its own.
    #[serde(skip_serializing, default, deserialize_with = "read_apart")]
    pub(crate) backends: Vec<BackendConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: sysinfo::System::host_name().unwrap_or_else(|_| "node".to_owned()),
            default_model: ModelName::parse("smollm2:135m").expect("a constant that is a model name"),
            api: ApiConfig::default(),
            log: LogConfig::default(),
            backends: vec![BackendConfig::default()],
        }
    }
}

/// The section `[api]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApiConfig {
    /// Address and port to listen on; port 0 takes a free one.
    #[serde(deserialize_with = "listen_address")]
    pub(crate) listen: SocketAddr,
    /// Origins whose pages may call the API.
    pub(crate) cors_origins: Vec<String>,
    /// Values of the `Host` header that are accepted besides this machine's own names.
    pub(crate) allowed_hosts: Vec<String>,
    /// How long running answers may go on when the node is told to stop.
    pub(crate) grace_s: u64,
}

impl ApiConfig {
    /// Returns the grace time.
    pub(crate) fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_s)
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT),
            cors_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            grace_s: 30,
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
    /// How many log files are kept.
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

fn read_apart<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BackendConfig>, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| Vec::new())
}

/// Reads `ADDR:PORT`, with `localhost` for 127.0.0.1.
fn listen_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_listen_address(&text).map_err(serde::de::Error::custom)
}

/// Parses `ADDR:PORT`, with `localhost` for 127.0.0.1.
pub(crate) fn parse_listen_address(text: &str) -> Result<SocketAddr, String> {
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().map_err(|_| {
        format!(
            "{text:?} is not an address to listen on; write ADDR:PORT, for example 127.0.0.1:{PORT} or [::1]:{PORT}"
        )
    })
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
