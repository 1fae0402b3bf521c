//! Opening databases by name or by address.

use std::sync::{Arc, Weak};

use super::{Node, Opened, OrbitDb};
use crate::{
    cbor::{EncodeError, Value},
    cid::Hash,
    crypt::Encryption,
    database::{self, Database, DatabaseError, Parts},
    entry::{Codec, Limits},
    index::{Rule, View},
    manifest::{Address, ControllerAddress, DatabaseType, Manifest, ManifestError, controller_block, read_controller},
    storage::{Batch, Durability, Space, Table},
    sync::SyncConfig,
};

/// Who may write to a database that is created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Its creator only.
    #[default]
    Creator,
    /// Everybody. The name alone then gives the address.
    Everyone,
    /// The identities with these ids, for ever.
    Writers(Vec<String>),
    /// Those whom the admins grant it, until they revoke it; without a list the creator is the admin.
    Capabilities(Vec<String>),
}

/// How a database is opened. What is said of its creation counts only where it is opened by name.
#[derive(Clone, Default)]
pub struct OpenOptions {
    r#type: Option<DatabaseType>,
    access: Access,
    meta: Option<Value>,
    index_by: Option<String>,
    view: Option<Arc<dyn View>>,
    encryption: Encryption,
    limits: Limits,
    sync: SyncConfig,
    relaxed: bool,
}

/// Why a database cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The database itself failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The manifest or the controller is none.
    #[error("this is no database that can be opened: {0}")]
    Manifest(#[from] ManifestError),
    /// The database is of another type.
    #[error("the database is of the type \"{}\", not \"{}\"", .found.name(), .asked.name())]
    Type {
        /// Which was asked for.
        asked: DatabaseType,
        /// Which it is.
        found: DatabaseType,
    },
    /// What is noted of a new database has no form.
    #[error(transparent)]
    Meta(#[from] EncodeError),
    /// Guards that are guarded themselves would never end.
    #[error(
        "the access controller of this database is guarded by another one, and is no key-value database with a fixed list"
    )]
    Guard,
}

impl From<crate::storage::StorageError> for OpenError {
    fn from(error: crate::storage::StorageError) -> Self {
        Self::Database(error.into())
    }
}

impl OpenOptions {
    /// Opens a database of a type; without it, one of the type `events` is created, and any type is opened by address.
    #[must_use]
    pub fn of(r#type: DatabaseType) -> Self {
        Self { r#type: Some(r#type), ..Self::default() }
    }

    /// Says who may write to a new database.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Notes something in the manifest of a new database, which makes its address another.
    #[must_use]
    pub fn meta(mut self, meta: impl Into<Value>) -> Self {
        self.meta = Some(meta.into());
        self
    }

    /// Takes the key of documents from this field. Default "_id". A local choice: it is not in the manifest.
    #[must_use]
    pub fn index_by(mut self, field: impl Into<String>) -> Self {
        self.index_by = Some(field.into());
        self
    }

    /// Shows what a view of the application says; not for events, which are all shown.
    #[must_use]
    pub fn view(mut self, view: Arc<dyn View>) -> Self {
        self.view = Some(view);
        self
    }

    /// Encrypts payloads, whole entries or both. Documents too, which peers in JavaScript leave plain.
    #[must_use]
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.encryption = encryption;
        self
    }

    /// Sets bounds of what is taken from others.
    #[must_use]
    pub const fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets times and bounds of sync.
    #[must_use]
    pub const fn sync(mut self, sync: SyncConfig) -> Self {
        self.sync = sync;
        self
    }

    /// Lets the last puts be lost in a crash, for speed. The clock jumps then, so that no two entries get one time.
    #[must_use]
    pub const fn relaxed(mut self, relaxed: bool) -> Self {
        self.relaxed = relaxed;
        self
    }

    /// Returns the field that holds the keys of documents, where one was said.
    #[must_use]
    pub fn index_field(&self) -> Option<&str> {
        self.index_by.as_deref()
    }

    /// Returns whether the last puts may be lost in a crash.
    #[must_use]
    pub const fn is_relaxed(&self) -> bool {
        self.relaxed
    }

    /// Returns whether they hold no view and no keys of the application, without which it cannot be opened in the same way again.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.view.is_none() && self.encryption.data.is_none() && self.encryption.replication.is_none()
    }

    /// Returns how that is opened which guards a database with these options.
    fn of_guard(&self) -> Self {
        Self::of(DatabaseType::KeyValue).limits(self.limits).sync(self.sync)
    }

    /// Returns whether a new database is guarded by another one, which is opened with it.
    #[must_use]
    pub const fn is_guarded(&self) -> bool {
        matches!(self.access, Access::Capabilities(_))
    }

    fn rule(&self, r#type: DatabaseType) -> Rule {
        match (&self.view, r#type) {
            (_, DatabaseType::Events) => Rule::All,
            (Some(view), _) => Rule::View(Arc::clone(view)),
            (None, _) => Rule::Latest,
        }
    }
}

