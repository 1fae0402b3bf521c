//! A node of the simulated swarm: the dispatcher, and around it what a real node has: a disk, streams, a failure detector, models.

mod outputs;
mod writing;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::tasks::dispatch::{
    Answer, Decline, DispatchConfig, Dispatcher, Input, Needs, Offered, Outcome, RunId, TaskFacts, Write,
};
use bombus_core::tasks::{Epoch, ResultDocument, TaskDocument, TaskId, TaskStatus, TaskView};
use bombus_testkit::simulator::{Birth, Effect, Event, Machine, SimulatorRandom};

use super::log::{Disk, Draft, Entry, identity, proof};
use super::world::{Shape, Truth};
use crate::peer::{self, Packet, Peer};

/// How often a node compares its log with that of another one, in milliseconds.
const COMPARE_MS: u64 = 1_000;
/// How long a node waits for answers when it asks around, in milliseconds.
const ASK_MS: u64 = 1_000;

/// What travels between the nodes.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Liveness(Packet),
    Entries(Rc<Vec<Entry>>),
    /// What the sender has of the log; whoever has more sends it, and asks in turn where it lacks something.
    Have {
        have: Rc<BTreeMap<usize, u64>>,
        again: bool,
    },
    Offer {
        offer: Box<Offered>,
        document: Rc<TaskDocument>,
    },
    Accepted {
        task: TaskId,
        epoch: Epoch,
        began: bool,
    },
    Began {
        task: TaskId,
        epoch: Epoch,
    },
    Declined {
        task: TaskId,
        epoch: Epoch,
        reason: Decline,
    },
    Renew {
        task: TaskId,
        epoch: Epoch,
        beat: u32,
    },
    Renewed {
        task: TaskId,
        epoch: Epoch,
        beat: u32,
    },
    Revoke {
        task: TaskId,
        epoch: Epoch,
    },
    Finished {
        task: TaskId,
        epoch: Epoch,
        outcome: Outcome,
    },
    Ask {
        task: TaskId,
        requester: Option<NodeId>,
    },
    Answer {
        task: TaskId,
        answer: Answer,
    },
}

/// What a test tells a node.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Submit(Box<TaskDocument>),
    /// As a program does that knows no grants.
    SubmitForeign(Box<TaskDocument>),
    /// A worker that knows no grants claims a task, and answers it at once where it is told to.
    Bid {
        task: TaskId,
        answers: bool,
    },
    Cancel(TaskId),
    Drain,
}

/// What a node tells the test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Who submitted it was told that it is safe.
    Submitted {
        task: TaskId,
    },
    Began {
        task: TaskId,
    },
    Ended {
        task: TaskId,
    },
    Drained,
}

/// What happens on a node after a while.
enum Later {
    Written {
        task: TaskId,
        draft: Box<Draft>,
        ack: Ack,
    },
    /// A write that was made at once is acknowledged.
    Acknowledged {
        task: TaskId,
        input: Option<Box<Input>>,
    },
    /// A write has failed, as far as can be seen.
    Failed {
        task: TaskId,
        write: Option<Write>,
    },
    RunEnded {
        task: TaskId,
        run: RunId,
        outcome: Outcome,
    },
    Synced,
    AskOver {
        task: TaskId,
    },
    Compare,
}

/// Who waits for a write.
#[derive(Clone, Copy)]
enum Ack {
    Submit,
    Grant(Epoch),
    Result(RunId),
    None(Option<Write>),
}

struct Question {
    waits_for: BTreeSet<usize>,
    answer: Answer,
}

pub(crate) struct TaskNode {
    peer: Peer,
    peer_wake_ms: u64,
    ids: Rc<Vec<NodeId>>,
    index: usize,
    shape: Rc<Shape>,
    random: SimulatorRandom,
    /// Each node has a clock of its own.
    offset_ms: u64,
    linked: BTreeSet<usize>,
    dispatcher: Dispatcher,
    disk: Rc<RefCell<Disk>>,
    truth: Rc<RefCell<Truth>>,
    inputs: VecDeque<Input>,
    later: BTreeMap<(u64, u64), Later>,
    number: u64,
    /// Offers of this node that have not ended: to whom, and under which epoch.
    streams: BTreeMap<TaskId, (usize, Epoch)>,
    runs: BTreeMap<RunId, (TaskId, u64)>,
    questions: BTreeMap<TaskId, Question>,
    fresh: BTreeSet<TaskId>,
    /// Tasks that are submitted here, as long as nobody was told that they are safe.
    submitted: BTreeMap<TaskId, TaskDocument>,
    /// When the last write about a task is made: they are made in their order.
    last_write_ms: BTreeMap<TaskId, u64>,
    /// Whether a write is on the disk before it is acknowledged, or only then.
    writes_early: bool,
}

