//! Tool calls in the forms that models write them.

use bombus_core::chat::{ChatEvent, Delta, Tool, ToolCallDelta, ToolChoice};
use bombus_infer::models::chat_template::ToolFormat;
use serde_json::Value;

use super::RunError;
use super::schema::grammar_for_call;

const HERMES_END: &str = "</tool_call>";
/// May stand before a call of Llama 3.
const PYTHON_TAG: &str = "<|python_tag|>";

/// Makes an id for a call. Mistral's templates insist on nine letters and digits.
fn new_call_id(format: ToolFormat) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    if format == ToolFormat::Mistral { random[..9].to_owned() } else { format!("call_{random}") }
}

fn opening(format: ToolFormat) -> &'static str {
    match format {
        ToolFormat::Hermes => "<tool_call>",
        ToolFormat::Llama3 => "{",
        ToolFormat::Mistral => "[TOOL_CALLS]",
    }
}

fn arguments_key(format: ToolFormat) -> &'static str {
    match format {
        ToolFormat::Hermes | ToolFormat::Mistral => "arguments",
        ToolFormat::Llama3 => "parameters",
    }
}

/// Returns the grammar that makes the model call a tool where the choice demands one.
pub(crate) fn call_grammar(
    format: ToolFormat,
    tools: &[Tool],
    choice: &ToolChoice,
) -> Result<Option<String>, RunError> {
    let chosen: Vec<&Tool> = match choice {
        ToolChoice::Auto | ToolChoice::None => return Ok(None),
        ToolChoice::Required => tools.iter().collect(),
        ToolChoice::Named(name) => tools.iter().filter(|tool| tool.name == *name).collect(),
    };
    if chosen.is_empty() {
        return Err(RunError::invalid("tool_choice", "tool_choice names no tool of this request"));
    }
    let grammar = grammar_for_call(&chosen, arguments_key(format))?;
    let rules = grammar.lines().map(|rule| match rule.strip_prefix("root ::=") {
        Some(body) => format!("call ::={body}\n"),
        None => format!("{rule}\n"),
    });
    let grammar: String = rules.collect();
    let root = match format {
        ToolFormat::Hermes => r#"root ::= "<tool_call>\n" call "\n</tool_call>""#,
        ToolFormat::Llama3 => "root ::= call",
        ToolFormat::Mistral => r#"root ::= "[TOOL_CALLS][" call "]""#,
    };
    Ok(Some(format!("{root}\n{grammar}")))
}

/// Separates tool calls from the text around them while it is generated.
#[derive(Debug)]
pub(crate) struct ToolFilter {
    format: ToolFormat,
    held: String,
    /// Whether `held` begins with the opening of a call.
    in_call: bool,
    /// Whether a call has just ended: white space behind it belongs to neither text nor call.
    after_call: bool,
    /// Whether anything but white space has come yet: Llama 3 writes either text or a call.
    in_text: bool,
    calls: u32,
}

impl ToolFilter {
    pub(crate) fn new(format: ToolFormat) -> Self {
        Self { format, held: String::new(), in_call: false, after_call: false, in_text: false, calls: 0 }
    }

    /// Returns whether any call was found.
    pub(crate) fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// Takes more of the answer and returns what may leave.
    pub(crate) fn push(&mut self, delta: Delta) -> Vec<ChatEvent> {
        let mut events = Vec::new();
        let mut logprobs = delta.logprobs;
        self.held.push_str(&delta.text);
        loop {
            if self.in_call {
                if !self.take_finished_call(&mut events) {
                    return events;
                }
                continue;
            }
            if self.after_call {
                self.held = self.held.trim_start().to_owned();
                self.after_call = self.held.is_empty();
            }
            let opening_at = self.find_opening();
            let release = opening_at.unwrap_or_else(|| self.held.len() - self.undecided());
            let text: String = self.held.drain(..release).collect();
            self.in_text |= !text.trim().is_empty();
            if !text.is_empty() || !logprobs.is_empty() {
                events.push(ChatEvent::Delta(Delta { text, logprobs: std::mem::take(&mut logprobs), trace: None }));
            }
            if opening_at.is_none() {
                return events;
            }
            self.in_call = true;
        }
    }

