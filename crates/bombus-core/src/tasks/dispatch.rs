//! Who runs a task, and when: a state machine without I/O and without a clock.
//!
//! A [`Dispatcher`] is told what happens ([`Input`]) and says what is to be done ([`Output`]). It is what a node does as a requester
//! (grants, offers, leases, attempts, settling), as a worker (admission, runs, renewals, publishing), and as one of those who look
//! after the tasks of a requester that is away (claims of their own). Whoever drives it writes documents, opens streams and runs models.
//!
//! # The driver's part
//!
//! - Time is a [`Duration`] since any moment, by a clock that counts suspend and never goes back. [`Dispatcher::deadline`] says when to
//!   hand in [`Input::Tick`] at the latest; to do so late or too often does no harm.
//! - At the start: [`Input::Task`] for every task in the store that is not settled, then [`Input::Loaded`], and [`Input::Synced`] as soon as entries were
//!   exchanged with the peers that are reached, or a short limit has passed. Later: [`Input::Task`] whenever the view of a task has
//!   changed, be it by the node's own writes.
//! - The outputs about one task are carried out in their order. Each names the task and the epoch, and so do the answers; what comes
//!   too late is passed over, so an input may be told twice.
//! - A task that is submitted is told by [`Input::Submit`] before anything is written. Its first entry is a grant, where somebody takes it
//!   at once ([`Output::Grant`]), else PENDING ([`Output::Submit`]); only then may whoever submits it be told that it is safe.
//! - Writes are durable before they are told: a grant by [`Input::Stored`], a result by [`Input::Published`], all others by the
//!   [`TaskFacts`] that follow from them. A write that failed is told by [`Input::StoreFailed`], and asked for again.
//! - A stream belongs to a task and an epoch; a later offer of the same grant takes its place. Its end is [`Input::Broken`] at the
//!   requester, and needs no word at the worker.
//!
//! # What a task goes through at its requester
//!
//! ```text
//! in line -> Rank -> Grant, durable -> Offer -> accepted: the lease runs -> a result in the store -> Settle
//!    ^                  |  nobody takes it: in line again, later            |
//!    '---- Release, durable <---- lost, failed, handed back ----------------'   after the last attempt: Settle FAILED
//! ```
//!
//! A grant of which it is not known whether it runs (the requester was started anew or slept, the stream broke, the lease ran out) is
//! offered once more with `resume`: who runs it goes on, who has finished it says so, who lost it says that. Only if nobody answers for
//! it is it released.

mod attempt;
mod claim;
mod config;
mod facts;
mod gate;
mod input;
mod line;
mod output;
mod owned;
mod peers;
mod place;
mod run;
mod timers;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::TaskId;
use crate::identity::NodeId;
use crate::liveness::PeerState;
use crate::random::Random;

use claim::{WatchPhase, Watched};
pub use config::DispatchConfig;
pub use facts::{AnswerFacts, Candidate, GrantFacts, Needs, TaskFacts};
use gate::Gate;
pub use input::{Input, Offered, Write};
use line::{Line, Urgency};
pub use output::{Answer, Decline, Failure, Load, Outcome, Output, RunId};
use owned::{Owned, Phase};
use peers::Peers;
use run::{Right, Run, Stage};
use timers::{Timer, Timers};

/// Decides what a node does about all tasks that are not final, as requester, worker and claimant.
///
/// Its memory is bounded by the tasks that are not settled: those that are settled are forgotten with the [`TaskFacts`] that say so.
#[derive(Debug)]
pub struct Dispatcher {
    me: NodeId,
    config: DispatchConfig,
    now: Duration,
    random: Random,
    timers: Timers,
    peers: Peers,
    gate: Gate,
    /// Whether the tasks of the store are still being told.
    loading: bool,
    /// Counts tasks and runs as they come.
    number: u64,

    /// The tasks of this node.
    owned: BTreeMap<TaskId, Owned>,
    /// Those of them of which nothing is written yet.
    unwritten: BTreeSet<TaskId>,
    line: Line,
    /// How many own tasks are being placed.
    placing: usize,
    /// How many grants to this node itself are being written.
    granting_here: u32,
    /// How many own tasks each node has.
    taken: BTreeMap<NodeId, u32>,
    /// Who said that it has no room, and is not asked before this time.
    full: BTreeMap<NodeId, Duration>,

    /// The tasks of other nodes.
    watched: BTreeMap<TaskId, Watched>,
    /// Those of them that are to be claimed as soon as there is room.
    ready: BTreeSet<(Urgency, TaskId)>,
    /// How many are being claimed.
    claiming: usize,

