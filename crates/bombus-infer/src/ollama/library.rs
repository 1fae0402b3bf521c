use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bombus_core::model::ModelName;
use futures::StreamExt;

use super::wire::{self, ProgressStep};
use super::{OllamaBackend, StepStream, from_peers, request, show};
use crate::models::{PeerSource, Wanted, most_agree};
use crate::{BackendError, ByteStream, CreateRequest, ModelLibrary, Progress, ProgressStream, PullRequest};

impl OllamaBackend {
    /// Says the steps of a work on `model`. What the server says about its models is read anew afterwards.
    fn progress(&self, steps: StepStream, model: &str) -> ProgressStream {
        let (catalogue, name, model) = (Arc::clone(&self.catalogue), self.name.clone(), model.to_owned());
        let say = move |step: Result<ProgressStep, _>| {
            catalogue.forget_list();
            step.map(progress).map_err(|error: super::OllamaError| error.into_backend(&name, &model, false))
        };
        steps.map(say).boxed()
    }

    /// Has the server take a model from other nodes of the swarm, or, where they could not send it, from where it takes models itself.
    /// `None` where no node has it, or the server has it: then the registry says whether there is a newer one.
    async fn pull_from_peers(&self, request: &wire::PullRequest) -> Result<Option<ProgressStream>, BackendError> {
        let name = request.model.as_str();
        let (Some(peers), Ok(parsed)) = (self.peers.get(), ModelName::parse(name)) else { return Ok(None) };
        if self.client.has_model(name).await.map_err(|error| self.fail(error, name))? {
            return Ok(None);
        }
        let copies = most_agree(peers.find(&Wanted::Name(parsed.clone())).await);
        if copies.is_empty() {
            return Ok(None);
        }
        let (client, catalogue, backend) = (self.client.clone(), Arc::clone(&self.catalogue), self.name.clone());
        let mut steps = from_peers::take(client.clone(), backend.clone(), Arc::clone(peers), parsed, copies);
        let request = request.clone();
        let stream = async_stream::try_stream! {
            let failed = loop {
                match steps.next().await {
                    Some(Ok(step)) => {
                        catalogue.forget_list();
                        yield step;
                    }
                    Some(Err(error)) => break Some(error),
                    None => break None,
                }
            };
            if let Some(error) = failed {
                tracing::info!(
                    backend.name = backend,
                    model.name = request.model,
                    error = %error.in_log(),
                    "a model did not come from peers"
                );
                let say = |error: super::OllamaError| error.into_backend(&backend, &request.model, false);
                let mut steps = client.pull(&request).await.map_err(say)?;
                while let Some(step) = steps.next().await {
                    catalogue.forget_list();
                    yield progress(step.map_err(say)?);
                }
            }
        };
        Ok(Some(stream.boxed()))
    }
}

#[async_trait]
impl ModelLibrary for OllamaBackend {
    async fn pull(&self, request: PullRequest) -> Result<ProgressStream, BackendError> {
        let request = wire::PullRequest { model: request.name, insecure: request.insecure };
        if let Some(steps) = self.pull_from_peers(&request).await? {
            return Ok(steps);
        }
        let steps = self.client.pull(&request).await.map_err(|error| self.fail(error, &request.model))?;
        Ok(self.progress(steps, &request.model))
    }

    async fn delete(&self, name: &ModelName) -> Result<bool, BackendError> {
        let deleted = self.client.delete(name.as_str()).await;
        self.catalogue.forget_list();
        deleted.map_err(|error| self.fail(error, name.as_str()))
    }

    async fn copy(&self, from: &ModelName, to: &ModelName) -> Result<bool, BackendError> {
        let copied = self.client.copy(from.as_str(), to.as_str()).await;
        self.catalogue.forget_list();
        copied.map_err(|error| self.fail(error, from.as_str()))
    }

    async fn create(&self, request: CreateRequest) -> Result<ProgressStream, BackendError> {
        let source = request.from.clone().unwrap_or_else(|| request.name.clone());
        let steps = self.client.create(&creation(request)?).await.map_err(|error| self.fail(error, &source))?;
        Ok(self.progress(steps, &source))
    }

    async fn has_blob(&self, sha256: &str) -> Result<bool, BackendError> {
        check_sha256(sha256)?;
        self.client.has_blob(sha256).await.map_err(|error| self.fail(error, ""))
    }

    async fn put_blob(&self, sha256: &str, bytes: ByteStream) -> Result<(), BackendError> {
        check_sha256(sha256)?;
        self.client.put_blob(sha256, bytes).await.map_err(|error| self.fail(error, ""))
    }

    fn use_peers(&self, peers: Arc<dyn PeerSource>) {
        self.peers.set(peers);
    }
}

/// Says a request to make a model in the server's words.
pub(super) fn creation(request: CreateRequest) -> Result<wire::CreateRequest, BackendError> {
    Ok(wire::CreateRequest {
        messages: request::conversation(&request.messages)?,
        model: request.name,
        from: request.from,
        files: digests(request.files),
        adapters: digests(request.adapters),
        template: request.template,
        license: request.licenses,
        system: request.system,
        parameters: request.parameters,
        quantize: request.quantize,
        renderer: request.renderer,
        parser: request.parser,
        requires: request.requires,
        info: request.info,
    })
}

pub(super) fn progress(step: ProgressStep) -> Progress {
    let sha256 = step.digest.strip_prefix("sha256:").unwrap_or(&step.digest);
    Progress {
        sha256: Some(sha256.to_owned()).filter(|digest| !digest.is_empty()),
        status: step.status,
        total_bytes: step.total,
        completed_bytes: step.completed,
    }
}

fn digests(files: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let prefixed = |(name, sha256): (String, String)| {
        let digest = if sha256.starts_with("sha256:") { sha256 } else { format!("sha256:{sha256}") };
        (name, digest)
    };
    files.into_iter().map(prefixed).collect()
}

fn check_sha256(sha256: &str) -> Result<(), BackendError> {
    if show::is_sha256(sha256) {
        return Ok(());
    }
    let message =
        format!("{:?} is not a SHA-256 of 64 lower-case hex digits", sha256.chars().take(80).collect::<String>());
    Err(BackendError::InvalidRequest { param: None, message })
}
