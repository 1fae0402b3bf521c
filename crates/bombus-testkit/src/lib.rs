//! Doubles and builders for tests: GGUF files, servers that speak the protocols models are fetched by, servers that run models, and a
//! network without sockets.
//!
//! A development dependency only. The servers listen on a free port of 127.0.0.1 and end when they are dropped.

pub mod gguf;
pub mod hugging_face;
pub mod origin;
pub mod python_index;
pub mod registry;
pub mod simulator;
pub mod upstream;

use sha2::{Digest, Sha256};

/// Returns the SHA-256 of some bytes in lower-case hex.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
