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
