//! The handle through which everybody but the service uses the databases.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_net::bitswap::BitswapReport;
use orbitdb::cid::Hash;
use orbitdb::manifest::Address;
use orbitdb::{Database, Known, OpenOptions, OrbitDb};

use super::error::DbError;
use super::fetch;
use super::holders::{self, BlockHolder};
use super::kept::{KEPT_BLOCK_BYTES_MAX, Removed};
use super::oplog::CatchUp;
use super::records::Record;
use super::shared::Shared;
use crate::reserved::is_foreign;

/// Longest name of a database, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// A cheap handle to the databases of this node.
///
/// What is created or opened with it stays open until it is closed or dropped, and is opened again at the next start. Where a name is asked
/// for, that of a database that this handle created or opened is meant; an address always means one.
#[derive(Clone)]
pub struct DbHandle {
    shared: Arc<Shared>,
}

impl fmt::Debug for DbHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbHandle").finish_non_exhaustive()
    }
}

impl DbHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Returns the library, for what an application opens for itself: such databases are replicated as long as they are open, and are in no
    /// list of this handle.
    #[must_use]
    pub fn orbit(&self) -> &OrbitDb {
        &self.shared.orbit
    }

    /// Waits until the databases that were open before are open again. [`DbHandle::create`] and the like wait for it themselves.
    ///
    /// # Errors
    ///
    /// [`DbError::Stopped`] when the service stops.
    pub async fn ready(&self) -> Result<(), DbError> {
        self.shared.ready().await
    }

    /// Creates a database of a name, or opens the one that the name and the options give.
    ///
    /// One that is opened with a view or with encryption is not opened again at the next start, since no list could hold these: the
    /// application opens it again with the same options.
    ///
    /// # Errors
    ///
    /// [`DbError`] when another database has the name, when too many are open, or when it cannot be opened.
    pub async fn create(&self, name: &str, options: OpenOptions) -> Result<Database, DbError> {
        check_name(name)?;
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        to_the_end(async move {
            shared.ready().await?;
            let _changing = shared.changing().await;
            let is_plain = options.is_plain();
            // What the configuration says counts as long as it says so, and is in no record.
            let relaxed = options.is_relaxed();
            let opened = shared.open(name.clone(), options).await?;
            let record = Record::of(&opened.database, relaxed, is_plain);
            // One that is kept here already may have got a namesake from a peer.
            let records = shared.records();
            let is_kept = records.iter().any(|other| other.address == record.address);
            let namesake = records.into_iter().find(|other| !is_kept && other.name == name);
            let taken = namesake.map(|other| DbError::NameTaken { name, address: other.address });
            shared.keep(opened, record, taken).await
        })
        .await
    }

    /// Opens a database that is kept here by its name or address, or that of a peer by its address.
    ///
    /// By an address that is not known here this waits for a peer that has it, up to `open_limit_ms` of the configuration.
    ///
    /// # Errors
    ///
    /// [`DbError`] when no database has the name, when no peer gives what it is in time, when it is not the one that nodes keep by its name, or
    /// when it cannot be opened.
    pub async fn open(&self, name_or_address: &str) -> Result<Database, DbError> {
        self.open_with(name_or_address, OpenOptions::default()).await
    }

    /// Opens a database as [`DbHandle::open`] does, with options: those that it was created or opened with before count where none are said.
    ///
    /// # Errors
    ///
    /// As [`DbHandle::open`].
    pub async fn open_with(&self, name_or_address: &str, options: OpenOptions) -> Result<Database, DbError> {
        self.shared.ready().await?;
        let known = self.shared.find(name_or_address);
        let address: Address = match (&known, name_or_address.parse()) {
            (Ok(record), _) => record.address,
            (Err(_), Ok(address)) => address,
            (Err(_), Err(_)) => return Err(known.err().unwrap_or(DbError::NotFound(name_or_address.to_owned()))),
        };
        let (mut options, known) = (options, known.ok());
        if let Some(index_by) = known.as_ref().and_then(|known| known.index_by.as_deref())
            && options.index_field().is_none()
        {
            options = options.index_by(index_by);
        }
        let is_plain = options.is_plain();
        let is_known = known.is_some();
        let relaxed = options.is_relaxed() || known.is_some_and(|known| known.relaxed);
        let shared = Arc::clone(&self.shared);
        to_the_end(async move {
            let opened = shared.open(address.to_string(), options.relaxed(relaxed)).await?;
            let record = Record::of(&opened.database, relaxed, is_plain);
            let _changing = shared.changing().await;
            let is_reserved = !is_known && is_foreign(&record.name, &record.address);
            let reserved = is_reserved.then(|| DbError::Reserved(record.name.clone()));
            shared.keep(opened, record, reserved).await
        })
        .await
    }

    /// Returns an open database by its name or address.
    #[must_use]
    pub fn database(&self, name_or_address: &str) -> Option<Database> {
        let address = match name_or_address.parse() {
            Ok(address) => address,
            Err(_) => self.shared.find(name_or_address).ok()?.address,
        };
        self.shared.database(&address)
    }

    /// Returns the databases that are kept here, open or not. Those that guard others are not among them.
    ///
    /// # Errors
    ///
    /// None now; a list that has to be read could fail.
    pub fn list(&self) -> Result<Vec<Known>, DbError> {
        Ok(self.shared.records().iter().map(Record::known).collect())
    }

    /// Closes a database; it stays stored here, and is not opened at the next start.
    ///
    /// # Errors
    ///
    /// [`DbError`] when there is none, or something could not be written.
    pub async fn close(&self, name_or_address: &str) -> Result<(), DbError> {
        let (shared, name_or_address) = (Arc::clone(&self.shared), name_or_address.to_owned());
        to_the_end(async move {
            shared.ready().await?;
            let _changing = shared.changing().await;
            let record = shared.find(&name_or_address)?;
            shared.note(|records| records.put(Record { open: false, ..record.clone() })).await?;
            // What guards another one stays open with that.
            if guarded_by(&shared, &record.address).iter().any(|other| shared.database(&other.address).is_some()) {
                shared.release(&record.address);
                return Ok(());
            }
            shared.close(&record.address).await
        })
        .await
    }

    /// Removes a database from this node with everything in it, and what guards it where that guards nothing else. Others may still have it.
    ///
    /// # Errors
    ///
    /// [`DbError`] when there is none, when it guards another one that is kept here, or when something could not be removed.
    pub async fn drop(&self, name_or_address: &str) -> Result<(), DbError> {
        let (shared, name_or_address) = (Arc::clone(&self.shared), name_or_address.to_owned());
        to_the_end(async move {
            shared.ready().await?;
            let _changing = shared.changing().await;
            let record = shared.find(&name_or_address)?;
            if let Some(guarded) = guarded_by(&shared, &record.address).into_iter().next() {
                return Err(DbError::Guards { name: guarded.name, address: guarded.address });
            }
            // It stays in the list until it is gone: what could not be removed can be dropped again.
            if record.open {
                shared.note(|records| records.put(Record { open: false, ..record.clone() })).await?;
            }
            shared.remove_with(record.address, record.guard).await?;
            shared.note(|records| records.remove(&record.address)).await
        })
        .await
    }

    /// Returns the connected peers that have a database open; ordered by id. None where it is not open here.
    #[must_use]
    pub fn peers(&self, address: &Address) -> Vec<NodeId> {
        match self.shared.database(address) {
            Some(_) => self.shared.net.topic_peers(&address.to_string()).borrow().clone(),
            None => Vec::new(),
        }
    }

    /// Keeps blocks that stand in no log, DAG-CBOR of at most [`KEPT_BLOCK_BYTES_MAX`] bytes each, and returns their names in the same order. They are
    /// safe when this returns, and peers that ask for them get them. Many at once cost little more than one.
    ///
    /// # Errors
    ///
    /// [`DbError`] when one is too large, the storage fails, or the databases are being closed.
    pub async fn put_blocks(&self, blocks: Vec<Vec<u8>>) -> Result<Vec<Hash>, DbError> {
        if let Some(large) = blocks.iter().find(|block| block.len() > KEPT_BLOCK_BYTES_MAX) {
            return Err(DbError::BlockSize(large.len()));
        }
        let named: Vec<(Hash, Vec<u8>)> = blocks.into_iter().map(|block| (Hash::of(&block), block)).collect();
        let hashes = named.iter().map(|(hash, _)| *hash).collect();
        self.shared.own_blocks.put(named).await?;
        Ok(hashes)
    }

    /// Returns a block that is kept here in no log.
    ///
    /// # Errors
    ///
    /// [`DbError`] when it cannot be read, or the databases are being closed.
    pub async fn block(&self, hash: &Hash) -> Result<Option<Vec<u8>>, DbError> {
        fetch::local(&self.shared, *hash).await
    }

    /// Returns a block that is kept here in no log, or else that a connected peer gives within a time, which is kept here from then on. Peers are
    /// asked one after the other, those in `first` before all others.
    ///
    /// # Errors
    ///
    /// [`DbError::BlockNotReached`] when no peer gave it in time, and as [`DbHandle::block`].
    pub async fn fetch_block(&self, hash: &Hash, first: &[NodeId], limit: Duration) -> Result<Vec<u8>, DbError> {
        fetch::fetch(&self.shared, *hash, first, limit).await
    }

    /// Has somebody asked who refers to such blocks before any is removed; in place of who had the name before.
    pub fn hold_blocks(&self, name: &'static str, holder: Arc<dyn BlockHolder>) {
        self.shared.holders.put(name, holder);
    }

    /// Returns whether somebody of this name is asked before blocks are removed.
    #[must_use]
    pub fn has_holder(&self, name: &str) -> bool {
        self.shared.holders.has(name)
    }

    /// Removes blocks, in their order, that stand in no log and that nobody refers to any more, as all [`BlockHolder`]s say. Their room is given back, to the
    /// disk where it is much. Those that were put within `young`, at most ten minutes, stay: who put them may be about to refer to them.
    ///
    /// # Errors
    ///
    /// [`DbError::Holder`] when somebody cannot say to what it refers, and when the storage fails.
    pub async fn remove_blocks(
        &self,
        blocks: impl IntoIterator<Item = Hash>,
        young: Duration,
    ) -> Result<Removed, DbError> {
        holders::remove(&self.shared, blocks.into_iter().collect(), young).await
    }

    /// Returns the directory in which everything lies.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.shared.own_blocks.directory()
    }

    /// Returns how many bytes the blocks take in the storage that stand in no log.
    #[must_use]
    pub fn blocks_bytes(&self) -> u64 {
        self.shared.own_blocks.bytes()
    }

    /// Returns with which peers a database catches up in bulk now, and how far that is.
    #[must_use]
    pub fn catching_up(&self, address: &Address) -> Vec<CatchUp> {
        self.shared.replications().get(address).map(|replication| replication.turns.report()).unwrap_or_default()
    }

    /// Returns what was exchanged block by block since the start.
    #[must_use]
    pub fn bitswap(&self) -> BitswapReport {
        self.shared.bitswap.report()
    }
}

/// Does something to its end, though whoever asked for it goes away meanwhile: what was opened is kept, and what was begun is not left
/// halfway.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, DbError>> + Send + 'static,
) -> Result<T, DbError> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(DbError::Failed(error.to_string())))
}

/// Returns the databases here that one guards.
fn guarded_by(shared: &Shared, guard: &Address) -> Vec<Record> {
    let mut records = shared.records();
    records.retain(|other| other.guard == Some(*guard));
    records
}

fn check_name(name: &str) -> Result<(), DbError> {
    let is_name =
        (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('/') && !name.chars().any(char::is_control);
    // These two mean other folders in the paths of URLs.
    if is_name && !matches!(name, "." | "..") { Ok(()) } else { Err(DbError::Name(name.to_owned())) }
}
