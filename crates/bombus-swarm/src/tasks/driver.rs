//! Has done what the dispatcher says: documents are written, words are said, runs begin and end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::tasks::dispatch::{Answer, Failure, Input, Outcome, Output, RunId, Write};
use bombus_core::tasks::{AttemptFailure, Epoch, GrantedBy, TaskDocument, TaskId, TaskStatus, Worker};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::error::TasksError;
use super::shared::Shared;
use super::wire::{Said, Word};
use super::{ask, facts, offer, rank, run};
use crate::store::{AuditEvent, AuditKind, Claim, Settlement, StoreError};

/// How often it is looked whether entries are still being fetched in bulk.
const SYNC_LOOK: Duration = Duration::from_millis(50);
/// So many times the time to settle a bulk of entries may take at most.
const SYNC_TIMES_MAX: u32 = 10;

/// Begins what is to be done. Called in the order in which the dispatcher says it; nothing here waits.
pub(super) fn begin(shared: &Arc<Shared>, output: Output) {
    match output {
        Output::Submit { ref task }
        | Output::Grant { ref task, .. }
        | Output::Release { ref task, .. }
        | Output::GiveUp { ref task, .. }
        | Output::Settle { ref task, .. }
        | Output::Publish { ref task, .. } => write_in_line(shared, &task.clone(), output),
        Output::Sync => {
            let me = Arc::clone(shared);
            shared.spawn("the exchange of entries", async move {
                sync(&me).await;
                me.input(Input::Synced);
            });
        }
        Output::Rank { task } => {
            let me = Arc::clone(shared);
            shared.spawn("a ranking", async move {
                let candidates = rank::candidates(&me, &task).await;
                me.input(Input::Ranked { task, candidates });
            });
        }
        Output::AskAround { task, requester } => {
            let me = Arc::clone(shared);
            shared.spawn("asking around", async move {
                let input = ask::around(&me, task, requester).await;
                me.input(input);
            });
        }
        Output::Offer { task, epoch, worker, grant, resume } => {
            offer::begin(shared, task, epoch, worker, grant, resume);
        }
        Output::Acknowledge { task, epoch, beat } => offer::tell(shared, &task, epoch, Word::Acknowledged { beat }),
        Output::Revoke { task, epoch, .. } => offer::tell(shared, &task, epoch, Word::Revoked),
        Output::Accept { task, epoch, run, .. } => say(shared, &task, epoch, Said::Accepted { began: run.is_some() }),
        Output::Decline { task, epoch, reason, .. } => {
            shared.documents().remove(&task);
            audit(shared, &task, AuditKind::Declined, |event| AuditEvent {
                epoch: Some(epoch),
                reason: Some(reason.to_string()),
                ..event
            });
            say(shared, &task, epoch, Said::declined(reason));
        }
        Output::Report { task, epoch, .. } => report(shared, task, epoch),
        Output::HandBack { task, epoch, .. } => {
            shared.documents().remove(&task);
            say(shared, &task, epoch, Said::HandedBack);
        }
        Output::Renew { task, epoch, beat, .. } => say(shared, &task, epoch, Said::Renewed { beat }),
        Output::Run { task, run, epoch, grant } => {
            say(shared, &task, epoch, Said::Began);
            run::begin(shared, task, run, epoch, grant);
        }
        Output::Abort { task, run } => {
            let epoch = run::abort(shared, run);
            audit(shared, &task, AuditKind::Abandoned, |event| AuditEvent { epoch, ..event });
        }
        Output::Drained => shared.set_drained(),
    }
}

/// Says something to who offers a grant, where its stream stands. A stream that is not read is ended: it belongs to a requester that is in
/// trouble, and will offer again.
fn say(shared: &Shared, task: &TaskId, epoch: Epoch, said: Said) {
    let mut listeners = shared.listeners();
    let key = (task.clone(), epoch);
    if listeners.get(&key).is_some_and(|listener| listener.said.try_send(said).is_err()) {
        listeners.remove(&key);
    }
}

/// Writes what leaves no document into the audit log.
fn audit(shared: &Shared, task: &TaskId, kind: AuditKind, more: impl FnOnce(AuditEvent) -> AuditEvent) {
    if let Some(store) = shared.store_now() {
        store.audit(more(store.event(task, kind)));
    }
}

/// Tells a requester that offers a grant again how its run ended.
fn report(shared: &Arc<Shared>, task: TaskId, epoch: Epoch) {
    let me = Arc::clone(shared);
    shared.spawn("the report of a result", async move {
        let view = me.view(&task).await.ok().flatten();
        let failed = view.and_then(|view| {
            let of_epoch = view.results.iter().filter(|result| result.epoch == epoch);
            let mut errors = of_epoch.map(|result| result.error.clone());
            errors.next().flatten()
        });
        let said = match failed {
            Some(reason) => Said::ended(&Outcome::Failed { reason, retry: true }),
            None => Said::Completed,
        };
        say(&me, &task, epoch, said);
    });
}

