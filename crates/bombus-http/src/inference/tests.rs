//! Requests that are answered somewhere in the swarm, in every dialect.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use bombus_core::chat::{Answerer, ChatEvent, FinishReason};
use bombus_core::model::ModelInfo;
use bombus_infer::{BackendError, NamedBackend, PeerNow};
use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::testing::{
    Answer, Scripted, done, get, loopback, node_id, other_node, other_node_at, post, scripted, send, swarm_of, text,
};

/// A backend that says a word and can go on with what others began.
fn says(word: &str) -> Scripted {
    can_go_on(Scripted { vectors: vec![vec![1.0, 0.0]], ..scripted(vec![text(word), done(FinishReason::Stop)]) })
}

fn can_go_on(backend: Scripted) -> Scripted {
    let models = backend.models.into_iter().map(|info| ModelInfo { continues: true, ..info }).collect();
    Scripted { models, ..backend }
}

/// A backend that breaks off after a word.
fn breaks_after(word: &str) -> Scripted {
    let broken = BackendError::Interrupted { reason: "it was\nstopped".into() };
    can_go_on(scripted(vec![text(word), Err(broken)]))
}

fn here(backend: Scripted) -> NamedBackend {
    NamedBackend::new("embedded", "embedded", Arc::new(backend))
}

/// Another node, which tells by which of its backends it answers.
fn there(number: u8, name: &str, backend: Scripted) -> NamedBackend {
    let by = Answerer { node: Some(node_id(number)), backend: "vllm".into(), model: "m:latest".into() };
    let events = std::iter::once(Ok(ChatEvent::AnsweredBy(by))).chain(backend.events).collect();
    other_node(number, name, Scripted { events, ..backend })
}

/// This node, "bee", and another one, "hive", both with the model `m`.
async fn two_nodes() -> Router {
    loopback(swarm_of(vec![here(says("here"))], vec![there(2, "hive", says("there"))]).await)
}

