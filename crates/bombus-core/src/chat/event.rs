use serde::{Deserialize, Serialize};

use super::Trace;
use crate::identity::NodeId;

/// An event in the stream that answers a [`super::ChatRequest`].
///
/// A stream is at most one [`ChatEvent::AnsweredBy`] and one [`ChatEvent::Truncated`], any number of thoughts, deltas and tool calls, then
/// exactly one [`ChatEvent::Done`]; or it ends early with an error. A [`ChatEvent::Waiting`] may come anywhere before the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatEvent {
    /// Who answers, where that is another node. Comes before everything else.
    AnsweredBy(Answerer),
    /// Whoever answered broke off, and another goes on from there.
    Continued {
        /// Who goes on.
        by: Answerer,
        /// Why the one before broke off.
        reason: String,
    },
    /// The prompt was longer than the context, and its oldest turns were left out. Comes before everything else.
    Truncated {
        /// Turns that were left out.
        messages: u32,
        /// Tokens of the prompt as it was used; 0 where the backend tells only at the end.
        prompt_tokens: u32,
    },
    /// The backend is at work, but on others: the run waits for its turn, or gets back what it lost to them. Comes about once a second as
    /// long as that lasts, and is nothing of the answer. With braces, since nodes tell each other events as maps.
    Waiting {},
    /// More of what the model thinks before it answers. Always whole UTF-8 characters, and without log probabilities.
    Thinking(Delta),
    /// More text. Always whole UTF-8 characters.
    Delta(Delta),
    /// A piece of a tool call.
    ToolCall(ToolCallDelta),
    /// The end of the answer.
    Done {
        /// Why it ended.
        finish: FinishReason,
        /// Tokens read and written.
        usage: Usage,
        /// Where the time went.
        timings: Timings,
        /// The tokens of prompt and answer, where [`super::ChatRequest::return_tokens`] asked for them and the backend can tell.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tokens: Vec<u32>,
    },
}

/// A piece of the answer's text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// The text. Empty where log probabilities are reported for a token whose character is not complete yet.
    pub text: String,
    /// The tokens behind the text, where log probabilities were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// What stands behind the text, where [`super::ChatRequest::traced`] asked for it and the backend can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Trace>,
}

impl Delta {
    /// Builds a piece of text without anything beside it.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }
}

/// Who gives an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answerer {
    /// The node; `None`: this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The backend's name on its node.
    pub backend: String,
    /// The model's name at that backend.
    pub model: String,
}

/// A generated token with its log probability (natural logarithm, before any sampling option was applied).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The chosen token.
    #[serde(flatten)]
    pub token: TokenAlternative,
    /// The likeliest tokens at this place, likeliest first.
    pub top: Vec<TokenAlternative>,
}

/// A token that could stand at some place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenAlternative {
    /// Id in the model's vocabulary; 0 where the backend does not tell it.
    pub id: u32,
    /// Its bytes; not always whole UTF-8 characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// A piece of a tool call. The first piece of each call carries `id` and `name`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallDelta {
    /// Which call of this answer, from 0.
    pub index: u32,
    /// The call's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The tool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments' JSON text.
    pub arguments: String,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop text was reached.
    Stop,
    /// `max_tokens` was reached, or the context is full.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// A filter of the model's server left out the rest, or all of it.
    ContentFilter,
}

/// Tokens that a request cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// How many of `prompt_tokens` were taken from the KV cache and not computed again.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// How many of `completion_tokens` are thoughts, as far as it is told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reasoning_tokens: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Durations of one run, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Loading the model, 0 when it was loaded already.
    pub load_ms: f64,
    /// Waiting for a slot.
    pub queue_ms: f64,
    /// Computing the prompt.
    pub prompt_ms: f64,
    /// Generating, from the end of the prompt to the last token.
    pub generate_ms: f64,
}

impl Timings {
    /// Returns the generation speed in tokens per second, or `None` where nothing was generated.
    #[must_use]
    pub fn tokens_per_second(&self, usage: &Usage) -> Option<f64> {
        (self.generate_ms > 0.0 && usage.completion_tokens > 0)
            .then(|| f64::from(usage.completion_tokens) * 1000.0 / self.generate_ms)
    }
}
