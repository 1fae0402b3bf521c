//! The worker's part: what it takes, runs, and publishes.

use std::time::Duration;

use super::line::Urgency;
use super::run::{Leased, Right, Run, Stage};
use super::timers::Timer;
use super::{Decline, Dispatcher, Offered, Outcome, Output, RunId, Write};
use crate::identity::NodeId;
use crate::tasks::{Epoch, TaskId};

impl Dispatcher {
    pub(super) fn offered(&mut self, offer: Offered) {
        let answer = self.judge(&offer);
        let Offered { task, requester, epoch, grant, priority, timeout, .. } = offer;
        let run = match answer {
            Verdict::Decline(reason) => {
                return self.outputs.push(Output::Decline { task, epoch, requester, reason });
            }
            Verdict::Report => return self.outputs.push(Output::Report { task, epoch, requester }),
            Verdict::Begin => None,
            Verdict::GoOn => self.runs.get(&task).filter(|run| run.stage != Stage::Queued).map(|run| run.id),
        };
        self.leave_claim(&task);
        let right = Right::Lease(Box::new(Leased::accepted(requester.clone(), self.now, &self.config.lease)));
        self.outputs.push(Output::Accept { task: task.clone(), epoch, requester, run });
        match self.runs.get_mut(&task) {
            Some(run) => {
                (run.epoch, run.grant, run.right) = (epoch, grant, right);
            }
            None => self.admit(&task, epoch, grant, right, priority, timeout),
        }
        self.run_changed(&task);
    }

    fn judge(&self, offer: &Offered) -> Verdict {
        if let Some(run) = self.runs.get(&offer.task) {
            let same = run.epoch == offer.epoch && run.grant == offer.grant;
            return match &run.stage {
                Stage::Published(_) if same => Verdict::Report,
                // The result names a grant that is over.
                Stage::Published(_) => Verdict::Decline(Decline::Busy),
                _ if run.epoch > offer.epoch => Verdict::Decline(Decline::Over),
                _ => Verdict::GoOn,
            };
        }
        if let Some(watched) = self.watched.get(&offer.task) {
            let facts = &watched.facts;
            let live = facts.grant.as_ref().filter(|grant| grant.hash == offer.grant);
            if facts.answers(&offer.grant) || live.is_some_and(|grant| grant.failed.is_some()) {
                return Verdict::Report;
            }
            if facts.highest > offer.epoch || facts.released >= offer.epoch || facts.cancelling {
                return Verdict::Decline(Decline::Over);
            }
            if offer.resume && watched.lost.as_ref() == Some(&offer.grant) {
                return Verdict::Decline(Decline::Lost { began: true });
            }
            if offer.resume && watched.claims(&offer.grant) {
                return Verdict::Begin;
            }
        }
        if offer.resume {
            return Verdict::Decline(Decline::Lost { began: false });
        }
        if self.draining {
            return Verdict::Decline(Decline::Draining);
        }
        if !offer.able || self.config.slots == 0 {
            return Verdict::Decline(Decline::NotAble);
        }
        let room = self.config.slots.saturating_add(self.config.queue) as usize;
        match self.executing.len() + self.queued() < room {
            true => Verdict::Begin,
            false => Verdict::Decline(Decline::Busy),
        }
    }

    /// Takes an own task, whose grant is durable.
    pub(super) fn begin_own(
        &mut self,
        task: &TaskId,
        epoch: Epoch,
        grant: String,
        priority: u8,
        timeout: Option<Duration>,
    ) {
        self.admit(task, epoch, grant, Right::Own, priority, timeout);
        self.run_changed(task);
    }

    /// Takes a task that this node has claimed; one that it runs already goes on under the claim.
    pub(super) fn begin_claimed(&mut self, task: &TaskId, epoch: Epoch, grant: String) {
        let Some(watched) = self.watched.get(task) else { return };
        let (priority, timeout) = (watched.facts.priority, watched.facts.timeout);
        match self.runs.get_mut(task) {
            Some(run) => (run.epoch, run.grant, run.right) = (epoch, grant, Right::Claim),
            None => self.admit(task, epoch, grant, Right::Claim, priority, timeout),
        }
        self.run_changed(task);
    }

    fn admit(
        &mut self,
        task: &TaskId,
        epoch: Epoch,
        grant: String,
        right: Right,
        priority: u8,
        timeout: Option<Duration>,
    ) {
        self.number += 1;
        let id = RunId(self.number);
        let urgency = Urgency::new(self.now, priority, self.config.ageing, self.number);
        let limit = timeout.unwrap_or(self.config.run_limit);
        let run = Run { id, epoch, grant, right, stage: Stage::Queued, limit, urgency };
        self.runs.insert(task.clone(), run);
    }

