use std::collections::BTreeMap;
use std::sync::Arc;

use crate::tasks::{AttemptFailure, Epoch, TaskDocument, TaskStatus};

use super::authority::Authority;
use super::bids::{Bids, NO_REASON};
use super::grants::{Grants, Held};
use super::{Bid, Entry, Grant, Refusal, Refused, ResultEntry, TaskView, ValidResult, has_status, refuse};

/// A result that fits its grant.
struct Fitting<'a> {
    entry: &'a ResultEntry,
    /// The hash of the grant.
    hash: String,
    /// The epoch of the grant.
    epoch: Epoch,
}

/// The results that fit something.
pub(super) struct Results<'a> {
    /// Oldest first.
    fitting: Vec<Fitting<'a>>,
    /// Answers of workers that know no grants, and to whom none was given, oldest first.
    of_bidders: Vec<&'a ResultEntry>,
    /// All, since the requester may name one by its hash.
    all: Vec<&'a ResultEntry>,
}

impl<'a> Results<'a> {
    /// Finds the grant of each result, and what failures say of their grants.
    pub(super) fn of(
        results: &[&'a ResultEntry],
        grants: &mut Grants,
        bids: &Bids,
        authority: &Authority<'_>,
        refused: &mut Vec<Refused>,
    ) -> Self {
        let mut fitting = Vec::with_capacity(results.len());
        let mut of_bidders = Vec::new();
        for entry in results {
            let held = match &entry.value.grant {
                Some(hash) => named(grants, hash, entry, authority),
                None => granted_to(grants, entry).ok_or(Refusal::NoGrant),
            };
            match held {
                // What bidders' errors end was said with their claims.
                Ok(_) if entry.value.grant.is_none() && entry.value.error.is_some() => {}
                Ok(held) => {
                    match &entry.value.error {
                        Some(error) => {
                            held.grant.failed.get_or_insert_with(|| error.clone());
                        }
                        None => held.has_answer = true,
                    }
                    fitting.push(Fitting { entry, hash: held.grant.hash.clone(), epoch: held.grant.epoch });
                }
                Err(Refusal::NoGrant) if is_of_bidder(entry, bids, authority) => of_bidders.push(*entry),
                Err(refusal) => refused.push(refuse(entry, refusal)),
            }
        }
        Self { fitting, of_bidders, all: results.to_vec() }
    }

    /// Returns the oldest answer that fits a grant.
    fn answer_to(&self, hash: &str) -> Option<&'a ResultEntry> {
        let fits = |fitting: &&Fitting<'_>| fitting.hash == hash && fitting.entry.value.error.is_none();
        self.fitting.iter().find(fits).map(|fitting| fitting.entry)
    }

    /// Returns the oldest answer of a worker without a grant.
    fn answer_of_bidder(&self) -> Option<&'a ResultEntry> {
        self.of_bidders.iter().find(|entry| entry.value.error.is_none()).copied()
    }

    /// Returns why the oldest attempt without a grant failed.
    fn error_of_bidder(&self) -> Option<String> {
        self.of_bidders.iter().find_map(|entry| entry.value.error.clone())
    }

    fn valid(&self) -> Vec<ValidResult> {
        let valid = |fitting: &Fitting<'_>| ValidResult {
            hash: fitting.entry.hash.clone(),
            grant: fitting.hash.clone(),
            epoch: fitting.epoch,
            error: fitting.entry.value.error.clone(),
        };
        let mut all: Vec<_> = self.fitting.iter().map(valid).collect();
        all.sort_by(|a, b| b.epoch.cmp(&a.epoch).then_with(|| a.hash.cmp(&b.hash)));
        all
    }
}

fn named<'g>(
    grants: &'g mut Grants,
    hash: &str,
    entry: &ResultEntry,
    authority: &Authority<'_>,
) -> Result<&'g mut Held, Refusal> {
    let held = grants.by_hash(hash).ok_or(Refusal::NoGrant)?;
    authority.is_result_of(&held.grant.worker, entry)?;
    Ok(held)
}

/// Returns the newest grant that honours a claim of a result's writer.
fn granted_to<'g>(grants: &'g mut Grants, entry: &ResultEntry) -> Option<&'g mut Held> {
    let is_writers = |held: &&mut Held| held.bid.is_some() && held.grant.worker.is_identity(&entry.writer);
    grants.held.iter_mut().rev().find(is_writers)
}

/// Returns whether a result without a grant counts by itself, since nobody gives grants for the task.
fn is_of_bidder(entry: &ResultEntry, bids: &Bids, authority: &Authority<'_>) -> bool {
    let by_known = bids.has(&entry.writer) || entry.writer == authority.requester.identity;
    !authority.requester.proven && entry.value.grant.is_none() && by_known
}

