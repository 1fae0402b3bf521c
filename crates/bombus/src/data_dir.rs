//! The data directory: what a node keeps on disk, and whose it is.
//!
//! ```text
//! DIR/format         version of this layout
//! DIR/lock           held by the running node; its pid inside
//! DIR/identity.key   the node's Ed25519 key, 0600
//! DIR/seal.key       the X25519 key that texts for the node are sealed to, 0600
//! DIR/node.json      where the running node answers; gone after a clean stop
//! DIR/session.key    API key of this run of the node for commands on this directory, 0600; goes with node.json
//! DIR/keys.json      hashes of the API keys, 0600
//! DIR/sharing.json   whether the owner keeps the machine for himself
//! DIR/chat_history   what was asked in `bombus chat`, 0600
//! DIR/swarms/        the swarms that the node belongs to and belonged to, with their keys, 0600 (`bombus_net::membership`)
//! DIR/swarms/ID/databases/  the replicated databases of a swarm, with the keys as which the node writes (`bombus_swarm::db`)
//! DIR/models/        the model store
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bombus_core::identity::{NodeId, NodeKey};
use bombus_swarm::seal::SealKey;

use crate::platform;

mod identity;
mod lock;
mod node_file;
mod pause;
mod secret_file;

pub(crate) use lock::NodeLock;
pub(crate) use node_file::{Announcement, NodeRecord, reachable};
pub(crate) use pause::Pause;

/// Version of the layout that this program reads and writes.
pub(crate) const FORMAT: u32 = 1;

/// The secrets in the folder of a swarm.
const SWARM_SECRETS: [&str; 4] = ["swarm.key", "swarm.key.next", "swarm.key.previous", "owner.key"];

/// How often a lock that is held is tried again.
const LOCK_RETRIES: u32 = 4;
/// Time between two tries.
const LOCK_RETRY_AFTER: Duration = Duration::from_millis(50);

/// Says why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataDirError {
    /// The file system refused.
    #[error("{}: {doing}", path.display())]
    Io {
        path: PathBuf,
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    /// It was written by a later version of Bombus.
    #[error("the data directory {} has format {found}, and this version of bombus knows formats up to {FORMAT}", path.display())]
    Newer { path: PathBuf, found: u32 },
    /// A file in it does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    /// Another node runs on it.
    #[error("another node{} already runs on the data directory {}", pid_note(*pid), path.display())]
    InUse { path: PathBuf, pid: Option<u32> },
}

fn pid_note(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

impl DataDirError {
    fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), doing, source }
    }
}

