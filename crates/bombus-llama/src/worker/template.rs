//! Conversations into the model's own chat template, with user text that cannot pose as the template.

#[cfg(test)]
mod tests;

use std::sync::{Arc, LazyLock};

use aho_corasick::{AhoCorasick, MatchKind};
use bombus_core::chat::{Message, Part, Role, Think, Tool};
use bombus_infer::models::chat_template::{ToolFormat, is_go, mentions_tools, thinks};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde};
use minijinja::{Environment, Error, ErrorKind, Value as Jinja};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, UtcOffset};

use super::RunError;
use super::go_template::GoTemplate;

/// The local time's distance from UTC. It can be asked for only while the process has a single thread, so [`note_local_offset`] has to
/// be called before others start.
static LOCAL_OFFSET: LazyLock<UtcOffset> =
    LazyLock::new(|| UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC));

/// Looks up the local time's distance from UTC, for templates that print the date.
pub(crate) fn note_local_offset() {
    LazyLock::force(&LOCAL_OFFSET);
}

/// Returns the local time.
pub(crate) fn local_now() -> OffsetDateTime {
    OffsetDateTime::now_utc().to_offset(*LOCAL_OFFSET)
}

/// A piece of a rendered prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text in which the names of control tokens stand for those tokens.
    Template(String),
    /// Text that means only itself.
    Literal(String),
}

/// Encloses the number of a control token's name found in user text. The two are Unicode noncharacters, which have no meaning in
/// text; where user text has them all the same they are replaced.
const MARK: (char, char) = ('\u{fdd0}', '\u{fdd1}');
/// Templates come from model files, so their running time is bounded. A conversation of 1,000 turns takes about 100,000.
const FUEL: u64 = 20_000_000;

/// What a chat template has to know of a vocabulary.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpecialTokens {
    /// Texts of the control tokens.
    pub(crate) control: Vec<String>,
    /// Texts of the tokens that stand for themselves wherever they occur in text (`<tool_response>`, `<think>`).
    pub(crate) user_defined: Vec<String>,
    /// Begin-of-text token; empty where there is none.
    pub(crate) bos: String,
    /// End-of-text token; empty where there is none.
    pub(crate) eos: String,
    /// Whether the tokeniser puts the begin-of-text token before every prompt by itself.
    pub(crate) adds_bos: bool,
}

/// Finds the names of a vocabulary's special tokens in text.
pub(crate) struct Marker {
    special: SpecialTokens,
    /// Control tokens first, then those defined by users; marks are numbers in this list.
    names: Vec<String>,
    find_control: AhoCorasick,
    find_any: AhoCorasick,
}

impl Marker {
    /// Prepares the search.
    ///
    /// # Errors
    ///
    /// Says why the names cannot be searched for.
    pub(crate) fn new(special: SpecialTokens) -> Result<Self, String> {
        let names: Vec<String> = special.control.iter().chain(&special.user_defined).cloned().collect();
        let find = |names: &[String]| {
            let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(names);
            finder.map_err(|error| error.to_string())
        };
        Ok(Self { find_control: find(&special.control)?, find_any: find(&names)?, names, special })
    }

    /// Marks what people and programs wrote.
    fn mark(&self, value: Value) -> Value {
        marked(&self.find_any, value)
    }

    fn mark_message(&self, message: &Message, value: Value) -> Value {
        // A model's own words may have tokens like `</think>`, which templates look for in them.
        marked(if message.role == Role::Assistant { &self.find_control } else { &self.find_any }, value)
    }

    fn split(&self, rendered: &str) -> Vec<Piece> {
        let has_own_bos = self.special.adds_bos && !self.special.bos.is_empty();
        let mut rest =
            if has_own_bos { rendered.strip_prefix(&self.special.bos).unwrap_or(rendered) } else { rendered };
        let mut pieces = Vec::new();
        while let Some((before, marked)) = rest.split_once(MARK.0) {
            let (number, after) = marked.split_once(MARK.1).unwrap_or((marked, ""));
            if !before.is_empty() {
                pieces.push(Piece::Template(before.to_owned()));
            }
            if let Some(name) = number.parse().ok().and_then(|index: usize| self.names.get(index)) {
                pieces.extend(literal(name));
            }
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Template(rest.to_owned()));
        }
        pieces
    }
}

