use std::sync::Arc;

use crate::identity::NodeId;
use crate::tasks::{AttemptFailure, Epoch, GrantedBy, ResultDocument, TaskDocument, TaskStatus};

/// Where an entry stands in the total order of a series of databases: by generation, then by Lamport time, then by its writer's key, then by
/// its hash. Greater is newer. Orders of two series say nothing about each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order {
    /// Which database of the series it stands in, from 1.
    pub generation: u64,
    /// The Lamport time.
    pub time: u64,
    /// The public key that signed the entry.
    pub writer: [u8; 33],
    /// The digest of the entry's block.
    pub entry: [u8; 32],
}

/// A document with what is known of the entry that it stands in.
#[derive(Debug, Clone, PartialEq)]
pub struct Written<T> {
    /// The hash of the entry, as text.
    pub hash: String,
    /// Where it stands in the order.
    pub order: Order,
    /// The id of the `OrbitDB` identity that wrote it, which the database has checked.
    pub writer: String,
    /// The document.
    pub value: Arc<T>,
}

/// What all that was written about a task comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskView {
    /// The task as it was submitted: the requester's first document, without a word on where it stands.
    pub task: Arc<TaskDocument>,
    /// Where the entry stands with which it was submitted.
    pub origin: Order,
    /// To whom it belongs.
    pub requester: Requester,
    /// Where it stands.
    pub status: TaskStatus,
    /// Whether the requester has decided. Nothing changes any more then; before, a final status may be taken back.
    pub settled: bool,
    /// Whether somebody other than the requester wants it cancelled, and the requester has not decided yet. Workers stop.
    pub cancelling: bool,
    /// The grant that is live; once it is settled, the one whose result was accepted.
    pub grant: Option<Grant>,
    /// All grants that count, those that are over included, lowest epoch first.
    pub grants: Vec<Grant>,
    /// The highest epoch that was used. The next grant has [`Epoch::next`] of it.
    pub highest_epoch: Epoch,
    /// Grants up to this one are over.
    pub released: Epoch,
    /// How attempts ended without a result, lowest epoch first.
    pub failures: Vec<AttemptFailure>,
    /// Claims of workers that know no grants, and to whom none was given since, oldest first.
    pub bids: Vec<Bid>,
    /// The result that counts.
    pub result: Option<Arc<ResultDocument>>,
    /// The hash of the entry of that result.
    pub result_hash: Option<String>,
    /// All results that fit their grants, whether they count now or not, highest epoch first. A requester that comes back may accept
    /// any of them.
    pub results: Vec<ValidResult>,
    /// When it ended, by the clock of whoever wrote that, in milliseconds since 1970.
    pub completed_at: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
    /// What does not count, and why; task documents first, oldest first.
    pub refused: Vec<Refused>,
}

impl TaskView {
    /// Returns whether nothing more is to be done: it is settled, or belongs to a peer that settles nothing and has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.settled || (!self.requester.proven && self.status.is_final())
    }

    /// Returns whether a worker has the right to run it now: the live grant is its own and nothing ended it.
    #[must_use]
    pub fn is_held_by(&self, node: &NodeId, grant: &str) -> bool {
        let held = |live: &Grant| live.hash == grant && live.worker.node() == Some(node) && live.failed.is_none();
        !self.settled && !self.cancelling && self.grant.as_ref().is_some_and(held)
    }

    /// Returns how many attempts are used up.
    #[must_use]
    pub fn attempts_failed(&self) -> u32 {
        u32::try_from(self.failures.len()).unwrap_or(u32::MAX)
    }
}

/// To whom a task belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requester {
    /// Its node, where it names one by an Ed25519 peer id. Only with a proof is that sure.
    pub peer: Option<NodeId>,
    /// Its `OrbitDB` identity.
    pub identity: String,
    /// Whether its node has signed for that identity. Without a proof it is a peer that knows no grants.
    pub proven: bool,
}

/// Who may run an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Worker {
    /// A node, known by its key: what it writes carries a proof.
    Node(NodeId),
    /// A peer that knows no grants: what it writes counts by its identity.
    Foreign {
        /// The peer id that it claims to have.
        peer: String,
        /// Its `OrbitDB` identity.
        identity: String,
    },
}

impl Worker {
    /// Returns the node, where it is one of Bombus.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Node(node) => Some(node),
            Self::Foreign { .. } => None,
        }
    }

    /// Returns whether it is known by an `OrbitDB` identity.
    pub(super) fn is_identity(&self, writer: &str) -> bool {
        matches!(self, Self::Foreign { identity, .. } if identity == writer)
    }

    /// Returns the peer id.
    #[must_use]
    pub fn peer(&self) -> &str {
        match self {
            Self::Node(node) => node.as_str(),
            Self::Foreign { peer, .. } => peer,
        }
    }
}

/// A right to run one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The hash of its entry, which a result names.
    pub hash: String,
    /// Which grant of the task it is.
    pub epoch: Epoch,
    /// Who may run it.
    pub worker: Worker,
    /// Who gave it.
    pub by: GrantedBy,
    /// Which attempt it is for, from 1.
    pub attempt: u32,
    /// The `OrbitDB` identity that wrote it.
    pub writer: String,
    /// When it was given, by the writer's clock, in milliseconds since 1970.
    pub claimed_at: Option<u64>,
    /// Whether its worker has begun.
    pub running: bool,
    /// Why its worker has no result, where it says so. The attempt is over then.
    pub failed: Option<String>,
}

/// A claim of a worker that knows no grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bid {
    /// The hash of its entry.
    pub hash: String,
    /// The `OrbitDB` identity that wrote it. A grant that honours the bid names it as `workerIdentity`.
    pub writer: String,
    /// The peer id that the worker claims to have.
    pub worker: String,
    /// When it was written, by the writer's clock, in milliseconds since 1970.
    pub claimed_at: Option<u64>,
    /// Whether the worker says that it has begun: such workers wait for nobody.
    pub running: bool,
}

/// A result that fits its grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidResult {
    /// The hash of its entry.
    pub hash: String,
    /// The hash of the grant.
    pub grant: String,
    /// The epoch of the grant.
    pub epoch: Epoch,
    /// Why the attempt failed; none where there is an answer.
    pub error: Option<String>,
}

/// An entry that does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The hash of the entry.
    pub hash: String,
    /// Why.
    pub refusal: Refusal,
}

/// Why an entry does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The document is about another task than its key says.
    #[error("the document is about another task")]
    OtherTask,
    /// Only the requester may write this.
    #[error("only the requester may write this")]
    NotRequester,
    /// A proof is missing or does not hold.
    #[error("the proof of who wrote it is missing or false")]
    Proof,
    /// A grant names no worker that could be known again.
    #[error("it names no worker")]
    NoWorker,
    /// The epoch of a grant is 0, or leaves some out.
    #[error("its epoch does not follow those before")]
    Epoch,
    /// The task may only be run by another node.
    #[error("the task is for another node")]
    NotDesignated,
    /// A result names a grant that is not there, or none.
    #[error("it names no grant that is known")]
    NoGrant,
    /// A result is not by the worker of its grant.
    #[error("it is not by the worker of its grant")]
    OtherWorker,
    /// A newer grant is live, or the one that it belongs to is over.
    #[error("its grant is over")]
    Superseded,
    /// The requester has decided before.
    #[error("the requester has decided already")]
    Settled,
}