    /// What runs here, is to run, or has run and is not yet known to have.
    runs: BTreeMap<TaskId, Run>,
    /// The slots that are taken, and for whom; also by runs that have been ended and have not stopped yet.
    executing: BTreeMap<RunId, Option<NodeId>>,

    draining: bool,
    drain_until: Option<Duration>,
    drained: bool,
    outputs: Vec<Output>,
}

impl Dispatcher {
    /// Begins at the time `now`, knowing no tasks and no peers. The same `seed` gives the same choices.
    #[must_use]
    pub fn new(me: NodeId, config: DispatchConfig, now: Duration, seed: u64) -> Self {
        let limit = sync_limit(&config);
        let mut timers = Timers::default();
        timers.set(Timer::Gate, Some(now + limit));
        Self {
            me,
            config,
            now,
            random: Random::new(seed),
            timers,
            peers: Peers::new(now),
            gate: Gate::started(now, limit),
            loading: true,
            number: 0,
            owned: BTreeMap::new(),
            line: Line::default(),
            unwritten: BTreeSet::new(),
            placing: 0,
            granting_here: 0,
            taken: BTreeMap::new(),
            full: BTreeMap::new(),
            watched: BTreeMap::new(),
            ready: BTreeSet::new(),
            claiming: 0,
            runs: BTreeMap::new(),
            executing: BTreeMap::new(),
            draining: false,
            drain_until: None,
            drained: false,
            outputs: Vec::new(),
        }
    }

    /// Takes an input at the time `now` of a clock that counts suspend and never goes back. Returns what is to be done, in this order.
    pub fn on(&mut self, now: Duration, input: Input) -> Vec<Output> {
        let late = self.timers.next().is_some_and(|due| now >= due + self.config.sleep_min);
        self.now = now.max(self.now);
        if late {
            self.woke();
        }
        // What has run out is over before anything else is heard.
        self.run_due();
        self.take(input);
        self.run_due();
        self.place();
        self.write_unplaced();
        self.claim();
        self.start_runs();
        self.finish_drain();
        std::mem::take(&mut self.outputs)
    }

