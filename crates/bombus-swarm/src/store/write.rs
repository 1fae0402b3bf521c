//! What this node writes about tasks. Each method returns when what it wrote is safe, and it shows in what is read from then on.

use std::sync::Arc;
use std::time::Duration;

use bombus_core::tasks::{
    AttemptFailure, Epoch, GrantedBy, ResultDocument, TaskDocument, TaskId, TaskStatus, TaskView, Worker,
};
use orbitdb::Database;
use orbitdb::cbor::Value;
use tokio::sync::OwnedRwLockReadGuard;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::timeout;

use super::audit::{AuditEvent, AuditKind};
use super::documents::{of_value, to_value, with_unknown};
use super::error::StoreError;
use super::generations::Generation;
use super::handle::{Inner, TaskStore};

/// Greatest size of a document in its entry, in bytes; what is large stands elsewhere. Peers in JavaScript cannot exchange twice as much.
const DOCUMENT_BYTES_MAX: usize = 128 << 10;
/// How long the generation may take to be opened that a task was offered in.
const OPENING_LIMIT: Duration = Duration::from_secs(30);
/// Most failed attempts that an entry names, the last ones. Entries before it name those before.
const FAILURES_MAX: usize = 16;
/// Bytes of the reasons of failed attempts in an entry, all together.
const REASONS_BYTES_MAX: usize = 2 << 10;
/// Bytes of the reason for which a task failed.
const ERROR_BYTES_MAX: usize = 1 << 10;

/// A right to run a task that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its epoch: the one after the highest; a requester may leave some out.
    pub epoch: Epoch,
    /// Who may run it. A [`Worker::Foreign`] honours a bid.
    pub worker: Worker,
    /// Whether this node grants it as the requester, or claims it for itself.
    pub by: GrantedBy,
    /// Which attempt it is for, from 1.
    pub attempt: u32,
    /// How the attempts before ended, where the requester has not said so itself.
    pub failures: Vec<AttemptFailure>,
}

/// How a requester settles its task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// COMPLETED, FAILED or CANCELLED.
    pub status: TaskStatus,
    /// The hash of the grant whose result is accepted.
    pub grant: Option<String>,
    /// The hash of the entry of that result.
    pub result: Option<String>,
    /// How attempts ended without a result.
    pub failures: Vec<AttemptFailure>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Settlement {
    /// Accepts a result.
    #[must_use]
    pub fn completed(grant: Option<String>, result: Option<String>) -> Self {
        Self { status: TaskStatus::Completed, grant, result, failures: Vec::new(), error: None }
    }

    /// Gives a task up.
    #[must_use]
    pub fn failed(error: impl Into<String>, failures: Vec<AttemptFailure>) -> Self {
        Self { status: TaskStatus::Failed, grant: None, result: None, failures, error: Some(error.into()) }
    }

    /// Takes a task back.
    #[must_use]
    pub fn cancelled() -> Self {
        Self { status: TaskStatus::Cancelled, grant: None, result: None, failures: Vec::new(), error: None }
    }
}

/// A task as this node knows it before it writes.
struct Current {
    /// As it was submitted.
    submitted: TaskDocument,
    /// The same, with fields that this version does not know.
    raw: Value,
    view: Arc<TaskView>,
    /// Where it stands, and where all that follows is written.
    home: Arc<Generation>,
}

impl TaskStore {
    /// Submits a task of this node: writes it as PENDING, with the proof that it is this node's. What is large goes to blocks of its own.
    /// Returns the document as it stands in the database. A time of creation that is 0 becomes now.
    ///
    /// # Errors
    ///
    /// [`StoreError::Exists`] when there is a task of that id, and when it is too large or cannot be written.
    pub async fn create_task(&self, task: TaskDocument) -> Result<TaskDocument, StoreError> {
        Ok(self.create(task, None).await?.0)
    }

