use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bombus_core::model::ModelName;
use bombus_infer::BackendOptions;
use bombus_infer::discover::OLLAMA_ADDRESS;
use bombus_infer::fake::FakeConfig;
use bombus_infer::ollama::OllamaConfig;
use bombus_infer::openai::OpenAiConfig;
use figment::error::{Error, Kind};
use figment::value::{Dict, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use super::DiscoverConfig;

/// Settings of the embedded engine.
#[cfg(feature = "embedded")]
pub(crate) type EmbeddedConfig = bombus_llama::EmbeddedConfig;
/// Settings of the embedded engine, which this build does not have: kept as they are written.
#[cfg(not(feature = "embedded"))]
pub(crate) type EmbeddedConfig = Map<String, Json>;

/// One entry of `[[backends]]`.
#[derive(Debug, Clone)]
pub(crate) struct BackendConfig {
    /// What logs, metrics and answers call it; the kind's name unless given, with a number from the second on.
    pub(crate) name: String,
    /// What it is, with its settings.
    pub(crate) kind: BackendKind,
    /// What holds for every kind: aliases, models, the most requests at a time.
    pub(crate) options: BackendOptions,
}

/// The kinds of backends.
#[derive(Debug, Clone)]
pub(crate) enum BackendKind {
    /// llama.cpp inside Bombus.
    Embedded(EmbeddedConfig),
    /// A script.
    Fake(FakeConfig),
    /// An Ollama server.
    Ollama(OllamaConfig),
    /// The Ollama of this machine, whenever it runs.
    LocalOllama,
    /// A server of OpenAI's dialect.
    OpenAi(OpenAiConfig),
}

/// The values of `kind`.
const KINDS: &[&str] = &["embedded", "ollama", "openai", "fake"];
/// The keys of every kind.
const OPTIONS: [&str; 3] = ["aliases", "max_concurrent", "models"];
/// What stands in place of a secret.
const HIDDEN: &str = "(hidden)";

impl BackendKind {
    /// Returns its name in the configuration.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Fake(_) => "fake",
            Self::Ollama(_) | Self::LocalOllama => "ollama",
            Self::OpenAi(_) => "openai",
        }
    }

    /// Returns whether it is a server that somebody configured.
    pub(crate) fn is_server(&self) -> bool {
        matches!(self, Self::Ollama(_) | Self::OpenAi(_))
    }
}

/// An entry whose name may still be missing.
struct Unnamed {
    name: Option<String>,
    backend: BackendConfig,
}

impl BackendConfig {
    fn new(kind: BackendKind) -> Self {
        Self { name: kind.as_str().to_owned(), kind, options: BackendOptions::default() }
    }

    /// Returns what runs models where nothing is configured: the embedded engine, where this build has it, and then an Ollama.
    pub(super) fn defaults(discover: DiscoverConfig) -> Vec<Self> {
        let engine = || Self::new(BackendKind::Embedded(EmbeddedConfig::default()));
        let embedded = cfg!(feature = "embedded").then(engine);
        let ollama = discover.ollama.then(|| Self::new(BackendKind::LocalOllama));
        embedded.into_iter().chain(ollama).collect()
    }

    /// Reads the tables of the array. Paths in errors begin inside of it.
    pub(super) fn read_all(tables: &[Value]) -> figment::Result<Vec<Self>> {
        let mut read = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            read.push(Unnamed::read(table).map_err(|error| inside(index, error))?);
        }
        name_all(read)
    }

    /// Says whether it is a server whose URL leads to what listens at this address.
    pub(super) fn is_at(&self, listen: SocketAddr) -> bool {
        let url = match &self.kind {
            BackendKind::Ollama(config) => &config.url,
            BackendKind::OpenAi(config) => &config.url,
            BackendKind::Embedded(_) | BackendKind::Fake(_) | BackendKind::LocalOllama => return false,
        };
        reqwest::Url::parse(url).is_ok_and(|url| leads_to(&url, listen))
    }

    /// Returns the address of a server without its secrets.
    pub(crate) fn shown_url(&self) -> Option<String> {
        self.settings().get("url").and_then(Json::as_str).map(str::to_owned)
    }

    /// Returns every setting with its value, those at their defaults too. Secrets are hidden.
    pub(super) fn settings(&self) -> Map<String, Json> {
        let mut all = Map::new();
        all.insert("name".into(), self.name.clone().into());
        all.insert("kind".into(), self.kind.as_str().into());
        all.extend(match &self.kind {
            BackendKind::Embedded(config) => table(config),
            BackendKind::Fake(config) => table(config),
            BackendKind::Ollama(config) => table(config),
            BackendKind::OpenAi(config) => table(config),
            BackendKind::LocalOllama => Map::from_iter([("url".to_owned(), format!("http://{OLLAMA_ADDRESS}").into())]),
        });
        if !all.contains_key("models") {
            all.insert("models".into(), self.options.models.clone().into());
        }
        let aliases = self.options.aliases.iter().map(|(alias, model)| (alias.clone(), model.clone().into()));
        all.insert("aliases".into(), Json::Object(aliases.collect()));
        all.insert("max_concurrent".into(), self.options.max_concurrent.into());
        hide_secrets(&mut all);
        all
    }
}

