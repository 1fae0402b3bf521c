//! What is in a database: reading and writing rows.

#![expect(unused_qualifications, reason = "the description of a route names types by longer paths than it needs")]

use std::convert::Infallible;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{Named, databases_of};
use crate::app::{App, SharedApp};
use crate::body::JsonBody;
use crate::databases::{DatabaseRow, DatabasesError, RowBounds, Rows, exact_json};
use crate::error::ApiError;

/// What is put.
#[derive(Deserialize, ToSchema)]
pub(crate) struct PutRequest {
    /// The key, in a database of the type `keyvalue`. Documents have theirs in a field.
    key: Option<String>,
    /// The value; of documents, a JSON object. Bytes are `{"/": {"bytes": "<base64 without padding>"}}`.
    #[serde(deserialize_with = "exact")]
    value: Value,
}

/// What is taken away.
#[derive(Deserialize, ToSchema)]
pub(crate) struct DelRequest {
    /// The key.
    key: String,
}

/// What is added.
#[derive(Deserialize, ToSchema)]
pub(crate) struct AddRequest {
    /// The event. Bytes are `{"/": {"bytes": "<base64 without padding>"}}`.
    #[serde(deserialize_with = "exact")]
    value: Value,
}

/// What was written.
#[derive(Serialize, ToSchema)]
pub(crate) struct WrittenAnswer {
    /// The hash of the entry.
    hash: String,
}

/// Which key to read.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct GetQuery {
    /// The key; of events, the hash of one.
    key: String,
}

/// Which rows to read.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct AllQuery {
    /// At most so many rows.
    amount: Option<usize>,
    /// Newest first; otherwise oldest first.
    #[serde(default)]
    #[param(default = false)]
    newest: bool,
    /// Only what is newer than the entry with this hash.
    gt: Option<String>,
    /// Only the entry with this hash and what is newer.
    gte: Option<String>,
    /// Only what is older than the entry with this hash.
    lt: Option<String>,
    /// Only the entry with this hash and what is older.
    lte: Option<String>,
}

/// What rows have to be like.
#[derive(Deserialize, ToSchema)]
pub(crate) struct QueryRequest {
    /// Fields that the value has to have, with their values. A name with dots leads into nested objects where no field has that name.
    #[serde(rename = "where", deserialize_with = "exact")]
    #[schema(value_type = Object)]
    conditions: Map<String, Value>,
    /// At most so many rows.
    amount: Option<usize>,
}

/// Reads a part of a body as [`exact_json`] does, from its text: what is parsed already does not show how numbers were written.
fn exact<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    let raw = <&RawValue>::deserialize(deserializer)?;
    exact_json(raw.get().as_bytes()).map_err(D::Error::custom)
}

