//! What a crash kept from the audit log: events wait a moment before they are written, and what they tell of is written before. At the start it
//! is added, from the entries of this node that no event names.

use std::collections::{BTreeSet, HashSet};

use bombus_core::tasks::{GrantedBy, ResultDocument, TaskDocument, TaskId, TaskStatus, Written};
use orbitdb::{Bounds, DatabaseError};
use tokio::task::spawn_blocking;

use super::audit::{AuditEvent, AuditKind};
use super::documents::{of_value, read_all};
use super::generations::Generation;
use super::handle::TaskStore;

/// How many entries of the audit log are looked through, the newest: what a crash took would be among the last of them.
const ENTRIES_READ: usize = 128;
/// How many tasks are looked at, the newest, besides those that have not ended.
const TASKS_READ: usize = 256;

impl TaskStore {
    /// Adds to the audit log what this node wrote and no event tells of. To be called before anything else is written.
    pub(super) async fn recall(&self) {
        let store = self.clone();
        let read = move || -> Result<Vec<AuditEvent>, DatabaseError> {
            let mut missing = Vec::new();
            for generation in store.inner.generations.all() {
                missing.extend(store.missing(&generation)?);
            }
            Ok(missing)
        };
        match spawn_blocking(read).await {
            Ok(Ok(missing)) => {
                if !missing.is_empty() {
                    tracing::info!(
                        events = missing.len(),
                        "what a crash kept from the audit log of tasks is added to it"
                    );
                }
                missing.into_iter().for_each(|event| self.audit(event));
            }
            Ok(Err(error)) => tracing::warn!(%error, "it cannot be seen what the audit log of tasks lacks"),
            Err(error) => tracing::error!(%error, "the look for what the audit log of tasks lacks failed"),
        }
    }

    /// Returns what the audit log of a generation lacks of the newest tasks, and of those that have not ended.
    fn missing(&self, generation: &Generation) -> Result<Vec<AuditEvent>, DatabaseError> {
        let newest = |amount| Bounds { amount: Some(amount), ..Bounds::default() };
        let rows = generation.events.iterate(newest(ENTRIES_READ))?;
        let (mut told, mut since) = (HashSet::new(), u64::MAX);
        for row in &rows {
            for event in row.value.as_list().unwrap_or(std::slice::from_ref(&*row.value)) {
                let Ok(event) = of_value::<AuditEvent>(event) else { continue };
                since = since.min(event.at);
                let kind = event.event;
                told.extend(event.entry.filter(|_| event.actor == self.inner.node).map(|entry| (entry, kind)));
            }
        }
        if rows.len() < ENTRIES_READ {
            since = 0;
        }
        let mut tasks: BTreeSet<TaskId> = self.unfinished().iter().map(|view| view.task.id.clone()).collect();
        tasks.retain(|task| self.inner.table.home(task) == Some(generation.number));
        let rows = generation.tasks.iterate(newest(TASKS_READ))?;
        tasks.extend(rows.iter().filter_map(|row| TaskId::parse(&row.key).ok()));
        let mut missing = Vec::new();
        for task in tasks {
            let documents = read_all(generation.number, &generation.tasks.history(task.as_str())?).0;
            let results = read_all(generation.number, &generation.results.history(task.as_str())?).0;
            missing.extend(self.events_of(&task, since, &documents, &results).into_iter().filter(|event| {
                // Of what is older than all that was read it is not known whether it was told.
                event.entry.as_ref().is_some_and(|entry| !told.contains(&(entry.clone(), event.event)))
            }));
        }
        Ok(missing)
    }

    /// Returns the events that the entries of this node about a task come to, in their order.
    fn events_of(
        &self,
        id: &TaskId,
        since: u64,
        documents: &[Written<TaskDocument>],
        results: &[Written<ResultDocument>],
    ) -> Vec<AuditEvent> {
        if documents.first().is_none_or(|first| first.value.created_at < since) {
            return Vec::new();
        }
        let of = |event, at, entry: &str| AuditEvent {
            entry: Some(entry.to_owned()),
            ..AuditEvent::new(id.clone(), event, at, self.inner.node.clone())
        };
        let is_own = |writer: &str| writer == self.inner.identity;
        let mut events: Vec<AuditEvent> = Vec::new();
        let mut last = 0;
        for written in documents.iter().filter(|written| is_own(&written.writer)) {
            let document = &written.value;
            let Some(kind) = kind_of(document) else { continue };
            // One that was granted with its first entry was submitted with that, too.
            if kind == AuditKind::Granted && events.is_empty() {
                events.push(of(AuditKind::Created, document.created_at, &written.hash));
                last = document.created_at;
            }
            // One that takes a grant back has no time of its own.
            let at = match kind {
                AuditKind::Created => Some(document.created_at),
                AuditKind::Released => None,
                AuditKind::Granted | AuditKind::SelfClaimed | AuditKind::Running => document.claimed_at,
                _ => document.completed_at,
            };
            last = at.unwrap_or(last).max(last);
            let event = of(kind, last, &written.hash);
            let worker =
                document.worker_peer_id.clone().filter(|_| !matches!(kind, AuditKind::Running | AuditKind::Released));
            let epoch = document.released.or(document.epoch);
            events.push(AuditEvent { epoch, worker_peer_id: worker, reason: document.error.clone(), ..event });
        }
        for written in results.iter().filter(|written| is_own(&written.writer)) {
            let ResultDocument { epoch, error, completed_at, .. } = &*written.value;
            let event = of(AuditKind::Result, *completed_at, &written.hash);
            let event = AuditEvent { epoch: *epoch, reason: error.clone(), ..event };
            let after = events.partition_point(|earlier| earlier.at <= *completed_at && !is_end(earlier.event));
            events.insert(after, event);
        }
        events
    }
}

fn is_end(kind: AuditKind) -> bool {
    matches!(kind, AuditKind::Completed | AuditKind::Failed | AuditKind::Cancelled)
}

/// Says what a document of this node tells; none for what is no step of its own.
fn kind_of(document: &TaskDocument) -> Option<AuditKind> {
    let settled = document.settled == Some(true);
    match document.status {
        TaskStatus::Pending if document.released.is_some() => Some(AuditKind::Released),
        TaskStatus::Pending => Some(AuditKind::Created),
        TaskStatus::Claimed => match document.granted_by? {
            GrantedBy::Requester => Some(AuditKind::Granted),
            GrantedBy::SelfClaim => Some(AuditKind::SelfClaimed),
        },
        TaskStatus::Running => Some(AuditKind::Running),
        TaskStatus::Completed => Some(if settled { AuditKind::Completed } else { AuditKind::Concluded }),
        TaskStatus::Failed => Some(if settled { AuditKind::Failed } else { AuditKind::Concluded }),
        TaskStatus::Cancelled => Some(if settled { AuditKind::Cancelled } else { AuditKind::CancelAsked }),
    }
}
