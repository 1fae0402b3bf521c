//! A task for the real model.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{QUICK, idle};
use crate::model::{MODEL, eventually, give_model};
use crate::swarm::Plan;

#[tokio::test]
async fn the_real_model_does_a_task_of_another_node_within_half_a_minute() {
    let mut swarm = Plan::of(2).undisturbed().prepared().await;
    let engine = format!("[api]\nlisten = '127.0.0.1:0'\n[[backends]]\nkind = 'embedded'\nthreads = 2\n{QUICK}");
    swarm.member_mut(0).configure(&idle(""));
    swarm.member_mut(1).configure(&engine);
    give_model(swarm.member(1).home()).await;
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    eventually("the offer of the other", async || {
        let route = swarm.member(0).get(&format!("/route?model={MODEL}")).await;
        route["candidates"].as_array().is_some_and(|list| list.iter().any(|one| one["score"].is_number()))
    })
    .await;
    let begun = Instant::now();
    let body = json!({ "payload": { "model": MODEL, "prompt": "Name a colour.", "max_tokens": 16, "temperature": 0 } });
    let (status, answer) = swarm.member(0).post("/task", &body).await;
    assert_eq!(status, 202, "{answer}");
    let task = swarm.member(0).settled(answer["task_id"].as_str().unwrap()).await;
    assert_eq!((&task["status"], &task["node_id"]), (&json!("completed"), &json!(swarm.id(1))), "{task}");
    let result = &task["result"];
    assert!(result["response"].as_str().is_some_and(|text| !text.trim().is_empty()), "{task}");
    assert!(result["eval_count"].as_u64() > Some(0) && result["tokens_per_second"].as_f64() > Some(0.0), "{task}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
