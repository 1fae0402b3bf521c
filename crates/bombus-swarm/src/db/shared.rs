//! What the service and the handles share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_net::NetHandle;
use bombus_net::bitswap::Bitswap;
use orbitdb::cid::Hash;
use orbitdb::manifest::Address;
use orbitdb::replica::Input;
use orbitdb::storage::StorageError;
use orbitdb::{Database, DatabaseError, OpenOptions, OrbitDb};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::blocks::{Asked, For, cid_of};
use super::config::DbConfig;
use super::error::DbError;
use super::fetch::Awaited;
use super::holders::Holders;
use super::kept::KeptBlocks;
use super::oplog::OPLOG_PROTOCOL;
use super::records::{Record, Records};
use super::replication::Replication;

/// How the agents of nodes like this one begin.
const NODE_AGENT: &str = "bombus/";
/// How often, and how many times, a space that somebody still reads is tried to be removed.
const IN_USE_PAUSE: Duration = Duration::from_millis(50);
const IN_USE_TRIES: u32 = 100;

/// Room for databases that are being opened.
struct Claim<'a> {
    claimed: &'a Mutex<usize>,
    count: usize,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        *lock(self.claimed) -= self.count;
    }
}

/// A database that was opened, and what there was before, so that it can be taken back.
pub(super) struct Opened {
    pub(super) database: Database,
    stored_before: BTreeSet<Address>,
    open_before: BTreeSet<Address>,
}

/// No lock is held across a wait, except that of `changing`.
pub(super) struct Shared {
    pub(super) config: DbConfig,
    pub(super) net: NetHandle,
    pub(super) orbit: OrbitDb,
    pub(super) bitswap: Bitswap,
    /// Ends with the service.
    pub(super) stopped: CancellationToken,
    records: Mutex<Records>,
    /// The handles that keep databases open.
    kept: Mutex<BTreeMap<Address, Database>>,
    /// The list of databases is changed by one at a time.
    changing: tokio::sync::Mutex<()>,
    opening: Semaphore,
    /// How many of the databases that may be open are about to be.
    claimed: Mutex<usize>,
    /// Whether what was open before is open again.
    ready: watch::Sender<bool>,
    replications: Mutex<BTreeMap<Address, Replication>>,
    asked: Mutex<Asked>,
    /// Blocks that stand in no log.
    pub(super) own_blocks: Arc<KeptBlocks>,
    /// Who refers to them.
    pub(super) holders: Holders,
    awaited: Mutex<Awaited>,
    begun: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does work that blocks, futures included, where it holds up nobody else.
pub(super) async fn aside<T: Send + 'static>(
    work: impl Future<Output = Result<T, DbError>> + Send + 'static,
) -> Result<T, DbError> {
    let runtime = Handle::current();
    let done = spawn_blocking(move || runtime.block_on(work)).await;
    done.unwrap_or_else(|error| Err(DbError::Failed(error.to_string())))
}

impl Shared {
    pub(super) fn new(
        config: DbConfig,
        net: NetHandle,
        orbit: OrbitDb,
        bitswap: Bitswap,
        records: Records,
        own_blocks: Arc<KeptBlocks>,
    ) -> Self {
        let opening = Semaphore::new(config.opening_max.max(1));
        Self {
            config,
            net,
            orbit,
            bitswap,
            stopped: CancellationToken::new(),
            records: Mutex::new(records),
            kept: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            opening,
            claimed: Mutex::default(),
            ready: watch::Sender::new(false),
            replications: Mutex::default(),
            asked: Mutex::default(),
            own_blocks,
            holders: Holders::default(),
            awaited: Mutex::default(),
            begun: Instant::now(),
        }
    }

    /// Returns the time since any one moment, as the library counts it.
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Returns when that time has come.
    pub(super) fn at(&self, time: Duration) -> Instant {
        self.begun + time
    }

