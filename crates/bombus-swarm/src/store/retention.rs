//! How long tasks are kept, as rules (pure): when the next generation begins, which ones go, and which ones of others are opened here.

use std::collections::BTreeSet;
use std::time::Duration;

use bombus_core::tasks::TaskId;
use bombus_core::topics::TaskGenerations;

use super::series::GENERATION_MAX;

/// Most generations that are open: each takes three databases of those that a node may have open.
pub(super) const OPEN_MAX: usize = 10;
/// With so many open no new one is begun: the others are for those of peers.
const BEGIN_MAX: usize = 8;
/// A generation that is ahead by more is opened only if more than half of those say that there is one that say anything.
const AHEAD_MAX: u64 = 16;
/// A generation is so many parts of what is kept: that is the grain in which tasks go.
const PARTS: u64 = 4;
/// How many tasks that keep a generation from going are named.
const NAMED_MAX: usize = 10;
/// A clock that shows less, in milliseconds since 1970, was never set: 2020.
const CLOCK_SET_MS: u64 = 1_577_836_800_000;

/// How long tasks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// So long after it has ended.
    pub retain: Duration,
    /// Or until there are more than so many.
    pub keep: usize,
}

/// What there is to know of a generation that is open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) generation: u64,
    /// Since when it is here, in milliseconds since 1970.
    pub(super) since: u64,
    pub(super) tasks: usize,
    /// Those that keep it from going.
    pub(super) unfinished: usize,
    /// The first of them.
    pub(super) first: Vec<TaskId>,
    /// When the oldest was submitted, in milliseconds since 1970.
    pub(super) oldest: Option<u64>,
    /// When the last one that has ended did so.
    pub(super) last_ended: Option<u64>,
}

impl Facts {
    /// Takes a task. `ended` is when it ended; none for one that is not over.
    pub(super) fn add(&mut self, id: &TaskId, created_at: u64, ended: Option<u64>, now_ms: u64) {
        // What was written by a clock that was never set, or by one that is ahead, may as well be of now.
        let plausible = |time: u64| if (CLOCK_SET_MS..=now_ms).contains(&time) { time } else { now_ms };
        self.tasks += 1;
        let created_at = plausible(created_at);
        self.oldest = Some(self.oldest.map_or(created_at, |oldest| oldest.min(created_at)));
        match ended.map(plausible) {
            Some(ended) => self.last_ended = self.last_ended.max(Some(ended)),
            None => {
                self.unfinished += 1;
                if self.first.len() < NAMED_MAX {
                    self.first.push(id.clone());
                }
            }
        }
    }

    fn is_full(&self, retention: Retention, now_ms: u64) -> bool {
        let Some(oldest) = self.oldest else { return false };
        let age = now_ms.saturating_sub(oldest.max(self.since));
        self.tasks as u64 > retention.keep as u64 / PARTS || age >= millis(retention.retain) / PARTS
    }
}

/// Why a generation stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyKept {
    /// New tasks go to it.
    Newest,
    /// Tasks in it have not ended, or others that have not ended need theirs.
    Unfinished {
        /// How many.
        tasks: usize,
        /// Ten of them at most.
        first: Vec<TaskId>,
    },
    /// The last of its tasks ended not long enough ago.
    Young,
    /// It has been here for a short time, and more of it may come.
    JustOpened,
    /// It cannot be let go now: not all peers that are there have the next one yet, or somebody writes to it.
    Busy,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Whether the next generation begins.
    pub(super) begins: bool,
    /// Which ones go, oldest first.
    pub(super) drop: Vec<u64>,
    /// Which ones stay, and why.
    pub(super) kept: Vec<(u64, WhyKept)>,
}

/// Says what is to be done with the generations that are open, oldest first. What has been here for less than `settled` stays.
pub(super) fn plan(open: &[Facts], retention: Retention, settled: Duration, now_ms: u64) -> Plan {
    let mut plan = Plan::default();
    let Some(newest) = open.last() else { return plan };
    plan.begins = newest.is_full(retention, now_ms) && open.len() < BEGIN_MAX;
    let mut held: usize = open.iter().map(|facts| facts.tasks).sum();
    let mut young = Vec::new();
    for facts in open {
        let generation = facts.generation;
        let age = |since: u64| now_ms.saturating_sub(since);
        let is_old = facts.last_ended.is_none_or(|ended| age(ended) >= millis(retention.retain));
        let why = if generation == newest.generation && !plan.begins {
            WhyKept::Newest
        } else if facts.unfinished > 0 {
            WhyKept::Unfinished { tasks: facts.unfinished, first: facts.first.clone() }
        } else if age(facts.since) < millis(settled) {
            WhyKept::JustOpened
        } else if is_old {
            held -= facts.tasks;
            plan.drop.push(generation);
            continue;
        } else {
            young.push((generation, facts.tasks));
            continue;
        };
        plan.kept.push((generation, why));
    }
    for (generation, tasks) in young {
        if held > retention.keep {
            held -= tasks;
            plan.drop.push(generation);
        } else {
            plan.kept.push((generation, WhyKept::Young));
        }
    }
    plan.drop.sort_unstable();
    plan.kept.sort_unstable_by_key(|(generation, _)| *generation);
    plan
}

/// What is to be opened since peers have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Follow {
    pub(super) open: Vec<u64>,
    /// What some peer says that it has, and is not opened: it is too far ahead of all others, or there is no room.
    pub(super) beyond: Option<u64>,
}

/// Says which generations are to be opened since peers have them.
pub(super) fn follow(open: &BTreeSet<u64>, is_dropped: impl Fn(u64) -> bool, told: &[&TaskGenerations]) -> Follow {
    let newest = open.last().copied().unwrap_or(0);
    let near = newest.saturating_add(AHEAD_MAX);
    let numbers = |told: &TaskGenerations| {
        let numbers = told.open.clone().into_iter();
        numbers.filter(|number| (1..=GENERATION_MAX).contains(number)).collect::<Vec<u64>>()
    };
    let far = told.iter().filter(|told| numbers(told).iter().any(|number| *number > near)).count();
    let are_far = far * 2 > told.len();
    let mut follow = Follow::default();
    // Newer ones first, then those in which something is left to do, then those in which others can still read.
    let mut wanted: BTreeSet<(u8, u64)> = BTreeSet::new();
    for told in told {
        for number in numbers(told) {
            if open.contains(&number) || wanted.iter().any(|(_, wanted)| *wanted == number) {
                continue;
            }
            if number > near && !are_far {
                follow.beyond = follow.beyond.max(Some(number));
            } else if number > newest {
                wanted.insert((2, number));
            } else if told.unfinished.contains(&number) {
                wanted.insert((1, number));
            } else if !is_dropped(number) {
                wanted.insert((0, number));
            }
        }
    }
    let room = OPEN_MAX.saturating_sub(open.len());
    follow.open = wanted.iter().rev().take(room).map(|(_, number)| *number).collect();
    if let Some((_, left)) = wanted.iter().rev().nth(room) {
        follow.beyond = follow.beyond.max(Some(*left));
    }
    follow.open.sort_unstable();
    follow
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