    /// Begins what waits, as far as there are slots: of the requester that has the fewest runs here, the most urgent.
    pub(super) fn start_runs(&mut self) {
        while self.executing.len() < self.config.slots as usize && !self.draining {
            let waiting = self.runs.iter().filter(|(_, run)| run.stage == Stage::Queued);
            let share = |task: &TaskId, run: &Run| {
                let requester = self.requester_of(task, run);
                self.executing.values().filter(|running| **running == requester).count()
            };
            let first = waiting.min_by_key(|(task, run)| (share(task, run), run.urgency));
            let Some(task) = first.map(|(task, _)| task.clone()) else { break };
            self.start(&task);
        }
    }

    fn start(&mut self, task: &TaskId) {
        let Some(run) = self.runs.get(task) else { return };
        if !run.may_publish(self.now, true) {
            // Its lease ran out while it waited, so its requester no longer counts on it.
            self.runs.remove(task);
            return self.run_changed(task);
        }
        let requester = self.requester_of(task, run);
        let Some(run) = self.runs.get_mut(task) else { return };
        run.stage = Stage::Running { until: self.now + run.limit };
        self.executing.insert(run.id, requester);
        let (run, epoch, grant) = (run.id, run.epoch, run.grant.clone());
        self.outputs.push(Output::Run { task: task.clone(), run, epoch, grant });
        self.run_changed(task);
    }

    fn requester_of(&self, task: &TaskId, run: &Run) -> Option<NodeId> {
        match &run.right {
            Right::Lease(leased) => Some(leased.requester.clone()),
            Right::Own => Some(self.me.clone()),
            Right::Claim => self.watched.get(task).and_then(|watched| watched.facts.requester.clone()),
        }
    }

    pub(super) fn run_ended(&mut self, task: &TaskId, id: RunId, outcome: Outcome) {
        self.executing.remove(&id);
        self.line.open_all();
        let Some(run) = self.runs.get_mut(task).filter(|run| run.id == id) else { return };
        if !matches!(run.stage, Stage::Running { .. }) {
            return;
        }
        run.stage = Stage::Ended(outcome);
        self.run_changed(task);
    }

    pub(super) fn acknowledged(&mut self, task: &TaskId, epoch: Epoch, beat: u32) {
        let Some(run) = self.runs.get_mut(task).filter(|run| run.epoch == epoch) else { return };
        if let Right::Lease(leased) = &mut run.right {
            leased.acknowledged(beat, self.now, &self.config.lease);
            self.run_changed(task);
        }
    }

    pub(super) fn revoked(&mut self, task: &TaskId, epoch: Epoch) {
        let of_lease = |run: &&Run| run.epoch == epoch && matches!(run.right, Right::Lease(_));
        if self.runs.get(task).filter(of_lease).is_some() {
            self.drop_run(task);
        }
    }

    pub(super) fn published(&mut self, task: &TaskId, id: RunId) {
        let Some(run) = self.runs.get_mut(task).filter(|run| run.id == id) else { return };
        let Stage::Publishing { outcome, grant, .. } = &run.stage else { return };
        let outcome = outcome.clone();
        if *grant != run.grant {
            // It serves another grant by now.
            run.stage = Stage::Ended(outcome);
            return self.run_changed(task);
        }
        run.stage = Stage::Published(outcome.clone());
        let (own, epoch) = (matches!(run.right, Right::Own), run.epoch);
        self.run_changed(task);
        self.check_run(task);
        if own && outcome != Outcome::Completed {
            self.finished(task, epoch, outcome);
        }
    }

    pub(super) fn write_failed_run(&mut self, task: &TaskId, id: RunId) {
        if let Some(run) = self.runs.get_mut(task).filter(|run| run.id == id)
            && let Stage::Publishing { again, .. } = &mut run.stage
        {
            *again = Some(self.now + self.config.retry.max(Duration::from_secs(1)));
            self.run_changed(task);
        }
    }

    /// Goes on with a run as far as it may, and sets its timer.
    pub(super) fn run_changed(&mut self, task: &TaskId) {
        let synced = self.gate.is_open();
        if let Some(run) = self.runs.get_mut(task)
            && let Stage::Ended(outcome) = &run.stage
        {
            let outcome = outcome.clone();
            if outcome == Outcome::HandedBack {
                return self.hand_back(task);
            }
            if run.may_publish(self.now, synced) {
                let (id, epoch, grant) = (run.id, run.epoch, run.grant.clone());
                run.stage = Stage::Publishing { outcome: outcome.clone(), grant: grant.clone(), again: None };
                self.outputs.push(Output::Publish { task: task.clone(), run: id, epoch, grant, outcome });
            }
        }
        let due = self.runs.get(task).and_then(Run::due);
        self.timers.set(Timer::Run(task.clone()), due);
    }

