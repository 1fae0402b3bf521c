//! Ollama's dialect, at the level of its version 0.24: request and response types, their translation into the internal vocabulary
//! and back.

mod answer;
pub(crate) mod blobs;
pub(crate) mod chat;
mod duration;
pub(crate) mod embed;
pub(crate) mod generate;
pub(crate) mod manage;
mod modelfile;
pub(crate) mod models;
pub(crate) mod node;
mod options;
mod places;
mod progress;
pub(crate) mod request;
mod residence;
pub(crate) mod response;
mod schema;
#[cfg(test)]
mod tests;
mod timestamp;
mod translate;

use bombus_core::model::ModelName;

use crate::app::App;
use crate::error::ApiError;

/// Returns the name of the model that a request is for, or of the default model where it names none.
fn model_name(app: &App, named: Option<String>) -> Result<String, ApiError> {
    let named = named.filter(|name| !name.is_empty()).or_else(|| app.services.default_model.clone());
    let Some(model) = named else { return Err(ApiError::missing("model", "model is required")) };
    match ModelName::parse(&model) {
        Ok(_) => Ok(model),
        Err(_) => Err(ApiError::invalid_value("model", "invalid model name")),
    }
}
