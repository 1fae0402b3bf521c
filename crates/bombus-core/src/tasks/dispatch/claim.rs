//! What a node does about tasks of others: it lets go of what is no longer its own, and claims what nobody cares for.

use std::time::Duration;

use super::line::Urgency;
use super::run::{Right, Stage};
use super::timers::Timer;
use super::{Candidate, Dispatcher, GrantFacts, Needs, Output, TaskFacts, Write};
use crate::identity::NodeId;
use crate::random::mix;
use crate::tasks::{Epoch, GrantedBy, TaskId, Worker};

/// The most by which the wait between claims doubles.
const DOUBLINGS_MAX: u32 = 6;

/// A task of another node.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) facts: TaskFacts,
    came: Duration,
    /// Since when the live grant is known.
    grant_came: Duration,
    pub(super) urgency: Urgency,
    pub(super) phase: WatchPhase,
    /// It is not claimed before, since somebody said that it is cared for, or could not claim it.
    not_before: Duration,
    /// A grant to this node from before its start.
    pub(super) lost: Option<String>,
}

/// What is being done about a task of another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WatchPhase {
    /// Nothing.
    Idle,
    /// Whether it is to be claimed is looked at then.
    Waiting { until: Duration },
    /// The rank of this node is being found out.
    Ranking,
    /// It is the turn of nodes before this one.
    Turn { until: Duration },
    /// It is to be claimed as soon as there is room.
    Ready,
    /// The others are being asked.
    Asking { until: Duration },
    /// The claim is being written.
    Claiming { epoch: Epoch },
    /// The claim stands; others may have claimed at the same time.
    Settling { epoch: Epoch, grant: String, until: Duration },
}

impl Watched {
    /// Returns whether this node is about to run it by a claim with this hash.
    pub(super) fn claims(&self, hash: &str) -> bool {
        matches!(&self.phase, WatchPhase::Settling { grant, .. } if grant == hash)
    }

    /// Returns whether a grant is the claim that this node has made and not yet acted upon.
    fn is_claim(&self, grant: &GrantFacts, me: &NodeId) -> bool {
        let claimed = match &self.phase {
            WatchPhase::Claiming { epoch } | WatchPhase::Settling { epoch, .. } => *epoch,
            _ => return false,
        };
        grant.epoch == claimed && grant.worker.node() == Some(me)
    }

    /// Returns whether this node has claimed it, or is doing so.
    pub(super) fn is_claimed(&self) -> bool {
        matches!(self.phase, WatchPhase::Claiming { .. } | WatchPhase::Settling { .. })
    }
}

impl WatchPhase {
    fn due(&self) -> Option<Duration> {
        match self {
            Self::Waiting { until } | Self::Turn { until } | Self::Asking { until } | Self::Settling { until, .. } => {
                Some(*until)
            }
            Self::Idle | Self::Ranking | Self::Ready | Self::Claiming { .. } => None,
        }
    }

    fn takes_room(&self) -> bool {
        matches!(self, Self::Asking { .. } | Self::Claiming { .. } | Self::Settling { .. })
    }
}

impl Dispatcher {
    /// Takes what is known of a task of another node.
    pub(super) fn watched_changed(&mut self, facts: TaskFacts) {
        let task = facts.task.clone();
        let hash = |facts: &TaskFacts| facts.grant.as_ref().map(|grant| grant.hash.clone());
        match self.watched.get_mut(&task) {
            Some(watched) => {
                if hash(&watched.facts) != hash(&facts) {
                    watched.grant_came = self.now;
                }
                watched.facts = facts;
            }
            None => {
                self.number += 1;
                let to_me = facts.grant.as_ref().filter(|grant| grant.worker.node() == Some(&self.me));
                let watched = Watched {
                    came: self.now,
                    grant_came: self.now,
                    urgency: Urgency::new(self.now, facts.priority, self.config.ageing, self.number),
                    phase: WatchPhase::Idle,
                    not_before: Duration::ZERO,
                    lost: to_me
                        .filter(|grant| self.loading && !self.runs_under(&task, &grant.hash))
                        .map(|grant| grant.hash.clone()),
                    facts,
                };
                self.watched.insert(task.clone(), watched);
            }
        }
        self.check_run(&task);
        self.watch(&task);
    }

