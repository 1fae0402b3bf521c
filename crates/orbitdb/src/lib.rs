//! OrbitDB in Rust: replicated databases that peers of `@orbitdb/core` 3 and 4 can join.
//!
//! A database is a log of signed entries that any number of peers append to without asking each other, and that all of them order alike.
//! This crate knows the blocks, the checks, the order, the storage and the state of sync. It opens no connection and starts no timer: what
//! it wants of the network comes out as [`Output`], and what the network has goes in by [`Database::handle`] and [`OrbitDb::supply`].
//!
//! The layers, from below: [`cbor`] and [`cid`] are values and names; [`key`], [`identity`] and [`entry`] are who writes what; [`log`] is
//! the graph and its order; [`sync`] is whom to ask for what; [`replica`] joins these in one pure state machine; [`storage`] keeps blocks;
//! [`index`] is what is shown; [`OrbitDb`] and [`Database`] are for applications.

pub mod cbor;
pub mod cid;
pub mod crypt;
mod database;
pub mod entry;
#[doc(hidden)]
pub mod fuzzing;
pub mod identity;
pub mod index;
pub mod key;
pub mod log;
pub mod manifest;
mod orbit;
pub mod replica;
pub mod storage;
pub mod sync;

pub use database::{Bounds, Database, DatabaseError, Event, Gain, Info, Output, Pages, Take, Told, Update};
pub use orbit::{Access, BuildError, Builder, Known, OpenError, OpenOptions, OrbitDb, generation_name};
