use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::stall::StallGuard;
use crate::app::App;
use crate::observe;

/// Serves one connection to its end.
pub(super) async fn serve(stream: TcpStream, router: Router, app: &App, draining: CancellationToken) {
    let limits = &app.config.limits;
    let asked = AtomicBool::new(false);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        router.clone().oneshot(request)
    });
    let io = TokioIo::new(StallGuard::new(stream, limits.write_stall_time()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time())
        .max_headers(limits.headers_max)
        .max_header_size(limits.header_bytes_max)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = draining.cancelled() => {
            // A connection that has asked nothing yet would be waited for until its first request, which nobody answers any more.
            if !asked.load(Ordering::Relaxed) {
                return;
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    match ended {
        Ok(()) => {}
        // To the preface of HTTP/2 nothing is answered.
        Err(error) if error.is_parse() && !error.is_parse_version_h2() => {
            observe::refused_unread(&app.services.metrics, &error);
        }
        Err(error) => tracing::debug!(%error, "connection ended early"),
    }
}
