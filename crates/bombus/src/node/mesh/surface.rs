use std::time::Duration;

use async_trait::async_trait;
use bombus_core::identity::NodeId;
use bombus_core::liveness;
use bombus_http::mesh::{
    FeedItem, Handed, Happening, Invitation, Listening, Membership, Mesh, MeshError, MeshReport, Moved, Named, Peer,
    PeerState, Pong, RemoteModels, Sharing,
};
use bombus_net::membership::{
    self, InviteError, JoinError, MembershipError, MembershipHandle, OwnerError, OwnerKey, Privacy, Ticket,
};
use bombus_net::{NetEvent, NetEvents, NetHandle, Path};
use bombus_swarm::{EventItem, PeerView, SwarmHandle};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Serialize;
use tokio::time::timeout;

use super::models::SwarmModels;
use super::report;
use super::sharing::OwnersSwitch;
use crate::node::addresses::worth_telling;

/// Longest wait for the mesh to be built anew after a change of the swarm.
const REBUILD_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for the membership's service to say how it stands.
const STANDING_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for the peers of the swarm before to be forgotten then.
const FORGET_LIMIT: Duration = Duration::from_secs(1);

/// The mesh as the HTTP API uses it.
pub(super) struct Surface {
    net: NetHandle,
    membership: MembershipHandle,
    swarm: SwarmHandle,
    external: Vec<String>,
    switch: OwnersSwitch,
    models: SwarmModels,
}

impl Surface {
    pub(super) fn new(
        net: NetHandle,
        membership: MembershipHandle,
        swarm: SwarmHandle,
        external: Vec<String>,
        switch: OwnersSwitch,
        models: SwarmModels,
    ) -> Self {
        Self { net, membership, swarm, external, switch, models }
    }

    /// Waits until the mesh stands on another membership, so that who is seen then is of the new swarm.
    async fn rebuilt(&self, mut events: NetEvents) {
        let rebuilt = async {
            while let Some(event) = events.next().await {
                if matches!(event, NetEvent::Rebuilt { .. }) {
                    return;
                }
            }
        };
        if timeout(REBUILD_LIMIT, rebuilt).await.is_err() {
            tracing::warn!(limit_s = REBUILD_LIMIT.as_secs(), "the mesh is not built anew yet");
        }
        let mut changes = self.swarm.changes();
        let forgotten = async {
            while self.swarm.peers().iter().any(|peer| peer.path.is_some()) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // Who is connected that soon may well be of the new swarm.
        let _ = timeout(FORGET_LIMIT, forgotten).await;
    }

    fn handed(&self, handed: &membership::Handed) -> Handed {
        Handed {
            generation: handed.generation.0,
            reached: handed.reached.iter().map(|node_id| self.named(node_id)).collect(),
            missed: handed.missed.iter().map(|node_id| self.named(node_id)).collect(),
        }
    }

    fn named(&self, node_id: &NodeId) -> Named {
        let seen = self.swarm.peer(node_id).filter(|peer| peer.complete).map(|peer| peer.name);
        let known = || self.membership.known_peers().into_iter().find(|known| known.node_id == *node_id)?.name;
        let hostname = seen.or_else(known).unwrap_or_else(|| node_id.to_string());
        Named { node_id: node_id.to_string(), hostname }
    }
}

/// Reads an id that the API was given.
fn node_id_of(text: &str) -> Result<NodeId, MeshError> {
    NodeId::parse(text).map_err(|error| MeshError::UnknownPeer(error.to_string()))
}

#[async_trait]
impl Mesh for Surface {
    async fn membership(&self) -> Membership {
        let state = self.membership.state();
        let standing = timeout(STANDING_LIMIT, self.membership.standing()).await;
        Membership {
            swarm_id: state.swarm_id.to_string(),
            open: state.privacy == Privacy::Open,
            generation: state.generation.0,
            owner: matches!(standing, Ok(Ok(standing)) if standing.owner),
            listen: self.net.listen_addrs().borrow().clone(),
        }
    }

    fn listening(&self) -> Listening {
        report::listening(&self.net.report())
    }

    fn own(&self) -> Peer {
        peer_of(self.swarm.own())
    }

    fn peers(&self) -> Vec<Peer> {
        self.swarm.peers().into_iter().map(peer_of).collect()
    }

    fn events(&self, after: Option<u64>) -> BoxStream<'static, FeedItem> {
        let mut events = self.swarm.events(after);
        async_stream::stream! {
            while let Some(item) = events.next().await {
                yield match item {
                    EventItem::Event(event) => FeedItem::Happening(Happening {
                        id: event.id,
                        kind: event.kind.to_owned(),
                        timestamp: event.at.unix_ms() as f64 / 1_000.0,
                        data: event.data,
                    }),
                    EventItem::Lagged { missed } => FeedItem::Lagged { missed },
                };
            }
        }
        .boxed()
    }

    async fn report(&self) -> MeshReport {
        report::of(Mesh::membership(self).await, &self.net, &self.membership, &self.swarm)
    }

    async fn ping(&self, node_id: &str) -> Result<Pong, MeshError> {
        let peer = node_id_of(node_id)?;
        let (round_trip, path) =
            self.net.ping(&peer).await.map_err(|error| MeshError::Unreachable(error.to_string()))?;
        let (path, via) = match path {
            Path::Direct { addr } => ("direct", addr),
            Path::Relayed { via } => ("relayed", via.to_string()),
        };
        let Named { node_id, hostname } = self.named(&peer);
        let round_trip_ms = (round_trip.as_secs_f64() * 1_000_000.0).round() / 1_000.0;
        Ok(Pong { node_id, hostname, round_trip_ms, path: path.to_owned(), via })
    }

