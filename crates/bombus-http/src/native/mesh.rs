//! Who may come into the swarm, and how the others are reached. What changes the membership, or tells a secret of it, needs a key on
//! loopback too: whoever joins stays a member, while other uses of the API end with the access to it.

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::mesh_of;
use crate::app::SharedApp;
use crate::auth;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::mesh::{Handed, Invitation, Mesh, MeshError, MeshReport, Moved, Pong, choose};

/// Proof that a request carries an API key.
pub(crate) struct KeyHolder;

impl FromRequestParts<SharedApp> for KeyHolder {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &SharedApp) -> Result<Self, ApiError> {
        auth::check(app, &parts.headers).map(|()| Self)
    }
}

/// A ticket to join with.
#[derive(Deserialize, ToSchema)]
pub(crate) struct JoinRequest {
    /// The line that `bombus invite` printed.
    ticket: String,
    /// Goes to the ticket's swarm though this node has data of another one, which stay on its disk.
    #[serde(default)]
    switch: bool,
}

/// A member to remove.
#[derive(Deserialize, ToSchema)]
pub(crate) struct KickRequest {
    /// Its name, its id, or a beginning of either that no other has.
    peer: String,
}

/// An owner key to take.
#[derive(Deserialize, ToSchema)]
pub(crate) struct OwnerRequest {
    /// The line that `bombus owner export` printed.
    key: String,
}

/// Says that it is done.
#[derive(Serialize, ToSchema)]
pub(crate) struct OwnerAnswer {
    /// Always true.
    owner: bool,
}

