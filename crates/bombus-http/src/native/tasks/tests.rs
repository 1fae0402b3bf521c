//! The routes of the tasks, over some that do what a test wants.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bombus_core::chat::{Message, Role};
use bombus_infer::fake::FakeConfig;
use futures::StreamExt;
use insta::assert_snapshot;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tower::ServiceExt;

use super::scripted::{ScriptedTasks, completed, pending};
use crate::tasks::{Chunking, TaskInput, TaskNews, TaskOptions, TaskState, TasksError, Work};
use crate::testing::{Answer, LOOPBACK, ScriptedMesh, fake, get, loopback, peer, post, send, with_session_key};
use crate::{HttpConfig, Services, router};

fn over(tasks: &ScriptedTasks) -> Services {
    let mesh = ScriptedMesh { peers: vec![peer("12D3KooWHive", "hive")], ..ScriptedMesh::default() };
    let (tasks, mesh) = (Arc::new(tasks.clone()), Arc::new(mesh));
    let base = fake(FakeConfig::default());
    Services { tasks: Some(tasks), mesh: Some(mesh), default_model: Some("fake".into()), ..base }
}

fn inference(prompt: &str) -> Value {
    json!({ "task_type": "inference", "payload": { "prompt": prompt } })
}

async fn with_key(tasks: &ScriptedTasks, key: &str, body: Value) -> Answer {
    let request = Request::post("/task").header("idempotency-key", key).body(Body::from(body.to_string()));
    send(&loopback(over(tasks)), request.unwrap()).await
}

#[tokio::test]
async fn a_task_is_accepted_and_found_by_its_location() {
    let tasks = ScriptedTasks::default();
    let router = loopback(over(&tasks));
    let answer = post(&router, "/task", inference("Hi")).await;
    assert_snapshot!("tasks_submit", answer.shown());
    assert_snapshot!("tasks_info", get(&router, answer.header("location").unwrap()).await.shown());
    let chunked = json!({ "payload": { "prompt": "long" }, "chunk": "size", "max_chunk": 10.0 });
    assert_eq!(post(&router, "/task", chunked).await.json()["chunks"], 2);
    assert!(get(&router, "/task/task-1?result=false").await.json().get("result").is_none());
}

#[tokio::test]
async fn everything_that_a_request_says_arrives() {
    let tasks = ScriptedTasks::default();
    let body = json!({
        "task_id": "task-ab12", "task_type": "inference", "source_node": "n", "priority": 9, "timeout_seconds": 60,
        "payload": {
            "model": "m", "messages": [{ "role": "user", "content": "Hi" }], "system": "Be brief.", "temperature": 0.5,
            "max_tokens": 7, "stop": ["."], "format": "json", "options": { "top_k": 4, "num_predict": 99, "seed": 3 },
        },
        "to": "hive", "max_attempts": 2, "batch": { "id": "nightly", "item": "line 1" },
    });
    assert_eq!(post(&loopback(over(&tasks)), "/task", body).await.status, 202);
    let mut submitted = tasks.submitted.lock().unwrap();
    let task = submitted.pop().unwrap();
    let options = TaskOptions {
        temperature: Some(0.5),
        top_k: Some(4),
        max_tokens: Some(7),
        stop: vec![".".into()],
        seed: Some(3),
        json: true,
        ..TaskOptions::default()
    };
    let input = TaskInput::Messages(vec![Message::text(Role::User, "Hi")]);
    assert_eq!(task.work, Work::Inference { input, system: Some("Be brief.".into()), options });
    assert_eq!((task.model.as_deref(), task.task_id.as_deref()), (Some("m"), Some("task-ab12")));
    assert_eq!((task.priority, task.timeout, task.max_attempts), (9, Duration::from_secs(60), Some(2)));
    assert_eq!((task.to.as_deref(), task.chunking), (Some("12D3KooWHive"), Chunking::None));
    assert_eq!(task.batch.unwrap().item, "line 1");
}

#[tokio::test]
async fn a_task_is_sealed_where_the_request_says_so() {
    let tasks = ScriptedTasks::default();
    let router = loopback(over(&tasks));
    for (sealing, expected) in [
        (json!({}), None),
        (json!({ "encrypt": false }), None),
        (json!({ "encrypt": true }), Some(1)),
        (json!({ "seal_to": 3 }), Some(3)),
        (json!({ "encrypt": true, "seal_to": 2 }), Some(2)),
    ] {
        let mut body = json!({ "payload": { "prompt": "Hi" } });
        body.as_object_mut().unwrap().extend(sealing.as_object().unwrap().clone());
        assert_eq!(post(&router, "/task", &body).await.status, 202);
        assert_eq!(tasks.submitted.lock().unwrap().pop().unwrap().seal_to, expected, "{body}");
    }
}

