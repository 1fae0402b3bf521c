//! `POST /v1/embeddings`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bombus_core::chat::{EmbedInput, EmbedRequest};
use bombus_core::placement::Need;

use super::request::{EmbeddingRequest, EncodingFormat};
use super::response::{Embedding, EmbeddingList, EmbeddingUsage, Vector};
use super::translate::{self, EmptyText, Input};
use crate::app::SharedApp;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::inference::{self, ROUTE_HEADER, Scoped, Target, route_header};

/// Makes vectors of texts.
#[utoipa::path(post, operation_id = "create_embedding", path = "/v1/embeddings", tag = "openai", request_body = EmbeddingRequest,
    responses((status = 200, description = "The vectors", body = EmbeddingList)))]
pub(crate) async fn create(
    State(app): State<SharedApp>,
    Scoped(scope): Scoped,
    JsonBody { value: request, .. }: JsonBody<EmbeddingRequest>,
) -> Result<Response, ApiError> {
    if request.dimensions == Some(0) {
        return Err(ApiError::invalid_value("dimensions", "'dimensions' has to be at least 1"));
    }
    let inputs = translate::inputs("input", request.input, EmptyText::Refused)?;
    // Models that generate text make vectors too, at some backends: each says itself what it cannot do.
    let target = Target::find(&app, request.model, Need::default().within(scope)).await?;
    let inputs = inputs.into_iter().map(|input| match input {
        Input::Text(text) => EmbedInput::Text(text),
        Input::Tokens(tokens) => EmbedInput::Tokens(tokens),
    });
    let dimensions = request.dimensions;
    let wanted = EmbedRequest { dimensions, ..EmbedRequest::new(target.model.clone(), inputs.collect()) };
    let routed = inference::embed(&app, &target, wanted).await;
    // Backends say `prompt` of what no engine can read, and else `inputs`.
    let routed = routed.map_err(|error| error.rename_param("prompt", "input").rename_param("inputs", "input"))?;
    let route = route_header(&app, &routed);
    let answer = routed.value;

    if let (Some(wanted), Some(vector)) = (dimensions, answer.vectors.first())
        && wanted as usize != vector.len()
    {
        let message = format!("the vectors of model '{}' have no more than {} dimensions", target.model, vector.len());
        return Err(ApiError::unsupported("dimensions", message));
    }
    let base64 = request.encoding_format == Some(EncodingFormat::Base64);
    let vectors = answer.vectors.into_iter().enumerate();
    let list = EmbeddingList {
        object: "list",
        data: vectors
            .map(|(index, vector)| Embedding { object: "embedding", index, embedding: write(vector, base64) })
            .collect(),
        model: target.model,
        usage: EmbeddingUsage { prompt_tokens: answer.prompt_tokens, total_tokens: answer.prompt_tokens },
    };
    Ok(([(ROUTE_HEADER, route)], Json(list)).into_response())
}

/// Writes a vector in the form that was asked for.
pub(super) fn write(vector: Vec<f32>, base64: bool) -> Vector {
    if !base64 {
        return Vector::Floats(vector);
    }
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    Vector::Base64(STANDARD.encode(bytes))
}
