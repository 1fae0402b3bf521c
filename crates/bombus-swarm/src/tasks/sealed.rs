//! Sealed tasks: who can read what is asked, and who the answer.
//!
//! The requester seals a task to the first nodes of the ranking, and to itself, so that it can read it again. Where it grants the task to a node
//! that is not among them, it seals it anew, and sends that with the offer. The worker seals the answer to the key that the task names.

use bombus_core::identity::NodeId;
use bombus_core::tasks::{ResultDocument, TaskDocument, TaskView};
use serde::{Deserialize, Serialize};

use super::error::TasksError;
use super::rank;
use super::shared::Shared;
use super::submission::Submission;
use crate::seal::{OpenError, OpenedTask, PublicSealKey, SealError, open_result, open_task, seal_result, seal_task};
use crate::store::{StoreError, TaskStore};

/// Most workers that a task is sealed to.
pub const SEAL_TO_MAX: u32 = 8;

/// Which tasks of this node are sealed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SealChoice {
    /// All; one that cannot be sealed is not taken.
    Always,
    /// None; one that is to be sealed is not taken.
    Never,
    /// Those that are to be.
    #[default]
    Ask,
}

/// Says to how many workers a submission is to be sealed; to none where it is not.
///
/// # Errors
///
/// [`TasksError::Invalid`] where it is to be sealed and cannot be.
pub(super) fn workers(choice: SealChoice, submission: &Submission) -> Result<Option<usize>, TasksError> {
    let wanted = match (choice, submission.seal_to) {
        (_, Some(count)) if !(1..=SEAL_TO_MAX).contains(&count) => {
            return Err(TasksError::invalid("seal_to", format!("a task is sealed to 1 to {SEAL_TO_MAX} nodes")));
        }
        (SealChoice::Never, Some(_)) => {
            let message = "this node seals no tasks: its configuration says seal = \"never\" in [tasks]";
            return Err(TasksError::invalid("encrypt", message));
        }
        (SealChoice::Always, wanted) => wanted.unwrap_or(1),
        (SealChoice::Ask, Some(wanted)) => wanted,
        (SealChoice::Never | SealChoice::Ask, None) => return Ok(None),
    };
    if submission.reduce.is_some() {
        let message = "a sealed task cannot have its answers summed up: no other node can read them. Leave `reduce` out, or do not seal it";
        return Err(TasksError::invalid("reduce", message));
    }
    Ok(usize::try_from(wanted).ok())
}

/// Seals documents of one submission, which ask the same of the same nodes, to the first that could run them.
///
/// # Errors
///
/// [`TasksError::Invalid`] where nobody is known to whom they could be sealed.
pub(super) async fn seal_all(
    shared: &Shared,
    documents: &[TaskDocument],
    workers: usize,
) -> Result<Vec<TaskDocument>, TasksError> {
    let Some(first) = documents.first() else { return Ok(Vec::new()) };
    let mut chosen: Vec<NodeId> =
        rank::of_document(shared, first, Some(&shared.me)).await.into_iter().map(|candidate| candidate.node).collect();
    if let Some(to) = &first.to {
        // It need not be there yet.
        chosen = vec![to.clone()];
    }
    chosen.retain(|node| key_of(shared, node).is_some());
    chosen.truncate(workers);
    if chosen.is_empty() {
        let message = match &first.to {
            Some(to) => {
                format!("{to} has told no key to seal to: it has to be there once, in a version that can open seals")
            }
            None if first.model.is_empty() => {
                "no node is there that could run it and has told a key to seal to".to_owned()
            }
            None => format!(
                "no node is there that has the model '{}' and has told a key to seal to: start one, or do not seal it",
                first.model
            ),
        };
        return Err(TasksError::invalid("encrypt", message));
    }
    let sealed = documents.iter().map(|document| seal_to(shared, document, &chosen));
    sealed.collect::<Result<_, _>>().map_err(|error| TasksError::invalid("encrypt", error.to_string()))
}

/// Seals a task of this node to nodes whose keys are known, and to itself.
fn seal_to(shared: &Shared, document: &TaskDocument, nodes: &[NodeId]) -> Result<TaskDocument, SealError> {
    let own = (shared.me.clone(), shared.seal_key.public());
    let others = nodes.iter().filter(|node| **node != shared.me);
    let others = others.filter_map(|node| Some((node.clone(), key_of(shared, node)?)));
    let to: Vec<_> = std::iter::once(own).chain(others).collect();
    seal_task(document, &shared.me, shared.seal_key.public(), &to)
}

