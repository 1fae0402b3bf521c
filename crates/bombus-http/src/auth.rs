//! The check of API keys on listeners beyond loopback.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::SharedApp;
use crate::error::ApiError;

/// The one route that needs no key, so that load balancers and peers can see whether the node lives.
const OPEN_ROUTE: &str = "/health";

pub(crate) async fn require_key(State(app): State<SharedApp>, request: Request, next: Next) -> Response {
    if request.uri().path() == OPEN_ROUTE {
        return next.run(request).await;
    }
    let Some(secret) = presented_key(request.headers()) else {
        let message = "an API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'";
        return ApiError::unauthorized(message).into_response();
    };
    match app.services.keys.verify(secret) {
        Ok(Some(name)) => {
            tracing::debug!(key.name = name, "API key accepted");
            next.run(request).await
        }
        Ok(None) => ApiError::unauthorized("this API key is not known here, or was revoked").into_response(),
        Err(error) => {
            tracing::error!(%error, "API keys cannot be checked");
            ApiError::keys_unreadable(error).into_response()
        }
    }
}

fn presented_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, secret) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}
