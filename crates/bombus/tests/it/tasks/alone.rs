//! Tasks of a node that is alone: it does them itself.

use std::time::Duration;

use serde_json::{Value, json};

use super::{object, run, words, worker};
use crate::harness::{Home, Node, client, within};
use crate::model::eventually;

#[tokio::test]
async fn without_a_node_there_are_no_tasks() {
    let home = Home::new(&worker(0, ""));
    let refused = run(&home, &["submit", "Hi"], 4).await;
    assert!(refused.stderr.contains("no node runs") && refused.stdout.is_empty(), "{}", refused.stderr);
    let home = Home::new(&worker(0, "enabled = false"));
    let _node = Node::start(&home).await;
    let refused = run(&home, &["submit", "Hi"], 4).await;
    assert!(refused.stderr.contains("tasks.enabled"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_node_does_its_own_task_and_keeps_the_answer() {
    let home = Home::new(&worker(0, ""));
    let node = Node::start(&home).await;
    let said = run(&home, &["submit", "Hello", "world"], 0).await;
    let id = said.stdout.trim();
    assert_eq!(said.stdout.lines().count(), 1, "the id and nothing else");
    assert!(said.stderr.contains("stored on all nodes"), "{}", said.stderr);
    let answer = run(&home, &["result", id, "--wait"], 0).await;
    assert_eq!(answer.stdout, "Hello world\n");
    let task = object(&home, &["status", id, "--json"]).await;
    assert_eq!((&task["status"], &task["settled"], &task["mine"]), (&json!("completed"), &json!(true), &json!(true)));
    assert_eq!((&task["node_id"], &task["epoch"]), (&json!(node.id()), &json!(1)), "{task}");
    assert!(task.get("result").is_none(), "the status has no result: {task}");
    let shown = run(&home, &["status", id], 0).await.stdout;
    assert!(shown.contains("completed") && shown.contains("requester"), "{shown}");
    let listed = run(&home, &["tasks"], 0).await.stdout;
    assert!(listed.contains(id) && listed.contains("completed"), "{listed}");
    node.crash().await;

    let node = Node::start(&home).await;
    let again = run(&home, &["result", id], 0).await;
    assert_eq!(again.stdout, "Hello world\n", "the answer outlives the node's process");
    assert_eq!(object(&home, &["tasks", "--mine", "--json"]).await["tasks"].as_array().map(Vec::len), Some(1));
    assert_eq!(object(&home, &["tasks", "--status", "failed", "--json"]).await["tasks"], json!([]));
    node.stop().await;
}

#[tokio::test]
async fn a_long_prompt_is_cut_and_its_answers_are_put_together() {
    let home = Home::new(&worker(0, ""));
    let _node = Node::start(&home).await;
    let prompt = words(1, 30);
    let flags = ["--chunk", "size", "--max-chunk", "50", "--joiner", " "];
    let id = run(&home, &[&["submit", "--quiet", prompt.as_str()], &flags[..]].concat(), 0).await.stdout;
    let answer = run(&home, &["result", id.trim(), "--wait"], 0).await.stdout;
    assert_eq!(answer.split_whitespace().collect::<Vec<_>>(), prompt.split(' ').collect::<Vec<_>>(), "in its order");
    let task = object(&home, &["status", id.trim(), "--json"]).await;
    let chunks = task["chunks"].as_array().unwrap();
    assert!(chunks.len() > 2 && task["progress"]["done"] == chunks.len(), "{task}");
    let listed = object(&home, &["tasks", "--json"]).await;
    assert_eq!(listed["tasks"].as_array().map(Vec::len), Some(1), "chunks are parts of their task: {listed}");
    let first = chunks[0]["task_id"].as_str().unwrap();
    assert_eq!(object(&home, &["status", first, "--json"]).await["parent"], id.trim());

    std::fs::write(home.path("notes.txt"), "the notes\n").unwrap();
    let both = run(&home, &["submit", "--quiet", "Read", "this:", "--file", "notes.txt", "--wait"], 0).await.stdout;
    assert_eq!(both, "Read this:\n\nthe notes\n", "what is said comes before the file");
    let text = "One.\n\nTwo.\n\nThree.";
    std::fs::write(home.path("text.md"), text).unwrap();
    let flags = ["--file", "text.md", "--chunk", "paragraph", "--max-chunk", "8", "--wait"];
    let answer = run(&home, &[&["submit", "--quiet"], &flags[..]].concat(), 0).await.stdout;
    for paragraph in ["One.", "Two.", "Three."] {
        assert!(answer.contains(paragraph), "{answer}");
    }
}

#[tokio::test]
async fn tasks_of_all_kinds_are_done_in_the_shapes_that_swarm_clients_know() {
    let home = Home::new(&worker(0, ""));
    let node = Node::start(&home).await;
    let done = async |body: Value| -> Value {
        let (status, answer) = node.post("/task", &body).await;
        // It may have begun, or be done, when that is told.
        let told = answer["status"].as_str().unwrap_or_default();
        assert!(status == 202 && ["pending", "running", "completed"].contains(&told), "{status} {answer}");
        let path = format!("/task/{}?wait=60", answer["task_id"].as_str().unwrap());
        within("a task", node.get(&path).await.json()).await.unwrap()
    };
    let messages = json!([{ "role": "system", "content": "Repeat." }, { "role": "user", "content": "a b c" }]);
    let inference = json!({
        "task_id": "task-0001", "task_type": "inference", "source_node": "client", "priority": 7,
        "timeout_seconds": 60, "payload": { "model": "fake", "messages": messages, "max_tokens": 2 },
    });
    let told = done(inference).await;
    assert_eq!((&told["task_id"], &told["status"]), (&json!("task-0001"), &json!("completed")), "{told}");
    assert_eq!((&told["result"]["response"], &told["result"]["eval_count"]), (&json!("a b"), &json!(2)), "{told}");
    assert!(told["duration_seconds"].as_f64() > Some(0.0) && told["node_id"] == node.id(), "{told}");

    let told = done(json!({ "task_type": "embedding", "payload": { "text": "bee" } })).await;
    assert_eq!(told["result"]["dimensions"], told["result"]["embedding"].as_array().unwrap().len(), "{told}");
    let told = done(json!({ "task_type": "ping", "payload": { "n": 7 } })).await;
    assert_eq!((&told["result"]["echo"]["n"], &told["result"]["message"]), (&json!(7), &json!("pong")), "{told}");
}

#[tokio::test]
async fn a_stream_shows_the_pieces_of_an_answer_and_its_end() {
    let home = Home::new(&worker(20, ""));
    let node = Node::start(&home).await;
    let text = words(1, 20);
    let (_, answer) = node.post("/task", &json!({ "payload": { "prompt": text } })).await;
    let id = answer["task_id"].as_str().unwrap();
    let stream = within("a stream", node.get(&format!("/task/{id}/stream")).await.text()).await.unwrap();
    let events: Vec<Value> =
        stream.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    let pieces: String = events.iter().filter_map(|event| event["token"].as_str()).collect();
    assert!(!pieces.is_empty() && text.ends_with(&pieces), "{pieces:?} of {text:?}");
    let last = events.last().unwrap();
    assert_eq!((&last["done"], &last["node_id"]), (&json!(true), &json!(node.id())), "{last}");
    assert_eq!(last["status"], "completed");
}

#[tokio::test]
async fn a_task_is_cancelled_while_it_runs() {
    let home = Home::new(&worker(1_000, ""));
    let node = Node::start(&home).await;
    let text = words(1, 200);
    let id = run(&home, &["submit", "--quiet", &text], 0).await.stdout.trim().to_owned();
    let metric = async |name: &str| -> u64 {
        let metrics = within("metrics", node.get("/metrics").await.text()).await.unwrap();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|value| value.trim().parse::<f64>().ok()).unwrap_or(0.0) as u64
    };
    let running = async || metric("bombus_tasks_running_here{}").await;
    eventually("a running task", async || running().await == 1).await;
    let status: Value = within("status", node.get("/status").await.json()).await.unwrap();
    assert_eq!(status["tasks_active"], 1);
    let said = run(&home, &["cancel", &id], 0).await;
    assert!(said.stderr.contains("cancel"), "{}", said.stderr);
    within("the end of it", async { while running().await > 0 {} }).await;
    assert_eq!(metric("bombus_task_runs_begun_total{}").await, 1);
    assert_eq!(metric("bombus_task_runs_total{outcome=\"stopped\"}").await, 1);
    let refused = run(&home, &["result", &id, "--wait"], 1).await;
    assert!(refused.stderr.contains("cancelled") && refused.stdout.is_empty(), "{}", refused.stderr);
    let task = object(&home, &["status", &id, "--json"]).await;
    assert_eq!((&task["status"], &task["settled"]), (&json!("cancelled"), &json!(true)), "{task}");
    run(&home, &["cancel", &id], 0).await;
}

#[tokio::test]
async fn a_task_that_always_fails_says_why_of_each_attempt() {
    let home = Home::new(&worker(0, "").replace("token_ms = 0", "fail = 'after:2'"));
    let _node = Node::start(&home).await;
    let id = run(&home, &["submit", "--quiet", &words(1, 9), "--attempts", "2"], 0).await.stdout.trim().to_owned();
    let refused = run(&home, &["result", &id, "--wait"], 1).await;
    assert!(refused.stderr.contains("failed") && refused.stderr.contains("bombus status"), "{}", refused.stderr);
    let task = object(&home, &["status", &id, "--json"]).await;
    let attempts = task["attempts"].as_array().unwrap();
    assert_eq!((attempts.len(), &task["status"]), (2, &json!("failed")), "{task}");
    assert!(attempts.iter().all(|attempt| !attempt["reason"].as_str().unwrap().is_empty()), "{task}");
}

#[tokio::test]
async fn the_same_key_is_the_same_task() {
    let home = Home::new(&worker(0, ""));
    let node = Node::start(&home).await;
    let first = run(&home, &["submit", "--quiet", "Hi", "--key", "k 1".replace(' ', "-").as_str()], 0).await.stdout;
    let second = run(&home, &["submit", "--quiet", "Hi", "--key", "k-1"], 0).await.stdout;
    assert_eq!(first, second);
    let other = run(&home, &["submit", "Ho", "--key", "k-1"], 2).await;
    assert!(other.stderr.contains("another key"), "{}", other.stderr);
    let keyed = client().post(node.url("/task")).header("idempotency-key", "k-1");
    let answer = within("a request", keyed.json(&json!({ "payload": { "prompt": "Ho" } })).send()).await.unwrap();
    assert_eq!(answer.status(), 422);
    assert_eq!(object(&home, &["tasks", "--json"]).await["tasks"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn what_cannot_be_done_says_why_and_what_to_do() {
    let home = Home::new(&worker(0, ""));
    let node = Node::start(&home).await;
    for (arguments, code, wanted) in [
        (&["status", "none"][..], 3, "bombus tasks"),
        (&["result", "none"], 3, "bombus tasks"),
        (&["cancel", "none"], 3, "bombus tasks"),
        (&["status", "a b"], 2, "letters, digits"),
        (&["result", ""], 2, "TASK"),
        (&["results", "--batch", "none"], 3, "no batch"),
        (&["submit"], 2, "PROMPT"),
        (&["submit", " "], 2, "no prompt"),
        (&["submit", "Hi", "--to", "nobody"], 3, "bombus peers"),
        (&["submit", "Hi", "--priority", "11"], 2, "1..=10"),
        (&["submit", "Hi", "--timeout", "0"], 2, "1..=3600"),
        (&["submit", "Hi", "--chunk", "word"], 2, "paragraph"),
        (&["submit", "Hi", "--joiner", ", "], 2, "--chunk"),
        (&["submit", "Hi", "--key", "a\u{e9}"], 2, "ASCII"),
        (&["submit", "--file", "nowhere.txt"], 3, "nowhere.txt"),
        (&["submit", "Hi", "--file", "config/bombus/config.toml", "--lines"], 2, "prompt of its own"),
        (&["tasks", "--status", "lost"], 2, "pending"),
        (&["tasks", "-n", "0"], 2, "1..=1000"),
    ] {
        let refused = run(&home, arguments, code).await;
        assert!(refused.stderr.contains(wanted) && refused.stdout.is_empty(), "{arguments:?}: {}", refused.stderr);
    }
    let id = run(&home, &["submit", "--quiet", "Hi", "--model", "unknown"], 0).await.stdout.trim().to_owned();
    let refused = run(&home, &["result", &id], 4).await;
    assert!(refused.stderr.contains("--wait"), "{}", refused.stderr);
    let (status, problem) = node.post("/task", &json!({ "payload": {} })).await;
    assert_eq!((status, &problem["code"]), (400, &json!("missing_required_parameter")));
}

#[tokio::test]
async fn what_happens_to_tasks_is_among_the_events() {
    let home = Home::new(&worker(0, ""));
    let _node = Node::start(&home).await;
    let id = run(&home, &["submit", "--quiet", "secret words"], 0).await.stdout.trim().to_owned();
    run(&home, &["result", &id, "--wait"], 0).await;
    let mut said = String::new();
    let kinds = ["task:created", "task:claimed", "task:completed"];
    let told = async {
        while !kinds.iter().all(|kind| said.contains(kind)) {
            said = run(&home, &["events", "--kind", "task", "--json"], 0).await.stdout;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(60), told).await.is_ok();
    assert!(in_time, "{said}");
    assert!(said.lines().all(|line| line.contains(&id)), "{said}");
    assert!(!said.contains("secret words"), "prompts are no part of events: {said}");
}

#[tokio::test]
async fn what_waits_says_for_what_and_is_found_among_what_waits() {
    let home = Home::new(&worker(0, ""));
    let node = Node::start(&home).await;
    let said = run(&home, &["submit", "Hi", "--model", "unknown"], 0).await;
    assert!(said.stderr.contains("waits: no node that is here has the model 'unknown'"), "{}", said.stderr);
    let id = said.stdout.trim();
    let shown = run(&home, &["status", id], 0).await.stdout;
    assert!(shown.contains("waits") && shown.contains("'unknown'"), "{shown}");
    let refused = run(&home, &["result", id], 4).await;
    assert!(refused.stderr.contains("has the model 'unknown'"), "{}", refused.stderr);
    for number in 0..60 {
        let (status, _) = node.post("/task", &json!({ "payload": { "prompt": format!("{number}") } })).await;
        assert_eq!(status, 202);
    }
    let count = async |status: &str| {
        object(&home, &["tasks", "--status", status, "-n", "1000", "--json"]).await["tasks"].as_array().unwrap().len()
    };
    eventually("all but one are done", async || count("COMPLETED").await == 60).await;
    let waiting = object(&home, &["tasks", "--status", "pending", "-n", "1", "--json"]).await;
    assert_eq!(waiting["tasks"][0]["task_id"], id, "it is found behind all that are done: {waiting}");
    let refused = within("a list", node.get("/tasks?cursor=nothing").await.text()).await.unwrap();
    assert!(refused.contains("\"status\":400"), "{refused}");
}

#[tokio::test]
async fn who_submits_hears_who_can_read_it_once_it_is_taken() {
    let home = Home::new(&worker(0, ""));
    let node = Node::start(&home).await;
    for arguments in [&["submit", "Hi", "--to", "nobody"][..], &["submit", "Hi", "--model", "no model!"]] {
        let refused = home.run(arguments).await;
        assert!(!refused.stderr.contains("stored on all nodes"), "nothing is stored: {}", refused.stderr);
    }
    let sealed = run(&home, &["submit", "Hi", "--encrypt"], 0).await;
    assert!(!sealed.stderr.contains("stored on all nodes"), "{}", sealed.stderr);
    node.stop().await;
    let home = Home::new(&worker(0, "seal = 'always'"));
    let _node = Node::start(&home).await;
    let sealed = run(&home, &["submit", "Hi"], 0).await;
    assert!(!sealed.stderr.contains("stored on all nodes"), "{}", sealed.stderr);
}
