//! Models made of other models and of files, over a node's HTTP, with a real model.

use bombus_testkit::sha256;
use serde_json::{Value, json};

use crate::harness::{Node, client};
use crate::model::{MODEL, eventually, home_with_model, own_weights, with};

fn generate(model: &str, prompt: &str, more: &Value) -> Value {
    let options = json!({ "temperature": 0, "num_predict": 8 });
    with(json!({ "model": model, "prompt": prompt, "stream": false, "options": options }), more)
}

async fn post(node: &Node, path: &str, body: &Value) -> Value {
    let (status, answer) = node.post(path, body).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

#[tokio::test]
async fn a_model_is_derived_shown_copied_run_and_removed() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let plain = post(&node, "/api/generate", &generate(MODEL, "Hello there.", &json!({}))).await;
    let made = post(
        &node,
        "/api/create",
        &json!({ "model": "pirate", "from": MODEL, "stream": false, "system": "You are a pirate.",
                 "parameters": { "num_predict": 5, "temperature": 0, "stop": ["zzz"] } }),
    )
    .await;
    assert_eq!(made["status"], "success");
    let shown = post(&node, "/api/show", &json!({ "model": "pirate" })).await;
    assert_eq!(shown["system"], "You are a pirate.");
    assert!(shown["parameters"].as_str().unwrap().contains("num_predict"), "{shown}");
    assert_eq!(shown["details"]["parent_model"], MODEL);
    assert_eq!(shown["model_info"]["general.architecture"], "llama");

    let request = json!({ "model": "pirate", "prompt": "Hello there.", "stream": false });
    let answer = post(&node, "/api/generate", &request).await;
    assert_eq!((&answer["eval_count"], &answer["done_reason"]), (&json!(5), &json!("length")));
    assert_ne!(answer["prompt_eval_count"], plain["prompt_eval_count"], "the system message is part of the prompt");
    assert_eq!(node.engines().len(), 1, "both names share one process");

    let copy = json!({ "source": "pirate", "destination": "captain" });
    let copied = client().post(node.url("/api/copy")).json(&copy).send().await.unwrap();
    assert_eq!(copied.status(), 200);
    let removed = client().delete(node.url("/api/delete")).json(&json!({ "model": "pirate" })).send().await.unwrap();
    assert_eq!(removed.status(), 200);
    assert_eq!(node.post("/api/show", &json!({ "model": "pirate" })).await.0, 404);
    let again =
        post(&node, "/api/generate", &json!({ "model": "captain", "prompt": "Hello there.", "stream": false })).await;
    assert_eq!(again["response"], answer["response"]);
    node.stop().await;
}

#[tokio::test]
async fn a_model_is_made_of_a_file_that_a_client_sent() {
    let home = home_with_model("").await;
    let mut weights = std::fs::read(own_weights(&home)).unwrap();
    // A byte behind the tensors harms nothing, and makes it a file that is not here yet.
    weights.push(0);
    let digest = format!("sha256:{}", sha256(&weights));
    let node = Node::start(&home).await;
    let blob = node.url(&format!("/api/blobs/{digest}"));
    let wrong = node.url(&format!("/api/blobs/sha256:{}", "0".repeat(64)));
    assert_eq!(client().head(&wrong).send().await.unwrap().status(), 404);
    assert_eq!(client().post(&wrong).body("x").send().await.unwrap().status(), 400);
    assert_eq!(client().post(&blob).body(weights).send().await.unwrap().status(), 201);
    assert_eq!(client().head(&blob).send().await.unwrap().status(), 200);
    let request = json!({ "model": "sent", "files": { "model.gguf": digest }, "stream": false,
                          "template": "{{ if .System }}{{ .System }} {{ end }}Q: {{ .Prompt }}\nA: {{ .Response }}" });
    assert_eq!(post(&node, "/api/create", &request).await["status"], "success");
    let answer = post(&node, "/api/generate", &generate("sent", "2 + 2?", &json!({}))).await;
    // `Q: 2 + 2?` and `A: ` take no more than a dozen tokens; the model's own template would add its usual system message.
    assert!(answer["prompt_eval_count"].as_u64().unwrap() < 16, "{answer}");
    node.stop().await;
}

