use std::collections::HashSet;
use std::sync::Arc;

use crate::identity::NodeId;
use crate::tasks::{GrantedBy, ResultDocument, TaskDocument, TaskId, TaskStatus};

use super::{Entry, Refusal, Requester, ResultEntry, Worker, has_status};

/// Who may write what about one task.
pub(super) struct Authority<'a> {
    id: &'a TaskId,
    proof_ok: &'a dyn Fn(&NodeId, &TaskId, &str, &str) -> bool,
    pub(super) requester: Requester,
    /// The requester's first document: PENDING, or a grant with which it submitted the task.
    pub(super) first: &'a Entry,
    /// The requester's document that decides.
    pub(super) terminal: Option<&'a Entry>,
    /// All identities that submitted the task with a proof. More than one did so where a request with an idempotency key was repeated
    /// at another node before that knew of the first.
    submitters: HashSet<&'a str>,
}

impl<'a> Authority<'a> {
    /// Finds the requester, and its word that decides, in entries of one task, oldest first.
    ///
    /// Of several submitters who has decided first is the requester, so that what is settled stays so; else the oldest is.
    pub(super) fn of(
        id: &'a TaskId,
        tasks: &[&'a Entry],
        proof_ok: &'a dyn Fn(&NodeId, &TaskId, &str, &str) -> bool,
    ) -> Option<Self> {
        let proves = |entry: &Entry| {
            let TaskDocument { requester_peer_id, requester_identity, requester_proof, .. } = &*entry.value;
            let is_writer = requester_identity.as_ref().is_none_or(|identity| *identity == entry.writer);
            let Some(proof) = requester_proof.as_ref().filter(|_| is_writer) else { return false };
            NodeId::parse(requester_peer_id).is_ok_and(|node| proof_ok(&node, id, &entry.writer, proof))
        };
        let oldest = tasks.iter().copied().find(has_status(TaskStatus::Pending));
        let mut submitted: Vec<&Entry> = Vec::new();
        let mut submitters = HashSet::new();
        for entry in tasks.iter().copied().filter(may_submit) {
            if !submitters.contains(entry.writer.as_str()) && proves(entry) {
                submitters.insert(entry.writer.as_str());
                submitted.push(entry);
            }
        }
        let oldest = submitted.first().copied().or(oldest)?;
        let may_decide = |entry: &&&Entry| {
            if submitted.is_empty() {
                entry.writer == oldest.writer
            } else {
                submitters.contains(entry.writer.as_str())
            }
        };
        let terminal = tasks.iter().filter(|entry| entry.value.status.is_final()).find(may_decide).copied();
        let has_decided = |entry: &&&Entry| terminal.is_some_and(|terminal| terminal.writer == entry.writer);
        let first = submitted.iter().find(has_decided).copied().unwrap_or(oldest);
        let requester = Requester {
            peer: NodeId::parse(&first.value.requester_peer_id).ok(),
            identity: first.writer.clone(),
            proven: !submitted.is_empty(),
        };
        Some(Self { id, proof_ok, requester, first, terminal, submitters })
    }

    /// Returns whether the writer of an entry submitted the task, be it the requester or another one.
    pub(super) fn has_submitted(&self, entry: &Entry) -> bool {
        self.submitters.contains(entry.writer.as_str())
    }

    /// Returns why somebody may not write what only the requester may.
    pub(super) fn not_requester(&self, entry: &Entry) -> Refusal {
        if self.has_submitted(entry) { Refusal::Superseded } else { Refusal::NotRequester }
    }

    /// Returns whether the requester wrote an entry.
    pub(super) fn is_requesters(&self, entry: &Entry) -> bool {
        entry.writer == self.requester.identity
    }

    /// Parts the requester's entries behind its word that decides from all that counts.
    pub(super) fn split_at_terminal(&self, tasks: Vec<&'a Entry>) -> (Vec<&'a Entry>, Vec<&'a Entry>) {
        let Some(terminal) = self.terminal else { return (tasks, Vec::new()) };
        let is_late = |entry: &&Entry| self.is_requesters(entry) && entry.order > terminal.order;
        let (late, counts) = tasks.into_iter().partition(is_late);
        (counts, late)
    }

    /// Returns whether a node proves that it wrote something under an identity.
    pub(super) fn proves(
        &self,
        node: &NodeId,
        writer: &str,
        identity: Option<&String>,
        proof: Option<&String>,
    ) -> bool {
        let is_writer = identity.is_none_or(|identity| identity == writer);
        is_writer && proof.is_some_and(|proof| (self.proof_ok)(node, self.id, writer, proof))
    }

    /// Returns whether the worker of a grant wrote an entry about the task.
    pub(super) fn is_workers(&self, worker: &Worker, entry: &Entry) -> Result<(), Refusal> {
        let TaskDocument { worker_peer_id, worker_identity, worker_proof, .. } = &*entry.value;
        let peer = worker_peer_id.as_deref().unwrap_or_default();
        self.is_by(worker, peer, &entry.writer, worker_identity.as_ref(), worker_proof.as_ref())
    }

    /// Returns whether the worker of a grant wrote a result.
    pub(super) fn is_result_of(&self, worker: &Worker, entry: &ResultEntry) -> Result<(), Refusal> {
        let ResultDocument { worker_peer_id, worker_identity, worker_proof, .. } = &*entry.value;
        self.is_by(worker, worker_peer_id, &entry.writer, worker_identity.as_ref(), worker_proof.as_ref())
    }

    fn is_by(
        &self,
        worker: &Worker,
        peer: &str,
        writer: &str,
        identity: Option<&String>,
        proof: Option<&String>,
    ) -> Result<(), Refusal> {
        match worker {
            Worker::Foreign { identity, .. } if identity == writer => Ok(()),
            Worker::Node(node) if node.as_str() == peer => {
                if self.proves(node, writer, identity, proof) {
                    Ok(())
                } else {
                    Err(Refusal::Proof)
                }
            }
            Worker::Foreign { .. } | Worker::Node(_) => Err(Refusal::OtherWorker),
        }
    }

    /// Returns the task as it was submitted.
    pub(super) fn task(&self) -> Arc<TaskDocument> {
        let first = &self.first.value;
        if first.status == TaskStatus::Pending && first.released.is_none() {
            return Arc::clone(first);
        }
        Arc::new(TaskDocument::clone(first).unstarted())
    }
}

/// Returns whether a document can make its writer the requester, where a proof says so.
fn may_submit(entry: &&Entry) -> bool {
    let TaskDocument { status, epoch, granted_by, .. } = &*entry.value;
    match status {
        TaskStatus::Pending => true,
        TaskStatus::Claimed => epoch.is_some() && *granted_by == Some(GrantedBy::Requester),
        _ => false,
    }
}
