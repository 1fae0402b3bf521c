//! What reaches the backend of what a client sends.

use std::sync::Arc;

use bombus_core::chat::{
    ChatRequest, FinishReason, ImageSource, Part, Prompt, ResponseFormat, Role, Think, ToolChoice,
};
use bombus_core::model::ModelCapability::Completion;
use bombus_infer::{BackendError, NamedBackend};
use insta::assert_json_snapshot;
use serde_json::{Value, json};

use super::{hello, weather_tool, with};
use crate::testing::{Scripted, done, loopback, model, post, refusing, scripted, services, services_over, text};

/// Sends a request and returns what the backend was asked.
async fn asked(path: &str, request: Value) -> Vec<ChatRequest> {
    let backend = scripted(vec![text("x"), done(FinishReason::Stop)]);
    let seen = backend.seen.clone();
    let answer = post(&loopback(services(backend)), path, &request).await;
    assert_eq!(answer.status, 200, "{request}: {}", answer.body);
    let seen = seen.lock().unwrap();
    seen.clone()
}

async fn chat_asked(more: Value) -> ChatRequest {
    asked("/v1/chat/completions", with(hello(), more)).await.remove(0)
}

#[tokio::test]
async fn every_option_reaches_the_backend() {
    let request = chat_asked(json!({
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "ann", "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0=", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}},
            ]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
            ]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        "max_completion_tokens": 9, "max_tokens": 5, "seed": 42, "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125,
        "presence_penalty": 1, "frequency_penalty": -1, "repeat_penalty": 1.5, "repeat_last_n": 64,
        "logit_bias": {"9": 1, "3": -100}, "stop": ["\n", ""], "ignore_eos": true, "logprobs": true, "top_logprobs": 4,
        "tools": [weather_tool()], "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": true}},
        "user": "someone", "store": false, "metadata": {"a": "b"}, "service_tier": "flex", "parallel_tool_calls": false,
        "reasoning_effort": "low", "verbosity": "high", "prompt_cache_key": "k", "safety_identifier": "s", "unknown": [1],
    }))
    .await;
    assert_json_snapshot!(request);
}

#[tokio::test]
async fn nulls_are_as_good_as_nothing() {
    let request = chat_asked(json!({
        "max_tokens": null, "seed": null, "temperature": null, "stop": null, "n": null, "stream": null, "stream_options": null,
        "tools": null, "tool_choice": null, "response_format": null, "logit_bias": null, "logprobs": null, "top_logprobs": null,
    }))
    .await;
    let prompt = Prompt::Chat(vec![bombus_core::chat::Message::text(Role::User, "hello there")]);
    assert_eq!(request, ChatRequest::new("m", prompt));
}

#[tokio::test]
async fn whole_numbers_may_be_written_with_a_fraction_of_zero() {
    let request = chat_asked(json!({
        "max_tokens": 150.0, "n": 1.0, "seed": 7.0, "top_k": 40.0, "repeat_last_n": 64.0, "logprobs": true, "top_logprobs": 2.0,
    }))
    .await;
    let sampling = &request.sampling;
    assert_eq!((request.max_tokens, request.logprobs), (Some(150), Some(2)));
    assert_eq!((sampling.seed, sampling.top_k, sampling.repeat_last_n), (Some(7), Some(40), Some(64)));

    let requests = asked("/v1/completions", json!({"model": "m", "prompt": [1.0, 2], "max_tokens": 3.0})).await;
    assert_eq!((&requests[0].prompt, requests[0].max_tokens), (&Prompt::Tokens(vec![1, 2]), Some(3)));
    let requests = asked("/v1/completions", json!({"model": "m", "prompt": [[1.0]]})).await;
    assert_eq!(requests[0].prompt, Prompt::Tokens(vec![1]));
}

#[tokio::test]
async fn a_penalty_over_minus_one_tokens_looks_at_all_of_them() {
    assert_eq!(chat_asked(json!({"repeat_last_n": -1})).await.sampling.repeat_last_n, Some(65_536));
}

