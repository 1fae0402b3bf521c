//! What this node does for the other nodes, and how its owner stops that. Changes need a key on loopback too: they take the machine
//! away from others.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::mesh::KeyHolder;
use super::mesh_of;
use crate::app::{App, SharedApp};
use crate::error::ApiError;
use crate::mesh::{Mesh, Sharing, SharingState};
use crate::{Metrics, Sample, SampleKind};

/// Tells what this node does for the others now, and what its configuration lets it do.
#[utoipa::path(get, operation_id = "node_sharing", path = "/node/sharing", tag = "native",
    responses((status = 200, description = "How it stands", body = SharingState)))]
pub(crate) async fn state(State(app): State<SharedApp>) -> Result<Json<SharingState>, ApiError> {
    mesh_of(&app)?;
    Ok(Json(state_of(&app)))
}

/// Takes no further requests of other nodes until it is resumed, also after a restart. What runs goes on.
#[utoipa::path(post, operation_id = "node_pause", path = "/node/pause", tag = "native",
    responses((status = 200, description = "Others get nothing more", body = SharingState)))]
pub(crate) async fn pause(_: KeyHolder, State(app): State<SharedApp>) -> Result<Json<SharingState>, ApiError> {
    Ok(Json(sharing(&app)?.pause().await?))
}

/// Answers for the other nodes again after a pause.
#[utoipa::path(post, operation_id = "node_resume", path = "/node/resume", tag = "native",
    responses((status = 200, description = "The pause is over", body = SharingState)))]
pub(crate) async fn resume(_: KeyHolder, State(app): State<SharedApp>) -> Result<Json<SharingState>, ApiError> {
    Ok(Json(sharing(&app)?.resume().await?))
}

/// Takes no further requests of other nodes and tells them that this node is about to go. What runs goes on.
#[utoipa::path(post, operation_id = "node_drain", path = "/node/drain", tag = "native",
    responses((status = 200, description = "The others know; `running` says what is not finished yet", body = SharingState)))]
pub(crate) async fn drain(_: KeyHolder, State(app): State<SharedApp>) -> Result<Json<SharingState>, ApiError> {
    Ok(Json(sharing(&app)?.drain().await?))
}

/// Stays after all: answers for the other nodes again after a drain.
#[utoipa::path(post, operation_id = "node_undrain", path = "/node/undrain", tag = "native",
    responses((status = 200, description = "The drain is over", body = SharingState)))]
pub(crate) async fn undrain(_: KeyHolder, State(app): State<SharedApp>) -> Result<Json<SharingState>, ApiError> {
    Ok(Json(sharing(&app)?.undrain().await?))
}

/// Returns how it stands; nothing is shared where there is no mesh.
pub(super) fn state_of(app: &App) -> SharingState {
    let sharing = app.services.mesh.as_ref().and_then(|mesh| mesh.sharing());
    sharing.map(Sharing::state).unwrap_or_default()
}

/// Reports how it stands whenever the metrics are read.
pub(crate) fn report(mesh: &Arc<dyn Mesh>, metrics: &Metrics) {
    let mesh = Arc::downgrade(mesh);
    metrics.add_source(move || {
        let mesh = mesh.upgrade();
        let state = mesh.as_ref().and_then(|mesh| mesh.sharing()).map(Sharing::state);
        state.map(|state| samples(&state)).unwrap_or_default()
    });
}

fn samples(state: &SharingState) -> Vec<Sample> {
    let gauge = |name, help, value| Sample { name, kind: SampleKind::Gauge, help, labels: Vec::new(), value };
    let slots = state.max_slots.map(|slots| {
        gauge("shared_slots", "Most requests of other nodes that are answered at a time", f64::from(slots))
    });
    [
        gauge("shared_running", "Requests of other nodes being answered", f64::from(state.running)),
        gauge("shared_waiting", "Requests of other nodes that wait for a slot", f64::from(state.waiting)),
        gauge(
            "sharing_paused",
            "Whether requests of other nodes are turned away for now",
            f64::from(u8::from(state.paused)),
        ),
        gauge("sharing_draining", "Whether the node is about to go", f64::from(u8::from(state.draining))),
    ]
    .into_iter()
    .chain(slots)
    .collect()
}

fn sharing(app: &App) -> Result<&dyn Sharing, ApiError> {
    mesh_of(app)?.sharing().ok_or_else(|| ApiError::mesh_unavailable("this node does nothing for others"))
}
