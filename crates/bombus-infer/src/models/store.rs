//! The directory of models: weights by hash, and one small manifest for each name.

mod blob;
mod derive;
mod incoming;
mod leftovers;
mod manifests;
mod shared;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bombus_core::model::{ModelName, ModelNameError};
use tempfile::NamedTempFile;

use self::leftovers::{PARTIAL_LEFT_AFTER, Partial};
use super::defaults::ModelDefaults;
use super::local::{LocalModel, MANIFEST_FORMAT, ModelSource};
use super::ollama::OllamaModels;
use crate::file_lock::{WAIT_MAX, lock_file};
use crate::gguf::{GgufError, GgufInfo};

pub(super) use blob::{Hashed, free_bytes, hash_into, is_disk_full, is_sha256};
pub use incoming::IncomingBlob;
pub use shared::OpenWeights;

/// The models on this machine. Clones share one view; several processes may use one directory.
///
/// Layout: `blobs/sha256-HEX` holds weights, `blobs/sha256-HEX.partial` unfinished ones, `manifests/*.json` one name each,
/// `staging/` files on their way in, `locks/` locks. Files appear by atomic rename, and there is no index that could lag behind.
///
/// The functions here block on small reads of the file system; only [`ModelStore::import`] takes long.
#[derive(Clone)]
pub struct ModelStore(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    ollama: OllamaModels,
}

