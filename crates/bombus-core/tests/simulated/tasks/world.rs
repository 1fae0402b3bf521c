//! The simulated swarm as a whole: how it is made, what is asked of it, and what has to be true of it at any time and in the end.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::rc::Rc;

use bombus_core::tasks::dispatch::DispatchConfig;
use bombus_core::tasks::{TaskDocument, TaskId, TaskStatus, TaskView};
use bombus_testkit::simulator::{Network, Simulation};

use super::log::Disk;
use super::node::{Order, Seen, TaskNode};
use crate::peer;

/// How a swarm is made.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// How many tasks each node runs at a time.
    pub(crate) slots: Vec<u32>,
    /// Which models each node has; one that is not named has all.
    pub(crate) models: BTreeMap<usize, BTreeSet<String>>,
    /// How long a run takes, in milliseconds.
    pub(crate) run_ms: RangeInclusive<u64>,
    /// Which part of the runs fails.
    pub(crate) failed_runs: f64,
    /// Which part of the writes fails.
    pub(crate) failed_writes: f64,
    /// Which part of the entries is not heard at once by a peer.
    pub(crate) lost_entries: f64,
    pub(crate) config: DispatchConfig,
}

impl Shape {
    pub(crate) fn of(slots: Vec<u32>) -> Self {
        Self {
            slots,
            models: BTreeMap::new(),
            run_ms: 5..=3_000,
            failed_runs: 0.0,
            failed_writes: 0.0,
            lost_entries: 0.0,
            config: DispatchConfig::default(),
        }
    }

    pub(crate) fn runs(&self, node: usize, model: &str) -> bool {
        self.slots[node] > 0 && self.models.get(&node).is_none_or(|models| models.contains(model))
    }
}

/// What any node has ever seen of the tasks: it must never be taken back.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    settled: BTreeMap<TaskId, (TaskStatus, Option<String>)>,
}

impl Truth {
    /// Takes what a node sees.
    pub(crate) fn saw(&mut self, node: usize, view: &TaskView) {
        let task = &view.task.id;
        if !view.settled {
            return;
        }
        let seen = (view.status, view.grant.as_ref().map(|grant| grant.hash.clone()));
        match self.settled.get(task) {
            None => {
                self.settled.insert(task.clone(), seen);
            }
            // The entry of the grant may come after that of the end.
            Some((status, grant)) => {
                assert_eq!(*status, seen.0, "node {node} sees {task} end in another way than others did");
                if let (Some(before), Some(now)) = (grant, &seen.1) {
                    assert_eq!(before, now, "node {node} sees another result of {task} accepted");
                }
            }
        }
    }
}

/// Counts what happened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) tasks: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    pub(crate) runs: u64,
    /// Runs that began while another one of the same task went on.
    pub(crate) doubles: u64,
    pub(crate) kills: u64,
    pub(crate) partitions: u64,
    pub(crate) pauses: u64,
    pub(crate) virtual_ms: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.tasks += other.tasks;
        self.completed += other.completed;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.runs += other.runs;
        self.doubles += other.doubles;
        self.kills += other.kills;
        self.partitions += other.partitions;
        self.pauses += other.pauses;
        self.virtual_ms += other.virtual_ms;
    }

    pub(crate) fn say(&self, what: &str, seeds: Range<u64>) {
        eprintln!(
            "{what}: seeds {seeds:?}: {} tasks in {} s of virtual time, {} kills, {} partitions, {} pauses: {} completed, {} failed, {} cancelled; \
             {} runs, {} of them beside another one",
            self.tasks,
            self.virtual_ms / 1_000,
            self.kills,
            self.partitions,
            self.pauses,
            self.completed,
            self.failed,
            self.cancelled,
            self.runs,
            self.doubles
        );
    }
}

pub(crate) struct World {
    pub(crate) simulation: Simulation<TaskNode>,
    disks: Vec<Rc<RefCell<Disk>>>,
    nodes: usize,
    pub(crate) tasks: Vec<TaskId>,
    /// Those of which somebody was told that they are safe.
    safe: BTreeSet<TaskId>,
    submitted: usize,
    pub(crate) tally: Tally,
    /// How often each task began.
    pub(crate) began: BTreeMap<TaskId, u32>,
    /// Who runs which task now.
    running: BTreeMap<TaskId, BTreeSet<usize>>,
    pub(crate) drained: BTreeSet<usize>,
}

impl World {
    pub(crate) fn new(seed: u64, network: Network, shape: Shape) -> Self {
        let nodes = shape.slots.len();
        let ids = Rc::new((0..nodes).map(peer::id).collect::<Vec<_>>());
        let disks: Vec<Rc<RefCell<Disk>>> = (0..nodes).map(|_| Rc::default()).collect();
        let truth: Rc<RefCell<Truth>> = Rc::default();
        let shape = Rc::new(shape);
        let of_nodes = disks.clone();
        let mut simulation = Simulation::new(seed, network, nodes, move |birth| {
            let disk = Rc::clone(&of_nodes[birth.index]);
            TaskNode::new(birth, Rc::clone(&ids), Rc::clone(&shape), disk, Rc::clone(&truth))
        });
        simulation.connect_all();
        let tally = Tally::default();
        let (tasks, safe, began, running, drained) = Default::default();
        Self { simulation, disks, nodes, tasks, safe, submitted: 0, tally, began, running, drained }
    }

    pub(crate) fn random_node(&mut self) -> usize {
        self.simulation.random().index(self.nodes)
    }

    /// Submits a task at a node, which has to run.
    pub(crate) fn submit(&mut self, node: usize, model: &str) -> TaskId {
        self.submit_as(node, model, Order::Submit)
    }

