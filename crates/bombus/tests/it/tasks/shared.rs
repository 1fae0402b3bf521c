//! Tasks between nodes: submitted at one, done at another, asked for at a third.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::openai::question;
use super::{idle, team, words, worker};
use crate::harness::within;
use crate::model::eventually;

#[tokio::test]
async fn one_node_submits_another_does_and_a_third_tells() {
    let swarm = team(&[idle(""), worker(0, ""), idle("")]).await;
    let id = swarm.member(0).submit("Hello from afar", &[]).await;
    assert_eq!(swarm.member(2).result(&id).await, "Hello from afar");
    for index in 0..3 {
        let task = swarm.member(index).settled(&id).await;
        assert_eq!((&task["status"], &task["epoch"]), (&json!("completed"), &json!(1)), "at node {index}: {task}");
        assert_eq!((&task["node_id"], &task["mine"]), (&json!(swarm.id(1)), &json!(index == 0)), "{task}");
        assert_eq!(task["requester"]["node_id"], swarm.id(0));
        assert_eq!(task["result"]["response"], "Hello from afar");
        assert_eq!(task["hostname"], "node1");
    }
    let listed = swarm.member(2).done(&["tasks"]).await;
    assert!(listed.contains(&id) && listed.contains("node1"), "{listed}");
}

#[tokio::test]
async fn the_work_goes_where_it_is_told_to() {
    let swarm = team(&[worker(0, ""), worker(0, ""), worker(0, "")]).await;
    for to in [1, 2, 0] {
        let name = format!("node{to}");
        let id = swarm.member(0).submit("Hi", &["--to", &name]).await;
        let task = swarm.member(0).settled(&id).await;
        assert_eq!((&task["status"], &task["node_id"]), (&json!("completed"), &json!(swarm.id(to))), "{task}");
    }
}

#[tokio::test]
async fn any_node_streams_the_answer_while_it_comes() {
    let swarm = team(&[idle(""), worker(30, ""), idle("")]).await;
    let text = words(1, 60);
    let id = swarm.member(0).submit(&text, &[]).await;
    swarm.worker_of(2, &id).await;
    let url = swarm.member(2).url(&format!("/task/{id}/stream"));
    let response = within("a stream", swarm.member(2).client().get(url).send()).await.unwrap();
    let body = within("a stream", response.text()).await.unwrap();
    let events: Vec<Value> =
        body.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    let pieces: String = events.iter().filter_map(|event| event["token"].as_str()).collect();
    assert!(!pieces.is_empty() && text.ends_with(&pieces), "the rest of the answer: {pieces:?}");
    let last = events.last().unwrap();
    assert_eq!((&last["done"], &last["node_id"]), (&json!(true), &json!(swarm.id(1))), "{body}");
}

#[tokio::test]
async fn any_node_cancels_a_task_at_whichever_works_on_it() {
    let swarm = team(&[idle(""), worker(1_000, ""), idle("")]).await;
    let id = swarm.member(0).submit(&words(1, 200), &[]).await;
    let worker = swarm.worker_of(0, &id).await;
    swarm.member(2).done(&["cancel", &id]).await;
    within("the end of the work", async { while swarm.member(worker).get("/status").await["tasks_active"] != 0 {} })
        .await;
    for index in 0..3 {
        let task = swarm.member(index).settled(&id).await;
        assert_eq!(task["status"], "cancelled", "at node {index}: {task}");
    }
}