type Effects = Vec<Effect<Message, Seen>>;

impl TaskNode {
    pub(crate) fn new(
        birth: Birth,
        ids: Rc<Vec<NodeId>>,
        shape: Rc<Shape>,
        disk: Rc<RefCell<Disk>>,
        truth: Rc<RefCell<Truth>>,
    ) -> Self {
        let mut random = SimulatorRandom::new(birth.seed);
        let offset_ms = random.index(1_000_000) as u64;
        let now = Duration::from_millis(birth.now_ms + offset_ms);
        let config = DispatchConfig { slots: shape.slots[birth.index], ..shape.config.clone() };
        let dispatcher = Dispatcher::new(ids[birth.index].clone(), config, now, birth.seed);
        Self {
            peer: Peer::new(birth, Rc::clone(&ids), false),
            peer_wake_ms: u64::MAX,
            ids,
            index: birth.index,
            shape,
            offset_ms,
            linked: BTreeSet::new(),
            dispatcher,
            disk,
            truth,
            inputs: VecDeque::new(),
            later: BTreeMap::new(),
            number: 0,
            streams: BTreeMap::new(),
            runs: BTreeMap::new(),
            questions: BTreeMap::new(),
            fresh: BTreeSet::new(),
            submitted: BTreeMap::new(),
            last_write_ms: BTreeMap::new(),
            writes_early: random.chance(0.5),
            random,
        }
    }

    /// Returns how many tasks the dispatcher remembers.
    pub(crate) fn remembered(&self) -> usize {
        self.dispatcher.tasks()
    }

    fn me(&self) -> &NodeId {
        &self.ids[self.index]
    }

    fn position(&self, id: &NodeId) -> usize {
        self.ids.iter().position(|other| other == id).expect("the dispatcher names nodes of the swarm only")
    }

    fn at(&mut self, at_ms: u64, later: Later) {
        self.number += 1;
        self.later.insert((at_ms, self.number), later);
    }

    fn facts(&self, view: &TaskView) -> TaskFacts {
        let fresh = self.fresh.contains(&view.task.id);
        TaskFacts::of(view, view.task.model.clone(), Needs::Ready, fresh)
    }

    /// Tells the dispatcher and the test what a task looks like now.
    fn look_at(&mut self, task: &TaskId) {
        let view = self.disk.borrow().view(task);
        if let Some(view) = view {
            self.truth.borrow_mut().saw(self.index, &view);
            self.inputs.push_back(Input::Task(Box::new(self.facts(&view))));
        }
    }

    fn start(&mut self, now_ms: u64, effects: &mut Effects) {
        let tasks = self.disk.borrow().tasks();
        for task in tasks {
            self.look_at(&task);
        }
        self.inputs.push_back(Input::Loaded);
        let synced_ms = now_ms + 200 + self.random.index(800) as u64;
        self.at(synced_ms, Later::Synced);
        let compare_ms = now_ms + self.random.index(1_000) as u64;
        self.at(compare_ms, Later::Compare);
        self.detector(now_ms, Event::Start, effects);
    }

    fn detector(&mut self, now_ms: u64, event: Event<Packet, peer::Order>, effects: &mut Effects) {
        for effect in self.peer.on(now_ms, event) {
            match effect {
                Effect::Send { to, message } => effects.push(Effect::Send { to, message: Message::Liveness(message) }),
                Effect::Dial(to) => effects.push(Effect::Dial(to)),
                Effect::WakeAt(at_ms) => self.peer_wake_ms = at_ms,
                Effect::Observe(peer::Seen::State { peer, state, .. }) => {
                    self.inputs.push_back(Input::Peer { node: self.ids[peer].clone(), state });
                }
                Effect::Observe(_) => {}
            }
        }
    }

