use std::time::Instant;

use super::*;
use crate::OllamaError;
use crate::ollama::wire::{ChatRequest as WireChat, EmbedRequest, GenerateRequest};

fn prompt(text: &str) -> GenerateRequest {
    GenerateRequest { model: "small".into(), prompt: text.into(), ..GenerateRequest::default() }
}

#[test]
fn a_client_is_built_with_defaults() {
    let client = OllamaClient::builder().build().unwrap();
    assert_eq!(client.url(), "http://127.0.0.1:11434");
    assert_eq!((client.timeout(), client.retry()), (Duration::from_secs(120), (3, Duration::from_secs(1))));
}

#[test]
fn an_address_is_built_of_host_and_port_or_given_whole() {
    let url = |builder: OllamaClientBuilder| builder.build().map(|client| client.url().to_owned());
    assert_eq!(url(OllamaClient::builder().host("gpu.lan").port(80)).unwrap(), "http://gpu.lan");
    assert_eq!(url(OllamaClient::builder().host("fe80::1").port(1)).unwrap(), "http://[fe80::1]:1");
    assert_eq!(url(OllamaClient::builder().url("https://a/ollama/")).unwrap(), "https://a/ollama");
    assert!(matches!(url(OllamaClient::builder().url("gpu.lan:1")), Err(OllamaError::Config { .. })));
    assert!(matches!(url(OllamaClient::builder().header("a b", "c")), Err(OllamaError::Config { .. })));
}

#[tokio::test]
async fn a_prompt_is_answered() {
    let upstream = server().await;
    let answer = json!({"model": "small", "response": "Hello", "done": true, "done_reason": "stop", "context": [1, 2], "eval_count": 1});
    upstream.on("POST /api/generate", Script::json(200, &answer));
    let answer = patient(&upstream).api_key("k").build().unwrap().generate(&prompt("Hi")).await.unwrap();
    assert_eq!((answer.response.as_str(), answer.context.as_slice()), ("Hello", &[1, 2][..]));
    let sent = &upstream.requests()[0];
    assert_eq!(sent.json(), json!({"model": "small", "prompt": "Hi", "options": {}, "stream": false}));
    assert_eq!(sent.header("authorization"), Some("Bearer k"));
}

#[tokio::test]
async fn a_server_that_comes_back_is_found_by_the_next_try() {
    let upstream = server().await;
    upstream.on("POST /api/generate", Script::json(200, &json!({"response": "Hello", "done": true})));
    upstream.stop();
    let client = patient(&upstream).retry(8, Duration::from_millis(20)).build().unwrap();
    let request = prompt("Hi");
    let (answer, ()) = tokio::join!(client.generate(&request), async { upstream.restart().await.unwrap() });
    assert_eq!(answer.unwrap().response, "Hello");
}

