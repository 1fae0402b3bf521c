use super::*;

fn both(check: impl Fn(&dyn Storage)) {
    check(&Memory::default());
    let directory = tempfile::tempdir().unwrap();
    check(&Redb::new(directory.path(), RedbConfig::default()).unwrap());
}

fn all(space: &dyn Space, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    space.scan(table, &mut |key, value| pairs.push((key.to_vec(), value.to_vec()))).unwrap();
    pairs
}

#[test]
fn what_was_committed_is_there_and_tables_are_apart() {
    both(|storage| {
        let space = storage.open("space").unwrap();
        let mut batch = Batch::default();
        batch.put(Table::Entries, b"b", vec![1]);
        batch.put(Table::Entries, b"a", vec![2]);
        batch.put(Table::Meta, b"a", vec![3]);
        space.commit(&batch, Durability::Full).unwrap();
        assert_eq!(all(&*space, Table::Entries), [(b"a".to_vec(), vec![2]), (b"b".to_vec(), vec![1])]);
        assert_eq!(space.get(Table::Meta, b"a").unwrap(), Some(vec![3]));
        assert_eq!(space.get(Table::Blocks, b"a").unwrap(), None);
        let mut batch = Batch::default();
        batch.delete(Table::Entries, b"a");
        space.commit(&batch, Durability::Relaxed).unwrap();
        assert_eq!(all(&*space, Table::Entries).len(), 1);
        assert!(space.bytes().unwrap() > 0);
    });
}

#[test]
fn a_space_is_the_same_when_it_is_opened_again_and_gone_when_it_was_removed() {
    both(|storage| {
        let space = storage.open("space").unwrap();
        let mut batch = Batch::default();
        batch.put(Table::Meta, b"a", vec![3]);
        space.commit(&batch, Durability::Full).unwrap();
        assert_eq!(storage.open("space").unwrap().get(Table::Meta, b"a").unwrap(), Some(vec![3]));
        assert_eq!(storage.remove("space"), Err(StorageError::InUse("space".into())));
        drop(space);
        assert_eq!(storage.open("space").unwrap().get(Table::Meta, b"a").unwrap(), Some(vec![3]));
        storage.remove("space").unwrap();
        storage.remove("space").unwrap();
        assert_eq!(storage.open("space").unwrap().get(Table::Meta, b"a").unwrap(), None);
    });
}

#[test]
fn what_was_taken_away_takes_no_room_once_a_space_is_compacted() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Redb::new(directory.path(), RedbConfig::default()).unwrap();
    let space = storage.open("space").unwrap();
    let key = |number: u32| number.to_be_bytes();
    for first in (0..400).step_by(40) {
        let mut batch = Batch::default();
        (first..first + 40).for_each(|number| batch.put(Table::Blocks, &key(number), vec![7; 50_000]));
        space.commit(&batch, Durability::Full).unwrap();
    }
    let full = space.bytes().unwrap();
    let mut batch = Batch::default();
    (0..400).filter(|number| number % 20 != 0).for_each(|number| batch.delete(Table::Blocks, &key(number)));
    space.commit(&batch, Durability::Full).unwrap();
    space.compact().unwrap();
    let left = space.bytes().unwrap();
    assert!(full > 20_000_000 && left < full / 4, "{full} {left}");
    let mut batch = Batch::default();
    batch.put(Table::Meta, b"after", vec![1]);
    space.commit(&batch, Durability::Full).unwrap();
    drop(space);
    let space = storage.open("space").unwrap();
    assert_eq!(all(&*space, Table::Blocks).len(), 20);
    assert_eq!(space.get(Table::Blocks, &key(20)).unwrap(), Some(vec![7; 50_000]));
    assert_eq!(space.get(Table::Meta, b"after").unwrap(), Some(vec![1]));
}

#[test]
fn names_that_could_leave_the_directory_are_refused() {
    both(|storage| {
        for name in ["", ".", "../a", "a/b", "a.b", "ä", &"a".repeat(129)] {
            assert_eq!(storage.open(name).err(), Some(StorageError::Name(name.into())), "{name}");
        }
    });
}

