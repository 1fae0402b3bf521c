use std::time::Duration;

use bombus_core::chat::{Message, Prompt, Role};
use bombus_testkit::upstream::{Script, Upstream};
use futures::TryStreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::advance;

use super::*;
use crate::fake::{FakeBackend, FakeConfig};
use crate::{Backends, NamedBackend, OpenAiBackend, OpenAiConfig};

const CHAT: &str = "POST /v1/chat/completions";

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

/// A server with one loaded model.
async fn server() -> Upstream {
    let upstream = Upstream::start().await.unwrap();
    let meta = json!({"n_ctx_train": 2048, "size": 98_000_000, "ftype": "Q4_1"});
    let listing = json!({"data": [{"id": "smol", "owned_by": "llamacpp", "created": 7, "meta": meta}]});
    upstream.on("GET /v1/models", Script::json(200, &listing));
    upstream.on("GET /props", Script::json(200, &json!({"chat_template": "{{ messages }}"})));
    let answer = json!({"choices": [{"index": 0, "delta": {"content": "Bzz"}, "finish_reason": "stop"}]});
    upstream.on(CHAT, Script::events(&[answer]).done());
    upstream
}

fn over(upstream: &Upstream, folder: &TempDir) -> NamingBackend {
    let config = OpenAiConfig { url: upstream.url(), timeout_ms: 20_000, ..OpenAiConfig::default() };
    let server = Arc::new(OpenAiBackend::new("far", config).unwrap());
    NamingBackend::open("far", &folder.path().join("names"), server).unwrap()
}

fn beekeeper() -> CreateRequest {
    let parameters = json!({"temperature": 0.25, "num_predict": 3});
    CreateRequest {
        name: "beekeeper".into(),
        from: Some("smol".into()),
        system: Some("You keep bees.".into()),
        parameters: parameters.as_object().unwrap().clone(),
        messages: vec![Message::text(Role::User, "Hi"), Message::text(Role::Assistant, "Bzz")],
        licenses: vec!["MIT".into()],
        ..CreateRequest::default()
    }
}

async fn make(backend: &NamingBackend, request: CreateRequest) -> Result<Vec<String>, BackendError> {
    let steps: Vec<Progress> = backend.create(request).await?.try_collect().await?;
    Ok(steps.into_iter().map(|step| step.status).collect())
}

async fn listed(backend: &NamingBackend) -> Vec<String> {
    backend.models().await.unwrap().into_iter().map(|info| info.name.to_string()).collect()
}

/// Asks a model and returns what its server was asked.
async fn asked(backend: &NamingBackend, upstream: &Upstream, model: &str) -> Value {
    let request = ChatRequest::new(model, Prompt::Chat(vec![Message::text(Role::User, "What do they make?")]));
    backend.chat(request).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    let requests = upstream.requests();
    requests.iter().rfind(|request| request.line.starts_with(CHAT)).unwrap().json()
}

#[tokio::test]
async fn a_model_with_other_defaults_is_made_asked_shown_and_kept() {
    let (upstream, folder) = (server().await, TempDir::new().unwrap());
    let backend = over(&upstream, &folder);
    assert_eq!(make(&backend, beekeeper()).await.unwrap().last().unwrap(), "success");

    // Another run of the node finds it again.
    let backend = over(&upstream, &folder);
    assert_eq!(listed(&backend).await, ["smol:latest", "beekeeper:latest"]);
    let info = backend.model(&name("beekeeper")).await.unwrap().unwrap();
    assert_eq!((info.size_bytes, info.context_tokens, info.warm), (Some(98_000_000), Some(2048), true));
    assert!(info.modified_unix_s > 7, "it is as old as its name");

    let request = asked(&backend, &upstream, "beekeeper").await;
    let texts: Vec<&str> =
        request["messages"].as_array().unwrap().iter().map(|message| message["content"].as_str().unwrap()).collect();
    assert_eq!(texts, ["You keep bees.", "Hi", "Bzz", "What do they make?"]);
    assert_eq!(
        (&request["model"], &request["temperature"], &request["max_tokens"]),
        (&json!("smol"), &json!(0.25), &json!(3))
    );
    assert_eq!(asked(&backend, &upstream, "smol").await["messages"].as_array().unwrap().len(), 1);

    let details = backend.details(&name("beekeeper")).await.unwrap().unwrap();
    assert_eq!((details.parent, details.system.as_str()), (Some(name("smol")), "You keep bees."));
    assert_eq!((details.template.as_str(), details.licenses), ("{{ messages }}", vec!["MIT".to_owned()]));
    assert_eq!((&details.parameters["num_predict"], details.messages.len()), (&json!(3), 2));
}

