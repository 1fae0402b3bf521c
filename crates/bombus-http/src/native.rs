//! The native routes, in mycoSwarm's shapes.

pub(crate) mod backends;
pub(crate) mod databases;
pub(crate) mod events;
pub(crate) mod mesh;
pub(crate) mod models;
pub(crate) mod peers;
pub(crate) mod remote_models;
pub(crate) mod sharing;
mod sse;
pub(crate) mod tasks;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bombus_infer::Health;
use futures::future::join_all;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::app::{App, SharedApp};
use crate::error::ApiError;
use crate::mesh::{Listening, Mesh, SharingState};
use crate::tasks::TaskState;

/// Longest wait for a backend to say how it is.
const HEALTH_TIME_MAX: Duration = Duration::from_secs(2);

/// Whether the node lives.
#[derive(Serialize, ToSchema)]
pub(crate) struct HealthAnswer {
    node_id: String,
    /// What people call the node.
    hostname: String,
    /// Always `ok`: a node that is not does not answer.
    status: &'static str,
    uptime_seconds: f64,
    /// Nodes of the swarm besides this one that are not gone.
    peer_count: usize,
    version: String,
}

/// What the node is made of.
#[derive(Serialize, ToSchema)]
pub(crate) struct IdentityAnswer {
    node_id: String,
    hostname: String,
    #[schema(required)]
    lan_ip: Option<String>,
    /// `executive`, `specialist`, `worker`, `light` or `edge`.
    node_tier: String,
    capabilities: Vec<String>,
    /// `ultra`, `high`, `mid`, `entry` or `none`.
    gpu_tier: String,
    max_model_params_b: f64,
    #[schema(required)]
    gpu_name: Option<String>,
    vram_total_mb: u64,
    vram_free_mb: u64,
    ram_total_mb: u64,
    ram_available_mb: u64,
    cpu_model: String,
    cpu_cores: u32,
    disk_free_gb: f64,
    /// Whether any backend is ready to run models.
    ollama_running: bool,
    available_models: Vec<String>,
    /// Seconds since the Unix epoch.
    timestamp: f64,
    version: String,
    /// What people should know, for example why a backend does not work.
    notes: Vec<String>,
}

/// What the node does.
#[derive(Serialize, ToSchema)]
pub(crate) struct StatusAnswer {
    node_id: String,
    hostname: String,
    version: String,
    node_tier: String,
    capabilities: Vec<String>,
    #[schema(required)]
    gpu: Option<String>,
    vram_total_mb: u64,
    vram_free_mb: u64,
    ollama_models: Vec<String>,
    /// Nodes of the swarm besides this one that are not gone.
    peers: usize,
    /// Durable tasks of the swarm that wait.
    tasks_pending: u64,
    /// Answers being generated, and durable tasks that this node works on.
    tasks_active: u64,
    /// How much room the tasks take here, and where they stand.
    task_store: tasks::prune::TaskStore,
    uptime_seconds: f64,
    cpu_model: String,
    cpu_cores: u32,
    cpu_usage_percent: f32,
    ram_total_mb: u64,
    ram_used_mb: u64,
    disk_total_gb: f64,
    disk_used_gb: f64,
    os: String,
    architecture: String,
    ip: String,
    port: u16,
    /// Where other nodes reach it.
    p2p: Listening,
    /// What it does for the other nodes.
    sharing: SharingState,
}

/// Says that the node lives. The only route that never needs a key.
#[utoipa::path(get, operation_id = "health", path = "/health", tag = "native", responses((status = 200, description = "The node lives", body = HealthAnswer)))]
pub(crate) async fn health(State(app): State<SharedApp>) -> Json<HealthAnswer> {
    let node = &app.services.node;
    Json(HealthAnswer {
        node_id: node.node_id.to_string(),
        hostname: node.name.clone(),
        status: "ok",
        uptime_seconds: uptime_seconds(&app),
        peer_count: peers::count(&app),
        version: node.version.clone(),
    })
}

/// Describes the machine and what it can do.
#[utoipa::path(get, operation_id = "identity", path = "/identity", tag = "native", responses((status = 200, description = "The machine", body = IdentityAnswer)))]
pub(crate) async fn identity(State(app): State<SharedApp>) -> Json<IdentityAnswer> {
    let node = &app.services.node;
    let hardware = node.sample.borrow().hardware.clone();
    let notes = backend_troubles(&app).await;
    let works = notes.len() < app.services.backends.own().len();
    let gpu = hardware.best_gpu();
    Json(IdentityAnswer {
        node_id: node.node_id.to_string(),
        hostname: node.name.clone(),
        lan_ip: hardware.lan_ip.clone(),
        node_tier: name_of(hardware.node_tier()),
        capabilities: hardware.capabilities(works).into_iter().map(name_of).collect(),
        gpu_tier: name_of(hardware.gpu_tier()),
        max_model_params_b: hardware.max_model_params_b(),
        gpu_name: gpu.map(|gpu| gpu.name.clone()),
        vram_total_mb: gpu.map_or(0, |gpu| gpu.vram_total_mb),
        vram_free_mb: gpu.map_or(0, |gpu| gpu.vram_free_mb),
        ram_total_mb: hardware.ram_total_mb,
        ram_available_mb: hardware.ram_available_mb,
        cpu_model: hardware.cpu_model.clone(),
        cpu_cores: hardware.cpu_threads,
        disk_free_gb: tenths(hardware.disk_free_gb),
        ollama_running: works,
        available_models: model_names(&app).await,
        timestamp: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        version: node.version.clone(),
        notes,
    })
}

