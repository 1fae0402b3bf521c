//! A database as a node of ours has it, over its API; and what both kinds of peers have in common.

use serde_json::{Value, json};

use crate::harness::within;
use crate::swarm::Member;

/// How a database is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// JSON objects, each under its `_id`.
    Documents,
    /// A list that only grows.
    Events,
    /// Values under keys.
    KeyValue,
}

impl Kind {
    /// Returns its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Documents => "documents",
            Self::Events => "events",
            Self::KeyValue => "keyvalue",
        }
    }

    /// Puts a value under a key in a way that fits: of events, adds it with the key in it.
    pub(super) fn put(self, key: &str, value: Value) -> Operation {
        match self {
            Self::Documents => Operation::Put(key.to_owned(), json!({ "_id": key, "value": value })),
            Self::Events => Operation::Add(json!({ "key": key, "value": value })),
            Self::KeyValue => Operation::Put(key.to_owned(), value),
        }
    }
}

/// Something that a writer does. A document brings its key with it.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    /// Puts a value under a key.
    Put(String, Value),
    /// Takes a key away.
    Del(String),
    /// Adds an event.
    Add(Value),
}

/// What a database shows: an event, or a value under a key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// The entry it stands on.
    pub(super) hash: String,
    /// The text that names its key; `None` of events.
    pub(super) key: Option<String>,
    /// Its value.
    pub(super) value: Value,
}

impl Row {
    /// Reads a row as both kinds of peers write it.
    pub(super) fn of(json: &Value) -> Self {
        Self {
            hash: json["hash"].as_str().expect("a row stands on an entry").to_owned(),
            key: text_of(&json["key"]),
            value: json["value"].clone(),
        }
    }
}

/// Returns the text that names a key, which a peer in JavaScript tells as it is and a node by this text.
fn text_of(key: &Value) -> Option<String> {
    match key {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// A database that is open at a node of ours.
pub(super) struct Ours<'a> {
    member: &'a Member,
    address: String,
}

impl<'a> Ours<'a> {
    /// Creates a database to which these identities may write; without a list the node may, and whom it grants it.
    pub(super) async fn create(member: &'a Member, name: &str, kind: Kind, write: Option<&[&str]>) -> Self {
        let mut request = json!({ "name": name, "type": kind.name() });
        if let Some(write) = write {
            request["write"] = json!(write);
        }
        let (status, info) = member.post("/db", &request).await;
        assert_eq!(status, 201, "{name}: {info}");
        Self { member, address: info["address"].as_str().expect("a database has an address").to_owned() }
    }

    /// Opens the database of an address.
    pub(super) async fn open(member: &'a Member, address: &str) -> Self {
        let (status, info) = member.post("/db", &json!({ "address": address })).await;
        assert_eq!(status, 200, "{address}: {info}");
        assert_eq!(info["address"], address);
        Self::at(member, address)
    }

    /// Takes a database that is open already, as after a restart of the node.
    pub(super) fn at(member: &'a Member, address: &str) -> Self {
        Self { member, address: address.to_owned() }
    }

    /// Returns its address.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    fn path(&self, rest: &str) -> String {
        format!("/db/{}{rest}", self.address.replace('/', "%2F"))
    }

    /// Writes, and returns the hash of the entry, or why it was refused.
    pub(super) async fn try_write(&self, operation: &Operation) -> Result<String, Value> {
        let (path, body) = match operation {
            // The key of a document stands in it.
            Operation::Put(key, value) if value.get("_id").is_some_and(|id| text_of(id).as_ref() == Some(key)) => {
                ("/put", json!({ "value": value }))
            }
            Operation::Put(key, value) => ("/put", json!({ "key": key, "value": value })),
            Operation::Del(key) => ("/del", json!({ "key": key })),
            Operation::Add(value) => ("/add", json!({ "value": value })),
        };
        let (status, answer) = self.member.post(&self.path(path), &body).await;
        if status == 200 { Ok(answer["hash"].as_str().expect("an entry has a hash").to_owned()) } else { Err(answer) }
    }

    /// Writes, which has to work, and returns the hash of the entry.
    pub(super) async fn write(&self, operation: &Operation) -> String {
        let written = self.try_write(operation).await;
        written.unwrap_or_else(|problem| panic!("{operation:?}: {problem}"))
    }

    /// Writes one after another, without deletions.
    pub(super) async fn write_all(&self, operations: &[Operation]) {
        let line = |operation: &Operation| match operation {
            Operation::Put(key, value) => json!({ "key": key, "value": value }).to_string() + "\n",
            Operation::Add(value) => json!({ "value": value }).to_string() + "\n",
            Operation::Del(key) => panic!("{key} is deleted by `write`"),
        };
        let lines: String = operations.iter().map(line).collect();
        let url = self.member.url(&self.path("/import"));
        let sent = self.member.client().post(url).header("content-type", "application/x-ndjson").body(lines).send();
        let response = within("an import", sent).await.unwrap();
        let answer: Value = within("an import", response.json()).await.unwrap();
        assert_eq!(answer["imported"], operations.len(), "{answer}");
    }

    /// Returns what a key shows; `None` where it shows nothing.
    pub(super) async fn get(&self, key: &str) -> Option<Value> {
        let url = reqwest::Url::parse_with_params(&self.member.url(&self.path("/get")), [("key", key)]).unwrap();
        let response = within("a get", self.member.client().get(url).send()).await.unwrap();
        let status = response.status();
        let answer: Value = within("a get", response.json()).await.unwrap();
        match status.as_u16() {
            200 => Some(answer["value"].clone()),
            404 => None,
            _ => panic!("{key}: {answer}"),
        }
    }

    /// Returns everything that the database shows, oldest first.
    pub(super) async fn all(&self) -> Vec<Row> {
        let url = self.member.url(&self.path("/all"));
        let response = within("all rows", self.member.client().get(url).send()).await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
        let text = within("all rows", response.text()).await.unwrap();
        text.lines().map(|line| Row::of(&serde_json::from_str(line).unwrap())).collect()
    }

    /// Returns what there is to see of the database.
    pub(super) async fn info(&self) -> Value {
        self.member.get(&self.path("")).await
    }

    /// Returns the hashes of the heads, in order.
    pub(super) async fn heads(&self) -> Vec<String> {
        let info = self.info().await;
        let heads = info["heads"].as_array().expect("a list of heads").iter();
        let mut heads: Vec<_> = heads.map(|head| head.as_str().unwrap().to_owned()).collect();
        heads.sort();
        heads
    }

    /// Returns the ids of the peers that have the database open.
    pub(super) async fn peers(&self) -> Vec<String> {
        let info = self.info().await;
        let peers = info["peers"].as_array().expect("a list of peers").iter();
        peers.map(|peer| peer["node_id"].as_str().unwrap().to_owned()).collect()
    }

    /// Returns the identity as which the node writes.
    pub(super) async fn identity(&self) -> String {
        self.info().await["identity"].as_str().expect("a node has an identity").to_owned()
    }

    /// Returns the identities that may write, in order.
    pub(super) async fn writers(&self) -> Vec<String> {
        let info = self.info().await;
        let write = info["access"]["write"].as_array().expect("a list of writers").iter();
        write.map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    /// Lets an identity write.
    pub(super) async fn grant(&self, identity: &str) {
        self.member.done(&["db", "grant", &self.address, identity]).await;
    }

    /// Takes from an identity that it may write.
    pub(super) async fn revoke(&self, identity: &str) {
        self.member.done(&["db", "revoke", &self.address, identity]).await;
    }
}
