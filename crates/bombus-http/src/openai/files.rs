//! `/v1/files`: files of requests, and what came of them.

#![expect(unused_qualifications, reason = "the description of a route names types by longer paths than it needs")]

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
mod upload;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bombus_core::batches::{FileInfo, OUTPUT_PURPOSE, PURPOSE};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::batches::write;
use crate::app::{App, SharedApp};
use crate::error::ApiError;
use crate::files::{FileContent, FileFilter, Files, FilesError};

/// Most files in a part of a list.
const LIMIT_MAX: usize = 10_000;

/// A file.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileObject {
    id: String,
    /// Always `file`.
    object: &'static str,
    /// Its size; 0 for one that is computed when it is read.
    bytes: u64,
    /// In seconds since the Unix epoch.
    created_at: u64,
    filename: String,
    /// `batch`, or `batch_output` for what came of a batch.
    purpose: &'static str,
    /// Always `processed`.
    status: &'static str,
}

impl FileObject {
    fn of(info: FileInfo) -> Self {
        let FileInfo { id, bytes, created_at, filename, purpose } = info;
        Self { id, object: "file", bytes, created_at, filename, purpose, status: "processed" }
    }
}

/// A part of the list of files.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileList {
    /// Always `list`.
    object: &'static str,
    data: Vec<FileObject>,
    #[schema(required)]
    first_id: Option<String>,
    #[schema(required)]
    last_id: Option<String>,
    /// Whether more follows.
    has_more: bool,
}

/// Says that a file was removed.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileDeleted {
    id: String,
    /// Always `file`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

/// A file to be taken, as a form with parts.
#[derive(ToSchema)]
#[expect(dead_code, reason = "stands for the parts of the form in the API document alone")]
pub(crate) struct FileForm {
    /// Up to 64 MiB, with a name.
    #[schema(format = Binary, content_media_type = "application/octet-stream")]
    file: String,
    /// Always `batch`.
    #[schema(pattern = "^batch$")]
    purpose: String,
}

/// What `GET /v1/files` asks for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct FilesQuery {
    /// Only those of this purpose: `batch`, or `batch_output`.
    purpose: Option<String>,
    /// The id of the last file of the part before.
    after: Option<String>,
    /// At most so many.
    #[serde(default = "most")]
    #[param(default = 10_000, minimum = 1, maximum = 10_000)]
    limit: usize,
    /// `desc`, the newest first, or `asc`.
    #[serde(default)]
    #[param(inline)]
    order: Order,
}

/// In which order files are listed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// The oldest first.
    Asc,
    /// The newest first.
    #[default]
    Desc,
}

fn most() -> usize {
    LIMIT_MAX
}

/// Takes a file of requests, one JSON object a line, for `POST /v1/batches`. It is safe on this node when the answer comes, and then goes
/// to all nodes of the swarm, requests included.
#[utoipa::path(post, operation_id = "create_file", path = "/v1/files", tag = "openai",
    request_body(content = FileForm, content_type = "multipart/form-data"),
    responses((status = 200, description = "The file", body = FileObject)))]
pub(crate) async fn create(State(app): State<SharedApp>, request: Request) -> Result<Json<FileObject>, ApiError> {
    let files = files_of(&app)?.clone();
    upload::take(&app, &*files, request).await.map(|info| Json(FileObject::of(info)))
}

/// Lists the files of the swarm, those that are computed of batches among them.
#[utoipa::path(get, operation_id = "list_files", path = "/v1/files", tag = "openai", params(FilesQuery),
    responses(
        (status = 200, description = "A part of the list", body = FileList),
        (status = 400, description = "A parameter cannot be taken", body = crate::error::OpenAiError),
        (status = 404, description = "There is no such file as `after` names", body = crate::error::OpenAiError),
    ))]
pub(crate) async fn list(
    State(app): State<SharedApp>,
    query: Result<Query<FilesQuery>, QueryRejection>,
) -> Result<Json<FileList>, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::invalid_value("query", rejection.body_text()))?;
    if !(1..=LIMIT_MAX).contains(&query.limit) {
        return Err(ApiError::invalid_value("limit", format!("'limit' has to be from 1 to {LIMIT_MAX}")));
    }
    let filter = FileFilter {
        purpose: query.purpose,
        after: query.after,
        limit: query.limit,
        oldest_first: query.order == Order::Asc,
    };
    let page = files_of(&app)?.files(filter).await?;
    let data: Vec<FileObject> = page.data.into_iter().map(FileObject::of).collect();
    let id = |file: Option<&FileObject>| file.map(|file| file.id.clone());
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    Ok(Json(FileList { object: "list", data, first_id, last_id, has_more: page.has_more }))
}

