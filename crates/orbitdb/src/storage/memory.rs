//! Storage in memory, for tests and for nodes that keep nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Batch, Durability, Space, Storage, StorageError, Table, check_name};

/// Keeps spaces for as long as it lives.
#[derive(Default)]
pub struct Memory {
    spaces: Mutex<HashMap<String, Arc<MemorySpace>>>,
}

type Pairs = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

#[derive(Default)]
struct MemorySpace {
    pairs: Mutex<Pairs>,
}

impl Storage for Memory {
    fn open(&self, space: &str) -> Result<Arc<dyn Space>, StorageError> {
        check_name(space)?;
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(spaces.entry(space.to_owned()).or_default()) as Arc<dyn Space>)
    }

    fn remove(&self, space: &str) -> Result<(), StorageError> {
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        if spaces.get(space).is_some_and(|space| Arc::strong_count(space) > 1) {
            return Err(StorageError::InUse(space.to_owned()));
        }
        spaces.remove(space);
        Ok(())
    }
}

impl Space for MemorySpace {
    fn read(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<(), StorageError> {
        let pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        pairs.get(&(table, key.to_vec())).into_iter().for_each(|value| show(value));
        Ok(())
    }

    fn scan(&self, table: Table, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StorageError> {
        let pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        for ((_, key), value) in pairs.range((table, Vec::new())..).take_while(|((of, _), _)| *of == table) {
            each(key, value);
        }
        Ok(())
    }

    fn commit(&self, batch: &Batch, _: Durability) -> Result<(), StorageError> {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        for table in Table::ALL {
            for (key, value) in batch.of_table(table) {
                match value {
                    Some(value) => drop(pairs.insert((table, key.to_vec()), value.to_vec())),
                    None => drop(pairs.remove(&(table, key.to_vec()))),
                }
            }
        }
        Ok(())
    }

    fn bytes(&self) -> Result<u64, StorageError> {
        let pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(pairs.iter().map(|((_, key), value)| (key.len() + value.len()) as u64).sum())
    }
}
