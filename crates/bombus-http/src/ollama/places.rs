//! Which backends have a model, and which of them manage models.

use std::time::Duration;

use bombus_core::model::ModelName;
use bombus_infer::{BackendError, Listed, ModelLibrary, NamedBackend};
use tokio::time::timeout;

use crate::app::App;
use crate::error::ApiError;

/// Longest wait for a backend to say something about a model, or to change its name.
pub(super) const ASK_TIME_MAX: Duration = Duration::from_secs(60);

/// Longest wait for a backend to say what it has in memory: one that hangs must not make the others wait.
pub(super) const LIST_TIME_MAX: Duration = Duration::from_secs(5);

/// Finds the backends that have a model, most preferred first; there is at least one.
pub(super) async fn having<'a>(app: &'a App, model: &str) -> Result<Vec<Listed<'a>>, ApiError> {
    let backends = &app.services.backends;
    let first = backends.find(model).await?;
    let mut places: Vec<_> =
        backends.models().await.into_iter().filter(|place| place.info.name == first.info.name).collect();
    if places.is_empty() {
        places.push(first);
    }
    Ok(places)
}

/// Finds the place of a model whose backend manages its models.
pub(super) async fn managed<'a>(app: &'a App, model: &str) -> Result<Listed<'a>, ApiError> {
    let mut places = having(app, model).await?;
    let managed = places.iter().position(|place| place.backend.backend.library().is_some());
    match managed {
        Some(at) => Ok(places.swap_remove(at)),
        None => Err(unmanaged(&format!("backend '{}', which has model '{model}',", places[0].backend.name))),
    }
}

/// Finds the backend that a new model goes to: the one that has a model of this name, or the most preferred one that manages models.
pub(super) async fn for_new<'a>(app: &'a App, model: Option<&str>) -> Result<&'a NamedBackend, ApiError> {
    if let Some(model) = model
        && let Ok(place) = managed(app, model).await
    {
        return Ok(place.backend);
    }
    let mut backends = app.services.backends.all().iter();
    backends.find(|named| named.backend.library().is_some()).ok_or_else(|| unmanaged("no backend of this node"))
}

/// Returns what manages a backend's models.
pub(super) fn library(named: &NamedBackend) -> Result<&dyn ModelLibrary, ApiError> {
    named.backend.library().ok_or_else(|| unmanaged(&format!("backend '{}'", named.name)))
}

fn unmanaged(who: &str) -> ApiError {
    let cannot = if who.starts_with("no ") { "manages" } else { "does not manage" };
    ApiError::unsupported("model", format!("{who} {cannot} models; use the tools of the server behind it"))
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
