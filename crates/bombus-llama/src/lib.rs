//! The embedded engine: llama.cpp with continuous batching.
//!
//! Each loaded model has a child process of this same binary ([`engine_worker`]), which computes all its requests together, round by
//! round. [`EmbeddedBackend`] starts, feeds, watches and ends these processes.

mod backend;
mod child;
mod config;
pub mod cpu;
mod platform;
mod pool;
mod protocol;
#[cfg(test)]
#[cfg(unix)]
mod scripted;
mod worker;

pub use backend::EmbeddedBackend;
pub use config::{EmbeddedConfig, SLOTS_MAX};
pub use pool::EngineState;
pub use worker::{JinjaRenderer, engine_worker};

/// Version of the llama.cpp that is built in.
pub const LLAMA_CPP_VERSION: &str = "0.6.0 (llama-cpp-2 0.1.160)";

/// Whether this build can put models on a GPU.
const HAS_GPU: bool = cfg!(any(feature = "cuda", feature = "metal", feature = "rocm", feature = "vulkan"));
