//! Names that a node keeps itself over the models of a server that lets nobody manage them: copies, and models with other defaults.

mod file;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bombus_core::chat::{ChatRequest, EmbedRequest, EmbedResponse};
use bombus_core::model::{ModelDetails, ModelInfo, ModelName, RunningModel};
use futures::stream;
use tokio::task::spawn_blocking;

use crate::models::ModelDefaults;
use crate::{
    Backend, BackendError, ByteStream, ChatStream, CreateRequest, Health, LoadRequest, ModelLibrary, Progress,
    ProgressStream, PullRequest,
};
use file::{Named, Names, NamesFile};

pub use file::NamesError;

/// A backend whose server has models that cannot be changed, with further names over them.
///
/// A name stands for a model of the server, with defaults of its own. It is offered as long as the server has that model. A model of the server
/// that has the same name is behind it, also while it is not offered. What it adds is put under each request before that goes to the server.
pub struct NamingBackend {
    name: String,
    server: Arc<dyn Backend>,
    names: Arc<NamesFile>,
}

impl NamingBackend {
    /// Reads the names that `folder` has for the backend called `name`. The folder is made when the first name is given.
    ///
    /// # Errors
    ///
    /// Any [`NamesError`] but [`NamesError::Full`].
    pub fn open(name: &str, folder: &Path, server: Arc<dyn Backend>) -> Result<Self, NamesError> {
        Ok(Self { name: name.to_owned(), server, names: Arc::new(NamesFile::open(folder, name)?) })
    }