/// A conversation as a template gets it.
#[derive(Clone, Copy)]
pub(crate) struct Conversation<'r> {
    pub(crate) messages: &'r [Message],
    pub(crate) tools: &'r [Tool],
    /// Whether the model is to think before it answers; `None` leaves that to the template.
    pub(crate) think: Option<&'r Think>,
}

/// A model's chat template, or one that a request brings.
pub(crate) struct ChatTemplate {
    language: Language,
    marker: Arc<Marker>,
    tools: Option<ToolFormat>,
    mentions_tools: bool,
    thinks: bool,
    /// Whether the template wants the arguments of past tool calls as JSON text and not as a value.
    arguments_as_text: bool,
}

enum Language {
    Jinja(Box<Environment<'static>>),
    Go(GoTemplate),
}

impl ChatTemplate {
    /// Compiles a template: in Jinja, as Hugging Face's `transformers` renders it, or in Go's notation.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub(crate) fn compile(source: &str, marker: &Arc<Marker>) -> Result<Self, String> {
        let language = if is_go(source) {
            Language::Go(GoTemplate::compile(source)?)
        } else {
            Language::Jinja(Box::new(jinja(source)?))
        };
        let mut template = Self {
            language,
            marker: Arc::clone(marker),
            tools: ToolFormat::detect(source),
            mentions_tools: mentions_tools(source),
            thinks: thinks(source),
            arguments_as_text: false,
        };
        template.arguments_as_text = template.tools.is_some() && template.refuses_argument_values();
        Ok(template)
    }

    /// Tries a conversation with a past tool call: some templates (DeepSeek's) can only join the arguments to other text.
    fn refuses_argument_values(&self) -> bool {
        let call = |arguments: Value| {
            let call =
                json!({ "id": "call00001", "type": "function", "function": { "name": "f", "arguments": arguments } });
            let messages = vec![
                json!({ "role": "user", "content": "x" }),
                json!({ "role": "assistant", "content": "", "tool_calls": [call] }),
                json!({ "role": "tool", "content": "y", "tool_call_id": "call00001", "name": "f" }),
            ];
            self.render_values(messages, None, None).is_ok()
        };
        !call(json!({ "a": 1 })) && call(json!("{\"a\": 1}"))
    }

    /// Returns how this model writes tool calls, or an error where it can't be given tools.
    pub(crate) fn tool_format(&self) -> Result<ToolFormat, RunError> {
        self.tools.ok_or_else(|| {
            RunError::unsupported(
                "tools",
                if self.mentions_tools {
                    "this model writes tool calls in a form that is not known here"
                } else {
                    "this model does not support tools: its chat template has no place for them"
                },
            )
        })
    }

    /// Returns whether the model can think before it answers.
    pub(crate) fn thinks(&self) -> bool {
        self.thinks
    }

    /// Renders a conversation up to the point where the assistant speaks.
    pub(crate) fn render(&self, conversation: &Conversation<'_>) -> Result<Vec<Piece>, RunError> {
        let message_value =
            |message: &Message| Ok(self.marker.mark_message(message, message_value(message, self.arguments_as_text)?));
        let messages = conversation.messages.iter().map(message_value).collect::<Result<_, RunError>>()?;
        let tools: Vec<Value> = conversation.tools.iter().map(|tool| self.marker.mark(tool_value(tool))).collect();
        let tools = (!tools.is_empty()).then(|| Value::from(tools));
        let rendered = self.render_values(messages, tools.as_ref(), conversation.think).map_err(|reason| {
            RunError::invalid("messages", format!("the model's chat template refuses the conversation: {reason}"))
        })?;
        Ok(self.marker.split(&rendered))
    }

