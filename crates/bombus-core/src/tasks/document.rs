use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chat::{ChatRequest, Message, Prompt, Role};
use crate::identity::NodeId;

use super::{Epoch, GrantedBy, TaskId, TaskKind, TaskOptions, TaskStatus, WholeRequest};

pub(super) mod number;

/// The priority of tasks that name none.
const PRIORITY: u8 = 5;

/// The number of attempts of tasks that name none.
pub const ATTEMPTS: u32 = 3;

/// A document of `swarm-tasks`: the task, as one entry says that it stands. The fields up to `total_chunks` are those of every peer;
/// the others are Bombus' own. What is none is not written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskDocument {
    /// The task.
    #[serde(rename = "_id")]
    pub id: TaskId,
    /// What the model is asked, or the text to be embedded; empty where `messages` or `prompt_block` stand for it. Of a sealed
    /// task, what is sealed.
    #[serde(default)]
    pub prompt: String,
    /// The model's name.
    #[serde(default)]
    pub model: String,
    /// Where the task stands, in the eyes of the writer.
    pub status: TaskStatus,
    /// The node to which the task belongs.
    #[serde(default)]
    pub requester_peer_id: String,
    /// The node that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_peer_id: Option<String>,
    /// When it was submitted, by the requester's clock, in milliseconds since 1970.
    #[serde(default, deserialize_with = "number::required")]
    pub created_at: u64,
    /// When it was granted, by the writer's clock, in milliseconds since 1970.
    #[serde(default, deserialize_with = "number::optional", skip_serializing_if = "Option::is_none")]
    pub claimed_at: Option<u64>,
    /// When it ended, by the writer's clock, in milliseconds since 1970.
    #[serde(default, deserialize_with = "number::optional", skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<u64>,
    /// How the model is to answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<TaskOptions>,
    /// Whether prompt and answer are sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// The task that this one is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_task_id: Option<TaskId>,
    /// Which part of the parent, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_index: Option<u32>,
    /// How many parts the parent has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_chunks: Option<u32>,

    /// What is to be done. None: inference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_type: Option<TaskKind>,
    /// A conversation, in place of `prompt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Message>>,
    /// Instructions that hold for the whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// A request as a whole, in place of `prompt`, `messages`, `system` and `options`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Box<WholeRequest>>,
    /// Counts the grants; in a CLAIMED document, which one this is. None: not a grant, but a claim of a peer that knows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// Who gives the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted_by: Option<GrantedBy>,
    /// The `OrbitDB` identity of the requester.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester_identity: Option<String>,
    /// The requester's [`super::prove`] over task and identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester_proof: Option<String>,
    /// The `OrbitDB` identity of the worker. In a grant by the requester it means that a worker without Bombus is granted what it
    /// claimed: its results count under this identity, without a proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_identity: Option<String>,
    /// The worker's [`super::prove`] over task and identity, in what it writes itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_proof: Option<String>,
    /// Which attempt a grant is for, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// So many attempts end in failure before the task does. None: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// How urgent it is, from 1 to 10. None: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// How long one attempt may take, in milliseconds. None: as the worker thinks right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How the attempts before ended, oldest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<Vec<AttemptFailure>>,
    /// In a PENDING document: grants up to this one are over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Epoch>,
    /// The batch that it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_id: Option<String>,
    /// Its own id in that batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_item: Option<String>,
    /// How many tasks the batch has, so that nobody takes those that he knows for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_total: Option<u32>,
    /// Tasks whose results it needs first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depends_on: Option<Vec<TaskId>>,
    /// The text between the answers of the parts. None: an empty line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,
    /// The template of which the prompt of a part was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    /// The template of which the prompt is made once the results of `depends_on` are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduce: Option<String>,
    /// The only node that may run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeId>,
    /// The hash of the block with the prompt, where that is large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_block: Option<String>,
    /// The hash of the block with what is large beside the prompt: `system`, `options`, `map` and `reduce`, which are left out then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest_block: Option<String>,
    /// In a terminal document: the hash of the grant whose result is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    /// In a terminal document: the hash of the entry of the result that is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Says in the requester's terminal document that it decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<bool>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Says that the prompt is sealed, for whom, and how they open it: `{"v", "keys": [{"node", ...}]}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Value>,
}

/// How one attempt ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttemptFailure {
    /// The grant of the attempt.
    pub epoch: Epoch,
    /// The node that had it.
    pub worker_peer_id: String,
    /// What went wrong, in words.
    pub reason: String,
    /// When, by the writer's clock, in milliseconds since 1970.
    #[serde(default, deserialize_with = "number::required")]
    pub at: u64,
}