    fn order(&mut self, now_ms: u64, order: Order, effects: &mut Effects) {
        match order {
            Order::Submit(mut document) => {
                let task = document.id.clone();
                document.requester_peer_id = self.me().to_string();
                document.requester_identity = Some(identity(self.index));
                document.requester_proof = Some(proof(self.me(), &task, &identity(self.index)));
                self.fresh.insert(task.clone());
                let (me, class) = (self.me().clone(), document.model.clone());
                let facts = TaskFacts::submitted(&document, me, class, Needs::Ready);
                self.submitted.insert(task, *document);
                self.inputs.push_back(Input::Submit(Box::new(facts)));
            }
            Order::SubmitForeign(mut document) => {
                document.requester_peer_id = "somebody".to_owned();
                self.write_now(Draft::Task(document), effects);
            }
            Order::Bid { task, answers } => {
                let Some(view) = self.disk.borrow().view(&task) else { return };
                let document = TaskDocument {
                    status: TaskStatus::Claimed,
                    worker_peer_id: Some(format!("foreign-{}", self.index)),
                    ..TaskDocument::clone(&view.task)
                };
                self.write_now(Draft::Task(Box::new(document)), effects);
                if answers {
                    let result = ResultDocument::new(task, format!("foreign-{}", self.index), now_ms);
                    self.write_now(Draft::Result(Box::new(result)), effects);
                }
            }
            Order::Cancel(task) => {
                let Some(view) = self.disk.borrow().view(&task) else { return };
                if view.requester.peer.as_ref() == Some(self.me()) {
                    self.inputs.push_back(Input::Cancel { task });
                } else {
                    let document = TaskDocument { status: TaskStatus::Cancelled, ..TaskDocument::clone(&view.task) };
                    self.write_now(Draft::Task(Box::new(document)), effects);
                }
            }
            Order::Drain => self.inputs.push_back(Input::Drain { grace: Duration::from_secs(3) }),
        }
    }

    fn do_later(&mut self, now_ms: u64, later: Later, effects: &mut Effects) {
        match later {
            Later::Written { task, draft, ack } => {
                let entry = self.write_now(*draft, effects);
                self.acknowledge(&task, writing::acknowledgement(&task, ack, &entry), effects);
            }
            Later::Acknowledged { task, input } => self.acknowledge(&task, input.map(|input| *input), effects),
            Later::Failed { task, write } => self.write_failed(task, write),
            Later::RunEnded { task, run, outcome } => {
                self.runs.remove(&run);
                effects.push(Effect::Observe(Seen::Ended { task: task.clone() }));
                self.inputs.push_back(Input::RunEnded { task, run, outcome });
            }
            Later::Synced => self.inputs.push_back(Input::Synced),
            Later::AskOver { task } => self.tell_answers(&task),
            Later::Compare => {
                self.at(now_ms + COMPARE_MS, Later::Compare);
                let peers: Vec<usize> = self.linked.iter().copied().collect();
                if !peers.is_empty() {
                    let peer = peers[self.random.index(peers.len())];
                    self.send_have(peer, true, effects);
                }
            }
        }
    }

    fn send_have(&mut self, peer: usize, again: bool, effects: &mut Effects) {
        let have = Rc::new(self.disk.borrow().have());
        effects.push(Effect::Send { to: peer, message: Message::Have { have, again } });
    }

    fn hear(&mut self, now_ms: u64, from: usize, message: Message, effects: &mut Effects) {
        match message {
            Message::Liveness(packet) => self.detector(now_ms, Event::Message { from, message: packet }, effects),
            Message::Entries(entries) => {
                let mut changed = BTreeSet::new();
                for entry in entries.iter() {
                    if self.disk.borrow_mut().join(entry) {
                        changed.insert(entry.task().clone());
                    }
                }
                for task in changed {
                    self.look_at(&task);
                }
            }
            Message::Have { have, again } => {
                let missing = self.disk.borrow().missing(&have);
                if !missing.is_empty() {
                    effects.push(Effect::Send { to: from, message: Message::Entries(Rc::new(missing)) });
                }
                if again {
                    self.send_have(from, false, effects);
                }
            }
            Message::Offer { mut offer, document } => {
                offer.able = self.shape.runs(self.index, &document.model);
                self.inputs.push_back(Input::Offered(offer));
            }
            Message::Accepted { task, epoch, began } => {
                self.inputs.push_back(Input::Accepted { task: task.clone(), epoch });
                if began {
                    self.inputs.push_back(Input::Began { task, epoch });
                }
            }
            Message::Began { task, epoch } => self.inputs.push_back(Input::Began { task, epoch }),
            Message::Declined { task, epoch, reason } => {
                self.end_stream(&task, epoch);
                self.inputs.push_back(Input::Declined { task, epoch, reason });
            }
            Message::Renew { task, epoch, beat } => self.inputs.push_back(Input::Renewed { task, epoch, beat }),
            Message::Renewed { task, epoch, beat } => self.inputs.push_back(Input::Acknowledged { task, epoch, beat }),
            Message::Revoke { task, epoch } => self.inputs.push_back(Input::Revoked { task, epoch }),
            Message::Finished { task, epoch, outcome } => {
                self.end_stream(&task, epoch);
                self.inputs.push_back(Input::Finished { task, epoch, outcome });
            }
            Message::Ask { task, requester } => {
                let answer = self.dispatcher.answer(&task, requester.as_ref());
                effects.push(Effect::Send { to: from, message: Message::Answer { task, answer } });
            }
            Message::Answer { task, answer } => {
                let Some(question) = self.questions.get_mut(&task) else { return };
                question.answer.requester_seen |= answer.requester_seen;
                question.answer.running |= answer.running;
                question.waits_for.remove(&from);
                if question.waits_for.is_empty() {
                    self.tell_answers(&task);
                }
            }
        }
    }

