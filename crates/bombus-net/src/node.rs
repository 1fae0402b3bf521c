//! The node: one task that owns the libp2p swarm for as long as its key holds.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bombus_core::identity::NodeId;
use futures::StreamExt;
use libp2p::core::transport::ListenerId;
use libp2p::identity::Keypair;
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, kad, relay};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::address;
use crate::behaviour::streams::StreamControl;
use crate::behaviour::{self, Behaviour, BehaviourEvent, MdnsFailures};
use crate::config::{ListenOn, NetConfig};
use crate::conflict::{Conflicts, End};
use crate::dialer::{Dialer, Input, Output};
use crate::failure::{DialFailure, NetError};
use crate::membership::MembershipState;
use crate::report::{DialReport, Reachability};
use crate::reservations::Reservations;
use crate::shared::{Command, Shared, lock};
use crate::transport::{self, MetSelf};

mod announced;
mod connections;
mod discovery;
mod doing;
mod listening;
mod members;
mod picture;
mod relaying;
mod requests;
mod rewired;
mod topics;

use announced::Announced;

/// How often the dialer looks at what is due.
const TICK: Duration = Duration::from_millis(100);
/// How long connections may take to close in an orderly way at the end.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long the tasks of the old swarm may take to end.
const TASKS_END: Duration = Duration::from_secs(2);

/// Why a node's run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to stop.
    Stopped,
    /// The key or the swarm changed.
    Rebuild,
}

/// What outlives a libp2p swarm.
pub(crate) struct Memory {
    pub(crate) dialer: Dialer,
    pub(crate) conflicts: Conflicts,
    pub(crate) counts: Counts,
    /// Where to listen, with the ports that were found.
    pub(crate) listen: Vec<ListenOn>,
    /// Whether a swarm listened before: then an address that cannot be had is waited for, and no reason not to run.
    pub(crate) has_listened: bool,
    /// Under which address others reach this node, as configured.
    pub(crate) external: Vec<Multiaddr>,
}

/// What the report counts.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) failures: VecDeque<DialReport>,
    pub(crate) listen_failures: BTreeMap<String, String>,
    pub(crate) identity_conflicts: BTreeSet<String>,
    pub(crate) announced: Announced,
    pub(crate) refused_strangers: u64,
    pub(crate) refused_removed: u64,
    pub(crate) messages_lost: u64,
    pub(crate) rejected: u64,
    pub(crate) ignored: u64,
    pub(crate) punched: u64,
    pub(crate) punch_failures: u64,
    pub(crate) relay_failure: Option<String>,
}

/// What a dial was for.
enum Attempt {
    Peer(NodeId),
    Seed(Multiaddr),
    Manual { addr: Multiaddr, reply: oneshot::Sender<Result<NodeId, DialFailure>> },
}

/// What a peer says about itself.
#[derive(Default)]
struct Introduction {
    agent: String,
    protocols: Vec<String>,
}

/// The node.
pub(crate) struct Node {
    shared: Arc<Shared>,
    config: Arc<NetConfig>,
    state: MembershipState,
    local: PeerId,
    swarm: Swarm<Behaviour>,
    memory: Memory,
    mdns_failures: MdnsFailures,
    met_self: MetSelf,
    attempts: HashMap<ConnectionId, Attempt>,
    /// Who waits for a connection to a peer.
    waiting: BTreeMap<NodeId, Vec<oneshot::Sender<Result<(), DialFailure>>>>,
    introductions: BTreeMap<NodeId, Introduction>,
    rewired: rewired::Rewired,
    subscribed: HashSet<String>,
    listeners: HashMap<ListenerId, ListenOn>,
    relisten: Vec<listening::Missing>,
    circuits: HashMap<ListenerId, NodeId>,
    circuits_served: usize,
    /// For which peers those are, at either end, and how many each.
    carried: HashMap<PeerId, usize>,
    reservations: Reservations,
    reachability: Reachability,
    inbound_seen: bool,
    /// A peer sees this node at an address that is none of its own.
    is_behind_router: bool,
    first_outbound: Option<Instant>,
    lookup_at: Option<Instant>,
    lookups: HashMap<kad::QueryId, NodeId>,
    looked_up: BTreeSet<NodeId>,
    last_second: Option<Instant>,
    is_changed: bool,
    rebuilt: CancellationToken,
    tasks: TaskTracker,
}

