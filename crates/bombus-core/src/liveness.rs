//! Which peers are alive: a failure detector without I/O and without a clock.
//!
//! It is told what happens and when, by `Detector::new(me: NodeId, boot: BootId, config: DetectorConfig, seed: u64)` and
//! `Detector::on(&mut self, now_ms: u64, input: LivenessInput) -> Vec<LivenessOutput>`.

use crate::identity::{BootId, NodeId};

/// What is known about a peer's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerState {
    /// It answers, or others vouch for it.
    Alive,
    /// It may be gone; it has some seconds to be heard of.
    Suspect,
    /// It is gone, by silence or by its own goodbye.
    Gone,
}

/// What a [`Detector`] is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LivenessInput {
    /// A connection to a peer that takes part in the protocol stands. Told again for a further connection, it does no harm.
    Connected(NodeId),
    /// The last connection to a peer was lost.
    Disconnected(NodeId),
    /// The last connection to a peer was closed on purpose, by this node or by the peer, since it was not needed: no sign of death.
    Released(NodeId),
    /// A datagram came from a peer, whose identity the connection proves.
    Datagram {
        /// Who sent it.
        from: NodeId,
        /// What came.
        bytes: Vec<u8>,
    },
    /// A peer said goodbye in some other way than by a datagram.
    Goodbye(NodeId),
    /// This node stops: say goodbye to all. Nothing but `Send` comes out from then on, and only now.
    Leave,
    /// Something depends on this peer: probe it directly at every period.
    Watch(NodeId),
    /// Nothing depends on it any more.
    Unwatch(NodeId),
    /// The time of the last [`LivenessOutput::WakeAt`] has come, or the node begins.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LivenessOutput {
    /// Send a datagram (at most 1,400 bytes). Where no connection stands, this asks for one; a datagram that cannot be sent is dropped.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        bytes: Vec<u8>,
    },
    /// A peer's state, or what is said about it, has changed.
    State {
        /// The peer.
        peer: NodeId,
        /// Its state.
        state: PeerState,
        /// Why, in a few words for people.
        reason: &'static str,
    },
    /// Two processes are alive under one node id.
    SameIdentity {
        /// The node id, which may be this node's own.
        peer: NodeId,
        /// Two of the runs.
        boots: [BootId; 2],
    },
    /// Hand in [`LivenessInput::Tick`] at this time, in milliseconds by the caller's clock. Comes last, every time; only the latest counts.
    WakeAt(u64),
}
