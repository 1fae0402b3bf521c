//! From what clients send to the internal vocabulary.

use std::ops::RangeInclusive;

use bombus_core::chat::{
    ChatRequest, DialectOptions, Image, ImageSource, Message, Part, Prompt, ResponseFormat as CoreFormat, Role,
    Sampling, SchemaLabel, Think, Tool, ToolCall, ToolChoice as CoreToolChoice,
};
use serde_json::{Map, Value, json};

use super::request::{
    AllowedTools, ChatCompletionRequest, Common, ContentPart, ImageUrl, NamedSchema, PartKind, RequestMessage,
    RequestRole, ResponseFormat, ResponseFormatKind, ToolChoice, ToolChoiceMode, ToolDefinition,
};
use super::text_or_list::{PromptItem, TextOrList};
use crate::error::ApiError;
use crate::schema_depth;

const STOPS_MAX: usize = 16;
/// Longest stop text in bytes.
const STOP_BYTES_MAX: usize = 1_024;
/// Most inputs in a list.
const INPUTS_MAX: usize = 2_048;
/// Most tokens with a bias.
const BIASES_MAX: usize = 1_024;
/// Longest word for how much a model thinks, or how closely it looks, in bytes.
const WORD_BYTES_MAX: usize = 32;
/// Most bytes of a field that is handed on to backends of this dialect as it is.
const HANDED_ON_BYTES_MAX: usize = 16 << 10;
/// Most tokens that a repetition penalty looks at: engines keep a buffer of so many for each answer.
const PENALTY_TOKENS_MAX: i32 = 65_536;
/// Most bytes of a request's copies, one of which is made for each answer.
const COPIES_BYTES_MAX: usize = 64 << 20;

/// Turns a conversation into a request; what concerns the transport (streaming, number of answers) stays with the caller.
pub(super) fn chat_request(
    request: ChatCompletionRequest,
    common: Common,
    model: String,
) -> Result<ChatRequest, ApiError> {
    if request.messages.is_empty() {
        return Err(ApiError::invalid_value("messages", "'messages' has to hold at least one message"));
    }
    for (param, instead, given) in
        [("functions", "tools", request.functions), ("function_call", "tool_choice", request.function_call)]
    {
        if given.is_some() {
            return Err(ApiError::unsupported(param, format!("'{param}' is not supported; send '{instead}' instead")));
        }
    }
    let messages = request.messages.into_iter().enumerate().map(|(index, one)| message(index, one));
    let prompt = Prompt::Chat(messages.collect::<Result<_, _>>()?);
    let (param, max_tokens) = match request.max_completion_tokens {
        Some(count) => ("max_completion_tokens", Some(count)),
        None => ("max_tokens", request.max_tokens),
    };
    if max_tokens == Some(0) {
        return Err(ApiError::invalid_value(param, format!("'{param}' has to be at least 1")));
    }
    let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(ApiError::invalid_value("top_logprobs", "'top_logprobs' needs 'logprobs' to be true"));
        }
    };
    let tools = request.tools.unwrap_or_default().into_iter().enumerate();
    let mut tools = tools.map(|(index, one)| tool(index, one)).collect::<Result<Vec<_>, _>>()?;
    let tool_choice = tool_choice(request.tool_choice, &mut tools)?;
    let think = think(request.reasoning_effort.as_deref())?;
    let mut own = generation(common, model, prompt, max_tokens, "top_logprobs", logprobs)?;
    own.dialect.openai.extend(handed_on([
        ("parallel_tool_calls", request.parallel_tool_calls.map(Value::from).filter(|_| !tools.is_empty())),
        ("reasoning_effort", request.reasoning_effort.map(Value::from)),
        ("verbosity", request.verbosity.map(Value::from)),
        ("store", request.store.map(Value::from)),
        ("metadata", request.metadata.map(Value::from)),
        ("prompt_cache_key", request.prompt_cache_key.map(Value::from)),
        ("safety_identifier", request.safety_identifier.map(Value::from)),
    ])?);
    Ok(ChatRequest { tools, tool_choice, think, ..own })
}

