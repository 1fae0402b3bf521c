//! Sealing: prompts and results that only those whom they are for can read, though every node stores them.
//!
//! A text is encrypted once with a random content key (AES-256-GCM), and that key once for each recipient by HPKE (RFC 9180: base mode,
//! X25519 with HKDF-SHA256, HKDF-SHA256, AES-256-GCM). What is sealed is bound to its [`Purpose`]: the task, whether it is prompt or result, and
//! who sealed it. So nobody can pass somebody else's sealed prompt off as one of his own and have a worker read it for him.
//!
//! HPKE's base mode does not say who sealed something; that is for the entry that carries it, which is signed.
//!
//! Each node has a key for this alone ([`SealKey`]). It tells peers the public half with its word for it, signed by the key that its id comes from
//! ([`PublicSealKey::claimed_by`]), in `capabilities`; [`crate::SwarmHandle::seal_key`] gives those that were verified.
//!
//! ```text
//! key.rs        a node's key pair, and its word for the public half
//! purpose.rs    what a sealed text is bound to
//! envelope.rs   sealing and opening;  documents.rs: of tasks and results
//! ```

mod documents;
mod envelope;
mod key;
mod purpose;
#[cfg(test)]
mod tests;

pub use documents::{OpenedTask, open_result, open_task, seal_result, seal_task};
pub use envelope::{OpenError, RECIPIENTS_MAX, SEALED_BYTES_MAX, SealError, SealHeader, Sealed, open, seal};
pub use key::{PublicSealKey, SealKey, SealKeyError};
pub use purpose::{Purpose, Role};

/// The suite of RFC 9180.
type Kem = hpke::kem::X25519HkdfSha256;
type Kdf = hpke::kdf::HkdfSha256;
type WrapAead = hpke::aead::AesGcm256;
