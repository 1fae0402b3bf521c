//! What clients are answered.

use bombus_core::chat::{Timings, TokenAlternative, TokenLogprob, Usage};
use bombus_core::model::ModelInfo;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::inference::Continuation;
use crate::models::Places;

/// What stands for a probability of zero, whose logarithm JSON cannot write.
const LOGPROB_MIN: f32 = -9999.0;

/// An answer to a prompt, or a piece of one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaGenerateResponse)]
pub(crate) struct GenerateResponse<'a> {
    /// The model's name as the request has it.
    pub(super) model: &'a str,
    /// Date and time in UTC (RFC 3339).
    pub(super) created_at: String,
    pub(super) response: &'a str,
    /// What the model thought before it answered.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) thinking: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) tool_calls: &'a [AnswerToolCall],
    /// Whether this is the end.
    pub(super) done: bool,
    /// `stop`, `length`, `load` or `unload`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) done_reason: Option<&'static str>,
    /// Tokens of prompt and answer, to be sent with the next request so that the conversation goes on.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) context: &'a [u32],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) logprobs: &'a [Logprob],
    /// Who went on with the answer each time that it broke off; only at its end.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) continued: &'a [Continuation],
    #[serde(flatten)]
    pub(super) metrics: Metrics,
}

/// An answer to a conversation, or a piece of one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaChatResponse)]
pub(crate) struct ChatResponse<'a> {
    /// The model's name as the request has it.
    pub(super) model: &'a str,
    /// Date and time in UTC (RFC 3339).
    pub(super) created_at: String,
    pub(super) message: AnswerMessage<'a>,
    /// Whether this is the end.
    pub(super) done: bool,
    /// `stop`, `length`, `load` or `unload`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) done_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) logprobs: &'a [Logprob],
    /// Who went on with the answer each time that it broke off; only at its end.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) continued: &'a [Continuation],
    #[serde(flatten)]
    pub(super) metrics: Metrics,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaAnswerMessage)]
pub(crate) struct AnswerMessage<'a> {
    /// Always `assistant`.
    pub(super) role: &'static str,
    pub(super) content: &'a str,
    /// What the model thought before it spoke.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) thinking: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) tool_calls: &'a [AnswerToolCall],
}

/// A call of a tool by the model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaAnswerToolCall)]
pub(crate) struct AnswerToolCall {
    pub(super) id: String,
    pub(super) function: AnswerFunctionCall,
}

/// What is called with what.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaAnswerFunctionCall)]
pub(crate) struct AnswerFunctionCall {
    /// Which call of this answer, from 0.
    pub(super) index: u32,
    pub(super) name: String,
    /// An object.
    #[schema(value_type = Object)]
    pub(super) arguments: Map<String, Value>,
}

/// What an answer took. Only the end of an answer has it.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = OllamaMetrics)]
pub(crate) struct Metrics {
    /// From the request to the end of the answer, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    total_duration: Option<u64>,
    /// Loading the model, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    load_duration: Option<u64>,
    /// Tokens of the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_eval_count: Option<u32>,
    /// Computing the prompt, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_eval_duration: Option<u64>,
    /// Tokens generated.
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_count: Option<u32>,
    /// Generating them, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_duration: Option<u64>,
}

impl Metrics {
    /// Tells what an answer took that ends now.
    pub(super) fn of(took: std::time::Duration, timings: &Timings, usage: &Usage) -> Self {
        Self {
            total_duration: Some(nanoseconds(took)),
            load_duration: Some(nanoseconds_of(timings.load_ms)),
            prompt_eval_count: Some(usage.prompt_tokens),
            prompt_eval_duration: Some(nanoseconds_of(timings.prompt_ms)),
            eval_count: Some(usage.completion_tokens),
            eval_duration: Some(nanoseconds_of(timings.generate_ms)),
        }
    }
}

