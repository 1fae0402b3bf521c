use bombus_core::chat::{Delta, DialectOptions, EmbedInput, EmbedRequest, KeepAlive, Timings, Tool, Usage};
use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
use serde_json::Map;

use super::*;
use crate::{Health, LoadRequest, OllamaConfig, OllamaError};

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

#[tokio::test]
async fn models_are_described_whole_and_each_is_asked_about_once() {
    let upstream = server().await;
    upstream.on("GET /api/ps", loaded("small:latest", 4096));
    let backend = backend(&upstream);
    let expected = ModelInfo {
        name: name("small"),
        size_bytes: Some(98_000_000),
        sha256: Some("a".repeat(64)),
        modified_unix_s: 1_767_323_045,
        family: Some("llama".into()),
        parameters: Some(134_515_008),
        quantization: Some("Q4_1".into()),
        context_tokens: Some(8192),
        capabilities: vec![ModelCapability::Completion, ModelCapability::Tools],
        warm: true,
        continues: false,
    };
    assert_eq!(backend.models().await.unwrap(), std::slice::from_ref(&expected));
    assert_eq!(backend.model(&name("small:latest")).await.unwrap(), Some(expected));
    assert_eq!(requests(&upstream, "POST /api/show").len(), 1);

    let models = json!({"models": [listed("small:latest", "d9")]});
    upstream.on("GET /api/tags", Script::json(200, &models));
    upstream.on("GET /api/ps", Script::json(200, &json!({"models": []})));
    upstream.on("POST /api/show", show(&json!({"capabilities": ["embedding"], "modelfile": ""})));
    let changed = &backend.models().await.unwrap()[0];
    assert_eq!((changed.capabilities.as_slice(), changed.warm), (&[ModelCapability::Embedding][..], false));
    assert_eq!(requests(&upstream, "POST /api/show").len(), 2, "a model that changed is asked about anew");
}

#[tokio::test]
async fn a_model_that_cannot_be_described_is_listed_all_the_same() {
    let upstream = server().await;
    upstream.on("POST /api/show", Script::json(500, &json!({"error": "bad manifest"})));
    upstream.on("GET /api/ps", Script::json(500, &json!({"error": "no"})));
    let models = backend(&upstream).models().await.unwrap();
    assert_eq!((models[0].parameters, models[0].context_tokens, models[0].warm), (Some(134_520_000), None, false));
}

#[tokio::test]
async fn a_model_that_nothing_is_told_of_may_be_asked_for_everything() {
    use ModelCapability::{Completion, Insert, Tools, Vision};
    for described in [show(&json!({"capabilities": null})), Script::json(500, &json!({"error": "bad manifest"}))] {
        let upstream = server().await;
        upstream.on("POST /api/show", described);
        assert_eq!(backend(&upstream).models().await.unwrap()[0].capabilities, [Completion, Tools, Vision, Insert]);
    }
}

#[tokio::test]
async fn an_answer_ends_with_counts_and_times() {
    let upstream = server().await;
    upstream.on("POST /api/chat", answer(&["He", "llo"]));
    let events: Vec<_> = backend(&upstream).chat(ask("Hi")).await.unwrap().map(Result::unwrap).collect().await;
    let expected = ChatEvent::Done {
        finish: FinishReason::Stop,
        usage: Usage { prompt_tokens: 12, completion_tokens: 2, ..Usage::default() },
        timings: Timings { load_ms: 2.0, queue_ms: 0.0, prompt_ms: 3.0, generate_ms: 4.0 },
        tokens: Vec::new(),
    };
    assert_eq!((events.len(), events.last()), (3, Some(&expected)));
    let sent = requests(&upstream, "POST /api/chat")[0].json();
    assert_eq!((&sent["model"], &sent["stream"]), (&json!("small"), &json!(true)));
}

