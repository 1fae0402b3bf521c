//! What a client is told when something is wrong.

use std::time::Duration;

use bombus_core::chat::{ChatEvent, FinishReason};
use bombus_core::model::ModelCapability;
use bombus_infer::BackendError;
use bombus_infer::fake::{FakeConfig, FakeFailure};
use insta::assert_snapshot;
use serde_json::{Value, json};

use super::{chat, hello, two_words, weather_tool, with};
use crate::testing::{Answer, Scripted, done, fake, loopback, model, post, refusing, scripted, services, text};

/// Sends a request that has to be refused, and returns what it was told: status, code, param.
async fn refused(path: &str, request: &Value) -> (u16, Option<String>, Option<String>) {
    let router = loopback(services(scripted(two_words())));
    let answer = post(&router, path, request).await;
    let error = &answer.json()["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{request}: {}", answer.body);
    let text = |key: &str| error[key].as_str().map(str::to_owned);
    (answer.status.as_u16(), text("code"), text("param"))
}

#[tokio::test]
async fn values_of_the_wrong_type_or_out_of_range_name_their_field() {
    let cases = [
        (json!({"messages": "hello"}), "invalid_value", "messages"),
        (json!({"messages": []}), "invalid_value", "messages"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "invalid_value", "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "invalid_value", "messages[0].content"),
        (json!({"messages": [{"role": "user"}]}), "missing_required_parameter", "messages[0].content"),
        (json!({"messages": [{"content": "x"}]}), "missing_required_parameter", "messages[0].role"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "missing_required_parameter",
            "messages[0].content[0].text",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
            "invalid_value",
            "messages[0].content[0].type",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}),
            "invalid_value",
            "messages[0].content[0].image_url.url",
        ),
        (json!({"model": 5}), "invalid_value", "model"),
        (json!({"max_tokens": "many"}), "invalid_value", "max_tokens"),
        (json!({"max_tokens": 0}), "invalid_value", "max_tokens"),
        (json!({"max_tokens": -1}), "invalid_value", "max_tokens"),
        (json!({"max_completion_tokens": 0}), "invalid_value", "max_completion_tokens"),
        (json!({"max_completion_tokens": 0, "max_tokens": 5}), "invalid_value", "max_completion_tokens"),
        (json!({"n": 0}), "invalid_value", "n"),
        (json!({"n": 17}), "invalid_value", "n"),
        (json!({"temperature": 2.5}), "invalid_value", "temperature"),
        (json!({"top_p": -0.5}), "invalid_value", "top_p"),
        (json!({"presence_penalty": 3}), "invalid_value", "presence_penalty"),
        (json!({"repeat_penalty": 0}), "invalid_value", "repeat_penalty"),
        (json!({"repeat_last_n": 65_537}), "invalid_value", "repeat_last_n"),
        (json!({"top_k": -2}), "invalid_value", "top_k"),
        (json!({"max_tokens": 1.5}), "invalid_value", "max_tokens"),
        (json!({"max_tokens": 1e300}), "invalid_value", "max_tokens"),
        (json!({"n": -1.0}), "invalid_value", "n"),
        (json!({"repeat_last_n": -2}), "invalid_value", "repeat_last_n"),
        (json!({"functions": [{"name": "f"}]}), "unsupported_parameter", "functions"),
        (json!({"function_call": "auto"}), "unsupported_parameter", "function_call"),
        (json!({"logit_bias": {"x": 1}}), "invalid_value", "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "invalid_value", "logit_bias"),
        (json!({"stop": 5}), "invalid_value", "stop"),
        (json!({"stop": vec!["x"; 17]}), "invalid_value", "stop"),
        (json!({"stream": "yes"}), "invalid_value", "stream"),
        (json!({"top_logprobs": 2}), "invalid_value", "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "invalid_value", "top_logprobs"),
        (json!({"tool_choice": "required"}), "invalid_value", "tool_choice"),
        (
            json!({"tools": [weather_tool()], "tool_choice": {"function": {"name": "x"}}}),
            "invalid_value",
            "tool_choice",
        ),
        (json!({"reasoning_effort": ""}), "invalid_value", "reasoning_effort"),
        (json!({"reasoning_effort": "a b"}), "invalid_value", "reasoning_effort"),
        (json!({"reasoning_effort": 5}), "invalid_value", "reasoning_effort"),
        (json!({"tools": [{"type": "function"}]}), "missing_required_parameter", "tools[0].function"),
        (json!({"response_format": {"type": "yaml"}}), "invalid_value", "response_format.type"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "missing_required_parameter",
            "response_format.json_schema",
        ),
    ];
    for (more, code, param) in cases {
        let told = refused("/v1/chat/completions", &with(hello(), more.clone())).await;
        assert_eq!(told, (400, Some(code.into()), Some(param.into())), "{more}");
    }
}

#[tokio::test]
async fn fields_that_have_to_be_there_are_named() {
    let missing = Some("missing_required_parameter".to_owned());
    for (path, request, param) in [
        ("/v1/chat/completions", json!({"model": "m"}), "messages"),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "x"}]}), "model"),
        ("/v1/embeddings", json!({"model": "m"}), "input"),
    ] {
        assert_eq!(refused(path, &request).await, (400, missing.clone(), Some(param.into())));
    }
}