/// Takes the fields that only backends of this dialect understand, as they are.
fn handed_on<const N: usize>(fields: [(&'static str, Option<Value>); N]) -> Result<Map<String, Value>, ApiError> {
    let mut taken = Map::new();
    for (field, value) in fields {
        let Some(value) = value else { continue };
        schema_depth::check(|| field.to_owned(), &value)?;
        if value.to_string().len() > HANDED_ON_BYTES_MAX {
            let message = format!("'{field}' may have up to {HANDED_ON_BYTES_MAX} bytes");
            return Err(ApiError::invalid_value(field, message));
        }
        taken.insert(field.to_owned(), value);
    }
    Ok(taken)
}

/// Turns what both kinds of generation share into a request.
pub(super) fn generation(
    mut common: Common,
    model: String,
    prompt: Prompt,
    max_tokens: Option<u32>,
    logprobs_param: &'static str,
    logprobs: Option<u8>,
) -> Result<ChatRequest, ApiError> {
    in_range(logprobs_param, logprobs.map(f32::from), 0.0..=20.0)?;
    let (response_format, schema_label) = response_format(common.response_format.take())?;
    let openai = handed_on([
        ("user", common.user.take().map(Value::from)),
        ("service_tier", common.service_tier.take().map(Value::from)),
    ])?;
    Ok(ChatRequest {
        stop: stops(common.stop.take())?,
        response_format,
        schema_label,
        dialect: DialectOptions { openai, ..DialectOptions::default() },
        ignore_eos: common.ignore_eos,
        max_tokens,
        logprobs,
        sampling: sampling(common)?,
        ..ChatRequest::new(model, prompt)
    })
}

/// Repeats a request for each answer wanted, with seeds that follow each other.
pub(super) fn repeat(request: &ChatRequest, count: u32) -> impl Iterator<Item = ChatRequest> {
    (0..count).map(|index| {
        let mut request = request.clone();
        request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(index));
        request
    })
}

/// Checks how many answers are wanted.
pub(super) fn check_count(count: u32) -> Result<(), ApiError> {
    in_range("n", Some(count as f32), 1.0..=16.0)
}

/// Checks that the copies of a request, one for each answer, do not take too much memory together.
pub(super) fn check_copies(param: &'static str, copies: usize, bytes: usize) -> Result<(), ApiError> {
    if copies <= 1 || copies.saturating_mul(bytes) <= COPIES_BYTES_MAX {
        return Ok(());
    }
    let message = format!("{copies} answers to a request of {bytes} bytes are too much at once; send fewer at a time");
    Err(ApiError::invalid_value(param, message))
}

/// An input in one of the forms that prompts and texts to embed may have.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

impl Input {
    /// Returns how much of a request's body it was at least.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(tokens) => tokens.len(),
        }
    }
}

/// What an empty text among the inputs is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EmptyText {
    Allowed,
    Refused,
}

/// Takes a text, a list of texts, a list of tokens, or a list of lists of tokens apart.
pub(super) fn inputs(
    param: &'static str,
    given: TextOrList<PromptItem>,
    empty: EmptyText,
) -> Result<Vec<Input>, ApiError> {
    let refuse = |message: String| Err(ApiError::invalid_value(param, message));
    let items = match given {
        TextOrList::Text(text) => vec![PromptItem::Text(text)],
        TextOrList::List(items) => items,
    };
    if let [PromptItem::Token(_), ..] = items[..] {
        let tokens = items.iter().map(|item| if let PromptItem::Token(token) = item { Some(*token) } else { None });
        return match tokens.collect() {
            Some(tokens) => Ok(vec![Input::Tokens(tokens)]),
            None => refuse(format!("'{param}' mixes token ids with something else")),
        };
    }
    if !(1..=INPUTS_MAX).contains(&items.len()) {
        return refuse(format!("'{param}' has to hold 1 to {INPUTS_MAX} inputs, and has {}", items.len()));
    }
    let texts = matches!(items[0], PromptItem::Text(_));
    let mut inputs = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        inputs.push(match item {
            PromptItem::Text(text) if texts && (empty == EmptyText::Allowed || !text.is_empty()) => Input::Text(text),
            PromptItem::Tokens(tokens) if !texts && !tokens.is_empty() => Input::Tokens(tokens),
            PromptItem::Text(text) if text.is_empty() => return refuse(format!("input {index} of '{param}' is empty")),
            PromptItem::Tokens(tokens) if tokens.is_empty() => {
                return refuse(format!("input {index} of '{param}' is empty"));
            }
            _ => return refuse(format!("'{param}' mixes texts with token ids")),
        });
    }
    Ok(inputs)
}

fn think(effort: Option<&str>) -> Result<Option<Think>, ApiError> {
    let Some(effort) = effort else { return Ok(None) };
    if !is_word(effort) {
        let message = "'reasoning_effort' has to be a word like none, low, medium or high";
        return Err(ApiError::invalid_value("reasoning_effort", message));
    }
    Ok(Some(if effort == "none" { Think::Off } else { Think::Level(effort.to_owned()) }))
}

fn is_word(text: &str) -> bool {
    let letters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    letters && (1..=WORD_BYTES_MAX).contains(&text.len())
}

