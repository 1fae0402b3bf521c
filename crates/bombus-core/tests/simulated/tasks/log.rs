//! What nodes have written about tasks, and the disk that it stands on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bombus_core::identity::NodeId;
use bombus_core::tasks::{Order, ResultDocument, TaskDocument, TaskId, TaskView, Written, resolve};

/// A document before it is written.
#[derive(Debug, Clone)]
pub(crate) enum Draft {
    Task(Box<TaskDocument>),
    Result(Box<ResultDocument>),
}

/// A document as it was written.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    Task(Written<TaskDocument>),
    Result(Written<ResultDocument>),
}

/// An entry of the log: the number of its writer, and its number among the writer's.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) writer: usize,
    pub(crate) number: u64,
    pub(crate) document: Document,
}

impl Entry {
    pub(crate) fn task(&self) -> &TaskId {
        match &self.document {
            Document::Task(written) => &written.value.id,
            Document::Result(written) => &written.value.task_id,
        }
    }

    fn time(&self) -> u64 {
        match &self.document {
            Document::Task(written) => written.order.time,
            Document::Result(written) => written.order.time,
        }
    }
}

/// What a node has on its disk. It outlives the node's process.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    entries: BTreeMap<(usize, u64), Entry>,
    /// How many entries of each writer are here without a gap.
    whole: BTreeMap<usize, u64>,
    clock: u64,
    tasks: HashMap<TaskId, About>,
}

#[derive(Debug, Default)]
struct About {
    tasks: Vec<Written<TaskDocument>>,
    results: Vec<Written<ResultDocument>>,
}

/// Returns under which identity a node writes.
pub(crate) fn identity(writer: usize) -> String {
    format!("identity-{writer}")
}

/// Returns a proof as good as a signature among honest nodes.
pub(crate) fn proof(node: &NodeId, task: &TaskId, identity: &str) -> String {
    format!("{node} writes about {task} as {identity}")
}

impl Disk {
    /// Writes a document as a node. Returns its entry.
    pub(crate) fn write(&mut self, writer: usize, draft: Draft) -> Entry {
        let number = self.whole.get(&writer).copied().unwrap_or(0);
        let time = self.clock + 1;
        let hash = format!("{:08x}", (writer as u64 * 7_919 + number).wrapping_mul(0x9e37_79b9) & 0xffff_ffff);
        let hash = format!("{hash}-{writer}-{number}");
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        let order = Order { generation: 1, time, writer: [writer as u8; 33], entry: digest };
        let document = match draft {
            Draft::Task(task) => {
                Document::Task(Written { hash, order, writer: identity(writer), value: Arc::from(task) })
            }
            Draft::Result(result) => {
                Document::Result(Written { hash, order, writer: identity(writer), value: Arc::from(result) })
            }
        };
        let entry = Entry { writer, number, document };
        self.join(&entry);
        entry
    }

    /// Takes an entry of anybody. Returns whether it is new.
    pub(crate) fn join(&mut self, entry: &Entry) -> bool {
        let key = (entry.writer, entry.number);
        if self.entries.contains_key(&key) {
            return false;
        }
        self.clock = self.clock.max(entry.time());
        let written = self.tasks.entry(entry.task().clone()).or_default();
        match &entry.document {
            Document::Task(task) => written.tasks.push(task.clone()),
            Document::Result(result) => written.results.push(result.clone()),
        }
        self.entries.insert(key, entry.clone());
        let whole = self.whole.entry(entry.writer).or_default();
        while self.entries.contains_key(&(entry.writer, *whole)) {
            *whole += 1;
        }
        true
    }

    /// Returns how many entries of each writer are here without a gap.
    pub(crate) fn have(&self) -> BTreeMap<usize, u64> {
        self.whole.clone()
    }

    /// Returns what somebody lacks who has this.
    pub(crate) fn missing(&self, have: &BTreeMap<usize, u64>) -> Vec<Entry> {
        let lacks = |(writer, number): &(usize, u64)| *number >= have.get(writer).copied().unwrap_or(0);
        self.entries.iter().filter(|(key, _)| lacks(key)).map(|(_, entry)| entry.clone()).collect()
    }

    /// Returns the view of a task.
    pub(crate) fn view(&self, task: &TaskId) -> Option<TaskView> {
        let written = self.tasks.get(task)?;
        let proof_ok = |node: &NodeId, task: &TaskId, identity: &str, given: &str| given == proof(node, task, identity);
        resolve(task, &written.tasks, &written.results, proof_ok)
    }

    pub(crate) fn tasks(&self) -> Vec<TaskId> {
        let mut tasks: Vec<TaskId> = self.tasks.keys().cloned().collect();
        tasks.sort();
        tasks
    }
}
