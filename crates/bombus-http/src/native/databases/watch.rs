//! What happens to a database, as server-sent events.

use axum::extract::State;
use axum::response::Response;

use super::super::sse::{self, Framed};
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
    let changes = databases_of(&app)?.watch(&database).await?;
    Ok(sse::following(changes, app.stopping.clone(), |change| frame(&change)))
}

fn frame(change: &DatabaseChange) -> Framed {
    let data = serde_json::to_string(change).expect("a change has a JSON form");
    let is_last = matches!(change, DatabaseChange::Lagged { .. } | DatabaseChange::Error { .. });
    Framed { bytes: format!("event: {}\ndata: {data}\n\n", change.kind()).into(), is_last }
}
