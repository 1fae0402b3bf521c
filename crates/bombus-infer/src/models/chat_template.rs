//! What the words of a chat template tell about the model that it belongs to.

use serde::{Deserialize, Serialize};

/// How a model writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToolFormat {
    /// `<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Hermes, Qwen, SmolLM3, Granite.
    Hermes,
    /// `{"name": ..., "parameters": ...}` and nothing else: Llama 3.
    Llama3,
    /// `[TOOL_CALLS][{"name": ..., "arguments": ...}, ...]`: Mistral.
    Mistral,
}

impl ToolFormat {
    /// Recognises the form by the words of a chat template. `None` also where it is a form that is not known here, as those of
    /// Qwen3-Coder and GLM.
    #[must_use]
    pub fn detect(template: &str) -> Option<Self> {
        let has = |word: &str| template.contains(word);
        if !mentions_tools(template) || has("<function=") || has("<arg_key>") || has("[ARGS]") {
            None
        } else if has("<tool_call>") {
            Some(Self::Hermes)
        } else if has("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if has("\"parameters\"") || has("<|python_tag|>") {
            Some(Self::Llama3)
        } else {
            None
        }
    }
}

/// Says whether a chat template has a place for tools, in whatever form.
#[must_use]
pub fn mentions_tools(template: &str) -> bool {
    template.contains("tools") || template.contains(".Tools")
}

/// Says whether the model of a chat template can think before it answers, between `<think>` and `</think>`.
#[must_use]
pub fn thinks(template: &str) -> bool {
    template.contains("<think>") || template.contains("</think>")
}

/// Says whether a template is in Go's notation, as Ollama has it. Otherwise it is in Jinja.
#[must_use]
pub fn is_go(template: &str) -> bool {
    const FIELDS: [&str; 6] = [".Messages", ".Prompt", ".Response", ".Suffix", ".System", ".Tools"];
    !template.contains("{%") && template.contains("{{") && FIELDS.iter().any(|field| template.contains(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_templates_with_a_place_for_tools_take_them() {
        assert_eq!(ToolFormat::detect("{% for m in messages %}{{ m }}<tool_call>{% endfor %}"), None);
        assert_eq!(ToolFormat::detect("{% if tools %}<tool_call>{% endif %}"), Some(ToolFormat::Hermes));
        assert_eq!(ToolFormat::detect("{{ if .Tools }}<tool_call>{{ end }}"), Some(ToolFormat::Hermes));
        assert_eq!(ToolFormat::detect("{% if tools %}[TOOL_CALLS]{% endif %}"), Some(ToolFormat::Mistral));
        assert_eq!(ToolFormat::detect("{% if tools %}{{ tools | tojson }}{% endif %}"), None);
        for unknown in ["<tool_call><function=f>", "<tool_call><arg_key>", "[TOOL_CALLS]f[ARGS]"] {
            assert_eq!(ToolFormat::detect(&format!("{{% if tools %}}{unknown}{{% endif %}}")), None, "{unknown}");
        }
    }
}