fn message(index: usize, message: RequestMessage) -> Result<Message, ApiError> {
    let role = match message.role {
        RequestRole::System | RequestRole::Developer => Role::System,
        RequestRole::User => Role::User,
        RequestRole::Assistant => Role::Assistant,
        RequestRole::Tool | RequestRole::Function => Role::Tool,
    };
    let tool_calls = message.tool_calls.unwrap_or_default();
    if message.content.is_none() && matches!(role, Role::System | Role::User) {
        let param = format!("messages[{index}].content");
        return Err(ApiError::missing(param.clone(), format!("'{param}' is missing")));
    }
    let content = match message.content {
        None => Vec::new(),
        Some(TextOrList::Text(text)) => vec![Part::Text(text)],
        Some(TextOrList::List(parts)) => {
            let place = |at: usize| format!("messages[{index}].content[{at}]");
            parts.into_iter().enumerate().map(|(at, part)| content_part(&place(at), part)).collect::<Result<_, _>>()?
        }
    };
    Ok(Message {
        role,
        content,
        tool_calls: tool_calls
            .into_iter()
            .map(|call| ToolCall { id: call.id, name: call.function.name, arguments: call.function.arguments })
            .collect(),
        tool_call_id: message.tool_call_id,
        name: message.name,
        thinking: message.reasoning_content.filter(|thinking| !thinking.is_empty()),
    })
}

fn content_part(place: &str, part: ContentPart) -> Result<Part, ApiError> {
    match (part.kind, part.text, part.image_url) {
        (PartKind::Text, Some(text), _) => Ok(Part::Text(text)),
        (PartKind::ImageUrl, _, Some(image)) => image_of(place, image).map(Part::Image),
        (PartKind::Text, None, _) => {
            Err(ApiError::missing(format!("{place}.text"), format!("'{place}.text' is missing")))
        }
        (PartKind::ImageUrl, _, None) => {
            Err(ApiError::missing(format!("{place}.image_url"), format!("'{place}.image_url' is missing")))
        }
    }
}

fn image_of(place: &str, image: ImageUrl) -> Result<Image, ApiError> {
    let ImageUrl { url, detail } = image;
    if detail.as_deref().is_some_and(|detail| !is_word(detail)) {
        let message = "it has to be a word like auto, low or high";
        return Err(ApiError::invalid_value(format!("{place}.image_url.detail"), message));
    }
    let data = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
    let source = match data {
        _ if url.starts_with("http://") || url.starts_with("https://") => ImageSource::Url(url),
        Some((media_type, base64)) => {
            ImageSource::Data { media_type: media_type.to_owned(), base64: base64.to_owned() }
        }
        None => {
            let message = "it has to be 'data:MEDIA/TYPE;base64,...', or begin with 'http://' or 'https://'";
            return Err(ApiError::invalid_value(format!("{place}.image_url.url"), message));
        }
    };
    Ok(Image { source, detail })
}

fn tool(index: usize, definition: ToolDefinition) -> Result<Tool, ApiError> {
    let function = definition.function;
    if function.name.is_empty() {
        let param = format!("tools[{index}].function.name");
        return Err(ApiError::invalid_value(param, "a function has to have a name"));
    }
    let parameters = function.parameters.map_or_else(|| json!({"type": "object", "properties": {}}), Value::Object);
    schema_depth::check(|| format!("tools[{index}].function.parameters"), &parameters)?;
    Ok(Tool { name: function.name, description: function.description, parameters, strict: function.strict })
}

/// Reads which tool has to be called. Of tools among which the model may choose only some, the others are left out.
fn tool_choice(choice: Option<ToolChoice>, tools: &mut Vec<Tool>) -> Result<CoreToolChoice, ApiError> {
    let unknown = || ApiError::invalid_value("tool_choice", "'tools' holds no such tool");
    let has = |tools: &[Tool], name: &str| tools.iter().any(|tool| tool.name == name);
    let mode = match choice {
        None => return Ok(CoreToolChoice::Auto),
        Some(ToolChoice::Mode(mode)) => mode,
        Some(ToolChoice::Named { function, .. }) if has(tools, &function.name) => {
            return Ok(CoreToolChoice::Named(function.name));
        }
        Some(ToolChoice::Named { .. }) => return Err(unknown()),
        Some(ToolChoice::Allowed { allowed_tools: AllowedTools { mode, tools: allowed }, .. }) => {
            if allowed.is_empty() || !allowed.iter().all(|tool| has(tools, &tool.function.name)) {
                return Err(unknown());
            }
            tools.retain(|tool| allowed.iter().any(|allowed| allowed.function.name == tool.name));
            mode
        }
    };
    match mode {
        ToolChoiceMode::Auto => Ok(CoreToolChoice::Auto),
        ToolChoiceMode::None => Ok(CoreToolChoice::None),
        ToolChoiceMode::Required if tools.is_empty() => Err(unknown()),
        ToolChoiceMode::Required => Ok(CoreToolChoice::Required),
    }
}

