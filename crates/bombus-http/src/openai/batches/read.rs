//! What the lines of a batch ask, read as requests by themselves are.

use bombus_core::batches::Endpoint;
use bombus_core::chat::{EmbedInput, EmbedRequest};
use bombus_core::tasks::WholeRequest;

use super::super::completions::{self, ANSWERS_MAX};
use super::super::request::{ChatCompletionRequest, Common, CompletionRequest, EmbeddingRequest, EncodingFormat};
use super::super::text_or_list::TextOrList;
use super::super::translate::{self, EmptyText, Input};
use crate::body::parse;
use crate::error::ApiError;

/// In the form of a task: the answer is told with log probabilities.
pub(super) const LOGPROBS: &str = "logprobs";
/// In the form of a task: vectors are told in base64.
pub(super) const BASE64: &str = "base64";
/// In the form of a task: it is a conversation, else a text that goes on.
pub(super) const CHAT: &str = "chat";

/// Reads a request to an endpoint.
pub(crate) fn read(endpoint: Endpoint, body: &[u8], default_model: Option<&str>) -> Result<WholeRequest, ApiError> {
    let named = |model: Option<String>| {
        let named = model.filter(|name| !name.is_empty()).or_else(|| default_model.map(str::to_owned));
        named.ok_or_else(|| ApiError::missing("model", "'model' is missing"))
    };
    match endpoint {
        Endpoint::Chat => {
            let request: ChatCompletionRequest = parse(body)?;
            chat(request, body.len(), named).map_err(|error| error.rename_param("prompt", "messages"))
        }
        Endpoint::Completions => completions(parse(body)?, body.len(), named),
        Endpoint::Embeddings => embeddings(parse(body)?, named),
    }
}

/// Returns how many answers are wanted.
fn checked_count(common: &Common) -> Result<u32, ApiError> {
    if common.stream {
        return Err(ApiError::unsupported("stream", "'stream' is not supported in a batch; leave it out"));
    }
    translate::check_count(common.n)?;
    Ok(common.n)
}

fn form(kind: &str, logprobs: bool) -> String {
    if logprobs { format!("{kind} {LOGPROBS}") } else { kind.to_owned() }
}

fn chat(
    mut request: ChatCompletionRequest,
    bytes: usize,
    named: impl FnOnce(Option<String>) -> Result<String, ApiError>,
) -> Result<WholeRequest, ApiError> {
    let common = request.take_common();
    let answers = checked_count(&common)?;
    translate::check_copies("n", answers as usize, bytes)?;
    let model = named(request.model.take())?;
    let request = translate::chat_request(request, common, model)?;
    let form = form(CHAT, request.logprobs.is_some());
    Ok(WholeRequest::Chat { requests: vec![request], answers, form })
}

fn completions(
    mut request: CompletionRequest,
    bytes: usize,
    named: impl FnOnce(Option<String>) -> Result<String, ApiError>,
) -> Result<WholeRequest, ApiError> {
    let common = request.take_common();
    let answers = checked_count(&common)?;
    completions::check_unsupported(&request, answers)?;
    if request.echo.unwrap_or(false) {
        return Err(ApiError::unsupported("echo", "'echo' is not supported in a batch; leave it out"));
    }
    let prompt = request.prompt.take().unwrap_or_else(|| TextOrList::Text(String::new()));
    let inputs = translate::inputs("prompt", prompt, EmptyText::Allowed)?;
    let wanted = inputs.len() * answers as usize;
    if wanted > ANSWERS_MAX {
        let message = format!("{wanted} continuations are wanted, but at most {ANSWERS_MAX} are given at once");
        return Err(ApiError::invalid_value("prompt", message));
    }
    translate::check_copies("prompt", wanted, bytes)?;
    let model = named(request.model.take())?;
    let one = completions::form(&mut request, common, model, &inputs)?;
    let requests = inputs.into_iter().map(|input| completions::of_input(&one, input));
    let form = form("text", one.logprobs.is_some());
    Ok(WholeRequest::Chat { requests: requests.collect(), answers, form })
}