/// Says why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] ModelNameError),
    /// There is no such model.
    #[error("model '{name}' not found here; `bombus models list` shows what there is")]
    NotFound {
        /// The name that was asked for.
        name: ModelName,
    },
    /// The model is Ollama's own.
    #[error(
        "model '{name}' belongs to the Ollama on this machine and is only used in place: remove it with `ollama rm`"
    )]
    BelongsToOllama {
        /// The name that was asked for.
        name: ModelName,
    },
    /// The manifest was written by a later version.
    #[error("{} has format {found}, but this version reads up to {MANIFEST_FORMAT}: use a newer bombus", path.display())]
    NewerFormat {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The manifest makes no sense.
    #[error("{} is damaged ({reason}): delete it and pull the model again", path.display())]
    DamagedManifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights are gone, or not as large as they were.
    #[error(
        "the weights of '{name}' ({}) have {} bytes instead of {expected_bytes}: pull or import the model again",
        path.display(),
        found_bytes.map_or_else(|| "no".to_owned(), |bytes| bytes.to_string())
    )]
    DamagedBlob {
        /// The model.
        name: ModelName,
        /// The file.
        path: PathBuf,
        /// Its size; `None` where there is no file.
        found_bytes: Option<u64>,
        /// The size that the manifest tells.
        expected_bytes: u64,
    },
    /// The file is no model that can be used.
    #[error("{}: {source}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// The file is one of several that only together are a model.
    #[error("{} is one of {parts} parts of a model: join them with llama.cpp's `llama-gguf-split --merge` first", path.display())]
    Split {
        /// The file.
        path: PathBuf,
        /// Number of parts.
        parts: u32,
    },
    /// The disk is full.
    #[error(
        "no space left in {}: {needed_bytes} bytes are needed, {free_bytes} are free; free some, or use another --data-dir",
        path.display()
    )]
    DiskFull {
        /// The directory.
        path: PathBuf,
        /// What had to be written, or what was left of it.
        needed_bytes: u64,
        /// What is free there.
        free_bytes: u64,
    },
    /// A download was begun and not gone on with for more than a day.
    #[error(
        "{} holds {bytes} bytes of a download that never ended: pull that model again to finish it, or delete the file",
        path.display()
    )]
    Unfinished {
        /// The unfinished file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// No file with this hash was sent.
    #[error("blob \"sha256:{sha256}\" not found: send it before the model is made of it")]
    BlobNotFound {
        /// SHA-256 in lower-case hex.
        sha256: String,
    },
    /// What was sent has another hash than was said. It was deleted.
    #[error("digest mismatch, expected \"sha256:{expected}\", got \"sha256:{found}\"")]
    WrongHash {
        /// What was said.
        expected: String,
        /// What it has.
        found: String,
    },
    /// A file or a work that models are not made of here.
    #[error("{reason}")]
    NotSupported {
        /// What, and what to do instead.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StoreError {
    /// Builds the error for a failed access to a path.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

impl ModelStore {
    /// Opens the directory, made if it is missing, without looking at any Ollama. Staging files that a dead process left more
    /// than a day ago are deleted, files sent more than a day ago of which no model was made, and unfinished downloads that were not
    /// gone on with for 30 days.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with_ollama(directory, Vec::new())
    }

    /// Opens the directory and lists, besides its own, the models in these directories of Ollama (see
    /// [`super::ollama_directories`]); those that do not exist are passed over.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn open_with_ollama(directory: impl Into<PathBuf>, ollama: Vec<PathBuf>) -> Result<Self, StoreError> {
        let directory = directory.into();
        for part in ["blobs", "manifests", "staging", "locks"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).map_err(StoreError::io(&path))?;
        }
        let store = Self(Arc::new(Inner { directory, ollama: OllamaModels::new(ollama) }));
        store.delete_left_staging();
        store.delete_left_partials();
        store.delete_left_blobs();
        Ok(store)
    }

    /// Returns the directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// Lists the models, in the order of their names. A name that both this store and an Ollama have is this store's. What
    /// cannot be used is left out; [`ModelStore::problems`] tells about it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] where the directory of manifests cannot be read.
    pub fn list(&self) -> Result<Vec<LocalModel>, StoreError> {
        let (mut models, problems) = self.scan()?;
        for problem in problems {
            tracing::debug!(%problem, "a model is left out");
        }
        for model in self.0.ollama.list() {
            if !models.iter().any(|own| own.name == model.name) {
                models.push(model);
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// Tells what is wrong with the models that [`ModelStore::list`] leaves out, and which downloads were never finished, and what to
    /// do about it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] where the directory of manifests cannot be read.
    pub fn problems(&self) -> Result<Vec<StoreError>, StoreError> {
        let mut problems = self.scan()?.1;
        let left = self.partials().into_iter().filter(|partial| partial.untouched > PARTIAL_LEFT_AFTER);
        problems.extend(left.map(|Partial { path, bytes, .. }| StoreError::Unfinished { path, bytes }));
        Ok(problems)
    }

    /// Finds a model.
    ///
    /// # Errors
    ///
    /// [`StoreError::NewerFormat`], [`StoreError::DamagedManifest`], [`StoreError::DamagedBlob`] where this store has the name
    /// but cannot use it; [`StoreError::Io`].
    pub fn get(&self, name: &ModelName) -> Result<Option<LocalModel>, StoreError> {
        match self.read_manifest(&self.manifest_path(name)) {
            Ok(model) => Ok(Some(model)),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(self.0.ollama.get(name))
            }
            Err(error) => Err(error),
        }
    }

    /// Copies a GGUF file into the store under a name, which is taken from the model that had it before. `progress` is told how
    /// many bytes were hashed and how many there are. Blocks: call it on a thread that may.
    ///
    /// The copy shares the original's blocks on file systems of Linux that can (btrfs, XFS).
    ///
    /// # Errors
    ///
    /// [`StoreError::Unusable`] and [`StoreError::Split`] before anything is copied; [`StoreError::DiskFull`]; [`StoreError::Io`].
    pub fn import(
        &self,
        path: &Path,
        name: &ModelName,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<LocalModel, StoreError> {
        let info = inspect(path)?;
        let size_bytes = fs::metadata(path).map_err(StoreError::io(path))?.len();
        let mut original = File::open(path).map_err(StoreError::io(path))?;
        let mut staged = self.staging_file()?;
        // The kernel copies, and shares blocks where it can; so the hash is made of the copy, not on the way.
        io::copy(&mut original, staged.as_file_mut()).map_err(|error| self.write_error(path, error, size_bytes))?;
        let mut copy = File::open(staged.path()).map_err(StoreError::io(staged.path()))?;
        let hashed = hash_into(&mut copy, &mut io::sink(), |done| progress(done, size_bytes))
            .map_err(StoreError::io(staged.path()))?;
        let from = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let source = ModelSource::Imported { from: from.display().to_string() };
        if hashed.bytes == size_bytes {
            return self.install(staged.path(), name, &hashed, source, info, ModelDefaults::default());
        }
        // The file changed under the copy: what counts is what was copied.
        let info = inspect(staged.path())?;
        self.install(staged.path(), name, &hashed, source, info, ModelDefaults::default())
    }

    /// Removes a name, and the weights if no other name stands for them.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], [`StoreError::BelongsToOllama`], [`StoreError::Io`].
    pub fn remove(&self, name: &ModelName) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let manifest = self.manifest_path(name);
        // Even a damaged manifest can be removed; then its weights stay, unless another removal finds them unnamed.
        let sha256 = self.parse_manifest(&manifest).map(|manifest| manifest.sha256).ok();
        match fs::remove_file(&manifest) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(if self.0.ollama.get(name).is_some() {
                    StoreError::BelongsToOllama { name: name.clone() }
                } else {
                    StoreError::NotFound { name: name.clone() }
                });
            }
            result => result.map_err(StoreError::io(&manifest))?,
        }
        let Some(sha256) = sha256 else { return Ok(()) };
        for path in self.manifest_paths()? {
            match self.parse_manifest(&path) {
                Ok(other) if other.sha256 != sha256 => {}
                // A manifest that cannot be read may name these weights.
                _ => return Ok(()),
            }
        }
        let blob = self.blob_path(&sha256);
        match fs::remove_file(&blob) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io(&blob)(error)),
            _ => Ok(()),
        }
    }

    /// Returns where the weights with this hash lie, or would lie.
    pub(super) fn blob_path(&self, sha256: &str) -> PathBuf {
        self.0.directory.join("blobs").join(format!("sha256-{sha256}"))
    }

    pub(super) fn lock_path(&self, sha256: &str) -> PathBuf {
        self.0.directory.join("locks").join(sha256)
    }

    pub(super) fn staging_path(&self) -> PathBuf {
        self.0.directory.join("staging")
    }

    pub(super) fn staging_file(&self) -> Result<NamedTempFile, StoreError> {
        let staging = self.staging_path();
        NamedTempFile::new_in(&staging).map_err(StoreError::io(&staging))
    }

    /// Names weights that lie in the store already, with defaults made of their header. `None` if they do not, or not whole.
    pub(super) fn adopt(
        &self,
        sha256: &str,
        name: &ModelName,
        source: &ModelSource,
        defaults: impl FnOnce(&GgufInfo) -> ModelDefaults,
    ) -> Result<Option<LocalModel>, StoreError> {
        let _lock = self.lock()?;
        let blob = self.blob_path(sha256);
        let Ok(info) = inspect(&blob) else { return Ok(None) };
        let defaults = defaults(&info);
        if let Ok(known) = self.read_manifest(&self.manifest_path(name))
            && known.sha256 == sha256
            && known.defaults == defaults
        {
            return Ok(Some(known));
        }
        let bytes = fs::metadata(&blob).map_err(StoreError::io(&blob))?.len();
        let hashed = Hashed { sha256: sha256.to_owned(), bytes };
        self.write_manifest(name, &hashed, source.clone(), info, defaults).map(Some)
    }

    /// Moves a whole and hashed file to its place among the weights and gives it its name.
    pub(super) fn install(
        &self,
        file: &Path,
        name: &ModelName,
        hashed: &Hashed,
        source: ModelSource,
        info: GgufInfo,
        defaults: ModelDefaults,
    ) -> Result<LocalModel, StoreError> {
        OpenOptions::new().append(true).open(file).and_then(|file| file.sync_all()).map_err(StoreError::io(file))?;
        let _lock = self.lock()?;
        let blob = self.blob_path(&hashed.sha256);
        fs::rename(file, &blob).map_err(StoreError::io(&blob))?;
        self.write_manifest(name, hashed, source, info, defaults)
    }

    /// Tells a full disk from other failures to write.
    pub(super) fn write_error(&self, path: &Path, error: io::Error, needed_bytes: u64) -> StoreError {
        if is_disk_full(&error) {
            let path = self.0.directory.clone();
            return StoreError::DiskFull { free_bytes: free_bytes(&path).unwrap_or(0), path, needed_bytes };
        }
        StoreError::io(path)(error)
    }

    /// Holds off other processes while names and weights change together.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.lock_path("store");
        lock_file(&path, WAIT_MAX).map_err(StoreError::io(&path))
    }
}

/// Reads a file's header and refuses what is no whole model.
pub(super) fn inspect(path: &Path) -> Result<GgufInfo, StoreError> {
    let info = GgufInfo::read(path).map_err(|source| StoreError::Unusable { path: path.to_owned(), source })?;
    match info.split_count {
        Some(parts) => Err(StoreError::Split { path: path.to_owned(), parts }),
        None => Ok(info),
    }
}