/// Describes what the node does now.
#[utoipa::path(get, operation_id = "status", path = "/status", tag = "native", responses((status = 200, description = "The node's state", body = StatusAnswer)))]
pub(crate) async fn status(State(app): State<SharedApp>) -> Json<StatusAnswer> {
    let node = &app.services.node;
    let sample = node.sample.borrow().clone();
    let hardware = sample.hardware;
    let works = backend_troubles(&app).await.len() < app.services.backends.own().len();
    let gpu = hardware.best_gpu();
    let tasks = tasks::counts_of(&app);
    let ip = match app.bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => hardware.lan_ip.clone().unwrap_or_else(|| ip.to_string()),
        IpAddr::V6(ip) if ip.is_unspecified() => hardware.lan_ip.clone().unwrap_or_else(|| ip.to_string()),
        ip => ip.to_string(),
    };
    Json(StatusAnswer {
        node_id: node.node_id.to_string(),
        hostname: node.name.clone(),
        version: node.version.clone(),
        node_tier: name_of(hardware.node_tier()),
        capabilities: hardware.capabilities(works).into_iter().map(name_of).collect(),
        gpu: gpu.map(|gpu| gpu.name.clone()),
        vram_total_mb: gpu.map_or(0, |gpu| gpu.vram_total_mb),
        vram_free_mb: gpu.map_or(0, |gpu| gpu.vram_free_mb),
        ollama_models: model_names(&app).await,
        peers: peers::count(&app),
        tasks_pending: tasks.of(TaskState::Pending),
        tasks_active: app.services.metrics.answers_running() + tasks.running_here,
        task_store: tasks.into(),
        uptime_seconds: uptime_seconds(&app),
        cpu_model: hardware.cpu_model.clone(),
        cpu_cores: hardware.cpu_threads,
        cpu_usage_percent: sample.cpu_usage_percent,
        ram_total_mb: hardware.ram_total_mb,
        ram_used_mb: hardware.ram_total_mb.saturating_sub(hardware.ram_available_mb),
        disk_total_gb: tenths(hardware.disk_total_gb),
        disk_used_gb: tenths((hardware.disk_total_gb - hardware.disk_free_gb).max(0.0)),
        os: hardware.os.clone(),
        architecture: hardware.architecture.clone(),
        ip,
        port: app.bound.port(),
        p2p: app.services.mesh.as_ref().map(|mesh| mesh.listening()).unwrap_or_default(),
        sharing: sharing::state_of(&app),
    })
}

/// Counts what the node does, for Prometheus.
#[utoipa::path(get, operation_id = "metrics", path = "/metrics", tag = "native",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = METRICS_TYPE)))]
pub(crate) async fn metrics(State(app): State<SharedApp>) -> Result<Response, ApiError> {
    let text = app.services.metrics.encode().map_err(|_| ApiError::internal())?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response())
}

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns the mesh, which every node has but those that tests put together.
fn mesh_of(app: &App) -> Result<&Arc<dyn Mesh>, ApiError> {
    app.services.mesh.as_ref().ok_or_else(|| ApiError::mesh_unavailable("this node has no mesh"))
}

/// Asks every backend of this node how it is and returns what those that do not work say.
async fn backend_troubles(app: &App) -> Vec<String> {
    let ask = |name: &str, health: Option<Health>| match health {
        Some(Health::Ready) => None,
        Some(Health::Unavailable(reason)) => Some(format!("backend {name}: {reason}")),
        None => Some(format!("backend {name}: no answer within {} s", HEALTH_TIME_MAX.as_secs())),
    };
    let asked = app.services.backends.own().into_iter().map(async |named| {
        let health = timeout(HEALTH_TIME_MAX, named.backend.health()).await.ok();
        ask(&named.name, health)
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Names the models of this node itself.
async fn model_names(app: &App) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for listed in app.services.backends.models().await.into_iter().filter(|listed| listed.node.is_none()) {
        let name = listed.info.name.to_string();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn uptime_seconds(app: &App) -> f64 {
    tenths(app.services.node.started.elapsed().as_secs_f64())
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Returns a tier's or a capability's name as its serialised form has it.
fn name_of(word: impl Serialize) -> String {
    match serde_json::to_value(word) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