#[tokio::test]
async fn a_cancelled_task_stops_though_its_requester_is_away_or_silent() {
    for way in [Away::Dead, Away::Silent] {
        let mut swarm = team(&[idle(""), worker(1_000, ""), idle("")]).await;
        let id = swarm.member(0).submit(&words(1, 200), &[]).await;
        let worker = swarm.worker_of(2, &id).await;
        match way {
            Away::Dead => swarm.kill(0).await,
            Away::Silent => swarm.pause(0),
        }
        let asked = Instant::now();
        swarm.member(2).done(&["cancel", &id]).await;
        eventually("the end of the work", async || swarm.member(worker).get("/status").await["tasks_active"] == 0)
            .await;
        eprintln!("{way:?}: {:?} from the command to the end of the work", asked.elapsed());
        // Where it is known at once that it is away it takes milliseconds. The rest is left to machines that are busy: the work takes minutes.
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
        for index in [1, 2] {
            let task = swarm.member(index).task_when(&id, "it is to end", |task| task["cancelling"] == true).await;
            assert_eq!(task["settled"], false, "only its requester settles: {task}");
        }
        match way {
            Away::Dead => swarm.restart(0).await,
            Away::Silent => swarm.resume(0),
        }
        for index in 0..3 {
            let task = swarm.member(index).settled(&id).await;
            assert_eq!(task["status"], "cancelled", "at node {index}: {task}");
        }
    }
}

/// Ways to be away.
#[derive(Debug, Clone, Copy)]
enum Away {
    Dead,
    Silent,
}

#[tokio::test]
async fn a_task_waits_until_somebody_can_do_it() {
    let mut swarm = team(&[idle(""), idle("")]).await;
    let id = swarm.member(0).submit("Patience", &[]).await;
    let waiting = swarm.member(1).task_when(&id, "the other node knows it", Value::is_object).await;
    assert_eq!(waiting["status"], "pending", "{waiting}");
    swarm.stop(1).await;
    swarm.member_mut(1).configure(&worker(0, ""));
    swarm.restart(1).await;
    assert_eq!(swarm.member(0).result(&id).await, "Patience");
}

#[tokio::test]
async fn questions_that_somebody_waits_for_are_no_tasks() {
    let swarm = team(&[idle(""), worker(0, "")]).await;
    let asked = swarm.member(0);
    for number in 0..3 {
        let text = words(number, 4);
        let mut request = question(&text);
        let (status, answer) = asked.post("/v1/chat/completions", &request).await;
        assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &json!(text)), "{answer}");
        request["stream"] = json!(true);
        let (status, streamed) = asked.post("/v1/chat/completions", &request).await;
        assert!(status == 200 && streamed.as_str().is_some_and(|said| said.contains("[DONE]")), "{status} {streamed}");
    }
    // What is written is counted a while later, and in its order: a task that comes behind them is the first one.
    let id = asked.submit("a task", &[]).await;
    for index in 0..2 {
        let member = swarm.member(index);
        member.settled(&id).await;
        let store = async || member.get("/status").await["task_store"].clone();
        eventually("the task is counted", async || store().await["tasks"] != 0).await;
        let store = store().await;
        assert_eq!(store["tasks"], 1, "at node {index}: {store}");
        for database in ["swarm-tasks", "swarm-results", "swarm-events"] {
            let rows = member.text(&format!("/db/{database}/all")).await;
            assert!(rows.lines().all(|row| row.contains(&id)), "{database} at node {index}: {rows}");
        }
    }
}

#[tokio::test]
async fn prompts_and_answers_of_any_size_are_everywhere() {
    let swarm = team(&[idle(""), worker(0, ""), idle("")]).await;
    let text = words(1, 30_000);
    let file = swarm.member(0).home().path("long.txt");
    std::fs::write(&file, &text).unwrap();
    let id = swarm.member(0).done(&["submit", "--quiet", "--file", file.to_str().unwrap()]).await.trim().to_owned();
    assert_eq!(swarm.member(0).result(&id).await, text);
    assert_eq!(swarm.member(2).result(&id).await, text);
}

#[tokio::test]
async fn the_same_key_is_the_same_task_at_every_node() {
    let swarm = team(&[idle(""), worker(0, "")]).await;
    let first = swarm.member(0).submit("Once", &["--key", "once"]).await;
    swarm.member(1).settled(&first).await;
    assert_eq!(swarm.member(1).submit("Once", &["--key", "once"]).await, first);
    let refused = swarm.member(1).run(&["submit", "Twice", "--key", "once"]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
}
