//! Says a request in Ollama's words.

use bombus_core::chat::{
    ChatRequest, DialectOptions, EmbedInput, EmbedRequest, Image, ImageSource, KeepAlive, Message, Part, Prompt,
    ResponseFormat, Role, Think, Tool, ToolCall, ToolChoice,
};
use serde_json::{Map, Value, json};

use super::context::Need;
use super::wire;
use crate::BackendError;
use crate::shorten::{IMAGE_TOKENS, TURN_TOKENS, Turn};

/// Tokens of a prompt besides its turns.
const PROMPT_TOKENS: usize = 32;

/// A request to one of the two endpoints that generate text.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Call {
    /// `/api/chat`.
    Chat(wire::ChatRequest),
    /// `/api/generate`, for what `/api/chat` has no place for.
    Generate(wire::GenerateRequest),
}

impl Call {
    /// Says a request in Ollama's words.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] for what Ollama has no words for, [`BackendError::InvalidRequest`] for what is no request.
    pub(super) fn of(request: &ChatRequest) -> Result<Self, BackendError> {
        refuse_unknown(request)?;
        let run = run_options(request)?;
        match &request.prompt {
            Prompt::Tokens(_) => {
                unsupported("prompt", "Ollama takes no token ids as a prompt; send it as a text or as messages")
            }
            Prompt::Raw(text) => raw(request, text, run).map(Self::Generate),
            // Ollama would load the model and answer nothing.
            Prompt::Chat(messages) if messages.is_empty() => {
                let message = "there is no message to answer".to_owned();
                Err(BackendError::InvalidRequest { param: Some("messages"), message })
            }
            Prompt::Chat(messages) => {
                let single = Single::of(messages);
                let needs_generate = request.template.is_some() || !request.earlier_tokens.is_empty();
                match single {
                    Some(single) if request.tools.is_empty() && (needs_generate || request.return_tokens) => {
                        single.generate(request, run).map(Self::Generate)
                    }
                    _ if needs_generate => unsupported(
                        if request.template.is_some() { "template" } else { "earlier_tokens" },
                        "Ollama takes a template of its own and earlier tokens only with a single user message, with or without a system message, and without tools",
                    ),
                    _ => Ok(Self::Chat(wire::ChatRequest {
                        model: request.model.clone(),
                        messages: conversation(messages)?,
                        tools: tools(request),
                        run,
                    })),
                }
            }
        }
    }

    /// Returns what both have in common.
    pub(super) fn run(&mut self) -> &mut wire::RunOptions {
        match self {
            Self::Chat(chat) => &mut chat.run,
            Self::Generate(generate) => &mut generate.run,
        }
    }

    /// Estimates what the request needs; `overhead_bytes` is text that the model's Modelfile adds.
    pub(super) fn need(&self, overhead_bytes: usize, max_tokens: Option<u32>) -> Need {
        let (bytes, tokens) = match self {
            Self::Chat(chat) => {
                let tools: usize = chat.tools.iter().map(|tool| tool.to_string().len()).sum();
                let turns = chat.messages.iter().map(turn_size);
                turns.fold((tools, 0), |(bytes, tokens), turn| (bytes + turn.0, tokens + turn.1))
            }
            Self::Generate(generate) => {
                let texts = [&generate.suffix, &generate.system, &generate.template];
                let bytes = texts.iter().map(|text| text.as_ref().map_or(0, String::len)).sum::<usize>();
                (bytes + generate.prompt.len(), generate.context.len() + generate.images.len() * IMAGE_TOKENS)
            }
        };
        Need::of(bytes + overhead_bytes, tokens + PROMPT_TOKENS, max_tokens)
    }
}

/// Measures the turns of a conversation. Ollama would leave out the same, but would not say so.
pub(super) fn turn_sizes(turns: &[wire::Message]) -> Vec<Turn> {
    let last = turns.len().saturating_sub(1);
    let size = |(index, turn)| {
        let (bytes, tokens) = turn_size(turn);
        Turn { bytes, tokens, stays: index == last || turn.role == "system" }
    };
    turns.iter().enumerate().map(size).collect()
}

/// Returns the bytes of a turn's text, and the tokens that it has besides.
fn turn_size(message: &wire::Message) -> (usize, usize) {
    let calls =
        message.tool_calls.iter().map(|call| call.function.name.len() + call.function.arguments.to_string().len());
    let bytes = message.content.len() + message.thinking.len() + calls.sum::<usize>();
    (bytes, TURN_TOKENS + message.images.len() * IMAGE_TOKENS)
}

