//! Who is in the swarm.

use std::collections::{BTreeMap, HashMap};

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::{mesh_of, sharing};
use crate::app::{App, SharedApp};
use crate::error::ApiError;
use crate::mesh::{Membership, Peer, PeerState, SharingState};

/// The swarm at a glance.
#[derive(Serialize, ToSchema)]
pub(crate) struct SwarmAnswer {
    #[serde(flatten)]
    membership: Membership,
    nodes: NodeCounts,
    /// Nodes that are not gone, by tier.
    tiers: BTreeMap<String, usize>,
    /// Models of the nodes that are not gone, by name.
    models: Vec<ModelPlaces>,
    /// Answers being generated.
    running: u32,
    /// Answers that can be generated at a time.
    slots: u32,
    /// How busy the processors are on average, 0 to 100, where any node tells it.
    #[schema(required)]
    cpu_usage_percent: Option<f64>,
    /// Names of the nodes whose owners have them take no requests of others for now.
    paused: Vec<String>,
    /// Names of the nodes that are about to go.
    draining: Vec<String>,
    /// This node.
    own: Peer,
}

/// How many nodes there are, this one included.
#[derive(Default, Serialize, ToSchema)]
struct NodeCounts {
    alive: usize,
    suspect: usize,
    gone: usize,
}

/// A node of the swarm, and what it does for this one.
#[derive(Serialize, ToSchema)]
pub(crate) struct PeerAnswer {
    #[serde(flatten)]
    peer: Peer,
    /// Absent where it offers nothing to this node, or there is no connection.
    #[schema(required)]
    sharing: Option<Offered>,
}

/// How a node stands to requests of this one.
#[derive(Clone, Serialize, ToSchema)]
struct Offered {
    /// Whether its owner has it take no requests of others for now.
    paused: bool,
    /// Whether it is about to go and takes no requests any more.
    draining: bool,
    /// Requests of others that it is answering.
    running: u32,
    /// Requests of others that wait for one of its slots.
    waiting: u32,
    /// Most requests of others at a time, where that is limited.
    #[schema(required)]
    slots: Option<u32>,
}

/// Where a model is.
#[derive(Serialize, ToSchema)]
struct ModelPlaces {
    name: String,
    /// Names of the nodes that have it.
    nodes: Vec<String>,
}

/// Lists the other nodes of the swarm, those that are gone for a while included.
#[utoipa::path(get, operation_id = "peers", path = "/peers", tag = "native",
    responses((status = 200, description = "The peers; empty where the node is alone", body = Vec<PeerAnswer>)))]
pub(crate) async fn list(State(app): State<SharedApp>) -> Json<Vec<PeerAnswer>> {
    let offers = offers(&app);
    let peers = app.services.mesh.as_ref().map(|mesh| mesh.peers()).unwrap_or_default();
    let told = peers.into_iter().map(|peer| PeerAnswer { sharing: offers.get(peer.node_id.as_str()).cloned(), peer });
    Json(told.collect())
}

/// Looks up how each node that offers anything stands to requests of this one, by its id.
fn offers(app: &App) -> HashMap<String, Offered> {
    let peers = app.services.backends.all().into_iter().filter_map(|named| named.peer);
    let offered = peers.filter_map(|peer| {
        let now = peer.now();
        let offered = Offered {
            paused: now.paused,
            draining: now.draining,
            running: now.running,
            waiting: now.waiting,
            slots: now.slots,
        };
        now.reachable.then(|| (peer.node().to_string(), offered))
    });
    offered.collect()
}

/// Sums the swarm up: nodes, tiers, models, load.
#[utoipa::path(get, operation_id = "swarm", path = "/swarm", tag = "native",
    responses((status = 200, description = "The swarm", body = SwarmAnswer)))]
pub(crate) async fn swarm(State(app): State<SharedApp>) -> Result<Json<SwarmAnswer>, ApiError> {
    let mesh = mesh_of(&app)?;
    let mut answer = SwarmAnswer::of(mesh.membership().await, mesh.own(), &mesh.peers());
    answer.add_sharing(&sharing::state_of(&app), &mesh.peers(), &offers(&app));
    Ok(Json(answer))
}

/// Counts the peers that are not gone.
pub(super) fn count(app: &App) -> usize {
    let Some(mesh) = &app.services.mesh else { return 0 };
    mesh.peers().iter().filter(|peer| peer.state != PeerState::Gone).count()
}

impl SwarmAnswer {
    fn of(membership: Membership, own: Peer, peers: &[Peer]) -> Self {
        let all = || std::iter::once(&own).chain(peers);
        let mut nodes = NodeCounts::default();
        for node in all() {
            *match node.state {
                PeerState::Alive => &mut nodes.alive,
                PeerState::Suspect => &mut nodes.suspect,
                PeerState::Gone => &mut nodes.gone,
            } += 1;
        }
        let here = || all().filter(|node| node.state != PeerState::Gone);
        let mut tiers = BTreeMap::new();
        let mut models: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for node in here() {
            *tiers.entry(node.node_tier.clone().unwrap_or_else(|| "unknown".to_owned())).or_default() += 1;
            for model in &node.available_models {
                models.entry(model).or_default().push(node.hostname.clone());
            }
        }
        let models = models.into_iter().map(|(name, nodes)| ModelPlaces { name: name.to_owned(), nodes }).collect();
        let busy: Vec<f64> = here().filter_map(|node| node.cpu_usage_percent).collect();
        let mean = (!busy.is_empty()).then(|| super::tenths(busy.iter().sum::<f64>() / busy.len() as f64));
        Self {
            nodes,
            tiers,
            models,
            running: here().filter_map(|node| node.running).sum(),
            slots: here().filter_map(|node| node.slots).sum(),
            cpu_usage_percent: mean,
            paused: Vec::new(),
            draining: Vec::new(),
            membership,
            own,
        }
    }

    /// Adds who takes no requests of others.
    fn add_sharing(&mut self, own: &SharingState, peers: &[Peer], offers: &HashMap<String, Offered>) {
        let here = peers.iter().filter(|peer| peer.state != PeerState::Gone);
        let offered = here.filter_map(|peer| Some((&peer.hostname, offers.get(&peer.node_id)?)));
        let all = offered.map(|(name, offered)| (name, offered.paused, offered.draining));
        for (name, paused, draining) in std::iter::once((&self.own.hostname, own.paused, own.draining)).chain(all) {
            if paused {
                self.paused.push(name.clone());
            }
            if draining {
                self.draining.push(name.clone());
            }
        }
    }
}
