//! The peers that have told what they offer, kept in step with the registry and the view.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::liveness::PeerState;
use bombus_infer::{Backends, NamedBackend};
use bombus_net::NetHandle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::config::RunConfig;
use super::peer::{Peer, PeerBackend};
use super::wire::Told;
use crate::handle::SwarmHandle;
use crate::supervised::PartEnded;
use crate::view::PeerView;

/// Most peers that are kept; offers of those beyond are not taken.
const PEERS_MAX: usize = 1_024;
/// Least time between two looks at the view.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// For so long after its last request a peer is still watched closely, and up to twice as long.
const WATCHED_FOR: Duration = Duration::from_secs(10);

/// The peers.
pub(super) struct Peers {
    net: NetHandle,
    swarm: SwarmHandle,
    backends: Backends,
    config: RunConfig,
    watching: Arc<Notify>,
    known: Mutex<Known>,
    /// Held while the registry is told, so that the last to look is the last to tell.
    telling: Mutex<()>,
}

#[derive(Default)]
struct Known {
    peers: BTreeMap<NodeId, Arc<PeerBackend>>,
    /// Those that the registry has.
    listed: Vec<NodeId>,
}

impl Peers {
    pub(super) fn new(net: NetHandle, swarm: SwarmHandle, backends: Backends, config: RunConfig) -> Self {
        Self {
            net,
            swarm,
            backends,
            config,
            watching: Arc::default(),
            known: Mutex::default(),
            telling: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a peer told of itself.
    pub(super) fn told(&self, node: &NodeId, mut told: Told) {
        let Some(peer) = self.peer(&mut self.known(), node) else { return };
        let models = told.models();
        let by_text = told.by_text();
        let models_changed = peer.0.told(models.map(|models| (models, by_text)), told.load);
        // Later on the view is followed.
        if !peer.0.was_seen()
            && let Some(view) = self.swarm.peer(node)
        {
            peer.0.seen(&view, self.swarm.is_crowd());
        }
        if !self.list() {
            if models_changed {
                self.backends.peers_changed();
            } else {
                self.backends.peer_told(node);
            }
        }
    }

    /// Returns a peer, which is new where it is not known yet; `None` where there is no place for it.
    fn peer(&self, known: &mut Known, node: &NodeId) -> Option<Arc<PeerBackend>> {
        let known_before = known.peers.get(node).cloned();
        if known_before.is_some() || known.peers.len() >= PEERS_MAX {
            return known_before;
        }
        let (net, swarm, config) = (self.net.clone(), self.swarm.clone(), self.config.clone());
        let peer = Peer::new(node.clone(), net, swarm, config, Arc::clone(&self.watching));
        let peer = Arc::new(PeerBackend(Arc::new(peer)));
        known.peers.insert(node.clone(), Arc::clone(&peer));
        Some(peer)
    }

    /// Takes over what the view shows. In a crowd there are peers without a connection, of which only that is known.
    fn look(&self) {
        let views = self.swarm.peers();
        let is_crowd = self.swarm.is_crowd();
        let mut is_changed = false;
        {
            let mut known = self.known();
            let is_on_call = |view: &&PeerView| view.state == PeerState::Alive && view.path.is_none();
            for view in views.iter().filter(|_| is_crowd).filter(is_on_call).filter(|view| !view.models.is_empty()) {
                if let Some(peer) = self.peer(&mut known, &view.node_id) {
                    is_changed |= peer.0.heard_of(&view.models);
                }
            }
            known.peers.retain(|node, peer| match view_of(&views, node) {
                Some(view) => {
                    is_changed |= peer.0.seen(view, is_crowd);
                    true
                }
                None => !peer.0.unseen(),
            });
        }
        if !self.list() && is_changed {
            self.backends.peers_changed();
        }
    }

    /// Has the registry take those that are there, where they are others than before; says whether they are.
    fn list(&self) -> bool {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let peers: Vec<NamedBackend> = {
            let mut known = self.known();
            let there = known.peers.iter().filter(|(_, peer)| !peer.0.is_gone());
            let (nodes, peers): (Vec<NodeId>, Vec<Arc<PeerBackend>>) =
                there.map(|(node, peer)| (node.clone(), Arc::clone(peer))).unzip();
            if nodes == known.listed {
                return false;
            }
            known.listed = nodes;
            peers.into_iter().map(|peer| NamedBackend::of_peer(peer.clone(), peer)).collect()
        };
        self.backends.set_peers(peers);
        true
    }

    /// Takes all peers out of the registry, and ends what runs there.
    pub(super) fn end(&self) {
        let peers = std::mem::take(&mut self.known().peers);
        for peer in peers.values() {
            peer.0.end();
        }
        self.list();
    }

    /// Lets go of peers where nothing runs; says whether any is still watched closely.
    fn rest(&self) -> bool {
        let peers: Vec<_> = self.known().peers.values().cloned().collect();
        peers.iter().filter(|peer| peer.0.rest()).count() > 0
    }
}

/// Finds a peer among those of the view, which are in the order of their ids.
fn view_of<'a>(views: &'a [PeerView], node: &NodeId) -> Option<&'a PeerView> {
    views.binary_search_by(|view| view.node_id.cmp(node)).ok().map(|at| &views[at])
}

/// Follows the view until `stop`: who is gone, who is back, who is called what.
pub(super) async fn follow_all(peers: &Peers, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut changes = peers.swarm.changes();
    changes.mark_changed();
    let mut rest_at: Option<Instant> = Some(Instant::now() + WATCHED_FOR);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => {
                changed.map_err(|_| PartEnded::MeshEnded)?;
                peers.look();
                sleep(LOOK_EVERY).await;
            }
            () = peers.watching.notified() => {
                rest_at.get_or_insert_with(|| Instant::now() + WATCHED_FOR);
            }
            () = async { sleep_until(rest_at.unwrap_or_else(Instant::now)).await }, if rest_at.is_some() => {
                rest_at = peers.rest().then(|| Instant::now() + WATCHED_FOR);
            }
        }
    }
}
