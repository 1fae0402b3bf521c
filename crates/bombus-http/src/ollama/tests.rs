//! The dialect through the router, over scripted backends.

mod answers;
mod errors;
mod manage;
mod models;
mod requests;

use bombus_core::chat::{ChatEvent, FinishReason};
use bombus_core::model::ModelCapability;
use bombus_infer::BackendError;
use serde_json::{Value, json};

use crate::testing::{Answer, Scripted, done, loopback, model, post, scripted, services, text};

fn with(mut request: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("an object is needed") };
    request.as_object_mut().unwrap().extend(more);
    request
}

/// Sends a prompt to the model `m` of a backend.
async fn generate(backend: Scripted, more: Value) -> Answer {
    let request = with(json!({"model": "m", "prompt": "hello there"}), more);
    post(&loopback(services(backend)), "/api/generate", request).await
}

/// Sends a conversation to the model `m` of a backend.
async fn chat(backend: Scripted, more: Value) -> Answer {
    let request = with(json!({"model": "m", "messages": [{"role": "user", "content": "hello there"}]}), more);
    post(&loopback(services(backend)), "/api/chat", request).await
}

fn two_words() -> Vec<Result<ChatEvent, BackendError>> {
    vec![text("Good"), text(" day"), done(FinishReason::Stop)]
}

/// A backend whose model can do everything but think and fill in.
fn saying_good_day() -> Scripted {
    use ModelCapability::{Completion, Embedding, Tools, Vision};
    Scripted { models: vec![model("m", &[Completion, Tools, Embedding, Vision])], ..scripted(two_words()) }
}
