//! What clients get.

use serde::Serialize;
use utoipa::ToSchema;

use super::logprobs::{ChatLogprobs, CompletionLogprobs};
use crate::inference::Extras;
use crate::models::Places;

/// The models that there are.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// Always `list`.
    pub(crate) object: &'static str,
    pub(crate) data: Vec<Model>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    /// Its name, tag included.
    pub(crate) id: String,
    /// Always `model`.
    pub(crate) object: &'static str,
    /// When it came to this machine, in seconds since the Unix epoch; 0 where unknown.
    pub(crate) created: u64,
    /// The backend that runs it, or the node where that is another one.
    pub(crate) owned_by: String,
    pub(crate) meta: ModelMeta,
    /// Where in the swarm it is.
    pub(crate) bombus: Places,
}

/// What is known about a model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelMeta {
    /// `completion`, `tools`, `embedding`, `vision`, `thinking`, `insert`.
    #[schema(value_type = Vec<String>)]
    pub(crate) capabilities: Vec<bombus_core::model::ModelCapability>,
    #[schema(required)]
    pub(crate) context_tokens: Option<u32>,
    #[schema(required)]
    pub(crate) family: Option<String>,
    #[schema(required)]
    pub(crate) parameters: Option<u64>,
    #[schema(required)]
    pub(crate) quantization: Option<String>,
    #[schema(required)]
    pub(crate) size_bytes: Option<u64>,
    /// Whether it is in memory now.
    pub(crate) warm: bool,
}

/// The answers to a conversation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    pub(crate) id: String,
    /// Always `chat.completion`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) system_fingerprint: String,
    pub(crate) choices: Vec<ChatChoice>,
    pub(crate) usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timings: Option<Timings>,
    /// There only where an answer broke off and another backend or node went on with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bombus: Option<Extras>,
}

/// One answer to a conversation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    pub(crate) index: usize,
    pub(crate) message: AnswerMessage,
    #[schema(required)]
    pub(crate) logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub(crate) finish_reason: &'static str,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnswerMessage {
    /// Always `assistant`.
    pub(crate) role: &'static str,
    /// `null` where the model only calls tools.
    #[schema(required)]
    pub(crate) content: Option<String>,
    /// What the model thought before it answered, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<String>,
    /// Always `null`: local models have no separate refusals.
    #[schema(required)]
    pub(crate) refusal: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<AnswerToolCall>,
}

/// A call of a function by the model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnswerToolCall {
    pub(crate) id: String,
    /// Always `function`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) function: AnswerFunctionCall,
}

/// What is called with what.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AnswerFunctionCall {
    pub(crate) name: String,
    /// JSON text, as the model wrote it.
    pub(crate) arguments: String,
}

/// An event of a streamed answer to a conversation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChatCompletionChunk)]
pub(crate) struct ChatCompletionChunk<'a> {
    pub(crate) id: &'a str,
    /// Always `chat.completion.chunk`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) system_fingerprint: &'a str,
    pub(crate) choices: &'a [ChatChunkChoice<'a>],
    /// There only with `stream_options.include_usage`, and `null` but in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub(crate) usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timings: Option<Timings>,
    /// At the end of an answer that broke off and with which another backend or node went on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bombus: Option<Extras>,
}

/// An event of a stream, as readers of server-sent events take it apart.
#[derive(ToSchema)]
#[expect(dead_code, reason = "stands for the stream in the API document alone")]
pub(crate) struct ServerSentEvent {
    /// A chunk or, in the last event, `[DONE]`; an error instead of it where the answer breaks off.
    data: String,
}

/// More of one answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChatChunkChoice)]
pub(crate) struct ChatChunkChoice<'a> {
    pub(crate) index: usize,
    pub(crate) delta: ChatDelta<'a>,
    #[schema(required)]
    pub(crate) logprobs: Option<ChatLogprobs>,
    /// `null` but in the last chunk of an answer.
    #[schema(required)]
    pub(crate) finish_reason: Option<&'static str>,
}

/// What more there is.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = ChatDelta)]
pub(crate) struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<&'a str>,
    /// More of what the model thinks before it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tool_calls: Option<[ChunkToolCall<'a>; 1]>,
}

