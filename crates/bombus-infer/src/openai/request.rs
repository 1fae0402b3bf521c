//! Requests for text, said in `OpenAI`'s words.

use bombus_core::chat::{ChatRequest, ImageSource, Message, Part, Prompt, Role, Sampling, Tool, ToolCall, ToolChoice};
use serde_json::{Map, Value, json};

use super::Provider;
use crate::BackendError;

/// Builds the body of a request: of `chat/completions` for a conversation, of `completions` for text or tokens. What is not set is left out.
pub(super) fn body(request: &ChatRequest, id: &str, provider: Provider) -> Result<Map<String, Value>, BackendError> {
    check(request, provider)?;
    let mut body = Map::new();
    let mut put = |field: &str, value: Value| body.insert(field.to_owned(), value);
    put("model", json!(id));
    let chat = match &request.prompt {
        Prompt::Chat(turns) => {
            put("messages", messages(turns, provider));
            true
        }
        Prompt::Raw(text) => {
            put("prompt", json!(text));
            false
        }
        Prompt::Tokens(tokens) => {
            put("prompt", json!(tokens));
            false
        }
    };
    put("stream", json!(true));
    put("stream_options", json!({"include_usage": true}));
    if let Some(most) = request.max_tokens {
        put(provider.max_tokens_field(chat), json!(most));
    }
    if !request.stop.is_empty() {
        put("stop", json!(request.stop));
    }
    match request.logprobs {
        // llama-server takes a number that is left out for 20, and 0 for none at all.
        Some(0) if chat && provider == Provider::LlamaCpp => {
            put("logprobs", json!(true));
            put("top_logprobs", json!(1));
        }
        Some(0) if chat => {
            put("logprobs", json!(true));
        }
        Some(count) if chat => {
            put("logprobs", json!(true));
            put("top_logprobs", json!(count));
        }
        Some(count) => {
            put("logprobs", json!(count));
        }
        None => {}
    }
    if let Some(suffix) = request.suffix.as_ref().filter(|_| !chat) {
        put("suffix", json!(suffix));
    }
    if chat && !request.tools.is_empty() {
        let named = |tool: &&Tool| matches!(&request.tool_choice, ToolChoice::Named(name) if *name == tool.name);
        // llama-server passes over the name of a tool.
        let alone = request.tools.iter().find(named).filter(|_| provider == Provider::LlamaCpp);
        put("tools", alone.map_or_else(|| request.tools.iter().map(tool).collect(), |alone| json!([tool(alone)])));
        match &request.tool_choice {
            ToolChoice::Auto => {}
            ToolChoice::Named(_) if alone.is_some() => {
                put("tool_choice", json!("required"));
            }
            ToolChoice::None => {
                put("tool_choice", json!("none"));
            }
            ToolChoice::Required => {
                put("tool_choice", json!("required"));
            }
            ToolChoice::Named(name) => {
                put("tool_choice", json!({"type": "function", "function": {"name": name}}));
            }
        }
    }
    put_sampling(&request.sampling, provider, &mut body);
    for (option, value) in &request.dialect.ollama {
        if provider.takes_option(option) {
            body.insert(option.clone(), value.clone());
        }
    }
    if let Some(tokens) = request.overflow.keep_tokens.filter(|_| provider.knows_keep_tokens()) {
        body.insert("n_keep".to_owned(), json!(tokens));
    }
    if request.ignore_eos {
        body.insert("ignore_eos".to_owned(), json!(true));
    }
    provider.put_format(&request.response_format, &request.schema_label, chat, &mut body);
    for (field, value) in &request.dialect.openai {
        if provider.takes_field(field, value) {
            body.entry(field).or_insert_with(|| value.clone());
        }
    }
    if let Some(think) = request.think.as_ref().filter(|_| chat) {
        provider.put_think(think, &mut body);
    }
    Ok(body)
}

