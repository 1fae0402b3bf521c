use super::*;

fn store() -> (tempfile::TempDir, KeyStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = KeyStore::open(directory.path().join("keys.json"));
    (directory, store)
}

#[test]
fn a_key_opens_until_it_is_revoked() {
    let (_directory, store) = store();
    let key = store.create("laptop").unwrap();
    assert_eq!(store.verify(&key.secret).unwrap().as_deref(), Some("laptop"));
    assert_eq!(store.verify("bk_wrong").unwrap(), None);
    store.revoke("laptop").unwrap();
    assert_eq!(store.verify(&key.secret).unwrap(), None);
}

#[test]
fn another_process_that_revokes_a_key_is_seen_at_once() {
    let (directory, store) = store();
    let other = KeyStore::open(directory.path().join("keys.json"));
    let key = store.create("a").unwrap();
    assert!(other.verify(&key.secret).unwrap().is_some());
    store.revoke("a").unwrap();
    let next = store.create("a").unwrap();
    assert!(other.verify(&key.secret).unwrap().is_none());
    assert!(other.verify(&next.secret).unwrap().is_some());
}

#[test]
fn a_file_changed_twice_within_a_tick_of_the_clock_is_read_twice() {
    let (directory, store) = store();
    let key = store.create("a").unwrap();
    assert!(store.verify(&key.secret).unwrap().is_some());
    let path = directory.path().join("keys.json");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let text = fs::read_to_string(&path).unwrap().replace(&hash(&key.secret), &hash("another"));
    fs::write(&path, text).unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert!(store.verify(&key.secret).unwrap().is_none());
}

#[test]
fn the_key_of_the_nodes_own_run_opens_where_the_file_is_broken() {
    let (directory, store) = store();
    let (store, secret) = store.with_session_key().unwrap();
    fs::write(directory.path().join("keys.json"), "garbage").unwrap();
    assert_eq!(store.verify(&secret).unwrap().as_deref(), Some("session"));
    assert!(store.verify("bk_wrong").is_err());
}

#[test]
fn the_file_holds_no_secret_and_only_its_owner_reads_it() {
    let (directory, store) = store();
    let key = store.create("a").unwrap();
    let path = directory.path().join("keys.json");
    assert!(!fs::read_to_string(&path).unwrap().contains(&key.secret));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn names_are_unique_and_plain() {
    let (_directory, store) = store();
    store.create("a").unwrap();
    assert!(matches!(store.create("a"), Err(KeyError::Exists(_))));
    assert!(matches!(store.create("a b"), Err(KeyError::BadName(_))));
    assert!(matches!(store.create(""), Err(KeyError::BadName(_))));
    assert!(matches!(store.revoke("b"), Err(KeyError::Unknown(_))));
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn files_that_cannot_be_understood_are_refused() {
    let (directory, store) = store();
    let path = directory.path().join("keys.json");
    fs::write(&path, "{").unwrap();
    assert!(matches!(store.verify("x"), Err(KeyError::Broken { .. })));
    fs::write(&path, r#"{"version": 2, "keys": "of another form"}"#).unwrap();
    assert!(matches!(store.list(), Err(KeyError::Newer { found: 2, .. })));
    assert!(matches!(store.create("a"), Err(KeyError::Newer { .. })), "a newer file is never overwritten");
}

#[test]
fn processes_that_create_keys_at_once_lose_none() {
    let (directory, _) = store();
    std::thread::scope(|scope| {
        for index in 0..8 {
            let store = KeyStore::open(directory.path().join("keys.json"));
            scope.spawn(move || store.create(&format!("key-{index}")).unwrap());
        }
    });
    assert_eq!(KeyStore::open(directory.path().join("keys.json")).list().unwrap().len(), 8);
}
