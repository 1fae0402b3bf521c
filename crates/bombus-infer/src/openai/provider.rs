use bombus_core::chat::{ResponseFormat, SchemaLabel, Think};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The fields of the dialect that have no place in our vocabulary and are told to servers as a client said them. A peer's request may bring
/// others, which would be asked for in this node's name.
const FIELDS: [&str; 9] = [
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
];
/// Most bytes of such a field.
const FIELD_BYTES_MAX: usize = 16 << 10;

/// Whose server it is, as far as servers of the dialect differ in what they understand.
///
/// | | `openai` | `llamacpp` | `vllm` | `other` |
/// | --- | --- | --- | --- | --- |
/// | limit of a chat's answer | `max_completion_tokens` | `max_tokens` | `max_tokens` | `max_tokens` |
/// | `top_k`, `min_p` | left out | sent | sent | sent |
/// | repeat penalty | left out | `repeat_penalty`, `repeat_last_n` | `repetition_penalty` | `repeat_penalty` |
/// | `typical_p`, `mirostat` and its kin, tokens to keep | left out | sent | left out | left out |
/// | suffix of a text | `suffix` | refused | refused | `suffix` |
/// | `ignore_eos` | refused | sent | sent | sent |
/// | think: off | left out | `chat_template_kwargs` | `chat_template_kwargs` | left out |
/// | think: on | left out | `chat_template_kwargs` | `chat_template_kwargs` | left out |
/// | think: a level | `reasoning_effort` | `chat_template_kwargs` | `reasoning_effort` | `reasoning_effort` |
/// | `parallel_tool_calls`, `user` and others of the dialect | sent | sent | sent | sent |
/// | earlier thoughts | left out | `reasoning_content` | `reasoning_content` | left out |
/// | one tool by its name | sent | alone, and `required` | sent | sent |
/// | goes on with what another run began | no | behind the rendered text | `continue_final_message` | no |
///
/// `OpenAI` itself refuses requests with fields that it does not know, so what cannot be said to it is left out where that changes only how
/// tokens are chosen, and refused where the answer would be another one. Models that do not think are refused with any `reasoning_effort`, and
/// which ones think is not told: so that is sent only where the client names a level. Those who pass requests on to it (LiteLLM, for example) are `other`.
///
/// LM Studio (`lmstudio`) is as `other` but for JSON of any form, which it refuses without a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// `OpenAI` itself.
    OpenAi,
    /// llama.cpp's llama-server.
    LlamaCpp,
    /// vLLM.
    Vllm,
    /// LM Studio.
    LmStudio,
    /// Any other: what most servers understand.
    Other,
}

impl Provider {
    /// Tells `OpenAI` itself by its address.
    pub(super) fn of_address(base: &Url) -> Self {
        let host = base.host_str().unwrap_or_default();
        if host == "openai.com" || host.ends_with(".openai.com") { Self::OpenAi } else { Self::Other }
    }

    /// Tells a server by whom it names as the owner of its models.
    pub(super) fn of_owner(owner: &str) -> Option<Self> {
        match owner {
            "llamacpp" => Some(Self::LlamaCpp),
            "vllm" => Some(Self::Vllm),
            "organization_owner" => Some(Self::LmStudio),
            _ => None,
        }
    }

