//! Storage in files, one to a space, by redb: copy-on-write B-trees, so that a crash leaves the last safe state. Small changes go to a journal
//! beside it first.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak,
        mpsc::{self, TryRecvError},
    },
};

use redb::{
    CompactionError, Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError,
    backends::FileBackend,
};

use super::{
    Batch, Durability, Space, Storage, StorageError, Table, check_name,
    journal::{self, Journal},
    pending::Pending,
    platform::{create_private_dir, create_private_file, sync_directory},
};

/// How many bytes the changes may have that go to the journal. Larger ones would be written twice for little.
const RECORD_BYTES_MAX: usize = 256 << 10;

/// How many small changes are made without a journal when a space was opened: who writes seldom needs none.
const IN_TREE_FIRST: u32 = 8;

/// The number of the last record of the journal that the tree has.
const MOVED: TableDefinition<'static, (), u64> = TableDefinition::new("moved");

/// How files are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedbConfig {
    /// Memory for pages of each open space, in bytes. Default 16 MiB.
    pub cache_bytes: usize,
}

impl Default for RedbConfig {
    fn default() -> Self {
        Self { cache_bytes: 16 << 20 }
    }
}

/// Keeps each space in a file of a directory, readable for its owner only.
pub struct Redb {
    directory: PathBuf,
    config: RedbConfig,
    /// A file can be opened once at a time.
    open: Mutex<HashMap<String, Opened>>,
}

/// A space that was opened.
struct Opened {
    space: Weak<RedbSpace>,
    /// Ends when the space is closed: whoever lets go of it last still writes what its journal has.
    closed: mpsc::Receiver<()>,
}

struct RedbSpace {
    path: PathBuf,
    /// Taken for writing only by who compacts it, after `writing`.
    database: RwLock<Database>,
    writing: Mutex<Writing>,
    /// What the journal has and the tree has not. Taken after `writing` where both are.
    pending: RwLock<Pending>,
    /// Nothing is sent. It ends after all of the above, and with it what waits for that.
    _closed: mpsc::Sender<()>,
}

/// What one has who writes.
#[derive(Default)]
struct Writing {
    journal: Option<Journal>,
    /// The number of the last record.
    last: u64,
    /// How many small changes were made in the tree since the space was opened.
    in_tree: u32,
    /// Why nothing can be written any more: after a failure nobody knows what the journal holds.
    failure: Option<StorageError>,
}

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

const fn definition(table: Table) -> Definition {
    TableDefinition::new(match table {
        Table::Entries => "entries",
        Table::Blocks => "blocks",
        Table::Meta => "meta",
        Table::Keys => "keys",
    })
}

fn failed(place: &Path, reason: impl Display) -> StorageError {
    StorageError::Failed { place: place.display().to_string(), reason: reason.to_string() }
}

impl Redb {
    /// Keeps spaces in a directory, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// [`StorageError::Failed`] when it cannot be made.
    pub fn new(directory: impl Into<PathBuf>, config: RedbConfig) -> Result<Self, StorageError> {
        let directory = directory.into();
        create_private_dir(&directory).map_err(|error| failed(&directory, error))?;
        Ok(Self { directory, config, open: Mutex::default() })
    }

    fn path(&self, space: &str) -> PathBuf {
        self.directory.join(format!("{space}.redb"))
    }

    /// Makes a file under another name first, so that under its own it is whole or not there.
    fn make(&self, path: &Path) -> Result<(), StorageError> {
        let draft = path.with_extension("new");
        for old in [draft.clone(), journal::path_of(path)] {
            journal::remove(&old).map_err(|error| failed(&old, error))?;
        }
        let file = create_private_file(&draft).map_err(|error| failed(&draft, error))?;
        let backend = FileBackend::new(file).map_err(|error| failed(&draft, error))?;
        let database = Database::builder().create_with_backend(backend).map_err(|error| failed(&draft, error))?;
        let write = || -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            for table in Table::ALL {
                transaction.open_table(definition(table))?;
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| failed(&draft, error))?;
        drop(database);
        fs::rename(&draft, path).map_err(|error| failed(path, error))?;
        sync_directory(path).map_err(|error| failed(&self.directory, error))
    }
}

