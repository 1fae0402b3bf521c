use std::sync::Arc;
use std::time::Instant;

use bombus_core::capability::Hardware;
use bombus_core::identity::NodeId;
use bombus_infer::Backends;
use tokio::sync::watch;

use crate::databases::Databases;
use crate::files::Files;
use crate::mesh::Mesh;
use crate::tasks::Tasks;
use crate::{KeyStore, Metrics};

/// What the HTTP surfaces stand on.
#[derive(Clone)]
pub struct Services {
    /// What runs the models.
    pub backends: Backends,
    /// Who this node is.
    pub node: NodeFacts,
    /// The API keys that open a listener beyond loopback.
    pub keys: KeyStore,
    /// What `/metrics` shows; other parts of the node may add their own samples to it.
    pub metrics: Metrics,
    /// The model for requests that name none; without it they are refused.
    pub default_model: Option<String>,
    /// The other nodes; without it this node is alone.
    pub mesh: Option<Arc<dyn Mesh>>,
    /// The replicated databases; without them their routes say that there are none.
    pub databases: Option<Arc<dyn Databases>>,
    /// The durable tasks; without them their routes say that there are none.
    pub tasks: Option<Arc<dyn Tasks>>,
    /// Files of requests and batches of them; without them their routes say that there are none.
    pub files: Option<Arc<dyn Files>>,
}

/// Facts about the node.
#[derive(Clone)]
pub struct NodeFacts {
    /// Its id.
    pub node_id: NodeId,
    /// What people call it.
    pub name: String,
    /// The program's version.
    pub version: String,
    /// When it was started.
    pub started: Instant,
    /// The machine as last looked at.
    pub sample: watch::Receiver<NodeSample>,
}

/// A look at the machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeSample {
    /// Its hardware, with what is free of it now.
    pub hardware: Hardware,
    /// How busy the processors are, 0 to 100.
    pub cpu_usage_percent: f32,
}
