//! The one interface behind which every source of answers stands.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::chat::{ChatEvent, ChatRequest, DialectOptions, EmbedRequest, EmbedResponse, KeepAlive};
use bombus_core::model::{ModelDetails, ModelInfo, ModelName, RunningModel};
use futures::stream::BoxStream;

use crate::ModelLibrary;
use crate::upstream::ADVICE;

/// The events of one answer. Dropping the stream cancels the run.
pub type ChatStream = BoxStream<'static, Result<ChatEvent, BackendError>>;

/// Something that runs models.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Lists the models that this backend can run now, loaded or not.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unavailable`] where the list cannot be had.
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError>;

    /// Names the models that are known to be its own whether it can be asked or not, since its settings name them or the node keeps their names.
    /// Empty where it has those that it lists.
    fn given(&self) -> Vec<ModelName> {
        Vec::new()
    }

    /// Finds one model.
    ///
    /// # Errors
    ///
    /// [`BackendError::ModelUnusable`] where the model is there but damaged; [`BackendError::Unavailable`].
    async fn model(&self, name: &ModelName) -> Result<Option<ModelInfo>, BackendError> {
        Ok(self.models().await?.into_iter().find(|info| info.name == *name))
    }

    /// Starts an answer. Errors that are known before the first token are returned here, later ones end the stream.
    ///
    /// # Errors
    ///
    /// Any [`BackendError`].
    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, BackendError>;

    /// Says whether this backend could go on with the answer to a request, as its [`ChatRequest::resume`] begins it, where
    /// [`ModelInfo::continues`] says that it can at all: some servers cannot bring an answer into a form that it has begun.
    fn can_resume(&self, _request: &ChatRequest) -> bool {
        true
    }

    /// Says whether somebody else's computers answer, beyond this network: what they are asked leaves the house, and costs money. They
    /// are asked where nobody else can answer.
    fn is_cloud(&self) -> bool {
        false
    }

    /// Returns this backend as it is for requests that another one can answer, too: it tries once what it would else send again after a
    /// wait. `None`: it sends nothing again.
    fn without_retries(&self) -> Option<Arc<dyn Backend>> {
        None
    }

    /// Makes embedding vectors. Dropping the future cancels the work.
    ///
    /// # Errors
    ///
    /// Any [`BackendError`].
    async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, BackendError>;

    /// Makes embedding vectors as [`Backend::embed`] does, and calls `came` whenever a piece of them is there, so that whoever waits for many goes
    /// on waiting. A backend that tells nothing of them before all are there never calls it.
    ///
    /// # Errors
    ///
    /// Any [`BackendError`].
    async fn embed_in_pieces(
        &self,
        request: EmbedRequest,
        _came: &(dyn Fn() + Send + Sync),
    ) -> Result<EmbedResponse, BackendError> {
        self.embed(request).await
    }

    /// Says whether requests can be expected to succeed.
    async fn health(&self) -> Health;

    /// Tells everything about one model.
    ///
    /// # Errors
    ///
    /// As [`Backend::model`].
    async fn details(&self, name: &ModelName) -> Result<Option<ModelDetails>, BackendError> {
        Ok(self.model(name).await?.map(|_| ModelDetails::default()))
    }

    /// Lists the models in memory, as far as the backend can tell.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unavailable`] where the list cannot be had.
    async fn running(&self) -> Result<Vec<RunningModel>, BackendError> {
        Ok(Vec::new())
    }

    /// Brings a model into memory before it is needed. Does nothing where the backend does that by itself.
    ///
    /// # Errors
    ///
    /// Any [`BackendError`].
    async fn load(&self, _request: LoadRequest) -> Result<(), BackendError> {
        Ok(())
    }

    /// Takes a model out of memory, after the answers that it is giving. Does nothing where that is not the node's to decide.
    ///
    /// # Errors
    ///
    /// Any [`BackendError`].
    async fn unload(&self, _model: &str) -> Result<(), BackendError> {
        Ok(())
    }

    /// Returns what manages the backend's models, where the node may.
    fn library(&self) -> Option<&dyn ModelLibrary> {
        None
    }
}

/// A request to bring a model into memory as requests for answers will want it.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadRequest {
    /// The model's name as the client wrote it.
    pub model: String,
    /// How long the model stays loaded after this request. `None` leaves it to the backend.
    pub keep_alive: Option<KeepAlive>,
    /// Tokens that prompt and answer will need together. `None` leaves it to the backend.
    pub context_tokens: Option<u32>,
    /// What only one dialect has words for.
    pub dialect: DialectOptions,
}

impl LoadRequest {
    /// Builds a request with every option at its default.
    #[must_use]
    pub fn new(model: impl Into<String>) -> Self {
        Self { model: model.into(), keep_alive: None, context_tokens: None, dialect: DialectOptions::default() }
    }
}

impl From<&ChatRequest> for LoadRequest {
    fn from(request: &ChatRequest) -> Self {
        Self {
            model: request.model.clone(),
            keep_alive: request.keep_alive,
            context_tokens: request.context_tokens,
            dialect: request.dialect.clone(),
        }
    }
}

