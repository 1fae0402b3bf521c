use std::collections::HashMap;

use crate::tasks::TaskStatus;

use super::authority::Authority;
use super::{Bid, Entry, Order, ResultEntry, has_status};

/// What is said of an attempt that failed without a reason.
pub(super) const NO_REASON: &str = "the worker gave no reason";

/// A claim of a worker that knows no grants.
pub(super) struct Claim {
    order: Order,
    pub(super) bid: Bid,
    /// How it came to nothing.
    end: Option<End>,
    /// Whether the requester has granted it.
    pub(super) is_honoured: bool,
}

/// How a claim came to nothing.
enum End {
    /// The worker had no result, for this reason.
    Failed(String),
    /// Worker or requester put the task back.
    Back(&'static str),
}

impl Claim {
    /// Returns why it came to nothing.
    pub(super) fn failed(&self) -> Option<&str> {
        match self.end.as_ref()? {
            End::Failed(reason) => Some(reason),
            End::Back(reason) => Some(reason),
        }
    }

    /// Such peers tell their reasons in results, if at all.
    fn fail(&mut self, reason: Option<&String>) {
        match (&mut self.end, reason) {
            (end @ None, _) => *end = Some(End::Failed(reason.cloned().unwrap_or_else(|| NO_REASON.to_owned()))),
            (Some(End::Failed(known)), Some(reason)) if known == NO_REASON => known.clone_from(reason),
            _ => {}
        }
    }
}

/// All such claims, oldest first.
#[derive(Default)]
pub(super) struct Bids {
    pub(super) claims: Vec<Claim>,
    /// Where the claims of each writer stand, oldest first.
    by_writer: HashMap<String, Vec<usize>>,
}

impl Bids {
    pub(super) fn of(tasks: &[&Entry], results: &[&ResultEntry], authority: &Authority<'_>) -> Self {
        let mut bids = Self::default();
        for entry in tasks.iter().copied().filter(has_status(TaskStatus::Claimed)) {
            // A requester that gives grants has no need to bid.
            let may_bid = !(authority.requester.proven && authority.is_requesters(entry));
            if entry.value.epoch.is_none() && may_bid {
                bids.push(entry);
            }
        }
        if !bids.claims.is_empty() {
            bids.note_what_was_said(tasks, authority);
            bids.note_errors(results);
            bids.note_requests_again(tasks, authority);
        }
        bids
    }

    fn push(&mut self, entry: &Entry) {
        self.by_writer.entry(entry.writer.clone()).or_default().push(self.claims.len());
        let bid = Bid {
            hash: entry.hash.clone(),
            writer: entry.writer.clone(),
            worker: entry.value.worker_peer_id.clone().unwrap_or_default(),
            claimed_at: entry.value.claimed_at,
            running: false,
        };
        self.claims.push(Claim { order: entry.order, bid, end: None, is_honoured: false });
    }

    /// Returns the newest claim that somebody wrote before a place in the order.
    pub(super) fn before(&self, writer: &str, order: Order) -> Option<usize> {
        let own = self.by_writer.get(writer)?;
        let earlier = own.partition_point(|index| self.claims[*index].order < order);
        earlier.checked_sub(1).map(|last| own[last])
    }

    /// Returns whether somebody claimed.
    pub(super) fn has(&self, writer: &str) -> bool {
        self.by_writer.contains_key(writer)
    }

    /// Takes from other documents of bidders how far they are.
    fn note_what_was_said(&mut self, tasks: &[&Entry], authority: &Authority<'_>) {
        for entry in tasks {
            let Some(index) = self.before(&entry.writer, entry.order) else { continue };
            let claim = &mut self.claims[index];
            match entry.value.status {
                TaskStatus::Running => claim.bid.running = true,
                TaskStatus::Failed => claim.fail(entry.value.error.as_ref()),
                TaskStatus::Pending if !authority.is_requesters(entry) => {
                    claim.end.get_or_insert(End::Back("the worker gave it back"));
                }
                _ => {}
            }
        }
    }

    /// Takes errors from results. The two databases have no common order, so that a bidder's errors belong to its claims one by one.
    fn note_errors(&mut self, results: &[&ResultEntry]) {
        let mut taken: HashMap<&str, usize> = HashMap::new();
        for entry in results.iter().filter(|entry| entry.value.grant.is_none() && entry.value.error.is_some()) {
            let Some(own) = self.by_writer.get(&entry.writer) else { continue };
            let count = taken.entry(&entry.writer).or_default();
            if let Some(index) = own.get(*count) {
                *count += 1;
                self.claims[*index].fail(entry.value.error.as_ref());
            }
        }
    }

    /// A requester that knows no grants puts its task back by writing PENDING again: what was claimed before is over.
    fn note_requests_again(&mut self, tasks: &[&Entry], authority: &Authority<'_>) {
        if let Some(again) = last_request(tasks, authority) {
            for claim in self.claims.iter_mut().filter(|claim| claim.order < again) {
                claim.end = Some(End::Back("the requester put it back"));
            }
        }
    }

    /// Returns the claims that wait for a grant: the newest of each writer, oldest first.
    pub(super) fn open(&self) -> Vec<&Claim> {
        let mut newest: Vec<usize> = self.by_writer.values().filter_map(|own| own.last()).copied().collect();
        newest.sort_unstable();
        let claims = newest.into_iter().map(|index| &self.claims[index]);
        claims.filter(|claim| claim.end.is_none() && !claim.is_honoured).collect()
    }

    /// Returns why the newest claim failed, unless the task was put back.
    pub(super) fn last_failure(&self) -> Option<&str> {
        match self.claims.last()?.end.as_ref()? {
            End::Failed(reason) => Some(reason),
            End::Back(_) => None,
        }
    }
}

/// Returns where a requester that knows no grants wrote PENDING again, after the first time.
pub(super) fn last_request(tasks: &[&Entry], authority: &Authority<'_>) -> Option<Order> {
    if authority.requester.proven {
        return None;
    }
    let is_again = |entry: &&Entry| authority.is_requesters(entry) && entry.order > authority.first.order;
    let mut again = tasks.iter().copied().filter(has_status(TaskStatus::Pending)).filter(is_again);
    again.next_back().map(|entry| entry.order)
}
