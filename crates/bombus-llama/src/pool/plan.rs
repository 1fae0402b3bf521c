//! What loading a model takes, and how it is to be loaded.

use std::num::NonZero;

use bombus_core::model::ModelCapability;
use bombus_infer::models::LocalModel;

use crate::EmbeddedConfig;
use crate::protocol::{LoadOptions, ModelKind};

/// Context of models whose file does not say what they were trained for, in tokens.
const CONTEXT_TOKENS_UNKNOWN: u32 = 4_096;
/// Largest batch of an embedding model, in tokens; an input has to fit into one batch.
const EMBED_TOKENS_MAX: u32 = 8_192;
/// The same for embedding models that are decoders, whose memory grows faster with their batch.
const EMBED_TOKENS_MAX_OF_DECODERS: u32 = 2_048;
/// What a process needs beside weights and cache, in MB.
const PROCESS_MB: u64 = 96;
const MB: u64 = 1 << 20;

/// What the machine has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) ram_mb: u64,
    pub(crate) cores: u32,
}

impl Machine {
    /// Looks at this machine.
    pub(crate) fn probe() -> Self {
        // A container or an affinity mask may grant fewer than the machine has.
        let granted = std::thread::available_parallelism().map_or(usize::MAX, NonZero::get);
        let cores = u32::try_from(num_cpus::get_physical().min(granted)).unwrap_or(1);
        Self { ram_mb: ram_bytes().unwrap_or(u64::MAX) / MB, cores }
    }

    /// Returns the memory that all models together may use.
    pub(crate) fn budget_mb(&self, config: &EmbeddedConfig) -> u64 {
        if config.memory_mb > 0 { config.memory_mb } else { self.ram_mb / 5 * 4 }
    }
}

/// Returns the memory of this machine, or of the container that this process is in; `None` where the system does not say.
fn ram_bytes() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    Some(system.total_memory().min(limit))
}

/// Memory that a loaded model takes, estimated from its file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    pub(crate) weights_mb: u64,
    pub(crate) cache_mb: u64,
    /// For caches that no run uses.
    pub(crate) shelf_mb: u64,
}

impl Need {
    pub(crate) fn of(model: &LocalModel, config: &EmbeddedConfig) -> Self {
        let tokens = match kind(model) {
            ModelKind::Generate => kv_tokens(model, config),
            ModelKind::Embed if is_decoder(model) => context_tokens(model, config),
            ModelKind::Embed => 0,
        };
        let cache_bytes = u64::from(tokens).saturating_mul(model.info.kv_bytes_per_token().unwrap_or(0));
        let cache_mb = cache_bytes.div_ceil(MB);
        let shelf_mb = match kind(model) {
            ModelKind::Generate => config.idle_cache_mb.min(cache_mb),
            ModelKind::Embed => 0,
        };
        Self { weights_mb: model.size_bytes.div_ceil(MB), cache_mb, shelf_mb }
    }

    pub(crate) fn total_mb(&self) -> u64 {
        self.weights_mb + self.cache_mb + self.shelf_mb + PROCESS_MB
    }
}

/// Returns the tokens that prompt and answer may have together.
pub(crate) fn context_tokens(model: &LocalModel, config: &EmbeddedConfig) -> u32 {
    let trained = model.info.context_length.filter(|tokens| *tokens > 0).unwrap_or(CONTEXT_TOKENS_UNKNOWN);
    match (kind(model), config.context_tokens) {
        (ModelKind::Embed, _) if is_decoder(model) => trained.min(EMBED_TOKENS_MAX_OF_DECODERS),
        (ModelKind::Embed, _) => trained.min(EMBED_TOKENS_MAX),
        (ModelKind::Generate, 0) => trained,
        (ModelKind::Generate, limit) => trained.min(limit),
    }
}

/// Decides how a model is loaded.
pub(crate) fn load_options(model: &LocalModel, config: &EmbeddedConfig, machine: &Machine) -> LoadOptions {
    let context = context_tokens(model, config);
    let kind = kind(model);
    let (kv_tokens, batch_tokens) = match kind {
        ModelKind::Generate => (kv_tokens(model, config), config.batch_tokens),
        ModelKind::Embed => (context, context),
    };
    LoadOptions {
        path: model.path.clone(),
        kind,
        context_tokens: context,
        kv_tokens,
        slots: config.slots,
        batch_tokens,
        threads: if config.threads > 0 { config.threads } else { machine.cores.max(1) },
        gpu_layers: config.gpu_layers,
        shelf_bytes: Need::of(model, config).shelf_mb * MB,
    }
}

fn kind(model: &LocalModel) -> ModelKind {
    let embeds = model.info.capabilities().contains(&ModelCapability::Embedding);
    if embeds { ModelKind::Embed } else { ModelKind::Generate }
}

/// Returns whether a model keeps keys and values, which encoders such as BERT do not.
fn is_decoder(model: &LocalModel) -> bool {
    !model.info.architecture.as_deref().is_some_and(|name| name.contains("bert"))
}

fn kv_tokens(model: &LocalModel, config: &EmbeddedConfig) -> u32 {
    let context = context_tokens(model, config);
    if config.kv_tokens > 0 { config.kv_tokens.max(context) } else { context.saturating_mul(config.slots.min(2)) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bombus_core::model::ModelName;
    use bombus_infer::gguf::GgufInfo;
    use bombus_infer::models::{ModelDefaults, ModelSource};

    use super::*;

    fn embedding_model(architecture: &str) -> LocalModel {
        LocalModel {
            name: ModelName::parse("model").unwrap(),
            path: PathBuf::new(),
            sha256: String::new(),
            size_bytes: 10 * MB,
            modified_unix_s: 0,
            source: ModelSource::Ollama,
            info: GgufInfo {
                architecture: Some(architecture.into()),
                context_length: Some(32_768),
                block_count: Some(4),
                embedding_length: Some(1_024),
                attention_heads: vec![8],
                attention_kv_heads: vec![8],
                pooling_type: Some(3),
                ..GgufInfo::default()
            },
            defaults: ModelDefaults::default(),
        }
    }

    #[test]
    fn only_decoders_that_embed_need_memory_for_keys_and_values() {
        let config = EmbeddedConfig::default();
        let (encoder, decoder) = (embedding_model("nomic-bert"), embedding_model("qwen3"));
        assert_eq!((context_tokens(&encoder, &config), Need::of(&encoder, &config).cache_mb), (8_192, 0));
        // 2,048 tokens of 4 layers with 1,024 keys and as many values of 2 bytes.
        assert_eq!((context_tokens(&decoder, &config), Need::of(&decoder, &config).cache_mb), (2_048, 32));
    }
}
