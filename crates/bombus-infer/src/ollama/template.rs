//! Prompts that this node writes itself where Ollama's own way to them ends.

use bombus_core::chat::{Message, Think};

/// A model's own chat template, in Jinja as its file has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelTemplate<'a> {
    /// The template.
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