/// The libp2p swarm, with what belongs to it.
struct Parts {
    local: PeerId,
    swarm: Swarm<Behaviour>,
    control: StreamControl,
    mdns_failures: MdnsFailures,
    met_self: MetSelf,
    rebuilt: CancellationToken,
    tasks: TaskTracker,
}

impl Parts {
    fn build(
        shared: &Shared,
        config: &NetConfig,
        key: &Keypair,
        version: &str,
        state: &MembershipState,
    ) -> Result<Self, NetError> {
        let local = key.public().to_peer_id();
        let rebuilt = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (relay_transport, relay_client) = relay::client::new(local);
        let met_self = MetSelf::default();
        let limit = config.timing.handshake_limit;
        let circuits = transport::Rate::new(config.relay_bytes_per_s).filter(|_| config.relay);
        let transport = transport::with_relay(key, &state.privacy, relay_transport, &met_self, limit, circuits)?;
        let protocols = Arc::clone(&shared.protocols);
        let (behaviour, mdns_failures) =
            behaviour::build(key, version, config, protocols, relay_client, rebuilt.clone())?;
        let executor = {
            let (tasks, rebuilt) = (tasks.clone(), rebuilt.clone());
            // A connection's task that panics ends that connection alone; all end with the swarm.
            move |task| {
                let rebuilt = rebuilt.clone();
                tasks.spawn(async move {
                    rebuilt.run_until_cancelled_owned(task).await;
                });
            }
        };
        let settings = libp2p::swarm::Config::with_executor(executor)
            .with_idle_connection_timeout(config.timing.idle_limit)
            .with_dial_concurrency_factor(8.try_into().expect("it is not zero"))
            .with_notify_handler_buffer_size(behaviour::CONNECTION_EVENTS);
        let swarm = Swarm::new(transport, behaviour, local, settings);
        let control = swarm.behaviour().streams.control();
        Ok(Self { local, swarm, control, mdns_failures, met_self, rebuilt, tasks })
    }
}

impl Node {
    /// Builds the libp2p swarm and listens. Where that fails, what it was to remember comes back.
    pub(crate) fn start(
        shared: Arc<Shared>,
        config: Arc<NetConfig>,
        key: &Keypair,
        version: &str,
        state: MembershipState,
        memory: Memory,
    ) -> Result<Self, (NetError, Box<Memory>)> {
        let parts = Parts::build(&shared, &config, key, version, &state);
        let parts = match parts {
            Ok(parts) => parts,
            Err(error) => return Err((error, Box::new(memory))),
        };
        let Parts { local, swarm, control, mdns_failures, met_self, rebuilt, tasks } = parts;
        let mut node = Self {
            shared,
            config,
            state,
            local,
            swarm,
            memory,
            mdns_failures,
            met_self,
            attempts: HashMap::new(),
            waiting: BTreeMap::new(),
            introductions: BTreeMap::new(),
            rewired: HashMap::new(),
            subscribed: HashSet::new(),
            listeners: HashMap::new(),
            relisten: Vec::new(),
            circuits: HashMap::new(),
            circuits_served: 0,
            carried: HashMap::new(),
            reservations: Reservations::default(),
            reachability: Reachability::Unknown,
            inbound_seen: false,
            is_behind_router: false,
            first_outbound: None,
            lookup_at: None,
            lookups: HashMap::new(),
            looked_up: BTreeSet::new(),
            last_second: None,
            is_changed: true,
            rebuilt,
            tasks,
        };
        if let Err(error) = node.listen() {
            return Err((error, Box::new(node.memory)));
        }
        node.memory.has_listened = true;
        for addr in node.memory.external.clone() {
            node.swarm.add_external_address(addr);
        }
        node.block_removed();
        node.recall();
        node.on_wishes();
        *lock(&node.shared.control) = Some(control);
        node.publish_picture();
        Ok(node)
    }

