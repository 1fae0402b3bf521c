use std::net::SocketAddr;

use anyhow::Result;
use bombus_http::KeyStore;
use tokio::net::TcpListener;

use super::Check;
use crate::config::Config;
use crate::data_dir::{DataDir, NodeRecord, reachable};
use crate::running::{self, RunningNode};

/// What is known of the node of this data directory.
pub(super) struct NodeFinding {
    node: RunningNode,
    locked: bool,
}

/// Looks for the node.
pub(super) async fn node(data_dir: Option<&DataDir>) -> Result<NodeFinding> {
    Ok(match data_dir {
        Some(data_dir) => NodeFinding { node: RunningNode::find(data_dir).await?, locked: data_dir.is_locked()? },
        None => NodeFinding { node: RunningNode::None, locked: false },
    })
}

impl NodeFinding {
    /// Returns the node that answers.
    pub(super) fn answering(&self) -> Option<&NodeRecord> {
        match &self.node {
            RunningNode::Answers(record) => Some(record),
            _ => None,
        }
    }

    /// Whether what `node.json` says is so.
    pub(super) fn check(&self) -> Check {
        const NAME: &str = "node";
        match &self.node {
            RunningNode::Answers(record) => {
                Check::ok(NAME, format!("runs as process {} and answers at {}", record.pid, record.api))
            }
            RunningNode::Silent(record) => Check::fail(
                NAME,
                format!("process {} holds the data directory, but does not answer at {}", record.pid, record.api),
                "look at its logs; stop it (kill, then kill -9) and start it again",
            ),
            RunningNode::Stale(reason) => Check::warn(
                NAME,
                format!("node.json is left over: {reason}"),
                "nothing breaks; the next bombus up replaces it",
            ),
            RunningNode::None if self.locked => Check::warn(
                NAME,
                "a node holds the data directory and is starting or stopping",
                "try again in a few seconds",
            ),
            RunningNode::None => Check::ok(NAME, "none runs; bombus ask runs models by itself until bombus up"),
        }
    }
}

/// Whether the node can have its port.
pub(super) async fn port(config: &Config, node: &NodeFinding) -> Result<Check> {
    const NAME: &str = "port";
    let address = config.api.listen;
    if let RunningNode::Answers(record) | RunningNode::Silent(record) = &node.node
        && record.api.ends_with(&format!(":{}", address.port()))
    {
        return Ok(Check::ok(NAME, format!("{address} is this node's")));
    }
    Ok(match TcpListener::bind(address).await {
        Ok(_) => Check::ok(NAME, format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let remedy = "stop that program, or take another port: bombus up --api 127.0.0.1:0";
            Check::fail(NAME, format!("{address} is in use by {}", user_of(address).await?), remedy)
        }
        Err(error) => Check::fail(
            NAME,
            format!("{address} cannot be listened on: {error}"),
            "set api.listen to an address of this machine",
        ),
    })
}

/// Names who listens on an address.
async fn user_of(address: SocketAddr) -> Result<String> {
    let api = format!("http://{}", reachable(address));
    if let Ok(health) = running::health(&running::local_client()?, &api).await {
        return Ok(format!("another bombus node: {} (version {})", health.node_id, health.version));
    }
    let process = listeners::get_process_by_port(address.port(), listeners::Protocol::TCP);
    Ok(match process {
        Ok(process) => format!("{} (process {})", process.name, process.pid),
        Err(_) => "a program of another user".to_owned(),
    })
}

/// Whether the API would be open to others without keys.
pub(super) fn exposure(config: &Config, data_dir: Option<&DataDir>) -> Check {
    const NAME: &str = "API keys";
    let address = config.api.listen;
    let local = address.ip().is_loopback();
    if local && !config.api.require_key {
        return Check::ok(NAME, format!("{address} is reached from this machine alone; no key is needed"));
    }
    let why = if local { "asks for keys (api.require_key)" } else { "can be reached from other machines" };
    let keys = data_dir.map(|data_dir| KeyStore::open(data_dir.keys()).list()).transpose();
    match keys.map(Option::unwrap_or_default) {
        Ok(keys) if keys.is_empty() => Check::fail(
            NAME,
            format!("{address} {why}, and there is no API key: bombus up refuses to start"),
            if local { "bombus keys create NAME" } else { "bombus keys create NAME, or listen on 127.0.0.1" },
        ),
        Ok(keys) => Check::ok(NAME, format!("{address} {why}; {} keys open it", keys.len())),
        Err(error) => Check::fail(NAME, error.to_string(), "bombus up refuses to start until the file can be read"),
    }
}