    pub(crate) fn submit_as(&mut self, node: usize, model: &str, order: impl Fn(Box<TaskDocument>) -> Order) -> TaskId {
        let task = TaskId::parse(&format!("task-{:03}", self.submitted)).expect("a short word is an id");
        self.submitted += 1;
        let mut document = TaskDocument::new(task.clone(), String::new(), self.simulation.now_ms());
        document.model = model.to_owned();
        document.priority = Some(1 + self.simulation.random().index(10) as u8);
        self.simulation.command(node, order(Box::new(document)));
        self.tasks.push(task.clone());
        task
    }

    pub(crate) fn kill(&mut self, node: usize) {
        if self.simulation.node(node).is_some() {
            self.tally.kills += 1;
        }
        self.take();
        self.simulation.kill(node);
        for running in self.running.values_mut() {
            running.remove(&node);
        }
    }

    pub(crate) fn restart(&mut self, node: usize) {
        self.kill(node);
        self.simulation.restart(node);
    }

    pub(crate) fn run_for(&mut self, ms: u64) {
        self.simulation.run_for(ms);
        self.tally.virtual_ms += ms;
        self.take();
    }

    /// Takes what the nodes have told.
    fn take(&mut self) {
        for seen in self.simulation.take_observed() {
            match seen.what {
                Seen::Submitted { task } => {
                    self.safe.insert(task);
                }
                Seen::Began { task } => {
                    self.tally.runs += 1;
                    *self.began.entry(task.clone()).or_default() += 1;
                    let running = self.running.entry(task).or_default();
                    self.tally.doubles += u64::from(!running.is_empty());
                    running.insert(seen.node);
                }
                Seen::Ended { task } => {
                    if let Some(running) = self.running.get_mut(&task) {
                        running.remove(&seen.node);
                    }
                }
                Seen::Drained => {
                    self.drained.insert(seen.node);
                }
            }
        }
    }

    pub(crate) fn view(&self, node: usize, task: &TaskId) -> Option<TaskView> {
        self.disks[node].borrow().view(task)
    }

    /// Returns whether a task is final at all nodes.
    pub(crate) fn is_final(&self, task: &TaskId) -> bool {
        (0..self.nodes).all(|node| self.view(node, task).is_some_and(|view| view.is_over()))
    }

    /// Lets everything be well again and time pass until all tasks are final, for at most so long.
    pub(crate) fn recover(&mut self, limit_ms: u64) {
        self.simulation.heal();
        for node in 0..self.nodes {
            self.simulation.resume(node);
            if self.simulation.node(node).is_none() {
                self.simulation.restart(node);
            }
        }
        // What was being written when its node died, or could not be written, was never submitted.
        self.run_for(1_000);
        let mut tasks = std::mem::take(&mut self.tasks);
        tasks.retain(|task| self.safe.contains(task) || (0..self.nodes).any(|node| self.view(node, task).is_some()));
        self.tally.tasks = tasks.len() as u64;
        self.tasks = tasks;
        let until_ms = self.simulation.now_ms() + limit_ms;
        while self.simulation.now_ms() < until_ms && !self.tasks.iter().all(|task| self.is_final(task)) {
            self.run_for(1_000);
        }
        // What is over is forgotten, and nothing more comes of it.
        self.run_for(30_000);
    }

    /// Asserts what has to be true in the end: each task is final, in the same way for all, and what is completed has its answer.
    pub(crate) fn assert_all_final(&mut self) {
        for task in &self.tasks {
            let views: Vec<TaskView> =
                (0..self.nodes).map(|node| self.view(node, task).expect("nothing is lost")).collect();
            for (node, view) in views.iter().enumerate() {
                assert!(
                    view.is_over(),
                    "at {} ms, node {node} sees {task} {:?}: {:?}, {} failures, cancelling {}, began {:?}",
                    self.simulation.now_ms(),
                    view.status,
                    view.grant,
                    view.failures.len(),
                    view.cancelling,
                    self.began.get(task)
                );
                assert_eq!(view.settled, view.requester.proven);
                assert_eq!((view.status, &view.grant), (views[0].status, &views[0].grant), "{task}");
                assert_eq!(view.result_hash, views[0].result_hash, "{task}");
            }
            let view = &views[0];
            match view.status {
                TaskStatus::Completed => {
                    self.tally.completed += 1;
                    let result = view.result.as_ref().expect("what is completed has an answer");
                    assert_eq!(result.error, None);
                    assert!(view.grant.is_some());
                    // It is one that fits; those of workers that know no grants may fit a later one by now.
                    let fits = view.results.iter().find(|result| Some(&result.hash) == view.result_hash.as_ref());
                    assert!(fits.is_some_and(|result| result.error.is_none()), "{task}: {:?}", view.results);
                }
                TaskStatus::Failed => {
                    self.tally.failed += 1;
                    assert!(!view.failures.is_empty(), "{task} failed without a reason");
                    assert!(view.failures.len() as u32 >= view.task.max_attempts(), "{task}: {:?}", view.failures);
                }
                TaskStatus::Cancelled => self.tally.cancelled += 1,
                _ => panic!("{task} is {:?}", view.status),
            }
        }
        let remembered: Vec<usize> = self.simulation.nodes().map(|(_, node)| node.remembered()).collect();
        assert!(remembered.iter().all(|tasks| *tasks == 0), "final tasks are forgotten: {remembered:?}");
        let running: Vec<_> = self.running.iter().filter(|(_, nodes)| !nodes.is_empty()).collect();
        assert!(running.is_empty(), "nothing runs any more: {running:?}");
    }
}

/// Returns how often the tests with faults are to be repeated.
pub(crate) fn rounds() -> u64 {
    std::env::var("BOMBUS_FAULT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2)
}
