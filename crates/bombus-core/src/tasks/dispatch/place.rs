//! The requester's part until a worker has the task.

use std::time::Duration;

use super::line::Urgency;
use super::owned::{Began, End, Live, Owned, Phase};
use super::timers::Timer;
use super::{AnswerFacts, Candidate, Decline, Dispatcher, GrantFacts, Needs, Output, TaskFacts};
use crate::identity::NodeId;
use crate::tasks::{Epoch, GrantedBy, TaskId, TaskStatus, Worker};

impl Dispatcher {
    /// Takes an own task of which nothing is written yet.
    pub(super) fn submit(&mut self, facts: TaskFacts) {
        let task = facts.task.clone();
        if self.owned.contains_key(&task) || self.watched.contains_key(&task) {
            // Who writes it finds out that it is known.
            return self.outputs.push(Output::Submit { task });
        }
        self.unwritten.insert(task);
        self.owned_changed(facts);
    }

    /// Has written what found no place at once: PENDING.
    pub(super) fn write_unplaced(&mut self) {
        let is_placed =
            |task: &&TaskId| self.owned.get(*task).is_some_and(|owned| matches!(owned.phase, Phase::Ranking));
        let unplaced: Vec<TaskId> = self.unwritten.iter().filter(|task| !is_placed(task)).cloned().collect();
        for task in unplaced {
            self.write_submitted(&task);
        }
    }

    /// Has a task written as it was submitted, where that is not done.
    pub(super) fn write_submitted(&mut self, task: &TaskId) {
        if self.unwritten.remove(task) {
            self.outputs.push(Output::Submit { task: task.clone() });
        }
    }

    /// Takes what is known of an own task.
    pub(super) fn owned_changed(&mut self, facts: TaskFacts) {
        let task = facts.task.clone();
        if let Some(owned) = self.owned.get_mut(&task) {
            owned.attempts = owned.attempts.max(facts.attempts);
            owned.facts = facts;
        } else {
            self.number += 1;
            let urgency = Urgency::new(self.now, facts.priority, self.config.ageing, self.number);
            let owned = Owned {
                came: self.now,
                urgency,
                phase: Phase::Held,
                attempts: facts.attempts,
                over: facts.released,
                used: Epoch::NONE,
                avoided: Default::default(),
                failed_with: Default::default(),
                fruitless: 0,
                facts,
            };
            self.owned.insert(task.clone(), owned);
        }
        self.follow(&task);
    }

    /// Does what the facts about an own task ask for.
    pub(super) fn follow(&mut self, task: &TaskId) {
        let Some(owned) = self.owned.get(task) else { return };
        let facts = &owned.facts;
        if let Phase::Settling { .. } = owned.phase {
            return;
        }
        if let Some(answer) = facts.result.clone() {
            return self.settle(task, End::completed(answer));
        }
        if facts.cancelling {
            return self.cancel_owned(task);
        }
        if facts.needs == Needs::Failed {
            return self.settle(task, End::failed("a task that it depends on did not complete", None));
        }
        if let Phase::Releasing { epoch, rest, .. } = owned.phase
            && facts.released >= epoch
        {
            self.rest(task, rest);
        }
        let Some(owned) = self.owned.get(task) else { return };
        let (followed, over) = (owned.phase.epoch(), owned.over);
        if let Some(grant) = owned.facts.grant.clone().filter(|grant| grant.epoch > over) {
            if grant.epoch > followed {
                return self.adopt(task, grant);
            }
            if let Some(reason) = grant.failed.filter(|_| grant.epoch == followed && owned.phase.live().is_some()) {
                return self.attempt_failed(task, &reason, true);
            }
        }
        self.consider(task);
    }

    /// Follows a live grant that this run of the node did not give: one from before its start, or a worker's own claim.
    fn adopt(&mut self, task: &TaskId, grant: GrantFacts) {
        self.take_back(task);
        let began = if grant.began { Began::Yes } else { Began::Maybe };
        let live = Live { epoch: grant.epoch, hash: grant.hash, worker: grant.worker, began };
        let phase = match &live.worker {
            Worker::Foreign { .. } => {
                let until = self.now + self.foreign_limit(task);
                Phase::Foreign { live, until }
            }
            // What this node ran before its start is lost.
            Worker::Node(node) if *node == self.me && self.runs_under(task, &live.hash) => Phase::Local { live },
            Worker::Node(node) if *node == self.me => Phase::Apart { live, again: Duration::MAX, give_up: self.now },
            Worker::Node(node) => {
                let wait = if self.peers.is_gone(node) { Duration::ZERO } else { self.config.lease.granted() };
                Phase::Apart { live, again: self.now, give_up: self.now + wait }
            }
        };
        self.enter(task, phase);
        if let Some(reason) = grant.failed {
            self.attempt_failed(task, &reason, true);
        }
    }

