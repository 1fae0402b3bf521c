//! Durable tasks, in mycoSwarm's shapes with more fields: work that outlives the node that it was given to.

#![expect(unused_qualifications, reason = "the description of a route names types by longer paths than it needs")]

pub(crate) mod prune;
pub(crate) mod request;
#[cfg(test)]
pub(crate) mod scripted;
pub(crate) mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};

use crate::app::{App, SharedApp};
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::tasks::{TaskCounts, TaskFilter, TaskInfo, TaskPage, TaskState, Tasks, TasksError};
use crate::{Metrics, Sample, SampleKind};

use request::TaskRequest;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest key in bytes.
const KEY_BYTES_MAX: usize = 255;
/// Longest id of a task or a batch in bytes.
pub(super) const ID_BYTES_MAX: usize = 128;
/// Longest cursor in bytes.
const CURSOR_BYTES_MAX: usize = 512;
/// Longest wait for the end of a task, in seconds.
const WAIT_S_MAX: u64 = 60;
/// Most tasks in a part of a list.
const LIMIT_MAX: usize = 1_000;
/// When to try again where as many tasks wait as may.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The task that a path names.
pub(crate) struct TaskPath(String);

impl FromRequestParts<SharedApp> for TaskPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &SharedApp) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        let Path(id) = path.map_err(|rejection| ApiError::invalid_value("id", rejection.body_text()))?;
        checked_id("id", id).map(Self)
    }
}

/// Says that a task is safe.
#[derive(Serialize, ToSchema)]
pub(crate) struct TaskAnswer {
    /// Its id, by which every node of the swarm tells how it stands.
    task_id: String,
    /// How far it is: a repeated request may find it ended.
    status: TaskState,
    /// Whether it is sealed; what is not is stored as it is on all nodes of the swarm.
    encrypted: bool,
    /// The same for people.
    message: String,
    /// How many parts it was cut into; 0 where it is whole.
    chunks: usize,
}

/// What `GET /task/{id}` asks for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct InfoQuery {
    /// Waits so many seconds until the task has ended and that is settled, unless it is already.
    #[serde(default)]
    #[param(default = 0, minimum = 0, maximum = 60)]
    wait: u64,
    /// Whether what came of it is told, too.
    #[serde(default = "yes")]
    #[param(default = true)]
    result: bool,
}

/// What `GET /tasks` asks for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// Only those that are so far.
    status: Option<TaskState>,
    /// Only those that were submitted at this node.
    #[serde(default)]
    #[param(default = false)]
    mine: bool,
    /// Only those of this batch.
    batch: Option<String>,
    /// The `next` of the part of the list before.
    cursor: Option<String>,
    /// At most so many.
    #[serde(default = "hundred")]
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: usize,
}

fn yes() -> bool {
    true
}

fn hundred() -> usize {
    100
}

/// Submits a task. When the answer comes it is safe on the disk of this node; it is done by whichever node can do it best, and outlives any
/// of them. The same `Idempotency-Key`, or the same `task_id`, with the same content is the same task at every node. What is not sealed is
/// stored on all nodes of the swarm, prompts included.
#[utoipa::path(post, operation_id = "task_submit", path = "/task", tag = "tasks", request_body = TaskRequest,
    params(("idempotency-key" = Option<String>, Header, description = "1 to 255 visible characters of ASCII. A request with the key of an earlier one is not done again; with another content it is refused. Not together with `task_id`")),
    responses(
        (status = 202, description = "It is safe; `Location` says where it is asked for", body = TaskAnswer),
        (status = 404, description = "The node of `to` is not known", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another task has the `task_id`, or several nodes are called as `to` says", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 422, description = "The `Idempotency-Key` is that of an earlier request with another content", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn submit(
    State(app): State<SharedApp>,
    headers: HeaderMap,
    JsonBody { value: request, .. }: JsonBody<TaskRequest>,
) -> Result<Response, ApiError> {
    let tasks = tasks_of(&app)?;
    let key = idempotency_key(&headers)?;
    let by_key = key.is_some();
    let task = request.task(&app, key)?;
    let submitted = tasks.submit(task).await.map_err(|error| match error {
        TasksError::Conflict(_) if by_key => ApiError::key_reused(
            "the Idempotency-Key is that of an earlier request with another content: take another key",
        ),
        error => error.into(),
    })?;
    let location = HeaderValue::try_from(format!("/task/{}", submitted.task_id));
    let location = location.map_err(|_| ApiError::internal())?;
    let chunks = submitted.chunks.len();
    let safe = match chunks {
        0 => "it is safe".to_owned(),
        1 => "it is safe in 1 chunk".to_owned(),
        chunks => format!("it is safe in {chunks} chunks"),
    };
    let message = match (submitted.status.is_final(), submitted.waiting) {
        (true, _) => format!("it was submitted before, and is {}", submitted.status.name()),
        (false, None) => format!("{safe}, and will be done"),
        (false, Some(reason)) => format!("{safe}, and waits: {reason}"),
    };
    let TaskInfo { task_id, status, encrypted, .. } = submitted;
    let answer = TaskAnswer { task_id, status, encrypted, message, chunks };
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(answer)).into_response())
}

