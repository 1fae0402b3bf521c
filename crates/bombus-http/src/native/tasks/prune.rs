//! What is kept of tasks, and what goes.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tasks_of;
use crate::app::SharedApp;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::native::mesh::KeyHolder;
use crate::tasks::{TaskCounts, TaskGeneration, TaskPrune, TasksPruned};

/// What is to go.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PruneRequest {
    /// Tasks that ended so many seconds ago or more may go; where it is left out, `tasks.retain_s` of the configuration counts.
    older_than_seconds: Option<u64>,
    /// Of more tasks than these, the oldest that have ended may go, too; where it is left out, `tasks.keep` of the configuration counts.
    keep: Option<usize>,
    /// Only says what would go.
    #[serde(default)]
    #[schema(default = false)]
    dry_run: bool,
}

/// How much room the tasks take on this node.
#[derive(Serialize, ToSchema)]
pub(crate) struct TaskStore {
    /// Tasks that this node knows.
    tasks: u64,
    /// Entries of all databases of tasks, results and their history.
    entries: u64,
    /// Bytes on the disk, with those of large prompts and answers.
    stored_bytes: u64,
    /// Entries that are kept and do not count, by reason: what members may not write about a task, and what came too late.
    refused: BTreeMap<String, u64>,
    /// Events that the history lacks since the start of the node, because too many waited to be written.
    history_lost: u64,
    /// The generations of the databases that are kept, oldest first. New tasks go to the last one.
    generations: Vec<TaskGeneration>,
    /// The name of the newest database of tasks, by which peers of OrbitDB open it.
    #[schema(required)]
    database: Option<String>,
    /// Its address.
    #[schema(required)]
    address: Option<String>,
}

impl From<TaskCounts> for TaskStore {
    fn from(counts: TaskCounts) -> Self {
        Self {
            tasks: counts.tasks.iter().map(|(_, count)| count).sum(),
            entries: counts.entries,
            stored_bytes: counts.stored_bytes,
            refused: counts.refused,
            history_lost: counts.history_lost,
            generations: counts.generations,
            database: counts.database,
            address: counts.address,
        }
    }
}

/// Lets go at once what need not be kept any longer of tasks that have ended, on this node; by itself it does so each hour. They go with the
/// generation of the databases that they stand in, whose room on the disk is free then. Where the newest one is to go, the next one begins first.
/// What has not ended stays, with the generation that it stands in.
#[utoipa::path(post, operation_id = "tasks_prune", path = "/tasks/prune", tag = "tasks", request_body = PruneRequest,
    responses((status = 200, description = "What went, and what stays and why", body = TasksPruned)))]
pub(crate) async fn prune(
    _: KeyHolder,
    State(app): State<SharedApp>,
    JsonBody { value: request, .. }: JsonBody<PruneRequest>,
) -> Result<Json<TasksPruned>, ApiError> {
    let wanted = TaskPrune {
        older_than: request.older_than_seconds.map(Duration::from_secs),
        keep: request.keep,
        dry_run: request.dry_run,
    };
    Ok(Json(tasks_of(&app)?.prune(wanted).await?))
}
