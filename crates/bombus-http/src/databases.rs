//! The replicated databases as the HTTP surface needs them. The node puts the real ones behind it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// How a database is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DatabaseType {
    /// JSON objects, each under the value of one of its fields.
    Documents,
    /// A list that only grows.
    Events,
    /// Values under keys.
    KeyValue,
}

impl DatabaseType {
    /// Returns its name in addresses, requests and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Documents => "documents",
            Self::Events => "events",
            Self::KeyValue => "keyvalue",
        }
    }
}

/// What a new database is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDatabase {
    /// Its name.
    pub name: String,
    /// How it is read.
    pub r#type: DatabaseType,
    /// The field of documents that holds their key; `_id` where none is named. Every node chooses it for itself.
    pub index_by: Option<String>,
    /// The ids of the identities that may write, for ever, or `*` for everybody. Without a list the creator may, and whom it grants it.
    pub write: Option<Vec<String>>,
}

/// A database that this node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DatabaseEntry {
    /// Its name.
    pub name: String,
    /// Its address, by which other nodes open it.
    pub address: String,
    /// How it is read.
    #[serde(rename = "type")]
    pub r#type: DatabaseType,
    /// Whether it is open, so that it is read, written and kept in step with others.
    pub open: bool,
}

/// What there is to see of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DatabaseInfo {
    /// Its name.
    pub name: String,
    /// Its address, by which other nodes open it.
    pub address: String,
    /// How it is read.
    #[serde(rename = "type")]
    pub r#type: DatabaseType,
    /// The field of documents that holds their key; null for other types.
    #[schema(required)]
    pub index_by: Option<String>,
    /// The id of the identity as which this node writes: what others grant.
    pub identity: String,
    /// Who may write.
    pub access: DatabaseAccess,
    /// The newest entries, which no other follows, by hash, newest first.
    pub heads: Vec<String>,
    /// Entries that count.
    pub entries: u64,
    /// Rows that are shown: events, or keys that have a value.
    pub rows: u64,
    /// Bytes of all entries of the log.
    pub log_bytes: u64,
    /// Bytes that it takes on the disk.
    pub stored_bytes: u64,
    /// Whether a put is safe when it is answered; otherwise a crash may take the last ones.
    pub durable: bool,
    /// How many more entries count than when it was opened; fewer after a revocation.
    pub entries_grown: i64,
    /// How many more bytes the log has than when it was opened.
    pub bytes_grown: u64,
    /// Entries that are kept and do not count, by reason: `form`, `oversize`, `identity`, `key`, `clock_id`, `signature`, `clock` or `access`.
    pub refused: BTreeMap<String, u64>,
    /// Entries that were not kept since it was opened, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Grants and revocations that are kept and do not count, by reason; empty where the writers were fixed.
    pub grants_refused: BTreeMap<String, u64>,
    /// Grants and revocations that were not kept since it was opened, by reason.
    pub grants_dropped: BTreeMap<String, u64>,
    /// Blocks that came since it was opened and are no part of the log.
    pub broken: u64,
    /// Blocks that wait for others.
    pub parked: u64,
    /// Blocks that are missing.
    pub missing: u64,
    /// The peers that have it open.
    pub peers: Vec<DatabasePeer>,
    /// The nodes that send what is missing here in bulk now, and how far that is.
    pub catching_up: Vec<DatabaseCatchUp>,
}

/// How far a node has sent what is missing here, in bulk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DatabaseCatchUp {
    /// The node that sends it.
    pub node_id: String,
    /// Entries that it said it would send.
    pub entries: u64,
    /// Blocks that have come and were checked: the entries, and the identities that they name.
    pub blocks_done: u64,
    /// Their bytes.
    pub bytes_done: u64,
}

/// Who may write to a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DatabaseAccess {
    /// Whether writers can be granted and revoked. Otherwise they were fixed when it was created.
    pub grantable: bool,
    /// The ids of the identities whose entries count; `*` stands for everybody.
    pub write: Vec<String>,
    /// The ids of the identities that grant and revoke.
    pub admin: Vec<String>,
    /// Whether this node may write.
    pub writable: bool,
}

