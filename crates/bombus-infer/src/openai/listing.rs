//! What a server says about its models. The dialect has only their ids; servers add what they know by names of their own.

use bombus_core::model::{ModelCapability, ModelDetails, ModelInfo, ModelName};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Provider;
use crate::resumed::answers_plainly;

/// Largest list of models that is read; that of a broker with some hundred models has a megabyte.
pub(super) const LISTING_BYTES_MAX: usize = 16 << 20;
/// Most models of one server.
const MODELS_MAX: usize = 4096;
/// Words in the names of models that make vectors and nothing else.
const EMBEDDING_WORDS: [&str; 6] = ["embed", "minilm", "bge-", "gte-", "e5-", "mpnet"];

/// A model as we name it, and as the server does.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) id: String,
    pub(super) info: ModelInfo,
}

impl Listed {
    /// Describes a model of which only the id is known; `None` where no name can be made of it.
    ///
    /// A server without metadata may be able to do anything; what it cannot do it refuses in its own words. Only names that are plainly
    /// those of embedding models tell more.
    pub(super) fn named(id: &str) -> Option<Self> {
        use ModelCapability::{Completion, Embedding, Insert, Thinking, Tools, Vision};
        // llama-server's id may be the path of its file.
        let last = id.rsplit(['/', '\\']).next().unwrap_or_default();
        let name = ModelName::parse(id).or_else(|_| ModelName::parse(last)).ok()?;
        let lower = id.to_ascii_lowercase();
        let embeds = EMBEDDING_WORDS.iter().any(|word| lower.contains(word));
        let any = || vec![Completion, Tools, Embedding, Vision, Thinking, Insert];
        let capabilities = if embeds { vec![Embedding] } else { any() };
        Some(Self { id: id.to_owned(), info: ModelInfo { capabilities, ..ModelInfo::named(name) } })
    }

    pub(super) fn generates(&self) -> bool {
        self.info.capabilities.contains(&ModelCapability::Completion)
    }
}

/// The answer of `GET /v1/models`. Its entries are read one by one, so that one that cannot be read hides no other.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    data: Vec<Value>,
}

/// What is known of a model beside its id is read as far as it has the form expected.
#[derive(Debug, Deserialize)]
struct Entry {
    id: String,
    created: Option<Value>,
    /// vLLM's name for the length of the context.
    max_model_len: Option<Value>,
    /// The same by the name of OpenRouter and Together.
    context_length: Option<Value>,
    /// The same by Groq's name.
    context_window: Option<Value>,
    /// The same by Mistral's name.
    max_context_length: Option<Value>,
    /// [`Meta`], or what other servers mean by that name.
    meta: Option<Value>,
    /// [`Architecture`], or what other servers mean by that name.
    architecture: Option<Value>,
    /// OpenRouter's list of what a model understands.
    supported_parameters: Option<Value>,
}

/// llama-server's facts about its model, and by other names those of a Bombus node, which alone says whether it is in memory.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    n_ctx: Option<u32>,
    context_tokens: Option<u32>,
    n_ctx_train: Option<u32>,
    n_params: Option<u64>,
    parameters: Option<u64>,
    size: Option<u64>,
    size_bytes: Option<u64>,
    ftype: Option<String>,
    quantization: Option<String>,
    warm: Option<bool>,
}

/// OpenRouter's facts about a model.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Architecture {
    input_modalities: Option<Vec<String>>,
}

impl Listing {
    /// Tells whose server it is by the owner of its models, where that is known.
    pub(super) fn provider(&self) -> Option<Provider> {
        self.data.iter().filter_map(|entry| entry.get("owned_by")?.as_str()).find_map(Provider::of_owner)
    }

