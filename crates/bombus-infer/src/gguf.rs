//! Reads the header of a GGUF file: what a model is, how large it is, and whether its file is whole.
//!
//! Source: the GGUF specification of the ggml project, versions 2 and 3. Nothing is trusted: every count and length is checked
//! against the file's size and a limit before anything is read or allocated.

mod header;
mod metadata;
mod tensor_type;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use bombus_core::model::ModelCapability;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::models::chat_template::{ToolFormat, thinks};

/// Architectures whose models turn text into vectors, whether or not the file names a pooling type.
const EMBEDDING_ARCHITECTURES: [&str; 10] = [
    "bert",
    "eurobert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "llama-embed",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
];

/// What the header of a GGUF file says. Fields that a file lacks are `None` or empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GgufInfo {
    /// Version of the file format: 2 or 3.
    pub version: u32,
    /// Architecture, for example `llama` (`general.architecture`).
    pub architecture: Option<String>,
    /// The model's own name (`general.name`).
    pub name: Option<String>,
    /// llama.cpp's number for the mix of tensor types (`general.file_type`).
    pub file_type: Option<u32>,
    /// Quantisation, for example `Q4_K_M`: the name of the file type, or else the type that most weights have.
    pub quantization: Option<String>,
    /// Most tokens that the model was trained to see at once.
    pub context_length: Option<u32>,
    /// Number of layers.
    pub block_count: Option<u32>,
    /// Width of the hidden state.
    pub embedding_length: Option<u32>,
    /// Attention heads: one number for all layers, or one for each.
    pub attention_heads: Vec<u32>,
    /// Attention heads that keep keys and values: one number for all layers, or one for each.
    pub attention_kv_heads: Vec<u32>,
    /// Width of a head's key.
    pub key_length: Option<u32>,
    /// Width of a head's value.
    pub value_length: Option<u32>,
    /// How token vectors become one vector (0 none, 1 mean, 2 first token, 3 last token, 4 a rank).
    pub pooling_type: Option<u32>,
    /// Kind of tokenizer, for example `gpt2`.
    pub tokenizer_model: Option<String>,
    /// Jinja template that lays out a chat.
    pub chat_template: Option<String>,
    /// Number of files that the model is split into, where it is split.
    pub split_count: Option<u32>,
    /// Whether the vocabulary has the tokens that stand around a gap to be filled in.
    pub fills_in: bool,
    /// Number of tensors.
    pub tensor_count: u64,
    /// Number of weights.
    pub parameters: u64,
    /// Size in bytes that the file must have to hold all of its tensors.
    pub expected_bytes: u64,
}

/// Says why a file cannot be used as a model.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file is something else.
    #[error("not a GGUF file: it begins with {found:02x?} instead of \"GGUF\"")]
    NotGguf {
        /// The first bytes, at most four.
        found: Vec<u8>,
    },
    /// The file is GGUF of a version that cannot be read.
    #[error("GGUF version {version} is not supported, only 2 and 3: convert the model again with a current llama.cpp")]
    UnsupportedVersion {
        /// The file's version.
        version: u32,
    },
    /// The file is GGUF with its numbers stored most significant byte first.
    #[error("this GGUF file is big-endian, which is not supported: fetch the little-endian one")]
    BigEndian,
    /// The header contradicts itself or the format.
    #[error("corrupt GGUF header at byte {offset}: {reason}; fetch the file again")]
    Corrupt {
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The file ends before its contents do.
    #[error(
        "the file is truncated: it has {file_bytes} bytes of {}{expected_bytes}; fetch it again",
        if *.in_header { "at least " } else { "" }
    )]
    Truncated {
        /// The file's size.
        file_bytes: u64,
        /// The size that the header calls for.
        expected_bytes: u64,
        /// Whether it ends within its header, so that the full size is unknown.
        in_header: bool,
    },
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl GgufInfo {
    /// Reads the header of a file and checks that the file is as long as its header demands.
    ///
    /// Takes some milliseconds for a large vocabulary, whatever the size of the weights.
    ///
    /// # Errors
    ///
    /// Any [`GgufError`].
    pub fn read(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        Self::read_from(BufReader::with_capacity(64 * 1024, file), file_bytes)
    }

    /// Reads a header from a source of `file_bytes` bytes that stands at its beginning.
    ///
    /// # Errors
    ///
    /// Any [`GgufError`].
    pub fn read_from<R: Read + Seek>(source: BufReader<R>, file_bytes: u64) -> Result<Self, GgufError> {
        let info = header::read(source, file_bytes)?;
        if info.expected_bytes > file_bytes {
            return Err(GgufError::Truncated { file_bytes, expected_bytes: info.expected_bytes, in_header: false });
        }
        Ok(info)
    }

    /// Reads all metadata of a file: numbers, truth values and texts as they are, and `null` for arrays and for texts of more than
    /// 1 MiB.
    ///
    /// # Errors
    ///
    /// Any [`GgufError`].
    pub fn read_metadata(path: &Path) -> Result<Map<String, Value>, GgufError> {
        let file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        metadata::read(BufReader::with_capacity(64 * 1024, file), file_bytes)
    }

    /// Lists what the model can be used for; empty for a reranker.
    #[must_use]
    pub fn capabilities(&self) -> Vec<ModelCapability> {
        let embeds = self.architecture.as_deref().is_some_and(|name| EMBEDDING_ARCHITECTURES.contains(&name));
        match self.pooling_type {
            Some(4) => Vec::new(),
            Some(1..=3) => vec![ModelCapability::Embedding],
            _ if embeds => vec![ModelCapability::Embedding],
            _ => self.text_capabilities(self.chat_template.as_deref()),
        }
    }

    /// Lists what a model that generates text can do when it is given this chat template.
    pub(crate) fn text_capabilities(&self, template: Option<&str>) -> Vec<ModelCapability> {
        let mut capabilities = vec![ModelCapability::Completion];
        if template.is_some_and(|template| ToolFormat::detect(template).is_some()) {
            capabilities.push(ModelCapability::Tools);
        }
        if template.is_some_and(thinks) {
            capabilities.push(ModelCapability::Thinking);
        }
        if self.fills_in || template.is_some_and(|template| template.contains(".Suffix")) {
            capabilities.push(ModelCapability::Insert);
        }
        capabilities
    }

    /// Estimates the memory that keys and values of one token take in all layers together, in bytes, at 16 bits a number.
    ///
    /// An upper bound for models whose layers attend to a window only. `None` where the header does not tell, as for models
    /// without attention.
    #[must_use]
    pub fn kv_bytes_per_token(&self) -> Option<u64> {
        let layers = u64::from(self.block_count?);
        let heads = u64::from(self.attention_heads.iter().copied().max()?);
        let head_width = self.embedding_length.map(u64::from).and_then(|width| width.checked_div(heads));
        let key_and_value =
            self.key_length.map(u64::from).or(head_width)? + self.value_length.map(u64::from).or(head_width)?;
        let kv_heads = match self.attention_kv_heads.as_slice() {
            [] => layers.saturating_mul(heads),
            [same] => layers.saturating_mul(u64::from(*same)),
            each => each.iter().copied().map(u64::from).sum(),
        };
        Some(kv_heads.saturating_mul(key_and_value).saturating_mul(2))
    }
}
