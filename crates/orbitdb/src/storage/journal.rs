//! A journal beside a file of redb: small changes are safe once they stand in it, which takes one write to one place of a file whose size
//! does not change. A B-tree that is copied on write takes some seven for the same.
//!
//! The file begins with what it is and with a random salt. From [`BEGIN`] on records follow each other, numbered without a gap. When there is
//! no room for a further one, everything in it is moved into the tree, which notes the number of the last record that it has, and records
//! begin at the front again. What is left of earlier ones behind the last one is told by its number, and a record that was cut off by its
//! checksum. That is salted: what peers wrote stands in records, and must not pass for one wherever it comes to lie.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::platform::{create_private_file, sync_directory, write_all_at};
use super::{Batch, Table};

/// Bytes of the file, which are written when it is made, so that syncing later writes concerns their content and nothing else.
pub(super) const FILE_BYTES: usize = 1 << 20;

/// The first bytes of the file, in this version.
const MAGIC: &[u8; 16] = b"orbitdb journal1";

/// In what pieces it is written then. Linux keeps what was written at once together in memory, and looks at all of it with every change.
const PAGE_BYTES: usize = 4096;

const SALT_BYTES: usize = 16;

/// Where records begin: in a block of the disk of their own.
const BEGIN: usize = 4096;

const SUM_BYTES: usize = 16;

/// What stands before the changes of a record: their length, the number, and the checksum of both and the changes.
const HEAD_BYTES: usize = 4 + 8 + SUM_BYTES;

/// What a journal is written to; in tests one that tells what a crash of the system would leave of it.
pub(super) trait JournalFile: Send {
    /// Writes bytes at a place.
    fn write_at(&self, bytes: &[u8], at: usize) -> io::Result<()>;

    /// Makes everything safe that was written.
    fn sync(&self) -> io::Result<()>;
}

impl JournalFile for File {
    fn write_at(&self, bytes: &[u8], at: usize) -> io::Result<()> {
        write_all_at(self, bytes, at as u64)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// An open journal.
pub(super) struct Journal {
    pub(super) file: Box<dyn JournalFile>,
    salt: [u8; SALT_BYTES],
    /// Where the next record goes.
    end: usize,
    /// Whether something was written that is not safe yet.
    is_behind: bool,
}

impl Journal {
    /// Makes a journal, in place of one that is there.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let draft = path.with_extension("journal-new");
        remove(&draft)?;
        let file = create_private_file(&draft)?;
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        let mut bytes = vec![0; FILE_BYTES];
        bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        bytes[MAGIC.len()..MAGIC.len() + SALT_BYTES].copy_from_slice(&salt);
        for (number, page) in bytes.chunks(PAGE_BYTES).enumerate() {
            JournalFile::write_at(&file, page, number * PAGE_BYTES)?;
        }
        file.sync_all()?;
        fs::rename(&draft, path)?;
        sync_directory(path)?;
        Ok(Self { file: Box::new(file), salt, end: BEGIN, is_behind: false })
    }

    /// Opens the journal that is there, if one is. Returns its changes behind the record of a number, oldest first.
    pub(super) fn open(path: &Path, last: u64) -> io::Result<Option<(Self, Vec<Batch>)>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is no journal of this version");
        let (salt, end, batches) = read(&fs::read(path)?, last).ok_or_else(damaged)?;
        Ok(Some((Self { file: Box::new(file), salt, end, is_behind: false }, batches)))
    }

    /// Returns whether a record of changes that take so many bytes fits behind the others.
    pub(super) const fn has_room(&self, payload: usize) -> bool {
        self.end + HEAD_BYTES + payload <= FILE_BYTES
    }

    /// Writes a record with a number. It is safe after the next [`Journal::sync`].
    pub(super) fn append(&mut self, number: u64, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len());
        bytes.extend(length.to_be_bytes());
        bytes.extend(number.to_be_bytes());
        bytes.extend(sum(&self.salt, number, payload));
        bytes.extend(payload);
        self.file.write_at(&bytes, self.end)?;
        self.end += bytes.len();
        self.is_behind = true;
        Ok(())
    }

    /// Makes everything safe that was written.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_behind {
            self.file.sync()?;
            self.is_behind = false;
        }
        Ok(())
    }

    /// Begins at the front again, once all records are safe elsewhere.
    pub(super) const fn restart(&mut self) {
        self.end = BEGIN;
        self.is_behind = false;
    }
}

/// Returns where the journal of a file of redb stands.
pub(super) fn path_of(path: &Path) -> PathBuf {
    path.with_extension("journal")
}

/// Removes a file; one that is not there is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sum(salt: &[u8; SALT_BYTES], number: u64, payload: &[u8]) -> [u8; SUM_BYTES] {
    let mut hasher = Sha256::new();
    hasher.update(salt);
    hasher.update(number.to_be_bytes());
    hasher.update((payload.len() as u64).to_be_bytes());
    hasher.update(payload);
    let digest: [u8; 32] = hasher.finalize().into();
    *digest.first_chunk().expect("a digest has 32 bytes")
}

/// Reads the bytes of a journal: its salt, where its records end, and their changes behind the record of a number. None where it is none.
fn read(bytes: &[u8], last: u64) -> Option<([u8; SALT_BYTES], usize, Vec<Batch>)> {
    let salt = bytes.strip_prefix(MAGIC)?.first_chunk::<SALT_BYTES>().filter(|_| bytes.len() == FILE_BYTES)?;
    let (mut batches, mut end) = (Vec::new(), BEGIN);
    while let Some(payload) = record(&bytes[end..], salt, last.checked_add(1 + batches.len() as u64)?) {
        batches.push(changes_of(payload)?);
        end += HEAD_BYTES + payload.len();
    }
    Some((*salt, end, batches))
}

