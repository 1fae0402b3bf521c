use std::collections::VecDeque;
use std::time::Duration;

use super::line::Urgency;
use super::{Outcome, RunId};
use crate::identity::NodeId;
use crate::tasks::Epoch;
use crate::tasks::lease::{HeldLease, LeaseConfig};

/// So many renewals may be on their way.
const BEATS_MAX: usize = 16;

/// A task that this node runs, is to run, or has run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: RunId,
    pub(super) epoch: Epoch,
    pub(super) grant: String,
    pub(super) right: Right,
    pub(super) stage: Stage,
    pub(super) limit: Duration,
    pub(super) urgency: Urgency,
}

/// By which right a task runs here.
#[derive(Debug)]
pub(super) enum Right {
    /// Its requester offered it.
    Lease(Box<Leased>),
    /// It belongs to this node.
    Own,
    /// This node claimed it.
    Claim,
}

#[derive(Debug)]
pub(super) struct Leased {
    pub(super) requester: NodeId,
    pub(super) lease: HeldLease,
    beat: u32,
    /// Renewals that were sent, oldest first, and when.
    sent: VecDeque<(u32, Duration)>,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for a slot.
    Queued,
    /// It goes on, until this time at the latest.
    Running { until: Duration },
    /// It has ended, and may not yet be published.
    Ended(Outcome),
    /// Its result is being written under the grant with this hash.
    Publishing { outcome: Outcome, grant: String, again: Option<Duration> },
    /// Its result is written, which the facts do not yet say.
    Published(Outcome),
}

impl Leased {
    pub(super) fn accepted(requester: NodeId, now: Duration, config: &LeaseConfig) -> Self {
        Self { requester, lease: HeldLease::accepted(now, config), beat: 0, sent: VecDeque::new() }
    }

    /// Notes that a renewal is sent. Returns its number.
    pub(super) fn renew(&mut self, now: Duration, config: &LeaseConfig) -> u32 {
        self.beat = self.beat.wrapping_add(1);
        self.sent.push_back((self.beat, now));
        if self.sent.len() > BEATS_MAX {
            self.sent.pop_front();
        }
        self.lease.renewing(now, config);
        self.beat
    }

    /// Notes that the requester has got a renewal, so that the grant was live then. That lengthens the lease, and begins it anew where it
    /// had run out.
    pub(super) fn acknowledged(&mut self, beat: u32, now: Duration, config: &LeaseConfig) {
        let Some(index) = self.sent.iter().position(|(sent, _)| *sent == beat) else { return };
        let (_, at) = self.sent[index];
        self.sent.drain(..=index);
        if self.lease.holds(now) {
            self.lease.confirmed(now, at, config);
        } else {
            self.lease = HeldLease::accepted(at, config);
        }
    }
}

impl Run {
    /// Returns whether something may be published now.
    pub(super) fn may_publish(&self, now: Duration, synced: bool) -> bool {
        match &self.right {
            Right::Lease(leased) => leased.lease.holds(now),
            Right::Own => true,
            Right::Claim => synced,
        }
    }

    /// Returns whether it goes on or is about to, so that nobody else should begin.
    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self.stage, Stage::Published(_))
    }

    /// Returns when something is to be done about it at the latest.
    pub(super) fn due(&self) -> Option<Duration> {
        let stage = match &self.stage {
            Stage::Running { until } => Some(*until),
            Stage::Publishing { again, .. } => *again,
            Stage::Queued | Stage::Ended(_) | Stage::Published(_) => None,
        };
        let renewal = match &self.right {
            Right::Lease(leased) if self.is_under_way() => Some(leased.lease.renew_at()),
            _ => None,
        };
        stage.into_iter().chain(renewal).min()
    }
}
