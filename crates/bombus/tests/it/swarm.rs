//! Swarms of real nodes: each a `bombus up` with a data directory of its own, on loopback or on a [`Network`].
//!
//! A [`Plan`] says what kind of swarm it is to be, a [`Swarm`] is one that runs. All of its processes end with it, also when a test panics,
//! and when the test run itself is killed.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::harness::{LIMIT, Signal, within};
use crate::lab::{Machine, Network};

mod member;
mod raw_peer;

mod answers;
mod attacks;
mod commands;
mod crowd;
mod discovery;
mod examination;
mod faults;
mod meeting;
mod membership;
mod nat;
mod switching;

pub(crate) use member::Member;

/// More nodes than that is no test any more.
const NODES_MAX: usize = 32;

/// How often a state is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Swarms take turns, so that what is measured in one does not measure the others.
static TURNS: Semaphore = Semaphore::const_new(TURNS_AT_ONCE as usize);
const TURNS_AT_ONCE: u32 = 2;

/// How the nodes of a swarm come to know of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meeting {
    /// Node 0 runs and invites; the others join with its ticket, which has its addresses.
    Ticket,
    /// The ticket has no addresses; the others are told one of node 0 as a seed.
    Seed,
    /// They share the key only, and have to find each other.
    Alone,
}

/// What kind of swarm is to be started.
pub(crate) struct Plan {
    count: usize,
    meeting: Meeting,
    open: bool,
    mdns: bool,
    turns: u32,
    network: Option<Network>,
    machines: Vec<Machine>,
}

impl Plan {
    /// Starts no nodes by multicast; they find each other only by what else the plan gives them.
    pub(crate) fn of(count: usize) -> Self {
        assert!(count <= NODES_MAX, "a swarm in a test has at most {NODES_MAX} nodes");
        Self {
            count,
            meeting: Meeting::Ticket,
            open: false,
            mdns: false,
            turns: 1,
            network: None,
            machines: Vec::new(),
        }
    }

    /// Lets the nodes find each other by multicast, and by nothing else.
    pub(crate) fn by_multicast(mut self) -> Self {
        (self.mdns, self.meeting) = (true, Meeting::Alone);
        self
    }

    /// Lets the nodes look for each other by multicast besides.
    pub(crate) fn multicast_too(mut self) -> Self {
        self.mdns = true;
        self
    }

    /// Tells the others an address of node 0 on the command line instead of in the ticket.
    pub(crate) fn by_seed(mut self) -> Self {
        self.meeting = Meeting::Seed;
        self
    }

    /// Lets the nodes share a key, but not meet.
    pub(crate) fn apart(mut self) -> Self {
        self.meeting = Meeting::Alone;
        self
    }

    /// Runs without a swarm key; the nodes know of each other by seeds.
    pub(crate) fn open(mut self) -> Self {
        (self.open, self.meeting) = (true, Meeting::Seed);
        self
    }

    /// Runs no other swarm meanwhile: something is measured, or it is large.
    pub(crate) fn undisturbed(mut self) -> Self {
        self.turns = TURNS_AT_ONCE;
        self
    }

    /// Belongs to a test that has a swarm already.
    pub(crate) fn beside(mut self) -> Self {
        self.turns = 0;
        self
    }

    /// Puts node after node on a network.
    pub(crate) fn on(mut self, network: impl Into<Network>) -> Self {
        let network = network.into();
        if let Network::Lan(lan) = &network {
            self.machines = (0..self.count).map(|index| lan.machine(index).clone()).collect();
        }
        self.network = Some(network);
        self
    }

    /// Puts node after node on these machines.
    pub(crate) fn at(mut self, machines: &[Machine]) -> Self {
        self.machines = machines.to_vec();
        self
    }