    /// Submits a task of this node and grants it, with one entry: CLAIMED. So it looks free to nobody. Returns the hash of the entry, which a
    /// result names.
    ///
    /// # Errors
    ///
    /// As [`TaskStore::create_task`], and when the claim is not one of a requester.
    pub async fn create_granted(&self, task: TaskDocument, claim: Claim) -> Result<String, StoreError> {
        if claim.by != GrantedBy::Requester {
            return Err(StoreError::Document("only its requester submits a task".to_owned()));
        }
        Ok(self.create(task, Some(claim)).await?.1)
    }

    /// Writes the first entry of a task. Returns the document, and the hash of its entry.
    async fn create(&self, task: TaskDocument, claim: Option<Claim>) -> Result<(TaskDocument, String), StoreError> {
        let inner = &self.inner;
        let exists = || StoreError::Exists(task.id.clone());
        let _writing = inner.table.begin_writing(&task.id, Epoch::NONE).ok_or_else(exists)?;
        if inner.table.summary(&task.id).is_some() {
            return Err(exists());
        }
        let mut task = task.unstarted();
        task.requester_peer_id = inner.node.to_string();
        task.requester_identity = Some(inner.identity.clone());
        task.requester_proof = Some(self.proof(&task.id));
        if task.created_at == 0 {
            task.created_at = self.now_ms();
        }
        inner.contents.move_out_of_task(&mut task).await?;
        let granted = claim.map(|claim| self.put_claim(&mut task, claim));
        let (generation, _open) = self.for_new().await;
        let entry = put(&generation.tasks, to_value(&task)?).await?;
        self.audit(AuditEvent { entry: Some(entry.clone()), ..self.event(&task.id, AuditKind::Created) });
        if let Some(granted) = granted {
            self.audit(AuditEvent { entry: Some(entry.clone()), ..granted });
        }
        Ok((task, entry))
    }

    /// Writes a grant: CLAIMED. Returns the hash of its entry, which a result names.
    ///
    /// # Errors
    ///
    /// [`StoreError::Claimed`] when its epoch does not follow the highest, or it is the requester's and the grant before has not been
    /// released; [`StoreError::Over`] when the task has ended, [`StoreError::NotFound`] when it is not here, [`StoreError::NotRequester`] when a
    /// grant is not this node's to give, and when it cannot be written.
    pub async fn claim(&self, id: &TaskId, claim: Claim) -> Result<String, StoreError> {
        let current = self.current(id)?;
        let view = &current.view;
        let claimed = |newest| StoreError::Claimed { id: id.clone(), newest };
        self.check_open(&current)?;
        match claim.by {
            GrantedBy::Requester => {
                self.check_requester(&current)?;
                // Where its worker has failed, it is over without another word.
                if view.grant.as_ref().is_some_and(|grant| grant.failed.is_none()) {
                    return Err(claimed(view.highest_epoch));
                }
            }
            GrantedBy::SelfClaim if claim.worker.node() != Some(&self.inner.node) => {
                return Err(StoreError::Document("a node claims for nobody but itself".to_owned()));
            }
            GrantedBy::SelfClaim => {}
        }
        // A requester leaves out an epoch of which it does not know whether it was written.
        let follows = match claim.by {
            GrantedBy::Requester => claim.epoch > view.highest_epoch,
            GrantedBy::SelfClaim => claim.epoch == view.highest_epoch.next(),
        };
        if !follows {
            return Err(claimed(view.highest_epoch));
        }
        let _writing = self.inner.table.begin_writing(id, claim.epoch).ok_or_else(|| claimed(claim.epoch))?;
        // It may have been written between the look at the task and the mark.
        if self.inner.table.summary(id).is_some_and(|now| now.highest_epoch >= claim.epoch) {
            return Err(claimed(claim.epoch));
        }
        let mut task = current.submitted.clone();
        let event = self.put_claim(&mut task, claim);
        let entry = self.put_task(id, &current.home, with_unknown(&task, &current.raw)?).await?;
        self.audit(AuditEvent { entry: Some(entry.clone()), ..event });
        Ok(entry)
    }

