//! The functions of templates: Go's own, and those that Ollama adds.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value as Json;
use time::{Duration, OffsetDateTime};

use super::value::Value;
use crate::worker::template::local_now;

/// Calls a function other than `and` and `or`, which may leave arguments unread.
pub(super) fn call<'d>(name: &str, arguments: &[Value<'d>]) -> Result<Value<'d>, String> {
    let text = |text: String| Ok(Value::Text(Cow::Owned(text)));
    match (name, arguments) {
        ("not", [value]) => Ok(Value::Bool(!value.is_true())),
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            Ok(Value::Bool(others.iter().any(|other| is_equal(first, other))))
        }
        ("ne", [a, b]) => Ok(Value::Bool(!is_equal(a, b))),
        ("lt", [a, b]) => compare(a, b, Ordering::is_lt),
        ("le", [a, b]) => compare(a, b, Ordering::is_le),
        ("gt", [a, b]) => compare(a, b, Ordering::is_gt),
        ("ge", [a, b]) => compare(a, b, Ordering::is_ge),
        ("len", [value]) => length(value).map(Value::Int),
        ("index", [value, keys @ ..]) => keys.iter().try_fold(value.clone(), |value, key| index(&value, key)),
        ("slice", [value, bounds @ ..]) if bounds.len() <= 2 => slice(value, bounds),
        ("print", values) => text(values.iter().map(Value::print).collect()),
        ("println", values) => text(values.iter().map(Value::print).collect::<Vec<_>>().join(" ") + "\n"),
        ("printf", [Value::Text(format), values @ ..]) => text(printf(format, values)?),
        ("json", [value]) => text(value.to_json()),
        ("currentDate", _) => text(date(local_now())),
        ("yesterdayDate", _) => text(date(local_now() - Duration::days(1))),
        ("toTypeScriptType", [value]) => text(type_script(value)),
        (
            "not" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "len" | "index" | "slice" | "printf" | "json"
            | "toTypeScriptType",
            _,
        ) => Err(format!("{name} is called with the wrong arguments")),
        _ => Err(format!("there is no function {name}")),
    }
}

fn is_equal(a: &Value<'_>, b: &Value<'_>) -> bool {
    a == b || a.compare(b) == Some(Ordering::Equal)
}

fn compare<'d>(a: &Value<'d>, b: &Value<'d>, holds: impl Fn(Ordering) -> bool) -> Result<Value<'d>, String> {
    let order = a.compare(b).ok_or("two values of different kinds have no order")?;
    Ok(Value::Bool(holds(order)))
}

fn length(value: &Value<'_>) -> Result<i64, String> {
    let length = match value {
        Value::Nil => 0,
        Value::Text(text) => text.len(),
        Value::List(items) => items.len(),
        Value::Object(members) => members.len(),
        _ => return Err("a number has no len".into()),
    };
    i64::try_from(length).map_err(|_| "a len is too large".into())
}

fn index<'d>(value: &Value<'d>, key: &Value<'d>) -> Result<Value<'d>, String> {
    match (value, key) {
        (Value::List(items), Value::Int(at)) => {
            let item = usize::try_from(*at).ok().and_then(|at| items.get(at));
            item.map(Value::of).ok_or_else(|| format!("index {at} is out of the range of {} items", items.len()))
        }
        (Value::Object(members), Value::Text(name)) => Ok(members.get(name.as_ref()).map_or(Value::Nil, Value::of)),
        (Value::Nil, _) => Ok(Value::Nil),
        _ => Err("index is called with the wrong arguments".into()),
    }
}

fn slice<'d>(value: &Value<'d>, bounds: &[Value<'d>]) -> Result<Value<'d>, String> {
    let length = usize::try_from(length(value)?).unwrap_or(usize::MAX);
    let bound = |at: usize, default: usize| match bounds.get(at) {
        None => Ok(default),
        Some(Value::Int(bound)) => usize::try_from(*bound).map_err(|_| "a bound of slice is negative".to_owned()),
        Some(_) => Err("a bound of slice is no number".to_owned()),
    };
    let (from, to) = (bound(0, 0)?, bound(1, length)?);
    let out_of_range = || format!("slice {from} {to} is out of the range of {length}");
    match value {
        Value::List(items) => items.get(from..to).map(Value::List).ok_or_else(out_of_range),
        Value::Text(Cow::Borrowed(text)) => {
            text.get(from..to).map(|part| Value::Text(Cow::Borrowed(part))).ok_or_else(out_of_range)
        }
        Value::Text(Cow::Owned(text)) => {
            text.get(from..to).map(|part| Value::Text(Cow::Owned(part.to_owned()))).ok_or_else(out_of_range)
        }
        _ => Err("slice needs a list or a text".into()),
    }
}

/// Knows the verbs `%s %v %d %q %t %f %%`, of which `%f` may have a precision.
fn printf(format: &str, values: &[Value<'_>]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut verb = chars.next();
        let mut precision = String::new();
        if verb == Some('.') {
            verb = chars.next();
            while let Some(digit) = verb.filter(char::is_ascii_digit) {
                precision.push(digit);
                verb = chars.next();
            }
        }
        let mut value = || values.next().ok_or("printf has too few arguments");
        match verb {
            Some('%') => out.push('%'),
            Some('s' | 'v' | 'd' | 't') => out.push_str(&value()?.print()),
            Some('q') => out.push_str(&Value::Text(value()?.print()).to_json()),
            Some('f') => {
                let number = match value()? {
                    Value::Int(number) => *number as f64,
                    Value::Float(number) => *number,
                    _ => return Err("%f is for numbers".into()),
                };
                let digits = precision.parse().unwrap_or(6).min(32);
                out.push_str(&format!("{number:.digits$}"));
            }
            other => return Err(format!("printf does not know the verb {other:?}")),
        }
    }
    Ok(out)
}

fn date(time: OffsetDateTime) -> String {
    let date = time.date();
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

/// Names the type of a tool's parameter as TypeScript does.
fn type_script(property: &Value<'_>) -> String {
    let Value::Object(property) = property else { return "any".into() };
    if let Some(Json::Array(choices)) = property.get("anyOf") {
        return choices.iter().map(|choice| type_script(&Value::of(choice))).collect::<Vec<_>>().join(" | ");
    }
    let items = || property.get("items").map_or_else(|| "any".into(), |items| type_script(&Value::of(items)));
    let of_name = |name: &str| match name {
        "string" | "boolean" | "null" => name.to_owned(),
        "number" | "integer" => "number".to_owned(),
        "array" => format!("{}[]", items()),
        "object" => "Record<string, any>".to_owned(),
        _ => "any".to_owned(),
    };
    match property.get("type") {
        Some(Json::String(name)) => of_name(name),
        Some(Json::Array(names)) => names.iter().filter_map(Json::as_str).map(of_name).collect::<Vec<_>>().join(" | "),
        _ => "any".into(),
    }
}
