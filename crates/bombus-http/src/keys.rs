//! API keys: made by `bombus keys create`, kept as hashes, checked at every request to a listener beyond loopback.

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::platform;

/// Version of the file's format.
const FORMAT_VERSION: u32 = 1;
/// A file that has not been changed for so long has a time of its own, which tells it from every later one.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// What every secret begins with, so that people and scanners recognise one.
const SECRET_PREFIX: &str = "bk_";

/// The API keys of a node, in a file that only its owner can read.
///
/// The file holds SHA-256 hashes, never the secrets; these have 256 random bits, so that no slow hash is needed. It may be changed by
/// another process at any time: every check sees the change.
#[derive(Debug, Clone)]
pub struct KeyStore {
    path: PathBuf,
    cache: Arc<Mutex<Option<Cached>>>,
    /// Hash of the key that only this process knows, if it made one.
    session: Option<Arc<str>>,
}

#[derive(Debug)]
struct Cached {
    stamp: Stamp,
    keys: Arc<[StoredKey]>,
}

/// What changes when the file is replaced.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
    file_number: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeyFile {
    version: u32,
    keys: Vec<StoredKey>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredKey {
    name: String,
    created_unix_s: u64,
    hint: String,
    sha256: String,
}

/// What can be told about a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// What it was named when it was made.
    pub name: String,
    /// When it was made, in seconds since the Unix epoch.
    pub created_unix_s: u64,
    /// Beginning and end of the secret, to recognise it by.
    pub hint: String,
}

/// A key just made.
pub struct NewKey {
    /// The secret. Nothing can show it again.
    pub secret: String,
    /// What `list` will tell about it.
    pub info: KeyInfo,
}

/// Says why keys cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not what this program writes.
    #[error("{} is not a key file: {reason}; move it away and make new keys with: bombus keys create NAME", path.display())]
    Broken {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written by a newer program.
    #[error("{} has format version {found}, but this program knows none above {FORMAT_VERSION}; use the newer bombus", path.display())]
    Newer {
        /// The key file.
        path: PathBuf,
        /// Its format version.
        found: u32,
    },
    /// A key of this name exists.
    #[error("a key named '{0}' exists already; revoke it first, or take another name")]
    Exists(String),
    /// No key of this name exists.
    #[error("there is no key named '{0}'; bombus keys list shows those there are")]
    Unknown(String),
    /// The name cannot be used.
    #[error("'{0}' is not a key name: use 1 to 64 letters, digits, '.', '_' or '-'")]
    BadName(String),
    /// The system gives no random bytes.
    #[error("no random bytes for a key can be had: {0}")]
    NoRandom(String),
}