impl From<&EmbedRequest> for LoadRequest {
    fn from(request: &EmbedRequest) -> Self {
        Self {
            model: request.model.clone(),
            keep_alive: request.keep_alive,
            context_tokens: request.context_tokens,
            dialect: request.dialect.clone(),
        }
    }
}

/// A backend's own view of its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Requests can be expected to succeed.
    Ready,
    /// Requests fail; says why, and what to do about it.
    Unavailable(String),
}

/// Says why a backend did not answer. The messages are for the person who asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BackendError {
    /// The backend has no such model.
    #[error("model '{model}' not found")]
    ModelNotFound {
        /// The name that was asked for.
        model: String,
    },
    /// Prompt and answer do not fit into the model's context.
    #[error("{}", exceeded(*prompt_tokens, *context_tokens))]
    ContextExceeded {
        /// Tokens of the prompt; 0 where it is so long that they were not counted.
        prompt_tokens: u32,
        /// Tokens that prompt and answer may have together.
        context_tokens: u32,
    },
    /// The request itself is at fault.
    #[error("{message}")]
    InvalidRequest {
        /// The field at fault, by its name in [`ChatRequest`], where one is.
        param: Option<&'static str>,
        /// What is wrong with it.
        message: String,
    },
    /// The model or the backend cannot do what was asked for.
    #[error("{message}")]
    Unsupported {
        /// The field at fault, by its name in [`ChatRequest`].
        param: &'static str,
        /// What cannot be done.
        message: String,
    },
    /// The answer came to where the form that is demanded of it allows nothing that the model can write. That depends on what was drawn, so
    /// that another try may end otherwise.
    #[error("{message}")]
    DeadEnd {
        /// The field that demands the form, by its name in [`ChatRequest`].
        param: &'static str,
        /// What happened.
        message: String,
    },
    /// All slots are busy and the queue is full.
    #[error("too many requests are waiting")]
    Overloaded {
        /// When it may be worth trying again.
        retry_after: Duration,
    },
    /// The model does not fit into memory.
    #[error("{message}")]
    OutOfMemory {
        /// What was needed and what there was.
        message: String,
    },
    /// The model's file cannot be used: missing, truncated, corrupt, or of an unknown kind.
    #[error("model '{model}' cannot be loaded: {reason}")]
    ModelUnusable {
        /// The model.
        model: String,
        /// What is wrong with its file, and what to do.
        reason: String,
    },
    /// The backend answers, but not to this node: it refuses the node's key, wants its account paid, knows no such path as it is asked at,
    /// or is this node again.
    #[error("{reason}")]
    Rejected {
        /// What it said, and what to do.
        reason: String,
    },
    /// The backend cannot be reached or does not work.
    #[error("{reason}")]
    Unavailable {
        /// Why, and what to do.
        reason: String,
    },
    /// The run broke off after it had begun, and no part of the request caused it.
    #[error("the answer broke off: {reason}")]
    Interrupted {
        /// What happened.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("no answer within {} s", after.as_secs())]
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
}

fn exceeded(prompt_tokens: u32, context_tokens: u32) -> String {
    match prompt_tokens {
        0 => {
            format!("the prompt has more tokens than fit into the context of this model, which holds {context_tokens}")
        }
        counted => format!("the prompt has {counted} tokens, but the context of this model holds {context_tokens}"),
    }
}

impl BackendError {
    /// Builds the error for a model that nobody has.
    #[must_use]
    pub fn model_not_found(model: &ModelName) -> Self {
        let (name, tag) = model.split_tag();
        Self::ModelNotFound { model: if tag == "latest" { name.to_owned() } else { model.as_str().to_owned() } }
    }

    /// Says what of it may stand in a log: what is wrong with a request is often told by quoting it.
    #[must_use]
    pub fn in_log(&self) -> Cow<'_, str> {
        match self {
            Self::InvalidRequest { .. } => "it refuses the request".into(),
            Self::Unsupported { .. } => "it cannot do what the request asks for".into(),
            Self::DeadEnd { .. } => "it found no way to go on in the form that the request demands".into(),
            error => without_words(&error.to_string()).into(),
        }
    }
}

/// Leaves out of an error's text the words that a server gave with its status: they may quote the request, too. What this node advises behind
/// them stays. Errors of other nodes come as texts alone, so that it is found by what it says.
pub(crate) fn without_words(error: &str) -> String {
    const STATUS: &str = ": status ";
    let words = error.find(STATUS).and_then(|at| {
        let code = at + STATUS.len();
        error[code..].find(':').map(|colon| code + colon)
    });
    let Some(words) = words else { return error.to_owned() };
    let kept = &error[..words];
    match ADVICE.iter().find(|advice| error.ends_with(**advice)) {
        Some(advice) => format!("{kept}. {advice}"),
        None => kept.to_owned(),
    }
}
