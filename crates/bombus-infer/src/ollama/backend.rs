use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::chat::{
    ChatEvent, ChatRequest, EmbedRequest, EmbedResponse, FinishReason, Message, Prompt, Resume, Think,
};
use bombus_core::model::{ModelCapability, ModelDetails, ModelInfo, ModelName, RunningModel};
use futures::StreamExt;
use tokio::time::timeout;

use super::answer::{Asked, events, too_long};
use super::catalogue::Catalogue;
use super::context::{Known, Need};
use super::request::{self, Call};
use super::show::{self, Facts};
use super::wire::{self, Answer};
use super::{AnswerStream, ChatTemplateRenderer, ModelTemplate, OllamaClient, OllamaConfig, OllamaError};
use crate::models::Peers;
use crate::resumed::{Resumed, goes_on_by_text, has_pictures, think_filter, unsupported};
use crate::{Backend, BackendError, ChatStream, Health, LoadRequest, ModelLibrary, shorten};

/// Longest wait for a server to say that it is there.
const HEALTH_TIME_MAX: Duration = Duration::from_secs(5);

/// Runs models on an Ollama server. Each server is a backend of its own. Clones share what is known about it.
#[derive(Clone)]
pub struct OllamaBackend {
    pub(super) name: String,
    pub(super) client: OllamaClient,
    pub(super) catalogue: Arc<Catalogue>,
    renderer: Option<Arc<dyn ChatTemplateRenderer>>,
    /// The other nodes, from which models can be taken.
    pub(super) peers: Peers,
}

/// An answer that has begun: its first piece, and the others.
type Begun = (Answer, AnswerStream);

impl OllamaBackend {
    /// Makes a backend with the name that logs and errors show. No connection is made yet.
    ///
    /// # Errors
    ///
    /// [`OllamaError::Config`].
    pub fn new(name: &str, config: OllamaConfig) -> Result<Self, OllamaError> {
        let mut builder = OllamaClient::builder()
            .name(name)
            .url(config.url)
            .timeout(Duration::from_millis(config.timeout_ms))
            .retry(config.retries, Duration::from_millis(config.retry_delay_ms));
        for (header, value) in config.headers {
            builder = builder.header(header, value);
        }
        if let Some(variable) = config.api_key_env {
            builder = builder.api_key_env(variable);
        }
        if let Some(path) = config.api_key_file {
            builder = builder.api_key_file(path);
        }
        Ok(Self::of(name, builder.build()?))
    }

    /// Makes a backend of a client.
    #[must_use]
    pub fn of(name: &str, client: OllamaClient) -> Self {
        let catalogue = Arc::new(Catalogue::new(&client));
        Self { name: name.to_owned(), client, catalogue, renderer: None, peers: Peers::default() }
    }

    /// Sets what renders chat templates. With it, answers that broke off elsewhere can go on here.
    #[must_use]
    pub fn with_renderer(mut self, renderer: Arc<dyn ChatTemplateRenderer>) -> Self {
        self.renderer = Some(renderer);
        self
    }

    /// Returns the client, for what only Ollama has.
    #[must_use]
    pub fn client(&self) -> &OllamaClient {
        &self.client
    }

    /// Says an error that came before the answer to a request for `model`.
    pub(super) fn fail(&self, error: OllamaError, model: &str) -> BackendError {
        error.into_backend(&self.name, model, false)
    }

    async fn begin(&self, call: &Call) -> Result<Begun, OllamaError> {
        let mut pieces = match call {
            Call::Chat(chat) => self.client.chat_stream(chat).await?,
            Call::Generate(generate) => self.client.generate_stream(generate).await?,
        };
        let first = pieces.next().await.transpose()?;
        let first = first.ok_or_else(|| OllamaError::Broken { reason: "it answered nothing".to_owned() })?;
        Ok((first, pieces))
    }

