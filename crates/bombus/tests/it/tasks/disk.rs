//! Disks that are full: what is told, what goes on, and that nothing is lost that was acknowledged.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::after::Acknowledged;
use super::openai::{line, question};
use super::{idle, words, worker};
use crate::harness::{LIMIT, within};
use crate::model::eventually;
use crate::swarm::{Member, Plan, Swarm};

/// Room on the disk, as much as the databases of some tasks take several times over.
const DISK_MIB: u32 = 64;
/// Words of a text that fits into an entry, some hundred of which fill a journal, and of one that stands in a block of its own.
const MANY: usize = 1_200;
const TOO_MANY: usize = 12_000;
/// Words of an answer to them.
const ANSWER: usize = 5;

/// Starts nodes, one of which has a disk of its own; `None` where that cannot be had here (the test is skipped).
async fn team(configs: &[String], on_disk: usize) -> Option<Swarm> {
    let mut swarm = Plan::of(configs.len()).prepared().await;
    for (index, config) in configs.iter().enumerate() {
        swarm.member_mut(index).configure(config);
    }
    if !swarm.member_mut(on_disk).put_on_disk(DISK_MIB).await {
        return None;
    }
    swarm.start_all().await;
    swarm.all_see_each_other().await;
    let workers = configs.iter().filter(|config| config.contains("[[backends]]")).count();
    for index in 0..swarm.len() {
        swarm.member(index).knows_workers(workers).await;
    }
    Some(swarm)
}

/// Submits a task of a batch, whose answer is cut after so many words.
async fn submit(member: &Member, batch: &str, item: usize, text: &str, answer: usize) -> (u16, Value) {
    let body = json!({
        "payload": { "prompt": text, "max_tokens": answer },
        "batch": { "id": batch, "item": item.to_string() }, "max_attempts": 10,
    });
    member.post("/task", &body).await
}

/// Submits a task that has to be taken.
async fn taken(member: &Member, batch: &str, item: usize, text: String) -> (String, String) {
    let (status, told) = submit(member, batch, item, &text, usize::from(u16::MAX)).await;
    assert_eq!(status, 202, "{told}\n{}", member.log());
    (told["task_id"].as_str().unwrap().to_owned(), text)
}

