//! `HEAD` and `POST /api/blobs/{digest}`: files of weights, for `/api/create`.

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;

use super::places;
use crate::app::SharedApp;
use crate::body::pieces;
use crate::error::ApiError;

/// Says whether a file is there.
#[utoipa::path(head, operation_id = "ollama_has_blob", path = "/api/blobs/{digest}", tag = "ollama",
    params(("digest" = String, Path, description = "`sha256:` and 64 hex digits", pattern = "^sha256[:-][0-9a-fA-F]{64}$")),
    responses(
        (status = 200, description = "It is there"),
        (status = 400, description = "This is no digest"),
        (status = 404, description = "It is not there"),
        (status = 502, description = "The backend refuses this node"),
        (status = 504, description = "The backend did not answer in time"),
    ))]
pub(crate) async fn find(
    State(app): State<SharedApp>,
    digest: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let (digest, sha256) = read(digest)?;
    let named = places::for_new(&app, None).await?;
    let library = places::library(&named)?;
    let is_there = places::wait(&app, places::ASK_TIME_MAX, library.has_blob(&sha256)).await?;
    if is_there { Ok(StatusCode::OK) } else { Err(ApiError::blob_not_found(&digest)) }
}

/// Takes a file in.
#[utoipa::path(post, operation_id = "ollama_put_blob", path = "/api/blobs/{digest}", tag = "ollama",
    params(("digest" = String, Path, description = "`sha256:` and 64 hex digits", pattern = "^sha256[:-][0-9a-fA-F]{64}$")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The file"),
    responses((status = 200, description = "It was there"), (status = 201, description = "It has been taken in")))]
pub(crate) async fn create(
    State(app): State<SharedApp>,
    digest: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let (_, sha256) = read(digest)?;
    let named = places::for_new(&app, None).await?;
    let library = places::library(&named)?;
    let is_there = places::wait(&app, places::ASK_TIME_MAX, library.has_blob(&sha256)).await?;
    let bytes_max = app.config.limits.blob_bytes_max;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_large(bytes_max));
    }
    let trouble = Arc::new(OnceLock::new());
    if is_there {
        // A client that is still sending takes an early answer for a broken connection.
        let mut rest = pieces(&app, body, bytes_max, too_large(bytes_max), trouble.clone());
        while rest.next().await.is_some() {}
        return trouble.get().cloned().map_or(Ok(StatusCode::OK), Err);
    }
    let taken = library.put_blob(&sha256, pieces(&app, body, bytes_max, too_large(bytes_max), trouble.clone())).await;
    match taken {
        Ok(()) => Ok(StatusCode::CREATED),
        Err(error) => Err(trouble.get().cloned().unwrap_or_else(|| error.into())),
    }
}

fn too_large(bytes_max: u64) -> ApiError {
    ApiError::body_too_large(usize::try_from(bytes_max).unwrap_or(usize::MAX))
}

/// Reads a digest and returns it, and the lower-case hex digits of it.
fn read(digest: Result<Path<String>, PathRejection>) -> Result<(String, String), ApiError> {
    let Path(digest) = digest.map_err(|_| not_a_digest())?;
    let sha256 = sha256_of(&digest)?;
    Ok((digest, sha256))
}

/// Returns the lower-case hex digits of a digest such as `sha256:b179...`.
pub(super) fn sha256_of(digest: &str) -> Result<String, ApiError> {
    let hex = digest.strip_prefix("sha256:").or_else(|| digest.strip_prefix("sha256-"));
    let hex = hex.filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    hex.map(str::to_ascii_lowercase).ok_or_else(not_a_digest)
}

fn not_a_digest() -> ApiError {
    ApiError::invalid_value("digest", "invalid digest format")
}
