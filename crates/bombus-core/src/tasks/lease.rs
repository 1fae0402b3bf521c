//! How long a grant holds.
//!
//! A lease is a duration on each side's own clock, which counts the time that the machine sleeps. The clocks are never compared. The
//! holder counts from the moment at which it *sent* its acceptance or a renewal that was confirmed; the grantor from the moment at
//! which it *received* that, and a tenth longer. So the holder is always the first to stop.
//!
//! Every `now` is a time since any fixed moment, and never goes back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long grants, leases and the waits around them last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseConfig {
    /// How long a grant holds unless it is renewed, in milliseconds.
    pub lease_ms: u64,
    /// How often a holder renews it, in milliseconds.
    pub renew_ms: u64,
    /// How long a requester or a claimant has to be away before others act in its place, in milliseconds.
    pub grace_ms: u64,
    /// How much longer each next worker in the order of rank waits with that, in milliseconds.
    pub rank_step_ms: u64,
    /// How long a node that starts, wakes or reconnects waits for what others know before it acts, in milliseconds.
    pub settle_ms: u64,
    /// How long a task waits for claims of workers that know no grants, where such are wanted, in milliseconds.
    pub bid_ms: u64,
    /// So many attempts end in failure before the task does.
    pub max_attempts: u32,
    /// The pause after the first failed attempt, in milliseconds. Each further one doubles it.
    pub backoff_ms: u64,
    /// The longest such pause, in milliseconds.
    pub backoff_ms_max: u64,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            lease_ms: 15_000,
            renew_ms: 5_000,
            grace_ms: 30_000,
            rank_step_ms: 1_000,
            settle_ms: 2_000,
            bid_ms: 2_000,
            max_attempts: 3,
            backoff_ms: 500,
            backoff_ms_max: 30_000,
        }
    }
}

/// Why a [`LeaseConfig`] cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaseConfigError {
    /// Renewals come too late.
    #[error("renew_ms must be above 0 and at most half of lease_ms, so that one renewal may be lost")]
    Renew,
    /// Others would act before the lease of whoever is away has ended.
    #[error(
        "grace_ms must be longer than lease_ms by a tenth of it, so that nobody takes over a lease that still holds"
    )]
    Grace,
    /// No attempt is allowed.
    #[error("max_attempts must be at least 1")]
    Attempts,
}

impl LeaseConfig {
    /// Checks that the times fit together.
    ///
    /// # Errors
    ///
    /// Says which do not.
    pub fn check(&self) -> Result<(), LeaseConfigError> {
        if self.renew_ms == 0 || self.renew_ms > self.lease_ms / 2 {
            return Err(LeaseConfigError::Renew);
        }
        if Duration::from_millis(self.grace_ms) < self.granted() {
            return Err(LeaseConfigError::Grace);
        }
        if self.max_attempts == 0 {
            return Err(LeaseConfigError::Attempts);
        }
        Ok(())
    }

    /// Returns how long the holder counts on a lease.
    #[must_use]
    pub fn held(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// Returns how long the grantor counts with a lease: a tenth longer than the holder.
    #[must_use]
    pub fn granted(&self) -> Duration {
        Duration::from_millis(self.lease_ms.saturating_add(self.lease_ms / 10))
    }

    /// Returns how long a worker waits before it acts in the place of one that is away, by its own rank from 0.
    #[must_use]
    pub fn grace(&self, rank: u32) -> Duration {
        Duration::from_millis(self.grace_ms).saturating_add(self.rank_step(rank))
    }

    /// Returns how long a worker waits before it claims a task whose requester gives no grants, by its own rank from 0.
    #[must_use]
    pub fn rank_step(&self, rank: u32) -> Duration {
        Duration::from_millis(self.rank_step_ms.saturating_mul(rank.into()))
    }

    /// Returns the pause before the next attempt, after so many that failed: none after none.
    #[must_use]
    pub fn backoff(&self, failed: u32) -> Duration {
        let Some(doublings) = failed.checked_sub(1) else { return Duration::ZERO };
        let pause = self.backoff_ms.saturating_mul(1u64.checked_shl(doublings).unwrap_or(u64::MAX));
        Duration::from_millis(pause.min(self.backoff_ms_max))
    }
}

/// A lease as its holder counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLease {
    until: Duration,
    renew_at: Duration,
}

impl HeldLease {
    /// Begins with the sending of the acceptance.
    #[must_use]
    pub fn accepted(sent: Duration, config: &LeaseConfig) -> Self {
        Self { until: sent + config.held(), renew_at: sent + Duration::from_millis(config.renew_ms) }
    }

    /// Notes that a renewal is being sent; it lengthens nothing until it is confirmed.
    pub fn renewing(&mut self, now: Duration, config: &LeaseConfig) {
        self.renew_at = now + Duration::from_millis(config.renew_ms);
    }

    /// Notes that the grantor has got a renewal that was sent at that time. A lease that has ended stays ended.
    pub fn confirmed(&mut self, now: Duration, sent: Duration, config: &LeaseConfig) {
        if self.holds(now) {
            self.until = self.until.max(sent + config.held());
        }
    }

    /// Returns whether a result may be published.
    #[must_use]
    pub fn holds(&self, now: Duration) -> bool {
        now < self.until
    }

    /// Returns when it ends.
    #[must_use]
    pub fn until(&self) -> Duration {
        self.until
    }

    /// Returns when the next renewal is due.
    #[must_use]
    pub fn renew_at(&self) -> Duration {
        self.renew_at
    }
}

/// A lease as its grantor counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantedLease {
    until: Duration,
}

impl GrantedLease {
    /// Begins with the receipt of the acceptance.
    #[must_use]
    pub fn accepted(received: Duration, config: &LeaseConfig) -> Self {
        Self { until: received + config.granted() }
    }

    /// Notes a renewal. Returns whether it counts: a lease that has run out is not renewed.
    #[must_use]
    pub fn renewed(&mut self, received: Duration, config: &LeaseConfig) -> bool {
        let runs = !self.ran_out(received);
        if runs {
            self.until = self.until.max(received + config.granted());
        }
        runs
    }

    /// Returns whether it has run out, so that the attempt may be given to another.
    #[must_use]
    pub fn ran_out(&self, now: Duration) -> bool {
        now >= self.until
    }

    /// Returns when it runs out.
    #[must_use]
    pub fn until(&self) -> Duration {
        self.until
    }
}

#[cfg(test)]
mod tests;
