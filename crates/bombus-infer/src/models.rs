//! The models on this machine, and how they get here.

pub mod catalogue;
pub mod chat_template;
mod defaults;
mod library;
mod local;
mod ollama;
mod peers;
pub mod pull;
mod store;

pub use defaults::ModelDefaults;
pub use library::StoreLibrary;
pub use local::{LocalModel, ModelSource};
pub use ollama::ollama_directories;
pub(crate) use peers::most_agree;
pub use peers::{BadDescription, MANIFEST_BYTES_MAX, PeerCopy, PeerReadError, PeerSource, Peers, SharedModel, Wanted};
pub use pull::{PullConfig, PullError, PullProgress, PullStage, Secret, pull};
pub use store::{IncomingBlob, ModelStore, OpenWeights, StoreError};