/// The routes that ask a model, each with a request and whether it makes vectors.
fn asking() -> [(&'static str, Value); 7] {
    let messages = json!([{"role": "user", "content": "x"}]);
    [
        ("/v1/chat/completions", json!({"model": "m", "messages": messages})),
        ("/v1/completions", json!({"model": "m", "prompt": "x"})),
        ("/v1/embeddings", json!({"model": "m", "input": "x"})),
        ("/api/chat", json!({"model": "m", "messages": messages})),
        ("/api/generate", json!({"model": "m", "prompt": "x"})),
        ("/api/embed", json!({"model": "m", "input": "x"})),
        ("/api/embeddings", json!({"model": "m", "prompt": "x"})),
    ]
}

async fn scoped(router: &Router, path: &str, body: &Value, scope: &[&str]) -> Answer {
    let request = Request::post(path);
    let request = scope.iter().fold(request, |request, scope| request.header("x-bombus-scope", *scope));
    send(router, request.body(Body::from(body.to_string())).unwrap()).await
}

fn node_of(answer: &Answer) -> &str {
    answer.header("x-bombus-route").and_then(|route| route.split(';').next()).unwrap_or(&answer.body)
}

#[tokio::test]
async fn a_request_runs_where_its_header_says() {
    let router = two_nodes().await;
    let (bee, hive) = (node_id(1), node_id(2));
    let by_id = format!("node={hive}");
    for (path, body) in asking() {
        for (scope, node) in [
            ("local", &bee),
            ("remote", &hive),
            ("node=hive", &hive),
            ("node= HI", &hive),
            (by_id.as_str(), &hive),
            ("node=bee", &bee),
        ] {
            let answer = scoped(&router, path, &body, &[scope]).await;
            assert_eq!((answer.status.as_u16(), node_of(&answer)), (200, node.as_str()), "{path} {scope}");
        }
        let anywhere = scoped(&router, path, &body, &[]).await;
        assert_eq!(node_of(&anywhere), bee.as_str(), "of equals the own node is asked: {path}");
    }
}

#[tokio::test]
async fn what_is_loaded_is_loaded_where_the_header_says() {
    let (bee, hive) = (says("here"), says("there"));
    let moves = (bee.moves.clone(), hive.moves.clone());
    let router = loopback(swarm_of(vec![here(bee)], vec![there(2, "hive", hive)]).await);
    let load = json!({"model": "m"});
    for (scope, node) in [("local", node_id(1)), ("remote", node_id(2))] {
        let answer = scoped(&router, "/api/generate", &load, &[scope]).await;
        assert_eq!((answer.status.as_u16(), node_of(&answer)), (200, node.as_str()), "{scope}");
    }
    let ended = json!({"model": "m", "keep_alive": 0});
    assert_eq!(scoped(&router, "/api/generate", &ended, &[]).await.status, 200);
    let elsewhere = scoped(&router, "/api/generate", &ended, &["remote"]).await;
    assert_eq!(elsewhere.status, 400);
    assert!(elsewhere.body.contains("node hive, which decides itself"), "{}", elsewhere.body);
    assert_eq!(*moves.0.lock().unwrap(), ["load m:latest None", "unload m:latest"]);
    assert_eq!(*moves.1.lock().unwrap(), ["load m:latest None"], "what others keep in memory is theirs");
}

#[tokio::test]
async fn a_scope_that_is_none_is_refused_in_the_dialect_of_the_route() {
    let router = two_nodes().await;
    for (path, body) in asking() {
        for scope in [&["elsewhere"][..], &["node="], &[""], &["local", "remote"]] {
            let answer = scoped(&router, path, &body, scope).await;
            assert_eq!(answer.status, 400, "{path} {scope:?}");
            assert!(answer.body.contains("'local', 'remote', or 'node='"), "{}", answer.body);
        }
    }
    let [(chat, body), .., (embeddings, wanted)] = asking();
    assert_snapshot!("unknown_node_openai", scoped(&router, chat, &body, &["node=wasp"]).await.shown());
    assert_snapshot!("unknown_node_ollama", scoped(&router, embeddings, &wanted, &["node=wasp"]).await.shown());
}

#[tokio::test]
async fn a_node_that_is_named_and_cannot_answer_is_said_so() {
    let paused = PeerNow { reachable: true, paused: true, ..PeerNow::default() };
    let others = vec![other_node_at(2, "hive", paused, says("there"))];
    let router = loopback(swarm_of(vec![here(says("here"))], others).await);
    let [(chat, body), ..] = asking();
    let answer = scoped(&router, chat, &body, &["node=hive"]).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("paused"), "{}", answer.body);
}

#[tokio::test]
async fn a_model_outside_of_the_scope_is_said_to_be_elsewhere() {
    let router = loopback(swarm_of(Vec::new(), vec![there(2, "hive", says("there"))]).await);
    let [(chat, body), ..] = asking();
    let answer = scoped(&router, chat, &body, &["local"]).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (404, &json!("model_not_found")));
    assert!(answer.body.contains("it is on node 'hive'"), "{}", answer.body);
}

/// Where the first word comes from here and the second from elsewhere.
async fn broken_here() -> Router {
    loopback(swarm_of(vec![here(breaks_after("one "))], vec![there(2, "hive", says("two"))]).await)
}

