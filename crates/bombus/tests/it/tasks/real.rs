//! Tasks for the real model.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::sealed::knows_and_cannot_read;
use super::{QUICK, idle};
use crate::harness::within;
use crate::model::{MODEL, eventually, give_model};
use crate::swarm::{Member, Plan, Swarm};

/// Starts a node without models, and so many that have the real one.
async fn with_model(count: usize) -> Swarm {
    let mut swarm = Plan::of(1 + count).undisturbed().prepared().await;
    let threads = if count == 1 { 2 } else { 1 };
    let engine =
        format!("[api]\nlisten = '127.0.0.1:0'\n[[backends]]\nkind = 'embedded'\nthreads = {threads}\n{QUICK}");
    swarm.member_mut(0).configure(&idle(""));
    for index in 1..=count {
        swarm.member_mut(index).configure(&engine);
        give_model(swarm.member(index).home()).await;
    }
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    for index in 0..swarm.len() {
        eventually("the offers of the others", async || {
            let route = swarm.member(index).get(&format!("/route?model={MODEL}")).await;
            let candidates = route["candidates"].as_array().map_or(&[][..], Vec::as_slice);
            candidates.iter().filter(|one| one["score"].is_number()).count() == count
        })
        .await;
    }
    swarm
}

/// Submits a prompt, with more members of the request, and returns the task's id.
async fn submit(member: &Member, prompt: &str, max_tokens: u32, more: Value) -> String {
    let payload = json!({ "model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0 });
    let mut body = json!({ "payload": payload });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, answer) = member.post("/task", &body).await;
    assert_eq!(status, 202, "{answer}");
    answer["task_id"].as_str().unwrap().to_owned()
}

/// Returns the text of an answer, which says something.
fn response(task: &Value) -> &str {
    assert_eq!(task["status"], "completed", "{task}");
    let text = task["result"]["response"].as_str().unwrap_or_else(|| panic!("no answer: {task}"));
    assert!(!text.trim().is_empty(), "{task}");
    text
}

#[tokio::test]
async fn the_real_model_does_a_task_of_another_node_within_half_a_minute() {
    let swarm = with_model(1).await;
    let begun = Instant::now();
    let id = submit(swarm.member(0), "Name a colour.", 16, json!({})).await;
    let task = swarm.member(0).settled(&id).await;
    response(&task);
    assert_eq!(task["node_id"], swarm.id(1), "{task}");
    let result = &task["result"];
    assert!(result["eval_count"].as_u64() > Some(0) && result["tokens_per_second"].as_f64() > Some(0.0), "{task}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn the_real_model_does_own_tasks_those_that_are_cut_or_sealed_and_those_of_a_worker_that_dies() {
    let mut swarm = with_model(2).await;
    let own = submit(swarm.member(1), "Name a colour.", 16, json!({ "to": swarm.id(1) })).await;
    let task = swarm.member(1).settled(&own).await;
    response(&task);
    assert_eq!(task["node_id"], swarm.id(1), "{task}");

    let more = json!({ "chunk": "paragraph", "max_chunk": 20, "joiner": "=====" });
    let cut = submit(swarm.member(0), "Name a colour.\n\nName a fruit.", 16, more).await;
    let task = swarm.member(0).settled(&cut).await;
    let parts: Vec<&str> = response(&task).split("=====").collect();
    assert_eq!((parts.len(), task["chunks"].as_array().map(Vec::len)), (2, Some(2)), "{task}");
    assert!(parts.iter().all(|part| !part.trim().is_empty()), "{task}");

    let prompt = "Which insects live in hives and make honey?";
    let sealed = submit(swarm.member(0), prompt, 16, json!({ "encrypt": true, "to": swarm.id(1) })).await;
    let task = swarm.member(0).settled(&sealed).await;
    knows_and_cannot_read(&swarm, 2, &sealed, &[prompt, response(&task)]).await;

    let long = submit(swarm.member(0), "Write a long story about a beekeeper.", 1_200, json!({})).await;
    let victim = swarm.worker_of(0, &long).await;
    swarm.kill(victim).await;
    let task = swarm.member(0).settled(&long).await;
    response(&task);
    assert_eq!(task["node_id"], swarm.id(3 - victim), "{task}");
    let attempts = task["attempts"].as_array().unwrap();
    assert!(attempts.iter().any(|attempt| attempt["worker"]["node_id"] == swarm.id(victim)), "{task}");
    within("the end of all nodes", swarm.stop_all()).await;
}
