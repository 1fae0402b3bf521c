//! The failure detector at work: its datagrams travel over streams of their own, one in each direction between two nodes.

mod links;
mod readers;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bombus_core::identity::NodeId;
use bombus_core::liveness::{Detector, LivenessInput, LivenessOutput};
use bombus_net::{NetEvent, NetHandle, NetStream, OpenError};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

pub(crate) use self::links::LinkCounts;
use self::links::{LinkLimits, Links, OpenFailed, Opener};
use self::readers::Readers;
use crate::counts::read;
use crate::service::random;
use crate::shared::{GREETED_MAX, Shared};
use crate::supervised::PartEnded;
use crate::view::{PeerPath, ViewInput};

/// The protocol: datagrams of at most 1,400 bytes, each behind its length as two bytes, big-endian. Who opens a stream writes; who accepts it
/// reads, and ends it when it has read all.
pub(crate) const PROTOCOL: &str = "/bombus/swim/1";

/// How much that came from peers waits for the detector. What finds it full is dropped and counted.
const FROM_PEERS_MAX: usize = 1_024;

/// What comes from peers' streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FromPeer {
    /// A stream to or from the peer stands: it takes part.
    Up(NodeId),
    /// A datagram.
    Datagram {
        /// Who sent it.
        from: NodeId,
        /// What came.
        bytes: Vec<u8>,
    },
}

/// Opens streams in the mesh.
#[derive(Clone)]
struct Mesh(NetHandle);

impl Opener for Mesh {
    type Stream = NetStream;

    async fn open(&self, peer: &NodeId) -> Result<NetStream, OpenFailed> {
        let opened = self.0.open_stream(peer, PROTOCOL).await;
        opened.map(NetStream::in_background).map_err(|error| match error {
            OpenError::UnsupportedProtocol { .. } => OpenFailed::Unsupported,
            other => OpenFailed::Failed(other.to_string()),
        })
    }
}

/// Watches over all peers until `stop`, and then says goodbye to them.
pub(crate) async fn watch_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut events = shared.net.events();
    let mut incoming = shared.net.accept(PROTOCOL)?;
    let mut watched = shared.watched.subscribe();
    let mut greeted = shared.greeted.subscribe();
    let mut farewells = shared.farewells.subscribe();
    let (to_detector, mut from_peers) = mpsc::channel(FROM_PEERS_MAX);
    let mut readers = Readers::new(Arc::clone(shared), to_detector.clone());
    let mut service = Watcher::new(Arc::clone(shared), to_detector);
    watched.mark_changed();
    loop {
        let wake = shared.clocks.at(service.wake_ms);
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                service.leave().await;
                return Ok(());
            }
            () = sleep_until(wake) => service.on_time(),
            Ok(()) = farewells.changed() => service.on_farewell(&mut farewells).await,
            event = events.next() => service.on_event(event.ok_or(PartEnded::MeshEnded)?),
            stream = incoming.next() => {
                let (peer, stream) = stream.ok_or(PartEnded::MeshEnded)?;
                readers.read(peer, stream.in_background());
            }
            Ok(peer) = greeted.recv() => service.on_greeted(peer),
            Ok(()) = watched.changed() => service.on_watched(&watched.borrow_and_update()),
            () = readers.reap() => {}
            () = service.links.reap() => {}
            Some(received) = from_peers.recv() => service.on_received(received),
        }
    }
}

/// Owns the detector.
struct Watcher {
    shared: Arc<Shared>,
    detector: Detector,
    links: Links<Mesh>,
    up: mpsc::Sender<FromPeer>,
    swarm_id: String,
    /// Peers that are connected, and those of them that take part.
    connected: HashSet<NodeId>,
    taking_part: HashSet<NodeId>,
    /// Peers that said the first word before this part heard of their connection.
    greeted: HashSet<NodeId>,
    watched: BTreeMap<NodeId, u32>,
    wake_ms: u64,
    /// Since it said goodbye, the detector says nothing any more, at most until `wake_ms`.
    is_silent: bool,
}

impl Watcher {
    fn new(shared: Arc<Shared>, up: mpsc::Sender<FromPeer>) -> Self {
        let detector = new_detector(&shared);
        let links = new_links(&shared, up.clone());
        let mut service = Self {
            swarm_id: shared.enter_swarm(),
            shared,
            detector,
            links,
            up,
            connected: HashSet::new(),
            taking_part: HashSet::new(),
            greeted: HashSet::new(),
            watched: BTreeMap::new(),
            wake_ms: 0,
            is_silent: false,
        };
        service.shared.apply(ViewInput::Unjudged);
        service.look_who_is_there();
        service
    }