    /// Begins an answer with a context that holds the prompt, and returns its size as it was asked for. `None` in place of the answer where
    /// the prompt is longer than any context.
    async fn begin_in_context(
        &self,
        name: &ModelName,
        call: &mut Call,
        known: &Known,
        need: Need,
    ) -> Result<(Option<u32>, Option<Begun>), OllamaError> {
        let mut num_ctx = known.num_ctx(need);
        loop {
            call.run().options.num_ctx = num_ctx;
            // Whatever becomes of the request, the model is loaded so.
            self.catalogue.sent(name, num_ctx, known);
            match self.begin(call).await {
                Err(error) if error.is_prompt_too_long() => match known.larger(num_ctx, need) {
                    Some(larger) => {
                        tracing::debug!(backend.name = self.name, num_ctx = larger, "upstream needs a larger context");
                        num_ctx = Some(larger);
                    }
                    None => return Ok((num_ctx, None)),
                },
                begun => return begun.map(|begun| (num_ctx, Some(begun))),
            }
        }
    }

    /// Begins an answer to what of a prompt fits into a context: without its oldest turns, and where even the last one is too long, with
    /// that one cut by Ollama. Returns how many turns were left out and how many tokens are left, 0 where the server tells that at the end.
    async fn begin_shortened(&self, call: &mut Call, context_tokens: u32) -> Result<(u32, u32, Begun), OllamaError> {
        let mut left_out = 0;
        if let Call::Chat(chat) = call {
            let turns = std::mem::take(&mut chat.messages);
            let fixed_bytes = chat.tools.iter().map(|tool| tool.to_string().len()).sum();
            chat.messages.clone_from(&turns);
            let sizes = request::turn_sizes(&turns);
            for count in shorten::tries(&sizes, fixed_bytes, context_tokens, 0) {
                left_out = u32::try_from(count).unwrap_or(u32::MAX);
                if let Call::Chat(chat) = call {
                    chat.messages = shorten::without_oldest(&turns, &sizes, count);
                }
                match self.begin(call).await {
                    Err(error) if error.is_prompt_too_long() => {}
                    begun => return begun.map(|begun| (left_out, 0, begun)),
                }
            }
        }
        call.run().truncate = Some(true);
        let begun = self.begin(call).await?;
        Ok((left_out, context_tokens, begun))
    }

    async fn answer(&self, name: &ModelName, request: ChatRequest) -> Result<ChatStream, BackendError> {
        let mut call = Call::of(&request)?;
        let (known, overhead_bytes) = self.catalogue.context_of(name, request.context_tokens).await;
        let need = call.need(overhead_bytes, request.max_tokens);
        let begun = self.begin_in_context(name, &mut call, &known, need).await;
        let (num_ctx, begun) = begun.map_err(|error| self.fail(error, &request.model))?;
        let context_tokens = known.limit(num_ctx);
        let (before, (first, rest)) = match begun {
            Some(begun) => (None, begun),
            None if request.overflow.truncate => {
                let begun = self.begin_shortened(&mut call, context_tokens).await;
                let (messages, prompt_tokens, begun) = begun.map_err(|error| self.fail(error, &request.model))?;
                tracing::info!(
                    backend.name = self.name,
                    model.name = %name,
                    context_tokens,
                    truncated.messages = messages,
                    "the conversation is longer than the context; its oldest turns were left out"
                );
                (Some(ChatEvent::Truncated { messages, prompt_tokens }), begun)
            }
            None => return Err(too_long(need, context_tokens)),
        };
        let asked = Asked {
            backend: self.name.clone(),
            client: self.client.clone(),
            need,
            window: known.window(num_ctx),
            may_cut: request.overflow.truncate,
            return_tokens: request.return_tokens,
            mute: request.max_tokens == Some(0),
            model: request.model,
        };
        Ok(events(asked, before, first, rest))
    }

