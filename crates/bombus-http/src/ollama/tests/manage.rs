//! Making, naming, fetching and removing models.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bombus_core::chat::{Message, Role};
use bombus_core::model::ModelCapability::Completion;
use bombus_infer::{BackendError, BackendOptions, CreateRequest, NamedBackend, Progress};
use futures::StreamExt;
use insta::assert_snapshot;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{saying_good_day, with};
use crate::HttpConfig;
use crate::testing::{
    Answer, LOOPBACK, Scripted, ScriptedLibrary, build, loopback, model, post, send, services, services_over,
};

type Steps = Vec<Result<Progress, BackendError>>;

fn step(status: &str) -> Result<Progress, BackendError> {
    Ok(Progress { status: status.into(), ..Progress::default() })
}

fn pulling() -> Steps {
    let layer = Progress {
        status: "pulling b179c9523d0e".into(),
        sha256: Some("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".into()),
        total_bytes: Some(100),
        completed_bytes: Some(50),
    };
    vec![step("pulling manifest"), Ok(layer), step("success")]
}

fn keeping(steps: Steps) -> (ScriptedLibrary, Scripted) {
    let library = ScriptedLibrary { steps, ..ScriptedLibrary::default() };
    (library.clone(), Scripted { library: Some(library), ..saying_good_day() })
}

#[tokio::test]
async fn a_pull_is_told_step_by_step_or_by_its_end() {
    let (library, backend) = keeping(pulling());
    let router = loopback(services(backend));
    assert_snapshot!("pull_in_lines", post(&router, "/api/pull", json!({"name": "new:1b"})).await.shown());
    let whole = post(&router, "/api/pull", json!({"model": "new:1b", "stream": false})).await;
    assert_eq!(whole.json(), json!({"status": "success"}));
    post(&router, "/api/pull", json!({"model": "new:1b", "stream": false, "insecure": true})).await;
    assert_eq!(*library.told.lock().unwrap(), ["pull new:1b", "pull new:1b", "pull new:1b insecurely"]);
}

#[tokio::test]
async fn a_work_that_does_not_say_so_succeeds_all_the_same() {
    let (_, backend) = keeping(vec![step("verifying")]);
    let answer = post(&loopback(services(backend)), "/api/pull", json!({"model": "new"})).await;
    assert_eq!(answer.body, "{\"status\":\"verifying\"}\n{\"status\":\"success\"}\n");
}

#[tokio::test]
async fn a_pull_that_fails_at_once_has_a_status_and_a_later_failure_a_line() {
    let gone = || Err(BackendError::ModelNotFound { model: "new".into() });
    let (_, backend) = keeping(vec![gone()]);
    let answer = post(&loopback(services(backend)), "/api/pull", json!({"model": "new"})).await;
    assert_eq!((answer.status.as_u16(), answer.json()), (404, json!({"error": "model 'new' not found"})));

    let (_, backend) = keeping(vec![step("pulling manifest"), gone()]);
    let router = loopback(services(backend));
    let answer = post(&router, "/api/pull", json!({"model": "new"})).await;
    assert_eq!(answer.body, "{\"status\":\"pulling manifest\"}\n{\"error\":\"model 'new' not found\"}\n");
    assert_eq!(post(&router, "/api/pull", json!({"model": "new", "stream": false})).await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn a_work_that_hangs_is_given_up() {
    let (_, backend) = keeping(Vec::new());
    let begun = tokio::time::Instant::now();
    let answer = post(&loopback(services(backend)), "/api/pull", json!({"model": "new"})).await;
    assert_eq!((answer.status.as_u16(), begun.elapsed()), (504, Duration::from_mins(15)));
}

#[tokio::test]
async fn a_model_is_made_of_another_one() {
    let (library, backend) = keeping(vec![step("success")]);
    let request = json!({
        "model": "brief", "from": "m", "system": "Be brief.", "template": "{{ .Prompt }}", "license": ["A", "B"],
        "parameters": {"temperature": 0.1, "stop": ["."]}, "messages": [{"role": "user", "content": "hi"}], "quantize": "q4_K_M",
        "files": {}, "adapters": null, "stream": false, "renderer": "qwen3-coder", "parser": "qwen3", "requires": "0.14.0",
        "info": {"context_length": 4096, "capabilities": ["tools"], "base_name": null, "other": {}},
    });
    assert_eq!(post(&loopback(services(backend)), "/api/create", request).await.json(), json!({"status": "success"}));
    let parameters = json!({"temperature": 0.1, "stop": ["."]});
    let expected = CreateRequest {
        name: "brief".into(),
        from: Some("m".into()),
        system: Some("Be brief.".into()),
        template: Some("{{ .Prompt }}".into()),
        licenses: vec!["A".into(), "B".into()],
        parameters: parameters.as_object().unwrap().clone(),
        messages: vec![Message::text(Role::User, "hi")],
        quantize: Some("q4_K_M".into()),
        renderer: Some("qwen3-coder".into()),
        parser: Some("qwen3".into()),
        requires: Some("0.14.0".into()),
        info: json!({"context_length": 4096, "capabilities": ["tools"]}).as_object().unwrap().clone(),
        ..CreateRequest::default()
    };
    assert_eq!(*library.created.lock().unwrap(), [expected]);
}

#[tokio::test]
async fn facts_over_which_an_ollama_server_breaks_down_are_refused() {
    let (library, backend) = keeping(vec![step("success")]);
    let router = loopback(services(backend));
    let long = "x".repeat(129);
    for (field, value, told) in [
        ("renderer", json!(long), "up to 128 characters"),
        ("info", json!({"model_family": 7}), "'info.model_family' has to be a short text"),
        ("info", json!({"quantization_level": long}), "'info.quantization_level' has to be a short text"),
        ("info", json!({"embedding_length": "768"}), "'info.embedding_length' has to be a number"),
        ("info", json!({"capabilities": "tools"}), "'info.capabilities' has to be a list of short texts"),
    ] {
        let answer = post(&router, "/api/create", json!({"model": "brief", "from": "m", field: value})).await;
        assert_eq!((answer.status.as_u16(), answer.body.contains(told)), (400, true), "{told}: {}", answer.body);
    }
    assert!(library.created.lock().unwrap().is_empty());
}

#[tokio::test]
async fn parameters_of_a_new_model_are_checked_as_options_are() {
    let (_, backend) = keeping(vec![step("success")]);
    let request = json!({"model": "brief", "from": "m", "parameters": {"temperature": "hot"}});
    let answer = post(&loopback(services(backend)), "/api/create", request).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]),
        (400, &json!("option \"temperature\" must be of type float32"))
    );
}

