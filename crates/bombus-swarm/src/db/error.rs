//! Why something could not be done with the databases of a node.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bombus_net::NetError;
use orbitdb::cid::Hash;
use orbitdb::manifest::Address;
use orbitdb::storage::StorageError;
use orbitdb::{BuildError, DatabaseError, OpenError};

use super::config::DbConfigError;
use super::kept::KEPT_BLOCK_BYTES_MAX;

/// Why something could not be done with the databases of a node.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The settings do not fit together.
    #[error(transparent)]
    Config(#[from] DbConfigError),
    /// The storage or the keys in it cannot be used.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The mesh does not take it.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The list of databases cannot be read or written.
    #[error("{} cannot be {doing}: {error}", .path.display())]
    Records {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The list of databases was written by a newer version.
    #[error("{} is of format {found}, and this version knows {known}: use the newer version of the program", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
    /// No database has this name or address here.
    #[error("there is no database {0:?} here: create it, or open that of a peer by its address")]
    NotFound(String),
    /// Several databases have this name.
    #[error("{} databases are called {name:?}: say which one by its address, {}", .addresses.len(), list(.addresses))]
    Ambiguous {
        /// The name.
        name: String,
        /// Their addresses.
        addresses: Vec<Address>,
    },
    /// Another database has this name.
    #[error("a database {name:?} is here already, {address}: open that one, drop it, or take another name")]
    NameTaken {
        /// The name.
        name: String,
        /// The address of the other one.
        address: Address,
    },
    /// The name cannot be one.
    #[error(
        "{0:?} is no name of a database: it has 1 to 128 bytes, no control characters, does not begin with a slash, and is neither \".\" nor \"..\""
    )]
    Name(String),
    /// Nodes have a database of their own with this name, which is another one.
    #[error(
        "nodes keep a database {0:?} of their own, and this is another one: have it created anew with another name"
    )]
    Reserved(String),
    /// It says who may write to another one that is kept here.
    #[error("it says who may write to {name:?}, {address}: drop that one first")]
    Guards {
        /// The name of that one.
        name: String,
        /// Its address.
        address: Address,
    },
    /// As many databases are open as may be.
    #[error("{0} databases are open or being opened, and no more may be (db.databases_max): close or drop one")]
    TooMany(usize),
    /// No peer gave what the database is.
    #[error(
        "no peer that is connected gave the manifest of {address} within {limit:?}: connect to a node that has it open, and try again"
    )]
    NotReached {
        /// Its address.
        address: Address,
        /// How long it was waited for.
        limit: Duration,
    },
    /// No peer gave a block.
    #[error(
        "no peer that is connected gave the block {hash} within {limit:?}: connect to a node that has it, and try again"
    )]
    BlockNotReached {
        /// Its name.
        hash: Hash,
        /// How long it was waited for.
        limit: Duration,
    },
    /// A block to be kept is too large.
    #[error("a block of {0} bytes is too large: one that is kept by itself has at most {KEPT_BLOCK_BYTES_MAX}")]
    BlockSize(usize),
    /// It is not known whether blocks can be removed.
    #[error("no block is removed, since it is not known which of them {name} needs: {reason}")]
    Holder {
        /// Who refers to blocks.
        name: &'static str,
        /// Why it cannot say so.
        reason: String,
    },
    /// The databases are being closed.
    #[error("the node is stopping")]
    Stopped,
    /// The work panicked.
    #[error("an operation failed inside: {0}")]
    Failed(String),
}

impl From<StorageError> for DbError {
    fn from(error: StorageError) -> Self {
        Self::Database(error.into())
    }
}

fn list(addresses: &[Address]) -> String {
    addresses.iter().map(Address::to_string).collect::<Vec<_>>().join(" or ")
}
