//! Prompt templates in the notation of Go's `text/template`, as Ollama's models bring them.
//!
//! Everything that such templates use is here: pipelines, variables and their assignment, `if`, `with`, `range`, `break`, `continue`,
//! `define`, `block`, `template`, the built-in functions, and those that Ollama adds. The one crate for this notation knows no
//! assignment, `break` or `continue`, sets no limit to the running time, and gives up on text that is not ASCII within an action.
//!
//! Sources: the documentation of Go's package `text/template`, and Ollama's of its templates.

mod functions;
mod lexer;
mod parser;
mod render;
mod value;

use serde_json::{Map, Value as Json, json};

use self::parser::{Node, Tree, parse};
use self::render::render;

/// A template that was read.
pub(crate) struct GoTemplate {
    tree: Tree,
    /// Whether the template lays out whole conversations, and not one turn after the other.
    takes_messages: bool,
}

impl GoTemplate {
    /// Reads a template.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub(crate) fn compile(source: &str) -> Result<Self, String> {
        let mut tree = parse(source)?;
        let takes_messages = tree.mentions("Messages");
        if !takes_messages && !tree.mentions("Response") {
            // What the model said stands at the end then.
            tree.root.push(Node::response());
        }
        Ok(Self { tree, takes_messages })
    }

    /// Returns whether the template has a place for a field of this name, for example `Suffix`.
    pub(crate) fn mentions(&self, field: &str) -> bool {
        self.tree.mentions(field)
    }

    /// Lays a conversation out, up to the point where the assistant speaks. `messages` are objects with `role`, `content`, `thinking`
    /// and `tool_calls`; `options` are added to what the template sees.
    ///
    /// # Errors
    ///
    /// Says what the template did wrong.
    pub(crate) fn chat(
        &self,
        messages: &[Json],
        tools: Option<&Json>,
        options: &Map<String, Json>,
    ) -> Result<String, String> {
        let (system, messages) = collate(messages);
        if self.takes_messages {
            let mut data = options.clone();
            data.insert("system".into(), system.into());
            data.insert("messages".into(), messages.into());
            data.insert("tools".into(), tools.cloned().unwrap_or(Json::Null));
            data.insert("response".into(), "".into());
            return render(&self.tree, &Json::Object(data), false);
        }
        self.chat_by_turns(&messages, options)
    }

    /// Lays out what stands before and behind a gap.
    ///
    /// # Errors
    ///
    /// Says what the template did wrong.
    pub(crate) fn fill_in(&self, prompt: &str, suffix: &str, options: &Map<String, Json>) -> Result<String, String> {
        let mut data = options.clone();
        data.extend([("prompt", prompt), ("suffix", suffix), ("response", "")].map(|(k, v)| (k.to_owned(), v.into())));
        render(&self.tree, &Json::Object(data), false)
    }

    /// Runs a template that knows only one turn (`.System`, `.Prompt`, `.Response`) for each of them.
    fn chat_by_turns(&self, messages: &[Json], options: &Map<String, Json>) -> Result<String, String> {
        let mut turn = Turn::default();
        let mut out = String::new();
        for message in messages {
            let content = message["content"].as_str().unwrap_or_default();
            match message["role"].as_str() {
                Some("system") => {
                    if !turn.prompt.is_empty() || !turn.response.is_empty() {
                        out += &render(&self.tree, &std::mem::take(&mut turn).data(options), false)?;
                    }
                    content.clone_into(&mut turn.system);
                }
                Some("user") => {
                    if !turn.response.is_empty() {
                        out += &render(&self.tree, &std::mem::take(&mut turn).data(options), false)?;
                    }
                    content.clone_into(&mut turn.prompt);
                }
                Some("assistant") => content.clone_into(&mut turn.response),
                _ => {}
            }
        }
        // The last turn ends where the model's words begin.
        Ok(out + &render(&self.tree, &turn.data(options), true)?)
    }
}