/// A manifest and a controller, with their blocks.
struct Described {
    address: Address,
    manifest: Manifest,
    blocks: Vec<Vec<u8>>,
    list: Vec<String>,
    /// The database of capabilities that guards it.
    guard: Option<Box<Self>>,
}

impl OrbitDb {
    /// Opens a database by its address, or by a name that gives one with the options.
    ///
    /// By an address that is not known here this waits for blocks of other peers (see [`OrbitDb::missing`]); whoever wants to wait no longer
    /// drops the future. One that is open already is given as it is, whatever the options.
    ///
    /// Reads the whole log from the storage, on the thread of the caller.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when it is no database, of another type, or the storage fails.
    pub async fn open(&self, name_or_address: &str, options: OpenOptions) -> Result<Database, OpenError> {
        let described = match name_or_address.parse() {
            Ok(address) => self.find(address, &options).await?,
            Err(_) => self.describe(name_or_address, &options)?,
        };
        self.start(described, &options).await
    }

    /// Opens documents, with the field that holds their keys.
    ///
    /// # Errors
    ///
    /// As [`OrbitDb::open`].
    pub async fn open_documents(&self, name_or_address: &str, index_by: &str) -> Result<Database, OpenError> {
        self.open(name_or_address, OpenOptions::of(DatabaseType::Documents).index_by(index_by)).await
    }

    /// Opens events.
    ///
    /// # Errors
    ///
    /// As [`OrbitDb::open`].
    pub async fn open_events(&self, name_or_address: &str) -> Result<Database, OpenError> {
        self.open(name_or_address, OpenOptions::of(DatabaseType::Events)).await
    }

    /// Opens values under keys.
    ///
    /// # Errors
    ///
    /// As [`OrbitDb::open`].
    pub async fn open_key_value(&self, name_or_address: &str) -> Result<Database, OpenError> {
        self.open(name_or_address, OpenOptions::of(DatabaseType::KeyValue)).await
    }

    /// Describes the database that a name and options give.
    fn describe(&self, name: &str, options: &OpenOptions) -> Result<Described, OpenError> {
        let own = || vec![self.identity().id().to_owned()];
        match &options.access {
            Access::Creator => listed(name, options, own()),
            Access::Everyone => listed(name, options, vec!["*".to_owned()]),
            Access::Writers(list) => listed(name, options, list.clone()),
            Access::Capabilities(admins) => {
                let admins = if admins.is_empty() { own() } else { admins.clone() };
                let guard = listed(name, &options.of_guard(), admins)?;
                let mut described = described(name, options, ControllerAddress::OrbitDb(guard.address))?;
                described.guard = Some(Box::new(guard));
                Ok(described)
            }
        }
    }

