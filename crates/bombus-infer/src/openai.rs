//! A backend for every server that speaks `OpenAI`'s dialect: LiteLLM, vLLM, LM Studio, llama-server, clouds.
//!
//! There is one core; what servers do differently is in [`Provider`] and nowhere else. Facts are from `OpenAI`'s API reference, vLLM's
//! documentation of its server, and llama.cpp's `tools/server/README.md`.

mod answer;
mod chunk;
mod embeddings;
mod listing;
mod provider;
mod request;
mod resume;
mod shorten;
mod tool_calls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::chat::{ChatEvent, ChatRequest, EmbedRequest, EmbedResponse, FinishReason, Prompt, Resume};
use bombus_core::model::{ModelDetails, ModelInfo, ModelName, RunningModel};
use futures::{StreamExt, stream};
use reqwest::{Method, Url};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};

use crate::resumed::unsupported;
use crate::upstream::{KeySource, UpstreamClient, UpstreamError, UpstreamOptions, base_url, headers, is_beyond};
use crate::{Backend, BackendError, ChatStream, Health};
use listing::{LISTING_BYTES_MAX, Listed, Listing, Properties};

pub use provider::Provider;

/// Where prompts that are no conversations go; not every server has it.
const COMPLETIONS_PATH: &str = "completions";
/// Longest wait for a sign of life, and for what is in memory.
const HEALTH_TIME_MAX: Duration = Duration::from_secs(5);
/// Largest answer about a server's properties; its chat template is the most of it.
const PROPERTIES_BYTES_MAX: usize = 4 << 20;

/// Settings of an [`OpenAiBackend`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenAiConfig {
    /// Base URL, with or without `/v1` at its end, for example `http://127.0.0.1:8080/v1`.
    pub url: String,
    /// The environment variable that holds the API key.
    pub api_key_env: Option<String>,
    /// The file that holds the API key and nothing else.
    pub api_key_file: Option<PathBuf>,
    /// Sent with every request.
    pub headers: BTreeMap<String, String>,
    /// Ids of the models that are used, as the server writes them. Empty: all that it lists. Where they are given the server need not have
    /// a list; it is asked for one all the same, to see that it answers and takes the key.
    pub models: Vec<String>,
    /// Whose differences apply. `None`: told by the address and by what the server lists.
    pub provider: Option<Provider>,
    /// Longest wait in milliseconds for the status of an answer, and for each piece after it.
    pub timeout_ms: u64,
}

impl Default for OpenAiConfig {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8080/v1".to_owned(),
            api_key_env: None,
            api_key_file: None,
            headers: BTreeMap::new(),
            models: Vec::new(),
            provider: None,
            timeout_ms: 120_000,
        }
    }
}

/// Says why a backend cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backend '{backend}': {reason}")]
pub struct OpenAiError {
    /// The backend's name.
    pub backend: String,
    /// Which setting is at fault, and what to do.
    pub reason: String,
}

/// A server of `OpenAI`'s dialect.
///
/// What it cannot be asked for in that dialect: [`ChatRequest::earlier_tokens`] and [`ChatRequest::template`] are refused;
/// `context_tokens`, `keep_alive`, `return_tokens` and the `shift` of `overflow` are left to the server and have no effect. Of a conversation that
/// the server refuses for its length the oldest turns are left out, where that is allowed.
pub struct OpenAiBackend {
    client: Arc<UpstreamClient>,
    models_given: bool,
    provider_given: Option<Provider>,
    is_cloud: bool,
    known: RwLock<Known>,
}

/// What the server last said about itself.
#[derive(Clone)]
struct Known {
    provider: Provider,
    models: Arc<[Listed]>,
}

/// How the server refuses a request.
struct Refusal {
    error: BackendError,
    /// Where it is for the length of the prompt: its tokens, 0 where they are not told, and those of the context.
    too_long: Option<(u32, u32)>,
}

