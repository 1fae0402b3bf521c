//! Databases of one node: an identity, a storage, and what is open.

mod builder;
mod fetch;
mod open;
mod space;

pub use builder::{BuildError, Builder};
pub use open::{Access, OpenError, OpenOptions};

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::{mpsc, watch};

use crate::{
    cbor::Value,
    cid::Hash,
    database::{Database, DatabaseError, Inner, Output},
    identity::{Identity, Signer},
    manifest::{Address, DatabaseType, Manifest},
    storage::{Batch, Durability, Space, Storage, StorageError, Table},
};

use fetch::Fetches;
use space::NodeSpace;

/// What names the records of databases in the node's own space.
const DATABASE: &str = "database/";

/// What names the records of databases that are being dropped.
const DROPPED: &str = "dropped/";

/// Databases of one node; clones stand for the same.
#[derive(Clone)]
pub struct OrbitDb {
    node: Arc<Node>,
}

struct Node {
    storage: Arc<dyn Storage>,
    /// Keys, and which databases there are.
    space: NodeSpace,
    signer: Signer,
    outputs: mpsc::Sender<Output>,
    open: Mutex<HashMap<Address, Opened>>,
    addresses: watch::Sender<BTreeSet<Address>>,
    fetches: Fetches,
    /// One database is opened or dropped at a time.
    opening: tokio::sync::Mutex<()>,
}

struct Opened {
    inner: Weak<Inner>,
    /// Ends once the writer has. Nothing is sent.
    ended: watch::Receiver<()>,
}

/// A database that this node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its address.
    pub address: Address,
    /// Its name.
    pub name: String,
    /// How it is read.
    pub r#type: DatabaseType,
}

/// Returns the name of a database of a series: that of the series for the first one, and with a number behind for the others.
///
/// An application that lets a log end opens the next generation, moves what it needs, and drops the old one when everybody has done so.
#[must_use]
pub fn generation_name(series: &str, generation: u64) -> String {
    if generation <= 1 { series.to_owned() } else { format!("{series}.{generation}") }
}

impl OrbitDb {
    /// Begins to describe a node.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Returns the identity that writes.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        self.node.signer.identity()
    }

    /// Watches which databases are open: their addresses are the topics to subscribe to.
    #[must_use]
    pub fn addresses(&self) -> watch::Receiver<BTreeSet<Address>> {
        self.node.addresses.subscribe()
    }

    /// Returns an open database.
    #[must_use]
    pub fn database(&self, address: &Address) -> Option<Database> {
        self.node.open().get(address).and_then(|opened| opened.inner.upgrade()).map(|inner| Database { inner })
    }

    /// Watches which blocks are waited for to open databases by their addresses. To be fetched from any peer, and given to [`OrbitDb::supply`].
    #[must_use]
    pub fn missing(&self) -> watch::Receiver<BTreeSet<Hash>> {
        self.node.fetches.watch()
    }

    /// Takes a block that was waited for; others are passed over.
    pub fn supply(&self, block: &[u8]) {
        self.node.fetches.supply(block);
    }

    /// Returns a block of any open database, for a peer that asks.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] when it cannot be read.
    pub fn block(&self, hash: &Hash) -> Result<Option<Vec<u8>>, DatabaseError> {
        if self.identity().hash() == *hash {
            return Ok(Some(self.node.signer.block().to_vec()));
        }
        let open: Vec<Arc<Inner>> = self.node.open().values().filter_map(|opened| opened.inner.upgrade()).collect();
        for inner in open {
            match (Database { inner }).block(hash) {
                Ok(None) | Err(DatabaseError::Closed) => {}
                found => return found,
            }
        }
        Ok(None)
    }

    /// Returns the databases that this node has, open or not.
    ///
    /// # Errors
    ///
    /// [`StorageError`] when they cannot be read.
    pub fn databases(&self) -> Result<Vec<Known>, StorageError> {
        let mut known = Vec::new();
        self.node.space.scan(Table::Meta, &mut |key, value| known.extend(read_record(key, value)))?;
        Ok(known)
    }

    /// Closes a database and removes everything of it from the storage; its space is free when this returns. Others may still have it.
    ///
    /// # Errors
    ///
    /// [`DatabaseError`] when it cannot be removed, or somebody still reads it. What is left goes at the next try, before it is opened anew, or at the
    /// next start.
    pub async fn drop_database(&self, address: &Address) -> Result<(), DatabaseError> {
        let _opening = self.node.opening.lock().await;
        if let Some(database) = self.database(address) {
            // What could not be written goes as well.
            drop(database.close().await);
        }
        self.node.ended(address).await;
        Ok(self.node.discard(address)?)
    }

    /// Closes all databases, and waits for those whose last handle is gone and that are still written.
    ///
    /// # Errors
    ///
    /// The first [`DatabaseError`], after all have been closed.
    pub async fn close(&self) -> Result<(), DatabaseError> {
        let _opening = self.node.opening.lock().await;
        let open: Vec<(Address, Option<Arc<Inner>>)> =
            self.node.open().iter().map(|(address, opened)| (*address, opened.inner.upgrade())).collect();
        let mut first = Ok(());
        for (address, inner) in open {
            if let Some(inner) = inner {
                first = first.and(Database { inner }.close().await);
            }
            self.node.ended(&address).await;
        }
        first
    }
}

