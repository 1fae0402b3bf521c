//! What a model's name adds to a request that does not say otherwise.

use bombus_core::chat::{ChatRequest, Message, Prompt, Role};
use bombus_infer::models::ModelDefaults;
use serde_json::{Map, Value};

/// Puts the defaults of a model under a request.
pub(super) fn apply(defaults: &ModelDefaults, request: &mut ChatRequest) {
    apply_parameters(&defaults.parameters, request);
    if request.template.is_none() {
        request.template.clone_from(&defaults.template);
    }
    let Prompt::Chat(messages) = &mut request.prompt else { return };
    let has_system = messages.iter().chain(&defaults.messages).any(|message| message.role == Role::System);
    messages.splice(0..0, defaults.messages.iter().cloned());
    if let Some(system) = defaults.system.as_deref().filter(|system| !has_system && !system.is_empty()) {
        messages.insert(0, Message::text(Role::System, system));
    }
}

/// Knows Ollama's options as far as they mean something to single requests.
fn apply_parameters(parameters: &Map<String, Value>, request: &mut ChatRequest) {
    let float = |name: &str| parameters.get(name).and_then(Value::as_f64).map(|number| number as f32);
    let integer = |name: &str| parameters.get(name).and_then(Value::as_i64);
    let count = |name: &str| integer(name).and_then(|number| u32::try_from(number).ok());
    let sampling = &mut request.sampling;
    sampling.temperature = sampling.temperature.or_else(|| float("temperature"));
    sampling.top_p = sampling.top_p.or_else(|| float("top_p"));
    sampling.min_p = sampling.min_p.or_else(|| float("min_p"));
    sampling.top_k = sampling.top_k.or_else(|| count("top_k"));
    sampling.seed = sampling.seed.or_else(|| count("seed"));
    sampling.repeat_penalty = sampling.repeat_penalty.or_else(|| float("repeat_penalty"));
    sampling.repeat_last_n = sampling.repeat_last_n.or_else(|| count("repeat_last_n"));
    sampling.presence_penalty = sampling.presence_penalty.or_else(|| float("presence_penalty"));
    sampling.frequency_penalty = sampling.frequency_penalty.or_else(|| float("frequency_penalty"));
    // Negative numbers stand for no limit.
    request.max_tokens = request.max_tokens.or_else(|| count("num_predict"));
    request.context_tokens = request.context_tokens.or_else(|| count("num_ctx").filter(|tokens| *tokens > 0));
    request.overflow.keep_tokens = request.overflow.keep_tokens.or_else(|| count("num_keep"));
    if request.stop.is_empty() {
        request.stop = match parameters.get("stop") {
            Some(Value::String(stop)) => vec![stop.clone()],
            Some(Value::Array(stops)) => stops.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn defaults() -> ModelDefaults {
        let parameters = json!({ "temperature": 0.25, "top_k": 5, "num_predict": -1, "num_ctx": 512, "stop": ["END"] });
        ModelDefaults {
            system: Some("Be brief.".into()),
            template: Some("{{ .Prompt }}".into()),
            parameters: parameters.as_object().unwrap().clone(),
            messages: vec![Message::text(Role::User, "1"), Message::text(Role::Assistant, "2")],
            ..ModelDefaults::default()
        }
    }

    fn texts(request: &ChatRequest) -> Vec<String> {
        let Prompt::Chat(messages) = &request.prompt else { panic!("no conversation") };
        messages.iter().map(Message::joined_text).collect()
    }

    #[test]
    fn a_request_gets_what_it_does_not_say_itself() {
        let mut request = ChatRequest::new("m", Prompt::Chat(vec![Message::text(Role::User, "3")]));
        request.sampling.top_k = Some(40);
        apply(&defaults(), &mut request);
        assert_eq!(texts(&request), ["Be brief.", "1", "2", "3"]);
        assert_eq!((request.sampling.temperature, request.sampling.top_k), (Some(0.25), Some(40)));
        assert_eq!((request.max_tokens, request.context_tokens), (None, Some(512)));
        assert_eq!(
            (request.stop.as_slice(), request.template.as_deref()),
            (["END".to_owned()].as_slice(), Some("{{ .Prompt }}"))
        );
    }

    #[test]
    fn a_conversation_with_a_system_message_keeps_its_own() {
        let messages = vec![Message::text(Role::System, "Talk."), Message::text(Role::User, "3")];
        let mut request = ChatRequest::new("m", Prompt::Chat(messages));
        apply(&ModelDefaults { messages: Vec::new(), ..defaults() }, &mut request);
        assert_eq!(texts(&request), ["Talk.", "3"]);
    }
}