impl OpenAiBackend {
    /// Reads the key and makes a client. The server is not asked for anything yet.
    ///
    /// # Errors
    ///
    /// Where the address, a header or a model id is none, or the key cannot be had.
    pub fn new(name: &str, config: OpenAiConfig) -> Result<Self, OpenAiError> {
        let refuse = |reason: String| OpenAiError { backend: name.to_owned(), reason };
        let wrong = |error: UpstreamError| refuse(error.to_string());
        if config.timeout_ms == 0 {
            return Err(refuse("`timeout_ms` has to be at least 1".to_owned()));
        }
        let base = api_base(base_url(&config.url).map_err(wrong)?);
        let key = KeySource { variable: config.api_key_env.as_deref(), file: config.api_key_file.as_deref() };
        let headers = headers(&config.headers, key).map_err(wrong)?;
        let provider = config.provider.unwrap_or_else(|| Provider::of_address(&base));
        let models = config.models.into_iter().map(|id| {
            let named = Listed::named(&id);
            let mut listed =
                named.ok_or_else(|| refuse(format!("`models` has {id:?}, which is not the id of a model")))?;
            listed.info.continues = provider.continues() && listed.generates();
            Ok(listed)
        });
        let models = models.collect::<Result<Arc<[_]>, _>>()?;
        let timeout = Duration::from_millis(config.timeout_ms);
        let is_cloud = is_beyond(&base);
        let client = UpstreamClient::new(UpstreamOptions { name: name.to_owned(), base, headers, timeout });
        Ok(Self {
            client: Arc::new(client.map_err(wrong)?),
            models_given: !models.is_empty(),
            provider_given: config.provider,
            is_cloud,
            known: RwLock::new(Known { provider, models }),
        })
    }

