//! The HTTP surfaces of a node: OpenAI's dialect under `/v1`, Ollama's under `/api`, the native routes, the API document and the metrics.
//!
//! A request passes, from the outside in: its id, span and log line (`observe`), the guard against panics, the check of `Host` and
//! `Origin` (`origin`), CORS, the API key (`auth`), the look at the nodes that it came through (`via`), then its handler. Handlers fail
//! with an `ApiError`, which `error` alone turns into the body that the route's dialect asks for.

mod app;
mod auth;
mod body;
mod config;
pub mod databases;
#[cfg(test)]
mod dialects;
mod error;
pub mod files;
mod inference;
pub mod keys;
pub mod mesh;
mod metrics;
mod models;
mod native;
mod observe;
mod ollama;
mod openai;
mod openapi;
mod origin;
mod platform;
mod router;
mod schema_depth;
mod server;
mod services;
pub mod tasks;
#[cfg(test)]
mod testing;
mod via;

pub use config::{HttpConfig, Limits, LimitsError};
pub use keys::KeyStore;
pub use metrics::{Metrics, Sample, SampleKind};
pub use server::{HttpError, Server};
pub use services::{NodeFacts, NodeSample, Services};
