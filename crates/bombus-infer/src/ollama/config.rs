use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::find::DEFAULT_URL;

/// Where an Ollama server is, and how it is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OllamaConfig {
    /// Its address.
    pub url: String,
    /// The environment variable with the key that a proxy before it asks for.
    pub api_key_env: Option<String>,
    /// The file with that key, in place of `api_key_env`.
    pub api_key_file: Option<PathBuf>,
    /// Headers that are sent with every request.
    pub headers: BTreeMap<String, String>,
    /// Longest wait for an answer to begin, and for each piece of it, in milliseconds.
    pub timeout_ms: u64,
    /// How often a request is sent again where no connection can be had or the server fails with a status of 500 or more, before
    /// anything of the answer has come.
    pub retries: u32,
    /// Wait before the first of these; each further one is twice as long. In milliseconds.
    pub retry_delay_ms: u64,
}

impl Default for OllamaConfig {
    fn default() -> Self {
        Self {
            url: DEFAULT_URL.to_owned(),
            api_key_env: None,
            api_key_file: None,
            headers: BTreeMap::new(),
            timeout_ms: 120_000,
            retries: 3,
            retry_delay_ms: 1_000,
        }
    }
}
