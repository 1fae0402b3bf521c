//! The one place that makes the bodies of error answers.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bombus_infer::BackendError;
use serde::Serialize;
use utoipa::ToSchema;

/// Says why a request failed, before any dialect gives it its shape.
///
/// As a response it is an empty one that carries itself along; `observe` has it written out in the dialect of the path that was
/// asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// OpenAI's `type`.
    pub(crate) kind: &'static str,
    pub(crate) code: Option<&'static str>,
    pub(crate) message: String,
    /// What helps, in words that Ollama's dialect leaves out: its clients compare messages with those that they know.
    pub(crate) hint: Option<&'static str>,
    /// The field at fault.
    pub(crate) param: Option<Cow<'static, str>>,
    pub(crate) retry_after: Option<Duration>,
}

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER_ERROR: &str = "server_error";

impl ApiError {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => SERVER_ERROR,
            _ => INVALID_REQUEST,
        };
        Self { status, kind, code, message: message.into(), hint: None, param: None, retry_after: None }
    }

    pub(crate) fn at(self, param: impl Into<Cow<'static, str>>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// A body that is not JSON.
    pub(crate) fn invalid_json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Some("invalid_json"), message)
    }

    /// A request without the body that it needs.
    pub(crate) fn missing_body() -> Self {
        Self { hint: Some("it has to be a JSON object"), ..Self::invalid_json("missing request body") }
    }

    /// A field of the wrong type, or out of its range.
    pub(crate) fn invalid_value(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Some("invalid_value"), message).at(param)
    }

    /// A field that has to be there.
    pub(crate) fn missing(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Some("missing_required_parameter"), message).at(param)
    }

    /// A field that asks for what the node or the model cannot do.
    pub(crate) fn unsupported(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Some("unsupported_parameter"), message).at(param)
    }

    /// A request without a valid API key.
    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
    }

    /// A request that the state of the swarm stands against.
    pub(crate) fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, Some(code), message)
    }

    /// A node that nobody knows.
    pub(crate) fn peer_not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("peer_not_found"), message)
    }

    /// A node that does not answer.
    pub(crate) fn peer_unreachable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, Some("peer_unreachable"), message)
    }

    /// A mesh that is not there now.
    pub(crate) fn mesh_unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("mesh_unavailable"), message)
    }

    /// A mesh that failed at what it was asked to do.
    pub(crate) fn mesh_failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("mesh_failed"), message)
    }

    /// A database that this node does not have.
    pub(crate) fn database_not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("database_not_found"), message)
    }

    /// A key under which nothing is.
    pub(crate) fn key_not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("key_not_found"), message)
    }

    /// A database that no peer gave in time.
    pub(crate) fn database_unreachable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, Some("database_unreachable"), message)
    }

    /// Databases that are not there now.
    pub(crate) fn databases_unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("databases_unavailable"), message)
    }

    /// A database that failed.
    pub(crate) fn databases_failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("databases_failed"), message)
    }

    /// A file of requests that is not there.
    pub(crate) fn file_not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("file_not_found"), message).at("id")
    }

    /// A batch that is not there.
    pub(crate) fn batch_not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("batch_not_found"), message).at("id")
    }

    /// Files and batches that are not there now.
    pub(crate) fn files_unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("files_unavailable"), message)
    }

    /// A body that is no form with parts.
    pub(crate) fn invalid_form(message: impl std::fmt::Display) -> Self {
        let message = format!("the request body is no form of the type multipart/form-data: {message}");
        Self::new(StatusCode::BAD_REQUEST, Some("invalid_form"), message)
    }

    /// A task that this node does not know.
    pub(crate) fn task_not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("task_not_found"), message)
    }

    /// A key that stands for another request.
    pub(crate) fn key_reused(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, Some("idempotency_key_reused"), message)
    }

    /// Tasks of which as many wait as may.
    pub(crate) fn tasks_full(message: impl Into<String>, retry_after: Duration) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("tasks_full"), message);
        Self { retry_after: Some(retry_after), ..error }
    }

    /// Tasks that are not there now.
    pub(crate) fn tasks_unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("tasks_unavailable"), message)
    }

    /// A task that the node failed at.
    pub(crate) fn tasks_failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("tasks_failed"), message)
    }

    /// A request from where none is accepted.
    pub(crate) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Some(code), message)
    }

    /// A request that goes round through nodes.
    pub(crate) fn loop_detected(message: impl Into<String>) -> Self {
        Self::new(StatusCode::LOOP_DETECTED, Some("loop_detected"), message)
    }

    /// A path that nothing answers.
    pub(crate) fn unknown_route(method: &str, path: &str) -> Self {
        let message = format!("nothing answers {method} {path}; GET /openapi.json lists what does");
        Self::new(StatusCode::NOT_FOUND, Some("unknown_url"), message)
    }

    /// A path that answers to other methods.
    pub(crate) fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("{path} does not answer {method}; the Allow header lists what it answers");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), message)
    }

    /// A model that no backend has.
    pub(crate) fn model_not_found(model: &str) -> Self {
        let message = format!("model '{model}' not found");
        let error = Self::new(StatusCode::NOT_FOUND, Some("model_not_found"), message).at("model");
        Self { hint: Some("GET /v1/models lists the models there are"), ..error }
    }

    /// A file that is not there.
    pub(crate) fn blob_not_found(digest: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("blob_not_found"), format!("blob {digest:?} not found"))
    }

    /// A body over the limit.
    pub(crate) fn body_too_large(bytes_max: usize) -> Self {
        let message = format!("the request body is larger than {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message)
    }

    /// A body that did not arrive in time.
    pub(crate) fn body_too_slow(limit: Duration) -> Self {
        let message = format!("the request body did not arrive within {} s", limit.as_secs_f32());
        Self::new(StatusCode::REQUEST_TIMEOUT, Some("request_timeout"), message)
    }

    /// A body that broke off.
    pub(crate) fn body_unreadable(reason: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Some("invalid_body"), format!("the request body cannot be read: {reason}"))
    }

    /// A handler that panicked.
    pub(crate) fn internal() -> Self {
        let message = "the node failed at this request; its log has the reason under the x-request-id of this answer";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("internal_error"), message)
    }

    /// A node that ends.
    pub(crate) fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("shutting_down"), "the node is shutting down")
    }

    /// API keys that cannot be checked.
    pub(crate) fn keys_unreadable(reason: impl std::fmt::Display) -> Self {
        let message = format!("API keys cannot be checked: {reason}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("keys_unreadable"), message)
    }

    /// Renames the field at fault, where the dialect calls it otherwise than the backends do.
    pub(crate) fn rename_param(mut self, from: &str, to: &'static str) -> Self {
        if self.param.as_deref() == Some(from) {
            self.param = Some(Cow::Borrowed(to));
        }
        self
    }

    fn message_with_hint(&self) -> Cow<'_, str> {
        match self.hint {
            Some(hint) => Cow::Owned(format!("{}; {hint}", self.message)),
            None => Cow::Borrowed(&self.message),
        }
    }

    /// Returns what people are told.
    pub(crate) fn text(&self) -> Cow<'_, str> {
        self.message_with_hint()
    }

    /// Builds OpenAI's body.
    pub(crate) fn openai_body(&self) -> OpenAiError<'_> {
        OpenAiError {
            error: OpenAiErrorBody {
                message: self.message_with_hint(),
                kind: self.kind,
                param: self.param.as_deref(),
                code: self.code,
            },
        }
    }

    /// Builds Ollama's body, with the words that its clients look for.
    pub(crate) fn ollama_body(&self) -> OllamaError<'_> {
        let known = match self.code {
            Some("context_length_exceeded") => Some("the input length exceeds the context length"),
            Some("overloaded") => Some("server busy, please try again"),
            _ => None,
        };
        let error = match known {
            Some(known) => Cow::Owned(format!("{known}: {}", self.message)),
            None => Cow::Borrowed(self.message.as_str()),
        };
        OllamaError { error }
    }

    fn problem_body(&self) -> Problem<'_> {
        Problem {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: self.message_with_hint(),
            code: self.code,
        }
    }

    /// Writes the error out in the dialect of a path.
    pub(crate) fn respond(&self, path: &str) -> Response {
        let mut status = self.status;
        let mut response = match Dialect::of(path) {
            Dialect::OpenAi => Json(self.openai_body()).into_response(),
            Dialect::Ollama => {
                // Its clients know this status alone as one that passes.
                if status == StatusCode::TOO_MANY_REQUESTS {
                    status = StatusCode::SERVICE_UNAVAILABLE;
                }
                Json(self.ollama_body()).into_response()
            }
            Dialect::Native => {
                let mut response = Json(self.problem_body()).into_response();
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
                response
            }
        };
        *response.status_mut() = status;
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil() as u64));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Whose error bodies a path has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Ollama,
    Native,
}

