//! What is in a database, taken out and put into another one. What travels is what is shown, without its history and its signatures:
//! the node that takes it in writes it as its own.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::State;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, FuturesOrdered};
use futures::{StreamExt, poll};
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::{Value, json};
use tokio::task::coop::unconstrained;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::{Named, databases_of, rows};
use crate::app::SharedApp;
use crate::databases::{DatabaseInfo, DatabaseType, Databases, RowBounds, exact_json};
use crate::error::ApiError;

/// What the first line of an export says that it is.
const FORMAT: &str = "bombus-db-1";
/// Entries that are written at a time, so that they share their waits for the disk.
const AT_ONCE: usize = 64;
/// Longest time for which a body that is refused is read on.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(5);

/// The first line of an export.
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct ExportHead {
    /// Always `bombus-db-1`.
    format: String,
    /// The name of the database.
    name: String,
    /// How it is read; it has to be the same where this is imported.
    #[serde(rename = "type")]
    r#type: DatabaseType,
    /// The field of documents that holds their key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index_by: Option<String>,
}

/// A further line of an export.
#[derive(Deserialize)]
struct ImportRow {
    key: Option<String>,
    value: Value,
}

/// What was taken in.
#[derive(Serialize, ToSchema)]
pub(crate) struct ImportAnswer {
    /// How many rows were written.
    imported: u64,
}