async fn delete(backend: Scripted, request: Value) -> Answer {
    let request = Request::delete("/api/delete").body(Body::from(request.to_string())).unwrap();
    send(&loopback(services(backend)), request).await
}

#[tokio::test]
async fn a_model_is_copied_and_removed() {
    let (library, backend) = keeping(Vec::new());
    let router = loopback(services(backend));
    let copied = post(&router, "/api/copy", json!({"source": "m", "destination": "n:1"})).await;
    assert_eq!((copied.status.as_u16(), copied.body.as_str()), (200, ""));
    let request =
        Request::delete("/api/delete").body(Body::from(json!({"model": "", "name": "m"}).to_string())).unwrap();
    let deleted = send(&router, request).await;
    assert_eq!((deleted.status.as_u16(), deleted.body.as_str()), (200, ""));
    assert_eq!(*library.told.lock().unwrap(), ["copy m:latest n:1", "delete m:latest"]);

    let (_, backend) = keeping(Vec::new());
    let missing = delete(backend, json!({"model": "nope"})).await;
    assert_eq!((missing.status.as_u16(), missing.json()), (404, json!({"error": "model 'nope' not found"})));
}

#[tokio::test]
async fn a_name_that_is_like_several_models_stands_for_each_of_them() {
    let (library, managing) = keeping(Vec::new());
    let first = Scripted { models: vec![model("Q", &[Completion])], ..saying_good_day() };
    let second = Scripted { models: vec![model("q", &[Completion])], ..managing };
    let moves = [first.moves.clone(), second.moves.clone()];
    let named = |name: &str, backend: Scripted| NamedBackend::new(name, "fake", Arc::new(backend));
    let router = loopback(services_over(vec![named("far", first), named("near", second)]));
    let unloaded = post(&router, "/api/generate", json!({"model": "library/q", "keep_alive": 0})).await;
    assert_eq!(unloaded.status, 200, "{}", unloaded.body);
    let moves = moves.map(|moves| moves.lock().unwrap().clone());
    assert_eq!(moves, [["unload Q:latest"], ["unload q:latest"]]);

    let request = Request::delete("/api/delete").body(Body::from(json!({"model": "library/q"}).to_string()));
    let deleted = send(&router, request.unwrap()).await;
    assert_eq!(deleted.status, 200, "{}", deleted.body);
    assert_eq!(*library.told.lock().unwrap(), ["delete q:latest"], "the backend that manages models is asked");
}

