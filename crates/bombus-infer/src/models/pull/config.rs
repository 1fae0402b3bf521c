//! Where models are fetched from, and how patiently.

use std::path::PathBuf;
use std::time::Duration;

use super::super::catalogue::{CatalogueEntry, catalogue};
use super::super::ollama::DEFAULT_REGISTRY;
use super::super::peers::Peers;
use super::secret::Secret;

/// Settings of [`super::pull`].
#[derive(Debug, Clone)]
pub struct PullConfig {
    /// Models with short names.
    pub catalogue: Vec<CatalogueEntry>,
    /// Base URL of Hugging Face or a mirror of it.
    pub hugging_face_url: String,
    /// Token for Hugging Face; needed for gated and private models. It is sent to `hugging_face_url` only.
    pub hugging_face_token: Option<Secret>,
    /// Base URL of the registry that names without a host belong to.
    pub registry_url: String,
    /// The Python programs that are tried, in this order.
    pub pythons: Vec<PathBuf>,
    /// More arguments for `pip download`, for example `--index-url URL`.
    pub pip_arguments: Vec<String>,
    /// Longest wait for a connection. pip's own setting, where there is one, goes before it.
    pub connect_timeout: Duration,
    /// Longest wait for the next bytes.
    pub stall_timeout: Duration,
    /// The other nodes, which are asked for a model before the internet is.
    pub peers: Peers,
    /// How much a peer is asked for at once, in bytes; at most 64 MiB.
    pub peer_range_bytes: u64,
    /// How long a peer may send next to nothing before others send the rest.
    pub peer_stall_timeout: Duration,
    /// How many times in a row a cut connection is made again without any byte coming.
    pub retries: u32,
    /// Wait before the first of these; it doubles each time, up to 8 s.
    pub retry_after: Duration,
}

impl Default for PullConfig {
    fn default() -> Self {
        Self {
            catalogue: catalogue(),
            hugging_face_url: "https://huggingface.co".to_owned(),
            hugging_face_token: None,
            registry_url: format!("https://{DEFAULT_REGISTRY}"),
            pythons: vec!["python3".into(), "python".into()],
            pip_arguments: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            peers: Peers::default(),
            peer_range_bytes: 16 << 20,
            peer_stall_timeout: Duration::from_secs(10),
            retries: 4,
            retry_after: Duration::from_millis(500),
        }
    }
}

impl PullConfig {
    /// Takes what the environment says: `HF_ENDPOINT` and `HF_TOKEN`, as Hugging Face's own tools do. Proxies (`HTTPS_PROXY` and
    /// its kin) apply in any case.
    #[must_use]
    pub fn from_env() -> Self {
        let variable =
            |name| std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let default = Self::default();
        Self {
            hugging_face_url: variable("HF_ENDPOINT")
                .map_or(default.hugging_face_url, |url| url.trim_end_matches('/').to_owned()),
            hugging_face_token: variable("HF_TOKEN").map(Secret::new),
            ..default
        }
    }
}