/// Returns everything that a database shows, oldest first: a line that says what it is (`format`, `name`, `type`, `index_by`), then a
/// line with `hash`, `key` and `value` for each row. A line with `error` ends an answer that cannot go on.
#[utoipa::path(get, operation_id = "databases_export", path = "/db/{database}/export", tag = "databases",
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    responses(
        (status = 200, description = "The first of the lines", body = ExportHead, content_type = "application/x-ndjson"),
        (status = 400, description = "No database can be called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn export(State(app): State<SharedApp>, Named(database): Named) -> Result<Response, ApiError> {
    let databases = databases_of(&app)?;
    let info = databases.info(&database).await?;
    let found = databases.rows(&database, RowBounds::default()).await?;
    let head = ExportHead { format: FORMAT.into(), name: info.name, r#type: info.r#type, index_by: info.index_by };
    let head = serde_json::to_string(&head).expect("plain data has a JSON form") + "\n";
    let lines = stream::iter([Bytes::from(head)]).chain(found.map(|row| rows::line(&row)));
    Ok(rows::answer(&app, lines))
}

/// Writes the rows of an export, or of any lines with `value` (and, for `keyvalue`, `key`), into a database. Where a line is at fault
/// the lines before it are written, and the error says which it is.
#[utoipa::path(post, operation_id = "databases_import", path = "/db/{database}/import", tag = "databases",
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    request_body(content = String, content_type = "application/x-ndjson", description = "The lines of an export"),
    responses(
        (status = 200, description = "All is written", body = ImportAnswer),
        (status = 403, description = "This node may not write to the database", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is of another type or closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn import(
    State(app): State<SharedApp>,
    Named(database): Named,
    body: Body,
) -> Result<Json<ImportAnswer>, ApiError> {
    let databases = databases_of(&app)?.clone();
    let info = databases.info(&database).await?;
    let mut lines =
        Lines { app: app.clone(), body: body.into_data_stream(), buffer: BytesMut::new(), bytes: 0, number: 0 };
    let taken = take_all(&databases, &info, &mut lines).await;
    if taken.is_ok() && lines.bytes == 0 {
        return Err(ApiError::invalid_value("body", "the body is empty: it takes the lines of an export"));
    }
    if taken.is_err() {
        // A client that is still sending takes an early answer for a broken connection.
        lines.discard().await;
    }
    taken.map(|imported| Json(ImportAnswer { imported }))
}

/// Writes the rows of all lines, and returns how many there were. They are begun in the order of the lines, and none after one that is at
/// fault.
async fn take_all(databases: &Arc<dyn Databases>, info: &DatabaseInfo, lines: &mut Lines) -> Result<u64, ApiError> {
    let mut writing = FuturesOrdered::new();
    let (mut imported, mut ended, mut fault) = (0, false, None);
    loop {
        if ended || writing.len() >= AT_ONCE {
            let Some(done) = writing.next().await else { return fault.map_or(Ok(imported), Err) };
            imported += done?;
            continue;
        }
        tokio::select! {
            biased;
            Some(done) = writing.next() => imported += done?,
            line = lines.next() => match line {
                Ok(Some((number, line))) => {
                    // The runtime's budget would else hold some of them back, and so change their order.
                    let mut write = Box::pin(unconstrained(async move {
                        let done = take(databases, info, number, &line).await;
                        done.map_err(|error| at_line(number, error))
                    }));
                    // It begins here: what is wrong with the line itself shows before the next one begins.
                    match poll!(&mut write) {
                        Poll::Ready(Ok(done)) => imported += done,
                        Poll::Ready(Err(error)) => (ended, fault) = (true, Some(error)),
                        Poll::Pending => writing.push_back(write),
                    }
                }
                Ok(None) => ended = true,
                Err(error) => (ended, fault) = (true, Some(error)),
            },
        }
    }
}

/// Writes the row of a line, and returns how many rows it had: none for the first line of an export.
async fn take(databases: &Arc<dyn Databases>, info: &DatabaseInfo, number: u64, line: &[u8]) -> Result<u64, ApiError> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(0);
    }
    let (address, r#type) = (info.address.as_str(), info.r#type);
    let line: Value = exact_json(line).map_err(|error| match error.classify() {
        Category::Data => ApiError::invalid_value("value", error.to_string()),
        _ => ApiError::invalid_json(format!("it is not valid JSON at column {}", error.column())),
    })?;
    if number == 1 && line.get("format").is_some() {
        return check_head(line, r#type).map(|()| 0);
    }
    if let Some(error) = line.get("error").and_then(Value::as_str) {
        return Err(ApiError::invalid_value("error", format!("the export broke off there: {error}")));
    }
    let row: ImportRow = serde_json::from_value(line).map_err(|_| {
        ApiError::invalid_value("value", format!("a row has to be of the form {}", json!({ "key": "k", "value": {} })))
    })?;
    match r#type {
        DatabaseType::Documents => databases.put(address, None, row.value).await?,
        DatabaseType::Events => databases.add(address, row.value).await?,
        DatabaseType::KeyValue => {
            let key = row.key.ok_or_else(|| ApiError::missing("key", "the row has no key"))?;
            databases.put(address, Some(key), row.value).await?
        }
    };
    Ok(1)
}

fn check_head(line: Value, r#type: DatabaseType) -> Result<(), ApiError> {
    let head: ExportHead = serde_json::from_value(line)
        .map_err(|error| ApiError::invalid_value("format", format!("it is no first line of an export: {error}")))?;
    if head.format != FORMAT {
        let message = format!("the export is of the format '{}', and this node reads '{FORMAT}'", head.format);
        return Err(ApiError::invalid_value("format", message));
    }
    if head.r#type != r#type {
        let (found, wanted) = (head.r#type.name(), r#type.name());
        let message = format!("the export is of the type {found} and the database of the type {wanted}");
        return Err(ApiError::conflict("wrong_type", message));
    }
    Ok(())
}

/// Says of which line an error is. What the line holds is not told: errors reach logs.
fn at_line(number: u64, error: ApiError) -> ApiError {
    let message = format!("line {number}: {}", error.message);
    ApiError { message, ..error }
}

/// The lines of a body: each is bounded, all of them are, and so is the wait for the next piece.
struct Lines {
    app: SharedApp,
    body: BodyDataStream,
    buffer: BytesMut,
    bytes: u64,
    number: u64,
}

impl Lines {
    async fn next(&mut self) -> Result<Option<(u64, Bytes)>, ApiError> {
        let mut searched = 0;
        loop {
            if let Some(place) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(searched + place + 1).freeze();
                return Ok(Some(self.counted(line)));
            }
            searched = self.buffer.len();
            if searched > self.app.config.limits.body_bytes_max {
                return Err(at_line(self.number + 1, ApiError::body_too_large(self.app.config.limits.body_bytes_max)));
            }
            let Some(piece) = self.piece().await? else {
                let rest = self.buffer.split().freeze();
                return Ok((!rest.is_empty()).then(|| self.counted(rest)));
            };
            self.buffer.extend_from_slice(&piece);
        }
    }

    fn counted(&mut self, line: Bytes) -> (u64, Bytes) {
        self.number += 1;
        (self.number, line)
    }

    /// Takes in and forgets some of what is left.
    async fn discard(mut self) {
        let mut left = self.app.config.limits.body_bytes_max;
        let all = async {
            while let Ok(Some(piece)) = self.piece().await
                && left > piece.len()
            {
                left -= piece.len();
            }
        };
        // Whether all of it came in time makes no difference: the answer is the same.
        let _ = timeout(DISCARD_TIME_MAX, all).await;
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, ApiError> {
        let limits = &self.app.config.limits;
        let piece = tokio::select! {
            biased;
            () = self.app.cut.cancelled() => return Err(ApiError::shutting_down()),
            piece = timeout(limits.body_time(), self.body.next()) => piece,
        };
        let piece = piece.map_err(|_| ApiError::body_too_slow(limits.body_time()))?;
        let Some(piece) = piece.transpose().map_err(ApiError::body_unreadable)? else { return Ok(None) };
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        if self.bytes > limits.blob_bytes_max {
            return Err(ApiError::body_too_large(usize::try_from(limits.blob_bytes_max).unwrap_or(usize::MAX)));
        }
        Ok(Some(piece))
    }
}
