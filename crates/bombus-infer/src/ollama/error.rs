//! How an Ollama server fails, and what that means to the one who asked.

use std::time::Duration;

use crate::BackendError;
use crate::upstream::UpstreamError;

/// Says why an Ollama server did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OllamaError {
    /// The settings are at fault.
    #[error("{reason}")]
    Config {
        /// Which one, and what to do.
        reason: String,
    },
    /// No connection, and nothing was sent.
    #[error("{reason}")]
    Connect {
        /// Why.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("nothing came for {} s", after.as_secs_f64())]
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// The server has no such model.
    #[error("model '{model}' not found")]
    ModelNotFound {
        /// The name that was asked for.
        model: String,
    },
    /// The server refuses, by its status or by an error in its stream.
    #[error("status {status}: {message}")]
    Refused {
        /// The HTTP status; 500 for an error in a stream.
        status: u16,
        /// Its own words.
        message: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The connection ended in the middle of an answer.
    #[error("{reason}")]
    Broken {
        /// What happened.
        reason: String,
    },
    /// What it answers cannot be read.
    #[error("{reason}")]
    Garbage {
        /// What is wrong with it.
        reason: String,
    },
}

impl From<UpstreamError> for OllamaError {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::Config { reason } => Self::Config { reason },
            UpstreamError::Connect { reason } => Self::Connect { reason },
            UpstreamError::Timeout { after } => Self::TimedOut { after },
            UpstreamError::Status { status, message, retry_after, .. } => {
                Self::Refused { status, message, retry_after }
            }
            UpstreamError::Broken { reason } => Self::Broken { reason },
            UpstreamError::Garbage { reason } => Self::Garbage { reason },
        }
    }
}

impl OllamaError {
    /// Tells a refusal as a missing model, where it is one.
    pub(super) fn about_model(self, model: &str) -> Self {
        match &self {
            Self::Refused { status, message, .. } if is_missing_model(*status, message) => {
                Self::ModelNotFound { model: model.to_owned() }
            }
            _ => self,
        }
    }

    /// Returns whether the server says that the prompt is longer than the context.
    pub(super) fn is_prompt_too_long(&self) -> bool {
        const WORDS: [&str; 4] = [
            "exceeds the context length",
            "exceeds maximum context length",
            "exceeds the available context",
            "exceed_context_size",
        ];
        matches!(self, Self::Refused { message, .. } if WORDS.iter().any(|words| message.contains(words)))
    }

    /// Returns whether sending the same request again is no use, or not wanted yet, whatever the status says.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Refused { message, retry_after, .. } if retry_after.is_some() || fault(message, "").is_some())
    }

    /// Says it to the one who asked `backend` for `model` (empty where no model was asked for). `begun`: the answer had begun.
    pub(super) fn into_backend(self, backend: &str, model: &str, begun: bool) -> BackendError {
        let error = match self {
            Self::Config { reason } => UpstreamError::Config { reason },
            Self::Connect { reason } => UpstreamError::Connect { reason },
            Self::TimedOut { after } => UpstreamError::Timeout { after },
            Self::ModelNotFound { model } => return BackendError::ModelNotFound { model },
            Self::Refused { status, message, retry_after } => {
                if !begun && let Some(error) = fault(&message, model) {
                    return error;
                }
                UpstreamError::Status { status, message, context: None, retry_after }
            }
            Self::Broken { reason } => UpstreamError::Broken { reason },
            Self::Garbage { reason } => UpstreamError::Garbage { reason },
        };
        error.into_backend(backend, model, begun)
    }
}

/// A pull of a model that nobody has ends with the words of its registry, as an error in the stream.
fn is_missing_model(status: u16, message: &str) -> bool {
    (status == 404 && message.contains("model")) || message.ends_with("file does not exist")
}

/// Reads the words of refusals whose status says less, or something else: what is wrong with a request is a 500 with Ollama as often
/// as a 400. `None` where they are not known.
fn fault(message: &str, model: &str) -> Option<BackendError> {
    let is = |words: &[&str]| words.iter().any(|words| message.contains(words));
    let invalid = |param| Some(BackendError::InvalidRequest { param, message: message.to_owned() });
    if is(&["does not support"]) {
        let params = [("tools", "tools"), ("thinking", "think"), ("insert", "suffix"), ("vision", "messages")];
        let param = params.iter().find(|(word, _)| message.contains(word)).map_or("model", |(_, param)| param);
        return Some(BackendError::Unsupported { param, message: message.to_owned() });
    }
    if is(&["more system memory", "out of memory", "insufficient memory"]) {
        return Some(BackendError::OutOfMemory { message: message.to_owned() });
    }
    if is(&["unable to load model", "error loading model"]) {
        return Some(BackendError::ModelUnusable { model: model.to_owned(), reason: message.to_owned() });
    }
    if message.starts_with("template:") {
        return invalid(Some("template"));
    }
    if is(&["invalid format", "invalid JSON schema", "failed to parse grammar"]) {
        return invalid(Some("response_format"));
    }
    if is(&["failed to process inputs", "only supports one image", "missing data required for image"]) {
        return invalid(Some("messages"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, message: &str) -> OllamaError {
        OllamaError::Refused { status, message: message.to_owned(), retry_after: None }
    }

    #[test]
    fn what_is_wrong_with_a_request_is_not_tried_again_whatever_the_status() {
        for message in [
            "template: :1: unclosed action",
            "invalid JSON schema in format",
            "model requires more system memory (9.1 GiB) than is available (2.0 GiB)",
            "unable to load model: /models/blobs/sha256-00",
        ] {
            assert!(refused(500, message).is_final(), "{message}");
        }
        assert!(!refused(500, "model runner has unexpectedly stopped").is_final());
        assert!(!refused(503, "server busy, please try again.  maximum pending requests exceeded").is_final());
    }

    #[test]
    fn a_server_that_says_when_to_come_back_is_not_asked_before() {
        let busy =
            OllamaError::Refused { status: 503, message: "busy".into(), retry_after: Some(Duration::from_secs(9)) };
        assert!(busy.is_final());
        let overloaded = BackendError::Overloaded { retry_after: Duration::from_secs(9) };
        assert_eq!(busy.into_backend("o", "m", false), overloaded);
    }

    #[test]
    fn refusals_name_the_field_at_fault() {
        let told = |status, message| refused(status, message).into_backend("o", "m", false);
        let cases = [
            ("registry.ollama.ai/library/m:latest does not support tools", "tools"),
            ("\"m\" does not support thinking", "think"),
            ("registry.ollama.ai/library/m:latest does not support insert", "suffix"),
            ("\"m\" does not support generate", "model"),
        ];
        for (message, expected) in cases {
            let BackendError::Unsupported { param, .. } = told(400, message) else { panic!("{message}") };
            assert_eq!(param, expected, "{message}");
        }
        assert!(matches!(
            told(500, "template: :1: bad character"),
            BackendError::InvalidRequest { param: Some("template"), .. }
        ));
        assert!(matches!(told(500, "model requires more system memory"), BackendError::OutOfMemory { .. }));
        assert!(matches!(told(500, "something else"), BackendError::Unavailable { .. }));
    }

    #[test]
    fn a_missing_model_is_known_by_status_or_by_the_words_of_a_pull() {
        let missing = OllamaError::ModelNotFound { model: "m".into() };
        assert_eq!(refused(404, "model 'm' not found").about_model("m"), missing);
        assert_eq!(refused(500, "pull model manifest: file does not exist").about_model("m"), missing);
        assert_eq!(refused(404, "404 page not found").about_model("m"), refused(404, "404 page not found"));
    }
}
