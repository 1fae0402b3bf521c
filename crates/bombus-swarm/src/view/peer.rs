//! What is shown of a peer.

use bombus_core::capability::{GpuTier, NodeTier};
use bombus_core::identity::NodeId;
use bombus_core::liveness::PeerState;
use bombus_core::topics::{Capabilities, NodeStatus};
use serde::{Serialize, Serializer};

/// A peer as the view shows it. What the peer itself has not said is absent or empty.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerView {
    /// Who it is.
    pub node_id: NodeId,
    /// What people call it; the end of its id as long as it has not said so.
    pub name: String,
    /// Whether it lives.
    #[serde(serialize_with = "state_word")]
    pub state: PeerState,
    /// Why it is in that state.
    pub reason: &'static str,
    /// Since when it is in that state, in seconds of Unix time.
    pub since: u64,
    /// When something was last heard of it that it signed or sent itself, in seconds of Unix time.
    pub last_seen: u64,
    /// How it is reached; absent without a connection.
    pub path: Option<PeerPath>,
    /// The last measured round trip in milliseconds.
    pub latency_ms: Option<f64>,
    /// Its address: the one that it is connected from or to, else the one that it says it has.
    pub ip: Option<String>,
    /// The port of its HTTP API.
    pub port: Option<u16>,
    /// What its machine can carry.
    pub node_tier: Option<NodeTier>,
    /// How much model its best GPU carries.
    pub gpu_tier: Option<GpuTier>,
    /// That GPU's name.
    pub gpu_name: Option<String>,
    /// That GPU's memory in MB.
    pub vram_total_mb: Option<u64>,
    /// What it can do for others.
    pub capabilities: Vec<String>,
    /// The models that it runs.
    pub models: Vec<String>,
    /// What runs models there.
    pub backends: Vec<String>,
    /// Command-line programs that are installed there.
    pub installed: Vec<String>,
    /// What it says it is doing.
    pub status: Option<NodeStatus>,
    /// How busy its processors are, 0 to 100.
    pub cpu: Option<f64>,
    /// How busy its GPUs are, 0 to 100.
    pub gpu: Option<f64>,
    /// Requests that it is answering.
    pub running: Option<u32>,
    /// How many it answers at a time.
    pub slots: Option<u32>,
    /// Its version of the program.
    pub version: Option<String>,
    /// How far its clock is ahead of this node's, in milliseconds, where that is more than messages may be: they are ignored then.
    pub clock_skew_ms: Option<i64>,
    /// Whether it has said what it can do.
    pub complete: bool,
}

/// How a peer is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "path", rename_all = "snake_case")]
pub enum PeerPath {
    /// Without anybody between.
    Direct {
        /// The multiaddr at the other end.
        addr: String,
    },
    /// Through another member.
    Relayed {
        /// The member.
        via: NodeId,
    },
}

impl From<bombus_net::Path> for PeerPath {
    fn from(path: bombus_net::Path) -> Self {
        match path {
            bombus_net::Path::Direct { addr } => Self::Direct { addr },
            bombus_net::Path::Relayed { via } => Self::Relayed { via },
        }
    }
}

impl PeerPath {
    /// Returns the address at the other end, where nobody is between.
    #[must_use]
    pub fn ip(&self) -> Option<&str> {
        let Self::Direct { addr } = self else { return None };
        let mut parts = addr.split('/').skip(1);
        matches!(parts.next(), Some("ip4" | "ip6")).then(|| parts.next()).flatten()
    }

    /// Returns the way as one word: `direct` or `relayed`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Direct { .. } => "direct",
            Self::Relayed { .. } => "relayed",
        }
    }
}

impl PeerView {
    /// Shows a node about which only its id is known.
    pub(crate) fn unknown(node_id: &NodeId) -> Self {
        Self {
            node_id: node_id.clone(),
            name: short_name(node_id),
            state: PeerState::Alive,
            reason: "",
            since: 0,
            last_seen: 0,
            path: None,
            latency_ms: None,
            ip: None,
            port: None,
            node_tier: None,
            gpu_tier: None,
            gpu_name: None,
            vram_total_mb: None,
            capabilities: Vec::new(),
            models: Vec::new(),
            backends: Vec::new(),
            installed: Vec::new(),
            status: None,
            cpu: None,
            gpu: None,
            running: None,
            slots: None,
            version: None,
            clock_skew_ms: None,
            complete: false,
        }
    }

    /// Shows this node itself by what it tells others. Both times are seconds of Unix time.
    pub(crate) fn own(node_id: &NodeId, told: &Capabilities, since: u64, now: u64) -> Self {
        let mut view = Self { reason: "this node", since, last_seen: now, ..Self::unknown(node_id) };
        view.take(told);
        view
    }

    /// Takes over what the node says of itself.
    pub(crate) fn take(&mut self, told: &Capabilities) {
        if let Some(name) = told.name.as_ref().filter(|name| !name.is_empty()) {
            self.name.clone_from(name);
        }
        self.ip = self.ip.take().or_else(|| told.ip.clone());
        self.port = told.api;
        self.node_tier = told.node_tier;
        self.gpu_tier = told.gpu_tier;
        self.gpu_name.clone_from(&told.gpu_name);
        self.vram_total_mb = told.vram_total_mb;
        self.capabilities.clone_from(&told.capabilities);
        self.models.clone_from(&told.models);
        self.backends.clone_from(&told.backends);
        self.installed.clone_from(&told.installed);
        self.status = Some(told.status);
        self.cpu = told.cpu;
        self.gpu = told.gpu;
        self.running = told.running;
        self.slots = told.slots;
        if told.version.is_some() {
            self.version.clone_from(&told.version);
        }
        self.complete = true;
    }
}

/// Returns a state as one word: `alive`, `suspect` or `gone`.
#[must_use]
pub fn word_of(state: PeerState) -> &'static str {
    match state {
        PeerState::Alive => "alive",
        PeerState::Suspect => "suspect",
        PeerState::Gone => "gone",
    }
}

fn state_word<S: Serializer>(state: &PeerState, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(word_of(*state))
}

/// Names a node that has not told its name by the end of its id, which differs more between nodes than the beginning.
fn short_name(node_id: &NodeId) -> String {
    let id = node_id.as_str();
    id[id.len().saturating_sub(8)..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_the_way() {
        let ip = |addr: &str| PeerPath::Direct { addr: addr.to_owned() }.ip().map(str::to_owned);
        assert_eq!(ip("/ip4/192.0.2.7/tcp/7891").as_deref(), Some("192.0.2.7"));
        assert_eq!(ip("/ip6/2001:db8::7/tcp/7891/p2p/x").as_deref(), Some("2001:db8::7"));
        assert_eq!(ip("/dns4/host/tcp/7891"), None);
        assert_eq!(ip(""), None);
    }
}
