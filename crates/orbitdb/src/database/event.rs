//! What a database tells its users, and what it asks of the network.

use std::sync::Arc;

use crate::{
    cid::Hash,
    entry::{BlockError, Operation, Refusal},
    manifest::Address,
    storage::StorageError,
    sync::Peer,
};

/// An entry that came to count.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Its name.
    pub hash: Hash,
    /// The Lamport time that it states.
    pub time: u64,
    /// The id of its writer's identity.
    pub writer: Arc<str>,
    /// What it does; none when that is not known, or cannot be decrypted.
    pub operation: Option<Operation>,
    /// Who sent it; none for an own one.
    pub peer: Option<Peer>,
}

/// What happens to a database.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An entry came to count. An own one is safe by then. One of a peer's is stored, so that the death of this process does not lose it, and
    /// is synced next: should the whole system crash before that, it comes again.
    Update(Update),
    /// Heads were exchanged with a peer for the first time.
    Join {
        /// Which.
        peer: Peer,
        /// The heads now, newest first.
        heads: Vec<Hash>,
    },
    /// A peer has closed the database, or is gone.
    Leave {
        /// Which.
        peer: Peer,
    },
    /// An entry does not count.
    Refused {
        /// Its name.
        hash: Hash,
        /// Why.
        refusal: Refusal,
    },
    /// A block is no part of the log, and what follows it was dropped.
    Broken {
        /// Its name.
        hash: Hash,
        /// Why.
        error: BlockError,
        /// How many blocks that followed it were dropped.
        dropped: usize,
    },
    /// The access controller changed its mind, and all that is shown was worked out anew.
    Readmitted,
    /// The storage failed: the database takes nothing more.
    Error(StorageError),
}

/// What a database asks of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Publish the block of a new entry on the topic of the address.
    Publish {
        /// Of which database.
        address: Address,
        /// The block.
        block: Arc<[u8]>,
    },
    /// Exchange heads with a peer, and tell by [`crate::replica::Input::Exchanged`] how it went. Where that is being done, once more after it.
    OpenHeads {
        /// Of which database.
        address: Address,
        /// With whom.
        peer: Peer,
    },
    /// Ask a peer for blocks.
    Want {
        /// For which database.
        address: Address,
        /// Whom.
        peer: Peer,
        /// For what.
        hashes: Vec<Hash>,
    },
}