    /// Does what is due about a run.
    pub(super) fn run_of_due(&mut self, task: &TaskId) {
        let Some(run) = self.runs.get_mut(task) else { return };
        if let Right::Lease(leased) = &mut run.right
            && leased.lease.renew_at() <= self.now
        {
            let beat = leased.renew(self.now, &self.config.lease);
            let (task, epoch, requester) = (task.clone(), run.epoch, leased.requester.clone());
            self.outputs.push(Output::Renew { task, epoch, requester, beat });
        }
        match &mut run.stage {
            Stage::Running { until } if *until <= self.now => {
                let reason = format!("it took longer than {} s", run.limit.as_secs_f64());
                let id = run.id;
                run.stage = Stage::Ended(Outcome::Failed { reason, retry: true });
                self.outputs.push(Output::Abort { task: task.clone(), run: id });
            }
            Stage::Publishing { again, outcome, .. } if again.is_some_and(|again| again <= self.now) => {
                run.stage = Stage::Ended(outcome.clone());
            }
            _ => {}
        }
        self.run_changed(task);
    }

    /// Ends a run whose right is over, and forgets it.
    pub(super) fn drop_run(&mut self, task: &TaskId) {
        if let Some(run) = self.runs.remove(task)
            && matches!(run.stage, Stage::Running { .. } | Stage::Ended(_))
        {
            self.outputs.push(Output::Abort { task: task.clone(), run: run.id });
        }
        self.run_changed(task);
    }

    /// Gives a task that is not to be run here to its requester.
    fn hand_back(&mut self, task: &TaskId) {
        let Some(run) = self.runs.remove(task) else { return };
        if matches!(run.stage, Stage::Running { .. } | Stage::Publishing { .. }) {
            self.outputs.push(Output::Abort { task: task.clone(), run: run.id });
        }
        self.run_changed(task);
        match run.right {
            Right::Lease(leased) => {
                let (task, epoch, requester) = (task.clone(), run.epoch, leased.requester);
                self.outputs.push(Output::HandBack { task, epoch, requester });
            }
            Right::Own => self.finished(task, run.epoch, Outcome::HandedBack),
            Right::Claim => self.outputs.push(Output::GiveUp { task: task.clone(), epoch: run.epoch }),
        }
    }

    /// Begins nothing more, and hands back what waits.
    pub(super) fn drain(&mut self, grace: Duration) {
        let until = self.now + grace;
        self.drain_until = Some(self.drain_until.map_or(until, |before| before.min(until)));
        self.timers.set(Timer::Drain, self.drain_until);
        if !self.draining {
            self.draining = true;
            self.consider_all();
            self.consider_watched();
        }
        self.hand_back_all(|stage| *stage == Stage::Queued);
    }

    pub(super) fn hand_back_all(&mut self, which: impl Fn(&Stage) -> bool) {
        let tasks: Vec<TaskId> =
            self.runs.iter().filter(|(_, run)| which(&run.stage)).map(|(task, _)| task.clone()).collect();
        for task in tasks {
            self.hand_back(&task);
        }
    }

    /// Returns whether a run stands under this grant.
    pub(super) fn runs_under(&self, task: &TaskId, grant: &str) -> bool {
        self.runs.get(task).is_some_and(|run| run.grant == grant)
    }

    pub(super) fn has_free_slot(&self, promised: u32) -> bool {
        self.executing.len() + self.queued() + (promised as usize) < self.config.slots as usize
    }

    pub(super) fn queued(&self) -> usize {
        self.runs.values().filter(|run| run.stage == Stage::Queued).count()
    }

    /// Gives what cannot be written here to its requester, which has others; what nobody else looks after is tried again.
    pub(super) fn unwritable(&mut self, task: &TaskId, id: RunId) {
        let publishing = |run: &&Run| run.id == id && matches!(run.stage, Stage::Publishing { .. });
        match self.runs.get(task).filter(publishing).map(|run| &run.right) {
            Some(Right::Lease(_)) => self.hand_back(task),
            Some(Right::Own | Right::Claim) => self.write_failed_run(task, id),
            None => {}
        }
    }

    pub(super) fn write_failed_worker(&mut self, task: &TaskId, write: Write) {
        if let Write::Result(id) = write {
            self.write_failed_run(task, id);
        }
    }
}

/// What is answered to an offer.
enum Verdict {
    Decline(Decline),
    /// The result stands in the store.
    Report,
    Begin,
    /// It runs already, under this grant or an earlier one.
    GoOn,
}
