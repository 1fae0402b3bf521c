//! The requester's part while a worker has the task, and its end.

use std::time::Duration;

use super::owned::{Began, End, Live, Owned, Phase};
use super::timers::Timer;
use super::{Dispatcher, Failure, GrantFacts, Outcome, Output, Write};
use crate::identity::NodeId;
use crate::tasks::lease::GrantedLease;
use crate::tasks::{Epoch, GrantedBy, TaskId, Worker};

impl Dispatcher {
    /// Moves an own task on: the only place that changes its phase, so that all accounts agree with it.
    pub(super) fn enter(&mut self, task: &TaskId, phase: Phase) {
        let Some(owned) = self.owned.get_mut(task) else { return };
        let before = std::mem::replace(&mut owned.phase, phase);
        let after = &owned.phase;
        match (matches!(before, Phase::InLine), matches!(after, Phase::InLine)) {
            (false, true) => self.line.insert(&owned.facts.class, owned.urgency, task),
            (true, false) => self.line.remove(&owned.facts.class, owned.urgency, task),
            _ => {}
        }
        match (matches!(before, Phase::Ranking), matches!(after, Phase::Ranking)) {
            (false, true) => self.line.looks(&owned.facts.class),
            (true, false) => self.line.looked(&owned.facts.class),
            _ => {}
        }
        self.placing += usize::from(after.is_placing());
        self.placing -= usize::from(before.is_placing());
        let here = |phase: &Phase| matches!(phase, Phase::Granting { worker, .. } if worker.node() == Some(&self.me));
        self.granting_here += u32::from(here(after));
        self.granting_here -= u32::from(here(&before));
        let due = match after {
            Phase::Ranking if self.unwritten.contains(task) => Some(self.now + self.config.submit_limit),
            after => after.due(),
        };
        if before.node() != after.node() {
            if let Some(node) = after.node() {
                *self.taken.entry(node.clone()).or_default() += 1;
            }
            if let Some(node) = before.node() {
                self.gave_room(&node.clone());
            }
        }
        self.timers.set(Timer::Owned(task.clone()), due);
    }