/// A data directory of a format that this program knows.
#[derive(Debug, Clone)]
pub(crate) struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Opens a data directory, making it where it is missing.
    pub(crate) fn open(root: &Path) -> Result<Self, DataDirError> {
        if !root.exists() {
            platform::create_private_dir(root).map_err(DataDirError::io(root, "the data directory cannot be made"))?;
        }
        // Other commands and the engine's child get the path too, and their working directory may differ.
        let root = root.canonicalize().map_err(DataDirError::io(root, "the data directory cannot be opened"))?;
        if read_format(&root)?.is_none() {
            write_atomically(&root.join("format"), format!("{FORMAT}\n").as_bytes())?;
        }
        Ok(Self { root })
    }

    /// Opens a data directory only if it is there already, and changes nothing.
    pub(crate) fn existing(root: &Path) -> Result<Option<Self>, DataDirError> {
        if !root.is_dir() {
            return Ok(None);
        }
        Ok(read_format(root)?.map(|_| Self { root: root.to_owned() }))
    }

    /// Returns the directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the folder of the model store.
    pub(crate) fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// Returns the folder with the names that this node keeps over the models of servers.
    pub(crate) fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    /// Returns the folder with a folder for each swarm.
    pub(crate) fn swarms(&self) -> PathBuf {
        self.root.join("swarms")
    }

    /// Returns the file with the hashes of the API keys.
    pub(crate) fn keys(&self) -> PathBuf {
        self.root.join("keys.json")
    }

    /// Returns where it stands whether the owner keeps the machine for himself.
    pub(crate) fn pause(&self) -> Pause {
        Pause::of(&self.root)
    }

    /// Returns the file of the node's key.
    pub(crate) fn identity(&self) -> PathBuf {
        self.root.join("identity.key")
    }

    /// Returns the file of the key that texts for the node are sealed to.
    pub(crate) fn seal_key_file(&self) -> PathBuf {
        self.root.join("seal.key")
    }

    /// Returns the file with what was asked in chats.
    pub(crate) fn chat_history(&self) -> PathBuf {
        self.root.join("chat_history")
    }

    /// Returns the files that only their owner may read, those included that are not there.
    pub(crate) fn secrets(&self) -> Vec<PathBuf> {
        let mut secrets = vec![
            self.identity(),
            self.seal_key_file(),
            self.keys(),
            self.root.join(node_file::SESSION_KEY_FILE),
            self.chat_history(),
        ];
        let swarms = fs::read_dir(self.root.join("swarms")).into_iter().flatten().flatten();
        secrets.extend(swarms.flat_map(|swarm| SWARM_SECRETS.map(|name| swarm.path().join(name))));
        secrets
    }

    /// Claims the directory for a node until the lock is dropped or the process ends, however it ends.
    pub(crate) async fn lock(&self) -> Result<NodeLock, DataDirError> {
        // Other commands share the lock for a moment to see whether it is held.
        for _ in 0..LOCK_RETRIES {
            match NodeLock::acquire(&self.root) {
                Err(DataDirError::InUse { .. }) => tokio::time::sleep(LOCK_RETRY_AFTER).await,
                other => return other,
            }
        }
        NodeLock::acquire(&self.root)
    }

    /// Says whether a node holds the directory now.
    pub(crate) fn is_locked(&self) -> Result<bool, DataDirError> {
        lock::is_held(&self.root)
    }

    /// Reads the node's key, making one at the first start.
    pub(crate) fn node_key(&self) -> Result<NodeKey, DataDirError> {
        identity::load_or_create(&self.identity())
    }

    /// Reads the key that texts for the node `node` are sealed to, making one on first use.
    pub(crate) fn seal_key(&self, node: &NodeId) -> Result<SealKey, DataDirError> {
        identity::load_or_create_seal_key(&self.seal_key_file(), node)
    }

    /// Reads what a running node left in `node.json`, or a dead one.
    pub(crate) fn node_record(&self) -> Result<Option<NodeRecord>, DataDirError> {
        NodeRecord::read(&self.root)
    }

    /// Tells other commands where the node answers and by which API key they may come, until the returned guard is dropped.
    pub(crate) fn announce(&self, record: &NodeRecord, session_key: &str) -> Result<Announcement, DataDirError> {
        record.announce(&self.root, session_key)
    }

    /// Reads the API key that the running node made for commands on this directory.
    pub(crate) fn session_key(&self) -> Option<String> {
        node_file::read_session_key(&self.root)
    }
}

fn read_format(root: &Path) -> Result<Option<u32>, DataDirError> {
    let path = root.join("format");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DataDirError::Io { path, doing: "it cannot be read", source }),
    };
    match text.trim().parse() {
        Ok(found) if found > FORMAT => Err(DataDirError::Newer { path: root.to_owned(), found }),
        Ok(found) => Ok(Some(found)),
        Err(_) => {
            Err(DataDirError::Damaged { path, reason: "it should hold a number, the version of the layout".into() })
        }
    }
}

/// Writes a file so that a reader sees all of it or nothing; on Unix it is readable by the owner alone.
fn write_atomically(path: &Path, content: &[u8]) -> Result<(), DataDirError> {
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        file.write_all(content)?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(DataDirError::io(path, "it cannot be written"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_directory_is_made_with_its_format() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("a/b");
        assert!(DataDir::existing(&root).unwrap().is_none());
        DataDir::open(&root).unwrap();
        assert!(DataDir::existing(&root).unwrap().is_some());
        assert_eq!(fs::read_to_string(root.join("format")).unwrap(), "1\n");
        assert_eq!(platform::open_to_others(&root).unwrap(), None);
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("format"), "7\n").unwrap();
        let error = DataDir::open(base.path()).unwrap_err();
        assert!(matches!(error, DataDirError::Newer { found: 7, .. }), "{error}");
        assert_eq!(fs::read_to_string(base.path().join("format")).unwrap(), "7\n");
    }

    #[test]
    fn a_format_that_is_no_number_is_damage() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("format"), "new").unwrap();
        assert!(matches!(DataDir::open(base.path()), Err(DataDirError::Damaged { .. })));
    }
}