    fn foreign_limit(&self, task: &TaskId) -> Duration {
        let timeout = self.owned.get(task).and_then(|owned| owned.facts.timeout);
        timeout.unwrap_or(self.config.foreign_limit)
    }

    /// Decides what becomes of a task that nobody has.
    pub(super) fn consider(&mut self, task: &TaskId) {
        let Some(owned) = self.owned.get(task) else { return };
        let resting = match owned.phase {
            Phase::Held | Phase::Bidding { .. } | Phase::InLine => false,
            Phase::Resting { until } => self.now < until,
            _ => return,
        };
        if owned.attempts >= owned.attempts_max(self.config.lease.max_attempts) {
            return self.settle(task, End::failed("no attempt is left", None));
        }
        let open = self.gate.is_open() || (owned.facts.fresh && self.gate.lets_through(owned.came));
        let bids_until = owned.came + Duration::from_millis(self.config.lease.bid_ms);
        let phase = if self.draining || !open || owned.facts.needs == Needs::Waiting {
            Phase::Held
        } else if let Some(bidder) = owned.facts.bid.clone().filter(|_| self.config.foreign_workers) {
            return self.grant(task, bidder);
        } else if resting {
            return;
        } else if self.config.foreign_workers && owned.facts.plain && self.now < bids_until {
            Phase::Bidding { until: bids_until }
        } else {
            Phase::InLine
        };
        self.enter(task, phase);
    }

    /// Looks at all tasks that nobody has, since the gate or something else has changed for all of them.
    pub(super) fn consider_all(&mut self) {
        let waiting = self.owned.iter().filter(|(_, owned)| {
            matches!(owned.phase, Phase::Held | Phase::InLine | Phase::Bidding { .. } | Phase::Resting { .. })
        });
        let tasks: Vec<TaskId> = waiting.map(|(task, _)| task.clone()).collect();
        for task in tasks {
            self.consider(&task);
        }
    }

    /// Has the most urgent tasks ranked, as many as may be placed at a time.
    pub(super) fn place(&mut self) {
        while self.placing < self.config.placing as usize && !self.draining {
            let Some(task) = self.line.first(self.now) else { break };
            self.enter(&task, Phase::Ranking);
            self.outputs.push(Output::Rank { task });
        }
        let opening = self.line.next_opening(self.now);
        self.timers.set(Timer::Line, opening);
    }

    pub(super) fn ranked_owned(&mut self, task: &TaskId, candidates: &[Candidate]) {
        let Some(owned) = self.owned.get_mut(task) else { return };
        if !matches!(owned.phase, Phase::Ranking) {
            return;
        }
        let class = owned.facts.class.clone();
        if candidates.is_empty() {
            self.enter(task, Phase::InLine);
            return self.close_class(&class);
        }
        let mut willing: Vec<&Candidate> =
            candidates.iter().filter(|candidate| !owned.avoided.contains(&candidate.node)).collect();
        if willing.is_empty() {
            owned.avoided.clear();
            owned.fruitless = owned.fruitless.saturating_add(1);
            let pause = pause(&self.config, owned.fruitless - 1);
            let until = self.now + self.random_around(pause);
            return self.enter(task, Phase::Resting { until });
        }
        willing.sort_by_key(|candidate| owned.failed_with.contains(&candidate.node));
        match self.with_room(&willing) {
            Some(node) => {
                self.line.found(&class);
                self.grant(task, Worker::Node(node));
            }
            None => {
                self.enter(task, Phase::InLine);
                self.close_class(&class);
            }
        }
    }

    fn close_class(&mut self, class: &str) {
        let config = self.config.clone();
        self.line.close(class, self.now, |fruitless| pause(&config, fruitless));
    }

    /// Chooses the first who can begin at once, else the one with the shortest line that still has room.
    fn with_room(&self, willing: &[&Candidate]) -> Option<NodeId> {
        let taken = |candidate: &Candidate| self.taken.get(&candidate.node).copied().unwrap_or(0);
        let open =
            willing.iter().filter(|candidate| self.full.get(&candidate.node).is_none_or(|until| *until <= self.now));
        let open: Vec<&&Candidate> = open.collect();
        let is_free = |candidate: &&&&Candidate| match candidate.node == self.me {
            // What others have given this node to do counts too.
            true => self.has_free_slot(self.granting_here),
            false => taken(candidate) < candidate.slots,
        };
        if let Some(free) = open.iter().find(is_free) {
            return Some(free.node.clone());
        }
        let roomy = open.iter().filter(|candidate| candidate.node != self.me);
        let roomy = roomy.filter(|candidate| taken(candidate) < candidate.slots.saturating_add(candidate.queue));
        let line = |candidate: &&&&Candidate| {
            let waiting = taken(candidate).saturating_sub(candidate.slots);
            u64::from(waiting) * 1_000 / u64::from(candidate.slots.max(1))
        };
        roomy.min_by_key(line).map(|candidate| candidate.node.clone())
    }

