//! What servers of the dialect answer, in all the shapes that they have for it. Unknown fields are passed over, missing ones are empty.

use bombus_core::chat::{FinishReason, Timings, TokenAlternative, TokenLogprob, Usage};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A piece of an answer, of a conversation or of the legacy completions; or the whole answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Chunk {
    /// In place of everything else.
    pub(super) error: Option<Value>,
    #[serde(deserialize_with = "or_default")]
    pub(super) choices: Vec<Choice>,
    pub(super) usage: Option<ChunkUsage>,
    pub(super) timings: Option<ChunkTimings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Choice {
    #[serde(deserialize_with = "or_default")]
    pub(super) index: u32,
    /// What is new; where it stands beside `message`, it alone counts.
    delta: Option<ChunkDelta>,
    /// The whole answer, where it comes at once.
    message: Option<ChunkDelta>,
    /// New text of the legacy completions.
    pub(super) text: Option<String>,
    pub(super) logprobs: Option<ChunkLogprobs>,
    pub(super) finish_reason: Option<String>,
}

impl Choice {
    /// Takes out what is new, by whichever name it comes.
    pub(super) fn take_delta(&mut self) -> ChunkDelta {
        self.delta.take().or(self.message.take()).unwrap_or_default()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChunkDelta {
    #[serde(deserialize_with = "or_default")]
    pub(super) content: Content,
    pub(super) refusal: Option<String>,
    pub(super) reasoning_content: Option<String>,
    /// The same by another name; some servers send both.
    pub(super) reasoning: Option<Value>,
    #[serde(deserialize_with = "or_default")]
    pub(super) tool_calls: Vec<ChunkToolCall>,
    /// What `tool_calls` was before there could be several.
    pub(super) function_call: Option<ChunkFunction>,
}

impl ChunkDelta {
    /// Takes out what is thought, by whichever name it comes, and what is said. A refusal is said.
    pub(super) fn take_text(&mut self) -> (String, String) {
        let (mut thoughts, mut text) = std::mem::take(&mut self.content).split();
        text.push_str(&self.refusal.take().unwrap_or_default());
        match (self.reasoning_content.take(), self.reasoning.take()) {
            (Some(reasoning), _) | (None, Some(Value::String(reasoning))) => thoughts.push_str(&reasoning),
            _ => {}
        }
        (thoughts, text)
    }
}

/// Text, or the list of parts that some servers make of it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

impl Default for Content {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContentPart {
    pub(super) text: Option<String>,
    pub(super) thinking: Option<Content>,
}

impl Content {
    /// Splits it into what is thought and what is said.
    pub(super) fn split(self) -> (String, String) {
        let parts = match self {
            Self::Text(text) => return (String::new(), text),
            Self::Parts(parts) => parts,
        };
        let (mut thoughts, mut text) = (String::new(), String::new());
        for part in parts {
            text.push_str(&part.text.unwrap_or_default());
            if let Some(inner) = part.thinking {
                let (deeper, plain) = inner.split();
                thoughts.push_str(&deeper);
                thoughts.push_str(&plain);
            }
        }
        (thoughts, text)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChunkToolCall {
    pub(super) index: Option<u64>,
    pub(super) id: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) function: ChunkFunction,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChunkFunction {
    pub(super) name: Option<String>,
    /// JSON text, or the document itself where a server does not follow the dialect.
    pub(super) arguments: Value,
}

impl ChunkFunction {
    pub(super) fn take_arguments(&mut self) -> String {
        match self.arguments.take() {
            Value::Null => String::new(),
            Value::String(text) => text,
            document => document.to_string(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChunkUsage {
    #[serde(deserialize_with = "or_default")]
    prompt_tokens: u32,
    #[serde(deserialize_with = "or_default")]
    completion_tokens: u32,
    prompt_tokens_details: Option<PromptTokensDetails>,
    completion_tokens_details: Option<CompletionTokensDetails>,
    /// `DeepSeek`'s name for the cached tokens.
    prompt_cache_hit_tokens: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PromptTokensDetails {
    cached_tokens: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CompletionTokensDetails {
    reasoning_tokens: Option<u32>,
}

impl ChunkUsage {
    pub(super) fn usage(&self) -> Usage {
        let cached = self.prompt_tokens_details.as_ref().and_then(|details| details.cached_tokens);
        let reasoning = self.completion_tokens_details.as_ref().and_then(|details| details.reasoning_tokens);
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: cached.or(self.prompt_cache_hit_tokens).unwrap_or(0),
            completion_tokens: self.completion_tokens,
            reasoning_tokens: reasoning.unwrap_or(0).min(self.completion_tokens),
        }
    }
}

/// llama-server's own measurements.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChunkTimings {
    pub(super) cache_n: Option<u32>,
    prompt_ms: f64,
    predicted_ms: f64,
    /// A node of this kind tells these too.
    load_ms: f64,
    queue_ms: f64,
}

impl ChunkTimings {
    pub(super) fn timings(&self) -> Timings {
        Timings {
            load_ms: self.load_ms,
            queue_ms: self.queue_ms,
            prompt_ms: self.prompt_ms,
            generate_ms: self.predicted_ms,
        }
    }
}

/// Log probabilities: of conversations (`content`), or of the legacy completions (`tokens` and its kin).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChunkLogprobs {
    content: Option<Vec<ChatLogprob>>,
    #[serde(deserialize_with = "or_default")]
    tokens: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Option<Vec<Option<serde_json::Map<String, Value>>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ChatLogprob {
    /// llama-server tells the id; nobody else does.
    id: Option<u32>,
    token: String,
    bytes: Option<Vec<u8>>,
    logprob: Option<f32>,
    #[serde(deserialize_with = "or_default")]
    top_logprobs: Vec<ChatLogprob>,
}

/// What stands for the id of a token where the server does not tell it.
const ID_UNKNOWN: u32 = 0;
/// What stands for a probability of 0, whose logarithm JSON has no number for; `OpenAI` sends the same.
const LOGPROB_MIN: f32 = -9999.0;

impl ChatLogprob {
    fn alternative(&self) -> TokenAlternative {
        TokenAlternative {
            id: self.id.unwrap_or(ID_UNKNOWN),
            bytes: self.bytes.clone().unwrap_or_else(|| self.token.clone().into_bytes()),
            logprob: self.logprob.unwrap_or(LOGPROB_MIN),
        }
    }
}

impl ChunkLogprobs {
    pub(super) fn into_list(self) -> Vec<TokenLogprob> {
        if let Some(content) = self.content {
            let entry = |entry: &ChatLogprob| TokenLogprob {
                token: entry.alternative(),
                top: entry.top_logprobs.iter().map(ChatLogprob::alternative).collect(),
            };
            return content.iter().map(entry).collect();
        }
        let alternative = |text: &str, logprob: Option<f32>| TokenAlternative {
            id: ID_UNKNOWN,
            bytes: text.as_bytes().to_vec(),
            logprob: logprob.unwrap_or(LOGPROB_MIN),
        };
        let tops = self.top_logprobs.unwrap_or_default();
        let entry = |(at, text): (usize, &String)| {
            let top = tops.get(at).and_then(Option::as_ref).into_iter().flatten();
            let mut top: Vec<_> =
                top.map(|(text, value)| alternative(text, value.as_f64().map(|value| value as f32))).collect();
            top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
            TokenLogprob { token: alternative(text, self.token_logprobs.get(at).copied().flatten()), top }
        };
        self.tokens.iter().enumerate().map(entry).collect()
    }
}

/// Reads a reason for the end, of this dialect in all its ages and of servers that have their own words.
pub(super) fn finish_reason(word: &str) -> FinishReason {
    match word {
        "length" | "max_tokens" | "model_length" => FinishReason::Length,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        "content_filter" => FinishReason::ContentFilter,
        _ => FinishReason::Stop,
    }
}

/// Reads `null` as the empty value.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}
