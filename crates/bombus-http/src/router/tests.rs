//! What holds for every route: keys, hosts, ids, limits, the document.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bombus_core::batches::Computed;
use bombus_core::chat::FinishReason;
use bombus_core::model::ModelName;
use bombus_infer::fake::{FakeConfig, FakeFailure};
use futures::StreamExt;
use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::databases::{DatabaseChange, DatabaseRow, DatabaseType};
use crate::mesh::FeedItem;
use crate::native::databases::scripted::{Scripted, scripted as scripted_database};
use crate::native::tasks::scripted::{ID as TASK, ScriptedTasks};
use crate::openai::files::scripted::{ScriptedFiles, the_batch, the_file};
use crate::tasks::Tasks;
use crate::testing::{
    self, LOOPBACK, OPEN, ScriptedMesh, build, done, fake, get, loopback, peer, post, scripted, send, services, text,
    with_session_key,
};
use crate::{HttpConfig, KeyStore, Sample, SampleKind, Services};

fn request(path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    headers
        .iter()
        .fold(Request::get(path), |request, (name, value)| request.header(*name, *value))
        .body(Body::empty())
        .unwrap()
}

fn any() -> Services {
    fake(FakeConfig::default())
}

mod keys {
    use super::*;

    fn keyed() -> (tempfile::TempDir, Services) {
        let directory = tempfile::tempdir().unwrap();
        let keys = KeyStore::open(directory.path().join("keys.json"));
        (directory, Services { keys, ..any() })
    }

    #[tokio::test]
    async fn an_open_listener_needs_a_key_everywhere_but_for_its_health() {
        let (_directory, services) = keyed();
        let key = services.keys.create("test").unwrap().secret;
        let router = build(HttpConfig::default(), services.clone(), OPEN);
        let bearer = format!("bearer {key}");
        for path in ["/v1/models", "/", "/api/version", "/status", "/identity", "/metrics", "/openapi.json", "/nowhere"]
        {
            assert_eq!(get(&router, path).await.status, 401, "{path}");
            for header in [("authorization", bearer.as_str()), ("x-api-key", key.as_str())] {
                assert_ne!(send(&router, request(path, &[header])).await.status, 401, "{path} {header:?}");
            }
        }
        assert_eq!(get(&router, "/health").await.status, 200);

        services.keys.revoke("test").unwrap();
        assert_eq!(send(&router, request("/v1/models", &[("x-api-key", &key)])).await.status, 401, "revoked");
    }

    #[tokio::test]
    async fn a_refused_key_is_told_in_the_dialect_of_the_route() {
        let (_directory, services) = keyed();
        let router = build(HttpConfig::default(), services, OPEN);
        assert_snapshot!("no_key_openai", get(&router, "/v1/models").await.shown());
        assert_snapshot!("no_key_ollama", get(&router, "/api/tags").await.shown());
        assert_snapshot!("no_key_native", get(&router, "/status").await.shown());
        assert_snapshot!("wrong_key", send(&router, request("/v1/models", &[("x-api-key", "bk_x")])).await.shown());
    }

    #[tokio::test]
    async fn a_key_file_that_cannot_be_read_is_the_nodes_fault() {
        let (directory, services) = keyed();
        std::fs::write(directory.path().join("keys.json"), "garbage").unwrap();
        let router = build(HttpConfig::default(), services, OPEN);
        let answer = send(&router, request("/v1/models", &[("x-api-key", "bk_x")])).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (503, &json!("keys_unreadable")));
    }

    #[tokio::test]
    async fn a_loopback_listener_asks_for_keys_where_it_is_told_to() {
        let (_directory, services) = keyed();
        let key = services.keys.create("test").unwrap().secret;
        let router = build(HttpConfig { require_key: true, ..HttpConfig::default() }, services, LOOPBACK);
        assert_eq!(get(&router, "/v1/models").await.status, 401);
        assert_eq!(get(&router, "/health").await.status, 200);
        let with_key = |host| request("/v1/models", &[("host", host), ("x-api-key", &key)]);
        assert_eq!(send(&router, with_key("localhost")).await.status, 200);
        assert_eq!(send(&router, with_key("evil.example")).await.status, 403, "hosts are looked at as before");
    }

    #[tokio::test]
    async fn on_loopback_no_key_is_looked_at() {
        let (_directory, services) = keyed();
        let router = loopback(services);
        assert_eq!(send(&router, request("/v1/models", &[("authorization", "Bearer dummy")])).await.status, 200);
    }
}