#[tokio::test]
async fn completions_refuse_what_they_cannot_do() {
    for (more, code, param) in [
        (json!({"suffix": "end", "prompt": [1]}), "unsupported_parameter", "suffix"),
        (json!({"best_of": 2}), "unsupported_parameter", "best_of"),
        (json!({"echo": true, "logprobs": 1}), "unsupported_parameter", "echo"),
        (json!({"echo": true, "prompt": [1]}), "unsupported_parameter", "echo"),
        (json!({"prompt": []}), "invalid_value", "prompt"),
        (json!({"prompt": [1.5]}), "invalid_value", "prompt[0]"),
        (json!({"prompt": [[4_294_967_296_u64]]}), "invalid_value", "prompt[0][0]"),
        (json!({"max_tokens": -1}), "invalid_value", "max_tokens"),
        (json!({"prompt": ["a", 1]}), "invalid_value", "prompt"),
        (json!({"prompt": [1, "a"]}), "invalid_value", "prompt"),
        (json!({"prompt": [[]]}), "invalid_value", "prompt"),
        (json!({"prompt": [-1]}), "invalid_value", "prompt[0]"),
        (json!({"prompt": vec!["a"; 100], "n": 2}), "invalid_value", "prompt"),
        (json!({"logprobs": 21}), "invalid_value", "logprobs"),
    ] {
        let told = refused("/v1/completions", &with(json!({"model": "m", "prompt": "a"}), more.clone())).await;
        assert_eq!(told, (400, Some(code.into()), Some(param.into())), "{more}");
    }
}

#[tokio::test]
async fn embeddings_refuse_what_they_cannot_do() {
    let router = loopback(fake(FakeConfig::default()));
    for (more, param) in [
        (json!({"dimensions": 9}), "dimensions"),
        (json!({"dimensions": 0}), "dimensions"),
        (json!({"encoding_format": "hex"}), "encoding_format"),
        (json!({"input": []}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": ["a", ""]}), "input"),
    ] {
        let answer = post(&router, "/v1/embeddings", with(json!({"model": "fake", "input": "a"}), more)).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!(param)));
    }
}

#[tokio::test]
async fn what_a_backend_cannot_make_vectors_of_is_the_input() {
    for refusal in [
        BackendError::InvalidRequest { param: Some("inputs"), message: "an input is empty".into() },
        BackendError::Unsupported { param: "inputs", message: "no token ids".into() },
        BackendError::InvalidRequest { param: Some("prompt"), message: "it cannot be read".into() },
    ] {
        let router = loopback(services(refusing(refusal)));
        let answer = post(&router, "/v1/embeddings", json!({"model": "m", "input": "a"})).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!("input")));
    }
}

/// Nests an object as deep as this.
fn nested(levels: usize) -> Value {
    (1..levels).fold(json!({}), |inner, _| json!({"properties": inner}))
}

#[tokio::test]
async fn a_schema_nested_deeper_than_engines_read_is_refused() {
    let format = |levels| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(levels)}}});
    let tool =
        |levels| json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(levels)}}]});
    let list = json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": (0..64).fold(json!(1), |inner, _| json!([inner]))}}}]});
    for (more, param) in [
        (format(65), "response_format.json_schema.schema"),
        (format(110), "response_format.json_schema.schema"),
        (tool(65), "tools[0].function.parameters"),
        (list, "tools[0].function.parameters"),
    ] {
        let told = refused("/v1/chat/completions", &with(hello(), more)).await;
        assert_eq!(told, (400, Some("invalid_value".into()), Some(param.into())));
    }
    for more in [format(64), tool(64)] {
        assert_eq!(chat(two_words(), more).await.status, 200);
    }
}

