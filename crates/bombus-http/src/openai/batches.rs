//! `/v1/batches`: files of requests, each line of which becomes a durable task.

#![expect(unused_qualifications, reason = "the description of a route names types by longer paths than it needs")]

pub(crate) mod read;
pub(super) mod write;

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use bombus_core::batches::{BatchInfo, Endpoint, LineError, NewBatch, RequestCounts, WINDOW};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, ToSchema};

use super::files::files_of;
use crate::app::SharedApp;
use crate::body::JsonBody;
use crate::error::ApiError;

/// Most batches in a part of a list.
const LIMIT_MAX: usize = 100;

/// A batch to be made.
#[derive(Deserialize, ToSchema)]
pub(crate) struct BatchRequest {
    /// The id of a file of the purpose `batch`: up to 50,000 lines, each with `custom_id`, `method` (`POST`), `url` (the same as `endpoint`)
    /// and `body`.
    input_file_id: String,
    /// `/v1/chat/completions`, `/v1/completions` or `/v1/embeddings`.
    #[schema(pattern = "^/v1/(chat/completions|completions|embeddings)$")]
    endpoint: String,
    /// Always `24h`.
    #[schema(pattern = "^24h$")]
    completion_window: String,
    /// Up to 16 words of up to 64 characters, each for a text of up to 512.
    #[schema(schema_with = metadata_schema)]
    metadata: Option<BTreeMap<String, String>>,
}

/// A batch.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchObject {
    id: String,
    /// Always `batch`.
    object: &'static str,
    endpoint: &'static str,
    /// Why its file is none of requests, where it is not.
    #[schema(required)]
    errors: Option<BatchErrors>,
    input_file_id: String,
    /// Always `24h`.
    completion_window: &'static str,
    /// `validating`, `failed`, `in_progress`, `finalizing`, `completed`, `expired`, `cancelling` or `cancelled`.
    status: &'static str,
    /// The file of the answers, once it has ended, where there are any.
    #[schema(required)]
    output_file_id: Option<String>,
    /// The file of what failed, once it has ended, where there is any.
    #[schema(required)]
    error_file_id: Option<String>,
    /// Times are in seconds since the Unix epoch.
    created_at: u64,
    #[schema(required)]
    in_progress_at: Option<u64>,
    expires_at: u64,
    #[schema(required)]
    finalizing_at: Option<u64>,
    #[schema(required)]
    completed_at: Option<u64>,
    #[schema(required)]
    failed_at: Option<u64>,
    #[schema(required)]
    expired_at: Option<u64>,
    #[schema(required)]
    cancelling_at: Option<u64>,
    #[schema(required)]
    cancelled_at: Option<u64>,
    request_counts: BatchCounts,
    #[schema(required)]
    metadata: Option<BTreeMap<String, String>>,
}

/// Why the file of a batch is none of requests.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchErrors {
    /// Always `list`.
    object: &'static str,
    /// The first 20.
    data: Vec<BatchError>,
}

/// What is wrong with a line, or with the file.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchError {
    code: String,
    message: String,
    #[schema(required)]
    param: Option<String>,
    /// From 1.
    #[schema(required)]
    line: Option<u32>,
}

/// How many requests of a batch stand how.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchCounts {
    total: u32,
    completed: u32,
    failed: u32,
}

/// A part of the list of batches.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchList {
    /// Always `list`.
    object: &'static str,
    data: Vec<BatchObject>,
    #[schema(required)]
    first_id: Option<String>,
    #[schema(required)]
    last_id: Option<String>,
    /// Whether more follows.
    has_more: bool,
}

/// What `GET /v1/batches` asks for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchesQuery {
    /// The id of the last batch of the part before.
    after: Option<String>,
    /// At most so many.
    #[serde(default = "twenty")]
    #[param(default = 20, minimum = 1, maximum = 100)]
    limit: usize,
}

fn metadata_schema() -> RefOr<Schema> {
    let text = |max| ObjectBuilder::new().schema_type(Type::String).max_length(Some(max));
    ObjectBuilder::new()
        .schema_type(SchemaType::Array(vec![Type::Object, Type::Null]))
        .property_names(Some(text(64).min_length(Some(1))))
        .additional_properties(Some(text(512)))
        .max_properties(Some(16))
        .into()
}

fn twenty() -> usize {
    20
}

