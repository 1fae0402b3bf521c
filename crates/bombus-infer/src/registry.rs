use std::sync::Arc;

use bombus_core::model::{ModelInfo, ModelName};

use crate::{Backend, BackendError};

/// A backend with the name that logs, metrics and the `x-bombus-route` header show.
#[derive(Clone)]
pub struct NamedBackend {
    /// The name, for example `embedded`.
    pub name: String,
    /// The backend.
    pub backend: Arc<dyn Backend>,
}

/// The backends of this node, in order of preference.
#[derive(Clone, Default)]
pub struct Backends(Arc<[NamedBackend]>);

impl Backends {
    /// Takes the backends in order of preference.
    #[must_use]
    pub fn new(backends: Vec<NamedBackend>) -> Self {
        Self(backends.into())
    }

    /// Returns all of them, most preferred first.
    #[must_use]
    pub fn all(&self) -> &[NamedBackend] {
        &self.0
    }

    /// Finds the most preferred backend that has a model.
    ///
    /// # Errors
    ///
    /// [`BackendError::ModelNotFound`]; or, where no backend has the model but one could not be asked, that backend's error, since
    /// the model may well be there.
    pub async fn find(&self, model: &str) -> Result<(&NamedBackend, ModelInfo), BackendError> {
        let not_found = || BackendError::ModelNotFound { model: model.to_owned() };
        let name = ModelName::parse(model).map_err(|_| not_found())?;
        let mut failure = None;
        for candidate in self.all() {
            match candidate.backend.model(&name).await {
                Ok(Some(info)) => return Ok((candidate, info)),
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(not_found))
    }

    /// Lists the models of all backends; a model that several have is named once, as the most preferred backend describes it.
    /// Backends that cannot be asked are left out and logged.
    pub async fn models(&self) -> Vec<(&NamedBackend, ModelInfo)> {
        let mut listed: Vec<(&NamedBackend, ModelInfo)> = Vec::new();
        for candidate in self.all() {
            match candidate.backend.models().await {
                Ok(models) => {
                    for info in models {
                        if !listed.iter().any(|(_, known)| known.name == info.name) {
                            listed.push((candidate, info));
                        }
                    }
                }
                Err(error) => tracing::warn!(backend.name = candidate.name, %error, "models could not be listed"),
            }
        }
        listed
    }
}
