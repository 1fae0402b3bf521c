//! Files of prompts: a task a line.

use std::collections::BTreeMap;
use std::time::Duration;

use bombus_testkit::upstream::{Script, Upstream};
use serde_json::{Value, json};

use super::{run, team, words, worker};
use crate::harness::{Home, Node, no_backends, server};

fn lines(said: &str) -> Vec<Value> {
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn each_line_is_a_task_and_keeps_its_id() {
    let home = Home::new(&worker(0, ""));
    let node = Node::start(&home).await;
    let text: String = (0..25)
        .map(|number| format!("{}\n", json!({ "id": format!("q{number}"), "prompt": words(number, 5) })))
        .collect();
    std::fs::write(home.path("prompts.jsonl"), text).unwrap();
    let said = run(&home, &["submit", "--file", "prompts.jsonl", "--key", "nightly"], 0).await;
    assert_eq!(said.stdout, "nightly\n");
    assert_eq!(said.stderr.matches("stored on all nodes").count(), 1, "it is said once: {}", said.stderr);
    let results = lines(&run(&home, &["results", "--batch", "nightly", "--wait"], 0).await.stdout);
    let answers: BTreeMap<String, String> = results
        .iter()
        .map(|line| (line["id"].as_str().unwrap().to_owned(), line["response"].as_str().unwrap().to_owned()))
        .collect();
    let wanted: BTreeMap<String, String> = (0..25).map(|number| (format!("q{number}"), words(number, 5))).collect();
    assert_eq!(answers, wanted);
    assert_eq!((&results[0]["node_id"], &results[0]["eval_count"]), (&json!(node.id()), &json!(5)), "{}", results[0]);

    let again = run(&home, &["submit", "--file", "prompts.jsonl", "--key", "nightly", "--json"], 0).await.stdout;
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["tasks"].as_array().map(Vec::len), Some(25));
    let results = lines(&run(&home, &["results", "--batch", "nightly"], 0).await.stdout);
    assert_eq!(results.len(), 25, "the same file with the same key is the same tasks");
    std::fs::write(home.path("other.jsonl"), "\"Something else\"\n").unwrap();
    let other = run(&home, &["submit", "--file", "other.jsonl", "--key", "nightly"], 2).await;
    assert!(other.stderr.contains("line 1") || other.stderr.contains("another key"), "{}", other.stderr);
}