    fn known(&self) -> Known {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks the server what it has, unless the configuration says it.
    async fn list(&self) -> Result<Known, UpstreamError> {
        if self.models_given {
            return Ok(self.known());
        }
        let listing: Listing = self.client.get_json("models", LISTING_BYTES_MAX).await?;
        let provider = self.provider_given.or_else(|| listing.provider()).unwrap_or_else(|| self.known().provider);
        let mut models = listing.models(self.client.name(), provider);
        if provider == Provider::LlamaCpp
            && let Ok(properties) = self.properties().await
        {
            models.iter_mut().for_each(|listed| properties.describe(&mut listed.info));
        }
        let known = Known { provider, models: models.into() };
        known.clone_into(&mut self.known.write().unwrap_or_else(PoisonError::into_inner));
        Ok(known)
    }

    /// Asks whether the server answers and takes the key.
    async fn is_there(&self) -> Result<(), UpstreamError> {
        match self.client.probe("models").await {
            // A server that has no list, or has none for this key, can still run what the configuration names.
            Err(UpstreamError::Status { status, .. }) if self.models_given && says_nothing_of_answers(status) => Ok(()),
            answer => answer,
        }
    }

    /// Asks llama-server about itself; that stands beside the dialect's own paths.
    async fn properties(&self) -> Result<Properties, UpstreamError> {
        self.client.get_json("../props", PROPERTIES_BYTES_MAX).await
    }

    /// Finds out how the server writes a model's name, and whose differences apply.
    async fn resolve(&self, model: &str) -> Result<(String, Provider), BackendError> {
        let not_found = || BackendError::ModelNotFound { model: model.to_owned() };
        let name = ModelName::parse(model).map_err(|_| not_found())?;
        let find = |known: &Known| {
            let listed = known.models.iter().find(|listed| listed.info.name == name);
            listed.map(|listed| (listed.id.clone(), known.provider))
        };
        if let Some(found) = find(&self.known()) {
            return Ok(found);
        }
        let known = self.list().await.map_err(|error| self.failed(error, ""))?;
        find(&known).ok_or_else(not_found)
    }

    async fn answer(
        &self,
        path: &str,
        body: &Map<String, Value>,
        model: String,
        begun: Instant,
    ) -> Result<ChatStream, Refusal> {
        let response = self.client.send(Method::POST, path, Some(&model), Some(body)).await;
        let response = response.map_err(|error| {
            if path == COMPLETIONS_PATH && error.is_missing_path() {
                let message = format!("backend '{}' takes conversations alone: {error}", self.client.name());
                return Refusal { error: BackendError::Unsupported { param: "prompt", message }, too_long: None };
            }
            self.refused(error, body, &model)
        })?;
        Ok(Box::pin(answer::read(Arc::clone(&self.client), model, response, begun)))
    }

    /// Says a refusal of a request. Where the server says that the prompt is too long, but not by how much, its words are told, and for whoever
    /// shortens it what its list says counts.
    fn refused(&self, error: UpstreamError, body: &Map<String, Value>, model: &str) -> Refusal {
        let context_tokens = || {
            let known = self.known();
            let listed = known
                .models
                .iter()
                .find(|listed| body.get("model").and_then(Value::as_str) == Some(listed.id.as_str()));
            listed.and_then(|listed| listed.info.context_tokens)
        };
        let context_tokens = if error.is_prompt_too_long() { context_tokens() } else { None };
        let error = self.failed(error, model);
        let too_long = match (&error, context_tokens) {
            (BackendError::ContextExceeded { prompt_tokens, context_tokens }, _) => {
                Some((*prompt_tokens, *context_tokens))
            }
            (BackendError::InvalidRequest { .. }, Some(context_tokens)) => Some((0, context_tokens)),
            _ => None,
        };
        Refusal { error, too_long }
    }

    /// Answers what of a conversation fits into the context: without its oldest turns. Where nothing does, how the whole was refused is told.
    async fn answer_shortened(
        &self,
        request: &ChatRequest,
        mut body: Map<String, Value>,
        provider: Provider,
        (refused, (prompt_tokens, context_tokens)): (BackendError, (u32, u32)),
        begun: Instant,
    ) -> Result<ChatStream, BackendError> {
        for (messages, turns) in shorten::shorter(request, prompt_tokens, context_tokens) {
            body.insert("messages".to_owned(), request::messages(&turns, provider));
            match self.answer("chat/completions", &body, request.model.clone(), begun).await {
                Err(Refusal { too_long: Some(_), .. }) => {}
                answer => {
                    let answer = answer.map_err(|refusal| refusal.error)?;
                    tracing::info!(
                        backend.name = self.client.name(),
                        model.name = request.model,
                        context_tokens,
                        truncated.messages = messages,
                        "the conversation is longer than the context; its oldest turns were left out"
                    );
                    // How many tokens are left, the server tells at the end.
                    let truncated = ChatEvent::Truncated { messages, prompt_tokens: 0 };
                    return Ok(stream::iter([Ok(truncated)]).chain(answer).boxed());
                }
            }
        }
        Err(refused)
    }

    /// Goes on with an answer that another run began.
    async fn go_on(
        &self,
        request: ChatRequest,
        resume: &Resume,
        (id, provider): (&str, Provider),
        begun: Instant,
    ) -> Result<ChatStream, BackendError> {
        if !resume::is_possible(&request, provider) {
            return Err(unsupported("this server cannot bring its end into the form that was asked for"));
        }
        let model = request.model.clone();
        let (resumed, asked) = resume::ask(&self.client, request, resume, id, provider).await?;
        if resumed.is_at_end() {
            return Ok(resumed.end(FinishReason::Stop));
        }
        let answer = self.answer(asked.path, &asked.body, model, begun).await;
        // The servers that go on with answers tell both numbers of what is too long.
        resumed.take(answer.map_err(|refusal| refusal.error))
    }

    fn failed(&self, error: UpstreamError, model: &str) -> BackendError {
        error.into_backend(self.client.name(), model, false)
    }
}

#[async_trait]
impl Backend for OpenAiBackend {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        let known = if self.models_given { self.is_there().await.map(|()| self.known()) } else { self.list().await };
        let known = known.map_err(|error| self.failed(error, ""))?;
        Ok(known.models.iter().map(|listed| listed.info.clone()).collect())
    }

