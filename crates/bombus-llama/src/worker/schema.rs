//! Grammars for answers that have to be JSON.

use bombus_core::chat::{ResponseFormat, Tool};
use serde_json::{Map, Value, json};

use super::RunError;

/// llama.cpp unrolls bounded repetitions, and refuses grammars that grow too far by it.
const REPETITIONS_MAX: u64 = 1_000;
/// Deepest accepted nesting of a schema.
const DEPTH_MAX: usize = 64;

/// Returns the GBNF grammar for a response format, or `None` for free text.
pub(crate) fn grammar_for(format: &ResponseFormat) -> Result<Option<String>, RunError> {
    match format {
        ResponseFormat::Text => Ok(None),
        ResponseFormat::JsonObject => compile("response_format", json!({ "type": "object" })).map(Some),
        ResponseFormat::JsonSchema(schema) => compile("response_format", schema.clone()).map(Some),
    }
}

/// Returns the grammar for one call of one of `tools`, as JSON with the members `name` and `arguments_key`.
pub(crate) fn grammar_for_call(tools: &[&Tool], arguments_key: &str) -> Result<String, RunError> {
    let mut definitions = Map::new();
    let mut calls = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let mut parameters = tool.parameters.clone();
        hoist_definitions(&mut parameters, &format!("tool{index}-"), &mut definitions);
        calls.push(json!({
            "type": "object",
            "properties": { "name": { "const": tool.name }, arguments_key: parameters },
            "required": ["name", arguments_key],
            "additionalProperties": false,
        }));
    }
    compile("tools", json!({ "anyOf": calls, "$defs": definitions }))
}

/// Moves a schema's own definitions to a common place, under names that no other schema has there. References to them begin at the
/// root of a document, which is another one once the schema stands inside a larger one.
fn hoist_definitions(schema: &mut Value, prefix: &str, definitions: &mut Map<String, Value>) {
    rename_references(schema, prefix);
    let Value::Object(members) = schema else { return };
    for key in ["$defs", "definitions"] {
        if let Some(Value::Object(own)) = members.remove(key) {
            definitions.extend(own.into_iter().map(|(name, definition)| (format!("{prefix}{name}"), definition)));
        }
    }
}

fn rename_references(value: &mut Value, prefix: &str) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get_mut("$ref") {
                let name = ["#/$defs/", "#/definitions/"].iter().find_map(|begin| reference.strip_prefix(begin));
                if let Some(renamed) = name.map(|name| format!("#/$defs/{prefix}{name}")) {
                    *reference = renamed;
                }
            }
            members.values_mut().for_each(|member| rename_references(member, prefix));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename_references(item, prefix)),
        _ => {}
    }
}

fn compile(param: &str, mut schema: Value) -> Result<String, RunError> {
    soften(param, &mut schema, 0)?;
    llama_cpp_2::json_schema_to_grammar(&schema.to_string()).map_err(|_| {
        let reason =
            "the JSON schema cannot be used: it has a keyword that is not supported, or a $ref that leads nowhere";
        RunError::invalid(param, reason)
    })
}

/// Drops upper bounds that are too large to unroll (the answer may then be longer than allowed), and refuses lower ones.
fn soften(param: &str, value: &mut Value, depth: usize) -> Result<(), RunError> {
    if depth > DEPTH_MAX {
        return Err(RunError::invalid(param, format!("the JSON schema is nested deeper than {DEPTH_MAX}")));
    }
    match value {
        Value::Object(members) => {
            for key in ["minLength", "minItems"] {
                if members.get(key).and_then(Value::as_u64).is_some_and(|least| least > REPETITIONS_MAX) {
                    return Err(RunError::invalid(param, format!("{key} may be at most {REPETITIONS_MAX}")));
                }
            }
            for key in ["maxLength", "maxItems"] {
                if members.get(key).and_then(Value::as_u64).is_some_and(|most| most > REPETITIONS_MAX) {
                    members.remove(key);
                }
            }
            members.values_mut().try_for_each(|member| soften(param, member, depth + 1))
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| soften(param, item, depth + 1)),
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
    fn definitions_of_tools_are_found_and_do_not_mix() {
        let tool = |name: &str, city: &str| Tool {
            name: name.into(),
            description: None,
            parameters: json!({
                "type": "object",
                "properties": { "where": { "$ref": "#/$defs/Place" } },
                "required": ["where"],
                "$defs": { "Place": { "enum": [city] } },
            }),
            strict: None,
        };
        let (near, far) = (tool("near", "Here"), tool("far", "There"));
        let grammar = grammar_for_call(&[&near, &far], "arguments").unwrap();
        assert!(grammar.contains("Here") && grammar.contains("There"), "{grammar}");
    }

    #[test]
    fn the_field_with_the_schema_is_named() {
        let schema = json!({ "type": "string", "minLength": 2_000 });
        let tool = Tool { name: "say".into(), description: None, parameters: schema.clone(), strict: None };
        for (error, field) in [
            (grammar_for(&ResponseFormat::JsonSchema(schema)).unwrap_err(), "response_format"),
            (grammar_for_call(&[&tool], "arguments").unwrap_err(), "tools"),
        ] {
            let RunError::Invalid { param, message } = error else { panic!("{error}") };
            assert!(param == field && message.contains("minLength"), "{param}: {message}");
        }
    }

    #[test]
    fn a_schema_that_makes_no_sense_is_refused() {
        assert!(grammar_for(&ResponseFormat::JsonSchema(json!({ "type": "no such type" }))).is_err());
        let deep = (0..200).fold(json!({ "type": "string" }), |inner, _| json!({ "type": "array", "items": inner }));
        assert!(grammar_for(&ResponseFormat::JsonSchema(deep)).is_err());
    }
}
