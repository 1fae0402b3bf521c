//! How entries are stored: those that came together stand together in one value, a segment, in the order in which they came.
//!
//! A tree that is ordered by hashes would be changed in as many places as entries are written, and hold more gaps than bytes. Segments are
//! only ever added behind the last one, and read in order. Which of them has an entry is known in memory.

pub(crate) mod fuzzing;

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use crate::{
    cid::Hash,
    entry::Refusal,
    replica::Kept,
    storage::{Batch, Space, StorageError, Table},
};

/// How large a segment becomes, in bytes. With what stands around it in a file it fits into 64 KiB.
const SEGMENT_BYTES: usize = 65_000;

/// How many stored entries are in memory at once, at least, while a log is read.
const PART: usize = 1024;

/// What stands before a block: what its own checks said, and its length.
const HEAD_BYTES: usize = 5;

#[derive(Clone, Copy, Debug)]
struct Place {
    segment: u64,
    start: u32,
    len: u32,
}

/// Which entries are stored, and where.
#[derive(Debug, Default)]
pub(super) struct Entries {
    places: RwLock<HashMap<Hash, Place>>,
}

/// Entries that are about to be written.
pub(super) struct Packed {
    places: Vec<(Hash, Place)>,
    /// The number of the segment that comes next.
    pub(super) next: u64,
    /// Bytes of their blocks.
    pub(super) bytes: u64,
}

impl Entries {
    /// Reads all entries in the order in which they came, in parts that fit into memory. Returns the number of the segment that comes next.
    pub(super) fn load(&self, space: &dyn Space, mut each: impl FnMut(Vec<Kept>)) -> Result<u64, StorageError> {
        let mut places = HashMap::new();
        let mut next = 0;
        scan(space, |segment, kept, found| {
            next = segment + 1;
            places.extend(found);
            each(kept);
        })?;
        *self.places.write().unwrap_or_else(PoisonError::into_inner) = places;
        Ok(next)
    }

    /// Returns the block of an entry that is stored.
    pub(super) fn block(&self, space: &dyn Space, hash: &Hash) -> Result<Option<Vec<u8>>, StorageError> {
        let place = self.places.read().unwrap_or_else(PoisonError::into_inner).get(hash).copied();
        let Some(Place { segment, start, len }) = place else { return Ok(None) };
        let mut block = None;
        space.read(Table::Entries, &segment.to_be_bytes(), &mut |value| {
            let start = start as usize;
            block = value.get(start..start + len as usize).map(<[u8]>::to_vec);
        })?;
        Ok(block)
    }

    /// Begins to read blocks one after another.
    pub(super) const fn reader<'a>(&'a self, space: &'a dyn Space) -> BlockReader<'a> {
        BlockReader { entries: self, space, segment: None }
    }

    /// Takes note of entries that are stored now.
    pub(super) fn add(&self, packed: Packed) {
        self.places.write().unwrap_or_else(PoisonError::into_inner).extend(packed.places);
    }
}

/// Reads blocks one after another. What was stored together is read from the storage together.
pub(super) struct BlockReader<'a> {
    entries: &'a Entries,
    space: &'a dyn Space,
    /// The segment that was read last.
    segment: Option<(u64, Vec<u8>)>,
}

impl BlockReader<'_> {
    /// Returns the block of an entry that is stored.
    pub(super) fn block(&mut self, hash: &Hash) -> Result<Option<&[u8]>, StorageError> {
        let place = self.entries.places.read().unwrap_or_else(PoisonError::into_inner).get(hash).copied();
        let Some(Place { segment, start, len }) = place else { return Ok(None) };
        if self.segment.as_ref().is_none_or(|(read, _)| *read != segment) {
            self.segment = self.space.get(Table::Entries, &segment.to_be_bytes())?.map(|value| (segment, value));
        }
        let (start, value) = (start as usize, self.segment.as_ref().map(|(_, value)| value));
        Ok(value.and_then(|value| value.get(start..start + len as usize)))
    }
}

/// Puts entries into segments from a number on.
pub(super) fn pack<'a>(
    batch: &mut Batch,
    mut segment: u64,
    entries: impl Iterator<Item = (Hash, Option<Refusal>, &'a [u8])>,
) -> Packed {
    let (mut places, mut bytes, mut value) = (Vec::new(), 0, Vec::new());
    for (hash, own, block) in entries {
        if !value.is_empty() && value.len() + HEAD_BYTES + block.len() > SEGMENT_BYTES {
            batch.put(Table::Entries, &segment.to_be_bytes(), std::mem::take(&mut value));
            segment += 1;
        }
        let len = u32::try_from(block.len()).expect("blocks are bounded far below 4 GiB");
        value.push(own.map_or(0, |refusal| refusal as u8));
        value.extend(len.to_be_bytes());
        let start = u32::try_from(value.len()).expect("segments are bounded far below 4 GiB");
        value.extend(block);
        places.push((hash, Place { segment, start, len }));
        bytes += u64::from(len);
    }
    if !value.is_empty() {
        batch.put(Table::Entries, &segment.to_be_bytes(), value);
        segment += 1;
    }
    Packed { places, next: segment, bytes }
}

/// Shows all entries in the order in which they came, in parts that fit into memory.
pub(super) fn read_all(space: &dyn Space, mut each: impl FnMut(Vec<Kept>)) -> Result<(), StorageError> {
    scan(space, |_, kept, _| each(kept))
}

fn scan(space: &dyn Space, mut each: impl FnMut(u64, Vec<Kept>, Vec<(Hash, Place)>)) -> Result<(), StorageError> {
    let (mut last, mut kept, mut places) = (0, Vec::new(), Vec::new());
    space.scan(Table::Entries, &mut |key, value| {
        let Ok(key) = <[u8; 8]>::try_from(key) else { return };
        last = u64::from_be_bytes(key);
        take_apart(last, value, &mut kept, &mut places);
        if kept.len() >= PART {
            each(last, std::mem::take(&mut kept), std::mem::take(&mut places));
        }
    })?;
    if !kept.is_empty() {
        each(last, kept, places);
    }
    Ok(())
}

fn take_apart(segment: u64, value: &[u8], kept: &mut Vec<Kept>, places: &mut Vec<(Hash, Place)>) {
    let mut rest = value;
    while let Some((&[code, a, b, c, d], after)) = rest.split_first_chunk::<HEAD_BYTES>() {
        let len = u32::from_be_bytes([a, b, c, d]);
        let Some((block, after)) = after.split_at_checked(len as usize) else { return };
        let start = u32::try_from(value.len() - after.len() - block.len()).expect("segments are bounded");
        places.push((Hash::of(block), Place { segment, start, len }));
        kept.push((block.to_vec(), Refusal::from_code(code)));
        rest = after;
    }
}
