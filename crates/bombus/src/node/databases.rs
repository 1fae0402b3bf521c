//! The replicated databases of the swarm that this node belongs to: kept going, and as the HTTP API needs them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use bombus_core::identity::NodeId;
use bombus_http::databases::{
    Capability, DatabaseAccess, DatabaseCatchUp, DatabaseChange, DatabaseEntry, DatabaseInfo, DatabasePeer,
    DatabaseRow, DatabaseType, Databases, DatabasesError, NewDatabase, RowBounds, Rows,
};
use bombus_http::{Sample, SampleKind};
use bombus_net::NetHandle;
use bombus_net::membership::{MembershipHandle, SwarmId};
use bombus_swarm::db::{DbConfig, DbError, DbHandle, DbService};
use bombus_swarm::{SwarmHandle, is_reserved};
use futures::stream::{self, BoxStream, StreamExt};
use orbitdb::cbor::Value;
use orbitdb::cid::Hash;
use orbitdb::entry::Refusal;
use orbitdb::index::Row;
use orbitdb::log::Admission;
use orbitdb::manifest::ControllerAddress;
use orbitdb::{Access, Bounds, Database, OpenError, OpenOptions, Pages, Take};
use serde_json::{Map, Value as Json};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

mod translate;

use super::tasks::SwarmTasksService;
use translate::{change_of, check_identity, fits, of_database, refused, row_of, type_of, unmarked, unwritten};

/// Rows that are read at a time; each may be as large as an entry.
const PAGE_ROWS: usize = 64;
/// What the folder of a swarm calls its databases.
const FOLDER: &str = "databases";
/// Longest wait for databases that are being opened.
const OPENING_WAIT_MAX: Duration = Duration::from_secs(10);

/// What there is of the databases now.
#[derive(Clone)]
enum Current {
    /// They are being opened.
    Opening,
    /// They can be used.
    Open(DbHandle),
    /// They cannot be used, and why.
    Failed(String),
}

/// The databases, for whoever uses them.
#[derive(Clone)]
pub(super) struct SwarmDatabases {
    current: watch::Receiver<Current>,
    membership: MembershipHandle,
    swarm: SwarmHandle,
    /// Whether durable tasks are kept in some of them.
    for_tasks: bool,
}

/// What keeps the databases going. When the node changes to another swarm, the databases of the old one are closed, so that no member of
/// the new one sees them, and those of the new one are opened.
pub(super) struct DatabasesService {
    config: DbConfig,
    net: NetHandle,
    membership: MembershipHandle,
    /// The folder with a folder for each swarm.
    swarms: PathBuf,
    current: watch::Sender<Current>,
    /// What is kept going beside them, where the configuration says so.
    tasks: Option<SwarmTasksService>,
}

/// Makes the two halves of the databases.
pub(super) fn databases(
    config: DbConfig,
    net: NetHandle,
    membership: MembershipHandle,
    swarm: SwarmHandle,
    swarms: PathBuf,
    tasks: Option<SwarmTasksService>,
) -> (SwarmDatabases, DatabasesService) {
    let (sender, current) = watch::channel(Current::Opening);
    let for_tasks = tasks.is_some();
    let service = DatabasesService { config, net, membership: membership.clone(), swarms, current: sender, tasks };
    (SwarmDatabases { current, membership, swarm, for_tasks }, service)
}

