//! What is too large for an entry stands in blocks of its own: prompts, conversations, answers, vectors, and what is sealed.
//!
//! `restBlock` names what goes with a prompt, where that is large, as JSON. `promptBlock` and `responseBlock` name the text. A field that is empty in place of what stood there says what the text is: an empty list of
//! `messages`, or of an `embedding`, that it is the JSON of that; `true` as what is `sealed`, or `elsewhere` as a whole `request` or `answer`, the
//! JSON of that; else it is the prompt, or the answer.

use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::tasks::{ResultDocument, TaskDocument, TaskOptions, TaskView, WholeAnswer, WholeRequest};
use futures::future::try_join_all;
use orbitdb::cid::Hash;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::error::StoreError;
use super::limits::StoreLimits;
use super::text::{Root, read_part, read_root, split};
use crate::db::{DbError, DbHandle};

/// How long a text that somebody reads is looked for at peers.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// How many parts of one text are fetched at once.
const PARTS_AT_ONCE: usize = 4;
/// Bytes of instructions, options and templates that stand in the entry of a task, beside its prompt; where they have more, none of them does.
const REST_BYTES: usize = 2 << 10;

/// A large text that may not be here yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) root: Hash,
    /// Who is likely to have it.
    pub(super) first: Vec<NodeId>,
}

/// Returns the large texts of what a task asks.
pub(super) fn wanted_of_task(view: &TaskView) -> Vec<Wanted> {
    of_task(&view.task).into_iter().chain(of_rest(&view.task)).collect()
}

/// Returns the large text of a task's result.
pub(super) fn wanted_of_result(view: &TaskView) -> Vec<Wanted> {
    let mut wanted: Vec<_> = view.result.as_deref().and_then(of_result).into_iter().collect();
    wanted.iter_mut().for_each(|wanted| wanted.first.extend(view.requester.peer.clone()));
    wanted
}

fn of_task(task: &TaskDocument) -> Option<Wanted> {
    asked(task, task.prompt_block.as_ref()?)
}

fn of_rest(task: &TaskDocument) -> Option<Wanted> {
    asked(task, task.rest_block.as_ref()?)
}

fn asked(task: &TaskDocument, root: &str) -> Option<Wanted> {
    Some(Wanted { root: root.parse().ok()?, first: task.requester_peer_id.parse().into_iter().collect() })
}

fn of_result(result: &ResultDocument) -> Option<Wanted> {
    let root = result.response_block.as_ref()?.parse().ok()?;
    Some(Wanted { root, first: result.worker_peer_id.parse().into_iter().collect() })
}

/// What may be large of a task beside what is asked.
#[derive(Serialize, Deserialize)]
struct Rest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    options: Option<TaskOptions>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    map: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reduce: Option<String>,
}

impl Rest {
    /// Takes it out of a task.
    fn of(task: &mut TaskDocument) -> Self {
        let TaskDocument { system, options, map, reduce, .. } = task;
        Self { system: system.take(), options: options.take(), map: map.take(), reduce: reduce.take() }
    }

    /// Puts it where it belongs.
    fn fill(self, task: &mut TaskDocument) {
        let Self { system, options, map, reduce } = self;
        (task.system, task.options, task.map, task.reduce) = (system, options, map, reduce);
    }
}

/// Large texts of documents.
#[derive(Debug, Clone)]
pub(super) struct Contents {
    db: DbHandle,
    inline_bytes: usize,
    text_bytes_max: usize,
}

impl Contents {
    pub(super) fn new(db: DbHandle, limits: &StoreLimits) -> Self {
        Self { db, inline_bytes: limits.inline_bytes, text_bytes_max: limits.text_bytes_max }
    }

    /// Puts what is too large for the entry of a task into blocks, which are safe when this returns.
    pub(super) async fn move_out_of_task(&self, task: &mut TaskDocument) -> Result<(), StoreError> {
        let rest = Rest::of(task);
        let json = serde_json::to_string(&rest).map_err(|error| StoreError::Document(error.to_string()))?;
        if json.len() > REST_BYTES {
            task.rest_block = Some(self.put(json).await?);
        } else {
            rest.fill(task);
        }
        let text = if let Some(sealed) = self.large_json(task.sealed.as_ref())? {
            task.sealed = Some(Json::Bool(true));
            sealed
        } else if let Some(request) = self.large_json(task.request.as_ref())? {
            task.request = Some(Box::new(WholeRequest::Elsewhere));
            request
        } else if let Some(messages) = self.large_json(task.messages.as_ref())? {
            task.messages = Some(Vec::new());
            messages
        } else if task.prompt.len() > self.inline_bytes {
            std::mem::take(&mut task.prompt)
        } else {
            return Ok(());
        };
        task.prompt_block = Some(self.put(text).await?);
        Ok(())
    }