    /// Lets go of a run whose grant is over, and forgets one whose result is known.
    pub(super) fn check_run(&mut self, task: &TaskId) {
        let (Some(watched), Some(run)) = (self.watched.get(task), self.runs.get(task)) else { return };
        let facts = &watched.facts;
        let live = facts.grant.as_ref();
        let is_live = live.is_some_and(|live| live.hash == run.grant);
        let is_beaten = match &run.right {
            // The entry of the grant may still be on its way, and beats a claim of the same epoch.
            Right::Lease(_) => facts.highest > run.epoch,
            Right::Own | Right::Claim => facts.highest >= run.epoch,
        };
        // It goes on under a claim of this node that is about to settle.
        let is_beaten = is_beaten && !live.is_some_and(|live| watched.is_claim(live, &self.me));
        let is_over = facts.cancelling || facts.released >= run.epoch || (!is_live && is_beaten);
        let is_known = facts.answers(&run.grant) || (is_live && live.is_some_and(|live| live.failed.is_some()));
        match &run.stage {
            Stage::Published(_) if is_known || is_over => self.drop_run(task),
            Stage::Published(_) | Stage::Publishing { .. } => {}
            _ if is_over => self.drop_run(task),
            _ => {}
        }
    }

    /// Decides whether a task is to be claimed, and when.
    fn watch(&mut self, task: &TaskId) {
        let Some(watched) = self.watched.get(task) else { return };
        let from = self.claim_from(task);
        let is_due = from.is_some_and(|from| from <= self.now);
        let phase = match &watched.phase {
            WatchPhase::Claiming { .. } => return,
            WatchPhase::Settling { epoch, grant, .. } => {
                if !self.is_beaten(&watched.facts, *epoch, grant) {
                    return;
                }
                WatchPhase::Idle
            }
            WatchPhase::Ranking | WatchPhase::Turn { .. } | WatchPhase::Ready | WatchPhase::Asking { .. } if is_due => {
                return;
            }
            _ => from.map_or(WatchPhase::Idle, |until| WatchPhase::Waiting { until }),
        };
        self.watch_enter(task, phase);
    }

    /// Returns whether a claim of this node is of no use any more.
    fn is_beaten(&self, facts: &TaskFacts, epoch: Epoch, grant: &str) -> bool {
        let is_live = facts.grant.as_ref().is_some_and(|live| live.hash == grant);
        let ended = facts.cancelling || facts.result.is_some() || facts.released >= epoch;
        ended || (!is_live && facts.highest >= epoch)
    }

    /// Returns from when on nobody cares for a task any more, as far as is known now. `None` while somebody does.
    fn claim_from(&self, task: &TaskId) -> Option<Duration> {
        let watched = self.watched.get(task)?;
        let (facts, lease) = (&watched.facts, &self.config.lease);
        if self.config.slots == 0 || self.draining || facts.cancelling || facts.needs != Needs::Ready {
            return None;
        }
        if facts.result.is_some() {
            return None;
        }
        let held = match self.runs.get(task) {
            None => Duration::ZERO,
            Some(run) => match (&run.right, &run.stage) {
                (Right::Lease(leased), Stage::Queued | Stage::Running { .. } | Stage::Ended(_)) => leased.lease.until(),
                _ => return None,
            },
        };
        let requester = match &facts.requester {
            Some(requester) => self.peers.gone_since(requester)? + lease.grace(0),
            None if facts.bid.is_some() => watched.came + self.config.foreign_limit,
            None => watched.came,
        };
        let worker = match &facts.grant {
            None => Duration::ZERO,
            Some(grant) if grant.failed.is_some() => {
                let max = facts.max_attempts.unwrap_or(lease.max_attempts);
                if facts.attempts + 1 >= max {
                    return None;
                }
                watched.grant_came + lease.backoff(facts.claims.max(1))
            }
            Some(grant) => match &grant.worker {
                Worker::Foreign { .. } => watched.grant_came + self.config.foreign_limit,
                // What this node ran before its start is lost, and so is what it let go.
                Worker::Node(worker) if *worker == self.me => watched.grant_came,
                Worker::Node(worker) => {
                    // One that is there may have lost it all the same: it is asked.
                    self.peers.gone_since(worker).unwrap_or(watched.grant_came) + lease.grace(0)
                }
            },
        };
        // Each claim that came to nothing doubles the wait, since a task may bring down whoever runs it.
        let doublings = facts.claims.saturating_sub(1).min(DOUBLINGS_MAX);
        let patience = lease.grace(0) * ((1 << doublings) - 1);
        let patience = watched.grant_came + patience;
        Some(held.max(requester).max(worker).max(patience).max(watched.not_before))
    }

