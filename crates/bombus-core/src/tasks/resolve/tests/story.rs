//! What is written about a task, by whom, in the order in which it happened.

use std::cell::OnceCell;
use std::sync::Arc;

use crate::identity::{NodeId, NodeKey};
use crate::tasks::{
    AttemptFailure, Epoch, GrantedBy, Order, ResultDocument, TaskDocument, TaskId, TaskStatus, TaskView, Written,
};

/// The requester.
pub(super) const R: u8 = 0;
/// A worker.
pub(super) const W: u8 = 1;
/// Another worker.
pub(super) const V: u8 = 2;
/// A peer that knows no grants.
pub(super) const J: u8 = 3;
/// Another such peer.
pub(super) const K: u8 = 4;

const NAMES: [&str; 5] = ["R", "W", "V", "J", "K"];

pub(super) fn id() -> TaskId {
    TaskId::parse("t").unwrap()
}

pub(super) fn node(who: u8) -> NodeId {
    thread_local! {
        static NODES: OnceCell<Vec<NodeId>> = const { OnceCell::new() };
    }
    let all = || (0..=K).map(|who| NodeKey::from_secret(&[who; 32]).node_id()).collect();
    NODES.with(|nodes| nodes.get_or_init(all)[usize::from(who)].clone())
}

pub(super) fn peer(who: u8) -> String {
    node(who).to_string()
}

pub(super) fn identity(who: u8) -> String {
    format!("identity of {}", NAMES[usize::from(who)])
}

/// Stands for the signature of a node over an identity.
pub(super) fn proof(who: u8, whose_identity: u8) -> String {
    format!("{} is {}", node(who), identity(whose_identity))
}