mod origins {
    use super::*;

    #[tokio::test]
    async fn a_loopback_listener_answers_to_its_own_names_alone() {
        let config = HttpConfig { allowed_hosts: vec!["bee.local".into()], ..HttpConfig::default() };
        let router = build(config, any(), LOOPBACK);
        for host in [
            "localhost",
            "localhost:7890",
            "LocalHost:1",
            "localhost.:7890",
            "127.0.0.1:7890",
            "127.0.0.2:7890",
            "127.255.255.254",
            "[::1]:7890",
            "[::1]",
            "[0:0:0:0:0:0:0:1]:7890",
            "bee.local:7890",
            // Nobody can have an address lead elsewhere, be it of another machine or of none: Ollama's clients write where it listens.
            "0.0.0.0:7890",
            "[::]:7890",
            "192.168.1.7:7890",
            "128.0.0.1",
            "[::2]:7890",
            "foo.localhost:7890",
            "host.docker.internal:11434",
            "Gateway.Docker.Internal.",
        ] {
            assert_eq!(send(&router, request("/health", &[("host", host)])).await.status, 200, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:7890",
            "localhost.evil.example.",
            "evillocalhost",
            "internal.evil.example",
            "docker-internal",
            ".internal",
            "wasp.local",
            "0.0.0.0.evil.example",
            "",
            "evil:localhost",
            "evil:x.localhost",
            "evil/x.internal",
        ] {
            assert_eq!(send(&router, request("/health", &[("host", host)])).await.status, 403, "{host}");
        }
        assert_snapshot!(send(&router, request("/v1/models", &[("host", "evil.example")])).await.shown());
    }

    #[tokio::test]
    async fn web_pages_from_elsewhere_are_refused() {
        let config = HttpConfig { cors_origins: vec!["https://chat.example".into()], ..HttpConfig::default() };
        let router = build(config, any(), LOOPBACK);
        for origin in ["http://localhost:3000", "http://foo.localhost:3000", "http://127.0.0.1", "https://chat.example"]
        {
            assert_eq!(send(&router, request("/health", &[("origin", origin)])).await.status, 200, "{origin}");
        }
        let elsewhere = ["http://192.168.1.7", "http://0.0.0.0:3000", "http://wiki.internal"];
        let others = ["https://evil.example", "null", "https://chat.example.evil.example", "localhost"];
        for origin in others.into_iter().chain(elsewhere) {
            assert_eq!(send(&router, request("/health", &[("origin", origin)])).await.status, 403, "{origin}");
        }
    }

    #[tokio::test]
    async fn an_open_listener_leaves_hosts_to_its_keys() {
        let answer =
            send(&build(HttpConfig::default(), any(), OPEN), request("/health", &[("host", "bee.example")])).await;
        assert_eq!(answer.status, 200);
    }

    #[tokio::test]
    async fn listed_origins_alone_get_cors_headers() {
        let without = send(&loopback(any()), request("/health", &[("origin", "http://localhost:1")])).await;
        assert_eq!(without.header("access-control-allow-origin"), None);

        let config = HttpConfig { cors_origins: vec!["https://chat.example".into()], ..HttpConfig::default() };
        let router = build(config, any(), LOOPBACK);
        let preflight = Request::options("/v1/chat/completions")
            .header("origin", "https://chat.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization, x-stainless-lang")
            .body(Body::empty())
            .unwrap();
        assert_snapshot!(send(&router, preflight).await.shown());
        let local = send(&router, request("/health", &[("origin", "http://localhost:1")])).await;
        assert_eq!(local.header("access-control-allow-origin"), None);
    }
}

mod ids {
    use super::*;

    #[tokio::test]
    async fn a_sane_request_id_is_kept() {
        let router = loopback(any());
        for id in ["a", "A-z_0.9", &"x".repeat(128)] {
            assert_eq!(
                send(&router, request("/health", &[("x-request-id", id)])).await.header("x-request-id"),
                Some(id)
            );
        }
    }