/// Refuses what the dialect, or this provider, has no words for and what would make it another answer.
fn check(request: &ChatRequest, provider: Provider) -> Result<(), BackendError> {
    let refuse = |param, what: &str| {
        let message = format!("{what} cannot be passed on to a server of OpenAI's dialect, which runs this model");
        Err(BackendError::Unsupported { param, message })
    };
    if !request.earlier_tokens.is_empty() {
        return refuse("earlier_tokens", "the tokens of an earlier answer");
    }
    if request.template.is_some() {
        return refuse("template", "a prompt template");
    }
    if request.suffix.is_some() && !provider.knows_suffix() {
        return refuse("suffix", "a suffix");
    }
    if !request.images.is_empty() {
        return refuse("images", "a picture beside a raw prompt");
    }
    if request.ignore_eos && !provider.knows_local_sampling() {
        return refuse("ignore_eos", "'ignore_eos'");
    }
    Ok(())
}

fn put_sampling(sampling: &Sampling, provider: Provider, body: &mut Map<String, Value>) {
    let mut put = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(field.to_owned(), value);
        }
    };
    put("temperature", sampling.temperature.map(number));
    put("top_p", sampling.top_p.map(number));
    put("seed", sampling.fixed_seed().map(Value::from));
    put("presence_penalty", sampling.presence_penalty.map(number));
    put("frequency_penalty", sampling.frequency_penalty.map(number));
    if !sampling.logit_bias.is_empty() {
        let biases = sampling.logit_bias.iter().map(|(token, bias)| (token.to_string(), number(*bias)));
        put("logit_bias", Some(Value::Object(biases.collect())));
    }
    if provider.knows_local_sampling() {
        put("top_k", sampling.top_k.map(Value::from));
        put("min_p", sampling.min_p.map(number));
        put(provider.repeat_penalty_field(), sampling.repeat_penalty.map(number));
        if provider.knows_repeat_last_n() {
            put("repeat_last_n", sampling.repeat_last_n.map(Value::from));
        }
    }
}

/// Writes 0.7 as `0.7`, not as the double next to the float, `0.699999988079071`.
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn tool(tool: &Tool) -> Value {
    let mut function = Map::from_iter([("name".to_owned(), json!(tool.name))]);
    if let Some(description) = &tool.description {
        function.insert("description".to_owned(), json!(description));
    }
    function.insert("parameters".to_owned(), tool.parameters.clone());
    if let Some(strict) = tool.strict {
        function.insert("strict".to_owned(), json!(strict));
    }
    json!({"type": "function", "function": function})
}

/// Says the turns of a conversation.
pub(super) fn messages(turns: &[Message], provider: Provider) -> Value {
    turns.iter().map(|said| message(said, provider)).collect()
}

fn message(said: &Message, provider: Provider) -> Value {
    let mut message = Map::from_iter([("role".to_owned(), json!(said.role.as_str()))]);
    let content = match &said.content[..] {
        [] if !said.tool_calls.is_empty() => Value::Null,
        [] => json!(""),
        [Part::Text(text)] => json!(text),
        parts => parts.iter().map(part).collect(),
    };
    message.insert("content".to_owned(), content);
    if !said.tool_calls.is_empty() {
        message.insert("tool_calls".to_owned(), said.tool_calls.iter().map(tool_call).collect());
    }
    if let Some(id) = said.tool_call_id.as_ref().filter(|_| said.role == Role::Tool) {
        message.insert("tool_call_id".to_owned(), json!(id));
    }
    if let Some(name) = &said.name {
        message.insert("name".to_owned(), json!(name));
    }
    if let Some(thinking) = said.thinking.as_ref().filter(|_| provider.takes_thoughts()) {
        message.insert("reasoning_content".to_owned(), json!(thinking));
    }
    Value::Object(message)
}

fn part(part: &Part) -> Value {
    match part {
        Part::Text(text) => json!({"type": "text", "text": text}),
        Part::Image(image) => {
            let url = match &image.source {
                ImageSource::Url(url) => json!(url),
                ImageSource::Data { media_type, base64 } => json!(format!("data:{media_type};base64,{base64}")),
            };
            let mut said = Map::from_iter([("url".to_owned(), url)]);
            if let Some(detail) = &image.detail {
                said.insert("detail".to_owned(), json!(detail));
            }
            json!({"type": "image_url", "image_url": said})
        }
    }
}

fn tool_call(call: &ToolCall) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}