pub(super) fn failure(epoch: u64, who: u8, reason: &str) -> AttemptFailure {
    AttemptFailure { epoch: Epoch(epoch), worker_peer_id: peer(who), reason: reason.to_owned(), at: 1 }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Story {
    pub(super) tasks: Vec<Written<TaskDocument>>,
    pub(super) results: Vec<Written<ResultDocument>>,
    time: u64,
}

impl Story {
    /// Begins at a later time.
    pub(super) fn at(time: u64) -> Self {
        Self { time, ..Self::default() }
    }

    /// Puts two stories together.
    pub(super) fn with(&self, other: &Self) -> Self {
        let tasks = self.tasks.iter().chain(&other.tasks).cloned().collect();
        let results = self.results.iter().chain(&other.results).cloned().collect();
        Self { tasks, results, time: self.time.max(other.time) }
    }

    pub(super) fn view(&self) -> Option<TaskView> {
        self.view_by(|node, _, identity, proof| proof == format!("{node} is {identity}"))
    }

    pub(super) fn view_by(&self, proof_ok: impl Fn(&NodeId, &TaskId, &str, &str) -> bool) -> Option<TaskView> {
        super::resolve(&id(), &self.tasks, &self.results, proof_ok)
    }

    /// Writes a document of which nothing but task and requester is set.
    pub(super) fn write(&mut self, who: u8, set: impl FnOnce(&mut TaskDocument)) -> String {
        let mut document = TaskDocument::new(id(), peer(R), 1);
        document.requester_peer_id = peer(who);
        document.prompt = "Why?".to_owned();
        set(&mut document);
        let written = self.written(who, document);
        self.tasks.push(written);
        self.tasks[self.tasks.len() - 1].hash.clone()
    }

    fn written<T>(&mut self, who: u8, value: T) -> Written<T> {
        self.time += 1;
        let mut entry = [0; 32];
        entry[..8].copy_from_slice(&self.time.to_be_bytes());
        let order = Order { generation: 1, time: self.time, writer: [who; 33], entry };
        Written { hash: format!("zdpu{:06}", self.time), order, writer: identity(who), value: Arc::new(value) }
    }

    pub(super) fn submit(&mut self, who: u8) -> String {
        self.write(who, |task| {
            task.requester_identity = Some(identity(who));
            task.requester_proof = Some(proof(who, who));
        })
    }

    /// Submits the task and grants it to a node, with one entry.
    pub(super) fn submit_granted(&mut self, who: u8, worker: u8) -> String {
        self.write(who, |task| {
            task.requester_identity = Some(identity(who));
            task.requester_proof = Some(proof(who, who));
            task.status = TaskStatus::Claimed;
            task.epoch = Some(Epoch(1));
            task.granted_by = Some(GrantedBy::Requester);
            task.worker_peer_id = Some(peer(worker));
            task.attempt = Some(1);
        })
    }

    pub(super) fn release(&mut self, who: u8, epoch: u64, failures: Vec<AttemptFailure>) -> String {
        self.write(who, |task| {
            task.released = Some(Epoch(epoch));
            task.failures = Some(failures);
            task.worker_peer_id = Some(peer(who));
            task.worker_proof = Some(proof(who, who));
        })
    }

    /// Grants the task to a node as its requester does.
    pub(super) fn grant(&mut self, who: u8, epoch: u64, worker: u8) -> String {
        self.write(who, |task| {
            task.status = TaskStatus::Claimed;
            task.epoch = Some(Epoch(epoch));
            task.granted_by = Some(GrantedBy::Requester);
            task.worker_peer_id = Some(peer(worker));
            task.attempt = Some(u32::try_from(epoch).unwrap());
        })
    }

    /// Grants the task to whoever holds an identity.
    pub(super) fn honour(&mut self, who: u8, epoch: u64, bidder: u8) -> String {
        self.write(who, |task| {
            task.status = TaskStatus::Claimed;
            task.epoch = Some(Epoch(epoch));
            task.granted_by = Some(GrantedBy::Requester);
            task.worker_peer_id = Some(peer(bidder));
            task.worker_identity = Some(identity(bidder));
        })
    }

    pub(super) fn claim_self(&mut self, who: u8, epoch: u64) -> String {
        self.claim_with(who, epoch, |_| {})
    }

    pub(super) fn claim_with(&mut self, who: u8, epoch: u64, set: impl FnOnce(&mut TaskDocument)) -> String {
        self.write(who, |task| {
            task.status = TaskStatus::Claimed;
            task.epoch = Some(Epoch(epoch));
            task.granted_by = Some(GrantedBy::SelfClaim);
            task.worker_peer_id = Some(peer(who));
            task.worker_identity = Some(identity(who));
            task.worker_proof = Some(proof(who, who));
            task.attempt = u32::try_from(epoch).ok();
            set(task);
        })
    }

    pub(super) fn running(&mut self, who: u8, epoch: u64) -> String {
        self.write(who, |task| {
            task.status = TaskStatus::Running;
            task.epoch = Some(Epoch(epoch));
            task.worker_peer_id = Some(peer(who));
            task.worker_proof = Some(proof(who, who));
        })
    }

    pub(super) fn settle(&mut self, who: u8, status: TaskStatus, grant: Option<&str>, result: Option<&str>) -> String {
        self.write(who, |task| {
            task.status = status;
            task.grant = grant.map(str::to_owned);
            task.result = result.map(str::to_owned);
            task.settled = Some(true);
            task.completed_at = Some(9);
        })
    }

    /// Writes as a peer that knows no grants does.
    pub(super) fn plain(&mut self, who: u8, status: TaskStatus) -> String {
        self.write(who, |task| {
            task.requester_peer_id = peer(J);
            task.status = status;
            task.worker_peer_id = Some(peer(who)).filter(|_| status != TaskStatus::Pending);
        })
    }

    pub(super) fn answer(&mut self, who: u8, grant: &str) -> String {
        self.answer_with(who, Some(grant), |_| {})
    }

    pub(super) fn fails(&mut self, who: u8, grant: Option<&str>, error: &str) -> String {
        self.answer_with(who, grant, |result| result.error = Some(error.to_owned()))
    }

    pub(super) fn answer_with(
        &mut self,
        who: u8,
        grant: Option<&str>,
        set: impl FnOnce(&mut ResultDocument),
    ) -> String {
        let mut document = ResultDocument::new(id(), peer(who), 8);
        document.response = format!("answer of {}", NAMES[usize::from(who)]);
        if let Some(grant) = grant {
            document.grant = Some(grant.to_owned());
            document.worker_identity = Some(identity(who));
            document.worker_proof = Some(proof(who, who));
        }
        set(&mut document);
        let written = self.written(who, document);
        self.results.push(written);
        self.results[self.results.len() - 1].hash.clone()
    }
}
