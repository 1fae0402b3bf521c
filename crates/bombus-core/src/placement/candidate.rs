use std::sync::Arc;

use crate::breaker::BreakerState;
use crate::identity::NodeId;
use crate::model::ModelInfo;

/// A place that may be able to answer a request, with what is known about it now.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The other node that it stands for; `None`: it is a backend of this one.
    pub peer: Option<Peer>,
    /// The backend's name on this node; for a peer its node id.
    pub backend: Arc<str>,
    /// Place in this node's order of preference, 0 first. Peers have none, so theirs is 0.
    pub preference: u32,
    /// Decides between equals, the lower one first. Each node draws lots of its own for its peers, so that not all choose the same.
    pub lot: u64,
    /// What it has under the name that was asked for.
    pub offer: Offer,
    /// Requests that it is answering, those included that were sent there and that it has not told of yet.
    pub running: u32,
    /// Requests that wait there.
    pub waiting: u32,
    /// How many it may answer at a time, where that is limited.
    pub slots: Option<u32>,
    /// How fast it writes with this model, where that was measured lately.
    pub tokens_per_second: Option<f64>,
    /// How long its first token takes with this model in milliseconds, where that was measured lately.
    pub first_token_ms: Option<f64>,
    /// Memory of its GPUs in MB; 0 where it has none, or that is not known.
    pub gpu_memory_mb: u64,
    /// What its breaker lets through.
    pub breaker: BreakerState,
    /// The time by the clock of `breaker`, in milliseconds.
    pub now_ms: u64,
    /// Whether it lately said that it has too much to do, or that it does not answer this node.
    pub held_back: bool,
    /// Whether it is a backend of this node behind which somebody else's computers answer, beyond this network.
    pub cloud: bool,
}

/// What is known about another node.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Its id.
    pub node: Arc<NodeId>,
    /// What people call it.
    pub name: Arc<str>,
    /// Whether it lives and this node is connected to it.
    pub reachable: bool,
    /// Whether it may be gone: it did not answer lately.
    pub suspect: bool,
    /// Whether it takes no requests since it is about to stop.
    pub draining: bool,
    /// Whether its owner keeps it for himself.
    pub paused: bool,
    /// Whether the configuration of this node keeps requests from other nodes.
    pub barred: bool,
    /// Time to it and back in milliseconds, where that was measured.
    pub latency_ms: Option<f64>,
}

/// What a candidate has under the name that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Offer {
    /// The model.
    Has {
        /// What is known about it, under the name that it is offered by: the one that was asked for, or one that is like it.
        info: Arc<ModelInfo>,
        /// The name that it has there, where the one that it is offered by is an alias.
        alias_of: Option<Arc<str>>,
    },
    /// The model, but the configuration does not offer it.
    Hidden,
    /// No such model.
    Missing,
    /// What it has is not known, for this reason.
    Unknown(Arc<str>),
}

impl Candidate {
    /// Describes an idle backend of this node of which nothing was measured.
    #[must_use]
    pub fn new(backend: impl Into<Arc<str>>, offer: Offer) -> Self {
        Self {
            peer: None,
            backend: backend.into(),
            preference: 0,
            lot: 0,
            offer,
            running: 0,
            waiting: 0,
            slots: None,
            tokens_per_second: None,
            first_token_ms: None,
            gpu_memory_mb: 0,
            breaker: BreakerState::Closed,
            now_ms: 0,
            held_back: false,
            cloud: false,
        }
    }

    /// Returns the node that it is on; `None`: this one.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        self.peer.as_ref().map(|peer| &*peer.node)
    }
}

impl Peer {
    /// Describes a peer that lives, takes requests, and is as near as can be.
    #[must_use]
    pub fn new(node: NodeId, name: impl Into<Arc<str>>) -> Self {
        Self {
            node: Arc::new(node),
            name: name.into(),
            reachable: true,
            suspect: false,
            draining: false,
            paused: false,
            barred: false,
            latency_ms: None,
        }
    }
}
