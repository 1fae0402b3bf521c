//! The file with the names that this node keeps over one backend's models.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use bombus_core::model::ModelName;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::file_lock::{WAIT_MAX, lock_file};
use crate::models::ModelDefaults;

/// Version of the files that are written; later ones are refused.
const FORMAT: u32 = 1;
/// Largest file; licences and messages have some tens of kilobytes.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Most names over the models of one backend.
const NAMES_MAX: usize = 1_000;

/// Says why names cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A later version of Bombus wrote it.
    #[error("{} has format {found}, and this version of bombus knows formats up to {FORMAT}", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It holds something else.
    #[error("{}: {reason}; without it, the models have the names that their server gives them", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// One more name has no room.
    #[error("up to 1000 names with up to 8 MiB together are kept over the models of a backend; remove one first")]
    Full,
}

/// A name and what it stands for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Named {
    /// The model, by the server's name.
    pub(super) of: ModelName,
    /// When it got the name, in seconds since the Unix epoch.
    pub(super) modified_unix_s: u64,
    #[serde(default)]
    pub(super) defaults: ModelDefaults,
}

/// All names over the models of a backend.
pub(super) type Names = BTreeMap<ModelName, Named>;

#[derive(Serialize, Deserialize)]
struct Content {
    format: u32,
    names: Names,
}

/// The file, and what it held when it was last read or written.
pub(super) struct NamesFile {
    path: PathBuf,
    now: RwLock<Arc<Names>>,
}

impl NamesFile {
    /// Reads the file of a backend in a folder. Neither has to be there.
    pub(super) fn open(folder: &Path, backend: &str) -> Result<Self, NamesError> {
        let path = folder.join(file_name(backend));
        let now = RwLock::new(Arc::new(read(&path)?));
        Ok(Self { path, now })
    }

    /// Returns the names.
    pub(super) fn now(&self) -> Arc<Names> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the names, on a thread that may block. Another process may have done so since they were read. Returns what `change` does.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Names) -> T) -> Result<T, NamesError> {
        let failed = |source| NamesError::Io { path: self.path.clone(), source };
        let _one_at_a_time = lock(&self.path).map_err(failed)?;
        let mut names = read(&self.path)?;
        let before = names.len();
        let done = change(&mut names);
        if names.len() > NAMES_MAX.max(before) {
            return Err(NamesError::Full);
        }
        let content = Content { format: FORMAT, names };
        let text = serde_json::to_vec_pretty(&content).expect("names have text keys only");
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(NamesError::Full);
        }
        write(&self.path, &text).map_err(failed)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(content.names);
        Ok(done)
    }
}

/// A backend's file: readable, safe on every file system, and different for names that differ in case only.
fn file_name(backend: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let readable: String = backend.chars().map(plain).take(60).collect();
    format!("{readable}-{}.json", hex::encode(&Sha256::digest(backend)[..6]))
}

fn read(path: &Path) -> Result<Names, NamesError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let failed = |source| NamesError::Io { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Names::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    let damaged = |reason: String| NamesError::Damaged { path: path.to_owned(), reason };
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(damaged("it is larger than 8 MiB".to_owned()));
    }
    let Format { format } = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if format > FORMAT {
        return Err(NamesError::NewerFormat { path: path.to_owned(), found: format });
    }
    let content: Content = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    Ok(content.names)
}

/// Waits until nobody else changes a file, in this process or in another one; that takes them some milliseconds. The lock goes with what is
/// returned. It is a file beside that one, which is replaced by each change.
fn lock(path: &Path) -> io::Result<fs::File> {
    fs::create_dir_all(folder_of(path))?;
    lock_file(&path.with_extension("lock"), WAIT_MAX)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().expect("the file was named inside of a folder")
}

/// Writes a file so that a reader sees all of it or nothing, after a crash too.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut staged = NamedTempFile::new_in(folder_of(path))?;
    staged.write_all(text)?;
    staged.as_file().sync_all()?;
    staged.persist(path)?;
    Ok(())
}
