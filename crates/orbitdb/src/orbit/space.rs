//! The node's own space: its keys, and which databases there are.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::storage::{Batch, Durability, Space, Storage, StorageError, Table};

/// The name of the space.
const NAME: &str = "node";

/// The space, which is opened anew after it failed: a full disk that has room again must not need another start of the node.
pub(super) struct NodeSpace {
    storage: Arc<dyn Storage>,
    opened: Mutex<Option<Arc<dyn Space>>>,
}

impl NodeSpace {
    pub(super) fn open(storage: Arc<dyn Storage>) -> Result<Self, StorageError> {
        let opened = Mutex::new(Some(storage.open(NAME)?));
        Ok(Self { storage, opened })
    }

    fn opened(&self) -> MutexGuard<'_, Option<Arc<dyn Space>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, act: impl FnOnce(&dyn Space) -> Result<T, StorageError>) -> Result<T, StorageError> {
        let space = {
            let mut opened = self.opened();
            match &*opened {
                Some(space) => Arc::clone(space),
                None => Arc::clone(opened.insert(self.storage.open(NAME)?)),
            }
        };
        let done = act(&*space);
        if done.is_err() {
            self.opened().take_if(|opened| Arc::ptr_eq(opened, &space));
        }
        done
    }
}

impl Space for NodeSpace {
    fn read(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<(), StorageError> {
        self.with(|space| space.read(table, key, show))
    }

    fn scan(&self, table: Table, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StorageError> {
        self.with(|space| space.scan(table, each))
    }

    fn commit(&self, batch: &Batch, durability: Durability) -> Result<(), StorageError> {
        self.with(|space| space.commit(batch, durability))
    }

    fn bytes(&self) -> Result<u64, StorageError> {
        self.with(|space| space.bytes())
    }
}
