//! From all that was written about a task to one view of it.

mod authority;
mod bids;
mod grants;
mod outcome;
mod view;

use std::collections::HashSet;

use crate::identity::NodeId;

use super::{ResultDocument, TaskDocument, TaskId, TaskStatus};

use authority::Authority;
use bids::Bids;
use grants::Grants;
use outcome::Results;
pub use view::{Bid, Grant, Order, Refusal, Refused, Requester, TaskView, ValidResult, Worker, Written};

/// An entry about a task.
type Entry = Written<TaskDocument>;

/// An entry about its result.
type ResultEntry = Written<ResultDocument>;

/// Returns what the entries about a task come to; none as long as no document is among them with which somebody
/// submits it.
///
/// It depends on the set of entries alone, whatever their order and however often each is given, so that all nodes see the same.
/// `proof_ok` says whether a proof holds: [`super::proof_holds`], or [`super::ProofMemo::holds`], which does not check twice.
///
/// The rules:
///
/// - **Requester**: who wrote the oldest document whose proof holds, be it PENDING or a grant of its own; without any, who wrote the oldest
///   PENDING document. Of several who proved it, since they got the same request with the same idempotency key, the one that has decided.
/// - **Settled**: the requester's oldest terminal document decides, and nothing after it counts.
/// - **Grants**: CLAIMED documents with an epoch, by the requester or by a worker with a proof for itself. Epochs follow each other:
///   a worker claims at most the next one. The requester's `released` ends all up to that epoch; a worker gives its own back.
/// - **Live** is the highest epoch that is not over; at equal epochs the requester's grant, then one with a result, then the lower hash.
///   Where its worker has given that back, none is: what it superseded does not come back.
/// - **Bids**: CLAIMED documents without an epoch. They count once the requester has granted what they ask for; for tasks without a
///   proven requester they count by themselves where there is no grant.
/// - **Results** count when they name the live grant and prove to be by its worker; those of a bidder need neither.
/// - **Cancelled** by anybody but the requester is a wish (`cancelling`), upon which workers stop.
pub fn resolve(
    id: &TaskId,
    tasks: &[Entry],
    results: &[ResultEntry],
    proof_ok: impl Fn(&NodeId, &TaskId, &str, &str) -> bool,
) -> Option<TaskView> {
    let mut refused = Vec::new();
    let tasks = ordered(tasks, |task| task.id == *id, &mut refused);
    let results = ordered(results, |result| result.task_id == *id, &mut refused);

    let authority = Authority::of(id, &tasks, &proof_ok)?;
    let (tasks, late) = authority.split_at_terminal(tasks);
    refused.extend(late.into_iter().map(|entry| refuse(entry, Refusal::Settled)));

    let mut bids = Bids::of(&tasks, &results, &authority);
    let mut grants = Grants::of(&tasks, &authority, &bids, &mut refused);
    grants.mark_running_and_over(&tasks, &authority, &mut bids, &mut refused);
    let results = Results::of(&results, &mut grants, &bids, &authority, &mut refused);
    Some(outcome::view(&authority, &tasks, grants, &bids, &results, refused))
}

/// Sorts entries, oldest first, and leaves out repetitions and what is about another task.
fn ordered<'a, T>(
    entries: &'a [Written<T>],
    is_about: impl Fn(&T) -> bool,
    refused: &mut Vec<Refused>,
) -> Vec<&'a Written<T>> {
    let mut sorted: Vec<_> = entries.iter().collect();
    sorted.sort_unstable_by_key(|entry| (entry.order, &entry.hash));
    let mut seen = HashSet::with_capacity(sorted.len());
    sorted.retain(|entry| seen.insert(entry.hash.as_str()));
    let (about, others): (Vec<_>, Vec<_>) = sorted.into_iter().partition(|entry| is_about(&entry.value));
    refused.extend(others.into_iter().map(|entry| refuse(entry, Refusal::OtherTask)));
    about
}

fn refuse<T>(entry: &Written<T>, refusal: Refusal) -> Refused {
    Refused { hash: entry.hash.clone(), refusal }
}

fn has_status(status: TaskStatus) -> impl Fn(&&Entry) -> bool + Copy {
    move |entry| entry.value.status == status
}

#[cfg(test)]
mod tests;
