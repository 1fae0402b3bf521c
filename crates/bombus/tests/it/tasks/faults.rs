//! Nodes that die and freeze while there is work: nothing is lost, and one result is settled. `BOMBUS_FAULT_ROUNDS` repeats the rounds.

use serde_json::{Value, json};

use super::after::Acknowledged;
use super::{idle, team, words, worker};
use crate::faults::rounds;
use crate::harness::within;

#[tokio::test]
async fn a_task_whose_worker_is_killed_is_done_by_another() {
    let pace = worker(40, "");
    let mut swarm = team(&[idle(""), pace.clone(), pace]).await;
    for round in 0..rounds() {
        let text = words(round, 60);
        let id = swarm.member(0).submit(&text, &[]).await;
        let victim = swarm.worker_of(0, &id).await;
        swarm.kill(victim).await;
        assert_eq!(swarm.member(0).result(&id).await, text);
        let task = swarm.member(0).settled(&id).await;
        assert_eq!(swarm.number_of(&task["node_id"]), 3 - victim, "{task}");
        assert!(task["epoch"].as_u64() > Some(1), "another grant: {task}");
        let attempts = task["attempts"].as_array().unwrap();
        assert!(attempts.iter().any(|attempt| attempt["worker"]["node_id"] == swarm.id(victim)), "{task}");
        swarm.restart(victim).await;
        swarm.all_see_each_other().await;
        swarm.member(0).knows_workers(2).await;
        assert_eq!(swarm.member(victim).settled(&id).await["result"]["response"], text, "who comes back learns of it");
    }
}

#[tokio::test]
async fn whoever_follows_an_answer_elsewhere_is_told_that_it_begins_anew_when_its_worker_is_killed() {
    let pace = worker(40, "");
    let mut swarm = team(&[idle(""), pace.clone(), pace, idle("")]).await;
    let text = words(8, 90);
    let id = swarm.member(0).submit(&text, &[]).await;
    let victim = swarm.worker_of(3, &id).await;
    let url = swarm.member(3).url(&format!("/task/{id}/stream"));
    let mut stream = within("a stream", swarm.member(3).client().get(url).send()).await.unwrap();
    let mut said = String::new();
    let first_pieces = async {
        while said.matches("\"token\"").count() < 3 {
            let bytes = stream.chunk().await.unwrap().expect("the stream goes on");
            said.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    };
    within("the first pieces", first_pieces).await;
    swarm.kill(victim).await;
    said.push_str(&within("the rest of the stream", stream.text()).await.unwrap());

    let events: Vec<Value> =
        said.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    let pieces = |events: &[Value]| events.iter().filter_map(|event| event["token"].as_str()).collect::<String>();
    let anew = events.iter().position(|event| event["reset"] == true);
    let (before, after) = events.split_at(anew.unwrap_or_else(|| panic!("nothing begins anew: {said}")));
    assert!(after[0]["attempt"].as_u64() > Some(1), "another attempt: {said}");
    assert!(!pieces(before).is_empty() && text.starts_with(&pieces(before)), "the beginning of the answer: {said}");
    assert_eq!(pieces(after), text, "the whole of it, once: {said}");
    let last = events.last().unwrap();
    let end = (&last["done"], &last["status"], &last["node_id"]);
    assert_eq!(end, (&json!(true), &json!("completed"), &json!(swarm.id(3 - victim))), "{said}");
}

#[tokio::test]
async fn a_task_whose_requester_is_killed_is_done_and_told_by_others() {
    let mut swarm = team(&[idle(""), worker(40, ""), idle("")]).await;
    for round in 0..rounds() {
        let text = words(round, 60);
        let id = swarm.member(0).submit(&text, &[]).await;
        assert_eq!(swarm.worker_of(0, &id).await, 1);
        swarm.kill(0).await;
        assert_eq!(swarm.member(2).result(&id).await, text, "its requester is gone for good, as far as they know");
        swarm.restart(0).await;
        swarm.all_see_each_other().await;
        for index in 0..3 {
            let task = swarm.member(index).settled(&id).await;
            assert_eq!((&task["status"], &task["result"]["response"]), (&json!("completed"), &json!(text)), "{task}");
        }
        swarm.member(0).knows_workers(1).await;
    }
}

#[tokio::test]
async fn a_task_is_done_though_requester_and_worker_die_together() {
    let pace = worker(40, "");
    let mut swarm = team(&[idle(""), pace.clone(), pace]).await;
    let text = words(7, 60);
    let id = swarm.member(0).submit(&text, &[]).await;
    let victim = swarm.worker_of(0, &id).await;
    let other = 3 - victim;
    swarm.member(other).task_when(&id, "the survivor knows of it", Value::is_object).await;
    swarm.kill(0).await;
    swarm.kill(victim).await;
    assert_eq!(swarm.member(other).result(&id).await, text, "whoever is left does it");
    swarm.restart(0).await;
    swarm.restart(victim).await;
    for index in 0..3 {
        let task = swarm.member(index).settled(&id).await;
        assert_eq!(task["result"]["response"], text, "at node {index}: {task}");
    }
}

#[tokio::test]
async fn a_worker_that_freezes_for_longer_than_its_lease_changes_nothing_when_it_wakes() {
    let pace = worker(40, "");
    let swarm = team(&[idle(""), pace.clone(), pace]).await;
    let text = words(3, 60);
    let id = swarm.member(0).submit(&text, &[]).await;
    let frozen = swarm.worker_of(0, &id).await;
    swarm.pause(frozen);
    let task = swarm.member(0).settled(&id).await;
    assert_eq!((&task["result"]["response"], swarm.number_of(&task["node_id"])), (&json!(text), 3 - frozen), "{task}");
    swarm.resume(frozen);
    swarm.all_see_each_other().await;
    let woken = swarm.member(frozen).settled(&id).await;
    for field in ["status", "node_id", "epoch", "result"] {
        assert_eq!(woken[field], task[field], "{field}: {woken}");
    }
    // What the woken worker may still have written would be here by now: this node hears of it before it tells of a later task.
    let later = swarm.member(frozen).submit("later", &[]).await;
    swarm.member(0).settled(&later).await;
    let after = swarm.member(0).task(&id).await;
    for field in ["status", "settled", "node_id", "epoch", "result"] {
        assert_eq!(after[field], task[field], "{field}: {after}");
    }
    // The log of what happened knows of one end, and of one result that was accepted.
    swarm.audits_fit("a frozen worker", &Acknowledged::from([(id, text)])).await;
}

#[tokio::test]
async fn a_worker_that_stops_hands_its_task_back_or_finishes_it() {
    let pace = worker(40, "");
    let mut swarm = team(&[idle(""), pace.clone(), pace]).await;
    let text = words(5, 60);
    let id = swarm.member(0).submit(&text, &[]).await;
    let leaving = swarm.worker_of(0, &id).await;
    swarm.stop(leaving).await;
    assert_eq!(swarm.member(0).result(&id).await, text);
}