    /// Renders what stands before and behind a gap; `None` where the template has no place for that.
    pub(crate) fn fill_in(&self, prompt: &str, suffix: &str) -> Option<Result<Vec<Piece>, RunError>> {
        let Language::Go(template) = &self.language else { return None };
        if !template.mentions("Suffix") {
            return None;
        }
        let [prompt, suffix] = [prompt, suffix].map(|text| match self.marker.mark(text.into()) {
            Value::String(marked) => marked,
            _ => String::new(),
        });
        let rendered = template.fill_in(&prompt, &suffix, &go_options(None));
        Some(rendered.map(|rendered| self.marker.split(&rendered)).map_err(|reason| {
            RunError::invalid("template", format!("the model's template cannot be filled in: {reason}"))
        }))
    }

    fn render_values(
        &self,
        messages: Vec<Value>,
        tools: Option<&Value>,
        think: Option<&Think>,
    ) -> Result<String, String> {
        match &self.language {
            Language::Go(template) => template.chat(&messages, tools, &go_options(think)),
            Language::Jinja(environment) => {
                let special = &self.marker.special;
                let rendered = environment.get_template("chat").and_then(|template| {
                    template.render(minijinja::context! {
                        messages => Jinja::from(Serde(Value::from(messages))),
                        tools => tools.map(|tools| Jinja::from(Serde(tools))),
                        add_generation_prompt => true,
                        bos_token => special.bos.as_str(),
                        eos_token => special.eos.as_str(),
                        ..Jinja::from(Serde(jinja_options(think)))
                    })
                });
                rendered.map_err(|error| error.detail().map_or_else(|| error.to_string(), str::to_owned))
            }
        }
    }
}

/// Names for thinking that are used in templates: Qwen's and SmolLM's, DeepSeek's and Granite's, and that of its amount.
fn jinja_options(think: Option<&Think>) -> Value {
    let Some(think) = think else { return json!({}) };
    let thinks = *think != Think::Off;
    let mut options = json!({ "enable_thinking": thinks, "thinking": thinks });
    if let Think::Level(level) = think {
        options["reasoning_effort"] = level.as_str().into();
    }
    options
}

fn go_options(think: Option<&Think>) -> Map<String, Value> {
    let level = if let Some(Think::Level(level)) = think { level.as_str() } else { "" };
    let mut options = Map::new();
    options.insert("think".into(), think.is_some_and(|think| *think != Think::Off).into());
    options.insert("think_level".into(), level.into());
    options.insert("is_think_set".into(), think.is_some().into());
    options
}

fn jinja(source: &str) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| error.to_string())?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Jinja, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", strftime_now);
    environment.add_template_owned("chat", without_generation_tags(source)).map_err(|error| error.to_string())?;
    Ok(environment)
}

/// Cuts a token's text in two, since tokens defined by users are found even in text that is to have no special tokens.
fn literal(name: &str) -> [Piece; 2] {
    let middle = name.chars().next().map_or(0, char::len_utf8);
    [Piece::Literal(name[..middle].to_owned()), Piece::Literal(name[middle..].to_owned())]
}

/// Replaces the names of special tokens in every text of a value, keys included, by marks.
fn marked(finder: &AhoCorasick, value: Value) -> Value {
    let mark = |text: &str| {
        let text = text.replace([MARK.0, MARK.1], "\u{fffd}");
        let mut marked = String::with_capacity(text.len());
        finder.replace_all_with(&text, &mut marked, |found, _, out| {
            out.push(MARK.0);
            out.push_str(&found.pattern().as_usize().to_string());
            out.push(MARK.1);
            true
        });
        marked
    };
    match value {
        Value::String(text) => Value::String(mark(&text)),
        Value::Array(items) => items.into_iter().map(|item| marked(finder, item)).collect(),
        Value::Object(members) => {
            members.into_iter().map(|(key, member)| (mark(&key), marked(finder, member))).collect()
        }
        scalar => scalar,
    }
}

