//! The documents of Ollama's API, as its version 0.24 writes and reads them (`docs/api.md` there).
//!
//! What is missing or null is empty. Durations are in nanoseconds; 0 where the server does not tell.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// What `/api/generate` and `/api/chat` have in common.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RunOptions {
    /// How the model runs.
    pub options: Options,
    /// `"json"`, or a JSON schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Value>,
    /// How long the model stays loaded afterwards, in seconds; -1: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<i64>,
    /// `true`, `false`, or a level such as `"high"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub think: Option<Value>,
    /// Whether a prompt that is longer than the context is cut; by default it is. Servers before 0.12.6 cut always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate: Option<bool>,
    /// Whether the beginning is dropped where the context is full; by default it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<bool>,
    /// Whether log probabilities are reported.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub logprobs: bool,
    /// For how many alternatives of each token, 0 to 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<u8>,
}

/// The options that have a field in [`Options`].
pub(super) const OPTIONS: [&str; 13] = [
    "frequency_penalty",
    "min_p",
    "num_ctx",
    "num_keep",
    "num_predict",
    "presence_penalty",
    "repeat_last_n",
    "repeat_penalty",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_p",
];

/// Options of a run. What is `None` is the model's own or Ollama's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Options {
    /// Tokens that the context holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<u32>,
    /// Most tokens to generate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_predict: Option<u32>,
    /// Tokens at the beginning that `shift` never drops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_keep: Option<u32>,
    /// Softmax temperature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keep only so many likeliest tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Keep tokens at least so probable relative to the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Makes the choice repeatable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// Divides the logits of recent tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<f32>,
    /// How many recent tokens the penalties look at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_last_n: Option<u32>,
    /// Subtracted from the logits of tokens that occurred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// Subtracted from a token's logit for each time it occurred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Texts at which the answer ends, in place of the model's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Options that have no field here, for example `num_gpu`, as the server names them.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// Asks `/api/generate`. Without a prompt the model is loaded, or unloaded where `keep_alive` is 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GenerateRequest {
    /// The model's name.
    pub model: String,
    /// The prompt.
    pub prompt: String,
    /// What is to stand after the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// The system message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// A prompt template in Go's notation in place of the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Tokens that stand before the prompt, from an earlier answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub context: Vec<u32>,
    /// Whether the prompt is taken as it stands, without a template.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub raw: bool,
    /// Pictures in base64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// What it has in common with `/api/chat`.
    #[serde(flatten)]
    pub run: RunOptions,
}

/// Asks `/api/chat`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatRequest {
    /// The model's name.
    pub model: String,
    /// The conversation.
    pub messages: Vec<Message>,
    /// Tools that the model may call, as `{"type": "function", "function": {name, description, parameters}}`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
    /// What it has in common with `/api/generate`.
    #[serde(flatten)]
    pub run: RunOptions,
}

/// A turn of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    #[serde(default, deserialize_with = "or_empty")]
    pub role: String,
    /// Its text.
    #[serde(default, deserialize_with = "or_empty")]
    pub content: String,
    /// What an assistant thought before it spoke.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    /// Pictures in base64.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Tools that an assistant calls.
    #[serde(default, deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// For `tool`: the tool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_name: Option<String>,
    /// For `tool`: the call that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// A call of a tool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Its id; older servers give none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What is called.
    pub function: ToolCallFunction,
}

/// What a [`ToolCall`] calls.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ToolCallFunction {
    /// The tool's name.
    pub name: String,
    /// Its arguments, an object.
    #[serde(default)]
    pub arguments: Value,
}

