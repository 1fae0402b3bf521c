//! Settings of tasks.

use std::time::Duration;

use bombus_core::tasks::dispatch::DispatchConfig;
use bombus_core::tasks::lease::{LeaseConfig, LeaseConfigError};
use serde::{Deserialize, Serialize};

use super::sealed::SealChoice;
use crate::store::Retention;

/// Runs at a time where neither the configuration nor the backends say.
pub(super) const SLOTS_DEFAULT: u32 = 8;
/// Most runs at a time.
const SLOTS_MAX: u32 = 1_024;
/// So many tasks for each slot are given to a worker that has none free.
pub(super) const QUEUE_PER_SLOT: u32 = 4;
/// Most seconds of `timeout_s`: a year.
const TIMEOUT_S_MAX: u64 = 365 * 24 * 3_600;
/// Tasks of others that wait here at least before more are refused: more than requesters that know each other would give, so that a refusal,
/// after which they wait, is rare.
const QUEUE_MIN: u32 = 128;

/// Durable tasks: the section `[tasks]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TasksConfig {
    /// Whether this node keeps tasks at all. Without the databases it keeps none either.
    pub enabled: bool,
    /// Whether it runs tasks, its own and those of others. A node that does not still submits them.
    pub work: bool,
    /// Most runs at a time. Without it as many as the backends have slots, and 8 where they do not say.
    pub max_concurrent: Option<u32>,
    /// So many attempts end in failure before a task does that names no number of its own.
    pub max_attempts: u32,
    /// How long a run may take whose task names no limit, in seconds from 1 to a year.
    pub timeout_s: u64,
    /// How long a grant holds unless it is renewed, in milliseconds.
    pub lease_ms: u64,
    /// How often a worker renews it, in milliseconds; at most half of `lease_ms`.
    pub renew_ms: u64,
    /// How long a requester has to be away before workers act in its place, in milliseconds; longer than `lease_ms` by a tenth.
    pub grace_ms: u64,
    /// How much longer each next worker waits with that, in milliseconds.
    pub rank_step_ms: u64,
    /// How long a node that starts, wakes or reconnects waits for what others know before it acts, in milliseconds.
    pub settle_ms: u64,
    /// How long a task waits for claims of workers that know no grants, where `foreign_workers` lets them have it, in milliseconds.
    pub bid_ms: u64,
    /// Whether workers of other programs may run this node's tasks.
    pub foreign_workers: bool,
    /// Which tasks of this node are sealed: `ask` for those that are to be, `always`, or `never`.
    pub seal: SealChoice,
    /// The pause after the first failed attempt, in milliseconds. Each further one doubles it, up to 30 s.
    pub backoff_ms: u64,
    /// How long tasks are kept after they have ended, in seconds, at least 1. They go in generations, so that some stay for a quarter longer.
    pub retain_s: u64,
    /// How many tasks are kept, at least 1; of more, the oldest that have ended go before.
    pub keep: usize,
}

impl Default for TasksConfig {
    fn default() -> Self {
        let lease = LeaseConfig::default();
        Self {
            enabled: true,
            work: true,
            max_concurrent: None,
            max_attempts: lease.max_attempts,
            timeout_s: 600,
            lease_ms: lease.lease_ms,
            renew_ms: lease.renew_ms,
            grace_ms: lease.grace_ms,
            rank_step_ms: lease.rank_step_ms,
            settle_ms: lease.settle_ms,
            bid_ms: lease.bid_ms,
            foreign_workers: false,
            seal: SealChoice::Ask,
            backoff_ms: lease.backoff_ms,
            retain_s: 7 * 24 * 3_600,
            keep: 50_000,
        }
    }
}

