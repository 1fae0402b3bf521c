//! What clients send. Fields that are not named here are tolerated and have no effect.

#![expect(unused_qualifications, reason = "the derive of `ToSchema` names types by longer paths than they need")]

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr, Schema};

use super::text_or_list::{PromptItem, TextOrList};
use super::whole;

/// Adds the fields that both kinds of generation take, and the reading of them.
macro_rules! generation_request {
    ($(#[$attribute:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$attribute])*
        #[derive(Debug, Deserialize, ToSchema)]
        pub(crate) struct $name {
            $($own)*
            /// Name of the model; where the node has a default model, it may be left out.
            #[schema(examples("smollm2:135m"))]
            pub(crate) model: Option<String>,
            /// Sends tokens as they come, as server-sent events.
            pub(crate) stream: Option<bool>,
            pub(crate) stream_options: Option<StreamOptions>,
            /// How many answers to give to each prompt.
            #[schema(minimum = 1, maximum = 16, default = 1)]
            #[serde(default, deserialize_with = "whole::option")]
            pub(crate) n: Option<u32>,
            /// Texts at which the answer ends; up to 16.
            #[schema(schema_with = stop_schema)]
            pub(crate) stop: Option<TextOrList<String>>,
            /// Makes the answer repeatable; the lower 32 bits count, and -1 stands for a random one.
            #[serde(default, deserialize_with = "whole::option")]
            pub(crate) seed: Option<i64>,
            /// 0 always takes the likeliest token.
            #[schema(minimum = 0, maximum = 2)]
            pub(crate) temperature: Option<f32>,
            #[schema(minimum = 0, maximum = 1)]
            pub(crate) top_p: Option<f32>,
            /// Keeps only this many likeliest tokens; 0 and -1 keep all.
            #[schema(minimum = -1)]
            #[serde(default, deserialize_with = "whole::option")]
            pub(crate) top_k: Option<i32>,
            /// Keeps tokens at least this probable relative to the likeliest.
            #[schema(minimum = 0, maximum = 1)]
            pub(crate) min_p: Option<f32>,
            #[schema(minimum = -2, maximum = 2)]
            pub(crate) presence_penalty: Option<f32>,
            #[schema(minimum = -2, maximum = 2)]
            pub(crate) frequency_penalty: Option<f32>,
            /// Divides the logits of recent tokens; 1 has no effect.
            #[schema(minimum = 0.1, maximum = 10)]
            pub(crate) repeat_penalty: Option<f32>,
            /// How many recent tokens `repeat_penalty` looks at; -1 stands for as many as it can.
            #[schema(minimum = -1, maximum = 65536)]
            #[serde(default, deserialize_with = "whole::option")]
            pub(crate) repeat_last_n: Option<i32>,
            /// Token ids with what is added to their logits, -100 to 100.
            #[schema(schema_with = logit_bias_schema)]
            pub(crate) logit_bias: Option<HashMap<String, f32>>,
            pub(crate) response_format: Option<ResponseFormat>,
            /// The older name of `safety_identifier`; backends of this dialect are told.
            pub(crate) user: Option<String>,
            /// At which price and speed a provider answers; backends of this dialect are told.
            pub(crate) service_tier: Option<String>,
            /// Goes on past the model's end-of-text tokens; for measurements.
            pub(crate) ignore_eos: Option<bool>,
        }

        impl $name {
            /// Takes the fields that both kinds of generation have.
            pub(crate) fn take_common(&mut self) -> Common {
                Common {
                    stream: self.stream.unwrap_or(false),
                    include_usage: self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false),
                    n: self.n.unwrap_or(1),
                    stop: self.stop.take(),
                    seed: self.seed,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    repeat_penalty: self.repeat_penalty,
                    repeat_last_n: self.repeat_last_n,
                    logit_bias: self.logit_bias.take().unwrap_or_default(),
                    response_format: self.response_format.take(),
                    user: self.user.take(),
                    service_tier: self.service_tier.take(),
                    ignore_eos: self.ignore_eos.unwrap_or(false),
                }
            }
        }
    };
}

