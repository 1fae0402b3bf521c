//! What changes, as a stream.

use std::sync::Arc;

use bombus_core::tasks::TaskView;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

/// What a reader of the changes gets.
#[derive(Debug, Clone)]
pub enum TaskUpdate {
    /// A task is new, or what is known of it has changed. The view lacks what may be large: prompt, messages, instructions, options, the answer
    /// and what is sealed; [`super::TaskStore::view`] has those.
    Changed(Arc<TaskView>),
    /// The reader was too slow, and this many changes are lost; [`super::TaskStore::list`] shows what is now.
    Lagged(u64),
}

/// One reader of the changes of tasks.
#[derive(Debug)]
pub struct TaskUpdates {
    receiver: broadcast::Receiver<Arc<TaskView>>,
    ended: CancellationToken,
}

impl TaskUpdates {
    pub(super) fn new(receiver: broadcast::Receiver<Arc<TaskView>>, ended: CancellationToken) -> Self {
        Self { receiver, ended }
    }

    /// Waits for the next change; `None` once the store is gone, or was let go. Safe to cancel.
    pub async fn next(&mut self) -> Option<TaskUpdate> {
        match self.ended.run_until_cancelled(self.receiver.recv()).await? {
            Ok(view) => Some(TaskUpdate::Changed(view)),
            Err(RecvError::Lagged(missed)) => Some(TaskUpdate::Lagged(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}