    fn grant(&mut self, task: &TaskId, worker: Worker) {
        let Some(owned) = self.owned.get_mut(task) else { return };
        let epoch = owned.facts.highest.max(owned.facts.released).max(owned.over).max(owned.used).next();
        owned.used = epoch;
        let attempt = owned.attempts.saturating_add(1);
        // Where nothing is written yet, this is how it is submitted.
        self.unwritten.remove(task);
        self.enter(task, Phase::Granting { epoch, worker: worker.clone() });
        let task = task.clone();
        self.outputs.push(Output::Grant { task, epoch, worker, by: GrantedBy::Requester, attempt });
    }

    pub(super) fn stored_owned(&mut self, task: &TaskId, epoch: Epoch, grant: String) {
        let Some(owned) = self.owned.get(task) else { return };
        let Phase::Granting { epoch: granting, worker } = &owned.phase else { return };
        if *granting != epoch {
            return;
        }
        let live = Live { epoch, hash: grant, worker: worker.clone(), began: Began::No };
        match &live.worker {
            Worker::Foreign { .. } => {
                let until = self.now + self.foreign_limit(task);
                self.enter(task, Phase::Foreign { live, until });
            }
            Worker::Node(node) if *node == self.me => {
                let (priority, timeout) = (owned.facts.priority, owned.facts.timeout);
                let hash = live.hash.clone();
                self.enter(task, Phase::Local { live });
                self.begin_own(task, epoch, hash, priority, timeout);
            }
            Worker::Node(_) => self.offer(task, live, None),
        }
    }

    /// Offers a grant; one that may have been offered before until `give_up`.
    pub(super) fn offer(&mut self, task: &TaskId, live: Live, give_up: Option<Duration>) {
        let Worker::Node(worker) = live.worker.clone() else { return };
        let (epoch, grant) = (live.epoch, live.hash.clone());
        let until = self.now + self.config.offer_limit;
        self.enter(task, Phase::Offering { live, until, give_up });
        let task = task.clone();
        self.outputs.push(Output::Offer { task, epoch, worker, grant, resume: give_up.is_some() });
    }

    pub(super) fn declined(&mut self, task: &TaskId, epoch: Epoch, reason: Decline) {
        let Some(owned) = self.owned.get_mut(task) else { return };
        let Phase::Offering { live, give_up, .. } = &owned.phase else { return };
        if live.epoch != epoch {
            return;
        }
        let (live, node) = (live.clone(), live.worker.node().cloned());
        let Some(give_up) = *give_up else {
            if let Some(node) = node {
                match reason {
                    Decline::Busy => {
                        let until = self.now + self.config.retry;
                        self.full.insert(node, until);
                    }
                    _ => {
                        owned.avoided.insert(node);
                    }
                }
            }
            return self.release(task, None, Duration::ZERO);
        };
        match reason {
            Decline::Unreachable => {
                let again = self.now + self.config.retry;
                self.enter(task, Phase::Apart { live, again, give_up });
            }
            Decline::Lost { began: true } => self.attempt_failed(task, &reason.to_string(), true),
            _ if live.began == Began::Yes => self.attempt_failed(task, "its worker no longer runs it", true),
            _ => self.release(task, None, Duration::ZERO),
        }
    }
}

/// Returns how long to wait before the next try, after so many that were in vain.
fn pause(config: &super::DispatchConfig, fruitless: u32) -> Duration {
    config.retry.saturating_mul(1_u32.checked_shl(fruitless).unwrap_or(u32::MAX)).min(config.retry_max)
}

impl End {
    pub(super) fn completed(answer: AnswerFacts) -> Self {
        Self { status: TaskStatus::Completed, answer: Some(answer), failure: None, error: None }
    }

    pub(super) fn failed(error: &str, failure: Option<super::Failure>) -> Self {
        Self { status: TaskStatus::Failed, answer: None, failure, error: Some(error.to_owned()) }
    }

    pub(super) fn cancelled() -> Self {
        Self { status: TaskStatus::Cancelled, answer: None, failure: None, error: None }
    }
}