/// Waits until what peers have has come, as far as that can be seen, or the time for it is over.
pub(super) async fn sync(shared: &Shared) {
    let settle = Duration::from_millis(shared.config.settle_ms);
    sleep(settle).await;
    let until = Instant::now() + settle * SYNC_TIMES_MAX;
    let is_coming = || shared.store_now().is_some_and(|store| store.is_catching_up());
    while is_coming() && Instant::now() < until {
        sleep(SYNC_LOOK).await;
    }
}

/// Writes something behind what is being written about the same task. Different tasks do not wait for each other.
fn write_in_line(shared: &Arc<Shared>, task: &TaskId, output: Output) {
    {
        let mut lines = shared.lines();
        if let Some(line) = lines.get_mut(task) {
            line.push_back(output);
            return;
        }
        lines.insert(task.clone(), VecDeque::from([output]));
    }
    let (me, task) = (Arc::clone(shared), task.clone());
    shared.spawn("what is written about a task", async move {
        // Whatever becomes of it, the next one may write.
        let _line = Line { shared: Arc::clone(&me), task: task.clone() };
        loop {
            let next = me.lines().get_mut(&task).and_then(VecDeque::pop_front);
            let Some(output) = next else {
                let mut lines = me.lines();
                if lines.get(&task).is_none_or(VecDeque::is_empty) {
                    lines.remove(&task);
                    return;
                }
                continue;
            };
            write(&me, output).await;
        }
    });
}

/// The line of a task, which goes with whoever writes it.
struct Line {
    shared: Arc<Shared>,
    task: TaskId,
}

impl Drop for Line {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.lines().remove(&self.task);
        }
    }
}

async fn write(shared: &Arc<Shared>, output: Output) {
    match output {
        Output::Submit { task } => {
            let Some(submitting) = Submitting::of(shared, &task) else { return };
            if let Some(Err(_)) = submitting.write(None).await {
                facts::tell(shared, &task).await;
            }
        }
        Output::Grant { task, epoch, worker, by, attempt } => {
            let claim = Claim { epoch, worker, by, attempt, failures: Vec::new() };
            let granted = match Submitting::of(shared, &task) {
                Some(submitting) => match submitting.write(Some(claim)).await {
                    // There is no such task.
                    None => return,
                    Some(granted) => granted,
                },
                None => grant(shared, &task, claim).await,
            };
            match granted {
                Ok(grant) => shared.input(Input::Stored { task, epoch, grant }),
                Err(error) => failed(shared, task, Write::Grant(epoch), &error).await,
            }
        }
        Output::Release { task, epoch, failure } => {
            if let Err(error) = release(shared, &task, epoch, failure).await {
                failed(shared, task, Write::Release(epoch), &error).await;
            }
        }
        Output::GiveUp { task, epoch } => {
            // Where it is not written, the others find out by themselves.
            if let Err(error) = release(shared, &task, epoch, None).await {
                tracing::debug!(task.id = %task, %error, "a claim was not given up");
            }
        }
        Output::Settle { task, status, grant, result, failure, error } => {
            if let Err(error) = settle(shared, &task, status, (grant, result), failure, error).await {
                failed(shared, task, Write::Settle, &error).await;
            }
        }
        Output::Publish { task, run, epoch, grant, outcome } => {
            publish(shared, task, run, (epoch, grant), &outcome).await;
        }
        _ => {}
    }
}

/// Tells the dispatcher that something was not written, and how the task stands: another entry may have made it needless.
async fn failed(shared: &Arc<Shared>, task: TaskId, what: Write, error: &StoreError) {
    match error {
        StoreError::Over { .. } | StoreError::Claimed { .. } | StoreError::Exists(_) => {
            tracing::debug!(task.id = %task, %error, "something about a task came too late");
        }
        error => tracing::warn!(task.id = %task, %error, "something about a task was not written"),
    }
    facts::tell(shared, &task).await;
    shared.input(Input::StoreFailed { task, write: what });
}

/// A task whose first entry is written. Its draft goes with this, whatever becomes of it: until then it is what is known of the task.
struct Submitting<'a> {
    shared: &'a Arc<Shared>,
    task: &'a TaskId,
    document: Arc<TaskDocument>,
    written: Option<oneshot::Sender<Result<(), TasksError>>>,
}

impl<'a> Submitting<'a> {
    /// Begins to write a draft; none where there is no draft of that task.
    fn of(shared: &'a Arc<Shared>, task: &'a TaskId) -> Option<Self> {
        let mut drafts = shared.drafts();
        let draft = drafts.get_mut(task)?;
        let written = Some(draft.written.take()?);
        Some(Self { shared, task, document: Arc::clone(&draft.document), written })
    }