    /// Notes that one task less takes the room of a node.
    fn gave_room(&mut self, node: &NodeId) {
        if let Some(count) = self.taken.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                self.taken.remove(node);
            }
        }
        self.full.remove(node);
        self.line.open_all();
    }

    /// Forgets an own task, which is settled.
    pub(super) fn forget_owned(&mut self, task: &TaskId) {
        self.take_back(task);
        self.enter(task, Phase::Held);
        self.owned.remove(task);
        // Whoever submits it is told by who writes it that it is known.
        self.write_submitted(task);
    }

    pub(super) fn accepted(&mut self, task: &TaskId, epoch: Epoch) {
        let Some(owned) = self.owned.get_mut(task) else { return };
        if let Phase::Offering { live, .. } | Phase::Apart { live, .. } = &owned.phase
            && live.epoch == epoch
        {
            let live = live.clone();
            owned.avoided.clear();
            owned.fruitless = 0;
            self.attach(task, live);
        }
    }

    fn attach(&mut self, task: &TaskId, live: Live) {
        let lease = GrantedLease::accepted(self.now, &self.config.lease);
        self.enter(task, Phase::Attached { live, lease });
    }

    pub(super) fn began(&mut self, task: &TaskId, epoch: Epoch) {
        let live = self.owned.get_mut(task).and_then(|owned| owned.phase.live_mut());
        if let Some(live) = live.filter(|live| live.epoch == epoch) {
            live.began = Began::Yes;
        }
    }

    pub(super) fn renewed(&mut self, task: &TaskId, epoch: Epoch, beat: u32) {
        let Some(owned) = self.owned.get(task) else { return };
        let Some(live) = owned.phase.live().filter(|live| live.epoch == epoch).cloned() else { return };
        match owned.phase {
            Phase::Collecting { .. } => {}
            // Whoever renews a grant that is live has it, however long nothing was heard.
            _ => self.attach(task, live),
        }
        self.outputs.push(Output::Acknowledge { task: task.clone(), epoch, beat });
    }

    pub(super) fn broken(&mut self, task: &TaskId, epoch: Epoch) {
        let Some(owned) = self.owned.get(task) else { return };
        let (live, give_up) = match &owned.phase {
            Phase::Offering { live, give_up, .. } => (live, *give_up),
            Phase::Attached { live, .. } => (live, None),
            _ => return,
        };
        if live.epoch == epoch {
            let live = live.clone();
            self.lose_sight(task, live, give_up);
        }
    }

    /// Offers a grant again of which it is not known whether it runs: at once the first time.
    fn lose_sight(&mut self, task: &TaskId, live: Live, give_up: Option<Duration>) {
        let gone = live.worker.node().is_some_and(|node| self.peers.is_gone(node));
        let again = if give_up.is_some() { self.now + self.config.retry } else { self.now };
        let give_up = match give_up {
            _ if gone => self.now,
            Some(give_up) => give_up,
            None => self.now + self.config.reattach_limit,
        };
        self.enter(task, Phase::Apart { live, again, give_up });
    }

    pub(super) fn finished(&mut self, task: &TaskId, epoch: Epoch, outcome: Outcome) {
        let Some(owned) = self.owned.get_mut(task) else { return };
        let Some(live) = owned.phase.live().filter(|live| live.epoch == epoch).cloned() else { return };
        match outcome {
            Outcome::Completed => {
                let live = Live { began: Began::Yes, ..live };
                let until = self.now + self.config.lease.granted();
                self.enter(task, Phase::Collecting { live, until });
            }
            Outcome::Failed { reason, retry } => self.attempt_failed(task, &reason, retry),
            Outcome::HandedBack => {
                owned.avoided.extend(live.worker.node().cloned());
                self.release(task, None, Duration::ZERO);
            }
        }
    }

    /// Does what is due about an own task.
    pub(super) fn owned_due(&mut self, task: &TaskId) {
        let Some(owned) = self.owned.get(task) else { return };
        match owned.phase.clone() {
            Phase::Bidding { .. } | Phase::Resting { .. } => self.consider(task),
            Phase::Ranking => self.write_submitted(task),
            Phase::Offering { live, give_up, .. } => self.lose_sight(task, live, give_up),
            Phase::Attached { live, .. } | Phase::Collecting { live, .. } => self.lose_sight(task, live, None),
            Phase::Apart { live, give_up, .. } if self.now >= give_up => match self.gate.opens() {
                // What happened to it may come with what the others know.
                Some(opens) => self.enter(task, Phase::Apart { live, again: Duration::MAX, give_up: opens }),
                None => self.give_up(task, &live),
            },
            Phase::Apart { live, give_up, .. } => self.offer(task, live, Some(give_up)),
            Phase::Foreign { .. } => self.attempt_failed(task, "its worker has no answer in time", true),
            Phase::Releasing { epoch, failure, rest, .. } => self.write_release(task, epoch, failure, rest),
            Phase::Settling { end, .. } => self.write_end(task, end),
            _ => {}
        }
    }

    fn give_up(&mut self, task: &TaskId, live: &Live) {
        let mine = live.worker.node() == Some(&self.me);
        if live.began == Began::No {
            self.avoid_worker(task, live);
            self.release(task, None, Duration::ZERO);
        } else if mine {
            self.attempt_failed(task, "this node was started anew while it ran the task", true);
        } else {
            self.attempt_failed(task, "its worker was lost", true);
        }
    }

    /// Decides about those whose worker does not answer, and that had to wait for what others know.
    pub(super) fn give_up_those_that_waited(&mut self) {
        let waited = |owned: &Owned| matches!(owned.phase, Phase::Apart { again: Duration::MAX, .. });
        let tasks: Vec<TaskId> =
            self.owned.iter().filter(|(_, owned)| waited(owned)).map(|(task, _)| task.clone()).collect();
        for task in tasks {
            self.owned_due_now(&task);
        }
    }

    fn owned_due_now(&mut self, task: &TaskId) {
        if let Some(Phase::Apart { live, .. }) = self.owned.get(task).map(|owned| owned.phase.clone()) {
            self.give_up(task, &live);
        }
    }

    fn avoid_worker(&mut self, task: &TaskId, live: &Live) {
        if let (Some(owned), Some(node)) = (self.owned.get_mut(task), live.worker.node()) {
            owned.avoided.insert(node.clone());
        }
    }

    /// Notes what the failure detector's verdict means for the tasks that a node has.
    pub(super) fn worker_gone(&mut self, node: &NodeId) {
        let has = |live: &Live| live.worker.node() == Some(node);
        let lost = self.owned.iter().filter(|(_, owned)| owned.phase.live().is_some_and(has));
        let lost: Vec<(TaskId, Live)> =
            lost.filter_map(|(task, owned)| Some((task.clone(), owned.phase.live()?.clone()))).collect();
        for (task, live) in lost {
            self.enter(&task, Phase::Apart { live, again: Duration::MAX, give_up: self.now });
        }
    }

    /// Ends the attempt that is followed, by a failure that uses it up.
    pub(super) fn attempt_failed(&mut self, task: &TaskId, reason: &str, retry: bool) {
        let Some(owned) = self.owned.get_mut(task) else { return };
        let Some(live) = owned.phase.live().cloned() else { return };
        owned.attempts = owned.attempts.saturating_add(1);
        owned.over = owned.over.max(live.epoch);
        owned.failed_with.extend(live.worker.node().cloned());
        let attempts = owned.attempts;
        let is_last = attempts >= owned.attempts_max(self.config.lease.max_attempts);
        let failure = Some(Failure { epoch: live.epoch, worker: live.worker, reason: reason.to_owned() });
        if is_last || !retry {
            self.settle(task, End::failed(reason, failure));
        } else {
            let rest = self.config.lease.backoff(attempts);
            self.release(task, failure, rest);
        }
    }

    /// Ends the grant that is followed.
    pub(super) fn release(&mut self, task: &TaskId, failure: Option<Failure>, rest: Duration) {
        let Some(owned) = self.owned.get_mut(task) else { return };
        let epoch = owned.phase.epoch();
        owned.over = owned.over.max(epoch);
        self.take_back(task);
        self.write_release(task, epoch, failure, rest);
    }

    fn write_release(&mut self, task: &TaskId, epoch: Epoch, failure: Option<Failure>, rest: Duration) {
        let again = self.now + self.config.lease.granted();
        self.enter(task, Phase::Releasing { epoch, failure: failure.clone(), rest, again });
        self.outputs.push(Output::Release { task: task.clone(), epoch, failure });
    }

    /// Lets a task wait until it is placed again.
    pub(super) fn rest(&mut self, task: &TaskId, pause: Duration) {
        let until = self.now + self.random_around(pause);
        self.enter(task, Phase::Resting { until });
    }

    /// Tells who has the task that it is no longer his.
    pub(super) fn take_back(&mut self, task: &TaskId) {
        let Some(live) = self.owned.get(task).and_then(|owned| owned.phase.live()) else { return };
        match live.worker.clone() {
            Worker::Node(worker) if worker == self.me => self.drop_run(task),
            Worker::Node(worker) => {
                let (task, epoch) = (task.clone(), live.epoch);
                self.outputs.push(Output::Revoke { task, epoch, worker });
            }
            Worker::Foreign { .. } => {}
        }
    }

    pub(super) fn settle(&mut self, task: &TaskId, end: End) {
        let Some(owned) = self.owned.get(task) else { return };
        let accepted = end.answer.as_ref().map(|answer| &answer.grant);
        let accepted = owned.phase.live().is_some_and(|live| Some(&live.hash) == accepted);
        if !accepted {
            self.take_back(task);
        }
        self.write_end(task, end);
    }

    fn write_end(&mut self, task: &TaskId, end: End) {
        self.write_submitted(task);
        let again = self.now + self.config.lease.granted();
        let End { status, answer, failure, error } = end.clone();
        let (grant, result) = answer.map(|answer| (answer.grant, answer.entry)).unzip();
        self.enter(task, Phase::Settling { end, again });
        self.outputs.push(Output::Settle { task: task.clone(), status, grant, result, failure, error });
    }

    pub(super) fn cancel_owned(&mut self, task: &TaskId) {
        let Some(owned) = self.owned.get(task) else { return };
        if !matches!(owned.phase, Phase::Settling { .. }) {
            self.settle(task, End::cancelled());
        }
    }

    pub(super) fn write_failed_owned(&mut self, task: &TaskId, write: Write) {
        let Some(owned) = self.owned.get_mut(task) else { return };
        let soon = self.now + self.config.retry.max(Duration::from_secs(1));
        match (&mut owned.phase, write) {
            (Phase::Granting { epoch, .. }, Write::Grant(failed)) if *epoch == failed => {
                // It may have been written all the same, or somebody else's of that epoch stands there.
                let is_written = |grant: &&GrantFacts| grant.epoch == failed && grant.by == GrantedBy::Requester;
                if owned.facts.grant.as_ref().filter(is_written).is_some() {
                    owned.over = owned.over.max(failed);
                }
                self.enter(task, Phase::Resting { until: soon });
                self.follow(task);
            }
            (Phase::Releasing { epoch, again, .. }, Write::Release(failed)) if *epoch == failed => {
                *again = soon;
                self.timers.set(Timer::Owned(task.clone()), Some(soon));
            }
            (Phase::Settling { again, .. }, Write::Settle) => {
                *again = soon;
                self.timers.set(Timer::Owned(task.clone()), Some(soon));
            }
            _ => {}
        }
    }
}
