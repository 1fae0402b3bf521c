//! What runs models: the [`Backend`] trait, its implementations that need no heavy library, and the models on this machine.

pub mod backend;
#[cfg(test)]
mod captured;
pub mod discover;
pub mod fake;
mod file_lock;
pub mod gguf;
pub mod hardware;
mod library;
pub mod models;
mod names;
pub mod ollama;
pub mod openai;
mod platform;
mod registry;
mod resumed;
mod shorten;
mod upstream;
mod via;

pub use backend::{Backend, BackendError, ChatStream, Health, LoadRequest};
pub use library::{ByteStream, CreateRequest, ModelLibrary, Progress, ProgressStream, PullRequest};
pub use names::{NamesError, NamingBackend};
pub use ollama::{OllamaBackend, OllamaClient, OllamaConfig, OllamaError};
pub use openai::{OpenAiBackend, OpenAiConfig, OpenAiError};
pub use registry::{
    ANSWER_MIB_MAX, BackendOptions, BackendState, Backends, Listed, NamedBackend, PeerFacts, PeerNow, Route,
    RouteConfig, Routed,
};
pub use resumed::goes_on_as_text;
pub use via::{LoopDetected, Via};