#[tokio::test]
async fn a_limit_that_is_reached_is_told() {
    let upstream = server().await;
    let mut limited = done();
    limited["done_reason"] = json!("length");
    upstream.on("POST /api/chat", Script::lines(&[said("a"), limited]));
    let outcome = run(&backend(&upstream), ask("Hi")).await;
    assert_eq!(outcome.finish, Some(FinishReason::Length));
    let none = run(&backend(&upstream), ChatRequest { max_tokens: Some(0), ..ask("Hi") }).await;
    assert_eq!(none, Outcome { text: String::new(), finish: Some(FinishReason::Length), error: None });
}

#[tokio::test]
async fn tool_calls_pass_whole() {
    let upstream = server().await;
    let call = json!({"function": {"index": 0, "name": "weather", "arguments": {"city": "Ulm"}}});
    let piece = json!({"message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": false});
    upstream.on("POST /api/chat", Script::lines(&[piece, done()]));
    let tool = Tool {
        name: "weather".into(),
        description: Some("Tells it".into()),
        parameters: json!({"type": "object"}),
        strict: None,
    };
    let request = ChatRequest { tools: vec![tool], ..ask("Weather?") };
    let events: Vec<_> = backend(&upstream).chat(request).await.unwrap().map(Result::unwrap).collect().await;
    let [ChatEvent::ToolCall(call), ChatEvent::Done { finish: FinishReason::ToolCalls, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!((call.name.as_deref(), call.arguments.as_str()), (Some("weather"), r#"{"city":"Ulm"}"#));
    assert!(call.id.as_ref().is_some_and(|id| id.len() > 10));
    let function = json!({"name": "weather", "parameters": {"type": "object"}, "description": "Tells it"});
    assert_eq!(
        requests(&upstream, "POST /api/chat")[0].json()["tools"],
        json!([{"type": "function", "function": function}])
    );
}

#[tokio::test]
async fn thoughts_come_apart_from_the_answer() {
    let upstream = server().await;
    let thought = json!({"message": {"role": "assistant", "content": "", "thinking": "Hm"}, "done": false});
    upstream.on("POST /api/chat", Script::lines(&[thought, said("Hi"), done()]));
    let events: Vec<_> = backend(&upstream).chat(ask("Hi")).await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(events[0], ChatEvent::Thinking(Delta::text("Hm")));
    assert!(matches!(&events[1], ChatEvent::Delta(delta) if delta.text == "Hi"));
}

#[tokio::test]
async fn log_probabilities_are_told() {
    let upstream = server().await;
    let mut piece = said("Hi");
    piece["logprobs"] = json!([{"token": "Hi", "logprob": -0.5}]);
    upstream.on("POST /api/chat", Script::lines(&[piece, done()]));
    let request = ChatRequest { logprobs: Some(0), ..ask("Hi") };
    let events: Vec<_> = backend(&upstream).chat(request).await.unwrap().map(Result::unwrap).collect().await;
    assert!(matches!(&events[0], ChatEvent::Delta(delta) if delta.logprobs.len() == 1), "{events:?}");
}

#[tokio::test]
async fn the_tokens_of_a_generation_are_told_where_they_are_asked_for() {
    let upstream = server().await;
    let last =
        json!({"response": "", "done": true, "done_reason": "stop", "context": [5, 6, 7], "prompt_eval_count": 2});
    upstream.on("POST /api/generate", Script::lines(&[json!({"response": "Hi", "done": false}), last]));
    let request = ChatRequest { return_tokens: true, earlier_tokens: vec![1], ..ask("Hi") };
    let events: Vec<_> = backend(&upstream).chat(request).await.unwrap().map(Result::unwrap).collect().await;
    assert!(matches!(events.last(), Some(ChatEvent::Done { tokens, .. }) if tokens == &[5, 6, 7]));
    assert_eq!(requests(&upstream, "POST /api/generate")[0].json()["context"], json!([1]));
}

#[tokio::test]
async fn an_unknown_model_is_not_found_before_the_stream_begins() {
    let upstream = server().await;
    upstream.on("POST /api/chat", Script::json(404, &json!({"error": "model 'nope' not found"})));
    let missing = BackendError::ModelNotFound { model: "nope".into() };
    let backend = backend(&upstream);
    let request = ChatRequest { model: "nope".into(), ..ask("Hi") };
    assert_eq!(backend.chat(request).await.err(), Some(missing));
    assert!(matches!(
        backend.chat(ChatRequest { model: "../x".into(), ..ask("Hi") }).await,
        Err(BackendError::ModelNotFound { .. })
    ));
    upstream.on("POST /api/show", Script::json(404, &json!({"error": "model 'nope' not found"})));
    assert_eq!(backend.details(&name("nope")).await.unwrap(), None);
}

#[tokio::test]
async fn vectors_that_are_missing_are_no_answer() {
    let upstream = server().await;
    upstream.on("POST /api/embed", Script::json(200, &json!({"embeddings": [[1.0]]})));
    let inputs = vec![EmbedInput::Text("a".into()), EmbedInput::Text("b".into())];
    let error = backend(&upstream).embed(EmbedRequest::new("small", inputs)).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn vectors_are_made_in_the_context_that_is_asked_for_and_the_time_of_loading_is_told() {
    let upstream = server().await;
    let made = json!({"embeddings": [[1.0]], "load_duration": 2_500_000, "prompt_eval_count": 3});
    upstream.on("POST /api/embed", Script::json(200, &made));
    let inputs = vec![EmbedInput::Text("a".into())];
    let request = EmbedRequest { context_tokens: Some(512), ..EmbedRequest::new("small", inputs) };
    let response = backend(&upstream).embed(request).await.unwrap();
    assert_eq!((response.load_ms, response.prompt_tokens), (2.5, 3));
    assert_eq!(requests(&upstream, "POST /api/embed")[0].json()["options"], json!({"num_ctx": 512}));
}

#[tokio::test]
async fn details_and_what_is_in_memory_are_told() {
    let upstream = server().await;
    upstream.on("GET /api/ps", loaded("small:latest", 4096));
    let with = json!({"license": "MIT", "template": "{{ .Prompt }}", "system": "Be brief", "parameters": "stop   \"x\"",
        "messages": [{"role": "user", "content": "Hi"}], "details": {"parent_model": "base"}});
    upstream.on("POST /api/show", show(&with));
    let backend = backend(&upstream);
    let details = backend.details(&name("small")).await.unwrap().unwrap();
    assert_eq!((details.parent, details.licenses.as_slice()), (Some(name("base")), &["MIT".to_owned()][..]));
    assert_eq!((details.template.as_str(), details.system.as_str()), ("{{ .Prompt }}", "Be brief"));
    assert_eq!(details.messages, [Message::text(Role::User, "Hi")]);
    assert_eq!(json!(details.parameters), json!({"stop": ["x"]}));
    assert_eq!(details.metadata["llama.context_length"], json!(8192));

    let running = backend.running().await.unwrap();
    assert_eq!((running[0].memory_bytes, running[0].gpu_bytes, running[0].context_tokens), (200, 50, 4096));
    assert_eq!((running[0].info.size_bytes, running[0].info.warm), (Some(98_000_000), true));
    assert_eq!(running[0].expires_unix_s, None, "three hundred years are for ever");
}

#[tokio::test]
async fn a_model_is_loaded_and_unloaded_by_a_request_without_a_prompt() {
    let upstream = server().await;
    upstream.on("POST /api/generate", Script::json(200, &json!({"done": true, "done_reason": "load"})));
    upstream.on("POST /api/embed", Script::json(200, &json!({"embeddings": []})));
    let backend = backend(&upstream);
    let minute = LoadRequest { keep_alive: Some(KeepAlive::Seconds(60)), ..LoadRequest::new("small") };
    backend.load(minute).await.unwrap();
    backend.load(LoadRequest::new("small")).await.unwrap();
    backend.unload("small").await.unwrap();
    let sent: Vec<_> = requests(&upstream, "POST /api/generate").iter().map(Received::json).collect();
    let keep_alive: Vec<_> = sent.iter().map(|request| &request["keep_alive"]).collect();
    assert_eq!(keep_alive, [&json!(60), &Value::Null, &json!(0)]);

    let upstream = server().await;
    upstream.on("POST /api/show", show(&json!({"capabilities": ["embedding"]})));
    upstream.on("POST /api/embed", Script::json(200, &json!({"embeddings": []})));
    let forever = LoadRequest { keep_alive: Some(KeepAlive::Forever), ..LoadRequest::new("small") };
    super::backend(&upstream).load(forever).await.unwrap();
    let sent = requests(&upstream, "POST /api/embed")[0].json();
    assert_eq!((&sent["input"], &sent["keep_alive"]), (&json!([]), &json!(-1)));
}

#[tokio::test]
async fn a_model_is_loaded_with_the_options_and_the_context_of_the_chats_that_follow() {
    let dialect =
        || DialectOptions { ollama: Map::from_iter([("num_gpu".to_owned(), json!(3))]), ..DialectOptions::default() };
    for (capabilities, line) in
        [(json!(["completion"]), "POST /api/generate"), (json!(["embedding"]), "POST /api/embed")]
    {
        let upstream = server().await;
        upstream.on("POST /api/show", show(&json!({ "capabilities": capabilities })));
        upstream.on(line, Script::json(200, &json!({"done": true, "embeddings": []})));
        let asked = LoadRequest { context_tokens: Some(8000), dialect: dialect(), ..LoadRequest::new("small") };
        backend(&upstream).load(asked).await.unwrap();
        assert_eq!(requests(&upstream, line)[0].json()["options"], json!({"num_ctx": 8000, "num_gpu": 3}), "{line}");
    }

    let upstream = server().await;
    upstream.on("POST /api/generate", Script::json(200, &json!({"done": true, "done_reason": "load"})));
    upstream.on("POST /api/chat", answer(&["a"]));
    let backend = backend(&upstream);
    backend.load(LoadRequest { context_tokens: Some(8192), ..LoadRequest::new("small") }).await.unwrap();
    upstream.on("GET /api/ps", loaded("small:latest", 8192));
    run(&backend, ask("Hi")).await;
    backend.load(LoadRequest::new("small")).await.unwrap();
    let contexts = |line| requests(&upstream, line).iter().map(|sent| sent.json()["options"].clone()).collect();
    let (loads, chats): (Vec<_>, Vec<_>) = (contexts("POST /api/generate"), contexts("POST /api/chat"));
    assert_eq!(loads, [json!({"num_ctx": 8192}), json!({"num_ctx": 8192})]);
    assert_eq!(chats, [json!({"num_ctx": 8192})], "a context at the model's limit is kept, since it was asked for");
}

#[tokio::test]
async fn a_backend_is_made_of_its_configuration() {
    let upstream = server().await;
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    std::fs::write(&key, "secret\n").unwrap();
    let config: OllamaConfig = serde_json::from_value(json!({
        "url": upstream.url(), "api_key_file": key, "headers": {"x-team": "blue"}, "timeout_ms": 5000, "retries": 0,
    }))
    .unwrap();
    let backend = OllamaBackend::new("far", config).unwrap();
    assert_eq!(backend.health().await, Health::Ready);
    let request = &upstream.requests()[0];
    assert_eq!((request.header("authorization"), request.header("x-team")), (Some("Bearer secret"), Some("blue")));
    assert_eq!(backend.client().retry(), (0, Duration::from_secs(1)));
    assert_eq!(OllamaConfig::default().url, OllamaClient::builder().build().unwrap().url());

    assert!(serde_json::from_value::<OllamaConfig>(json!({"uri": "http://a"})).is_err());
    let no_key = OllamaConfig { api_key_file: Some(directory.path().join("gone")), ..OllamaConfig::default() };
    assert!(matches!(OllamaBackend::new("far", no_key).err(), Some(OllamaError::Config { .. })));
}
