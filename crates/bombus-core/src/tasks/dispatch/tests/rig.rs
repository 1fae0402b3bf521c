//! One dispatcher, told by hand what happens around it.

use std::time::Duration;

use crate::identity::{NodeId, NodeKey};
use crate::liveness::PeerState;
use crate::tasks::dispatch::{
    AnswerFacts, Candidate, DispatchConfig, Dispatcher, GrantFacts, Input, Needs, Offered, Outcome, Output, RunId,
    TaskFacts,
};
use crate::tasks::{Epoch, GrantedBy, TaskId, Worker};

pub(super) struct Rig {
    pub(super) dispatcher: Dispatcher,
    pub(super) now: Duration,
}

/// Returns a node by a letter. The dispatcher of a rig is `a`.
pub(super) fn node(letter: char) -> NodeId {
    NodeKey::from_secret(&[letter as u8; 32]).node_id()
}

pub(super) fn id(name: &str) -> TaskId {
    TaskId::parse(name).unwrap()
}

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A task of a node, of which nothing is known but that it is there.
pub(super) fn facts(name: &str, requester: char) -> TaskFacts {
    TaskFacts {
        task: id(name),
        requester: Some(node(requester)),
        fresh: true,
        class: "m".to_owned(),
        priority: 5,
        timeout: None,
        max_attempts: None,
        needs: Needs::Ready,
        settled: false,
        cancelling: false,
        highest: Epoch::NONE,
        released: Epoch::NONE,
        grant: None,
        attempts: 0,
        claims: 0,
        result: None,
        plain: true,
        bid: None,
    }
}

/// The same task with a live grant.
pub(super) fn granted(facts: TaskFacts, epoch: u64, worker: char, by: GrantedBy) -> TaskFacts {
    let grant = GrantFacts {
        epoch: Epoch(epoch),
        hash: format!("grant-{epoch}"),
        worker: Worker::Node(node(worker)),
        by,
        began: false,
        failed: None,
    };
    TaskFacts { highest: Epoch(epoch), grant: Some(grant), ..facts }
}

/// The same task with an answer to a grant.
pub(super) fn answered(facts: TaskFacts, epoch: u64) -> TaskFacts {
    TaskFacts { result: Some(AnswerFacts { grant: format!("grant-{epoch}"), entry: "answer".to_owned() }), ..facts }
}

pub(super) fn config() -> DispatchConfig {
    DispatchConfig { slots: 2, queue: 2, ..DispatchConfig::default() }
}

impl Rig {
    pub(super) fn new(config: DispatchConfig) -> Self {
        let now = Duration::from_secs(1_000);
        Self { dispatcher: Dispatcher::new(node('a'), config, now, 7), now }
    }

    /// A node that has synced, and sees these others.
    pub(super) fn synced(config: DispatchConfig, others: &str) -> Self {
        let mut rig = Self::new(config);
        rig.on(Input::Loaded);
        rig.on(Input::Synced);
        for letter in others.chars() {
            rig.on(Input::Peer { node: node(letter), state: PeerState::Alive });
        }
        rig
    }

    pub(super) fn on(&mut self, input: Input) -> Vec<Output> {
        let outputs = self.dispatcher.on(self.now, input);
        assert!(self.dispatcher.deadline().is_none_or(|due| due > self.now), "what is due is done");
        outputs
    }

    pub(super) fn task(&mut self, facts: TaskFacts) -> Vec<Output> {
        self.on(Input::Task(Box::new(facts)))
    }

    pub(super) fn submit(&mut self, name: &str) -> Vec<Output> {
        self.on(Input::Submit(Box::new(facts(name, 'a'))))
    }

    /// Lets time pass, with a tick whenever one is due, and returns all that came of it.
    pub(super) fn pass(&mut self, time: Duration) -> Vec<Output> {
        let until = self.now + time;
        let mut outputs = Vec::new();
        while let Some(due) = self.dispatcher.deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            outputs.extend(self.on(Input::Tick));
        }
        self.now = until;
        outputs.extend(self.on(Input::Tick));
        outputs
    }

    /// Lets time pass without a tick, as in sleep, and returns what comes of the first one.
    pub(super) fn sleep(&mut self, time: Duration) -> Vec<Output> {
        self.now += time;
        self.on(Input::Tick)
    }

    pub(super) fn ranked(&mut self, name: &str, letters: &str) -> Vec<Output> {
        let candidate = |letter| Candidate { node: node(letter), slots: 2, queue: if letter == 'a' { 0 } else { 2 } };
        self.on(Input::Ranked { task: id(name), candidates: letters.chars().map(candidate).collect() })
    }

    pub(super) fn stored(&mut self, name: &str, epoch: u64) -> Vec<Output> {
        self.on(Input::Stored { task: id(name), epoch: Epoch(epoch), grant: format!("grant-{epoch}") })
    }

    /// Submits a task and has a worker accept it.
    pub(super) fn placed(&mut self, name: &str, worker: char) {
        self.task(facts(name, 'a'));
        self.ranked(name, &worker.to_string());
        self.stored(name, 1);
        self.task(granted(facts(name, 'a'), 1, worker, GrantedBy::Requester));
        self.on(Input::Accepted { task: id(name), epoch: Epoch(1) });
    }

    pub(super) fn offered(&mut self, name: &str, requester: char, epoch: u64, resume: bool) -> Vec<Output> {
        self.offer(offer(name, requester, epoch, resume))
    }

    pub(super) fn offer(&mut self, offer: Offered) -> Vec<Output> {
        self.on(Input::Offered(Box::new(offer)))
    }

    pub(super) fn ended(&mut self, name: &str, run: RunId, outcome: Outcome) -> Vec<Output> {
        self.on(Input::RunEnded { task: id(name), run, outcome })
    }
}

pub(super) fn offer(name: &str, requester: char, epoch: u64, resume: bool) -> Offered {
    Offered {
        task: id(name),
        requester: node(requester),
        epoch: Epoch(epoch),
        grant: format!("grant-{epoch}"),
        resume,
        able: true,
        priority: 5,
        timeout: None,
    }
}

/// Returns the runs that begin, in their order.
pub(super) fn begun(outputs: &[Output]) -> Vec<(String, RunId)> {
    let run = |output: &Output| match output {
        Output::Run { task, run, .. } => Some((task.to_string(), *run)),
        _ => None,
    };
    outputs.iter().filter_map(run).collect()
}