/// A piece of an answer of `/api/generate` or `/api/chat`, or a whole one.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Answer {
    /// The model's name.
    #[serde(default, deserialize_with = "or_empty")]
    pub model: String,
    /// The text of `/api/generate`.
    #[serde(default, deserialize_with = "or_empty")]
    pub response: String,
    /// What the model thinks, of `/api/generate`.
    #[serde(default, deserialize_with = "or_empty")]
    pub thinking: String,
    /// The turn of `/api/chat`.
    #[serde(default, deserialize_with = "or_empty")]
    pub message: Message,
    /// Whether this is the last piece.
    #[serde(default, deserialize_with = "or_empty")]
    pub done: bool,
    /// Why it ended: `stop`, `length`, `load`, `unload`.
    #[serde(default, deserialize_with = "or_empty")]
    pub done_reason: String,
    /// The tokens of prompt and answer, of `/api/generate`.
    #[serde(default, deserialize_with = "or_empty")]
    pub context: Vec<u32>,
    /// The tokens of this piece.
    #[serde(default, deserialize_with = "or_empty")]
    pub logprobs: Vec<Logprob>,
    /// The whole time.
    #[serde(default, deserialize_with = "or_empty")]
    pub total_duration: i64,
    /// Waiting for the model to be loaded.
    #[serde(default, deserialize_with = "or_empty")]
    pub load_duration: i64,
    /// Tokens of the prompt as it was used.
    #[serde(default, deserialize_with = "or_empty")]
    pub prompt_eval_count: u32,
    /// Computing the prompt.
    #[serde(default, deserialize_with = "or_empty")]
    pub prompt_eval_duration: i64,
    /// Tokens generated.
    #[serde(default, deserialize_with = "or_empty")]
    pub eval_count: u32,
    /// Generating.
    #[serde(default, deserialize_with = "or_empty")]
    pub eval_duration: i64,
}

/// A token with its log probability.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Logprob {
    /// Its text.
    #[serde(default, deserialize_with = "or_empty")]
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    #[serde(default, deserialize_with = "or_empty")]
    pub bytes: Vec<u8>,
    /// The likeliest tokens at this place; theirs is empty.
    #[serde(default, deserialize_with = "or_empty")]
    pub top_logprobs: Vec<Logprob>,
}

/// Asks `/api/embed`. Without an input the model is loaded.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct EmbedRequest {
    /// The model's name.
    pub model: String,
    /// The texts.
    pub input: Vec<String>,
    /// Whether texts that are longer than the context are cut at their end; by default they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate: Option<bool>,
    /// Length of the vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// How long the model stays loaded afterwards, in seconds; -1: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<i64>,
    /// How the model runs.
    pub options: Options,
}

/// The answer of `/api/embed`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct EmbedResponse {
    /// One vector for each text, in order.
    #[serde(default, deserialize_with = "or_empty")]
    pub embeddings: Vec<Vec<f32>>,
    /// Waiting for the model to be loaded.
    #[serde(default, deserialize_with = "or_empty")]
    pub load_duration: i64,
    /// Tokens of all texts together.
    #[serde(default, deserialize_with = "or_empty")]
    pub prompt_eval_count: u32,
}

/// A model in the list of `/api/tags`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct ListedModel {
    /// Its name with its tag.
    pub name: String,
    /// When it came, in the form of RFC 3339.
    #[serde(default, deserialize_with = "or_empty")]
    pub modified_at: String,
    /// Its size in bytes.
    #[serde(default, deserialize_with = "or_empty")]
    pub size: u64,
    /// SHA-256 of its manifest.
    #[serde(default, deserialize_with = "or_empty")]
    pub digest: String,
    /// What it is.
    #[serde(default, deserialize_with = "or_empty")]
    pub details: Details,
}

/// What a model is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Details {
    /// The model that it was made of.
    #[serde(default, deserialize_with = "or_empty")]
    pub parent_model: String,
    /// Architecture.
    #[serde(default, deserialize_with = "or_empty")]
    pub family: String,
    /// Number of weights as people write it, for example `7.6B`.
    #[serde(default, deserialize_with = "or_empty")]
    pub parameter_size: String,
    /// Quantisation.
    #[serde(default, deserialize_with = "or_empty")]
    pub quantization_level: String,
}

