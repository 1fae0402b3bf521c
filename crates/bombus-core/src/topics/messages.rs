//! The bodies of the seven messages. Field names and their order are those that other programs on these topics write.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::Timestamp;
use crate::capability::{GpuTier, NodeTier};
use crate::identity::BootId;

/// What a node is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeStatus {
    /// Nothing runs.
    Idle,
    /// Something runs.
    Busy,
    /// It finishes what runs and takes nothing new.
    Draining,
    /// A word of another program or version.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What a node can do and how loaded it is. Everything below `timestamp` is optional, and other programs leave it out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The sender.
    pub node_id: String,
    /// Load of the processors in percent of all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Load of the graphics processors in percent, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<f64>,
    /// Models that the node answers with.
    #[serde(default)]
    pub models: Vec<String>,
    /// Programs found on the node's PATH, for example `ollama` or `claude`.
    #[serde(default)]
    pub installed: Vec<String>,
    /// What it is doing.
    #[serde(default)]
    pub status: NodeStatus,
    /// When this was so, by the sender's clock.
    pub timestamp: Timestamp,
    /// What people call the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Version of the program, for example `0.1.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Address on the local network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Port of its HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub api: Option<u16>,
    /// What the machine can carry.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub node_tier: Option<NodeTier>,
    /// How much model its best GPU carries.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub gpu_tier: Option<GpuTier>,
    /// The best GPU's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_name: Option<String>,
    /// The best GPU's memory in MB (2^20 bytes).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub vram_total_mb: Option<u64>,
    /// What the node does for others, for example `gpu_inference`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Names of what runs its models.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<String>,
    /// Requests that run now.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub running: Option<u32>,
    /// Requests that may run at once.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub slots: Option<u32>,
    /// This run of the node's process.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub boot: Option<BootId>,
    /// The key that texts for the node are sealed to.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub seal_key: Option<SealKeyClaim>,
    /// The generations of the databases of tasks that the node has.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub task_generations: Option<TaskGenerations>,
}

/// Which generations of the databases of durable tasks a node has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskGenerations {
    /// Those that are open, lowest first.
    pub open: Vec<u64>,
    /// Those among them with tasks that have not ended and that nobody else looks after.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<u64>,
    /// To which one the node's new tasks go, from now on to this one or a later one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<u64>,
}

/// A key that texts for a node are sealed to, and the node's word for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealKeyClaim {
    /// The X25519 key: 32 bytes in base64.
    pub key: String,
    /// What the node signed it with: the 64 bytes of an Ed25519 signature in base64.
    pub signature: String,
}

impl Capabilities {
    /// Starts with the fields that every program writes; nothing installed, no models.
    #[must_use]
    pub fn new(node_id: String, timestamp: Timestamp) -> Self {
        Self {
            node_id,
            cpu: None,
            gpu: None,
            models: Vec::new(),
            installed: Vec::new(),
            status: NodeStatus::Idle,
            timestamp,
            name: None,
            version: None,
            ip: None,
            api: None,
            node_tier: None,
            gpu_tier: None,
            gpu_name: None,
            vram_total_mb: None,
            capabilities: Vec::new(),
            backends: Vec::new(),
            running: None,
            slots: None,
            boot: None,
            seal_key: None,
            task_generations: None,
        }
    }
}

/// A task that anyone may claim. It names no sender: that is whoever signed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskBroadcast {
    /// Names the task, for example `#42`.
    pub task_id: String,
    /// The repository that it is about.
    pub repo: String,
    /// Where it is described.
    pub issue_url: String,
    /// What is to work on it.
    pub model: String,
    /// What is to be done.
    pub input: String,
    /// Whatever else the task's runner understands.
    #[serde(default)]
    pub params: Map<String, Value>,
    /// When it was published, by the sender's clock.
    pub timestamp: Timestamp,
}

/// A node takes a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskClaim {
    /// The task.
    pub task_id: String,
    /// The sender, who takes it.
    pub node_id: String,
    /// When, by the sender's clock.
    pub timestamp: Timestamp,
}

/// What became of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task.
    pub task_id: String,
    /// The sender, who worked on it.
    pub node_id: String,
    /// What kind of result it is, for example `pull_request`.
    pub result_type: String,
    /// Where the result is.
    pub result_url: String,
    /// How long the work took, in milliseconds.
    pub duration_ms: u64,
    /// When, by the sender's clock.
    pub timestamp: Timestamp,
}

/// A node is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PresencePing {
    /// The sender.
    pub node_id: String,
    /// What people call it.
    pub name: String,
    /// When, by the sender's clock.
    pub timestamp: Timestamp,
    /// Version of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// This run of the node's process.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub boot: Option<BootId>,
}

/// A node asks for help with a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskHelpRequest {
    /// The task.
    pub task_id: String,
    /// The sender.
    pub from_node: String,
    /// Why it asks.
    pub reason: String,
    /// What a helper must have, for example `claude-cli`, a model, or `gpu_inference`.
    pub requested_capability: String,
    /// When, by the sender's clock.
    pub timestamp: Timestamp,
}

/// A node answers a request for help.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskHelpResponse {
    /// The task.
    pub task_id: String,
    /// The sender, who would help.
    pub from_node: String,
    /// Whether it can.
    pub can_help: bool,
    /// What it has of what was asked for.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// In how many seconds it could begin; nodes say so whenever they can help.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub eta_seconds: Option<u32>,
    /// When, by the sender's clock.
    pub timestamp: Timestamp,
}

/// Reads an optional field of ours; what another version made of it counts as absent, since the rest of the message still holds.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}
