//! The models of the swarm: each name once, with the nodes that have it.

use std::collections::HashMap;

use bombus_infer::{Listed, NamedBackend};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::error::ApiError;

/// A model with the nodes that have it.
pub(crate) struct Found {
    /// The model as the most preferred backend has it.
    pub(crate) listed: Listed,
    /// The nodes, the most preferred first.
    pub(crate) places: Places,
}

/// The nodes that have a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Places {
    /// The most preferred one first.
    nodes: Vec<Holder>,
}

/// A node that has a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
struct Holder {
    node_id: String,
    /// What people call it.
    name: String,
}

/// Lists the models of all backends here and at other nodes, each name once, most preferred backend first.
pub(crate) async fn all(app: &App) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let mut at = HashMap::new();
    for listed in app.services.backends.models().await {
        let place = *at.entry(listed.info.name.clone()).or_insert(found.len());
        let (node_id, name) = node_of(app, &listed);
        if place == found.len() {
            found.push(Found { listed, places: Places::default() });
        }
        found[place].places.add(node_id, name);
    }
    found
}

/// Finds a model, also one that nobody is known to have yet.
///
/// # Errors
///
/// As [`bombus_infer::Backends::find`].
pub(crate) async fn find(app: &App, model: &str) -> Result<Found, ApiError> {
    let listed = app.services.backends.find(model).await?;
    let known = all(app).await.into_iter().find(|found| found.listed.info.name == listed.info.name);
    Ok(known.unwrap_or_else(|| {
        let mut places = Places::default();
        let (node_id, name) = node_of(app, &listed);
        places.add(node_id, name);
        Found { listed, places }
    }))
}

impl Places {
    /// Adds the node of a backend.
    pub(crate) fn add_backend(&mut self, app: &App, named: &NamedBackend) {
        let own = &app.services.node;
        match &named.peer {
            None => self.add(own.node_id.to_string(), own.name.clone()),
            Some(peer) => {
                let (id, name) = (peer.node().to_string(), peer.node_name());
                let name = if name.is_empty() { id.clone() } else { name };
                self.add(id, name);
            }
        }
    }

    fn add(&mut self, node_id: String, name: String) {
        if self.nodes.iter().all(|holder| holder.node_id != node_id) {
            self.nodes.push(Holder { node_id, name });
        }
    }
}

/// Returns id and name of the node that has a model.
pub(crate) fn node_of(app: &App, listed: &Listed) -> (String, String) {
    let own = &app.services.node;
    match &listed.node {
        None => (own.node_id.to_string(), own.name.clone()),
        Some(node_id) => (node_id.to_string(), listed.node_name.clone().unwrap_or_else(|| node_id.to_string())),
    }
}

/// Names who runs a model: a backend here, or another node.
pub(crate) fn runner(listed: &Listed) -> &str {
    listed.node_name.as_deref().unwrap_or(&listed.backend.name)
}