    /// Puts into a document that it is claimed. Returns the event that tells of it, without its entry.
    fn put_claim(&self, task: &mut TaskDocument, claim: Claim) -> AuditEvent {
        let Claim { epoch, worker, by, attempt, failures } = claim;
        task.status = TaskStatus::Claimed;
        task.worker_peer_id = Some(worker.peer().to_owned());
        task.claimed_at = Some(self.now_ms());
        task.epoch = Some(epoch);
        task.granted_by = Some(by);
        task.attempt = Some(attempt.max(1));
        task.failures = in_short(failures);
        match (&worker, by) {
            (Worker::Foreign { identity, .. }, _) => task.worker_identity = Some(identity.clone()),
            (Worker::Node(_), GrantedBy::SelfClaim) => self.sign_as_worker(task),
            (Worker::Node(_), GrantedBy::Requester) => {}
        }
        let kind = match by {
            GrantedBy::Requester => AuditKind::Granted,
            GrantedBy::SelfClaim => AuditKind::SelfClaimed,
        };
        AuditEvent { epoch: Some(epoch), worker_peer_id: task.worker_peer_id.clone(), ..self.event(&task.id, kind) }
    }

    /// Says that this node runs a task under a grant: RUNNING. Returns the hash of the entry.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the task is over or not here, or it cannot be written.
    pub async fn running(&self, id: &TaskId, epoch: Epoch, grant: &str) -> Result<String, StoreError> {
        let current = self.current(id)?;
        self.check_open(&current)?;
        let mut task = current.submitted.clone();
        task.status = TaskStatus::Running;
        task.worker_peer_id = Some(self.inner.node.to_string());
        task.claimed_at = current.view.grant.as_ref().and_then(|live| live.claimed_at);
        task.epoch = Some(epoch);
        task.grant = Some(grant.to_owned());
        self.sign_as_worker(&mut task);
        let entry = self.put_task(id, &current.home, with_unknown(&task, &current.raw)?).await?;
        self.audit(self.event_of_grant(id, AuditKind::Running, epoch, &entry));
        Ok(entry)
    }

    /// Writes what became of a run of this node: its answer, or why there is none. `grant` and `epoch` of the document say under which grant;
    /// worker, proof and id are put in here. What is large goes to blocks of its own. A task that was offered by another node may not have come
    /// here yet: `offered_in` is the generation in which it stands there, and in which its result is written. Returns the document as it stands
    /// in the database, and the hash of its entry.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when it is too large, its task is not here and was not offered in a generation that is opened here within 30 s, or it
    /// cannot be written.
    pub async fn complete(
        &self,
        result: ResultDocument,
        offered_in: Option<u64>,
    ) -> Result<(ResultDocument, String), StoreError> {
        let inner = &self.inner;
        let mut result = result;
        result.id = result.task_id.clone();
        result.worker_peer_id = inner.node.to_string();
        result.worker_identity = Some(inner.identity.clone());
        result.worker_proof = Some(self.proof(&result.task_id));
        if result.completed_at == 0 {
            result.completed_at = self.now_ms();
        }
        inner.contents.move_out_of_result(&mut result).await?;
        let value = to_value(&result)?;
        let home = self.home_of_result(&result.task_id, offered_in).await?;
        let _open = home.writing().await.ok_or_else(|| StoreError::NotFound(result.task_id.clone()))?;
        let entry = put(&home.results, value).await?;
        self.audit(AuditEvent {
            epoch: result.epoch,
            reason: result.error.clone(),
            ..self.event_of_grant(&result.task_id, AuditKind::Result, result.epoch.unwrap_or_default(), &entry)
        });
        Ok((result, entry))
    }

