//! What is submitted.

use std::time::Duration;

use bombus_core::chat::Message;
use bombus_core::identity::NodeId;
use bombus_core::tasks::chunk::Chunking;
use bombus_core::tasks::{TaskId, TaskOptions, WholeRequest};
use serde_json::Value;

use super::error::TasksError;
use super::plan;

/// A task to be submitted. [`Submission::new`] leaves everything at its default but what is to be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// Its id, for example [`TaskId::of_key`] of an idempotency key. The same id with the same content is the same task. Without one a
    /// random id is taken.
    pub id: Option<TaskId>,
    /// What is to be done.
    pub work: Work,
    /// The model, which all but pings need. It need not be there yet.
    pub model: String,
    /// Where a prompt is cut into parts, each a task of its own.
    pub chunking: Chunking,
    /// Most characters of a part; [`bombus_core::tasks::chunk::CHUNK_CHARS`] where nothing is said.
    pub max_chunk: Option<usize>,
    /// What stands between the answers of the parts; an empty line where nothing is said.
    pub joiner: Option<String>,
    /// A template that the prompt of each part is put into, in place of `{text}`.
    pub map: Option<String>,
    /// A template that the joined answers of all parts are put into, for one more answer that stands for the whole.
    pub reduce: Option<String>,
    /// The only node that may run it.
    pub to: Option<NodeId>,
    /// Seals it, so that so many nodes can read what it asks: those that would run it, the best first, 1 to [`super::SEAL_TO_MAX`]. Only they may
    /// run it as long as this node is away. None: as the configuration says.
    pub seal_to: Option<u32>,
    /// How urgent it is, from 1 to 10; the highest first.
    pub priority: u8,
    /// How long one attempt may take; what the worker thinks right where nothing is said. At least a millisecond.
    pub timeout: Option<Duration>,
    /// How often it is tried; the configured number where nothing is said. At least once.
    pub max_attempts: Option<u32>,
    /// The batch that it belongs to.
    pub batch: Option<BatchItem>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one for each submission, and it is not kept")]
pub enum Work {
    /// A model answers.
    Inference {
        /// What it answers.
        input: Input,
        /// Instructions that hold for the whole answer.
        system: Option<String>,
        /// How it answers.
        options: TaskOptions,
    },
    /// A model makes a vector.
    Embedding {
        /// Of this text.
        text: String,
    },
    /// A model answers a request as a whole, which may ask for anything that a request can.
    Whole(Box<WholeRequest>),
    /// A worker says that it is there.
    Ping {
        /// What it sends back.
        payload: Value,
    },
}

/// What a model answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A prompt, which may be cut into parts.
    Prompt(String),
    /// A conversation.
    Messages(Vec<Message>),
}

/// The place of a task in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchItem {
    /// The batch: 1 to 128 bytes.
    pub batch: String,
    /// What the task is called there: 1 to 256 bytes.
    pub item: String,
    /// How many tasks the batch has, where that is known.
    pub total: Option<u32>,
}

impl Submission {
    /// Builds a submission with every choice at its default.
    #[must_use]
    pub fn new(model: impl Into<String>, work: Work) -> Self {
        Self {
            id: None,
            work,
            model: model.into(),
            chunking: Chunking::None,
            max_chunk: None,
            joiner: None,
            map: None,
            reduce: None,
            to: None,
            seal_to: None,
            priority: 5,
            timeout: None,
            max_attempts: None,
            batch: None,
        }
    }

    /// Says whether it can be a task.
    ///
    /// # Errors
    ///
    /// [`TasksError::Invalid`] with what is wrong.
    pub fn check(&self) -> Result<(), TasksError> {
        plan::check(self)
    }

    /// Builds the submission of a prompt.
    #[must_use]
    pub fn prompt(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        let input = Input::Prompt(prompt.into());
        Self::new(model, Work::Inference { input, system: None, options: TaskOptions::default() })
    }
}
