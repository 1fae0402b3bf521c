//! From what clients send to the internal vocabulary, and calls of tools back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bombus_core::chat::{
    ChatRequest, DialectOptions, Image, ImageSource, Message, Overflow, Part, Prompt, ResponseFormat, Role, Tool,
    ToolCall,
};
use serde_json::{Value, json};

use super::options::Options;
use super::request::{Common, RequestMessage, RequestTool, RequestToolCall};
use crate::error::ApiError;
use crate::schema_depth;

/// Most tokens in a `context`; far more than any model reads.
pub(super) const CONTEXT_TOKENS_MAX: usize = 1 << 20;

/// Turns what both kinds of generation share into a request without a model and a prompt.
pub(super) fn generation(common: Common) -> Result<ChatRequest, ApiError> {
    let options = Options::read(common.options)?;
    let logprobs = match (common.logprobs, u8::try_from(common.top_logprobs)) {
        (wanted, Ok(top @ 0..=20)) => wanted.then_some(top),
        _ => return Err(ApiError::invalid_value("top_logprobs", "top_logprobs must be between 0 and 20")),
    };
    let overflow = Overflow { truncate: common.truncate, shift: common.shift, keep_tokens: options.keep_tokens };
    Ok(ChatRequest {
        response_format: format(common.format)?,
        sampling: options.sampling,
        stop: options.stop,
        max_tokens: options.max_tokens,
        context_tokens: options.context_tokens,
        logprobs,
        think: common.think,
        overflow,
        keep_alive: common.keep_alive.map(|field| field.0),
        dialect: DialectOptions { ollama: options.engine, ..DialectOptions::default() },
        ..ChatRequest::new("", Prompt::Raw(String::new()))
    })
}

fn format(format: Option<Value>) -> Result<ResponseFormat, ApiError> {
    match format {
        None | Some(Value::Null) => Ok(ResponseFormat::Text),
        Some(Value::String(word)) if word.is_empty() => Ok(ResponseFormat::Text),
        Some(Value::String(word)) if word == "json" => Ok(ResponseFormat::JsonObject),
        Some(Value::Object(schema)) => {
            let schema = Value::Object(schema);
            schema_depth::check(|| "format".to_owned(), &schema)?;
            Ok(ResponseFormat::JsonSchema(schema))
        }
        Some(_) => {
            let message = "invalid format; expected \"json\" or a valid JSON Schema object";
            Err(ApiError::invalid_value("format", message))
        }
    }
}

/// Turns the turns of a conversation into messages. Calls without an id get one, and the answers to them name it, for other dialects
/// cannot do without.
pub(super) fn messages(turns: Vec<RequestMessage>) -> Result<Vec<Message>, ApiError> {
    let mut messages: Vec<Message> = Vec::with_capacity(turns.len());
    let mut unanswered: Vec<(String, String)> = Vec::new();
    for (index, turn) in turns.into_iter().enumerate() {
        let mut message = message(index, turn)?;
        for call in &message.tool_calls {
            unanswered.push((call.id.clone(), call.name.clone()));
        }
        if message.role == Role::Tool {
            let answered = unanswered.iter().position(|(id, name)| match (&message.tool_call_id, &message.name) {
                (Some(given), _) => given == id,
                (None, Some(given)) => given == name,
                (None, None) => true,
            });
            if let Some(at) = answered {
                let (id, name) = unanswered.remove(at);
                message.tool_call_id.get_or_insert(id);
                message.name.get_or_insert(name);
            }
        }
        messages.push(message);
    }
    Ok(messages)
}

fn message(index: usize, turn: RequestMessage) -> Result<Message, ApiError> {
    let role = match turn.role.to_lowercase().as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        _ => {
            let param = format!("messages[{index}].role");
            let message =
                format!("'{param}' has to be system, developer, user, assistant or tool, and is {:?}", turn.role);
            return Err(ApiError::invalid_value(param, message));
        }
    };
    let images = turn.images.unwrap_or_default();
    let mut content = Vec::with_capacity(1 + images.len());
    let text = turn.content.unwrap_or_default();
    if !text.is_empty() {
        content.push(Part::Text(text));
    }
    content.extend(pictures(&format!("messages[{index}].images"), images)?.into_iter().map(Part::Image));
    let calls = turn.tool_calls.unwrap_or_default().into_iter().enumerate();
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Message {
        role,
        content,
        tool_calls: calls.map(|(at, call)| tool_call(index, at, call)).collect::<Result<_, _>>()?,
        tool_call_id: filled(turn.tool_call_id),
        name: filled(turn.tool_name),
        thinking: filled(turn.thinking),
    })
}

fn tool_call(index: usize, at: usize, call: RequestToolCall) -> Result<ToolCall, ApiError> {
    let arguments = match call.function.arguments {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::Object(arguments)) => Value::Object(arguments).to_string(),
        Some(Value::String(text)) if is_object(&text) => text,
        Some(_) => {
            let param = format!("messages[{index}].tool_calls[{at}].function.arguments");
            let message = format!("'{param}' has to be a JSON object");
            return Err(ApiError::invalid_value(param, message));
        }
    };
    let id = call.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call_{index}_{at}"));
    Ok(ToolCall { id, name: call.function.name, arguments })
}

/// Returns whether a text is a JSON object.
pub(super) fn is_object(text: &str) -> bool {
    // Whoever begins with a brace and is JSON is an object.
    text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// Reads pictures in base64.
pub(super) fn pictures(place: &str, images: Vec<String>) -> Result<Vec<Image>, ApiError> {
    let mut pictures = Vec::with_capacity(images.len());
    for (at, mut base64) in images.into_iter().enumerate() {
        // Some writers of base64 break its lines.
        base64.retain(|character| !matches!(character, '\r' | '\n'));
        let bytes = STANDARD.decode(&base64).map_err(|error| {
            ApiError::invalid_value(format!("{place}[{at}]"), format!("'{place}[{at}]' is no base64: {error}"))
        })?;
        pictures.push(ImageSource::Data { media_type: media_type(&bytes).to_owned(), base64 }.into());
    }
    Ok(pictures)
}

/// Tells the kind of a picture by its first bytes (WHATWG's MIME Sniffing Standard, 6.1), since this dialect does not name it.
fn media_type(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => "image/png",
        [0xff, 0xd8, 0xff, ..] => "image/jpeg",
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => "image/gif",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        [b'B', b'M', ..] => "image/bmp",
        _ => "application/octet-stream",
    }
}

/// Turns the tools that a model may call into the vocabulary's.
pub(super) fn tools(tools: Vec<RequestTool>) -> Result<Vec<Tool>, ApiError> {
    let tools = tools.into_iter().enumerate().map(|(index, tool)| {
        let function = tool.function;
        let parameters = function.parameters.map_or_else(|| json!({"type": "object", "properties": {}}), Value::Object);
        schema_depth::check(|| format!("tools[{index}].function.parameters"), &parameters)?;
        Ok(Tool { name: function.name, description: function.description, parameters, strict: None })
    });
    tools.collect()
}