/// A conversation that `/api/generate` can carry: one user message, with a system message before it or not.
struct Single<'a> {
    system: Option<&'a Message>,
    user: &'a Message,
}

impl<'a> Single<'a> {
    fn of(messages: &'a [Message]) -> Option<Self> {
        let (system, user) = match messages {
            [user] => (None, user),
            [system, user] if system.role == Role::System => (Some(system), user),
            _ => return None,
        };
        // An empty prompt would load the model and nothing else.
        (user.role == Role::User && !user.joined_text().is_empty()).then_some(Self { system, user })
    }

    fn generate(self, request: &ChatRequest, run: wire::RunOptions) -> Result<wire::GenerateRequest, BackendError> {
        Ok(wire::GenerateRequest {
            model: request.model.clone(),
            prompt: self.user.joined_text(),
            system: self.system.map(Message::joined_text),
            template: request.template.clone(),
            context: request.earlier_tokens.clone(),
            images: data_of(pictures(self.user))?,
            run,
            ..wire::GenerateRequest::default()
        })
    }
}

fn raw(request: &ChatRequest, text: &str, run: wire::RunOptions) -> Result<wire::GenerateRequest, BackendError> {
    if text.is_empty() {
        return unsupported("prompt", "Ollama generates nothing from an empty prompt");
    }
    if !request.earlier_tokens.is_empty() {
        return unsupported(
            "earlier_tokens",
            "Ollama takes earlier tokens only before messages, not before a raw prompt",
        );
    }
    Ok(wire::GenerateRequest {
        model: request.model.clone(),
        prompt: text.to_owned(),
        suffix: request.suffix.clone(),
        template: request.template.clone(),
        images: data_of(&request.images)?,
        // The model's own template has the place of a suffix.
        raw: request.suffix.is_none() && request.template.is_none(),
        run,
        ..wire::GenerateRequest::default()
    })
}

fn refuse_unknown(request: &ChatRequest) -> Result<(), BackendError> {
    if request.ignore_eos {
        return unsupported("ignore_eos", "Ollama cannot go on past the end of a text");
    }
    if !request.sampling.logit_bias.is_empty() {
        return unsupported("logit_bias", "Ollama has no bias for single tokens");
    }
    match &request.tool_choice {
        ToolChoice::Auto | ToolChoice::None => Ok(()),
        ToolChoice::Required | ToolChoice::Named(_) => unsupported(
            "tool_choice",
            "Ollama cannot be made to call a tool; leave `tool_choice` out, or say `auto` or `none`",
        ),
    }
}

fn run_options(request: &ChatRequest) -> Result<wire::RunOptions, BackendError> {
    let sampling = &request.sampling;
    let format = match &request.response_format {
        ResponseFormat::Text => None,
        ResponseFormat::JsonObject => Some("json".into()),
        ResponseFormat::JsonSchema(schema) if schema.is_object() => Some(schema.clone()),
        ResponseFormat::JsonSchema(_) => {
            let message = "the JSON schema of an answer has to be an object for Ollama".to_owned();
            return Err(BackendError::InvalidRequest { param: Some("response_format"), message });
        }
    };
    Ok(wire::RunOptions {
        options: wire::Options {
            num_ctx: None,
            // Ollama takes 0 for no limit.
            num_predict: request.max_tokens.map(|tokens| tokens.max(1)),
            num_keep: request.overflow.keep_tokens,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            seed: sampling.fixed_seed(),
            repeat_penalty: sampling.repeat_penalty,
            repeat_last_n: sampling.repeat_last_n,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            stop: request.stop.clone(),
            others: others(&request.dialect),
        },
        format,
        keep_alive: request.keep_alive.map(seconds),
        think: request.think.as_ref().map(|think| match think {
            Think::Off => Value::Bool(false),
            Think::On => Value::Bool(true),
            Think::Level(level) => level_of(level),
        }),
        truncate: Some(false),
        shift: Some(request.overflow.shift),
        logprobs: request.logprobs.is_some(),
        top_logprobs: request.logprobs,
    })
}

/// Returns the options that have no place in our vocabulary. A peer's request may bring others, which would stand there twice.
pub(super) fn others(dialect: &DialectOptions) -> Map<String, Value> {
    let others = dialect.ollama.iter().filter(|(option, _)| !wire::OPTIONS.contains(&option.as_str()));
    others.map(|(option, value)| (option.clone(), value.clone())).collect()
}

