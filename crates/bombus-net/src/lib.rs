//! The mesh: peers, topics and streams over libp2p. It moves bytes, and has never heard of tasks or models.
//!
//! [`net`] makes the two halves: the [`NetService`] owns the libp2p swarm and runs as one task, and everybody else holds a
//! [`NetHandle`]. When the swarm's key changes, the service builds the libp2p swarm anew inside itself: subscriptions and accepted
//! protocols go on, open streams end with an error, and the listening ports stay.
//!
//! No type of libp2p stands in a public signature: peers are [`NodeId`](bombus_core::identity::NodeId)s, addresses are multiaddrs as
//! text.

mod address;
mod behaviour;
pub mod bitswap;
mod config;
mod conflict;
mod dialer;
mod events;
mod failure;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod id;
pub mod membership;
mod node;
mod peer;
mod ping;
mod platform;
mod ports;
mod probe;
mod report;
mod reservations;
mod service;
mod shared;
mod stream;
mod topic;
mod transport;

pub use config::{DEFAULT_PORT, ListenOn, NetConfig, NetIdentity, NetLimits, NetTiming};
pub use events::{NetEvent, NetEvents};
pub use failure::{DialFailure, NetError, OpenError, PingError, PublishError};
pub use handle::{MESSAGE_MAX, NetHandle};
pub use peer::{AddressSource, NetPeer, Path, PeerAddress};
pub use probe::{ProbeVerdict, probe};
pub use report::{DialReport, DropCounts, MdnsReport, NetReport, Reachability, RelayReport};
pub use service::{NetService, net};
pub use stream::{Incoming, NetStream};
pub use topic::{Judge, Published, Subscription, Verdict};

#[cfg(test)]
mod tests;
