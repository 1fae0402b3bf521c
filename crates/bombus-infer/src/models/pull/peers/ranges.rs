//! Which bytes of a file are here (pure), and the small file that says so beside an unfinished one.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::super::store::{ModelStore, StoreError};
use super::super::download::partial_path;

/// Largest map that is read.
const MAP_BYTES_MAX: u64 = 1 << 20;

/// A set of bytes of a file: ranges in order that neither touch nor overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RangeSet(Vec<Range<u64>>);

impl RangeSet {
    pub(super) fn add(&mut self, new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let begin = self.0.partition_point(|range| range.end < new.start);
        let end = self.0.partition_point(|range| range.start <= new.end);
        let merged = match self.0.get(begin..end) {
            Some([first, .., last]) => first.start.min(new.start)..last.end.max(new.end),
            Some([only]) => only.start.min(new.start)..only.end.max(new.end),
            _ => new,
        };
        self.0.splice(begin..end, [merged]);
    }

    /// Returns how many bytes it has.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Returns how many bytes from the first on are here without a gap.
    pub(super) fn prefix(&self) -> u64 {
        self.0.first().filter(|first| first.start == 0).map_or(0, |first| first.end)
    }

    /// Returns the first gap at or behind `from`, which ends at `end` at the latest.
    pub(super) fn gap(&self, from: u64, end: u64) -> Option<Range<u64>> {
        let mut start = from;
        for range in &self.0 {
            if range.end <= start {
                continue;
            }
            if range.start > start {
                return Some(start..range.start.min(end)).filter(|gap| !gap.is_empty());
            }
            start = range.end;
        }
        Some(start..end).filter(|gap| !gap.is_empty())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }
}

/// The file beside an unfinished one.
#[derive(Serialize, Deserialize)]
struct Map {
    format: u32,
    /// Beginning and end of each range.
    have: Vec<[u64; 2]>,
}

const FORMAT: u32 = 1;

/// Returns where the map of an unfinished file lies.
pub(in crate::models::pull) fn map_path(store: &ModelStore, sha256: &str) -> PathBuf {
    store.blob_path(sha256).with_extension("ranges")
}

/// Says which bytes of an unfinished file are here: by its map, or, where it has none, all up to its end.
pub(super) fn read_map(partial: &Path, map: &Path, size_bytes: u64) -> RangeSet {
    let mut have = RangeSet::default();
    let there = fs::metadata(partial).map_or(0, |metadata| metadata.len());
    if !map.exists() {
        if there <= size_bytes {
            have.add(0..there);
        }
        return have;
    }
    let read = || {
        fs::metadata(map).ok().filter(|metadata| metadata.len() <= MAP_BYTES_MAX)?;
        let map: Map = serde_json::from_slice(&fs::read(map).ok()?).ok()?;
        (map.format == FORMAT).then_some(map.have)
    };
    // Of a map that cannot be read nothing is believed: what the file has between its pieces are zeros.
    for [start, end] in read().unwrap_or_default() {
        let end = end.min(there).min(size_bytes);
        if start < end {
            have.add(start..end);
        }
    }
    have
}

/// Writes a map, whole or not at all. What it says must be on the disk.
pub(super) fn write_map(store: &ModelStore, map: &Path, have: &RangeSet) -> Result<(), StoreError> {
    let map_file = Map { format: FORMAT, have: have.iter().map(|range| [range.start, range.end]).collect() };
    let text = serde_json::to_vec(&map_file).expect("a map has text keys only");
    let mut staged = store.staging_file()?;
    let written = staged.write_all(&text).and_then(|()| staged.as_file().sync_all());
    written.map_err(|error| store.write_error(map, error, text.len() as u64))?;
    staged.persist(map).map_err(|error| StoreError::io(map)(error.error))?;
    Ok(())
}

/// Makes an unfinished file with gaps one that ends where its first gap begins, and takes its map away: a source that sends from a place on
/// goes on from there.
pub(in crate::models::pull) fn cut_at_first_gap(store: &ModelStore, sha256: &str) -> io::Result<()> {
    let (partial, map) = (partial_path(store, sha256), map_path(store, sha256));
    if !map.exists() {
        return Ok(());
    }
    let prefix = read_map(&partial, &map, u64::MAX).prefix();
    match fs::OpenOptions::new().write(true).open(&partial) {
        Ok(file) => {
            file.set_len(prefix)?;
            // Before the map goes, since without it all that the file has counts.
            file.sync_all()?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::remove_file(&map)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn set(ranges: &[Range<u64>]) -> RangeSet {
        let mut set = RangeSet::default();
        ranges.iter().for_each(|range| set.add(range.clone()));
        set
    }

    proptest! {
        #[test]
        fn it_has_what_a_list_of_all_bytes_has(
            added in prop::collection::vec((0_u64..64, 0_u64..16), 0..40),
        ) {
            let mut set = RangeSet::default();
            let mut bytes = [false; 80];
            for (start, length) in added {
                bytes[start as usize..(start + length) as usize].fill(true);
                set.add(start..start + length);
            }
            let told: Vec<bool> = (0..80).map(|at| set.iter().any(|range| range.contains(&at))).collect();
            prop_assert_eq!(&told[..], &bytes[..]);
            prop_assert_eq!(set.bytes(), bytes.iter().filter(|has| **has).count() as u64);
            prop_assert_eq!(set.prefix(), bytes.iter().take_while(|has| **has).count() as u64);
            let first_gap = bytes.iter().position(|has| !has).map(|at| at as u64);
            prop_assert_eq!(set.gap(0, 80).map(|gap| gap.start), first_gap);
            prop_assert!(set.0.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }

    #[test]
    fn a_gap_ends_where_the_next_range_begins() {
        let set = set(&[10..20, 30..40]);
        assert_eq!(set.gap(0, 50), Some(0..10));
        assert_eq!(set.gap(15, 50), Some(20..30));
        assert_eq!(set.gap(35, 50), Some(40..50));
        assert_eq!(set.gap(35, 40), None);
        assert_eq!(set.gap(20, 25), Some(20..25));
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "the set has one range")]
    fn a_map_is_believed_as_far_as_the_file_goes_and_no_further() {
        let directory = TempDir::new().unwrap();
        let store = ModelStore::open(directory.path()).unwrap();
        let sha256 = "a".repeat(64);
        let (partial, map) = (partial_path(&store, &sha256), map_path(&store, &sha256));
        assert_eq!(read_map(&partial, &map, 100), RangeSet::default());
        fs::write(&partial, [1; 50]).unwrap();
        assert_eq!(read_map(&partial, &map, 100), set(&[0..50]), "without a map all of it counts");
        assert_eq!(read_map(&partial, &map, 40), RangeSet::default(), "it is another file's");
        write_map(&store, &map, &set(&[0..10, 20..30, 45..60])).unwrap();
        assert_eq!(read_map(&partial, &map, 100), set(&[0..10, 20..30, 45..50]));
        for damaged in ["", "{}", r#"{"format":2,"have":[[0,50]]}"#, r#"{"format":1,"have":[[9,3]]}"#] {
            fs::write(&map, damaged).unwrap();
            assert_eq!(read_map(&partial, &map, 100), RangeSet::default(), "{damaged:?}");
        }
        write_map(&store, &map, &set(&[0..10, 20..30])).unwrap();
        cut_at_first_gap(&store, &sha256).unwrap();
        assert_eq!((fs::read(&partial).unwrap(), map.exists()), (vec![1; 10], false));
        cut_at_first_gap(&store, &sha256).unwrap();
    }
}
