//! What the dispatcher says is done.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::liveness::PeerState;
use bombus_core::tasks::dispatch::{
    Answer, Candidate, Decline, Failure, Input, Offered, Outcome, Output, RunId, Write,
};
use bombus_core::tasks::{AttemptFailure, Epoch, GrantedBy, ResultDocument, TaskDocument, TaskId, TaskStatus, Worker};
use bombus_testkit::simulator::Effect;

use super::super::log::{Draft, identity, proof};
use super::{ASK_MS, Ack, Effects, Later, Message, Question, Seen, TaskNode};

impl TaskNode {
    fn send(&self, to: &NodeId, message: Message, effects: &mut Effects) {
        effects.push(Effect::Send { to: self.position(to), message });
    }

    pub(super) fn carry_out(&mut self, now_ms: u64, output: Output, effects: &mut Effects) {
        match output {
            Output::Sync => {
                for peer in self.linked.clone() {
                    self.send_have(peer, true, effects);
                }
                self.at(now_ms + 500, Later::Synced);
            }
            Output::Rank { task } => self.rank(task),
            Output::Submit { task } => {
                let document = self.submitted[&task].clone();
                self.write(now_ms, &task, Draft::Task(Box::new(document)), Ack::Submit, effects);
            }
            Output::Grant { task, epoch, worker, by, attempt } => {
                let draft = self.claimed(&task, epoch, &worker, by, attempt);
                self.write(now_ms, &task, draft, Ack::Grant(epoch), effects);
            }
            Output::Release { task, epoch, failure } => {
                let mut document = self.next(&task, TaskStatus::Pending, failure);
                document.released = Some(epoch);
                self.write(
                    now_ms,
                    &task,
                    Draft::Task(Box::new(document)),
                    Ack::None(Some(Write::Release(epoch))),
                    effects,
                );
            }
            Output::GiveUp { task, epoch } => {
                let mut document = self.next(&task, TaskStatus::Pending, None);
                document.released = Some(epoch);
                document.worker_identity = Some(identity(self.index));
                document.worker_proof = Some(proof(self.me(), &task, &identity(self.index)));
                self.write(now_ms, &task, Draft::Task(Box::new(document)), Ack::None(None), effects);
            }
            Output::Settle { task, status, grant, result, failure, error } => {
                let mut document = self.next(&task, status, failure);
                (document.grant, document.result) = (grant, result);
                (document.settled, document.error) = (Some(true), error);
                self.write(now_ms, &task, Draft::Task(Box::new(document)), Ack::None(Some(Write::Settle)), effects);
            }
            Output::Offer { task, epoch, worker, grant, resume } => {
                self.offer(task, epoch, &worker, grant, resume, effects);
            }
            Output::Acknowledge { task, epoch, beat } => {
                if let Some((worker, _)) = self.streams.get(&task) {
                    effects.push(Effect::Send { to: *worker, message: Message::Renewed { task, epoch, beat } });
                }
            }
            Output::Revoke { task, epoch, worker } => {
                self.end_stream(&task, epoch);
                self.send(&worker, Message::Revoke { task, epoch }, effects);
            }
            Output::Accept { task, epoch, requester, run } => {
                self.send(&requester, Message::Accepted { task, epoch, began: run.is_some() }, effects);
            }
            Output::Decline { task, epoch, requester, reason } => {
                self.send(&requester, Message::Declined { task, epoch, reason }, effects);
            }
            Output::Report { task, epoch, .. } => self.report(&task, Some(epoch), effects),
            Output::HandBack { task, epoch, requester } => {
                self.send(&requester, Message::Finished { task, epoch, outcome: Outcome::HandedBack }, effects);
            }
            Output::Renew { task, epoch, requester, beat } => {
                self.send(&requester, Message::Renew { task, epoch, beat }, effects);
            }
            Output::Run { task, run, epoch, .. } => self.run(now_ms, task, run, epoch, effects),
            Output::Abort { task, run } => self.abort(now_ms, task, run),
            Output::Publish { task, run, epoch, grant, outcome } => {
                let mut result = ResultDocument::new(task.clone(), self.me().to_string(), now_ms);
                (result.grant, result.epoch) = (Some(grant), Some(epoch));
                result.worker_identity = Some(identity(self.index));
                result.worker_proof = Some(proof(self.me(), &task, &identity(self.index)));
                match outcome {
                    Outcome::Completed => result.response = format!("answer to {task}"),
                    Outcome::Failed { reason, .. } => result.error = Some(reason),
                    Outcome::HandedBack => panic!("what is handed back has no result"),
                }
                self.write(now_ms, &task, Draft::Result(Box::new(result)), Ack::Result(run), effects);
            }
            Output::AskAround { task, requester } => self.ask_around(now_ms, task, &requester, effects),
            Output::Drained => effects.push(Effect::Observe(Seen::Drained)),
        }
    }