#[tokio::test]
async fn a_failing_server_is_tried_again_so_often_and_a_refusal_is_not() {
    let upstream = server().await;
    let delay = Duration::from_millis(20);
    let client = patient(&upstream).retry(2, delay).build().unwrap();
    upstream.on("POST /api/generate", Script::json(500, &json!({"error": "the runner stopped"})));
    let begun = Instant::now();
    let failed = client.generate(&prompt("Hi")).await.unwrap_err();
    assert!(matches!(&failed, OllamaError::Refused { status: 500, message, .. } if message == "the runner stopped"));
    assert_eq!(upstream.requests().len(), 3);
    assert!(begun.elapsed() >= delay * 3, "the second wait is twice as long as the first");

    upstream.once("POST /api/generate", Script::json(503, &json!({"error": "busy"})));
    upstream.once("POST /api/generate", Script::json(200, &json!({"response": "now", "done": true})));
    assert_eq!(client.generate(&prompt("Hi")).await.unwrap().response, "now");

    let before = upstream.requests().len();
    upstream.on("POST /api/generate", Script::json(400, &json!({"error": "no"})));
    assert!(matches!(client.generate(&prompt("Hi")).await, Err(OllamaError::Refused { status: 400, .. })));
    assert_eq!(upstream.requests().len(), before + 1);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_after_the_timeout() {
    let upstream = server().await;
    upstream.on("POST /api/generate", Script::hang());
    let client = patient(&upstream).timeout(IMPATIENCE).build().unwrap();
    assert_eq!(client.generate(&prompt("Hi")).await, Err(OllamaError::TimedOut { after: IMPATIENCE }));
    assert_eq!(requests(&upstream, "POST /api/generate").len(), 1, "a hanging server is not asked again");
    upstream.abandoned().await;
}

#[tokio::test]
async fn models_are_listed_and_the_latest_needs_no_tag() {
    let upstream = server().await;
    let client = patient(&upstream).build().unwrap();
    let models = client.list_models().await.unwrap();
    assert_eq!((models[0].name.as_str(), models[0].size), ("small:latest", 98_000_000));
    for (name, there) in [("small", true), ("small:latest", true), ("small:135m", false), ("other", false), ("", false)]
    {
        assert_eq!(client.has_model(name).await.unwrap(), there, "{name:?}");
    }
    upstream.on("GET /api/tags", Script::json(200, &json!({"models": null})));
    assert_eq!(client.list_models().await.unwrap(), []);
}

#[tokio::test]
async fn a_server_that_is_down_is_reported_unavailable() {
    let upstream = server().await;
    let client = patient(&upstream).build().unwrap();
    assert!(client.is_available().await);
    upstream.on("GET /", Script::text(502, "bad gateway"));
    assert!(!client.is_available().await);
    let away = OllamaClient::builder().url(Upstream::refusing().await.unwrap()).build().unwrap();
    assert!(!away.is_available().await);
}

#[tokio::test]
async fn an_unknown_model_is_an_error_of_its_own() {
    let upstream = server().await;
    let client = patient(&upstream).build().unwrap();
    let refusal = Script::json(404, &json!({"error": "model 'nope' not found"}));
    for line in ["POST /api/generate", "POST /api/chat", "POST /api/embed", "POST /api/show"] {
        upstream.on(line, refusal.clone());
    }
    let missing = OllamaError::ModelNotFound { model: "nope".into() };
    let generate = GenerateRequest { model: "nope".into(), ..prompt("Hi") };
    assert_eq!(client.generate(&generate).await.unwrap_err(), missing);
    assert_eq!(client.generate_stream(&generate).await.err(), Some(missing.clone()));
    let chat = WireChat { model: "nope".into(), ..WireChat::default() };
    assert_eq!(client.chat(&chat).await.unwrap_err(), missing);
    let embed = EmbedRequest { model: "nope".into(), ..EmbedRequest::default() };
    assert_eq!(client.embed(&embed).await.unwrap_err(), missing);
    assert_eq!(client.show("nope").await.unwrap_err(), missing);
}

#[tokio::test]
async fn conversations_vectors_versions_and_what_is_loaded_can_be_asked_for() {
    let upstream = server().await;
    let client = patient(&upstream).build().unwrap();
    upstream.on("POST /api/chat", Script::json(200, &done()));
    let chat = WireChat { model: "small".into(), ..WireChat::default() };
    assert_eq!(client.chat(&chat).await.unwrap().eval_count, 2);
    upstream.on("POST /api/embed", Script::json(200, &json!({"embeddings": [[1.0, 0.0]], "prompt_eval_count": 3})));
    let embed = EmbedRequest { model: "small".into(), input: vec!["a".into()], ..EmbedRequest::default() };
    assert_eq!(client.embed(&embed).await.unwrap().embeddings, [[1.0, 0.0]]);
    assert_eq!(client.version().await.unwrap(), "0.24.0");
    upstream.on("GET /api/ps", loaded("small:latest", 4096));
    assert_eq!(client.ps().await.unwrap()[0].context_length, 4096);
}

#[tokio::test]
async fn every_request_names_this_node() {
    let upstream = server().await;
    let client = patient(&upstream).retry(0, Duration::ZERO).header("via", "1.1 elsewhere").build().unwrap();
    client.check().await.unwrap();
    client.list_models().await.unwrap();
    client.ps().await.unwrap();
    client.show("small").await.unwrap();
    upstream.on("POST /api/chat", answer(&["a"]));
    let chat = WireChat { model: "small".into(), ..WireChat::default() };
    let pieces: Vec<_> = client.chat_stream(&chat).await.unwrap().collect().await;
    assert!(pieces.iter().all(Result::is_ok), "{pieces:?}");
    upstream.on("DELETE /api/delete", Script::json(200, &json!({})));
    assert!(client.delete("small").await.unwrap());
    upstream.on("POST /api/blobs/sha256:00", Script::text(201, "made"));
    client.put_blob("00", futures::stream::empty().boxed()).await.unwrap();
    let sent = upstream.requests();
    assert_eq!(sent.len(), 7);
    for request in sent {
        let via = request.header("via").unwrap();
        assert!(via.starts_with("1.1 bombus-") && !via.contains(','), "{}: {via}", request.line);
    }
}

#[tokio::test]
async fn one_connection_serves_many_streams() {
    let upstream = server().await;
    let client = patient(&upstream).build().unwrap();
    upstream.on("POST /api/chat", answer(&["a", "b"]));
    for _ in 0..3 {
        let chat = WireChat { model: "small".into(), ..WireChat::default() };
        let pieces: Vec<_> = client.chat_stream(&chat).await.unwrap().collect().await;
        assert!(pieces.len() == 3 && pieces.iter().all(Result::is_ok), "{pieces:?}");
    }
    assert_eq!(upstream.connections(), 1);
}
