//! How a server fails, and what that means to the one who asked.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use serde_json::Value;

use crate::BackendError;

/// Longest part of a server's own words that is passed on, in characters.
const MESSAGE_CHARS_MAX: usize = 1000;
/// How long to wait where a server refuses for now and does not say how long.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);
/// Longest wait that is passed on.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

const CHECK_KEY: &str = "Set `api_key_env` or `api_key_file` of this backend to a key that it accepts";
const CHECK_ACCOUNT: &str = "See to the balance of the account that the key of this backend belongs to";
const CHECK_URL: &str = "Check the `url` of this backend";
/// What may stand behind the words of a server that rejects this node, for the person who set it up.
pub(crate) const ADVICE: [&str; 3] = [CHECK_KEY, CHECK_ACCOUNT, CHECK_URL];

/// Why a server did not answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// No connection, and nothing was sent.
    #[error("{reason}")]
    Connect {
        /// Why.
        reason: String,
    },
    /// Nothing came for too long, before the status or in the middle of the body.
    #[error("nothing came for {} s", after.as_secs_f64())]
    Timeout {
        /// How long was waited.
        after: Duration,
    },
    /// It refuses, by its status or by an error object in its stream.
    #[error("status {status}: {message}")]
    Status {
        /// The HTTP status; 500 for an error object in a stream that has none of its own.
        status: u16,
        /// Its own words; see [`UpstreamError::without`].
        message: String,
        /// Where it says that the prompt is longer than the context: tokens of the prompt, tokens of the context.
        context: Option<(u32, u32)>,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The connection ended in the middle of an answer.
    #[error("{reason}")]
    Broken {
        /// What happened.
        reason: String,
    },
    /// What it answers cannot be read, or is too large.
    #[error("{reason}")]
    Garbage {
        /// What is wrong with it.
        reason: String,
    },
    /// The settings are at fault.
    #[error("{reason}")]
    Config {
        /// Which one, and what to do.
        reason: String,
    },
}

impl UpstreamError {
    pub(super) fn of_response(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let document = serde_json::from_slice::<Value>(body).ok();
        let message = match &document {
            Some(document) => message_of(document),
            None => std::str::from_utf8(body).ok().map(str::to_owned),
        };
        let location = headers.get(LOCATION).filter(|_| status.is_redirection()).and_then(|value| value.to_str().ok());
        let message = match location {
            Some(location) => format!("it redirects to {location}; put that address into `url`"),
            None => message.unwrap_or_default(),
        };
        let message = match message.trim() {
            "" => status.canonical_reason().unwrap_or("no reason given").to_owned(),
            message => message.to_owned(),
        };
        Self::Status {
            status: status.as_u16(),
            context: context_of(document.as_ref(), &message),
            message,
            retry_after: retry_after(headers),
        }
    }

    /// Reads an error object that came in a stream with status 200: `{"error": "..."}`, or `{"error": {"message", "code"}}` with a code
    /// that is a number, a text, or missing. `None` where the document is no error.
    pub(crate) fn of_event(document: &Value) -> Option<Self> {
        let error = document.get("error").filter(|error| !error.is_null())?;
        let code = ["code", "status", "status_code"].iter().filter_map(|key| error.get(key)).find_map(|code| {
            let number = code.as_u64().or_else(|| code.as_str()?.parse().ok())?;
            u16::try_from(number).ok().filter(|number| (400..=599).contains(number))
        });
        let message = message_of(document).filter(|message| !message.trim().is_empty());
        let message = message.unwrap_or_else(|| "it sends an error without a text".to_owned());
        let known = if error.get("code").and_then(Value::as_str) == Some("model_not_found") { 404 } else { 500 };
        Some(Self::Status {
            status: code.unwrap_or(known),
            context: context_of(Some(document), &message),
            message,
            retry_after: None,
        })
    }

