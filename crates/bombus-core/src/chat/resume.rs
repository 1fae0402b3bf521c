//! What lets a second run go on with an answer that a first one began.

use serde::{Deserialize, Serialize};

/// What a run has generated up to the end of one piece of its answer, beyond the text of the piece.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The tokens generated since the piece before, in the vocabulary of the model's weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<u32>,
    /// What the run has generated and not handed on yet: the beginning of a character, or of what may become a stop text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<u8>,
}

/// The beginning of an answer that broke off. The run that gets it hands on only what comes after.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// SHA-256 of the weights that wrote it, in lower-case hex, where known. Only to the same weights do `tokens` mean anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// All tokens of the answer so far; empty where they are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<u32>,
    /// What was handed on of the thoughts before the answer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    /// What was handed on of the answer.
    pub text: String,
    /// What was generated behind all that and not handed on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<u8>,
    /// How many tokens the answer has so far: they count as generated, for `max_tokens` and for the usage at the end.
    pub completion_tokens: u32,
}

impl Resume {
    /// Returns whether nothing of the answer was written yet, so that it begins anew.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.thinking.is_empty() && self.text.is_empty() && self.held.is_empty()
    }

    /// Returns how many bytes of thoughts and answer there are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.thinking.len().saturating_add(self.text.len())
    }

    /// Returns the tokens to go on from, where they are those of these weights.
    #[must_use]
    pub fn tokens_for(&self, sha256: Option<&str>) -> Option<&[u32]> {
        let same = sha256.is_some() && self.sha256.as_deref() == sha256;
        (same && !self.tokens.is_empty()).then_some(&self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_count_for_the_same_weights_only() {
        let resume = Resume { sha256: Some("aa".into()), tokens: vec![1, 2], ..Resume::default() };
        assert_eq!(resume.tokens_for(Some("aa")), Some([1, 2].as_slice()));
        assert_eq!(resume.tokens_for(Some("bb")), None);
        assert_eq!(resume.tokens_for(None), None);
        assert_eq!(Resume { sha256: None, ..resume.clone() }.tokens_for(None), None);
        assert_eq!(Resume { tokens: Vec::new(), ..resume }.tokens_for(Some("aa")), None);
    }
}