impl Storage for Redb {
    fn open(&self, space: &str) -> Result<Arc<dyn Space>, StorageError> {
        check_name(space)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = open.get(space) {
            if let Some(space) = opened.space.upgrade() {
                return Ok(space);
            }
            opened.wait();
        }
        let path = self.path(space);
        if !path.exists() {
            self.make(&path)?;
        }
        let database = Database::builder().set_cache_size(self.config.cache_bytes).open(&path);
        let database = database.map_err(|error| failed(&path, error))?;
        let (closing, closed) = mpsc::channel();
        let opened = Arc::new(RedbSpace::open(path, database, closing)?);
        open.retain(|_, opened| !opened.is_closed());
        open.insert(space.to_owned(), Opened { space: Arc::downgrade(&opened), closed });
        Ok(opened)
    }

    fn remove(&self, space: &str) -> Result<(), StorageError> {
        check_name(space)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.get(space).is_some_and(|opened| opened.space.strong_count() > 0) {
            return Err(StorageError::InUse(space.to_owned()));
        }
        if let Some(opened) = open.remove(space) {
            opened.wait();
        }
        let path = self.path(space);
        // The journal goes first: what it holds must not turn up in a space that is made anew.
        for path in [journal::path_of(&path), path] {
            journal::remove(&path).map_err(|error| failed(&path, error))?;
        }
        Ok(())
    }
}

impl Opened {
    /// Waits until the space is closed, once nobody has it any more.
    fn wait(&self) {
        for () in &self.closed {}
    }

    fn is_closed(&self) -> bool {
        self.closed.try_recv() == Err(TryRecvError::Disconnected)
    }
}

impl RedbSpace {
    /// Opens a space, and moves what a crash left in its journal to where it belongs.
    fn open(path: PathBuf, database: Database, closing: mpsc::Sender<()>) -> Result<Self, StorageError> {
        let journal_path = journal::path_of(&path);
        let last = last_moved(&database).map_err(|error| failed(&path, error))?;
        let opened = Journal::open(&journal_path, last).map_err(|error| failed(&journal_path, error))?;
        let (journal, left) = opened.map_or((None, Vec::new()), |(journal, left)| (Some(journal), left));
        let mut pending = Pending::default();
        left.iter().for_each(|batch| pending.take(batch));
        let writing = Writing { journal, last: last + left.len() as u64, in_tree: 0, failure: None };
        let (database, writing, pending) = (RwLock::new(database), Mutex::new(writing), RwLock::new(pending));
        let space = Self { path, database, writing, pending, _closed: closing };
        {
            let mut writing = space.writing.lock().unwrap_or_else(PoisonError::into_inner);
            // A process that was killed may have left what is in no disk yet. Nothing is shown of it before it is.
            space.move_over(&mut writing, &Batch::default())?;
        }
        Ok(space)
    }

    fn failed(&self, reason: impl Into<redb::Error>) -> StorageError {
        failed(&self.path, reason.into())
    }

