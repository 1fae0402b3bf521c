//! What a server says about its models, remembered where it does not change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bombus_core::model::{ModelInfo, ModelName, RunningModel};
use futures::{StreamExt, future, stream};
use tokio::time::{Instant, timeout};

use super::context::Known;
use super::show::{CAPABILITIES_UNTOLD, Facts, expires_unix_s, parameter_count, unix_s};
use super::wire::{ListedModel, LoadedModel};
use super::{OllamaClient, OllamaError};

/// How long the list of loaded models is believed.
const LOADED_AGE_MAX: Duration = Duration::from_secs(3);
/// Longest wait for what only helps to choose a context; a request goes without it then.
const HELP_TIME_MAX: Duration = Duration::from_secs(5);
/// How many models are asked about at once.
const SHOW_AT_ONCE: usize = 4;
/// Most models whose last context is remembered.
const SENT_MAX: usize = 1024;

/// The models of one server.
pub(super) struct Catalogue {
    client: OllamaClient,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The list, as it was last read.
    listed: HashMap<ModelName, ListedModel>,
    /// By [`key`], so that they never change.
    facts: HashMap<String, Arc<Facts>>,
    /// What is in memory, and when that was read.
    loaded: Option<(Instant, Vec<LoadedModel>)>,
    /// The contexts that were last asked for.
    sent: HashMap<ModelName, Option<u32>>,
}

impl State {
    fn facts_of(&self, name: &ModelName) -> Option<&Arc<Facts>> {
        let model = self.listed.get(name)?;
        self.facts.get(key(&model.digest, &model.name))
    }

    /// Finds a model in memory by its name, or by its weights: names of one model share what is loaded.
    fn find_loaded<'a>(&self, name: &ModelName, loaded: &'a [LoadedModel]) -> Option<&'a LoadedModel> {
        let named = |model: &&LoadedModel| parsed(&model.name).as_ref() == Some(name);
        let weights = self.facts_of(name).and_then(|facts| facts.sha256.as_ref());
        let same = |model: &&LoadedModel| {
            let facts = self.facts.get(key(&model.digest, &model.name));
            weights.is_some() && facts.and_then(|facts| facts.sha256.as_ref()) == weights
        };
        loaded.iter().find(named).or_else(|| loaded.iter().find(same))
    }

    fn describe(&self, model: &ListedModel, name: ModelName, warm: bool) -> ModelInfo {
        let facts = self.facts.get(key(&model.digest, &model.name));
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        ModelInfo {
            size_bytes: Some(model.size).filter(|bytes| *bytes > 0),
            sha256: facts.and_then(|facts| facts.sha256.clone()),
            modified_unix_s: unix_s(&model.modified_at).unwrap_or(0),
            family: text(&model.details.family),
            parameters: facts.and_then(|facts| facts.parameters).or_else(|| parameter_count(&model.details)),
            quantization: text(&model.details.quantization_level),
            context_tokens: facts.and_then(|facts| facts.context_tokens),
            capabilities: facts.map_or_else(|| CAPABILITIES_UNTOLD.to_vec(), |facts| facts.capabilities.clone()),
            warm,
            continues: facts.is_some_and(|facts| facts.can_be_prompted()),
            ..ModelInfo::named(name)
        }
    }
}