    fn on_time(&mut self) {
        if self.is_silent {
            tracing::info!("the node said goodbye to its swarm and is in it still: it takes part again");
            self.shared.begin_another_run();
            self.begin_anew();
            self.look_who_is_there();
        } else {
            self.tell(LivenessInput::Tick);
        }
    }

    /// Tells the detector something, and does what it says.
    fn tell(&mut self, input: LivenessInput) {
        for output in self.detector.on(self.shared.clocks.ms(), input) {
            match output {
                LivenessOutput::Send { to, bytes } => self.links.send(&to, bytes),
                LivenessOutput::State { peer, state, reason } => {
                    tracing::debug!(%peer, ?state, reason, "the failure detector has a verdict");
                    self.shared.apply(ViewInput::Judged { peer, state, reason });
                }
                LivenessOutput::SameIdentity { peer, .. } if peer == *self.shared.net.node_id() => {
                    self.shared.note_same_identity("met by the failure detector");
                }
                LivenessOutput::SameIdentity { peer, .. } => {
                    tracing::warn!(%peer, "two processes have this peer's identity");
                }
                LivenessOutput::WakeAt(at_ms) => self.wake_ms = at_ms,
            }
        }
    }

    fn on_event(&mut self, event: NetEvent) {
        match event {
            NetEvent::PeerConnected { peer, path } => self.on_connected(peer, path.into()),
            NetEvent::PathChanged { peer, path } => {
                self.shared.apply(ViewInput::PathChanged { peer, path: path.into() });
            }
            NetEvent::PeerDisconnected { peer, why } => self.on_disconnected(peer, &why),
            NetEvent::IdentityConflict { addr } => self.shared.note_same_identity(&format!("met at {addr}")),
            NetEvent::Rebuilt { .. } => {
                // All connections have ended; those that stand from now on are told.
                for peer in self.connected.clone() {
                    self.on_disconnected(peer, "the swarm was built anew");
                }
                self.follow_the_swarm();
            }
            NetEvent::Lagged(_) => {
                self.follow_the_swarm();
                self.look_who_is_there();
            }
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: NodeId, path: PeerPath) {
        self.shared.apply(ViewInput::Connected { peer: peer.clone(), path });
        // That it takes part shows when a stream stands, or by its first word: peers of other programs never answer, and must not be
        // taken for dead.
        self.links.open(&peer);
        self.connected.insert(peer.clone());
        if self.greeted.remove(&peer) {
            self.on_taking_part(peer);
        }
    }

    /// A node that falls silent before its stream stands is watched over, too.
    fn on_greeted(&mut self, peer: NodeId) {
        if self.connected.contains(&peer) {
            self.on_taking_part(peer);
        } else if self.greeted.len() < GREETED_MAX {
            self.greeted.insert(peer);
        }
    }

    fn on_disconnected(&mut self, peer: NodeId, why: &str) {
        self.shared.apply(ViewInput::Disconnected { peer: peer.clone() });
        self.connected.remove(&peer);
        self.greeted.remove(&peer);
        if self.taking_part.remove(&peer) {
            let not_needed = why.is_empty() && self.shared.is_crowd();
            self.tell(if not_needed { LivenessInput::Released(peer) } else { LivenessInput::Disconnected(peer) });
        }
    }

    fn on_received(&mut self, received: FromPeer) {
        match received {
            FromPeer::Up(peer) => {
                self.links.speaks(&peer);
                self.on_taking_part(peer);
            }
            FromPeer::Datagram { from, bytes } => {
                self.on_taking_part(from.clone());
                self.shared.apply(ViewInput::Heard { peer: from.clone() });
                self.tell(LivenessInput::Datagram { from, bytes });
            }
        }
    }

    /// Tells the detector of a connection as soon as something shows that the peer takes part.
    fn on_taking_part(&mut self, peer: NodeId) {
        if self.connected.contains(&peer) && self.taking_part.insert(peer.clone()) {
            self.tell(LivenessInput::Connected(peer));
        }
    }

    fn on_watched(&mut self, watched: &BTreeMap<NodeId, u32>) {
        let before = std::mem::replace(&mut self.watched, watched.clone());
        for peer in watched.keys().filter(|peer| !before.contains_key(*peer)) {
            self.tell(LivenessInput::Watch(peer.clone()));
        }
        for peer in before.keys().filter(|peer| !watched.contains_key(*peer)) {
            self.tell(LivenessInput::Unwatch(peer.clone()));
        }
    }

    /// In another swarm, the detector begins anew.
    fn follow_the_swarm(&mut self) {
        let swarm_id = self.shared.enter_swarm();
        if swarm_id != self.swarm_id {
            self.swarm_id = swarm_id;
            self.begin_anew();
        }
    }

    /// Begins with a detector that knows nobody.
    fn begin_anew(&mut self) {
        self.is_silent = false;
        self.detector = new_detector(&self.shared);
        self.connected.clear();
        self.taking_part.clear();
        self.greeted.clear();
        for peer in std::mem::take(&mut self.watched).into_keys() {
            self.tell(LivenessInput::Watch(peer.clone()));
            self.watched.insert(peer, 1);
        }
        self.tell(LivenessInput::Tick);
    }

    /// Takes over who is connected, where events were missed.
    fn look_who_is_there(&mut self) {
        let peers = self.shared.net.peers();
        let there: BTreeMap<NodeId, PeerPath> =
            peers.into_iter().filter_map(|peer| Some((peer.node_id, peer.connected?.into()))).collect();
        let lost: Vec<NodeId> = self.connected.iter().filter(|peer| !there.contains_key(*peer)).cloned().collect();
        for peer in lost {
            self.on_disconnected(peer, "the connection ended unseen");
        }
        for (peer, path) in there {
            if !self.connected.contains(&peer) {
                self.on_connected(peer, path);
            }
        }
    }

    /// Says goodbye to all that are connected.
    async fn leave(mut self) {
        let goodbyes = self.goodbyes();
        self.links.say_goodbye(goodbyes, self.shared.config.goodbye_limit).await;
    }

    /// Says goodbye since the node goes to another swarm.
    async fn on_farewell(&mut self, farewells: &mut watch::Receiver<u64>) {
        let number = *farewells.borrow_and_update();
        // Alone, there is nobody to be silent for.
        if !self.is_silent && !self.taking_part.is_empty() {
            let goodbyes = self.goodbyes();
            let links = std::mem::replace(&mut self.links, new_links(&self.shared, self.up.clone()));
            links.say_goodbye(goodbyes, self.shared.config.goodbye_limit).await;
            self.is_silent = true;
            let silence_ms = u64::try_from(self.shared.config.farewell_silence.as_millis()).unwrap_or(u64::MAX);
            self.wake_ms = self.shared.clocks.ms().saturating_add(silence_ms);
        }
        self.shared.farewells_said.send_replace(number);
    }

    fn goodbyes(&mut self) -> Vec<(NodeId, Vec<u8>)> {
        let outputs = self.detector.on(self.shared.clocks.ms(), LivenessInput::Leave);
        let goodbyes = outputs.into_iter().filter_map(|output| match output {
            LivenessOutput::Send { to, bytes } if self.connected.contains(&to) => Some((to, bytes)),
            _ => None,
        });
        goodbyes.collect()
    }
}

fn new_links(shared: &Shared, up: mpsc::Sender<FromPeer>) -> Links<Mesh> {
    Links::new(Mesh(shared.net.clone()), LinkLimits::default(), Arc::clone(&shared.link_counts), up)
}

fn new_detector(shared: &Shared) -> Detector {
    Detector::new(shared.net.node_id(), shared.boot(), shared.config.detector, random())
}

/// What became of the failure detector's datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct LivenessReport {
    /// Sent.
    pub sent: u64,
    /// Bytes of those, with their lengths.
    pub sent_bytes: u64,
    /// Received.
    pub received: u64,
    /// Bytes of those, with their lengths.
    pub received_bytes: u64,
    /// Not sent: a queue was full, or the peer was not reached.
    pub unsent: u64,
    /// Received and dropped since too many waited.
    pub dropped: u64,
    /// How often a peer that sent too much was held up.
    pub held_up: u64,
    /// Streams that sent something else.
    pub malformed: u64,
    /// Streams that broke, or took no bytes for too long.
    pub broken: u64,
    /// Streams that could not be opened.
    pub unopened: u64,
}

impl LivenessReport {
    pub(crate) fn of(shared: &Shared) -> Self {
        let (out, frames) = (&shared.link_counts, &shared.counts.frames);
        Self {
            sent: read(&out.sent),
            sent_bytes: read(&out.sent_bytes),
            received: read(&frames.received),
            received_bytes: read(&frames.received_bytes),
            unsent: read(&out.dropped),
            dropped: read(&frames.dropped),
            held_up: read(&frames.held_up),
            malformed: read(&frames.malformed),
            broken: read(&out.broken),
            unopened: read(&out.unopened),
        }
    }
}
