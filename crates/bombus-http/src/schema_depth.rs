use serde_json::Value;

use crate::error::ApiError;

/// Deepest nesting of a JSON schema. Whoever reads a deeper one would need a stack that grows with it.
const SCHEMA_DEPTH_MAX: usize = 64;

/// Refuses a JSON schema that is nested too deep.
pub(crate) fn check(param: impl Fn() -> String, schema: &Value) -> Result<(), ApiError> {
    fn fits(value: &Value, depth: usize) -> bool {
        match value {
            Value::Array(values) => depth > 0 && values.iter().all(|value| fits(value, depth - 1)),
            Value::Object(fields) => depth > 0 && fields.values().all(|value| fits(value, depth - 1)),
            _ => true,
        }
    }
    if fits(schema, SCHEMA_DEPTH_MAX) {
        return Ok(());
    }
    let param = param();
    let message = format!("'{param}' is nested too deep; up to {SCHEMA_DEPTH_MAX} levels are read");
    Err(ApiError::invalid_value(param, message))
}
