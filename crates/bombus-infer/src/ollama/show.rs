//! What `/api/show` says about a model, in the words of this crate.

use std::time::SystemTime;

use bombus_core::chat::{Message, Role};
use bombus_core::model::{ModelCapability, ModelDetails, ModelName};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::template::template_of;
use super::wire::{self, Details, ShowResponse};

/// What stays the same as long as a model's digest does.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    /// Most tokens that prompt and answer may have together.
    pub(super) context_tokens: Option<u32>,
    /// What its Modelfile sets as `num_ctx`.
    pub(super) num_ctx: Option<u32>,
    pub(super) capabilities: Vec<ModelCapability>,
    /// Number of weights.
    pub(super) parameters: Option<u64>,
    /// SHA-256 of the weights.
    pub(super) sha256: Option<String>,
    /// Bytes of text that its Modelfile puts before every conversation.
    pub(super) overhead_bytes: usize,
    /// What makes its prompts, where they can be made here.
    pub(super) template: Option<String>,
    /// System message of conversations that bring none.
    pub(super) system: String,
    /// Messages that stand before every conversation.
    pub(super) messages: Vec<Message>,
}

impl Facts {
    pub(super) fn of(show: &ShowResponse) -> Self {
        let keys = &show.model_info;
        let architecture = keys.get("general.architecture").and_then(Value::as_str).unwrap_or(&show.details.family);
        let context = keys.get(&format!("{architecture}.context_length")).and_then(Value::as_u64);
        let parameters = parameters(&show.parameters);
        let messages = show.messages.iter().map(|message| message.content.len()).sum::<usize>();
        Self {
            context_tokens: context.and_then(|tokens| u32::try_from(tokens).ok()).filter(|tokens| *tokens > 0),
            num_ctx: parameters.get("num_ctx").and_then(number),
            capabilities: capabilities(show, architecture),
            parameters: keys.get("general.parameter_count").and_then(Value::as_u64),
            sha256: weights_sha256(&show.modelfile),
            overhead_bytes: show.system.len() + messages,
            template: template_of(show),
            system: show.system.clone(),
            messages: turns(&show.messages),
        }
    }
}

impl Facts {
    /// Returns whether prompts for the model's answers can be made here.
    pub(super) fn can_be_prompted(&self) -> bool {
        self.template.is_some() && self.capabilities.contains(&ModelCapability::Completion)
    }

    /// Puts what a Modelfile adds before a conversation, as Ollama does.
    pub(super) fn with_own_messages(&self, messages: &[Message]) -> Vec<Message> {
        let mut all = self.messages.clone();
        all.extend_from_slice(messages);
        if !self.system.is_empty() && all.first().is_none_or(|first| first.role != Role::System) {
            all.insert(0, Message::text(Role::System, self.system.as_str()));
        }
        all
    }
}

/// What is taken for granted of a model whose server does not say what it can do. What it cannot do the server refuses in its own words.
pub(super) const CAPABILITIES_UNTOLD: [ModelCapability; 4] =
    [ModelCapability::Completion, ModelCapability::Tools, ModelCapability::Vision, ModelCapability::Insert];

/// Older servers do not say what a model can do; that it makes vectors shows in its file.
fn capabilities(show: &ShowResponse, architecture: &str) -> Vec<ModelCapability> {
    match &show.capabilities {
        Some(words) => {
            words.iter().filter_map(|word| serde_json::from_value(Value::String(word.clone())).ok()).collect()
        }
        None if show.model_info.contains_key(&format!("{architecture}.pooling_type")) => {
            vec![ModelCapability::Embedding]
        }
        None => CAPABILITIES_UNTOLD.to_vec(),
    }
}

/// The first file that a Modelfile begins from is the weights; Ollama names files by their hash.
fn weights_sha256(modelfile: &str) -> Option<String> {
    let path = modelfile.lines().find_map(|line| line.strip_prefix("FROM "))?;
    let (_, hash) = path.trim().rsplit_once("sha256-")?;
    is_sha256(hash).then(|| hash.to_owned())
}

/// Returns whether a text is 64 lower-case hex digits.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Reads defaults of options, of which each stands on a line of its own: name, spaces, value as Go writes it. `stop` may come several times.
pub(super) fn parameters(text: &str) -> Map<String, Value> {
    let mut parameters = Map::new();
    for line in text.lines() {
        let Some((name, value)) = line.trim().split_once(char::is_whitespace) else { continue };
        let value = value.trim();
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.trim_matches('"').to_owned()));
        if name == "stop" {
            let stops = parameters.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(stops) = stops {
                stops.push(value);
            }
        } else {
            parameters.insert(name.to_owned(), value);
        }
    }
    parameters
}

fn number(value: &Value) -> Option<u32> {
    // Go writes large numbers as 1e+06.
    let number = value.as_f64().filter(|number| (1.0..f64::from(u32::MAX)).contains(number))?;
    Some(number as u32)
}

/// Says everything that `/api/show` tells.
pub(super) fn details(show: ShowResponse) -> ModelDetails {
    ModelDetails {
        renderer: named(show.renderer, &show.modelfile, "RENDERER "),
        parser: named(show.parser, &show.modelfile, "PARSER "),
        requires: show.requires,
        projector: show.projector_info,
        parent: ModelName::parse(&show.details.parent_model).ok(),
        licenses: Some(show.license).filter(|text| !text.is_empty()).into_iter().collect(),
        template: show.template,
        system: show.system,
        parameters: parameters(&show.parameters),
        messages: turns(&show.messages),
        metadata: show.model_info,
    }
}

