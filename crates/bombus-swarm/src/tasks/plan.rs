//! Makes documents of a submission (pure).

use std::time::Duration;

use bombus_core::tasks::chunk::{CHUNK_CHARS, ChunkError, fill, split};
use bombus_core::tasks::{ATTEMPTS, TaskDocument, TaskId, TaskKind, WholeRequest};

use super::error::TasksError;
use super::submission::{BatchItem, Input, Submission, Work};

/// Longest name of a batch, and of an item in it, in bytes.
const BATCH_BYTES_MAX: usize = 128;
const ITEM_BYTES_MAX: usize = 256;
/// Longest name of a model, in bytes.
const MODEL_BYTES_MAX: usize = 256;
/// Longest template, in bytes: it stands in the entry of each part.
const TEMPLATE_BYTES_MAX: usize = 8 << 10;
/// Most parts whose answers one more is made of: its entry names them all.
const SUMMED_MAX: usize = 200;
/// Most attempts.
const ATTEMPTS_MAX: u32 = 100;

/// The tasks that a submission comes to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// The task that whoever submits asks for: the only one, or the parent, which has no document.
    pub(super) id: TaskId,
    /// Of the only one, or of all parts, the one that sums up at the end.
    pub(super) documents: Vec<TaskDocument>,
}

/// Makes the documents of a submission of a node, at a time in milliseconds since 1970.
///
/// # Errors
///
/// [`TasksError::Invalid`].
pub(super) fn plan(submission: Submission, id: TaskId, requester: &str, now_ms: u64) -> Result<Plan, TasksError> {
    check(&submission)?;
    let base = base(&submission, &id, requester, now_ms);
    let is_cut = submission.chunking != Default::default() || submission.map.is_some() || submission.reduce.is_some();
    if !is_cut {
        let document = TaskDocument { id: id.clone(), ..with_work(base, submission.work) };
        return Ok(Plan { id, documents: vec![document] });
    }
    let Submission { work, chunking, max_chunk, joiner, map, reduce, .. } = submission;
    let Work::Inference { input: Input::Prompt(prompt), system, options } = work else {
        let message = "only the prompt of an inference can be cut into parts, mapped and reduced";
        return Err(TasksError::invalid("chunking", message));
    };
    let pieces = split(&prompt, chunking, max_chunk.unwrap_or(CHUNK_CHARS));
    let pieces = pieces.map_err(|error: ChunkError| TasksError::invalid("max_chunk", error.to_string()))?;
    if reduce.is_some() && pieces.len() > SUMMED_MAX {
        return Err(TasksError::invalid("max_chunk", "at most 200 parts can be summed up: allow larger ones"));
    }
    let total = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
    let options = Some(options).filter(|options| *options != Default::default());
    let base = TaskDocument {
        parent_task_id: Some(id.clone()),
        total_chunks: Some(total),
        join: joiner,
        system,
        options,
        ..base
    };
    let part = |(index, text): (u32, &str)| TaskDocument {
        id: id.part(&format!("chunk-{index}")),
        chunk_index: Some(index),
        prompt: map.as_ref().map_or_else(|| text.to_owned(), |map| fill(map, text)),
        map: map.clone(),
        ..base.clone()
    };
    let mut documents: Vec<TaskDocument> = (0..total).zip(pieces).map(part).collect();
    if let Some(reduce) = reduce {
        let depends_on = documents.iter().map(|part| part.id.clone()).collect();
        documents.push(TaskDocument {
            id: id.part("reduce"),
            depends_on: Some(depends_on),
            reduce: Some(reduce),
            ..base
        });
    }
    Ok(Plan { id, documents })
}

