//! What happens to a database, as server-sent events.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::{Instant, interval_at};

use super::super::events::{ALIVE, HEARTBEAT};
use super::{Named, databases_of};
use crate::app::SharedApp;
use crate::databases::DatabaseChange;
use crate::error::ApiError;

/// Streams what happens to a database from now on as server-sent events, whose names are those of the field `event`. At once and every
/// 15 s a comment shows that the stream lives. `lagged` says that the reader was too slow; then, and after `error`, the stream ends.
#[utoipa::path(get, operation_id = "databases_watch", path = "/db/{database}/watch", tag = "databases",
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    responses(
        (status = 200, description = "The data of each event", body = DatabaseChange, content_type = "text/event-stream"),
        (status = 400, description = "No database can be called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn watch(State(app): State<SharedApp>, Named(database): Named) -> Result<Response, ApiError> {
    let mut changes = databases_of(&app)?.watch(&database).await?;
    let stopping = app.stopping.clone();
    let events = async_stream::stream! {
        // The head of the answer leaves with the first bytes of its body, and clients wait for it.
        yield Ok::<_, Infallible>(Bytes::from_static(ALIVE));
        let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        loop {
            let change = tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                change = changes.next() => change,
                _ = heartbeat.tick() => {
                    yield Ok(Bytes::from_static(ALIVE));
                    continue;
                }
            };
            let Some(change) = change else { return };
            yield Ok(frame(&change));
            if matches!(change, DatabaseChange::Lagged { .. } | DatabaseChange::Error { .. }) {
                return;
            }
        }
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}

fn frame(change: &DatabaseChange) -> Bytes {
    let data = serde_json::to_string(change).expect("a change has a JSON form");
    format!("event: {}\ndata: {data}\n\n", change.kind()).into()
}
