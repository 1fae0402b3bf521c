//! The backends of the configuration, and how they are where a node runs.

use std::path::Path;

use anyhow::Result;
use bombus_infer::discover::FoundServer;
use serde::Serialize;

use crate::cli::answerer::running_node;
use crate::cli::backends::{State, states_of};
use crate::config::{BackendConfig, Settings};
use crate::data_dir::DataDir;
use crate::printable::one_line;

/// A backend of the configuration.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Configured {
    pub(super) name: String,
    pub(super) kind: String,
    /// Its address without secrets, where it is a server.
    pub(super) url: Option<String>,
    /// Whether the running node can use it; none where no node tells.
    pub(super) ready: Option<bool>,
    /// Why not.
    pub(super) error: Option<String>,
    /// How many models the running node has of it.
    pub(super) models: Option<usize>,
}

/// Lists the backends of the node that runs on a data directory, or those of the configuration. Changes nothing. The second part says why a
/// node that runs does not tell.
pub(super) async fn configured(settings: &Settings, data_dir: &Path) -> (Vec<Configured>, Option<String>) {
    let backends = &settings.config.backends;
    match told(data_dir).await {
        Ok(Some(states)) => {
            let own = states.into_iter().filter(|state| state.node.is_none());
            (own.map(|state| Configured::told(state, backends)).collect(), None)
        }
        Ok(None) => (backends.iter().map(Configured::unasked).collect(), None),
        Err(error) => (backends.iter().map(Configured::unasked).collect(), Some(format!("{error:#}"))),
    }
}

async fn told(data_dir: &Path) -> Result<Option<Vec<State>>> {
    let Some(data_dir) = DataDir::existing(data_dir)? else { return Ok(None) };
    match running_node(&data_dir).await? {
        Some(node) => Ok(Some(states_of(&node).await?)),
        None => Ok(None),
    }
}

impl Configured {
    fn unasked(backend: &BackendConfig) -> Self {
        Self {
            name: backend.name.clone(),
            kind: backend.kind.as_str().to_owned(),
            url: backend.shown_url(),
            ready: None,
            error: None,
            models: None,
        }
    }

    fn told(state: State, backends: &[BackendConfig]) -> Self {
        let backend = backends.iter().find(|backend| backend.name == state.name);
        Self {
            url: backend.and_then(BackendConfig::shown_url),
            name: state.name,
            kind: state.kind,
            ready: Some(state.ready),
            error: state.error,
            models: Some(state.models),
        }
    }

    /// Describes it in a line.
    pub(super) fn line(&self) -> String {
        let at = self.url.as_deref().map(|url| format!(", {url}")).unwrap_or_default();
        let state = match (self.ready, self.models, &self.error) {
            (Some(true), Some(1), _) => ", ready, 1 model".to_owned(),
            (Some(true), models, _) => format!(", ready, {} models", models.unwrap_or(0)),
            (Some(false), _, Some(error)) => format!(", down: {}", one_line(error)),
            (Some(false), _, None) => ", down".to_owned(),
            (None, ..) => String::new(),
        };
        format!("{}: {}{at}{state}", self.name, self.kind)
    }

    /// Returns whether it can answer: as the running node says, or else as far as this process sees.
    pub(super) fn works(&self, engine_runs: bool, servers: &[FoundServer]) -> bool {
        match (self.ready, self.kind.as_str()) {
            (Some(ready), _) => ready,
            (None, "embedded") => engine_runs,
            (None, "fake") => true,
            (None, _) => servers.iter().any(|server| self.is(server)),
        }
    }

    /// Returns whether it is this server.
    pub(super) fn is(&self, server: &FoundServer) -> bool {
        let bare = |url: &str| {
            let url = url.trim_end_matches('/');
            url.strip_suffix("/v1").unwrap_or(url).replace("//localhost:", "//127.0.0.1:")
        };
        self.url.as_deref().is_some_and(|url| bare(url) == bare(&server.url))
    }
}