fn base(submission: &Submission, id: &TaskId, requester: &str, now_ms: u64) -> TaskDocument {
    let millis = |timeout: Duration| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
    let (batch_id, batch_item, batch_total) = match &submission.batch {
        Some(BatchItem { batch, item, total }) => (Some(batch.clone()), Some(item.clone()), *total),
        None => (None, None, None),
    };
    TaskDocument {
        model: submission.model.clone(),
        priority: Some(submission.priority).filter(|priority| *priority != 5),
        timeout_ms: submission.timeout.map(millis),
        max_attempts: submission.max_attempts,
        to: submission.to.clone(),
        batch_id,
        batch_item,
        batch_total,
        ..TaskDocument::new(id.clone(), requester, now_ms)
    }
}

/// Returns how often a task is tried, for its document: what everybody takes for granted is not said.
pub(super) fn attempts(asked: Option<u32>, configured: u32) -> Option<u32> {
    asked.or_else(|| Some(configured.clamp(1, ATTEMPTS_MAX)).filter(|attempts| *attempts != ATTEMPTS))
}

fn with_work(base: TaskDocument, work: Work) -> TaskDocument {
    match work {
        Work::Inference { input, system, options } => {
            let options = Some(options).filter(|options| *options != Default::default());
            let (prompt, messages) = match input {
                Input::Prompt(prompt) => (prompt, None),
                Input::Messages(messages) => (String::new(), Some(messages)),
            };
            TaskDocument { prompt, messages, system, options, ..base }
        }
        Work::Embedding { text } => TaskDocument { prompt: text, task_type: Some(TaskKind::Embedding), ..base },
        Work::Whole(request) => {
            let is_embedding = matches!(*request, WholeRequest::Embed { .. });
            let task_type = is_embedding.then_some(TaskKind::Embedding);
            TaskDocument { request: Some(request), task_type, ..base }
        }
        Work::Ping { payload } => {
            TaskDocument { prompt: payload.to_string(), task_type: Some(TaskKind::Ping), model: String::new(), ..base }
        }
    }
}