    /// Writes it, with its first grant or as PENDING, and tells who submits it. Returns the hash of the grant, or that another one of that id came
    /// meanwhile; none where there is no such task: it could not be written, or nobody waits for it any more.
    async fn write(mut self, claim: Option<Claim>) -> Option<Result<String, StoreError>> {
        let written = self.written.take()?;
        let created = match self.shared.store_now() {
            // Who went away was told of no task, so that there is none.
            _ if written.is_closed() => Err(TasksError::Unavailable),
            None => Err(TasksError::Unavailable),
            Some(store) => {
                let document = TaskDocument::clone(&self.document);
                let created = match claim {
                    Some(claim) => store.create_granted(document, claim).await,
                    None => store.create_task(document).await.map(|_| String::new()),
                };
                created.map_err(TasksError::from)
            }
        };
        let (told, granted) = match created {
            Ok(grant) => (Ok(()), Some(Ok(grant))),
            Err(TasksError::Store(StoreError::Exists(id))) => {
                (Err(StoreError::Exists(id.clone()).into()), Some(Err(StoreError::Exists(id))))
            }
            Err(error) => {
                self.shared.input(Input::Withdrawn { task: self.task.clone() });
                (Err(error), None)
            }
        };
        drop(self);
        // Who is gone finds it with the key of the request.
        drop(written.send(told));
        granted
    }
}

impl Drop for Submitting<'_> {
    fn drop(&mut self) {
        self.shared.drafts().remove(self.task);
    }
}

async fn grant(shared: &Shared, task: &TaskId, claim: Claim) -> Result<String, StoreError> {
    let store = shared.store_now().ok_or(StoreError::NotFound(task.clone()))?;
    let claim = match claim.by {
        // The requester has not said how the claims before this one ended.
        GrantedBy::SelfClaim => {
            let failures = store.unfinished_view(task).map(|view| view.failures.clone()).unwrap_or_default();
            Claim { failures, ..claim }
        }
        GrantedBy::Requester => claim,
    };
    store.claim(task, claim).await
}

async fn release(shared: &Shared, task: &TaskId, epoch: Epoch, failure: Option<Failure>) -> Result<String, StoreError> {
    let store = shared.store_now().ok_or(StoreError::NotFound(task.clone()))?;
    let failure = failure.map(|failure| attempt_failure(failure, store.now_ms()));
    store.release(task, epoch, failure).await
}

fn attempt_failure(failure: Failure, at: u64) -> AttemptFailure {
    let Failure { epoch, worker, reason } = failure;
    let worker_peer_id = match worker {
        Worker::Node(node) => node.to_string(),
        Worker::Foreign { peer, .. } => peer,
    };
    AttemptFailure { epoch, worker_peer_id, reason, at }
}

async fn settle(
    shared: &Shared,
    task: &TaskId,
    status: TaskStatus,
    (grant, result): (Option<String>, Option<String>),
    failure: Option<Failure>,
    error: Option<String>,
) -> Result<String, StoreError> {
    let store = shared.store_now().ok_or(StoreError::NotFound(task.clone()))?;
    let view = store.unfinished_view(task);
    let mut failures = view.as_ref().map(|view| view.failures.clone()).unwrap_or_default();
    if let Some(failure) = failure {
        failures.retain(|known| known.epoch != failure.epoch);
        failures.push(attempt_failure(failure, store.now_ms()));
    }
    // What was accepted says nothing of attempts before, which stand in the entries that released them.
    let failures = if status == TaskStatus::Completed { Vec::new() } else { failures };
    store.settle(task, Settlement { status, grant, result, failures, error }).await
}

async fn publish(shared: &Arc<Shared>, task: TaskId, run: RunId, grant: (Epoch, String), outcome: &Outcome) {
    let (epoch, hash) = grant;
    let Some(document) = run::result_of(shared, &task, run, (epoch, &hash), outcome) else { return };
    let completed = match shared.store_now() {
        Some(store) => store.complete(document, run::offered_in(shared, run)).await.map(|written| (store, written)),
        None => Err(StoreError::NotFound(task.clone())),
    };
    match completed {
        Ok((store, (_, entry))) => {
            say(shared, &task, epoch, Said::ended(outcome));
            run::forget(shared, run);
            let failed = match outcome {
                Outcome::Failed { reason, .. } => Some(reason.as_str()),
                _ => None,
            };
            match store.conclude(&task, epoch, &hash, &entry, failed).await {
                // What has not come here yet was offered by its requester, which gives grants and decides by itself.
                Ok(()) | Err(StoreError::NotFound(_)) => {}
                Err(error) => tracing::warn!(
                    task.id = %task, %error, "a requester without grants was not told how its task has ended"
                ),
            }
            shared.input(Input::Published { task, run });
        }
        Err(error @ (StoreError::Db(_) | StoreError::Database(_))) => {
            tracing::warn!(task.id = %task, %error, "a result cannot be written here");
            shared.note_trouble();
            shared.input(Input::Unwritable { task, run });
        }
        // Somebody else may be able to write it.
        Err(error @ StoreError::NotFound(_)) => {
            tracing::warn!(task.id = %task, %error, "the databases are not open here in which a result is to be written");
            shared.input(Input::Unwritable { task, run });
        }
        Err(error) => failed(shared, task, Write::Result(run), &error).await,
    }
}

/// Answers a peer that asks around.
pub(super) fn answer(shared: &Shared, task: &TaskId, requester: Option<&bombus_core::identity::NodeId>) -> Said {
    let Answer { requester_seen, running } = shared.answer(task, requester);
    Said::Seen { requester: requester_seen, running }
}
