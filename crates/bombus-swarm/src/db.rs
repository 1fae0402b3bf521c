//! Replicated databases over the mesh: [`orbitdb`] knows logs and no network, the mesh moves bytes and knows no logs, and this joins them.
//!
//! ```text
//! db/config.rs        DbConfig, the section [db];  error.rs: DbError
//!    handle.rs        DbHandle: create, open, close, drop;  names.rs: which record a name or an address means (pure)
//!    records.rs       databases.json: which databases this node keeps, and how it opens them
//!    service.rs       DbService: the parts, kept going;  shared.rs: what they share
//! ```

mod config;
mod error;
mod handle;
mod records;
mod service;
mod shared;

use std::path::Path;
use std::sync::Arc;

use bombus_net::NetHandle;
use orbitdb::OrbitDb;
use orbitdb::storage::RedbConfig;

pub use config::DbConfig;
pub use error::DbError;
pub use handle::DbHandle;
pub use service::DbService;

use self::records::Records;
use self::shared::Shared;

/// Makes the two halves of the databases: the service, which runs as one task beside the mesh, and the handle for everybody else.
///
/// `directory` holds everything: the files of the databases, the keys of this node's identity as a writer, and `databases.json`, which
/// says what is opened at the start. It is made if it is not there. One process may have it at a time.
///
/// # Errors
///
/// [`DbError`] when the directory cannot be used, or what is in it cannot be read.
pub fn db(config: DbConfig, net: NetHandle, directory: &Path) -> Result<(DbHandle, DbService), DbError> {
    let storage = RedbConfig { cache_bytes: config.cache_mb.saturating_mul(1 << 20) };
    let (orbit, outputs) = OrbitDb::builder().directory_with(directory, storage).build()?;
    let records = Records::read(directory)?;
    let shared = Arc::new(Shared::new(config, net, orbit, records));
    Ok((DbHandle::new(Arc::clone(&shared)), DbService::new(shared, outputs)))
}
