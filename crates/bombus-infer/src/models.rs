//! The models on this machine, and how they get here.

pub mod catalogue;
pub mod chat_template;
mod library;
mod local;
mod ollama;
pub mod pull;
mod store;

pub use library::StoreLibrary;
pub use local::{LocalModel, ModelDefaults, ModelSource};
pub use ollama::ollama_directories;
pub use pull::{PullConfig, PullError, PullProgress, PullStage, Secret, pull};
pub use store::{IncomingBlob, ModelStore, StoreError};
