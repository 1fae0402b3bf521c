//! The pure part of Bombus: words and rules that every other crate shares.
//!
//! Nothing here performs I/O, reads a clock, or needs an async runtime, so all of it can be tested as plain functions.

pub mod batches;
pub mod breaker;
pub mod capability;
pub mod chat;
pub mod identity;
pub mod liveness;
pub mod model;
pub mod placement;
mod random;
pub mod tasks;
pub mod topics;
