use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{CUSTOM_ID_BYTES_MAX, Endpoint};
use crate::tasks::{TaskId, WholeAnswer};

/// A line of a file of requests.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestLine {
    /// Its own id in the file.
    pub custom_id: String,
    /// The JSON of what is asked.
    pub body: String,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLineError {
    /// A word for programs.
    pub code: &'static str,
    /// The field at fault.
    pub param: Option<&'static str>,
    /// What is wrong, and what to do about it.
    pub message: String,
}

#[derive(Deserialize)]
struct Raw<'a> {
    custom_id: Option<Value>,
    method: Option<Value>,
    url: Option<Value>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// Reads a line of a file whose lines are requests to an endpoint.
///
/// # Errors
///
/// Says what is wrong with the form of the line. What its body asks is not looked at.
pub fn read_request_line(line: &[u8], endpoint: Endpoint) -> Result<RequestLine, RequestLineError> {
    let error = |code, param, message: String| RequestLineError { code, param, message };
    let raw: Raw<'_> = serde_json::from_slice(line).map_err(|reason| {
        error("invalid_json_line", None, format!("the line is no JSON object of the form of a request: {reason}"))
    })?;
    let missing = |param| error("missing_required_parameter", Some(param), format!("'{param}' is missing"));
    let custom_id = match raw.custom_id {
        None | Some(Value::Null) => return Err(missing("custom_id")),
        Some(Value::String(id))
            if (1..=CUSTOM_ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control) =>
        {
            id
        }
        Some(_) => {
            let message =
                format!("'custom_id' has to be a text of 1 to {CUSTOM_ID_BYTES_MAX} bytes, without control characters");
            return Err(error("invalid_custom_id", Some("custom_id"), message));
        }
    };
    match raw.method {
        None | Some(Value::Null) => return Err(missing("method")),
        Some(Value::String(method)) if method == "POST" => {}
        Some(_) => return Err(error("invalid_method", Some("method"), "'method' has to be POST".to_owned())),
    }
    match raw.url {
        None | Some(Value::Null) => return Err(missing("url")),
        Some(Value::String(url)) if url == endpoint.path() => {}
        Some(_) => {
            let message = format!("'url' has to be {endpoint}, the endpoint of the batch");
            return Err(error("invalid_url", Some("url"), message));
        }
    }
    let body = raw.body.ok_or_else(|| missing("body"))?.get();
    if !body.starts_with('{') {
        return Err(error("invalid_body", Some("body"), "'body' has to be a JSON object".to_owned()));
    }
    Ok(RequestLine { custom_id, body: body.to_owned() })
}

/// A line of what came of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchLine {
    /// The id that the line of the request has.
    pub custom_id: String,
    /// The task of the line.
    pub task: TaskId,
    /// What came of it.
    pub outcome: LineOutcome,
}

/// What came of a line.
#[derive(Debug, Clone, PartialEq)]
pub enum LineOutcome {
    /// There is an answer.
    Answered {
        /// The model, as it was asked for.
        model: String,
        /// When, in seconds since 1970.
        created: u64,
        /// All of it.
        answer: Box<WholeAnswer>,
    },
    /// It asked for what cannot be.
    Refused {
        /// The status that a request by itself would have got.
        status: u16,
        /// The body that it would have got.
        body: Value,
    },
    /// Nothing came of it.
    Failed {
        /// A word for programs.
        code: &'static str,
        /// Why.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<RequestLine, (&'static str, Option<&'static str>)> {
        read_request_line(line.as_bytes(), Endpoint::Chat).map_err(|error| (error.code, error.param))
    }

    #[test]
    fn a_line_of_the_form_is_taken_apart() {
        let line = r#" {"custom_id": "a b", "method": "POST", "url": "/v1/chat/completions", "body": {"x": [1, 2]}, "more": 1} "#;
        assert_eq!(read(line), Ok(RequestLine { custom_id: "a b".into(), body: r#"{"x": [1, 2]}"#.into() }));
    }

    #[test]
    fn what_is_wrong_is_told_by_its_field() {
        let with = |custom_id: &str, method: &str, url: &str, body: &str| {
            read(&format!(r#"{{"custom_id": {custom_id}, "method": {method}, "url": {url}, "body": {body}}}"#))
        };
        let (id, post, url) = ("\"a\"", "\"POST\"", "\"/v1/chat/completions\"");
        assert!(with(id, post, url, "{}").is_ok());
        assert_eq!(with("7", post, url, "{}"), Err(("invalid_custom_id", Some("custom_id"))));
        assert_eq!(with("\"\"", post, url, "{}"), Err(("invalid_custom_id", Some("custom_id"))));
        assert_eq!(with(id, "\"GET\"", url, "{}"), Err(("invalid_method", Some("method"))));
        assert_eq!(with(id, post, "\"/v1/embeddings\"", "{}"), Err(("invalid_url", Some("url"))));
        assert_eq!(with(id, post, url, "[]"), Err(("invalid_body", Some("body"))));
        assert_eq!(with(id, post, url, "null"), Err(("missing_required_parameter", Some("body"))));
        assert_eq!(read("{}"), Err(("missing_required_parameter", Some("custom_id"))));
        assert_eq!(read("{"), Err(("invalid_json_line", None)));
        assert_eq!(read("[]"), Err(("invalid_json_line", None)));
    }
}