impl Unnamed {
    fn read(value: &Value) -> figment::Result<Self> {
        let Value::Dict(tag, table) = value else {
            return Err(Kind::InvalidType(value.to_actual(), "a table with the settings of a backend".into()).into());
        };
        let mut table = table.clone();
        let kind: String = take(&mut table, "kind")?.ok_or_else(|| Error::from(Kind::MissingField("kind".into())))?;
        let name = take(&mut table, "name")?;
        let mut options = BackendOptions {
            aliases: aliases(&mut table)?,
            max_concurrent: max_concurrent(&mut table)?,
            ..BackendOptions::default()
        };
        // The kinds whose models are given, and not a choice of those that there are, have this key themselves.
        if !["fake", "openai"].contains(&kind.as_str()) {
            options.models = take(&mut table, "models")?.unwrap_or_default();
        }
        let rest = Value::Dict(*tag, table);
        let kind = match kind.as_str() {
            "embedded" => BackendKind::Embedded(read_embedded(&rest)?),
            "fake" => BackendKind::Fake(settings_of(&rest)?),
            "ollama" => {
                let config: OllamaConfig = settings_of(&rest)?;
                check_server(&config.url, config.api_key_env.as_deref(), config.timeout_ms)?;
                BackendKind::Ollama(config)
            }
            "openai" => {
                let config: OpenAiConfig = settings_of(&rest)?;
                check_server(&config.url, config.api_key_env.as_deref(), config.timeout_ms)?;
                BackendKind::OpenAi(config)
            }
            _ => return Err(Error::from(Kind::UnknownVariant(kind, KINDS)).with_path("kind")),
        };
        Ok(Self { name, backend: BackendConfig { options, ..BackendConfig::new(kind) } })
    }
}

/// Gives a name to those that have none: the kind, or the kind and a number. Names that were given are refused if two are alike.
fn name_all(read: Vec<Unnamed>) -> figment::Result<Vec<BackendConfig>> {
    let mut taken: Vec<String> = Vec::new();
    for (index, name) in read.iter().enumerate().filter_map(|(index, entry)| Some((index, entry.name.as_ref()?))) {
        if name.trim().is_empty() || name.contains([';', '/']) || name.chars().any(char::is_control) {
            let reason = format!("{name:?} is no name: it is empty, or has `;`, `/` or a control character in it");
            return Err(inside(index, Error::from(reason).with_path("name")));
        }
        if taken.contains(name) {
            let reason = format!("two backends are called {name:?}; give each a `name` of its own");
            return Err(inside(index, Error::from(reason)));
        }
        taken.push(name.clone());
    }
    let mut named = Vec::new();
    for Unnamed { name, backend } in read {
        let name = name.unwrap_or_else(|| {
            let kind = backend.kind.as_str();
            let mut candidates = std::iter::once(kind.to_owned()).chain((2_u32..).map(|n| format!("{kind}-{n}")));
            let free = candidates.find(|candidate| !taken.contains(candidate));
            let free = free.expect("there are more numbers than backends");
            taken.push(free.clone());
            free
        });
        named.push(BackendConfig { name, ..backend });
    }
    Ok(named)
}

fn inside(index: usize, mut error: Error) -> Error {
    error.path.insert(0, index.to_string());
    error
}

fn take<T: DeserializeOwned>(table: &mut Dict, key: &str) -> figment::Result<Option<T>> {
    table.remove(key).map(|value| value.deserialize::<T>().map_err(|error| error.with_path(key))).transpose()
}

