//! Long works on models, told step by step.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bombus_infer::{BackendError, Progress, ProgressStream};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::timeout;

use super::response::ProgressLine;
use crate::app::{App, SharedApp};
use crate::error::ApiError;

/// Longest wait between two steps. Looking through large files takes minutes on slow disks.
pub(super) const STEP_TIME_MAX: Duration = Duration::from_mins(15);
/// The last step of a work that succeeds.
const SUCCESS: &str = "success";

impl ProgressLine {
    fn of(step: Progress) -> Self {
        Self {
            status: step.status,
            digest: step.sha256.map(|sha256| format!("sha256:{sha256}")),
            total: step.total_bytes,
            completed: step.completed_bytes,
        }
    }

    fn success() -> Self {
        Self { status: SUCCESS.to_owned(), digest: None, total: None, completed: None }
    }

    fn line(&self) -> Bytes {
        let mut line = serde_json::to_vec(self).expect("a step has a JSON form, and a buffer takes it");
        line.push(b'\n');
        line.into()
    }
}

/// Tells the steps of a work that changes a backend's models, as lines or, once it is done, as one object. Dropping the answer stops
/// the work.
///
/// # Errors
///
/// What fails before the first step; of one object, whatever fails.
pub(super) async fn respond(
    app: SharedApp,
    backend: String,
    mut steps: ProgressStream,
    stream: bool,
) -> Result<Response, ApiError> {
    let mut next = step(&app, &mut steps).await?;
    if !stream {
        while next.is_some() {
            next = step(&app, &mut steps).await?;
        }
        app.services.backends.refresh(&backend).await;
        return Ok(axum::Json(ProgressLine::success()).into_response());
    }
    let lines = async_stream::stream! {
        let mut succeeded = false;
        while let Some(told) = next.take() {
            succeeded = told.status == SUCCESS;
            if succeeded {
                // Whoever reads this asks for the model next.
                app.services.backends.refresh(&backend).await;
            }
            yield Ok::<_, Infallible>(ProgressLine::of(told).line());
            next = match step(&app, &mut steps).await {
                Ok(next) => next,
                Err(error) => {
                    let mut told = serde_json::to_vec(&error.ollama_body()).expect("an error has a JSON form");
                    told.push(b'\n');
                    yield Ok(told.into());
                    return;
                }
            };
        }
        if !succeeded {
            app.services.backends.refresh(&backend).await;
            yield Ok(ProgressLine::success().line());
        }
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Waits for the next step, but not for too long, nor beyond the end of the node.
async fn step(app: &App, steps: &mut ProgressStream) -> Result<Option<Progress>, ApiError> {
    let step = tokio::select! {
        biased;
        () = app.cut.cancelled() => return Err(ApiError::shutting_down()),
        step = timeout(STEP_TIME_MAX, steps.next()) => step,
    };
    match step {
        Ok(step) => step.transpose().map_err(|error| {
            tracing::warn!(error = %error.in_log(), "a work on models failed");
            error.into()
        }),
        Err(_) => Err(BackendError::TimedOut { after: STEP_TIME_MAX }.into()),
    }
}
