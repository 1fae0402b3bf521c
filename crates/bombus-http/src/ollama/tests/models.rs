//! What is told about models and the node.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bombus_core::chat::{Message, Role};
use bombus_core::model::{ModelCapability, ModelDetails, ModelInfo, ModelName, RunningModel};
use bombus_infer::{BackendError, NamedBackend};
use insta::assert_snapshot;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::saying_good_day;
use crate::testing::{
    Scripted, get, loopback, model, other_node, post, refusing, send, services, services_over, swarm_of,
};

fn known() -> ModelInfo {
    ModelInfo {
        size_bytes: Some(98_362_432),
        sha256: Some("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".into()),
        modified_unix_s: 1_700_000_000,
        family: Some("llama".into()),
        parameters: Some(134_515_008),
        quantization: Some("Q4_1".into()),
        context_tokens: Some(8_192),
        ..model("smollm2:135m", &[ModelCapability::Completion, ModelCapability::Tools])
    }
}

fn object(value: Value) -> serde_json::Map<String, Value> {
    let Value::Object(object) = value else { panic!("an object is needed") };
    object
}

fn two_models() -> Scripted {
    let running = |info, expires_unix_s| RunningModel {
        info,
        memory_bytes: 200_000_000,
        gpu_bytes: 0,
        context_tokens: 4_096,
        expires_unix_s,
    };
    let unknown = model("elsewhere", &[ModelCapability::Completion]);
    Scripted {
        details: ModelDetails {
            parent: Some(ModelName::parse("smollm2").unwrap()),
            licenses: vec!["Apache-2.0".into(), "and\nmore".into()],
            template: "{{ .System }}\n{{ .Prompt }}".into(),
            system: "You are brief.".into(),
            parameters: object(json!({"temperature": 0.5, "stop": ["<|im_end|>", "\n"]})),
            messages: vec![Message::text(Role::User, "hi"), Message::text(Role::Assistant, "hello")],
            metadata: object(json!({
                "general.architecture": "llama", "general.name": "SmolLM2", "llama.context_length": 8192,
                "tokenizer.chat_template": "long", "tokenizer.ggml.tokens": ["a", "b", "c", "d", "e", "f"],
            })),
            ..ModelDetails::default()
        },
        running: vec![running(known(), Some(1_800_000_000)), running(unknown.clone(), None)],
        models: vec![unknown, known()],
        ..Scripted::default()
    }
}

#[tokio::test]
async fn a_model_that_generates_text_is_no_embedding_model() {
    use ModelCapability::{Completion, Embedding};
    let models = vec![model("both", &[Completion, Embedding]), model("vectors", &[Embedding])];
    let router = loopback(services(Scripted { models, ..Scripted::default() }));
    for (name, told) in [("both", "completion"), ("vectors", "embedding")] {
        let shown = post(&router, "/api/show", json!({ "model": name })).await.json();
        assert_eq!((&shown["capabilities"], &shown["template"]), (&json!([told]), &json!("{{ .Prompt }}")));
    }
}

#[tokio::test]
async fn models_are_listed_newest_first() {
    assert_snapshot!(get(&loopback(services(two_models())), "/api/tags").await.shown());
}

#[tokio::test]
async fn models_in_memory_are_listed_with_those_that_stay_first() {
    assert_snapshot!(get(&loopback(services(two_models())), "/api/ps").await.shown());
}

#[tokio::test]
async fn models_in_the_memory_of_other_nodes_are_listed_with_where_they_are() {
    let others = vec![other_node(2, "hive", two_models())];
    let services = swarm_of(vec![NamedBackend::new("test", "fake", Arc::new(two_models()))], others).await;
    let listed = get(&loopback(services), "/api/ps").await.json();
    let models = listed["models"].as_array().unwrap();
    let names: Vec<_> = models.iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["elsewhere:latest", "smollm2:135m"], "each name once");
    for model in models {
        let nodes = model["bombus"]["nodes"].as_array().unwrap();
        let told: Vec<_> = nodes.iter().map(|node| node["name"].as_str().unwrap()).collect();
        assert_eq!(told, ["bee", "hive"], "the own one first");
    }
}

