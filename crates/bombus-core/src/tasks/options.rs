use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chat::{ChatRequest, ResponseFormat, Think};

/// How a model is to answer, in the names that Ollama's API has. What is absent is left to the model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskOptions {
    /// Softmax temperature, at least 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus sampling, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Keep only this many likeliest tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    /// Most tokens to generate; below 0: as many as there is room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_predict: Option<i64>,
    /// Texts at which the answer ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Vec<String>>,
    /// Makes the choice repeatable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Keep tokens at least this probable relative to the likeliest, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// Divides the logits of recent tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<f64>,
    /// How many recent tokens the penalties look at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_last_n: Option<i64>,
    /// Subtracted from the logit of every token that has occurred, -2 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// Subtracted from a token's logit for each time it has occurred, -2 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    /// Tokens that prompt and answer need together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<i64>,
    /// `"json"` for some JSON object, or the JSON schema of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Value>,
    /// Whether the model thinks before it answers: true, false, or a word of its own such as `"high"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub think: Option<Value>,
}

impl TaskOptions {
    /// Puts the options into a request. Values that have no meaning, such as a negative `top_k`, are left to the model.
    pub fn apply(&self, request: &mut ChatRequest) {
        let sampling = &mut request.sampling;
        let real = |value: Option<f64>| value.filter(|value| value.is_finite()).map(|value| value as f32);
        let whole = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
        sampling.temperature = real(self.temperature);
        sampling.top_p = real(self.top_p);
        sampling.top_k = whole(self.top_k);
        sampling.min_p = real(self.min_p);
        sampling.seed = whole(self.seed);
        sampling.repeat_penalty = real(self.repeat_penalty);
        sampling.repeat_last_n = whole(self.repeat_last_n);
        sampling.presence_penalty = real(self.presence_penalty);
        sampling.frequency_penalty = real(self.frequency_penalty);
        request.stop = self.stop.clone().unwrap_or_default();
        request.max_tokens = whole(self.num_predict);
        request.context_tokens = whole(self.num_ctx).filter(|tokens| *tokens > 0);
        request.response_format = match &self.format {
            Some(Value::String(word)) if word == "json" => ResponseFormat::JsonObject,
            Some(schema @ Value::Object(_)) => ResponseFormat::JsonSchema(schema.clone()),
            _ => ResponseFormat::Text,
        };
        request.think = match &self.think {
            Some(Value::Bool(true)) => Some(Think::On),
            Some(Value::Bool(false)) => Some(Think::Off),
            Some(Value::String(level)) => Some(Think::Level(level.clone())),
            _ => None,
        };
    }
}