    /// Says, as the worker of a task whose requester gives no grants, that there is a result: COMPLETED; or, of one that has failed for good, why:
    /// FAILED. That decides nothing; programs that know no grants expect it, since among them the worker says so. For a requester that decides by
    /// itself, and while there are attempts left, nothing is written.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`] when the task is not here, and when it cannot be written.
    pub async fn conclude(
        &self,
        id: &TaskId,
        epoch: Epoch,
        grant: &str,
        result: &str,
        error: Option<&str>,
    ) -> Result<(), StoreError> {
        let not_found = || StoreError::NotFound(id.clone());
        // With its result the task is over, and its view may not be held any more.
        let summary = self.summary(id).ok_or_else(not_found)?;
        let status = if error.is_some() { TaskStatus::Failed } else { TaskStatus::Completed };
        if summary.proven || summary.settled || (error.is_some() && summary.status != status) {
            return Ok(());
        }
        let home = self.home(id).ok_or_else(not_found)?;
        let raw = Value::clone(&home.tasks.get(id.as_str()).ok_or_else(not_found)?.value);
        let shown: TaskDocument = of_value(&raw)?;
        let claimed_at = shown.claimed_at;
        let mut task = shown.unstarted();
        task.status = status;
        task.error = error.map(|error| cut(error.to_owned(), ERROR_BYTES_MAX));
        task.worker_peer_id = Some(self.inner.node.to_string());
        (task.claimed_at, task.completed_at) = (claimed_at, Some(self.now_ms()));
        task.epoch = Some(epoch);
        (task.grant, task.result) = (Some(grant.to_owned()), Some(result.to_owned()));
        self.sign_as_worker(&mut task);
        let entry = self.put_task(id, &home, with_unknown(&task, &raw)?).await?;
        self.audit(AuditEvent { reason: task.error, ..self.event_of_grant(id, AuditKind::Concluded, epoch, &entry) });
        Ok(())
    }

    /// Decides for ever, as the requester, how a task ended. Returns the hash of the entry.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotRequester`] when it is not this node's, [`StoreError::Over`] when it is settled, and when it cannot be written.
    pub async fn settle(&self, id: &TaskId, settlement: Settlement) -> Result<String, StoreError> {
        let current = self.current(id)?;
        self.check_requester(&current)?;
        if current.view.settled {
            return Err(StoreError::Over { id: id.clone(), status: current.view.status });
        }
        let Settlement { status, grant, result, failures, error } = settlement;
        let kind = match status {
            TaskStatus::Completed => AuditKind::Completed,
            TaskStatus::Failed => AuditKind::Failed,
            TaskStatus::Cancelled => AuditKind::Cancelled,
            _ => return Err(StoreError::Document(format!("{status} does not end a task"))),
        };
        let accepted = grant.as_ref().and_then(|hash| current.view.grants.iter().find(|of| of.hash == *hash));
        let mut task = current.submitted.clone();
        task.status = status;
        task.completed_at = Some(self.now_ms());
        task.settled = Some(true);
        task.worker_peer_id = accepted.map(|grant| grant.worker.peer().to_owned());
        task.claimed_at = accepted.and_then(|grant| grant.claimed_at);
        task.epoch = accepted.map(|grant| grant.epoch);
        (task.grant, task.result) = (grant, result);
        task.failures = in_short(failures);
        let error = error.map(|error| cut(error, ERROR_BYTES_MAX));
        task.error.clone_from(&error);
        let entry = self.put_task(id, &current.home, with_unknown(&task, &current.raw)?).await?;
        self.audit(AuditEvent {
            epoch: task.epoch,
            worker_peer_id: task.worker_peer_id,
            reason: error,
            entry: Some(entry.clone()),
            ..self.event(id, kind)
        });
        Ok(entry)
    }