/// Returns the changes of the record that stands first in bytes, if that is whole and has this number.
fn record<'a>(bytes: &'a [u8], salt: &[u8; SALT_BYTES], number: u64) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (found, rest) = rest.split_first_chunk::<8>()?;
    let (told, rest) = rest.split_first_chunk::<SUM_BYTES>()?;
    let payload = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    (u64::from_be_bytes(*found) == number && *told == sum(salt, number, payload)).then_some(payload)
}

/// Writes changes: for each its table and what it is, the lengths of key and value, and both.
pub(super) fn payload_of(batch: &Batch) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(batch.bytes() + 10 * batch.changes.len());
    for (table, key, value) in &batch.changes {
        bytes.push(table.code());
        bytes.push(u8::from(value.is_some()));
        let value = value.as_deref().unwrap_or_default();
        for part in [key, value] {
            bytes.extend(u32::try_from(part.len()).expect("changes in a journal are small").to_be_bytes());
            bytes.extend(part);
        }
    }
    bytes
}

fn changes_of(mut bytes: &[u8]) -> Option<Batch> {
    let mut batch = Batch::default();
    while let [table, is_put, rest @ ..] = bytes {
        let table = Table::of_code(*table)?;
        let (key, rest) = part(rest)?;
        let (value, rest) = part(rest)?;
        match is_put {
            0 => batch.delete(table, key),
            _ => batch.put(table, key, value.to_vec()),
        }
        bytes = rest;
    }
    bytes.is_empty().then_some(batch)
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(number: u8) -> Batch {
        let mut batch = Batch::default();
        batch.put(Table::Entries, &[number; 3], vec![number; 100]);
        batch.put(Table::Meta, b"empty", Vec::new());
        batch.delete(Table::Keys, &[number]);
        batch
    }

    fn journal(records: std::ops::Range<u8>) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("space.journal");
        let mut journal = Journal::create(&path).unwrap();
        for number in records {
            journal.append(number.into(), &payload_of(&batch(number))).unwrap();
        }
        journal.sync().unwrap();
        (directory, path)
    }

    fn changes_in(path: &Path, last: u64) -> Vec<Batch> {
        Journal::open(path, last).unwrap().unwrap().1
    }

    /// Returns a journal in memory in which this stands where records begin.
    fn with_records(records: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; FILE_BYTES];
        bytes[..MAGIC.len()].copy_from_slice(MAGIC);
        bytes[BEGIN..BEGIN + records.len()].copy_from_slice(records);
        bytes
    }

    /// Returns a whole record of the first number, whatever is in it.
    fn first_record(payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[..], &1_u64.to_be_bytes(), &sum(&[0; SALT_BYTES], 1, payload), payload].concat()
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_file_it_is_read_or_is_no_journal(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            last in any::<u64>(),
        ) {
            drop(read(&bytes, last));
            drop(read(&with_records(&bytes), last));
            drop(read(&with_records(&first_record(&bytes)), 0));
        }

        #[test]
        fn changes_are_read_as_they_were_written(
            changes in prop::collection::vec((any::<Vec<u8>>(), prop::option::of(any::<Vec<u8>>())), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut batch = Batch::default();
            for (key, value) in &changes {
                match value {
                    Some(value) => batch.put(Table::Blocks, key, value.clone()),
                    None => batch.delete(Table::Blocks, key),
                }
            }
            let payload = payload_of(&batch);
            let (_, end, batches) = read(&with_records(&first_record(&payload)), 0).unwrap();
            prop_assert_eq!((end, batches), (BEGIN + HEAD_BYTES + payload.len(), vec![batch]));
            // What is cut may be fewer changes, or none, and is never an error of the program.
            drop(changes_of(&payload[..cut.index(payload.len() + 1)]));
        }
    }

    #[test]
    fn what_was_written_is_read_up_to_the_first_that_is_not_whole() {
        let (_directory, path) = journal(1..4);
        assert_eq!(changes_in(&path, 0), [batch(1), batch(2), batch(3)]);
        assert!(changes_in(&path, 3).is_empty(), "what the tree has is not read again");
        assert!(changes_in(&path, 1).is_empty(), "records have no gap");
        let mut bytes = fs::read(&path).unwrap();
        let length = HEAD_BYTES + payload_of(&batch(1)).len();
        for at in 0..length {
            let at = BEGIN + length + at;
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(changes_in(&path, 0), [batch(1)], "byte {at}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn what_is_left_of_an_earlier_round_is_not_read() {
        let (_directory, path) = journal(1..8);
        let (mut journal, _) = Journal::open(&path, 0).unwrap().unwrap();
        journal.restart();
        journal.append(8, &payload_of(&batch(8))).unwrap();
        journal.sync().unwrap();
        // The next one there would be the second, whole as it is.
        assert_eq!(changes_in(&path, 7), [batch(8)]);
    }

    #[test]
    fn records_of_another_journal_mean_nothing() {
        let (_directory, path) = journal(1..3);
        let (_other_directory, other) = journal(1..3);
        let mut bytes = fs::read(&path).unwrap();
        bytes[BEGIN..].copy_from_slice(&fs::read(&other).unwrap()[BEGIN..]);
        fs::write(&path, bytes).unwrap();
        assert!(changes_in(&path, 0).is_empty(), "a peer cannot write a record into its entries");
    }

    #[test]
    fn what_is_no_journal_is_told() {
        let (_directory, path) = journal(1..2);
        fs::write(&path, b"something else").unwrap();
        assert!(Journal::open(&path, 0).is_err());
        assert!(Journal::open(&path.with_extension("none"), 0).unwrap().is_none());
    }
}
