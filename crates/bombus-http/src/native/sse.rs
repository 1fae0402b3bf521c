//! Server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;

/// Time between two signs of life in a stream without events.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);
/// The sign of life: a comment.
pub(super) const ALIVE: &[u8] = b": alive\n\n";

/// An event in its form, and whether none follows.
pub(super) struct Framed {
    pub(super) bytes: Bytes,
    pub(super) is_last: bool,
}

/// Answers with a stream of events.
pub(super) fn response(events: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(events)).into_response()
}

/// Answers with what comes, each in its form, and with signs of life, at once and between; until the last one, or until the node stops.
pub(super) fn following<T: Send + 'static>(
    mut coming: BoxStream<'static, T>,
    stopping: CancellationToken,
    mut frame: impl FnMut(T) -> Framed + Send + 'static,
) -> Response {
    response(async_stream::stream! {
        // The head of the answer leaves with the first bytes of its body, and clients wait for it.
        yield Ok(Bytes::from_static(ALIVE));
        let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        loop {
            let next = tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                next = coming.next() => next,
                _ = heartbeat.tick() => {
                    yield Ok(Bytes::from_static(ALIVE));
                    continue;
                }
            };
            let Some(next) = next else { return };
            let Framed { bytes, is_last } = frame(next);
            yield Ok(bytes);
            if is_last {
                return;
            }
        }
    })
}
