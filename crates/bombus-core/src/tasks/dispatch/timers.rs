use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::tasks::TaskId;

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The time to sync is over.
    Gate,
    /// The time for runs to end is over.
    Drain,
    /// Tasks that found no place are tried again.
    Line,
    /// Something about an own task.
    Owned(TaskId),
    /// Something about a task of another node.
    Watched(TaskId),
    /// Something about a run on this node.
    Run(TaskId),
}

/// When what is due: one time for each timer.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(Duration, Timer)>,
    times: BTreeMap<Timer, Duration>,
}

impl Timers {
    /// Sets a timer, or takes it away.
    pub(super) fn set(&mut self, timer: Timer, at: Option<Duration>) {
        let before = match at {
            Some(at) => {
                self.by_time.insert((at, timer.clone()));
                self.times.insert(timer.clone(), at)
            }
            None => self.times.remove(&timer),
        };
        if let Some(before) = before.filter(|before| Some(*before) != at) {
            self.by_time.remove(&(before, timer));
        }
    }

    /// Returns the next time at which something is due.
    pub(super) fn next(&self) -> Option<Duration> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes a timer that is due.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<Timer> {
        self.next().filter(|at| *at <= now)?;
        let (_, timer) = self.by_time.pop_first()?;
        self.times.remove(&timer);
        Some(timer)
    }
}