/// A peer that has a database open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DatabasePeer {
    /// Its id.
    pub node_id: String,
    /// What people call it; the id again where that is not known, as of peers that are no node.
    pub hostname: String,
}

/// A row.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct DatabaseRow {
    /// The hash of the entry that it stands on.
    pub hash: String,
    /// Its key; absent for events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its value. Bytes are `{"/": {"bytes": "<base64 without padding>"}}`, links `{"/": "<cid>"}`.
    pub value: Value,
}

/// Which part of a database to read. Entries are named by their hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowBounds {
    /// At most so many rows.
    pub amount: Option<usize>,
    /// Newest first; otherwise oldest first.
    pub newest_first: bool,
    /// Only what is newer than this entry.
    pub gt: Option<String>,
    /// Only this entry and what is newer.
    pub gte: Option<String>,
    /// Only what is older than this entry.
    pub lt: Option<String>,
    /// Only this entry and what is older.
    pub lte: Option<String>,
}

/// Rows as they are read. An error ends them.
pub type Rows = BoxStream<'static, Result<DatabaseRow, DatabasesError>>;

/// What happens to a database.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum DatabaseChange {
    /// An entry came to count. An own one is safe on the disk then, unless `[db] relaxed` is set; one of a peer's is stored, and synced next.
    Update {
        /// Its hash.
        hash: String,
        /// Its Lamport time.
        time: u64,
        /// The id of its writer's identity.
        writer: String,
        /// `put`, `del` or `add`; null where the entry cannot be read.
        op: Option<&'static str>,
        /// Its key; null for events.
        key: Option<String>,
        /// Its value; null of a key that is taken away.
        value: Value,
        /// The peer that sent it; null for an own one.
        node_id: Option<String>,
    },
    /// Heads were exchanged with a peer for the first time.
    Join {
        /// The peer.
        node_id: String,
        /// The heads now, newest first.
        heads: Vec<String>,
    },
    /// A peer has closed the database, or is gone.
    Leave {
        /// The peer.
        node_id: String,
    },
    /// An entry does not count.
    Refused {
        /// Its hash.
        hash: String,
        /// Why, as in [`DatabaseInfo::refused`], or `broken` for a block that is no entry at all.
        reason: String,
        /// The same for people.
        detail: String,
    },
    /// Writers were granted or revoked, and all that is shown was worked out anew.
    Readmitted,
    /// Changes were missed, since the reader was too slow. Nothing follows.
    Lagged {
        /// How many.
        missed: u64,
    },
    /// The storage failed: the database takes nothing more. Nothing follows.
    Error {
        /// What failed.
        detail: String,
    },
}

impl DatabaseChange {
    /// Returns the kind of change, as the field `event` has it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Update { .. } => "update",
            Self::Join { .. } => "join",
            Self::Leave { .. } => "leave",
            Self::Refused { .. } => "refused",
            Self::Readmitted => "readmitted",
            Self::Lagged { .. } => "lagged",
            Self::Error { .. } => "error",
        }
    }
}

/// What an identity may do with a database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    /// It may write.
    #[default]
    Write,
    /// It may write, and other programs show it as an admin. Who grants and revokes is fixed when a database is created.
    Admin,
}

