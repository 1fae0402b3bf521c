//! The models of the swarm, and where each of them is.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use bombus_core::model::ModelCapability;
use bombus_infer::Listed;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{App, SharedApp};
use crate::models;

/// The models of the swarm.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelsAnswer {
    /// Each name once, in alphabetical order.
    models: Vec<ModelAnswer>,
}

/// A model, and where it is.
#[derive(Serialize, ToSchema)]
struct ModelAnswer {
    /// Its name, tag included.
    name: String,
    /// `completion`, `tools`, `embedding`, `vision`, `thinking`, `insert`, as the most preferred place has it.
    #[schema(value_type = Vec<String>)]
    capabilities: Vec<ModelCapability>,
    /// The places that have it, most preferred first.
    nodes: Vec<PlaceAnswer>,
}

/// A place that has a model.
#[derive(Serialize, ToSchema)]
struct PlaceAnswer {
    node_id: String,
    /// What people call the node.
    name: String,
    /// Whether it is this node.
    here: bool,
    /// The backend that runs it; for another node, the name by which this one knows its way there.
    backend: String,
    /// `embedded`, `fake`, `ollama`, `openai`, or `peer` for another node.
    kind: &'static str,
    /// The model's name there, where that is another one.
    #[schema(required)]
    alias_of: Option<String>,
    /// Whether it is in memory now.
    warm: bool,
    /// Size of the weights in bytes, where known.
    #[schema(required)]
    size: Option<u64>,
    /// Quantisation, for example `Q4_1`, where known.
    #[schema(required)]
    quantization: Option<String>,
    /// Most tokens that prompt and answer may have together, where known.
    #[schema(required)]
    context: Option<u32>,
    /// SHA-256 of the weights in lower-case hex, where known.
    #[schema(required)]
    sha256: Option<String>,
}

/// Lists the models of the swarm, each name once, with the places that have it.
#[utoipa::path(get, operation_id = "models", path = "/models", tag = "native",
    responses((status = 200, description = "The models", body = ModelsAnswer)))]
pub(crate) async fn list(State(app): State<SharedApp>) -> Json<ModelsAnswer> {
    let mut models: BTreeMap<String, ModelAnswer> = BTreeMap::new();
    for listed in app.services.backends.models().await {
        let name = listed.info.name.to_string();
        let model = models.entry(name.clone()).or_insert_with(|| {
            let capabilities = listed.info.capabilities.clone();
            ModelAnswer { name, capabilities, nodes: Vec::new() }
        });
        model.nodes.push(PlaceAnswer::of(&app, listed));
    }
    Json(ModelsAnswer { models: models.into_values().collect() })
}

impl PlaceAnswer {
    fn of(app: &App, listed: Listed) -> Self {
        let (node_id, name) = models::node_of(app, &listed);
        Self {
            node_id,
            name,
            here: listed.node.is_none(),
            kind: listed.backend.kind,
            backend: listed.backend.name,
            alias_of: listed.alias_of,
            warm: listed.info.warm,
            size: listed.info.size_bytes,
            quantization: listed.info.quantization,
            context: listed.info.context_tokens,
            sha256: listed.info.sha256,
        }
    }
}
