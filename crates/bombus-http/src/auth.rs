//! The check of API keys: on listeners beyond loopback for every route, and everywhere for those that change who is a member.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::{App, SharedApp};
use crate::error::ApiError;

/// The one route that needs no key, so that load balancers and peers can see whether the node lives.
const OPEN_ROUTE: &str = "/health";

pub(crate) async fn require_key(State(app): State<SharedApp>, request: Request, next: Next) -> Response {
    if request.uri().path() == OPEN_ROUTE {
        return next.run(request).await;
    }
    match check(&app, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Looks whether a request carries a key that is known.
pub(crate) fn check(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(secret) = presented_key(headers) else {
        let message = "an API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'";
        return Err(ApiError::unauthorized(message));
    };
    match app.services.keys.verify(secret) {
        Ok(Some(name)) => {
            tracing::debug!(key.name = name, "API key accepted");
            Ok(())
        }
        Ok(None) => Err(ApiError::unauthorized("this API key is not known here, or was revoked")),
        Err(error) => {
            tracing::error!(%error, "API keys cannot be checked");
            Err(ApiError::keys_unreadable(error))
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