    /// Gives a task up for ever, as the requester, with the failures that are known. Returns the hash of the entry.
    ///
    /// # Errors
    ///
    /// As [`TaskStore::settle`].
    pub async fn fail(&self, id: &TaskId, error: &str) -> Result<String, StoreError> {
        let failures = self.current(id)?.view.failures.clone();
        self.settle(id, Settlement::failed(error, failures)).await
    }

    /// Ends all grants up to an epoch, as the requester, or those of this node, as their worker: PENDING. Returns the hash of the entry.
    ///
    /// # Errors
    ///
    /// [`StoreError::Over`] when the task has ended, [`StoreError::NotRequester`] when it is neither this node's task nor its grant, and when
    /// it cannot be written.
    pub async fn release(
        &self,
        id: &TaskId,
        epoch: Epoch,
        failure: Option<AttemptFailure>,
    ) -> Result<String, StoreError> {
        let current = self.current(id)?;
        self.check_open(&current)?;
        let mut task = current.submitted.clone();
        task.released = Some(epoch);
        let reason = failure.as_ref().map(|failure| failure.reason.clone());
        if self.is_requester(&current) {
            let mut failures = current.view.failures.clone();
            failures.retain(|known| failure.as_ref().is_none_or(|failure| failure.epoch != known.epoch));
            failures.extend(failure);
            task.failures = in_short(failures);
        } else {
            let is_ours = current.view.grants.iter().any(|grant| grant.worker.node() == Some(&self.inner.node));
            if !is_ours {
                return Err(StoreError::NotRequester(id.clone()));
            }
            task.worker_peer_id = Some(self.inner.node.to_string());
            self.sign_as_worker(&mut task);
        }
        let entry = self.put_task(id, &current.home, with_unknown(&task, &current.raw)?).await?;
        self.audit(AuditEvent { reason, ..self.event_of_grant(id, AuditKind::Released, epoch, &entry) });
        Ok(entry)
    }

    /// Cancels a task: for ever where it is this node's, else as a wish upon which its worker stops. Returns the hash of the entry.
    ///
    /// # Errors
    ///
    /// [`StoreError::Over`] when the task has ended, [`StoreError::NotFound`] when it is not here, and when it cannot be written.
    pub async fn cancel(&self, id: &TaskId) -> Result<String, StoreError> {
        let current = self.current(id)?;
        if current.view.is_over() {
            return Err(StoreError::Over { id: id.clone(), status: current.view.status });
        }
        if self.is_requester(&current) {
            let failures = current.view.failures.clone();
            return self.settle(id, Settlement { failures, ..Settlement::cancelled() }).await;
        }
        let mut task = current.submitted.clone();
        task.status = TaskStatus::Cancelled;
        task.completed_at = Some(self.now_ms());
        let entry = self.put_task(id, &current.home, with_unknown(&task, &current.raw)?).await?;
        self.audit(AuditEvent { entry: Some(entry.clone()), ..self.event(id, AuditKind::CancelAsked) });
        Ok(entry)
    }