    #[tokio::test]
    async fn any_other_request_id_is_replaced() {
        let router = loopback(any());
        for id in ["", "a b", "a\tb", "ü", &"x".repeat(129)] {
            let answer = send(&router, request("/nowhere", &[("x-request-id", id)])).await;
            let given = answer.header("x-request-id").unwrap();
            assert!(uuid::Uuid::parse_str(given).is_ok(), "{id:?} became {given:?}");
        }
    }
}

mod limits {
    use super::*;

    fn small() -> HttpConfig {
        let mut config = HttpConfig::default();
        config.limits.body_bytes_max = 1_000;
        config
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused() {
        let router = build(small(), any(), LOOPBACK);
        let answer = post(&router, "/v1/chat/completions", "x".repeat(1_001)).await;
        assert_snapshot!(answer.shown());
    }

    #[tokio::test]
    async fn a_body_that_announces_too_much_is_refused_before_it_is_read() {
        let router = build(small(), any(), LOOPBACK);
        let never = Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
        let request = Request::post("/v1/embeddings")
            .header("content-length", "1001")
            .header("expect", "100-continue")
            .body(never)
            .unwrap();
        assert_eq!(send(&router, request).await.status, 413);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_times_out() {
        let never = futures::stream::iter([Ok::<_, std::io::Error>("{")]).chain(futures::stream::pending());
        let request = Request::post("/v1/completions").body(Body::from_stream(never)).unwrap();
        let begun = tokio::time::Instant::now();
        assert_eq!(send(&loopback(any()), request).await.status, 408);
        assert_eq!(begun.elapsed(), Duration::from_mins(2));
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_wait_for_room_and_small_ones_pass_them() {
        let mut config = HttpConfig::default();
        config.limits.bodies_bytes_max = 150 << 10;
        let router = build(config, any(), LOOPBACK);
        let large = || json!({"model": "fake", "input": "x".repeat(100 << 10)});
        let (sender, receiver) = futures::channel::mpsc::channel::<Result<String, std::io::Error>>(1);
        let slow = Request::post("/v1/embeddings").header("content-length", "102442").body(Body::from_stream(receiver));
        let slow = tokio::spawn({
            let router = router.clone();
            async move { send(&router, slow.unwrap()).await }
        });
        let mut sender = sender;
        futures::SinkExt::send(&mut sender, Ok("x".repeat(70 << 10))).await.unwrap();
        // One more piece is taken only when the first one has its room.
        futures::SinkExt::send(&mut sender, Ok("x".to_owned())).await.unwrap();
        futures::SinkExt::flush(&mut sender).await.unwrap();

        let begun = tokio::time::Instant::now();
        assert_eq!(post(&router, "/v1/embeddings", json!({"model": "fake", "input": "a"})).await.status, 200);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let waiting = tokio::time::timeout(Duration::from_secs(60), post(&router, "/v1/embeddings", large()));
        assert!(waiting.await.is_err(), "there is no room");
        slow.abort();
        assert!(slow.await.is_err_and(|ended| ended.is_cancelled()));
        assert_eq!(post(&router, "/v1/embeddings", large()).await.status, 200);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_refused() {
        let broken = futures::stream::iter([Ok("{"), Err(std::io::Error::other("gone"))]);
        let request = Request::post("/v1/completions").body(Body::from_stream(broken)).unwrap();
        assert_eq!(send(&loopback(any()), request).await.status, 400);
    }

    #[tokio::test]
    async fn json_is_taken_whatever_it_is_called() {
        let body = json!({"model": "fake", "input": "a"}).to_string();
        for content_type in ["text/plain", "application/json; charset=utf-8", "application/x-www-form-urlencoded"] {
            let request = Request::post("/v1/embeddings")
                .header("content-type", content_type)
                .body(Body::from(body.clone()))
                .unwrap();
            assert_eq!(send(&loopback(any()), request).await.status, 200, "{content_type}");
        }
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_in_the_dialect_of_their_place() {
    let router = loopback(any());
    assert_snapshot!("unknown_openai", get(&router, "/v1/nowhere").await.shown());
    assert_snapshot!("unknown_ollama", get(&router, "/api/nowhere").await.shown());
    assert_snapshot!("unknown_native", get(&router, "/nowhere").await.shown());
    assert_snapshot!("method_openai", get(&router, "/v1/chat/completions").await.shown());
    assert_snapshot!("method_ollama", get(&router, "/api/chat").await.shown());
    assert_snapshot!("method_native", post(&router, "/health", "").await.shown());
}

#[tokio::test]
async fn the_native_routes_have_their_shapes() {
    let router = loopback(any());
    assert_snapshot!("health", get(&router, "/health").await.shown());
    assert_snapshot!("status", get(&router, "/status").await.shown());
    assert_snapshot!("identity", get(&router, "/identity").await.shown());
}

#[tokio::test]
async fn a_node_without_a_working_backend_cannot_infer_and_says_why() {
    let router = loopback(fake(FakeConfig { fail: Some(FakeFailure::Refuse), ..FakeConfig::default() }));
    let identity = get(&router, "/identity").await.json();
    assert_eq!(identity["ollama_running"], false);
    assert!(!identity["capabilities"].as_array().unwrap().contains(&json!("cpu_inference")));
    assert_eq!(identity["notes"], json!(["backend test: refuses, as configured"]));
}

#[tokio::test]
async fn a_panic_is_answered_and_takes_nothing_else_down() {
    struct Panicking;
    #[async_trait::async_trait]
    impl bombus_infer::Backend for Panicking {
        async fn models(&self) -> Result<Vec<bombus_core::model::ModelInfo>, bombus_infer::BackendError> {
            panic!("as the test wants")
        }
        async fn chat(
            &self,
            _: bombus_core::chat::ChatRequest,
        ) -> Result<bombus_infer::ChatStream, bombus_infer::BackendError> {
            unreachable!("no model is ever found")
        }
        async fn embed(
            &self,
            _: bombus_core::chat::EmbedRequest,
        ) -> Result<bombus_core::chat::EmbedResponse, bombus_infer::BackendError> {
            unreachable!("no model is ever found")
        }
        async fn health(&self) -> bombus_infer::Health {
            bombus_infer::Health::Ready
        }
    }
    let router = loopback(services(Panicking));
    assert_snapshot!(get(&router, "/v1/models").await.shown());
    assert_eq!(get(&router, "/health").await.status, 200);
}

mod metrics {
    use super::*;

    #[tokio::test]
    async fn requests_tokens_and_other_samples_are_shown() {
        let services = services(scripted(vec![text("a"), text("b"), done(FinishReason::Stop)]));
        services.metrics.add_source(|| {
            vec![
                Sample {
                    name: "model_bytes",
                    kind: SampleKind::Gauge,
                    help: "Memory of a loaded model",
                    labels: vec![("model", "m".into())],
                    value: 5.0,
                },
                Sample {
                    name: "model_bytes",
                    kind: SampleKind::Gauge,
                    help: "Memory of a loaded model",
                    labels: vec![("model", "n".into())],
                    value: 6.5,
                },
                Sample {
                    name: "deaths",
                    kind: SampleKind::Counter,
                    help: "Processes that ended",
                    labels: Vec::new(),
                    value: 2.0,
                },
            ]
        });
        let router = loopback(services);
        let chat = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
        post(&router, "/v1/chat/completions", &chat).await;
        get(&router, "/v1/models/some/client/text").await;
        let shown = get(&router, "/metrics").await;
        assert_eq!(shown.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
        // Times differ from run to run; what they are measured for does not.
        let lines = shown.body.lines().filter(|line| !line.contains("_bucket{") && !line.contains("_sum{"));
        let mut lines: Vec<_> = lines.collect();
        lines.sort_unstable();
        assert_snapshot!(lines.join("\n"));
    }

    #[tokio::test]
    async fn tokens_of_answers_that_never_end_are_counted() {
        let router = loopback(services(scripted(vec![text("a"), text("b")])));
        let chat = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "x"}]}).to_string();
        let request = Request::post("/v1/chat/completions").body(Body::from(chat)).unwrap();
        let response = tower::ServiceExt::oneshot(router.clone(), request).await.unwrap();
        let mut frames = response.into_body().into_data_stream();
        // Events that are ready together come as one piece.
        let mut seen = String::new();
        while !["a", "b"].iter().all(|word| seen.contains(&format!("\"content\":\"{word}\""))) {
            seen += std::str::from_utf8(&frames.next().await.unwrap().unwrap()).unwrap();
        }
        drop(frames);
        let shown = get(&router, "/metrics").await.body;
        let counted = "bombus_completion_tokens_total{model=\"m:latest\",backend=\"test\"} 2";
        assert!(shown.contains(counted), "{shown}");
    }

    #[tokio::test]
    async fn nothing_that_a_client_writes_becomes_a_label() {
        let router = loopback(any());
        let wanted = json!({"model": "written-by-a-client", "messages": [{"role": "user", "content": "x"}]});
        post(&router, "/v1/chat/completions", &wanted).await;
        get(&router, "/written-by-a-client").await;
        get(&router, "/v1/models/written-by-a-client").await;
        let odd = Request::builder().method("WRITTEN-BY-A-CLIENT").uri("/health").body(Body::empty()).unwrap();
        send(&router, odd).await;
        let shown = get(&router, "/metrics").await.body.to_lowercase();
        assert!(!shown.contains("written-by-a-client"), "{shown}");
    }

    #[tokio::test]
    async fn names_of_models_become_labels_only_up_to_a_bound() {
        let models = (0..300).map(|number| ModelName::parse(&format!("m{number}")).unwrap()).collect();
        let router = loopback(fake(FakeConfig { models, ..FakeConfig::default() }));
        for number in 0..300 {
            let chat = json!({"model": format!("m{number}"), "messages": [{"role": "user", "content": "x"}]});
            assert_eq!(post(&router, "/v1/chat/completions", &chat).await.status, 200);
        }
        let embed = json!({"model": "m299", "input": "x"});
        post(&router, "/v1/embeddings", &embed).await;
        let shown = get(&router, "/metrics").await.body;
        let label = |line: &str| Some(line.split_once("model=\"")?.1.split_once('"')?.0.to_owned());
        let labels: BTreeSet<String> = shown.lines().filter_map(label).collect();
        assert_eq!(labels.len(), 256 + 1, "{labels:?}");
        assert!(labels.contains("m0:latest") && !labels.contains("m299:latest"), "{labels:?}");
        let others = "bombus_queue_seconds_count{model=\"other\",backend=\"test\"} 44";
        assert!(shown.contains(others), "{shown}");
    }
}

mod document {
    use super::*;

    async fn document() -> Value {
        get(&loopback(any()), "/openapi.json").await.json()
    }

    #[tokio::test]
    async fn it_names_every_route() {
        let document = document().await;
        let routes: Vec<String> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| format!("{method} {path}")))
            .collect();
        assert_snapshot!(routes.join("\n"));
    }

    #[test]
    fn no_route_is_missing() {
        let (router, document) = crate::router::routes().split_for_parts();
        // A router lists its routes in no other way. The one left out is its own, for what nothing answers.
        let shown = format!("{router:?}");
        let is_route = |text: &&str| text.starts_with('/') && *text != "/{*__private__axum_fallback}";
        let mut routes: Vec<&str> = shown.split('"').filter(is_route).collect();
        let mut documented: Vec<&str> = document.paths.paths.keys().map(String::as_str).collect();
        documented.push(crate::router::MODEL_WITH_SLASHES);
        for list in [&mut routes, &mut documented] {
            list.sort_unstable();
            list.dedup();
        }
        assert_eq!(routes, documented);
    }

    #[tokio::test]
    async fn every_route_that_it_names_answers() {
        let ended = ScriptedMesh {
            peers: vec![peer("12D3KooWHive", "hive")],
            feed: vec![FeedItem::Lagged { missed: None }],
            ..ScriptedMesh::default()
        };
        let row = DatabaseRow { hash: "zdpuA".into(), key: Some("a".into()), value: Value::Null };
        let changed = Scripted {
            rows: vec![Ok(row)],
            changes: vec![DatabaseChange::Lagged { missed: 1 }],
            ..scripted_database(DatabaseType::Documents)
        };
        let tasks: Option<Arc<dyn Tasks>> = Some(Arc::new(ScriptedTasks::default()));
        let (services, key) = with_session_key(Services {
            mesh: Some(Arc::new(ended)),
            databases: Some(Arc::new(changed)),
            tasks,
            files: Some(Arc::new(ScriptedFiles::with_a_batch())),
            ..any()
        });
        let router = loopback(services);
        for (path, item) in document().await["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                let path = path
                    .replace("/task/{id}", &format!("/task/{TASK}"))
                    .replace("{id}", "fake")
                    .replace("{digest}", &format!("sha256:{}", "0".repeat(64)));
                // It is removed before somebody wants to read it.
                let path =
                    path.replace("{file_id}/content", &format!("{}/content", Computed::Output.file_of(&the_batch())));
                let path = path.replace("{file_id}", &the_file()).replace("{batch_id}", &the_batch());
                let path = path.replace("{peer}", "hive").replace("{database}", "notes");
                let request = Request::builder().method(method.to_uppercase().as_str()).uri(&path);
                let request = request.header("x-api-key", &key).body(Body::empty()).unwrap();
                let answer = send(&router, request).await;
                assert!(answer.status == 200 || answer.status == 400, "{method} {path}: {}", answer.body);
            }
        }
    }

