//! What a node tells a peer of what it offers.

use std::collections::HashSet;

use bombus_core::model::{ModelCapability, ModelInfo, ModelName, RunningModel};
use serde::{Deserialize, Serialize};

use super::{MODELS_MAX, NAME_BYTES_MAX, cut};

/// How busy a node is, as one peer is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::route) struct Load {
    /// Requests that it answers, for whomever.
    pub(in crate::route) running: u32,
    /// Requests that wait, for whomever.
    pub(in crate::route) waiting: u32,
    /// How many of both are the peer's.
    pub(in crate::route) ours: u32,
    /// How many it answers at a time.
    pub(in crate::route) slots: Option<u32>,
    pub(in crate::route) draining: bool,
    pub(in crate::route) paused: bool,
}

/// What a node tells a peer of what it offers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::route) struct Telling<'a> {
    pub(in crate::route) v: u32,
    /// All models that the peer may use, where they have changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::route) models: Option<&'a [ModelInfo]>,
    /// Those of `models` that go on with answers of others by the text alone, so that not every answer can go on there.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(in crate::route) by_text: &'a [ModelName],
    pub(in crate::route) load: Load,
}

/// The same as it is heard.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(in crate::route) struct Told {
    #[serde(default)]
    models: Option<Vec<ToldModel>>,
    #[serde(default)]
    by_text: Vec<String>,
    #[serde(default)]
    pub(in crate::route) load: Load,
}

impl Told {
    /// Takes the models, without those that are none.
    pub(in crate::route) fn models(&mut self) -> Option<Vec<ModelInfo>> {
        let models = self.models.take()?;
        Some(models.into_iter().take(MODELS_MAX).filter_map(ToldModel::info).collect())
    }

    /// Takes the names of those that go on by the text alone.
    pub(in crate::route) fn by_text(&mut self) -> HashSet<ModelName> {
        let names = std::mem::take(&mut self.by_text).into_iter().take(MODELS_MAX);
        names.filter_map(|name| ModelName::parse(&name).ok()).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct ToldModel {
    name: String,
    #[serde(default)]
    size_bytes: Option<u64>,
    #[serde(default)]
    sha256: Option<String>,
    #[serde(default)]
    modified_unix_s: u64,
    #[serde(default)]
    family: Option<String>,
    #[serde(default)]
    parameters: Option<u64>,
    #[serde(default)]
    quantization: Option<String>,
    #[serde(default)]
    context_tokens: Option<u32>,
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default)]
    warm: bool,
    #[serde(default)]
    continues: bool,
}

impl ToldModel {
    fn info(self) -> Option<ModelInfo> {
        let short = |text: String| cut(text, NAME_BYTES_MAX);
        let is_hash = |hash: &String| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(ModelInfo {
            name: ModelName::parse(&self.name).ok()?,
            size_bytes: self.size_bytes,
            sha256: self.sha256.filter(is_hash).map(|hash| hash.to_ascii_lowercase()),
            modified_unix_s: self.modified_unix_s,
            family: self.family.map(short),
            parameters: self.parameters,
            quantization: self.quantization.map(short),
            context_tokens: self.context_tokens,
            capabilities: self.capabilities.iter().take(16).filter_map(|word| capability(word)).collect(),
            warm: self.warm,
            continues: self.continues,
        })
    }
}

/// A model in a peer's memory.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct ToldRunning {
    info: ToldModel,
    #[serde(default)]
    memory_bytes: u64,
    #[serde(default)]
    gpu_bytes: u64,
    #[serde(default)]
    context_tokens: u32,
    #[serde(default)]
    expires_unix_s: Option<u64>,
}

impl ToldRunning {
    pub(super) fn model(self) -> Option<RunningModel> {
        let Self { info, memory_bytes, gpu_bytes, context_tokens, expires_unix_s } = self;
        Some(RunningModel { info: info.info()?, memory_bytes, gpu_bytes, context_tokens, expires_unix_s })
    }
}

fn capability(word: &str) -> Option<ModelCapability> {
    Some(match word {
        "completion" => ModelCapability::Completion,
        "tools" => ModelCapability::Tools,
        "embedding" => ModelCapability::Embedding,
        "vision" => ModelCapability::Vision,
        "thinking" => ModelCapability::Thinking,
        "insert" => ModelCapability::Insert,
        _ => return None,
    })
}
