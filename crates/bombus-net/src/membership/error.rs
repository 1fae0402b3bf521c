//! What can go wrong with a membership.

use std::io;
use std::path::{Path, PathBuf};

use bombus_core::identity::NodeId;

use super::SwarmId;

/// Says why the membership on disk cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The file system refused.
    #[error("{}: {doing}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What could not be done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A later version of Bombus wrote it.
    #[error("{} has format {found}, and this version of bombus knows formats up to {known}: update bombus", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that is read.
        known: u32,
    },
    /// The system gives no random bytes for a key.
    #[error("no key can be made: the system gives no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The node's membership service does not run, so nothing can be changed.
    #[error("the node is stopping: try again when it runs")]
    Stopped,
}

impl MembershipError {
    pub(super) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), doing, source }
    }

    pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }
}

/// Says why a node does not join, or does not leave.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The node has data of another swarm.
    #[error(
        "this node belongs to the swarm {current} already, and the ticket is for {ticket}: to switch, add --switch; the old swarm's data stays on disk"
    )]
    OtherSwarm {
        /// The swarm that it belongs to.
        current: SwarmId,
        /// The swarm of the ticket.
        ticket: SwarmId,
    },
    /// The ticket has a key that this node knows to be replaced.
    #[error("the ticket is older than the last change of the swarm's key: ask for a new one (bombus invite)")]
    OldTicket,
    /// The node runs without a key.
    #[error("this node runs without a swarm key (--open): start it without --open, then join")]
    Open,
    /// The membership on disk cannot be changed.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// Says why an owner's action is not done.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The owner key lies elsewhere.
    #[error(
        "this needs the swarm's owner key, which this machine does not have: run it on the machine where the swarm began, or take the key over from there (bombus owner export, bombus owner import)"
    )]
    NotOwner,
    /// The key is that of another swarm.
    #[error("this is the owner key of the swarm {found}, and this node belongs to {current}")]
    OtherOwner {
        /// The swarm of the key.
        found: SwarmId,
        /// The swarm of the node.
        current: SwarmId,
    },
    /// The peer was taken out before.
    #[error("{0} was removed from the swarm before")]
    AlreadyRemoved(NodeId),
    /// A node does not take itself out.
    #[error("a node cannot remove itself: use bombus leave")]
    Oneself,
    /// The list of removed peers is full.
    #[error(
        "the swarm has {0} removed peers, and no more fit into its list: begin a new swarm (bombus leave, then bombus invite)"
    )]
    TooManyRemoved(usize),
    /// The node runs without a key.
    #[error("a swarm without a key (--open) has no owner, and nobody can be kept out of it")]
    Open,
    /// The membership on disk cannot be changed.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// Says why no ticket is made.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// The node runs without a key.
    #[error(
        "a swarm without a key needs no ticket: start the other node with --open --seed and one of this node's addresses"
    )]
    Open,
    /// An address is none.
    #[error("{address:?} is no address of a node: {reason}")]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The membership on disk cannot be read, or changed.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}
