//! What came of the lines of a batch, one after the other.

use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use bombus_core::batches::{BatchEnd, BatchFacts, BatchLine, Computed, LineOutcome, read_request_line, task_of_line};
use bombus_core::tasks::{TaskId, TaskStatus};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::time::{sleep, timeout};

use super::check::{Refusals, Refused};
use super::drive::counts;
use super::error::FilesError;
use super::read::Lines;
use super::shared::Shared;

/// How many results are read at once.
const AT_ONCE: usize = 16;
/// How long the tasks of a batch that has ended may take to come here, and how often that is looked at.
const TASKS_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// When a batch has ended so long ago, in milliseconds, what is not here does not come any more: an hour.
const OLD_MS: u64 = 3_600_000;

/// What is told of a line whose task has gone.
const GONE: (&str, &str) = ("task_gone", "the task of this request is not kept any more");

/// A line, before it is looked at what came of it.
struct Asked {
    custom_id: String,
    task: TaskId,
    refused: Option<Refused>,
}

/// Reads what came of a batch that has ended: its answers, or what failed. Few lines are in memory at a time.
pub(super) async fn lines(
    shared: &Arc<Shared>,
    facts: BatchFacts,
    wanted: Computed,
) -> Result<BoxStream<'static, Result<BatchLine, FilesError>>, FilesError> {
    wait_for_tasks(shared, &facts).await?;
    let (shared, facts) = (Arc::clone(shared), Arc::new(facts));
    let asked = asked(&shared, &facts).await?;
    let read = asked.map(move |asked| {
        let (shared, facts) = (Arc::clone(&shared), Arc::clone(&facts));
        async move { outcome(&shared, &facts, wanted, asked?).await }
    });
    Ok(read.buffered(AT_ONCE).try_filter_map(async |line| Ok(line)).boxed())
}