/// A model in memory, in the list of `/api/ps`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct LoadedModel {
    /// Its name with its tag.
    pub name: String,
    /// Memory that it takes, in bytes.
    #[serde(default, deserialize_with = "or_empty")]
    pub size: u64,
    /// How much of that is memory of GPUs.
    #[serde(default, deserialize_with = "or_empty")]
    pub size_vram: u64,
    /// SHA-256 of its manifest.
    #[serde(default, deserialize_with = "or_empty")]
    pub digest: String,
    /// What it is.
    #[serde(default, deserialize_with = "or_empty")]
    pub details: Details,
    /// When it is unloaded, in the form of RFC 3339.
    #[serde(default, deserialize_with = "or_empty")]
    pub expires_at: String,
    /// Tokens that its context holds; 0 where the server does not tell.
    #[serde(default, deserialize_with = "or_empty")]
    pub context_length: u32,
}

/// The answer of `/api/show`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct ShowResponse {
    /// Licence texts, one after the other.
    #[serde(default, deserialize_with = "or_empty")]
    pub license: String,
    /// What the model is made of, as a Modelfile.
    #[serde(default, deserialize_with = "or_empty")]
    pub modelfile: String,
    /// Its defaults of options, one to a line.
    #[serde(default, deserialize_with = "or_empty")]
    pub parameters: String,
    /// Its prompt template.
    #[serde(default, deserialize_with = "or_empty")]
    pub template: String,
    /// Its system message.
    #[serde(default, deserialize_with = "or_empty")]
    pub system: String,
    /// What it is.
    #[serde(default, deserialize_with = "or_empty")]
    pub details: Details,
    /// Messages that stand before every conversation.
    #[serde(default, deserialize_with = "or_empty")]
    pub messages: Vec<Message>,
    /// The keys of its file.
    #[serde(default, deserialize_with = "or_empty")]
    pub model_info: Map<String, Value>,
    /// What it can do; older servers do not tell.
    #[serde(default)]
    pub capabilities: Option<Vec<String>>,
    /// Names what makes its prompts in place of the template; version 0.24 says that in the Modelfile alone, as it does the parser.
    #[serde(default, deserialize_with = "or_empty")]
    pub renderer: String,
    /// Names what reads its answers.
    #[serde(default, deserialize_with = "or_empty")]
    pub parser: String,
    /// The oldest version of Ollama that can run it.
    #[serde(default, deserialize_with = "or_empty")]
    pub requires: String,
    /// The keys of its projector's file.
    #[serde(default, deserialize_with = "or_empty")]
    pub projector_info: Map<String, Value>,
}

/// Asks `/api/pull`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PullRequest {
    /// The model's name.
    pub model: String,
    /// Whether its registry is asked over HTTP without TLS.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
}

/// Asks `/api/create`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CreateRequest {
    /// Name of the new model.
    pub model: String,
    /// The model that it is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Names and digests (`sha256:...`) of blobs with weights.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Names and digests of blobs with adapters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub adapters: BTreeMap<String, String>,
    /// Its prompt template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Its licence texts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub license: Vec<String>,
    /// Its system message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Its defaults of options.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
    /// Messages that stand before every conversation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// Quantisation that the weights are to be brought to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<String>,
    /// Names what makes its prompts in place of the template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renderer: Option<String>,
    /// Names what reads its answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parser: Option<String>,
    /// The oldest version of Ollama that can run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requires: Option<String>,
    /// Facts in place of those that its file tells. The server breaks down over one of another type than it expects.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub info: Map<String, Value>,
}

/// A step of `/api/pull` or `/api/create`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ProgressStep {
    /// What is being done; `success` at the end.
    #[serde(default, deserialize_with = "or_empty")]
    pub status: String,
    /// The file that it is about.
    #[serde(default, deserialize_with = "or_empty")]
    pub digest: String,
    /// Size of that file in bytes.
    #[serde(default)]
    pub total: Option<u64>,
    /// How much of it is there.
    #[serde(default)]
    pub completed: Option<u64>,
}

/// Reads null as what is empty, since Go writes it for empty lists.
fn or_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