/// Tells how a task stands, at any node: `settled` says that it stays so. While it is not settled, a result may yet be replaced by another.
#[utoipa::path(get, operation_id = "task_info", path = "/task/{id}", tag = "tasks", params(
        ("id" = String, Path, description = "The task's id"),
        InfoQuery,
    ),
    responses(
        (status = 200, description = "How it stands", body = TaskInfo),
        (status = 400, description = "A parameter cannot be taken", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "This node knows of no such task", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn info(
    State(app): State<SharedApp>,
    TaskPath(id): TaskPath,
    query: Result<Query<InfoQuery>, QueryRejection>,
) -> Result<Json<TaskInfo>, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::invalid_value("query", rejection.body_text()))?;
    if query.wait > WAIT_S_MAX {
        return Err(ApiError::invalid_value("wait", format!("'wait' has to be from 0 to {WAIT_S_MAX} seconds")));
    }
    let tasks = tasks_of(&app)?;
    if query.wait > 0 {
        tokio::select! {
            biased;
            () = app.stopping.cancelled() => {}
            ended = timeout(Duration::from_secs(query.wait), tasks.wait(&id)) => ended.unwrap_or(Ok(()))?,
        }
    }
    Ok(Json(tasks.info(&id, query.result).await?))
}

/// Cancels a task: whoever works on it stops. Its requester settles that; while it is away, `cancelling` says that somebody asked for it.
/// A task that has ended stays as it is.
#[utoipa::path(delete, operation_id = "task_cancel", path = "/task/{id}", tag = "tasks",
    params(("id" = String, Path, description = "The task's id")),
    responses(
        (status = 200, description = "How it stands", body = TaskInfo),
        (status = 400, description = "No task can be called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "This node knows of no such task", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn cancel(State(app): State<SharedApp>, TaskPath(id): TaskPath) -> Result<Json<TaskInfo>, ApiError> {
    Ok(Json(tasks_of(&app)?.cancel(&id).await?))
}

/// Lists the tasks of the swarm, newest first, without their results.
#[utoipa::path(get, operation_id = "tasks_list", path = "/tasks", tag = "tasks", params(ListQuery),
    responses(
        (status = 200, description = "A part of the list", body = TaskPage),
        (status = 400, description = "A parameter cannot be taken", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn list(
    State(app): State<SharedApp>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<TaskPage>, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::invalid_value("query", rejection.body_text()))?;
    if !(1..=LIMIT_MAX).contains(&query.limit) {
        return Err(ApiError::invalid_value("limit", format!("'limit' has to be from 1 to {LIMIT_MAX}")));
    }
    let cursor_is_one =
        |cursor: &String| cursor.len() <= CURSOR_BYTES_MAX && cursor.chars().all(|c| c.is_ascii_graphic());
    if !query.cursor.as_ref().is_none_or(cursor_is_one) {
        return Err(ApiError::invalid_value("cursor", "'cursor' has to be the `next` of an earlier answer"));
    }
    let filter = TaskFilter {
        status: query.status,
        mine: query.mine,
        batch: query.batch.map(|batch| checked_id("batch", batch)).transpose()?,
        cursor: query.cursor,
        limit: query.limit,
    };
    Ok(Json(tasks_of(&app)?.list(filter).await?))
}

/// Returns the tasks, which a node has unless its configuration says otherwise.
fn tasks_of(app: &App) -> Result<&Arc<dyn Tasks>, ApiError> {
    let none =
        || ApiError::tasks_unavailable("this node has no tasks: the setting tasks.enabled or db.enabled is false");
    app.services.tasks.as_ref().ok_or_else(none)
}

/// Returns how much there is of the tasks; nothing where there are none.
pub(super) fn counts_of(app: &App) -> TaskCounts {
    app.services.tasks.as_ref().map(|tasks| tasks.counts()).unwrap_or_default()
}

/// Checks the id of a task or of a batch.
fn checked_id(param: &'static str, id: String) -> Result<String, ApiError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    if (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(plain) {
        return Ok(id);
    }
    let message = format!("'{param}' has to have 1 to {ID_BYTES_MAX} letters, digits, '.', '_', ':' and '-'");
    Err(ApiError::invalid_value(param, message))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().ok().map(str::trim);
    let key =
        key.filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()));
    let wrong = || {
        let message = format!("Idempotency-Key has to have 1 to {KEY_BYTES_MAX} visible characters of ASCII");
        ApiError::invalid_value("Idempotency-Key", message)
    };
    key.map(|key| Some(key.to_owned())).ok_or_else(wrong)
}

