//! A database that does what a test wants.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde_json::{Map, Value, json};

use crate::databases::{
    Capability, DatabaseAccess, DatabaseCatchUp, DatabaseChange, DatabaseEntry, DatabaseInfo, DatabasePeer,
    DatabaseRow, DatabaseType, Databases, DatabasesError, NewDatabase, RowBounds, Rows,
};

/// How long a slow write takes.
const SLOW: Duration = Duration::from_millis(10);
/// Its address.
pub(crate) const ADDRESS: &str = "/orbitdb/zdpuAmH";

/// One database, which remembers what it was told.
#[derive(Clone)]
pub(crate) struct Scripted {
    pub(crate) r#type: DatabaseType,
    pub(crate) rows: Vec<Result<DatabaseRow, DatabasesError>>,
    pub(crate) changes: Vec<DatabaseChange>,
    pub(crate) refusal: Option<DatabasesError>,
    pub(crate) told: Arc<Mutex<Vec<String>>>,
    /// Whether an event takes a moment to be safe.
    pub(crate) slow: bool,
}

/// A database without anything in it.
pub(crate) fn scripted(r#type: DatabaseType) -> Scripted {
    Scripted { r#type, rows: Vec::new(), changes: Vec::new(), refusal: None, told: Arc::default(), slow: false }
}

impl Scripted {
    fn answer<T>(&self, what: String, value: T) -> Result<T, DatabasesError> {
        self.told.lock().unwrap().push(what);
        self.refusal.clone().map_or(Ok(value), Err)
    }

    pub(crate) fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    fn described(&self) -> DatabaseInfo {
        DatabaseInfo {
            name: "notes".into(),
            address: ADDRESS.into(),
            r#type: self.r#type,
            index_by: (self.r#type == DatabaseType::Documents).then(|| "_id".into()),
            identity: "02ab".into(),
            access: DatabaseAccess {
                grantable: true,
                write: vec!["02ab".into()],
                admin: vec!["02ab".into()],
                writable: true,
            },
            heads: vec!["zdpuHead".into()],
            entries: 3,
            rows: 2,
            log_bytes: 1_200,
            stored_bytes: 4_096,
            durable: true,
            entries_grown: -1,
            bytes_grown: 400,
            refused: [("access".to_owned(), 1)].into(),
            dropped: [("signature".to_owned(), 2)].into(),
            grants_refused: [("access".to_owned(), 3)].into(),
            grants_dropped: [("access".to_owned(), 4)].into(),
            broken: 0,
            parked: 0,
            missing: 0,
            peers: vec![DatabasePeer { node_id: "12D3KooWHive".into(), hostname: "hive".into() }],
            catching_up: vec![DatabaseCatchUp {
                node_id: "12D3KooWHive".into(),
                entries: 500,
                blocks_done: 120,
                bytes_done: 200_000,
            }],
        }
    }
}

#[async_trait]
impl Databases for Scripted {
    fn identity(&self) -> Result<String, DatabasesError> {
        self.answer("identity".into(), "02ab".into())
    }

    async fn list(&self) -> Result<Vec<DatabaseEntry>, DatabasesError> {
        let entry = DatabaseEntry { name: "notes".into(), address: ADDRESS.into(), r#type: self.r#type, open: true };
        self.answer("list".into(), vec![entry])
    }

    async fn create(&self, new: NewDatabase) -> Result<DatabaseInfo, DatabasesError> {
        let what = format!("create {} {} {:?} {:?}", new.name, new.r#type.name(), new.index_by, new.write);
        self.answer(what, self.described())
    }

    async fn open(&self, database: &str, index_by: Option<String>) -> Result<DatabaseInfo, DatabasesError> {
        self.answer(format!("open {database} {index_by:?}"), self.described())
    }

    async fn info(&self, database: &str) -> Result<DatabaseInfo, DatabasesError> {
        match database {
            "notes" | ADDRESS => Ok(self.described()),
            _ => Err(DatabasesError::UnknownDatabase("no database is called so".into())),
        }
    }

    async fn close(&self, database: &str) -> Result<(), DatabasesError> {
        self.answer(format!("close {database}"), ())
    }

    async fn discard(&self, database: &str) -> Result<(), DatabasesError> {
        self.answer(format!("drop {database}"), ())
    }

    async fn put(&self, database: &str, key: Option<String>, value: Value) -> Result<String, DatabasesError> {
        self.answer(format!("put {database} {key:?} {value}"), "zdpuPut".into())
    }

    async fn del(&self, database: &str, key: &str) -> Result<String, DatabasesError> {
        self.answer(format!("del {database} {key}"), "zdpuDel".into())
    }

    async fn add(&self, database: &str, value: Value) -> Result<String, DatabasesError> {
        if value == json!("bad") {
            return Err(DatabasesError::Invalid { param: "value", message: "it has no form".into() });
        }
        let added = self.answer(format!("add {database} {value}"), "zdpuAdd".into());
        if self.slow {
            // The disk takes a moment, and others are begun meanwhile.
            tokio::time::sleep(SLOW).await;
        }
        added
    }

    async fn get(&self, database: &str, key: &str) -> Result<DatabaseRow, DatabasesError> {
        let found = self.rows.iter().flatten().find(|row| row.key.as_deref() == Some(key)).cloned();
        let found = self.answer(format!("get {database} {key}"), found)?;
        found.ok_or_else(|| DatabasesError::UnknownKey("nothing is under this key".into()))
    }

    async fn rows(&self, database: &str, bounds: RowBounds) -> Result<Rows, DatabasesError> {
        let RowBounds { amount, newest_first, gt, gte, lt, lte } = bounds;
        let what = format!("rows {database} {amount:?} {newest_first} {gt:?} {gte:?} {lt:?} {lte:?}");
        self.answer(what, stream::iter(self.rows.clone()).boxed())
    }

    async fn query(
        &self,
        database: &str,
        fields: Map<String, Value>,
        amount: Option<usize>,
    ) -> Result<Rows, DatabasesError> {
        let what = format!("query {database} {} {amount:?}", Value::Object(fields));
        self.answer(what, stream::iter(self.rows.clone()).boxed())
    }

    async fn watch(&self, database: &str) -> Result<BoxStream<'static, DatabaseChange>, DatabasesError> {
        let changes = stream::iter(self.changes.clone()).chain(stream::pending());
        self.answer(format!("watch {database}"), changes.boxed())
    }

    async fn grant(&self, database: &str, capability: Capability, identity: &str) -> Result<(), DatabasesError> {
        self.answer(format!("grant {database} {} {identity}", capability.name()), ())
    }

    async fn revoke(&self, database: &str, capability: Capability, identity: &str) -> Result<(), DatabasesError> {
        self.answer(format!("revoke {database} {} {identity}", capability.name()), ())
    }
}
