//! What runs models on this machine already.

mod occasional;
mod servers;

pub use occasional::OccasionalBackend;
pub use servers::{FoundServer, OLLAMA_ADDRESS, ServerKind, local_servers};
