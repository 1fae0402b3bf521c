//! The dialect over several backends, and what is told about who answered.

use std::sync::Arc;

use bombus_core::chat::{ChatEvent, Delta, FinishReason};
use bombus_core::model::ModelCapability::{Completion, Embedding, Tools};
use bombus_core::model::ModelInfo;
use bombus_infer::fake::{FakeBackend, FakeConfig};
use bombus_infer::{BackendError, BackendOptions, NamedBackend};
use insta::assert_snapshot;
use serde_json::json;

use super::{chat, hello, two_words, weather_tool, with};
use crate::testing::{Scripted, done, get, loopback, model, post, refusing, scripted, services_over, text, token};

fn named(name: &str, backend: Scripted) -> NamedBackend {
    NamedBackend::new(name, "openai", Arc::new(backend))
}

fn down() -> BackendError {
    BackendError::Unavailable { reason: "connection refused".into() }
}

#[tokio::test]
async fn the_next_backend_answers_and_the_header_says_why() {
    let router = loopback(services_over(vec![named("a", refusing(down())), named("b", scripted(two_words()))]));
    for stream in [false, true] {
        let answer = post(&router, "/v1/chat/completions", with(hello(), json!({"stream": stream}))).await;
        let route = answer.header("x-bombus-route").unwrap();
        assert!(answer.status == 200 && route.ends_with(";m:latest;b;after a"), "{route}");
    }
    let metrics = get(&router, "/metrics").await.body;
    assert!(metrics.contains("bombus_completion_tokens_total{model=\"m:latest\",backend=\"b\"} 6"), "{metrics}");
}

#[tokio::test]
async fn an_answer_that_has_begun_breaks_off() {
    let broken = scripted(vec![text("Good"), Err(down())]);
    let router = loopback(services_over(vec![named("a", broken), named("b", scripted(two_words()))]));
    let answer = post(&router, "/v1/chat/completions", with(hello(), json!({"stream": true}))).await;
    assert!(answer.body.contains("connection refused") && !answer.body.contains("[DONE]"), "{}", answer.body);
}

#[tokio::test]
async fn tools_go_to_the_backend_that_knows_them() {
    let without = Scripted { models: vec![model("m", &[Completion])], ..scripted(two_words()) };
    let with_tools = Scripted { models: vec![model("m", &[Completion, Tools])], ..scripted(two_words()) };
    let router = loopback(services_over(vec![named("plain", without), named("tools", with_tools)]));
    for (more, backend) in [(json!({}), ";plain;"), (json!({"tools": [weather_tool()]}), ";tools;")] {
        let answer = post(&router, "/v1/chat/completions", with(hello(), more)).await;
        assert!(answer.header("x-bombus-route").unwrap().contains(backend));
    }
}

#[tokio::test]
async fn several_answers_may_come_from_several_backends() {
    let options = BackendOptions { max_concurrent: Some(1), ..BackendOptions::default() };
    let backends =
        ["a", "b"].map(|name| NamedBackend { options: options.clone(), ..named(name, scripted(two_words())) });
    let router = loopback(services_over(backends.into()));
    let answer = post(&router, "/v1/chat/completions", with(hello(), json!({"n": 5}))).await;
    let choices = answer.json()["choices"].as_array().cloned().unwrap();
    assert!(choices.len() == 5 && choices.iter().all(|choice| choice["message"]["content"] == "Good day"));
}

#[tokio::test]
async fn an_alias_is_a_model_like_others() {
    let backend = scripted(two_words());
    let seen = backend.seen.clone();
    let aliases = [("best".to_owned(), "m".to_owned())].into();
    let options = BackendOptions { aliases, ..BackendOptions::default() };
    let router = loopback(services_over(vec![NamedBackend { options, ..named("a", backend) }]));
    assert_eq!(get(&router, "/v1/models/best").await.json()["id"], "best:latest");
    let answer = post(&router, "/v1/chat/completions", with(hello(), json!({"model": "best"}))).await;
    assert_eq!(answer.json()["model"], "best", "clients find the name that they sent");
    assert!(answer.header("x-bombus-route").unwrap().ends_with(";m:latest;a;only"));
    assert_eq!(seen.lock().unwrap()[0].model, "m");
}

#[tokio::test]
async fn a_model_that_several_backends_have_is_listed_once() {
    let both = |own: &str| Scripted { models: vec![model("m", &[Completion]), model(own, &[])], ..Scripted::default() };
    let router = loopback(services_over(vec![named("a", both("x")), named("b", both("y"))]));
    let list = get(&router, "/v1/models").await.json();
    let listed: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|model| (&model["id"], &model["owned_by"])).collect();
    let pair = |id, owner| (json!(id), json!(owner));
    let expected = [pair("m:latest", "a"), pair("x:latest", "a"), pair("y:latest", "b")];
    assert!(listed.into_iter().eq(expected.iter().map(|(id, owner)| (id, owner))), "{list}");
}

#[tokio::test]
async fn vectors_come_from_the_next_backend_and_as_short_as_they_are_wanted() {
    let fake = NamedBackend::new("b", "fake", Arc::new(FakeBackend::new(FakeConfig::default())));
    let models = vec![ModelInfo { warm: true, ..model("fake", &[Embedding]) }];
    let down = Scripted { models, ..refusing(down()) };
    let router = loopback(services_over(vec![named("a", down), fake]));
    let answer = post(&router, "/v1/embeddings", json!({"model": "fake", "input": "a", "dimensions": 2})).await;
    assert!(answer.header("x-bombus-route").unwrap().ends_with(";b;after a"));
    let vector: Vec<f32> = serde_json::from_value(answer.json()["data"][0]["embedding"].clone()).unwrap();
    assert!(vector.len() == 2 && (vector.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5);
}

fn thoughts() -> Vec<Result<ChatEvent, BackendError>> {
    let thought = |text: &str| Ok(ChatEvent::Thinking(Delta::text(text)));
    vec![thought("2 + 2"), thought(" is 4"), token("4", b"4"), done(FinishReason::Stop)]
}

#[tokio::test]
async fn what_a_model_thinks_stands_beside_what_it_says() {
    assert_snapshot!("thoughts_whole", chat(thoughts(), json!({})).await.shown());
    assert_snapshot!("thoughts_stream", chat(thoughts(), json!({"stream": true})).await.shown());
}

#[tokio::test]
async fn a_prompt_that_was_cut_is_told() {
    let cut = Ok(ChatEvent::Truncated { messages: 2, prompt_tokens: 4_096 });
    for more in [json!({}), json!({"stream": true}), json!({"n": 2})] {
        let events = [vec![cut.clone()], two_words()].concat();
        let answer = chat(events, more).await;
        assert_eq!(answer.header("x-bombus-truncated"), Some("messages=2;prompt_tokens=4096"));
    }
}
