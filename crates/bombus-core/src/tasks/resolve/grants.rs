use crate::identity::NodeId;
use crate::tasks::{Epoch, GrantedBy, TaskDocument, TaskStatus};

use super::authority::Authority;
use super::bids::{Bids, last_request};
use super::{Entry, Grant, Order, Refusal, Refused, Worker, has_status, refuse};

/// A grant that counts, with what decides whether it is live.
pub(super) struct Held {
    pub(super) order: Order,
    pub(super) grant: Grant,
    /// The claim of a worker without Bombus that it honours.
    pub(super) bid: Option<usize>,
    /// Whether the requester has ended it.
    pub(super) is_over: bool,
    /// Whether its worker has ended it.
    pub(super) is_given_back: bool,
    /// Whether there is an answer that fits it.
    pub(super) has_answer: bool,
}

/// All grants that count, lowest epoch first.
pub(super) struct Grants {
    pub(super) held: Vec<Held>,
    /// The requester's word for all grants up to an epoch.
    pub(super) released: Epoch,
}

impl Grants {
    pub(super) fn of(tasks: &[&Entry], authority: &Authority<'_>, bids: &Bids, refused: &mut Vec<Refused>) -> Self {
        let pending = tasks.iter().copied().filter(has_status(TaskStatus::Pending));
        let released = pending.filter(|entry| authority.is_requesters(entry)).filter_map(|entry| entry.value.released);
        let released = released.max().unwrap_or_default();

        let mut claimed: Vec<(&Entry, Epoch)> = tasks
            .iter()
            .copied()
            .filter(has_status(TaskStatus::Claimed))
            .filter_map(|entry| Some((entry, entry.value.epoch?)))
            .collect();
        // The requester's first among equals, so that a claim may follow its grant.
        claimed.sort_by_key(|(entry, epoch)| (*epoch, !authority.is_requesters(entry), entry.order));

        let mut held = Vec::with_capacity(claimed.len());
        let mut reach = released;
        for (entry, epoch) in claimed {
            let follows = authority.is_requesters(entry) || epoch <= reach.next();
            let worker = if epoch == Epoch::NONE || !follows { Err(Refusal::Epoch) } else { worker(entry, authority) };
            match worker {
                Ok((worker, by)) => {
                    reach = reach.max(epoch);
                    held.push(Held::new(entry, epoch, worker, by, bids));
                }
                Err(refusal) => refused.push(refuse(entry, refusal)),
            }
        }
        // A requester that knows no grants ends those that there are by writing PENDING again.
        let again = last_request(tasks, authority);
        let ended = held.iter().filter(|held| again.is_some_and(|again| held.order < again));
        let released = ended.map(|held| held.grant.epoch).max().unwrap_or_default().max(released);
        Self { held, released }
    }

    /// Returns the highest epoch that was used.
    pub(super) fn highest_epoch(&self) -> Epoch {
        self.held.last().map_or(self.released, |held| held.grant.epoch.max(self.released))
    }

    /// Takes from other documents which grants are over, and which workers have begun.
    pub(super) fn mark_running_and_over(
        &mut self,
        tasks: &[&Entry],
        authority: &Authority<'_>,
        bids: &mut Bids,
        refused: &mut Vec<Refused>,
    ) {
        for held in &mut self.held {
            held.is_over = held.grant.epoch <= self.released;
            if let Some(index) = held.bid {
                let claim = &mut bids.claims[index];
                claim.is_honoured = true;
                held.grant.running = claim.bid.running;
                held.grant.failed = claim.failed().map(str::to_owned);
            }
        }
        for entry in tasks {
            let said = match entry.value.status {
                TaskStatus::Running => self.mark_running(entry, authority, bids),
                TaskStatus::Pending if !authority.is_requesters(entry) => self.mark_given_back(entry, authority, bids),
                TaskStatus::Completed | TaskStatus::Failed => self.check_end(entry, authority, bids),
                _ => Ok(()),
            };
            if let Err(refusal) = said {
                refused.push(refuse(entry, refusal));
            }
        }
    }

    fn mark_running(&mut self, entry: &Entry, authority: &Authority<'_>, bids: &Bids) -> Result<(), Refusal> {
        if bids.has(&entry.writer) {
            return Ok(());
        }
        let of_epoch = self.held.iter_mut().filter(|held| Some(held.grant.epoch) == entry.value.epoch);
        let named = |held: &&mut Held| entry.value.grant.as_ref().is_none_or(|grant| *grant == held.grant.hash);
        let mut refusal = Refusal::NoGrant;
        for held in of_epoch.filter(named) {
            match held.is_workers(entry, authority) {
                Ok(()) => {
                    held.grant.running = true;
                    return Ok(());
                }
                Err(reason) => refusal = reason,
            }
        }
        Err(refusal)
    }

