use std::sync::Arc;
use std::time::Duration;

use bombus_core::model::ModelName;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use reqwest::header::HeaderValue;
use reqwest::{Body, Method};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::wire::{
    Answer, ChatRequest, CreateRequest, EmbedRequest, EmbedResponse, GenerateRequest, ListedModel, LoadedModel,
    ProgressStep, PullRequest, ShowResponse,
};
use super::{OllamaClientBuilder, OllamaError};
use crate::ByteStream;
use crate::upstream::{UpstreamClient, UpstreamError, unreadable};

/// The pieces of an answer. Dropping the stream closes the connection, and with that ends the run.
pub type AnswerStream = BoxStream<'static, Result<Answer, OllamaError>>;

/// The steps of a long work. Ends after the step `success`, or with an error.
pub type StepStream = BoxStream<'static, Result<ProgressStep, OllamaError>>;

/// Largest accepted list of models.
const LIST_BYTES_MAX: usize = 16 << 20;
/// Largest accepted description of a model; those of large ones name every tensor.
const SHOW_BYTES_MAX: usize = 32 << 20;
/// Largest accepted whole answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Largest accepted vector of an embedding, as text.
const VECTOR_BYTES_MAX: usize = 512 << 10;
/// Largest accepted answer to a request for embeddings.
const VECTORS_BYTES_MAX: usize = 512 << 20;
/// Longest wait for a step of a long work: a server is silent while it hashes a file of many gigabytes.
const STEP_TIME_MAX: Duration = Duration::from_mins(15);
/// Longest wait for the end of a stream after its last piece, so that the connection can serve again.
const END_TIME_MAX: Duration = Duration::from_millis(100);

/// A client of one Ollama server. Cheap to clone.
///
/// Requests that could not be sent, or that the server failed at with a status of 500 or more, are sent again after
/// `delay * 2^attempt`; never where a part of the answer has come. Every request is logged at `debug`, every error at `error`.
#[derive(Clone)]
pub struct OllamaClient {
    pub(super) http: Arc<UpstreamClient>,
    /// As `http`, without a limit that the size of a file could exceed.
    pub(super) uploads: Arc<UpstreamClient>,
    pub(super) url: String,
    pub(super) retries: u32,
    pub(super) retry_delay: Duration,
}

impl OllamaClient {
    /// Begins a client, with every setting at its default.
    #[must_use]
    pub fn builder() -> OllamaClientBuilder {
        OllamaClientBuilder::default()
    }