    async fn invite(&self) -> Result<Invitation, MeshError> {
        let listen = self.net.listen_addrs().borrow().clone();
        let addresses = worth_telling(&self.external, &listen, self.net.node_id());
        let ticket = self.membership.invite(addresses).await.map_err(of_invite)?;
        Ok(Invitation {
            ticket: ticket.to_string(),
            swarm_id: ticket.swarm_id().to_string(),
            addresses: ticket.addresses(),
        })
    }

    async fn join(&self, ticket: &str, switch: bool) -> Result<Moved, MeshError> {
        let ticket: Ticket = ticket
            .trim()
            .parse()
            .map_err(|error: membership::ParseLineError| MeshError::BadTicket(error.to_string()))?;
        let events = self.net.events();
        if switch && ticket.swarm_id() != self.net.swarm_id() {
            self.swarm.farewell().await;
        }
        let joined = self.membership.join(ticket, switch).await.map_err(of_join)?;
        if joined.from != joined.to || joined.new_key {
            self.rebuilt(events).await;
        }
        Ok(Moved { swarm_id: joined.to.to_string(), left: joined.from.to_string() })
    }

    async fn leave(&self) -> Result<Moved, MeshError> {
        let events = self.net.events();
        self.swarm.farewell().await;
        let left = self.membership.leave().await.map_err(of_join)?;
        if left.from != left.to {
            self.rebuilt(events).await;
        }
        Ok(Moved { swarm_id: left.to.to_string(), left: left.from.to_string() })
    }

    async fn kick(&self, node_id: &str) -> Result<Handed, MeshError> {
        let peer = node_id_of(node_id)?;
        let handed = self.membership.kick(peer).await.map_err(of_owner)?;
        Ok(self.handed(&handed))
    }

    async fn rekey(&self) -> Result<Handed, MeshError> {
        let handed = self.membership.rekey().await.map_err(of_owner)?;
        Ok(self.handed(&handed))
    }

    async fn import_owner(&self, key: &str) -> Result<(), MeshError> {
        let key: OwnerKey = key
            .trim()
            .parse()
            .map_err(|error: membership::ParseLineError| MeshError::BadOwnerKey(error.to_string()))?;
        self.membership.import_owner(key).await.map_err(of_owner)
    }

    fn sharing(&self) -> Option<&dyn Sharing> {
        Some(&self.switch)
    }

    fn remote_models(&self) -> Option<&dyn RemoteModels> {
        Some(&self.models)
    }
}

/// Translates the failure detector's word.
pub(super) fn state_of(state: liveness::PeerState) -> PeerState {
    match state {
        liveness::PeerState::Alive => PeerState::Alive,
        liveness::PeerState::Suspect => PeerState::Suspect,
        liveness::PeerState::Gone => PeerState::Gone,
    }
}

fn peer_of(view: PeerView) -> Peer {
    Peer {
        node_id: view.node_id.to_string(),
        hostname: view.name,
        ip: view.ip,
        port: view.port,
        node_tier: view.node_tier.map(word),
        capabilities: view.capabilities,
        gpu_name: view.gpu_name,
        vram_total_mb: view.vram_total_mb.unwrap_or(0),
        available_models: view.models,
        last_seen: view.last_seen as f64,
        version: view.version,
        state: state_of(view.state),
        reason: view.reason.to_owned(),
        since: (view.since > 0).then_some(view.since as f64),
        status: view.status.map(word),
        path: view.path.map(|path| path.as_str().to_owned()),
        latency_ms: view.latency_ms,
        running: view.running,
        slots: view.slots,
        cpu_usage_percent: view.cpu,
        gpu_tier: view.gpu_tier.map(word),
        backends: view.backends,
        installed: view.installed,
        clock_skew_ms: view.clock_skew_ms,
    }
}

/// Returns a word as its serialised form has it.
fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn of_membership(error: &MembershipError) -> MeshError {
    match error {
        MembershipError::Stopped => MeshError::Unavailable(error.to_string()),
        _ => MeshError::Failed(format!("the membership cannot be changed: {error}")),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn of_invite(error: InviteError) -> MeshError {
    match &error {
        InviteError::Open => MeshError::OpenSwarm(error.to_string()),
        InviteError::Address { .. } => MeshError::Failed(error.to_string()),
        InviteError::Membership(inner) => of_membership(inner),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn of_join(error: JoinError) -> MeshError {
    match &error {
        JoinError::OtherSwarm { .. } => MeshError::NeedsSwitch(error.to_string()),
        JoinError::OldTicket => MeshError::BadTicket(error.to_string()),
        JoinError::Open => MeshError::OpenSwarm(error.to_string()),
        JoinError::Membership(inner) => of_membership(inner),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn of_owner(error: OwnerError) -> MeshError {
    match &error {
        OwnerError::NotOwner => MeshError::NoOwnerKey(error.to_string()),
        OwnerError::OtherOwner { .. } => MeshError::BadOwnerKey(error.to_string()),
        OwnerError::AlreadyRemoved(_) | OwnerError::Oneself | OwnerError::TooManyRemoved(_) => {
            MeshError::Refused(error.to_string())
        }
        OwnerError::Open => MeshError::OpenSwarm(error.to_string()),
        OwnerError::Membership(inner) => of_membership(inner),
    }
}
