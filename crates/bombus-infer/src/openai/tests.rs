mod faults;
mod requests;
mod resume;
mod streams;
mod window;

use bombus_core::chat::{EmbedInput, Message, Role};
use bombus_core::model::ModelCapability;
use bombus_testkit::upstream::{Script, Upstream};
use futures::TryStreamExt;
use serde_json::{Value, json};

use super::*;

const CHAT: &str = "POST /v1/chat/completions";
const COMPLETIONS: &str = "POST /v1/completions";

fn config(url: impl Into<String>) -> OpenAiConfig {
    OpenAiConfig { url: url.into(), models: vec!["m".to_owned()], timeout_ms: 20_000, ..OpenAiConfig::default() }
}

fn backend(config: OpenAiConfig) -> OpenAiBackend {
    OpenAiBackend::new("far", config).unwrap()
}

fn ask(text: &str) -> ChatRequest {
    ChatRequest::new("m", Prompt::Chat(vec![Message::text(Role::User, text)]))
}

fn said(text: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
}

fn ended(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

async fn events(backend: &OpenAiBackend, request: ChatRequest) -> Result<Vec<ChatEvent>, BackendError> {
    backend.chat(request).await?.try_collect().await
}

fn text_of(events: &[ChatEvent]) -> String {
    let texts = events.iter().filter_map(|event| match event {
        ChatEvent::Delta(delta) => Some(delta.text.as_str()),
        _ => None,
    });
    texts.collect()
}

#[test]
fn an_address_may_have_its_version_or_not() {
    let base = |url: &str| api_base(base_url(url).unwrap()).to_string();
    assert_eq!(base("http://a:1"), "http://a:1/v1/");
    assert_eq!(base("http://a:1/v1/"), "http://a:1/v1/");
    assert_eq!(base("http://a/proxy"), "http://a/proxy/v1/");
    assert_eq!(base("https://a/openai/v1"), "https://a/openai/v1/");
    assert_eq!(base("https://a/v1beta/openai"), "https://a/v1beta/openai/");
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let refused = |config: OpenAiConfig| OpenAiBackend::new("far", config).err().unwrap().to_string();
    let variable = "BOMBUS_TEST_KEY_THAT_NOBODY_SETS".to_owned();
    let error = refused(OpenAiConfig { api_key_env: Some(variable.clone()), ..config("http://a") });
    assert!(error.contains("'far'") && error.contains(&variable), "{error}");
    assert!(refused(config("localhost:8080")).contains("`url`"));
    assert!(refused(OpenAiConfig { models: vec![String::new()], ..config("http://a") }).contains("`models`"));
    assert!(refused(OpenAiConfig { timeout_ms: 0, ..config("http://a") }).contains("`timeout_ms`"));
}

#[tokio::test]
async fn the_key_and_the_headers_go_with_every_request() {
    let upstream = Upstream::start().await.unwrap();
    upstream.on("GET /v1/models", Script::json(200, &json!({"data": []})));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key");
    std::fs::write(&file, "sk-1\n").unwrap();
    let headers = BTreeMap::from([("X-Team".to_owned(), "bees".to_owned())]);
    let config = OpenAiConfig { api_key_file: Some(file), headers, models: Vec::new(), ..config(upstream.url()) };
    assert_eq!(backend(config).models().await.unwrap(), []);
    let request = &upstream.requests()[0];
    assert_eq!(request.header("authorization"), Some("Bearer sk-1"));
    assert_eq!(request.header("x-team"), Some("bees"));
}

#[tokio::test]
async fn listed_models_are_asked_for_by_the_ids_that_the_server_writes() {
    let upstream = Upstream::start().await.unwrap();
    let listing = json!({"object": "list", "data": [
        {"id": "/models/smol.gguf", "object": "model", "created": 7, "owned_by": "me"},
        {"id": "org/Big", "max_model_len": 4096},
        {"id": "text-embedding-3-small"},
        {"id": "not a name"},
    ]});
    upstream.on("GET /v1/models", Script::json(200, &listing));
    upstream.on(CHAT, Script::events(&[said("x"), ended("stop")]).done());
    let backend = backend(OpenAiConfig { models: Vec::new(), ..config(upstream.url()) });

    for (asked, id) in [("smol.gguf", "/models/smol.gguf"), ("org/Big:latest", "org/Big")] {
        events(&backend, ChatRequest { model: asked.to_owned(), ..ask("x") }).await.unwrap();
        assert_eq!(upstream.requests().last().unwrap().json()["model"], id);
    }
    let lists = |upstream: &Upstream| upstream.requests().iter().filter(|r| r.line.starts_with("GET")).count();
    assert_eq!(lists(&upstream), 1, "the list is kept");

    let models = backend.models().await.unwrap();
    let names: Vec<_> = models.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["smol.gguf:latest", "org/Big:latest", "text-embedding-3-small:latest"]);
    assert_eq!((models[0].modified_unix_s, models[1].context_tokens), (7, Some(4096)));
    assert_eq!(models[2].capabilities, [ModelCapability::Embedding]);

    let error = events(&backend, ChatRequest { model: "nope".to_owned(), ..ask("x") }).await.unwrap_err();
    assert_eq!(error, BackendError::ModelNotFound { model: "nope".to_owned() });
}