    fn given(&self) -> Vec<ModelName> {
        if !self.models_given {
            return Vec::new();
        }
        self.known().models.iter().map(|listed| listed.info.name.clone()).collect()
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, BackendError> {
        let begun = Instant::now();
        let (id, provider) = self.resolve(&request.model).await?;
        if let Some(resume) = request.resume.as_ref().filter(|resume| !resume.is_new()) {
            return self.go_on(request.clone(), resume, (&id, provider), begun).await;
        }
        let body = request::body(&request, &id, provider)?;
        let path = if matches!(request.prompt, Prompt::Chat(_)) { "chat/completions" } else { COMPLETIONS_PATH };
        match self.answer(path, &body, request.model.clone(), begun).await {
            Err(Refusal { error, too_long: Some(tokens) }) if request.overflow.truncate => {
                self.answer_shortened(&request, body, provider, (error, tokens), begun).await
            }
            answer => answer.map_err(|refusal| refusal.error),
        }
    }

    fn can_resume(&self, request: &ChatRequest) -> bool {
        resume::is_possible(request, self.known().provider)
    }

    fn is_cloud(&self) -> bool {
        self.is_cloud
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        let (id, provider) = self.resolve(&request.model).await?;
        embeddings::embed(&self.client, &request, &id, provider).await
    }

    async fn health(&self) -> Health {
        let asked = timeout(HEALTH_TIME_MAX, self.is_there()).await;
        match asked.unwrap_or(Err(UpstreamError::Timeout { after: HEALTH_TIME_MAX })) {
            Ok(()) => Health::Ready,
            Err(error) => Health::Unavailable(self.failed(error, "").to_string()),
        }
    }

    async fn running(&self) -> Result<Vec<RunningModel>, BackendError> {
        // What clouds and servers with given models have in memory is nowhere to be read.
        if self.models_given || self.is_cloud {
            return Ok(Vec::new());
        }
        let late = BackendError::TimedOut { after: HEALTH_TIME_MAX };
        let models = timeout(HEALTH_TIME_MAX, self.models()).await.unwrap_or(Err(late))?;
        let loaded = models.into_iter().filter(|info| info.warm).map(|info| RunningModel {
            memory_bytes: info.size_bytes.unwrap_or(0),
            gpu_bytes: 0,
            context_tokens: info.context_tokens.unwrap_or(0),
            // It stays as long as its server runs.
            expires_unix_s: None,
            info,
        });
        Ok(loaded.collect())
    }

    async fn details(&self, name: &ModelName) -> Result<Option<ModelDetails>, BackendError> {
        if self.model(name).await?.is_none() {
            return Ok(None);
        }
        let properties = match self.known().provider {
            Provider::LlamaCpp => self.properties().await.ok(),
            _ => None,
        };
        Ok(Some(properties.map(Properties::into_details).unwrap_or_default()))
    }
}

/// Returns whether a server that refuses its list with this status may still take requests: all but those for a wrong key, an unpaid
/// account, another address, or a fault of the server.
fn says_nothing_of_answers(status: u16) -> bool {
    matches!(status, 400 | 403..=499 | 501)
}

/// Adds `v1/` to an address unless it names a version already, as `/v1`, `/api/paas/v4` and `/v1beta/openai` do.
fn api_base(mut base: Url) -> Url {
    let is_version =
        |part: &str| part.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if !base.path().split('/').any(is_version) {
        let path = format!("{}v1/", base.path());
        base.set_path(&path);
    }
    base
}

#[cfg(test)]
mod tests;
