//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bombus_core::chat::{ChatRequest, Delta, FinishReason, Part, Prompt, ToolCallDelta, ToolChoice};
use bombus_core::model::ModelCapability;
use bombus_core::placement::{Need, Scope};

use super::logprobs::ChatLogprobs;
use super::request::ChatCompletionRequest;
use super::response::{
    AnswerFunctionCall, AnswerMessage, AnswerToolCall, ChatChoice, ChatChunkChoice, ChatCompletion,
    ChatCompletionChunk, ChatDelta, ChunkFunctionCall, ChunkToolCall, ServerSentEvent, Usage,
};
use super::stream::{self, Chunks, Collected, End, EventWriter, StreamPlan, finish_name};
use super::{now_unix_s, translate, unique_id};
use crate::app::SharedApp;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::inference::{Answers, Scoped, Target};

/// Answers a conversation, whole or as a stream of server-sent events.
#[utoipa::path(post, operation_id = "create_chat_completion", path = "/v1/chat/completions", tag = "openai", request_body = ChatCompletionRequest,
    responses((status = 200, description = "The answers; a stream of ChatCompletionChunk where `stream` is true", content(
        (ChatCompletion = "application/json"), (ServerSentEvent = "text/event-stream")
    ))))]
pub(crate) async fn create(
    State(app): State<SharedApp>,
    Scoped(scope): Scoped,
    JsonBody { value: request, bytes }: JsonBody<ChatCompletionRequest>,
) -> Result<Response, ApiError> {
    answer(app, scope, request, bytes).await.map_err(|error| error.rename_param("prompt", "messages"))
}

async fn answer(
    app: SharedApp,
    scope: Scope,
    mut request: ChatCompletionRequest,
    bytes: usize,
) -> Result<Response, ApiError> {
    let common = request.take_common();
    let (stream, include_usage, count) = (common.stream, common.include_usage, common.n);
    translate::check_count(count)?;
    translate::check_copies("n", count as usize, bytes)?;
    let named = request.model.take();
    let mut request = translate::chat_request(request, common, String::new())?;
    let target = Target::find(&app, named, need(&request).within(scope)).await?.for_answers(count);
    request.model.clone_from(&target.model);
    // Clients send it to every model, and what cannot think does not need to be told so.
    request.think = request.think.filter(|_| target.info().capabilities.contains(&ModelCapability::Thinking));

    let plan = StreamPlan { include_usage, answers_per_prompt: count as usize, answers: count as usize };
    let with_logprobs = request.logprobs.is_some();
    let model = target.model.clone();
    let answers = Answers::begin(&app, target, translate::repeat(&request, count).collect()).await?;
    let head = Head { id: unique_id("chatcmpl"), created: now_unix_s(), model, fingerprint: app.fingerprint.clone() };
    if stream {
        return Ok(stream::respond(answers, ChatChunks { head, with_logprobs, include_usage }, plan));
    }
    let all = stream::collect(answers, &plan).await?;
    let choices = all.answers.into_iter().enumerate();
    let completion = ChatCompletion {
        id: head.id,
        object: "chat.completion",
        created: head.created,
        model: head.model,
        system_fingerprint: head.fingerprint.to_string(),
        choices: choices.map(|(index, answer)| choice(index, answer, with_logprobs)).collect(),
        usage: all.usage,
        timings: all.timings,
        bombus: all.extras,
    };
    Ok((all.headers, Json(completion)).into_response())
}

fn need(request: &ChatRequest) -> Need {
    let mut need = Need::of([ModelCapability::Completion]);
    if !request.tools.is_empty() && request.tool_choice != ToolChoice::None {
        need.capabilities.push(ModelCapability::Tools);
    }
    if let Prompt::Chat(messages) = &request.prompt
        && messages.iter().flat_map(|message| &message.content).any(|part| matches!(part, Part::Image(_)))
    {
        need.capabilities.push(ModelCapability::Vision);
    }
    need
}

