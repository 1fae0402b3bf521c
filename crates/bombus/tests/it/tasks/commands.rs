//! What the commands about tasks do and print by the flags that people give them.

use serde_json::{Value, json};

use super::{idle, object, run, team, words, worker};
use crate::harness::{Home, Node, Process, Signal, within};

/// Expects an object to have all members that the API document says such an object has, and none of which it says nothing.
fn is_described(document: &Value, name: &str, told: &Value) {
    let schema = &document["components"]["schemas"][name];
    let required = schema["required"].as_array().unwrap_or_else(|| panic!("{name} in the API document: {schema}"));
    for member in required {
        assert!(told.get(member.as_str().unwrap()).is_some(), "{name} lacks {member}: {told}");
    }
    for member in told.as_object().unwrap_or_else(|| panic!("{name} is an object: {told}")).keys() {
        assert!(schema["properties"].get(member).is_some(), "nothing describes {member} of {name}: {told}");
    }
}

#[tokio::test]
async fn what_is_printed_as_json_is_what_the_api_document_describes() {
    let home = Home::new(&worker(0, ""));
    let node = Node::start(&home).await;
    let document: Value = within("the API document", node.get("/openapi.json").await.json()).await.unwrap();

    let taken = object(&home, &["submit", "Hello", "world", "--json"]).await;
    is_described(&document, "TaskAnswer", &taken);
    assert_eq!((&taken["encrypted"], &taken["chunks"]), (&json!(false), &json!(0)), "{taken}");
    let id = taken["task_id"].as_str().unwrap();

    let told = object(&home, &["result", id, "--wait", "--json"]).await;
    is_described(&document, "TaskInfo", &told);
    assert_eq!((&told["task_id"], &told["status"]), (&json!(id), &json!("completed")), "{told}");
    let result = &told["result"];
    assert_eq!((&result["response"], &result["eval_count"]), (&json!("Hello world"), &json!(2)), "{told}");

    let told = object(&home, &["status", id, "--json"]).await;
    is_described(&document, "TaskInfo", &told);
    assert_eq!((&told["task_id"], &told["status"], told.get("result")), (&json!(id), &json!("completed"), None));

    let listed = object(&home, &["tasks", "--json"]).await;
    is_described(&document, "TaskPage", &listed);
    let tasks = listed["tasks"].as_array().unwrap();
    assert_eq!((tasks.len(), &tasks[0]["task_id"], &listed["next"]), (1, &json!(id), &Value::Null), "{listed}");
    is_described(&document, "TaskInfo", &tasks[0]);

    let waits = run(&home, &["submit", "--quiet", "Hi", "--model", "unknown"], 0).await.stdout;
    let waits = waits.trim();
    let told = object(&home, &["cancel", waits, "--json"]).await;
    is_described(&document, "TaskInfo", &told);
    assert_eq!((&told["task_id"], &told["status"]), (&json!(waits), &json!("cancelled")), "{told}");
    let refused = run(&home, &["result", waits, "--json"], 1).await;
    let told: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!((&told["task_id"], &told["status"]), (&json!(waits), &json!("cancelled")), "{told}");
}

#[tokio::test]
async fn each_paragraph_is_put_into_the_one_prompt_and_all_answers_into_the_other() {
    let home = Home::new(&worker(0, ""));
    let _node = Node::start(&home).await;
    let cut = ["submit", "One.\n\nTwo.\n\nThree.", "--chunk", "paragraph", "--max-chunk", "8"];
    let templates = ["--map", "say {text} now", "--reduce", "sum of {text} all"];
    let task = object(&home, &[&cut[..], &templates[..], &["--wait", "--json"][..]].concat()).await;
    let answer = task["result"]["response"].as_str().unwrap_or_else(|| panic!("no answer: {task}"));
    let answer = answer.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(answer, "sum of say One. now say Two. now say Three. now all", "{task}");
    let chunks = task["chunks"].as_array().unwrap();
    let places: Vec<Value> = chunks.iter().map(|chunk| chunk["index"].clone()).collect();
    assert_eq!(json!(places), json!([0, 1, 2, null]), "the sum stands behind the others: {task}");
    assert!(chunks.iter().all(|chunk| chunk["status"] == "completed"), "{task}");
}