    fn watch_enter(&mut self, task: &TaskId, phase: WatchPhase) {
        let Some(watched) = self.watched.get_mut(task) else { return };
        let before = std::mem::replace(&mut watched.phase, phase);
        let after = &watched.phase;
        match (before == WatchPhase::Ready, *after == WatchPhase::Ready) {
            (false, true) => {
                self.ready.insert((watched.urgency, task.clone()));
            }
            (true, false) => {
                self.ready.remove(&(watched.urgency, task.clone()));
            }
            _ => {}
        }
        self.claiming += usize::from(after.takes_room());
        self.claiming -= usize::from(before.takes_room());
        let due = after.due();
        self.timers.set(Timer::Watched(task.clone()), due);
    }

    /// Does what is due about a task of another node.
    pub(super) fn watched_due(&mut self, task: &TaskId) {
        let Some(watched) = self.watched.get(task) else { return };
        match watched.phase.clone() {
            WatchPhase::Waiting { .. } => match (self.claim_from(task), self.gate.opens()) {
                (Some(from), _) if from > self.now => self.watch_enter(task, WatchPhase::Waiting { until: from }),
                (Some(_), Some(opens)) => self.watch_enter(task, WatchPhase::Waiting { until: opens }),
                (Some(_), None) => {
                    self.watch_enter(task, WatchPhase::Ranking);
                    self.outputs.push(Output::Rank { task: task.clone() });
                }
                (None, _) => self.watch_enter(task, WatchPhase::Idle),
            },
            WatchPhase::Turn { .. } => self.watch_enter(task, WatchPhase::Ready),
            WatchPhase::Asking { .. } => self.put_off(task),
            WatchPhase::Settling { epoch, grant, until } => {
                let facts = &watched.facts;
                if facts.highest < epoch {
                    // The own store does not show it yet.
                    let until = until.max(self.now) + self.settle_time();
                    self.watch_enter(task, WatchPhase::Settling { epoch, grant, until });
                } else if self.is_beaten(facts, epoch, &grant) {
                    self.watch_enter(task, WatchPhase::Idle);
                    self.watch(task);
                } else {
                    self.watch_enter(task, WatchPhase::Idle);
                    self.begin_claimed(task, epoch, grant);
                }
            }
            _ => {}
        }
    }

    fn settle_time(&self) -> Duration {
        Duration::from_millis(self.config.lease.settle_ms)
    }

    /// Leaves a task alone for the grace time: it is cared for.
    fn put_off(&mut self, task: &TaskId) {
        let until = self.now + self.random_around(self.config.lease.grace(0));
        if let Some(watched) = self.watched.get_mut(task) {
            watched.not_before = until;
        }
        self.watch_enter(task, WatchPhase::Waiting { until });
    }

