//! What a name to be pulled stands for.

use bombus_core::model::{ModelName, ModelNameError};

use super::super::catalogue::{self, CatalogueEntry};
use super::super::ollama::registry_parts;
use super::PullError;

/// Prefixes of the names of models on Hugging Face, as people write and paste them.
const HUGGING_FACE: [&str; 4] = ["https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/"];

/// A name to be pulled.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reference {
    /// A model of the catalogue.
    Catalogue(CatalogueEntry),
    /// A repository on Hugging Face.
    HuggingFace {
        name: ModelName,
        /// `OWNER/REPO`.
        repository: String,
        /// As it was written; `None` for the usual one.
        quantization: Option<String>,
    },
    /// A model in a registry.
    Registry {
        name: ModelName,
        /// Registry, namespace, model, tag.
        place: [String; 4],
    },
}

impl Reference {
    /// Returns the name under which the model is stored.
    pub(super) fn name(&self) -> Result<ModelName, ModelNameError> {
        match self {
            Self::Catalogue(entry) => ModelName::parse(&entry.name),
            Self::HuggingFace { name, .. } | Self::Registry { name, .. } => Ok(name.clone()),
        }
    }

    pub(super) fn parse(text: &str, entries: &[CatalogueEntry]) -> Result<Self, PullError> {
        let text = text.trim();
        if let Some(entry) = catalogue::find(entries, text) {
            return Ok(Self::Catalogue(entry.clone()));
        }
        if let Some(rest) = HUGGING_FACE.iter().find_map(|prefix| text.strip_prefix(prefix)) {
            let name = ModelName::parse(&format!("hf.co/{rest}"))?;
            let (path, tag) = name.split_tag();
            let repository = path.trim_start_matches("hf.co/").to_owned();
            if repository.split('/').count() != 2 {
                let reason = "write hf.co/OWNER/REPO or hf.co/OWNER/REPO:QUANT".to_owned();
                return Err(PullError::Reference { reference: text.to_owned(), reason });
            }
            let quantization = (tag != "latest").then(|| tag.to_owned());
            return Ok(Self::HuggingFace { repository, quantization, name });
        }
        let name = ModelName::parse(text)?;
        match registry_parts(&name) {
            Some(place) => Ok(Self::Registry { name, place }),
            None => Err(PullError::Reference {
                reference: text.to_owned(),
                reason: "write NAME:TAG, USER/NAME:TAG or HOST/USER/NAME:TAG".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::catalogue::catalogue;

    fn parse(text: &str) -> Reference {
        Reference::parse(text, &catalogue()).unwrap()
    }

    fn registry(text: &str) -> [String; 4] {
        match parse(text) {
            Reference::Registry { place, .. } => place,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_catalogue_goes_first_and_a_host_goes_past_it() {
        assert!(matches!(parse("smollm2"), Reference::Catalogue(entry) if entry.name == "smollm2:135m"));
        assert_eq!(
            registry("registry.ollama.ai/library/smollm2"),
            ["registry.ollama.ai", "library", "smollm2", "latest"]
        );
    }

    #[test]
    fn hugging_face_is_known_by_its_host() {
        for text in ["hf.co/a/b:Q8_0", "huggingface.co/a/b:Q8_0", "https://huggingface.co/a/b:Q8_0"] {
            let Reference::HuggingFace { name, repository, quantization } = parse(text) else { panic!("{text}") };
            assert_eq!((name.as_str(), repository.as_str()), ("hf.co/a/b:Q8_0", "a/b"));
            assert_eq!(quantization.as_deref(), Some("Q8_0"));
        }
        assert!(matches!(parse("hf.co/a/b"), Reference::HuggingFace { quantization: None, .. }));
        assert!(matches!(Reference::parse("hf.co/a", &[]), Err(PullError::Reference { .. })));
    }

    #[test]
    fn other_names_belong_to_a_registry() {
        assert_eq!(registry("qwen3:8b"), ["registry.ollama.ai", "library", "qwen3", "8b"]);
        assert_eq!(registry("someone/thing"), ["registry.ollama.ai", "someone", "thing", "latest"]);
        assert_eq!(registry("localhost:5000/a/b:c"), ["localhost:5000", "a", "b", "c"]);
        assert!(matches!(Reference::parse("a/b/c/d", &[]), Err(PullError::Reference { .. })));
    }
}
