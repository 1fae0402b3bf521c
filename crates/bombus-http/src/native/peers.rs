//! Who is in the swarm.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::mesh_of;
use crate::app::{App, SharedApp};
use crate::error::ApiError;
use crate::mesh::{Membership, Peer, PeerState};

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

/// Where a model is.
#[derive(Serialize, ToSchema)]
struct ModelPlaces {
    name: String,
    /// Names of the nodes that have it.
    nodes: Vec<String>,
}

/// Lists the other nodes of the swarm, those that are gone for a while included.
#[utoipa::path(get, operation_id = "peers", path = "/peers", tag = "native",
    responses((status = 200, description = "The peers; empty where the node is alone", body = Vec<Peer>)))]
pub(crate) async fn list(State(app): State<SharedApp>) -> Json<Vec<Peer>> {
    Json(app.services.mesh.as_ref().map(|mesh| mesh.peers()).unwrap_or_default())
}

/// Sums the swarm up: nodes, tiers, models, load.
#[utoipa::path(get, operation_id = "swarm", path = "/swarm", tag = "native",
    responses((status = 200, description = "The swarm", body = SwarmAnswer)))]
pub(crate) async fn swarm(State(app): State<SharedApp>) -> Result<Json<SwarmAnswer>, ApiError> {
    let mesh = mesh_of(&app)?;
    Ok(Json(SwarmAnswer::of(mesh.membership().await, mesh.own(), &mesh.peers())))
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
            membership,
            own,
        }
    }
}
