//! Ollama servers: a client of their API, and the backend that runs models on one.
//!
//! ```no_run
//! # async fn example() -> Result<(), bombus_infer::OllamaError> {
//! use bombus_infer::OllamaClient;
//! use bombus_infer::ollama::wire::GenerateRequest;
//!
//! let client = OllamaClient::builder().host("127.0.0.1").port(11434).build()?;
//! let request = GenerateRequest { model: "llama3.2".into(), prompt: "Why is the sky blue?".into(), ..Default::default() };
//! println!("{}", client.generate(&request).await?.response);
//! # Ok(())
//! # }
//! ```

mod answer;
mod backend;
mod builder;
mod catalogue;
mod client;
mod config;
mod context;
mod error;
mod find;
mod from_peers;
mod library;
mod request;
mod show;
mod template;
pub mod wire;

pub use backend::OllamaBackend;
pub use builder::OllamaClientBuilder;
pub use client::{AnswerStream, OllamaClient, StepStream};
pub use config::OllamaConfig;
pub use error::OllamaError;
pub(crate) use find::answering;
pub use find::find_local;
pub use template::{ChatTemplateRenderer, ModelTemplate};

#[cfg(test)]
mod tests;
