//! How a node is described.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

use super::{Fetches, Node, NodeSpace, OrbitDb};
use crate::{
    database::Output,
    identity::Signer,
    key::{KeyError, SecretKey},
    storage::{Batch, Durability, Memory, Redb, RedbConfig, Space, Storage, StorageError, Table},
};

/// How many outputs wait for the network. Further ones are dropped: requests are repeated, and heads make up for what was not published.
const OUTPUTS_MAX: usize = 4096;

/// Why a node could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A key could not be made, or is stored damaged.
    #[error("the key \"{name}\" cannot be used: {error}")]
    Key {
        /// Under which name.
        name: String,
        /// Why.
        error: KeyError,
    },
}

/// Describes a node. Without a word about storage everything is in memory.
#[derive(Default)]
pub struct Builder {
    storage: Option<Arc<dyn Storage>>,
    directory: Option<(PathBuf, RedbConfig)>,
    identity: Option<String>,
    signer: Option<Signer>,
}

impl Builder {
    /// Keeps everything in files of a directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some((directory.into(), RedbConfig::default()));
        self
    }

    /// Keeps everything in files of a directory, with bounds of its own.
    #[must_use]
    pub fn directory_with(mut self, directory: impl Into<PathBuf>, config: RedbConfig) -> Self {
        self.directory = Some((directory.into(), config));
        self
    }

    /// Keeps everything in a storage.
    #[must_use]
    pub fn storage(mut self, storage: Arc<dyn Storage>) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Writes as the identity of a name, whose keys are made when they are not there. Default "default".
    #[must_use]
    pub fn identity(mut self, name: impl Into<String>) -> Self {
        self.identity = Some(name.into());
        self
    }

    /// Writes as an identity whose keys are kept elsewhere.
    #[must_use]
    pub fn signer(mut self, signer: Signer) -> Self {
        self.signer = Some(signer);
        self
    }

    /// Makes the node. What its databases ask of the network comes out of the receiver; who has no network may drop it.
    ///
    /// # Errors
    ///
    /// [`BuildError`] when the storage cannot be opened, or a key cannot be made.
    pub fn build(self) -> Result<(OrbitDb, mpsc::Receiver<Output>), BuildError> {
        let storage: Arc<dyn Storage> = match (self.storage, self.directory) {
            (Some(storage), _) => storage,
            (None, Some((directory, config))) => Arc::new(Redb::new(directory, config)?),
            (None, None) => Arc::new(Memory::default()),
        };
        let space = NodeSpace::open(Arc::clone(&storage))?;
        let signer = match self.signer {
            Some(signer) => signer,
            None => stored_signer(&space, self.identity.as_deref().unwrap_or("default"))?,
        };
        let (outputs, receiver) = mpsc::channel(OUTPUTS_MAX);
        let node = Node {
            storage,
            space,
            signer,
            outputs,
            open: Mutex::new(HashMap::new()),
            addresses: watch::Sender::new(BTreeSet::new()),
            fetches: Fetches::default(),
            opening: tokio::sync::Mutex::default(),
        };
        node.finish_dropping()?;
        Ok((OrbitDb { node: Arc::new(node) }, receiver))
    }
}

/// Returns the identity of a name: its outer key stands under the name, its inner one under the identity's id.
fn stored_signer(space: &dyn Space, name: &str) -> Result<Signer, BuildError> {
    let outer = stored_key(space, name)?;
    let inner = stored_key(space, &outer.public_key().to_string())?;
    Ok(Signer::new(&outer, &inner))
}

fn stored_key(space: &dyn Space, name: &str) -> Result<SecretKey, BuildError> {
    let broken = |error| BuildError::Key { name: name.to_owned(), error };
    if let Some(bytes) = space.get(Table::Keys, name.as_bytes())?.map(Zeroizing::new) {
        let bytes: Zeroizing<[u8; 32]> =
            Zeroizing::new(bytes.as_slice().try_into().map_err(|_| broken(KeyError::Secret))?);
        return SecretKey::from_bytes(&bytes).map_err(broken);
    }
    let key = SecretKey::generate().map_err(broken)?;
    let mut batch = Batch::default();
    batch.put(Table::Keys, name.as_bytes(), key.to_bytes().to_vec());
    space.commit(&batch, Durability::Full)?;
    Ok(key)
}
