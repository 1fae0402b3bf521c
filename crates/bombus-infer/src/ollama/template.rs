//! Prompts that this node writes itself where Ollama's own way to them ends.

use bombus_core::chat::{Message, Think};

use super::wire::ShowResponse;
use crate::resumed::answers_plainly;

/// A model's own chat template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelTemplate<'a> {
    /// The template, in Go's notation or in Jinja.
    pub source: &'a str,
    /// Text of the token that begins prompts; empty where the server puts it there by itself, or there is none.
    pub bos: &'a str,
    /// Text of the token that ends turns; empty where there is none.
    pub eos: &'a str,
}

/// Makes prompts of conversations by a model's own template.
pub trait ChatTemplateRenderer: Send + Sync {
    /// Renders a conversation without tools up to the point where the assistant speaks. `think` as in
    /// [`bombus_core::chat::ChatRequest::think`].
    ///
    /// # Errors
    ///
    /// Says why the template cannot be used, or why it refuses the conversation.
    fn render(
        &self,
        template: &ModelTemplate<'_>,
        messages: &[Message],
        think: Option<&Think>,
    ) -> Result<String, String>;
}

/// Finds the template that makes the prompts of a model, where it can be rendered here.
///
/// That is the template in Go's notation by which Ollama makes them, which it always tells. Where it only passes prompts on, the template
/// of the model's file counts; newer versions keep that to themselves. A model whose prompts Ollama makes by a program of
/// its own (`RENDERER`) has none.
pub(super) fn template_of(show: &ShowResponse) -> Option<String> {
    let is_built_in = show.modelfile.lines().any(|line| line.starts_with("RENDERER ") || line.starts_with("PARSER "));
    let makes_prompts =
        |template: &str| [".Messages", ".Response", ".System", "{%"].iter().any(|part| template.contains(part));
    let own = Some(show.template.as_str()).filter(|template| !is_built_in && makes_prompts(template));
    let of_file = || show.model_info.get("tokenizer.chat_template").and_then(serde_json::Value::as_str);
    // What the server does not tell of its vocabulary cannot be written.
    let is_known = |template: &&str| !template.contains("eos_token");
    own.or_else(|| of_file().filter(is_known)).filter(|template| answers_plainly(template)).map(str::to_owned)
}