/// Makes a ticket, with which another machine joins. It is a secret.
#[utoipa::path(post, operation_id = "mesh_invite", path = "/mesh/invite", tag = "native",
    responses(
        (status = 200, description = "The ticket", body = Invitation),
        (status = 409, description = "The swarm is open: it has no key, and so no tickets", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn invite(_: KeyHolder, State(app): State<SharedApp>) -> Result<Json<Invitation>, ApiError> {
    Ok(Json(mesh_of(&app)?.invite().await?))
}

/// Joins the swarm of a ticket. The mesh is built anew inside the node; what it was doing for other nodes ends with errors.
#[utoipa::path(post, operation_id = "mesh_join", path = "/mesh/join", tag = "native", request_body = JoinRequest,
    responses(
        (status = 200, description = "The node belongs to the swarm; peers connect in the next moments", body = Moved),
        (status = 409, description = "The node has data of another swarm and `switch` is not set, or it runs open", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn join(
    _: KeyHolder,
    State(app): State<SharedApp>,
    body: JsonBody<Value>,
) -> Result<Json<Moved>, ApiError> {
    let request: JoinRequest = secret_body(body, r#"{"ticket": "bombus1...", "switch": false}"#)?;
    Ok(Json(mesh_of(&app)?.join(&request.ticket, request.switch).await?))
}

/// Leaves the swarm for one of its own. The data of the old one stay on disk.
#[utoipa::path(post, operation_id = "mesh_leave", path = "/mesh/leave", tag = "native",
    responses(
        (status = 200, description = "The node is alone", body = Moved),
        (status = 409, description = "The swarm is open", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn leave(_: KeyHolder, State(app): State<SharedApp>) -> Result<Json<Moved>, ApiError> {
    Ok(Json(mesh_of(&app)?.leave().await?))
}

/// Removes a member and changes the swarm's key. Takes up to 10 s, in which the change is handed to the other members.
#[utoipa::path(post, operation_id = "mesh_kick", path = "/mesh/kick", tag = "native", request_body = KickRequest,
    responses(
        (status = 200, description = "The member is out", body = Handed),
        (status = 404, description = "Nobody is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "The node does not have the owner key, several are called so, or the swarm is open", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn kick(
    _: KeyHolder,
    State(app): State<SharedApp>,
    body: JsonBody<KickRequest>,
) -> Result<Json<Handed>, ApiError> {
    let mesh = mesh_of(&app)?;
    let node_id = chosen_or_id(mesh.as_ref(), &body.value.peer)?;
    Ok(Json(mesh.kick(&node_id).await?))
}

/// Changes the swarm's key. Takes up to 10 s, in which the change is handed to the members.
#[utoipa::path(post, operation_id = "mesh_rekey", path = "/mesh/rekey", tag = "native",
    responses(
        (status = 200, description = "The key is new", body = Handed),
        (status = 409, description = "The node does not have the owner key, or the swarm is open", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn rekey(_: KeyHolder, State(app): State<SharedApp>) -> Result<Json<Handed>, ApiError> {
    Ok(Json(mesh_of(&app)?.rekey().await?))
}

/// Takes the swarm's owner key, with which members are removed.
#[utoipa::path(post, operation_id = "mesh_owner", path = "/mesh/owner", tag = "native", request_body = OwnerRequest,
    responses(
        (status = 200, description = "This node has the owner key", body = OwnerAnswer),
        (status = 409, description = "The swarm is open", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn owner(
    _: KeyHolder,
    State(app): State<SharedApp>,
    body: JsonBody<Value>,
) -> Result<Json<OwnerAnswer>, ApiError> {
    let request: OwnerRequest = secret_body(body, r#"{"key": "..."}"#)?;
    mesh_of(&app)?.import_owner(&request.key).await?;
    Ok(Json(OwnerAnswer { owner: true }))
}

/// Measures the round trip to a peer, and says whether it is reached directly or through a relay.
#[utoipa::path(get, operation_id = "mesh_ping", path = "/mesh/ping/{peer}", tag = "native",
    params(("peer" = String, Path, description = "Its name, its id, or a beginning of either that no other has")),
    responses(
        (status = 200, description = "It answers", body = Pong),
        (status = 404, description = "Nobody is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "Several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 502, description = "It does not answer", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn ping(State(app): State<SharedApp>, Path(peer): Path<String>) -> Result<Json<Pong>, ApiError> {
    let mesh = mesh_of(&app)?;
    let node_id = chosen(mesh.as_ref(), &peer)?;
    Ok(Json(mesh.ping(&node_id).await?))
}

/// Tells what was tried to find other nodes, and what came of it.
#[utoipa::path(get, operation_id = "mesh_report", path = "/mesh/report", tag = "native",
    responses((status = 200, description = "What was tried", body = MeshReport)))]
pub(crate) async fn report(State(app): State<SharedApp>) -> Result<Json<MeshReport>, ApiError> {
    Ok(Json(mesh_of(&app)?.report().await))
}

fn chosen(mesh: &dyn Mesh, wanted: &str) -> Result<String, MeshError> {
    let peers = mesh.peers();
    choose(wanted, peers.iter().map(|peer| (peer.node_id.as_str(), peer.hostname.as_str()))).map(str::to_owned)
}

/// Takes an id of a node that nobody knows any more, too: it may come back.
fn chosen_or_id(mesh: &dyn Mesh, wanted: &str) -> Result<String, MeshError> {
    let own = mesh.own();
    if wanted == own.node_id || wanted.eq_ignore_ascii_case(&own.hostname) && chosen(mesh, wanted).is_err() {
        return Err(MeshError::UnknownPeer("that is this node itself; bombus leave takes it out of the swarm".into()));
    }
    match chosen(mesh, wanted) {
        Err(MeshError::UnknownPeer(_)) if is_node_id(wanted) => Ok(wanted.to_owned()),
        other => other,
    }
}

fn is_node_id(text: &str) -> bool {
    text.starts_with("12D3KooW") && bs58::decode(text).into_vec().is_ok_and(|bytes| bytes.len() == 38)
}

/// Reads a body with a secret in it. What is wrong with it is told without any of its content, since errors reach logs.
fn secret_body<T: DeserializeOwned>(body: JsonBody<Value>, expected: &str) -> Result<T, ApiError> {
    serde_json::from_value(body.value)
        .map_err(|_| ApiError::invalid_value("body", format!("the request body has to be of the form {expected}")))
}

impl From<MeshError> for ApiError {
    fn from(error: MeshError) -> Self {
        let message = error.to_string();
        match error {
            MeshError::BadTicket(_) => Self::invalid_value("ticket", message),
            MeshError::BadOwnerKey(_) => Self::invalid_value("key", message),
            MeshError::NeedsSwitch(_) => Self::conflict("needs_switch", message),
            MeshError::NoOwnerKey(_) => Self::conflict("no_owner_key", message),
            MeshError::OpenSwarm(_) => Self::conflict("open_swarm", message),
            MeshError::Refused(_) => Self::conflict("refused", message),
            MeshError::AmbiguousPeer(_) => Self::conflict("ambiguous_peer", message),
            MeshError::UnknownPeer(_) => Self::peer_not_found(message),
            MeshError::Unreachable(_) => Self::peer_unreachable(message),
            MeshError::Unavailable(_) => Self::mesh_unavailable(message),
            MeshError::Failed(_) => Self::mesh_failed(message),
        }
    }
}