impl DatabasesService {
    /// Runs until `stop`; everything is safe and closed when this returns.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<()> {
        let mut membership = self.membership.current();
        loop {
            let swarm_id = membership.borrow_and_update().swarm_id.clone();
            let moved = async {
                // Without a membership there is no other swarm to go to.
                if membership.wait_for(|state| state.swarm_id != swarm_id).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let leave = stop.child_token();
            let serving = self.serve(swarm_id.clone(), leave.clone());
            tokio::pin!(serving);
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = moved => {
                    self.current.send_replace(Current::Opening);
                    leave.cancel();
                }
                () = &mut serving => anyhow::bail!("the databases ended by themselves"),
            }
            serving.await;
            if stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Opens the databases of a swarm and runs them until `leave`. Where they cannot be opened, the node goes on without them.
    async fn serve(&self, swarm_id: SwarmId, leave: CancellationToken) {
        match self.open(&swarm_id).await {
            Ok((handle, service)) => {
                self.current.send_replace(Current::Open(handle.clone()));
                self.keep(handle, service, leave).await;
            }
            Err(reason) => {
                tracing::error!(swarm.id = %swarm_id, reason, "the databases of the swarm cannot be used");
                if let Some(tasks) = &self.tasks {
                    tasks.none(&reason);
                }
                self.current.send_replace(Current::Failed(reason));
                leave.cancelled().await;
            }
        }
    }

    /// Runs databases, and the tasks in them, until `leave`. The tasks end before the databases that they write to.
    async fn keep(&self, handle: DbHandle, service: DbService, leave: CancellationToken) {
        let Some(tasks) = &self.tasks else { return service.run(leave).await };
        let close = CancellationToken::new();
        let mut running = std::pin::pin!(service.run(close.clone()));
        tokio::select! {
            () = &mut running => {}
            () = tasks.run(handle, leave) => {
                close.cancel();
                running.await;
            }
        }
    }

    async fn open(&self, swarm_id: &SwarmId) -> Result<(DbHandle, DbService), String> {
        let (config, net) = (self.config.clone(), self.net.clone());
        let directory = self.swarms.join(swarm_id.as_str()).join(FOLDER);
        let opened = spawn_blocking(move || bombus_swarm::db::db(config, net, &directory)).await;
        opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

impl SwarmDatabases {
    /// Returns what there is to say of the databases to `/metrics`.
    pub(super) fn samples(&self) -> impl Fn() -> Vec<Sample> + Send + Sync + 'static {
        let current = self.current.clone();
        move || {
            let handle = match &*current.borrow() {
                Current::Open(handle) => handle.clone(),
                Current::Opening | Current::Failed(_) => return Vec::new(),
            };
            let open = handle.orbit().addresses().borrow().len();
            vec![Sample {
                name: "databases_open",
                kind: SampleKind::Gauge,
                help: "Replicated databases that are open, those that say who may write to others included",
                labels: Vec::new(),
                value: open as f64,
            }]
        }
    }

    /// Refuses what would take a database away from the durable tasks, which are kept in some of them.
    fn check_is_free(&self, handle: &DbHandle, database: &str) -> Result<(), DatabasesError> {
        let wanted = whole_address(database);
        let is_meant = |known: &orbitdb::Known| known.name == wanted || known.address.to_string() == wanted;
        let is_of_tasks = |known: &orbitdb::Known| is_reserved(&known.name);
        if self.for_tasks && handle.list().map_err(refused)?.iter().any(|known| is_meant(known) && is_of_tasks(known)) {
            let message = "the tasks of the swarm are kept in it; [tasks] enabled = false ends them first".to_owned();
            return Err(DatabasesError::Invalid { param: "database", message });
        }
        Ok(())
    }

    /// Returns the databases once they can be used; while they are being opened, as at the start of the node, it waits for a moment.
    async fn handle(&self) -> Result<DbHandle, DatabasesError> {
        let mut current = self.current.clone();
        let opened = current.wait_for(|current| !matches!(current, Current::Opening));
        // Whether it was waited for in vain is seen in what there is.
        let _ = timeout(OPENING_WAIT_MAX, opened).await;
        self.handle_now()
    }

    fn handle_now(&self) -> Result<DbHandle, DatabasesError> {
        match &*self.current.borrow() {
            Current::Open(handle) => Ok(handle.clone()),
            Current::Opening => Err(DatabasesError::Unavailable("the databases are being opened; ask again".into())),
            Current::Failed(reason) => {
                Err(DatabasesError::Unavailable(format!("the databases cannot be used: {reason}")))
            }
        }
    }

    /// Finds an open database by its name, its address, or the last part of its address.
    async fn database(&self, wanted: &str) -> Result<Database, DatabasesError> {
        let handle = self.handle().await?;
        handle.ready().await.map_err(refused)?;
        let wanted = whole_address(wanted);
        if let Some(database) = handle.database(&wanted) {
            return Ok(database);
        }
        let known = handle.list().map_err(refused)?;
        let fits = known.iter().filter(|known| known.name == wanted || known.address.to_string() == wanted);
        let fits: Vec<String> = fits.map(|known| known.address.to_string()).collect();
        Err(match fits.as_slice() {
            [] => DatabasesError::UnknownDatabase(format!("no database is called '{wanted}' here")),
            [_] => DatabasesError::Closed(format!("the database '{wanted}' is closed: open it first")),
            several => {
                DatabasesError::AmbiguousDatabase(format!("'{wanted}' may be {}: say which", several.join(" or ")))
            }
        })
    }

    /// Describes a database.
    async fn described(&self, database: Database) -> Result<DatabaseInfo, DatabasesError> {
        let identity = self.identity()?;
        let (info, of_guard) = {
            let database = database.clone();
            let seen = move || {
                let of_guard = database.guard().map(Database::info).transpose().map_err(of_database)?;
                Ok((database.info().map_err(of_database)?, of_guard))
            };
            aside(seen).await?
        };
        let (grants_refused, grants_dropped) = of_guard.map(|guard| (guard.refused, guard.dropped)).unwrap_or_default();
        let manifest = database.manifest();
        let grantable = matches!(manifest.controller, ControllerAddress::OrbitDb(_));
        let admission = database.admission();
        let documents = manifest.r#type == orbitdb::manifest::DatabaseType::Documents;
        let peers = info.peers.iter().map(|peer| self.peer(peer.as_str())).collect();
        let address = database.address();
        let catching_up = self.handle().await?.catching_up(&address).into_iter().map(|of| DatabaseCatchUp {
            node_id: of.peer.to_string(),
            entries: of.entries,
            blocks_done: of.blocks_done,
            bytes_done: of.bytes_done,
        });
        let named = |counts: BTreeMap<Refusal, u64>| {
            counts.into_iter().map(|(refusal, count)| (translate::word_of(refusal).to_owned(), count)).collect()
        };
        Ok(DatabaseInfo {
            name: manifest.name.clone(),
            address: database.address().to_string(),
            r#type: type_of(manifest.r#type),
            index_by: documents.then(|| database.index_by().to_owned()),
            access: DatabaseAccess {
                grantable,
                writable: admission.admits(&identity),
                write: ids_of(&admission),
                admin: database.guard().map(|guard| ids_of(&guard.admission())).unwrap_or_default(),
            },
            identity,
            heads: info.heads.iter().map(Hash::to_string).collect(),
            entries: info.entries,
            rows: info.rows,
            log_bytes: info.log_bytes,
            stored_bytes: info.stored_bytes,
            durable: info.durable,
            entries_grown: info.entries_grown,
            bytes_grown: info.bytes_grown,
            refused: named(info.refused),
            dropped: named(info.dropped),
            grants_refused: named(grants_refused),
            grants_dropped: named(grants_dropped),
            broken: info.broken,
            parked: info.parked as u64,
            missing: info.missing as u64,
            peers,
            catching_up: catching_up.collect(),
        })
    }

    fn peer(&self, node_id: &str) -> DatabasePeer {
        let view = NodeId::parse(node_id).ok().and_then(|node_id| self.swarm.peer(&node_id));
        let name = view.filter(|view| !view.name.is_empty()).map(|view| view.name);
        DatabasePeer { node_id: node_id.to_owned(), hostname: name.unwrap_or_else(|| node_id.to_owned()) }
    }
}

#[async_trait]
impl Databases for SwarmDatabases {
    fn identity(&self) -> Result<String, DatabasesError> {
        Ok(self.handle_now()?.orbit().identity().id().to_owned())
    }

    async fn list(&self) -> Result<Vec<DatabaseEntry>, DatabasesError> {
        let handle = self.handle().await?;
        handle.ready().await.map_err(refused)?;
        let known = handle.list().map_err(refused)?;
        let entry = |known: orbitdb::Known| {
            let address = known.address.to_string();
            let open = handle.database(&address).is_some();
            DatabaseEntry { name: known.name, address, r#type: type_of(known.r#type), open }
        };
        Ok(known.into_iter().map(entry).collect())
    }

    async fn create(&self, new: NewDatabase) -> Result<DatabaseInfo, DatabasesError> {
        if new.index_by.is_some() && new.r#type != DatabaseType::Documents {
            return Err(no_documents());
        }
        if is_reserved(&new.name) {
            let message =
                format!("{:?} is the name of a database that nodes keep for themselves: take another one", new.name);
            return Err(DatabasesError::Invalid { param: "name", message });
        }
        for id in new.write.iter().flatten() {
            check_identity("write", id)?;
        }
        let access = match new.write {
            None => Access::Capabilities(Vec::new()),
            Some(list) if list == ["*"] => Access::Everyone,
            Some(list) => Access::Writers(list),
        };
        let mut options = OpenOptions::of(translate::library_type(new.r#type)).access(access);
        if let Some(field) = &new.index_by {
            options = options.index_by(field);
        }
        let handle = self.handle().await?;
        let reopened = match new.r#type {
            DatabaseType::Documents => reopened(&handle, &new.name).await?,
            DatabaseType::Events | DatabaseType::KeyValue => None,
        };
        let created = handle.create(&new.name, options).await.map_err(refused);
        let created = created.and_then(|database| check_index(database, new.index_by.as_deref()));
        match (created, reopened) {
            (Ok(database), _) => {
                self.membership.mark_used().await.map_err(|error| unmarked(&error))?;
                self.described(database).await
            }
            (Err(error), None) => Err(error),
            (Err(error), Some(address)) => {
                handle.close(&address).await.map_err(refused)?;
                Err(error)
            }
        }
    }

    async fn open(&self, database: &str, index_by: Option<String>) -> Result<DatabaseInfo, DatabasesError> {
        let handle = self.handle().await?;
        let wanted = whole_address(database);
        let mut options = OpenOptions::default();
        if let Some(field) = index_by {
            if let Some(open) = handle.database(&wanted) {
                check_index(open, Some(&field))?;
            }
            options = OpenOptions::of(orbitdb::manifest::DatabaseType::Documents).index_by(field);
        }
        let database = handle.open_with(&wanted, options).await.map_err(|error| match error {
            DbError::Open(OpenError::Type { .. }) => no_documents(),
            error => refused(error),
        })?;
        self.membership.mark_used().await.map_err(|error| unmarked(&error))?;
        self.described(database).await
    }

    async fn info(&self, database: &str) -> Result<DatabaseInfo, DatabasesError> {
        let database = self.database(database).await?;
        self.described(database).await
    }

    async fn close(&self, database: &str) -> Result<(), DatabasesError> {
        let handle = self.handle().await?;
        self.check_is_free(&handle, database)?;
        handle.close(&whole_address(database)).await.map_err(refused)
    }

    async fn discard(&self, database: &str) -> Result<(), DatabasesError> {
        let handle = self.handle().await?;
        self.check_is_free(&handle, database)?;
        handle.drop(&whole_address(database)).await.map_err(refused)
    }

    async fn put(&self, database: &str, key: Option<String>, value: Json) -> Result<String, DatabasesError> {
        let database = self.database(database).await?;
        let value = value_of(&value)?;
        let put = match (type_of(database.manifest().r#type), key) {
            (DatabaseType::Documents, Some(_)) => {
                let message = format!("documents have their key in the field '{}'", database.index_by());
                return Err(DatabasesError::Invalid { param: "key", message });
            }
            (DatabaseType::Documents, None) => database.put_document(value).await,
            (_, Some(key)) => database.put(&key, value).await,
            (DatabaseType::KeyValue, None) => {
                return Err(DatabasesError::Invalid { param: "key", message: "say under which key".into() });
            }
            (DatabaseType::Events, None) => {
                let message = "events have no keys, and are added and not put".to_owned();
                return Err(DatabasesError::WrongType(message));
            }
        };
        put.map(|hash| hash.to_string()).map_err(|error| unwritten(error, database.guard().is_none()))
    }

    async fn del(&self, database: &str, key: &str) -> Result<String, DatabasesError> {
        let database = self.database(database).await?;
        if type_of(database.manifest().r#type) != DatabaseType::Events && database.get(key).is_none() {
            return Err(DatabasesError::UnknownKey("nothing is under this key".into()));
        }
        let done = database.del(key).await;
        done.map(|hash| hash.to_string()).map_err(|error| unwritten(error, database.guard().is_none()))
    }

    async fn add(&self, database: &str, value: Json) -> Result<String, DatabasesError> {
        let database = self.database(database).await?;
        let added = database.add(value_of(&value)?).await;
        added.map(|hash| hash.to_string()).map_err(|error| unwritten(error, database.guard().is_none()))
    }

    async fn get(&self, database: &str, key: &str) -> Result<DatabaseRow, DatabasesError> {
        let database = self.database(database).await?;
        let unknown = || DatabasesError::UnknownKey("nothing is under this key".into());
        if type_of(database.manifest().r#type) != DatabaseType::Events {
            return database.get(key).map(|row| row_of(&row, true)).ok_or_else(unknown);
        }
        if key.parse::<Hash>().is_err() {
            let message = "events are got by their hashes, zdpu...".to_owned();
            return Err(DatabasesError::Invalid { param: "key", message });
        }
        let key = key.to_owned();
        let row = aside(move || Ok(database.get(&key))).await?;
        row.map(|row| row_of(&row, false)).ok_or_else(unknown)
    }

    async fn rows(&self, database: &str, bounds: RowBounds) -> Result<Rows, DatabasesError> {
        let database = self.database(database).await?;
        let has_keys = type_of(database.manifest().r#type) != DatabaseType::Events;
        Ok(pages(database, &bounds).await?.map(move |row| row.map(|row| row_of(&row, has_keys))).boxed())
    }

    async fn query(
        &self,
        database: &str,
        fields: Map<String, Json>,
        amount: Option<usize>,
    ) -> Result<Rows, DatabasesError> {
        let database = self.database(database).await?;
        let wanted = fields.iter().map(|(name, value)| Ok((name.clone(), value_of(value)?)));
        let wanted: Vec<(String, Value)> = wanted.collect::<Result<_, DatabasesError>>()?;
        let amount = amount.unwrap_or(usize::MAX);
        if type_of(database.manifest().r#type) == DatabaseType::Events {
            // The index holds no values of events: they are read from the disk, and what fits is kept.
            let found = pages(database, &RowBounds::default()).await?.filter_map(move |row| {
                let found = match row {
                    Ok(row) => fits(&row.value, &wanted).then(|| Ok(row_of(&row, false))),
                    Err(error) => Some(Err(error)),
                };
                std::future::ready(found)
            });
            return Ok(found.take(amount).boxed());
        }
        let found = aside(move || Ok(database.query(|value| fits(value, &wanted))));
        Ok(stream::iter(found.await?.into_iter().take(amount)).map(|row| Ok(row_of(&row, true))).boxed())
    }

    async fn watch(&self, database: &str) -> Result<BoxStream<'static, DatabaseChange>, DatabasesError> {
        let mut events = self.database(database).await?.events();
        let changes = async_stream::stream! {
            use tokio::sync::broadcast::error::RecvError;
            loop {
                match events.recv().await {
                    Ok(event) => yield change_of(event),
                    Err(RecvError::Lagged(missed)) => yield DatabaseChange::Lagged { missed },
                    Err(RecvError::Closed) => return,
                }
            }
        };
        Ok(changes.boxed())
    }

    async fn grant(&self, database: &str, capability: Capability, identity: &str) -> Result<(), DatabasesError> {
        check_identity("identity", identity)?;
        self.database(database).await?.grant(capability.name(), identity).await.map_err(of_database)
    }

    async fn revoke(&self, database: &str, capability: Capability, identity: &str) -> Result<(), DatabasesError> {
        self.database(database).await?.revoke(capability.name(), identity).await.map_err(of_database)
    }
}

/// Reads rows page by page, so that a reader who takes them slowly keeps few of them in memory.
async fn pages(
    database: Database,
    bounds: &RowBounds,
) -> Result<BoxStream<'static, Result<Row, DatabasesError>>, DatabasesError> {
    let hash = |param: &'static str, text: &Option<String>| {
        let parsed = text.as_ref().map(|text| text.parse::<Hash>()).transpose();
        parsed.map_err(|_| DatabasesError::Invalid { param, message: format!("'{param}' has to be a hash, zdpu...") })
    };
    let bounds = Bounds {
        amount: bounds.amount,
        take: if bounds.newest_first { Take::Newest } else { Take::Oldest },
        gt: hash("gt", &bounds.gt)?,
        gte: hash("gte", &bounds.gte)?,
        lt: hash("lt", &bounds.lt)?,
        lte: hash("lte", &bounds.lte)?,
    };
    let read = |mut pages: Pages| {
        aside(move || {
            let rows = pages.read(PAGE_ROWS).map_err(of_database)?;
            Ok((pages, rows))
        })
    };
    // A bound that is not there is told before the answer begins.
    let pages = aside(move || database.pages(bounds).map_err(of_database)).await?;
    let (mut pages, mut rows) = read(pages).await?;
    let rows = async_stream::stream! {
        while !rows.is_empty() {
            for row in rows {
                yield Ok(row);
            }
            (pages, rows) = match read(pages).await {
                Ok(next) => next,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
        }
    };
    Ok(rows.boxed())
}

/// Does work that reads the disk where it holds up nobody else.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DatabasesError> + Send + 'static,
) -> Result<T, DatabasesError> {
    let done = spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(DatabasesError::Failed(format!("reading failed: {error}"))))
}

/// Opens the closed documents of a name again, and returns their address. A creation would open them with any other field for their keys;
/// those that are open it takes as they are.
async fn reopened(handle: &DbHandle, name: &str) -> Result<Option<String>, DatabasesError> {
    handle.ready().await.map_err(refused)?;
    let known = handle.list().map_err(refused)?;
    let found = known.iter().find(|known| known.name == name && type_of(known.r#type) == DatabaseType::Documents);
    let address = found.map(|known| known.address.to_string());
    let Some(address) = address.filter(|address| handle.database(address).is_none()) else { return Ok(None) };
    handle.open(&address).await.map_err(refused)?;
    Ok(Some(address))
}

/// Refuses a database that is open with its keys in another field than the one asked for.
fn check_index(database: Database, asked: Option<&str>) -> Result<Database, DatabasesError> {
    let Some(asked) = asked else { return Ok(database) };
    if type_of(database.manifest().r#type) != DatabaseType::Documents {
        return Err(no_documents());
    }
    if database.index_by() == asked {
        return Ok(database);
    }
    let message = format!(
        "the database is there with its keys in the field '{}': close it, and open it with the other one",
        database.index_by()
    );
    Err(DatabasesError::Invalid { param: "index_by", message })
}

fn no_documents() -> DatabasesError {
    let message = "documents alone have their keys in a field".to_owned();
    DatabasesError::Invalid { param: "index_by", message }
}

/// Completes the last part of an address, which is all that differs between addresses.
fn whole_address(wanted: &str) -> String {
    let whole = format!("/orbitdb/{wanted}");
    if whole.parse::<orbitdb::manifest::Address>().is_ok() { whole } else { wanted.to_owned() }
}

fn ids_of(admission: &Admission) -> Vec<String> {
    match admission {
        Admission::Everyone => vec!["*".to_owned()],
        Admission::Only(ids) => ids.iter().cloned().collect(),
    }
}

fn value_of(json: &Json) -> Result<Value, DatabasesError> {
    Value::from_json(json).map_err(|error| DatabasesError::Invalid { param: "value", message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use orbitdb::OrbitDb;
    use orbitdb::crypt::Encryption;
    use orbitdb::entry::{Codec, Limits, Operation};
    use orbitdb::identity::Signer;
    use orbitdb::key::SecretKey;
    use orbitdb::replica::{Input, Replica};
    use orbitdb::sync::{Peer, SyncConfig};

    use super::*;

    #[tokio::test]
    async fn all_rows_come_although_a_revocation_takes_away_where_a_page_ended() {
        let (orbit, _outputs) = OrbitDb::builder().build().unwrap();
        let guarded = OpenOptions::of(orbitdb::manifest::DatabaseType::KeyValue);
        let guarded = guarded.access(Access::Capabilities(Vec::new()));
        let database = orbit.open("guarded", guarded).await.unwrap();
        for number in 1..PAGE_ROWS {
            database.put(&number.to_string(), 1_u64).await.unwrap();
        }
        // The last row of the first page is somebody else's.
        let signer = Signer::new(&SecretKey::generate().unwrap(), &SecretKey::generate().unwrap());
        database.grant("write", signer.identity().id()).await.unwrap();
        let codec = Codec::new(database.address().to_string(), Encryption::default(), Limits::default());
        let mut theirs = Replica::new(codec, Admission::Everyone, SyncConfig::default());
        let time = u64::try_from(PAGE_ROWS).unwrap();
        let written = theirs.append(&signer, Operation::put("theirs", 1_u64), time).unwrap();
        let blocks = written.stored.iter().map(|stored| stored.block.to_vec()).collect();
        database.handle(Duration::ZERO, Input::Bulk(Peer::new("them"), blocks)).await.unwrap();
        database.flush().await.unwrap();
        for number in 0..PAGE_ROWS {
            database.put(&format!("more {number}"), 1_u64).await.unwrap();
        }

        let mut rows = pages(database.clone(), &RowBounds::default()).await.unwrap();
        let first: Vec<_> = rows.by_ref().take(PAGE_ROWS).collect().await;
        assert_eq!(&*first.last().unwrap().as_ref().unwrap().key, "theirs");
        database.revoke("write", signer.identity().id()).await.unwrap();
        let rest: Vec<_> = rows.collect().await;
        assert_eq!((rest.len(), rest.iter().filter(|row| row.is_ok()).count()), (PAGE_ROWS, PAGE_ROWS));
    }
}