#[tokio::test]
async fn embeddings_and_pings_are_tasks_too() {
    let tasks = ScriptedTasks::default();
    let router = loopback(over(&tasks));
    let embedding = json!({ "task_type": "embedding", "payload": { "text": "bee" } });
    assert_eq!(post(&router, "/task", embedding).await.status, 202);
    let ping = json!({ "task_type": "ping", "payload": { "prompt": 7, "any": ["thing"] } });
    assert_eq!(post(&router, "/task", ping).await.status, 202);
    let submitted = tasks.submitted.lock().unwrap();
    assert_eq!(submitted[0].work, Work::Embedding { text: "bee".into() });
    assert_eq!(submitted[0].model.as_deref(), Some("fake"), "the node's default model");
    let payload = json!({ "prompt": 7, "any": ["thing"] });
    assert_eq!(submitted[1].work, Work::Ping { payload: payload.as_object().unwrap().clone() });
    assert_eq!(submitted[1].model, None);
}

#[tokio::test]
async fn a_request_that_says_too_little_or_too_much_is_refused() {
    let tasks = ScriptedTasks::default();
    let router = loopback(over(&tasks));
    let with = |field: &str, value: Value| {
        let mut body = inference("Hi");
        body[field] = value;
        body
    };
    let payload = |payload: Value| json!({ "payload": payload });
    for (body, named) in [
        (json!({}), "payload"),
        (payload(json!({})), "prompt"),
        (payload(json!({ "prompt": "a", "messages": [] })), "not both"),
        (payload(json!({ "messages": [] })), "payload.messages"),
        (payload(json!({ "messages": [{ "role": "tool", "content": "x" }] })), "payload.messages[0].role"),
        (payload(json!({ "prompt": 7 })), "payload.prompt"),
        (payload(json!({ "prompt": "a", "temperature": 3 })), "payload.temperature"),
        (payload(json!({ "prompt": "a", "max_tokens": 0 })), "payload.max_tokens"),
        (payload(json!({ "prompt": "a", "model": "" })), "payload.model"),
        (payload(json!({ "prompt": "a", "model": "no model!" })), "not a model name"),
        (payload(json!({ "prompt": "" })), "payload.prompt"),
        (json!({ "task_type": "embedding", "payload": { "text": "" } }), "payload.text"),
        (json!({ "task_type": "embedding", "payload": { "text": "a", "prompt": "b" } }), "payload.text"),
        (with("map", json!("x".repeat(8_193))), "map"),
        (with("batch", json!({ "id": "b", "item": "1", "total": 0 })), "batch.total"),
        (json!({ "task_type": "embedding", "payload": { "prompt": "a" } }), "payload.text"),
        (with("task_type", json!("code_run")), "task_type"),
        (with("task_id", json!("a b")), "task_id"),
        (with("task_id", json!("x".repeat(129))), "task_id"),
        (with("priority", json!(0)), "priority"),
        (with("priority", json!(11)), "priority"),
        (with("priority", json!(1.5)), "priority"),
        (with("timeout_seconds", json!(3_601)), "timeout_seconds"),
        (with("chunk", json!("word")), "chunk"),
        (with("max_chunk", json!(0)), "max_chunk"),
        (with("max_attempts", json!(0)), "max_attempts"),
        (with("seal_to", json!(0)), "seal_to"),
        (with("seal_to", json!(9)), "seal_to"),
        (json!({ "encrypt": false, "seal_to": 1, "payload": { "prompt": "a" } }), "seal_to"),
        (with("batch", json!({ "id": "b" })), "item"),
        (with("batch", json!({ "id": "b/c", "item": "1" })), "batch.id"),
        (with("batch", json!({ "id": "b", "item": "1\n" })), "batch.item"),
        (json!({ "chunk": "size", "payload": { "messages": [{ "role": "user", "content": "x" }] } }), "chunk"),
    ] {
        let answer = post(&router, "/task", &body).await;
        assert!(answer.status == 400 && answer.body.contains(named), "{body} {}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let refused = crate::tasks::check(&body).unwrap_err();
        assert_eq!(answer.json()["detail"], refused, "what is checked before is what is refused");
    }
    assert_eq!(crate::tasks::check(&with("to", json!("wasp"))), Ok(()), "who is there is for the node to say");
    assert_eq!(post(&router, "/task", with("to", json!("wasp"))).await.json()["code"], "peer_not_found");
    assert!(tasks.submitted.lock().unwrap().is_empty(), "nothing was submitted");
    for path in ["/task/a%20b", "/task/task-1?wait=61", "/task/task-1?wait=x", "/tasks?limit=0", "/tasks?status=lost"] {
        assert_eq!(get(&router, path).await.status, 400, "{path}");
    }
    for path in ["/task/none", "/task/none/stream", "/task/none?wait=1"] {
        assert_eq!(get(&router, path).await.json()["code"], "task_not_found", "{path}");
    }
}

#[tokio::test]
async fn who_submits_what_nobody_can_do_is_told_so() {
    let waiting = "no node that is here has the model 'm' for it";
    let tasks = ScriptedTasks { waiting: Some(waiting.to_owned()), ..ScriptedTasks::default() };
    let answer = post(&loopback(over(&tasks)), "/task", inference("Hi")).await.json();
    assert_eq!(answer["message"], format!("it is safe, and waits: {waiting}"));
    let done = post(&loopback(over(&ScriptedTasks::default())), "/task", inference("Hi")).await.json();
    assert_eq!((&done["message"], &done["encrypted"]), (&json!("it is safe, and will be done"), &json!(false)));
}

#[tokio::test]
async fn a_key_stands_for_one_request() {
    let tasks = ScriptedTasks::default();
    assert_eq!(with_key(&tasks, "once", inference("Hi")).await.status, 202);
    assert_eq!(tasks.submitted.lock().unwrap()[0].idempotency_key.as_deref(), Some("once"));
    let used = ScriptedTasks { refusal: Some(TasksError::Conflict("another".into())), ..ScriptedTasks::default() };
    let other = with_key(&used, "once", inference("Ho")).await;
    assert_eq!((other.status.as_u16(), &other.json()["code"]), (422, &json!("idempotency_key_reused")));
    let by_id = post(&loopback(over(&used)), "/task", json!({ "task_id": "t", "payload": { "prompt": "Hi" } })).await;
    assert_eq!((by_id.status.as_u16(), &by_id.json()["code"]), (409, &json!("task_exists")));
    for key in ["", "two words", &"x".repeat(256)] {
        assert_eq!(with_key(&tasks, key, inference("Hi")).await.status, 400, "{key:?}");
    }
    let both = json!({ "task_id": "t", "payload": { "prompt": "Hi" } });
    assert_eq!(with_key(&tasks, "once", both).await.status, 400);
}

#[tokio::test]
async fn tasks_are_listed_and_cancelled() {
    let tasks = ScriptedTasks::default();
    let router = loopback(over(&tasks));
    assert_snapshot!("tasks_list", get(&router, "/tasks").await.shown());
    get(&router, "/tasks?status=running&mine=true&batch=nightly&cursor=after-1&limit=2").await;
    let request = Request::delete("/task/task-1").body(Body::empty()).unwrap();
    assert_eq!(send(&router, request).await.json()["status"], "cancelled");
    let told = tasks.told();
    let wanted = [
        "list None false None None 100",
        "list Some(Running) true Some(\"nightly\") Some(\"after-1\") 2",
        "cancel task-1",
    ];
    assert_eq!(told, wanted);
}

#[tokio::test(start_paused = true)]
async fn an_end_is_waited_for_as_long_as_asked() {
    let ended = ScriptedTasks::default();
    let begun = Instant::now();
    get(&loopback(over(&ended)), "/task/task-1?wait=30").await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let endless = ScriptedTasks { endless: true, ..ScriptedTasks::default() };
    let answer = get(&loopback(over(&endless)), "/task/task-1?wait=30").await;
    assert_eq!((begun.elapsed(), &answer.json()["status"]), (Duration::from_secs(30), &json!("pending")));
}

#[tokio::test]
async fn a_stream_tells_pieces_new_beginnings_and_the_end() {
    let news = vec![
        TaskNews::State(Box::new(pending())),
        TaskNews::Attempt(1),
        TaskNews::Token("Go".into()),
        TaskNews::Attempt(2),
        TaskNews::Token("Hel".into()),
        TaskNews::Token("lo\n".into()),
        TaskNews::Done(Box::new(completed())),
        TaskNews::Token("never told".into()),
    ];
    let tasks = ScriptedTasks { news, ..ScriptedTasks::default() };
    assert_snapshot!("tasks_stream", get(&loopback(over(&tasks)), "/task/task-1/stream").await.shown());
    let failed = crate::tasks::TaskInfo {
        status: TaskState::Failed,
        result: None,
        error: Some("tried 3 times".into()),
        ..completed()
    };
    let tasks = ScriptedTasks { news: vec![TaskNews::Done(Box::new(failed))], ..ScriptedTasks::default() };
    let body = get(&loopback(over(&tasks)), "/task/task-1/stream").await.body;
    assert!(body.contains("\"done\":true") && body.contains("\"error\":\"tried 3 times\""), "{body}");
}

#[tokio::test]
async fn a_node_that_stops_ends_a_stream() {
    let tasks = ScriptedTasks { endless: true, ..ScriptedTasks::default() };
    let (router, app) = router::build(HttpConfig::default(), over(&tasks), LOOPBACK.into());
    let request = Request::get("/task/task-1/stream").body(Body::empty()).unwrap();
    let mut frames = router.oneshot(request).await.unwrap().into_body().into_data_stream();
    assert!(frames.next().await.is_some());
    app.stopping.cancel();
    let end = timeout(Duration::from_secs(10), frames.next()).await;
    assert!(end.expect("it ends without being waited for").is_none());
}

#[tokio::test]
async fn every_refusal_has_its_status_and_code() {
    let text = || "so it is".to_owned();
    let mut shown = String::new();
    for error in [
        TasksError::UnknownTask(text()),
        TasksError::Conflict(text()),
        TasksError::Invalid { param: "payload.prompt", message: text() },
        TasksError::Full(text()),
        TasksError::Unavailable(text()),
        TasksError::Failed(text()),
    ] {
        let tasks = ScriptedTasks { refusal: Some(error), ..ScriptedTasks::default() };
        let answer = post(&loopback(over(&tasks)), "/task", inference("Hi")).await;
        let retry = answer.header("retry-after").unwrap_or("-");
        shown += &format!("{} {} {retry}\n", answer.status.as_u16(), answer.json()["code"]);
    }
    assert_snapshot!("tasks_refusals", shown);
}

#[tokio::test]
async fn a_node_without_tasks_says_why() {
    let router = loopback(fake(FakeConfig::default()));
    let answer = get(&router, "/tasks").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (503, &json!("tasks_unavailable")));
    assert!(answer.body.contains("tasks.enabled"), "{}", answer.body);
    assert_eq!(get(&router, "/status").await.json()["tasks_pending"], 0);
}