    /// Returns the server's address, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the longest wait for an answer to begin, and for each piece of it.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.http.timeout()
    }

    /// Returns how often a request is sent again, and the wait before the first time.
    #[must_use]
    pub fn retry(&self) -> (u32, Duration) {
        (self.retries, self.retry_delay)
    }

    /// Returns the same client, which sends everything once.
    #[must_use]
    pub fn without_retries(&self) -> Self {
        Self { retries: 0, ..self.clone() }
    }

    /// Completes a prompt: `POST /api/generate`.
    ///
    /// # Errors
    ///
    /// [`OllamaError::ModelNotFound`]; any other [`OllamaError`].
    pub async fn generate(&self, request: &GenerateRequest) -> Result<Answer, OllamaError> {
        let answer =
            self.post("api/generate", &request.model, &Streamed { request, stream: false }, ANSWER_BYTES_MAX).await;
        answer.map_err(|error| error.about_model(&request.model))
    }

    /// As [`OllamaClient::generate`], piece by piece.
    ///
    /// # Errors
    ///
    /// As [`OllamaClient::generate`], here or in the stream.
    pub async fn generate_stream(&self, request: &GenerateRequest) -> Result<AnswerStream, OllamaError> {
        self.stream("api/generate", request, &request.model, self.timeout(), |answer: &Answer| answer.done).await
    }

    /// Continues a conversation: `POST /api/chat`.
    ///
    /// # Errors
    ///
    /// [`OllamaError::ModelNotFound`]; any other [`OllamaError`].
    pub async fn chat(&self, request: &ChatRequest) -> Result<Answer, OllamaError> {
        let answer =
            self.post("api/chat", &request.model, &Streamed { request, stream: false }, ANSWER_BYTES_MAX).await;
        answer.map_err(|error| error.about_model(&request.model))
    }

    /// As [`OllamaClient::chat`], piece by piece.
    ///
    /// # Errors
    ///
    /// As [`OllamaClient::chat`], here or in the stream.
    pub async fn chat_stream(&self, request: &ChatRequest) -> Result<AnswerStream, OllamaError> {
        self.stream("api/chat", request, &request.model, self.timeout(), |answer: &Answer| answer.done).await
    }

    /// Makes embedding vectors: `POST /api/embed`.
    ///
    /// # Errors
    ///
    /// [`OllamaError::ModelNotFound`]; any other [`OllamaError`].
    pub async fn embed(&self, request: &EmbedRequest) -> Result<EmbedResponse, OllamaError> {
        let bytes_max = VECTOR_BYTES_MAX.saturating_mul(request.input.len() + 1).min(VECTORS_BYTES_MAX);
        let answer = self.post("api/embed", &request.model, request, bytes_max).await;
        answer.map_err(|error| error.about_model(&request.model))
    }

    /// Lists the models: `GET /api/tags`.
    ///
    /// # Errors
    ///
    /// Any [`OllamaError`] but `ModelNotFound`.
    pub async fn list_models(&self) -> Result<Vec<ListedModel>, OllamaError> {
        self.get("api/tags", LIST_BYTES_MAX).await.map(|list: Models<ListedModel>| list.models.unwrap_or_default())
    }

    /// Lists the models in memory: `GET /api/ps`.
    ///
    /// # Errors
    ///
    /// Any [`OllamaError`] but `ModelNotFound`.
    pub async fn ps(&self) -> Result<Vec<LoadedModel>, OllamaError> {
        self.get("api/ps", LIST_BYTES_MAX).await.map(|list: Models<LoadedModel>| list.models.unwrap_or_default())
    }

    /// Describes a model: `POST /api/show`.
    ///
    /// # Errors
    ///
    /// [`OllamaError::ModelNotFound`]; any other [`OllamaError`].
    pub async fn show(&self, model: &str) -> Result<ShowResponse, OllamaError> {
        let answer = self.post("api/show", model, &json!({ "model": model }), SHOW_BYTES_MAX).await;
        answer.map_err(|error| error.about_model(model))
    }

    /// Tells the server's version: `GET /api/version`.
    ///
    /// # Errors
    ///
    /// Any [`OllamaError`] but `ModelNotFound`.
    pub async fn version(&self) -> Result<String, OllamaError> {
        #[derive(Deserialize)]
        struct Version {
            version: String,
        }
        self.get("api/version", LIST_BYTES_MAX).await.map(|answer: Version| answer.version)
    }

    /// Returns whether the server answers `GET /` with a status of success. Tries once.
    pub async fn is_available(&self) -> bool {
        self.check().await.is_ok()
    }

    /// As [`OllamaClient::is_available`], with the reason where it does not.
    ///
    /// # Errors
    ///
    /// Any [`OllamaError`] but `ModelNotFound`.
    pub async fn check(&self) -> Result<(), OllamaError> {
        self.http.send(Method::GET, "", None, None::<&()>).await?;
        Ok(())
    }

    /// Returns whether the server has a model; `m` and `m:latest` are one.
    ///
    /// # Errors
    ///
    /// As [`OllamaClient::list_models`].
    pub async fn has_model(&self, model: &str) -> Result<bool, OllamaError> {
        let wanted = ModelName::parse(model).ok();
        let is_it = |listed: &ListedModel| {
            listed.name == model || (wanted.is_some() && ModelName::parse(&listed.name).ok() == wanted)
        };
        Ok(self.list_models().await?.iter().any(is_it))
    }

    /// Fetches a model: `POST /api/pull`. Dropping the stream stops the work; what was fetched is kept for the next try.
    ///
    /// # Errors
    ///
    /// [`OllamaError::ModelNotFound`] where its registry has none; any other [`OllamaError`]; here or in the stream.
    pub async fn pull(&self, request: &PullRequest) -> Result<StepStream, OllamaError> {
        self.steps("api/pull", request, &request.model).await
    }

    /// Makes a model of another one or of blobs: `POST /api/create`.
    ///
    /// # Errors
    ///
    /// Any [`OllamaError`], here or in the stream.
    pub async fn create(&self, request: &CreateRequest) -> Result<StepStream, OllamaError> {
        self.steps("api/create", request, request.from.as_deref().unwrap_or(&request.model)).await
    }

    /// Removes a model: `DELETE /api/delete`. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// Any [`OllamaError`] but `ModelNotFound`.
    pub async fn delete(&self, model: &str) -> Result<bool, OllamaError> {
        self.change(Method::DELETE, "api/delete", Some(&json!({ "model": model })), model).await
    }

    /// Gives a model a second name: `POST /api/copy`. Returns whether there was such a model.
    ///
    /// # Errors
    ///
    /// Any [`OllamaError`] but `ModelNotFound`.
    pub async fn copy(&self, from: &str, to: &str) -> Result<bool, OllamaError> {
        self.change(Method::POST, "api/copy", Some(&json!({ "source": from, "destination": to })), from).await
    }

    /// Returns whether the server has the file with this SHA-256 in hex: `HEAD /api/blobs/sha256:...`.
    ///
    /// # Errors
    ///
    /// Any [`OllamaError`] but `ModelNotFound`.
    pub async fn has_blob(&self, sha256: &str) -> Result<bool, OllamaError> {
        let path = format!("api/blobs/sha256:{sha256}");
        let answer = self.retrying(|| self.http.send(Method::HEAD, &path, None, None::<&()>)).await;
        match answer {
            Ok(_) => Ok(true),
            Err(OllamaError::Refused { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives the server a file with this SHA-256 in hex: `POST /api/blobs/sha256:...`. It is sent once, since its bytes cannot be had again.
    ///
    /// # Errors
    ///
    /// [`OllamaError::Refused`] with status 400 where the file has another SHA-256; [`OllamaError::TimedOut`] where it is not taken in, or
    /// not handed over, for longer than the client's timeout; any other [`OllamaError`].
    pub async fn put_blob(&self, sha256: &str, bytes: ByteStream) -> Result<(), OllamaError> {
        let path = format!("api/blobs/sha256:{sha256}");
        let (moved, mut moves) = watch::channel(());
        let body = Body::wrap_stream(bytes.inspect(move |_| _ = moved.send(())));
        let content_type = HeaderValue::from_static("application/octet-stream");
        let mut sending = std::pin::pin!(self.uploads.send_bytes(Method::POST, &path, Some((body, content_type))));
        loop {
            let is_moving = async {
                if moves.changed().await.is_err() {
                    // All is handed over; what remains is the server's answer.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                answer = &mut sending => return Ok(answer.map(|_| ())?),
                moved = timeout(self.timeout(), is_moving) => {
                    moved.map_err(|_| OllamaError::TimedOut { after: self.timeout() })?;
                }
            }
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, bytes_max: usize) -> Result<T, OllamaError> {
        self.retrying(|| self.http.get_json(path, bytes_max)).await
    }

    async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        model: &str,
        body: &B,
        bytes_max: usize,
    ) -> Result<T, OllamaError> {
        self.retrying(|| self.http.post_json(path, Some(model), body, bytes_max)).await
    }

    async fn change(&self, method: Method, path: &str, body: Option<&Value>, model: &str) -> Result<bool, OllamaError> {
        let changed = self.retrying(|| self.http.send(method.clone(), path, Some(model), body)).await;
        match changed.map_err(|error| error.about_model(model)) {
            Ok(_) => Ok(true),
            Err(OllamaError::ModelNotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn steps<B: Serialize + Sync>(&self, path: &str, body: &B, model: &str) -> Result<StepStream, OllamaError> {
        let wait = self.timeout().max(STEP_TIME_MAX);
        self.stream(path, body, model, wait, |step: &ProgressStep| step.status == "success").await
    }

    /// Sends a request whose answer is a stream of lines, of which the last one is known by `is_last`.
    async fn stream<B: Serialize + Sync, T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
        request: &B,
        model: &str,
        idle: Duration,
        is_last: fn(&T) -> bool,
    ) -> Result<BoxStream<'static, Result<T, OllamaError>>, OllamaError> {
        let body = Streamed { request, stream: true };
        let begun = Instant::now();
        let answer = self.retrying(|| self.http.send(Method::POST, path, Some(model), Some(&body))).await;
        let response = answer.map_err(|error| error.about_model(model))?;
        let mut lines = Box::pin(UpstreamClient::lines(response, idle));
        let (http, path, model) = (Arc::clone(&self.http), path.to_owned(), model.to_owned());
        let asked = model.clone();
        let pieces = async_stream::try_stream! {
            while let Some(line) = lines.next().await {
                let line = line?;
                if line.trim().is_empty() {
                    continue;
                }
                let piece = read_line::<T>(&line)?;
                let last = is_last(&piece);
                yield piece;
                if last {
                    let _ = timeout(END_TIME_MAX, lines.next()).await;
                    return;
                }
            }
            Err::<(), _>(UpstreamError::Broken { reason: "the stream ended before its last piece".to_owned() })?;
        };
        let client = Arc::clone(&http);
        let failed = move |error| OllamaError::from(client.without_secrets(error)).about_model(&model);
        let log = move |error: &UpstreamError| {
            let (backend, kind, status) = (http.name(), error.kind(), error.status());
            let (url, ms) = (http.url(), begun.elapsed().as_secs_f64() * 1000.0);
            tracing::error!(
                backend.name = backend,
                upstream.url = url,
                path,
                model.name = asked,
                status,
                ms,
                error.kind = kind,
                "upstream stream failed"
            );
        };
        Ok(pieces.inspect_err(log).map_err(failed).boxed())
    }

    /// Sends a request again, after ever longer waits, while it fails for what passes.
    async fn retrying<T, F: Future<Output = Result<T, UpstreamError>>>(
        &self,
        request: impl Fn() -> F,
    ) -> Result<T, OllamaError> {
        let mut attempt = 0;
        loop {
            let (is_passing, error) = match request().await {
                Ok(answer) => return Ok(answer),
                Err(error) => (error.is_passing(), OllamaError::from(error)),
            };
            if attempt >= self.retries || !is_passing || error.is_final() {
                return Err(error);
            }
            let wait = self.retry_delay.saturating_mul(2_u32.saturating_pow(attempt));
            attempt += 1;
            let (backend, wait_ms) = (self.http.name(), wait.as_millis());
            tracing::debug!(backend.name = backend, attempt, wait_ms, "upstream request is sent again");
            sleep(wait).await;
        }
    }
}

/// A request with the word whether its answer comes in pieces.
#[derive(Serialize)]
struct Streamed<'a, B> {
    #[serde(flatten)]
    request: &'a B,
    stream: bool,
}

#[derive(Deserialize)]
struct Models<T> {
    models: Option<Vec<T>>,
}

/// Reads a line of a stream, which may be an error.
fn read_line<T: DeserializeOwned>(line: &str) -> Result<T, UpstreamError> {
    #[derive(Deserialize)]
    struct Failure {
        error: Option<Value>,
    }
    let garbage = |error: serde_json::Error| UpstreamError::Garbage {
        reason: format!("it sends a line that is not the JSON expected: {}", unreadable(&error)),
    };
    let failure: Failure = serde_json::from_str(line).map_err(garbage)?;
    match failure.error.and_then(|error| UpstreamError::of_event(&json!({ "error": error }))) {
        Some(error) => Err(error),
        None => serde_json::from_str(line).map_err(garbage),
    }
}