/// Returns a time in whole nanoseconds.
pub(super) fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn nanoseconds_of(milliseconds: f64) -> u64 {
    (milliseconds * 1e6) as u64
}

/// A token with its log probability and those that could have stood in its place.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaLogprob)]
pub(crate) struct Logprob {
    token: String,
    logprob: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_logprobs: Vec<TopLogprob>,
}

/// A token that could stand somewhere.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaTopLogprob)]
pub(crate) struct TopLogprob {
    token: String,
    logprob: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bytes: Vec<u8>,
}

impl Logprob {
    /// Describes a token of an answer.
    pub(super) fn of(token: TokenLogprob) -> Self {
        let TopLogprob { token: text, logprob, bytes } = TopLogprob::of(token.token);
        Self { token: text, logprob, bytes, top_logprobs: token.top.into_iter().map(TopLogprob::of).collect() }
    }
}

impl TopLogprob {
    fn of(token: TokenAlternative) -> Self {
        let logprob = if token.logprob.is_finite() { token.logprob.max(LOGPROB_MIN) } else { LOGPROB_MIN };
        Self { token: String::from_utf8_lossy(&token.bytes).into_owned(), logprob, bytes: token.bytes }
    }
}

/// Vectors of texts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaEmbedResponse)]
pub(crate) struct EmbedResponse {
    /// The model's name as the request has it.
    pub(super) model: String,
    /// One vector of length 1 for each text, in order.
    pub(super) embeddings: Vec<Vec<f32>>,
    /// From the request to its end, in nanoseconds.
    pub(super) total_duration: u64,
    /// Loading the model, in nanoseconds; 0 where the backend does not tell.
    pub(super) load_duration: u64,
    /// Tokens of all texts together.
    pub(super) prompt_eval_count: u32,
}

/// The vector of a text.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaEmbeddingsResponse)]
pub(crate) struct EmbeddingsResponse {
    /// Empty where only the model was loaded.
    pub(super) embedding: Vec<f32>,
}

/// The level of the dialect that is spoken.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaVersion)]
pub(crate) struct Version {
    /// The version of Ollama whose dialect this is.
    pub(super) version: &'static str,
}

/// What clients that know Ollama's own cloud look for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaStatus)]
pub(crate) struct Status {
    pub(super) cloud: CloudStatus,
}

/// Whether Ollama's cloud is used.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaCloudStatus)]
pub(crate) struct CloudStatus {
    /// Always `true`: it is not.
    pub(super) disabled: bool,
    /// Always `config`.
    pub(super) source: &'static str,
}

/// The models there are.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaTags)]
pub(crate) struct Tags {
    pub(super) models: Vec<Tag>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaTag)]
pub(crate) struct Tag {
    pub(super) name: String,
    pub(super) model: String,
    /// When it came to this machine (RFC 3339); the year 1 where unknown.
    pub(super) modified_at: String,
    /// Size of the weights in bytes; 0 where unknown.
    pub(super) size: u64,
    /// SHA-256 of the weights or, where that is unknown, of the model's name.
    pub(super) digest: String,
    pub(super) details: Details,
    /// Where in the swarm it is.
    pub(super) bombus: Places,
}

/// What is known about a model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaDetails)]
pub(crate) struct Details {
    /// The model of which this one is a name with other defaults.
    pub(super) parent_model: String,
    /// `gguf`, or empty where unknown.
    pub(super) format: &'static str,
    /// Architecture, for example `llama`.
    pub(super) family: String,
    pub(super) families: Vec<String>,
    /// Number of weights, for example `134.52M`.
    pub(super) parameter_size: String,
    /// Quantisation, for example `Q4_1`.
    pub(super) quantization_level: String,
}

