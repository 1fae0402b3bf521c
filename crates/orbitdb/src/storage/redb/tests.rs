use std::{fs::File, io, thread, time::Duration};

use super::super::journal::JournalFile;
use super::*;

/// The file of a journal, and what a crash of the whole system would leave of it: what was written and synced.
struct Disk {
    file: File,
    path: PathBuf,
    left: Arc<Mutex<Vec<u8>>>,
}

impl JournalFile for Disk {
    fn write_at(&self, bytes: &[u8], at: usize) -> io::Result<()> {
        JournalFile::write_at(&self.file, bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()?;
        *self.left.lock().unwrap() = fs::read(&self.path)?;
        Ok(())
    }
}

/// Puts such a file under the journal of an open space.
fn watch_journal(storage: &Redb, space: &str) -> Arc<Mutex<Vec<u8>>> {
    let path = journal::path_of(&storage.path(space));
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let left = Arc::new(Mutex::new(fs::read(&path).unwrap()));
    put_under_journal(storage, space, Disk { file, path, left: Arc::clone(&left) });
    left
}

fn put_under_journal(storage: &Redb, space: &str, file: impl JournalFile + 'static) {
    let space = storage.open.lock().unwrap()[space].space.upgrade().unwrap();
    let mut writing = space.writing.lock().unwrap();
    writing.journal.as_mut().unwrap().file = Box::new(file);
}

/// The file of a journal that is closed only when that is let happen.
struct Slow {
    file: File,
    closing: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
}

impl JournalFile for Slow {
    fn write_at(&self, bytes: &[u8], at: usize) -> io::Result<()> {
        JournalFile::write_at(&self.file, bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.closing.send(()).unwrap();
        for () in &self.go_on {}
    }
}

/// Makes so many small changes that the last one is the first that goes to a journal.
fn begin_journal(space: &dyn Space) {
    for number in 0..=IN_TREE_FIRST {
        commit(space, &format!("first {number}"), Durability::Full);
    }
}

fn commit(space: &dyn Space, name: &str, durability: Durability) {
    let mut batch = Batch::default();
    batch.put(Table::Meta, name.as_bytes(), vec![1]);
    space.commit(&batch, durability).unwrap();
}

#[test]
fn a_space_that_is_still_being_closed_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Redb::new(directory.path(), RedbConfig::default()).unwrap();
    for removes in [false, true] {
        let space = storage.open("space").unwrap();
        begin_journal(&*space);
        let ((closing, is_closing), (let_go, go_on)) = (mpsc::channel(), mpsc::channel());
        let file = fs::OpenOptions::new().write(true).open(journal::path_of(&storage.path("space"))).unwrap();
        put_under_journal(&storage, "space", Slow { file, closing, go_on });
        let (done, is_done) = mpsc::channel();
        let first = thread::scope(|scope| {
            scope.spawn(move || drop(space));
            is_closing.recv().unwrap();
            let storage = &storage;
            scope.spawn(move || {
                if removes {
                    storage.remove("space").unwrap();
                }
                let first = storage.open("space").map(|space| space.get(Table::Meta, b"first 0").unwrap());
                done.send(first.unwrap()).unwrap();
            });
            assert!(is_done.recv_timeout(Duration::from_millis(200)).is_err(), "whoever closes it is not done yet");
            drop(let_go);
            is_done.recv().unwrap()
        });
        assert_eq!(first.is_some(), !removes);
    }
}

#[test]
fn what_is_committed_in_full_was_synced_when_that_returns_with_all_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Redb::new(directory.path(), RedbConfig::default()).unwrap();
    let space = storage.open("space").unwrap();
    let commit = |name: &str, durability| commit(&*space, name, durability);
    begin_journal(&*space);
    let journal = watch_journal(&storage, "space");
    let is_safe = |name: &str| {
        let copy = tempfile::tempdir().unwrap();
        fs::copy(storage.path("space"), copy.path().join("space.redb")).unwrap();
        fs::write(copy.path().join("space.journal"), &*journal.lock().unwrap()).unwrap();
        let left = Redb::new(copy.path(), RedbConfig::default()).unwrap().open("space").unwrap();
        left.get(Table::Meta, name.as_bytes()).unwrap().is_some()
    };
    assert!(is_safe("first 0") && is_safe(&format!("first {IN_TREE_FIRST}")));
    commit("relaxed", Durability::Relaxed);
    assert!(!is_safe("relaxed"), "it need not be, and is not for the sake of speed");
    commit("full", Durability::Full);
    assert!(is_safe("full") && is_safe("relaxed"));
    commit("relaxed again", Durability::Relaxed);
    space.commit(&Batch::default(), Durability::Full).unwrap();
    assert!(is_safe("relaxed again"), "a full one that changes nothing makes safe what is there");
}