impl BatchObject {
    fn of(info: BatchInfo) -> Self {
        let error = |LineError { code, message, param, line }| BatchError { code, message, param, line };
        let data: Vec<BatchError> = info.errors.into_iter().map(error).collect();
        let RequestCounts { total, completed, failed } = info.counts;
        Self {
            id: info.id,
            object: "batch",
            endpoint: info.endpoint.path(),
            errors: (!data.is_empty()).then_some(BatchErrors { object: "list", data }),
            input_file_id: info.input_file_id,
            completion_window: WINDOW,
            status: info.status.name(),
            output_file_id: info.output_file_id,
            error_file_id: info.error_file_id,
            created_at: info.created_at,
            in_progress_at: info.in_progress_at,
            expires_at: info.expires_at,
            finalizing_at: info.finalizing_at,
            completed_at: info.completed_at,
            failed_at: info.failed_at,
            expired_at: info.expired_at,
            cancelling_at: info.cancelling_at,
            cancelled_at: info.cancelled_at,
            request_counts: BatchCounts { total, completed, failed },
            metadata: (!info.metadata.is_empty()).then_some(info.metadata),
        }
    }
}

impl BatchRequest {
    fn read(self) -> Result<NewBatch, ApiError> {
        let endpoint = Endpoint::of_path(&self.endpoint).ok_or_else(|| {
            let paths = Endpoint::ALL.map(Endpoint::path).join(", ");
            ApiError::invalid_value("endpoint", format!("'endpoint' has to be one of {paths}"))
        })?;
        if self.completion_window != WINDOW {
            let message = format!("'completion_window' has to be '{WINDOW}'");
            return Err(ApiError::invalid_value("completion_window", message));
        }
        let (input_file_id, metadata) = (self.input_file_id, self.metadata.unwrap_or_default());
        Ok(NewBatch { input_file_id, endpoint, metadata })
    }
}

/// Makes a batch of a file of requests. It is looked at afterwards (`validating`); then each line becomes a durable task. Any node tells how it
/// stands, and goes on with it when this one is gone.
#[utoipa::path(post, operation_id = "create_batch", path = "/v1/batches", tag = "openai", request_body = BatchRequest,
    responses((status = 200, description = "The batch", body = BatchObject)))]
pub(crate) async fn create(
    State(app): State<SharedApp>,
    JsonBody { value: request, .. }: JsonBody<BatchRequest>,
) -> Result<Json<BatchObject>, ApiError> {
    let batch = request.read()?;
    Ok(Json(BatchObject::of(files_of(&app)?.create_batch(batch).await?)))
}

/// Lists the batches of the swarm, newest first.
#[utoipa::path(get, operation_id = "list_batches", path = "/v1/batches", tag = "openai", params(BatchesQuery),
    responses(
        (status = 200, description = "A part of the list", body = BatchList),
        (status = 400, description = "A parameter cannot be taken", body = crate::error::OpenAiError),
        (status = 404, description = "There is no such batch as `after` names", body = crate::error::OpenAiError),
    ))]
pub(crate) async fn list(
    State(app): State<SharedApp>,
    query: Result<Query<BatchesQuery>, QueryRejection>,
) -> Result<Json<BatchList>, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::invalid_value("query", rejection.body_text()))?;
    if !(1..=LIMIT_MAX).contains(&query.limit) {
        return Err(ApiError::invalid_value("limit", format!("'limit' has to be from 1 to {LIMIT_MAX}")));
    }
    let page = files_of(&app)?.batches(query.after.as_deref(), query.limit).await?;
    let data: Vec<BatchObject> = page.data.into_iter().map(BatchObject::of).collect();
    let id = |batch: Option<&BatchObject>| batch.map(|batch| batch.id.clone());
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    Ok(Json(BatchList { object: "list", data, first_id, last_id, has_more: page.has_more }))
}

/// Tells how a batch stands.
#[utoipa::path(get, operation_id = "retrieve_batch", path = "/v1/batches/{batch_id}", tag = "openai",
    params(("batch_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The batch", body = BatchObject),
        (status = 404, description = "There is no such batch", body = crate::error::OpenAiError),
    ))]
pub(crate) async fn describe(
    State(app): State<SharedApp>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<BatchObject>, ApiError> {
    let id = batch_named(id)?;
    Ok(Json(BatchObject::of(files_of(&app)?.batch(&id).await?)))
}

/// Has a batch end. What was done by then can be read.
#[utoipa::path(post, operation_id = "cancel_batch", path = "/v1/batches/{batch_id}/cancel", tag = "openai",
    params(("batch_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The batch", body = BatchObject),
        (status = 404, description = "There is no such batch", body = crate::error::OpenAiError),
        (status = 409, description = "It has ended", body = crate::error::OpenAiError),
    ))]
pub(crate) async fn cancel(
    State(app): State<SharedApp>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<BatchObject>, ApiError> {
    let id = batch_named(id)?;
    Ok(Json(BatchObject::of(files_of(&app)?.cancel(&id).await?)))
}

/// No batch has an id that is not even a text.
fn batch_named(id: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    id.map(|Path(id)| id).map_err(|_| ApiError::batch_not_found("no such batch"))
}