    /// Runs until it is told to stop, or until the membership needs another transport.
    pub(crate) async fn run(&mut self, requests: &mut mpsc::Receiver<Command>, stop: &CancellationToken) -> Ended {
        let mut membership = self.shared.membership.current();
        membership.mark_changed();
        let shared = Arc::clone(&self.shared);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ended::Stopped,
                Ok(()) = membership.changed() => {
                    let state = membership.borrow_and_update().clone();
                    if self.on_membership(state) {
                        return Ended::Rebuild;
                    }
                }
                () = shared.wishes.notified() => self.on_wishes(),
                Some(request) = requests.recv() => self.on_request(request),
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                _ = ticks.tick() => self.on_tick(),
            }
        }
    }

    /// Ends the swarm; with `goodbye`, its connections are closed in an orderly way before.
    pub(crate) async fn end(mut self, goodbye: bool) -> Memory {
        *lock(&self.shared.control) = None;
        for reply in std::mem::take(&mut self.waiting).into_values().flatten() {
            // Who asked may have given up.
            let _ = reply.send(Err(DialFailure::Busy));
        }
        if goodbye {
            self.say_goodbye().await;
        }
        let outputs = self.memory.dialer.restart(Instant::now());
        for output in outputs {
            if let Output::Tell(event) = output {
                // Without readers nobody hears it.
                let _ = self.shared.events.send(event);
            }
        }
        let Self { swarm, memory, rebuilt, tasks, .. } = self;
        rebuilt.cancel();
        drop(swarm);
        tasks.close();
        // What is left then holds no listening socket; it ends by itself.
        if timeout(TASKS_END, tasks.wait()).await.is_err() {
            tracing::debug!(tasks = tasks.len(), "tasks of connections did not end in time");
        }
        memory
    }

    async fn say_goodbye(&mut self) {
        let connected: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            // It may have gone in between.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let swarm = &mut self.swarm;
        let closed = async {
            while swarm.connected_peers().next().is_some() {
                swarm.select_next_some().await;
            }
        };
        // A peer that takes longer sees the connection end all the same.
        let _ = timeout(GOODBYE, closed).await;
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, concurrent_dial_errors, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint, concurrent_dial_errors.unwrap_or_default());
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                self.on_closed(&peer_id, connection_id, cause.as_ref());
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_failed(connection_id, peer_id, error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                self.on_incoming_failed(&send_back_addr, error);
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                if !address::is_relayed(&address) {
                    self.feed(Input::NetworkCame);
                }
                self.publish_listen_addrs();
            }
            SwarmEvent::ExpiredListenAddr { .. } => self.publish_listen_addrs(),
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => self.on_listener_closed(listener_id, reason),
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "a connection could not be accepted");
            }
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => self.is_changed = true,
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(event) => self.on_identify(event),
            BehaviourEvent::Ping(event) => self.on_ping(&event),
            BehaviourEvent::MdnsV4(event) | BehaviourEvent::MdnsV6(event) => self.on_mdns(event),
            BehaviourEvent::Kademlia(event) => self.on_kademlia(event),
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::RelayServer(event) => self.on_relay_server(&event),
            BehaviourEvent::RelayClient(event) => self.on_relay_client(&event),
            BehaviourEvent::HolePunching(event) => self.on_hole_punching(&event),
            BehaviourEvent::AutonatClient(event) => self.on_autonat(&event),
            BehaviourEvent::AutonatServer(_) => {}
            BehaviourEvent::Limits(never)
            | BehaviourEvent::Memory(never)
            | BehaviourEvent::Removed(never)
            | BehaviourEvent::Streams(never) => match never {},
        }
    }

    fn on_tick(&mut self) {
        self.wake_rewired();
        let now = Instant::now();
        if self.shared.membership.is_handing_over() {
            self.feed(Input::KeyChanges);
        }
        self.feed(Input::Tick);
        for _ in 0..self.met_self.take() {
            self.memory.conflicts.seen(now, End::Accepted, "an incoming connection".to_owned());
        }
        for addr in self.memory.conflicts.due(now) {
            self.tell_conflict(addr);
        }
        self.look_up_if_due(now);
        if self.last_second.is_none_or(|last| now.duration_since(last) >= Duration::from_secs(1)) {
            self.last_second = Some(now);
            self.is_changed = true;
            self.relisten_if_due(now);
            self.look_for_expected(now);
            self.review_reservations(now);
        }
        if std::mem::take(&mut self.is_changed) {
            self.publish_picture();
        }
    }
}