    fn rank(&mut self, task: TaskId) {
        let model = self.so_far(&task).0.model;
        let mut nodes: Vec<usize> = (0..self.ids.len()).filter(|node| self.shape.runs(*node, &model)).collect();
        nodes.retain(|node| {
            let there = self.linked.contains(node) && self.peer.state(*node) != Some(PeerState::Gone);
            *node == self.index || there
        });
        let first = if nodes.is_empty() { 0 } else { self.random.index(nodes.len()) };
        nodes.rotate_left(first);
        let candidate =
            |node: usize| Candidate { node: self.ids[node].clone(), slots: self.shape.slots[node], queue: 2 };
        let candidates = nodes.into_iter().map(candidate).collect();
        self.inputs.push_back(Input::Ranked { task, candidates });
    }

    /// Makes the next document about a task, with the failures so far.
    fn next(&self, task: &TaskId, status: TaskStatus, failure: Option<Failure>) -> TaskDocument {
        let (document, mut failures) = self.so_far(task);
        if let Some(failure) = failure {
            failures.retain(|known| known.epoch != failure.epoch);
            let worker_peer_id = failure.worker.peer().to_owned();
            failures.push(AttemptFailure { epoch: failure.epoch, worker_peer_id, reason: failure.reason, at: 0 });
        }
        TaskDocument { status, failures: Some(failures), ..document }
    }

    /// Returns a task as it was submitted, with its failures so far.
    fn so_far(&self, task: &TaskId) -> (TaskDocument, Vec<AttemptFailure>) {
        match self.disk.borrow().view(task) {
            Some(view) => (TaskDocument::clone(&view.task), view.failures),
            None => (self.submitted[task].clone(), Vec::new()),
        }
    }

    fn claimed(&self, task: &TaskId, epoch: Epoch, worker: &Worker, by: GrantedBy, attempt: u32) -> Draft {
        let mut document = self.next(task, TaskStatus::Claimed, None);
        (document.epoch, document.granted_by, document.attempt) = (Some(epoch), Some(by), Some(attempt));
        document.worker_peer_id = Some(worker.peer().to_owned());
        if by == GrantedBy::SelfClaim {
            document.worker_identity = Some(identity(self.index));
            document.worker_proof = Some(proof(self.me(), task, &identity(self.index)));
        } else if let Worker::Foreign { identity, .. } = worker {
            document.worker_identity = Some(identity.clone());
        }
        Draft::Task(Box::new(document))
    }

    fn offer(
        &mut self,
        task: TaskId,
        epoch: Epoch,
        worker: &NodeId,
        grant: String,
        resume: bool,
        effects: &mut Effects,
    ) {
        let peer = self.position(worker);
        self.streams.remove(&task);
        if !self.linked.contains(&peer) {
            return self.inputs.push_back(Input::Declined { task, epoch, reason: Decline::Unreachable });
        }
        let view = self.disk.borrow().view(&task).expect("the dispatcher knows tasks of the store only");
        self.streams.insert(task.clone(), (peer, epoch));
        let (priority, timeout) = (view.task.priority(), view.task.timeout_ms.map(Duration::from_millis));
        let requester = self.me().clone();
        let offer = Box::new(Offered { task, requester, epoch, grant, resume, able: true, priority, timeout });
        let document = Rc::new(TaskDocument::clone(&view.task));
        effects.push(Effect::Send { to: peer, message: Message::Offer { offer, document } });
    }

    fn run(&mut self, now_ms: u64, task: TaskId, run: RunId, epoch: Epoch, effects: &mut Effects) {
        effects.push(Effect::Observe(Seen::Began { task: task.clone() }));
        let at_ms = now_ms + self.random.within(&self.shape.run_ms.clone());
        let outcome = if self.random.chance(self.shape.failed_runs) {
            Outcome::Failed { reason: "the model failed".to_owned(), retry: true }
        } else {
            Outcome::Completed
        };
        self.at(at_ms, Later::RunEnded { task: task.clone(), run, outcome });
        self.runs.insert(run, (task.clone(), self.number));
        let view = self.disk.borrow().view(&task);
        let requester = view.and_then(|view| view.requester.peer.filter(|_| view.requester.proven));
        if let Some(requester) = requester.filter(|requester| requester != self.me()) {
            self.send(&requester, Message::Began { task, epoch }, effects);
        }
    }

    fn abort(&mut self, now_ms: u64, task: TaskId, run: RunId) {
        // One that has ended is only forgotten.
        if let Some((_, number)) = self.runs.remove(&run) {
            self.later.retain(|(_, other), _| *other != number);
            let at_ms = now_ms + self.random.index(50) as u64;
            self.at(at_ms, Later::RunEnded { task, run, outcome: Outcome::HandedBack });
        }
    }

    fn ask_around(&mut self, now_ms: u64, task: TaskId, requester: &Option<NodeId>, effects: &mut Effects) {
        let there = (0..self.ids.len())
            .filter(|peer| matches!(self.peer.state(*peer), Some(state) if state != PeerState::Gone));
        let waits_for: BTreeSet<usize> = there.filter(|peer| *peer != self.index).collect();
        for peer in &waits_for {
            let message = Message::Ask { task: task.clone(), requester: requester.clone() };
            effects.push(Effect::Send { to: *peer, message });
        }
        let alone = waits_for.is_empty();
        let answer = Answer { requester_seen: false, running: false };
        self.questions.insert(task.clone(), Question { waits_for, answer });
        if alone {
            self.tell_answers(&task);
        } else {
            self.at(now_ms + ASK_MS, Later::AskOver { task });
        }
    }
}
