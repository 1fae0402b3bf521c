//! Finds the node that runs on a data directory, from outside of it.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::data_dir::{DataDir, NodeRecord};
use crate::platform;

/// What can be said about the node of a data directory.
#[derive(Debug)]
pub(crate) enum RunningNode {
    /// None runs, and none claims to.
    None,
    /// It answers.
    Answers(NodeRecord),
    /// Its process lives and holds the directory, but it does not answer.
    Silent(NodeRecord),
    /// `node.json` is left over from a node that is gone; says how that is known.
    Stale(String),
}

/// How long a node on this machine may take to say that it is there.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

impl RunningNode {
    /// Reads `node.json` and asks the node that it names.
    pub(crate) async fn find(data_dir: &DataDir) -> Result<Self> {
        let record = match data_dir.node_record() {
            Ok(None) => return Ok(Self::None),
            Ok(Some(record)) => record,
            Err(error) => return Ok(Self::Stale(error.to_string())),
        };
        if !platform::process_exists(record.pid) {
            return Ok(Self::Stale(format!("the process {} that wrote it is gone", record.pid)));
        }
        let answer = health(&local_client()?, &record.api).await;
        match answer {
            Ok(health) if health.node_id == record.node_id.as_str() => Ok(Self::Answers(record)),
            Ok(health) => Ok(Self::Stale(format!("another node, {}, answers at {}", health.node_id, record.api))),
            Err(_) if data_dir.is_locked()? => Ok(Self::Silent(record)),
            Err(_) => Ok(Self::Stale(format!("nobody answers at {}", record.api))),
        }
    }
}

/// The part of a node's `/health` that names it.
#[derive(Debug, Deserialize)]
pub(crate) struct NodeHealth {
    /// Its id.
    pub(crate) node_id: String,
    /// Its version.
    pub(crate) version: String,
}

/// Asks whoever listens at an address whether it is a node.
pub(crate) async fn health(client: &reqwest::Client, api: &str) -> Result<NodeHealth> {
    let response = client.get(format!("{api}/health")).timeout(HEALTH_LIMIT).send().await?;
    Ok(response.error_for_status()?.json().await?)
}

/// Makes a client for addresses of this machine, which are never reached through a proxy.
pub(crate) fn local_client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(HEALTH_LIMIT)
        .tcp_nodelay(true)
        .user_agent(concat!("bombus/", env!("CARGO_PKG_VERSION")))
        .build()
        .context("the HTTP client cannot be set up")
}
