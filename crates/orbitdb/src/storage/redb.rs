//! Storage in files, one to a space, by redb: copy-on-write B-trees, so that a crash leaves the last safe state.

use std::{
    collections::HashMap,
    fmt::Display,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, backends::FileBackend};

use super::{Batch, Durability, Space, Storage, StorageError, Table, check_name};

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
    open: Mutex<HashMap<String, Weak<RedbSpace>>>,
}

struct RedbSpace {
    path: PathBuf,
    database: Database,
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
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&directory).map_err(|error| failed(&directory, error))?;
        Ok(Self { directory, config, open: Mutex::default() })
    }

    fn path(&self, space: &str) -> PathBuf {
        self.directory.join(format!("{space}.redb"))
    }

    /// Makes a file under another name first, so that under its own it is whole or not there.
    fn make(&self, path: &Path) -> Result<(), StorageError> {
        let draft = path.with_extension("new");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&draft, error)),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&draft).map_err(|error| failed(&draft, error))?;
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
        // The name is safe once its directory is.
        let directory = File::open(&self.directory).and_then(|directory| directory.sync_all());
        directory.map_err(|error| failed(&self.directory, error))
    }
}

impl Storage for Redb {
    fn open(&self, space: &str) -> Result<Arc<dyn Space>, StorageError> {
        check_name(space)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(space) = open.get(space).and_then(Weak::upgrade) {
            return Ok(space);
        }
        let path = self.path(space);
        if !path.exists() {
            self.make(&path)?;
        }
        let database = Database::builder().set_cache_size(self.config.cache_bytes).open(&path);
        let opened = Arc::new(RedbSpace { database: database.map_err(|error| failed(&path, error))?, path });
        open.retain(|_, space| space.strong_count() > 0);
        open.insert(space.to_owned(), Arc::downgrade(&opened));
        Ok(opened)
    }

    fn remove(&self, space: &str) -> Result<(), StorageError> {
        check_name(space)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.get(space).is_some_and(|space| space.strong_count() > 0) {
            return Err(StorageError::InUse(space.to_owned()));
        }
        open.remove(space);
        let path = self.path(space);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path, error)),
            _ => Ok(()),
        }
    }
}

impl RedbSpace {
    fn failed(&self, reason: impl Into<redb::Error>) -> StorageError {
        failed(&self.path, reason.into())
    }

    fn write(&self, batch: &Batch, durability: Durability) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(match durability {
            Durability::Full => redb::Durability::Immediate,
            Durability::Relaxed => redb::Durability::None,
        })?;
        for table in Table::ALL {
            let mut changes = batch.of_table(table).peekable();
            if changes.peek().is_none() {
                continue;
            }
            let mut table = transaction.open_table(definition(table))?;
            for (key, value) in changes {
                match value {
                    Some(value) => drop(table.insert(key, value)?),
                    None => drop(table.remove(key)?),
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn show_one(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<(), redb::Error> {
        let table = self.database.begin_read()?.open_table(definition(table))?;
        table.get(key)?.into_iter().for_each(|value| show(value.value()));
        Ok(())
    }

    fn show(&self, table: Table, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), redb::Error> {
        let table = self.database.begin_read()?.open_table(definition(table))?;
        for pair in table.iter()? {
            let (key, value) = pair?;
            each(key.value(), value.value());
        }
        Ok(())
    }
}

impl Space for RedbSpace {
    fn read(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<(), StorageError> {
        self.show_one(table, key, show).map_err(|error| self.failed(error))
    }

    fn scan(&self, table: Table, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StorageError> {
        self.show(table, each).map_err(|error| self.failed(error))
    }

    fn commit(&self, batch: &Batch, durability: Durability) -> Result<(), StorageError> {
        self.write(batch, durability).map_err(|error| self.failed(error))
    }

    fn bytes(&self) -> Result<u64, StorageError> {
        fs::metadata(&self.path).map(|metadata| metadata.len()).map_err(|error| failed(&self.path, error))
    }
}
