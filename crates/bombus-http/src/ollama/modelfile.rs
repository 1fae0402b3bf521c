//! What is known about a model in the notation of model files.

use std::fmt::Write;

use bombus_core::model::{ModelDetails, ModelName};
use serde_json::{Map, Value};

/// Width of the column of names in the list of parameters.
const NAME_WIDTH: usize = 30;

/// Lists parameters, one on a line; one of several values has a line for each.
pub(super) fn parameters(parameters: &Map<String, Value>) -> String {
    let lines = each(parameters).map(|(name, value)| format!("{name:NAME_WIDTH$} {value}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Writes a file that makes the same model of this one.
pub(super) fn write(name: &ModelName, details: &ModelDetails) -> String {
    let mut file = format!(
        "# This file makes model '{name}' again, under another name: ollama create NAME -f FILE\n\nFROM {name}\n"
    );
    let mut command = |word: &str, text: &str| {
        if !text.is_empty() {
            writeln!(file, "{word} {}", quoted(text)).expect("a text takes everything");
        }
    };
    command("TEMPLATE", &details.template);
    command("SYSTEM", &details.system);
    command("RENDERER", &details.renderer);
    command("PARSER", &details.parser);
    for (name, value) in each(&details.parameters) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        command(&format!("PARAMETER {name}"), &value);
    }
    for license in &details.licenses {
        command("LICENSE", license);
    }
    for message in &details.messages {
        command(&format!("MESSAGE {}", message.role.as_str()), &message.joined_text());
    }
    file
}

/// Pairs every parameter with each of its values.
fn each(parameters: &Map<String, Value>) -> impl Iterator<Item = (&str, &Value)> {
    parameters.iter().flat_map(|(name, value)| {
        let values = if let Value::Array(values) = value { values.as_slice() } else { std::slice::from_ref(value) };
        values.iter().map(move |value| (name.as_str(), value))
    })
}

fn quoted(text: &str) -> String {
    let plain = !text.contains('\n') && !text.starts_with([' ', '"']) && !text.ends_with([' ', '"']);
    if plain { text.to_owned() } else { format!("\"\"\"{text}\"\"\"") }
}
