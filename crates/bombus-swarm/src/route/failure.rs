//! Errors as they travel: each kind of [`BackendError`] has a word, and comes out at the other end as what it was.

use std::time::Duration;

use bombus_infer::BackendError;
use serde::{Deserialize, Serialize};

use super::wire::{NAME_BYTES_MAX, TEXT_BYTES_MAX, cut};

/// Longest time that a peer may have a requester wait before it tries again.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The fields of requests that errors may name.
const PARAMS: &[&str] = &[
    "context_tokens",
    "dimensions",
    "earlier_tokens",
    "ignore_eos",
    "inputs",
    "keep_alive",
    "logprobs",
    "max_tokens",
    "messages",
    "model",
    "overflow",
    "prompt",
    "response_format",
    "resume",
    "return_tokens",
    "sampling",
    "stop",
    "suffix",
    "template",
    "think",
    "tool_choice",
    "tools",
    "truncate",
];

/// An error on the wire. What a kind does not have is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Failure {
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<u64>,
}

impl From<&BackendError> for Failure {
    fn from(error: &BackendError) -> Self {
        let of = |kind: &str| Self { kind: kind.to_owned(), ..Self::default() };
        let said = |kind: &str, message: &String| Self { message: message.clone(), ..of(kind) };
        let after = |kind: &str, time: Duration| Self {
            ms: Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            ..of(kind)
        };
        let failure = match error {
            BackendError::ModelNotFound { model } => Self { model: model.clone(), ..of("model_not_found") },
            BackendError::ContextExceeded { prompt_tokens, context_tokens } => Self {
                prompt_tokens: Some(*prompt_tokens),
                context_tokens: Some(*context_tokens),
                ..of("context_exceeded")
            },
            BackendError::InvalidRequest { param, message } => {
                Self { param: param.map(str::to_owned), ..said("invalid_request", message) }
            }
            BackendError::Unsupported { param, message } => {
                Self { param: Some((*param).to_owned()), ..said("unsupported", message) }
            }
            BackendError::DeadEnd { param, message } => {
                Self { param: Some((*param).to_owned()), ..said("dead_end", message) }
            }
            BackendError::Overloaded { retry_after } => after("overloaded", *retry_after),
            BackendError::OutOfMemory { message } => said("out_of_memory", message),
            BackendError::ModelUnusable { model, reason } => {
                Self { model: model.clone(), ..said("model_unusable", reason) }
            }
            BackendError::Rejected { reason } => said("rejected", reason),
            BackendError::Unavailable { reason } => said("unavailable", reason),
            BackendError::Interrupted { reason } => said("interrupted", reason),
            BackendError::TimedOut { after: time } => after("timed_out", *time),
        };
        failure.bounded()
    }
}

impl Failure {
    fn bounded(mut self) -> Self {
        self.kind = cut(self.kind, NAME_BYTES_MAX);
        self.message = cut(self.message, TEXT_BYTES_MAX);
        self.model = cut(self.model, NAME_BYTES_MAX);
        self
    }

    /// Makes the error that it stands for. A kind that is not known counts as a failure of the peer.
    pub(super) fn error(self) -> BackendError {
        let Self { kind, message, model, param, prompt_tokens, context_tokens, ms } = self.bounded();
        let param = param.and_then(|param| PARAMS.iter().find(|known| **known == param).copied());
        let time = Duration::from_millis(ms.unwrap_or(0));
        match kind.as_str() {
            "model_not_found" => BackendError::ModelNotFound { model },
            "context_exceeded" => BackendError::ContextExceeded {
                prompt_tokens: prompt_tokens.unwrap_or(0),
                context_tokens: context_tokens.unwrap_or(0),
            },
            "invalid_request" => BackendError::InvalidRequest { param, message },
            "unsupported" => BackendError::Unsupported { param: param.unwrap_or("model"), message },
            "dead_end" => BackendError::DeadEnd { param: param.unwrap_or("model"), message },
            "overloaded" => BackendError::Overloaded { retry_after: time.min(RETRY_MAX) },
            "out_of_memory" => BackendError::OutOfMemory { message },
            "model_unusable" => BackendError::ModelUnusable { model, reason: message },
            "rejected" => BackendError::Rejected { reason: message },
            "unavailable" => BackendError::Unavailable { reason: message },
            "timed_out" => BackendError::TimedOut { after: time },
            "interrupted" => BackendError::Interrupted { reason: message },
            _ => {
                let said = if message.is_empty() { kind } else { message };
                BackendError::Unavailable { reason: said }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors() -> Vec<BackendError> {
        let text = || "what happened".to_owned();
        vec![
            BackendError::ModelNotFound { model: "m".into() },
            BackendError::ContextExceeded { prompt_tokens: 5_000, context_tokens: 4_096 },
            BackendError::InvalidRequest { param: Some("stop"), message: text() },
            BackendError::InvalidRequest { param: None, message: text() },
            BackendError::Unsupported { param: "tools", message: text() },
            BackendError::DeadEnd { param: "response_format", message: text() },
            BackendError::Overloaded { retry_after: Duration::from_millis(1_500) },
            BackendError::OutOfMemory { message: text() },
            BackendError::ModelUnusable { model: "m".into(), reason: text() },
            BackendError::Rejected { reason: text() },
            BackendError::Unavailable { reason: text() },
            BackendError::Interrupted { reason: text() },
            BackendError::TimedOut { after: Duration::from_secs(7) },
        ]
    }

    #[test]
    fn each_error_arrives_as_what_it_was() {
        for error in errors() {
            let mut bytes = Vec::new();
            ciborium::into_writer(&Failure::from(&error), &mut bytes).unwrap();
            let failure: Failure = ciborium::from_reader(bytes.as_slice()).unwrap();
            assert_eq!(failure.error(), error);
        }
    }

    #[test]
    fn what_a_peer_says_is_bounded_and_later_kinds_count_as_its_failure() {
        let long = Failure { kind: "rejected".into(), message: "ü".repeat(100_000), ..Failure::default() };
        let BackendError::Rejected { reason } = long.error() else { panic!("another kind") };
        assert!(reason.len() <= TEXT_BYTES_MAX && reason.chars().all(|letter| letter == 'ü'));
        let later = Failure { kind: "bewitched".into(), ..Failure::default() };
        assert_eq!(later.error(), BackendError::Unavailable { reason: "bewitched".into() });
        let forever = Failure { kind: "overloaded".into(), ms: Some(u64::MAX), ..Failure::default() };
        assert_eq!(forever.error(), BackendError::Overloaded { retry_after: RETRY_MAX });
        let param = Failure { kind: "invalid_request".into(), param: Some("spell".into()), ..Failure::default() };
        assert!(matches!(param.error(), BackendError::InvalidRequest { param: None, .. }));
    }
}