/// Why settings of tasks cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TasksConfigError {
    /// The times around a lease do not fit together.
    #[error(transparent)]
    Lease(#[from] LeaseConfigError),
    /// No run would have any time, or more than can be counted.
    #[error("timeout_s = {0} has to be from 1 to {TIMEOUT_S_MAX}")]
    Timeout(u64),
    /// Nothing that tasks bring would be kept.
    #[error("{0} = 0 has to be at least 1: a task, and what came of it, would be gone as soon as it has ended")]
    Retention(&'static str),
}

impl TasksConfig {
    /// Checks that the settings fit together.
    ///
    /// # Errors
    ///
    /// Says which do not.
    pub fn check(&self) -> Result<(), TasksConfigError> {
        self.lease().check()?;
        if !(1..=TIMEOUT_S_MAX).contains(&self.timeout_s) {
            return Err(TasksConfigError::Timeout(self.timeout_s));
        }
        if self.retain_s == 0 {
            return Err(TasksConfigError::Retention("retain_s"));
        }
        if self.keep == 0 {
            return Err(TasksConfigError::Retention("keep"));
        }
        Ok(())
    }

    /// Returns how many tasks run at a time, where the backends answer so many requests; 0 where they do not say.
    #[must_use]
    pub fn slots(&self, backend_slots: u32) -> u32 {
        let of_backends = if backend_slots == 0 { SLOTS_DEFAULT } else { backend_slots };
        if self.work { self.max_concurrent.unwrap_or(of_backends).clamp(1, SLOTS_MAX) } else { 0 }
    }

    pub(super) fn retention(&self) -> Retention {
        Retention { retain: Duration::from_secs(self.retain_s), keep: self.keep }
    }

    pub(super) fn lease(&self) -> LeaseConfig {
        LeaseConfig {
            lease_ms: self.lease_ms,
            renew_ms: self.renew_ms,
            grace_ms: self.grace_ms,
            rank_step_ms: self.rank_step_ms,
            settle_ms: self.settle_ms,
            bid_ms: self.bid_ms,
            max_attempts: self.max_attempts,
            backoff_ms: self.backoff_ms,
            ..LeaseConfig::default()
        }
    }

    pub(super) fn dispatch(&self, backend_slots: u32) -> DispatchConfig {
        let slots = self.slots(backend_slots);
        DispatchConfig {
            lease: self.lease(),
            slots,
            queue: slots.saturating_mul(2 * QUEUE_PER_SLOT).max(QUEUE_MIN),
            run_limit: Duration::from_secs(self.timeout_s.max(1)),
            foreign_limit: Duration::from_secs(self.timeout_s.max(1)),
            foreign_workers: self.foreign_workers,
            ..DispatchConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_counts_then_what_the_backends_have() {
        let of = |max_concurrent, backend_slots| {
            TasksConfig { max_concurrent, ..TasksConfig::default() }.slots(backend_slots)
        };
        assert_eq!((of(None, 0), of(None, 3), of(Some(9), 3), of(Some(0), 3)), (SLOTS_DEFAULT, 3, 9, 1));
        assert_eq!(TasksConfig { work: false, ..TasksConfig::default() }.slots(3), 0);
    }

    #[test]
    fn settings_that_do_not_fit_together_are_told() {
        TasksConfig::default().check().unwrap();
        let late = TasksConfig { renew_ms: 14_000, ..TasksConfig::default() };
        assert!(late.check().unwrap_err().to_string().contains("renew_ms"));
        for timeout_s in [0, u64::MAX] {
            let error = TasksConfig { timeout_s, ..TasksConfig::default() }.check().unwrap_err();
            assert_eq!(error, TasksConfigError::Timeout(timeout_s));
        }
        let nothing = TasksConfig { retain_s: 0, ..TasksConfig::default() };
        assert!(nothing.check().unwrap_err().to_string().contains("retain_s = 0"));
        let nothing = TasksConfig { keep: 0, ..TasksConfig::default() };
        assert!(nothing.check().unwrap_err().to_string().contains("keep = 0"));
        let read = serde_json::from_str::<TasksConfig>(r#"{ "lease": 3 }"#);
        assert!(read.unwrap_err().to_string().contains("lease"));
    }
}