fn aliases(table: &mut Dict) -> figment::Result<BTreeMap<String, String>> {
    let aliases: BTreeMap<String, String> = take(table, "aliases")?.unwrap_or_default();
    for (alias, model) in &aliases {
        let at = |reason: String| Error::from(reason).with_path(&format!("aliases.{alias}"));
        ModelName::parse(alias).map_err(|error| at(error.to_string()))?;
        if model.is_empty() {
            return Err(at("expected the name of the model that it stands for".to_owned()));
        }
    }
    Ok(aliases)
}

fn max_concurrent(table: &mut Dict) -> figment::Result<Option<u32>> {
    match take(table, "max_concurrent")? {
        Some(0) => Err(Error::from("0 would let nothing through; leave it away for no limit".to_owned())
            .with_path("max_concurrent")),
        other => Ok(other),
    }
}

/// Reads what is particular to a kind. The keys of every kind are known too, so that a mistyped one is recognised.
fn settings_of<T: DeserializeOwned>(rest: &Value) -> figment::Result<T> {
    rest.deserialize().map_err(|error: Error| match &error.kind {
        Kind::UnknownField(field, known) => {
            let meant = super::error::nearest(field, super::error::LIKE_AT_ALL, known.iter().copied());
            let shared = super::error::nearest(field, super::error::LIKE_AT_ALL, OPTIONS.into_iter());
            match (meant, shared) {
                (None, Some(_)) => Error::from(Kind::UnknownField(field.clone(), &OPTIONS)),
                _ => error,
            }
        }
        _ => error,
    })
}

/// Finds mistakes in the address, the key and the time before a request meets them. What was written is not repeated: it may be the key
/// itself.
fn check_server(url: &str, api_key_env: Option<&str>, timeout_ms: u64) -> figment::Result<()> {
    let parsed = reqwest::Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if parsed.is_none() {
        let reason = "expected an address such as http://127.0.0.1:8080".to_owned();
        return Err(Error::from(reason).with_path("url"));
    }
    let is_name = |name: &str| {
        !name.is_empty()
            && name.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
            && !name.starts_with(|first: char| first.is_ascii_digit())
    };
    if !api_key_env.is_none_or(is_name) {
        let reason = "expected the name of an environment variable, for example OPENAI_API_KEY, and not the key itself";
        return Err(Error::from(reason.to_owned()).with_path("api_key_env"));
    }
    if timeout_ms == 0 {
        let reason = "0 would leave no time for any answer; it is in milliseconds, at least 1".to_owned();
        return Err(Error::from(reason).with_path("timeout_ms"));
    }
    Ok(())
}

/// Says whether a URL leads to what listens at an address, as far as can be seen without looking names up.
fn leads_to(url: &reqwest::Url, listen: SocketAddr) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches([']', '.']);
    let own = listen.ip().to_canonical();
    let is_own = |address: IpAddr| address == own || (own.is_unspecified() && address.is_loopback());
    let leads_there = match host.parse::<IpAddr>() {
        Ok(address) if !address.is_unspecified() => is_own(address.to_canonical()),
        Err(_) if host != "localhost" && !host.ends_with(".localhost") => false,
        // A connection to the unspecified address goes to this machine, too.
        _ => [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].into_iter().any(is_own),
    };
    leads_there && url.port_or_known_default() == Some(listen.port())
}

fn table(settings: &impl Serialize) -> Map<String, Json> {
    match serde_json::to_value(settings) {
        Ok(Json::Object(table)) => table,
        _ => Map::new(),
    }
}

/// Keys have no place in the configuration but in headers and in the password of an address.
fn hide_secrets(settings: &mut Map<String, Json>) {
    if let Some(Json::Object(headers)) = settings.get_mut("headers") {
        headers.values_mut().for_each(|value| *value = HIDDEN.into());
    }
    if let Some(Json::String(url)) = settings.get_mut("url")
        && let Ok(mut parsed) = reqwest::Url::parse(url)
        && (parsed.password().is_some() || parsed.query().is_some())
    {
        // An address that cannot have a password has none to hide.
        let _ = parsed.set_password(parsed.password().map(|_| HIDDEN));
        parsed.set_query(parsed.query().map(|_| HIDDEN));
        *url = parsed.to_string();
    }
}

#[cfg(feature = "embedded")]
fn read_embedded(table: &Value) -> figment::Result<EmbeddedConfig> {
    let config: EmbeddedConfig = settings_of(table)?;
    config.check().map_err(Error::from)?;
    Ok(config)
}

#[cfg(not(feature = "embedded"))]
fn read_embedded(table: &Value) -> figment::Result<EmbeddedConfig> {
    table.deserialize()
}