impl Capability {
    /// Returns its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// Says why something was not done with a database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabasesError {
    /// No database is called so.
    #[error("{0}")]
    UnknownDatabase(String),
    /// Several are called so.
    #[error("{0}")]
    AmbiguousDatabase(String),
    /// Another database has the name.
    #[error("{0}")]
    NameTaken(String),
    /// The database is closed.
    #[error("{0}")]
    Closed(String),
    /// As many databases are open as may be.
    #[error("{0}")]
    TooMany(String),
    /// Nothing is under this key.
    #[error("{0}")]
    UnknownKey(String),
    /// A field of the request cannot be taken.
    #[error("{message}")]
    Invalid {
        /// The field.
        param: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Databases of this type cannot do that.
    #[error("{0}")]
    WrongType(String),
    /// This node may not write.
    #[error("{0}")]
    NotAdmitted(String),
    /// The writers can no longer be changed.
    #[error("{0}")]
    FixedWriters(String),
    /// What is to be revoked was not granted.
    #[error("{0}")]
    NotGranted(String),
    /// No peer gave what is needed in time.
    #[error("{0}")]
    Unreachable(String),
    /// There are no databases now; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// The databases of this node. A database is named by its name, where only one has it, or by its address.
#[async_trait]
pub trait Databases: Send + Sync + 'static {
    /// Returns the id of the identity as which this node writes.
    ///
    /// # Errors
    ///
    /// [`DatabasesError::Unavailable`], as of all that follow.
    fn identity(&self) -> Result<String, DatabasesError>;

    /// Lists the databases that this node has.
    ///
    /// # Errors
    ///
    /// [`DatabasesError::Failed`], as of all that follow.
    async fn list(&self) -> Result<Vec<DatabaseEntry>, DatabasesError>;

    /// Makes a database and opens it, now and at every start. The same description by the same node gives the same database again,
    /// with the keys of its documents in the field where they are; another one is refused.
    ///
    /// # Errors
    ///
    /// [`DatabasesError::Invalid`], [`DatabasesError::NameTaken`], [`DatabasesError::TooMany`].
    async fn create(&self, new: NewDatabase) -> Result<DatabaseInfo, DatabasesError>;

    /// Opens a database of another node by its address, now and at every start; or one that was closed.
    ///
    /// # Errors
    ///
    /// [`DatabasesError::Unreachable`] where nobody has it, [`DatabasesError::Invalid`] where it is none.
    async fn open(&self, database: &str, index_by: Option<String>) -> Result<DatabaseInfo, DatabasesError>;

    /// Tells what there is to see.
    ///
    /// # Errors
    ///
    /// [`DatabasesError::UnknownDatabase`], [`DatabasesError::AmbiguousDatabase`] and [`DatabasesError::Closed`], as of all that follow.
    async fn info(&self, database: &str) -> Result<DatabaseInfo, DatabasesError>;

    /// Closes a database, until it is opened again. It stays on the disk.
    ///
    /// # Errors
    ///
    /// See above.
    async fn close(&self, database: &str) -> Result<(), DatabasesError>;

    /// Closes a database and removes everything of it from this node.
    ///
    /// # Errors
    ///
    /// See above.
    async fn discard(&self, database: &str) -> Result<(), DatabasesError>;

    /// Puts a value under a key, or a document under the key in it, and returns the hash of the entry once it is safe. What is begun first
    /// stands first in the order of the entries.
    ///
    /// # Errors
    ///
    /// [`DatabasesError::WrongType`], [`DatabasesError::NotAdmitted`], [`DatabasesError::Invalid`].
    async fn put(&self, database: &str, key: Option<String>, value: Value) -> Result<String, DatabasesError>;

    /// Takes a key away, and returns the hash of the entry once it is safe.
    ///
    /// # Errors
    ///
    /// As [`Databases::put`].
    async fn del(&self, database: &str, key: &str) -> Result<String, DatabasesError>;

    /// Adds an event, and returns the hash of the entry once it is safe.
    ///
    /// # Errors
    ///
    /// As [`Databases::put`].
    async fn add(&self, database: &str, value: Value) -> Result<String, DatabasesError>;

    /// Returns what is under a key; of events, what has this hash.
    ///
    /// # Errors
    ///
    /// [`DatabasesError::UnknownKey`].
    async fn get(&self, database: &str, key: &str) -> Result<DatabaseRow, DatabasesError>;

    /// Reads rows within bounds. What changes meanwhile may come again, or be missed where the newest come first.
    ///
    /// # Errors
    ///
    /// [`DatabasesError::Invalid`] for a bound that is not there.
    async fn rows(&self, database: &str, bounds: RowBounds) -> Result<Rows, DatabasesError>;

    /// Reads the rows whose values are objects with these fields, at most so many, ordered by key. A name with dots in it leads into
    /// nested objects where no field has that name.
    ///
    /// # Errors
    ///
    /// See above.
    async fn query(
        &self,
        database: &str,
        fields: Map<String, Value>,
        amount: Option<usize>,
    ) -> Result<Rows, DatabasesError>;

    /// Tells what happens from now on, without end.
    ///
    /// # Errors
    ///
    /// See above.
    async fn watch(&self, database: &str) -> Result<BoxStream<'static, DatabaseChange>, DatabasesError>;

    /// Gives an identity a capability.
    ///
    /// # Errors
    ///
    /// [`DatabasesError::FixedWriters`]; [`DatabasesError::NotAdmitted`] where this node is no admin.
    async fn grant(&self, database: &str, capability: Capability, identity: &str) -> Result<(), DatabasesError>;

    /// Takes a capability from an identity. Its entries do not count any more, older ones included.
    ///
    /// # Errors
    ///
    /// As [`Databases::grant`], and [`DatabasesError::NotGranted`] where the identity has not got it.
    async fn revoke(&self, database: &str, capability: Capability, identity: &str) -> Result<(), DatabasesError>;
}

/// Reads JSON for a database. An integer that no 64 bits hold is an error, where a parser alone would round it to a float.
///
/// # Errors
///
/// [`serde_json::Error`]: of the category [`Data`](serde_json::error::Category::Data) for such an integer.
pub fn exact_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    let value = serde_json::from_slice(json)?;
    if has_wide_integer(json) {
        return Err(serde_json::Error::custom(
            "an integer is not from -2^63 to 2^64-1: down to -2^64 it is written as {\"/\": {\"integer\": \"-...\"}}, and with a point or an \
             exponent it is a float",
        ));
    }
    Ok(value)
}

