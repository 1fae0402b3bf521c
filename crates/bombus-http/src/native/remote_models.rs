//! Models at other nodes: fetched and removed there, where their owners allow it. That needs a key on loopback too.

#[cfg(test)]
mod tests;

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bombus_infer::Progress;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::mesh::KeyHolder;
use super::mesh_of;
use crate::app::SharedApp;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::mesh::{Mesh, ModelSteps, ModelsError, PeerState, RemoteModels, choose};

/// How many nodes are at it at a time; the others wait.
const AT_ONCE: usize = 16;
/// Longest name of a model, in bytes: one to fetch may be an address.
const NAME_BYTES_MAX: usize = 512;

/// Says which model, and at which node.
#[derive(Deserialize, ToSchema)]
pub(crate) struct NodeModelRequest {
    /// Name of the model.
    model: String,
    /// The node: its name, its id, or a beginning of either that no other has.
    node: Option<String>,
    /// All nodes of the swarm that are not gone, this one included.
    #[serde(default)]
    all: bool,
}

/// A step at a node. Each node's last line has `done` or `error`.
#[derive(Serialize, ToSchema)]
pub(crate) struct NodeStep {
    node_id: String,
    /// What people call the node.
    node: String,
    /// What is being done there.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    /// Digest of the file that the step is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// Size of that file in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    /// How much of it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<u64>,
    /// True at the end of a work that succeeded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    done: bool,
    /// Why it was not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The same for programs: `refused`, `not_found`, `busy`, `unreachable` or `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

/// Has a node, or all nodes, fetch a model. Each takes it from nodes that have it, or else from the internet. Closing the connection stops
/// the work.
#[utoipa::path(post, operation_id = "node_models_pull", path = "/node/models/pull", tag = "native", request_body = NodeModelRequest,
    responses(
        (status = 200, description = "How it goes on at each node, one JSON object a line", body = NodeStep, content_type = "application/x-ndjson"),
        (status = 404, description = "Nobody is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "Several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn pull(
    _: KeyHolder,
    State(app): State<SharedApp>,
    JsonBody { value: request, .. }: JsonBody<NodeModelRequest>,
) -> Result<Response, ApiError> {
    work(&app, &request, |models, node_id| models.pull(node_id, &request.model))
}

/// Has a node, or all nodes, remove a model. Closing the connection stops the work.
#[utoipa::path(post, operation_id = "node_models_remove", path = "/node/models/remove", tag = "native", request_body = NodeModelRequest,
    responses(
        (status = 200, description = "How it goes on at each node, one JSON object a line", body = NodeStep, content_type = "application/x-ndjson"),
        (status = 404, description = "Nobody is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "Several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn remove(
    _: KeyHolder,
    State(app): State<SharedApp>,
    JsonBody { value: request, .. }: JsonBody<NodeModelRequest>,
) -> Result<Response, ApiError> {
    work(&app, &request, |models, node_id| models.remove(node_id, &request.model))
}

fn work(
    app: &SharedApp,
    request: &NodeModelRequest,
    begin: impl Fn(&dyn RemoteModels, &str) -> ModelSteps,
) -> Result<Response, ApiError> {
    if request.model.is_empty() || request.model.len() > NAME_BYTES_MAX {
        return Err(ApiError::invalid_value("model", format!("a model's name has 1 to {NAME_BYTES_MAX} bytes")));
    }
    let mesh = mesh_of(app)?;
    let nodes = nodes_of(mesh.as_ref(), request)?;
    let models =
        mesh.remote_models().ok_or_else(|| ApiError::mesh_unavailable("this node cannot ask others for that"))?;
    let works: Vec<_> = nodes.into_iter().map(|node| told(begin(models, &node.node_id), node).boxed()).collect();
    let lines = stream::iter(works).flatten_unordered(AT_ONCE).map(|step| Ok::<_, Infallible>(step.line()));
    let cut = app.cut.clone();
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    let lines = lines.take_until(async move { cut.cancelled().await });
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// A node that is to do something.
#[derive(Clone)]
struct Node {
    node_id: String,
    name: String,
}

fn nodes_of(mesh: &dyn Mesh, request: &NodeModelRequest) -> Result<Vec<Node>, ApiError> {
    let own = mesh.own();
    let known = std::iter::once(own).chain(mesh.peers());
    match &request.node {
        Some(_) if request.all => Err(ApiError::invalid_value("node", "name a node or say `all`, not both".to_owned())),
        Some(wanted) => {
            let known: Vec<_> = known.collect();
            let chosen = choose(wanted, known.iter().map(|node| (node.node_id.as_str(), node.hostname.as_str())))?;
            let node = known.iter().find(|node| node.node_id == chosen);
            Ok(node
                .map(|node| Node { node_id: node.node_id.clone(), name: node.hostname.clone() })
                .into_iter()
                .collect())
        }
        None if request.all => {
            let there = known.filter(|node| node.state != PeerState::Gone);
            Ok(there.map(|node| Node { node_id: node.node_id, name: node.hostname }).collect())
        }
        None => Err(ApiError::missing("node", "say at which `node`, or `all`")),
    }
}

/// Tells the steps of a node, and its end.
fn told(steps: ModelSteps, node: Node) -> impl Stream<Item = NodeStep> + Send {
    let end = node.clone();
    let steps = steps.map(Some).chain(stream::iter([None]));
    let mut failed = false;
    steps.filter_map(move |step| {
        let told = match step {
            Some(Ok(step)) => Some(NodeStep::of(&node, step)),
            Some(Err(error)) => {
                failed = true;
                Some(NodeStep::failed(&node, error))
            }
            None => (!failed).then(|| NodeStep { done: true, ..NodeStep::at(&end) }),
        };
        std::future::ready(told)
    })
}

impl NodeStep {
    fn at(node: &Node) -> Self {
        Self {
            node_id: node.node_id.clone(),
            node: node.name.clone(),
            status: None,
            digest: None,
            total: None,
            completed: None,
            done: false,
            error: None,
            code: None,
        }
    }

    fn of(node: &Node, step: Progress) -> Self {
        Self {
            status: Some(step.status),
            digest: step.sha256.map(|sha256| format!("sha256:{sha256}")),
            total: step.total_bytes,
            completed: step.completed_bytes,
            ..Self::at(node)
        }
    }

    fn failed(node: &Node, error: ModelsError) -> Self {
        Self { error: Some(error.message), code: Some(error.code), ..Self::at(node) }
    }

    fn line(&self) -> Bytes {
        let mut line = serde_json::to_vec(self).expect("a step has a JSON form, and a buffer takes it");
        line.push(b'\n');
        line.into()
    }
}
