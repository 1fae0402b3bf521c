//! How commands get at the mesh: through the running node, or on the data directory where none runs.

use anyhow::Result;
use bombus_net::membership::Membership;
use serde_json::Value;

use super::Global;
use super::answerer::running_node;
use crate::data_dir::{DataDir, NodeLock};
use crate::failure::{Exit, Failure};
use crate::node_client::NodeClient;
use crate::printable::one_line;

/// Finds the running node.
pub(super) async fn need_node(data_dir: &DataDir) -> Result<NodeClient> {
    running_node(data_dir).await?.ok_or_else(|| {
        let message = format!("no node runs on the data directory {}", data_dir.root().display());
        Failure::new(Exit::Unavailable, message)
            .hint("bombus up starts one; --data-dir DIR names another directory")
            .into()
    })
}

/// Says, where a node finds that its swarm goes on without it, that this is so and what to do; returns whether it was said.
pub(super) async fn tell_left_behind(global: &Global, node: &NodeClient) -> Result<bool> {
    let report: Value = node.get("/mesh/report").await?;
    let left_behind = left_behind(&report);
    if let Some(text) = left_behind {
        let text = one_line(text);
        global.notice(&format!(
            "{text}; ask a member for a new ticket (bombus invite), and join again: bombus join TICKET"
        ));
    }
    Ok(left_behind.is_some())
}

fn left_behind(report: &Value) -> Option<&str> {
    let mut troubles = report["troubles"].as_array()?.iter();
    let trouble = troubles.find(|trouble| trouble["code"] == "missed_rekey")?;
    trouble["text"].as_str()
}

/// Where the membership is kept.
pub(super) enum Place {
    /// By the running node.
    Node(NodeClient),
    /// On disk alone.
    Disk(OnDisk),
}

/// The membership of a data directory that no node uses as long as this lives.
pub(super) struct OnDisk {
    pub(super) membership: Membership,
    _lock: NodeLock,
}

impl Place {
    /// Asks the running node, or claims the data directory.
    pub(super) async fn find(data_dir: &DataDir) -> Result<Self> {
        if let Some(node) = running_node(data_dir).await? {
            return Ok(Self::Node(node));
        }
        let lock = data_dir.lock().await?;
        Ok(Self::Disk(OnDisk { membership: open(data_dir)?, _lock: lock }))
    }
}

/// Reads the membership of a data directory, beginning a swarm of its own where there is none.
pub(super) fn open(data_dir: &DataDir) -> Result<Membership> {
    Ok(Membership::open(data_dir.root())?)
}