    /// Goes on with an answer that another run began, behind the text of it: in `raw` mode, with a prompt that is made here.
    async fn go_on(
        &self,
        name: &ModelName,
        mut request: ChatRequest,
        resume: &Resume,
    ) -> Result<ChatStream, BackendError> {
        if !goes_on_by_text(&request) || has_pictures(&request) {
            return Err(unsupported("Ollama cannot bring its end into the form that was asked for"));
        }
        let facts = self.catalogue.facts(name).await.unwrap_or_default();
        let can_think = facts.capabilities.contains(&ModelCapability::Thinking);
        let (rendered, think) = match &request.prompt {
            Prompt::Raw(text) => (text.clone(), None),
            Prompt::Chat(messages) => {
                // Ollama lets a model think that can, unless it is told otherwise.
                let think = request.think.clone().or_else(|| can_think.then_some(Think::On));
                let rendered = self.render(&facts, messages, think.as_ref())?;
                let filter = think_filter(&rendered, think.as_ref());
                (rendered, filter)
            }
            Prompt::Tokens(_) => return Err(unsupported("Ollama takes no tokens")),
        };
        let resumed = Resumed::new(&request, resume, think);
        if resumed.is_at_end() {
            return Ok(resumed.end(FinishReason::Stop));
        }
        request.prompt = Prompt::Raw(rendered + resumed.beginning());
        request.max_tokens = resumed.tokens_left(request.max_tokens);
        // Else Ollama would look for thoughts in what comes, from its beginning on.
        request.think = can_think.then_some(Think::Off);
        request.tools.clear();
        let answer = self.answer(name, request).await;
        resumed.take(answer)
    }

    fn render(&self, facts: &Facts, messages: &[Message], think: Option<&Think>) -> Result<String, BackendError> {
        let renderer = self.renderer.as_ref().zip(facts.template.as_deref());
        let (renderer, source) =
            renderer.ok_or_else(|| unsupported("how this model's prompts are made is not known"))?;
        // The server puts the token that begins a prompt before it by itself.
        let template = ModelTemplate { source, bos: "", eos: "" };
        let rendered = renderer.render(&template, &facts.with_own_messages(messages), think);
        rendered.map_err(|reason| unsupported(&format!("the model's chat template refuses the conversation: {reason}")))
    }
}

#[async_trait]
impl Backend for OllamaBackend {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        let mut models = self.catalogue.models().await.map_err(|error| self.fail(error, ""))?;
        models.iter_mut().for_each(|info| info.continues &= self.renderer.is_some());
        Ok(models)
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, BackendError> {
        let name = parse(&request.model)?;
        match &request.resume {
            Some(resume) if !resume.is_new() => self.go_on(&name, request.clone(), resume).await,
            _ => self.answer(&name, request).await,
        }
    }

    fn can_resume(&self, request: &ChatRequest) -> bool {
        let renders = || {
            let facts = self.catalogue.known_facts(&ModelName::parse(&request.model).ok()?)?;
            Some(self.renderer.is_some() && facts.can_be_prompted())
        };
        let has_prompt = matches!(request.prompt, Prompt::Raw(_)) || renders() == Some(true);
        goes_on_by_text(request) && !has_pictures(request) && has_prompt
    }

    fn without_retries(&self) -> Option<Arc<dyn Backend>> {
        Some(Arc::new(Self { client: self.client.without_retries(), ..self.clone() }))
    }