/// A piece of a call.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChunkToolCall)]
pub(crate) struct ChunkToolCall<'a> {
    /// Which call of this answer.
    pub(crate) index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<&'a str>,
    /// `function`, in the first piece of a call.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    pub(crate) function: ChunkFunctionCall<'a>,
}

/// A piece of what is called with what.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChunkFunctionCall)]
pub(crate) struct ChunkFunctionCall<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<&'a str>,
    /// More of the JSON text.
    pub(crate) arguments: &'a str,
}

/// Continuations of a text, whole or, as an event of a stream, a piece of one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Completion)]
pub(crate) struct Completion<'a> {
    pub(crate) id: &'a str,
    /// Always `text_completion`.
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) system_fingerprint: &'a str,
    pub(crate) choices: &'a [CompletionChoice<'a>],
    /// In streams there only with `stream_options.include_usage`, and `null` but in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub(crate) usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timings: Option<Timings>,
    /// At the end of an answer that broke off and with which another backend or node went on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bombus: Option<Extras>,
}

/// One continuation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CompletionChoice)]
pub(crate) struct CompletionChoice<'a> {
    pub(crate) index: usize,
    pub(crate) text: &'a str,
    #[schema(required)]
    pub(crate) logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; in streams `null` but in the last chunk of a continuation.
    #[schema(required)]
    pub(crate) finish_reason: Option<&'static str>,
}

/// The vectors of an embedding request.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingList {
    /// Always `list`.
    pub(crate) object: &'static str,
    pub(crate) data: Vec<Embedding>,
    pub(crate) model: String,
    pub(crate) usage: EmbeddingUsage,
}

/// One vector.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Embedding {
    /// Always `embedding`.
    pub(crate) object: &'static str,
    pub(crate) index: usize,
    pub(crate) embedding: Vector,
}

/// A vector, in the form that was asked for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

/// Tokens that an embedding request cost.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct EmbeddingUsage {
    pub(crate) prompt_tokens: u32,
    pub(crate) total_tokens: u32,
}

/// Tokens that a request cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    pub(crate) total_tokens: u32,
    pub(crate) prompt_tokens_details: PromptTokensDetails,
    /// Left out where nothing is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) completion_tokens_details: Option<CompletionTokensDetails>,
}

/// What kinds of prompt tokens there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    /// Those that were not computed again.
    pub(crate) cached_tokens: u32,
}

/// What kinds of generated tokens there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct CompletionTokensDetails {
    /// Those of thoughts.
    pub(crate) reasoning_tokens: u32,
}

/// Where the time went, by llama-server's names; left out where there is more than one answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub(crate) struct Timings {
    pub(crate) load_ms: f64,
    pub(crate) queue_ms: f64,
    /// Prompt tokens taken from the cache.
    pub(crate) cache_n: u32,
    /// Prompt tokens computed.
    pub(crate) prompt_n: u32,
    pub(crate) prompt_ms: f64,
    #[schema(required)]
    pub(crate) prompt_per_second: Option<f64>,
    pub(crate) predicted_n: u32,
    pub(crate) predicted_ms: f64,
    #[schema(required)]
    pub(crate) predicted_per_second: Option<f64>,
}

impl Usage {
    /// Adds what one more answer cost. A prompt counts once, however many answers it gets.
    pub(crate) fn add(&mut self, usage: &bombus_core::chat::Usage, first_of_prompt: bool) {
        if first_of_prompt {
            self.prompt_tokens += usage.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += usage.cached_tokens;
        }
        self.completion_tokens += usage.completion_tokens;
        if usage.reasoning_tokens > 0 {
            self.completion_tokens_details.get_or_insert_default().reasoning_tokens += usage.reasoning_tokens;
        }
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

impl Timings {
    pub(crate) fn of(timings: &bombus_core::chat::Timings, usage: &bombus_core::chat::Usage) -> Self {
        let computed = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        let prompt_per_second = (timings.prompt_ms > 0.0).then(|| f64::from(computed) * 1000.0 / timings.prompt_ms);
        Self {
            load_ms: timings.load_ms,
            queue_ms: timings.queue_ms,
            cache_n: usage.cached_tokens,
            prompt_n: computed,
            prompt_ms: timings.prompt_ms,
            prompt_per_second,
            predicted_n: usage.completion_tokens,
            predicted_ms: timings.generate_ms,
            predicted_per_second: timings.tokens_per_second(usage),
        }
    }
}