impl KeyStore {
    /// Names the file. It is read when it is needed; a missing one holds no keys.
    #[must_use]
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), cache: Arc::default(), session: None }
    }

    /// Adds a key that lives as long as this store and stands in no file, and returns its secret: for commands of the same user on the
    /// same machine.
    ///
    /// # Errors
    ///
    /// [`KeyError::NoRandom`].
    pub fn with_session_key(self) -> Result<(Self, String), KeyError> {
        let secret = new_secret()?;
        Ok((Self { session: Some(hash(&secret).into()), ..self }, secret))
    }

    /// Makes a key and stores its hash.
    ///
    /// # Errors
    ///
    /// Any [`KeyError`] but `Unknown`.
    pub fn create(&self, name: &str) -> Result<NewKey, KeyError> {
        let sane = (1..=64).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !sane {
            return Err(KeyError::BadName(name.chars().take(80).collect()));
        }
        let secret = new_secret()?;
        let key = StoredKey {
            name: name.to_owned(),
            created_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            hint: format!("{}...{}", &secret[..SECRET_PREFIX.len() + 2], &secret[secret.len() - 4..]),
            sha256: hash(&secret),
        };
        let info = key.info();
        self.change(|keys| {
            if keys.iter().any(|known| known.name == name) {
                return Err(KeyError::Exists(name.to_owned()));
            }
            keys.push(key);
            Ok(())
        })?;
        Ok(NewKey { secret, info })
    }

    /// Lists the keys in the order in which they were made.
    ///
    /// # Errors
    ///
    /// [`KeyError::Io`], [`KeyError::Broken`], [`KeyError::Newer`].
    pub fn list(&self) -> Result<Vec<KeyInfo>, KeyError> {
        Ok(self.keys()?.iter().map(StoredKey::info).collect())
    }

    /// Removes a key; it is refused from the next request on.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unknown`] and those of [`KeyStore::list`].
    pub fn revoke(&self, name: &str) -> Result<(), KeyError> {
        self.change(|keys| {
            let before = keys.len();
            keys.retain(|key| key.name != name);
            if keys.len() == before { Err(KeyError::Unknown(name.to_owned())) } else { Ok(()) }
        })
    }

    /// Returns the name of the key that has this secret, or `None`. Takes as long for a wrong secret as for a right one.
    ///
    /// # Errors
    ///
    /// Those of [`KeyStore::list`].
    pub fn verify(&self, secret: &str) -> Result<Option<String>, KeyError> {
        let hash = hash(secret);
        let is_session = self.session.as_ref().is_some_and(|own| bool::from(own.as_bytes().ct_eq(hash.as_bytes())));
        if is_session {
            // It stands in no file, and has to open where the file is broken too.
            return Ok(Some("session".to_owned()));
        }
        let mut found = None;
        for key in self.keys()?.iter() {
            if bool::from(key.sha256.as_bytes().ct_eq(hash.as_bytes())) {
                found = Some(key.name.clone());
            }
        }
        Ok(found)
    }

    fn keys(&self) -> Result<Arc<[StoredKey]>, KeyError> {
        let stamp = match fs::metadata(&self.path) {
            Ok(metadata) => Stamp {
                modified: metadata.modified().map_err(|error| self.io(error))?,
                bytes: metadata.len(),
                file_number: platform::file_number(&metadata),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Arc::from([])),
            Err(error) => return Err(self.io(error)),
        };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock may tick so slowly that a file changed twice within one tick has the same time twice.
        let settled = stamp.modified.elapsed().is_ok_and(|age| age >= SETTLED_AFTER);
        if let Some(cached) = cache.as_ref().filter(|cached| settled && cached.stamp == stamp) {
            return Ok(cached.keys.clone());
        }
        let keys: Arc<[StoredKey]> = self.read()?.into();
        *cache = settled.then(|| Cached { stamp, keys: keys.clone() });
        Ok(keys)
    }

    fn read(&self) -> Result<Vec<StoredKey>, KeyError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.io(error)),
        };
        let broken = |error: serde_json::Error| KeyError::Broken { path: self.path.clone(), reason: error.to_string() };
        let raw: serde_json::Value = serde_json::from_slice(&bytes).map_err(broken)?;
        // The version is looked at first: the rest of a newer file may have any form.
        if let Some(found) = raw["version"].as_u64().and_then(|version| u32::try_from(version).ok())
            && found > FORMAT_VERSION
        {
            return Err(KeyError::Newer { path: self.path.clone(), found });
        }
        serde_json::from_value::<KeyFile>(raw).map(|file| file.keys).map_err(broken)
    }

    /// Reads, changes and replaces the file, while no other process does.
    fn change(&self, change: impl FnOnce(&mut Vec<StoredKey>) -> Result<(), KeyError>) -> Result<(), KeyError> {
        let lock = File::create(self.path.with_extension("lock")).map_err(|error| self.io(error))?;
        lock.lock().map_err(|error| self.io(error))?;
        let mut keys = self.read()?;
        change(&mut keys)?;
        let file = KeyFile { version: FORMAT_VERSION, keys };
        let text = serde_json::to_vec_pretty(&file).expect("plain data has a JSON form");
        self.replace(&text).map_err(|error| self.io(error))
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A temporary file is made readable for its owner alone, and keeps that when it takes the place of the old one.
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(text)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        platform::sync_directory(directory)
    }

    fn io(&self, source: io::Error) -> KeyError {
        KeyError::Io { path: self.path.clone(), source }
    }
}

impl StoredKey {
    fn info(&self) -> KeyInfo {
        KeyInfo { name: self.name.clone(), created_unix_s: self.created_unix_s, hint: self.hint.clone() }
    }
}

fn new_secret() -> Result<String, KeyError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| KeyError::NoRandom(error.to_string()))?;
    Ok(format!("{SECRET_PREFIX}{}", bs58::encode(random).into_string()))
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}