    #[tokio::test]
    async fn every_reference_in_it_leads_somewhere() {
        let document = document().await;
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[tokio::test]
    async fn every_operation_has_an_id_of_its_own() {
        let document = document().await;
        let operations =
            document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
        let mut ids: Vec<_> = operations.map(|operation| operation["operationId"].as_str().unwrap()).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[tokio::test]
    async fn it_is_as_reviewed() {
        let document = document().await;
        assert_snapshot!(serde_json::to_string_pretty(&document).unwrap());
    }
}

#[tokio::test]
async fn every_line_logged_for_a_request_carries_its_id() {
    let (log, _guard) = testing::capture_log();
    let router = loopback(services(scripted(vec![
        text("a"),
        Err(bombus_infer::BackendError::Interrupted { reason: "broken in the middle".into() }),
    ])));
    let body = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "a secret prompt"}]});
    let request =
        Request::post("/v1/chat/completions").header("x-request-id", "my-id").body(Body::from(body.to_string()));
    send(&router, request.unwrap()).await;
    let lines = log.lines();
    let failed = lines.iter().find(|line| line.contains("broken in the middle")).expect("the failure is logged");
    let finished = lines.iter().find(|line| line.contains("request finished")).expect("the end is logged");
    assert!(lines.iter().all(|line| line.contains("request_id=\"my-id\"")), "{lines:#?}");
    assert!(failed.contains("WARN"), "{failed}");
    for part in ["http.method=\"POST\"", "http.route=\"/v1/chat/completions\"", "http.status=200", "duration_ms="] {
        assert!(finished.contains(part), "{finished}");
    }
    assert!(lines.iter().all(|line| !line.contains("secret prompt")));
}