    pub(super) fn max_tokens_field(self, chat: bool) -> &'static str {
        if chat && self == Self::OpenAi { "max_completion_tokens" } else { "max_tokens" }
    }

    /// Returns whether it knows the sampling options that `OpenAI` does not have.
    pub(super) fn knows_local_sampling(self) -> bool {
        self != Self::OpenAi
    }

    pub(super) fn repeat_penalty_field(self) -> &'static str {
        if self == Self::Vllm { "repetition_penalty" } else { "repeat_penalty" }
    }

    pub(super) fn knows_repeat_last_n(self) -> bool {
        self == Self::LlamaCpp
    }

    /// Returns whether it knows how many tokens at the beginning stay when its context is full.
    pub(super) fn knows_keep_tokens(self) -> bool {
        self == Self::LlamaCpp
    }

    /// Returns whether it takes an option of Ollama's that has no place in our vocabulary, by the same name.
    pub(crate) fn takes_option(self, option: &str) -> bool {
        self == Self::LlamaCpp && ["typical_p", "mirostat", "mirostat_tau", "mirostat_eta"].contains(&option)
    }

    /// Returns whether it fills in. llama-server passes over a suffix and would answer something else; vLLM refuses it.
    pub(super) fn knows_suffix(self) -> bool {
        matches!(self, Self::OpenAi | Self::LmStudio | Self::Other)
    }

    /// Returns whether earlier thoughts of the model are sent back to it.
    pub(super) fn takes_thoughts(self) -> bool {
        matches!(self, Self::LlamaCpp | Self::Vllm)
    }

    /// Returns whether it can go on with an answer that another run began.
    pub(super) fn continues(self) -> bool {
        matches!(self, Self::LlamaCpp | Self::Vllm)
    }

    /// Returns whether all that it lists is in memory as long as it runs. llama-server says so of each model.
    pub(super) fn holds_all(self) -> bool {
        self == Self::Vllm
    }

    /// Returns whether it is told a field of this dialect that has no place in our vocabulary. How much to think is said to llama-server and
    /// vLLM in words of their own.
    pub(super) fn takes_field(self, field: &str, value: &Value) -> bool {
        let has_own_words = field == "reasoning_effort" && matches!(self, Self::LlamaCpp | Self::Vllm);
        !has_own_words && FIELDS.contains(&field) && value.to_string().len() <= FIELD_BYTES_MAX
    }

    pub(super) fn put_think(self, think: &Think, body: &mut Map<String, Value>) {
        let by_template = matches!(self, Self::LlamaCpp | Self::Vllm);
        let (field, value) = match think {
            Think::Off if by_template => ("chat_template_kwargs", json!({"enable_thinking": false})),
            Think::On if by_template => ("chat_template_kwargs", json!({"enable_thinking": true})),
            Think::Off | Think::On => return,
            Think::Level(level) if self == Self::LlamaCpp => {
                ("chat_template_kwargs", json!({"enable_thinking": true, "reasoning_effort": level}))
            }
            // The word that Ollama has beyond those of this dialect.
            Think::Level(level) if level == "max" => ("reasoning_effort", json!("high")),
            Think::Level(level) => ("reasoning_effort", json!(level)),
        };
        body.entry(field).or_insert(value);
    }

    /// Says in which form an answer is wanted. llama-server reads `response_format` of conversations only.
    pub(super) fn put_format(
        self,
        format: &ResponseFormat,
        label: &SchemaLabel,
        chat: bool,
        body: &mut Map<String, Value>,
    ) {
        let (field, value) = match format {
            ResponseFormat::Text => return,
            ResponseFormat::JsonObject if self == Self::LlamaCpp && !chat => ("json_schema", json!({"type": "object"})),
            ResponseFormat::JsonSchema(schema) if self == Self::LlamaCpp && !chat => ("json_schema", schema.clone()),
            // Without a schema llama-server lets the model write what it likes.
            ResponseFormat::JsonObject if self == Self::LlamaCpp => {
                ("response_format", json!({"type": "json_object", "schema": {"type": "object"}}))
            }
            ResponseFormat::JsonObject if self == Self::LmStudio => {
                let any = ResponseFormat::JsonSchema(json!({"type": "object"}));
                return self.put_format(&any, label, chat, body);
            }
            ResponseFormat::JsonObject => ("response_format", json!({"type": "json_object"})),
            ResponseFormat::JsonSchema(schema) => {
                // `OpenAI` refuses strictness for schemas that leave room for more fields.
                let fits = || schema.get("additionalProperties") == Some(&Value::Bool(false));
                let (name, strict) = (label.name.as_deref().unwrap_or("answer"), label.strict.unwrap_or_else(fits));
                let mut named = json!({"name": name, "schema": schema, "strict": strict});
                if let Some(description) = &label.description {
                    named["description"] = json!(description);
                }
                ("response_format", json!({"type": "json_schema", "json_schema": named}))
            }
        };
        body.insert(field.to_owned(), value);
    }
}