#[tokio::test]
async fn a_tool_that_says_nothing_has_an_empty_turn() {
    for turn in [
        json!({"role": "tool", "tool_call_id": "call_1", "content": null}),
        json!({"role": "tool", "tool_call_id": "call_1"}),
        json!({"role": "function", "name": "weather", "content": null}),
    ] {
        let request = chat_asked(json!({"messages": [{"role": "user", "content": "x"}, turn]})).await;
        let Prompt::Chat(messages) = request.prompt else { panic!("a chat was sent") };
        assert_eq!((messages[1].role, &messages[1].content), (Role::Tool, &Vec::new()));
    }
}

#[tokio::test]
async fn a_completion_without_a_prompt_begins_a_text() {
    for request in [json!({"model": "m"}), json!({"model": "m", "prompt": null}), json!({"model": "m", "prompt": ""})] {
        assert_eq!(asked("/v1/completions", request).await[0].prompt, Prompt::Raw(String::new()));
    }
}

#[tokio::test]
async fn a_completion_may_have_an_end_to_lead_to() {
    let requests = asked("/v1/completions", json!({"model": "m", "prompt": "a", "suffix": "c"})).await;
    assert_eq!(requests[0].suffix.as_deref(), Some("c"));
    let requests = asked("/v1/completions", json!({"model": "m", "prompt": [1], "suffix": ""})).await;
    assert_eq!(requests[0].suffix, None);
}

#[tokio::test]
async fn how_much_to_think_and_what_was_thought_before_are_understood() {
    for (effort, expected) in [("none", Think::Off), ("high", Think::Level("high".into()))] {
        assert_eq!(chat_asked(json!({"reasoning_effort": effort})).await.think, Some(expected));
    }
    let turns =
        json!([{"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}, {"role": "user", "content": "?"}]);
    let Prompt::Chat(messages) = chat_asked(json!({"messages": turns})).await.prompt else { panic!("a chat was sent") };
    assert_eq!(messages[0].thinking.as_deref(), Some("2 + 2"));
}

#[tokio::test]
async fn a_model_that_thinks_does_not_think_about_how_a_text_goes_on() {
    let request = json!({"model": "m", "prompt": "a"});
    assert_eq!(asked("/v1/completions", request.clone()).await[0].think, Some(Think::Off));

    // Nor does one that answers in place of a model that does not think.
    let failed = BackendError::Unavailable { reason: "no connection".into() };
    let plain = Scripted { models: vec![model("m", &[Completion])], ..refusing(failed) };
    let thinking = scripted(vec![text("x"), done(FinishReason::Stop)]);
    let seen = thinking.seen.clone();
    let named = |name: &str, backend: Scripted| NamedBackend::new(name, "openai", Arc::new(backend));
    let router = loopback(services_over(vec![named("plain", plain), named("thinking", thinking)]));
    let answer = post(&router, "/v1/completions", request).await;
    assert!(answer.header("x-bombus-route").unwrap().ends_with(";after plain"), "{}", answer.body);
    assert_eq!(seen.lock().unwrap()[0].think, Some(Think::Off));
}

#[tokio::test]
async fn a_completion_may_want_no_tokens() {
    let requests = asked("/v1/completions", json!({"model": "m", "prompt": "a", "max_tokens": 0})).await;
    assert_eq!(requests[0].max_tokens, Some(0));
}

#[tokio::test]
async fn several_answers_have_seeds_that_follow_each_other() {
    let requests = asked("/v1/chat/completions", with(hello(), json!({"n": 3, "seed": 4_294_967_295_i64}))).await;
    let mut seeds: Vec<_> = requests.iter().map(|request| request.sampling.seed).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [Some(0), Some(1), Some(u32::MAX)]);
}

#[tokio::test]
async fn a_seed_of_minus_one_is_none() {
    assert_eq!(chat_asked(json!({"seed": -1})).await.sampling.seed, None);
}

#[tokio::test]
async fn forms_of_answers_are_understood() {
    let strict = async |schema: Value| {
        let form = json!({"type": "json_schema", "json_schema": schema});
        chat_asked(json!({"response_format": form})).await.schema_label.strict
    };
    assert_eq!(strict(json!({"name": "x", "schema": {}})).await, Some(false), "the dialect's own default");
    assert_eq!(strict(json!({"name": "x", "schema": {}, "strict": true})).await, Some(true));
    for (form, expected) in [
        (json!({"type": "text"}), ResponseFormat::Text),
        (json!({"type": "json_object"}), ResponseFormat::JsonObject),
        (json!({"type": "json_schema", "json_schema": {"name": "any"}}), ResponseFormat::JsonObject),
    ] {
        assert_eq!(chat_asked(json!({"response_format": form})).await.response_format, expected);
    }
}

#[tokio::test]
async fn choices_of_tools_are_understood() {
    for (choice, expected) in [
        (json!("none"), ToolChoice::None),
        (json!("auto"), ToolChoice::Auto),
        (json!("required"), ToolChoice::Required),
    ] {
        assert_eq!(chat_asked(json!({"tools": [weather_tool()], "tool_choice": choice})).await.tool_choice, expected);
    }
}

#[tokio::test]
async fn tools_that_are_not_allowed_are_left_out() {
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let allowed = |mode: &str| json!({"mode": mode, "tools": [named("weather")]});
    for (mode, expected) in [("auto", ToolChoice::Auto), ("required", ToolChoice::Required)] {
        let choice = json!({"type": "allowed_tools", "allowed_tools": allowed(mode)});
        let request = chat_asked(json!({"tools": [named("time"), weather_tool()], "tool_choice": choice})).await;
        let names: Vec<_> = request.tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!((names, request.tool_choice), (vec!["weather"], expected));
    }
}

#[tokio::test]
async fn a_choice_of_tools_that_is_none_is_refused() {
    let function = json!({"name": "weather"});
    let allowed = json!({"mode": "auto", "tools": [{"function": function}]});
    for choice in [
        json!({"type": "tool", "function": function}),
        json!({"type": null, "function": function}),
        json!({"type": "function", "allowed_tools": allowed}),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
    ] {
        let router = loopback(services(scripted(vec![text("x"), done(FinishReason::Stop)])));
        let messages = json!([{"role": "user", "content": "x"}]);
        let body = json!({"model": "m", "messages": messages, "tools": [weather_tool()], "tool_choice": choice});
        let answer = post(&router, "/v1/chat/completions", body).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["param"]),
            (400, &json!("tool_choice")),
            "{choice}"
        );
    }
}

