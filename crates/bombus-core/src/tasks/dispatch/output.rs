use std::fmt;

use crate::identity::NodeId;
use crate::tasks::{Epoch, GrantedBy, TaskId, TaskStatus, Worker};

/// Names a run on this node, for as long as the process lives. A run may be carried on under a later grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Exchange entries with the peers that are reached, within a short limit; then [`Input::Synced`](super::Input::Synced).
    Sync,
    /// Say who could run a task now: [`Input::Ranked`](super::Input::Ranked).
    Rank {
        /// Which task.
        task: TaskId,
    },
    /// Write a task as it was submitted: PENDING, since nobody takes it at once. Where that fails, [`Input::Withdrawn`](super::Input::Withdrawn).
    Submit {
        /// Which task.
        task: TaskId,
    },
    /// Write CLAIMED with this epoch, durably: [`Input::Stored`](super::Input::Stored). Where nothing is written of the task yet, that is
    /// how it is submitted.
    Grant {
        /// Which task.
        task: TaskId,
        /// The epoch.
        epoch: Epoch,
        /// Who may run it.
        worker: Worker,
        /// By which right: of the requester, which is this node, or of this node as the worker.
        by: GrantedBy,
        /// The number of the attempt, from 1.
        attempt: u32,
    },
    /// Write PENDING: grants up to this epoch are over.
    Release {
        /// Which task.
        task: TaskId,
        /// The epoch.
        epoch: Epoch,
        /// What happened to the attempt, which is used up by it; `None` where none is, since none began or its worker stops.
        failure: Option<Failure>,
    },
    /// Write the end of an own task, `settled`.
    Settle {
        /// Which task.
        task: TaskId,
        /// COMPLETED, FAILED or CANCELLED.
        status: TaskStatus,
        /// The hash of the grant whose result is accepted, for COMPLETED.
        grant: Option<String>,
        /// The hash of the entry of that result.
        result: Option<String>,
        /// The last attempt, where that failed and is not yet written.
        failure: Option<Failure>,
        /// Why it failed, in one sentence.
        error: Option<String>,
    },

    /// At the requester: open a stream to the worker and offer it the grant, which is durable. An earlier stream of the same task is
    /// dropped.
    Offer {
        /// Which task.
        task: TaskId,
        /// The epoch.
        epoch: Epoch,
        /// To whom.
        worker: NodeId,
        /// The hash of the grant.
        grant: String,
        /// See [`Offered::resume`](super::Offered::resume).
        resume: bool,
    },
    /// At the requester: tell the worker that its renewal has come.
    Acknowledge {
        /// Which task.
        task: TaskId,
        /// The epoch.
        epoch: Epoch,
        /// Which renewal.
        beat: u32,
    },
    /// At the requester: tell the worker, where the stream stands, that its grant is over, and close the stream.
    Revoke {
        /// Which task.
        task: TaskId,
        /// The epoch.
        epoch: Epoch,
        /// The worker.
        worker: NodeId,
    },

    /// At the worker: tell the requester that the grant is accepted. The lease counts from now.
    Accept {
        /// Which task.
        task: TaskId,
        /// The epoch.
        epoch: Epoch,
        /// To whom.
        requester: NodeId,
        /// The run that has already begun and serves this grant from now on; the requester is told that too.
        run: Option<RunId>,
    },
    /// At the worker: tell the requester that the grant is not taken.
    Decline {
        /// Which task.
        task: TaskId,
        /// The epoch.
        epoch: Epoch,
        /// To whom.
        requester: NodeId,
        /// Why.
        reason: Decline,
    },
    /// At the worker: tell the requester, which offers a grant again, that its result stands in the store.
    Report {
        /// Which task.
        task: TaskId,
        /// The epoch.
        epoch: Epoch,
        /// To whom.
        requester: NodeId,
    },
    /// At the worker: tell the requester that a grant is handed back, for it to go elsewhere ([`Outcome::HandedBack`]).
    HandBack {
        /// Which task.
        task: TaskId,
        /// The epoch.
        epoch: Epoch,
        /// To whom.
        requester: NodeId,
    },
    /// At the worker: tell the requester that the lease is renewed. It counts from now once it is acknowledged.
    Renew {
        /// Which task.
        task: TaskId,
        /// The epoch.
        epoch: Epoch,
        /// To whom.
        requester: NodeId,
        /// The number of the renewal.
        beat: u32,
    },

    /// Begin a run, and tell so over the stream of the grant, where there is one. What it makes is kept until `Publish` or `Abort`.
    Run {
        /// Which task.
        task: TaskId,
        /// The run.
        run: RunId,
        /// Under which epoch it begins.
        epoch: Epoch,
        /// Under which grant it begins.
        grant: String,
    },
    /// End a run at once, and forget what it has made.
    Abort {
        /// Which task.
        task: TaskId,
        /// The run.
        run: RunId,
    },
    /// Write the result of a run, be it a failure, under this grant: [`Input::Published`](super::Input::Published).
    Publish {
        /// Which task.
        task: TaskId,
        /// The run.
        run: RunId,
        /// The grant's epoch.
        epoch: Epoch,
        /// The grant's hash.
        grant: String,
        /// How the run ended.
        outcome: Outcome,
    },

    /// Write PENDING as a worker, which ends the claim of this node with this epoch: it stops.
    GiveUp {
        /// Which task.
        task: TaskId,
        /// The claim's epoch.
        epoch: Epoch,
    },
    /// Ask every peer that is reached whether it sees the requester and whether it runs the task:
    /// [`Input::Answers`](super::Input::Answers), within a second or two.
    AskAround {
        /// Which task.
        task: TaskId,
        /// Its requester.
        requester: Option<NodeId>,
    },
    /// Nothing runs here any more, and what was handed back is written.
    Drained,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer.
    Completed,
    /// Without one.
    Failed {
        /// Why, for people.
        reason: String,
        /// Whether another try could succeed.
        retry: bool,
    },
    /// Its worker stops or no longer wants to; that is no failure of the task.
    HandedBack,
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which grant.
    pub epoch: Epoch,
    /// Who ran it.
    pub worker: Worker,
    /// Why it failed, for people.
    pub reason: String,
}

/// Why a grant is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decline {
    /// There is no room.
    Busy,
    /// The node is about to stop.
    Draining,
    /// It cannot run this task, or not for this requester.
    NotAble,
    /// It knows that this grant is over.
    Over,
    /// It does not run a grant that is offered again.
    Lost {
        /// Whether it may have begun: the worker was started anew since.
        began: bool,
    },
    /// No stream to it could be opened.
    Unreachable,
}

impl fmt::Display for Decline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "it has too much to do",
            Self::Draining => "it is about to stop",
            Self::NotAble => "it cannot run this task",
            Self::Over => "the grant is over",
            Self::Lost { began: true } => "it was started anew while it ran the task",
            Self::Lost { began: false } => "it never began the task",
            Self::Unreachable => "it is not reached",
        })
    }
}

/// What a node says to one that asks around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Whether it sees the requester, or is it.
    pub requester_seen: bool,
    /// Whether it runs the task, or is about to.
    pub running: bool,
}

/// How busy a node is with tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Runs that go on.
    pub running: u32,
    /// Tasks that wait for a slot.
    pub queued: u32,
    /// How many runs go on at a time.
    pub slots: u32,
}