fn embeddings(
    request: EmbeddingRequest,
    named: impl FnOnce(Option<String>) -> Result<String, ApiError>,
) -> Result<WholeRequest, ApiError> {
    if request.dimensions == Some(0) {
        return Err(ApiError::invalid_value("dimensions", "'dimensions' has to be at least 1"));
    }
    let inputs = translate::inputs("input", request.input, EmptyText::Refused)?;
    let inputs = inputs.into_iter().map(|input| match input {
        Input::Text(text) => EmbedInput::Text(text),
        Input::Tokens(tokens) => EmbedInput::Tokens(tokens),
    });
    let form = if request.encoding_format == Some(EncodingFormat::Base64) { BASE64.to_owned() } else { String::new() };
    let embed = EmbedRequest::new(named(request.model)?, inputs.collect());
    let request = Box::new(EmbedRequest { dimensions: request.dimensions, ..embed });
    Ok(WholeRequest::Embed { request, form })
}

#[cfg(test)]
mod tests {
    use bombus_core::chat::{Prompt, Think};
    use serde_json::json;

    use super::*;

    fn read_value(endpoint: Endpoint, body: &serde_json::Value) -> Result<WholeRequest, ApiError> {
        read(endpoint, body.to_string().as_bytes(), None)
    }

    #[test]
    fn everything_that_a_request_can_ask_is_in_the_task() {
        let body = json!({
            "model": "m", "messages": [{ "role": "user", "content": "Hi" }], "n": 2, "seed": 7, "logprobs": true, "top_logprobs": 3,
            "tools": [{ "type": "function", "function": { "name": "look", "parameters": { "type": "object" } } }],
            "tool_choice": { "type": "function", "function": { "name": "look" } }, "max_tokens": 5,
            "response_format": { "type": "json_object" }, "logit_bias": { "5": -100 }, "stop": ["."],
        });
        let Ok(WholeRequest::Chat { requests, answers, form }) = read_value(Endpoint::Chat, &body) else { panic!() };
        let request = &requests[0];
        assert_eq!((requests.len(), answers, form.as_str()), (1, 2, "chat logprobs"));
        assert_eq!((request.tools.len(), request.logprobs, request.max_tokens), (1, Some(3), Some(5)));
        assert_eq!((request.sampling.seed, request.sampling.logit_bias.as_slice()), (Some(7), &[(5, -100.0)][..]));

        let body = json!({ "model": "m", "prompt": ["a", "b"], "n": 2, "suffix": "!" });
        let Ok(WholeRequest::Chat { requests, answers, form }) = read_value(Endpoint::Completions, &body) else {
            panic!()
        };
        assert_eq!((requests.len(), answers, form.as_str()), (2, 2, "text"));
        assert!(requests.iter().all(|request| request.think == Some(Think::Off)));
        assert_eq!((&requests[1].prompt, requests[1].max_tokens), (&Prompt::Raw("b".into()), Some(16)));

        let body = json!({ "model": "m", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8 });
        let Ok(WholeRequest::Embed { request, form }) = read_value(Endpoint::Embeddings, &body) else { panic!() };
        assert_eq!((request.inputs.len(), request.dimensions, form.as_str()), (2, Some(8), "base64"));
    }

    #[test]
    fn what_a_task_cannot_do_is_refused_as_a_request_by_itself_is() {
        let chat = json!([{ "role": "user", "content": "Hi" }]);
        for (endpoint, body, param) in [
            (Endpoint::Chat, json!({ "model": "m", "messages": chat, "stream": true }), "stream"),
            (Endpoint::Chat, json!({ "messages": chat }), "model"),
            (Endpoint::Chat, json!({ "model": "m", "messages": [] }), "messages"),
            (Endpoint::Chat, json!({ "model": "m", "messages": chat, "temperature": 9 }), "temperature"),
            (Endpoint::Completions, json!({ "model": "m", "prompt": "a", "echo": true }), "echo"),
            (Endpoint::Completions, json!({ "model": "m", "prompt": vec!["a"; 129] }), "prompt"),
            (Endpoint::Embeddings, json!({ "model": "m", "input": "" }), "input"),
            (Endpoint::Embeddings, json!({ "model": "m", "input": "a", "dimensions": 0 }), "dimensions"),
        ] {
            let error = read_value(endpoint, &body).unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{body}");
        }
        let named = read(Endpoint::Chat, json!({ "messages": chat }).to_string().as_bytes(), Some("default")).unwrap();
        assert_eq!(named.model(), "default");
    }
}
