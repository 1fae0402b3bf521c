//! What the databases show for each key: what peers that know nothing of grants expect to find there.

use std::sync::Weak;

use bombus_core::tasks::{ResultDocument, TaskDocument, TaskId, TaskView, Written, proof_holds, resolve};
use orbitdb::cbor::{Map, Value};
use orbitdb::index::{Record, View};

use super::documents::{STATE_FIELDS, light, read_all};
use super::table::Table;

/// Shows tasks: each as it was submitted, where all that is written about it says that it stands.
///
/// What is evaluated here is handed to the table of the store as well, so that nothing is read twice and no change is missed. That has no
/// bearing on what is shown.
pub(super) struct ShownTasks {
    pub(super) generation: u64,
    pub(super) table: Weak<Table>,
}

/// Shows results: the newest one whose worker proves that it wrote it; without any, the newest. Which one counts is for the tasks to say.
pub(super) struct ShownResults {
    pub(super) generation: u64,
    pub(super) table: Weak<Table>,
}

impl View for ShownTasks {
    fn evaluate(&self, key: &str, records: &[Record]) -> Option<Value> {
        let id = TaskId::parse(key).ok()?;
        let (entries, misshapen) = read_all::<TaskDocument>(self.generation, records);
        // What is large stands in the entry of the submission, and is of no account where a task stands.
        let entries = light(entries);
        let table = self.table.upgrade();
        let holds = |node: &_, task: &_, identity: &str, proof: &str| match &table {
            Some(table) => table.proofs.holds(node, task, identity, proof),
            None => proof_holds(node, task, identity, proof),
        };
        let view = resolve(&id, &entries, &[], holds);
        let shown = view.as_ref().and_then(|view| shown_task(view, &entries, records));
        if let Some(table) = &table {
            table.tasks_changed(self.generation, id, entries, view, misshapen);
        }
        shown
    }
}

impl View for ShownResults {
    fn evaluate(&self, key: &str, records: &[Record]) -> Option<Value> {
        let id = TaskId::parse(key).ok()?;
        let (entries, misshapen) = read_all::<ResultDocument>(self.generation, records);
        let table = self.table.upgrade();
        let proves = |entry: &&Written<ResultDocument>| {
            let ResultDocument { worker_peer_id, worker_proof, .. } = &*entry.value;
            let (Ok(node), Some(proof)) = (worker_peer_id.parse(), worker_proof) else { return false };
            match &table {
                Some(table) => table.proofs.holds(&node, &id, &entry.writer, proof),
                None => proof_holds(&node, &id, &entry.writer, proof),
            }
        };
        let entry = entries.iter().rev().find(proves).or(entries.last());
        let shown = entry.and_then(|entry| raw_of(entry, records)).cloned();
        if let Some(table) = &table {
            table.results_changed(self.generation, id, light(entries), misshapen);
        }
        shown
    }
}

/// Returns the value that stands in the entry of a document.
fn raw_of<'a, T>(entry: &Written<T>, records: &'a [Record]) -> Option<&'a Value> {
    let record = records.iter().find(|record| *record.position.hash.digest() == entry.order.entry)?;
    Some(&record.operation.value)
}

/// Returns the task as it was submitted, with fields that this version does not know, and with what is known of where it stands.
fn shown_task(view: &TaskView, entries: &[Written<TaskDocument>], records: &[Record]) -> Option<Value> {
    let submitted = entries.iter().find(|entry| entry.order == view.origin)?;
    let Value::Map(mut map) = raw_of(submitted, records)?.clone() else { return None };
    for field in STATE_FIELDS {
        map.remove(field);
    }
    put_state(&mut map, view);
    Some(Value::Map(map))
}

fn put_state(map: &mut Map, view: &TaskView) {
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            map.insert(name, value);
        }
    };
    put("status", Some(view.status.as_str().into()));
    put("completedAt", view.completed_at.map(Value::from));
    put("error", view.error.as_deref().map(Value::from));
    put("settled", view.settled.then(|| true.into()));
    if let Some(grant) = &view.grant {
        put("workerPeerId", Some(grant.worker.peer().into()));
        put("claimedAt", grant.claimed_at.map(Value::from));
        put("epoch", Some(grant.epoch.0.into()));
        put("attempt", Some(grant.attempt.into()));
        put("grant", view.settled.then(|| grant.hash.as_str().into()));
    } else if let Some(bid) = view.bids.first().filter(|_| !view.requester.proven) {
        put("workerPeerId", Some(bid.worker.as_str().into()));
        put("claimedAt", bid.claimed_at.map(Value::from));
    }
}