    /// Describes the database of an address and what guards it, by blocks that are here or that others give.
    async fn find(&self, address: Address, options: &OpenOptions) -> Result<Described, OpenError> {
        let mut described = self.find_one(address, options.r#type).await?;
        if let ControllerAddress::OrbitDb(guard) = described.manifest.controller {
            let guard = self.find_one(guard, Some(DatabaseType::KeyValue)).await?;
            // A peer could make a chain of guards as long as it likes: not even the next one is looked for.
            if let ControllerAddress::OrbitDb(_) = guard.manifest.controller {
                return Err(OpenError::Guard);
            }
            described.guard = Some(Box::new(guard));
        }
        Ok(described)
    }

    /// Describes the database of an address, without what guards it.
    async fn find_one(&self, address: Address, asked: Option<DatabaseType>) -> Result<Described, OpenError> {
        let space =
            if self.node.has(&address)? { Some(database::space_of(&*self.node.storage, address)?) } else { None };
        let block = self.find_block(space.as_deref(), address.manifest()).await?;
        let manifest = Manifest::read(&block)?;
        if let Some(asked) = asked.filter(|asked| *asked != manifest.r#type) {
            return Err(OpenError::Type { asked, found: manifest.r#type });
        }
        let mut described = Described { address, blocks: vec![block], list: Vec::new(), guard: None, manifest };
        if let ControllerAddress::Ipfs(hash) = described.manifest.controller {
            let block = self.find_block(space.as_deref(), hash).await?;
            described.list = read_controller(&block)?;
            described.blocks.push(block);
        }
        Ok(described)
    }

    async fn find_block(&self, space: Option<&dyn Space>, hash: Hash) -> Result<Vec<u8>, OpenError> {
        let stored = space.map(|space| space.get(Table::Blocks, hash.digest())).transpose()?.flatten();
        Ok(match stored {
            Some(block) => block,
            None => self.node.fetches.fetch(hash).await,
        })
    }

    /// Starts a database, and what guards it before it. Where that fails, nothing is left that was not there before.
    async fn start(&self, mut described: Described, options: &OpenOptions) -> Result<Database, OpenError> {
        let _opening = self.node.opening.lock().await;
        if let Some(open) = self.open_now(&described.address) {
            return Ok(open);
        }
        // One that was closed or dropped may still be writing. Who gives up waits here, and has stored nothing yet.
        self.node.ended(&described.address).await;
        let Some(guard) = described.guard.take() else { return self.start_one(described, None, options) };
        let (guard, is_new) = if let Some(open) = self.open_now(&guard.address) {
            // It stays open from here on: were it looked for once more, others might have let go of it, and its writer be still at work.
            (open, false)
        } else {
            self.node.ended(&guard.address).await;
            let is_new = !self.node.has(&guard.address)?;
            (self.start_one(*guard, None, &options.of_guard())?, is_new)
        };
        let started = self.start_one(described, Some(guard.clone()), options);
        if started.is_err() && is_new {
            // Why it could not be started says more than why something could not be taken back, which goes at the next start then.
            drop(guard.close().await);
            self.node.ended(&guard.address()).await;
            drop(self.node.discard(&guard.address()));
        }
        started
    }

    fn open_now(&self, address: &Address) -> Option<Database> {
        self.database(address).filter(|open| !open.is_closed())
    }

    /// Starts a database that is not open, whose writer has ended and whose guard is started.
    fn start_one(
        &self,
        described: Described,
        guard: Option<Database>,
        options: &OpenOptions,
    ) -> Result<Database, OpenError> {
        let address = described.address;
        let is_new = !self.node.has(&address)?;
        let started = self.start_stored(described, guard, options);
        if started.is_err() && is_new {
            drop(self.node.discard(&address));
        }
        started
    }

    /// Stores what a database is, and starts it.
    fn start_stored(
        &self,
        described: Described,
        guard: Option<Database>,
        options: &OpenOptions,
    ) -> Result<Database, OpenError> {
        let Described { address, manifest, blocks, list, guard: _ } = described;
        self.node.finish_dropping_one(&address)?;
        let space = database::space_of(&*self.node.storage, address)?;
        let mut batch = Batch::default();
        for block in blocks {
            if space.get(Table::Blocks, Hash::of(&block).digest())?.is_none() {
                batch.put(Table::Blocks, Hash::of(&block).digest(), block);
            }
        }
        if !batch.is_empty() {
            space.commit(&batch, Durability::Full)?;
        }
        if !self.node.has(&address)? {
            self.node.note(&address, &manifest)?;
        }
        let parts = Parts {
            address,
            space,
            codec: Codec::new(address.to_string(), options.encryption.clone(), options.limits),
            admission: database::admission(&manifest.controller, &list, guard.as_ref()),
            admins: list,
            rule: options.rule(manifest.r#type),
            sync: options.sync,
            durability: if options.relaxed { Durability::Relaxed } else { Durability::Full },
            outputs: self.node.outputs.clone(),
            manifest,
        };
        let index_by = options.index_by.clone().unwrap_or_else(|| "_id".to_owned());
        let node = Arc::downgrade(&self.node);
        let on_drop = Box::new(move || {
            if let Some(node) = Weak::<Node>::upgrade(&node) {
                node.handle_dropped(&address);
            }
        });
        let (database, ended) = Database::start(parts, self.node.signer.clone(), index_by, guard, on_drop)?;
        self.node.open().insert(address, Opened { inner: Arc::downgrade(&database.inner), ended });
        self.node.addresses.send_if_modified(|addresses| addresses.insert(address));
        Ok(database)
    }
}

/// Describes a database with a list of writers that never changes.
fn listed(name: &str, options: &OpenOptions, list: Vec<String>) -> Result<Described, OpenError> {
    let block = controller_block(&list);
    let mut described = described(name, options, ControllerAddress::Ipfs(Hash::of(&block)))?;
    described.blocks.push(block);
    described.list = list;
    Ok(described)
}

fn described(name: &str, options: &OpenOptions, controller: ControllerAddress) -> Result<Described, OpenError> {
    let r#type = options.r#type.unwrap_or(DatabaseType::Events);
    let manifest = Manifest { name: name.to_owned(), r#type, controller, meta: options.meta.clone() };
    let block = manifest.block()?;
    let address = Address::new(Hash::of(&block));
    Ok(Described { address, manifest, blocks: vec![block], list: Vec::new(), guard: None })
}