/// Waits until this node knows of as many answers as the batch had at its end: the one database may be ahead of the others.
async fn wait_for_tasks(shared: &Shared, facts: &BatchFacts) -> Result<(), FilesError> {
    let Some(ended) = &facts.ended else { return Ok(()) };
    let all_here = async {
        loop {
            let here = counts(shared, facts).await?;
            if here.completed >= ended.completed && (ended.how != BatchEnd::Completed || here.failed >= ended.failed) {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
    };
    if shared.now_ms().saturating_sub(ended.at) > OLD_MS {
        return Ok(());
    }
    let late = || FilesError::Unreached("not all tasks of the batch have come to this node yet; ask again".to_owned());
    timeout(TASKS_LIMIT, all_here).await.unwrap_or_else(|_| Err(late()))
}

async fn asked(
    shared: &Shared,
    facts: &Arc<BatchFacts>,
) -> Result<BoxStream<'static, Result<Asked, FilesError>>, FilesError> {
    if facts.checked.is_none() {
        return Ok(stream::empty().boxed());
    }
    let facts = Arc::clone(facts);
    let mut lines = Lines::open(&shared.db, &facts.made.root, &facts.made.by).await?;
    let mut refusals = Refusals::open(shared, &facts).await?;
    let asked = try_stream! {
        while let Some(line) = lines.next().await? {
            let task = task_of_line(&facts.made.id, line.index);
            let refused = refusals.take(line.index).await?;
            let custom_id = match &refused {
                Some(refused) => refused.custom_id.clone(),
                None => read_request_line(&line.text.unwrap_or_default(), facts.made.endpoint)
                    .map(|line| line.custom_id)
                    .unwrap_or_default(),
            };
            yield Asked { custom_id, task, refused };
        }
    };
    Ok(asked.boxed())
}

/// Tells what came of a line; none where it belongs to the other file.
async fn outcome(
    shared: &Shared,
    facts: &BatchFacts,
    wanted: Computed,
    asked: Asked,
) -> Result<Option<BatchLine>, FilesError> {
    let Asked { custom_id, task, refused } = asked;
    let status = shared.known_tasks()?.summary(&task).map(|summary| summary.status);
    if wanted != file_of(facts, refused.is_some(), status) {
        return Ok(None);
    }
    let outcome = match (refused, status) {
        (Some(Refused { status, body, .. }), _) => LineOutcome::Refused { status, body },
        (None, Some(TaskStatus::Completed)) => answer(shared, &task).await?,
        (None, Some(TaskStatus::Failed)) => failure(shared, &task).await,
        (None, status) => without(facts, status),
    };
    Ok(Some(BatchLine { custom_id, task, outcome }))
}

/// Returns in which of the two files a line stands.
fn file_of(facts: &BatchFacts, is_refused: bool, status: Option<TaskStatus>) -> Computed {
    match status {
        _ if is_refused => Computed::Errors,
        Some(TaskStatus::Completed) => Computed::Output,
        // It was answered, and let go since: there is no other file.
        None if all_were_answered(facts) => Computed::Output,
        _ => Computed::Errors,
    }
}

fn all_were_answered(facts: &BatchFacts) -> bool {
    facts.ended.as_ref().is_some_and(|ended| ended.completed == ended.total)
}

async fn answer(shared: &Shared, task: &TaskId) -> Result<LineOutcome, FilesError> {
    let read = shared.tasks.result(task).await.map_err(|error| FilesError::Unreached(error.to_string()))?;
    let gone = |why: &str| LineOutcome::Failed { code: "result_unreadable", message: why.to_owned() };
    let Some(result) = read else { return Ok(gone("the answer is not kept any more")) };
    if result.sealed {
        return Ok(gone("the answer is sealed to another node"));
    }
    let Some(answer) = result.answer else { return Ok(gone("the task of this line was submitted otherwise")) };
    let created = result.completed_at.unwrap_or_default() / 1_000;
    Ok(LineOutcome::Answered { model: result.model, created, answer })
}

async fn failure(shared: &Shared, task: &TaskId) -> LineOutcome {
    let told = shared.tasks.report(task).await.ok().and_then(|report| report.error);
    let message = told.unwrap_or_else(|| "all attempts failed".to_owned());
    LineOutcome::Failed { code: "task_failed", message }
}

/// Says why there is nothing of a line that was neither done nor has failed.
fn without(facts: &BatchFacts, status: Option<TaskStatus>) -> LineOutcome {
    let how = facts.ended.as_ref().map(|ended| ended.how);
    let (code, message) = match (how, status) {
        (_, None) if all_were_answered(facts) => GONE,
        (Some(BatchEnd::Expired), _) => {
            ("batch_expired", "this request could not be executed before the completion window expired")
        }
        (Some(BatchEnd::Cancelled), _) => ("batch_cancelled", "the batch was cancelled before this request was done"),
        (_, Some(TaskStatus::Cancelled)) => ("task_cancelled", "the task of this request was cancelled"),
        _ => GONE,
    };
    LineOutcome::Failed { code, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bombus_core::batches::{BatchDocument, EndedDocument, Endpoint, batch_id};

    use super::*;

    fn facts() -> BatchFacts {
        BatchFacts::new(BatchDocument {
            id: batch_id([1; 16]),
            input_file: "file-a".into(),
            root: "z".into(),
            bytes: 9,
            endpoint: Endpoint::Chat,
            metadata: BTreeMap::new(),
            by: "me".into(),
            created_at: 5_000,
        })
    }

    fn code(how: BatchEnd, status: Option<TaskStatus>) -> &'static str {
        let mut facts = facts();
        let id = facts.key("ended");
        facts.ended = Some(EndedDocument { id, at: 9_000, how, total: 3, completed: 1, failed: 0 });
        match without(&facts, status) {
            LineOutcome::Failed { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_that_was_answered_and_let_go_stands_in_the_output_only_where_all_were_answered() {
        let mut facts = facts();
        for (completed, file, code) in [(3, Computed::Output, "task_gone"), (2, Computed::Errors, "batch_cancelled")] {
            let id = facts.key("ended");
            facts.ended =
                Some(EndedDocument { id, at: 9_000, how: BatchEnd::Cancelled, total: 3, completed, failed: 0 });
            // Whether somebody removed the error file has no bearing on the other one.
            facts.errors_hidden = true;
            assert_eq!(file_of(&facts, false, None), file);
            assert!(matches!(without(&facts, None), LineOutcome::Failed { code: told, .. } if told == code));
        }
    }

    #[test]
    fn what_was_not_done_is_told_by_how_the_batch_ended() {
        for status in [None, Some(TaskStatus::Pending), Some(TaskStatus::Cancelled)] {
            assert_eq!(code(BatchEnd::Expired, status), "batch_expired");
            assert_eq!(code(BatchEnd::Cancelled, status), "batch_cancelled");
        }
        assert_eq!(code(BatchEnd::Completed, Some(TaskStatus::Cancelled)), "task_cancelled");
        assert_eq!(code(BatchEnd::Completed, None), "task_gone");
    }
}