#[tokio::test]
async fn an_entry_with_more_or_other_facts_hides_no_model() {
    let upstream = Upstream::start().await.unwrap();
    let listing = json!({"data": [
        {"id": "both", "max_model_len": 4096, "context_length": 8192, "context_window": null},
        {"id": "words", "owned_by": 7, "max_model_len": "long", "context_window": 2048, "architecture": "llama"},
        {"id": "switches", "supported_parameters": {"tools": true}, "architecture": {"input_modalities": "text"}},
        {"id": "twice", "meta": {"n_params": 5, "parameters": 6, "size": 7, "size_bytes": 8}},
        {"id": 7},
        "no entry",
        {"id": "plain", "supported_parameters": ["seed"], "architecture": {"input_modalities": ["text"]}},
    ]});
    upstream.on("GET /v1/models", Script::json(200, &listing));
    let backend = backend(OpenAiConfig { models: Vec::new(), ..config(upstream.url()) });
    let models = backend.models().await.unwrap();
    let names: Vec<_> = models.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["both:latest", "words:latest", "switches:latest", "twice:latest", "plain:latest"]);
    assert_eq!((models[0].context_tokens, models[1].context_tokens), (Some(4096), Some(2048)));
    assert_eq!((models[3].parameters, models[3].size_bytes), (Some(5), Some(7)));
    let can =
        |info: &ModelInfo| [ModelCapability::Tools, ModelCapability::Vision].map(|it| info.capabilities.contains(&it));
    assert_eq!((can(&models[2]), can(&models[4])), ([true; 2], [false; 2]));
}

#[tokio::test]
async fn llama_servers_properties_complete_the_picture() {
    let upstream = Upstream::start().await.unwrap();
    let meta = json!({"n_ctx_train": 8192, "n_params": 134_515_008, "size": 98_000_000, "ftype": "Q4_1"});
    let listing = json!({"data": [{"id": "smol", "owned_by": "llamacpp", "meta": meta}]});
    upstream.on("GET /v1/models", Script::json(200, &listing));
    let properties = json!({
        "default_generation_settings": {"n_ctx": 2048}, "modalities": {"vision": false, "audio": false},
        "chat_template": "{{ messages }}", "model_path": "/models/smol.gguf",
    });
    upstream.on("GET /props", Script::json(200, &properties));
    let backend = backend(OpenAiConfig { models: Vec::new(), ..config(upstream.url()) });
    let models = backend.models().await.unwrap();
    let [info] = &models[..] else { panic!("{models:?}") };
    assert_eq!((info.context_tokens, info.parameters, info.warm), (Some(2048), Some(134_515_008), true));
    assert_eq!(info.quantization.as_deref(), Some("Q4_1"));
    assert!(!info.capabilities.contains(&ModelCapability::Vision));
    let details = backend.details(&info.name).await.unwrap().unwrap();
    assert_eq!(details.template, "{{ messages }}");
    assert_eq!(details.metadata["general.filename"], "smol.gguf");
    assert_eq!(backend.details(&ModelName::parse("nope").unwrap()).await.unwrap(), None);
}