    /// Returns when to hand in [`Input::Tick`] at the latest; `None` while nothing is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.timers.next()
    }

    /// Answers a peer that asks around before it claims a task ([`Output::AskAround`]).
    #[must_use]
    pub fn answer(&self, task: &TaskId, requester: Option<&NodeId>) -> Answer {
        let sees = |requester: &NodeId| *requester == self.me || self.peers.gone_since(requester).is_none();
        let running = self.runs.get(task).is_some_and(Run::is_under_way);
        let claimed = self.watched.get(task).is_some_and(Watched::is_claimed);
        Answer { requester_seen: requester.is_some_and(sees), running: running || claimed }
    }

    /// Returns how busy the node is with tasks, for others that rank it.
    #[must_use]
    pub fn load(&self) -> Load {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Load { running: count(self.executing.len()), queued: count(self.queued()), slots: self.config.slots }
    }

    /// Returns how many tasks it remembers.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.owned.len() + self.watched.len()
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Task(facts) => self.task(*facts),
            Input::Submit(facts) => self.submit(*facts),
            Input::Withdrawn { task } => self.forget_owned(&task),
            Input::Loaded => self.loading = false,
            Input::Synced => self.open_gate(),
            Input::Peer { node, state } => self.peer(&node, state),
            Input::Candidates => {
                self.full.clear();
                self.line.open_all();
            }
            Input::Ranked { task, candidates } => {
                self.ranked_owned(&task, &candidates);
                self.ranked_watched(&task, &candidates);
            }
            Input::Stored { task, epoch, grant } => match self.owned.contains_key(&task) {
                true => self.stored_owned(&task, epoch, grant),
                false => self.stored_watched(&task, epoch, grant),
            },
            Input::StoreFailed { task, write } => {
                self.write_failed_owned(&task, write);
                self.write_failed_watched(&task, write);
                self.write_failed_worker(&task, write);
            }
            Input::Unwritable { task, run } => self.unwritable(&task, run),
            Input::Accepted { task, epoch } => self.accepted(&task, epoch),
            Input::Began { task, epoch } => self.began(&task, epoch),
            Input::Declined { task, epoch, reason } => self.declined(&task, epoch, reason),
            Input::Renewed { task, epoch, beat } => self.renewed(&task, epoch, beat),
            Input::Broken { task, epoch } => self.broken(&task, epoch),
            Input::Finished { task, epoch, outcome } => self.finished(&task, epoch, outcome),
            Input::Offered(offer) => self.offered(*offer),
            Input::Acknowledged { task, epoch, beat } => self.acknowledged(&task, epoch, beat),
            Input::Revoked { task, epoch } => self.revoked(&task, epoch),
            Input::RunEnded { task, run, outcome } => self.run_ended(&task, run, outcome),
            Input::Published { task, run } => self.published(&task, run),
            Input::Answers { task, requester_seen, running, unanswered } => {
                self.answers(&task, requester_seen || running, &unanswered);
            }
            Input::Cancel { task } => self.cancel_owned(&task),
            Input::Drain { grace } => self.drain(grace),
            Input::Tick => {}
        }
    }

    fn run_due(&mut self) {
        while let Some(timer) = self.timers.take_due(self.now) {
            match timer {
                Timer::Gate => self.open_gate(),
                Timer::Drain => self.hand_back_all(|stage| matches!(stage, Stage::Queued | Stage::Running { .. })),
                // Whoever waits there is placed after every input.
                Timer::Line => {}
                Timer::Owned(task) => self.owned_due(&task),
                Timer::Watched(task) => self.watched_due(&task),
                Timer::Run(task) => self.run_of_due(&task),
            }
        }
    }

    fn task(&mut self, facts: TaskFacts) {
        let task = facts.task.clone();
        if facts.settled {
            self.forget_owned(&task);
            self.forget_watched(&task);
            self.drop_run(&task);
        } else if facts.requester.as_ref() == Some(&self.me) {
            if self.watched.contains_key(&task) {
                self.forget_watched(&task);
                self.drop_run(&task);
            }
            self.owned_changed(facts);
        } else {
            // The same request was made at two nodes, and the other one's came first.
            if self.owned.contains_key(&task) {
                self.forget_owned(&task);
                self.drop_run(&task);
            }
            self.watched_changed(facts);
        }
    }

    fn peer(&mut self, node: &NodeId, state: PeerState) {
        let before = self.peers.set(node, state, self.now);
        let was_there = matches!(before, Some(PeerState::Alive | PeerState::Suspect));
        match state {
            PeerState::Gone if was_there => {
                self.worker_gone(node);
                self.consider_watched();
            }
            PeerState::Alive if !was_there => {
                // It may have been away with tasks of this node, as may this node.
                if !self.owned.is_empty() {
                    self.close_gate();
                }
                self.full.remove(node);
                self.line.open_all();
                self.consider_watched();
            }
            _ => {}
        }
    }

    fn woke(&mut self) {
        self.peers.woke(self.now);
        self.close_gate();
    }

    fn close_gate(&mut self) {
        if self.gate.close(self.now, sync_limit(&self.config)) {
            self.timers.set(Timer::Gate, self.gate.opens());
            self.outputs.push(Output::Sync);
            self.consider_all();
        }
    }

    fn open_gate(&mut self) {
        self.loading = false;
        self.gate.open();
        self.timers.set(Timer::Gate, None);
        self.consider_all();
        self.give_up_those_that_waited();
        let runs: Vec<TaskId> = self.runs.keys().cloned().collect();
        for task in runs {
            self.run_changed(&task);
        }
    }

    fn finish_drain(&mut self) {
        let busy = |owned: &Owned| matches!(owned.phase, Phase::Releasing { .. } | Phase::Settling { .. });
        let claims = |watched: &Watched| matches!(watched.phase, WatchPhase::Claiming { .. });
        if self.draining
            && !self.drained
            && self.executing.is_empty()
            && self
                .runs
                .values()
                .all(|run| matches!(run.stage, Stage::Published(_)) && !matches!(run.right, Right::Own))
            && !self.owned.values().any(busy)
            && !self.watched.values().any(claims)
        {
            self.drained = true;
            self.outputs.push(Output::Drained);
        }
    }

    /// Returns a time within a tenth of a pause around it, so that not all nodes do the same at the same time.
    fn random_around(&mut self, pause: Duration) -> Duration {
        let ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX / 2).min(u64::MAX / 2);
        Duration::from_millis(self.random.around(ms))
    }
}

/// Returns how long is waited for [`Input::Synced`] at most. To settle takes a part of that where many entries are on their way.
fn sync_limit(config: &DispatchConfig) -> Duration {
    Duration::from_millis(config.lease.settle_ms) * 10
}

#[cfg(test)]
mod tests;
