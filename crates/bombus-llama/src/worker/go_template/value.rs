//! What templates compute with.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::{Map, Value as Json};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'d> {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Cow<'d, str>),
    List(&'d [Json]),
    Object(&'d Map<String, Json>),
}

impl<'d> Value<'d> {
    pub(super) fn of(json: &'d Json) -> Self {
        match json {
            Json::Null => Self::Nil,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(int) => Self::Int(int),
                None => number.as_f64().map_or(Self::Nil, Self::Float),
            },
            Json::String(text) => Self::Text(Cow::Borrowed(text)),
            Json::Array(items) => Self::List(items),
            Json::Object(members) => Self::Object(members),
        }
    }

    /// Returns whether `if` takes the value for true: everything but zeros and what is empty.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Nil => false,
            Self::Bool(value) => *value,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Object(members) => !members.is_empty(),
        }
    }

    /// Returns a field. `ToolCalls` also finds `tool_calls`; what is missing is nil.
    pub(super) fn field(&self, name: &str) -> Result<Self, String> {
        match self {
            Self::Nil => Ok(Self::Nil),
            Self::Object(members) => {
                let member = members.get(name).or_else(|| members.get(&snake_case(name)));
                Ok(member.map_or(Self::Nil, Self::of))
            }
            _ => Err(format!("a value that is no object has no field {name}")),
        }
    }

    /// Returns the value as actions print it: lists and objects as JSON.
    pub(super) fn print(&self) -> Cow<'d, str> {
        match self {
            Self::Nil => Cow::Borrowed(""),
            Self::Bool(value) => Cow::Owned(value.to_string()),
            Self::Int(number) => Cow::Owned(number.to_string()),
            Self::Float(number) => Cow::Owned(number.to_string()),
            Self::Text(text) => text.clone(),
            Self::List(_) | Self::Object(_) => Cow::Owned(self.to_json()),
        }
    }

    pub(super) fn to_json(&self) -> String {
        let json = match self {
            Self::Nil => Ok("null".to_owned()),
            Self::Bool(value) => serde_json::to_string(value),
            Self::Int(number) => serde_json::to_string(number),
            Self::Float(number) => serde_json::to_string(number),
            Self::Text(text) => serde_json::to_string(text),
            Self::List(items) => serde_json::to_string(items),
            Self::Object(members) => serde_json::to_string(members),
        };
        json.unwrap_or_default()
    }

    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Float(b)) => (*a as f64).partial_cmp(b),
            (Self::Float(a), Self::Int(b)) => a.partial_cmp(&(*b as f64)),
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(b),
            _ => None,
        }
    }
}

/// `ToolCallID` becomes `tool_call_id`.
fn snake_case(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::with_capacity(name.len() + 4);
    for (at, c) in chars.iter().enumerate() {
        let begins_word = c.is_uppercase()
            && at > 0
            && (chars[at - 1].is_lowercase() || chars.get(at + 1).is_some_and(|next| next.is_lowercase()));
        if begins_word && chars[at - 1] != '_' {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_go_are_found_in_json() {
        for (go, json) in
            [("ToolCallID", "tool_call_id"), ("Role", "role"), ("ID", "id"), ("IsThinkSet", "is_think_set")]
        {
            assert_eq!(snake_case(go), json);
        }
    }
}