    async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        let name = parse(&request.model)?;
        let mut body = request::embed(&request)?;
        let longest = body.input.iter().map(String::len).max().unwrap_or(0);
        let (known, _) = self.catalogue.context_of(&name, request.context_tokens).await;
        let need = Need::of(longest, 0, Some(0));
        let mut num_ctx = known.num_ctx(need);
        let response = loop {
            body.options.num_ctx = num_ctx;
            self.catalogue.sent(&name, num_ctx, &known);
            match self.client.embed(&body).await {
                Err(error) if error.is_prompt_too_long() => match known.larger(num_ctx, need) {
                    Some(larger) => num_ctx = Some(larger),
                    None => return Err(too_long(need, known.limit(num_ctx))),
                },
                answer => break answer.map_err(|error| self.fail(error, &request.model))?,
            }
        };
        if response.embeddings.len() != body.input.len() {
            let reason = format!("it made {} vectors of {} inputs", response.embeddings.len(), body.input.len());
            return Err(self.fail(OllamaError::Garbage { reason }, &request.model));
        }
        let load_ms = response.load_duration.max(0) as f64 / 1e6;
        Ok(EmbedResponse { load_ms, ..EmbedResponse::new(response.embeddings, response.prompt_eval_count) })
    }

    async fn health(&self) -> Health {
        let url = self.client.url();
        match timeout(HEALTH_TIME_MAX, self.client.check()).await {
            Ok(Ok(())) => Health::Ready,
            Ok(Err(error)) => Health::Unavailable(self.fail(error, "").to_string()),
            Err(_) => Health::Unavailable(format!(
                "backend '{}': {url} does not answer within {} s. Is it an Ollama server, and is it overloaded?",
                self.name,
                HEALTH_TIME_MAX.as_secs()
            )),
        }
    }

    async fn details(&self, name: &ModelName) -> Result<Option<ModelDetails>, BackendError> {
        match self.client.show(name.as_str()).await {
            Ok(answer) => Ok(Some(show::details(answer))),
            Err(OllamaError::ModelNotFound { .. }) => Ok(None),
            Err(error) => Err(self.fail(error, name.as_str())),
        }
    }

    async fn running(&self) -> Result<Vec<RunningModel>, BackendError> {
        let mut running = self.catalogue.running().await.map_err(|error| self.fail(error, ""))?;
        running.iter_mut().for_each(|model| model.info.continues &= self.renderer.is_some());
        Ok(running)
    }

    async fn load(&self, request: LoadRequest) -> Result<(), BackendError> {
        let LoadRequest { model, keep_alive, context_tokens, dialect } = request;
        let name = parse(&model)?;
        let facts = self.catalogue.facts(&name).await;
        let capabilities = facts.map(|facts| facts.capabilities.clone()).unwrap_or_default();
        let only_embeds =
            capabilities.contains(&ModelCapability::Embedding) && !capabilities.contains(&ModelCapability::Completion);
        // With another context than that of the first request, which is taken for a short one, the model would be loaded twice.
        let (known, overhead_bytes) = self.catalogue.context_of(&name, context_tokens).await;
        let need = if only_embeds { Need::of(0, 0, Some(0)) } else { Need::of(overhead_bytes, 0, None) };
        let num_ctx = known.num_ctx(need);
        self.catalogue.sent(&name, num_ctx, &known);
        let options = wire::Options { num_ctx, others: request::others(&dialect), ..wire::Options::default() };
        let keep_alive = keep_alive.map(request::seconds);
        let loaded = if only_embeds {
            let model = model.clone();
            let embed = wire::EmbedRequest { model, keep_alive, options, ..wire::EmbedRequest::default() };
            self.client.embed(&embed).await.map(|_| ())
        } else {
            let run = wire::RunOptions { keep_alive, options, ..wire::RunOptions::default() };
            let generate = wire::GenerateRequest { model: model.clone(), run, ..wire::GenerateRequest::default() };
            self.client.generate(&generate).await.map(|_| ())
        };
        self.catalogue.forget_loaded();
        loaded.map_err(|error| self.fail(error, &model))
    }

    async fn unload(&self, model: &str) -> Result<(), BackendError> {
        parse(model)?;
        let run = wire::RunOptions { keep_alive: Some(0), ..wire::RunOptions::default() };
        let request = wire::GenerateRequest { model: model.to_owned(), run, ..wire::GenerateRequest::default() };
        let unloaded = self.client.generate(&request).await;
        self.catalogue.forget_loaded();
        unloaded.map(|_| ()).map_err(|error| self.fail(error, model))
    }

    fn library(&self) -> Option<&dyn ModelLibrary> {
        Some(self)
    }
}

fn parse(model: &str) -> Result<ModelName, BackendError> {
    ModelName::parse(model).map_err(|_| BackendError::ModelNotFound { model: model.to_owned() })
}