#[tokio::test]
async fn a_node_that_manages_no_models_says_so() {
    for (path, request) in [
        ("/api/pull", json!({"model": "new"})),
        ("/api/create", json!({"model": "new", "from": "m"})),
        ("/api/copy", json!({"source": "m", "destination": "n"})),
    ] {
        let answer = post(&loopback(services(saying_good_day())), path, request).await;
        let told = answer.json()["error"].as_str().unwrap().to_owned();
        assert_eq!((answer.status.as_u16(), told.contains("models")), (400, true), "{path}: {told}");
    }
    assert_eq!(delete(saying_good_day(), json!({"model": "m"})).await.status, 400);
}

#[tokio::test]
async fn weights_go_past_a_backend_that_keeps_names_alone() {
    let names = ScriptedLibrary { names_only: true, steps: vec![step("success")], ..ScriptedLibrary::default() };
    let weights = ScriptedLibrary { steps: vec![step("success")], ..ScriptedLibrary::default() };
    let here = Scripted { models: vec![model("far", &[])], library: Some(names.clone()), ..Scripted::default() };
    let there = Scripted { models: Vec::new(), library: Some(weights.clone()), ..Scripted::default() };
    let aliases = [("near".to_owned(), "far".to_owned())].into();
    let options = BackendOptions { aliases, ..BackendOptions::default() };
    let first = NamedBackend { options, ..NamedBackend::new("names", "fake", Arc::new(here)) };
    let backends = vec![first, NamedBackend::new("weights", "fake", Arc::new(there))];
    let router = loopback(services_over(backends));
    for (path, request) in [
        ("/api/pull", json!({"model": "far"})),
        ("/api/create", json!({"model": "sent", "files": {"m.gguf": format!("sha256:{}", digest(b"weights"))}})),
        ("/api/create", json!({"model": "brief", "from": "far"})),
        ("/api/create", json!({"model": "short", "from": "near"})),
        ("/api/copy", json!({"source": "near", "destination": "close"})),
    ] {
        assert_eq!(post(&router, path, request).await.status, 200, "{path}");
    }
    assert_eq!(post(&router, &format!("/api/blobs/sha256:{}", digest(b"weights")), "weights").await.status, 201);
    assert_eq!(*weights.told.lock().unwrap(), ["pull far", "create sent"]);
    assert_eq!(*names.told.lock().unwrap(), ["create brief", "create short", "copy far:latest close:latest"]);
    let made_of: Vec<_> = names.created.lock().unwrap().iter().map(|request| request.from.clone()).collect();
    assert_eq!(made_of, [Some("far".to_owned()), Some("far".to_owned())], "an alias is unknown behind the backend");
}

#[tokio::test]
async fn where_names_alone_are_kept_an_unknown_model_is_told_as_one_and_weights_as_what_is_missing() {
    let names = ScriptedLibrary { names_only: true, steps: vec![step("success")], ..ScriptedLibrary::default() };
    let router = loopback(services(Scripted { library: Some(names), ..saying_good_day() }));
    let missing = post(&router, "/api/create", json!({"model": "brief", "from": "nope"})).await;
    assert_eq!((missing.status.as_u16(), missing.json()), (404, json!({"error": "model 'nope' not found"})));
    let pulled = post(&router, "/api/pull", json!({"model": "new"})).await;
    let told = pulled.json()["error"].as_str().unwrap().to_owned();
    assert_eq!((pulled.status.as_u16(), told.contains("takes weights")), (400, true), "{told}");
}

