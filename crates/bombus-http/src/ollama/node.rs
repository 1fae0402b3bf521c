//! What clients ask before anything else: `/`, `/api/version` and `/api/status`.

use axum::Json;

use super::response::{CloudStatus, Status, Version};

/// The version of Ollama whose dialect is spoken. Clients compare it with their own.
const VERSION: &str = "0.24.0";
/// Clients take a server that answers otherwise for another one.
const RUNNING: &str = "Ollama is running";

/// Says that a server of this dialect is here.
#[utoipa::path(get, operation_id = "ollama_root", path = "/", tag = "ollama",
    responses((status = 200, description = "Always `Ollama is running`, which clients look for", body = String, content_type = "text/plain")))]
pub(crate) async fn root() -> &'static str {
    RUNNING
}

/// Tells which level of the dialect is spoken.
#[utoipa::path(get, operation_id = "ollama_version", path = "/api/version", tag = "ollama",
    responses((status = 200, description = "The version", body = Version)))]
pub(crate) async fn version() -> Json<Version> {
    Json(Version { version: VERSION })
}

/// Says that Ollama's cloud is not used.
#[utoipa::path(get, operation_id = "ollama_status", path = "/api/status", tag = "ollama",
    responses((status = 200, description = "The state", body = Status)))]
pub(crate) async fn status() -> Json<Status> {
    Json(Status { cloud: CloudStatus { disabled: true, source: "config" } })
}