    /// Returns what a new name for a model stands for; `None` where there is no such model.
    async fn origin(&self, from: &ModelName) -> Result<Option<Named>, BackendError> {
        if let Some(named) = self.names.now().get(from) {
            return Ok(self.server.model(&named.of).await?.map(|_| named.clone()));
        }
        let model = self.server.model(from).await?;
        Ok(model.map(|model| Named { of: model.name, modified_unix_s: 0, defaults: ModelDefaults::default() }))
    }

    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Names) -> T + Send + 'static,
    ) -> Result<T, BackendError> {
        let names = Arc::clone(&self.names);
        let done = spawn_blocking(move || names.change(change)).await;
        let done = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        done.map_err(|error| match error {
            NamesError::Full => unsupported(error.to_string()),
            _ => BackendError::Unavailable { reason: error.to_string() },
        })
    }

    async fn give(&self, name: ModelName, named: Named) -> Result<(), BackendError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let named = Named { modified_unix_s: now, ..named };
        self.change(move |names| drop(names.insert(name, named))).await
    }

    /// Refuses what a name over a server's model cannot stand for.
    async fn check(&self, from: &ModelName, request: &CreateRequest) -> Result<(), BackendError> {
        let server = &self.name;
        if !request.adapters.is_empty() {
            return Err(unsupported(format!("the server behind backend '{server}' takes no adapters from here")));
        }
        if request.renderer.is_some() || request.parser.is_some() {
            return Err(unsupported(format!(
                "the server behind backend '{server}' makes prompts and reads answers itself: it takes no renderer or parser from here"
            )));
        }
        if let Some(wanted) = &request.quantize {
            let info = self.model(from).await?;
            let found = info.and_then(|info| info.quantization).unwrap_or_else(|| "an unknown type".to_owned());
            if !found.eq_ignore_ascii_case(wanted) {
                return Err(unsupported(format!(
                    "weights are not quantised here: those behind backend '{server}' are {found}, and stay so"
                )));
            }
        }
        if let Some(wanted) = &request.template {
            // A model file that was printed has the template that the model has anyway.
            let found = self.details(from).await?.unwrap_or_default().template;
            if found.trim() != wanted.trim() {
                return Err(unsupported(format!(
                    "the server behind backend '{server}' makes the prompts itself: its models keep their template"
                )));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Backend for NamingBackend {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        let mut models = self.server.models().await?;
        let names = self.names.now();
        let under = |(name, named): (&ModelName, &Named)| {
            let base = models.iter().find(|info| info.name == named.of)?;
            Some(described(name.clone(), named, base.clone()))
        };
        let own: Vec<ModelInfo> = names.iter().filter_map(under).collect();
        models.retain(|info| !names.contains_key(&info.name));
        models.extend(own);
        Ok(models)
    }

    fn given(&self) -> Vec<ModelName> {
        let mut given = self.server.given();
        given.extend(self.names.now().keys().cloned());
        given
    }

    async fn model(&self, name: &ModelName) -> Result<Option<ModelInfo>, BackendError> {
        match self.names.now().get(name) {
            Some(named) => {
                let base = self.server.model(&named.of).await?;
                Ok(base.map(|base| described(name.clone(), named, base)))
            }
            None => self.server.model(name).await,
        }
    }

    async fn chat(&self, mut request: ChatRequest) -> Result<ChatStream, BackendError> {
        if let Some(named) = named(&self.names.now(), &request.model) {
            named.defaults.apply(&mut request);
            request.model = named.of.to_string();
        }
        self.server.chat(request).await
    }

    fn can_resume(&self, request: &ChatRequest) -> bool {
        self.server.can_resume(request)
    }

    fn is_cloud(&self) -> bool {
        self.server.is_cloud()
    }

    async fn embed(&self, mut request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        if let Some(named) = named(&self.names.now(), &request.model) {
            request.model = named.of.to_string();
        }
        self.server.embed(request).await
    }

    async fn health(&self) -> Health {
        self.server.health().await
    }

    async fn details(&self, name: &ModelName) -> Result<Option<ModelDetails>, BackendError> {
        let Some(named) = self.names.now().get(name).cloned() else { return self.server.details(name).await };
        let Some(base) = self.server.details(&named.of).await? else { return Ok(None) };
        let defaults = named.defaults;
        Ok(Some(ModelDetails {
            parent: defaults.parent,
            licenses: if defaults.licenses.is_empty() { base.licenses } else { defaults.licenses },
            system: defaults.system.unwrap_or(base.system),
            parameters: defaults.parameters,
            messages: defaults.messages,
            ..base
        }))
    }

    async fn running(&self) -> Result<Vec<RunningModel>, BackendError> {
        self.server.running().await
    }

    async fn load(&self, mut request: LoadRequest) -> Result<(), BackendError> {
        if let Some(named) = named(&self.names.now(), &request.model) {
            request.model = named.of.to_string();
        }
        self.server.load(request).await
    }

    async fn unload(&self, model: &str) -> Result<(), BackendError> {
        let names = self.names.now();
        self.server.unload(named(&names, model).map_or(model, |named| named.of.as_str())).await
    }

    fn library(&self) -> Option<&dyn ModelLibrary> {
        Some(self)
    }
}

#[async_trait]
impl ModelLibrary for NamingBackend {
    fn takes_weights(&self) -> bool {
        false
    }

    async fn pull(&self, _request: PullRequest) -> Result<ProgressStream, BackendError> {
        Err(self.takes_none())
    }

    async fn delete(&self, name: &ModelName) -> Result<bool, BackendError> {
        if self.names.now().contains_key(name) {
            let wanted = name.clone();
            return self.change(move |names| names.remove(&wanted).is_some()).await;
        }
        match self.server.model(name).await? {
            Some(_) => Err(unsupported(format!(
                "model '{name}' belongs to the server behind backend '{}'; use the tools of that server",
                self.name
            ))),
            None => Ok(false),
        }
    }

    async fn copy(&self, from: &ModelName, to: &ModelName) -> Result<bool, BackendError> {
        let Some(origin) = self.origin(from).await? else { return Ok(false) };
        if from != to {
            self.give(to.clone(), origin).await?;
        }
        Ok(true)
    }

    async fn create(&self, request: CreateRequest) -> Result<ProgressStream, BackendError> {
        let parse = |name: &str| {
            let wrong = |error: bombus_core::model::ModelNameError| BackendError::InvalidRequest {
                param: Some("model"),
                message: error.to_string(),
            };
            ModelName::parse(name).map_err(wrong)
        };
        let name = parse(&request.name)?;
        let from = parse(request.from.as_deref().ok_or_else(|| self.takes_none())?)?;
        let origin = self.origin(&from).await?.ok_or_else(|| BackendError::model_not_found(&from))?;
        self.check(&from, &request).await?;
        let mut named = origin;
        named.defaults.parent = Some(from);
        named.defaults.lay_over(&CreateRequest { template: None, ..request });
        let using = format!("using model {} of backend {}", named.of, self.name);
        self.give(name, named).await?;
        let steps = [using.as_str(), "writing manifest", "success"];
        let steps = steps.map(|status| Ok(Progress { status: status.to_owned(), ..Progress::default() }));
        Ok(Box::pin(stream::iter(steps)))
    }

    async fn has_blob(&self, _sha256: &str) -> Result<bool, BackendError> {
        Ok(false)
    }

    async fn put_blob(&self, _sha256: &str, _bytes: ByteStream) -> Result<(), BackendError> {
        Err(self.takes_none())
    }
}

impl NamingBackend {
    fn takes_none(&self) -> BackendError {
        unsupported(format!("the server behind backend '{}' takes no weights from here", self.name))
    }
}

/// Returns what a name stands for, where it is one of this node's own.
fn named<'a>(names: &'a Names, model: &str) -> Option<&'a Named> {
    if names.is_empty() {
        return None;
    }
    names.get(&ModelName::parse(model).ok()?)
}

/// Describes a model of the server by another name.
fn described(name: ModelName, named: &Named, base: ModelInfo) -> ModelInfo {
    ModelInfo { name, modified_unix_s: named.modified_unix_s, ..base }
}

fn unsupported(message: String) -> BackendError {
    BackendError::Unsupported { param: "model", message }
}