    /// Blots secrets out of the server's own words, and cuts these to 1000 characters then: of a secret across the cut, too, nothing is left.
    pub(super) fn without(mut self, secrets: &[String]) -> Self {
        if let Self::Status { message, .. } = &mut self {
            for secret in secrets {
                *message = message.replace(secret, "***");
            }
            if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
                message.truncate(end);
            }
        }
        self
    }

    /// Returns a word for logs.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Timeout { .. } => "timeout",
            Self::Status { .. } => "status",
            Self::Broken { .. } => "broken",
            Self::Garbage { .. } => "garbage",
            Self::Config { .. } => "config",
        }
    }

    /// Returns the HTTP status, where there is one.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Returns whether it says that the prompt is longer than the context, with numbers or without.
    pub(crate) fn is_prompt_too_long(&self) -> bool {
        const WORDS: [&str; 8] = [
            "context_length_exceeded",
            "exceed_context_size",
            "ContextWindowExceeded",
            "exceeds the context",
            "exceeds the available context",
            "exceeds maximum context length",
            "prompt is too long",
            "reduce the length of the messages",
        ];
        match self {
            Self::Status { status, message, context, .. } if (400..=499).contains(&meant(*status, message)) => {
                context.is_some() || WORDS.iter().any(|words| message.contains(words))
            }
            _ => false,
        }
    }

    /// Returns whether the same request may be sent again: nothing reached the server, or the server itself failed.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Status { status, message, .. } => {
                (500..=599).contains(&meant(*status, message)) && !matches!(*status, 501 | 508)
            }
            _ => false,
        }
    }

    /// Returns whether the server has nothing at the path that it was asked at, and so cannot do what is asked for there.
    pub(crate) fn is_missing_path(&self) -> bool {
        matches!(self, Self::Status { status: 404 | 405 | 501, message, .. } if !names_a_model(message))
    }

    /// Says it to the one who asked `backend` for `model` (empty where no model was asked for). `begun`: the answer had begun. What the
    /// server says of the request (4xx) is told as such even then: it is no failure of the server. Before the answer, so is a 5xx whose words
    /// find fault with the request.
    pub(crate) fn into_backend(self, backend: &str, model: &str, begun: bool) -> BackendError {
        let reason = format!("backend '{backend}': {self}");
        let rejected = |advice: &str| BackendError::Rejected { reason: format!("{reason}. {advice}") };
        match self {
            Self::Timeout { after } => BackendError::TimedOut { after },
            Self::Connect { .. } => BackendError::Unavailable { reason: format!("{reason}. Is the server running?") },
            Self::Status { status, .. } if begun && !(400..=499).contains(&status) => {
                BackendError::Interrupted { reason }
            }
            Self::Status { status, message, context, retry_after } => {
                match (meant(status, &message), context, retry_after) {
                    (400..=499, Some((prompt_tokens, context_tokens)), _) if !begun => {
                        BackendError::ContextExceeded { prompt_tokens, context_tokens }
                    }
                    (401 | 403, ..) => rejected(CHECK_KEY),
                    (402, ..) => rejected(CHECK_ACCOUNT),
                    (404, ..) if !model.is_empty() && names_a_model(&message) => {
                        BackendError::ModelNotFound { model: model.to_owned() }
                    }
                    // 508: it is this node, or asks it again.
                    (404 | 405 | 508 | 300..=399, ..) => rejected(CHECK_URL),
                    (408 | 429, ..) | (503, _, Some(_)) => {
                        BackendError::Overloaded { retry_after: retry_after.unwrap_or(RETRY_AFTER_DEFAULT) }
                    }
                    (400..=499, ..) => BackendError::InvalidRequest { param: None, message },
                    (501, ..) => BackendError::Unsupported { param: "model", message: reason },
                    _ => BackendError::Unavailable { reason },
                }
            }
            _ if begun => BackendError::Interrupted { reason },
            Self::Broken { .. } | Self::Garbage { .. } | Self::Config { .. } => BackendError::Unavailable { reason },
        }
    }
}

/// Returns the status that a refusal should have: llama-server tells with 500 some of what is wrong with a request.
fn meant(status: u16, message: &str) -> u16 {
    const WORDS: [&str; 4] =
        ["image input is not supported", "jinja exception", "raise_exception", "too large to process"];
    let message = message.to_ascii_lowercase();
    let blames_request = (500..=599).contains(&status) && WORDS.iter().any(|words| message.contains(words));
    if blames_request { 400 } else { status }
}

/// A server that does not have the model says so, and one that knows no such path speaks of nothing but that.
fn names_a_model(message: &str) -> bool {
    message.to_ascii_lowercase().contains("model")
}

/// Finds the text of an error in the shapes that servers have: Ollama's and `OpenAI`'s `error`, `FastAPI`'s `detail`, and `message`.
fn message_of(document: &Value) -> Option<String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(object) => object.get("message").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    if let Some(error) = document.get("error").filter(|error| !error.is_null()) {
        return text(error).or_else(|| Some(error.to_string()));
    }
    if let Some(detail) = document.get("detail") {
        return text(detail).or_else(|| Some(detail.to_string()));
    }
    text(document)
}

