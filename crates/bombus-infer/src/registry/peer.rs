use bombus_core::identity::NodeId;
use serde::Serialize;

/// What is known about a peer that can answer requests, beside the [`crate::Backend`] that sends them there.
pub trait PeerFacts: Send + Sync + 'static {
    /// Returns its id.
    fn node(&self) -> &NodeId;

    /// Returns what people call it.
    fn node_name(&self) -> String;

    /// Returns how it is now, as far as is known. Called for every request and every peer, so it must neither wait nor cost much.
    fn now(&self) -> PeerNow;
}

/// How a peer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PeerNow {
    /// Whether it lives and this node is connected to it.
    pub reachable: bool,
    /// Whether it may be gone: it did not answer lately.
    pub suspect: bool,
    /// Time to it and back in milliseconds, where that was measured.
    pub latency_ms: Option<f64>,
    /// Requests that it runs, for whomever, as it told last.
    pub running: u32,
    /// Requests that wait there, for whomever, as it told last.
    pub waiting: u32,
    /// How many of `running` and `waiting` together it counts for this node.
    ///
    /// What this node has there it knows better itself: requests count here from the decision to send them until their end. So the
    /// load of a peer is what it told of others, and what is counted here; neither requests that it has not told of yet nor those
    /// that it has not told the end of make a difference.
    pub ours: u32,
    /// How many requests it runs at a time, where that is limited.
    pub slots: Option<u32>,
    /// Whether it takes no requests since it is about to stop.
    pub draining: bool,
    /// Whether its owner keeps it for himself.
    pub paused: bool,
    /// Memory of its GPUs in MB; 0 where it has none.
    pub gpu_memory_mb: u64,
}

impl PeerNow {
    /// Returns how many requests it has of others than this node.
    pub(super) fn of_others(&self) -> u32 {
        self.running.saturating_add(self.waiting).saturating_sub(self.ours)
    }
}