    pub(super) fn replications(&self) -> MutexGuard<'_, BTreeMap<Address, Replication>> {
        lock(&self.replications)
    }

    pub(super) fn asked(&self) -> MutexGuard<'_, Asked> {
        lock(&self.asked)
    }

    pub(super) fn awaited(&self) -> MutexGuard<'_, Awaited> {
        lock(&self.awaited)
    }

    /// Asks a peer for blocks that a database waits for.
    pub(super) fn want(&self, address: Address, peer: &NodeId, hashes: &[Hash]) {
        self.want_for(For::Database(address), peer, hashes);
    }

    /// Asks a peer for blocks.
    pub(super) fn want_for(&self, who: For, peer: &NodeId, hashes: &[Hash]) {
        {
            let mut asked = self.asked();
            for hash in hashes {
                asked.add(*hash, peer, who);
            }
        }
        let cids: Vec<_> = hashes.iter().map(cid_of).collect();
        self.bitswap.want(peer, &cids);
    }

    /// Returns whether a peer speaks a protocol of nodes; none where it has not said yet what it speaks, and for a node like this one that
    /// did not speak it when it said so: it may have begun since.
    pub(super) fn speaks(&self, peer: &NodeId, protocol: &str) -> Option<bool> {
        let known = self.net.peers().into_iter().find(|known| known.node_id == *peer)?;
        let speaks = known.protocols.iter().any(|name| name == protocol);
        let may_begin = known.protocols.is_empty() || known.agent.is_some_and(|agent| agent.starts_with(NODE_AGENT));
        if speaks || !may_begin { Some(speaks) } else { None }
    }

    /// Returns whether a peer lets others catch up in bulk, as far as that is known.
    pub(super) fn speaks_oplog(&self, peer: &NodeId) -> Option<bool> {
        self.speaks(peer, OPLOG_PROTOCOL)
    }

    /// Hands something to a database. One that is closed needs it no more, and one that failed has told so itself.
    pub(super) async fn input(&self, address: &Address, input: Input) {
        if let Some(database) = self.database(address) {
            drop(database.handle(self.now(), input).await);
        }
    }

    /// Does so where the checks of many blocks hold up nobody else.
    pub(super) async fn inputs_aside(self: &Arc<Self>, address: Address, inputs: Vec<Input>) {
        let shared = Arc::clone(self);
        let handed = aside(async move {
            for input in inputs {
                shared.input(&address, input).await;
            }
            Ok(())
        });
        if let Err(error) = handed.await {
            tracing::error!(db.address = %address, %error, "blocks of peers were not taken");
        }
    }

    pub(super) fn records(&self) -> Vec<Record> {
        lock(&self.records).all().to_vec()
    }

    pub(super) fn find(&self, name_or_address: &str) -> Result<Record, DbError> {
        lock(&self.records).find(name_or_address).cloned()
    }

    /// Returns an open database.
    pub(super) fn database(&self, address: &Address) -> Option<Database> {
        self.orbit.database(address).filter(|database| !database.is_closed())
    }

    /// Waits until what was open before is open again.
    pub(super) async fn ready(&self) -> Result<(), DbError> {
        let mut ready = self.ready.subscribe();
        let waited = self.stopped.run_until_cancelled(ready.wait_for(|ready| *ready)).await;
        waited.map(drop).ok_or(DbError::Stopped)
    }

    /// Opens what was open before. What cannot be opened stays in the list, and is tried again at the next start.
    pub(super) async fn open_again(self: &Arc<Self>) {
        for record in self.records().into_iter().filter(|record| record.open) {
            if let Err(error) = self.open_record(&record).await {
                tracing::error!(db.address = %record.address, db.name = record.name, %error, "a database cannot be opened");
            }
        }
        self.ready.send_replace(true);
    }

    /// Opens a database as its record says.
    pub(super) async fn open_record(self: &Arc<Self>, record: &Record) -> Result<Database, DbError> {
        let mut options = OpenOptions::of(record.r#type).relaxed(record.relaxed);
        if let Some(index_by) = &record.index_by {
            options = options.index_by(index_by);
        }
        let opened = self.open(record.address.to_string(), options).await?;
        self.keep(opened, record.clone(), None).await
    }

    /// Opens a database, for [`Shared::keep`].
    pub(super) async fn open(
        self: &Arc<Self>,
        name_or_address: String,
        options: OpenOptions,
    ) -> Result<Opened, DbError> {
        let (stored_before, open_before) = (self.stored()?, self.orbit.addresses().borrow().clone());
        let address: Option<Address> = name_or_address.parse().ok();
        if let Some(database) = address.and_then(|address| self.database(&address)) {
            return Ok(Opened { database, stored_before, open_before });
        }
        // By an address it shows only later whether another one guards it.
        let count = if address.is_none() && options.is_guarded() { 2 } else { 1 };
        let claim = self.claim(count)?;
        // What peers have to describe may take long, and others wait for their turn.
        let _place = match address {
            Some(_) => Some(self.opening.acquire().await.map_err(|_| DbError::Stopped)?),
            None => None,
        };
        let (shared, limit) = (Arc::clone(self), self.config.open_limit());
        let options = self.config.bound(options);
        let database = aside(async move {
            let opening = timeout(limit, shared.orbit.open(&name_or_address, options));
            match shared.stopped.run_until_cancelled(opening).await {
                None => Err(DbError::Stopped),
                Some(Ok(opened)) => Ok(opened?),
                Some(Err(_)) => match address {
                    Some(address) => Err(DbError::NotReached { address, limit }),
                    None => Err(DbError::Failed(format!("it was not opened within {limit:?}"))),
                },
            }
        })
        .await?;
        drop(claim);
        Ok(Opened { database, stored_before, open_before })
    }

    /// Keeps a database open that was opened, and notes it. What is refused, for the reason given or since it cannot be kept, is taken back.
    /// One at a time does so, as [`Shared::changing`] sees to it: others may be opening the same database, or what guards it.
    pub(super) async fn keep(
        self: &Arc<Self>,
        opened: Opened,
        record: Record,
        refusal: Option<DbError>,
    ) -> Result<Database, DbError> {
        let kept = match refusal.map_or_else(|| self.check(&opened), Err) {
            Ok(()) if !self.records().contains(&record) => self.note(|records| records.put(record)).await,
            checked => checked,
        };
        if let Err(refusal) = kept {
            let address = opened.database.address();
            if let Err(error) = self.take_back(opened).await {
                tracing::warn!(db.address = %address, %error, "a database that is not kept could not be taken back");
            }
            return Err(refusal);
        }
        lock(&self.kept).insert(opened.database.address(), opened.database.clone());
        Ok(opened.database)
    }

    /// Checks that what was opened can be kept open.
    fn check(&self, opened: &Opened) -> Result<(), DbError> {
        let (database, open) = (&opened.database, self.orbit.addresses().borrow().len());
        // Whoever had to take back the same one, or what guards it, closed it.
        if database.is_closed() || database.guard().is_some_and(Database::is_closed) {
            return Err(DatabaseError::Closed.into());
        }
        if open > self.config.databases_max && !opened.open_before.contains(&database.address()) {
            return Err(DbError::TooMany(open));
        }
        Ok(())
    }

    /// Takes back what was opened, and what that stored.
    async fn take_back(self: &Arc<Self>, opened: Opened) -> Result<(), DbError> {
        let Opened { database, stored_before, open_before } = opened;
        let (address, guard) = (database.address(), database.guard().map(Database::address));
        drop(database);
        // Somebody else has it open.
        if open_before.contains(&address) || lock(&self.kept).contains_key(&address) {
            return Ok(());
        }
        if stored_before.contains(&address) {
            return self.close(&address).await;
        }
        self.remove_with(address, guard.filter(|guard| !stored_before.contains(guard))).await
    }

    /// Claims room for so many more databases, until the claim is dropped. One that is being opened may be counted twice for a moment.
    fn claim(&self, count: usize) -> Result<Claim<'_>, DbError> {
        let mut claimed = lock(&self.claimed);
        let open = self.orbit.addresses().borrow().len();
        if open + *claimed + count > self.config.databases_max {
            return Err(DbError::TooMany(open + *claimed));
        }
        *claimed += count;
        Ok(Claim { claimed: &self.claimed, count })
    }

    /// Makes sure that only one changes which databases there are.
    pub(super) async fn changing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Changes the list of databases, on disk first.
    pub(super) async fn note(self: &Arc<Self>, change: impl FnOnce(&mut Records)) -> Result<(), DbError> {
        let mut records = lock(&self.records).clone();
        change(&mut records);
        let written = records.clone();
        aside(async move { written.write() }).await?;
        *lock(&self.records) = records;
        Ok(())
    }

    /// Lets go of a database: it is open as long as somebody else needs it.
    pub(super) fn release(&self, address: &Address) {
        lock(&self.kept).remove(address);
    }

    /// Closes a database.
    pub(super) async fn close(&self, address: &Address) -> Result<(), DbError> {
        self.release(address);
        match self.orbit.database(address) {
            Some(database) => Ok(database.close().await?),
            None => Ok(()),
        }
    }

    /// Removes what is stored of a database.
    async fn remove(self: &Arc<Self>, address: Address) -> Result<(), DbError> {
        self.release(&address);
        let shared = Arc::clone(self);
        aside(async move {
            let mut tries = 0;
            loop {
                match shared.orbit.drop_database(&address).await {
                    // Somebody reads what is still being sent to a peer.
                    Err(DatabaseError::Storage(StorageError::InUse(_))) if tries < IN_USE_TRIES => {
                        tries += 1;
                        sleep(IN_USE_PAUSE).await;
                    }
                    removed => return Ok(removed?),
                }
            }
        })
        .await
    }

    /// Removes what is stored of a database, and of what guards it where that guards nothing else that is kept here.
    pub(super) async fn remove_with(self: &Arc<Self>, address: Address, guard: Option<Address>) -> Result<(), DbError> {
        self.remove(address).await?;
        let mut others = self.records();
        others.retain(|other| other.address != address);
        match guard.filter(|guard| others.iter().all(|other| other.guard != Some(*guard) && other.address != *guard)) {
            Some(guard) => self.remove(guard).await,
            None => Ok(()),
        }
    }

    /// Returns the addresses of all databases that are stored here, those that guard others included.
    fn stored(&self) -> Result<BTreeSet<Address>, DbError> {
        Ok(self.orbit.databases()?.into_iter().map(|known| known.address).collect())
    }

    /// Lets all databases go.
    pub(super) async fn close_all(&self) -> Result<(), DbError> {
        self.stopped.cancel();
        let closed = self.orbit.close().await;
        self.own_blocks.close().await;
        lock(&self.kept).clear();
        Ok(closed?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bombus_core::identity::NodeKey;
    use bombus_net::membership::{Generation, MembershipHandle, MembershipState, Privacy, SwarmKey};
    use bombus_net::{NetConfig, NetIdentity, net};
    use orbitdb::manifest::DatabaseType;
    use tempfile::TempDir;

    use super::*;
    use crate::db::db;

    #[tokio::test]
    async fn why_a_database_is_not_kept_is_told_though_it_cannot_be_taken_back() {
        let key = NodeKey::from_secret(&[1; 32]);
        let identity = NetIdentity { key, name: "node-1".to_owned(), version: "0.0.0".to_owned() };
        let (_membership, state) = watch::channel(MembershipState {
            swarm_id: "a".repeat(16).parse().unwrap(),
            privacy: Privacy::Closed(SwarmKey::from_bytes([1; 32])),
            generation: Generation(0),
            removed: Arc::default(),
        });
        let (mesh, _net) = net(NetConfig::default(), identity, MembershipHandle::following(state));
        let directory = TempDir::new().unwrap();
        let (_db, service) = db(DbConfig::default(), mesh, directory.path()).unwrap();
        let shared = &service.shared;
        let opened = shared.open("name".to_owned(), OpenOptions::of(DatabaseType::Events)).await.unwrap();
        let record = Record::of(&opened.database, false, true);
        // A directory cannot be removed as a file is.
        let file = directory.path().join(format!("{}.redb", record.address.manifest()));
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        let kept = shared.keep(opened, record, Some(DbError::TooMany(3))).await;
        assert!(matches!(kept, Err(DbError::TooMany(3))), "{kept:?}");
        assert!(file.is_dir(), "it was not taken back");
    }
}
