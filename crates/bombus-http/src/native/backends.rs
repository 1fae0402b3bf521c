//! How the backends are doing, and which of them would get a request.

#![expect(unused_qualifications, reason = "the description of a route names types by longer paths than it needs")]

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use bombus_core::model::ModelCapability;
use bombus_core::placement::{Need, Offer, Ranked};
use bombus_infer::{BackendState, PeerNow};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::app::{App, SharedApp};
use crate::error::ApiError;
use crate::inference;

/// How the backends are doing.
#[derive(Serialize, ToSchema)]
pub(crate) struct BackendsAnswer {
    /// Most preferred first.
    backends: Vec<BackendAnswer>,
}

/// How a backend is doing.
#[derive(Serialize, ToSchema)]
struct BackendAnswer {
    /// Its name; for another node that node's id.
    name: String,
    /// `embedded`, `fake`, `ollama` or `openai`; `peer` for another node.
    kind: &'static str,
    /// Id of the node that it stands for, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// What people call that node.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    /// How that node is, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<PeerAnswer>,
    /// Whether its list of models could be had, its breaker lets requests through, and, of another node, whether it takes any.
    ready: bool,
    /// What went wrong last, as long as nothing has gone well since.
    #[schema(required)]
    error: Option<String>,
    /// `closed` lets requests through, `open` keeps them away, `half-open` waits for the outcome of one that was let through.
    breaker: &'static str,
    /// Time until an open breaker lets the next request through, in milliseconds.
    #[schema(required)]
    retry_ms: Option<u64>,
    /// Requests that it is answering.
    running: u32,
    /// Requests that wait for one of its slots.
    waiting: u32,
    /// Most requests at a time, where that is limited.
    #[schema(required)]
    max_concurrent: Option<u32>,
    /// Time to the first token in milliseconds, recent requests counting most.
    #[schema(required)]
    first_token_ms: Option<f64>,
    /// Tokens per second of one request, recent requests counting most.
    #[schema(required)]
    tokens_per_second: Option<f64>,
    /// How many models it offers, aliases included.
    models: usize,
}

/// How another node is.
#[derive(Serialize, ToSchema)]
#[schema(as = BackendPeer)]
struct PeerAnswer {
    /// Whether it lives and this node is connected to it.
    reachable: bool,
    /// Whether it may be gone: it did not answer lately.
    suspect: bool,
    /// Time to it and back in milliseconds.
    #[schema(required)]
    latency_ms: Option<f64>,
    /// Requests that it runs, for whomever.
    running: u32,
    /// Requests that wait there, for whomever.
    waiting: u32,
    /// How many it runs at a time, where that is limited.
    #[schema(required)]
    slots: Option<u32>,
    /// Whether it takes no requests since it is about to go.
    draining: bool,
    /// Whether its owner has it take no requests of others for now.
    paused: bool,
    /// Memory of its GPUs in MB.
    gpu_memory_mb: u64,
}

/// Which backends a request for a model would go to.
#[derive(Serialize, ToSchema)]
pub(crate) struct RouteAnswer {
    /// The model's name as it was asked for.
    model: String,
    /// All backends: those that can answer, best first, then the others.
    candidates: Vec<CandidateAnswer>,
}

/// The judgement on a backend.
#[derive(Serialize, ToSchema)]
struct CandidateAnswer {
    /// Its name; for another node that node's id.
    backend: String,
    /// Id of the node on which it is.
    node_id: String,
    /// What people call that node.
    node: String,
    /// Whether that is this node.
    here: bool,
    /// The model's name at that backend, where it has it.
    #[schema(required)]
    model: Option<String>,
    /// The sum of its points, where it can answer; more is better.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    /// Why it cannot answer, where it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<String>,
    /// Where its points come from, or why it cannot answer.
    reasons: Vec<String>,
}

/// What `GET /route` asks for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RouteQuery {
    /// Name of the model; where the node has a default model, it may be left out.
    model: Option<String>,
    /// What the model has to be able to do, with commas between: `completion`, `tools`, `embedding`, `vision`,
    /// `thinking`, `insert`.
    capabilities: Option<String>,
    /// Where the request may be answered: `local`, `remote`, or `node=` and a node's name or id; anywhere where this is left out.
    scope: Option<String>,
}

