//! Grammars for answers that have to be JSON.

use bombus_core::chat::{ResponseFormat, Tool};
use serde_json::{Value, json};

use super::RunError;

/// llama.cpp unrolls bounded repetitions, and refuses grammars that grow too far by it.
const REPETITIONS_MAX: u64 = 1_000;
/// Deepest accepted nesting of a schema.
const DEPTH_MAX: usize = 64;

/// Returns the GBNF grammar for a response format, or `None` for free text.
pub(crate) fn grammar_for(format: &ResponseFormat) -> Result<Option<String>, RunError> {
    match format {
        ResponseFormat::Text => Ok(None),
        ResponseFormat::JsonObject => compile(json!({ "type": "object" })).map(Some),
        ResponseFormat::JsonSchema(schema) => compile(schema.clone()).map(Some),
    }
}

/// Returns the grammar for one call of one of `tools`, as JSON with the members `name` and `arguments_key`.
pub(crate) fn grammar_for_call(tools: &[&Tool], arguments_key: &str) -> Result<String, RunError> {
    let call = |tool: &&Tool| {
        json!({
            "type": "object",
            "properties": { "name": { "const": tool.name }, arguments_key: tool.parameters },
            "required": ["name", arguments_key],
            "additionalProperties": false,
        })
    };
    compile(json!({ "anyOf": tools.iter().map(call).collect::<Vec<_>>() }))
}

fn compile(mut schema: Value) -> Result<String, RunError> {
    soften(&mut schema, 0)?;
    llama_cpp_2::json_schema_to_grammar(&schema.to_string())
        .map_err(|error| RunError::invalid("response_format", format!("the JSON schema cannot be used: {error}")))
}

/// Drops upper bounds that are too large to unroll (the answer may then be longer than allowed), and refuses lower ones.
fn soften(value: &mut Value, depth: usize) -> Result<(), RunError> {
    if depth > DEPTH_MAX {
        return Err(RunError::invalid("response_format", format!("the JSON schema is nested deeper than {DEPTH_MAX}")));
    }
    match value {
        Value::Object(members) => {
            for key in ["minLength", "minItems"] {
                if members.get(key).and_then(Value::as_u64).is_some_and(|least| least > REPETITIONS_MAX) {
                    return Err(RunError::invalid(
                        "response_format",
                        format!("{key} may be at most {REPETITIONS_MAX}"),
                    ));
                }
            }
            for key in ["maxLength", "maxItems"] {
                if members.get(key).and_then(Value::as_u64).is_some_and(|most| most > REPETITIONS_MAX) {
                    members.remove(key);
                }
            }
            members.values_mut().try_for_each(|member| soften(member, depth + 1))
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| soften(item, depth + 1)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_becomes_a_grammar() {
        let schema = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
        let grammar = grammar_for(&ResponseFormat::JsonSchema(schema)).unwrap().unwrap();
        assert!(grammar.contains("root ::=") && grammar.contains("city"), "{grammar}");
    }

    #[test]
    fn bounds_too_large_to_unroll_are_dropped_or_refused() {
        let with = |key: &str| ResponseFormat::JsonSchema(json!({ "type": "string", key: 5_000_000 }));
        assert!(grammar_for(&with("maxLength")).is_ok());
        assert!(grammar_for(&with("minLength")).unwrap_err().to_string().contains("minLength"));
    }

    #[test]
    fn a_schema_that_makes_no_sense_is_refused() {
        assert!(grammar_for(&ResponseFormat::JsonSchema(json!({ "type": "no such type" }))).is_err());
        let deep = (0..200).fold(json!({ "type": "string" }), |inner, _| json!({ "type": "array", "items": inner }));
        assert!(grammar_for(&ResponseFormat::JsonSchema(deep)).is_err());
    }
}
