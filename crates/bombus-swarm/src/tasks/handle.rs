//! The handle through which everybody but the service uses tasks.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::tasks::report::TaskReport;
use bombus_core::tasks::{TaskId, TaskStatus};
use futures::stream::BoxStream;

use super::error::TasksError;
use super::news::{TaskFilter, TaskNews, TaskPage, TaskResultReport};
use super::shared::Shared;
use super::submission::Submission;
use crate::store::{Pruned, Retention, StoreSize, TaskStore, TaskSummary};

/// A cheap handle to the tasks of the swarm. Every node answers for every task that it has heard of.
#[derive(Clone)]
pub struct TasksHandle {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for TasksHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TasksHandle").finish_non_exhaustive()
    }
}

impl TasksHandle {
    /// Submits a task. It is safe on this node's disk when this returns; where it is cut into parts, all of them are.
    ///
    /// A submission whose id is known already and that asks for the same returns the task that is there.
    ///
    /// # Errors
    ///
    /// [`TasksError::Invalid`]; [`TasksError::Conflict`] where the id is known and asks for something else; [`TasksError::Full`];
    /// [`TasksError::NoRoom`]; [`TasksError::Unavailable`] and [`TasksError::Store`], as of all that follow.
    pub async fn submit(&self, submission: Submission) -> Result<TaskReport, TasksError> {
        super::orchestrate::submit(&self.shared, submission).await.map_err(|error| self.shared.explained(error))
    }

    /// Tells how a task stands. The status of a parent is made of its parts.
    ///
    /// # Errors
    ///
    /// [`TasksError::UnknownTask`], as of all that follow.
    pub async fn report(&self, id: &TaskId) -> Result<TaskReport, TasksError> {
        self.shared.report(id).await
    }

    /// Says why a task waits that no node that is here could do; of a parent, why the first such part does. None where one could, or it does not
    /// wait.
    pub async fn hindrance(&self, report: &TaskReport) -> Option<String> {
        let parts = report.parts.iter().filter(|part| part.status == TaskStatus::Pending).map(|part| &part.id);
        let waiting = if report.parts.is_empty() { Some(&report.id) } else { parts.into_iter().next() };
        super::rank::hindrance(&self.shared, waiting.filter(|_| !report.is_final())?).await
    }

    /// Tells in short how a task stands that is no parent, at once; none where it is not known, or the tasks are not open.
    #[must_use]
    pub fn summary(&self, id: &TaskId) -> Option<Arc<TaskSummary>> {
        self.shared.store_now()?.summary(id)
    }

    /// Tells what came of a task; `None` where there is nothing to read yet. Large answers are fetched from those who have them.
    ///
    /// # Errors
    ///
    /// See above.
    pub async fn result(&self, id: &TaskId) -> Result<Option<TaskResultReport>, TasksError> {
        super::orchestrate::result(&self.shared, id).await
    }

    /// Waits until a task has ended and its requester has said so, and tells how. Safe to cancel. A task of a peer that never says so has
    /// ended when it is shown so.
    ///
    /// # Errors
    ///
    /// See above.
    pub async fn wait(&self, id: &TaskId) -> Result<TaskReport, TasksError> {
        super::orchestrate::wait(&self.shared, id).await
    }

    /// Has a task end, wherever it runs, and tells how it stands then: its requester confirms the end. Where that is away, the worker stops
    /// all the same, and the task is shown as `cancelling` until it is back. A task that has ended stays as it is.
    ///
    /// # Errors
    ///
    /// See above.
    pub async fn cancel(&self, id: &TaskId) -> Result<TaskReport, TasksError> {
        super::cancel::cancel(&self.shared, id).await.map_err(|error| self.shared.explained(error))
    }

    /// Lists tasks, newest first; parents stand for their parts.
    ///
    /// # Errors
    ///
    /// [`TasksError::Unavailable`] and [`TasksError::Store`].
    pub async fn list(&self, filter: &TaskFilter) -> Result<TaskPage, TasksError> {
        super::orchestrate::list(&self.shared, filter).await
    }

    /// Tells what happens to a task until it has ended, wherever it runs: first how it stands, then its answer as it is written, and each
    /// change. A reader that is slow misses changes, but not pieces of the answer.
    ///
    /// # Errors
    ///
    /// [`TasksError::UnknownTask`] and the others, when it begins.
    pub async fn follow(&self, id: &TaskId) -> Result<BoxStream<'static, TaskNews>, TasksError> {
        super::follow::follow(&self.shared, id).await
    }

    /// Tells of each task that changes from now on, how it stands then; of parts, how their parent stands. A reader that is slow misses
    /// changes, and then gets those that follow. It ends with the service.
    #[must_use]
    pub fn updates(&self) -> BoxStream<'static, TaskReport> {
        super::follow::updates(&self.shared)
    }

    /// Returns how much there is of tasks here.
    ///
    /// # Errors
    ///
    /// [`TasksError::Unavailable`] and [`TasksError::Store`].
    pub async fn size(&self) -> Result<StoreSize, TasksError> {
        self.shared.size().await
    }

    /// Returns how long this node keeps tasks.
    #[must_use]
    pub fn retention(&self) -> Retention {
        self.shared.config.retention()
    }

    /// Lets go at once what need not be kept any longer, and says what went and what stays; with `in_mind` it only says what would.
    ///
    /// Tasks are kept in generations, and go with the whole of theirs: see [`crate::store`]. Only this node's disk is concerned.
    ///
    /// # Errors
    ///
    /// [`TasksError::Unavailable`] and [`TasksError::Store`]. What has begun is finished later.
    pub async fn prune(&self, retention: Retention, in_mind: bool) -> Result<Pruned, TasksError> {
        super::generations::prune(&self.shared, retention, in_mind).await
    }

    /// Returns what is known of tasks; none while the databases are not open.
    pub(crate) fn known(&self) -> Option<TaskStore> {
        self.shared.store_now()
    }

    /// Has the tasks of these batches kept by their generations, whether they have ended or not. Until this is called, those of all are.
    pub(crate) fn hold_batches(&self, batches: BTreeSet<String>) {
        *self.shared.batches() = Some(batches.clone());
        if let Some(store) = self.shared.store_now() {
            store.hold_batches(Some(batches));
        }
    }

    /// Returns how many tasks run on this node now.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.shared.load().running
    }

    /// Cuts off all that goes on, as a crash does.
    #[cfg(test)]
    pub(crate) fn cut_off(&self) {
        self.shared.stop.cancel();
    }

    /// Takes no further tasks, hands back what waits here, and waits until what runs has ended or been handed back, at most so long. It is
    /// for a node that is about to stop.
    pub async fn drain(&self, grace: Duration) {
        self.shared.drain(grace).await;
    }
}
