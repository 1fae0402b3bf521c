//! Which backends have a model, and which of them manage models.

use std::time::Duration;

use bombus_core::model::ModelName;
use bombus_core::placement::Scope;
use bombus_infer::{BackendError, Listed, ModelLibrary, NamedBackend};
use tokio::time::timeout;

use crate::app::App;
use crate::error::ApiError;

/// Longest wait for a backend to say something about a model, or to change its name.
pub(super) const ASK_TIME_MAX: Duration = Duration::from_secs(60);

/// Longest wait for a backend to say what it has in memory, or what a model is that others have, too: one that hangs must not make them wait.
pub(super) const LIST_TIME_MAX: Duration = Duration::from_secs(5);

/// Finds the backends that have a model, most preferred first; there is at least one.
pub(super) async fn having(app: &App, model: &str) -> Result<Vec<Listed>, ApiError> {
    Ok(app.services.backends.having(model).await?)
}

/// Finds those of them that a request with this scope may go to; there is at least one.
pub(super) async fn within(app: &App, model: &str, scope: &Scope) -> Result<Vec<Listed>, ApiError> {
    let mut places = having(app, model).await?;
    let fits = |place: &Listed| match scope {
        Scope::Anywhere => true,
        Scope::Local => place.node.is_none(),
        Scope::Remote => place.node.is_some(),
        Scope::Node(node) => place.node.as_ref() == Some(node),
    };
    places.retain(fits);
    if places.is_empty() { Err(ApiError::model_not_found(model)) } else { Ok(places) }
}

/// Finds the place of a model whose backend manages its models; one that has the weights, too, before one that keeps names alone.
pub(super) async fn managed(app: &App, model: &str) -> Result<Listed, ApiError> {
    let places = having(app, model).await?;
    if let Some(place) = Listed::managed(&places) {
        return Ok(place.clone());
    }
    Err(match places.iter().find(|place| place.node.is_none()) {
        Some(here) => unmanaged(&format!("backend '{}', which has model '{model}',", here.backend.name)),
        None => elsewhere(model, &places),
    })
}

/// Says that a model is at other nodes alone.
fn elsewhere(model: &str, places: &[Listed]) -> ApiError {
    let nodes = node_names(places);
    let name = places[0].node_name.as_deref().unwrap_or("NAME");
    let message = format!(
        "model '{model}' is not on this node but on {nodes}; bombus models rm {model} --node {name} acts there"
    );
    ApiError::unsupported("model", message)
}

/// Names the nodes of places.
pub(super) fn node_names(places: &[Listed]) -> String {
    let mut names: Vec<&str> = places.iter().map(|place| place.node_name.as_deref().unwrap_or("this node")).collect();
    names.dedup();
    let nodes = if names.len() == 1 { "node" } else { "nodes" };
    format!("{nodes} {}", names.join(", "))
}

/// Finds the backend that new weights go to: the one that has a model of this name, or the most preferred one that takes weights.
pub(super) async fn for_new(app: &App, model: Option<&str>) -> Result<NamedBackend, ApiError> {
    if let Some(model) = model
        && let Ok(place) = managed(app, model).await
        && place.backend.takes_weights()
    {
        return Ok(place.backend);
    }
    let mut backends = app.services.backends.all().into_iter();
    backends.find(NamedBackend::takes_weights).ok_or_else(|| {
        let message = "no backend of this node takes weights; add models with the tools of the servers behind them";
        ApiError::unsupported("model", message)
    })
}

/// Finds the backend that a model made of another one goes to, and the name that the other one has there.
pub(super) async fn for_derived(app: &App, from: &str) -> Result<(NamedBackend, String), ApiError> {
    if let Ok(places) = having(app, from).await
        && places.iter().all(|place| place.node.is_some())
    {
        let nodes = node_names(&places);
        let message =
            format!("model '{from}' is not on this node but on {nodes}; bombus models pull {from} brings it here");
        return Err(ApiError::unsupported("from", message));
    }
    match managed(app, from).await {
        Ok(place) => {
            let name_there = place.name_for(from);
            Ok((place.backend, name_there))
        }
        // A backend that takes weights may know more than it lists, or fetch the other one first.
        Err(error) => match for_new(app, None).await {
            Ok(backend) => Ok((backend, from.to_owned())),
            Err(_) => Err(error),
        },
    }
}

/// Returns what manages a backend's models.
pub(super) fn library(named: &NamedBackend) -> Result<&dyn ModelLibrary, ApiError> {
    named.backend.library().ok_or_else(|| unmanaged(&format!("backend '{}'", named.name)))
}

fn unmanaged(who: &str) -> ApiError {
    ApiError::unsupported("model", format!("{who} does not manage models; use the tools of the server behind it"))
}

/// Refuses a name that a model of a backend is to get, where requests for it go to another one there.
pub(super) fn check_unaliased(named: &NamedBackend, param: &'static str, name: &ModelName) -> Result<(), ApiError> {
    if !named.has_alias(name) {
        return Ok(());
    }
    let message = format!("'{name}' is an alias in the configuration of backend '{}'; choose another name", named.name);
    Err(ApiError::invalid_value(param, message))
}

/// Reads the name of a model that is to be made or changed.
pub(super) fn parse(name: &str) -> Result<ModelName, ApiError> {
    ModelName::parse(name).map_err(|_| ApiError::invalid_value("model", "invalid model name"))
}

/// Waits for a backend, but not beyond a limit or the end of the node.
pub(super) async fn wait<T>(
    app: &App,
    limit: Duration,
    work: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, ApiError> {
    tokio::select! {
        biased;
        () = app.cut.cancelled() => Err(ApiError::shutting_down()),
        done = timeout(limit, work) => Ok(done.unwrap_or(Err(BackendError::TimedOut { after: limit }))?),
    }
}
