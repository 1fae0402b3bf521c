use anyhow::{Context, Result};
use bombus_core::model::ModelName;
use bombus_infer::models::StoreError;
use bombus_infer::models::catalogue::{catalogue, find};
use bombus_infer::{BackendError, Backends, Listed};
use futures::{StreamExt, TryStreamExt};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use super::progress::Progress;
use super::{Arrived, of_store};
use crate::cli::Global;
use crate::cli::answerer::running_node;
use crate::cli::backends::State;
use crate::config::Settings;
use crate::data_dir::DataDir;
use crate::failure::{Exit, Failure};
use crate::node::{RunningBackends, open_models};
use crate::node_client::{NodeClient, Refusal};

/// Longest accepted line of the steps of a pull.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A step of a pull.
#[derive(Deserialize)]
struct Step {
    #[serde(default)]
    status: String,
    #[serde(default)]
    total: Option<u64>,
    #[serde(default)]
    completed: Option<u64>,
    #[serde(default)]
    error: Option<String>,
}

#[derive(Deserialize)]
struct Tags {
    models: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    name: String,
    size: u64,
    digest: String,
}

#[derive(Deserialize)]
struct ToldBackends {
    backends: Vec<State>,
}

/// Returns the kind of the backend that fetches new models for a node; `None` where none does.
pub(super) async fn kind_that_pulls(node: &NodeClient) -> Result<Option<String>> {
    let told: ToldBackends = node.get("/backends").await?;
    let mut kinds = told.backends.into_iter().map(|backend| backend.kind);
    Ok(kinds.find(|kind| matches!(kind.as_str(), "embedded" | "ollama")))
}

/// Has the node fetch a model. Dropping it makes the node stop.
pub(super) async fn pull_at_node(node: &NodeClient, name: &str, progress: &mut Progress) -> Result<()> {
    let response = node.send(Method::POST, "/api/pull", Some(&json!({ "model": name, "stream": true }))).await?;
    let mut lines = FramedRead::new(
        StreamReader::new(response.bytes_stream().map_err(std::io::Error::other)),
        LinesCodec::new_with_max_length(LINE_BYTES_MAX),
    );
    while let Some(line) = lines.next().await {
        let line = line.context("the node's answer broke off")?;
        if line.trim().is_empty() {
            continue;
        }
        let step: Step = serde_json::from_str(&line).context("the node sent what is no step of a pull")?;
        if let Some(error) = step.error {
            return Err(failed(&error).into());
        }
        progress.bytes(&step.status, step.completed.unwrap_or(0), step.total);
    }
    Ok(())
}

fn failed(error: &str) -> Failure {
    if error.contains("not found") || error.contains("does not exist") {
        return Failure::new(Exit::NotFound, error).hint(super::WHERE_MODELS_ARE);
    }
    Failure::new(Exit::Failure, error)
}

/// Prints what scripts may want to know of a model that a node fetched.
pub(super) async fn arrived_at_node(node: &NodeClient, name: &str, as_json: bool) -> Result<()> {
    let known = catalogue();
    let stored = find(&known, name).map_or(name, |entry| entry.name.as_str());
    let stored = ModelName::parse(stored)?;
    let tags: Tags = node.get("/api/tags").await?;
    let tag = tags.models.iter().find(|tag| tag.name == stored.as_str());
    let sha256 = tag.map(|tag| tag.digest.trim_start_matches("sha256:"));
    Arrived { name: stored.as_str(), size_bytes: tag.map(|tag| tag.size), sha256 }.print(as_json)
}

/// Removes a model from the backend that a request for it would find, or from this machine's store.
pub(super) async fn remove(global: &Global, settings: &Settings, name: &ModelName) -> Result<()> {
    let data_dir = global.data_dir()?;
    if let Some(node) = running_node(&data_dir).await? {
        match node.send(Method::DELETE, "/api/delete", Some(&json!({ "model": name }))).await {
            Ok(_) => return removed(global, name),
            // The store may have it, and no backend of the node's.
            Err(error) if error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.status == 404) => {}
            Err(error) => return Err(error),
        }
    }
    match open_models(&data_dir)?.remove(name) {
        Ok(()) => removed(global, name),
        Err(not_here @ (StoreError::NotFound { .. } | StoreError::BelongsToOllama { .. })) => {
            remove_elsewhere(settings, &data_dir, name, not_here).await?;
            removed(global, name)
        }
        Err(error) => Err(of_store(error)),
    }
}

