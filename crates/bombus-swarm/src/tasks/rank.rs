//! Who could run a task now: the ranking that requests have, too.

use std::sync::Arc;

use bombus_core::identity::NodeId;
use bombus_core::liveness::PeerState;
use bombus_core::model::ModelCapability;
use bombus_core::placement::{Need, Ranked, Rejection, Scope, Verdict};
use bombus_core::tasks::dispatch::{Candidate, Needs};
use bombus_core::tasks::{TaskDocument, TaskId, TaskKind, TaskStatus};

use super::config::{QUEUE_PER_SLOT, SLOTS_DEFAULT};
use super::facts::needs;
use super::sealed;
use super::serve::is_able;
use super::shared::Shared;

/// Returns who could run a task, the best first; this node is among them.
pub(super) async fn candidates(shared: &Shared, task: &TaskId) -> Vec<Candidate> {
    let draft = shared.drafts().get(task).map(|draft| Arc::clone(&draft.document));
    if let Some(document) = draft {
        return of_readers(shared, &document, Some(&shared.me)).await;
    }
    let view = shared.store_now().and_then(|store| store.unfinished_view(task));
    let Some(view) = view else { return Vec::new() };
    let requester = view.requester.peer.as_ref().filter(|_| view.requester.proven);
    of_readers(shared, &view.task, requester).await
}

/// Returns who could run what a document asks for and may read it, the best first.
async fn of_readers(shared: &Shared, document: &TaskDocument, requester: Option<&NodeId>) -> Vec<Candidate> {
    let mut candidates = of_document(shared, document, requester).await;
    if let Some(readers) = document.sealed_to() {
        // Who can read it comes first. For others the requester has to seal it anew.
        let may_read_it = |node: &NodeId| sealed::key_of(shared, node).is_some() && requester == Some(&shared.me);
        candidates.retain(|candidate| readers.contains(&candidate.node) || may_read_it(&candidate.node));
        candidates.sort_by_key(|candidate| !readers.contains(&candidate.node));
    }
    candidates
}

/// Says why a task waits that no node that is here could do; none where one could, or nobody has to yet.
pub(super) async fn hindrance(shared: &Shared, task: &TaskId) -> Option<String> {
    let store = shared.store_now()?;
    let view = store.unfinished_view(task)?;
    let document = &*view.task;
    if view.status != TaskStatus::Pending || view.cancelling || needs(&store, document) != Needs::Ready {
        return None;
    }
    let requester = view.requester.peer.as_ref().filter(|_| view.requester.proven);
    if !of_document(shared, document, requester).await.is_empty() {
        return None;
    }
    let asked = match document.kind() {
        TaskKind::Inference | TaskKind::Embedding => format!("the model '{}' for it", document.model),
        TaskKind::Ping => "time for it".to_owned(),
        TaskKind::Other(kind) => format!("a way to do tasks of the kind '{kind}'"),
    };
    let peers = shared.swarm.peers();
    let is_here = |to: &NodeId| {
        *to == shared.me || peers.iter().any(|peer| peer.node_id == *to && peer.state == PeerState::Alive)
    };
    Some(match &document.to {
        Some(to) if !is_here(to) => "the node that is to do it is not here".to_owned(),
        Some(_) => format!("the node that is to do it has not {asked}"),
        None => format!("no node that is here has {asked}"),
    })
}

/// Returns who could run what a document asks for, the best first, whoever can read it.
pub(super) async fn of_document(
    shared: &Shared,
    document: &TaskDocument,
    requester: Option<&NodeId>,
) -> Vec<Candidate> {
    let mut candidates = match document.kind() {
        TaskKind::Inference => by_model(shared, document, ModelCapability::Completion).await,
        TaskKind::Embedding => by_model(shared, document, ModelCapability::Embedding).await,
        TaskKind::Ping => everybody(shared),
        TaskKind::Other(_) => Vec::new(),
    };
    let is_fit = |candidate: &Candidate| candidate.node != shared.me || is_able(shared, document, requester);
    let is_meant = |candidate: &Candidate| document.to.as_ref().is_none_or(|to| *to == candidate.node);
    candidates.retain(|candidate| is_meant(candidate) && is_fit(candidate));
    candidates
}

async fn by_model(shared: &Shared, document: &TaskDocument, capability: ModelCapability) -> Vec<Candidate> {
    let scope = match &document.to {
        Some(to) if *to == shared.me => Scope::Local,
        Some(to) => Scope::Node(to.clone()),
        None => Scope::Anywhere,
    };
    let need = Need::of([capability]).within(scope);
    // A name that can be nobody's model has no candidates.
    let ranked = shared.backends.rank(&document.model, &need).await.unwrap_or_default();
    let mut candidates: Vec<Candidate> = Vec::new();
    for ranked in ranked.iter().filter(|ranked| is_possible(ranked)) {
        let candidate = match ranked.candidate.node() {
            Some(node) => of_peer(node, ranked.candidate.slots),
            None => own(shared),
        };
        if !candidates.iter().any(|known| known.node == candidate.node) {
            candidates.push(candidate);
        }
    }
    candidates
}

/// Says whether a place could run something, now or when it has a slot.
fn is_possible(ranked: &Ranked) -> bool {
    matches!(ranked.verdict, Verdict::Accepted { .. } | Verdict::Rejected(Rejection::Busy { .. }))
}

fn everybody(shared: &Shared) -> Vec<Candidate> {
    let peers = shared.swarm.peers().into_iter();
    let there = peers.filter(|peer| peer.state == PeerState::Alive && peer.complete && peer.path.is_some());
    let peers = there.map(|peer| of_peer(&peer.node_id, peer.slots));
    std::iter::once(own(shared)).chain(peers).collect()
}

fn own(shared: &Shared) -> Candidate {
    Candidate { node: shared.me.clone(), slots: shared.load().slots, queue: 0 }
}

fn of_peer(node: &NodeId, slots: Option<u32>) -> Candidate {
    let slots = slots.filter(|slots| *slots > 0).unwrap_or(SLOTS_DEFAULT);
    Candidate { node: node.clone(), slots, queue: slots.saturating_mul(QUEUE_PER_SLOT) }
}