#[tokio::test(start_paused = true)]
async fn a_comment_and_the_last_chunk_say_who_went_on() {
    let [(chat, body), (completions, wanted), ..] = asking();
    let streamed = |mut body: Value| {
        body["stream"] = true.into();
        body
    };
    assert_snapshot!("chat_stream", post(&broken_here().await, chat, streamed(body)).await.shown());
    assert_snapshot!("completion_stream", post(&broken_here().await, completions, streamed(wanted)).await.shown());
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_says_who_went_on_and_its_header_names_the_last() {
    let [(chat, body), (completions, wanted), ..] = asking();
    assert_snapshot!("chat_whole", post(&broken_here().await, chat, body).await.shown());
    assert_snapshot!("completion_whole", post(&broken_here().await, completions, wanted).await.shown());
}

#[tokio::test(start_paused = true)]
async fn the_last_line_says_who_went_on() {
    let [_, _, _, (chat, body), (generate, wanted), ..] = asking();
    assert_snapshot!("ollama_chat_stream", post(&broken_here().await, chat, &body).await.shown());
    let whole = |mut body: Value| {
        body["stream"] = false.into();
        body
    };
    assert_snapshot!("ollama_generate_whole", post(&broken_here().await, generate, whole(wanted)).await.shown());
}

#[tokio::test]
async fn of_several_answers_none_is_continued() {
    let [(chat, mut body), ..] = asking();
    body["n"] = 2.into();
    body["stream"] = true.into();
    let answer = post(&broken_here().await, chat, body).await;
    assert!(answer.body.contains("it was") && !answer.body.contains("continued"), "{}", answer.body);
    assert!(!answer.body.contains("[DONE]"), "it ends with the error");
}

#[tokio::test]
async fn every_prompt_of_a_list_goes_on_by_itself() {
    let body = json!({"model": "m", "prompt": ["a", "b", "c"]});
    let answer = post(&broken_here().await, "/v1/completions", body).await.json();
    let continued = answer["bombus"]["continued"].as_array().expect("some began here");
    for (index, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
        // Load decides who gets which of them.
        let went_on = continued.iter().any(|one| one["index"] == index);
        assert_eq!(choice["text"], if went_on { "one two" } else { "two" }, "{answer}");
    }
}

#[tokio::test]
async fn where_answers_come_from_is_counted_without_naming_nodes() {
    let router = broken_here().await;
    let [(chat, body), _, (embeddings, wanted), ..] = asking();
    post(&router, chat, &body).await;
    scoped(&router, embeddings, &wanted, &["remote"]).await;
    let shown = get(&router, "/metrics").await.body;
    for line in [
        "bombus_requests_routed_total{place=\"local\"} 1",
        "bombus_requests_routed_total{place=\"remote\"} 1",
        "bombus_answers_continued_total{place=\"remote\"} 1",
        "bombus_prompt_tokens_total{model=\"m:latest\",backend=\"peer\"}",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
    assert!(!shown.contains(node_id(2).as_str()) && !shown.contains("vllm"), "{shown}");
}

mod models {
    use super::*;
    use crate::testing::{ScriptedLibrary, model};

    fn with_models(names: &[&str]) -> Scripted {
        let models = names.iter().map(|name| ModelInfo { size_bytes: Some(7), ..model(name, &[]) }).collect();
        Scripted { models, library: Some(ScriptedLibrary::default()), ..Scripted::default() }
    }

    /// `m` is on both nodes, `mine` here, `big` there.
    async fn swarm() -> Router {
        let peer = Scripted { library: None, ..with_models(&["m", "big"]) };
        loopback(swarm_of(vec![here(with_models(&["m", "mine"]))], vec![other_node(2, "hive", peer)]).await)
    }

    #[tokio::test]
    async fn every_list_is_the_union_with_each_name_once() {
        let router = swarm().await;
        let of = |list: &Value, key: &str| -> Vec<String> {
            let list = list.as_array().unwrap();
            let named = |one: &Value| {
                let nodes = one["bombus"]["nodes"].as_array().or_else(|| one["nodes"].as_array()).unwrap();
                let nodes: Vec<&str> = nodes.iter().filter_map(|node| node["name"].as_str()).collect();
                format!("{} on {}", one[key].as_str().unwrap(), nodes.join(","))
            };
            let mut names: Vec<String> = list.iter().map(named).collect();
            names.sort_unstable();
            names
        };
        let wanted = ["big:latest on hive", "m:latest on bee,hive", "mine:latest on bee"];
        assert_eq!(of(&get(&router, "/v1/models").await.json()["data"], "id"), wanted);
        assert_eq!(of(&get(&router, "/api/tags").await.json()["models"], "name"), wanted);
        assert_eq!(of(&get(&router, "/models").await.json()["models"], "name"), wanted);
        assert_snapshot!("models", get(&router, "/models").await.shown());
    }

    #[tokio::test]
    async fn a_model_of_another_node_is_described() {
        let router = swarm().await;
        let told = get(&router, "/v1/models/big").await.json();
        assert_eq!((&told["owned_by"], &told["bombus"]["nodes"][0]["name"]), (&json!("hive"), &json!("hive")));
        let shown = post(&router, "/api/show", json!({"model": "big"})).await;
        assert_eq!(shown.status, 200, "{}", shown.body);
    }

    #[tokio::test]
    async fn what_this_node_has_itself_is_told_apart() {
        let router = swarm().await;
        for path in ["/identity", "/status"] {
            let told = get(&router, path).await.json();
            let models = told.get("available_models").or_else(|| told.get("ollama_models"));
            assert_eq!(models, Some(&json!(["m:latest", "mine:latest"])), "{path}");
        }
    }

    #[tokio::test]
    async fn a_model_that_only_another_node_has_is_managed_there() {
        let router = swarm().await;
        let delete = Request::delete("/api/delete").body(Body::from(json!({"model": "big"}).to_string())).unwrap();
        assert_snapshot!("delete_elsewhere", send(&router, delete).await.shown());
        let copy = post(&router, "/api/copy", json!({"source": "big", "destination": "b"})).await;
        assert!(copy.status == 400 && copy.body.contains("on node hive"), "{}", copy.body);
        let create = post(&router, "/api/create", json!({"model": "b", "from": "big", "system": "Hum."})).await;
        assert!(create.status == 400 && create.body.contains("bombus models pull big"), "{}", create.body);
    }
}

#[tokio::test]
async fn a_route_is_explained_with_the_names_of_nodes() {
    let router = two_nodes().await;
    assert_snapshot!("route", get(&router, "/route?model=m").await.shown());
    let only = get(&router, "/route?model=m&scope=node=hive").await.json();
    let [first, second] = [&only["candidates"][0], &only["candidates"][1]];
    assert_eq!((&first["node"], &first["here"]), (&json!("hive"), &json!(false)), "{only}");
    assert!(second["rejected"].is_string() && second["node"] == "bee", "{only}");
    assert_eq!(get(&router, "/route?model=m&scope=nowhere").await.status, 400);
    assert_eq!(get(&router, "/route?model=m&scope=node=wasp").await.status, 404);
}

#[tokio::test]
async fn the_state_of_other_nodes_is_shown() {
    let busy = PeerNow { reachable: true, running: 2, waiting: 1, slots: Some(4), ..PeerNow::default() };
    let paused = PeerNow { reachable: true, paused: true, ..PeerNow::default() };
    let gone = PeerNow::default();
    let others = [(2, "hive", busy), (3, "nest", paused), (4, "old", gone)];
    let others = others.map(|(number, name, now)| other_node_at(number, name, now, says("x"))).into();
    let router = loopback(swarm_of(vec![here(says("here"))], others).await);
    let peers = get(&router, "/peers").await.json();
    let told = json!({"paused": false, "draining": false, "running": 2, "waiting": 1, "slots": 4});
    assert_eq!(peers[0]["sharing"], told);
    assert_eq!((&peers[1]["sharing"]["paused"], &peers[2]["sharing"]), (&json!(true), &Value::Null));
    assert_eq!(get(&router, "/swarm").await.json()["paused"], json!(["nest"]));
    let states = get(&router, "/backends").await.json();
    assert_eq!(states["backends"][1]["node_name"], "hive");
    assert_eq!(states["backends"][1]["peer"]["running"], 2, "{states}");
}
