//! The store as a backend's library: what can be done with models, in the words and with the errors of all backends.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_stream::try_stream;
use async_trait::async_trait;
use bombus_core::model::ModelName;
use futures::{StreamExt, stream};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::catalogue;
use super::peers::PeerSource;
use super::pull::{PullConfig, PullError, PullProgress, PullStage, pull};
use super::store::{ModelStore, StoreError};
use crate::{BackendError, ByteStream, CreateRequest, ModelLibrary, Progress, ProgressStream, PullRequest};

/// How often a step is told of while it goes on.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// Bytes that clients send are written in pieces of about this size, off the threads that serve others.
const PIECE_BYTES: usize = 1 << 20;

/// A [`ModelStore`] behind the interface that all backends share.
#[derive(Clone)]
pub struct StoreLibrary {
    store: ModelStore,
    sources: PullConfig,
}

impl StoreLibrary {
    /// Manages a store whose models come from these sources.
    #[must_use]
    pub fn new(store: ModelStore, sources: PullConfig) -> Self {
        Self { store, sources }
    }

    /// Works on the store on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ModelStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let store = self.store.clone();
        let done = spawn_blocking(move || work(&store)).await;
        Ok(done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?)
    }

    async fn has(&self, name: &str) -> Result<bool, BackendError> {
        let name = ModelName::parse(name).map_err(StoreError::from)?;
        Ok(self.blocking(move |store| store.get(&name)).await?.is_some())
    }

    /// Fetches a model and tells how far that is, but not that it is over.
    fn fetch(&self, name: String) -> ProgressStream {
        let Self { store, sources } = self.clone();
        Box::pin(try_stream! {
            let (report, mut reported) = watch::channel(None);
            let work = pull(&store, &sources, &name, |step| {
                report.send_replace(Some(step));
            });
            let mut work = std::pin::pin!(work);
            let mut told: Option<(PullProgress, Instant)> = None;
            loop {
                let end = tokio::select! {
                    biased;
                    changed = reported.changed() => changed.err().map(|_| None),
                    end = &mut work => Some(Some(end)),
                };
                let step = reported.borrow_and_update().clone();
                let last = told.as_ref();
                let is_due = |step: &PullProgress| {
                    last.is_none_or(|(last, at)| last.stage != step.stage || at.elapsed() >= TELL_EVERY)
                };
                let is_new = |step: &PullProgress| last.is_none_or(|(last, _)| last != step);
                if let Some(step) = step.filter(|step| is_due(step) || (end.is_some() && is_new(step))) {
                    let progress = progress_of(&step);
                    told = Some((step, Instant::now()));
                    yield progress;
                }
                if let Some(end) = end {
                    end.transpose()?;
                    break;
                }
            }
        })
    }
}

#[async_trait]
impl ModelLibrary for StoreLibrary {
    async fn pull(&self, request: PullRequest) -> Result<ProgressStream, BackendError> {
        let ending = ["verifying sha256 digest", "writing manifest", "success"].map(|status| Ok(step(status)));
        Ok(Box::pin(ending_with(self.fetch(request.name), stream::iter(ending))))
    }

    async fn delete(&self, name: &ModelName) -> Result<bool, BackendError> {
        let name = name.clone();
        self.blocking(move |store| found(store.remove(&name))).await
    }

    async fn copy(&self, from: &ModelName, to: &ModelName) -> Result<bool, BackendError> {
        let (from, to) = (from.clone(), to.clone());
        self.blocking(move |store| found(store.copy(&from, &to).map(drop))).await
    }

    async fn create(&self, mut request: CreateRequest) -> Result<ProgressStream, BackendError> {
        // What would be refused in the end is not worth a download.
        ModelStore::check_request(&request)?;
        let mut missing = None;
        if let Some(from) = request.from.as_mut()
            && !self.has(from).await?
        {
            // A pull by a short name stores the model under its full one.
            if let Some(entry) = catalogue::find(&self.sources.catalogue, from) {
                from.clone_from(&entry.name);
            }
            missing = (!self.has(from).await?).then(|| from.clone());
        }
        let library = self.clone();
        let make = async move {
            let made = library.blocking(move |store| store.create(&request)).await?;
            let layer = Progress {
                status: format!("using existing layer sha256:{}", made.sha256),
                sha256: Some(made.sha256),
                total_bytes: None,
                completed_bytes: None,
            };
            Ok::<_, BackendError>([layer, step("writing manifest"), step("success")].map(Ok))
        };
        let Some(from) = missing else {
            // Most errors are known at once, and are told before a stream begins.
            return Ok(Box::pin(stream::iter(make.await?)));
        };
        let ending = stream::once(make).flat_map(|made| match made {
            Ok(steps) => stream::iter(steps).left_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        });
        Ok(Box::pin(ending_with(self.fetch(from), ending)))
    }