#[tokio::test]
async fn a_task_fails_that_takes_longer_than_it_may_and_whoever_follows_the_events_hears_of_it() {
    const REASON: &str = "it took longer than 1 s";
    let home = Home::new(&worker(1_000, ""));
    let node = Node::start(&home).await;
    let mut events = Process::start(home.command(&["events", "--follow", "--kind", "task:failed", "--json"]));
    // One that says nothing of time has minutes.
    let text = words(1, 4);
    let patient = run(&home, &["submit", "--quiet", &text], 0).await.stdout;
    let flags = ["--timeout", "1", "--attempts", "1"];
    let hasty = run(&home, &[&["submit", "--quiet", text.as_str()], &flags[..]].concat(), 0).await.stdout;
    let hasty = hasty.trim();
    let refused = run(&home, &["result", hasty, "--wait"], 1).await;
    assert!(refused.stderr.contains(REASON) && refused.stdout.is_empty(), "{}", refused.stderr);
    let task = object(&home, &["status", hasty, "--json"]).await;
    assert_eq!((&task["status"], &task["attempts"][0]["reason"]), (&json!("failed"), &json!(REASON)), "{task}");
    assert_eq!(run(&home, &["result", patient.trim(), "--wait"], 0).await.stdout, format!("{text}\n"));

    let line = events.stdout_line().await;
    let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    assert_eq!((&event["kind"], &event["data"]["task_id"]), (&json!("task:failed"), &json!(hasty)), "{event}");
    let told = within("the events", node.get("/events?kind=task:failed&follow=false").await.text()).await.unwrap();
    assert!(told.contains("task:failed") && told.contains(hasty), "{told:?}");
}

#[tokio::test]
async fn what_is_more_urgent_overtakes_what_waits_at_a_worker() {
    let swarm = team(&[idle(""), worker(40, "max_concurrent = 1")]).await;
    let requester = swarm.member(0);
    let first = requester.submit(&words(0, 5_000), &[]).await;
    swarm.worker_of(0, &first).await;
    let mut waiting = Vec::new();
    for number in 1..=3 {
        waiting.push(requester.submit(&words(number, 10), &["--priority", "1"]).await);
    }
    let urgent = requester.submit(&words(4, 10), &["--priority", "10"]).await;
    let is_given = |task: &Value| task["node_id"] == swarm.id(1);
    requester.task_when(&urgent, "the worker is given it, too", is_given).await;
    requester.done(&["cancel", &first]).await;

    let urgent = requester.settled(&urgent).await;
    let urgent_end = urgent["completed_at"].as_f64().unwrap();
    let mut before = Vec::new();
    for id in &waiting {
        let task = requester.settled(id).await;
        assert_eq!(task["status"], "completed", "{task}");
        if task["completed_at"].as_f64() < Some(urgent_end) {
            before.push(task);
        }
    }
    // One may have begun while the urgent one was on its way to the worker.
    assert!(before.len() <= 1, "{before:?} ended before {urgent}");
}

#[tokio::test]
async fn watched_tasks_are_printed_as_they_change_until_the_command_is_stopped() {
    let home = Home::new(&worker(0, ""));
    let _node = Node::start(&home).await;
    let mut watching = Process::start(home.command(&["tasks", "--watch", "--json"]));
    let mut told: Value = serde_json::from_str(&watching.stdout_line().await).unwrap();
    assert_eq!(told["tasks"], json!([]), "{told}");
    let id = run(&home, &["submit", "--quiet", "Hello"], 0).await.stdout;
    while told["tasks"][0]["settled"] != true {
        let line = watching.stdout_line().await;
        told = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    }
    let task = &told["tasks"][0];
    assert_eq!((&task["task_id"], &task["status"]), (&json!(id.trim()), &json!("completed")), "{told}");
    watching.signal(Signal::Terminate);
    assert_eq!(watching.ended().await.code(), None, "a signal ends it: {}", watching.stderr());
}