    /// Returns what is left at the end of the answer; a call that is not one after all leaves as text.
    pub(crate) fn finish(&mut self) -> Vec<ChatEvent> {
        let mut events = Vec::new();
        let held = std::mem::take(&mut self.held);
        if self.in_call {
            self.emit_call(&held, &mut events);
        } else if !held.is_empty() {
            events.push(ChatEvent::Delta(Delta::text(held)));
        }
        events
    }

    fn find_opening(&self) -> Option<usize> {
        let opening = opening(self.format);
        match self.format {
            ToolFormat::Llama3 => (!self.in_text && without_tag(&self.held).starts_with(opening)).then_some(0),
            ToolFormat::Hermes | ToolFormat::Mistral => self.held.find(opening),
        }
    }

    /// Returns how many bytes at the end may still become the opening of a call.
    fn undecided(&self) -> usize {
        match self.format {
            ToolFormat::Llama3 if !self.in_text && may_become_tag(&self.held) => self.held.len(),
            ToolFormat::Llama3 => 0,
            format => {
                let opening = opening(format);
                (1..opening.len()).rev().find(|&length| self.held.ends_with(&opening[..length])).unwrap_or(0)
            }
        }
    }

    /// Emits the call that `held` begins with if it is complete. Only Hermes marks the end; the others end with the answer.
    fn take_finished_call(&mut self, events: &mut Vec<ChatEvent>) -> bool {
        let Some(end) = self.held.find(HERMES_END).filter(|_| self.format == ToolFormat::Hermes) else { return false };
        let rest = self.held.split_off(end + HERMES_END.len());
        let call = std::mem::replace(&mut self.held, rest);
        self.in_call = false;
        self.after_call = true;
        self.emit_call(&call, events);
        true
    }

    fn emit_call(&mut self, written: &str, events: &mut Vec<ChatEvent>) {
        let mut json = without_tag(written).trim();
        if self.format != ToolFormat::Llama3 {
            json = json.trim_start_matches(opening(self.format)).trim_end_matches(HERMES_END).trim();
        }
        let calls: Option<Vec<(String, String)>> =
            serde_json::from_str(json).ok().and_then(|value: Value| match value {
                Value::Array(calls) => calls.iter().map(|call| self.read_call(call)).collect(),
                call => self.read_call(&call).map(|call| vec![call]),
            });
        let Some(calls) = calls.filter(|calls| !calls.is_empty()) else {
            events.push(ChatEvent::Delta(Delta::text(written)));
            return;
        };
        for (name, arguments) in calls {
            let id = Some(new_call_id(self.format));
            events.push(ChatEvent::ToolCall(ToolCallDelta { index: self.calls, id, name: Some(name), arguments }));
            self.calls += 1;
        }
    }

    fn read_call(&self, call: &Value) -> Option<(String, String)> {
        let name = call.get("name")?.as_str()?.to_owned();
        let arguments = call.get(arguments_key(self.format)).or_else(|| call.get("arguments"))?;
        Some((name, arguments.to_string()))
    }
}

fn without_tag(text: &str) -> &str {
    let text = text.trim_start();
    text.strip_prefix(PYTHON_TAG).unwrap_or(text).trim_start()
}