/// Says how much to think in one of the words that Ollama takes; it refuses all others, of which `OpenAI` has some.
fn level_of(word: &str) -> Value {
    match word {
        "low" | "medium" | "high" | "max" => word.into(),
        "minimal" => "low".into(),
        "xhigh" => "high".into(),
        _ => true.into(),
    }
}

/// Returns how long a model stays loaded as Ollama says it: in seconds, below 0 for ever.
pub(super) fn seconds(keep_alive: KeepAlive) -> i64 {
    match keep_alive {
        KeepAlive::Seconds(seconds) => i64::try_from(seconds).unwrap_or(-1),
        KeepAlive::Forever => -1,
    }
}

/// Says the turns of a conversation in Ollama's words. The name of a tool that answers is found by its call where it is not given.
///
/// # Errors
///
/// As [`Call::of`].
pub(super) fn conversation(messages: &[Message]) -> Result<Vec<wire::Message>, BackendError> {
    let mut turns = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let called = |id: &str| {
            let calls = messages[..index].iter().rev().flat_map(|earlier| &earlier.tool_calls);
            calls.into_iter().find(|call| call.id == id).map(|call| call.name.clone())
        };
        let is_tool = message.role == Role::Tool;
        turns.push(wire::Message {
            role: message.role.as_str().to_owned(),
            content: message.joined_text(),
            thinking: message.thinking.clone().unwrap_or_default(),
            images: data_of(pictures(message))?,
            tool_calls: message.tool_calls.iter().map(tool_call).collect::<Result<_, _>>()?,
            tool_name: message.name.clone().or_else(|| called(message.tool_call_id.as_deref()?)).filter(|_| is_tool),
            tool_call_id: message.tool_call_id.clone().filter(|_| is_tool),
        });
    }
    Ok(turns)
}

fn tool_call(call: &ToolCall) -> Result<wire::ToolCall, BackendError> {
    let arguments = match call.arguments.trim() {
        "" => Ok(json!({})),
        text => serde_json::from_str::<Value>(text),
    };
    match arguments {
        Ok(arguments) if arguments.is_object() => {
            let function = wire::ToolCallFunction { name: call.name.clone(), arguments };
            Ok(wire::ToolCall { id: Some(call.id.clone()).filter(|id| !id.is_empty()), function })
        }
        _ => {
            let message = format!("the arguments of the call of tool '{}' are not a JSON object", call.name);
            Err(BackendError::InvalidRequest { param: Some("messages"), message })
        }
    }
}

fn pictures(message: &Message) -> impl Iterator<Item = &Image> {
    message.content.iter().filter_map(|part| match part {
        Part::Text(_) => None,
        Part::Image(image) => Some(image),
    })
}

fn data_of<'a>(pictures: impl IntoIterator<Item = &'a Image>) -> Result<Vec<String>, BackendError> {
    let data = pictures.into_iter().map(|image| match &image.source {
        ImageSource::Data { base64, .. } => Ok(base64.clone()),
        ImageSource::Url(url) => match url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
            Some((_, base64)) => Ok(base64.to_owned()),
            None => unsupported("messages", "Ollama does not fetch pictures; send them in the request, as data URLs"),
        },
    });
    data.collect()
}

fn tools(request: &ChatRequest) -> Vec<Value> {
    if request.tool_choice == ToolChoice::None {
        return Vec::new();
    }
    let function = |tool: &Tool| {
        let mut function = json!({ "name": tool.name, "parameters": tool.parameters });
        if let Some(description) = &tool.description {
            function["description"] = description.as_str().into();
        }
        json!({ "type": "function", "function": function })
    };
    request.tools.iter().map(function).collect()
}

/// Says a request for vectors in Ollama's words.
///
/// # Errors
///
/// [`BackendError::Unsupported`] for token ids.
pub(super) fn embed(request: &EmbedRequest) -> Result<wire::EmbedRequest, BackendError> {
    let text = |input: &EmbedInput| match input {
        EmbedInput::Text(text) => Ok(text.clone()),
        EmbedInput::Tokens(_) => unsupported("inputs", "Ollama takes no token ids as an input; send it as a text"),
    };
    Ok(wire::EmbedRequest {
        model: request.model.clone(),
        input: request.inputs.iter().map(text).collect::<Result<_, _>>()?,
        truncate: Some(request.truncate),
        dimensions: request.dimensions,
        keep_alive: request.keep_alive.map(seconds),
        options: wire::Options { others: others(&request.dialect), ..wire::Options::default() },
    })
}

fn unsupported<T>(param: &'static str, message: &str) -> Result<T, BackendError> {
    Err(BackendError::Unsupported { param, message: message.to_owned() })
}

#[cfg(test)]
mod tests;
