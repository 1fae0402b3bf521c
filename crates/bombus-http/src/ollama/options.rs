use bombus_core::chat::Sampling;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Most stop texts.
const STOPS_MAX: usize = 64;
/// Longest stop text in bytes.
const STOP_BYTES_MAX: usize = 1_024;
/// Most tokens that a repetition penalty looks at: engines keep a buffer of so many for each answer.
const PENALTY_TOKENS_MAX: i64 = 65_536;
/// Whole numbers that say how an engine runs.
const ENGINE_INTEGERS: [&str; 4] = ["num_batch", "num_gpu", "main_gpu", "num_thread"];
/// Most options without a place in the vocabulary that are handed on.
const ENGINE_OPTIONS_MAX: usize = 64;
/// Longest name of such an option, and longest text in one, in bytes.
const ENGINE_TEXT_BYTES_MAX: usize = 128;

/// The `options` of a request, in the vocabulary's terms.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    pub(super) sampling: Sampling,
    pub(super) stop: Vec<String>,
    pub(super) max_tokens: Option<u32>,
    pub(super) context_tokens: Option<u32>,
    pub(super) keep_tokens: Option<u32>,
    /// What has no place in the vocabulary: it is for Ollama servers, as it came.
    pub(super) engine: Map<String, Value>,
}

