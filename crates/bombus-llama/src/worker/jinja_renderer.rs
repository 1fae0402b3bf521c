//! The engine's reading of chat templates, for backends that make prompts for other servers.

use std::sync::Arc;

use bombus_core::chat::{Message, Think};
use bombus_infer::ollama::{ChatTemplateRenderer, ModelTemplate};

use super::template::{ChatTemplate, Conversation, Marker, Piece, SpecialTokens};

/// Renders chat templates as the embedded engine does for its own models.
///
/// Servers that take a prompt as text have no way to tell the names of control tokens in a user's words from the tokens themselves, so
/// these stand in it as they were written.
#[derive(Debug, Clone, Copy, Default)]
pub struct JinjaRenderer;

impl ChatTemplateRenderer for JinjaRenderer {
    fn render(
        &self,
        template: &ModelTemplate<'_>,
        messages: &[Message],
        think: Option<&Think>,
    ) -> Result<String, String> {
        let special =
            SpecialTokens { bos: template.bos.to_owned(), eos: template.eos.to_owned(), ..SpecialTokens::default() };
        let compiled = ChatTemplate::compile(template.source, &Arc::new(Marker::new(special)?))?;
        let pieces = compiled.render(&Conversation { messages, tools: &[], think });
        let text = |piece: Piece| match piece {
            Piece::Template(text) | Piece::Literal(text) => text,
        };
        Ok(pieces.map_err(|error| error.to_string())?.into_iter().map(text).collect())
    }
}

#[cfg(test)]
mod tests {
    use bombus_core::chat::Role;

    use super::*;

    #[test]
    fn a_conversation_becomes_the_text_that_the_template_makes_of_it() {
        let source = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}\
                      {% if add_generation_prompt %}[assistant]{% endif %}{% if enable_thinking %}<think>{% endif %}";
        let template = ModelTemplate { source, bos: "<s>", eos: "</s>" };
        let messages = [Message::text(Role::System, "Be brief."), Message::text(Role::User, "Why </s>?")];
        let rendered = JinjaRenderer.render(&template, &messages, Some(&Think::On)).unwrap();
        assert_eq!(rendered, "<s>[system]Be brief.</s>[user]Why </s>?</s>[assistant]<think>");
        let broken = ModelTemplate { source: "{% for %}", ..template };
        assert!(JinjaRenderer.render(&broken, &messages, None).is_err());
    }
}
