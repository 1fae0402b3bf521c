use std::sync::Arc;
use std::time::Duration;

use bombus_core::model::{ModelInfo, ModelName};
use futures::future::join_all;
use tokio::time::timeout;

use crate::{Backend, BackendError};

/// Longest wait for a backend to say what models it has: one that hangs must not make the others wait.
const ASK_TIME_MAX: Duration = Duration::from_secs(5);

/// A backend with the name that logs, metrics and the `x-bombus-route` header show.
#[derive(Clone)]
pub struct NamedBackend {
    /// The name, for example `embedded`.
    pub name: String,
    /// The backend.
    pub backend: Arc<dyn Backend>,
}

impl NamedBackend {
    async fn in_time<T>(&self, answer: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
        timeout(ASK_TIME_MAX, answer).await.unwrap_or_else(|_| {
            let reason = format!("backend '{}' does not answer within {} s", self.name, ASK_TIME_MAX.as_secs());
            Err(BackendError::Unavailable { reason })
        })
    }
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
    /// the model may well be there. A backend that does not answer within 5 s is [`BackendError::Unavailable`].
    pub async fn find(&self, model: &str) -> Result<(&NamedBackend, ModelInfo), BackendError> {
        let not_found = || BackendError::ModelNotFound { model: model.to_owned() };
        let name = ModelName::parse(model).map_err(|_| not_found())?;
        let mut failure = None;
        for candidate in self.all() {
            match candidate.in_time(candidate.backend.model(&name)).await {
                Ok(Some(info)) => return Ok((candidate, info)),
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(not_found))
    }

    /// Lists the models of all backends; a model that several have is named once, as the most preferred backend describes it.
    /// All are asked at once; those that cannot be asked, or do not answer within 5 s, are left out and logged.
    pub async fn models(&self) -> Vec<(&NamedBackend, ModelInfo)> {
        let mut listed: Vec<(&NamedBackend, ModelInfo)> = Vec::new();
        let asked = self.all().iter().map(async |named| (named, named.in_time(named.backend.models()).await));
        for (candidate, models) in join_all(asked).await {
            match models {
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bombus_core::chat::{ChatRequest, EmbedRequest, EmbedResponse};
    use tokio::time::Instant;

    use super::*;
    use crate::fake::{FakeBackend, FakeConfig};
    use crate::{ChatStream, Health};

    struct Hanging;

    #[async_trait]
    impl Backend for Hanging {
        async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
            std::future::pending().await
        }

        async fn chat(&self, _: ChatRequest) -> Result<ChatStream, BackendError> {
            std::future::pending().await
        }

        async fn embed(&self, _: EmbedRequest) -> Result<EmbedResponse, BackendError> {
            std::future::pending().await
        }

        async fn health(&self) -> Health {
            std::future::pending().await
        }
    }

    fn two_that_hang_and_one_that_works() -> Backends {
        let named = |name: &str, backend: Arc<dyn Backend>| NamedBackend { name: name.to_owned(), backend };
        let fake = Arc::new(FakeBackend::new(FakeConfig::default()));
        Backends::new(vec![named("a", Arc::new(Hanging)), named("b", Arc::new(Hanging)), named("c", fake)])
    }

    #[tokio::test(start_paused = true)]
    async fn backends_that_hang_are_left_out_of_the_list_after_one_wait() {
        let begun = Instant::now();
        let backends = two_that_hang_and_one_that_works();
        let listed = backends.models().await;
        assert!(matches!(&listed[..], [(named, _)] if named.name == "c"));
        assert_eq!(begun.elapsed(), ASK_TIME_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_is_found_behind_backends_that_hang() {
        let backends = two_that_hang_and_one_that_works();
        assert_eq!(backends.find("fake").await.unwrap().0.name, "c");
        let error = backends.find("other").await.err();
        assert!(matches!(error, Some(BackendError::Unavailable { reason }) if reason.contains("'b'")));
    }
}