mod routing {
    use bombus_core::model::ModelCapability::{Completion, Vision};
    use bombus_infer::{BackendError, NamedBackend};

    use super::*;
    use crate::testing::{Scripted, model, refusing, services_over};

    fn three() -> Services {
        let down = refusing(BackendError::Unavailable { reason: "connection refused".into() });
        let sees = Scripted { models: vec![model("m", &[Completion, Vision])], ..Scripted::default() };
        let other = Scripted { models: vec![model("other", &[Completion])], ..Scripted::default() };
        let named = |(name, backend)| NamedBackend::new(name, "openai", Arc::new(backend) as Arc<_>);
        services_over([("down", down), ("sees", sees), ("other", other)].map(named).into())
    }

    #[tokio::test(start_paused = true)]
    async fn the_backends_are_listed_with_their_state() {
        let router = loopback(three());
        let chat = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
        assert_snapshot!("backends_before", get(&router, "/backends").await.shown());
        for _ in 0..3 {
            let stopped = post(&router, "/v1/chat/completions", &chat);
            // The second backend never ends its answer; the first has failed by then.
            assert!(tokio::time::timeout(Duration::from_millis(20), stopped).await.is_err());
        }
        let states = get(&router, "/backends").await.json();
        let down = &states["backends"][0];
        assert_eq!((&down["breaker"], &down["ready"]), (&json!("open"), &json!(false)), "{states}");
        assert_eq!(down["error"], "connection refused");
    }

    #[tokio::test]
    async fn a_route_is_explained() {
        let router = loopback(three());
        assert_snapshot!("route", get(&router, "/route?model=m&capabilities=completion,vision").await.shown());
        let nowhere = get(&router, "/route?model=nope").await.json();
        assert!(nowhere["candidates"].as_array().unwrap().iter().all(|one| one["rejected"].is_string()), "{nowhere}");
    }

    #[tokio::test]
    async fn a_route_that_cannot_be_asked_for_is_refused() {
        let router = loopback(three());
        for (path, status) in
            [("/route", 400), ("/route?model=m&capabilities=flying", 400), ("/route?model=..%2Fx", 404)]
        {
            assert_eq!(get(&router, path).await.status, status, "{path}");
        }
    }
}