/// Why a document of a database is no task or result.
#[derive(Debug, thiserror::Error)]
#[error("the document is not in the form of swarm-tasks and swarm-results: {0}")]
pub struct DocumentError(#[from] serde_json::Error);

impl TaskDocument {
    /// Makes the document of a task that a node submits at a time, in milliseconds since 1970: PENDING.
    #[must_use]
    pub fn new(id: TaskId, requester_peer_id: impl Into<String>, created_at: u64) -> Self {
        Self {
            id,
            prompt: String::new(),
            model: String::new(),
            status: TaskStatus::Pending,
            requester_peer_id: requester_peer_id.into(),
            worker_peer_id: None,
            created_at,
            claimed_at: None,
            completed_at: None,
            options: None,
            encrypted: None,
            parent_task_id: None,
            chunk_index: None,
            total_chunks: None,
            task_type: None,
            messages: None,
            system: None,
            request: None,
            epoch: None,
            granted_by: None,
            requester_identity: None,
            requester_proof: None,
            worker_identity: None,
            worker_proof: None,
            attempt: None,
            max_attempts: None,
            priority: None,
            timeout_ms: None,
            failures: None,
            released: None,
            batch_id: None,
            batch_item: None,
            batch_total: None,
            depends_on: None,
            join: None,
            map: None,
            reduce: None,
            to: None,
            prompt_block: None,
            rest_block: None,
            grant: None,
            result: None,
            settled: None,
            error: None,
            sealed: None,
        }
    }

    /// Returns the task as it was submitted: without a word on where it stands.
    #[must_use]
    pub fn unstarted(self) -> Self {
        Self {
            status: TaskStatus::Pending,
            worker_peer_id: None,
            claimed_at: None,
            completed_at: None,
            epoch: None,
            granted_by: None,
            worker_identity: None,
            worker_proof: None,
            attempt: None,
            failures: None,
            released: None,
            grant: None,
            result: None,
            settled: None,
            error: None,
            ..self
        }
    }

    /// Reads a document as it stands in the database. Fields that are not known are passed over.
    ///
    /// # Errors
    ///
    /// Says which field has no meaning.
    pub fn read(value: Value) -> Result<Self, DocumentError> {
        Ok(serde_json::from_value(value)?)
    }

    /// Returns what is to be done.
    #[must_use]
    pub fn kind(&self) -> TaskKind {
        self.task_type.clone().unwrap_or_default()
    }

    /// Returns whether a worker can do it that knows prompts, models and options, and nothing of what Bombus adds.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let is_whole = self.prompt_block.is_none() && self.rest_block.is_none() && self.depends_on().is_empty();
        let is_prompt = self.request.is_none() && self.messages.is_none() && self.system.is_none();
        self.kind() == TaskKind::Inference && is_whole && is_prompt && self.sealed.is_none() && self.to.is_none()
    }

    /// Returns how urgent it is, from 1 to 10.
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.priority.unwrap_or(PRIORITY).clamp(1, 10)
    }

    /// Returns how many attempts may fail, at least 1.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.max_attempts.unwrap_or(ATTEMPTS).max(1)
    }

    /// Returns the tasks whose results it needs first.
    #[must_use]
    pub fn depends_on(&self) -> &[TaskId] {
        self.depends_on.as_deref().unwrap_or_default()
    }

    /// Returns the nodes that can read what the task asks; none where everybody can.
    #[must_use]
    pub fn sealed_to(&self) -> Option<Vec<NodeId>> {
        let sealed = self.sealed.as_ref()?;
        let keys = sealed.get("keys").and_then(Value::as_array).into_iter().flatten();
        let node = |key: &Value| NodeId::parse(key.get("node")?.as_str()?).ok();
        Some(keys.filter_map(node).collect())
    }

    /// Returns whether a node may claim the task for itself: it is not for another node, and not sealed to others.
    #[must_use]
    pub fn may_be_claimed_by(&self, node: &NodeId) -> bool {
        self.to.as_ref().is_none_or(|to| to == node) && self.sealed_to().is_none_or(|nodes| nodes.contains(node))
    }

    /// Returns whether the prompt, as it was submitted, is the same as another's: all that says what is to be done, and nothing of
    /// where it stands. So a key that is used again for something else is told from a repeated request.
    #[must_use]
    pub fn asks_the_same(&self, other: &Self) -> bool {
        self.kind() == other.kind()
            && self.prompt == other.prompt
            && self.prompt_block == other.prompt_block
            && self.model == other.model
            && self.messages == other.messages
            && self.system == other.system
            && self.request == other.request
            && self.options.clone().unwrap_or_default() == other.options.clone().unwrap_or_default()
            && self.to == other.to
            && self.parent_task_id == other.parent_task_id
            && self.chunk_index == other.chunk_index
            && self.total_chunks == other.total_chunks
            && self.depends_on() == other.depends_on()
            && self.join == other.join
            && self.map == other.map
            && self.reduce == other.reduce
            && self.encrypted.unwrap_or_default() == other.encrypted.unwrap_or_default()
    }

    /// Makes the request to the model, of a prompt that may have been fetched, opened or filled in; `messages` go before it.
    #[must_use]
    pub fn chat_request(&self, prompt: &str) -> ChatRequest {
        let system = self.system.iter().map(|system| Message::text(Role::System, system));
        let turns = match &self.messages {
            Some(messages) => system.chain(messages.iter().cloned()).collect(),
            None => system.chain([Message::text(Role::User, prompt)]).collect(),
        };
        let mut request = ChatRequest::new(self.model.clone(), Prompt::Chat(turns));
        if let Some(options) = &self.options {
            options.apply(&mut request);
        }
        request
    }
}

#[cfg(test)]
mod tests;
