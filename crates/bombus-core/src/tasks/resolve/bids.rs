use crate::tasks::TaskStatus;

use super::authority::Authority;
use super::{Bid, Entry, Order, ResultEntry, has_status};

/// What is said of an attempt whose worker has put the task back.
const GIVEN_BACK: &str = "the worker gave it back";

/// What is said of an attempt that failed without a reason.
pub(super) const NO_REASON: &str = "the worker gave no reason";

/// A claim of a worker that knows no grants.
pub(super) struct Claim {
    pub(super) order: Order,
    pub(super) bid: Bid,
    /// Why it came to nothing.
    pub(super) failed: Option<String>,
    /// Whether the requester has granted it.
    pub(super) is_honoured: bool,
}

/// All such claims, oldest first.
pub(super) struct Bids(pub(super) Vec<Claim>);

impl Bids {
    pub(super) fn of(tasks: &[&Entry], results: &[&ResultEntry], authority: &Authority<'_>) -> Self {
        let without_epoch = |entry: &&&Entry| entry.value.epoch.is_none();
        // A node that knows grants bids for none, and the requester of such a node has no need to.
        let may_bid = |entry: &&&Entry| !(authority.requester.proven && authority.is_requesters(entry));
        let claimed = tasks.iter().filter(has_status(TaskStatus::Claimed)).filter(without_epoch).filter(may_bid);
        let claim = |entry: &&Entry| Claim {
            order: entry.order,
            bid: Bid {
                hash: entry.hash.clone(),
                writer: entry.writer.clone(),
                worker: entry.value.worker_peer_id.clone().unwrap_or_default(),
                claimed_at: entry.value.claimed_at,
                running: false,
            },
            failed: None,
            is_honoured: false,
        };
        let mut bids = Self(claimed.map(claim).collect());
        if bids.0.is_empty() {
            return bids;
        }
        bids.note_what_was_said(tasks, authority);
        bids.note_errors(results);
        bids.note_requests_again(tasks, authority);
        bids
    }

    /// Returns the newest claim that somebody wrote before a place in the order.
    pub(super) fn before(&self, writer: &str, order: Order) -> Option<usize> {
        self.0.iter().rposition(|claim| claim.bid.writer == writer && claim.order < order)
    }

    /// Returns whether somebody claimed.
    pub(super) fn has(&self, writer: &str) -> bool {
        self.0.iter().any(|claim| claim.bid.writer == writer)
    }

    /// Takes from other documents of bidders how far they are.
    fn note_what_was_said(&mut self, tasks: &[&Entry], authority: &Authority<'_>) {
        for entry in tasks {
            let Some(index) = self.before(&entry.writer, entry.order) else { continue };
            let claim = &mut self.0[index];
            match entry.value.status {
                TaskStatus::Running => claim.bid.running = true,
                TaskStatus::Failed => {
                    let reason = entry.value.error.clone();
                    claim.failed.get_or_insert_with(|| reason.unwrap_or_else(|| NO_REASON.to_owned()));
                }
                TaskStatus::Pending if !authority.is_requesters(entry) => {
                    claim.failed.get_or_insert_with(|| GIVEN_BACK.to_owned());
                }
                _ => {}
            }
        }
    }

    /// Takes errors from results. The two databases have no common order, so that a bidder's errors belong to its claims one by one.
    fn note_errors(&mut self, results: &[&ResultEntry]) {
        let errors = results.iter().filter(|entry| entry.value.grant.is_none());
        let mut taken = vec![false; self.0.len()];
        for (entry, error) in errors.filter_map(|entry| Some((entry, entry.value.error.as_ref()?))) {
            let mut claims = self.0.iter_mut().enumerate();
            let next = claims.find(|(index, claim)| claim.bid.writer == entry.writer && !taken[*index]);
            if let Some((index, claim)) = next {
                taken[index] = true;
                claim.failed.get_or_insert_with(|| error.clone());
            }
        }
    }

    /// A requester that knows no grants puts its task back by writing PENDING again: what was claimed before is over.
    fn note_requests_again(&mut self, tasks: &[&Entry], authority: &Authority<'_>) {
        if let Some(again) = last_request(tasks, authority) {
            for claim in self.0.iter_mut().filter(|claim| claim.order < again) {
                claim.failed.get_or_insert_with(|| "the requester put it back".to_owned());
            }
        }
    }

    /// Returns the claims that wait for a grant: the newest of each writer, oldest first.
    pub(super) fn open(&self) -> Vec<&Claim> {
        let is_newest = |claim: &Claim| {
            !self.0.iter().any(|other| other.bid.writer == claim.bid.writer && other.order > claim.order)
        };
        self.0.iter().filter(|claim| claim.failed.is_none() && !claim.is_honoured && is_newest(claim)).collect()
    }
}

/// Returns where a requester that knows no grants wrote PENDING again, after the first time.
pub(super) fn last_request(tasks: &[&Entry], authority: &Authority<'_>) -> Option<Order> {
    let is_again = |entry: &&&Entry| {
        authority.is_requesters(entry) && entry.order > authority.first.order && entry.value.released.is_none()
    };
    let mut again = tasks.iter().filter(has_status(TaskStatus::Pending)).filter(is_again);
    if authority.requester.proven { None } else { again.next_back().map(|entry| entry.order) }
}
