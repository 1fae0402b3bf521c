//! A task as it goes on, as server-sent events.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::sse::{self, Framed};
use super::{TaskPath, tasks_of};
use crate::app::SharedApp;
use crate::error::ApiError;
use crate::tasks::{TaskInfo, TaskNews, TaskProgress, TaskResult, TaskState};

/// An event of the stream, as readers of server-sent events take it apart.
#[derive(ToSchema)]
#[expect(dead_code, reason = "stands for the stream in the API document alone")]
pub(crate) struct SentTaskEvent {
    /// A `TaskEvent` as JSON.
    data: String,
}

/// What happens to a task. The last one has `done`.
#[derive(Default, Serialize, ToSchema)]
pub(crate) struct TaskEvent {
    /// A piece of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// Whether the task has ended. Nothing follows then.
    done: bool,
    /// The number of an attempt that begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    /// The pieces before this one are of an attempt that came to nothing: the answer begins anew.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reset: bool,
    /// How far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<TaskState>,
    /// Whether its requester has said so for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    settled: Option<bool>,
    /// How much of it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<TaskProgress>,
    /// The model that gave the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// How fast its tokens came.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    /// The time from the submission to now.
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_seconds: Option<f64>,
    /// Who works on it, or did the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_id: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl TaskEvent {
    fn of(news: TaskNews) -> Self {
        match news {
            TaskNews::Token(text) => Self { token: Some(text), ..Self::default() },
            TaskNews::Attempt(attempt) => Self { attempt: Some(attempt), ..Self::default() },
            TaskNews::State(info) => Self {
                status: Some(info.status),
                settled: Some(info.settled),
                progress: Some(info.progress),
                node_id: info.node_id,
                ..Self::default()
            },
            TaskNews::Done(info) => Self::end(*info),
        }
    }

    fn end(info: TaskInfo) -> Self {
        let (model, tokens_per_second) = match info.result {
            Some(TaskResult::Inference(result)) => (Some(result.model), result.tokens_per_second),
            Some(TaskResult::Embedding(result)) => (Some(result.model), None),
            Some(TaskResult::Ping(_)) | None => (info.model, None),
        };
        Self {
            done: true,
            status: Some(info.status),
            settled: Some(info.settled),
            model,
            tokens_per_second,
            duration_seconds: Some(info.duration_seconds),
            node_id: info.node_id,
            error: info.error,
            ..Self::default()
        }
    }
}

/// Streams what happens to a task as server-sent events, at any node: the pieces of its answer while it runs, `reset` where an attempt came
/// to nothing and the answer begins anew, and `done` at its end. Who comes in the middle gets what was before in one piece, as far as it is kept: `GET /task/{id}` has the whole.
/// At once and every 15 s a comment shows that the stream lives.
#[utoipa::path(get, operation_id = "task_stream", path = "/task/{id}/stream", tag = "tasks",
    params(("id" = String, Path, description = "The task's id")),
    responses(
        (status = 200, description = "What happens, event by event", body = SentTaskEvent, content_type = "text/event-stream"),
        (status = 400, description = "No task can be called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "This node knows of no such task", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn stream(State(app): State<SharedApp>, TaskPath(id): TaskPath) -> Result<Response, ApiError> {
    let news = tasks_of(&app)?.follow(&id).await?;
    let mut told = false;
    Ok(sse::following(news, app.stopping.clone(), move |news| {
        let mut event = TaskEvent::of(news);
        // The first attempt takes nothing back.
        event.reset = event.attempt.is_some() && std::mem::take(&mut told);
        told |= event.token.is_some();
        let data = serde_json::to_string(&event).expect("an event has a JSON form");
        Framed { bytes: format!("data: {data}\n\n").into(), is_last: event.done }
    }))
}