#[tokio::test]
async fn more_than_a_node_can_hold_in_its_memory_is_refused() {
    let biases: serde_json::Map<_, _> = (0..1_025).map(|token: u32| (token.to_string(), json!(1))).collect();
    let told = refused("/v1/chat/completions", &with(hello(), json!({"logit_bias": biases}))).await;
    assert_eq!(told, (400, Some("invalid_value".into()), Some("logit_bias".into())));

    let long = "x".repeat(5 << 20);
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": long}], "n": 16});
    assert_eq!(refused("/v1/chat/completions", &chat).await.2.as_deref(), Some("n"));
    let prompt = json!({"model": "m", "prompt": long, "n": 16});
    assert_eq!(refused("/v1/completions", &prompt).await.2.as_deref(), Some("n"));
    let beside = json!({"model": "m", "prompt": vec!["a"; 128], "response_format": {"type": "json_schema",
        "json_schema": {"schema": {"description": "x".repeat(1 << 20)}}}});
    assert_eq!(refused("/v1/completions", &beside).await.2.as_deref(), Some("prompt"));
    let tokens = format!("{{\"model\": \"m\", \"prompt\": [{}1]}}", "1,".repeat(1 << 20));
    let answer = post(&loopback(services(scripted(two_words()))), "/v1/completions", tokens).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!("prompt")));
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_no_warning_of_the_nodes() {
    let (log, _guard) = crate::testing::capture_log();
    for (error, level) in [
        (BackendError::InvalidRequest { param: None, message: "marked".into() }, "DEBUG"),
        (BackendError::Unsupported { param: "tools", message: "marked".into() }, "DEBUG"),
        (BackendError::ContextExceeded { prompt_tokens: 9, context_tokens: 8 }, "DEBUG"),
        (BackendError::Unavailable { reason: "marked".into() }, "WARN"),
    ] {
        let before = log.lines().len();
        post(&loopback(services(refusing(error.clone()))), "/v1/chat/completions", hello()).await;
        let lines = log.lines().split_off(before);
        let told: Vec<_> = lines.iter().filter(|line| line.contains("backend.name=")).collect();
        assert!(matches!(told[..], [line] if line.contains(level)), "{error:?}: {lines:?}");
        let warns = lines.iter().any(|line| line.contains("WARN") || line.contains("ERROR"));
        assert_eq!(warns, level == "WARN", "{lines:?}");
    }
}

#[tokio::test]
async fn nothing_of_a_request_stands_in_the_log_though_an_error_quotes_it() {
    let (log, _guard) = crate::testing::capture_log();
    for error in [
        BackendError::InvalidRequest { param: None, message: "'my diary' is too long".into() },
        BackendError::Unsupported { param: "tools", message: "no tools for 'my diary'".into() },
        BackendError::DeadEnd { param: "tools", message: "no token behind 'my diary'".into() },
        BackendError::Unavailable { reason: "backend 'tower': status 500: cannot read 'my diary'".into() },
    ] {
        let answer = post(&loopback(services(refusing(error))), "/v1/chat/completions", hello()).await;
        assert!(answer.body.contains("my diary"), "who asked is told: {}", answer.body);
    }
    let unreadable = json!({"model": "m", "messages": "my diary"});
    let answer = post(&loopback(services(scripted(two_words()))), "/v1/chat/completions", unreadable).await;
    assert_eq!(answer.status, 400);
    let lines = log.lines();
    for told in ["request refused by the backend", "answer failed", "request refused "] {
        assert!(lines.iter().any(|line| line.contains(told)), "{told}: {lines:#?}");
    }
    assert!(!lines.iter().any(|line| line.contains("my diary")), "{lines:#?}");
}

#[tokio::test]
async fn bodies_that_are_no_json_object_are_refused() {
    let router = loopback(services(scripted(two_words())));
    for body in ["", "{", "[]", "5", "\u{0}", "{\"model\": \"m\",}"] {
        let answer = post(&router, "/v1/chat/completions", body).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["code"]),
            (400, &json!("invalid_json")),
            "{body:?}"
        );
    }
    assert_snapshot!(post(&router, "/v1/chat/completions", "{").await.shown());
}

#[tokio::test]
async fn an_unknown_model_is_not_found() {
    let answer = chat(two_words(), json!({"model": "nope"})).await;
    assert_snapshot!(answer.shown());
    let streamed = chat(two_words(), json!({"model": "nope", "stream": true})).await;
    assert_eq!(streamed.shown(), answer.shown(), "the stream has not begun, so the status is still to be had");
}

