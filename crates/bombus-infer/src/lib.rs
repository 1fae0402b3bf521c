//! What runs models: the [`Backend`] trait, its implementations that need no heavy library, and the models on this machine.

pub mod backend;
pub mod fake;
pub mod gguf;
pub mod hardware;
pub mod models;
mod registry;

pub use backend::{Backend, BackendError, ChatStream, Health};
pub use registry::{Backends, NamedBackend};