    /// Prepares the nodes, but starts none: they have homes and, except in an open swarm, share a key.
    pub(crate) async fn prepared(self) -> Swarm {
        let turn = match self.turns {
            0 => None,
            turns => Some(TURNS.acquire_many(turns).await.expect("nobody closes the turns")),
        };
        let member = |index| Member::new(index, self.machines.get(index).cloned(), self.mdns, self.open);
        let mut members: Vec<_> = (0..self.count).map(member).collect();
        if let Some(Network::Proxies(proxies)) = &self.network {
            for (index, member) in members.iter_mut().enumerate() {
                member.put_behind(proxies.door(index));
            }
        }
        if self.meeting != Meeting::Ticket && !self.open && self.count > 1 {
            let ticket = members[0].invite_nowhere().await;
            join_all(members[1..].iter().map(|member| member.join(&ticket))).await;
        }
        Swarm { members, meeting: self.meeting, network: self.network, _turn: turn }
    }

    /// Starts the swarm and waits until every node serves; who sees whom is the test's affair.
    pub(crate) async fn start(self) -> Swarm {
        let mut swarm = self.prepared().await;
        swarm.start_all().await;
        swarm
    }
}

/// A swarm of real nodes, called by their numbers.
pub(crate) struct Swarm {
    members: Vec<Member>,
    meeting: Meeting,
    network: Option<Network>,
    _turn: Option<SemaphorePermit<'static>>,
}

impl Swarm {
    /// Starts so many nodes on loopback, joined by an invitation, and waits until all see each other.
    pub(crate) async fn of(count: usize) -> Self {
        let swarm = Plan::of(count).start().await;
        swarm.all_see_each_other().await;
        swarm
    }

    /// Starts all nodes of a swarm that was prepared.
    pub(crate) async fn start_all(&mut self) {
        let Some((first, others)) = self.members.split_first_mut() else { return };
        first.start().await;
        let seed = first.address();
        match self.meeting {
            Meeting::Ticket if !others.is_empty() => {
                let ticket = first.invite().await;
                join_all(others.iter().map(|member| member.join(&ticket))).await;
            }
            Meeting::Seed => {
                for member in others.iter_mut() {
                    member.add_argument("--seed");
                    member.add_argument(&seed);
                }
            }
            Meeting::Ticket | Meeting::Alone => {}
        }
        join_all(others.iter_mut().map(Member::start)).await;
    }

    /// Returns how many nodes there are, running or not.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns a node.
    pub(crate) fn member(&self, index: usize) -> &Member {
        &self.members[index]
    }

    /// Returns a node, to change it.
    pub(crate) fn member_mut(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }

    /// Returns the network that the nodes are on.
    pub(crate) fn network(&self) -> &Network {
        self.network.as_ref().expect("the plan put this swarm on a network")
    }

    /// Returns the id of a node.
    pub(crate) fn id(&self, index: usize) -> &str {
        self.members[index].id()
    }

    /// Returns a node's peers, as it tells them now.
    pub(crate) async fn peers(&self, index: usize) -> Vec<Value> {
        self.members[index].peers().await
    }

    /// Ends a node at once, as SIGKILL or a power cut does.
    pub(crate) async fn kill(&mut self, index: usize) {
        self.members[index].kill().await;
    }

    /// Freezes a node: its connections stay, and nothing answers.
    pub(crate) fn pause(&self, index: usize) {
        self.members[index].signal(Signal::Pause);
    }

    /// Wakes a frozen node.
    pub(crate) fn resume(&self, index: usize) {
        self.members[index].signal(Signal::Resume);
    }

    /// Stops a node as a service manager does, and expects a clean end.
    pub(crate) async fn stop(&mut self, index: usize) {
        self.members[index].stop().await;
    }

    /// Starts a node that was stopped or killed.
    pub(crate) async fn restart(&mut self, index: usize) {
        self.members[index].start().await;
    }

    /// Lets nothing pass between a node and some others, silently.
    pub(crate) async fn cut(&self, index: usize, others: &[usize]) {
        self.network().cut(index, others).await;
    }

    /// Takes all cuts back.
    pub(crate) async fn heal(&self) {
        self.network().heal().await;
    }

    /// Pulls a node's cable.
    pub(crate) async fn unplug(&self, index: usize) {
        self.network().unplug(index).await;
    }

    /// Puts a node's cable in again.
    pub(crate) async fn plug_in(&self, index: usize) {
        self.network().plug_in(index).await;
    }