/// Describes an answer.
pub(super) fn choice(index: usize, answer: Collected, with_logprobs: bool) -> ChatChoice {
    let calls = answer.tool_calls.into_iter().map(|call| AnswerToolCall {
        id: call.id.unwrap_or_default(),
        kind: "function",
        function: AnswerFunctionCall { name: call.name.unwrap_or_default(), arguments: call.arguments },
    });
    let tool_calls: Vec<_> = calls.collect();
    ChatChoice {
        index,
        message: AnswerMessage {
            role: "assistant",
            content: (tool_calls.is_empty() || !answer.text.is_empty()).then_some(answer.text),
            reasoning_content: (!answer.thinking.is_empty()).then_some(answer.thinking),
            refusal: None,
            tool_calls,
        },
        logprobs: with_logprobs.then(|| ChatLogprobs::of(answer.logprobs)),
        finish_reason: finish_name(answer.finish.unwrap_or(FinishReason::Stop)),
    }
}

/// What stands in every chunk.
struct Head {
    id: String,
    created: u64,
    model: String,
    fingerprint: Arc<str>,
}

struct ChatChunks {
    head: Head,
    with_logprobs: bool,
    include_usage: bool,
}

impl ChatChunks {
    /// Builds a chunk without anything beside its choices.
    fn chunk<'a>(&'a self, choices: &'a [ChatChunkChoice<'a>]) -> ChatCompletionChunk<'a> {
        ChatCompletionChunk {
            id: &self.head.id,
            object: "chat.completion.chunk",
            created: self.head.created,
            model: &self.head.model,
            system_fingerprint: &self.head.fingerprint,
            choices,
            usage: self.include_usage.then_some(None),
            timings: None,
            bombus: None,
        }
    }

    fn write_delta(&self, index: usize, delta: ChatDelta<'_>, logprobs: Option<ChatLogprobs>, out: &mut EventWriter) {
        out.event(&self.chunk(&[ChatChunkChoice { index, delta, logprobs, finish_reason: None }]));
    }
}

impl Chunks for ChatChunks {
    fn open(&mut self, index: usize, out: &mut EventWriter) {
        let delta = ChatDelta { role: Some("assistant"), content: Some(""), ..ChatDelta::default() };
        self.write_delta(index, delta, None, out);
    }

    fn delta(&mut self, index: usize, delta: Delta, out: &mut EventWriter) {
        let logprobs = self.with_logprobs.then(|| ChatLogprobs::of(delta.logprobs));
        self.write_delta(index, ChatDelta { content: Some(&delta.text), ..ChatDelta::default() }, logprobs, out);
    }

    fn thinking(&mut self, index: usize, thinking: &str, out: &mut EventWriter) {
        self.write_delta(index, ChatDelta { reasoning_content: Some(thinking), ..ChatDelta::default() }, None, out);
    }

    fn tool_call(&mut self, index: usize, call: &ToolCallDelta, out: &mut EventWriter) {
        let piece = ChunkToolCall {
            index: call.index,
            id: call.id.as_deref(),
            kind: call.id.is_some().then_some("function"),
            function: ChunkFunctionCall { name: call.name.as_deref(), arguments: &call.arguments },
        };
        self.write_delta(index, ChatDelta { tool_calls: Some([piece]), ..ChatDelta::default() }, None, out);
    }

    fn finish(&mut self, index: usize, End { reason, timings, extras }: End, out: &mut EventWriter) {
        let finish_reason = Some(finish_name(reason));
        let choice = ChatChunkChoice { index, delta: ChatDelta::default(), logprobs: None, finish_reason };
        out.event(&ChatCompletionChunk { timings, bombus: extras, ..self.chunk(&[choice]) });
    }

    fn usage(&mut self, usage: Usage, out: &mut EventWriter) {
        out.event(&ChatCompletionChunk { usage: self.include_usage.then_some(Some(usage)), ..self.chunk(&[]) });
    }
}
