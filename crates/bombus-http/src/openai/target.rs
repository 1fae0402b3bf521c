use std::sync::Arc;

use axum::http::HeaderValue;
use bombus_core::model::{ModelCapability, ModelInfo};
use bombus_infer::Backend;

use crate::app::App;
use crate::error::ApiError;
use crate::metrics::ModelLabels;

/// What a request goes to.
pub(crate) struct Target {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) info: ModelInfo,
    /// The model's name as the client wrote it.
    pub(crate) model: String,
    pub(crate) labels: ModelLabels,
    /// Value of the `x-bombus-route` header.
    pub(crate) route: HeaderValue,
}

impl Target {
    /// Finds the backend for a model, or for the default model where none is named.
    pub(crate) async fn find(app: &App, model: Option<String>) -> Result<Self, ApiError> {
        let named = model.filter(|name| !name.is_empty()).or_else(|| app.services.default_model.clone());
        let Some(model) = named else {
            return Err(ApiError::missing("model", "'model' is missing; GET /v1/models lists the models there are"));
        };
        let (named, info) = app.services.backends.find(&model).await?;
        let labels = ModelLabels { model: info.name.to_string(), backend: named.name.clone() };
        let route = app.route_header(&labels.model, &labels.backend);
        Ok(Self { backend: named.backend.clone(), info, model, labels, route })
    }

    /// Fails where the model cannot do something.
    pub(crate) fn require(&self, capability: ModelCapability, param: &'static str) -> Result<(), ApiError> {
        if self.info.capabilities.contains(&capability) {
            return Ok(());
        }
        let lack = match capability {
            ModelCapability::Completion => "does not generate text",
            ModelCapability::Tools => "does not support tools",
            ModelCapability::Embedding => "does not make embedding vectors",
            ModelCapability::Vision => "does not see pictures",
            ModelCapability::Thinking => "does not support thinking",
            ModelCapability::Insert => "does not fill in between two texts",
        };
        Err(ApiError::unsupported(param, format!("model '{}' {lack}", self.model)))
    }
}
