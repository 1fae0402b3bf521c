//! Model names and what a node says about a model.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A model's canonical name, `NAME:TAG`: `m` and `m:latest` are one model.
///
/// Names may have path parts (`hf.co/owner/repo:Q4_K_M`); the tag is what follows the last `:` after the last `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// Longest accepted model name in bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 256;

/// Says why a text is not a model name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a model name: {reason}")]
pub struct ModelNameError {
    /// The refused text, cut to a printable length.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl ModelName {
    /// Parses a name as people write it and adds the tag `latest` where there is none.
    ///
    /// # Errors
    ///
    /// Refuses empty and overlong names, empty path parts, parts that begin with `.` (they could leave a directory), and every
    /// character other than ASCII letters, digits, `-`, `_`, `.`, `:`, `/`, `@`, `+`.
    pub fn parse(text: &str) -> Result<Self, ModelNameError> {
        let refuse = |reason| Err(ModelNameError { name: text.chars().take(80).collect(), reason });
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > MODEL_NAME_BYTES_MAX {
            return refuse("it is longer than 256 bytes");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/@+".contains(&b)) {
            return refuse("it has a character other than letters, digits and -_.:/@+");
        }
        if text.split(['/', ':']).any(|part| part.is_empty() || part.starts_with('.')) {
            return refuse("it has an empty part, or one that begins with a dot");
        }
        let base_start = text.rfind('/').map_or(0, |slash| slash + 1);
        if text[base_start..].contains(':') { Ok(Self(text.to_owned())) } else { Ok(Self(format!("{text}:latest"))) }
    }

    /// Returns the canonical text, tag included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the part before the tag, and the tag.
    #[must_use]
    pub fn split_tag(&self) -> (&str, &str) {
        self.0.rsplit_once(':').expect("a canonical name has a tag")
    }

    /// Returns whether an Ollama server would take both for one name: it compares them without case, and lets its registry and that one's
    /// namespace be left out, so that `registry.ollama.ai/library/m`, `library/m` and `M` are `m` (`types/model/name.go`).
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        self.without_defaults().eq_ignore_ascii_case(other.without_defaults())
    }

    fn without_defaults(&self) -> &str {
        let local = without_prefix(&self.0, "registry.ollama.ai/").unwrap_or(&self.0);
        without_prefix(local, "library/").filter(|name| !name.contains('/')).unwrap_or(local)
    }
}

fn without_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (begin, rest) = text.split_at_checked(prefix.len())?;
    begin.eq_ignore_ascii_case(prefix).then_some(rest)
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ModelName {
    type Error = ModelNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0
    }
}

/// What a model can be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelCapability {
    /// Generates text.
    Completion,
    /// Its chat template has a place for tools.
    Tools,
    /// Makes embedding vectors.
    Embedding,
    /// Sees pictures.
    Vision,
    /// Can think before it answers, and what it thinks is told apart from the answer.
    Thinking,
    /// Fills in what stands between a beginning and an end.
    Insert,
}

/// What a backend says about one of its models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Canonical name.
    pub name: ModelName,
    /// Size of the weights in bytes, where known.
    pub size_bytes: Option<u64>,
    /// SHA-256 of the weights in lower-case hex, where known.
    pub sha256: Option<String>,
    /// When the model came to this machine, in seconds since the Unix epoch; 0 where unknown.
    pub modified_unix_s: u64,
    /// Architecture, for example `llama`.
    pub family: Option<String>,
    /// Number of weights, for example 134515008.
    pub parameters: Option<u64>,
    /// Quantisation, for example `Q4_1`.
    pub quantization: Option<String>,
    /// Most tokens that prompt and answer may have together.
    pub context_tokens: Option<u32>,
    /// What it can do.
    pub capabilities: Vec<ModelCapability>,
    /// Whether it is in memory now.
    pub warm: bool,
    /// Whether its backend can go on with an answer that another run began.
    #[serde(default)]
    pub continues: bool,
}

impl ModelInfo {
    /// Builds the description of a model of which only the name is known, able to generate text.
    #[must_use]
    pub fn named(name: ModelName) -> Self {
        Self {
            name,
            size_bytes: None,
            sha256: None,
            modified_unix_s: 0,
            family: None,
            parameters: None,
            quantization: None,
            context_tokens: None,
            capabilities: vec![ModelCapability::Completion],
            warm: false,
            continues: false,
        }
    }
}

/// Everything that a backend can say about one of its models. What is not known is empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelDetails {
    /// The model of which this one is a name with other defaults.
    pub parent: Option<ModelName>,
    /// Licence texts.
    pub licenses: Vec<String>,
    /// The prompt template, in Jinja or in Go's notation.
    pub template: String,
    /// System message of conversations that bring none.
    pub system: String,
    /// Defaults of options by Ollama's names, for example `temperature`; texts for `stop` stand as a list.
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// Messages that stand before every conversation.
    pub messages: Vec<crate::chat::Message>,
    /// The keys of the model's file, for example `general.architecture`.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// What an Ollama server makes its prompts with in place of the template, by Ollama's name, for example `qwen3-coder`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub renderer: String,
    /// What an Ollama server reads its answers with, by Ollama's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parser: String,
    /// The oldest version of Ollama that can run it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub requires: String,
    /// The keys of the file of its projector, which makes pictures into what the model reads.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub projector: serde_json::Map<String, serde_json::Value>,
}

/// A model in memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunningModel {
    /// What is known about it.
    pub info: ModelInfo,
    /// Memory that it takes, in bytes.
    pub memory_bytes: u64,
    /// How much of `memory_bytes` is memory of GPUs.
    pub gpu_bytes: u64,
    /// Tokens that its loaded context holds.
    pub context_tokens: u32,
    /// When it is unloaded unless it is used again, in seconds since the Unix epoch; `None`: not before memory is needed.
    pub expires_unix_s: Option<u64>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_without_tag_is_the_latest() {
        assert_eq!(ModelName::parse("qwen3").unwrap(), ModelName::parse("qwen3:latest").unwrap());
        assert_eq!(ModelName::parse("hf.co/a/b").unwrap().as_str(), "hf.co/a/b:latest");
    }

    #[test]
    fn a_port_in_a_registry_is_not_a_tag() {
        assert_eq!(ModelName::parse("localhost:5000/a/b").unwrap().split_tag(), ("localhost:5000/a/b", "latest"));
    }

    #[test]
    fn names_that_ollama_takes_for_one_are_alike() {
        let alike = |one: &str, other: &str| ModelName::parse(one).unwrap().is_like(&ModelName::parse(other).unwrap());
        for name in
            ["m", "M", "m:Latest", "library/m", "Library/M", "registry.ollama.ai/library/m", "Registry.Ollama.ai/M"]
        {
            assert!(alike(name, "m") && alike("m", name), "{name}");
        }
        assert!(alike("registry.ollama.ai/owner/m", "Owner/M"));
        for name in ["m:1b", "n", "owner/m", "library/owner/m", "hf.co/library/m", "librarym"] {
            assert!(!alike(name, "m"), "{name}");
        }
    }

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for name in ["../x", "a/../b", "/etc/passwd", "a//b", "", ":", "a:", "a b", "a\0b", "x:.."] {
            assert!(ModelName::parse(name).is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_is_idempotent(text in "[a-zA-Z0-9:/._-]{1,40}") {
            if let Ok(name) = ModelName::parse(&text) {
                prop_assert_eq!(ModelName::parse(name.as_str()).unwrap(), name);
            }
        }
    }
}
