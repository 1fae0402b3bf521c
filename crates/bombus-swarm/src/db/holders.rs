//! Who still refers to blocks that stand in no log: before any are removed, all of them are asked.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use orbitdb::cid::Hash;

use super::error::DbError;
use super::kept::Removed;
use super::shared::Shared;

/// Somebody whose documents name blocks that are kept by themselves.
pub trait BlockHolder: Send + Sync {
    /// Returns which of these blocks it still refers to, those that are named by other blocks included. It may read much.
    ///
    /// # Errors
    ///
    /// Says why that cannot be seen: nothing is removed then.
    fn held<'a>(&'a self, of: &'a HashSet<Hash>) -> BoxFuture<'a, Result<HashSet<Hash>, String>>;
}

/// All who refer to blocks, by their names.
#[derive(Default)]
pub(super) struct Holders(Mutex<BTreeMap<&'static str, Arc<dyn BlockHolder>>>);

impl Holders {
    pub(super) fn put(&self, name: &'static str, holder: Arc<dyn BlockHolder>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, holder);
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    fn all(&self) -> Vec<(&'static str, Arc<dyn BlockHolder>)> {
        let holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        holders.iter().map(|(name, holder)| (*name, Arc::clone(holder))).collect()
    }
}

/// Removes blocks that nobody refers to, in their order. Those that were put within `young` stay: whoever put them may be about to refer to
/// them.
pub(super) async fn remove(shared: &Arc<Shared>, mut blocks: Vec<Hash>, young: Duration) -> Result<Removed, DbError> {
    for (name, holder) in shared.holders.all() {
        if blocks.is_empty() {
            break;
        }
        let of = blocks.iter().copied().collect();
        let held = holder.held(&of).await.map_err(|reason| DbError::Holder { name, reason })?;
        blocks.retain(|block| !held.contains(block));
    }
    shared.own_blocks.remove(blocks, young).await
}