    /// Puts what is too large for the entry of a result into blocks, which are safe when this returns.
    pub(super) async fn move_out_of_result(&self, result: &mut ResultDocument) -> Result<(), StoreError> {
        let text = if let Some(sealed) = self.large_json(result.sealed.as_ref())? {
            result.sealed = Some(Json::Bool(true));
            sealed
        } else if let Some(answer) = self.large_json(result.answer.as_ref())? {
            result.answer = Some(Box::new(WholeAnswer::Elsewhere));
            answer
        } else if let Some(embedding) = self.large_json(result.embedding.as_ref())? {
            result.embedding = Some(Vec::new());
            embedding
        } else if result.response.len() > self.inline_bytes {
            std::mem::take(&mut result.response)
        } else {
            return Ok(());
        };
        result.response_block = Some(self.put(text).await?);
        Ok(())
    }

    fn large_json(&self, value: Option<&impl Serialize>) -> Result<Option<String>, StoreError> {
        let json = value.map(serde_json::to_string).transpose();
        let json = json.map_err(|error| StoreError::Document(error.to_string()))?;
        Ok(json.filter(|json| json.len() > self.inline_bytes))
    }

    async fn put(&self, text: String) -> Result<String, StoreError> {
        let (bytes, max) = (text.len(), self.text_bytes_max);
        if bytes > max {
            return Err(StoreError::TooLarge { bytes, max });
        }
        let hashes = self.db.put_blocks(split(text.as_bytes())).await?;
        hashes.last().map(Hash::to_string).ok_or_else(|| StoreError::Text("of a new text".to_owned()))
    }

    /// Returns a task with what stands in blocks in its place.
    pub(super) async fn whole_task(&self, task: &TaskDocument) -> Result<TaskDocument, StoreError> {
        let mut task = task.clone();
        if let Some(wanted) = of_rest(&task) {
            json::<Rest>(&self.read(&wanted).await?, wanted.root)?.fill(&mut task);
        }
        let Some(wanted) = of_task(&task) else { return Ok(task) };
        let text = self.read(&wanted).await?;
        if task.sealed == Some(Json::Bool(true)) {
            task.sealed = Some(json(&text, wanted.root)?);
        } else if task.request.as_deref() == Some(&WholeRequest::Elsewhere) {
            task.request = Some(json(&text, wanted.root)?);
        } else if task.messages.as_ref().is_some_and(Vec::is_empty) {
            task.messages = Some(json(&text, wanted.root)?);
        } else {
            task.prompt = text;
        }
        Ok(task)
    }

    /// Returns a result with what stands in blocks in its place.
    pub(super) async fn whole_result(&self, result: &ResultDocument) -> Result<ResultDocument, StoreError> {
        let mut result = result.clone();
        let Some(wanted) = of_result(&result) else { return Ok(result) };
        let text = self.read(&wanted).await?;
        if result.sealed == Some(Json::Bool(true)) {
            result.sealed = Some(json(&text, wanted.root)?);
        } else if result.answer.as_deref() == Some(&WholeAnswer::Elsewhere) {
            result.answer = Some(json(&text, wanted.root)?);
        } else if result.embedding.as_ref().is_some_and(Vec::is_empty) {
            result.embedding = Some(json(&text, wanted.root)?);
        } else {
            result.response = text;
        }
        Ok(result)
    }

    async fn read(&self, wanted: &Wanted) -> Result<String, StoreError> {
        let text = self.fetch(wanted, READ_LIMIT).await?;
        String::from_utf8(text).map_err(|_| StoreError::Text(wanted.root.to_string()))
    }

    /// Returns a text that is here, or that peers give within a time and that is kept here from then on.
    pub(super) async fn fetch(&self, wanted: &Wanted, limit: Duration) -> Result<Vec<u8>, StoreError> {
        let Wanted { root, first } = wanted;
        let fetched = tokio::time::timeout(limit, self.fetch_all(root, first, limit));
        fetched.await.map_err(|_| DbError::BlockNotReached { hash: *root, limit })?
    }

    async fn fetch_all(&self, root: &Hash, first: &[NodeId], limit: Duration) -> Result<Vec<u8>, StoreError> {
        let wrong = || StoreError::Text(root.to_string());
        let block = self.db.fetch_block(root, first, limit).await?;
        let parts = match read_root(&block, self.text_bytes_max).ok_or_else(wrong)? {
            Root::Text(text) => return Ok(text),
            Root::Parts(parts) => parts,
        };
        let mut text = Vec::new();
        for parts in parts.chunks(PARTS_AT_ONCE) {
            for block in try_join_all(parts.iter().map(|part| self.db.fetch_block(part, first, limit))).await? {
                text.extend(read_part(&block).ok_or_else(wrong)?);
            }
            if text.len() > self.text_bytes_max {
                return Err(wrong());
            }
        }
        Ok(text)
    }
}

fn json<T: DeserializeOwned>(text: &str, root: Hash) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::Text(root.to_string()))
}