    /// Describes the models. Entries without an id, and those whose id can be no model's name here, are left out, and logged.
    pub(super) fn models(self, backend: &str, provider: Provider) -> Vec<Listed> {
        let mut listed: Vec<Listed> = Vec::new();
        for entry in self.data.into_iter().take(MODELS_MAX) {
            let Ok(entry) = Entry::deserialize(entry) else {
                tracing::debug!(backend.name = backend, "an entry of the list is left out: it is no model with an id");
                continue;
            };
            let Some(mut model) = Listed::named(&entry.id) else {
                let id: String = entry.id.chars().take(80).collect();
                tracing::debug!(backend.name = backend, model.id = id, "a model is left out: its id cannot be a name");
                continue;
            };
            if !listed.iter().any(|known| known.info.name == model.info.name) {
                entry.describe(&mut model.info);
                keep(&mut model.info, ModelCapability::Insert, provider.knows_suffix());
                model.info.warm |= provider.holds_all();
                model.info.continues = provider.continues() && model.generates();
                listed.push(model);
            }
        }
        listed
    }
}

impl Entry {
    fn describe(self, info: &mut ModelInfo) {
        info.modified_unix_s = self.created.as_ref().and_then(Value::as_u64).unwrap_or(0);
        let contexts = [self.max_model_len, self.context_length, self.context_window, self.max_context_length];
        let told = contexts.iter().flatten().find_map(Value::as_u64);
        info.context_tokens = told.and_then(|tokens| u32::try_from(tokens).ok());
        if let Some(meta) = read::<Meta>(self.meta) {
            info.context_tokens = info.context_tokens.or(meta.n_ctx).or(meta.context_tokens).or(meta.n_ctx_train);
            info.parameters = meta.n_params.or(meta.parameters);
            info.size_bytes = meta.size.or(meta.size_bytes);
            info.quantization = meta.ftype.or(meta.quantization);
            // llama-server's one model is loaded as long as it runs.
            info.warm = meta.warm.unwrap_or(true);
        }
        if let Some(modalities) = read::<Architecture>(self.architecture).and_then(|facts| facts.input_modalities) {
            keep(info, ModelCapability::Vision, modalities.iter().any(|modality| modality == "image"));
        }
        if let Some(parameters) = read::<Vec<String>>(self.supported_parameters) {
            keep(info, ModelCapability::Tools, parameters.iter().any(|parameter| parameter == "tools"));
        }
    }
}

/// Reads a value that has the form expected.
fn read<T: DeserializeOwned>(value: Option<Value>) -> Option<T> {
    value.and_then(|value| T::deserialize(value).ok())
}

fn keep(info: &mut ModelInfo, capability: ModelCapability, has: bool) {
    info.capabilities.retain(|known| has || *known != capability);
}

/// The answer of llama-server's `GET /props`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Properties {
    chat_template: String,
    model_path: String,
    default_generation_settings: GenerationSettings,
    modalities: Option<Modalities>,
    chat_template_caps: Option<TemplateCapabilities>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GenerationSettings {
    n_ctx: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Modalities {
    vision: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TemplateCapabilities {
    supports_tools: Option<bool>,
}

impl Properties {
    /// Adds what the server runs its model with: the context that it gives each request is often shorter than the model's own.
    pub(super) fn describe(&self, info: &mut ModelInfo) {
        if let Some(tokens) = self.default_generation_settings.n_ctx.filter(|tokens| *tokens > 0) {
            info.context_tokens = Some(tokens);
        }
        if let Some(modalities) = &self.modalities {
            keep(info, ModelCapability::Vision, modalities.vision);
        }
        info.continues &= answers_plainly(&self.chat_template);
        let tools = self.chat_template_caps.as_ref().and_then(|capabilities| capabilities.supports_tools);
        keep(info, ModelCapability::Tools, tools.unwrap_or(true));
    }

    pub(super) fn into_details(self) -> ModelDetails {
        let file = self.model_path.rsplit(['/', '\\']).next().unwrap_or_default();
        let mut metadata = serde_json::Map::new();
        if !file.is_empty() {
            metadata.insert("general.filename".to_owned(), file.into());
        }
        ModelDetails { template: self.chat_template, metadata, ..ModelDetails::default() }
    }
}