#[tokio::test]
async fn a_model_name_that_is_no_text_is_not_found() {
    let router = loopback(services(scripted(two_words())));
    for path in ["/v1/models/%FF", "/v1/models/a/%FF"] {
        let answer = crate::testing::get(&router, path).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["code"]),
            (404, &json!("model_not_found")),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_model_is_not_asked_for_what_it_cannot_do() {
    let backend = Scripted {
        models: vec![model("plain", &[ModelCapability::Completion]), model("vectors", &[ModelCapability::Embedding])],
        ..Scripted::default()
    };
    let router = loopback(services(backend));
    let picture = json!([{"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}}]);
    for (path, request, param) in [
        ("/v1/chat/completions", with(hello(), json!({"model": "plain", "tools": [weather_tool()]})), "tools"),
        (
            "/v1/chat/completions",
            json!({"model": "plain", "messages": [{"role": "user", "content": picture}]}),
            "messages",
        ),
        ("/v1/chat/completions", with(hello(), json!({"model": "vectors"})), "model"),
        ("/v1/completions", json!({"model": "vectors", "prompt": "a"}), "model"),
    ] {
        let answer = post(&router, path, &request).await;
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status.as_u16(), &error["code"], &error["param"]),
            (400, &json!("unsupported_parameter"), &json!(param)),
            "{request}"
        );
    }
}

#[tokio::test]
async fn whether_a_model_that_generates_text_makes_vectors_is_for_its_backend_to_say() {
    let over = |backend: Scripted| {
        let models = vec![model("plain", &[ModelCapability::Completion])];
        loopback(services(Scripted { models, ..backend }))
    };
    let request = json!({"model": "plain", "input": "a"});
    let able = over(Scripted { vectors: vec![vec![1.0, 0.0]], ..Scripted::default() });
    let answer = post(&able, "/v1/embeddings", &request).await;
    assert_eq!(answer.json()["data"][0]["embedding"], json!([1.0, 0.0]), "{}", answer.body);

    let refusal = BackendError::Unsupported { param: "model", message: "it does not make embeddings".into() };
    let unable = over(Scripted { refusal: Some(refusal), ..Scripted::default() });
    let answer = post(&unable, "/v1/embeddings", &request).await;
    let error = &answer.json()["error"];
    assert_eq!((answer.status.as_u16(), &error["param"]), (400, &json!("model")));
    assert_eq!(error["message"], "it does not make embeddings");
}

#[tokio::test]
async fn every_failure_of_a_backend_has_its_status_and_body() {
    let failures = [
        BackendError::ModelNotFound { model: "m".into() },
        BackendError::ContextExceeded { prompt_tokens: 9_000, context_tokens: 8_192 },
        BackendError::InvalidRequest { param: Some("stop"), message: "no".into() },
        BackendError::Unsupported { param: "tools", message: "no".into() },
        BackendError::Overloaded { retry_after: Duration::from_millis(1_500) },
        BackendError::OutOfMemory { message: "8 GB are needed, 1 GB is free".into() },
        BackendError::ModelUnusable { model: "m".into(), reason: "it is cut off".into() },
        BackendError::Unavailable { reason: "the engine is gone".into() },
        BackendError::Interrupted { reason: "the engine ended".into() },
        BackendError::DeadEnd { param: "tools", message: "no token is left".into() },
        BackendError::TimedOut { after: Duration::from_secs(5) },
    ];
    let mut shown = String::new();
    for failure in failures {
        let answer = post(&loopback(services(refusing(failure))), "/v1/chat/completions", hello()).await;
        let retry = answer.header("retry-after").map(|after| format!(" retry-after: {after}")).unwrap_or_default();
        shown += &format!("{}{retry} {}\n", answer.status.as_u16(), answer.body);
    }
    assert_snapshot!(shown);
}

#[tokio::test]
async fn an_error_after_the_first_token_ends_the_stream_with_an_event() {
    let broken = vec![text("Good"), Err(BackendError::Interrupted { reason: "the engine ended".into() })];
    assert_snapshot!(chat(broken.clone(), json!({"stream": true})).await.shown());
    assert_eq!(chat(broken, json!({})).await.status, 503, "a whole answer has not begun yet");
}

#[tokio::test]
async fn an_error_before_the_first_token_of_a_stream_is_a_status() {
    let broken = vec![Err(BackendError::ContextExceeded { prompt_tokens: 9, context_tokens: 8 })];
    let answer = chat(broken, json!({"stream": true})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!("messages")));
}

#[tokio::test]
async fn one_of_several_answers_that_fails_ends_them_all() {
    let broken = vec![text("Good"), Err(BackendError::Interrupted { reason: "the engine ended".into() })];
    let answer = chat(broken, json!({"stream": true, "n": 2})).await;
    assert_eq!(answer.body.matches("\"error\"").count(), 1);
    assert!(!answer.body.contains("[DONE]"));
}

async fn hanging(request: Value) -> Answer {
    let config = FakeConfig { fail: Some(FakeFailure::Hang), ..FakeConfig::default() };
    post(&loopback(fake(config)), "/v1/chat/completions", with(request, json!({"model": "fake"}))).await
}

#[tokio::test(start_paused = true)]
async fn a_model_that_never_begins_times_out() {
    let begun = tokio::time::Instant::now();
    assert_snapshot!(hanging(with(hello(), json!({"stream": true}))).await.shown());
    assert_eq!(begun.elapsed(), Duration::from_mins(5));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_stops_in_the_middle_times_out() {
    let begun = tokio::time::Instant::now();
    let answer = chat(vec![text("Good")], json!({"stream": true})).await;
    assert!(answer.body.ends_with("data: {\"error\":{\"message\":\"no answer within 120 s\",\"type\":\"server_error\",\"param\":null,\"code\":\"timeout\"}}\n\n"), "{}", answer.body);
    assert_eq!(begun.elapsed(), Duration::from_mins(2));
}

fn waits(times: usize) -> impl Iterator<Item = Result<ChatEvent, BackendError>> + Clone {
    std::iter::repeat_n(Ok(ChatEvent::Waiting {}), times)
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_waits_for_others_in_the_middle_is_whole() {
    // At both places the others take ten minutes.
    let events = waits(60).chain([text("Good")]).chain(waits(600)).chain([text(" day"), done(FinishReason::Stop)]);
    for stream in [false, true] {
        let backend = Scripted { gap: Duration::from_secs(1), ..scripted(events.clone().collect()) };
        let request = with(hello(), json!({"stream": stream}));
        let waited = post(&loopback(services(backend)), "/v1/chat/completions", &request).await;
        let at_once = chat(vec![text("Good"), text(" day"), done(FinishReason::Stop)], json!({"stream": stream})).await;
        assert_eq!(waited.shown(), at_once.shown());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_only_waits_for_others_is_told_of_much_to_do() {
    let backend = Scripted { gap: Duration::from_secs(1), endless: true, ..scripted(waits(1).collect()) };
    let router = loopback(services(backend));
    // As often as a backend may fail before nothing is sent to it any more.
    for _ in 0..4 {
        let begun = tokio::time::Instant::now();
        let answer = post(&router, "/v1/chat/completions", hello()).await;
        let told = (answer.status.as_u16(), answer.json()["error"]["code"].clone());
        assert_eq!(told, (429, json!("overloaded")), "{}", answer.body);
        assert!(answer.header("retry-after").is_some());
        assert_eq!(begun.elapsed(), Duration::from_mins(5));
    }
}

#[tokio::test(start_paused = true)]
async fn vectors_do_not_time_out_as_long_as_pieces_of_them_come() {
    let gap = Duration::from_secs(200);
    let backend = Scripted { gap, pieces: 2, vectors: vec![vec![1.0, 0.0]], ..scripted(Vec::new()) };
    let begun = tokio::time::Instant::now();
    let request = json!({"model": "m", "input": "x"});
    let answer = post(&loopback(services(backend)), "/v1/embeddings", request).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(begun.elapsed(), 3 * gap);
}

#[tokio::test(start_paused = true)]
async fn a_slow_model_that_keeps_writing_does_not_time_out() {
    let config = FakeConfig { tokens: Some(5), first_token_ms: 200_000, token_ms: 100_000, ..FakeConfig::default() };
    let request = with(hello(), json!({"model": "fake"}));
    let answer = post(&loopback(fake(config)), "/v1/chat/completions", request).await;
    assert_eq!(answer.json()["usage"]["completion_tokens"], 5);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_begins_after_others_has_the_time_of_a_first_token() {
    let config = FakeConfig { tokens: Some(1), first_token_ms: 200_000, ..FakeConfig::default() };
    let begun = tokio::time::Instant::now();
    // More than run at once.
    let request = json!({"model": "fake", "prompt": vec!["x"; 17]});
    let answer = post(&loopback(fake(config)), "/v1/completions", request).await;
    assert_eq!(answer.json()["choices"].as_array().map(Vec::len), Some(17), "{}", answer.body);
    assert_eq!(begun.elapsed(), Duration::from_secs(400), "the last one began when others had ended");
}

#[tokio::test]
async fn an_answer_without_text_is_an_empty_one() {
    let answer = chat(vec![done(FinishReason::Length)], json!({})).await;
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "");
}
