//! What a name adds to its weights, before those are here.

use super::super::defaults::ModelDefaults;
use super::super::ollama::{TextKind, defaults_of};
use crate::gguf::GgufInfo;

/// What a name adds to its weights.
#[derive(Debug, Clone)]
pub(super) enum Added {
    /// The defaults themselves.
    Defaults(ModelDefaults),
    /// The layers of text of a model in Ollama's registry, each after what it says. What they add depends on the weights.
    Layers(Vec<(TextKind, String)>),
}

impl Added {
    /// Adds nothing.
    pub(super) fn nothing() -> Self {
        Self::Defaults(ModelDefaults::default())
    }

    /// Returns the defaults of weights with this header.
    pub(super) fn over(self, info: &GgufInfo) -> ModelDefaults {
        match self {
            Self::Defaults(defaults) => defaults,
            Self::Layers(layers) => defaults_of(layers, info, Some),
        }
    }
}
