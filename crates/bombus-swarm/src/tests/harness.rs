//! Whole nodes without the program around them: a mesh on the loopback address, and a swarm on top.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::{NodeId, NodeKey};
use bombus_core::liveness::PeerState;
use bombus_net::membership::{Generation, MembershipHandle, MembershipState, Privacy, SwarmKey};
use bombus_net::{ListenOn, NetConfig, NetHandle, NetIdentity, net};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{EventItem, EventStream, OwnFacts, PeerView, SwarmConfig, SwarmEvent, SwarmHandle, swarm};

/// What anything may take that these tests wait for; much more than it should.
pub(super) const LIMIT: Duration = Duration::from_secs(240);

pub(super) fn node_id(number: u8) -> NodeId {
    NodeKey::from_secret(&[number; 32]).node_id()
}

/// Returns the state of a member of one of several swarms.
pub(super) fn member_of(number: u8) -> MembershipState {
    let letter = char::from(b'a' + number);
    MembershipState {
        swarm_id: letter.to_string().repeat(16).parse().unwrap(),
        privacy: Privacy::Closed(SwarmKey::from_bytes([number; 32])),
        generation: Generation(0),
        removed: Arc::new(BTreeSet::new()),
    }
}

/// A mesh without a swarm on top: a peer of another program.
pub(super) struct Mesh {
    pub(super) net: NetHandle,
    pub(super) membership: watch::Sender<MembershipState>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Mesh {
    pub(super) async fn start(number: u8, seeds: &[&Mesh]) -> Self {
        Self::listening(number, seeds, vec![ListenOn::fixed(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)]).await
    }

    /// One that nobody can dial.
    pub(super) async fn hidden(number: u8, seeds: &[&Mesh]) -> Self {
        Self::listening(number, seeds, Vec::new()).await
    }

    async fn listening(number: u8, seeds: &[&Mesh], listen: Vec<ListenOn>) -> Self {
        let mut addresses = Vec::new();
        for seed in seeds {
            addresses.push(seed.address().await);
        }
        Self::with(number, NetConfig { listen, seeds: addresses, mdns: false, ..NetConfig::default() })
    }

    /// One of a crowd: it keeps connections to so many peers, and others as long as they are used.
    pub(super) async fn in_a_crowd(number: u8, seeds: &[&Mesh], mesh_max: usize) -> Self {
        let mut addresses = Vec::new();
        for seed in seeds {
            addresses.push(seed.address().await);
        }
        let listen = vec![ListenOn::fixed(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)];
        let mut config = NetConfig { listen, seeds: addresses, mdns: false, mesh_max, ..NetConfig::default() };
        config.timing.idle_limit = Duration::from_millis(500);
        Self::with(number, config)
    }

    fn with(number: u8, config: NetConfig) -> Self {
        let identity = NetIdentity {
            key: NodeKey::from_secret(&[number; 32]),
            name: format!("node-{number}"),
            version: "0.0.0".to_owned(),
        };
        let (membership, state) = watch::channel(member_of(0));
        let (net, service) = net(config, identity, MembershipHandle::following(state));
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { service.run(stop).await.unwrap() }
        });
        Self { net, membership, stop, task }
    }

    pub(super) async fn address(&self) -> String {
        let mut addresses = self.net.listen_addrs();
        let listening = addresses.wait_for(|addresses| !addresses.is_empty());
        let addresses = timeout(LIMIT, listening).await.expect("the mesh listens").unwrap();
        addresses[0].clone()
    }

    /// Ends it without a word, as a crash does.
    pub(super) async fn crash(self) {
        self.task.abort();
        drop(self.task.await);
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        timeout(LIMIT, self.task).await.expect("the mesh stops").unwrap();
    }
}

/// A node.
pub(super) struct Node {
    pub(super) mesh: Mesh,
    pub(super) swarm: SwarmHandle,
    pub(super) facts: watch::Sender<OwnFacts>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    pub(super) async fn start(number: u8, seeds: &[&Mesh]) -> Self {
        Self::start_with(number, seeds, SwarmConfig::default()).await
    }

    pub(super) async fn start_with(number: u8, seeds: &[&Mesh], config: SwarmConfig) -> Self {
        Self::on(Mesh::start(number, seeds).await, number, config)
    }

    pub(super) fn on(mesh: Mesh, number: u8, config: SwarmConfig) -> Self {
        let facts = OwnFacts {
            name: format!("node-{number}"),
            version: "1.2.3".to_owned(),
            api_port: 7_000 + u16::from(number),
            models: vec!["smollm".to_owned()],
            backends: vec!["fake".to_owned()],
            slots: 2,
            ..OwnFacts::default()
        };
        let (facts, receiver) = watch::channel(facts);
        let (swarm, service) = swarm(config, mesh.net.clone(), receiver);
        let stop = CancellationToken::new();
        let task = tokio::spawn(service.run(stop.clone()));
        Self { mesh, swarm, facts, stop, task }
    }

    pub(super) fn id(&self) -> NodeId {
        self.swarm.node_id().clone()
    }

    /// Waits until a peer looks in a certain way, and returns how it looks.
    pub(super) async fn sees(&self, peer: &NodeId, looks: impl Fn(&PeerView) -> bool) -> PeerView {
        let mut changes = self.swarm.changes();
        let seen = async {
            loop {
                if let Some(peer) = self.swarm.peer(peer).filter(|peer| looks(peer)) {
                    return peer;
                }
                changes.changed().await.unwrap();
            }
        };
        match timeout(LIMIT, seen).await {
            Ok(peer) => peer,
            Err(_) => panic!("{peer} does not become so; the view: {:#?}", self.swarm.peers()),
        }
    }

    /// Waits until a peer lives and has said what it can do.
    pub(super) async fn sees_whole(&self, peer: &NodeId) -> PeerView {
        self.sees(peer, |peer| peer.complete && peer.state == PeerState::Alive).await
    }

    /// Stops the swarm with a goodbye, and the mesh after it.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        timeout(LIMIT, self.task).await.expect("the swarm stops").unwrap();
        self.mesh.stop().await;
    }

    /// Ends it without a word, as a crash does.
    pub(super) async fn crash(self) {
        self.task.abort();
        drop(self.task.await);
        self.mesh.crash().await;
    }
}

/// Waits for an event of a kind about a peer.
pub(super) async fn event(events: &mut EventStream, kind: &str, peer: &NodeId) -> SwarmEvent {
    let found = async {
        loop {
            match events.next().await {
                Some(EventItem::Event(event)) if event.kind == kind && event.data["node_id"] == peer.as_str() => {
                    return event;
                }
                Some(EventItem::Event(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("no {kind} of {peer}"))
}

/// Does something again and again until it shows.
pub(super) async fn until_it_shows<F: Future<Output = ()>>(mut act: impl FnMut() -> F, shows: impl Fn() -> bool) {
    let mut pause = tokio::time::interval(Duration::from_millis(100));
    let repeated = async {
        while !shows() {
            act().await;
            pause.tick().await;
        }
    };
    timeout(LIMIT, repeated).await.expect("it shows");
}
