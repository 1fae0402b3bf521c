//! Durable tasks as the HTTP surface needs them. The node puts the real ones behind it.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bombus_core::chat::Message;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

pub use crate::native::tasks::request::check;

/// What kind of work a task is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskType {
    /// A model answers a prompt or a conversation.
    #[default]
    Inference,
    /// A model makes a vector of a text.
    Embedding,
    /// A node says that it is there.
    Ping,
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// It waits: for a node that takes it on, or at one that has taken it on.
    Pending,
    /// A node works on it.
    Running,
    /// There is a result.
    Completed,
    /// It failed, after as many attempts as it has.
    Failed,
    /// Its requester cancelled it.
    Cancelled,
}

impl TaskState {
    /// All of them, in the order in which a task may go through them.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// Returns its name in requests and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns whether a task in this state stays in it, once that is settled.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// How a long prompt is cut into tasks of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Chunking {
    /// Not at all.
    #[default]
    None,
    /// Between paragraphs: as many to a chunk as fit.
    Paragraph,
    /// Between words: as many to a chunk as fit.
    Size,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// A model answers.
    Inference {
        /// What it answers.
        input: TaskInput,
        /// Instructions that hold for the whole of it.
        system: Option<String>,
        /// How it answers.
        options: TaskOptions,
    },
    /// A model makes a vector.
    Embedding {
        /// Of this text.
        text: String,
    },
    /// A node answers with what it was sent.
    Ping {
        /// What is sent.
        payload: Map<String, Value>,
    },
}

/// What a model answers.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskInput {
    /// A text, which becomes the one turn of a conversation.
    Prompt(String),
    /// A conversation.
    Messages(Vec<Message>),
}

/// How a model answers. What is left out is left to the model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskOptions {
    /// At least 0; 0 always takes the likeliest token.
    pub temperature: Option<f32>,
    /// 0 to 1.
    pub top_p: Option<f32>,
    /// Keeps only this many likeliest tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Most tokens to generate.
    pub max_tokens: Option<u32>,
    /// Texts at which the answer ends.
    pub stop: Vec<String>,
    /// Makes the answer repeatable.
    pub seed: Option<u32>,
    /// The answer is to be a JSON object.
    pub json: bool,
}

/// A task that is to be submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTask {
    /// The id that the client chose.
    pub task_id: Option<String>,
    /// The key by which a repeated request is the same task; only where the client chose no id.
    pub idempotency_key: Option<String>,
    /// What is to be done.
    pub work: Work,
    /// The model; without one, the node's default model.
    pub model: Option<String>,
    /// How the prompt is cut.
    pub chunking: Chunking,
    /// Most characters of a chunk.
    pub max_chunk: Option<usize>,
    /// What stands between the parts of the answer.
    pub joiner: Option<String>,
    /// A template that each part of the prompt is put into, in place of `{text}`.
    pub map: Option<String>,
    /// A template that the answers of all parts are put into, for one more answer that stands for the whole.
    pub reduce: Option<String>,
    /// The id of the node that is to do it, and no other.
    pub to: Option<String>,
    /// Seals it, so that of the nodes that could do it only so many can read it; where nothing is said, as the node is configured.
    pub seal_to: Option<u32>,
    /// 1 to 10; more comes first.
    pub priority: u8,
    /// The time that an attempt may take.
    pub timeout: Duration,
    /// How often it is tried.
    pub max_attempts: Option<u32>,
    /// The batch that it belongs to.
    pub batch: Option<BatchPlace>,
}

/// The place of a task in a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchPlace {
    /// The id of the batch: 1 to 128 letters, digits, `.`, `_`, `:` and `-`.
    #[schema(pattern = "^[A-Za-z0-9._:-]{1,128}$")]
    pub id: String,
    /// What the client calls the task within the batch; 1 to 256 bytes without control characters.
    #[schema(min_length = 1, max_length = 256)]
    pub item: String,
    /// How many tasks the batch has, so that whoever asks another node for it can tell whether that knows of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub total: Option<u32>,
}

/// A node that has to do with a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TaskNode {
    /// Its id; of a peer that is no node, what it calls itself.
    pub node_id: String,
    /// What people call it; the id again where that is not known.
    pub hostname: String,
}

/// An attempt that came to nothing.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct FailedAttempt {
    /// The number of its grant: it grows with every right to run the task.
    pub epoch: u64,
    /// Who tried.
    pub worker: TaskNode,
    /// Why it came to nothing.
    pub reason: String,
    /// When, in seconds since the Unix epoch.
    pub at: f64,
}

/// How much of a task is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct TaskProgress {
    /// Parts that are completed.
    pub done: u64,
    /// Parts that there are: the chunks, or 1.
    pub total: u64,
    /// Tokens that have come so far.
    pub tokens: u64,
}