impl Node {
    fn open(&self) -> MutexGuard<'_, HashMap<Address, Opened>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the writer of a database has ended, and forgets that it was open. Should the wait be given up, the next one waits, too.
    async fn ended(&self, address: &Address) {
        let ended = self.open().get(address).map(|opened| opened.ended.clone());
        if let Some(mut ended) = ended {
            while ended.changed().await.is_ok() {}
        }
        self.open().remove(address);
        self.no_longer_open(address);
    }

    fn no_longer_open(&self, address: &Address) {
        self.addresses.send_if_modified(|addresses| addresses.remove(address));
    }

    /// Takes note that the last handle of a database is gone, unless it has been opened again.
    fn handle_dropped(&self, address: &Address) {
        // It is looked while the list is changed: whoever opens it anew is in `open` before it is in the list.
        self.addresses.send_if_modified(|addresses| {
            let is_open = self.open().get(address).is_some_and(|opened| opened.inner.strong_count() > 0);
            !is_open && addresses.remove(address)
        });
    }

    /// Removes everything of a database that is not open. Should this be interrupted, the next start goes on with it, or whoever opens the
    /// database anew before that.
    fn discard(&self, address: &Address) -> Result<(), StorageError> {
        let mut batch = Batch::default();
        batch.delete(Table::Meta, record_key(DATABASE, address).as_bytes());
        batch.put(Table::Meta, record_key(DROPPED, address).as_bytes(), Vec::new());
        self.space.commit(&batch, Durability::Full)?;
        self.remove(address)
    }

    fn remove(&self, address: &Address) -> Result<(), StorageError> {
        self.storage.remove(&address.manifest().to_string())?;
        let mut batch = Batch::default();
        batch.delete(Table::Meta, record_key(DROPPED, address).as_bytes());
        self.space.commit(&batch, Durability::Full)
    }

    /// Goes on with dropping what a crash left half dropped.
    fn finish_dropping(&self) -> Result<(), StorageError> {
        let mut dropped: Vec<Address> = Vec::new();
        self.space.scan(Table::Meta, &mut |key, _| {
            let name = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(DROPPED));
            dropped.extend(name.and_then(|hash| hash.parse().ok()).map(Address::new));
        })?;
        dropped.iter().try_for_each(|address| self.remove(address))
    }

    /// Goes on with dropping a database that is about to be opened anew. Half of what it had must not come back, and what is put from now on
    /// must not go at the next start.
    fn finish_dropping_one(&self, address: &Address) -> Result<(), StorageError> {
        match self.space.get(Table::Meta, record_key(DROPPED, address).as_bytes())? {
            Some(_) => self.remove(address),
            None => Ok(()),
        }
    }

    fn has(&self, address: &Address) -> Result<bool, StorageError> {
        Ok(self.space.get(Table::Meta, record_key(DATABASE, address).as_bytes())?.is_some())
    }

    fn note(&self, address: &Address, manifest: &Manifest) -> Result<(), StorageError> {
        let record = Value::map([("name", manifest.name.as_str()), ("type", manifest.r#type.name())]);
        let record = record.encode().expect("text in one level has a form");
        let mut batch = Batch::default();
        batch.put(Table::Meta, record_key(DATABASE, address).as_bytes(), record);
        self.space.commit(&batch, Durability::Full)
    }
}

fn record_key(prefix: &str, address: &Address) -> String {
    format!("{prefix}{}", address.manifest())
}

fn read_record(key: &[u8], value: &[u8]) -> Option<Known> {
    let hash = std::str::from_utf8(key).ok()?.strip_prefix(DATABASE)?.parse().ok()?;
    let record = Value::decode(value).ok()?;
    let text = |name| record.get(name).and_then(Value::as_text);
    Some(Known { address: Address::new(hash), name: text("name")?.to_owned(), r#type: text("type")?.parse().ok()? })
}