#[tokio::test]
async fn a_file_with_a_slip_in_it_submits_nothing() {
    let home = Home::new(&worker(0, ""));
    let _node = Node::start(&home).await;
    for (line, wanted) in [
        (r#"{"promt": "Ho"}"#, "promt"),
        (r#"{"prompt": 5}"#, "payload.prompt"),
        (r#"{"prompt": "Ho", "temperature": 9}"#, "from 0 to 2"),
        (r#"{"prompt": "Ho", "model": "no model!"}"#, "not a model name"),
    ] {
        std::fs::write(home.path("prompts.jsonl"), format!("\u{feff}\"Hi\"\n{line}\n")).unwrap();
        let refused = run(&home, &["submit", "--file", "prompts.jsonl"], 2).await;
        assert!(refused.stderr.contains("line 2") && refused.stderr.contains(wanted), "{}", refused.stderr);
    }
    let listed = run(&home, &["tasks", "--json"], 0).await.stdout;
    assert_eq!(serde_json::from_str::<Value>(&listed).unwrap()["tasks"], json!([]));
    std::fs::write(home.path("prompts.jsonl"), "\"Hi\"\n{\"prompt\": \"Ho\", \"to\": \"nobody\"}\n").unwrap();
    let refused = run(&home, &["submit", "--file", "prompts.jsonl"], 3).await;
    assert!(refused.stderr.contains("line 2: no peer is called 'nobody'"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_node_that_knows_a_part_of_a_batch_does_not_take_it_for_the_whole() {
    let home = Home::new(&worker(0, ""));
    let node = Node::start(&home).await;
    for item in ["a", "b"] {
        let batch = json!({ "id": "nightly", "item": item, "total": 3 });
        let (status, _) = node.post("/task", &json!({ "payload": { "prompt": item }, "batch": batch })).await;
        assert_eq!(status, 202);
    }
    let waited = run(&home, &["results", "--batch", "nightly", "--wait"], 4).await;
    assert!(waited.stderr.contains("2 of the 3 tasks"), "{}", waited.stderr);
    assert!(lines(&waited.stdout).iter().all(|line| line["status"] == "completed"), "{}", waited.stdout);
    let batch = json!({ "id": "nightly", "item": "c", "total": 3 });
    node.post("/task", &json!({ "payload": { "prompt": "c" }, "batch": batch })).await;
    let whole = run(&home, &["results", "--batch", "nightly", "--wait"], 0).await;
    assert_eq!(lines(&whole.stdout).len(), 3);
}

#[tokio::test]
async fn a_batch_tells_what_failed_and_what_has_not_ended() {
    let home = Home::new(&worker(0, ""));
    let _node = Node::start(&home).await;
    let text =
        "{\"id\": \"good\", \"prompt\": \"Hi\"}\n{\"id\": \"waits\", \"prompt\": \"Hi\", \"model\": \"unknown\"}\n";
    let piped = home.run_with_stdin(&["submit", "--quiet", "--file", "-", "--lines"], text).await;
    assert_eq!(piped.code, Some(0), "{}", piped.stderr);
    let batch = piped.stdout.trim();
    let mut results = Vec::new();
    let good = async {
        while !results.iter().any(|line: &Value| line["status"] == "completed") {
            let told = run(&home, &["results", "--batch", batch], 4).await;
            assert!(told.stderr.contains("have not ended"), "{}", told.stderr);
            results = lines(&told.stdout);
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(60), good).await.is_ok();
    assert!(in_time, "{results:?}");
    let waiting = results.iter().find(|line| line["id"] == "waits").unwrap();
    run(&home, &["cancel", waiting["task_id"].as_str().unwrap()], 0).await;
    let told = run(&home, &["results", "--batch", batch, "--wait"], 1).await;
    let cancelled = lines(&told.stdout).into_iter().find(|line| line["id"] == "waits").unwrap();
    assert_eq!((&cancelled["status"], &cancelled["response"]), (&json!("cancelled"), &Value::Null), "{cancelled}");
}

#[tokio::test]
async fn while_all_are_connected_each_task_is_run_once() {
    const TASKS: usize = 40;
    let upstream = Upstream::start().await.unwrap();
    let said = json!({ "id": "c", "model": "fake", "choices": [{ "index": 0, "delta": { "content": "Hello" } }] });
    let end = json!({ "id": "c", "model": "fake", "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] });
    upstream.on("GET /v1/models", Script::json(200, &json!({ "data": [{ "id": "fake", "owned_by": "test" }] })));
    upstream.on("POST /v1/chat/completions", Script::events(&[said, end]).done());
    // With the usual leases: those of other tests may run out on a busy machine, and then a task is begun anew.
    let counted = no_backends() + &server("openai", "counted", &upstream.url(), "");
    let swarm = team(&[no_backends(), counted.clone(), counted]).await;
    let text: String = (0..TASKS).map(|number| format!("{}\n", json!({ "prompt": words(number, 3) }))).collect();
    std::fs::write(swarm.member(0).home().path("many.jsonl"), text).unwrap();
    let told = swarm.member(0).done(&["submit", "--quiet", "--file", "many.jsonl", "--wait"]).await;
    let results = lines(&told);
    assert_eq!(results.len(), TASKS);
    assert!(results.iter().all(|line| line["response"] == "Hello" && line["status"] == "completed"), "{told}");
    let runs = upstream.requests().into_iter().filter(|request| request.line == "POST /v1/chat/completions").count();
    assert_eq!(runs, TASKS, "each task is run once");
}
