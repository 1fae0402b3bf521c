//! What goes on beside: the audit log is written, and large texts are fetched before anybody reads them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use orbitdb::cbor::Value;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::audit::AuditEvent;
use super::contents::Wanted;
use super::documents::to_value;
use super::handle::TaskStore;
use super::limits::StoreLimits;
use crate::supervised::{PartEnded, keep_going};

/// How long audit events are gathered before they are written.
const AUDIT_PAUSE: Duration = Duration::from_millis(300);
/// How many bytes of events an entry of the audit log has at most, unless it has but one.
const AUDIT_BYTES: usize = 12 << 10;
/// How many audit events are written in one go.
const AUDIT_BATCH: usize = 256;
/// Pause before a task about which something came while it was read is read again.
const STALE_PAUSE: Duration = Duration::from_millis(5);
/// How long the audit events that wait may take at the end.
const LAST_AUDITS: Duration = Duration::from_secs(5);

/// Runs beside the task store; made by [`TaskStore::open`].
pub struct TaskStoreService {
    store: TaskStore,
    audits: mpsc::Receiver<AuditEvent>,
    limits: StoreLimits,
}

impl fmt::Debug for TaskStoreService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskStoreService").finish_non_exhaustive()
    }
}

impl TaskStoreService {
    pub(super) fn new(store: TaskStore, audits: mpsc::Receiver<AuditEvent>, limits: StoreLimits) -> Self {
        Self { store, audits, limits }
    }

    /// Runs until `stop`; the audit events that wait then are written before this returns. The databases have to run until then.
    ///
    /// A part that fails or panics is logged and started anew, after a pause of half a second that doubles up to 30 s.
    pub async fn run(self, stop: CancellationToken) {
        let Self { store, audits, limits } = self;
        let audits = Mutex::new(audits);
        tokio::join!(
            keep_going("audit log of tasks", stop.clone(), || write_audits(&store, &audits, &stop)),
            keep_going("texts of tasks", stop.clone(), || look_after(&store, &limits, &stop)),
        );
        let mut left = Vec::new();
        let audits = audits.into_inner();
        if timeout(LAST_AUDITS, write_last(&store, audits, &mut left)).await.is_err() {
            tracing::warn!("the last audit events of tasks took too long to write");
        }
    }
}

async fn write_audits(
    store: &TaskStore,
    audits: &Mutex<mpsc::Receiver<AuditEvent>>,
    stop: &CancellationToken,
) -> Result<(), PartEnded> {
    let audits = &mut *audits.lock().await;
    let mut gathered = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            _ = audits.recv_many(&mut gathered, AUDIT_BATCH) => {
                // What is told of tasks waits behind what decides about them: both are signed, sent and checked by the same machines.
                stop.run_until_cancelled(sleep(AUDIT_PAUSE)).await;
                write(store, &mut gathered).await;
                while !audits.is_empty() && !stop.is_cancelled() {
                    audits.recv_many(&mut gathered, AUDIT_BATCH).await;
                    write(store, &mut gathered).await;
                }
            }
        }
    }
}

async fn write_last(store: &TaskStore, mut audits: mpsc::Receiver<AuditEvent>, gathered: &mut Vec<AuditEvent>) {
    audits.close();
    while audits.recv_many(gathered, AUDIT_BATCH).await > 0 {
        write(store, gathered).await;
    }
}

async fn write(store: &TaskStore, events: &mut Vec<AuditEvent>) {
    // What is told of a task stands in the generation of the task.
    let mut of_generations: BTreeMap<u64, Vec<AuditEvent>> = BTreeMap::new();
    for event in events.drain(..) {
        of_generations.entry(store.home_or_newest(&event.task_id)).or_default().push(event);
    }
    for (generation, events) in of_generations {
        // One that was dropped meanwhile needs none.
        let Some(generation) = store.inner.generations.get(generation) else { continue };
        let entries = grouped(events.iter().filter_map(|event| to_value(event).ok()));
        // All at once, so that they are made safe in one go.
        let written = join_all(entries.into_iter().map(|entry| generation.events.add(entry))).await;
        if let Some(Err(error)) = written.into_iter().find(Result::is_err) {
            tracing::warn!(%error, "audit events of tasks cannot be written");
        }
    }
}

/// Puts events into entries, in their order.
fn grouped(events: impl Iterator<Item = Value>) -> Vec<Value> {
    let (mut entries, mut group, mut bytes) = (Vec::new(), Vec::new(), 0);
    for event in events {
        let size = event.encode().map_or(0, |encoded| encoded.len());
        if bytes + size > AUDIT_BYTES && !group.is_empty() {
            entries.push(Value::List(std::mem::take(&mut group)));
            bytes = 0;
        }
        group.push(event);
        bytes += size;
    }
    if !group.is_empty() {
        entries.push(Value::List(group));
    }
    entries
}

/// Fetches large texts, and reads anew what came about tasks whose entries are not in memory, until `stop`.
async fn look_after(store: &TaskStore, limits: &StoreLimits, stop: &CancellationToken) -> Result<(), PartEnded> {
    let table = &store.inner.table;
    let mut fetching = FuturesUnordered::new();
    loop {
        stop.run_until_cancelled(reload_stale(store)).await;
        while fetching.len() < limits.fetches {
            let Some(wanted) = table.next_wanted() else { break };
            if store.inner.db.blocks_bytes() >= limits.texts_bytes_max {
                continue;
            }
            fetching.push(fetch(store, wanted, Duration::from_millis(limits.fetch_ms)));
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            Some(()) = fetching.next(), if !fetching.is_empty() => {}
            () = table.news.notified() => {}
        }
    }
}

async fn fetch(store: &TaskStore, wanted: Wanted, limit: Duration) {
    if let Err(error) = store.inner.contents.fetch(&wanted, limit).await {
        tracing::debug!(block = %wanted.root, %error, "a large text of a task is not here yet");
    }
}

async fn reload_stale(store: &TaskStore) {
    let table = &store.inner.table;
    while let Some((id, version)) = table.next_stale() {
        match store.histories(&id).await {
            Ok(histories) => {
                if !table.reloaded(&id, version, histories) {
                    table.still_stale(id);
                    sleep(STALE_PAUSE).await;
                }
            }
            Err(error) => {
                tracing::warn!(task.id = %id, %error, "what was written about a task cannot be read");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_share_entries_in_their_order_and_entries_stay_small() {
        let event = |number: u64| Value::List(vec![Value::Unsigned(number), Value::Text("x".repeat(500))]);
        let mut entries = grouped((0..100).map(event));
        let large = Value::Text("x".repeat(2 * AUDIT_BYTES));
        entries.extend(grouped([large.clone(), event(100)].into_iter()));
        let sizes: Vec<usize> = entries.iter().map(|entry| entry.encode().unwrap().len()).collect();
        assert!(
            (5..10).contains(&entries.len()) && sizes[..entries.len() - 2].iter().all(|size| *size < 16 << 10),
            "{sizes:?}"
        );
        let events: Vec<Value> = entries.iter().flat_map(|entry| entry.as_list().unwrap()).cloned().collect();
        let expected: Vec<Value> = (0..100).map(event).chain([large, event(100)]).collect();
        assert_eq!(events, expected);
        assert!(grouped(std::iter::empty()).is_empty(), "nothing is written about nothing");
    }
}