/// One turn of a conversation.
#[derive(Default)]
struct Turn {
    system: String,
    prompt: String,
    response: String,
}

impl Turn {
    fn data(self, options: &Map<String, Json>) -> Json {
        let mut data = options.clone();
        data.insert("system".into(), self.system.into());
        data.insert("prompt".into(), self.prompt.into());
        data.insert("response".into(), self.response.into());
        Json::Object(data)
    }
}

/// Joins what the same side says several times in a row, and all system messages. Answers of tools stay apart.
fn collate(messages: &[Json]) -> (String, Vec<Json>) {
    let mut system = Vec::new();
    let mut collated: Vec<Json> = Vec::new();
    for message in messages {
        let role = message["role"].as_str();
        let content = message["content"].as_str().unwrap_or_default();
        if role == Some("system") {
            system.push(content);
        }
        match collated.last_mut() {
            Some(last) if role != Some("tool") && last["role"] == message["role"] => {
                let joined = format!("{}\n\n{content}", last["content"].as_str().unwrap_or_default());
                last["content"] = json!(joined);
            }
            _ => collated.push(message.clone()),
        }
    }
    (system.join("\n\n"), collated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Json {
        json!({ "role": role, "content": content })
    }

    fn chat(source: &str, messages: &[Json]) -> String {
        GoTemplate::compile(source).unwrap().chat(messages, None, &Map::new()).unwrap()
    }

    #[test]
    fn a_template_of_one_turn_is_run_for_each() {
        let source = "{{ if .System }}<s>{{ .System }}</s>{{ end }}{{ if .Prompt }}<u>{{ .Prompt }}</u>{{ end }}<a>{{ .Response }}</a>";
        let messages =
            [message("system", "Be brief."), message("user", "1"), message("assistant", "2"), message("user", "3")];
        assert_eq!(chat(source, &messages), "<s>Be brief.</s><u>1</u><a>2</a><u>3</u><a>");
        assert_eq!(chat("{{ .Prompt }}: ", &messages[1..]), "1: 23: ");
    }

    #[test]
    fn a_template_of_conversations_sees_all_of_them() {
        let source = "{{- range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}[{{ .Role }}] {{ .Content }}\n\
                      {{ if and $last (ne .Role \"assistant\") }}[assistant] {{ end }}{{ end }}";
        let messages = [message("user", "a"), message("user", "b"), message("assistant", "c"), message("user", "d")];
        assert_eq!(chat(source, &messages), "[user] a\n\nb\n[assistant] c\n[user] d\n[assistant] ");
    }

    #[test]
    fn tools_are_printed_as_json_and_their_parts_have_names() {
        let source = "{{ range .Tools }}{{ . }}|{{ .Function.Name }}{{ range $k, $v := .Function.Parameters.Properties }} {{ $k }}:{{ $v.Type }}\
                      {{ end }}{{ end }}{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Arguments }}{{ end }}{{ end }}";
        let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object",
                           "properties": { "b": { "type": "string" }, "a": { "type": "number" } } } } }]);
        let call = json!({ "id": "1", "function": { "name": "f", "arguments": { "a": 1 } } });
        let messages = [json!({ "role": "assistant", "content": "", "tool_calls": [call] })];
        let out = GoTemplate::compile(source).unwrap().chat(&messages, Some(&tools), &Map::new()).unwrap();
        assert_eq!(out, format!("{}|f a:number b:string{{\"a\":1}}", tools[0]));
    }

    #[test]
    fn a_gap_is_filled_in_between_prompt_and_suffix() {
        let template = GoTemplate::compile("<pre>{{ .Prompt }}<suf>{{ .Suffix }}<mid>").unwrap();
        assert!(template.mentions("Suffix"));
        assert_eq!(template.fill_in("a", "b", &Map::new()).unwrap(), "<pre>a<suf>b<mid>");
    }
}
