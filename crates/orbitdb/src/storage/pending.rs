//! Changes that are in a journal and not yet in the tree, as everybody who reads has to see them.

use std::{collections::BTreeMap, sync::Arc};

use super::{Batch, Table};

/// What became of a key: its value, or none where it was taken away.
pub(super) type Change = Option<Arc<[u8]>>;

/// Changes by table and key.
#[derive(Default)]
pub(super) struct Pending {
    tables: [BTreeMap<Vec<u8>, Change>; Table::ALL.len()],
}

impl Pending {
    /// Returns what became of a key; none where nothing did.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<Change> {
        self.of(table).get(key).cloned()
    }

    /// Returns the changes of a table, ordered by key.
    pub(super) const fn of(&self, table: Table) -> &BTreeMap<Vec<u8>, Change> {
        &self.tables[table as usize]
    }

    /// Takes changes in their order.
    pub(super) fn take(&mut self, batch: &Batch) {
        for (table, key, value) in &batch.changes {
            let change = value.as_deref().map(Into::into);
            self.tables[*table as usize].insert(key.clone(), change);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.iter().all(BTreeMap::is_empty)
    }

    pub(super) fn clear(&mut self) {
        self.tables.iter_mut().for_each(BTreeMap::clear);
    }
}