impl Options {
    /// Reads the options. What has no place in the vocabulary is kept where it is a number, a text or a boolean, and tolerated else, as is
    /// `null`; numbers beyond their range are brought into it, since this dialect knows no ranges.
    ///
    /// # Errors
    ///
    /// An option of the wrong type, or stop texts that are too many or too long.
    pub(super) fn read(given: Option<Map<String, Value>>) -> Result<Self, ApiError> {
        let mut options = Self::default();
        for (name, value) in given.unwrap_or_default() {
            if !value.is_null() {
                options.set(&name, value)?;
            }
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: Value) -> Result<(), ApiError> {
        let sampling = &mut self.sampling;
        match name {
            "temperature" => sampling.temperature = Some(float(name, &value)?.max(0.0)),
            "top_p" => sampling.top_p = Some(float(name, &value)?.clamp(0.0, 1.0)),
            "min_p" => sampling.min_p = Some(float(name, &value)?.clamp(0.0, 1.0)),
            "top_k" => sampling.top_k = Some(count(integer(name, &value)?)),
            "seed" => sampling.seed = Sampling::seed_of(integer(name, &value)?),
            "repeat_penalty" => sampling.repeat_penalty = Some(Sampling::repeat_penalty_of(float(name, &value)?)),
            "presence_penalty" => sampling.presence_penalty = Some(Sampling::penalty_of(float(name, &value)?)),
            "frequency_penalty" => sampling.frequency_penalty = Some(Sampling::penalty_of(float(name, &value)?)),
            "repeat_last_n" => {
                let tokens = integer(name, &value)?;
                let tokens = if tokens < 0 { PENALTY_TOKENS_MAX } else { tokens.min(PENALTY_TOKENS_MAX) };
                sampling.repeat_last_n = Some(count(tokens));
            }
            "stop" => self.stop = stops(value)?,
            // 0 and below: until the model ends.
            "num_predict" => self.max_tokens = positive(integer(name, &value)?),
            "num_ctx" => self.context_tokens = positive(integer(name, &value)?),
            "num_keep" => self.keep_tokens = u32::try_from(integer(name, &value)?).ok(),
            "use_mmap" if !value.is_boolean() => return Err(wrong_type(name, "boolean")),
            "typical_p" => {
                float(name, &value)?;
                self.keep_for_engine(name, value);
            }
            _ if ENGINE_INTEGERS.contains(&name) => self.keep_for_engine(name, integer(name, &value)?.into()),
            _ => self.keep_for_engine(name, value),
        }
        Ok(())
    }

    fn keep_for_engine(&mut self, name: &str, value: Value) {
        let is_single = match &value {
            Value::Bool(_) | Value::Number(_) => true,
            Value::String(text) => text.len() <= ENGINE_TEXT_BYTES_MAX,
            Value::Null | Value::Array(_) | Value::Object(_) => false,
        };
        if is_single && name.len() <= ENGINE_TEXT_BYTES_MAX && self.engine.len() < ENGINE_OPTIONS_MAX {
            self.engine.insert(name.to_owned(), value);
        }
    }
}

fn wrong_type(name: &str, wanted: &str) -> ApiError {
    ApiError::invalid_value(format!("options.{name}"), format!("option {name:?} must be of type {wanted}"))
}

/// Reads a whole number; a fraction is cut off, as this dialect does.
fn integer(name: &str, value: &Value) -> Result<i64, ApiError> {
    let number = value.as_i64().or_else(|| value.as_f64().map(|number| number as i64));
    number.ok_or_else(|| wrong_type(name, "integer"))
}

fn float(name: &str, value: &Value) -> Result<f32, ApiError> {
    let number = value.as_f64().map(|number| number as f32);
    number.filter(|number| number.is_finite()).ok_or_else(|| wrong_type(name, "float32"))
}

/// Returns a number as a count: 0 where it is below, the largest where it is beyond.
fn count(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

fn positive(number: i64) -> Option<u32> {
    (number > 0).then(|| count(number))
}

fn stops(value: Value) -> Result<Vec<String>, ApiError> {
    let Value::Array(values) = value else { return Err(wrong_type("stop", "array")) };
    let mut stops = Vec::with_capacity(values.len().min(STOPS_MAX));
    for value in values {
        let Value::String(text) = value else {
            return Err(ApiError::invalid_value("options.stop", "option \"stop\" must be of an array of strings"));
        };
        // An empty text would end every answer before it begins.
        if !text.is_empty() {
            stops.push(text);
        }
    }
    if stops.len() > STOPS_MAX || stops.iter().any(|text| text.len() > STOP_BYTES_MAX) {
        let message = format!("option \"stop\" may hold up to {STOPS_MAX} texts of up to {STOP_BYTES_MAX} bytes");
        return Err(ApiError::invalid_value("options.stop", message));
    }
    Ok(stops)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(options: Value) -> Result<Options, String> {
        let Value::Object(options) = options else { panic!("an object is needed") };
        Options::read(Some(options)).map_err(|error| error.message)
    }

    #[test]
    fn every_option_of_the_vocabulary_is_read() {
        let given = json!({
            "temperature": 0.5, "top_p": 0.9, "min_p": 0.1, "top_k": 40, "seed": 7, "repeat_penalty": 1.5,
            "presence_penalty": 0.25, "frequency_penalty": -0.25, "repeat_last_n": 32, "stop": ["a", "", "b"],
            "num_predict": 16, "num_ctx": 2048, "num_keep": 4,
        });
        let sampling = Sampling {
            temperature: Some(0.5),
            top_p: Some(0.9),
            min_p: Some(0.1),
            top_k: Some(40),
            seed: Some(7),
            repeat_penalty: Some(1.5),
            presence_penalty: Some(0.25),
            frequency_penalty: Some(-0.25),
            repeat_last_n: Some(32),
            logit_bias: Vec::new(),
        };
        let expected = Options {
            sampling,
            stop: vec!["a".into(), "b".into()],
            max_tokens: Some(16),
            context_tokens: Some(2_048),
            keep_tokens: Some(4),
            engine: Map::new(),
        };
        assert_eq!(read(given), Ok(expected));
    }

    #[test]
    fn values_that_stand_for_none_or_lie_beyond_the_range_are_brought_into_it() {
        let given = json!({
            "temperature": -1, "top_p": 1.5, "min_p": -0.5, "top_k": -1, "seed": -1, "repeat_last_n": -1,
            "num_predict": -1, "num_ctx": 0, "num_keep": -1, "repeat_penalty": 0, "presence_penalty": 3, "frequency_penalty": -2.5,
        });
        let sampling = Sampling {
            temperature: Some(0.0),
            top_p: Some(1.0),
            min_p: Some(0.0),
            top_k: Some(0),
            repeat_last_n: Some(65_536),
            repeat_penalty: Some(1.0),
            presence_penalty: Some(2.0),
            frequency_penalty: Some(-2.0),
            ..Sampling::default()
        };
        assert_eq!(read(given), Ok(Options { sampling, ..Options::default() }));
        for (given, taken) in [(-1.0, 1.0), (0.01, 0.1), (0.5, 0.5), (20.0, 10.0)] {
            assert_eq!(
                read(json!({ "repeat_penalty": given })).unwrap().sampling.repeat_penalty,
                Some(taken),
                "{given}"
            );
        }
    }

    #[test]
    fn what_has_no_place_in_the_vocabulary_is_kept_for_engines_that_know_it() {
        let given = json!({
            "mirostat": 2, "temperature": null, "num_thread": 4, "num_gpu": 1.0, "use_mmap": false, "typical_p": 0.5, "later": "x",
            "list": [1], "object": {}, "endless": "x".repeat(1000),
        });
        let engine = json!({
            "mirostat": 2, "num_thread": 4, "num_gpu": 1, "use_mmap": false, "typical_p": 0.5, "later": "x",
        });
        let Value::Object(engine) = engine else { panic!("an object is needed") };
        assert_eq!(read(given), Ok(Options { engine, ..Options::default() }));
        let many: Map<_, _> = (0..1000).map(|number| (format!("option_{number}"), number.into())).collect();
        assert_eq!(read(Value::Object(many)).unwrap().engine.len(), ENGINE_OPTIONS_MAX);
        assert_eq!(read(json!({"num_predict": 3.7})).unwrap().max_tokens, Some(3));
    }

    #[test]
    fn wrong_types_are_told_in_the_words_of_the_dialect() {
        for (given, told) in [
            (json!({"temperature": "hot"}), "option \"temperature\" must be of type float32"),
            (json!({"temperature": 1e300}), "option \"temperature\" must be of type float32"),
            (json!({"num_ctx": "4096"}), "option \"num_ctx\" must be of type integer"),
            (json!({"num_thread": true}), "option \"num_thread\" must be of type integer"),
            (json!({"use_mmap": 1}), "option \"use_mmap\" must be of type boolean"),
            (json!({"stop": "END"}), "option \"stop\" must be of type array"),
            (json!({"stop": [5]}), "option \"stop\" must be of an array of strings"),
            (json!({"repeat_penalty": "none"}), "option \"repeat_penalty\" must be of type float32"),
        ] {
            assert_eq!(read(given.clone()), Err(told.to_owned()), "{given}");
        }
    }
}
