//! What clients send to have something generated or embedded. Fields that are not named here are tolerated and have no effect, and so
//! is `null` in place of any field that may be left out.

use std::fmt;

use bombus_core::chat::Think;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::duration::KeepAliveField;
use super::schema;

/// Adds the fields that both kinds of generation take, and the taking of them.
macro_rules! generation_request {
    ($(#[$attribute:meta])* $name:ident { $($own:tt)* }) => {
        #[derive(Debug, Deserialize, ToSchema)]
        $(#[$attribute])*
        pub(crate) struct $name {
            $($own)*
            /// Name of the model; where the node has a default model, it may be left out.
            #[schema(examples("smollm2:135m"))]
            pub(crate) model: Option<String>,
            /// Sends the answer piece by piece, one JSON object a line; so it is where this is left out.
            pub(crate) stream: Option<bool>,
            /// The form that the answer has to have: `json`, or a JSON schema.
            #[schema(schema_with = schema::format)]
            pub(crate) format: Option<Value>,
            /// How long the model stays loaded: seconds, or a duration such as `5m`; 0 unloads it at once, below 0 is for ever.
            #[schema(schema_with = schema::keep_alive)]
            pub(crate) keep_alive: Option<KeepAliveField>,
            /// How the answer is generated.
            #[schema(schema_with = schema::options)]
            pub(crate) options: Option<Map<String, Value>>,
            /// Whether a model that can think before it answers does so; some take a level.
            #[schema(schema_with = schema::think)]
            pub(crate) think: Option<ThinkField>,
            /// Leaves the oldest turns out of a conversation that is longer than the context; so it is where this is left out.
            pub(crate) truncate: Option<bool>,
            /// Lets an answer go on when the context is full, without what is oldest in it; so it is where this is left out.
            pub(crate) shift: Option<bool>,
            /// Reports the log probability of each token.
            pub(crate) logprobs: Option<bool>,
            /// How many of the likeliest tokens to report at each place; only with `logprobs`.
            #[schema(minimum = 0, maximum = 20)]
            pub(crate) top_logprobs: Option<i64>,
        }

        impl $name {
            /// Takes the fields that both kinds of generation have.
            pub(super) fn take_common(&mut self) -> Common {
                Common {
                    model: self.model.take(),
                    stream: self.stream.unwrap_or(true),
                    format: self.format.take(),
                    keep_alive: self.keep_alive,
                    options: self.options.take(),
                    think: self.think.take().map(|field| field.0),
                    truncate: self.truncate.unwrap_or(true),
                    shift: self.shift.unwrap_or(true),
                    logprobs: self.logprobs.unwrap_or(false),
                    top_logprobs: self.top_logprobs.unwrap_or(0),
                }
            }
        }
    };
}

/// The fields that both kinds of generation have.
pub(super) struct Common {
    pub(super) model: Option<String>,
    pub(super) stream: bool,
    pub(super) format: Option<Value>,
    pub(super) keep_alive: Option<KeepAliveField>,
    pub(super) options: Option<Map<String, Value>>,
    pub(super) think: Option<Think>,
    pub(super) truncate: bool,
    pub(super) shift: bool,
    pub(super) logprobs: bool,
    pub(super) top_logprobs: i64,
}

generation_request! {
    /// A prompt that the model answers.
    #[schema(as = OllamaGenerateRequest)]
    GenerateRequest {
        /// What is asked. Without it the model is only loaded, or unloaded where `keep_alive` is 0.
        pub(crate) prompt: Option<String>,
        /// What is to stand after the answer, for models that can fill in.
        pub(crate) suffix: Option<String>,
        /// The system message, in place of the model's own.
        pub(crate) system: Option<String>,
        /// The prompt template, in place of the model's own.
        pub(crate) template: Option<String>,
        /// The `context` of the answer before, so that the conversation goes on.
        #[schema(max_items = 1048576)]
        pub(crate) context: Option<Vec<u32>>,
        /// Takes the prompt as it stands, without a template.
        pub(crate) raw: Option<bool>,
        /// Pictures in base64, for models that see.
        pub(crate) images: Option<Vec<String>>,
    }
}

generation_request! {
    /// A conversation that the model goes on with.
    #[schema(as = OllamaChatRequest)]
    ChatRequest {
        /// The conversation so far. Without it the model is only loaded, or unloaded where `keep_alive` is 0.
        pub(crate) messages: Option<Vec<RequestMessage>>,
        /// Functions that the model may call.
        pub(crate) tools: Option<Vec<RequestTool>>,
    }
}

/// One turn of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaMessage)]
pub(crate) struct RequestMessage {
    #[schema(schema_with = schema::role)]
    pub(crate) role: String,
    /// What is said.
    pub(crate) content: Option<String>,
    /// What the model thought before it spoke.
    pub(crate) thinking: Option<String>,
    /// Pictures in base64, for models that see.
    pub(crate) images: Option<Vec<String>>,
    /// The calls of an assistant's turn.
    pub(crate) tool_calls: Option<Vec<RequestToolCall>>,
    /// In a tool's turn, the tool that answers.
    pub(crate) tool_name: Option<String>,
    /// In a tool's turn, the call that it answers.
    pub(crate) tool_call_id: Option<String>,
}

/// A call that the model made earlier.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaToolCall)]
pub(crate) struct RequestToolCall {
    pub(crate) id: Option<String>,
    pub(crate) function: RequestFunctionCall,
}

/// What was called with what.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaFunctionCall)]
pub(crate) struct RequestFunctionCall {
    pub(crate) name: String,
    /// An object; a text that holds one is taken too.
    #[schema(schema_with = schema::arguments)]
    pub(crate) arguments: Option<Value>,
}

/// A function that the model may call.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaTool)]
pub(crate) struct RequestTool {
    pub(crate) function: RequestFunction,
}

/// A function's description.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaFunction)]
pub(crate) struct RequestFunction {
    #[schema(min_length = 1)]
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// JSON schema of the arguments.
    #[schema(value_type = Option<Object>)]
    pub(crate) parameters: Option<Map<String, Value>>,
}

/// Texts to make vectors of.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaEmbedRequest)]
pub(crate) struct EmbedRequest {
    /// Name of the model; where the node has a default model, it may be left out.
    pub(crate) model: Option<String>,
    /// A text or a list of texts. Without any the model is only loaded.
    #[schema(schema_with = schema::texts)]
    pub(crate) input: Option<Value>,
    /// Cuts texts that are longer than the context; so it is where this is left out.
    pub(crate) truncate: Option<bool>,
    /// Length of the vectors; 0 leaves it to the model.
    pub(crate) dimensions: Option<i64>,
    /// How long the model stays loaded: seconds, or a duration such as `5m`; 0 unloads it at once, below 0 is for ever.
    #[schema(schema_with = schema::keep_alive)]
    pub(crate) keep_alive: Option<KeepAliveField>,
    /// How the model is loaded.
    #[schema(schema_with = schema::options)]
    pub(crate) options: Option<Map<String, Value>>,
}

/// A text to make a vector of.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaEmbeddingsRequest)]
pub(crate) struct EmbeddingsRequest {
    /// Name of the model; where the node has a default model, it may be left out.
    pub(crate) model: Option<String>,
    /// The text. Without it the model is only loaded.
    pub(crate) prompt: Option<String>,
    /// How long the model stays loaded: seconds, or a duration such as `5m`; 0 unloads it at once, below 0 is for ever.
    #[schema(schema_with = schema::keep_alive)]
    pub(crate) keep_alive: Option<KeepAliveField>,
    /// How the model is loaded.
    #[schema(schema_with = schema::options)]
    pub(crate) options: Option<Map<String, Value>>,
}

/// The value of `think`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ThinkField(pub(super) Think);

/// The levels that a model may be asked for.
pub(super) const THINK_LEVELS: [&str; 4] = ["high", "medium", "low", "max"];

impl<'de> Deserialize<'de> for ThinkField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ThinkVisitor;

        impl Visitor<'_> for ThinkVisitor {
            type Value = ThinkField;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, \"high\", \"medium\", \"low\" or \"max\"")
            }

            fn visit_bool<E>(self, thinks: bool) -> Result<Self::Value, E> {
                Ok(ThinkField(if thinks { Think::On } else { Think::Off }))
            }

            fn visit_str<E: Error>(self, level: &str) -> Result<Self::Value, E> {
                if THINK_LEVELS.contains(&level) {
                    return Ok(ThinkField(Think::Level(level.to_owned())));
                }
                let words = "must be \"high\", \"medium\", \"low\", \"max\", true, or false";
                Err(E::custom(format!("invalid think value: {level:?} ({words})")))
            }
        }

        deserializer.deserialize_any(ThinkVisitor)
    }
}