    fn tell_answers(&mut self, task: &TaskId) {
        let Some(question) = self.questions.remove(task) else { return };
        let unanswered = question.waits_for.iter().map(|peer| self.ids[*peer].clone()).collect();
        let Answer { requester_seen, running } = question.answer;
        self.inputs.push_back(Input::Answers { task: task.clone(), requester_seen, running, unanswered });
    }

    fn end_stream(&mut self, task: &TaskId, epoch: Epoch) {
        if self.streams.get(task).is_some_and(|(_, open)| *open == epoch) {
            self.streams.remove(task);
        }
    }

    fn link_down(&mut self, peer: usize) {
        self.linked.remove(&peer);
        let broken: Vec<_> = self.streams.iter().filter(|(_, (worker, _))| *worker == peer).collect();
        let broken: Vec<(TaskId, Epoch)> =
            broken.into_iter().map(|(task, (_, epoch))| (task.clone(), *epoch)).collect();
        for (task, epoch) in broken {
            self.streams.remove(&task);
            self.inputs.push_back(Input::Broken { task, epoch });
        }
    }

    /// Lets the dispatcher take what has come, until it has nothing more to say.
    fn dispatch(&mut self, now_ms: u64, effects: &mut Effects) {
        let now = Duration::from_millis(now_ms + self.offset_ms);
        let mut rounds = 0;
        while let Some(input) = self.inputs.pop_front() {
            rounds += 1;
            assert!(rounds < 100_000, "the dispatcher of node {} goes on for ever", self.index);
            for output in self.dispatcher.on(now, input) {
                self.carry_out(now_ms, output, effects);
            }
        }
    }

    fn wake_ms(&self) -> u64 {
        let later_ms = self.later.first_key_value().map_or(u64::MAX, |((at_ms, _), _)| *at_ms);
        let deadline = self
            .dispatcher
            .deadline()
            .map_or(u64::MAX, |at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX).saturating_sub(self.offset_ms));
        self.peer_wake_ms.min(later_ms).min(deadline)
    }
}

impl Machine for TaskNode {
    type Message = Message;
    type Command = Order;
    type Observation = Seen;

    fn on(&mut self, now_ms: u64, event: Event<Message, Order>) -> Effects {
        let mut effects = Vec::new();
        match event {
            Event::Start => self.start(now_ms, &mut effects),
            Event::Wake => {
                if now_ms >= self.peer_wake_ms {
                    self.detector(now_ms, Event::Wake, &mut effects);
                }
            }
            Event::Message { from, message } => self.hear(now_ms, from, message, &mut effects),
            Event::LinkUp(peer) => {
                self.linked.insert(peer);
                self.detector(now_ms, Event::LinkUp(peer), &mut effects);
                self.send_have(peer, true, &mut effects);
                self.inputs.push_back(Input::Candidates);
            }
            Event::LinkDown(peer) => {
                self.link_down(peer);
                self.detector(now_ms, Event::LinkDown(peer), &mut effects);
            }
            Event::Command(order) => self.order(now_ms, order, &mut effects),
        }
        self.inputs.push_back(Input::Tick);
        loop {
            self.dispatch(now_ms, &mut effects);
            let due = self.later.first_entry().filter(|due| due.key().0 <= now_ms);
            let Some(due) = due else { break };
            let later = due.remove();
            self.do_later(now_ms, later, &mut effects);
        }
        effects.push(Effect::WakeAt(self.wake_ms().max(now_ms + 1)));
        effects
    }
}
