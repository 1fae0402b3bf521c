//! Where blocks are kept: spaces of a few tables, written in batches of which all or nothing is there after a crash.

mod journal;
mod memory;
mod pending;
mod platform;
mod redb;
#[cfg(test)]
mod tests;

pub use memory::Memory;
pub use redb::{Redb, RedbConfig};

use std::sync::Arc;

/// A table of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Entries: number to those that came together, each with what its own checks said.
    Entries,
    /// Identities, manifests and access controllers: digest to block.
    Blocks,
    /// What is noted about the space: name to bytes.
    Meta,
    /// Private keys: name to 32 bytes.
    Keys,
}

impl Table {
    const ALL: [Self; 4] = [Self::Entries, Self::Blocks, Self::Meta, Self::Keys];

    /// Returns the number that stands for it where changes are written down.
    const fn code(self) -> u8 {
        match self {
            Self::Entries => 1,
            Self::Blocks => 2,
            Self::Meta => 3,
            Self::Keys => 4,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.code() == code)
    }
}

/// When a batch is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When the commit returns.
    Full,
    /// With the next full one at the latest. Until then it may be lost in a crash, with everything else that is not safe.
    Relaxed,
}

/// Changes that are made together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    changes: Vec<(Table, Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Puts a value under a key.
    pub fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.changes.push((table, key.to_vec(), Some(value)));
    }

    /// Takes a key away.
    pub fn delete(&mut self, table: Table, key: &[u8]) {
        self.changes.push((table, key.to_vec(), None));
    }

    /// Returns whether it changes nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns how many bytes its keys and values have.
    fn bytes(&self) -> usize {
        self.changes.iter().map(|(_, key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
    }

    fn of_table(&self, table: Table) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let changes = self.changes.iter().filter(move |(of, ..)| *of == table);
        changes.map(|(_, key, value)| (key.as_slice(), value.as_deref()))
    }
}

/// Why storage failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The storage cannot be read or written.
    #[error("the storage at {place} failed: {reason}")]
    Failed {
        /// Where.
        place: String,
        /// Why.
        reason: String,
    },
    /// A space is in use and cannot be removed.
    #[error("the space \"{0}\" is in use: close it first")]
    InUse(String),
    /// The name of a space cannot be one.
    #[error("\"{0}\" is no name of a space: letters, digits, - and _ make one")]
    Name(String),
}

/// Keeps spaces by name.
pub trait Storage: Send + Sync {
    /// Opens a space, and makes it if it is not there.
    ///
    /// # Errors
    ///
    /// [`StorageError`] when that fails.
    fn open(&self, space: &str) -> Result<Arc<dyn Space>, StorageError>;

    /// Removes a space with everything in it; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// [`StorageError::InUse`] while the space is open.
    fn remove(&self, space: &str) -> Result<(), StorageError>;
}

/// A space of tables.
pub trait Space: Send + Sync {
    /// Shows the value under a key; nothing where there is none.
    ///
    /// # Errors
    ///
    /// [`StorageError`] when it cannot be read.
    fn read(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<(), StorageError>;

    /// Returns the value under a key.
    ///
    /// # Errors
    ///
    /// [`StorageError`] when it cannot be read.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let mut found = None;
        self.read(table, key, &mut |value| found = Some(value.to_vec()))?;
        Ok(found)
    }

    /// Shows all pairs of a table, ordered by key, as they are at one moment.
    ///
    /// # Errors
    ///
    /// [`StorageError`] when they cannot be read.
    fn scan(&self, table: Table, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StorageError>;

    /// Makes changes, all or none.
    ///
    /// # Errors
    ///
    /// [`StorageError`] when they cannot be written.
    fn commit(&self, batch: &Batch, durability: Durability) -> Result<(), StorageError>;

    /// Returns how many bytes the space takes.
    ///
    /// # Errors
    ///
    /// [`StorageError`] when that cannot be seen.
    fn bytes(&self) -> Result<u64, StorageError>;

    /// Gives back the room of what was taken away. Nobody reads or writes meanwhile, which may take seconds for what is large. Without a word
    /// of the storage there is nothing to give back.
    ///
    /// # Errors
    ///
    /// [`StorageError`] when it cannot be written.
    fn compact(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// Checks the name of a space, which may become the name of a file.
fn check_name(space: &str) -> Result<(), StorageError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !space.is_empty() && space.len() <= 128 && space.bytes().all(good) {
        Ok(())
    } else {
        Err(StorageError::Name(space.to_owned()))
    }
}