fn removed(global: &Global, name: &ModelName) -> Result<()> {
    global.notice(&format!("{name} removed"));
    Ok(())
}

/// Removes a model that the store cannot remove by this name from the configured backend that a request for it would find.
async fn remove_elsewhere(
    settings: &Settings,
    data_dir: &DataDir,
    name: &ModelName,
    not_here: StoreError,
) -> Result<()> {
    let running = RunningBackends::start(&settings.config, data_dir)?;
    let work = async {
        let mut places = running.backends().having(name.as_str()).await.unwrap_or_default();
        // What has this very name in the store has been refused there.
        places.retain(|place| place.backend.kind != "embedded" || place.name_there() != *name);
        let Some(place) = managed(&places) else { return Err(nowhere(running.backends(), not_here)) };
        if let Some(there) = &place.alias_of {
            let backend = &place.backend.name;
            let what = format!("'{name}' is an alias of '{there}' in the configuration of backend '{backend}'");
            let hint = format!("bombus models rm {there} removes the model; the alias is removed there");
            return Err(Failure::new(Exit::Usage, what).hint(hint).into());
        }
        let library = place.backend.backend.library().ok_or_else(|| unmanaged(&place.backend.name))?;
        if library.delete(&place.name_there()).await? { Ok(()) } else { Err(of_store(not_here)) }
    };
    let outcome = work.await;
    running.stop().await;
    outcome
}

/// Says why a model cannot be removed that no backend is known to have. One that does not tell its models may have it.
fn nowhere(backends: &Backends, not_here: StoreError) -> anyhow::Error {
    let others = backends.states().into_iter().filter(|state| state.kind != "embedded");
    let unknown: Vec<String> = others
        .filter_map(|state| Some(format!("the models of {} are not known: {}", state.name, state.error?)))
        .collect();
    match not_here {
        StoreError::NotFound { name } if !unknown.is_empty() => {
            let message = format!("model '{name}' is not in the store; {}", unknown.join("; "));
            Failure::new(Exit::Unavailable, message).hint("bombus backends shows how they are").into()
        }
        not_here => of_store(not_here),
    }
}

/// Chooses among places of a model as a node does; one that manages nothing where there is no other.
fn managed(places: &[Listed]) -> Option<&Listed> {
    Listed::managed(places).or(places.first())
}

fn unmanaged(backend: &str) -> Failure {
    Failure::new(Exit::Usage, format!("backend '{backend}' runs models, and does not let them be changed from here"))
}

/// Gives a model a second name, at the backend that has it.
pub(super) async fn copy(global: &Global, settings: &Settings, from: &ModelName, to: &ModelName) -> Result<()> {
    let data_dir = global.data_dir()?;
    match running_node(&data_dir).await? {
        Some(node) => {
            node.send(Method::POST, "/api/copy", Some(&json!({ "source": from, "destination": to }))).await?;
        }
        None => copy_here(settings, &data_dir, from, to).await?,
    }
    global.notice(&format!("{from} has the name {to} too"));
    Ok(())
}

async fn copy_here(settings: &Settings, data_dir: &DataDir, from: &ModelName, to: &ModelName) -> Result<()> {
    let running = RunningBackends::start(&settings.config, data_dir)?;
    let work = async {
        let places = running.backends().having(from.as_str()).await?;
        let place = managed(&places).ok_or_else(|| BackendError::model_not_found(from))?;
        if place.backend.has_alias(to) {
            let what = format!("'{to}' is an alias in the configuration of backend '{}'", place.backend.name);
            return Err(Failure::new(Exit::Usage, what).hint("choose another name").into());
        }
        let library = place.backend.backend.library().ok_or_else(|| unmanaged(&place.backend.name))?;
        if library.copy(&place.name_there(), to).await? {
            return Ok(());
        }
        Err(BackendError::model_not_found(from).into())
    };
    let outcome = work.await;
    running.stop().await;
    outcome
}