/// Tells of a file.
#[utoipa::path(get, operation_id = "retrieve_file", path = "/v1/files/{file_id}", tag = "openai",
    params(("file_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The file", body = FileObject),
        (status = 404, description = "There is no such file", body = crate::error::OpenAiError),
    ))]
pub(crate) async fn describe(
    State(app): State<SharedApp>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<FileObject>, ApiError> {
    let id = file_named(id)?;
    Ok(Json(FileObject::of(files_of(&app)?.file(&id).await?)))
}

/// Returns what is in a file, from whichever node has it. Files that are computed of a batch have a JSON object a line: `id`, `custom_id`,
/// `response` with `status_code`, `request_id` and `body`, and `error`.
#[utoipa::path(get, operation_id = "download_file", path = "/v1/files/{file_id}/content", tag = "openai",
    params(("file_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "What is in it", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 404, description = "There is no such file", body = crate::error::OpenAiError),
    ))]
pub(crate) async fn content(
    State(app): State<SharedApp>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let id = file_named(id)?;
    let mut pieces: BoxStream<'static, Result<Bytes, FilesError>> = match files_of(&app)?.content(&id).await? {
        FileContent::Bytes(pieces) => pieces,
        FileContent::Lines(lines) => {
            let fingerprint = app.fingerprint.clone();
            lines.map(move |line| line.map(|line| write::line(line, &fingerprint))).boxed()
        }
    };
    // What goes wrong at once is told as an error; what goes wrong later breaks the answer off.
    let first = pieces.next().await.transpose()?;
    let all = futures::stream::iter(first.map(Ok)).chain(pieces);
    let body = Body::from_stream(all.take_until(app.cut.clone().cancelled_owned()));
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))];
    Ok((headers, body).into_response())
}

/// Removes a file. What a batch needs of it stays as long as the batch does.
#[utoipa::path(delete, operation_id = "delete_file", path = "/v1/files/{file_id}", tag = "openai",
    params(("file_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is removed", body = FileDeleted),
        (status = 404, description = "There is no such file", body = crate::error::OpenAiError),
    ))]
pub(crate) async fn delete(
    State(app): State<SharedApp>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<FileDeleted>, ApiError> {
    let id = file_named(id)?;
    files_of(&app)?.remove(&id).await?;
    Ok(Json(FileDeleted { id, object: "file", deleted: true }))
}

/// No file has an id that is not even a text.
fn file_named(id: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    id.map(|Path(id)| id).map_err(|_| ApiError::file_not_found("no such file"))
}

/// Returns the files, which a node has that has tasks.
pub(super) fn files_of(app: &App) -> Result<&Arc<dyn Files>, ApiError> {
    let none = || {
        ApiError::files_unavailable(
            "this node has no files and batches: the setting tasks.enabled or db.enabled is false",
        )
    };
    app.services.files.as_ref().ok_or_else(none)
}

/// Says which purposes there are.
fn purpose_error() -> ApiError {
    let message =
        format!("'purpose' has to be '{PURPOSE}'; files of the purpose '{OUTPUT_PURPOSE}' are made by batches");
    ApiError::invalid_value("purpose", message)
}

impl From<FilesError> for ApiError {
    fn from(error: FilesError) -> Self {
        let message = error.to_string();
        match error {
            FilesError::UnknownFile(_) => Self::file_not_found(message),
            FilesError::UnknownBatch(_) => Self::batch_not_found(message),
            FilesError::Invalid { param, .. } => Self::invalid_value(param, message),
            FilesError::TooLarge(bytes_max) => Self::body_too_large(usize::try_from(bytes_max).unwrap_or(usize::MAX)),
            FilesError::Ended(_) => Self::conflict("batch_ended", message),
            FilesError::Unavailable(_) => Self::files_unavailable(message),
            FilesError::Failed(_) => Self::tasks_failed(message),
        }
    }
}