/// Returns a name that the server tells, or that its Modelfile has behind this word.
fn named(told: String, modelfile: &str, word: &str) -> String {
    if !told.is_empty() {
        return told;
    }
    modelfile.lines().find_map(|line| line.strip_prefix(word)).map_or("", str::trim).to_owned()
}

/// Reads the messages of a Modelfile.
fn turns(messages: &[wire::Message]) -> Vec<Message> {
    let role = |word: &str| match word {
        "system" => Some(Role::System),
        "user" => Some(Role::User),
        "assistant" => Some(Role::Assistant),
        "tool" => Some(Role::Tool),
        _ => None,
    };
    let turn = |message: &wire::Message| Some(Message::text(role(&message.role)?, message.content.as_str()));
    messages.iter().filter_map(turn).collect()
}

/// Reads the number of weights as people write it, for example `7.6B`.
pub(super) fn parameter_count(details: &Details) -> Option<u64> {
    let text = details.parameter_size.trim();
    let unit = match text.chars().last()? {
        'K' => 1e3,
        'M' => 1e6,
        'B' => 1e9,
        'T' => 1e12,
        _ => return text.parse().ok(),
    };
    let count = text[..text.len() - 1].trim().parse::<f64>().ok()? * unit;
    (0.0..1e16).contains(&count).then_some(count as u64)
}

/// Reads a time in the form of RFC 3339, as seconds since the Unix epoch.
pub(super) fn unix_s(text: &str) -> Option<u64> {
    OffsetDateTime::parse(text, &Rfc3339).ok().and_then(|time| u64::try_from(time.unix_timestamp()).ok())
}

/// Reads when a model is unloaded; a time further off than a hundred years means never.
pub(super) fn expires_unix_s(text: &str) -> Option<u64> {
    const CENTURY_S: u64 = 100 * 365 * 24 * 3600;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    unix_s(text).filter(|expires| *expires < now + CENTURY_S)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_are_read_as_go_writes_them() {
        let text = "num_ctx                        4096\nstop                           \"<|im_start|>\"\nstop                           \"a\\nb\"\ntemperature                    0.7\nrepeat_last_n                  1e+06\npenalize_newline               true\nodd                            \"\\x00\"";
        let expected = json!({
            "num_ctx": 4096, "stop": ["<|im_start|>", "a\nb"], "temperature": 0.7, "repeat_last_n": 1e6,
            "penalize_newline": true, "odd": "\\x00",
        });
        assert_eq!(Value::Object(parameters(text)), expected);
    }

    #[test]
    fn facts_come_from_the_keys_of_the_file_and_the_modelfile() {
        let hash = "a".repeat(64);
        let show: ShowResponse = serde_json::from_value(json!({
            "modelfile": format!("# Modelfile generated\n# FROM m\n\nFROM /models/blobs/sha256-{hash}\nTEMPLATE x"),
            "parameters": "num_ctx   8192",
            "system": "Be brief",
            "messages": [{"role": "user", "content": "Hi"}],
            "model_info": {"general.architecture": "llama", "llama.context_length": 32768, "general.parameter_count": 9},
            "capabilities": ["completion", "tools", "something new"],
        }))
        .unwrap();
        let expected = Facts {
            context_tokens: Some(32768),
            num_ctx: Some(8192),
            capabilities: vec![ModelCapability::Completion, ModelCapability::Tools],
            parameters: Some(9),
            sha256: Some(hash),
            overhead_bytes: 10,
            template: None,
            system: "Be brief".to_owned(),
            messages: vec![Message::text(Role::User, "Hi")],
        };
        assert_eq!(Facts::of(&show), expected);
    }

    #[test]
    fn what_makes_prompts_and_reads_answers_is_told_by_fields_or_by_the_modelfile() {
        let told = |document: Value| {
            let ModelDetails { renderer, parser, requires, projector, .. } =
                details(serde_json::from_value(document).unwrap());
            (renderer, parser, requires, Value::Object(projector))
        };
        let modelfile = "FROM m\nTEMPLATE {{ .Prompt }}\nRENDERER qwen3-coder\nPARSER qwen3-coder\nPARAMETER top_k 1\n";
        let projector = json!({"general.architecture": "clip", "clip.vision.embedding_length": 1024});
        let (coder, newer) = ("qwen3-coder".to_owned(), "0.14.0".to_owned());
        assert_eq!(
            told(json!({"modelfile": modelfile, "requires": newer, "projector_info": projector})),
            (coder.clone(), coder, newer, projector)
        );
        assert_eq!(
            told(json!({"modelfile": modelfile, "renderer": "a", "parser": "b", "projector_info": null})),
            ("a".to_owned(), "b".to_owned(), String::new(), json!({}))
        );
    }

    #[test]
    fn an_older_servers_model_is_judged_by_its_file() {
        let show =
            |keys: Value| serde_json::from_value(json!({"details": {"family": "bert"}, "model_info": keys})).unwrap();
        assert_eq!(Facts::of(&show(json!({"bert.pooling_type": 1}))).capabilities, [ModelCapability::Embedding]);
        assert_eq!(Facts::of(&show(json!({}))).capabilities, CAPABILITIES_UNTOLD.to_vec());
    }

    #[test]
    fn sizes_and_times_are_numbers() {
        let count = |text: &str| parameter_count(&Details { parameter_size: text.into(), ..Details::default() });
        assert_eq!(
            (count("7.6B"), count("134.52M"), count(""), count("B")),
            (Some(7_600_000_000), Some(134_520_000), None, None)
        );
        assert_eq!(unix_s("2026-01-02T03:04:05.678+01:00"), Some(1_767_319_445));
        assert_eq!(unix_s("0001-01-01T00:00:00Z"), None);
        assert_eq!(expires_unix_s("2318-01-01T00:00:00Z"), None);
    }
}