/// The fields that both kinds of generation have.
pub(crate) struct Common {
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) n: u32,
    pub(crate) stop: Option<TextOrList<String>>,
    pub(crate) seed: Option<i64>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) repeat_penalty: Option<f32>,
    pub(crate) repeat_last_n: Option<i32>,
    pub(crate) logit_bias: HashMap<String, f32>,
    pub(crate) response_format: Option<ResponseFormat>,
    pub(crate) user: Option<String>,
    pub(crate) service_tier: Option<String>,
    pub(crate) ignore_eos: bool,
}

generation_request! {
    /// A conversation that the model goes on with.
    ChatCompletionRequest {
        /// The conversation so far.
        #[schema(min_items = 1)]
        pub(crate) messages: Vec<RequestMessage>,
        /// The older name of `max_completion_tokens`.
        #[schema(minimum = 1, format = "uint32", maximum = 4294967295_u32)]
        #[serde(default, deserialize_with = "whole::option")]
        pub(crate) max_tokens: Option<u32>,
        /// Most tokens to generate; without it, until the model ends or its context is full.
        #[schema(minimum = 1, format = "uint32", maximum = 4294967295_u32)]
        #[serde(default, deserialize_with = "whole::option")]
        pub(crate) max_completion_tokens: Option<u32>,
        /// How much the model thinks before it answers: `none`, or a word of the model's own like `low`, `medium` or `high`. Without
        /// effect on models that do not think.
        #[schema(pattern = "^[A-Za-z0-9_-]{1,32}$")]
        pub(crate) reasoning_effort: Option<String>,
        /// Functions that the model may call.
        pub(crate) tools: Option<Vec<ToolDefinition>>,
        #[schema(schema_with = tool_choice_schema)]
        pub(crate) tool_choice: Option<ToolChoice>,
        /// Whether the model may call several functions at once; backends of this dialect are told.
        pub(crate) parallel_tool_calls: Option<bool>,
        /// How long the answer is to be, `low`, `medium` or `high`; backends of this dialect are told.
        pub(crate) verbosity: Option<String>,
        /// Whether the answer is kept at the provider; backends of this dialect are told.
        pub(crate) store: Option<bool>,
        /// Notes about the request; backends of this dialect are told.
        #[schema(value_type = Option<Object>)]
        pub(crate) metadata: Option<serde_json::Map<String, Value>>,
        /// Puts requests together that begin alike; backends of this dialect are told.
        pub(crate) prompt_cache_key: Option<String>,
        /// A name for who asks; backends of this dialect are told.
        pub(crate) safety_identifier: Option<String>,
        /// What `tools` was before there were tools; read only to be refused.
        #[schema(ignore)]
        pub(crate) functions: Option<IgnoredAny>,
        /// What `tool_choice` was before there were tools; read only to be refused.
        #[schema(ignore)]
        pub(crate) function_call: Option<IgnoredAny>,
        /// Reports the log probability of each token.
        pub(crate) logprobs: Option<bool>,
        /// How many of the likeliest tokens to report at each place; only with `logprobs`.
        #[schema(minimum = 0, maximum = 20)]
        #[serde(default, deserialize_with = "whole::option")]
        pub(crate) top_logprobs: Option<u8>,
    }
}

generation_request! {
    /// Text that the model goes on with, without a chat template.
    CompletionRequest {
        /// A text, a list of texts, a list of token ids, or a list of lists of token ids.
        /// Left out or empty, the model begins a text of its own.
        #[schema(schema_with = prompt_schema)]
        pub(crate) prompt: Option<TextOrList<PromptItem>>,
        /// Most tokens to generate, 16 where it is left out.
        #[schema(minimum = 0, format = "uint32", maximum = 4294967295_u32, default = 16)]
        #[serde(default, deserialize_with = "whole::option")]
        pub(crate) max_tokens: Option<u32>,
        /// Begins the answer with the prompt; only for prompts in text. Together with `logprobs` it is not supported, since the log
        /// probabilities of a prompt are not computed.
        pub(crate) echo: Option<bool>,
        /// What is to stand after the continuation, for models that can fill in; only for prompts in text.
        pub(crate) suffix: Option<String>,
        /// Not supported beyond the value of `n`.
        #[schema(minimum = 1, maximum = 16)]
        #[serde(default, deserialize_with = "whole::option")]
        pub(crate) best_of: Option<u32>,
        /// Reports the log probability of each token and of this many of the likeliest at each place.
        #[schema(minimum = 0, maximum = 20)]
        #[serde(default, deserialize_with = "whole::option")]
        pub(crate) logprobs: Option<u8>,
    }
}

