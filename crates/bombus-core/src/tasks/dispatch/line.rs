use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::tasks::TaskId;

/// The place of a task among others: the smaller the sooner. It never changes while time passes, since all grow older alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Urgency {
    /// When it came, as many ageing steps earlier as its priority says; in nanoseconds.
    since: i128,
    /// The order in which tasks came.
    number: u64,
}

impl Urgency {
    pub(super) fn new(came: Duration, priority: u8, ageing: Duration, number: u64) -> Self {
        let nanos = |duration: Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX / 64);
        Self { since: nanos(came) - i128::from(priority.clamp(1, 10)) * nanos(ageing), number }
    }
}

/// The own tasks that want to be placed, by class. Where one found no place, the others of its class need not try.
#[derive(Debug, Default)]
pub(super) struct Line {
    classes: BTreeMap<String, Class>,
}

#[derive(Debug)]
struct Class {
    waiting: BTreeSet<(Urgency, TaskId)>,
    /// Nobody has room before this time, unless something changes.
    closed_until: Option<Duration>,
    /// How often in a row nobody had.
    fruitless: u32,
    /// How many of it are being placed, and how many may be at a time: one where there was no room, and twice as many each time there is.
    placing: u32,
    width: u32,
}

impl Line {
    pub(super) fn insert(&mut self, class: &str, urgency: Urgency, task: &TaskId) {
        let class = self.classes.entry(class.to_owned()).or_default();
        class.waiting.insert((urgency, task.clone()));
    }

    /// Takes a task out, where it is in line. What is known of its class stays as long as tasks of it may come back.
    pub(super) fn remove(&mut self, class: &str, urgency: Urgency, task: &TaskId) {
        if let Some(class) = self.classes.get_mut(class) {
            class.waiting.remove(&(urgency, task.clone()));
        }
    }

    /// Returns the most urgent task of a class that is not closed.
    pub(super) fn first(&self, now: Duration) -> Option<TaskId> {
        let open = self.classes.values().filter(|class| class.is_open(now));
        open.filter_map(|class| class.waiting.first()).min().map(|(_, task)| task.clone())
    }

    /// Notes that one more task of a class looks for a place.
    pub(super) fn looks(&mut self, class: &str) {
        self.classes.entry(class.to_owned()).or_default().placing += 1;
    }

    /// Notes that a task of a class no longer looks for a place.
    pub(super) fn looked(&mut self, class: &str) {
        if let Some(class) = self.classes.get_mut(class) {
            class.placing = class.placing.saturating_sub(1);
        }
    }

    /// Notes that nobody has room for a class. `pause` says for how long, by how often in a row that was so.
    pub(super) fn close(&mut self, class: &str, now: Duration, pause: impl Fn(u32) -> Duration) {
        let class = self.classes.entry(class.to_owned()).or_default();
        class.width = 1;
        if class.closed_until.is_none_or(|until| until <= now) {
            class.closed_until = Some(now + pause(class.fruitless));
            class.fruitless = class.fruitless.saturating_add(1);
        }
    }

    /// Notes that a task of a class found a place.
    pub(super) fn found(&mut self, class: &str) {
        if let Some(class) = self.classes.get_mut(class) {
            class.fruitless = 0;
            class.width = class.width.saturating_mul(2);
        }
    }

    /// Notes that there may be room again.
    pub(super) fn open_all(&mut self) {
        for class in self.classes.values_mut() {
            class.closed_until = None;
        }
    }

    /// Returns when the next class opens in which somebody waits, and forgets classes in which nobody does.
    pub(super) fn next_opening(&mut self, now: Duration) -> Option<Duration> {
        self.classes.retain(|_, class| {
            !class.waiting.is_empty() || class.placing > 0 || class.closed_until.is_some_and(|until| until > now)
        });
        let waiting = self.classes.values().filter(|class| !class.waiting.is_empty());
        waiting.filter_map(|class| class.closed_until).filter(|until| *until > now).min()
    }
}

impl Class {
    fn is_open(&self, now: Duration) -> bool {
        self.placing < self.width && self.closed_until.is_none_or(|until| until <= now)
    }
}

impl Default for Class {
    fn default() -> Self {
        Self { waiting: BTreeSet::new(), closed_until: None, fruitless: 0, placing: 0, width: u32::MAX }
    }
}