#[tokio::test]
async fn a_node_whose_disk_is_full_says_so_and_goes_on_when_there_is_room() {
    let Some(mut swarm) = team(&[idle(""), worker(40, ""), idle("")], 0).await else { return };
    let mut tasks = Acknowledged::new();
    tasks.extend([taken(swarm.member(0), "disk", 0, words(0, 5)).await]);
    // One of its own and one of another node are being done when it happens.
    let own = taken(swarm.member(0), "disk", 1, words(1, 60)).await;
    let other = taken(swarm.member(2), "disk", 2, words(2, 60)).await;
    swarm.worker_of(0, &own.0).await;
    swarm.worker_of(2, &other.0).await;
    tasks.extend([own, other.clone()]);
    swarm.member(0).disk().fill();

    // What fits into files that are there may still be taken; at the latest when its journal is full it is not.
    let began = Instant::now();
    let mut items = 100..;
    let (status, told) = loop {
        let item = items.next().unwrap();
        let (status, told) = submit(swarm.member(0), "disk", item, &words(item, MANY), ANSWER).await;
        if status != 202 {
            break (status, told);
        }
        tasks.insert(told["task_id"].as_str().unwrap().to_owned(), words(item, ANSWER));
        assert!(began.elapsed() < LIMIT, "a full disk is noticed");
    };
    assert_eq!(status, 503, "{told}");
    let detail = told["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("disk") && detail.contains("room"), "what is wrong and what to do: {told}");
    let file = swarm.member(0).home().path("long.txt");
    std::fs::write(&file, words(7, TOO_MANY)).unwrap();
    let refused = swarm.member(0).run(&["submit", "--quiet", "--file", file.to_str().unwrap()]).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(4), ""), "{}", refused.stderr);
    assert!(refused.stderr.contains("disk") && refused.stderr.contains("room"), "{}", refused.stderr);

    let mut request = question(&words(4, TOO_MANY));
    request["max_tokens"] = json!(ANSWER);
    let requests = line("q", &request);
    let (status, told) = swarm.member(0).try_upload(&requests).await;
    assert_eq!(status, 503, "{told}");
    let message = told["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("disk") && message.contains("room"), "what is wrong and what to do: {told}");

    // The others go on, and so does the node itself with what needs no disk.
    let task = swarm.member(2).settled(&other.0).await;
    assert_eq!(task["result"]["response"], other.1, "{task}");
    assert_eq!(swarm.member(0).get("/health").await["status"], "ok");
    let later = taken(swarm.member(2), "disk", 3, words(3, 5)).await;
    swarm.member(2).settled(&later.0).await;
    tasks.extend([later]);

    swarm.member(0).disk().clear();
    let began = Instant::now();
    let id = loop {
        let (status, told) = submit(swarm.member(0), "disk", 8, &words(8, TOO_MANY), ANSWER).await;
        if status == 202 {
            break told["task_id"].as_str().unwrap().to_owned();
        }
        assert!(began.elapsed() < LIMIT, "with room again it takes tasks: {told}\n{}", swarm.member(0).log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    tasks.insert(id, words(8, ANSWER));
    let began = Instant::now();
    let file = loop {
        let (status, told) = swarm.member(0).try_upload(&requests).await;
        if status == 200 {
            break told["id"].as_str().unwrap().to_owned();
        }
        assert!(began.elapsed() < LIMIT, "with room again it takes files: {told}\n{}", swarm.member(0).log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let batch = swarm.member(0).batch_of(&file).await;
    swarm.member(0).batch_when(&batch, "it has ended", |batch| batch["status"] == "completed").await;
    // None of those that were refused is anywhere, nor a part of one.
    swarm.none_is_lost("a full disk", "disk", &tasks).await;
    swarm.all_are_settled_alike("a full disk", "disk", &tasks).await;
    within("the end of all nodes", swarm.stop_all()).await;
}

#[tokio::test]
async fn a_task_is_done_by_another_when_the_disk_of_its_worker_is_full() {
    // The one with the full disk is by far the faster one.
    let Some(mut swarm) = team(&[idle(""), worker(0, ""), worker(2, "")], 1).await else { return };
    let text = words(0, 5);
    let id = swarm.member(0).submit(&text, &["--to", "node1"]).await;
    swarm.member(0).settled(&id).await;
    swarm.member(1).disk().fill();
    let mut tasks = Acknowledged::new();
    for item in 0..12 {
        let text = words(10 + item, if item % 2 == 0 { 4_000 } else { 20 });
        tasks.extend([taken(swarm.member(0), "worker", item, text).await]);
    }
    for (id, text) in &tasks {
        let task = swarm.member(0).settled(id).await;
        assert_eq!((&task["status"], &task["result"]["response"]), (&json!("completed"), &json!(text)), "{task}");
    }
    assert_eq!(swarm.member(1).get("/health").await["status"], "ok");
    swarm.member(1).disk().clear();
    let text = words(1, 4_000);
    let (status, told) = swarm
        .member(0)
        .post(
            "/task",
            &json!({ "payload": { "prompt": text }, "to": "node1", "max_attempts": 10,
            "batch": { "id": "worker", "item": "to" } }),
        )
        .await;
    assert_eq!(status, 202, "{told}");
    tasks.insert(told["task_id"].as_str().unwrap().to_owned(), text);
    eventually("room for its entries", async || {
        swarm.member(1).get("/tasks?batch=worker&limit=1000").await["tasks"].is_array()
    })
    .await;
    swarm.none_is_lost("a full disk", "worker", &tasks).await;
    swarm.all_are_settled_alike("a full disk", "worker", &tasks).await;
    within("the end of all nodes", swarm.stop_all()).await;
}
