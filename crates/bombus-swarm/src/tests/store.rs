//! The task store, on nodes with real connections on the loopback address.

use std::sync::Arc;

use bombus_core::identity::NodeKey;
use bombus_core::tasks::{Epoch, GrantedBy, ResultDocument, TaskDocument, TaskId, TaskStatus, TaskView, Worker};
use orbitdb::{Database, DatabaseError};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::db::{Keeper, config, json_value};
use super::harness::{LIMIT, until_it_shows};
use crate::store::{
    AuditEvent, AuditKind, Claim, EVENTS, ListFilter, RESULTS, Settlement, StoreError, StoreLimits, TASKS, TaskStore,
    TaskUpdate, TaskUpdates,
};

mod contents;
mod foreign;
mod generations;
mod keeping;
mod lifecycle;
mod recall;
mod sharing;

/// A node with a task store.
struct Holder {
    keeper: Keeper,
    store: TaskStore,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Holder {
    async fn start(number: u8, seeds: &[&Keeper]) -> Self {
        Self::on(Keeper::start(number, seeds).await, number).await
    }

    async fn again(number: u8, seeds: &[&Keeper], directory: TempDir) -> Self {
        Self::on(Keeper::start_with(number, seeds, config(), directory).await, number).await
    }

    async fn on(keeper: Keeper, number: u8) -> Self {
        let key = Arc::new(NodeKey::from_secret(&[number; 32]));
        // What nobody refers to any more goes at once.
        let limits = StoreLimits { young_ms: 0, ..StoreLimits::default() };
        let (store, service) = TaskStore::open(keeper.db.clone(), key, limits).await.unwrap();
        let stop = CancellationToken::new();
        // It ends with the test, which fails where something is missing that it does.
        let task = tokio::spawn(service.run(stop.clone()));
        Self { keeper, store, stop, task }
    }

    /// Submits a task.
    async fn submit(&self, prompt: &str) -> TaskId {
        let task = TaskDocument { prompt: prompt.to_owned(), model: "smol".to_owned(), ..self.store.draft().unwrap() };
        self.store.create_task(task).await.unwrap().id
    }

    fn worker(&self) -> Worker {
        Worker::Node(self.keeper.id().clone())
    }

    /// Grants a task to a node, as its requester.
    async fn grant(&self, id: &TaskId, epoch: u64, worker: Worker) -> Result<String, StoreError> {
        self.store.claim(id, claim(epoch, worker, GrantedBy::Requester)).await
    }

    /// Claims a task for this node.
    async fn claim_itself(&self, id: &TaskId, epoch: u64) -> Result<String, StoreError> {
        self.store.claim(id, claim(epoch, self.worker(), GrantedBy::SelfClaim)).await
    }

    /// Writes an answer under a grant.
    async fn answer(&self, id: &TaskId, grant: &str, epoch: u64, response: &str) -> String {
        let result = ResultDocument {
            response: response.to_owned(),
            grant: Some(grant.to_owned()),
            epoch: Some(Epoch(epoch)),
            ..ResultDocument::new(id.clone(), "", 0)
        };
        self.store.complete(result, None).await.unwrap().1
    }

    async fn view(&self, id: &TaskId) -> TaskView {
        TaskView::clone(&*self.store.view(id).await.unwrap().expect("the task is known"))
    }

    fn status(&self, id: &TaskId) -> Option<TaskStatus> {
        self.store.summary(id).map(|summary| summary.status)
    }

    /// Waits until a task stands so.
    async fn sees(&self, id: &TaskId, status: TaskStatus) {
        let shown = timeout(LIMIT, until_it_shows(|| async {}, || self.status(id) == Some(status)));
        assert!(shown.await.is_ok(), "it is {:?} and not {status}", self.status(id));
    }

    /// A database of the store, as anybody may use it.
    fn database(&self, name: &str) -> Database {
        self.keeper.db.database(name).expect("the database is open")
    }

    async fn stop(self) -> TempDir {
        let Self { keeper, store, stop, task } = self;
        stop.cancel();
        timeout(LIMIT, task).await.expect("the store's service stops").unwrap();
        drop(store);
        keeper.stop().await
    }

    async fn crash(self) {
        self.keeper.mesh.crash().await;
        self.task.abort();
    }
}

fn claim(epoch: u64, worker: Worker, by: GrantedBy) -> Claim {
    Claim { epoch: Epoch(epoch), worker, by, attempt: 1, failures: Vec::new() }
}

/// Waits for a change that looks in a certain way.
async fn change(updates: &mut TaskUpdates, looks: impl Fn(&TaskView) -> bool) -> Arc<TaskView> {
    let found = async {
        loop {
            match updates.next().await.expect("the store goes on") {
                TaskUpdate::Changed(view) if looks(&view) => return view,
                TaskUpdate::Changed(_) => {}
                TaskUpdate::Lagged(missed) => panic!("{missed} changes were missed"),
            }
        }
    };
    timeout(LIMIT, found).await.expect("the change is told")
}

/// Puts a document as a peer does that knows nothing of grants.
async fn put_raw(database: &Database, document: &Json) {
    database.put_document(json_value(document)).await.unwrap();
}

/// A document as peers in JavaScript write it.
fn js_task(id: &str, status: &str) -> Json {
    json!({
        "_id": id,
        "prompt": "Why is the sky blue?",
        "model": "tinyllama",
        "status": status,
        "requesterPeerId": "12D3KooWJavaScript",
        "createdAt": 1_700_000_000_000_u64,
        "options": { "temperature": 0.5, "top_p": 0.9 },
        "note": "a field of its own",
    })
}

fn id(text: &str) -> TaskId {
    TaskId::parse(text).unwrap()
}
