use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{OllamaClient, OllamaError};
use crate::upstream::{KeySource, UpstreamClient, UpstreamOptions, base_url, headers};

/// Longest whole time of an upload. What stalls is noticed by its own limit; this one ends what never does.
const UPLOAD_TIME_MAX: Duration = Duration::from_hours(24);

/// Builds an [`OllamaClient`]: host 127.0.0.1, port 11434, 120 s of patience, 3 retries after 1, 2 and 4 s, unless told otherwise.
#[derive(Debug, Clone)]
pub struct OllamaClientBuilder {
    name: String,
    host: String,
    port: u16,
    url: Option<String>,
    headers: BTreeMap<String, String>,
    api_key_env: Option<String>,
    api_key_file: Option<PathBuf>,
    timeout: Duration,
    retries: u32,
    retry_delay: Duration,
}

impl Default for OllamaClientBuilder {
    fn default() -> Self {
        Self {
            name: "ollama".to_owned(),
            host: "127.0.0.1".to_owned(),
            port: 11434,
            url: None,
            headers: BTreeMap::new(),
            api_key_env: None,
            api_key_file: None,
            timeout: Duration::from_secs(120),
            retries: 3,
            retry_delay: Duration::from_secs(1),
        }
    }
}

impl OllamaClientBuilder {
    /// Sets the name that logs show.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the host's name or address.
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self
    }

    /// Sets the port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Sets the whole address, in place of host and port: for `https`, or a path before `/api`.
    #[must_use]
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Adds a header to every request.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// Sets the key that a proxy before the server asks for; it is sent as a bearer token.
    #[must_use]
    pub fn api_key(self, key: &str) -> Self {
        self.header("authorization", format!("Bearer {key}"))
    }

    /// Takes that key from an environment variable, when the client is built.
    #[must_use]
    pub fn api_key_env(mut self, variable: impl Into<String>) -> Self {
        self.api_key_env = Some(variable.into());
        self
    }

    /// Takes that key from a file, when the client is built.
    #[must_use]
    pub fn api_key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.api_key_file = Some(path.into());
        self
    }

    /// Sets the longest wait for an answer to begin, and for each piece of it.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how often a request is sent again where no connection can be had or the server fails with a status of 500 or more, and the
    /// wait before the first time, which doubles each time. Nothing is sent again once a part of the answer has come.
    #[must_use]
    pub fn retry(mut self, attempts: u32, delay: Duration) -> Self {
        self.retries = attempts;
        self.retry_delay = delay;
        self
    }

    /// Builds the client. No connection is made yet.
    ///
    /// # Errors
    ///
    /// [`OllamaError::Config`] where the address is none, the key cannot be had, or a header cannot be sent.
    pub fn build(self) -> Result<OllamaClient, OllamaError> {
        let url = self.url.unwrap_or_else(|| {
            let is_bare_v6 = self.host.contains(':') && !self.host.starts_with('[');
            if is_bare_v6 {
                format!("http://[{}]:{}", self.host, self.port)
            } else {
                format!("http://{}:{}", self.host, self.port)
            }
        });
        let base = base_url(&url)?;
        let key = KeySource { variable: self.api_key_env.as_deref(), file: self.api_key_file.as_deref() };
        let headers = headers(&self.headers, key)?;
        let http = |timeout| {
            let (name, base, headers) = (self.name.clone(), base.clone(), headers.clone());
            UpstreamClient::new(UpstreamOptions { name, base, headers, timeout }).map(Arc::new)
        };
        Ok(OllamaClient {
            http: http(self.timeout)?,
            uploads: http(UPLOAD_TIME_MAX)?,
            url: base.as_str().trim_end_matches('/').to_owned(),
            retries: self.retries,
            retry_delay: self.retry_delay,
        })
    }
}
