//! How often tasks were run on this node.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bombus_core::tasks::dispatch::Outcome;

use crate::counts::{count, read};

/// Counts what this node runs as a worker; clones count together, so that a node that moves to another swarm counts on.
#[derive(Debug, Clone, Default)]
pub struct TaskRuns(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    begun: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    stopped: AtomicU64,
}

/// How often tasks were run. What was begun and has not ended still runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskRunCounts {
    /// Runs that have begun: the model was asked, or is about to be.
    pub begun: u64,
    /// Those that have made an answer.
    pub completed: u64,
    /// Those that have failed.
    pub failed: u64,
    /// Those that were stopped or handed back: they failed in nothing.
    pub stopped: u64,
}

impl TaskRuns {
    /// Returns the counts now.
    #[must_use]
    pub fn now(&self) -> TaskRunCounts {
        let Counters { begun, completed, failed, stopped } = &*self.0;
        TaskRunCounts { begun: read(begun), completed: read(completed), failed: read(failed), stopped: read(stopped) }
    }

    /// Counts a run that begins.
    pub(super) fn begin(&self) {
        count(&self.0.begun);
    }

    /// Counts how a run ended.
    pub(super) fn end(&self, outcome: &Outcome) {
        count(match outcome {
            Outcome::Completed => &self.0.completed,
            Outcome::Failed { .. } => &self.0.failed,
            Outcome::HandedBack => &self.0.stopped,
        });
    }
}
