//! Replicated databases over the mesh: [`orbitdb`] knows logs and no network, the mesh moves bytes and knows no logs, and this joins them.
//!
//! ```text
//! db/config.rs        DbConfig, the section [db];  error.rs: DbError
//!    handle.rs        DbHandle: create, open, close, drop
//!    records.rs       databases.json: which databases this node keeps, and how it opens them
//!    service.rs       DbService: the parts, kept going;  shared.rs: what they share
//!    dispatch.rs      which databases are open, and what they ask for
//!    replication.rs   one open database: its topic, its peers, its exchanges of heads;  held.rs: entries that wait for what they follow;
//!                     owed.rs: who is asked for what was missed
//!    direct.rs        own entries straight to the nodes that have the database open
//!    exchange.rs      heads between two nodes, also with peers in JavaScript
//!    blocks.rs        single blocks by bitswap: for peers, for databases, and to open one by its address
//!    kept.rs          blocks that stand in no log, kept beside the databases;  fetch.rs: those that peers have;  holders.rs: who needs them
//!    oplog.rs         a log in bulk, between nodes
//!    node.rs          Node: databases with a mesh of their own, for programs that want nothing else
//! ```

mod blocks;
mod config;
mod direct;
mod dispatch;
mod error;
mod exchange;
mod fetch;
mod handle;
mod holders;
mod kept;
mod node;
mod oplog;
mod records;
mod replication;
mod service;
mod shared;

use std::path::Path;
use std::sync::Arc;

use bombus_net::NetHandle;
use bombus_net::bitswap::bitswap;
use orbitdb::OrbitDb;
use orbitdb::storage::RedbConfig;

pub use config::{DbConfig, DbConfigError, DbSyncConfig, EntriesConfig, OplogConfig, QueuesConfig};
pub use direct::ENTRIES_PROTOCOL;
pub(crate) use direct::fuzzing as direct_fuzzing;
pub use error::DbError;
pub use handle::DbHandle;
pub use holders::BlockHolder;
pub use kept::{KEPT_BLOCK_BYTES_MAX, Removed};
pub use node::{Node, NodeBuilder, NodeError};
pub(crate) use oplog::fuzzing as oplog_fuzzing;
pub use oplog::{CatchUp, OPLOG_PROTOCOL};
pub(crate) use records::{read_versioned, replace};
pub use service::DbService;

use self::blocks::OpenBlocks;
use self::kept::KeptBlocks;
use self::records::Records;
use self::shared::Shared;

/// Makes the two halves of the databases: the service, which runs as one task beside the mesh, and the handle for everybody else.
///
/// `directory` holds everything: the files of the databases, the keys of this node's identity as a writer, and `databases.json`, which
/// says what is opened at the start. It is made if it is not there. One process may have it at a time.
///
/// # Errors
///
/// [`DbError`] when the settings do not fit together, when the directory cannot be used, when what is in it cannot be read, or when the mesh has stopped or exchanges blocks
/// already.
pub fn db(config: DbConfig, net: NetHandle, directory: &Path) -> Result<(DbHandle, DbService), DbError> {
    config.check()?;
    let storage = RedbConfig { cache_bytes: config.cache_mb.saturating_mul(1 << 20) };
    let (orbit, outputs) = OrbitDb::builder().directory_with(directory, storage).build()?;
    let records = Records::read(directory)?;
    let own_blocks = Arc::new(KeptBlocks::new(directory, storage)?);
    let store = OpenBlocks(orbit.clone(), Arc::clone(&own_blocks));
    let (bitswap, blocks, service) = bitswap(net.clone(), Arc::new(store), config.bitswap)?;
    let shared = Arc::new(Shared::new(config, net, orbit, bitswap, records, own_blocks));
    Ok((DbHandle::new(Arc::clone(&shared)), DbService { shared, outputs, blocks, bitswap: service }))
}