/// Tells how each backend is doing.
#[utoipa::path(get, operation_id = "backends", path = "/backends", tag = "native", responses((status = 200, description = "The backends", body = BackendsAnswer)))]
pub(crate) async fn list(State(app): State<SharedApp>) -> Json<BackendsAnswer> {
    let states = app.services.backends.states();
    Json(BackendsAnswer { backends: states.into_iter().map(BackendAnswer::from).collect() })
}

/// Tells which backends a request for a model would go to, and why. No request is sent.
#[utoipa::path(get, operation_id = "route", path = "/route", tag = "native", params(RouteQuery),
    responses(
        (status = 200, description = "The judgement on every backend", body = RouteAnswer),
        (status = 400, description = "No model is named and there is no default model, or a capability or scope is unknown", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "The name cannot be one of a model, or nobody is called as the scope says", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn route(
    State(app): State<SharedApp>,
    query: Result<Query<RouteQuery>, QueryRejection>,
) -> Result<Json<RouteAnswer>, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::invalid_value("query", rejection.body_text()))?;
    let model = inference::name(&app, query.model)?;
    let words = query.capabilities.as_deref().unwrap_or_default().split(',').filter(|word| !word.is_empty());
    let scope = query.scope.map(|text| inference::read_scope(&app, &text, "scope")).transpose()?.unwrap_or_default();
    let need = Need::of(words.map(capability).collect::<Result<Vec<_>, _>>()?).within(scope);
    let ranking = app.services.backends.rank(&model, &need).await?;
    Ok(Json(RouteAnswer {
        model,
        candidates: ranking.iter().map(|ranked| CandidateAnswer::of(&app, ranked)).collect(),
    }))
}

fn capability(word: &str) -> Result<ModelCapability, ApiError> {
    serde_json::from_value(word.into()).map_err(|_| {
        let message =
            format!("{word:?} is no capability; there are completion, tools, embedding, vision, thinking and insert");
        ApiError::invalid_value("capabilities", message)
    })
}

impl From<BackendState> for BackendAnswer {
    fn from(state: BackendState) -> Self {
        Self {
            name: state.name,
            kind: state.kind,
            node: state.node.map(String::from),
            node_name: state.node_name,
            peer: state.peer.map(PeerAnswer::from),
            ready: state.ready,
            error: state.error,
            breaker: state.breaker,
            retry_ms: state.retry_ms,
            running: state.running,
            waiting: state.waiting,
            max_concurrent: state.max_concurrent,
            first_token_ms: state.first_token_ms,
            tokens_per_second: state.tokens_per_second,
            models: state.models,
        }
    }
}

impl From<PeerNow> for PeerAnswer {
    fn from(now: PeerNow) -> Self {
        Self {
            reachable: now.reachable,
            suspect: now.suspect,
            latency_ms: now.latency_ms,
            running: now.running,
            waiting: now.waiting,
            slots: now.slots,
            draining: now.draining,
            paused: now.paused,
            gpu_memory_mb: now.gpu_memory_mb,
        }
    }
}

impl CandidateAnswer {
    fn of(app: &App, ranked: &Ranked) -> Self {
        let own = &app.services.node;
        let (node_id, node) = match &ranked.candidate.peer {
            Some(peer) => (peer.node.to_string(), peer.name.to_string()),
            None => (own.node_id.to_string(), own.name.clone()),
        };
        let model = match &ranked.candidate.offer {
            Offer::Has { alias_of: Some(there), .. } => Some(there.to_string()),
            Offer::Has { info, alias_of: None } => Some(info.name.to_string()),
            Offer::Hidden | Offer::Missing | Offer::Unknown(_) => None,
        };
        Self {
            backend: ranked.candidate.backend.to_string(),
            node_id,
            node,
            here: ranked.candidate.peer.is_none(),
            model,
            score: ranked.score(),
            rejected: ranked.rejection().map(ToString::to_string),
            reasons: ranked.reasons(),
        }
    }
}
