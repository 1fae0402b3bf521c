//! Documents of tasks and results as values of the databases, and back.

use std::sync::Arc;

use bombus_core::tasks::{DocumentError, Order, Refusal, ResultDocument, TaskDocument, WholeRequest, Written};
use orbitdb::cbor::{Map, Value};
use orbitdb::entry::Op;
use orbitdb::index::Record;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StoreError;

/// Fields of a task document that say where it stands. The others say what is to be done, and are the same in all documents of its requester.
pub(super) const STATE_FIELDS: [&str; 15] = [
    "status",
    "workerPeerId",
    "claimedAt",
    "completedAt",
    "epoch",
    "grantedBy",
    "workerIdentity",
    "workerProof",
    "attempt",
    "failures",
    "released",
    "grant",
    "result",
    "settled",
    "error",
];

/// Why an entry is no document that could count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Misshapen {
    /// It takes the document away, which nobody may.
    Deletion,
    /// It is no document of the database's form.
    Form,
}

impl Misshapen {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Deletion => "deletion",
            Self::Form => "form",
        }
    }
}

/// Returns the reason for which an entry does not count, as a word for counters.
pub(super) fn word_of(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::OtherTask => "other_task",
        Refusal::NotRequester => "not_requester",
        Refusal::Proof => "proof",
        Refusal::NoWorker => "no_worker",
        Refusal::Epoch => "epoch",
        Refusal::NotDesignated => "not_designated",
        Refusal::NoGrant => "no_grant",
        Refusal::OtherWorker => "other_worker",
        Refusal::Superseded => "superseded",
        Refusal::Settled => "settled",
    }
}

/// A document that the databases hold.
pub(super) trait Document: Serialize + DeserializeOwned {
    /// Takes out what may be large, for keeping in memory. For whom a task is sealed stays: it says who may claim it.
    fn lighten(&mut self);
}

impl Document for TaskDocument {
    fn lighten(&mut self) {
        self.prompt = String::new();
        self.messages = None;
        self.system = None;
        self.options = None;
        self.map = None;
        if self.request.is_some() {
            self.request = Some(Box::new(WholeRequest::Elsewhere));
        }
    }
}

impl Document for ResultDocument {
    fn lighten(&mut self) {
        self.response = String::new();
        self.embedding = None;
        self.answer = None;
        self.sealed = None;
    }
}

/// All entries about a task in a generation.
pub(super) struct History {
    pub(super) generation: u64,
    pub(super) tasks: Vec<Written<TaskDocument>>,
    pub(super) results: Vec<Written<ResultDocument>>,
}

/// All entries about a task, those of the lowest generation first.
pub(super) type Histories = Vec<History>;

/// Reads the documents of a key's entries in a generation; what is none is counted by the reason.
pub(super) fn read_all<T: Document>(generation: u64, records: &[Record]) -> (Vec<Written<T>>, Vec<Misshapen>) {
    let (mut written, mut misshapen) = (Vec::with_capacity(records.len()), Vec::new());
    for record in records {
        match read(generation, record) {
            Ok(document) => written.push(document),
            Err(reason) => misshapen.push(reason),
        }
    }
    (written, misshapen)
}

fn read<T: Document>(generation: u64, record: &Record) -> Result<Written<T>, Misshapen> {
    if record.operation.op == Op::Del {
        return Err(Misshapen::Deletion);
    }
    let value = of_value(&record.operation.value).map_err(|_| Misshapen::Form)?;
    let position = record.position;
    Ok(Written {
        hash: position.hash.to_string(),
        order: Order { generation, time: position.time, writer: position.writer, entry: *position.hash.digest() },
        writer: record.writer.to_string(),
        value: Arc::new(value),
    })
}

/// Returns the same entries without what may be large.
pub(super) fn light<T: Document + Clone>(mut written: Vec<Written<T>>) -> Vec<Written<T>> {
    for entry in &mut written {
        Arc::make_mut(&mut entry.value).lighten();
    }
    written
}

/// Reads a document. Times with fractions, as JavaScript may write them, are taken.
pub(super) fn of_value<T: DeserializeOwned>(value: &Value) -> Result<T, DocumentError> {
    Ok(serde_json::from_value(value.to_json())?)
}

/// Writes a document.
pub(super) fn to_value(document: &impl Serialize) -> Result<Value, StoreError> {
    let unwritable = |error: &dyn std::fmt::Display| StoreError::Document(error.to_string());
    let json = serde_json::to_value(document).map_err(|error| unwritable(&error))?;
    Value::from_json(&json).map_err(|error| unwritable(&error))
}

/// Writes a task document, with fields of the task as it was submitted that this version does not know.
pub(super) fn with_unknown(document: &TaskDocument, submitted: &Value) -> Result<Value, StoreError> {
    let mut value = to_value(document)?;
    if let (Value::Map(map), Value::Map(submitted)) = (&mut value, submitted) {
        add_missing(map, submitted);
    }
    Ok(value)
}

fn add_missing(map: &mut Map, submitted: &Map) {
    for (name, value) in submitted.iter() {
        if map.get(name).is_none() && !STATE_FIELDS.contains(&name) {
            map.insert(name, value.clone());
        }
    }
}
