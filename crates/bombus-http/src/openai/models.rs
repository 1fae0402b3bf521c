//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use super::response::{Model, ModelList, ModelMeta};
use crate::app::{App, SharedApp};
use crate::error::ApiError;
use crate::models::{self, Found};

/// Lists the models of the swarm, each name once, as the most preferred backend describes it.
#[utoipa::path(get, operation_id = "list_models", path = "/v1/models", tag = "openai", responses((status = 200, description = "The models", body = ModelList)))]
pub(crate) async fn list(State(app): State<SharedApp>) -> Json<ModelList> {
    let data = models::all(&app).await.into_iter().map(model).collect();
    Json(ModelList { object: "list", data })
}

/// Describes a model. Slashes in its name may be sent as they are or as `%2F`.
#[utoipa::path(get, operation_id = "retrieve_model", path = "/v1/models/{id}", tag = "openai",
    params(("id" = String, Path, description = "Name of the model", min_length = 1)),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 404, description = "No backend has this model", body = crate::error::OpenAiError),
    ))]
pub(crate) async fn describe(
    State(app): State<SharedApp>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(id) = id.map_err(not_a_text)?;
    find(&app, &id).await
}

pub(crate) async fn describe_with_slashes(
    State(app): State<SharedApp>,
    id: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path((id, rest)) = id.map_err(not_a_text)?;
    find(&app, &format!("{id}/{rest}")).await
}

/// No model has a name that is not even a text.
#[expect(clippy::needless_pass_by_value, reason = "it maps an error by value")]
fn not_a_text(rejection: PathRejection) -> ApiError {
    tracing::debug!(%rejection, "the model name in the path cannot be read");
    ApiError::model_not_found("?")
}

async fn find(app: &App, id: &str) -> Result<Json<Model>, ApiError> {
    Ok(Json(model(models::find(app, id).await?)))
}

fn model(Found { listed, places }: Found) -> Model {
    let owned_by = models::runner(&listed).to_owned();
    let info = listed.info;
    Model {
        id: info.name.to_string(),
        object: "model",
        created: info.modified_unix_s,
        owned_by,
        meta: ModelMeta {
            capabilities: info.capabilities,
            context_tokens: info.context_tokens,
            family: info.family,
            parameters: info.parameters,
            quantization: info.quantization,
            size_bytes: info.size_bytes,
            warm: info.warm,
        },
        bombus: places,
    }
}