impl Details {
    /// Describes a model that derives from no other.
    pub(super) fn of(info: &ModelInfo) -> Self {
        let family = info.family.clone().unwrap_or_default();
        Self {
            parent_model: String::new(),
            // The weights that anybody here can look into are of this format.
            format: if info.quantization.is_some() { "gguf" } else { "" },
            families: if family.is_empty() { Vec::new() } else { vec![family.clone()] },
            family,
            parameter_size: info.parameters.map(human_number).unwrap_or_default(),
            quantization_level: info.quantization.clone().unwrap_or_default(),
        }
    }
}

/// Writes a number of weights as people say it, for example `8B` or `134.52M`.
fn human_number(number: u64) -> String {
    let scaled = |unit: f64, letter: char, digits: usize| {
        let value = number as f64 / unit;
        let digits = if value.fract() == 0.0 { 0 } else { digits };
        format!("{value:.digits$}{letter}")
    };
    match number {
        1_000_000_000.. => scaled(1e9, 'B', 1),
        1_000_000.. => scaled(1e6, 'M', 2),
        1_000.. => scaled(1e3, 'K', 0),
        _ => number.to_string(),
    }
}

/// The models in memory.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaProcesses)]
pub(crate) struct Processes {
    pub(super) models: Vec<Process>,
}

/// A model in memory.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaProcess)]
pub(crate) struct Process {
    pub(super) name: String,
    pub(super) model: String,
    /// Memory that it takes, in bytes.
    pub(super) size: u64,
    /// SHA-256 of the weights or, where that is unknown, of the model's name.
    pub(super) digest: String,
    pub(super) details: Details,
    /// When it is unloaded unless it is used again (RFC 3339); the year 2999 stands for never.
    pub(super) expires_at: String,
    /// How much of `size` is memory of GPUs, in bytes.
    pub(super) size_vram: u64,
    /// Tokens that its loaded context holds.
    pub(super) context_length: u32,
    /// The nodes that have it in memory.
    pub(super) bombus: Places,
}

/// Everything about a model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaShowResponse)]
pub(crate) struct ShowResponse {
    /// Licence texts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) license: String,
    /// A file that makes this model of another one.
    pub(super) modelfile: String,
    /// Defaults of options, one on a line.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) parameters: String,
    /// The prompt template.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) template: String,
    /// System message of conversations that bring none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) system: String,
    /// What an Ollama server makes its prompts with in place of the template.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) renderer: String,
    /// What an Ollama server reads its answers with.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) parser: String,
    pub(super) details: Details,
    /// Messages that stand before every conversation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) messages: Vec<ShownMessage>,
    /// The keys of the model's file, for example `general.architecture`; long lists are left empty unless `verbose` is asked for.
    #[schema(value_type = Object)]
    pub(super) model_info: Map<String, Value>,
    /// The keys of its projector's file.
    #[schema(value_type = Object)]
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(super) projector_info: Map<String, Value>,
    /// What it can do: `completion`, `tools`, `embedding`, `vision`, `thinking`, `insert`.
    pub(super) capabilities: Vec<String>,
    /// When it came to this machine (RFC 3339); the year 1 where unknown.
    pub(super) modified_at: String,
    /// The oldest version of Ollama that can run it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) requires: String,
}

/// A message that stands before every conversation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaShownMessage)]
pub(crate) struct ShownMessage {
    pub(super) role: &'static str,
    pub(super) content: String,
}

/// How a long work goes on.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaProgress)]
pub(crate) struct ProgressLine {
    /// What is being done; `success` at the end.
    pub(super) status: String,
    /// Digest of the file that the step is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<String>,
    /// Size of that file in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) total: Option<u64>,
    /// How much of it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) completed: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::human_number;

    #[test]
    fn numbers_of_weights_are_written_as_people_say_them() {
        for (number, text) in [
            (8_000_000_000, "8B"),
            (8_030_261_312, "8.0B"),
            (134_515_008, "134.52M"),
            (22_000_000, "22M"),
            (45_600, "46K"),
            (12, "12"),
        ] {
            assert_eq!(human_number(number), text);
        }
    }
}