#[tokio::test]
async fn defaults_that_only_llama_server_knows_are_sent_unless_a_request_says_otherwise() {
    let (upstream, folder) = (server().await, TempDir::new().unwrap());
    let backend = over(&upstream, &folder);
    let parameters = json!({"mirostat": 2, "typical_p": 0.5, "num_gpu": 1});
    let parameters = parameters.as_object().unwrap().clone();
    make(&backend, CreateRequest { parameters, ..beekeeper() }).await.unwrap();
    let told = asked(&backend, &upstream, "beekeeper").await;
    assert_eq!((&told["mirostat"], &told["typical_p"], told.get("num_gpu")), (&json!(2), &json!(0.5), None));

    let mut request = ChatRequest::new("beekeeper", Prompt::Chat(vec![Message::text(Role::User, "Hi")]));
    request.dialect.ollama.insert("mirostat".to_owned(), json!(1));
    backend.chat(request).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    let told = upstream.requests().last().unwrap().json();
    assert_eq!((&told["mirostat"], &told["typical_p"]), (&json!(1), &json!(0.5)));
}

#[tokio::test]
async fn a_copy_is_the_model_by_another_name_until_it_is_removed() {
    let (upstream, folder) = (server().await, TempDir::new().unwrap());
    let backend = over(&upstream, &folder);
    make(&backend, beekeeper()).await.unwrap();
    assert_eq!(backend.copy(&name("beekeeper"), &name("apiarist")).await, Ok(true));
    assert_eq!(backend.delete(&name("beekeeper")).await, Ok(true));
    assert_eq!(listed(&backend).await, ["smol:latest", "apiarist:latest"]);
    assert_eq!(asked(&backend, &upstream, "apiarist").await["messages"][0]["content"], "You keep bees.");
    assert_eq!(backend.load(LoadRequest::new("apiarist")).await, Ok(()));
    assert_eq!(backend.unload("apiarist").await, Ok(()));

    assert_eq!(backend.delete(&name("apiarist")).await, Ok(true));
    assert_eq!(backend.delete(&name("apiarist")).await, Ok(false));
    assert_eq!(backend.copy(&name("apiarist"), &name("again")).await, Ok(false));
    assert_eq!(listed(&backend).await, ["smol:latest"]);
}