/// Options of a streamed answer.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Sends a last chunk that tells the usage.
    pub(crate) include_usage: Option<bool>,
}

/// One turn of the conversation.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct RequestMessage {
    pub(crate) role: RequestRole,
    /// What is said; left out where an assistant's turn only calls tools, or a tool has nothing to say.
    #[schema(schema_with = content_schema)]
    pub(crate) content: Option<TextOrList<ContentPart>>,
    pub(crate) name: Option<String>,
    /// What an assistant's turn thought before it spoke.
    pub(crate) reasoning_content: Option<String>,
    /// The calls of an assistant's turn.
    pub(crate) tool_calls: Option<Vec<RequestToolCall>>,
    /// In a tool's turn, the call that it answers.
    pub(crate) tool_call_id: Option<String>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RequestRole {
    System,
    Developer,
    User,
    Assistant,
    Tool,
    /// The older name of `tool`.
    Function,
}

/// A piece of a turn.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ContentPart {
    #[serde(rename = "type")]
    pub(crate) kind: PartKind,
    pub(crate) text: Option<String>,
    pub(crate) image_url: Option<ImageUrl>,
}

/// What kind of piece it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PartKind {
    Text,
    ImageUrl,
}

/// Where a picture is.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ImageUrl {
    /// A `data:` URL in base64, or an address that begins with `http://` or `https://`.
    #[schema(pattern = "^(data:[^,]*;base64,|https?://)")]
    pub(crate) url: String,
    /// How closely the model is to look at it: `low`, `high` or `auto`; backends of this dialect are told.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,32}$")]
    pub(crate) detail: Option<String>,
}

/// A call that the model made earlier.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct RequestToolCall {
    pub(crate) id: String,
    pub(crate) function: RequestFunctionCall,
}

/// What was called with what.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct RequestFunctionCall {
    pub(crate) name: String,
    /// JSON text.
    pub(crate) arguments: String,
}

/// A function that the model may call.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ToolDefinition {
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read for its type alone: there is only one kind")]
    pub(crate) kind: ToolKind,
    pub(crate) function: FunctionDefinition,
}

/// The one kind of tool there is.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolKind {
    #[default]
    Function,
}

/// A function's description.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct FunctionDefinition {
    #[schema(min_length = 1)]
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// JSON schema of the arguments.
    #[schema(value_type = Option<Object>)]
    pub(crate) parameters: Option<serde_json::Map<String, Value>>,
    /// Whether the arguments have to fit the schema exactly; backends of this dialect are told.
    pub(crate) strict: Option<bool>,
}

/// Whether and which tool has to be called.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "it has to be none, auto, required, or an object that names a function or allowed tools")]
pub(crate) enum ToolChoice {
    Mode(ToolChoiceMode),
    Named {
        #[serde(rename = "type", default)]
        #[expect(dead_code, reason = "read for its type alone: what it names is beside it")]
        kind: ToolKind,
        function: NamedFunction,
    },
    Allowed {
        #[serde(rename = "type", default)]
        #[expect(dead_code, reason = "read for its type alone: what it names is beside it")]
        kind: AllowedToolsKind,
        allowed_tools: AllowedTools,
    },
}

/// How a choice among several tools calls itself.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AllowedToolsKind {
    #[default]
    AllowedTools,
}

/// The tools among which the model may choose.
#[derive(Debug, Deserialize)]
pub(crate) struct AllowedTools {
    pub(crate) mode: ToolChoiceMode,
    pub(crate) tools: Vec<AllowedTool>,
}

/// One of them.
#[derive(Debug, Deserialize)]
pub(crate) struct AllowedTool {
    pub(crate) function: NamedFunction,
}

/// Whether a tool has to be called.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolChoiceMode {
    None,
    Auto,
    Required,
}

/// A function by its name.
#[derive(Debug, Deserialize)]
pub(crate) struct NamedFunction {
    pub(crate) name: String,
}

