//! What a batch goes through: its file is looked at, its lines become tasks, and when these have ended, so has it. Whoever does this may begin
//! at any point, and so may another after it.

use std::collections::VecDeque;
use std::time::Duration;

use bombus_core::batches::{BatchEnd, BatchFacts, EndedDocument, LINES_MAX, RequestCounts, task_of_line};
use bombus_core::identity::NodeId;
use bombus_core::liveness::PeerState;
use bombus_core::tasks::{TaskId, TaskStatus};
use futures::stream::{self, StreamExt};
use tokio::time::sleep;

use super::check::{Refusals, check};
use super::error::FilesError;
use super::shared::Shared;
use super::submit::submit;
use super::table::Table;
use crate::store::TaskSummary;

/// Time between two looks at the tasks of a batch; a look at many takes longer than one at few, and so does the pause.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_EVERY_PER_TASK: Duration = Duration::from_micros(50);
/// How many tasks are cancelled at a time.
const CANCELLED_AT_ONCE: usize = 64;

/// Returns whether a task has ended for its batch. One that its requester has not settled may yet change: that is waited for as long as the
/// requester is there.
pub(super) fn is_done(shared: &Shared, summary: &TaskSummary) -> bool {
    summary.over || (summary.status.is_final() && !is_there(shared, &summary.requester))
}

fn is_there(shared: &Shared, node: &str) -> bool {
    if node == shared.me.as_str() {
        return true;
    }
    let peer = NodeId::parse(node).ok().and_then(|node| shared.swarm.peer(&node));
    peer.is_some_and(|peer| peer.state != PeerState::Gone)
}

/// Takes a batch through until it has ended.
pub(super) async fn drive(shared: &Shared, table: &Table, id: &str) -> Result<(), FilesError> {
    loop {
        let Some(facts) = table.batch(id).filter(|facts| !facts.is_over()) else { return Ok(()) };
        let has_to_end = facts.has_to_end(shared.now_ms());
        if let Some(how) = has_to_end {
            cancel_all(shared, &facts).await?;
            return end(shared, table, &facts, how).await;
        }
        if facts.checked.is_none() {
            let checked = check(shared, &facts).await?;
            // Somebody may have wanted it cancelled, or another node been faster.
            let now = table.batch(id).filter(|now| now.checked.is_none());
            if now.is_some_and(|now| now.has_to_end(shared.now_ms()).is_none()) {
                table.put(&checked).await?;
            }
            continue;
        }
        let refused = Refusals::open(shared, &facts).await?.numbers().await?;
        if let Some(open) = submit(shared, table, &facts, &refused).await?
            && wait(shared, table, &facts, open).await?
        {
            return end(shared, table, &facts, BatchEnd::Completed).await;
        }
    }
}

/// Waits for the end of tasks; false where the batch has to end before.
async fn wait(
    shared: &Shared,
    table: &Table,
    facts: &BatchFacts,
    mut open: VecDeque<TaskId>,
) -> Result<bool, FilesError> {
    loop {
        if has_to_end(shared, table, facts) {
            return Ok(false);
        }
        retain_open(shared, &mut open)?;
        if open.is_empty() {
            return Ok(true);
        }
        let count = u32::try_from(open.len()).unwrap_or(u32::MAX);
        sleep(LOOK_EVERY + LOOK_EVERY_PER_TASK.saturating_mul(count)).await;
    }
}

/// Returns whether a batch has to end before its lines have, or has ended.
pub(super) fn has_to_end(shared: &Shared, table: &Table, facts: &BatchFacts) -> bool {
    let now = table.batch(&facts.made.id);
    now.is_none_or(|now| now.is_over() || now.has_to_end(shared.now_ms()).is_some())
}

/// Takes out the tasks that have ended, and those that nobody knows any more: they were let go.
pub(super) fn retain_open(shared: &Shared, open: &mut VecDeque<TaskId>) -> Result<(), FilesError> {
    let known = shared.known_tasks()?;
    open.retain(|task| known.summary(task).is_some_and(|summary| !is_done(shared, &summary)));
    Ok(())
}

/// Has all tasks of a batch end that have not.
async fn cancel_all(shared: &Shared, facts: &BatchFacts) -> Result<(), FilesError> {
    let known = shared.known_tasks()?;
    let mut open = Vec::new();
    for index in 1..=lines_of(facts) {
        let task = task_of_line(&facts.made.id, index);
        if known.summary(&task).is_some_and(|summary| !summary.status.is_final() && !summary.cancelling) {
            open.push(task);
        }
        breathe(index).await;
    }
    let mut cancelled = stream::iter(open)
        .map(async |task| {
            if let Err(error) = shared.tasks.cancel(&task).await {
                tracing::warn!(task.id = %task, %error, "a task of a batch was not cancelled");
            }
        })
        .buffer_unordered(CANCELLED_AT_ONCE);
    while cancelled.next().await.is_some() {}
    Ok(())
}

/// Returns how many lines a batch has whose file was looked at.
fn lines_of(facts: &BatchFacts) -> u32 {
    facts.checked.as_ref().map_or(0, |checked| checked.lines.min(LINES_MAX))
}

/// Lets others work once in a while.
async fn breathe(number: u32) {
    if number.is_multiple_of(1_024) {
        tokio::task::yield_now().await;
    }
}

/// Says how a batch has ended.
async fn end(shared: &Shared, table: &Table, facts: &BatchFacts, how: BatchEnd) -> Result<(), FilesError> {
    let RequestCounts { total, completed, failed } = counts(shared, facts).await?;
    // Another node may have said so meanwhile.
    if table.batch(&facts.made.id).is_none_or(|now| now.is_over()) {
        return Ok(());
    }
    let (id, at) = (facts.key("ended"), shared.now_ms());
    table.put(&EndedDocument { id, at, how, total, completed, failed }).await
}

/// Counts the lines of a batch by how they stand.
pub(super) async fn counts(shared: &Shared, facts: &BatchFacts) -> Result<RequestCounts, FilesError> {
    let Some(checked) = &facts.checked else { return Ok(RequestCounts::default()) };
    let known = shared.known_tasks()?;
    let mut counts = RequestCounts { total: checked.lines, completed: 0, failed: checked.refused };
    if !checked.errors.is_empty() {
        return Ok(RequestCounts { total: checked.lines, completed: 0, failed: 0 });
    }
    for index in 1..=lines_of(facts) {
        match known.summary(&task_of_line(&facts.made.id, index)).map(|summary| summary.status) {
            Some(TaskStatus::Completed) => counts.completed += 1,
            Some(TaskStatus::Failed | TaskStatus::Cancelled) => counts.failed += 1,
            Some(_) | None => {}
        }
        breathe(index).await;
    }
    Ok(counts)
}