#[tokio::test]
async fn a_name_in_front_of_the_servers_own_gives_that_back_when_it_goes() {
    let (upstream, folder) = (server().await, TempDir::new().unwrap());
    let backend = over(&upstream, &folder);
    make(&backend, CreateRequest { name: "smol".into(), ..beekeeper() }).await.unwrap();
    assert_eq!(listed(&backend).await, ["smol:latest"]);
    assert_eq!(asked(&backend, &upstream, "smol").await["messages"].as_array().unwrap().len(), 4);
    assert_eq!(backend.delete(&name("smol")).await, Ok(true));
    assert_eq!(asked(&backend, &upstream, "smol").await["messages"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_name_goes_and_comes_with_the_model_that_it_stands_for() {
    let (upstream, folder) = (server().await, TempDir::new().unwrap());
    let backend = over(&upstream, &folder);
    make(&backend, beekeeper()).await.unwrap();
    upstream.on("GET /v1/models", Script::json(200, &json!({"data": [{"id": "other", "owned_by": "llamacpp"}]})));
    assert_eq!(listed(&backend).await, ["other:latest"]);
    assert_eq!(backend.model(&name("beekeeper")).await, Ok(None));
}

#[tokio::test]
async fn a_name_without_its_model_is_not_offered_as_the_servers_own_of_that_name() {
    let (upstream, folder) = (server().await, TempDir::new().unwrap());
    let backend = over(&upstream, &folder);
    make(&backend, CreateRequest { name: "other".into(), ..beekeeper() }).await.unwrap();
    let models = |ids: &[&str]| {
        let data: Vec<Value> = ids.iter().map(|id| json!({"id": id, "owned_by": "llamacpp"})).collect();
        Script::json(200, &json!({ "data": data }))
    };
    upstream.on("GET /v1/models", models(&["other"]));
    assert_eq!(listed(&backend).await, Vec::<String>::new(), "requests for it go to the model that is gone");
    assert_eq!(backend.model(&name("other")).await, Ok(None));

    // Another model by that name is one way out, and to remove the name then another one.
    upstream.on("GET /v1/models", models(&["other", "third"]));
    assert_eq!(listed(&backend).await, ["third:latest"]);
    assert_eq!(backend.copy(&name("third"), &name("other")).await, Ok(true));
    assert_eq!(listed(&backend).await, ["third:latest", "other:latest"]);
    assert_eq!(backend.delete(&name("other")).await, Ok(true));
    assert_eq!(listed(&backend).await, ["other:latest", "third:latest"]);
}

#[tokio::test]
async fn what_only_the_server_could_do_is_refused() {
    let (upstream, folder) = (server().await, TempDir::new().unwrap());
    let backend = over(&upstream, &folder);
    let refused = async |request: CreateRequest| match make(&backend, request).await.unwrap_err() {
        BackendError::Unsupported { message, .. } => message,
        other => panic!("{other:?}"),
    };
    let files = std::collections::BTreeMap::from([("model.gguf".to_owned(), "0".repeat(64))]);
    let of_file = CreateRequest { from: None, files: files.clone(), ..beekeeper() };
    assert!(refused(of_file).await.contains("takes no weights"));
    assert!(refused(CreateRequest { adapters: files, ..beekeeper() }).await.contains("adapters"));
    assert!(refused(CreateRequest { renderer: Some("qwen3-coder".into()), ..beekeeper() }).await.contains("renderer"));
    assert!(refused(CreateRequest { parser: Some("qwen3-coder".into()), ..beekeeper() }).await.contains("parser"));
    assert!(refused(CreateRequest { quantize: Some("q8_0".into()), ..beekeeper() }).await.contains("Q4_1"));
    assert!(
        refused(CreateRequest { template: Some("{{ .Prompt }}".into()), ..beekeeper() }).await.contains("template")
    );
    let unknown = CreateRequest { from: Some("nope".into()), ..beekeeper() };
    assert_eq!(make(&backend, unknown).await, Err(BackendError::ModelNotFound { model: "nope".into() }));
    let error = backend.delete(&name("smol")).await.unwrap_err();
    assert!(error.to_string().contains("tools of that server"), "{error}");
    assert!(backend.pull(PullRequest::new("smol")).await.is_err() && !backend.takes_weights());

    // What it has anyway can be said again.
    let same =
        CreateRequest { template: Some("{{ messages }}\n".into()), quantize: Some("q4_1".into()), ..beekeeper() };
    make(&backend, same).await.unwrap();
}

#[test]
fn the_models_that_a_server_was_given_are_told() {
    let folder = TempDir::new().unwrap();
    for (models, given) in [(vec![], vec![]), (vec!["smol".to_owned()], vec![name("smol")])] {
        let server = Arc::new(OpenAiBackend::new("far", OpenAiConfig { models, ..OpenAiConfig::default() }).unwrap());
        assert_eq!(NamingBackend::open("far", &folder.path().join("names"), server).unwrap().given(), given);
    }
}

/// A server that is not reached.
struct Away;

fn away() -> BackendError {
    BackendError::Unavailable { reason: "it is away".into() }
}

#[async_trait]
impl Backend for Away {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        Err(away())
    }

    async fn chat(&self, _request: ChatRequest) -> Result<ChatStream, BackendError> {
        Err(away())
    }

    async fn embed(&self, _request: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        Err(away())
    }

    async fn health(&self) -> Health {
        Health::Unavailable(away().to_string())
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_over_a_server_that_stays_away_is_no_unknown_one() {
    let folder = TempDir::new().unwrap();
    let backend = NamingBackend::open("far", &folder.path().join("names"), Arc::new(Away)).unwrap();
    backend.names.change(|names| names.insert(name("beekeeper"), of_smol())).unwrap();
    // The node starts while the server is away.
    let backend = NamingBackend::open("far", &folder.path().join("names"), Arc::new(Away)).unwrap();
    let here = NamedBackend::new("here", "fake", Arc::new(FakeBackend::new(FakeConfig::default())));
    let backends = Backends::new(vec![NamedBackend::new("far", "openai", Arc::new(backend)), here]);
    assert_eq!(backends.find("other").await.err(), Some(away()), "the model may well be there");
    advance(Duration::from_secs(60)).await;
    let not_found = BackendError::ModelNotFound { model: "other".into() };
    assert_eq!(backends.find("other").await.err(), Some(not_found));
    for asked in ["beekeeper", "library/Beekeeper"] {
        assert_eq!(backends.find(asked).await.err(), Some(away()), "{asked}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_told_and_left_alone() {
    let (upstream, folder) = (server().await, TempDir::new().unwrap());
    make(&over(&upstream, &folder), beekeeper()).await.unwrap();
    let names = folder.path().join("names");
    let mut files = std::fs::read_dir(&names).unwrap().map(|entry| entry.unwrap().path());
    let file = files.find(|path| path.extension().is_some_and(|extension| extension == "json")).unwrap();
    for (content, wanted) in [("{\"format\": 7}", "format 7"), ("{\"form", "far-")] {
        std::fs::write(&file, content).unwrap();
        let server = Arc::new(OpenAiBackend::new("far", OpenAiConfig::default()).unwrap());
        let error = NamingBackend::open("far", &names, server).err().unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), content);
    }
}

fn of_smol() -> Named {
    Named { of: name("smol"), modified_unix_s: 0, defaults: ModelDefaults::default() }
}

#[test]
fn names_that_two_processes_give_at_once_are_all_kept() {
    let folder = TempDir::new().unwrap();
    let give = |who: &'static str| {
        // Each process reads the file for itself.
        let file = NamesFile::open(folder.path(), "far").unwrap();
        std::thread::spawn(move || {
            for number in 0..20 {
                file.change(|names| names.insert(name(&format!("{who}-{number}")), of_smol())).unwrap();
            }
        })
    };
    for thread in [give("one"), give("two")] {
        thread.join().unwrap();
    }
    assert_eq!(NamesFile::open(folder.path(), "far").unwrap().now().len(), 40);
}

#[test]
fn of_too_many_names_some_can_be_removed() {
    let folder = TempDir::new().unwrap();
    let file = NamesFile::open(folder.path(), "far").unwrap();
    file.change(|names| names.insert(name("m-0"), of_smol())).unwrap();
    let mut files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let path = files.find(|path| path.extension().is_some_and(|extension| extension == "json")).unwrap();
    let mut content: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let named = content["names"]["m-0:latest"].clone();
    for number in 1..1_002 {
        content["names"][format!("m-{number}:latest")] = named.clone();
    }
    std::fs::write(&path, content.to_string()).unwrap();
    let add = || file.change(|names| names.insert(name("more"), of_smol()));
    assert!(matches!(add(), Err(NamesError::Full)));
    for number in 0..3 {
        assert!(file.change(|names| names.remove(&name(&format!("m-{number}")))).unwrap().is_some());
    }
    add().unwrap();
    assert!(matches!(file.change(|names| names.insert(name("one-more"), of_smol())), Err(NamesError::Full)));
}

#[tokio::test]
async fn backends_keep_their_names_apart() {
    let (upstream, folder) = (server().await, TempDir::new().unwrap());
    let backend = over(&upstream, &folder);
    backend.copy(&name("smol"), &name("far-one")).await.unwrap();
    let server = Arc::clone(&backend.server);
    let other = NamingBackend::open("FAR", &folder.path().join("names"), server).unwrap();
    assert_eq!(listed(&other).await, ["smol:latest"]);
}
