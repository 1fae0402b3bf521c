//! The HTTP API of the running node, as commands use it.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::data_dir::{DataDir, NodeRecord};
use crate::failure::{Exit, Failure};
use crate::running::local_client;

/// How much of a refusal is read.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Largest document that is read whole.
const DOCUMENT_BYTES_MAX: usize = 32 << 20;

/// The running node of a data directory.
pub(crate) struct NodeClient {
    record: NodeRecord,
    /// The API key that the node made for commands on its data directory.
    key: Option<String>,
    client: reqwest::Client,
}

impl NodeClient {
    /// Takes what the node wrote into its data directory.
    pub(crate) fn new(record: NodeRecord, data_dir: &DataDir) -> Result<Self> {
        Ok(Self { record, key: data_dir.session_key(), client: local_client()? })
    }

    /// Returns what the node says about itself.
    pub(crate) fn record(&self) -> &NodeRecord {
        &self.record
    }

    /// Returns whether a node was started since on the data directory: each start makes another key.
    pub(crate) fn is_outdated(&self, data_dir: &DataDir) -> bool {
        data_dir.session_key().is_some_and(|key| self.key.as_ref() != Some(&key))
    }

    /// Gets a JSON document.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let response = self.send(Method::GET, path, None).await?;
        self.document(response).await
    }

    /// Sends a JSON document and reads the one that answers it.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        let response = self.send(Method::POST, path, Some(body)).await?;
        self.document(response).await
    }

    /// Sends a request. A status that is no success is a [`Refusal`].
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response> {
        self.send_with(method, path, body, HeaderMap::new()).await
    }

    /// Sends a body as it is made, and reads the document that answers it.
    pub(crate) async fn post_body<T: DeserializeOwned>(&self, path: &str, body: reqwest::Body) -> Result<T> {
        let request = self.client.post(format!("{}{path}", self.record.api)).body(body);
        let response = self.deliver(request).await?;
        self.document(response).await
    }

    /// Sends a request with headers of its own. A status that is no success is a [`Refusal`].
    pub(crate) async fn send_with(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: HeaderMap,
    ) -> Result<Response> {
        let mut request = self.client.request(method, format!("{}{path}", self.record.api)).headers(headers);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.deliver(request).await
    }

    async fn deliver(&self, mut request: RequestBuilder) -> Result<Response> {
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|error| self.silent(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let text = read(response, REFUSAL_BYTES_MAX).await.unwrap_or_default();
        Err(Refusal { retry_after, ..Refusal::parse(status, &String::from_utf8_lossy(&text)) }.into())
    }

    async fn document<T: DeserializeOwned>(&self, response: Response) -> Result<T> {
        let bytes = read(response, DOCUMENT_BYTES_MAX).await.map_err(|reason| self.silent(&reason))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::new(Exit::Failure, format!("the node sent what this version does not understand: {error}"))
                .hint(format!("the node runs version {}; start it again with this one", self.record.version))
                .into()
        })
    }

    fn silent(&self, reason: &dyn fmt::Display) -> anyhow::Error {
        Failure::new(Exit::Unavailable, format!("the node at {} does not answer: {reason}", self.record.api))
            .hint("bombus doctor says what is wrong")
            .into()
    }
}

/// Reads a body of at most so many bytes; what is more is cut off for a refusal and an error for a document.
async fn read(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| error.to_string())? {
        if bytes.len() + piece.len() > bytes_max {
            return Err(format!("its answer has more than {bytes_max} bytes"));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Reads how long to wait; a node writes seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// Makes a text fit for a query or a segment of a path.
pub(crate) fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    text.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// What the node says where it does not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The status of the answer.
    pub(crate) status: u16,
    /// The code for programs, where there is one.
    pub(crate) code: Option<String>,
    /// The text for people.
    pub(crate) message: String,
    /// When it may be worth trying again, where the node says so.
    pub(crate) retry_after: Option<Duration>,
}

/// The shapes of errors: OpenAI's, Ollama's, and that of the native routes.
#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorBody {
    OpenAi { error: OpenAiError },
    Ollama { error: String },
    Native { detail: String, code: Option<String> },
}

#[derive(Deserialize)]
struct OpenAiError {
    message: String,
    #[serde(default)]
    code: Option<Value>,
}

impl Refusal {
    /// Reads the body of a refusal in any of the node's dialects.
    pub(crate) fn parse(status: StatusCode, text: &str) -> Self {
        let (message, code) = match Self::message(text) {
            Some(read) => read,
            None => (format!("the node answered {status}: {}", text.chars().take(200).collect::<String>()), None),
        };
        Self { status: status.as_u16(), code, message, retry_after: None }
    }

    /// Reads the text and the code of an error; `None` where it is none.
    pub(crate) fn message(text: &str) -> Option<(String, Option<String>)> {
        Some(match serde_json::from_str(text).ok()? {
            ErrorBody::OpenAi { error } => {
                (error.message, error.code.and_then(|code| code.as_str().map(str::to_owned)))
            }
            ErrorBody::Ollama { error } => (error, None),
            ErrorBody::Native { detail, code } => (detail, code),
        })
    }

    /// Returns the model that is missing, where that is why.
    pub(crate) fn missing_model(&self) -> Option<&str> {
        let missing = self.code.as_deref() == Some("model_not_found") || self.message.contains("not found");
        if self.status != 404 || !missing {
            return None;
        }
        // Ollama's own messages have either kind of quotation marks.
        ['\'', '"'].into_iter().find_map(|mark| {
            let (_, named) = self.message.split_once(&format!("model {mark}"))?;
            Some(named.split_once(mark)?.0)
        })
    }

    /// Returns whether the conversation was too long for the model.
    pub(crate) fn is_context_exceeded(&self) -> bool {
        self.code.as_deref() == Some("context_length_exceeded")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, text: &str) -> Refusal {
        Refusal::parse(StatusCode::from_u16(status).unwrap(), text)
    }

    #[test]
    fn refusals_are_read_in_every_dialect() {
        let openai = refusal(
            404,
            r#"{"error":{"message":"model 'm' not found; GET /v1/models","type":"x","code":"model_not_found"}}"#,
        );
        assert_eq!(openai.missing_model(), Some("m"));
        let ollama = refusal(404, r#"{"error":"model 'm:8b' not found"}"#);
        assert_eq!((ollama.message.as_str(), ollama.missing_model()), ("model 'm:8b' not found", Some("m:8b")));
        let copied = refusal(404, r#"{"error":"model \"m:8b\" not found"}"#);
        assert_eq!(copied.missing_model(), Some("m:8b"));
        let native = refusal(503, r#"{"type":"about:blank","detail":"no","code":"shutting_down","status":503}"#);
        assert_eq!((native.message.as_str(), native.code.as_deref()), ("no", Some("shutting_down")));
        assert!(refusal(502, "<html>").message.contains("502"));
    }

    #[test]
    fn names_survive_a_query() {
        assert_eq!(encoded("hf.co/a b:Q4&x=1"), "hf.co%2Fa%20b%3AQ4%26x%3D1");
    }
}