/// Finds by how much a prompt is too long: llama-server tells it in fields, others in words like those of `OpenAI`'s error or Anthropic's.
fn context_of(document: Option<&Value>, message: &str) -> Option<(u32, u32)> {
    let error = document.and_then(|document| document.get("error"));
    let field = |key| u32::try_from(error?.get(key)?.as_u64()?).ok();
    let (prompt, context) = match (field("n_prompt_tokens"), field("n_ctx")) {
        (Some(prompt), Some(context)) => (prompt, context),
        _ => {
            let most = ["maximum context length is", "configured limit of", "tokens >", "current batch size:"];
            let asked = [
                "you requested",
                "resulted in",
                "contains at least",
                "your request has",
                "you passed",
                "prompt is too long:",
                "input (",
            ];
            let first_of = |all: &[&str]| all.iter().find_map(|words| number_after(message, words));
            (first_of(&asked)?, first_of(&most)?)
        }
    };
    // A prompt that fits is refused for something else, such as too large a `max_tokens`, and the server's words say it better.
    (prompt >= context).then_some((prompt, context))
}

fn number_after(text: &str, words: &str) -> Option<u32> {
    let rest = &text[text.find(words)? + words.len()..];
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Reads `Retry-After` (RFC 9110, 10.2.3): seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::now()).unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(status: u16, headers: &[(&'static str, &str)], body: &str) -> UpstreamError {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        UpstreamError::of_response(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes())
    }

    fn told(status: u16, body: &str) -> BackendError {
        refusal(status, &[], body).into_backend("far", "m", false)
    }

    #[test]
    fn the_servers_own_words_are_found_in_every_shape() {
        for body in [
            r#"{"error":"no room"}"#,
            r#"{"error":{"message":"no room","code":400}}"#,
            r#"{"detail":"no room"}"#,
            r#"{"object":"error","message":"no room"}"#,
            "no room\n",
        ] {
            let BackendError::InvalidRequest { message, .. } = told(400, body) else { panic!("{body}") };
            assert_eq!(message, "no room", "{body}");
        }
        let detail = told(422, r#"{"detail":[{"loc":["body","n"],"msg":"too small"}]}"#);
        assert!(matches!(detail, BackendError::InvalidRequest { message, .. } if message.contains("too small")));
    }

    #[test]
    fn long_words_are_cut_and_leave_no_part_of_a_secret() {
        let secret = "sk-bumblebee-0815".to_owned();
        let said = format!("{}{secret}", "x".repeat(MESSAGE_CHARS_MAX - 5));
        for error in [refusal(400, &[], &said), UpstreamError::of_event(&json!({ "error": said })).unwrap()] {
            let UpstreamError::Status { message, .. } = error.without(std::slice::from_ref(&secret)) else { panic!() };
            assert!(message.ends_with("x***"), "{message}");
        }
        let long = refusal(400, &[], &"ü".repeat(2 * MESSAGE_CHARS_MAX)).without(&[]);
        assert!(matches!(long, UpstreamError::Status { message, .. } if message.chars().count() == MESSAGE_CHARS_MAX));
    }

    #[test]
    fn a_refused_key_is_told_with_what_to_set() {
        let BackendError::Rejected { reason } = told(401, r#"{"error":{"message":"bad key"}}"#) else { panic!() };
        assert!(reason.contains("'far'") && reason.contains("bad key") && reason.contains("api_key_env"), "{reason}");
    }

    #[test]
    fn what_a_server_says_of_its_account_or_its_patience_is_no_fault_of_the_request() {
        let BackendError::Rejected { reason } = told(402, r#"{"error":{"message":"Insufficient Balance"}}"#) else {
            panic!()
        };
        assert!(reason.contains("'far'") && reason.contains("Insufficient Balance"), "{reason}");
        assert!(reason.contains("balance of the account"), "{reason}");
        assert_eq!(told(408, "too slow"), BackendError::Overloaded { retry_after: RETRY_AFTER_DEFAULT });
    }

    #[test]
    fn a_missing_model_is_not_a_wrong_address() {
        let missing = told(404, r#"{"error":{"message":"The model `m` does not exist","code":"model_not_found"}}"#);
        assert_eq!(missing, BackendError::ModelNotFound { model: "m".into() });
        for status in [404, 405] {
            let BackendError::Rejected { reason } = told(status, "404 page not found") else { panic!("{status}") };
            assert!(reason.contains("`url`"), "{reason}");
        }
    }

    #[test]
    fn a_wait_is_told_in_seconds_or_as_a_date() {
        let after = |value: &str| refusal(429, &[("retry-after", value)], "").into_backend("far", "m", false);
        assert_eq!(after("7"), BackendError::Overloaded { retry_after: Duration::from_secs(7) });
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(90));
        let BackendError::Overloaded { retry_after } = after(&date) else { panic!() };
        assert!((80..=90).contains(&retry_after.as_secs()), "{retry_after:?}");
        assert_eq!(after("soon"), BackendError::Overloaded { retry_after: RETRY_AFTER_DEFAULT });
        assert_eq!(after("1e300"), BackendError::Overloaded { retry_after: RETRY_AFTER_DEFAULT });
    }

    #[test]
    fn an_overlong_prompt_is_told_with_both_numbers() {
        let exceeded = |prompt_tokens, context_tokens| BackendError::ContextExceeded { prompt_tokens, context_tokens };
        let fields = r#"{"error":{"code":400,"message":"the request exceeds the available context size","n_prompt_tokens":900,"n_ctx":512}}"#;
        assert_eq!(told(400, fields), exceeded(900, 512));
        let words = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, 1000 in the completion).";
        assert_eq!(told(400, words), exceeded(5000, 4096));
        assert_eq!(told(400, "prompt is too long: 210000 tokens > 200000 maximum"), exceeded(210_000, 200_000));
        let fits = "'max_tokens' is too large: 9000. This model's maximum context length is 4096 tokens and your request has 17 input tokens";
        assert!(matches!(told(400, fits), BackendError::InvalidRequest { .. }));
        assert!(!refusal(400, &[], fits).is_prompt_too_long());
        let without = r#"{"error":{"message":"Please reduce the length of the messages or completion.","code":"x"}}"#;
        assert!(refusal(400, &[], without).is_prompt_too_long());
    }

    #[test]
    fn a_fault_of_the_request_that_comes_as_a_failure_is_told_as_one_of_the_request() {
        let batch =
            "input (596 tokens) is too large to process. increase the physical batch size (current batch size: 512)";
        assert_eq!(told(500, batch), BackendError::ContextExceeded { prompt_tokens: 596, context_tokens: 512 });
        assert!(refusal(500, &[], batch).is_prompt_too_long());
        for words in [
            "input is too large to process. increase the physical batch size",
            "Jinja Exception: Conversation roles must alternate user/assistant/user/assistant/...",
            "Only user and assistant roles are supported! at row 1, column 9:\n{{ raise_exception('Only user",
            "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        ] {
            assert_eq!(told(500, words), BackendError::InvalidRequest { param: None, message: words.into() });
            assert!(!refusal(500, &[], words).is_passing(), "{words}");
            let later = refusal(500, &[], words).into_backend("far", "m", true);
            assert!(matches!(later, BackendError::Interrupted { .. }), "{words}");
        }
        assert!(matches!(told(500, "boom"), BackendError::Unavailable { .. }));
        assert!(refusal(500, &[], "boom").is_passing());
    }

    #[test]
    fn an_error_in_a_stream_may_have_a_code_of_any_kind() {
        let status = |code: Value| {
            UpstreamError::of_event(&json!({"error": {"message": "x", "code": code}})).and_then(|error| error.status())
        };
        assert_eq!(status(json!(429)), Some(429));
        assert_eq!(status(json!("401")), Some(401));
        assert_eq!(status(json!("model_not_found")), Some(404));
        assert_eq!(status(json!("server_error")), Some(500));
        assert_eq!(status(Value::Null), Some(500));
        assert!(UpstreamError::of_event(&json!({"error": "x"})).is_some());
        assert!(UpstreamError::of_event(&json!({"error": null, "choices": []})).is_none());
    }

    #[test]
    fn what_a_server_says_of_a_request_stays_that_in_the_middle_of_an_answer() {
        let later = |status| refusal(status, &[], r#"{"error":"no"}"#).into_backend("far", "m", true);
        assert_eq!(later(400), BackendError::InvalidRequest { param: None, message: "no".into() });
        assert_eq!(later(429), BackendError::Overloaded { retry_after: RETRY_AFTER_DEFAULT });
        assert!(matches!(later(403), BackendError::Rejected { .. }));
        for status in [500, 501, 503] {
            assert!(matches!(later(status), BackendError::Interrupted { .. }), "{status}");
        }
    }

    #[test]
    fn what_a_server_does_not_have_is_not_its_failure() {
        let error = told(501, r#"{"error":{"message":"This server does not support embeddings"}}"#);
        assert!(matches!(error, BackendError::Unsupported { message, .. } if message.contains("embeddings")));
        assert!(refusal(404, &[], "404 page not found").is_missing_path());
        assert!(!refusal(404, &[], r#"{"error":"model 'm' not found"}"#).is_missing_path());
        assert!(!refusal(500, &[], "").is_missing_path());
    }

    #[test]
    fn a_request_that_goes_in_a_circle_is_the_fault_of_the_address() {
        let BackendError::Rejected { reason } = told(508, r#"{"error":"come back"}"#) else { panic!() };
        assert!(reason.contains("'far'") && reason.contains("come back") && reason.contains("`url`"), "{reason}");
        assert!(!refusal(508, &[], "").is_passing());
    }

    #[test]
    fn a_redirect_says_where_to() {
        let error = refusal(301, &[("location", "https://example.com/v1")], "").into_backend("far", "m", false);
        assert!(matches!(error, BackendError::Rejected { reason } if reason.contains("https://example.com/v1")));
    }
}