#[tokio::test]
async fn an_answer_goes_on_past_a_full_context_where_it_may() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let request = |shift: bool| {
        let options = json!({ "temperature": 0, "num_ctx": 64, "num_predict": 80, "stop": [] });
        json!({ "model": MODEL, "prompt": "1 2 3 4 5 6 7 8 9 10 11 12", "raw": true, "stream": false, "shift": shift, "options": options })
    };
    let shifted = post(&node, "/api/generate", &request(true)).await;
    assert!(shifted["eval_count"].as_u64().unwrap() > 64, "{shifted}");
    let ended = post(&node, "/api/generate", &request(false)).await;
    let tokens =
        |answer: &Value| answer["prompt_eval_count"].as_u64().unwrap() + answer["eval_count"].as_u64().unwrap();
    assert!(tokens(&ended) <= 65 && ended["done_reason"] == "length", "{ended}");
    // What was moved in the cache is not taken for what a new prompt would make of it.
    let again = post(&node, "/api/generate", &request(true)).await;
    assert_eq!(again["response"], shifted["response"]);
    node.stop().await;
}

#[tokio::test]
async fn the_oldest_turns_of_a_long_conversation_are_left_out() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let turn = |role: &str, text: String| json!({ "role": role, "content": text });
    let mut messages = vec![turn("system", "You are brief.".into())];
    for number in 0..20 {
        messages.push(turn("user", format!("Tell me about the number {number}, please, in some detail.")));
        messages.push(turn("assistant", format!("{number} is a number.")));
    }
    messages.push(turn("user", "And now?".into()));
    let request = |truncate: bool| {
        let options = json!({ "temperature": 0, "num_ctx": 128, "num_predict": 4 });
        json!({ "model": MODEL, "messages": messages, "stream": false, "truncate": truncate, "options": options })
    };
    let answer = post(&node, "/api/chat", &request(true)).await;
    let prompt_tokens = answer["prompt_eval_count"].as_u64().unwrap();
    assert!((90..128).contains(&prompt_tokens), "{answer}");
    let (status, refused) = node.post("/api/chat", &request(false)).await;
    assert_eq!(status, 400, "{refused}");
    node.stop().await;
}

#[tokio::test]
async fn what_was_said_is_handed_back_as_tokens() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    let first = post(&node, "/api/generate", &generate(MODEL, "My name is Ada.", &json!({}))).await;
    let context = first["context"].as_array().unwrap();
    let counts = first["prompt_eval_count"].as_u64().unwrap() + first["eval_count"].as_u64().unwrap();
    assert_eq!(context.len() as u64, counts);
    let second =
        post(&node, "/api/generate", &generate(MODEL, "What is my name?", &json!({ "context": context }))).await;
    assert!(second["prompt_eval_count"].as_u64().unwrap() > counts, "{second}");
    node.stop().await;
}

#[tokio::test]
async fn a_model_stays_as_long_as_a_request_says() {
    let home = home_with_model("").await;
    let node = Node::start(&home).await;
    post(&node, "/api/generate", &generate(MODEL, "Hi", &json!({ "keep_alive": 0 }))).await;
    eventually("the model leaves", async || node.engines().is_empty()).await;
    post(&node, "/api/generate", &json!({ "model": MODEL, "keep_alive": "1h", "stream": false })).await;
    let running: Value = node.get("/api/ps").await.json().await.unwrap();
    assert_eq!(running["models"][0]["name"], MODEL, "{running}");
    assert!(running["models"][0]["size"].as_u64().unwrap() > 90_000_000, "{running}");
    post(&node, "/api/generate", &json!({ "model": MODEL, "keep_alive": 0, "stream": false })).await;
    let running: Value = node.get("/api/ps").await.json().await.unwrap();
    assert_eq!(running["models"], json!([]));
    node.stop().await;
}