/// Puts a value under a key, or a document under the key in it. It is safe on the disk when the answer comes, unless `[db] relaxed` is set.
#[utoipa::path(post, operation_id = "databases_put", path = "/db/{database}/put", tag = "databases", request_body = PutRequest,
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    responses(
        (status = 200, description = "It is written", body = WrittenAnswer),
        (status = 403, description = "This node may not write to the database", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "Databases of this type have no such operation, it is closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn put(
    State(app): State<SharedApp>,
    Named(database): Named,
    JsonBody { value: request, .. }: JsonBody<PutRequest>,
) -> Result<Json<WrittenAnswer>, ApiError> {
    let hash = databases_of(&app)?.put(&database, request.key, request.value).await?;
    Ok(Json(WrittenAnswer { hash }))
}

/// Takes a key away. It is safe on the disk when the answer comes, unless `[db] relaxed` is set.
#[utoipa::path(post, operation_id = "databases_del", path = "/db/{database}/del", tag = "databases", request_body = DelRequest,
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    responses(
        (status = 200, description = "It is written", body = WrittenAnswer),
        (status = 403, description = "This node may not write to the database", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so, or nothing is under the key", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "Databases of this type have no such operation, it is closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn del(
    State(app): State<SharedApp>,
    Named(database): Named,
    JsonBody { value: request, .. }: JsonBody<DelRequest>,
) -> Result<Json<WrittenAnswer>, ApiError> {
    let hash = databases_of(&app)?.del(&database, &request.key).await?;
    Ok(Json(WrittenAnswer { hash }))
}

/// Adds an event. It is safe on the disk when the answer comes, unless `[db] relaxed` is set.
#[utoipa::path(post, operation_id = "databases_add", path = "/db/{database}/add", tag = "databases", request_body = AddRequest,
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    responses(
        (status = 200, description = "It is written", body = WrittenAnswer),
        (status = 403, description = "This node may not write to the database", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "Databases of this type have no such operation, it is closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn add(
    State(app): State<SharedApp>,
    Named(database): Named,
    JsonBody { value: request, .. }: JsonBody<AddRequest>,
) -> Result<Json<WrittenAnswer>, ApiError> {
    let hash = databases_of(&app)?.add(&database, request.value).await?;
    Ok(Json(WrittenAnswer { hash }))
}

/// Returns what is under a key.
#[utoipa::path(get, operation_id = "databases_get", path = "/db/{database}/get", tag = "databases",
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`"), GetQuery),
    responses(
        (status = 200, description = "What is there", body = DatabaseRow),
        (status = 400, description = "A parameter is missing", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so, or nothing is under the key", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn get(
    State(app): State<SharedApp>,
    Named(database): Named,
    query: Result<Query<GetQuery>, QueryRejection>,
) -> Result<Json<DatabaseRow>, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::invalid_value("key", rejection.body_text()))?;
    Ok(Json(databases_of(&app)?.get(&database, &query.key).await?))
}

/// Returns rows in the order of their entries, one JSON object a line. What is written meanwhile may come too, and a row that is
/// changed meanwhile comes again. A line with `error` ends an answer that cannot go on.
#[utoipa::path(get, operation_id = "databases_all", path = "/db/{database}/all", tag = "databases",
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`"), AllQuery),
    responses(
        (status = 200, description = "The rows", body = DatabaseRow, content_type = "application/x-ndjson"),
        (status = 400, description = "A parameter is not understood, or a hash is not there", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn all(
    State(app): State<SharedApp>,
    Named(database): Named,
    query: Result<Query<AllQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::invalid_value("query", rejection.body_text()))?;
    let AllQuery { amount, newest, gt, gte, lt, lte } = query;
    let bounds = RowBounds { amount, newest_first: newest, gt, gte, lt, lte };
    Ok(lines(&app, databases_of(&app)?.rows(&database, bounds).await?))
}

/// Returns the rows whose values have certain fields, one JSON object a line, ordered by key. A line with `error` ends an answer that
/// cannot go on.
#[utoipa::path(post, operation_id = "databases_query", path = "/db/{database}/query", tag = "databases", request_body = QueryRequest,
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    responses(
        (status = 200, description = "The rows", body = DatabaseRow, content_type = "application/x-ndjson"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn query(
    State(app): State<SharedApp>,
    Named(database): Named,
    JsonBody { value: request, .. }: JsonBody<QueryRequest>,
) -> Result<Response, ApiError> {
    let rows = databases_of(&app)?.query(&database, request.conditions, request.amount).await?;
    Ok(lines(&app, rows))
}

/// Writes rows as they are read, so that a large database needs no memory.
fn lines(app: &App, rows: Rows) -> Response {
    answer(app, rows.map(|row| line(&row)))
}

/// Makes an answer of lines, which a node at its end cuts off.
pub(super) fn answer(app: &App, lines: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response {
    let cut = app.cut.clone();
    let lines = lines.map(Ok::<_, Infallible>).take_until(async move { cut.cancelled().await });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::from_stream(lines)).into_response()
}

pub(super) fn line(row: &Result<DatabaseRow, DatabasesError>) -> Bytes {
    let line = match row {
        Ok(row) => serde_json::to_string(row).expect("a row has a JSON form"),
        Err(error) => json!({ "error": error.to_string() }).to_string(),
    };
    Bytes::from(line + "\n")
}
