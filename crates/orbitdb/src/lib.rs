//! OrbitDB in Rust: replicated databases that peers of `@orbitdb/core` 3 and 4 can join.

pub mod cbor;
pub mod cid;
pub mod crypt;
pub mod entry;
pub mod identity;
pub mod key;