    pub(super) fn ranked_watched(&mut self, task: &TaskId, candidates: &[Candidate]) {
        let Some(watched) = self.watched.get(task) else { return };
        if watched.phase != WatchPhase::Ranking {
            return;
        }
        if !candidates.iter().any(|candidate| candidate.node == self.me) {
            return self.put_off(task);
        }
        let own = lot(task, &self.me);
        let before =
            candidates.iter().filter(|candidate| candidate.node != self.me && lot(task, &candidate.node) < own);
        // Who has begun already goes first.
        let rank = if self.runs.contains_key(task) { 0 } else { u32::try_from(before.count()).unwrap_or(u32::MAX) };
        let until = self.now + self.config.lease.rank_step(rank);
        self.watch_enter(task, WatchPhase::Turn { until });
    }

    /// Begins to claim what is ready, as far as there is room.
    pub(super) fn claim(&mut self) {
        let slots = self.config.slots as usize;
        while self.claiming < self.config.claims as usize && self.gate.is_open() {
            let Some((_, task)) = self.ready.first().cloned() else { break };
            let runs = self.runs.contains_key(&task);
            if !runs && self.executing.len() + self.queued() + self.claiming >= 2 * slots {
                break;
            }
            let until = self.now + self.settle_time() * 2 + self.config.offer_limit;
            self.watch_enter(&task, WatchPhase::Asking { until });
            let requester = self.watched.get(&task).and_then(|watched| watched.facts.requester.clone());
            self.outputs.push(Output::AskAround { task, requester });
        }
    }

    pub(super) fn answers(&mut self, task: &TaskId, cared_for: bool, unanswered: &[NodeId]) {
        let Some(watched) = self.watched.get(task) else { return };
        if !matches!(watched.phase, WatchPhase::Asking { .. }) {
            return;
        }
        let facts = &watched.facts;
        let worker = facts.grant.as_ref().and_then(|grant| grant.worker.node());
        if cared_for || worker.is_some_and(|worker| unanswered.contains(worker)) {
            return self.put_off(task);
        }
        let epoch = facts.highest.max(facts.released).next();
        let has_failed = facts.grant.as_ref().is_some_and(|grant| grant.failed.is_some());
        let attempt = facts.attempts.saturating_add(1 + u32::from(has_failed));
        self.watch_enter(task, WatchPhase::Claiming { epoch });
        let (task, worker) = (task.clone(), Worker::Node(self.me.clone()));
        self.outputs.push(Output::Grant { task, epoch, worker, by: GrantedBy::SelfClaim, attempt });
    }

    pub(super) fn stored_watched(&mut self, task: &TaskId, epoch: Epoch, grant: String) {
        let Some(watched) = self.watched.get(task) else { return };
        if watched.phase == (WatchPhase::Claiming { epoch }) {
            let until = self.now + self.settle_time();
            self.watch_enter(task, WatchPhase::Settling { epoch, grant, until });
            self.watch(task);
        }
    }

    pub(super) fn write_failed_watched(&mut self, task: &TaskId, write: Write) {
        let Some(watched) = self.watched.get(task) else { return };
        if let (WatchPhase::Claiming { epoch }, Write::Grant(failed)) = (&watched.phase, write)
            && *epoch == failed
        {
            self.put_off(task);
        }
    }

    /// Gives up what this node is about to claim, since it is offered.
    pub(super) fn leave_claim(&mut self, task: &TaskId) {
        self.watch_enter(task, WatchPhase::Idle);
    }

    /// Looks at all tasks of others, or at those of one requester or worker, since something has changed for them.
    pub(super) fn consider_watched(&mut self) {
        let tasks: Vec<TaskId> = self.watched.keys().cloned().collect();
        for task in tasks {
            self.watch(&task);
        }
    }

    /// Forgets a task of another node, which is settled.
    pub(super) fn forget_watched(&mut self, task: &TaskId) {
        self.watch_enter(task, WatchPhase::Idle);
        self.watched.remove(task);
    }
}

/// Returns the lot of a node for a task: the same on all nodes, and another one for each task, so that claims are spread.
fn lot(task: &TaskId, node: &NodeId) -> u64 {
    let text = task.as_str().bytes().chain(node.as_str().bytes());
    mix(text.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}