#[tokio::test]
async fn a_name_that_is_an_alias_is_given_to_no_model_of_that_backend() {
    let (library, backend) = keeping(vec![step("success")]);
    let options = BackendOptions { aliases: [("near".to_owned(), "m".to_owned())].into(), ..BackendOptions::default() };
    let named = NamedBackend { options, ..NamedBackend::new("far", "fake", Arc::new(backend)) };
    let router = loopback(services_over(vec![named]));
    for (path, request) in [
        ("/api/copy", json!({"source": "m", "destination": "near:latest"})),
        ("/api/create", json!({"model": "near", "from": "m"})),
        ("/api/create", json!({"model": "near", "files": {"m.gguf": format!("sha256:{}", digest(b"weights"))}})),
    ] {
        let answer = post(&router, path, request).await;
        let told = answer.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, 400, "{path}: {told}");
        assert!(told.contains("alias in the configuration of backend 'far'"), "{path}: {told}");
    }
    assert!(library.told.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_alias_is_not_removed_in_place_of_its_model() {
    let (library, backend) = keeping(Vec::new());
    let options = BackendOptions { aliases: [("near".to_owned(), "m".to_owned())].into(), ..BackendOptions::default() };
    let named = NamedBackend { options, ..NamedBackend::new("far", "fake", Arc::new(backend)) };
    let router = loopback(services_over(vec![named]));
    let delete = async |model: &str| {
        let request = Request::delete("/api/delete").body(Body::from(json!({ "model": model }).to_string())).unwrap();
        send(&router, request).await
    };
    let refused = delete("near").await;
    let told = refused.json()["error"].as_str().unwrap().to_owned();
    assert_eq!(refused.status, 400, "{told}");
    assert!(told.contains("'near' is an alias of 'm' in the configuration of backend 'far'"), "{told}");
    assert!(library.told.lock().unwrap().is_empty());
    assert_eq!(delete("m").await.status, 200);
    assert_eq!(*library.told.lock().unwrap(), ["delete m:latest"]);
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

async fn put(config: HttpConfig, backend: Scripted, digest: &str, body: Body) -> Answer {
    let request = Request::post(format!("/api/blobs/sha256:{digest}")).body(body).unwrap();
    send(&build(config, services(backend), LOOPBACK), request).await
}

#[tokio::test]
async fn a_file_is_taken_in_once_and_found_afterwards() {
    let (library, backend) = keeping(Vec::new());
    let router = loopback(services(backend));
    let path = format!("/api/blobs/sha256:{}", digest(b"weights"));
    let head = || Request::head(&path).body(Body::empty()).unwrap();
    assert_eq!(send(&router, head()).await.status, 404);
    assert_eq!(post(&router, &path, "weights").await.status, 201);
    assert_eq!(post(&router, &path.replace("sha256:", "sha256-"), "weights").await.status, 200);
    assert_eq!(send(&router, head()).await.status, 200);
    assert_eq!(library.blobs.lock().unwrap()[&digest(b"weights")], b"weights");
    for odd in ["/api/blobs/sha256:0", "/api/blobs/md5:00", "/api/blobs/sha256:..%2F..%2Fx", "/api/blobs/%ff"] {
        let answer = post(&router, odd, "x").await;
        assert_eq!((answer.status.as_u16(), answer.json()), (400, json!({"error": "invalid digest format"})), "{odd}");
    }
}

#[tokio::test]
async fn a_file_that_is_there_is_read_to_its_end_before_the_answer() {
    let (_, backend) = keeping(Vec::new());
    let router = loopback(services(backend));
    let path = format!("/api/blobs/sha256:{}", digest(b"weights"));
    assert_eq!(post(&router, &path, "weights").await.status, 201);
    let read = Arc::new(AtomicUsize::new(0));
    let counted = read.clone();
    let again = futures::stream::iter(["wei", "ghts"]).map(move |piece| {
        counted.fetch_add(piece.len(), Ordering::Relaxed);
        Ok::<_, std::io::Error>(piece)
    });
    assert_eq!(send(&router, Request::post(&path).body(Body::from_stream(again)).unwrap()).await.status, 200);
    assert_eq!(read.load(Ordering::Relaxed), 7);
}

#[tokio::test]
async fn a_file_that_is_another_one_is_refused() {
    let (library, backend) = keeping(Vec::new());
    let answer = put(HttpConfig::default(), backend, &digest(b"weights"), Body::from("garbage")).await;
    assert_eq!((answer.status.as_u16(), answer.json()), (400, json!({"error": "digest mismatch"})));
    assert!(library.blobs.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_file_over_the_limit_is_refused_announced_or_not() {
    let mut config = HttpConfig::default();
    config.limits.blob_bytes_max = 5;
    for body in
        [Body::from("weights"), Body::from_stream(futures::stream::iter(["wei", "ghts"].map(Ok::<_, std::io::Error>)))]
    {
        let (library, backend) = keeping(Vec::new());
        let answer = put(config.clone(), backend, &digest(b"weights"), body).await;
        assert_eq!(answer.status, 413, "{}", answer.body);
        assert!(library.blobs.lock().unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_stops_arriving_times_out() {
    let (_, backend) = keeping(Vec::new());
    let never = futures::stream::iter([Ok::<_, std::io::Error>("wei")]).chain(futures::stream::pending());
    let begun = tokio::time::Instant::now();
    let answer = put(HttpConfig::default(), backend, &digest(b"weights"), Body::from_stream(never)).await;
    assert_eq!((answer.status.as_u16(), begun.elapsed()), (408, Duration::from_mins(2)));
}

#[tokio::test]
async fn a_file_that_breaks_off_is_refused() {
    let (_, backend) = keeping(Vec::new());
    let broken = futures::stream::iter([Ok("wei"), Err(std::io::Error::other("gone"))]);
    let answer = put(HttpConfig::default(), backend, &digest(b"weights"), Body::from_stream(broken)).await;
    assert_eq!(answer.status, 400, "{}", with(json!({}), answer.json()));
}
