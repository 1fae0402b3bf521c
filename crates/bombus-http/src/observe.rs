//! What is told about every request: its id, its span, one log line at its end, its metrics. Errors get their bodies here.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tracing::{Instrument, Span};
use uuid::Uuid;

use crate::Metrics;
use crate::app::SharedApp;
use crate::error::ApiError;
use crate::router::route_template;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The route of requests that belong to none.
const UNMATCHED: &str = "unmatched";
/// The method of requests with any but the usual ones.
const OTHER_METHOD: &str = "other";

pub(crate) async fn observe(
    State(app): State<SharedApp>,
    matched: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    let span = tracing::info_span!("request", request_id = id.to_str().unwrap_or_default());
    let route = matched.as_ref().map_or(UNMATCHED, |path| route_template(path.as_str()));
    let record = Record::begin(app.services.metrics.clone(), span.clone(), request.method(), route);
    let path = request.uri().path().to_owned();

    let mut response = next.run(request).instrument(span).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let mut written = error.respond(&path);
        // What was added on the way out, for example `Allow`, stays.
        for (name, value) in response.headers() {
            written.headers_mut().entry(name).or_insert_with(|| value.clone());
        }
        response = written;
        // Its message may quote the request.
        record.span.in_scope(|| {
            tracing::debug!(error.kind, error.code, error.param = error.param.as_deref(), "request refused");
        });
    }
    response.headers_mut().insert(REQUEST_ID, id);
    let status = response.status();
    response.map(|body| Body::new(record.watch(status, body)))
}

/// Tells of a request whose head is no HTTP, or too large. Hyper has answered it itself (400, 414 or 431), without a body and an id: the id
/// of the line is nowhere else.
pub(crate) fn refused_unread(metrics: &Metrics, error: &hyper::Error) {
    metrics.request_refused_unread(UNMATCHED, OTHER_METHOD, "4xx");
    let id = Uuid::new_v4().hyphenated();
    tracing::debug!(request_id = %id, %error, "request refused: its head cannot be read");
}

/// Takes the client's own id if it can do no harm in a log, else makes one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        (1..=128).contains(&value.len())
            && value.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
    };
    headers.get(REQUEST_ID).filter(sane).cloned().unwrap_or_else(|| {
        let id = Uuid::new_v4().hyphenated().to_string();
        HeaderValue::from_str(&id).expect("a UUID is plain text")
    })
}

/// A request under way. Its end is told when it is dropped, so that a client that goes away is told of too.
struct Record {
    metrics: Metrics,
    span: Span,
    method: &'static str,
    route: String,
    begun: Instant,
    status: Option<StatusCode>,
    complete: bool,
}

impl Record {
    fn begin(metrics: Metrics, span: Span, method: &Method, route: &str) -> Self {
        metrics.request_begun();
        let method = match method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PUT" => "PUT",
            "DELETE" => "DELETE",
            "OPTIONS" => "OPTIONS",
            "PATCH" => "PATCH",
            _ => OTHER_METHOD,
        };
        Self { metrics, span, method, route: route.to_owned(), begun: Instant::now(), status: None, complete: false }
    }

    fn watch(mut self, status: StatusCode, body: Body) -> WatchedBody {
        self.status = Some(status);
        WatchedBody { body: Some(body), record: self }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        let class = match self.status.map(|status| status.as_u16() / 100) {
            Some(1) => "1xx",
            Some(2) => "2xx",
            Some(3) => "3xx",
            Some(4) => "4xx",
            Some(_) => "5xx",
            None => "none",
        };
        self.metrics.request_ended(&self.route, self.method, class, took);
        tracing::info!(
            parent: &self.span,
            http.method = self.method,
            http.route = self.route,
            http.status = self.status.map(|status| status.as_u16()),
            duration_ms = took.as_secs_f64() * 1000.0,
            complete = self.complete,
            "request finished"
        );
    }
}

/// A response body whose polls stand in the request's span and whose end is the request's end.
struct WatchedBody {
    /// Taken only when dropped.
    body: Option<Body>,
    record: Record,
}

impl http_body::Body for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let Some(body) = this.body.as_mut() else { return Poll::Ready(None) };
        let _entered = this.record.span.enter();
        let polled = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None) = polled {
            this.record.complete = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        // What the body's own drop logs, for example that a run was cancelled, belongs to the request too.
        let _entered = self.record.span.enter();
        self.record.complete |= http_body::Body::is_end_stream(self) || self.record.method == "HEAD";
        self.body = None;
    }
}
