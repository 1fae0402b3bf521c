use std::collections::BTreeSet;
use std::time::Duration;

use super::line::Urgency;
use super::{AnswerFacts, Failure, TaskFacts};
use crate::identity::NodeId;
use crate::tasks::lease::GrantedLease;
use crate::tasks::{Epoch, TaskStatus, Worker};

/// A task of this node.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) facts: TaskFacts,
    pub(super) came: Duration,
    pub(super) urgency: Urgency,
    pub(super) phase: Phase,
    /// Attempts that failed.
    pub(super) attempts: u32,
    /// Grants up to this one are no longer followed.
    pub(super) over: Epoch,
    /// The highest epoch that this run of the node has used, be it that nobody can see it.
    pub(super) used: Epoch,
    /// Who would not take it, in this round.
    pub(super) avoided: BTreeSet<NodeId>,
    /// With whom it failed: asked last.
    pub(super) failed_with: BTreeSet<NodeId>,
    /// How often in a row nobody would take it.
    pub(super) fruitless: u32,
}

/// What is being done about an own task.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// It may not be placed now.
    Held,
    /// It waits for bids.
    Bidding { until: Duration },
    /// It wants a place.
    InLine,
    /// It is to be placed again later.
    Resting { until: Duration },
    /// Who could take it is being found out.
    Ranking,
    /// Its grant is being written.
    Granting { epoch: Epoch, worker: Worker },
    /// It is offered. A grant that may have been offered before is given up at some time.
    Offering { live: Live, until: Duration, give_up: Option<Duration> },
    /// Whether it runs is not known, and its worker does not answer.
    Apart { live: Live, again: Duration, give_up: Duration },
    /// Its worker has it.
    Attached { live: Live, lease: GrantedLease },
    /// This node runs it.
    Local { live: Live },
    /// A worker that knows no grants has it.
    Foreign { live: Live, until: Duration },
    /// It is said to be answered; the result has not come yet.
    Collecting { live: Live, until: Duration },
    /// The end of a grant is being written.
    Releasing { epoch: Epoch, failure: Option<Failure>, rest: Duration, again: Duration },
    /// The end of the task is being written.
    Settling { end: End, again: Duration },
}

/// A grant that is followed.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) epoch: Epoch,
    pub(super) hash: String,
    pub(super) worker: Worker,
    pub(super) began: Began,
}

/// Whether a run has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Began {
    No,
    /// The requester does not know: it has been away.
    Maybe,
    Yes,
}

/// How a task ends.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) status: TaskStatus,
    pub(super) answer: Option<AnswerFacts>,
    pub(super) failure: Option<Failure>,
    pub(super) error: Option<String>,
}

/// The grant that a phase follows, borrowed as the phase is.
macro_rules! live_of {
    ($phase:expr) => {
        match $phase {
            Phase::Offering { live, .. }
            | Phase::Apart { live, .. }
            | Phase::Attached { live, .. }
            | Phase::Local { live }
            | Phase::Foreign { live, .. }
            | Phase::Collecting { live, .. } => Some(live),
            _ => None,
        }
    };
}

impl Phase {
    /// Returns the grant that is followed.
    pub(super) fn live(&self) -> Option<&Live> {
        live_of!(self)
    }

    pub(super) fn live_mut(&mut self) -> Option<&mut Live> {
        live_of!(self)
    }

    /// Returns the epoch that it is about.
    pub(super) fn epoch(&self) -> Epoch {
        match self {
            Self::Granting { epoch, .. } | Self::Releasing { epoch, .. } => *epoch,
            _ => self.live().map_or(Epoch::NONE, |live| live.epoch),
        }
    }

    /// Returns the node whose room it takes.
    pub(super) fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Granting { worker, .. } => worker.node(),
            Self::Collecting { .. } => None,
            _ => self.live().and_then(|live| live.worker.node()),
        }
    }

    /// Returns whether it takes a place among those that are being placed.
    pub(super) fn is_placing(&self) -> bool {
        matches!(self, Self::Ranking | Self::Granting { .. } | Self::Offering { give_up: None, .. })
    }

    /// Returns when something is to be done about it at the latest.
    pub(super) fn due(&self) -> Option<Duration> {
        match self {
            Self::Bidding { until } | Self::Resting { until } => Some(*until),
            Self::Offering { until, .. } | Self::Foreign { until, .. } | Self::Collecting { until, .. } => Some(*until),
            Self::Apart { again, give_up, .. } => Some((*again).min(*give_up)),
            Self::Attached { lease, .. } => Some(lease.until()),
            Self::Releasing { again, .. } | Self::Settling { again, .. } => Some(*again),
            Self::Held | Self::InLine | Self::Ranking | Self::Granting { .. } | Self::Local { .. } => None,
        }
    }
}

impl Owned {
    /// Returns after how many failed attempts it fails.
    pub(super) fn attempts_max(&self, default: u32) -> u32 {
        self.facts.max_attempts.unwrap_or(default).max(1)
    }
}
