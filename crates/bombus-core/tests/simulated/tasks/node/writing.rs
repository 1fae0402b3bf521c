//! What a node writes, and how it tells that it is written.

use std::rc::Rc;

use bombus_core::tasks::dispatch::{Input, Outcome, Write};
use bombus_core::tasks::{Epoch, TaskId};
use bombus_testkit::simulator::Effect;

use super::super::log::{Document, Draft, Entry};
use super::{Ack, Effects, Later, Message, Seen, TaskNode};

impl TaskNode {
    /// Writes at once, and tells the others.
    pub(super) fn write_now(&mut self, draft: Draft, effects: &mut Effects) -> Entry {
        let entry = self.disk.borrow_mut().write(self.index, draft);
        let entries = Rc::new(vec![entry.clone()]);
        for peer in self.linked.clone() {
            if !self.random.chance(self.shape.lost_entries) {
                effects.push(Effect::Send { to: peer, message: Message::Entries(Rc::clone(&entries)) });
            }
        }
        self.look_at(&entry.task().clone());
        entry
    }

    /// Has a document written as a disk does: after a while, and sometimes not at all.
    pub(super) fn write(&mut self, now_ms: u64, task: &TaskId, draft: Draft, ack: Ack, effects: &mut Effects) {
        let delay_ms = 1 + self.random.index(20) as u64;
        let after_ms = self.last_write_ms.get(task).copied().unwrap_or(0);
        let at_ms = (now_ms + delay_ms).max(after_ms);
        self.last_write_ms.insert(task.clone(), at_ms);
        if self.random.chance(self.shape.failed_writes) {
            // Nobody knows whether it was written.
            if self.writes_early && self.random.chance(0.5) {
                self.write_now(draft, effects);
            }
            let write = match ack {
                Ack::Submit => None,
                Ack::Grant(epoch) => Some(Write::Grant(epoch)),
                Ack::Result(run) => Some(Write::Result(run)),
                Ack::None(write) => write,
            };
            self.at(at_ms, Later::Failed { task: task.clone(), write });
        } else if self.writes_early {
            let entry = self.write_now(draft, effects);
            let input = acknowledgement(task, ack, &entry).map(Box::new);
            self.at(at_ms, Later::Acknowledged { task: task.clone(), input });
        } else {
            self.at(at_ms, Later::Written { task: task.clone(), draft: Box::new(draft), ack });
        }
    }

    /// Hands in that something was not written. Who submits a task that is in no store is told so.
    pub(super) fn write_failed(&mut self, task: TaskId, write: Option<Write>) {
        let was_submitted = self.submitted.remove(&task).is_some();
        if was_submitted && self.disk.borrow().view(&task).is_none() {
            self.inputs.push_back(Input::Withdrawn { task });
        } else if let Some(write) = write {
            self.inputs.push_back(Input::StoreFailed { task, write });
        }
    }

    /// Hands in that something is written; of results the requester is told.
    pub(super) fn acknowledge(&mut self, task: &TaskId, input: Option<Input>, effects: &mut Effects) {
        if self.submitted.remove(task).is_some() {
            effects.push(Effect::Observe(Seen::Submitted { task: task.clone() }));
        }
        let Some(input) = input else { return };
        if let Input::Published { task, .. } = &input {
            self.report(task, None, effects);
        }
        self.inputs.push_back(input);
    }

    /// Tells the requester how the last run of this node ended.
    pub(super) fn report(&mut self, task: &TaskId, epoch: Option<Epoch>, effects: &mut Effects) {
        let Some(view) = self.disk.borrow().view(task) else { return };
        let Some(requester) = view.requester.peer.clone().filter(|_| view.requester.proven) else { return };
        let mine = view.grants.iter().rev().filter(|grant| grant.worker.node() == Some(self.me()));
        let mut mine = mine.filter(|grant| epoch.is_none_or(|epoch| grant.epoch == epoch));
        let Some(grant) = mine.next().filter(|_| requester != *self.me()) else { return };
        let Some(result) = view.results.iter().find(|result| result.grant == grant.hash) else { return };
        let outcome = match result.error.clone() {
            None => Outcome::Completed,
            Some(reason) => Outcome::Failed { reason, retry: true },
        };
        let message = Message::Finished { task: task.clone(), epoch: grant.epoch, outcome };
        effects.push(Effect::Send { to: self.position(&requester), message });
    }
}

pub(super) fn acknowledgement(task: &TaskId, ack: Ack, entry: &Entry) -> Option<Input> {
    let task = task.clone();
    match (ack, &entry.document) {
        (Ack::Grant(epoch), Document::Task(written)) => {
            Some(Input::Stored { task, epoch, grant: written.hash.clone() })
        }
        (Ack::Result(run), _) => Some(Input::Published { task, run }),
        _ => None,
    }
}
