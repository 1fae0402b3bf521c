//! The swarm: who is there, what each can do, and the work that travels between them.
//!
//! [`swarm`] makes the two halves: the [`SwarmService`] runs as one task beside the mesh, and everybody else holds a [`SwarmHandle`].
//!
//! ```text
//! view.rs        the view of the network (pure): peers, what they say of themselves, who lives
//! events.rs      the log of what happens: numbers that only grow, readers that resume
//! topics.rs      the seven topics: judged, counted, shown to the view, handed out
//! hello.rs       the first word between two nodes, over a stream: known at once, not when the topics have found their ways
//! presence.rs    what this node tells, and when;  facts.rs: what it says of itself
//! liveness.rs    the failure detector's datagrams over streams: links.rs sends, readers.rs receives
//! help.rs        requests for help, and answers to them
//! route.rs       answers between nodes: requests that go to peers, and those of peers that this node answers
//! db.rs          replicated databases: the library `orbitdb`, run over the mesh
//! seal.rs        prompts and results that only those whom they are for can read
//! store.rs       durable tasks and their results in replicated databases
//! tasks.rs       durable tasks: submitted on one node, run by any, readable on all
//! files.rs       files of requests, and batches of them: each line a durable task
//! weights.rs     models between nodes: weights that travel, and nodes that manage the models of others
//! places.rs      how many peers may have something at once;  streams.rs: answers to the streams that they open
//! room.rs        whether the disk has room, and databases that are opened anew when it has
//! service.rs     the parts, kept going (supervised.rs);  handle.rs: SwarmHandle;  shared.rs: what they share
//! ```

mod clock;
mod config;
mod counts;
pub mod db;
mod error;
mod events;
mod facts;
pub mod files;
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod hello;
mod help;
mod limiter;
mod liveness;
mod places;
mod platform;
mod presence;
mod report;
mod reserved;
mod room;
pub mod route;
pub mod seal;
mod service;
mod shared;
pub mod store;
mod streams;
mod supervised;
pub mod tasks;
#[cfg(test)]
mod tests;
mod topics;
mod view;
pub mod weights;
mod wire;

pub use clock::WallClock;
pub use config::SwarmConfig;
pub use counts::MessageCounts;
pub use error::TellError;
pub use events::{EVENTS_MAX, EventItem, EventStream, SwarmEvent};
pub use facts::OwnFacts;
pub use handle::{SwarmHandle, Watched};
pub use liveness::LivenessReport;
pub use report::{HelloReport, PeerReport, SwarmReport};
pub use reserved::is_reserved;
pub use service::{SwarmService, swarm};
pub use topics::{Heard, MessageStream};
pub use view::{Change, Link, Moment, PeerPath, PeerView, View, ViewInput, ViewLimits, word_of};
