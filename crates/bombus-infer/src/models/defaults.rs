//! What a model's name adds to its weights, and to the requests for it.

use bombus_core::chat::{ChatRequest, Message, Prompt, Role, Sampling};
use bombus_core::model::ModelName;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::CreateRequest;
use crate::openai::Provider;

/// What a name adds to its weights: several names may stand for one file and behave differently.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelDefaults {
    /// The model that it was made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<ModelName>,
    /// Prompt template in place of the file's own, in Go's notation or in Jinja.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// System message of conversations that bring none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Defaults of options, by Ollama's names.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
    /// Licence texts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub licenses: Vec<String>,
    /// Messages that stand before every conversation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
}

impl ModelDefaults {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Puts what a request to make a model says over what it is made of.
    pub(crate) fn lay_over(&mut self, request: &CreateRequest) {
        if request.template.is_some() {
            self.template.clone_from(&request.template);
        }
        if request.system.is_some() {
            self.system.clone_from(&request.system);
        }
        if !request.messages.is_empty() {
            self.messages.clone_from(&request.messages);
        }
        for (option, value) in &request.parameters {
            self.parameters.insert(option.clone(), value.clone());
        }
        for license in &request.licenses {
            if !self.licenses.contains(license) {
                self.licenses.push(license.clone());
            }
        }
    }

    /// Puts these defaults under a request: it gets what it does not say itself.
    pub fn apply(&self, request: &mut ChatRequest) {
        apply_parameters(&self.parameters, request);
        if request.template.is_none() {
            request.template.clone_from(&self.template);
        }
        let Prompt::Chat(messages) = &mut request.prompt else { return };
        let has_system = messages.iter().chain(&self.messages).any(|message| message.role == Role::System);
        messages.splice(0..0, self.messages.iter().cloned());
        if let Some(system) = self.system.as_deref().filter(|system| !has_system && !system.is_empty()) {
            messages.insert(0, Message::text(Role::System, system));
        }
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
    sampling.seed = sampling.seed.or_else(|| integer("seed").and_then(Sampling::seed_of));
    sampling.repeat_penalty =
        sampling.repeat_penalty.or_else(|| float("repeat_penalty").map(Sampling::repeat_penalty_of));
    sampling.repeat_last_n = sampling.repeat_last_n.or_else(|| count("repeat_last_n"));
    let penalty = |name: &str| float(name).map(Sampling::penalty_of);
    sampling.presence_penalty = sampling.presence_penalty.or_else(|| penalty("presence_penalty"));
    sampling.frequency_penalty = sampling.frequency_penalty.or_else(|| penalty("frequency_penalty"));
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
    // What has no place in the vocabulary counts over a llama-server, which knows some of it.
    for (option, value) in parameters.iter().filter(|(option, _)| Provider::LlamaCpp.takes_option(option)) {
        request.dialect.ollama.entry(option.as_str()).or_insert_with(|| value.clone());
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
        defaults().apply(&mut request);
        assert_eq!(texts(&request), ["Be brief.", "1", "2", "3"]);
        assert_eq!((request.sampling.temperature, request.sampling.top_k), (Some(0.25), Some(40)));
        assert_eq!((request.max_tokens, request.context_tokens), (None, Some(512)));
        assert_eq!(
            (request.stop.as_slice(), request.template.as_deref()),
            (["END".to_owned()].as_slice(), Some("{{ .Prompt }}"))
        );
    }

    #[test]
    fn a_seed_means_what_it_means_in_a_request() {
        let seed = |seed: i64| {
            let parameters = json!({ "seed": seed }).as_object().unwrap().clone();
            let mut request = ChatRequest::new("m", Prompt::Raw("3".into()));
            ModelDefaults { parameters, ..ModelDefaults::default() }.apply(&mut request);
            request.sampling.seed
        };
        assert_eq!([-1, 7, (1 << 32) + 7].map(seed), [None, Some(7), Some(7)]);
    }

    #[test]
    fn penalties_mean_what_they_mean_in_a_request() {
        let parameters = json!({ "repeat_penalty": 0, "presence_penalty": 3, "frequency_penalty": -1.5 });
        let parameters = parameters.as_object().unwrap().clone();
        let mut request = ChatRequest::new("m", Prompt::Raw("3".into()));
        ModelDefaults { parameters, ..ModelDefaults::default() }.apply(&mut request);
        let Sampling { repeat_penalty, presence_penalty, frequency_penalty, .. } = request.sampling;
        assert_eq!((repeat_penalty, presence_penalty, frequency_penalty), (Some(1.0), Some(2.0), Some(-1.5)));
    }

    #[test]
    fn a_conversation_with_a_system_message_keeps_its_own() {
        let messages = vec![Message::text(Role::System, "Talk."), Message::text(Role::User, "3")];
        let mut request = ChatRequest::new("m", Prompt::Chat(messages));
        ModelDefaults { messages: Vec::new(), ..defaults() }.apply(&mut request);
        assert_eq!(texts(&request), ["Talk.", "3"]);
    }
}