    /// Waits until what a node says about its peers satisfies, and returns how long that took.
    pub(crate) async fn wait_until(
        &self,
        index: usize,
        what: &str,
        limit: Duration,
        holds: impl Fn(&[Value]) -> bool,
    ) -> Duration {
        let began = Instant::now();
        let mut every = tokio::time::interval(LOOK_EVERY);
        loop {
            every.tick().await;
            let peers = self.peers(index).await;
            if holds(&peers) {
                return began.elapsed();
            }
            let waited = began.elapsed();
            assert!(
                waited < limit,
                "node {index}: {what}: not within {limit:?}; its peers: {}\nits log:\n{}",
                Value::from(peers),
                self.members[index].log_end()
            );
        }
    }

    /// Waits until a node sees another one in one of these states, and returns how long that took.
    pub(crate) async fn wait_for_state(
        &self,
        index: usize,
        peer: usize,
        states: &[State],
        limit: Duration,
    ) -> Duration {
        let id = self.id(peer).to_owned();
        let what = format!("node {peer} is one of {states:?}");
        self.wait_until(index, &what, limit, |peers| states.contains(&state_of(peers, &id))).await
    }

    /// Waits until every running node of these sees every other one alive.
    pub(crate) async fn see_each_other(&self, indices: &[usize]) {
        for index in indices {
            let others = indices.iter().filter(|other| *other != index);
            let ids: Vec<_> = others.map(|other| self.id(*other)).collect();
            let all_alive = |peers: &[Value]| ids.iter().all(|id| state_of(peers, id) == State::Alive);
            self.wait_until(*index, &format!("all of {indices:?} are alive"), LIMIT, all_alive).await;
        }
    }

    /// Waits until every node sees every other one alive.
    pub(crate) async fn all_see_each_other(&self) {
        let everyone: Vec<_> = (0..self.len()).collect();
        self.see_each_other(&everyone).await;
    }

    /// Waits until every node has a connection of its own to every other one, and need not be told of it by others.
    pub(crate) async fn all_connected(&self) {
        for index in 0..self.len() {
            let ids: Vec<_> = (0..self.len()).filter(|other| *other != index).map(|other| self.id(other)).collect();
            let has_way = |peers: &[Value], id: &str| find(peers, id).is_some_and(|peer| peer["path"].is_string());
            let connected = |peers: &[Value]| ids.iter().all(|id| has_way(peers, id));
            self.wait_until(index, "it is connected to all others", LIMIT, connected).await;
        }
    }

    /// Asserts that a node goes on not to see another one alive, while time passes in which it would.
    pub(crate) async fn stays_out(&self, index: usize, peer: &str, time: Duration) {
        let began = Instant::now();
        let mut every = tokio::time::interval(LOOK_EVERY);
        while began.elapsed() < time {
            every.tick().await;
            let peers = self.peers(index).await;
            assert_ne!(state_of(&peers, peer), State::Alive, "node {index} sees {peer}: {}", Value::from(peers));
        }
    }

    /// Stops every node that runs, and expects clean ends.
    pub(crate) async fn stop_all(&mut self) {
        let running = self.members.iter_mut().filter(|member| member.is_running());
        within("the end of all nodes", join_all(running.map(Member::stop))).await;
    }
}

/// What a node thinks of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It answers.
    Alive,
    /// It did not answer in time.
    Suspect,
    /// It is taken for dead, or was never heard of.
    Gone,
}

/// Reads what a list of peers says about one of them.
pub(crate) fn state_of(peers: &[Value], id: &str) -> State {
    match find(peers, id).map(|peer| peer["state"].as_str().expect("every peer has a state")) {
        None | Some("gone") => State::Gone,
        Some("alive") => State::Alive,
        Some("suspect") => State::Suspect,
        Some(other) => panic!("{other:?} is no state"),
    }
}

/// Finds a peer in a list.
pub(crate) fn find<'a>(peers: &'a [Value], id: &str) -> Option<&'a Value> {
    peers.iter().find(|peer| peer["node_id"] == id)
}