/// A part of a task.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TaskChunk {
    /// Its id: it is a task of its own.
    pub task_id: String,
    /// Its place, from 0; null for the one that sums up the others.
    #[schema(required)]
    pub index: Option<u32>,
    /// How far it is.
    pub status: TaskState,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What came of a task.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum TaskResult {
    /// Of an inference.
    Inference(InferenceResult),
    /// Of an embedding.
    Embedding(EmbeddingResult),
    /// Of a ping.
    Ping(PingResult),
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct InferenceResult {
    /// Its text.
    pub response: String,
    /// The model that gave it.
    pub model: String,
    /// The time that it took; of chunks, the sum of their times.
    #[schema(required)]
    pub total_duration_ms: Option<f64>,
    /// Tokens of the prompt.
    #[schema(required)]
    pub prompt_eval_count: Option<u64>,
    /// Tokens of the answer.
    #[schema(required)]
    pub eval_count: Option<u64>,
    /// The time that the answer's tokens took.
    #[schema(required)]
    pub eval_duration_ms: Option<f64>,
    /// How fast they came.
    #[schema(required)]
    pub tokens_per_second: Option<f64>,
}

/// A vector.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EmbeddingResult {
    /// The vector.
    pub embedding: Vec<f64>,
    /// The model that made it.
    pub model: String,
    /// How many numbers it has.
    pub dimensions: usize,
}

/// An answer to a ping.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PingResult {
    /// What was sent.
    pub echo: Value,
    /// Always `pong`.
    pub message: &'static str,
}

/// A task as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TaskInfo {
    /// Its id.
    pub task_id: String,
    /// What kind of work it is.
    pub task_type: TaskType,
    /// How far it is.
    pub status: TaskState,
    /// Whether its requester has said so for good. Until then a completed task may yet get another result in place of this one.
    pub settled: bool,
    /// Whether somebody asked for its end and its requester has not said so yet.
    pub cancelling: bool,
    /// What came of it. Of a sealed task only its requester can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<TaskResult>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why it waits, where no node that is here could do it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// The time from its submission to its end, or to now.
    pub duration_seconds: f64,
    /// Who works on it, or did the work; null while nobody does.
    #[schema(required)]
    pub node_id: Option<String>,
    /// What people call that node.
    #[schema(required)]
    pub hostname: Option<String>,
    /// The model that it asks for; null for pings.
    #[schema(required)]
    pub model: Option<String>,
    /// The node that it belongs to.
    pub requester: TaskNode,
    /// Whether that is this node.
    pub mine: bool,
    /// When it was submitted, by its requester's clock, in seconds since the Unix epoch.
    pub created_at: f64,
    /// When it ended, in seconds since the Unix epoch.
    #[schema(required)]
    pub completed_at: Option<f64>,
    /// 1 to 10; more comes first.
    pub priority: u8,
    /// The number of the right to run it that counts, which grows with each; 0 before the first.
    pub epoch: u64,
    /// Whether its prompt and its answer are sealed.
    pub encrypted: bool,
    /// The attempt that goes on, or was the last one; 0 before the first.
    pub attempt: u32,
    /// The attempts that came to nothing; of a task in chunks, those of all chunks.
    pub attempts: Vec<FailedAttempt>,
    /// How much of it is done.
    pub progress: TaskProgress,
    /// Its parts, where it has any.
    pub chunks: Vec<TaskChunk>,
    /// The task that it is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The batch that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchPlace>,
}

/// Which tasks to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only those that are so far.
    pub status: Option<TaskState>,
    /// Only those of this node.
    pub mine: bool,
    /// Only those of this batch.
    pub batch: Option<String>,
    /// Only what comes after this place in the list.
    pub cursor: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// A part of a list of tasks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct TaskPage {
    /// The tasks, newest first, without their results. Parts of tasks are not among them.
    pub tasks: Vec<TaskInfo>,
    /// The place behind them, for the next part of the list; null where there is nothing more.
    #[schema(required)]
    pub next: Option<String>,
}

/// What happens to a task.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskNews {
    /// A piece of the answer came.
    Token(String),
    /// An attempt begins, by its number from 1: what came before does not count.
    Attempt(u32),
    /// It stands otherwise than before.
    State(Box<TaskInfo>),
    /// It has ended. Nothing follows.
    Done(Box<TaskInfo>),
}

/// How much there is of the tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskCounts {
    /// Tasks that this node knows, by how far they are.
    pub tasks: Vec<(TaskState, u64)>,
    /// Tasks that this node itself works on.
    pub running_here: u64,
    /// How often this node itself ran tasks since its start.
    pub runs: TaskRuns,
    /// Entries of the databases of tasks, results and their history.
    pub entries: u64,
    /// Bytes that those take on the disk, with large prompts and answers.
    pub stored_bytes: u64,
    /// Entries that are kept and do not count, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Events that the history of tasks lacks since the start, because too many waited to be written.
    pub history_lost: u64,
    /// The generations of the databases, oldest first.
    pub generations: Vec<TaskGeneration>,
    /// The name of the newest database of tasks; none where there are no tasks now.
    pub database: Option<String>,
    /// Its address.
    pub address: Option<String>,
}

/// How much a generation of the databases of tasks takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct TaskGeneration {
    /// Which one, from 1.
    pub generation: u64,
    /// Tasks in it.
    pub tasks: u64,
    /// Those of them that have not ended.
    pub unfinished: u64,
    /// Entries of its databases.
    pub entries: u64,
    /// Bytes of its databases on the disk.
    pub stored_bytes: u64,
}

