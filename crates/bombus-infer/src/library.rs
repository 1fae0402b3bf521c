//! What can be done with the models of a backend besides running them.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bombus_core::chat::Message;
use bombus_core::model::ModelName;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde_json::{Map, Value};

use crate::BackendError;
use crate::models::PeerSource;

/// How a long work on models goes on. The last item of a stream that ends without an error is a success.
pub type ProgressStream = BoxStream<'static, Result<Progress, BackendError>>;

/// The bytes of a file as they arrive.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// Manages the models of a backend.
#[async_trait]
pub trait ModelLibrary: Send + Sync {
    /// Says whether it takes weights, by [`ModelLibrary::pull`] and as files. One that does not keeps names over models that somebody else
    /// manages.
    fn takes_weights(&self) -> bool {
        true
    }

    /// Fetches a model. Dropping the stream stops the work; what was fetched is kept for the next try where it can be.
    ///
    /// # Errors
    ///
    /// Any [`BackendError`], here or in the stream.
    async fn pull(&self, request: PullRequest) -> Result<ProgressStream, BackendError>;

    /// Removes a model. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// Any [`BackendError`].
    async fn delete(&self, name: &ModelName) -> Result<bool, BackendError>;

    /// Gives a model a second name, which is taken from the model that had it. Returns whether there was such a model.
    ///
    /// # Errors
    ///
    /// Any [`BackendError`].
    async fn copy(&self, from: &ModelName, to: &ModelName) -> Result<bool, BackendError>;

    /// Makes a model of another one or of blobs.
    ///
    /// # Errors
    ///
    /// Any [`BackendError`], here or in the stream.
    async fn create(&self, request: CreateRequest) -> Result<ProgressStream, BackendError>;

    /// Returns whether the file with this SHA-256 (64 lower-case hex digits) is there.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unavailable`].
    async fn has_blob(&self, sha256: &str) -> Result<bool, BackendError>;

    /// Takes a file in, for [`ModelLibrary::create`].
    ///
    /// # Errors
    ///
    /// [`BackendError::InvalidRequest`] where its SHA-256 is another; any other [`BackendError`].
    async fn put_blob(&self, sha256: &str, bytes: ByteStream) -> Result<(), BackendError>;

    /// Has pulls take models from these other nodes, where one has them, before they go to the internet. Called once, when the node
    /// knows them; a library that cannot does nothing.
    fn use_peers(&self, _peers: Arc<dyn PeerSource>) {}
}

/// A step of a long work on models.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, in Ollama's words where it has some, for example `pulling manifest`.
    pub status: String,
    /// SHA-256 of the file that the step is about, in lower-case hex.
    pub sha256: Option<String>,
    /// Size of that file in bytes.
    pub total_bytes: Option<u64>,
    /// How much of it is there.
    pub completed_bytes: Option<u64>,
}

/// Which model is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequest {
    /// Its name, which may begin with the registry that has it.
    pub name: String,
    /// Whether an Ollama server may ask that registry over HTTP without TLS. Others decide that themselves.
    pub insecure: bool,
}

impl PullRequest {
    /// Asks for a model of a registry that is to prove who it is.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), insecure: false }
    }
}

/// What a model is to be made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CreateRequest {
    /// Name of the new model.
    pub name: String,
    /// The model whose weights and defaults it takes over.
    pub from: Option<String>,
    /// File name and SHA-256 of blobs with weights; used where `from` is missing.
    pub files: BTreeMap<String, String>,
    /// File name and SHA-256 of blobs with adapters.
    pub adapters: BTreeMap<String, String>,
    /// Its prompt template.
    pub template: Option<String>,
    /// Its licence texts.
    pub licenses: Vec<String>,
    /// Its system message.
    pub system: Option<String>,
    /// Its defaults of options, by Ollama's names.
    pub parameters: Map<String, Value>,
    /// Messages that stand before every conversation.
    pub messages: Vec<Message>,
    /// Quantisation that the weights are to be brought to.
    pub quantize: Option<String>,
    /// What makes its prompts in place of the template, by Ollama's name: for Ollama servers alone, as `parser` is.
    pub renderer: Option<String>,
    /// What reads its answers, by Ollama's name.
    pub parser: Option<String>,
    /// The oldest version of Ollama that can run it.
    pub requires: Option<String>,
    /// Facts in place of those that its file tells, by Ollama's names, for example `context_length`.
    pub info: Map<String, Value>,
}
