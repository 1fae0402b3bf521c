//! What is told of tasks to those who ask and follow.

use bombus_core::tasks::report::TaskReport;
use bombus_core::tasks::{Epoch, TaskId, TaskKind, TaskStatus, WholeAnswer};

/// Which tasks to list. What is none leaves nothing out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only those that stand in one of these ways; none leaves nothing out.
    pub statuses: Vec<TaskStatus>,
    /// Only those of this node.
    pub mine: bool,
    /// Only those of this batch.
    pub batch: Option<String>,
    /// Only the parts of this task. Without it, parts are not listed.
    pub parent: Option<TaskId>,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// Most tasks on the page, 1 to 1,000.
    pub limit: usize,
}

impl TaskFilter {
    pub(super) fn has_status(&self, status: TaskStatus) -> bool {
        self.statuses.is_empty() || self.statuses.contains(&status)
    }
}

/// A page of a list, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskPage {
    /// The tasks.
    pub tasks: Vec<TaskReport>,
    /// Where the next page goes on; none on the last one.
    pub next: Option<String>,
}

/// What came of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResultReport {
    /// The task.
    pub id: TaskId,
    /// What was done.
    pub kind: TaskKind,
    /// The answer: of a parent, that of the part that sums up, or those of all parts with the joiner between. Of a ping, what was sent, as
    /// JSON. Empty where there is none (yet).
    pub response: String,
    /// Whether the answer, or a part of it, is sealed to others. It is left out then.
    pub sealed: bool,
    /// Whether the answer is whole: false while parts of it are missing, or where it failed.
    pub complete: bool,
    /// Whether its requester has accepted it. Until then another one may take its place.
    pub settled: bool,
    /// The model that answered.
    pub model: String,
    /// The peer that ran it; none for a parent.
    pub worker: Option<String>,
    /// The vector, for an embedding.
    pub embedding: Option<Vec<f64>>,
    /// Everything that came of a request as a whole; `response` and `embedding` have the first of it.
    pub answer: Option<Box<WholeAnswer>>,
    /// How long it took, in nanoseconds; of a parent, the sum of its parts.
    pub total_duration_ns: Option<u64>,
    /// Tokens of the prompt; of a parent, the sum of its parts.
    pub prompt_eval_count: Option<u64>,
    /// Tokens of the answer; of a parent, the sum of its parts.
    pub eval_count: Option<u64>,
    /// How long the answer's tokens took, in nanoseconds; of a parent, the sum of its parts.
    pub eval_duration_ns: Option<u64>,
    /// When it ended, in milliseconds since 1970.
    pub completed_at: Option<u64>,
    /// Why there is no answer, where it failed.
    pub error: Option<String>,
    /// Of a parent: its parts in order, the one that sums up at the end. Those that failed do not hide the others.
    pub parts: Vec<PartResult>,
}

/// What came of a part.
#[derive(Debug, Clone, PartialEq)]
pub struct PartResult {
    /// The part.
    pub id: TaskId,
    /// Its place; none for the one that sums up.
    pub index: Option<u32>,
    /// Where it stands.
    pub status: TaskStatus,
    /// Its answer, where there is one.
    pub response: Option<String>,
    /// Why there is none.
    pub error: Option<String>,
}

/// What happens to a task that is followed.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskNews {
    /// More of the answer. Of a parent, these are the pieces of its first unfinished part in order.
    Token {
        /// The text.
        text: String,
    },
    /// Another attempt begins, and what was told of the answer before does not count any more.
    Attempt {
        /// Which one, from 1.
        number: u32,
        /// Its grant.
        epoch: Epoch,
    },
    /// It stands otherwise than before.
    State(Box<TaskReport>),
    /// It has ended. Nothing follows.
    Done(Box<TaskReport>),
}
