//! Databases between nodes, over real connections on the loopback address.

use std::collections::BTreeMap;
use std::time::Duration;

use bombus_core::identity::NodeId;
use orbitdb::manifest::DatabaseType;
use orbitdb::{Access, Database, OpenOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::harness::{LIMIT, Mesh, until_it_shows};
use crate::db::{DbConfig, DbHandle, DbSyncConfig, db};

mod catching_up;
mod keeping;
mod sharing;
mod straight;
mod strangers;

/// Settings with short times.
pub(super) fn config() -> DbConfig {
    let sync = DbSyncConfig { resend_ms: 2_000, want_timeout_ms: 2_000, backoff_ms: 100, ..DbSyncConfig::default() };
    DbConfig { sync, open_limit_ms: 15_000, ..DbConfig::default() }
}

/// A node with databases.
pub(super) struct Keeper {
    pub(super) mesh: Mesh,
    pub(super) db: DbHandle,
    stop: CancellationToken,
    task: JoinHandle<()>,
    directory: TempDir,
}

impl Keeper {
    pub(super) async fn start(number: u8, seeds: &[&Keeper]) -> Self {
        Self::start_with(number, seeds, config(), TempDir::new().unwrap()).await
    }

    pub(super) async fn start_with(number: u8, seeds: &[&Keeper], config: DbConfig, directory: TempDir) -> Self {
        let seeds: Vec<&Mesh> = seeds.iter().map(|seed| &seed.mesh).collect();
        let mesh = Mesh::start(number, &seeds).await;
        let (db, service) = db(config, mesh.net.clone(), directory.path()).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(service.run(stop.clone()));
        timeout(LIMIT, db.ready()).await.expect("what was open is open again in time").unwrap();
        Self { mesh, db, stop, task, directory }
    }

    pub(super) fn id(&self) -> &NodeId {
        self.mesh.net.node_id()
    }

    /// Creates documents that everybody may write.
    async fn create(&self, name: &str) -> Database {
        self.db.create(name, documents()).await.unwrap()
    }

    async fn open(&self, database: &Database) -> Database {
        self.db.open(&database.address().to_string()).await.unwrap()
    }

    /// Waits until a peer has a database open.
    async fn shares(&self, database: &Database, peer: &Keeper) {
        until_it_shows(|| async {}, || self.db.peers(&database.address()).contains(peer.id())).await;
    }

    pub(super) async fn stop(self) -> TempDir {
        let Self { mesh, db, stop, task, directory } = self;
        drop(db);
        stop.cancel();
        timeout(LIMIT, task).await.expect("the databases stop").unwrap();
        mesh.stop().await;
        directory
    }
}

fn documents() -> OpenOptions {
    OpenOptions::of(DatabaseType::Documents).access(Access::Everyone)
}

async fn put(database: &Database, id: &str, says: &str) {
    database.put_document(json_value(&json!({ "_id": id, "says": says }))).await.unwrap();
}

pub(super) fn json_value(json: &Value) -> orbitdb::cbor::Value {
    orbitdb::cbor::Value::from_json(json).unwrap()
}

/// Returns what documents say, by their ids.
fn said(database: &Database) -> BTreeMap<String, String> {
    let rows = database.query(|_| true).into_iter();
    let says = |row: &orbitdb::index::Row| row.value.get("says").and_then(|says| says.as_text().map(str::to_owned));
    rows.filter_map(|row| Some((row.key.to_string(), says(&row)?))).collect()
}

/// Waits until documents say this, and nothing else.
async fn says(database: &Database, wanted: &[(&str, &str)]) {
    let wanted: BTreeMap<String, String> =
        wanted.iter().map(|(id, says)| ((*id).to_owned(), (*says).to_owned())).collect();
    let shown = timeout(LIMIT, until_it_shows(|| async {}, || said(database) == wanted)).await;
    assert!(shown.is_ok(), "it says {:?}, and not {wanted:?}", said(database));
}

/// Waits until so many entries count.
async fn has(database: &Database, entries: u64) {
    let count = || database.info().map_or(0, |info| info.entries);
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    let shown = timeout(LIMIT, async {
        while count() != entries {
            pause.tick().await;
        }
    });
    if shown.await.is_err() {
        panic!("{} entries count, and not {entries}: {:?}", count(), database.info());
    }
    // They count before they are written, and are shown after that.
    database.flush().await.unwrap();
}

/// Puts many documents at once.
async fn put_many(database: &Database, name: &str, count: usize) {
    let puts = (0..count).map(|number| async move { put(database, &format!("{name}-{number}"), "something").await });
    futures::future::join_all(puts).await;
}