/// Returns whether a text is only white space and the (unfinished) tag, so that a call may still follow.
fn may_become_tag(text: &str) -> bool {
    without_tag(text).is_empty() || PYTHON_TAG.starts_with(text.trim_start())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(format: ToolFormat, answer: &str, cut: usize) -> (String, Vec<(String, String)>) {
        let mut filter = ToolFilter::new(format);
        let mut events: Vec<ChatEvent> = Vec::new();
        for piece in answer.as_bytes().chunks(cut) {
            let text = String::from_utf8(piece.to_vec()).unwrap();
            events.extend(filter.push(Delta::text(text)));
        }
        events.extend(filter.finish());
        let mut text = String::new();
        let mut calls = Vec::new();
        for event in events {
            match event {
                ChatEvent::Delta(delta) => text.push_str(&delta.text),
                ChatEvent::ToolCall(call) => calls.push((call.name.unwrap(), call.arguments)),
                other => unreachable!("a tool filter makes no {other:?}"),
            }
        }
        assert_eq!(filter.has_calls(), !calls.is_empty());
        (text, calls)
    }

    #[test]
    fn calls_are_found_at_every_cut() {
        let hermes = "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n\
                      <tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>";
        let mistral =
            "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]";
        let llama = " {\"name\": \"f\", \"parameters\": {\"a\": 1}}";
        let (f, g) = (("f".to_owned(), r#"{"a":1}"#.to_owned()), ("g".to_owned(), "{}".to_owned()));
        for cut in 1..12 {
            let both = vec![f.clone(), g.clone()];
            assert_eq!(run(ToolFormat::Hermes, hermes, cut), ("Let me see.\n".into(), both.clone()), "{cut}");
            assert_eq!(run(ToolFormat::Mistral, mistral, cut), (String::new(), both), "{cut}");
            assert_eq!(run(ToolFormat::Llama3, llama, cut), (String::new(), vec![f.clone()]), "{cut}");
            let tagged = format!("{PYTHON_TAG}{llama}");
            assert_eq!(run(ToolFormat::Llama3, &tagged, cut), (String::new(), vec![f.clone()]), "{cut}");
        }
    }

    #[test]
    fn text_that_is_no_call_is_not_lost() {
        for (format, answer) in [
            (ToolFormat::Hermes, "a < b and <tool_caller> <tool_call>not json</tool_call>"),
            (ToolFormat::Hermes, "cut off <tool_call>{\"name\": \"f\""),
            (ToolFormat::Llama3, "{\"answer\": 42}"),
            (ToolFormat::Llama3, "f(x) = {x}"),
            (ToolFormat::Mistral, "[TOOL"),
        ] {
            assert_eq!(run(format, answer, 3), (answer.to_owned(), vec![]), "{format:?}");
        }
    }

    #[test]
    fn a_demanded_call_gets_a_grammar_for_just_the_tools_allowed() {
        let tool = |name: &str| Tool {
            name: name.into(),
            description: None,
            parameters: json!({ "type": "object" }),
            strict: None,
        };
        let tools = [tool("near"), tool("far")];
        let named = call_grammar(ToolFormat::Hermes, &tools, &ToolChoice::Named("far".into())).unwrap().unwrap();
        assert!(named.starts_with("root ::= \"<tool_call>"), "{named}");
        assert!(named.contains("far") && !named.contains("near"), "{named}");
        assert!(call_grammar(ToolFormat::Hermes, &tools, &ToolChoice::Named("none".into())).is_err());
        assert_eq!(call_grammar(ToolFormat::Hermes, &tools, &ToolChoice::Auto).unwrap(), None);
    }

    #[test]
    fn calls_have_ids_that_the_models_template_takes() {
        assert!(new_call_id(ToolFormat::Hermes).starts_with("call_"));
        let id = new_call_id(ToolFormat::Mistral);
        assert!(id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
    }

    #[test]
    fn a_parameter_called_root_does_not_confuse_the_grammar() {
        let parameters =
            json!({ "type": "object", "properties": { "root": { "enum": ["a", "b"] } }, "required": ["root"] });
        let tools = [Tool { name: "f".into(), description: None, parameters, strict: None }];
        let grammar = call_grammar(ToolFormat::Hermes, &tools, &ToolChoice::Required).unwrap().unwrap();
        let names: Vec<&str> =
            grammar.lines().filter_map(|rule| rule.split_once(" ::=")).map(|(name, _)| name).collect();
        for name in names.iter().filter(|name| name.contains("root")) {
            assert!(
                *name == "root" || grammar.matches(name).count() > 1,
                "{name} is defined and never used: {grammar}"
            );
        }
    }
}