#[cfg(unix)]
#[test]
fn files_are_for_their_owner_only_and_a_half_made_one_is_made_anew() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("inner");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("space.new"), b"half").unwrap();
    let storage = Redb::new(&path, RedbConfig::default()).unwrap();
    drop(storage.open("space").unwrap());
    let mode = std::fs::metadata(path.join("space.redb")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!path.join("space.new").exists());
}

/// Copies the files of a space as a crash would leave them.
fn crashed(directory: &std::path::Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(directory).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

#[test]
fn many_small_changes_are_there_after_a_crash_and_in_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Redb::new(directory.path(), RedbConfig::default()).unwrap();
    let space = storage.open("space").unwrap();
    let value = |number: u64| number.to_be_bytes().repeat(300);
    // Several times what fits into a journal.
    for number in 0..1500_u64 {
        let mut batch = Batch::default();
        batch.put(Table::Entries, &(number ^ 5).to_be_bytes(), value(number));
        batch.put(Table::Meta, b"last", number.to_be_bytes().to_vec());
        if number % 3 == 0 {
            batch.delete(Table::Entries, &((number ^ 5) / 2).to_be_bytes());
        }
        space.commit(&batch, if number % 5 == 0 { Durability::Full } else { Durability::Relaxed }).unwrap();
        if number % 177 == 0 || number < 20 {
            let copy = crashed(directory.path());
            let left = Redb::new(copy.path(), RedbConfig::default()).unwrap().open("space").unwrap();
            assert_eq!(all(&*left, Table::Entries), all(&*space, Table::Entries), "after {number}");
            assert_eq!(left.get(Table::Meta, b"last").unwrap(), Some(number.to_be_bytes().to_vec()));
        }
    }
    assert!(directory.path().join("space.journal").exists());
    let before = all(&*space, Table::Entries);
    drop(space);
    assert!(!directory.path().join("space.journal").exists(), "who closes leaves none");
    assert_eq!(all(&*storage.open("space").unwrap(), Table::Entries), before);
}

#[test]
fn private_keys_never_stand_in_a_journal_and_a_removed_space_leaves_none() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Redb::new(directory.path(), RedbConfig::default()).unwrap();
    let space = storage.open("space").unwrap();
    let path = directory.path().join("space.journal");
    for number in 0..20_u8 {
        let mut batch = Batch::default();
        batch.put(Table::Meta, &[number], b"note".to_vec());
        space.commit(&batch, Durability::Full).unwrap();
        let mut batch = Batch::default();
        batch.put(Table::Keys, &[number], b"secret".to_vec());
        space.commit(&batch, Durability::Full).unwrap();
    }
    let has = |what: &[u8]| std::fs::read(&path).unwrap().windows(what.len()).any(|window| window == what);
    assert!(has(b"note") && !has(b"secret"));
    let copy = crashed(directory.path());
    Redb::new(copy.path(), RedbConfig::default()).unwrap().remove("space").unwrap();
    assert_eq!(std::fs::read_dir(copy.path()).unwrap().count(), 0);
}

/// What is done with a space: a key, a value or none, and whether it is closed and opened again before that.
type Step = (u8, u8, Option<Vec<u8>>, bool);

proptest::proptest! {
    #[test]
    fn files_show_what_memory_shows(
        steps in proptest::collection::vec(proptest::prelude::any::<Step>(), 1..60),
    ) {
        let (directory, memory) = (tempfile::tempdir().unwrap(), Memory::default());
        let files = Redb::new(directory.path(), RedbConfig::default()).unwrap();
        let expected = memory.open("space").unwrap();
        let mut space = files.open("space").unwrap();
        for (key, table, value, reopen) in steps {
            if reopen && key % 4 == 0 {
                drop(space);
                space = files.open("space").unwrap();
            }
            let table = Table::ALL[usize::from(table % 3)];
            let mut batch = Batch::default();
            match value {
                Some(value) => batch.put(table, &[key % 8], value),
                None => batch.delete(table, &[key % 8]),
            }
            for space in [&expected, &space] {
                space.commit(&batch, Durability::Full).unwrap();
            }
            proptest::prop_assert_eq!(all(&*space, table), all(&*expected, table));
            proptest::prop_assert_eq!(space.get(table, &[key % 8]).unwrap(), expected.get(table, &[key % 8]).unwrap());
        }
    }
}
