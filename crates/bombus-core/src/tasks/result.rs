use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::document::{DocumentError, number};
use super::{Epoch, TaskId, WholeAnswer};

/// A document of `swarm-results`: how an attempt ended. The fields up to `error` are those of every peer; the others are Bombus' own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultDocument {
    /// The same as the task's.
    #[serde(rename = "_id")]
    pub id: TaskId,
    /// The task.
    pub task_id: TaskId,
    /// The answer; empty where it stands elsewhere or is none. Of a sealed task, what is sealed.
    #[serde(default)]
    pub response: String,
    /// The model that answered.
    #[serde(default)]
    pub model: String,
    /// The node that ran the attempt.
    pub worker_peer_id: String,
    /// How long it took, in nanoseconds.
    #[serde(default, deserialize_with = "number::optional", skip_serializing_if = "Option::is_none")]
    pub total_duration_ns: Option<u64>,
    /// Tokens of the answer.
    #[serde(default, deserialize_with = "number::optional", skip_serializing_if = "Option::is_none")]
    pub eval_count: Option<u64>,
    /// Tokens of the prompt.
    #[serde(default, deserialize_with = "number::optional", skip_serializing_if = "Option::is_none")]
    pub prompt_eval_count: Option<u64>,
    /// When it ended, by the worker's clock, in milliseconds since 1970.
    #[serde(default, deserialize_with = "number::required")]
    pub completed_at: u64,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,

    /// The hash of the grant under which it was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    /// The epoch of that grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The `OrbitDB` identity that writes this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_identity: Option<String>,
    /// The worker's [`super::prove`] over task and identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_proof: Option<String>,
    /// The hash of the block with the answer, where that is large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_block: Option<String>,
    /// The vector, for an embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Vec<f64>>,
    /// What came of a request as a whole; `response` and `embedding` are left out then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Box<WholeAnswer>>,
    /// How long the answer's tokens took, in nanoseconds.
    #[serde(default, deserialize_with = "number::optional", skip_serializing_if = "Option::is_none")]
    pub eval_duration_ns: Option<u64>,
    /// Says that the answer is sealed, for whom, and how they open it, as in the task's document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Value>,
}

impl ResultDocument {
    /// Makes the document of an attempt that ended at a time, in milliseconds since 1970.
    #[must_use]
    pub fn new(id: TaskId, worker_peer_id: impl Into<String>, completed_at: u64) -> Self {
        Self {
            task_id: id.clone(),
            id,
            response: String::new(),
            model: String::new(),
            worker_peer_id: worker_peer_id.into(),
            total_duration_ns: None,
            eval_count: None,
            prompt_eval_count: None,
            completed_at,
            error: None,
            grant: None,
            epoch: None,
            worker_identity: None,
            worker_proof: None,
            response_block: None,
            embedding: None,
            answer: None,
            eval_duration_ns: None,
            sealed: None,
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
}