    /// Adds an event to the audit log. It is written soon; where too many wait, it is left out and counted. The methods that write documents do
    /// so by themselves.
    pub fn audit(&self, event: AuditEvent) {
        if let Err(TrySendError::Full(_)) = self.inner.audit.try_send(event) {
            self.inner.audit_lost.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Makes an event of the audit log about a task, of this node and now.
    #[must_use]
    pub fn event(&self, id: &TaskId, kind: AuditKind) -> AuditEvent {
        AuditEvent::new(id.clone(), kind, self.now_ms(), self.inner.node.clone())
    }

    fn event_of_grant(&self, id: &TaskId, kind: AuditKind, epoch: Epoch, entry: &str) -> AuditEvent {
        AuditEvent { epoch: Some(epoch), entry: Some(entry.to_owned()), ..self.event(id, kind) }
    }

    fn proof(&self, id: &TaskId) -> String {
        let Inner { table, key, node, identity, .. } = &*self.inner;
        table.proofs.prove(key, node, id, identity)
    }

    fn sign_as_worker(&self, task: &mut TaskDocument) {
        task.worker_identity = Some(self.inner.identity.clone());
        task.worker_proof = Some(self.proof(&task.id));
    }

    /// Reads a task before something is written about it.
    fn current(&self, id: &TaskId) -> Result<Current, StoreError> {
        let not_found = || StoreError::NotFound(id.clone());
        let home = self.home(id).ok_or_else(not_found)?;
        let row = home.tasks.get(id.as_str()).ok_or_else(not_found)?;
        let raw = Value::clone(&row.value);
        let Some(view) = self.inner.table.held_view(id) else {
            let over = self.inner.table.summary(id).ok_or_else(not_found)?;
            return Err(StoreError::Over { id: id.clone(), status: over.status });
        };
        Ok(Current { submitted: of_value::<TaskDocument>(&raw)?.unstarted(), raw, view, home })
    }

    fn check_open(&self, current: &Current) -> Result<(), StoreError> {
        let view = &current.view;
        if view.is_over() {
            return Err(StoreError::Over { id: view.task.id.clone(), status: view.status });
        }
        Ok(())
    }

    fn is_requester(&self, current: &Current) -> bool {
        current.view.requester.proven && current.view.requester.identity == self.inner.identity
    }

    fn check_requester(&self, current: &Current) -> Result<(), StoreError> {
        if self.is_requester(current) { Ok(()) } else { Err(StoreError::NotRequester(current.view.task.id.clone())) }
    }

    /// Returns the generation in which a task stands.
    fn home(&self, id: &TaskId) -> Option<Arc<Generation>> {
        self.inner.generations.get(self.inner.table.home(id)?)
    }

    /// Returns the generation to which a new task goes, which is not dropped as long as the other thing is held.
    async fn for_new(&self) -> (Arc<Generation>, OwnedRwLockReadGuard<bool>) {
        loop {
            let generation = self.inner.generations.for_new();
            if let Some(open) = generation.writing().await {
                return (generation, open);
            }
            // Before one is dropped, another one is chosen.
            tokio::task::yield_now().await;
        }
    }

    /// Returns the generation in which the result of a task is written: where the task stands, or where it was offered.
    async fn home_of_result(&self, id: &TaskId, offered_in: Option<u64>) -> Result<Arc<Generation>, StoreError> {
        let not_found = || StoreError::NotFound(id.clone());
        let number = self.inner.table.home(id).or(offered_in).ok_or_else(not_found)?;
        timeout(OPENING_LIMIT, self.inner.generations.when_open(number)).await.map_err(|_| not_found())
    }

    async fn put_task(&self, id: &TaskId, home: &Generation, document: Value) -> Result<String, StoreError> {
        let _open = home.writing().await.ok_or_else(|| StoreError::NotFound(id.clone()))?;
        put(&home.tasks, document).await
    }
}

/// Keeps what an entry says of failed attempts small; none where it says nothing.
fn in_short(mut failures: Vec<AttemptFailure>) -> Option<Vec<AttemptFailure>> {
    failures.drain(..failures.len().saturating_sub(FAILURES_MAX));
    let each = REASONS_BYTES_MAX / failures.len().max(1);
    for failure in &mut failures {
        failure.reason = cut(std::mem::take(&mut failure.reason), each);
    }
    Some(failures).filter(|failures| !failures.is_empty())
}

fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

async fn put(database: &Database, document: Value) -> Result<String, StoreError> {
    Ok(database.put_document(check_size(document)?).await?.to_string())
}

fn check_size(document: Value) -> Result<Value, StoreError> {
    let bytes = document.encode().map_err(|error| StoreError::Document(error.to_string()))?.len();
    if bytes > DOCUMENT_BYTES_MAX {
        return Err(StoreError::TooLarge { bytes, max: DOCUMENT_BYTES_MAX });
    }
    Ok(document)
}