    /// A worker that stops before it has a result ends its own grants, and nobody else's.
    fn mark_given_back(&mut self, entry: &Entry, authority: &Authority<'_>, bids: &Bids) -> Result<(), Refusal> {
        if bids.has(&entry.writer) {
            return Ok(());
        }
        let released = entry.value.released.unwrap_or_default();
        if entry.value.released.is_none() && authority.has_submitted(entry) {
            return Ok(());
        }
        let mut refusal = Err(authority.not_requester(entry));
        for held in self.held.iter_mut().filter(|held| held.grant.epoch <= released && held.order < entry.order) {
            if held.is_workers(entry, authority).is_ok() {
                held.is_given_back = true;
                refusal = Ok(());
            }
        }
        refusal
    }

    /// Workers may say in the tasks' database, too, that they are done: peers that know no results look there.
    fn check_end(&self, entry: &Entry, authority: &Authority<'_>, bids: &Bids) -> Result<(), Refusal> {
        let is_workers = |held: &Held| held.is_workers(entry, authority).is_ok();
        let may = authority.is_requesters(entry) || bids.has(&entry.writer) || self.held.iter().any(is_workers);
        if may { Ok(()) } else { Err(authority.not_requester(entry)) }
    }

    /// Returns the grant that is live. One that is given back leaves none: those that it superseded do not come back.
    pub(super) fn live(&self) -> Option<&Held> {
        let rank = |held: &Held| (held.grant.epoch, held.grant.by == GrantedBy::Requester, held.has_answer);
        let open = self.held.iter().filter(|held| !held.is_over);
        let first = open.max_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| b.grant.hash.cmp(&a.grant.hash)));
        first.filter(|held| !held.is_given_back)
    }

    pub(super) fn by_hash(&mut self, hash: &str) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.grant.hash == hash)
    }
}

impl Held {
    fn new(entry: &Entry, epoch: Epoch, worker: Worker, by: GrantedBy, bids: &Bids) -> Self {
        let bid = match &worker {
            Worker::Foreign { identity, .. } => bids.before(identity, entry.order),
            Worker::Node(_) => None,
        };
        let grant = Grant {
            hash: entry.hash.clone(),
            epoch,
            worker,
            by,
            attempt: entry.value.attempt.unwrap_or(1).max(1),
            writer: entry.writer.clone(),
            claimed_at: entry.value.claimed_at,
            running: false,
            failed: None,
        };
        Self { order: entry.order, grant, bid, is_over: false, is_given_back: false, has_answer: false }
    }

    fn is_workers(&self, entry: &Entry, authority: &Authority<'_>) -> Result<(), Refusal> {
        // Who claimed for itself has proved once who it is.
        if self.grant.by == GrantedBy::SelfClaim && self.grant.writer == entry.writer {
            return Ok(());
        }
        authority.is_workers(&self.grant.worker, entry)
    }
}

/// Returns to whom a CLAIMED document gives the right to run the task, and who gives it.
fn worker(entry: &Entry, authority: &Authority<'_>) -> Result<(Worker, GrantedBy), Refusal> {
    let TaskDocument { worker_peer_id, worker_identity, worker_proof, granted_by, .. } = &*entry.value;
    let peer = worker_peer_id.as_deref().ok_or(Refusal::NoWorker)?;
    if authority.is_requesters(entry) {
        let worker = match worker_identity {
            Some(identity) if worker_proof.is_none() => {
                Worker::Foreign { peer: peer.to_owned(), identity: identity.clone() }
            }
            _ => Worker::Node(NodeId::parse(peer).map_err(|_| Refusal::NoWorker)?),
        };
        return Ok((worker, GrantedBy::Requester));
    }
    if *granted_by != Some(GrantedBy::SelfClaim) {
        return Err(authority.not_requester(entry));
    }
    let node = NodeId::parse(peer).map_err(|_| Refusal::NoWorker)?;
    if !authority.proves(&node, &entry.writer, worker_identity.as_ref(), worker_proof.as_ref()) {
        return Err(Refusal::Proof);
    }
    if !authority.first.value.may_be_claimed_by(&node) {
        return Err(Refusal::NotDesignated);
    }
    Ok((Worker::Node(node), GrantedBy::SelfClaim))
}