    fn database(&self) -> RwLockReadGuard<'_, Database> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> RwLockReadGuard<'_, Pending> {
        self.pending.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes changes in the journal or, where they are too many, in the tree.
    fn write(&self, writing: &mut Writing, batch: &Batch, durability: Durability) -> Result<(), StorageError> {
        let bytes = batch.bytes();
        let is_small = bytes <= RECORD_BYTES_MAX && batch.of_table(Table::Keys).next().is_none();
        if is_small && !batch.is_empty() && writing.journal.is_none() {
            writing.in_tree += 1;
        }
        if !is_small || (writing.journal.is_none() && writing.in_tree <= IN_TREE_FIRST) {
            return self.move_over(writing, batch);
        }
        let path = journal::path_of(&self.path);
        let failed = |error| failed(&path, error);
        if writing.journal.is_none() {
            writing.journal = Some(Journal::create(&path).map_err(failed)?);
        }
        let payload = journal::payload_of(batch);
        if writing.journal.as_ref().is_some_and(|journal| !journal.has_room(payload.len())) {
            self.move_over(writing, &Batch::default())?;
        }
        let Some(journal) = &mut writing.journal else { return Ok(()) };
        if !batch.is_empty() {
            journal.append(writing.last + 1, &payload).map_err(failed)?;
            writing.last += 1;
        }
        if durability == Durability::Full {
            journal.sync().map_err(failed)?;
        }
        self.pending.write().unwrap_or_else(PoisonError::into_inner).take(batch);
        Ok(())
    }

    /// Makes changes in the tree, together with all that is in the journal, which begins anew then.
    fn move_over(&self, writing: &mut Writing, batch: &Batch) -> Result<(), StorageError> {
        if batch.is_empty() && self.pending().is_empty() {
            return Ok(());
        }
        self.write_tree(&self.pending(), batch, writing.last).map_err(|error| self.failed(error))?;
        self.pending.write().unwrap_or_else(PoisonError::into_inner).clear();
        if let Some(journal) = &mut writing.journal {
            journal.restart();
        }
        Ok(())
    }

    fn write_tree(&self, pending: &Pending, batch: &Batch, last: u64) -> Result<(), redb::Error> {
        let database = self.database();
        let mut transaction = database.begin_write()?;
        transaction.set_durability(redb::Durability::Immediate)?;
        for of in Table::ALL {
            let waiting = pending.of(of).iter().map(|(key, value)| (key.as_slice(), value.as_deref()));
            let mut changes = waiting.chain(batch.of_table(of)).peekable();
            if changes.peek().is_none() {
                continue;
            }
            let mut table = transaction.open_table(definition(of))?;
            for (key, value) in changes {
                match value {
                    Some(value) => drop(table.insert(key, value)?),
                    None => drop(table.remove(key)?),
                }
            }
        }
        if !pending.is_empty() {
            transaction.open_table(MOVED)?.insert((), last)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn show_one(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<(), redb::Error> {
        let database = self.database();
        let table = database.begin_read()?.open_table(definition(table))?;
        table.get(key)?.into_iter().for_each(|value| show(value.value()));
        Ok(())
    }

    fn show(&self, table: Table, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), redb::Error> {
        let database = self.database();
        let (waiting, stored) = {
            // Nothing is moved from one to the other between the two looks.
            let pending = self.pending();
            (pending.of(table).clone(), database.begin_read()?)
        };
        let stored = stored.open_table(definition(table))?;
        let mut waiting = waiting.into_iter().peekable();
        for pair in stored.iter()? {
            let (key, value) = pair?;
            let key = key.value();
            while let Some((earlier, change)) = waiting.next_if(|(waiting, _)| waiting.as_slice() < key) {
                change.into_iter().for_each(|value| each(&earlier, &value));
            }
            match waiting.next_if(|(waiting, _)| waiting.as_slice() == key) {
                Some((_, change)) => change.into_iter().for_each(|value| each(key, &value)),
                None => each(key, value.value()),
            }
        }
        for (key, change) in waiting {
            change.into_iter().for_each(|value| each(&key, &value));
        }
        Ok(())
    }
}

impl Drop for RedbSpace {
    /// Leaves no journal behind. Should that not work, the next one who opens the space reads it.
    fn drop(&mut self) {
        let mut writing = std::mem::take(self.writing.get_mut().unwrap_or_else(PoisonError::into_inner));
        if writing.failure.is_none()
            && writing.journal.is_some()
            && self.move_over(&mut writing, &Batch::default()).is_ok()
        {
            writing.journal = None;
            drop(journal::remove(&journal::path_of(&self.path)));
        }
    }
}

/// Returns the number of the last record of the journal that is in the tree.
fn last_moved(database: &Database) -> Result<u64, redb::Error> {
    match database.begin_read()?.open_table(MOVED) {
        Ok(table) => Ok(table.get(())?.map_or(0, |last| last.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

impl Space for RedbSpace {
    fn read(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<(), StorageError> {
        let waiting = self.pending().get(table, key);
        match waiting {
            Some(change) => change.into_iter().for_each(|value| show(&value)),
            None => self.show_one(table, key, show).map_err(|error| self.failed(error))?,
        }
        Ok(())
    }

    fn scan(&self, table: Table, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StorageError> {
        self.show(table, each).map_err(|error| self.failed(error))
    }

    fn commit(&self, batch: &Batch, durability: Durability) -> Result<(), StorageError> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &writing.failure {
            return Err(failure.clone());
        }
        let written = self.write(&mut writing, batch, durability);
        if let Err(error) = &written {
            writing.failure = Some(error.clone());
        }
        written
    }

    fn compact(&self) -> Result<(), StorageError> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &writing.failure {
            return Err(failure.clone());
        }
        if let Err(error) = self.move_over(&mut writing, &Batch::default()) {
            writing.failure = Some(error.clone());
            return Err(error);
        }
        let compacted = self.database.write().unwrap_or_else(PoisonError::into_inner).compact();
        compacted.map(drop).map_err(|error| {
            let failure = failed(&self.path, &error);
            if matches!(error, CompactionError::Storage(_)) {
                writing.failure = Some(failure.clone());
            }
            failure
        })
    }

    fn bytes(&self) -> Result<u64, StorageError> {
        let length = |path: &Path| fs::metadata(path).map(|metadata| metadata.len());
        let tree = length(&self.path).map_err(|error| failed(&self.path, error))?;
        Ok(tree + length(&journal::path_of(&self.path)).unwrap_or_default())
    }
}