#[tokio::test]
async fn what_is_to_go_goes_and_the_answer_says_what_stays() {
    let tasks = ScriptedTasks::default();
    let (services, key) = with_session_key(over(&tasks));
    let router = loopback(services);
    let prune = async |wanted: Value| {
        let request = Request::post("/tasks/prune").header("x-api-key", &key).body(Body::from(wanted.to_string()));
        send(&router, request.unwrap()).await
    };
    let without_key = post(&router, "/tasks/prune", json!({})).await;
    assert_eq!((without_key.status.as_u16(), tasks.told().len()), (401, 0));
    assert_snapshot!("tasks_prune", prune(json!({})).await.shown());
    let wanted = json!({ "older_than_seconds": 60, "keep": 5, "dry_run": true });
    assert_eq!(prune(wanted).await.json()["dry_run"], true);
    assert_eq!(tasks.told(), ["prune None None false", "prune Some(60s) Some(5) true"]);
    for wrong in [json!({ "older": 1 }), json!({ "keep": -1 }), json!({ "older_than_seconds": "7d" })] {
        assert_eq!(prune(wrong.clone()).await.status.as_u16(), 400, "{wrong}");
    }
}

#[tokio::test]
async fn the_state_of_the_node_counts_its_tasks() {
    let router = loopback(over(&ScriptedTasks::default()));
    let status = get(&router, "/status").await.json();
    assert_eq!((&status["tasks_pending"], &status["tasks_active"]), (&json!(2), &json!(1)));
    let store = &status["task_store"];
    assert_eq!((&store["tasks"], &store["stored_bytes"], &store["entries"]), (&json!(9), &json!(4_096), &json!(30)));
    assert_eq!((&store["generations"][0]["generation"], &store["database"]), (&json!(2), &json!("swarm-tasks.2")));
    assert_eq!((&store["refused"], &store["history_lost"]), (&json!({ "proof": 3, "superseded": 2 }), &json!(4)));
    let metrics = get(&router, "/metrics").await.body;
    for wanted in [
        "bombus_tasks_refused_entries{reason=\"proof\"} 3.0",
        "bombus_tasks_history_lost_total{} 4",
        "bombus_tasks_generations{} 1.0",
        "bombus_tasks{status=\"completed\"} 7.0",
        "bombus_tasks_running_here{} 1.0",
        "bombus_tasks_stored_bytes{} 4096.0",
        "bombus_task_runs_begun_total{} 12",
        "bombus_task_runs_total{outcome=\"completed\"} 7",
        "bombus_task_runs_total{outcome=\"failed\"} 3",
        "bombus_task_runs_total{outcome=\"stopped\"} 1",
    ] {
        assert!(metrics.contains(wanted), "{metrics}");
    }
}