/// The form that the answer has to have.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ResponseFormat {
    #[serde(rename = "type")]
    pub(crate) kind: ResponseFormatKind,
    /// Only for the type `json_schema`.
    pub(crate) json_schema: Option<NamedSchema>,
}

/// The kinds of form.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ResponseFormatKind {
    Text,
    JsonObject,
    JsonSchema,
}

/// A JSON schema.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct NamedSchema {
    /// Its name; backends of this dialect are told.
    pub(crate) name: Option<String>,
    /// What it is for; backends of this dialect are told.
    pub(crate) description: Option<String>,
    /// Whether the answer has to fit it exactly, as it does without this at backends that hold the model to it.
    pub(crate) strict: Option<bool>,
    /// Without it, any JSON object fits.
    #[schema(value_type = Option<Object>)]
    pub(crate) schema: Option<serde_json::Map<String, Value>>,
}

/// Texts to make vectors of.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingRequest {
    /// Name of the model; where the node has a default model, it may be left out.
    pub(crate) model: Option<String>,
    /// A text, a list of texts, a list of token ids, or a list of lists of token ids.
    #[schema(schema_with = inputs_schema)]
    pub(crate) input: TextOrList<PromptItem>,
    pub(crate) encoding_format: Option<EncodingFormat>,
    /// How many numbers each vector has; those of the model are cut where they have more.
    #[schema(minimum = 1, format = "uint32", maximum = 4294967295_u32)]
    #[serde(default, deserialize_with = "whole::option")]
    pub(crate) dimensions: Option<u32>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncodingFormat {
    /// A list of numbers.
    Float,
    /// The 32-bit numbers, little endian, in base64.
    Base64,
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn null() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Null)
}

fn token() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX))
}

fn stop_schema() -> RefOr<Schema> {
    let list = ArrayBuilder::new().items(text()).max_items(Some(16));
    OneOfBuilder::new().item(text()).item(list).item(null()).into()
}

fn content_schema() -> RefOr<Schema> {
    let parts = ArrayBuilder::new().items(Ref::from_schema_name("ContentPart"));
    OneOfBuilder::new().item(text()).item(parts).item(null()).into()
}

fn logit_bias_schema() -> RefOr<Schema> {
    let bias = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(-100)).maximum(Some(100));
    let ids = text().pattern(Some("^[0-9]{1,9}$"));
    ObjectBuilder::new()
        .schema_type(SchemaType::Array(vec![Type::Object, Type::Null]))
        .property_names(Some(ids))
        .additional_properties(Some(bias))
        .into()
}

fn tool_choice_schema() -> RefOr<Schema> {
    let mode = || text().enum_values(Some(["none", "auto", "required"]));
    let function = || ObjectBuilder::new().property("name", text()).required("name");
    let named = ObjectBuilder::new()
        .property("type", text().enum_values(Some(["function"])))
        .property("function", function())
        .required("function");
    let tool = ObjectBuilder::new().property("function", function()).required("function");
    let allowed = ObjectBuilder::new()
        .property("mode", mode())
        .property("tools", ArrayBuilder::new().items(tool).min_items(Some(1)))
        .required("mode")
        .required("tools");
    let allowed = ObjectBuilder::new()
        .property("type", text().enum_values(Some(["allowed_tools"])))
        .property("allowed_tools", allowed)
        .required("allowed_tools");
    OneOfBuilder::new().item(mode()).item(named).item(allowed).item(null()).into()
}

fn inputs_schema() -> RefOr<Schema> {
    forms_of_inputs(1).into()
}

fn prompt_schema() -> RefOr<Schema> {
    forms_of_inputs(0).item(null()).into()
}

fn forms_of_inputs(text_length_min: usize) -> OneOfBuilder {
    let one_text = || text().min_length(Some(text_length_min));
    let tokens = || ArrayBuilder::new().items(token()).min_items(Some(1));
    OneOfBuilder::new()
        .item(one_text())
        .item(ArrayBuilder::new().items(one_text()).min_items(Some(1)))
        .item(tokens())
        .item(ArrayBuilder::new().items(tokens()).min_items(Some(1)))
}