impl Dialect {
    pub(crate) fn of(path: &str) -> Self {
        let under = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if under("/v1") {
            Self::OpenAi
        } else if under("/api") || path == "/" {
            Self::Ollama
        } else {
            Self::Native
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self);
        response
    }
}

impl From<BackendError> for ApiError {
    fn from(error: BackendError) -> Self {
        let message = error.to_string();
        match error {
            BackendError::ModelNotFound { model } => Self::model_not_found(&model),
            BackendError::ContextExceeded { .. } => {
                Self::new(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message).at("prompt")
            }
            BackendError::InvalidRequest { param, .. } => {
                let error = Self::new(StatusCode::BAD_REQUEST, Some("invalid_value"), message);
                Self { param: param.map(Cow::Borrowed), ..error }
            }
            BackendError::Unsupported { param, .. } => Self::unsupported(param, message),
            BackendError::Overloaded { retry_after } => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, Some("overloaded"), message);
                Self { retry_after: Some(retry_after), ..error }
            }
            BackendError::OutOfMemory { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("out_of_memory"), message)
            }
            // Trying again does not mend a file, so this is the one failure of a backend that is a plain 500.
            BackendError::ModelUnusable { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("model_unusable"), message)
            }
            BackendError::Rejected { .. } => Self::new(StatusCode::BAD_GATEWAY, Some("backend_rejected"), message),
            BackendError::Unavailable { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("backend_unavailable"), message)
            }
            BackendError::Interrupted { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("interrupted"), message)
            }
            // Clients send again by themselves what ended with 5xx.
            BackendError::DeadEnd { param, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("dead_end"), message).at(param)
            }
            BackendError::TimedOut { .. } => Self::new(StatusCode::GATEWAY_TIMEOUT, Some("timeout"), message),
        }
    }
}

/// The error body of OpenAI's dialect.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenAiError)]
pub(crate) struct OpenAiError<'a> {
    error: OpenAiErrorBody<'a>,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OpenAiErrorBody)]
struct OpenAiErrorBody<'a> {
    /// For the person who asked.
    #[schema(value_type = String)]
    message: Cow<'a, str>,
    /// The kind of error.
    #[serde(rename = "type")]
    kind: &'a str,
    /// The field at fault, where one is.
    #[schema(required)]
    param: Option<&'a str>,
    /// For the program that asked, where there is one.
    #[schema(required)]
    code: Option<&'a str>,
}

/// The error body of Ollama's dialect. In a stream that breaks off it is the last line.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaError)]
pub(crate) struct OllamaError<'a> {
    /// For the person who asked.
    #[schema(value_type = String)]
    error: Cow<'a, str>,
}

/// The error body of the native routes (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Problem<'a> {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    kind: &'a str,
    /// The status in words.
    title: &'a str,
    /// The status code.
    status: u16,
    /// For the person who asked.
    #[schema(value_type = String)]
    detail: Cow<'a, str>,
    /// For the program that asked, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
}
