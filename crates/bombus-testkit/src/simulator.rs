//! A network without sockets: pure state machines exchange messages over links that lose, delay and reorder, by a virtual clock.
//!
//! A protocol that is a [`Machine`], a function from a time and an event to effects, runs here with as many nodes as wanted, through
//! crashes, pauses, restarts and partitions, a thousand times as fast as life. All chance comes from one seed: what failed fails again
//! with the same seed, and [`for_each_seed`] says which it was.
//!
//! ```
//! use bombus_testkit::simulator::{Effect, Event, Machine, Network, Simulation};
//!
//! /// Tells each new neighbour the largest number it knows.
//! struct Gossip(u64);
//!
//! impl Machine for Gossip {
//!     type Message = u64;
//!     type Command = ();
//!     type Observation = u64;
//!
//!     fn on(&mut self, _now_ms: u64, event: Event<u64, ()>) -> Vec<Effect<u64, u64>> {
//!         match event {
//!             Event::LinkUp(peer) => vec![Effect::Send { to: peer, message: self.0 }],
//!             Event::Message { message, .. } if message > self.0 => {
//!                 self.0 = message;
//!                 vec![Effect::Observe(message)]
//!             }
//!             _ => Vec::new(),
//!         }
//!     }
//! }
//!
//! let mut simulation = Simulation::new(7, Network::lan(), 3, |node| Gossip(node.index as u64));
//! simulation.connect_all();
//! simulation.run_until(1_000);
//! assert!(simulation.nodes().all(|(_, node)| node.0 == 2));
//! ```

mod network;
mod seeds;
mod simulation;

pub use network::{Network, SimulatorRandom};
pub use seeds::for_each_seed;
pub use simulation::{Birth, Observed, Simulation, Traffic};

/// A protocol without I/O and without a clock.
pub trait Machine {
    /// What nodes send each other.
    type Message: Clone;
    /// What a test tells a node.
    type Command;
    /// What a node tells the test.
    type Observation;

    /// Takes an event at a time in milliseconds, by the node's own clock that never goes back.
    fn on(
        &mut self,
        now_ms: u64,
        event: Event<Self::Message, Self::Command>,
    ) -> Vec<Effect<Self::Message, Self::Observation>>;

    /// Returns how many bytes a message takes, for the account of the traffic.
    fn size(_message: &Self::Message) -> usize {
        0
    }
}

/// What happens to a node. Nodes are known by their index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<M, C> {
    /// Its process has begun.
    Start,
    /// The time has come for which it asked last.
    Wake,
    /// A message came over a link.
    Message {
        /// From whom.
        from: usize,
        /// What.
        message: M,
    },
    /// A link to a node stands.
    LinkUp(usize),
    /// The link to a node is lost.
    LinkDown(usize),
    /// The test wants something.
    Command(C),
}

/// What a node does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<M, O> {
    /// Sends a message. Without a link it is lost.
    Send {
        /// To whom.
        to: usize,
        /// What.
        message: M,
    },
    /// Asks for a link to a node.
    Dial(usize),
    /// Wants [`Event::Wake`] at this time; only the latest wish counts.
    WakeAt(u64),
    /// Tells the test.
    Observe(O),
}
