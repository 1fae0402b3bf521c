//! What all dialects share when a model is asked: where a request may be answered, which backend gets it, and the answers as they come.

mod answers;
mod continuation;
mod embed;
mod frames;
mod scope;
mod target;

use axum::http::{HeaderName, HeaderValue};
use bombus_infer::Routed;

use crate::app::App;

pub(crate) use answers::{Answers, Truncation};
pub(crate) use continuation::{Continuation, Extras};
pub(crate) use embed::embed;
pub(crate) use frames::body_of;
pub(crate) use scope::{SCOPE_HEADER, Scoped, read as read_scope};
pub(crate) use target::{Target, name};

/// Names what answered: node, model, backend and why that one.
pub(crate) const ROUTE_HEADER: HeaderName = HeaderName::from_static("x-bombus-route");
/// Says that a prompt was cut: how many messages were left out, and how many tokens the rest has.
pub(crate) const TRUNCATED_HEADER: HeaderName = HeaderName::from_static("x-bombus-truncated");

/// Builds the value of [`ROUTE_HEADER`].
pub(crate) fn route_header<T>(app: &App, routed: &Routed<T>) -> HeaderValue {
    let Routed { node, model, backend, reason, .. } = routed;
    let node = node.as_ref().unwrap_or(&app.services.node.node_id);
    route_value(node.as_str(), model.as_str(), backend, reason)
}

fn route_value(node: &str, model: &str, backend: &str, reason: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("{node};{model};{backend};{reason}"))
        .unwrap_or_else(|_| HeaderValue::from_static("unprintable"))
}

#[cfg(test)]
mod tests;
