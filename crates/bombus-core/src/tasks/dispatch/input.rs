use std::time::Duration;

use super::{Candidate, Decline, Outcome, RunId, TaskFacts};
use crate::identity::NodeId;
use crate::liveness::PeerState;
use crate::tasks::{Epoch, TaskId};

/// What a [`Dispatcher`](super::Dispatcher) is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// A task was read at the start, is new, or its view has changed. Also told when what it depends on has ended.
    Task(Box<TaskFacts>),
    /// A task of this node is submitted, of which nothing is written yet; facts without grants and results.
    Submit(Box<TaskFacts>),
    /// A task that was submitted could not be written, and is in no store.
    Withdrawn {
        /// Which task.
        task: TaskId,
    },
    /// All tasks have been told that stood in the store at the start. What is granted to this node in them is lost.
    Loaded,
    /// Entries were exchanged with the peers that are reached, or the time for that is over. Answers
    /// [`Output::Sync`](super::Output::Sync), and comes once after the start without being asked for.
    Synced,
    /// The failure detector's verdict about a peer has changed. Peers never told of count as gone since the start.
    Peer {
        /// The peer.
        node: NodeId,
        /// Its state.
        state: PeerState,
    },
    /// Somebody offers something new, or has room again: tasks that found no place are tried now.
    Candidates,

    /// Answers [`Output::Rank`](super::Output::Rank): who could run the task now, this node included, the best first. Nobody who is
    /// gone, drains, lacks the model or is not designated. For tasks of others the order does not matter.
    Ranked {
        /// Which task.
        task: TaskId,
        /// Who could run it.
        candidates: Vec<Candidate>,
    },
    /// Answers [`Output::Grant`](super::Output::Grant): the grant is durable.
    Stored {
        /// Which task.
        task: TaskId,
        /// Its epoch.
        epoch: Epoch,
        /// The hash of its entry.
        grant: String,
    },
    /// Something that was to be written could not be.
    StoreFailed {
        /// Which task.
        task: TaskId,
        /// What.
        write: Write,
    },
    /// The result of a run cannot be written here, and soon trying again would not help: the disk is full. What is run for others goes back to
    /// them.
    Unwritable {
        /// Which task.
        task: TaskId,
        /// The run.
        run: RunId,
    },

    /// At the requester: the worker takes the grant, or goes on with it.
    Accepted {
        /// Which task.
        task: TaskId,
        /// Which grant.
        epoch: Epoch,
    },
    /// At the requester: the worker has begun to run it, where that was not so at once.
    Began {
        /// Which task.
        task: TaskId,
        /// Which grant.
        epoch: Epoch,
    },
    /// At the requester: the worker does not take the grant, or no stream to it could be opened ([`Decline::Unreachable`]).
    Declined {
        /// Which task.
        task: TaskId,
        /// Which grant.
        epoch: Epoch,
        /// Why.
        reason: Decline,
    },
    /// At the requester: the worker renews its lease.
    Renewed {
        /// Which task.
        task: TaskId,
        /// Which grant.
        epoch: Epoch,
        /// The number of the renewal, which the acknowledgement repeats.
        beat: u32,
    },
    /// At the requester: a stream over which the offer was sent has ended without a last word.
    Broken {
        /// Which task.
        task: TaskId,
        /// Which grant.
        epoch: Epoch,
    },
    /// At the requester: the run has ended, says the worker. An answer counts once its result is in the own store
    /// ([`TaskFacts::result`]); it should be fetched now.
    Finished {
        /// Which task.
        task: TaskId,
        /// Which grant.
        epoch: Epoch,
        /// How.
        outcome: Outcome,
    },

    /// At the worker: the requester, whose right that is proven, offers a grant.
    Offered(Box<Offered>),
    /// At the worker: the requester has received a renewal.
    Acknowledged {
        /// Which task.
        task: TaskId,
        /// Which grant.
        epoch: Epoch,
        /// Which renewal.
        beat: u32,
    },
    /// At the worker: the requester takes a grant back. (The mere end of the stream is no such word.)
    Revoked {
        /// Which task.
        task: TaskId,
        /// Which grant.
        epoch: Epoch,
    },
    /// At the worker: a run has ended. Told once for each [`Output::Run`](super::Output::Run), also after
    /// [`Output::Abort`](super::Output::Abort), when it really has stopped; the slot is free from then on.
    RunEnded {
        /// Which task.
        task: TaskId,
        /// Which run.
        run: RunId,
        /// How; of no account after an abort.
        outcome: Outcome,
    },
    /// Answers [`Output::Publish`](super::Output::Publish): the result is durable. The driver tells the requester over the stream.
    Published {
        /// Which task.
        task: TaskId,
        /// Which run.
        run: RunId,
    },

    /// Answers [`Output::AskAround`](super::Output::AskAround).
    Answers {
        /// Which task.
        task: TaskId,
        /// Whether any peer sees the requester.
        requester_seen: bool,
        /// Whether any peer runs the task or is about to.
        running: bool,
        /// Peers that count as alive and gave no answer.
        unanswered: Vec<NodeId>,
    },
    /// The requester's user no longer wants an own task, whose facts have been told. For tasks of others a CANCELLED entry is written, which comes back as
    /// [`TaskFacts::cancelling`].
    Cancel {
        /// Which task.
        task: TaskId,
    },
    /// The node is about to stop: nothing new begins, what waits is handed back, what runs may go on for this time.
    /// [`Output::Drained`](super::Output::Drained) says when nothing runs any more.
    Drain {
        /// How long runs may take to end.
        grace: Duration,
    },
    /// The time of [`Dispatcher::deadline`](super::Dispatcher::deadline) has come.
    Tick,
}

/// A grant that is offered to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// Which task.
    pub task: TaskId,
    /// Its requester, who offers it.
    pub requester: NodeId,
    /// The grant's epoch.
    pub epoch: Epoch,
    /// The grant's hash.
    pub grant: String,
    /// Whether the grant may have been offered before, so that it is not to begin anew where it is not known.
    pub resume: bool,
    /// Whether this node can run the task: shares with the requester, has the model and the prompt.
    pub able: bool,
    /// From 1 to 10.
    pub priority: u8,
    /// How long a run may take.
    pub timeout: Option<Duration>,
}

/// What was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// The grant of this epoch. Whether it was written is not known; the epoch is not used again.
    Grant(Epoch),
    /// The release of this epoch.
    Release(Epoch),
    /// The end of the task.
    Settle,
    /// The result of this run.
    Result(RunId),
}
