//! What all dialects share when a model is asked: which backend gets the request, and the answers as they come.

mod answers;
mod embed;
mod frames;
mod target;

use axum::http::{HeaderName, HeaderValue};
use bombus_infer::Routed;

use crate::app::App;

pub(crate) use answers::{Answers, Truncation};
pub(crate) use embed::embed;
pub(crate) use frames::body_of;
pub(crate) use target::{Target, name};

/// Names what answered: node, model, backend and why that one.
pub(crate) const ROUTE_HEADER: HeaderName = HeaderName::from_static("x-bombus-route");
/// Says that a prompt was cut: how many messages were left out, and how many tokens the rest has.
pub(crate) const TRUNCATED_HEADER: HeaderName = HeaderName::from_static("x-bombus-truncated");

/// Builds the value of [`ROUTE_HEADER`].
pub(crate) fn route_header<T>(app: &App, routed: &Routed<T>) -> HeaderValue {
    let Routed { model, backend, reason, .. } = routed;
    let text = format!("{};{model};{backend};{reason}", app.services.node.node_id);
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("unprintable"))
}