/// Reports how much there is of the tasks whenever the metrics are read.
pub(crate) fn report(tasks: &Arc<dyn Tasks>, metrics: &Metrics) {
    let tasks = Arc::downgrade(tasks);
    metrics.add_source(move || tasks.upgrade().map(|tasks| samples(&tasks.counts())).unwrap_or_default());
}

fn samples(counts: &TaskCounts) -> Vec<Sample> {
    let gauge = |name, help, value: u64| Sample {
        name,
        kind: SampleKind::Gauge,
        help,
        labels: Vec::new(),
        value: value as f64,
    };
    let by_state = TaskState::ALL.map(|state| Sample {
        labels: vec![("status", state.name().to_owned())],
        ..gauge("tasks", "Durable tasks that this node knows, by how far they are", counts.of(state))
    });
    let others = [
        gauge("tasks_running_here", "Durable tasks that this node itself works on", counts.running_here),
        gauge("tasks_stored_entries", "Entries of the databases of tasks, results and their history", counts.entries),
        gauge(
            "tasks_generations",
            "Generations of the databases of tasks that are kept",
            counts.generations.len() as u64,
        ),
        gauge("tasks_stored_bytes", "Bytes that the databases of tasks take on the disk", counts.stored_bytes),
    ];
    let refused = counts.refused.iter().map(|(reason, count)| Sample {
        labels: vec![("reason", reason.clone())],
        ..gauge("tasks_refused_entries", "Entries of the databases of tasks that do not count, by reason", *count)
    });
    let runs = &counts.runs;
    let counter = |name, help, value| Sample { kind: SampleKind::Counter, ..gauge(name, help, value) };
    let by_outcome = [("completed", runs.completed), ("failed", runs.failed), ("stopped", runs.stopped)];
    let by_outcome = by_outcome.map(|(outcome, count)| Sample {
        labels: vec![("outcome", outcome.to_owned())],
        ..counter("task_runs", "Runs of durable tasks on this node that have ended", count)
    });
    let begun = counter("task_runs_begun", "Runs of durable tasks on this node that have begun", runs.begun);
    let lost = counter(
        "tasks_history_lost",
        "Events that the history of tasks lacks, because too many waited to be written",
        counts.history_lost,
    );
    by_state.into_iter().chain(others).chain(refused).chain(by_outcome).chain([begun, lost]).collect()
}

impl From<TasksError> for ApiError {
    fn from(error: TasksError) -> Self {
        let message = error.to_string();
        match error {
            TasksError::UnknownTask(_) => Self::task_not_found(message),
            TasksError::Conflict(_) => Self::conflict("task_exists", message),
            TasksError::Invalid { param, .. } => Self::invalid_value(param, message),
            TasksError::Full(_) => Self::tasks_full(message, RETRY_AFTER),
            TasksError::Unavailable(_) => Self::tasks_unavailable(message),
            TasksError::Failed(_) => Self::tasks_failed(message),
        }
    }
}