/// Returns the key that texts for a node are sealed to.
pub(super) fn key_of(shared: &Shared, node: &NodeId) -> Option<PublicSealKey> {
    if *node == shared.me { Some(shared.seal_key.public()) } else { shared.swarm.seal_key(node) }
}

/// Why a task cannot be offered to a node.
#[derive(Debug, thiserror::Error)]
pub(super) enum OfferError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("the node has told no key to seal to")]
    NoKey,
}

/// Returns a task of this node as it is offered to a worker: where it is sealed to others, sealed anew.
pub(super) async fn for_worker(
    shared: &Shared,
    store: &TaskStore,
    document: TaskDocument,
    worker: &NodeId,
) -> Result<TaskDocument, OfferError> {
    if document.sealed_to().is_none_or(|nodes| nodes.contains(worker)) {
        return Ok(document);
    }
    key_of(shared, worker).ok_or(OfferError::NoKey)?;
    let OpenedTask { task, .. } = opened(shared, &store.whole_task(&document).await?)?;
    let sealed = seal_to(shared, &task, std::slice::from_ref(worker))?;
    Ok(store.laid_out(TaskDocument { prompt_block: None, rest_block: None, ..sealed }).await?)
}

/// Opens what a task asks, where this node may read it. It has to be whole.
pub(super) fn opened(shared: &Shared, document: &TaskDocument) -> Result<OpenedTask, OpenError> {
    open_task(document, &shared.me, &shared.seal_key)
}

/// Seals an answer of this node to the requester.
pub(super) fn seal_answer(
    shared: &Shared,
    result: &ResultDocument,
    requester: NodeId,
    reply_to: PublicSealKey,
) -> Result<ResultDocument, SealError> {
    seal_result(result, &shared.me, &[(requester, reply_to)])
}

/// Opens an answer, where this node may read it; else it is returned without what it says, and true.
pub(super) fn open_answer(shared: &Shared, result: ResultDocument) -> (ResultDocument, bool) {
    match open_result(&result, &shared.me, &shared.seal_key) {
        Ok(opened) => (opened, false),
        Err(error) => {
            if error != OpenError::NotForUs {
                tracing::warn!(task.id = %result.task_id, %error, "an answer that is sealed to this node cannot be opened");
            }
            (ResultDocument { response: String::new(), answer: None, ..result }, true)
        }
    }
}

/// Says whether a node may read the answer as it is written: of a sealed task, none but its requester.
pub(super) fn may_follow(view: Option<&TaskView>, peer: &NodeId) -> bool {
    view.is_some_and(|view| view.task.sealed.is_none() || view.requester.peer.as_ref() == Some(peer))
}

/// Says whether two documents of the same id ask for the same. Where the known one is sealed to others, what it asks cannot be compared.
pub(super) fn asks_the_same(shared: &Shared, known: TaskDocument, document: &TaskDocument) -> bool {
    match opened(shared, &known) {
        Ok(OpenedTask { task, .. }) => TaskDocument { prompt_block: None, ..task }.asks_the_same(document),
        Err(_) => unread(known).asks_the_same(&unread(document.clone())),
    }
}

fn unread(document: TaskDocument) -> TaskDocument {
    let (prompt, request) = (String::new(), None);
    TaskDocument { prompt, request, prompt_block: None, messages: None, system: None, map: None, ..document }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_what_is_asked_for_and_what_the_configuration_says() {
        let ask = |seal_to| Submission { seal_to, ..Submission::prompt("m", "hello") };
        let of = |choice, seal_to| workers(choice, &ask(seal_to)).ok();
        assert_eq!(of(SealChoice::Ask, None), Some(None));
        assert_eq!(of(SealChoice::Ask, Some(2)), Some(Some(2)));
        assert_eq!(of(SealChoice::Always, None), Some(Some(1)), "a task that nobody asked to seal");
        assert_eq!(of(SealChoice::Always, Some(3)), Some(Some(3)));
        assert_eq!(of(SealChoice::Never, None), Some(None));
        assert_eq!(of(SealChoice::Never, Some(1)), None, "it is not silently left unsealed");
        assert_eq!((of(SealChoice::Ask, Some(0)), of(SealChoice::Ask, Some(SEAL_TO_MAX + 1))), (None, None));
        let summed = Submission { reduce: Some("sum: {text}".to_owned()), ..ask(Some(1)) };
        assert!(matches!(workers(SealChoice::Ask, &summed), Err(TasksError::Invalid { param: "reduce", .. })));
    }
}