/// Takes out `{% generation %}` and `{% endgeneration %}`, which mark what is trained on and mean nothing here.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(begin) = rest.find("{%") {
        let Some(end) = rest[begin..].find("%}").map(|end| begin + end + 2) else { break };
        let tag = &rest[begin + 2..end - 2];
        if matches!(tag.trim_matches('-').trim(), "generation" | "endgeneration") {
            // An empty comment trims the white space beside it as the tag did.
            let (left, right) =
                (if tag.starts_with('-') { "-" } else { "" }, if tag.ends_with('-') { "-" } else { "" });
            out.push_str(&rest[..begin]);
            out.push_str(&format!("{{#{left} {right}#}}"));
        } else {
            out.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn message_value(message: &Message, arguments_as_text: bool) -> Result<Value, RunError> {
    if message.content.iter().any(|part| matches!(part, Part::Image(_))) {
        return Err(RunError::unsupported("messages", "this model does not see pictures"));
    }
    let mut value = Map::new();
    value.insert("role".into(), message.role.as_str().into());
    value.insert("content".into(), message.joined_text().into());
    if let Some(name) = &message.name {
        // Go's templates know the name of a tool as `.ToolName`.
        for key in ["name", "tool_name"] {
            value.insert(key.into(), name.as_str().into());
        }
    }
    if let Some(thinking) = &message.thinking {
        for key in ["reasoning_content", "thinking"] {
            value.insert(key.into(), thinking.as_str().into());
        }
    }
    if let Some(id) = &message.tool_call_id {
        value.insert("tool_call_id".into(), id.as_str().into());
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            // Most templates print the arguments as JSON themselves, so they get the value and not its text.
            let value = if arguments_as_text { None } else { serde_json::from_str(&call.arguments).ok() };
            let arguments = value.unwrap_or_else(|| Value::from(call.arguments.as_str()));
            json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": arguments } })
        });
        value.insert("tool_calls".into(), calls.collect());
    }
    Ok(Value::Object(value))
}

fn tool_value(tool: &Tool) -> Value {
    let mut function = Map::new();
    function.insert("name".into(), tool.name.as_str().into());
    if let Some(description) = &tool.description {
        function.insert("description".into(), description.as_str().into());
    }
    function.insert("parameters".into(), tool.parameters.clone());
    json!({ "type": "function", "function": function })
}

/// Prints a value as the `tojson` of chat templates does: spaces after `,` and `:`, and no HTML escapes (minijinja's own has them).
#[expect(clippy::needless_pass_by_value, reason = "the form that minijinja asks of filters")]
fn to_json(value: &Jinja, options: Kwargs) -> Result<Jinja, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    let _: Option<Jinja> = options.get("separators")?;
    options.assert_all_used()?;
    let fail = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let value = serde_json::to_value(value).map_err(fail)?;
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
            serde::Serialize::serialize(&value, &mut serializer).map_err(fail)?;
        }
        None => spaced_json(&value, &mut out).map_err(fail)?,
    }
    Ok(Jinja::from_safe_string(String::from_utf8(out).expect("JSON text is UTF-8")))
}

fn spaced_json(value: &Value, out: &mut Vec<u8>) -> serde_json::Result<()> {
    match value {
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                out.extend_from_slice(if index > 0 { b", " } else { b"" });
                spaced_json(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            out.push(b'{');
            for (index, (key, member)) in members.iter().enumerate() {
                out.extend_from_slice(if index > 0 { b", " } else { b"" });
                serde_json::to_writer(&mut *out, key)?;
                out.extend_from_slice(b": ");
                spaced_json(member, out)?;
            }
            out.push(b'}');
        }
        scalar => serde_json::to_writer(out, scalar)?,
    }
    Ok(())
}

fn strftime_now(format: &str, _: Rest<Jinja>) -> Result<String, Error> {
    let fail = |reason: String| Error::new(ErrorKind::InvalidOperation, reason);
    let format = time::format_description::parse_strftime_borrowed(format).map_err(|error| fail(error.to_string()))?;
    local_now().format(&format).map_err(|error| fail(error.to_string()))
}
