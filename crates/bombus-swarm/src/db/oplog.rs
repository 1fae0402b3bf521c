//! `/bombus/oplog/1`: everything of a log that one node lacks and another one has, in one stream.
//!
//! The node that lacks says what it has ([`orbitdb::Database::have`]); the other one works out what follows and sends it in pieces, each
//! entry after those that it follows and behind the identity that it names. Each piece is checked on all cores while the one before it
//! joins and the next one comes. Who is interrupted asks again with what it has by then. Peers in JavaScript do not speak it: they fetch
//! block by block.
//!
//! ```text
//! oplog/fetch.rs   catches up with a peer;  turns.rs: one peer after the other, and how far it is
//!       serve.rs   lets peers catch up;  wire.rs: the messages;  fuzzing.rs: reaches them
//! ```

mod fetch;
pub(crate) mod fuzzing;
mod serve;
mod turns;
mod wire;

pub(super) use fetch::{CatchUpError, catch_up};
pub(super) use serve::serve_all;
pub use turns::CatchUp;
pub(super) use turns::Turns;
pub(super) use wire::PIECE_MAX;

/// The protocol.
pub const OPLOG_PROTOCOL: &str = "/bombus/oplog/1";