#[tokio::test]
async fn everything_about_a_model_is_shown() {
    let router = loopback(services(two_models()));
    let shown = post(&router, "/api/show", json!({"name": "smollm2:135m", "options": null})).await;
    assert_snapshot!("show", shown.shown());
    assert_snapshot!("modelfile", shown.json()["modelfile"].as_str().unwrap());

    let request = json!({"model": "smollm2:135m", "verbose": true, "system": "Else."});
    let verbose = post(&router, "/api/show", request).await.json();
    assert_eq!(verbose["model_info"]["tokenizer.ggml.tokens"].as_array().unwrap().len(), 6);
    assert_eq!(verbose["system"], "Else.");
}

#[tokio::test]
async fn what_an_ollama_server_alone_knows_of_a_model_is_shown() {
    let projector = json!({"general.architecture": "clip", "general.parameter_count": 7});
    let details = ModelDetails {
        renderer: "qwen3-coder".into(),
        parser: "qwen3".into(),
        requires: "0.14.0".into(),
        projector: object(projector.clone()),
        ..ModelDetails::default()
    };
    let router = loopback(services(Scripted { details, ..saying_good_day() }));
    let shown = post(&router, "/api/show", json!({"model": "m"})).await.json();
    let told = ["renderer", "parser", "requires", "projector_info"].map(|field| shown[field].clone());
    assert_eq!(told, [json!("qwen3-coder"), json!("qwen3"), json!("0.14.0"), projector]);
    let modelfile = shown["modelfile"].as_str().unwrap();
    assert!(modelfile.ends_with("RENDERER qwen3-coder\nPARSER qwen3\n"), "{modelfile}");
}

#[tokio::test]
async fn what_the_backend_does_not_know_of_the_file_is_told_where_it_is_known() {
    let backend = Scripted { models: vec![known()], ..Scripted::default() };
    let request = Request::post("/api/show")
        .header("user-agent", "GitHubCopilotChat/0.30")
        .body(Body::from(json!({"model": "smollm2:135m"}).to_string()));
    let shown = send(&loopback(services(backend)), request.unwrap()).await.json();
    assert_eq!(
        shown["model_info"],
        json!({
            "general.architecture": "llama", "llama.context_length": 8_192, "general.parameter_count": 134_515_008,
            "general.basename": "smollm2:135m",
        })
    );
}

#[tokio::test]
async fn clients_find_what_they_look_for_first() {
    let router = loopback(services(two_models()));
    let root = get(&router, "/").await;
    assert_eq!((root.status.as_u16(), root.body.as_str()), (200, "Ollama is running"));
    assert_eq!(get(&router, "/api/version").await.json(), json!({"version": "0.24.0"}));
    assert_eq!(get(&router, "/api/status").await.json(), json!({"cloud": {"disabled": true, "source": "config"}}));
    for path in ["/", "/api/version", "/api/tags"] {
        let answer = send(&router, Request::head(path).body(Body::empty()).unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, ""), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_is_described_by_the_next_backend_that_has_it_where_one_hangs_or_fails() {
    let broken = BackendError::Unavailable { reason: "no connection".into() };
    let hangs = Scripted { keeps_details: true, ..saying_good_day() };
    let fails = Scripted { refusal: Some(broken.clone()), ..saying_good_day() };
    let details = ModelDetails { system: "Be brief".into(), ..ModelDetails::default() };
    let tells = Scripted { details, ..saying_good_day() };
    let named = |name: &str, backend: Scripted| NamedBackend::new(name, "fake", Arc::new(backend));
    let router = loopback(services_over(vec![named("a", hangs), named("b", fails), named("c", tells)]));
    let begun = Instant::now();
    let shown = post(&router, "/api/show", json!({"model": "m"})).await;
    assert_eq!((shown.status.as_u16(), &shown.json()["system"]), (200, &json!("Be brief")));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    let hang = (0..20).map(|number| {
        let hangs = Scripted { keeps_details: true, ..saying_good_day() };
        named(&number.to_string(), hangs)
    });
    let (router, begun) = (loopback(services_over(hang.collect())), Instant::now());
    let late = post(&router, "/api/show", json!({"model": "m"})).await;
    assert_eq!((late.status.as_u16(), begun.elapsed()), (504, Duration::from_mins(1)), "{}", late.body);

    let refused = post(&loopback(services(refusing(broken))), "/api/show", json!({"model": "m"})).await;
    assert_eq!((refused.status.as_u16(), refused.body.contains("no connection")), (503, true), "{}", refused.body);
}
