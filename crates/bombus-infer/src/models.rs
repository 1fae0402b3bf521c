//! The models on this machine, and how they get here.

pub mod catalogue;
mod local;
mod ollama;
pub mod pull;
mod store;

pub use local::{LocalModel, ModelSource};
pub use ollama::ollama_directories;
pub use pull::{PullConfig, PullError, PullProgress, PullStage, Secret, pull};
pub use store::{ModelStore, StoreError};
