//! Nodes that are joined by a wire in this process, and a storage that fails when it is told to.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use orbitdb::{
    Database, OpenOptions, OrbitDb, Output,
    manifest::Address,
    replica::Input,
    storage::{Batch, Durability, Space, Storage, StorageError, Table},
    sync::Peer,
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

/// How long anything may take before a test fails.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn node() -> (OrbitDb, mpsc::Receiver<Output>) {
    OrbitDb::builder().build().unwrap()
}

/// Nodes that reach each other, named by their numbers.
pub(crate) struct Wire {
    nodes: Vec<(OrbitDb, mpsc::Receiver<Output>)>,
    /// Who has been told of whose databases.
    met: BTreeSet<(usize, usize, Address)>,
    parted: BTreeSet<(usize, usize)>,
    now: Duration,
}

fn name(node: usize) -> Peer {
    Peer::new(node.to_string())
}

impl Wire {
    pub(crate) fn of(count: usize) -> Self {
        let nodes = (0..count).map(|_| node()).collect();
        Self { nodes, met: BTreeSet::new(), parted: BTreeSet::new(), now: Duration::ZERO }
    }

    pub(crate) fn orbit(&self, node: usize) -> &OrbitDb {
        &self.nodes[node].0
    }

    /// Opens a database by name on all nodes.
    pub(crate) async fn open(&mut self, name: &str, options: &OpenOptions) -> Vec<Database> {
        let mut databases = Vec::new();
        for (orbit, _) in &self.nodes {
            databases.push(orbit.open(name, options.clone()).await.unwrap());
        }
        databases
    }

    /// Tells one node that another is gone.
    pub(crate) async fn part(&mut self, node: usize, other: usize) {
        self.parted.insert((node, other));
        for address in self.open_at(node) {
            self.input(node, &address, Input::Unsubscribed(name(other))).await;
        }
    }

    fn open_at(&self, node: usize) -> BTreeSet<Address> {
        self.nodes[node].0.addresses().borrow().clone()
    }

    async fn input(&self, node: usize, address: &Address, input: Input) {
        if let Some(database) = self.nodes[node].0.database(address) {
            database.handle(self.now, input).await.unwrap();
        }
    }

    /// Carries what is to be carried until nothing is.
    pub(crate) async fn settle(&mut self) {
        // The timers of an exchange of heads come with it.
        self.now += Duration::from_secs(31);
        let mut carried = true;
        while carried {
            carried = false;
            self.meet().await;
            for node in 0..self.nodes.len() {
                while let Ok(output) = self.nodes[node].1.try_recv() {
                    self.carry(node, output).await;
                    carried = true;
                }
            }
            // Twice, because a database of capabilities hands its changes to the one that it guards.
            for _ in 0..2 {
                self.flush().await;
            }
            carried |= self.nodes.iter().any(|(_, outputs)| !outputs.is_empty());
        }
    }

    /// Lets timers run out, and waits until everything is written and shown.
    async fn flush(&self) {
        for node in 0..self.nodes.len() {
            for address in self.open_at(node) {
                self.input(node, &address, Input::Tick).await;
                if let Some(database) = self.orbit(node).database(&address) {
                    database.flush().await.unwrap();
                }
            }
        }
    }

    /// Waits until something is so.
    pub(crate) async fn until(&mut self, is_so: impl Fn() -> bool) {
        timeout(LIMIT, async {
            while !is_so() {
                self.settle().await;
            }
        })
        .await
        .expect("it never came to be so");
    }

    async fn meet(&mut self) {
        for node in 0..self.nodes.len() {
            for other in 0..self.nodes.len() {
                for address in &self.open_at(node) & &self.open_at(other) {
                    if node != other && !self.parted.contains(&(node, other)) && self.met.insert((node, other, address))
                    {
                        self.input(node, &address, Input::Subscribed(name(other))).await;
                    }
                }
            }
        }
    }