/// What is to go of the tasks that have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskPrune {
    /// What ended so long ago, or as the configuration says.
    pub older_than: Option<Duration>,
    /// What is more than so many, or as the configuration says.
    pub keep: Option<usize>,
    /// Whether it is only said what would go.
    pub dry_run: bool,
}

/// What went of the tasks, or would go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct TasksPruned {
    /// Whether it is only said what would go.
    pub dry_run: bool,
    /// How many tasks went.
    pub tasks: u64,
    /// Bytes that are free on the disk now; for what would go, without those of large prompts and answers.
    pub bytes: u64,
    /// The generation of the databases that has begun.
    #[schema(required)]
    pub begun: Option<u64>,
    /// The generations that went, oldest first.
    pub dropped: Vec<DroppedGeneration>,
    /// The generations that stay, oldest first.
    pub kept: Vec<KeptGeneration>,
}

/// A generation that went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DroppedGeneration {
    /// Which one, from 1.
    pub generation: u64,
    /// Tasks in it.
    pub tasks: u64,
    /// Bytes that it took.
    pub bytes: u64,
}

/// A generation that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct KeptGeneration {
    /// Which one, from 1.
    pub generation: u64,
    /// Tasks in it.
    pub tasks: u64,
    /// Why it stays.
    pub why: WhyKept,
    /// How many of its tasks have not ended, or are needed by others that have not.
    pub unfinished: u64,
    /// Ten of these at most.
    pub task_ids: Vec<String>,
}

/// Why a generation stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhyKept {
    /// New tasks go to it.
    Newest,
    /// Tasks in it have not ended, or their requester has not confirmed that.
    Unfinished,
    /// The last of its tasks ended not long enough ago.
    Young,
    /// It came here a short time ago, and more of it may come.
    JustOpened,
    /// It could not go now: not all nodes that are there have the next one yet, or somebody writes to it. The next look tries again.
    Busy,
}

/// How often a node ran tasks for whomever. What has begun and not ended still runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskRuns {
    /// Begun.
    pub begun: u64,
    /// Ended with an answer.
    pub completed: u64,
    /// Ended without one, for a reason that lies in the task or in this node.
    pub failed: u64,
    /// Stopped by others, or handed back.
    pub stopped: u64,
}

impl TaskCounts {
    /// Returns how many tasks are so far.
    #[must_use]
    pub fn of(&self, state: TaskState) -> u64 {
        self.tasks.iter().filter(|(of, _)| *of == state).map(|(_, count)| count).sum()
    }
}

/// Says why something was not done with a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TasksError {
    /// No task has this id.
    #[error("{0}")]
    UnknownTask(String),
    /// Another task has this id.
    #[error("{0}")]
    Conflict(String),
    /// A field of the request cannot be taken.
    #[error("{message}")]
    Invalid {
        /// The field.
        param: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// As many tasks wait as may.
    #[error("{0}")]
    Full(String),
    /// There are no tasks now; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// The durable tasks of the swarm. Every node answers for every task.
#[async_trait]
pub trait Tasks: Send + Sync + 'static {
    /// Submits a task. When this returns it is safe on the disk of this node, and goes to the others. The same key or id with the same
    /// content is the same task.
    ///
    /// # Errors
    ///
    /// [`TasksError::Invalid`]; [`TasksError::Conflict`] where the key or the id is that of another task; [`TasksError::Full`];
    /// [`TasksError::Unavailable`] and [`TasksError::Failed`], as of all that follow.
    async fn submit(&self, task: NewTask) -> Result<TaskInfo, TasksError>;

    /// Tells how a task stands, on demand with what came of it.
    ///
    /// # Errors
    ///
    /// [`TasksError::UnknownTask`], as of all that follow.
    async fn info(&self, task_id: &str, result: bool) -> Result<TaskInfo, TasksError>;

    /// Waits until a task has ended and its requester has said so. Safe to cancel.
    ///
    /// # Errors
    ///
    /// See above.
    async fn wait(&self, task_id: &str) -> Result<(), TasksError>;

    /// Asks for the end of a task, wherever it runs.
    ///
    /// # Errors
    ///
    /// See above.
    async fn cancel(&self, task_id: &str) -> Result<TaskInfo, TasksError>;

    /// Lists tasks, newest first.
    ///
    /// # Errors
    ///
    /// [`TasksError::Invalid`] for a cursor that is none.
    async fn list(&self, filter: TaskFilter) -> Result<TaskPage, TasksError>;

    /// Tells what happens to a task until its end, and first how it stands. The end comes with the result.
    ///
    /// # Errors
    ///
    /// See above.
    async fn follow(&self, task_id: &str) -> Result<BoxStream<'static, TaskNews>, TasksError>;

    /// Lets go what need not be kept any longer of tasks that have ended, and says what went and what stays.
    ///
    /// # Errors
    ///
    /// See above.
    async fn prune(&self, wanted: TaskPrune) -> Result<TasksPruned, TasksError>;

    /// Returns how much there is; nothing where there are no tasks now. It does not wait.
    fn counts(&self) -> TaskCounts;
}