/// Puts the view together.
pub(super) fn view(
    authority: &Authority<'_>,
    tasks: &[&Entry],
    grants: Grants,
    bids: &Bids,
    results: &Results<'_>,
    mut refused: Vec<Refused>,
) -> TaskView {
    let task = authority.task();
    let failures = failures(authority, tasks, &grants);
    let live = grants.live();
    let cancelled = tasks.iter().copied().filter(has_status(TaskStatus::Cancelled));
    let is_wished = cancelled.into_iter().any(|entry| !authority.is_requesters(entry));

    let standing = match authority.terminal {
        Some(terminal) => settled(terminal, &grants, results),
        None => open(&task, live, bids, results, is_wished, authority.requester.proven),
    };
    let Standing { status, grant, result, error } = standing;
    let accepted = result.map(|entry| entry.hash.as_str());
    let live_hash = grant.as_ref().map(|grant| grant.hash.as_str());
    for Fitting { entry, hash, .. } in &results.fitting {
        let counts = accepted == Some(entry.hash.as_str()) || live_hash == Some(hash.as_str());
        if !counts {
            refused.push(refuse(entry, Refusal::Superseded));
        }
    }
    let ended = authority.terminal.and_then(|terminal| terminal.value.completed_at);
    TaskView {
        status,
        settled: authority.terminal.is_some(),
        cancelling: is_wished && authority.terminal.is_none(),
        highest_epoch: grants.highest_epoch(),
        released: grants.released,
        failures,
        bids: bids.open().into_iter().map(|claim| claim.bid.clone()).collect::<Vec<Bid>>(),
        result: result.map(|entry| Arc::clone(&entry.value)),
        result_hash: result.map(|entry| entry.hash.clone()),
        results: results.valid(),
        completed_at: ended.or_else(|| result.map(|entry| entry.value.completed_at)),
        error,
        refused,
        grants: grants.held.into_iter().map(|held| held.grant).collect(),
        grant,
        requester: authority.requester.clone(),
        origin: authority.first.order,
        task,
    }
}

/// Where a task stands.
struct Standing<'a> {
    status: TaskStatus,
    grant: Option<Grant>,
    result: Option<&'a ResultEntry>,
    error: Option<String>,
}

/// What the requester has decided.
fn settled<'a>(terminal: &Entry, grants: &Grants, results: &Results<'a>) -> Standing<'a> {
    let document = &terminal.value;
    let by_hash = |hash: &String| grants.held.iter().find(|held| held.grant.hash == *hash);
    let grant = document.grant.as_ref().and_then(by_hash);
    // An entry that the requester names is its word; one that it does not name has to fit.
    let result = match (&document.result, &document.grant) {
        (Some(hash), _) => results.all.iter().find(|entry| entry.hash == *hash).copied(),
        (None, Some(grant)) => results.answer_to(grant),
        (None, None) => {
            let live = grants.live().and_then(|held| results.answer_to(&held.grant.hash));
            live.or_else(|| results.answer_of_bidder())
        }
    };
    Standing {
        status: document.status,
        grant: grant.map(|held| held.grant.clone()),
        result: result.filter(|_| document.status == TaskStatus::Completed),
        error: match document.status {
            TaskStatus::Failed => document.error.clone().or_else(|| results.error_of_bidder()),
            _ => document.error.clone(),
        },
    }
}

/// Where a task stands as long as the requester has not decided.
fn open<'a>(
    task: &TaskDocument,
    live: Option<&Held>,
    bids: &Bids,
    results: &Results<'a>,
    is_wished: bool,
    is_proven: bool,
) -> Standing<'a> {
    let grant = live.map(|held| held.grant.clone());
    let answer = grant.as_ref().and_then(|grant| results.answer_to(&grant.hash));
    let answer = answer.or_else(|| results.answer_of_bidder());
    if answer.is_some() {
        return Standing { status: TaskStatus::Completed, grant, result: answer, error: None };
    }
    let (status, error) = match &grant {
        // Nobody settles such a task.
        _ if is_wished && !is_proven => (TaskStatus::Cancelled, None),
        Some(Grant { failed: Some(reason), attempt, .. }) if *attempt >= task.max_attempts() => {
            (TaskStatus::Failed, Some(reason.clone()))
        }
        Some(Grant { failed: Some(_), .. }) => (TaskStatus::Pending, None),
        Some(Grant { running: true, .. }) => (TaskStatus::Running, None),
        Some(_) => (TaskStatus::Claimed, None),
        None if is_proven => (TaskStatus::Pending, None),
        None => of_bidders(bids),
    };
    Standing { status, grant, result: None, error }
}

/// Where a task stands for which nobody gives grants: as far as the bidder that came first.
fn of_bidders(bids: &Bids) -> (TaskStatus, Option<String>) {
    match (bids.open().first(), bids.last_failure()) {
        (Some(claim), _) if claim.bid.running => (TaskStatus::Running, None),
        (Some(_), _) => (TaskStatus::Claimed, None),
        // Such peers try nothing twice.
        (None, Some(reason)) => (TaskStatus::Failed, Some(reason.to_owned())),
        (None, None) => (TaskStatus::Pending, None),
    }
}

/// Collects how attempts ended: by the requester's word first, then by that of those who claimed for themselves, then by the results.
fn failures(authority: &Authority<'_>, tasks: &[&Entry], grants: &Grants) -> Vec<AttemptFailure> {
    let mut by_epoch = BTreeMap::new();
    let told = |entry: &&&Entry| entry.value.failures.is_some();
    let claimants = |entry: &&&Entry| grants.held.iter().any(|held| held.grant.hash == entry.hash);
    let requesters = tasks.iter().rev().filter(|entry| authority.is_requesters(entry));
    let others = tasks.iter().rev().filter(|entry| !authority.is_requesters(entry)).filter(claimants);
    for entry in requesters.chain(others).filter(told) {
        for failure in entry.value.failures.iter().flatten() {
            by_epoch.entry(failure.epoch).or_insert_with(|| failure.clone());
        }
    }
    for Held { grant, .. } in &grants.held {
        if let Some(reason) = &grant.failed {
            by_epoch.entry(grant.epoch).or_insert_with(|| AttemptFailure {
                epoch: grant.epoch,
                worker_peer_id: grant.worker.peer().to_owned(),
                reason: if reason.is_empty() { NO_REASON.to_owned() } else { reason.clone() },
                at: grant.claimed_at.unwrap_or_default(),
            });
        }
    }
    by_epoch.into_values().collect()
}