    fn use_peers(&self, peers: Arc<dyn PeerSource>) {
        self.sources.peers.set(peers);
    }

    async fn has_blob(&self, sha256: &str) -> Result<bool, BackendError> {
        let sha256 = sha256.to_owned();
        self.blocking(move |store| Ok(store.has_blob(&sha256))).await
    }

    async fn put_blob(&self, sha256: &str, mut bytes: ByteStream) -> Result<(), BackendError> {
        let sha256 = sha256.to_owned();
        let mut incoming = self.blocking(move |store| store.receive(&sha256)).await?;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        loop {
            let more = bytes.next().await.transpose().map_err(|error| BackendError::InvalidRequest {
                param: None,
                message: format!("the file broke off: {error}"),
            })?;
            piece.extend_from_slice(more.as_deref().unwrap_or_default());
            if piece.len() >= PIECE_BYTES || more.is_none() {
                let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE_BYTES));
                incoming = self.blocking(move |_| incoming.write(&full).map(|()| incoming)).await?;
            }
            if more.is_none() {
                return self.blocking(move |_| incoming.finish()).await;
            }
        }
    }
}

/// Goes on with `ending` after a stream that ended without an error.
fn ending_with(
    mut beginning: ProgressStream,
    ending: impl futures::Stream<Item = Result<Progress, BackendError>> + Send + 'static,
) -> impl futures::Stream<Item = Result<Progress, BackendError>> + Send + 'static {
    try_stream! {
        while let Some(step) = beginning.next().await {
            yield step?;
        }
        let mut ending = std::pin::pin!(ending);
        while let Some(step) = ending.next().await {
            yield step?;
        }
    }
}

fn step(status: &str) -> Progress {
    Progress { status: status.to_owned(), ..Progress::default() }
}

/// Puts a step of a pull into Ollama's words.
fn progress_of(step: &PullProgress) -> Progress {
    let sha256 = step.sha256.map(hex::encode);
    let status = match (step.stage, &sha256) {
        (PullStage::Resolving, _) | (_, None) => "pulling manifest".to_owned(),
        (PullStage::Verifying, _) => "verifying sha256 digest".to_owned(),
        (PullStage::Waiting | PullStage::Downloading | PullStage::Extracting, Some(sha256)) => {
            let from = step.peers.as_ref().map(|peers| format!(" from peer {peers}")).unwrap_or_default();
            format!("pulling {}{from}", &sha256[..12])
        }
    };
    let completed_bytes = (step.stage != PullStage::Resolving).then_some(step.done_bytes);
    Progress { status, sha256, total_bytes: step.total_bytes, completed_bytes }
}

/// Says whether there was the model that something was done with.
fn found(result: Result<(), StoreError>) -> Result<bool, StoreError> {
    match result {
        Ok(()) => Ok(true),
        Err(StoreError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

impl From<StoreError> for BackendError {
    fn from(error: StoreError) -> Self {
        let reason = error.to_string();
        match error {
            StoreError::Name(_) => Self::InvalidRequest { param: Some("model"), message: reason },
            StoreError::NotFound { name } => Self::model_not_found(&name),
            StoreError::BelongsToOllama { .. } => Self::Rejected { reason },
            StoreError::DamagedBlob { name, .. } => Self::ModelUnusable { model: name.to_string(), reason },
            StoreError::BlobNotFound { .. }
            | StoreError::WrongHash { .. }
            | StoreError::Unusable { .. }
            | StoreError::Split { .. } => Self::InvalidRequest { param: None, message: reason },
            StoreError::NotSupported { .. } => Self::Unsupported { param: "model", message: reason },
            StoreError::NewerFormat { .. }
            | StoreError::DamagedManifest { .. }
            | StoreError::DiskFull { .. }
            | StoreError::Unfinished { .. }
            | StoreError::Io { .. } => Self::Unavailable { reason },
        }
    }
}

impl From<PullError> for BackendError {
    fn from(error: PullError) -> Self {
        let reason = error.to_string();
        match error {
            PullError::Name(_) | PullError::Reference { .. } => {
                Self::InvalidRequest { param: Some("model"), message: reason }
            }
            PullError::NotFound { reference, .. } => Self::ModelNotFound { model: reference },
            PullError::Refused { .. } => Self::Rejected { reason },
            PullError::Network { .. }
            | PullError::Peers { .. }
            | PullError::Protocol { .. }
            | PullError::WrongHash { .. }
            | PullError::Pip { .. } => Self::Unavailable { reason },
            PullError::Store(error) => error.into(),
        }
    }
}
