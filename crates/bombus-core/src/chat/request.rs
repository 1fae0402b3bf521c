use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Message;

/// A request to generate text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// The model's name as the client wrote it, resolved by [`crate::model::ModelName`].
    pub model: String,
    /// What the model continues.
    pub prompt: Prompt,
    /// Tools that the model may call; only with [`Prompt::Chat`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// Whether and which tool has to be called.
    #[serde(default)]
    pub tool_choice: ToolChoice,
    /// The form that the answer has to have.
    #[serde(default)]
    pub response_format: ResponseFormat,
    /// How the next token is chosen.
    #[serde(default)]
    pub sampling: Sampling,
    /// Texts at which the answer ends; they are not part of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Most tokens to generate. `None`: until the model ends or its context is full.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Goes on past the model's end-of-text tokens, as llama-server's option of that name does; for measurements.
    #[serde(default)]
    pub ignore_eos: bool,
    /// `Some(k)`: report the log probability of each token and of the `k` likeliest alternatives (0 to 20).
    #[serde(default)]
    pub logprobs: Option<u8>,
}

impl ChatRequest {
    /// Builds a request with every option at its default.
    #[must_use]
    pub fn new(model: impl Into<String>, prompt: Prompt) -> Self {
        Self {
            model: model.into(),
            prompt,
            tools: Vec::new(),
            tool_choice: ToolChoice::default(),
            response_format: ResponseFormat::default(),
            sampling: Sampling::default(),
            stop: Vec::new(),
            max_tokens: None,
            ignore_eos: false,
            logprobs: None,
        }
    }
}

/// What the model is asked to continue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prompt {
    /// A conversation, put into the model's own chat template.
    Chat(Vec<Message>),
    /// Text as it stands, without a template.
    Raw(String),
    /// Token ids of the model's own vocabulary.
    Tokens(Vec<u32>),
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// The function's name.
    pub name: String,
    /// What it does, for the model to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments.
    pub parameters: Value,
}

/// Whether the model has to call a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No tool is called.
    None,
    /// Some tool has to be called.
    Required,
    /// This tool has to be called.
    Named(String),
}

/// The form of the answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Free text.
    #[default]
    Text,
    /// Some JSON object.
    JsonObject,
    /// JSON that fits this schema.
    JsonSchema(Value),
}

/// How the next token is chosen. `None` leaves a value to the backend's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Softmax temperature, at least 0; 0 always takes the likeliest token.
    pub temperature: Option<f32>,
    /// Nucleus sampling: keep the smallest set with this total probability, 0 to 1.
    pub top_p: Option<f32>,
    /// Keep only this many likeliest tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keep tokens at least this probable relative to the likeliest, 0 to 1.
    pub min_p: Option<f32>,
    /// Makes the choice repeatable.
    pub seed: Option<u32>,
    /// Divides the logits of recent tokens; 1 has no effect.
    pub repeat_penalty: Option<f32>,
    /// How many recent tokens the penalties look at.
    pub repeat_last_n: Option<u32>,
    /// Subtracted from the logit of every token that has occurred, -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Subtracted from a token's logit for each time it has occurred, -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Added to the logits of single tokens: (token id, bias from -100 to 100).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<(u32, f32)>,
}

/// A request for embedding vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbedRequest {
    /// The model's name as the client wrote it.
    pub model: String,
    /// One vector is made of each.
    pub inputs: Vec<EmbedInput>,
}

/// One input of an [`EmbedRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbedInput {
    /// Text, tokenised by the model.
    Text(String),
    /// Token ids of the model's own vocabulary.
    Tokens(Vec<u32>),
}

/// The answer to an [`EmbedRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbedResponse {
    /// One vector of Euclidean length 1 for each input, in order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs together.
    pub prompt_tokens: u32,
}
