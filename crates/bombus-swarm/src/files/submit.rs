//! Makes tasks of the lines of a batch.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bombus_core::batches::{BatchFacts, Endpoint, read_request_line, task_of_line};
use bombus_core::tasks::{TaskId, WholeRequest};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::BodyReader;
use super::drive::{has_to_end, is_done, retain_open};
use super::error::FilesError;
use super::read::{Line, Lines};
use super::shared::Shared;
use super::table::Table;
use crate::store::StoreError;
use crate::tasks::{BatchItem, Submission, TasksError, Work};

/// How many lines are being submitted at a time.
const AT_ONCE: usize = 32;
/// How many lines of a batch wait or run at a time. The others stay where they are, so that a large batch keeps nobody from submitting.
const OPEN_MAX: usize = 2_048;
/// Lines of batches give way to tasks for which somebody may wait.
const PRIORITY: u8 = 4;
/// Pause before it is looked again whether there is room.
const PAUSE: Duration = Duration::from_millis(200);

/// Submits the lines of a batch that are no tasks yet. Returns those that have not ended; none where the batch has to end.
pub(super) async fn submit(
    shared: &Shared,
    table: &Table,
    facts: &BatchFacts,
    refused: &HashSet<u32>,
) -> Result<Option<VecDeque<TaskId>>, FilesError> {
    let made = &facts.made;
    let mut open = VecDeque::new();
    let mut lines = Lines::open(&shared.db, &made.root, &made.by).await?;
    let mut submitting = FuturesUnordered::new();
    let known = shared.known_tasks()?;
    while let Some(group) = lines.next_group().await? {
        let mut new = Vec::new();
        for line in group.into_iter().filter(|line| !refused.contains(&line.index)) {
            let task = task_of_line(&made.id, line.index);
            match known.summary(&task) {
                Some(summary) if is_done(shared, &summary) => {}
                Some(_) => open.push_back(task),
                None => new.push(line),
            }
        }
        for request in read(shared, made.endpoint, new).await? {
            while open.len() >= OPEN_MAX || submitting.len() >= AT_ONCE {
                if has_to_end(shared, table, facts) {
                    return Ok(None);
                }
                if submitting.len() >= AT_ONCE {
                    let done: Option<Result<TaskId, FilesError>> = submitting.next().await;
                    open.extend(done.transpose()?);
                    continue;
                }
                sleep(PAUSE).await;
                retain_open(shared, &mut open)?;
            }
            submitting.push(one(shared, table, facts, request));
        }
        if has_to_end(shared, table, facts) {
            return Ok(None);
        }
    }
    while let Some(done) = submitting.next().await {
        open.push_back(done?);
    }
    Ok(Some(open).filter(|_| !has_to_end(shared, table, facts)))
}

struct Request {
    index: u32,
    custom_id: String,
    request: WholeRequest,
}

/// Reads what lines ask, where that holds up nobody.
async fn read(shared: &Shared, endpoint: Endpoint, lines: Vec<Line>) -> Result<Vec<Request>, FilesError> {
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    let reader: Arc<dyn BodyReader> = Arc::clone(&shared.reader);
    let read = spawn_blocking(move || {
        let request = |line: Line| {
            let read = read_request_line(&line.text?, endpoint).ok()?;
            // Another version may have read the line otherwise: nothing came of it then.
            let request = reader.read(endpoint, &read.body).ok()?;
            Some(Request { index: line.index, custom_id: read.custom_id, request })
        };
        lines.into_iter().filter_map(request).collect()
    });
    read.await.map_err(|error| FilesError::Document(error.to_string()))
}

/// Makes the task of a line.
pub(super) fn submission_of(item: BatchItem, request: WholeRequest) -> Submission {
    let model = request.model().to_owned();
    let work = Work::Whole(Box::new(request));
    Submission { priority: PRIORITY, batch: Some(item), ..Submission::new(model, work) }
}

/// Submits a line. Where as many tasks wait as may, it waits for room.
async fn one(shared: &Shared, table: &Table, facts: &BatchFacts, request: Request) -> Result<TaskId, FilesError> {
    let Request { index, custom_id, request } = request;
    let task = task_of_line(&facts.made.id, index);
    let total = facts.checked.as_ref().map(|checked| checked.lines.saturating_sub(checked.refused));
    let item = BatchItem { batch: facts.made.id.clone(), item: custom_id, total };
    let submission = Submission { id: Some(task.clone()), ..submission_of(item, request) };
    loop {
        match shared.tasks.submit(submission.clone()).await {
            Ok(_) => return Ok(task),
            Err(TasksError::Full { .. }) if !has_to_end(shared, table, facts) => sleep(PAUSE).await,
            Err(TasksError::Full { .. }) => return Ok(task),
            // Another node was faster, and reads the line otherwise.
            Err(TasksError::Conflict(_)) => return Ok(task),
            // Another version may have thought that it can be a task.
            Err(error @ (TasksError::Invalid { .. } | TasksError::Store(StoreError::TooLarge { .. }))) => {
                tracing::warn!(task.id = %task, %error, "a line of a batch can be no task; nothing comes of it");
                return Ok(task);
            }
            Err(TasksError::Unavailable) => return Err(FilesError::Unavailable),
            Err(error) => return Err(FilesError::Document(format!("request {index} was not submitted: {error}"))),
        }
    }
}
