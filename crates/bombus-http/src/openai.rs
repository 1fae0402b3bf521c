//! OpenAI's dialect: request and response types, their translation into the internal vocabulary and back.

pub(crate) mod batches;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod files;
mod logprobs;
pub(crate) mod models;
pub(crate) mod request;
pub(crate) mod response;
mod stream;
#[cfg(test)]
mod tests;
mod text_or_list;
mod translate;
pub(crate) mod whole;

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// Makes an id that no other answer has.
fn unique_id(prefix: &str) -> String {
    format!("{prefix}-{}", Uuid::new_v4().simple())
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