impl Catalogue {
    pub(super) fn new(client: &OllamaClient) -> Self {
        Self { client: client.without_retries(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists the models. Each new one is asked about once; one that cannot be described is listed with what the list says.
    pub(super) async fn models(&self) -> Result<Vec<ModelInfo>, OllamaError> {
        let (listed, loaded) = future::join(self.client.list_models(), self.read_loaded()).await;
        let listed = self.take_list(listed?).await;
        let state = self.state();
        let describe = |(name, model): &(ModelName, ListedModel)| {
            let warm = state.find_loaded(name, &loaded).is_some();
            state.describe(model, name.clone(), warm)
        };
        Ok(listed.iter().map(describe).collect())
    }

    /// Lists what is in memory.
    pub(super) async fn running(&self) -> Result<Vec<RunningModel>, OllamaError> {
        let loaded = self.client.ps().await?;
        let is_known =
            |model: &LoadedModel| parsed(&model.name).is_none_or(|name| self.state().listed.contains_key(&name));
        if !loaded.iter().all(is_known) {
            let listed = self.client.list_models().await?;
            self.take_list(listed).await;
        }
        let state = self.state();
        let describe = |model: &LoadedModel| {
            let name = parsed(&model.name)?;
            let listed = state.listed.get(&name).cloned().unwrap_or_else(|| ListedModel {
                digest: model.digest.clone(),
                details: model.details.clone(),
                ..ListedModel::default()
            });
            Some(RunningModel {
                info: state.describe(&listed, name, true),
                memory_bytes: model.size,
                gpu_bytes: model.size_vram,
                context_tokens: model.context_length,
                expires_unix_s: expires_unix_s(&model.expires_at),
            })
        };
        Ok(loaded.iter().filter_map(describe).collect())
    }

    /// Returns what stays the same about a model, or `None` where that cannot be had soon.
    pub(super) async fn facts(&self, name: &ModelName) -> Option<Arc<Facts>> {
        if let Some(facts) = self.known_facts(name) {
            return Some(facts);
        }
        let read = async { Some(self.take_list(self.client.list_models().await.ok()?).await) };
        timeout(HELP_TIME_MAX, read).await.ok().flatten()?;
        self.known_facts(name)
    }

    /// Returns what stays the same about a model, as far as it is known already.
    pub(super) fn known_facts(&self, name: &ModelName) -> Option<Arc<Facts>> {
        self.state().facts_of(name).cloned()
    }

    /// Returns what is known about a model's context, and the bytes of text that its Modelfile puts before every conversation. What cannot
    /// be had soon is left out.
    pub(super) async fn context_of(&self, name: &ModelName, asked: Option<u32>) -> (Known, usize) {
        let facts = self.facts(name).await;
        let overhead_bytes = facts.as_ref().map_or(0, |facts| facts.overhead_bytes);
        let model_max = facts.as_ref().and_then(|facts| facts.context_tokens);
        let modelfile = facts.as_ref().and_then(|facts| facts.num_ctx);
        let fresh =
            |(at, loaded): &(Instant, Vec<LoadedModel>)| (at.elapsed() < LOADED_AGE_MAX).then(|| loaded.clone());
        let remembered = self.state().loaded.as_ref().and_then(fresh);
        let loaded = match remembered {
            Some(loaded) => loaded,
            None => timeout(HELP_TIME_MAX, self.read_loaded()).await.unwrap_or_default(),
        };
        let state = self.state();
        let loaded = state.find_loaded(name, &loaded).map(|model| model.context_length).filter(|tokens| *tokens > 0);
        let last_sent = state.sent.get(name).copied().flatten();
        (Known { asked, model_max, modelfile, loaded, last_sent }, overhead_bytes)
    }

    /// Remembers the context that a request asks for. What is loaded may have changed by it.
    pub(super) fn sent(&self, name: &ModelName, num_ctx: Option<u32>, known: &Known) {
        let mut state = self.state();
        if state.sent.len() >= SENT_MAX {
            state.sent.clear();
        }
        state.sent.insert(name.clone(), num_ctx);
        if known.loaded.is_none() || num_ctx.is_some_and(|tokens| known.loaded != Some(tokens)) {
            state.loaded = None;
        }
    }

    /// Forgets which models there are, since that was just changed.
    pub(super) fn forget_list(&self) {
        self.state().listed.clear();
    }

    /// Forgets what is in memory, since that was just changed.
    pub(super) fn forget_loaded(&self) {
        self.state().loaded = None;
    }

    /// Reads what is in memory; nothing where that cannot be had.
    async fn read_loaded(&self) -> Vec<LoadedModel> {
        match self.client.ps().await {
            Ok(loaded) => {
                self.state().loaded = Some((Instant::now(), loaded.clone()));
                loaded
            }
            Err(_) => Vec::new(),
        }
    }

    /// Takes in a list of models, and asks about those that are new.
    async fn take_list(&self, models: Vec<ListedModel>) -> Vec<(ModelName, ListedModel)> {
        let named = models.into_iter().filter_map(|model| Some((parsed(&model.name)?, model)));
        let listed: Vec<(ModelName, ListedModel)> = named.collect();
        let unknown: Vec<(String, String)> = {
            let mut state = self.state();
            state.listed = listed.iter().cloned().collect();
            let keys: HashMap<&str, &str> =
                listed.iter().map(|(_, model)| (key(&model.digest, &model.name), model.name.as_str())).collect();
            state.facts.retain(|known, _| keys.contains_key(known.as_str()));
            let new = keys.into_iter().filter(|(key, _)| !state.facts.contains_key(*key));
            new.map(|(key, name)| (key.to_owned(), name.to_owned())).collect()
        };
        let asked = unknown.into_iter().map(|(key, name)| async move {
            // Each is kept as soon as it is there, so that a caller who waits no longer does not lose it.
            if let Ok(show) = self.client.show(&name).await {
                self.state().facts.insert(key, Arc::new(Facts::of(&show)));
            }
        });
        stream::iter(asked).buffer_unordered(SHOW_AT_ONCE).collect::<()>().await;
        listed
    }
}

fn parsed(name: &str) -> Option<ModelName> {
    ModelName::parse(name).ok()
}

/// Returns by what a model's facts are kept: its digest, or its name where the server tells none.
fn key<'a>(digest: &'a str, name: &'a str) -> &'a str {
    if digest.is_empty() { name } else { digest }
}