    async fn carry(&self, node: usize, output: Output) {
        match output {
            Output::Publish { address, block } => {
                for other in (0..self.nodes.len()).filter(|other| *other != node) {
                    self.input(other, &address, Input::Published(name(node), block.to_vec())).await;
                }
            }
            Output::OpenHeads { address, peer } => {
                let other: usize = peer.as_str().parse().unwrap();
                for (from, to) in [(node, other), (other, node)] {
                    let Some(database) = self.nodes[from].0.database(&address) else { continue };
                    for head in database.head_blocks().unwrap() {
                        self.input(to, &address, Input::Heads(name(from), head)).await;
                    }
                }
                self.input(node, &address, Input::Exchanged(peer, true)).await;
            }
            Output::Want { address, peer, hashes } => {
                let other: usize = peer.as_str().parse().unwrap();
                for hash in hashes {
                    let answer = match self.nodes[other].0.block(&hash).unwrap() {
                        Some(block) => Input::Block(peer.clone(), block),
                        None => Input::Absent(peer.clone(), hash),
                    };
                    self.input(node, &address, answer).await;
                }
            }
        }
    }

    /// Gives nodes the blocks that they wait for until something is opened.
    pub(crate) async fn supply_until<T>(&mut self, opening: JoinHandle<T>) -> T {
        timeout(LIMIT, async {
            while !opening.is_finished() {
                for (orbit, _) in &self.nodes {
                    let missing = orbit.missing().borrow().clone();
                    for hash in missing {
                        let found = self.nodes.iter().find_map(|(other, _)| other.block(&hash).unwrap());
                        found.into_iter().for_each(|block| orbit.supply(&block));
                    }
                }
                tokio::task::yield_now().await;
            }
            opening.await.unwrap()
        })
        .await
        .expect("it was never opened")
    }
}

/// A storage that counts how often a whole log is read, and takes nothing more, or nothing yet, or removes nothing, once it is told to. It can do
/// something else before it reads.
pub(crate) struct Failing<S> {
    inner: S,
    control: Arc<Control>,
}

/// What is done with a storage, and what it has done.
#[derive(Default)]
pub(crate) struct Control {
    pub(crate) fails: AtomicBool,
    pub(crate) keeps_all: AtomicBool,
    pub(crate) logs_read: AtomicUsize,
    /// What is done, once, before a value is read.
    pub(crate) before_read: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// Whether whoever writes has to wait.
    is_held: Mutex<bool>,
    released: Condvar,
}

impl Control {
    /// Lets nothing be written until it is told otherwise.
    pub(crate) fn hold(&self, is_held: bool) {
        *self.is_held.lock().unwrap() = is_held;
        self.released.notify_all();
    }
}

struct FailingSpace {
    inner: Arc<dyn Space>,
    control: Arc<Control>,
}

impl<S> Failing<S> {
    pub(crate) fn new(inner: S) -> (Self, Arc<Control>) {
        let control = Arc::new(Control::default());
        (Self { inner, control: Arc::clone(&control) }, control)
    }
}

impl<S: Storage> Storage for Failing<S> {
    fn open(&self, space: &str) -> Result<Arc<dyn Space>, StorageError> {
        Ok(Arc::new(FailingSpace { inner: self.inner.open(space)?, control: Arc::clone(&self.control) }))
    }

    fn remove(&self, space: &str) -> Result<(), StorageError> {
        if self.control.keeps_all.load(Ordering::SeqCst) {
            return Err(StorageError::InUse(space.to_owned()));
        }
        self.inner.remove(space)
    }
}

impl Space for FailingSpace {
    fn read(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<(), StorageError> {
        let told = self.control.before_read.lock().unwrap().take();
        if let Some(tell) = told {
            tell();
        }
        self.inner.read(table, key, show)
    }

    fn scan(&self, table: Table, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StorageError> {
        if table == Table::Entries {
            self.control.logs_read.fetch_add(1, Ordering::SeqCst);
        }
        self.inner.scan(table, each)
    }

    fn commit(&self, batch: &Batch, durability: Durability) -> Result<(), StorageError> {
        drop(self.control.released.wait_while(self.control.is_held.lock().unwrap(), |is_held| *is_held).unwrap());
        if self.control.fails.load(Ordering::SeqCst) {
            return Err(StorageError::Failed { place: "here".into(), reason: "no space is left".into() });
        }
        self.inner.commit(batch, durability)
    }

    fn bytes(&self) -> Result<u64, StorageError> {
        self.inner.bytes()
    }
}