pub(super) fn check(submission: &Submission) -> Result<(), TasksError> {
    let invalid = |param, message: &str| Err(TasksError::invalid(param, message));
    if !(1..=10).contains(&submission.priority) {
        return invalid("priority", "the priority must be from 1 to 10");
    }
    if submission.max_attempts.is_some_and(|attempts| !(1..=ATTEMPTS_MAX).contains(&attempts)) {
        return invalid("max_attempts", "a task is tried from 1 to 100 times");
    }
    if submission.timeout.is_some_and(|timeout| timeout.is_zero()) {
        return invalid("timeout", "an attempt must have more than no time");
    }
    let is_ping = matches!(submission.work, Work::Ping { .. });
    if !is_ping && submission.model.is_empty() {
        return invalid("model", "say which model is to be asked");
    }
    if submission.model.len() > MODEL_BYTES_MAX {
        return invalid("model", "the name of the model is longer than 256 bytes");
    }
    if let Some(BatchItem { batch, item, .. }) = &submission.batch {
        if batch.is_empty() || batch.len() > BATCH_BYTES_MAX || batch.chars().any(char::is_control) {
            return invalid("batch", "the name of a batch has 1 to 128 bytes, without control characters");
        }
        if item.is_empty() || item.len() > ITEM_BYTES_MAX || item.chars().any(char::is_control) {
            return invalid("batch", "the name of an item has 1 to 256 bytes, without control characters");
        }
    }
    let templates = [("map", &submission.map), ("reduce", &submission.reduce), ("joiner", &submission.joiner)];
    for (param, template) in templates {
        if template.as_ref().is_some_and(|template| template.len() > TEMPLATE_BYTES_MAX) {
            return invalid(param, "templates and joiners have at most 8192 bytes");
        }
    }
    match &submission.work {
        Work::Inference { input: Input::Prompt(prompt), .. } if prompt.is_empty() => {
            invalid("prompt", "the prompt is empty")
        }
        Work::Inference { input: Input::Messages(messages), .. } if messages.is_empty() => {
            invalid("messages", "the conversation is empty")
        }
        Work::Embedding { text } if text.is_empty() => invalid("text", "the text is empty"),
        Work::Whole(request) if request.is_empty() => invalid("request", "the request asks for nothing"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::tasks::chunk::Chunking;

    use super::*;

    fn planned(submission: Submission) -> Plan {
        plan(submission, TaskId::parse("t").unwrap(), "me", 7).unwrap()
    }

    fn refused(submission: Submission) -> &'static str {
        match plan(submission, TaskId::parse("t").unwrap(), "me", 7) {
            Err(TasksError::Invalid { param, .. }) => param,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn others_are_told_how_often_a_task_is_tried_where_they_would_not_think_so() {
        assert_eq!((attempts(None, 3), attempts(None, 5), attempts(None, 1_000)), (None, Some(5), Some(100)));
        assert_eq!((attempts(Some(3), 5), attempts(Some(7), 3)), (Some(3), Some(7)));
    }

    #[test]
    fn a_prompt_that_is_not_cut_is_one_task_of_its_own_id() {
        let plan = planned(Submission::prompt("m", "hello"));
        assert_eq!((plan.id.as_str(), plan.documents.len()), ("t", 1));
        let document = &plan.documents[0];
        assert_eq!(
            (document.id.as_str(), document.prompt.as_str(), document.parent_task_id.as_ref()),
            ("t", "hello", None)
        );
        assert_eq!((document.priority, document.options.as_ref(), document.created_at), (None, None, 7));
    }

    #[test]
    fn parts_have_ids_and_places_of_their_own_and_the_sum_depends_on_all_of_them() {
        let cut = Submission {
            chunking: Chunking::Paragraph,
            max_chunk: Some(8),
            map: Some("<{text}>".to_owned()),
            reduce: Some("sum: {text}".to_owned()),
            joiner: Some("|".to_owned()),
            ..Submission::prompt("m", "one one\n\ntwo two\n\nthree")
        };
        let plan = planned(cut.clone());
        let prompts: Vec<&str> = plan.documents.iter().map(|part| part.prompt.as_str()).collect();
        assert_eq!(prompts, ["<one one\n\n>", "<two two\n\n>", "<three>", ""]);
        let places: Vec<_> = plan.documents.iter().map(|part| part.chunk_index).collect();
        assert_eq!(places, [Some(0), Some(1), Some(2), None]);
        assert!(plan.documents.iter().all(|part| part.parent_task_id.as_ref() == Some(&plan.id)));
        assert!(plan.documents.iter().all(|part| part.total_chunks == Some(3) && part.join.as_deref() == Some("|")));
        let sum = &plan.documents[3];
        let parts: Vec<TaskId> = plan.documents[..3].iter().map(|part| part.id.clone()).collect();
        assert_eq!((sum.depends_on(), sum.reduce.as_deref()), (parts.as_slice(), Some("sum: {text}")));
        assert_eq!(planned(cut), plan, "the same submission means the same tasks");
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_field_that_says_so() {
        let prompt = || Submission::prompt("m", "hello");
        assert_eq!(refused(Submission { priority: 11, ..prompt() }), "priority");
        assert_eq!(refused(Submission { model: String::new(), ..prompt() }), "model");
        assert_eq!(refused(Submission { max_attempts: Some(0), ..prompt() }), "max_attempts");
        assert_eq!(refused(Submission { timeout: Some(Duration::ZERO), ..prompt() }), "timeout");
        assert_eq!(refused(Submission::prompt("m", "")), "prompt");
        let batch = Some(BatchItem { batch: "b\n".to_owned(), item: "1".to_owned(), total: None });
        assert_eq!(refused(Submission { batch, ..prompt() }), "batch");
        let none = Submission { chunking: Chunking::Size, max_chunk: Some(0), ..prompt() };
        assert_eq!(refused(none), "max_chunk");
        let vector = Work::Embedding { text: "text".to_owned() };
        assert_eq!(refused(Submission { chunking: Chunking::Size, ..Submission::new("m", vector) }), "chunking");
        let ping = Work::Ping { payload: serde_json::json!({ "n": 1 }) };
        assert_eq!(planned(Submission::new("", ping)).documents[0].prompt, "{\"n\":1}");
    }
}
