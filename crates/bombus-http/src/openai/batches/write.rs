//! What came of the lines of a batch, as lines of the files that are computed of it.

use bombus_core::batches::{BatchLine, LineOutcome};
use bombus_core::chat::{EmbedResponse, FinishReason, ToolCallDelta};
use bombus_core::tasks::{ChatAnswer, TaskId, WholeAnswer};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::super::logprobs::CompletionLogprobs;
use super::super::response::{
    ChatCompletion, Completion, CompletionChoice, Embedding, EmbeddingList, EmbeddingUsage, Usage,
};
use super::super::stream::{Collected, finish_name};
use super::super::{chat, embeddings};
use super::read::{BASE64, CHAT, LOGPROBS};

#[derive(Serialize)]
struct OutputLine {
    id: String,
    custom_id: String,
    response: Option<OutputResponse>,
    error: Option<OutputError>,
}

#[derive(Serialize)]
struct OutputResponse {
    status_code: u16,
    request_id: String,
    body: Value,
}

#[derive(Serialize)]
struct OutputError {
    code: &'static str,
    message: String,
}

/// Writes a line, with its end.
pub(crate) fn line(line: BatchLine, fingerprint: &str) -> Bytes {
    let name = line.task.as_str().replace('-', "");
    let respond = |status_code, body| OutputResponse { status_code, request_id: format!("req_{name}"), body };
    let (response, error) = match line.outcome {
        LineOutcome::Answered { model, created, answer } => {
            (Some(respond(200, body(&line.task, model, created, *answer, fingerprint))), None)
        }
        LineOutcome::Refused { status, body } => (Some(respond(status, body)), None),
        LineOutcome::Failed { code, message } => (None, Some(OutputError { code, message })),
    };
    let whole = OutputLine { id: format!("batch_req_{name}"), custom_id: line.custom_id, response, error };
    let mut written = serde_json::to_vec(&whole).expect("plain data has a JSON form");
    written.push(b'\n');
    written.into()
}

/// Writes what a request by itself would have been answered.
fn body(task: &TaskId, model: String, created: u64, answer: WholeAnswer, fingerprint: &str) -> Value {
    let value = match answer {
        WholeAnswer::Chat { answers, answers_each, form } => {
            let mut usage = Usage::default();
            let each = usize::try_from(answers_each).unwrap_or(1).max(1);
            for (index, answer) in answers.iter().enumerate() {
                usage.add(&answer.usage, index % each == 0);
            }
            let with_logprobs = form.split(' ').any(|word| word == LOGPROBS);
            if form.split(' ').any(|word| word == CHAT) {
                let choices = answers.into_iter().map(collected).enumerate();
                serde_json::to_value(ChatCompletion {
                    id: format!("chatcmpl-{task}"),
                    object: "chat.completion",
                    created,
                    model,
                    system_fingerprint: fingerprint.to_owned(),
                    choices: choices.map(|(index, answer)| chat::choice(index, answer, with_logprobs)).collect(),
                    usage,
                    timings: None,
                    bombus: None,
                })
            } else {
                completion(task, &model, created, &answers, with_logprobs, usage, fingerprint)
            }
        }
        WholeAnswer::Embed { response, form } => embedding(model, response, form == BASE64),
        WholeAnswer::Elsewhere => Ok(Value::Null),
    };
    value.expect("plain data has a JSON form")
}

fn collected(answer: ChatAnswer) -> Collected {
    let ChatAnswer { text, thinking, tool_calls, logprobs, finish, .. } = answer;
    let call = |(index, call): (u32, bombus_core::chat::ToolCall)| ToolCallDelta {
        index,
        id: Some(call.id),
        name: Some(call.name),
        arguments: call.arguments,
    };
    let tool_calls: Vec<_> = (0..).zip(tool_calls).map(call).collect();
    // Some models say that they have stopped where they call tools.
    let finish = if tool_calls.is_empty() || finish != FinishReason::Stop { finish } else { FinishReason::ToolCalls };
    Collected { text, thinking, logprobs, tool_calls, finish: Some(finish) }
}

fn completion(
    task: &TaskId,
    model: &str,
    created: u64,
    answers: &[ChatAnswer],
    with_logprobs: bool,
    usage: Usage,
    fingerprint: &str,
) -> serde_json::Result<Value> {
    let choice = |(index, answer): (usize, &ChatAnswer)| {
        let mut logprobs = CompletionLogprobs::default();
        logprobs.extend(&answer.logprobs, &mut 0);
        (index, with_logprobs.then_some(logprobs), finish_name(answer.finish))
    };
    let told = answers.iter().enumerate().map(choice).zip(answers);
    let choices: Vec<_> = told
        .map(|((index, logprobs, finish), answer)| CompletionChoice {
            index,
            text: &answer.text,
            logprobs,
            finish_reason: Some(finish),
        })
        .collect();
    serde_json::to_value(Completion {
        id: &format!("cmpl-{task}"),
        object: "text_completion",
        created,
        model,
        system_fingerprint: fingerprint,
        choices: &choices,
        usage: Some(Some(usage)),
        timings: None,
        bombus: None,
    })
}

fn embedding(model: String, response: EmbedResponse, base64: bool) -> serde_json::Result<Value> {
    let EmbedResponse { vectors, prompt_tokens, .. } = response;
    let vectors = vectors.into_iter().enumerate();
    serde_json::to_value(EmbeddingList {
        object: "list",
        data: vectors
            .map(|(index, vector)| Embedding {
                object: "embedding",
                index,
                embedding: embeddings::write(vector, base64),
            })
            .collect(),
        model,
        usage: EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens },
    })
}