fn response_format(format: Option<ResponseFormat>) -> Result<(CoreFormat, SchemaLabel), ApiError> {
    let plain = |format| Ok((format, SchemaLabel::default()));
    let Some(format) = format else { return plain(CoreFormat::Text) };
    match (format.kind, format.json_schema) {
        (ResponseFormatKind::Text, _) => plain(CoreFormat::Text),
        (ResponseFormatKind::JsonObject, _) => plain(CoreFormat::JsonObject),
        (ResponseFormatKind::JsonSchema, Some(NamedSchema { schema: None, .. })) => plain(CoreFormat::JsonObject),
        (ResponseFormatKind::JsonSchema, Some(NamedSchema { schema: Some(schema), name, description, strict })) => {
            let schema = Value::Object(schema);
            schema_depth::check(|| "response_format.json_schema.schema".to_owned(), &schema)?;
            // Left out, it is not strict in this dialect.
            let strict = Some(strict.unwrap_or(false));
            Ok((CoreFormat::JsonSchema(schema), SchemaLabel { name, description, strict }))
        }
        (ResponseFormatKind::JsonSchema, None) => {
            let param = "response_format.json_schema";
            Err(ApiError::missing(param, format!("'{param}' is missing")))
        }
    }
}

fn stops(stop: Option<TextOrList<String>>) -> Result<Vec<String>, ApiError> {
    let mut stops = match stop {
        None => Vec::new(),
        Some(TextOrList::Text(text)) => vec![text],
        Some(TextOrList::List(texts)) => texts,
    };
    // An empty text would end every answer before it begins; some clients send one for "none".
    stops.retain(|text| !text.is_empty());
    if stops.len() > STOPS_MAX || stops.iter().any(|text| text.len() > STOP_BYTES_MAX) {
        let message = format!("'stop' may hold up to {STOPS_MAX} texts of up to {STOP_BYTES_MAX} bytes");
        return Err(ApiError::invalid_value("stop", message));
    }
    Ok(stops)
}

fn sampling(common: Common) -> Result<Sampling, ApiError> {
    in_range("temperature", common.temperature, 0.0..=2.0)?;
    in_range("top_p", common.top_p, 0.0..=1.0)?;
    in_range("min_p", common.min_p, 0.0..=1.0)?;
    in_range("presence_penalty", common.presence_penalty, -2.0..=2.0)?;
    in_range("frequency_penalty", common.frequency_penalty, -2.0..=2.0)?;
    in_range("repeat_penalty", common.repeat_penalty, 0.1..=10.0)?;
    in_range("repeat_last_n", common.repeat_last_n.map(|tokens| tokens as f32), -1.0..=PENALTY_TOKENS_MAX as f32)?;
    if common.top_k.is_some_and(|top_k| top_k < -1) {
        return Err(ApiError::invalid_value("top_k", "'top_k' has to be at least -1"));
    }
    if common.logit_bias.len() > BIASES_MAX {
        let message = format!("'logit_bias' may hold up to {BIASES_MAX} tokens, and holds {}", common.logit_bias.len());
        return Err(ApiError::invalid_value("logit_bias", message));
    }
    let mut logit_bias = Vec::with_capacity(common.logit_bias.len());
    for (token, bias) in common.logit_bias {
        in_range("logit_bias", Some(bias), -100.0..=100.0)?;
        let Ok(token) = token.parse() else {
            let message = format!("{token:?} in 'logit_bias' is not a token id");
            return Err(ApiError::invalid_value("logit_bias", message));
        };
        logit_bias.push((token, bias));
    }
    logit_bias.sort_by_key(|(token, _)| *token);
    Ok(Sampling {
        temperature: common.temperature,
        top_p: common.top_p,
        top_k: common.top_k.map(|top_k| u32::try_from(top_k).unwrap_or(0)),
        min_p: common.min_p,
        seed: common.seed.and_then(Sampling::seed_of),
        repeat_penalty: common.repeat_penalty,
        repeat_last_n: common
            .repeat_last_n
            .map(|tokens| if tokens == -1 { PENALTY_TOKENS_MAX } else { tokens }.unsigned_abs()),
        presence_penalty: common.presence_penalty,
        frequency_penalty: common.frequency_penalty,
        logit_bias,
    })
}

fn in_range(param: &'static str, value: Option<f32>, range: RangeInclusive<f32>) -> Result<(), ApiError> {
    match value {
        Some(value) if !range.contains(&value) => {
            let (low, high) = (range.start(), range.end());
            Err(ApiError::invalid_value(param, format!("'{param}' has to be from {low} to {high}, and is {value}")))
        }
        _ => Ok(()),
    }
}