#[tokio::test]
async fn models_that_stay_loaded_are_told_as_running() {
    let upstream = Upstream::start().await.unwrap();
    let backend = backend(OpenAiConfig { models: Vec::new(), ..config(upstream.url()) });
    let loaded = json!({"id": "smol", "owned_by": "llamacpp", "meta": {"n_ctx": 2048, "size": 98_000_000}});
    let at_rest = json!({"id": "large", "owned_by": "llamacpp"});
    upstream.on("GET /v1/models", Script::json(200, &json!({"data": [loaded, at_rest]})));
    let running = backend.running().await.unwrap();
    let [model] = &running[..] else { panic!("{running:?}") };
    assert_eq!((model.info.name.as_str(), model.memory_bytes), ("smol:latest", 98_000_000));
    assert_eq!((model.context_tokens, model.expires_unix_s), (2048, None));

    // A node of Bombus says of each model whether it is in memory.
    let meta = |warm: bool| json!({"context_tokens": 4096, "size_bytes": 5, "warm": warm, "family": null});
    let of_bombus = [json!({"id": "here", "meta": meta(true)}), json!({"id": "asleep", "meta": meta(false)})];
    upstream.on("GET /v1/models", Script::json(200, &json!({"data": of_bombus})));
    let node = self::backend(OpenAiConfig { models: Vec::new(), ..config(upstream.url()) });
    let running = node.running().await.unwrap();
    let [model] = &running[..] else { panic!("{running:?}") };
    assert_eq!((model.info.name.as_str(), model.memory_bytes, model.context_tokens), ("here:latest", 5, 4096));
    // vLLM has all in memory that it lists.
    let of_vllm = json!({"id": "org/big", "owned_by": "vllm", "max_model_len": 4096});
    upstream.on("GET /v1/models", Script::json(200, &json!({"data": [of_vllm]})));
    assert_eq!(backend.running().await.unwrap()[0].context_tokens, 4096);
    // Of a server that says nothing of it, nothing is known.
    let of_another = [json!({"id": "m", "owned_by": "me"}), json!({"id": "n", "meta": {"parameters": {"depth": 2}}})];
    upstream.on("GET /v1/models", Script::json(200, &json!({"data": of_another})));
    let other = self::backend(OpenAiConfig { models: Vec::new(), ..config(upstream.url()) });
    assert_eq!(other.running().await.unwrap(), []);
}

#[tokio::test]
async fn vectors_come_in_the_order_of_the_inputs_and_have_length_1() {
    let upstream = Upstream::start().await.unwrap();
    let data = json!([{"index": 1, "embedding": [0.0, 2.0, 0.0]}, {"index": 0, "embedding": [3.0, 4.0, 12.0]}]);
    let answer = json!({"object": "list", "data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}});
    upstream.on("POST /v1/embeddings", Script::json(200, &answer));
    let backend = backend(config(upstream.url()));
    let inputs = vec![EmbedInput::Text("a".to_owned()), EmbedInput::Text("b".to_owned())];

    let request = EmbedRequest { dimensions: Some(2), ..EmbedRequest::new("m", inputs.clone()) };
    let answer = backend.embed(request.clone()).await.unwrap();
    assert_eq!(answer, EmbedResponse::new(vec![vec![0.6, 0.8], vec![0.0, 1.0]], 5));
    let sent = upstream.requests()[0].json();
    assert_eq!(sent, json!({"model": "m", "input": ["a", "b"], "encoding_format": "float"}));

    let error = backend.embed(EmbedRequest { dimensions: Some(9), ..request.clone() }).await.unwrap_err();
    assert!(matches!(error, BackendError::Unsupported { param: "dimensions", .. }), "{error:?}");
    let error = backend.embed(EmbedRequest { inputs: inputs[..1].to_vec(), ..request }).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable { .. }), "{error:?}");
}
