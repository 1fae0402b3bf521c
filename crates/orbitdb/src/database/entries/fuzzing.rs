//! What the fuzz targets need of segments.

use std::ops::Range;

use super::{pack, read_all, take_apart};
use crate::{
    cid::Hash,
    replica::Kept,
    storage::{Batch, Durability, Memory, Storage},
};

/// Takes a segment apart, as it is read from the disk. Returns its entries, and where in it their blocks stand.
#[must_use]
pub fn entries_of_segment(segment: &[u8]) -> (Vec<Kept>, Vec<Range<usize>>) {
    let (mut kept, mut places) = (Vec::new(), Vec::new());
    take_apart(0, segment, &mut kept, &mut places);
    let ranges = places.iter().map(|(_, place)| place.start as usize..place.start as usize + place.len as usize);
    (kept, ranges.collect())
}

/// Stores entries, and returns what is read of them.
///
/// # Panics
///
/// When the memory does not take them.
#[must_use]
pub fn stored_again(entries: &[Kept]) -> Vec<Kept> {
    let mut batch = Batch::default();
    pack(&mut batch, 0, entries.iter().map(|(block, own)| (Hash::of(block), *own, block.as_slice())));
    let space = Memory::default().open("entries").expect("memory takes any space");
    space.commit(&batch, Durability::Full).expect("memory takes what is written");
    let mut read = Vec::new();
    read_all(&*space, |kept| read.extend(kept)).expect("memory gives what was written");
    read
}
