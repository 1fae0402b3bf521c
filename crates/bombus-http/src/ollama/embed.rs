//! `POST /api/embed` and the older `POST /api/embeddings`.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use bombus_core::chat::{DialectOptions, EmbedInput, EmbedRequest as CoreRequest, EmbedResponse as CoreResponse};
use bombus_core::placement::{Need, Scope};
use bombus_infer::LoadRequest;
use serde_json::Value;
use tokio::time::Instant;

use super::options::Options;
use super::request::{EmbedRequest, EmbeddingsRequest};
use super::response::{EmbedResponse, EmbeddingsResponse, nanoseconds, nanoseconds_of};
use super::{model_name, residence};
use crate::app::{App, SharedApp};
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::inference::{self, ROUTE_HEADER, Scoped, Target, route_header};

/// Most texts in a list.
const INPUTS_MAX: usize = 2_048;

/// Makes vectors of texts. Without a text it loads the model.
#[utoipa::path(post, operation_id = "ollama_embed", path = "/api/embed", tag = "ollama", request_body = EmbedRequest,
    responses((status = 200, description = "The vectors", body = EmbedResponse)))]
pub(crate) async fn create(
    State(app): State<SharedApp>,
    Scoped(scope): Scoped,
    JsonBody { value: given, .. }: JsonBody<EmbedRequest>,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let options = Options::read(given.options)?;
    let inputs = inputs(given.input)?;
    let model = model_name(&app, given.model)?;
    let dimensions = given.dimensions.filter(|length| *length > 0);
    let request = CoreRequest {
        truncate: given.truncate.unwrap_or(true),
        dimensions: dimensions.map(|length| u32::try_from(length).unwrap_or(u32::MAX)),
        context_tokens: options.context_tokens,
        keep_alive: given.keep_alive.map(|field| field.0),
        dialect: DialectOptions { ollama: options.engine, ..DialectOptions::default() },
        ..CoreRequest::new(model.clone(), inputs)
    };
    let loads_only = request.inputs.is_empty();
    let (made, route) = make(&app, request, scope).await?;
    let total_duration = nanoseconds(begun.elapsed());
    let answer = EmbedResponse {
        model,
        embeddings: made.vectors,
        total_duration,
        load_duration: if loads_only { total_duration } else { nanoseconds_of(made.load_ms) },
        prompt_eval_count: made.prompt_tokens,
    };
    Ok(([(ROUTE_HEADER, route)], Json(answer)).into_response())
}

/// Makes the vector of one text. Without a text it loads the model.
#[utoipa::path(post, operation_id = "ollama_embeddings", path = "/api/embeddings", tag = "ollama", request_body = EmbeddingsRequest,
    responses((status = 200, description = "The vector", body = EmbeddingsResponse)))]
pub(crate) async fn create_one(
    State(app): State<SharedApp>,
    Scoped(scope): Scoped,
    JsonBody { value: given, .. }: JsonBody<EmbeddingsRequest>,
) -> Result<Response, ApiError> {
    let options = Options::read(given.options)?;
    let text = given.prompt.filter(|text| !text.is_empty());
    let inputs = text.into_iter().map(EmbedInput::Text).collect();
    let request = CoreRequest {
        context_tokens: options.context_tokens,
        keep_alive: given.keep_alive.map(|field| field.0),
        dialect: DialectOptions { ollama: options.engine, ..DialectOptions::default() },
        ..CoreRequest::new(model_name(&app, given.model)?, inputs)
    };
    let (made, route) = make(&app, request, scope).await?;
    let answer = EmbeddingsResponse { embedding: made.vectors.into_iter().next().unwrap_or_default() };
    Ok(([(ROUTE_HEADER, route)], Json(answer)).into_response())
}

fn inputs(given: Option<Value>) -> Result<Vec<EmbedInput>, ApiError> {
    let texts = match given {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(text @ Value::String(_)) => vec![text],
        Some(Value::Array(texts)) => texts,
        Some(_) => return Err(ApiError::invalid_value("input", "invalid input type")),
    };
    if texts.len() > INPUTS_MAX {
        let message = format!("'input' may hold up to {INPUTS_MAX} texts, and holds {}", texts.len());
        return Err(ApiError::invalid_value("input", message));
    }
    let inputs = texts.into_iter().map(|text| match text {
        Value::String(text) => Ok(EmbedInput::Text(text)),
        _ => Err(ApiError::invalid_value("input", "invalid input type")),
    });
    inputs.collect()
}

/// Makes vectors, or loads the model where there is nothing to make one of; returns what names the backend in the answer, too.
async fn make(app: &App, request: CoreRequest, scope: Scope) -> Result<(CoreResponse, HeaderValue), ApiError> {
    let model = request.model.clone();
    let made = if request.inputs.is_empty() {
        let route = load(app, &request, scope).await;
        route.map(|route| (CoreResponse::new(Vec::new(), 0), route))
    } else {
        embed(app, request, scope).await
    };
    made.map_err(|error| match error.code {
        Some("model_not_found") => {
            ApiError { message: format!("model {model:?} not found, try pulling it first"), ..error }
        }
        _ => error,
    })
}

async fn load(app: &App, request: &CoreRequest, scope: Scope) -> Result<HeaderValue, ApiError> {
    if residence::ends_at_once(request.keep_alive) {
        return residence::unload(app, &request.model, &scope).await;
    }
    let target = Target::find(app, Some(request.model.clone()), Need::default().within(scope)).await?;
    residence::load(app, &target, LoadRequest::from(request)).await
}

async fn embed(app: &App, request: CoreRequest, scope: Scope) -> Result<(CoreResponse, HeaderValue), ApiError> {
    // Models that generate text make vectors too, at some backends: each says itself what it cannot do.
    let target = Target::find(app, Some(request.model.clone()), Need::default().within(scope)).await?;
    let routed = inference::embed(app, &target, request).await?;
    let route = route_header(app, &routed);
    Ok((routed.value, route))
}