/// Returns whether an integer of valid JSON has more than 64 bits.
fn has_wide_integer(json: &[u8]) -> bool {
    let mut rest = json;
    while let [first, after @ ..] = rest {
        let of_number = |byte: &u8| byte.is_ascii_digit() || b"-+.eE".contains(byte);
        rest = match first {
            b'"' => after_text(after),
            b'-' | b'0'..=b'9' => {
                let (number, after) = rest.split_at(rest.iter().take_while(|byte| of_number(byte)).count());
                let number = str::from_utf8(number).unwrap_or_default();
                let is_integer = !number.contains(['.', 'e', 'E']);
                if is_integer && number.parse::<u64>().is_err() && number.parse::<i64>().is_err() {
                    return true;
                }
                after
            }
            _ => after,
        };
    }
    false
}

/// Passes over a text, whose first quote is passed already.
fn after_text(mut rest: &[u8]) -> &[u8] {
    loop {
        rest = match rest {
            [b'\\', _, after @ ..] => after,
            [b'"', after @ ..] => return after,
            [_, after @ ..] => after,
            [] => return rest,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_that_no_64_bits_hold_is_refused_and_never_rounded() {
        for json in [
            "18446744073709551616",
            "-9223372036854775809",
            "[1, {\"a\\\\\": 100000000000000000000}]",
            "{\"a\\\"b\":[0.5,-100000000000000000000 ]}",
        ] {
            let error = exact_json::<Value>(json.as_bytes()).unwrap_err();
            assert!(error.is_data() && error.to_string().contains("{\"integer\": \"-...\"}"), "{json}: {error}");
        }
        for json in [
            "18446744073709551615",
            "-9223372036854775808",
            "-0",
            "100000000000000000000.0",
            "[1e300, -1E+30]",
            "{\"100000000000000000000\": \"\\\"100000000000000000000\"}",
            "{\"/\": {\"integer\": \"-18446744073709551616\"}}",
        ] {
            let value = exact_json::<Value>(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"));
            assert_eq!(value, serde_json::from_str::<Value>(json).unwrap());
        }
        assert!(exact_json::<Value>(b"[1,").unwrap_err().is_eof());
    }
}