#[tokio::test]
async fn a_function_without_a_name_is_refused_though_it_is_not_allowed() {
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let choice = json!({"allowed_tools": {"mode": "auto", "tools": [named("weather")]}});
    let messages = json!([{"role": "user", "content": "x"}]);
    let tools = json!([weather_tool(), named("")]);
    let body = json!({"model": "m", "messages": messages, "tools": tools, "tool_choice": choice});
    let router = loopback(services(scripted(vec![text("x"), done(FinishReason::Stop)])));
    let answer = post(&router, "/v1/chat/completions", body).await;
    let param = json!("tools[1].function.name");
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &param));
}

#[tokio::test]
async fn pictures_are_handed_on_as_they_came() {
    let url = "data:image/png;base64,iVBORw0=";
    let content = json!([{"type": "image_url", "image_url": {"url": url}}]);
    let request = chat_asked(json!({"messages": [{"role": "user", "content": content}]})).await;
    let Prompt::Chat(messages) = request.prompt else { panic!("a chat was sent") };
    let expected = ImageSource::Data { media_type: "image/png".into(), base64: "iVBORw0=".into() };
    assert_eq!(messages[0].content, [Part::Image(expected.into())]);
}

#[tokio::test]
async fn completions_take_text_and_tokens() {
    for (prompt, expected) in [
        (json!("a"), vec![Prompt::Raw("a".into())]),
        (json!(["a", "b"]), vec![Prompt::Raw("a".into()), Prompt::Raw("b".into())]),
        (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
        (json!([[1], [2, 3]]), vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
    ] {
        let requests = asked("/v1/completions", json!({"model": "m", "prompt": prompt})).await;
        assert_eq!(requests.iter().map(|request| request.prompt.clone()).collect::<Vec<_>>(), expected);
        assert_eq!(requests[0].max_tokens, Some(16), "the dialect's own default");
    }
}

#[tokio::test]
async fn a_request_without_a_model_goes_to_the_default() {
    let backend = scripted(vec![text("x"), done(FinishReason::Stop)]);
    let mut services = services(backend);
    services.default_model = Some("m".into());
    let request = json!({"messages": [{"role": "user", "content": "x"}]});
    let answer = post(&loopback(services), "/v1/chat/completions", request).await;
    assert_eq!(answer.json()["model"], "m");
}
