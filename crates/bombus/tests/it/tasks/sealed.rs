//! Sealed tasks: of all nodes none can read them but the one that asks and the one that answers.

use std::path::Path;

use serde_json::{Value, json};

use super::{idle, team, words, worker};
use crate::harness::within;
use crate::swarm::Swarm;

/// Returns the files below a folder in which these bytes stand.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_with(&path, bytes));
        } else if std::fs::read(&path).unwrap_or_default().windows(bytes.len()).any(|window| window == bytes) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Expects nothing of these texts to be in the data directories of nodes.
fn nowhere(swarm: &Swarm, texts: &[&str]) {
    for index in 0..swarm.len() {
        let folder = swarm.member(index).home().data_dir();
        for text in texts {
            let found = files_with(&folder, text.as_bytes());
            assert!(found.is_empty(), "node {index} has {text:?} in {found:?}");
        }
    }
}

/// Expects a node that can read nothing of it to know of a sealed task, and what came of it.
pub(super) async fn knows_and_cannot_read(swarm: &Swarm, index: usize, id: &str, texts: &[&str]) {
    let member = swarm.member(index);
    let task = member.settled(id).await;
    assert_eq!((&task["status"], &task["encrypted"]), (&json!("completed"), &json!(true)), "{task}");
    assert!(task.get("result").is_none_or(Value::is_null), "{task}");
    let refused = member.run(&["result", id]).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{}", refused.stderr);
    assert!(refused.stderr.contains("sealed"), "{}", refused.stderr);
    for database in ["swarm-tasks", "swarm-results"] {
        let stored = member.done(&["db", "get", database, id, "--json"]).await;
        assert!(stored.contains("sealed"), "it has the entry: {stored}");
        assert!(texts.iter().all(|text| !stored.contains(text)), "{stored}");
    }
}

#[tokio::test]
async fn a_third_node_has_the_entries_and_cannot_read_them() {
    // What it answers is not what it is asked, so that both are looked for.
    let answer = "the-answer-that-nobody-else-may-see";
    let replies = worker(0, "").replace("token_ms = 0", &format!("reply = '{answer}'"));
    let mut swarm = team(&[idle(""), replies, idle("")]).await;
    let prompt = format!("the-question-that-nobody-else-may-see {}", words(1, 50));
    let id = swarm.member(0).submit(&prompt, &["--encrypt", "--to", "node1"]).await;
    assert_eq!(swarm.member(0).result(&id).await, answer);
    let texts = [prompt.as_str(), "the-question-that", answer];
    for index in [1, 2] {
        knows_and_cannot_read(&swarm, index, &id, &texts).await;
    }
    // Large ones stand in blocks of their own.
    let long = words(2, 20_000);
    let file = swarm.member(0).home().path("long.txt");
    std::fs::write(&file, &long).unwrap();
    let file = file.to_str().unwrap();
    let large = swarm.member(0).done(&["submit", "--quiet", "--file", file, "--encrypt"]).await.trim().to_owned();
    assert_eq!(swarm.member(0).result(&large).await, answer);
    std::fs::remove_file(file).unwrap();
    knows_and_cannot_read(&swarm, 2, &large, &["2-7777", answer]).await;

    let events = swarm.member(2).done(&["events", "--json"]).await;
    assert!(events.contains(&id) && texts.iter().all(|text| !events.contains(text)), "{events}");
    for index in 0..swarm.len() {
        assert!(texts.iter().all(|text| !swarm.member(index).log().contains(text)), "the log of node {index}");
    }
    within("the end of all nodes", swarm.stop_all()).await;
    nowhere(&swarm, &[texts[0], texts[1], answer, "2-7777 2-7778"]);
}

#[tokio::test]
async fn a_sealed_task_whose_worker_is_killed_is_sealed_anew_for_another() {
    let pace = worker(40, "");
    let mut swarm = team(&[idle(""), pace.clone(), pace]).await;
    let text = words(3, 60);
    let id = swarm.member(0).submit(&text, &["--encrypt"]).await;
    let victim = swarm.worker_of(0, &id).await;
    swarm.kill(victim).await;
    assert_eq!(swarm.member(0).result(&id).await, text);
    let task = swarm.member(0).settled(&id).await;
    assert_eq!(swarm.number_of(&task["node_id"]), 3 - victim, "{task}");
    swarm.restart(victim).await;
    knows_and_cannot_read(&swarm, victim, &id, &[&text]).await;
    within("the end of all nodes", swarm.stop_all()).await;
    nowhere(&swarm, &["3-41 3-42"]);
}

#[tokio::test]
async fn while_its_requester_is_away_only_those_take_a_sealed_task_to_whom_it_is_sealed() {
    let pace = worker(40, "");
    let mut swarm = team(&[idle(""), pace.clone(), pace.clone(), pace]).await;
    let text = words(4, 60);
    let id = swarm.member(0).submit(&text, &["--seal-to", "2"]).await;
    let victim = swarm.worker_of(0, &id).await;
    let readers = sealed_to(&swarm, &id).await;
    assert!(readers.len() == 2 && readers.contains(&victim), "{readers:?} without {victim}");
    let other = readers.into_iter().find(|reader| *reader != victim).unwrap();
    swarm.member(other).task_when(&id, "the other one knows of it", Value::is_object).await;
    swarm.kill(0).await;
    swarm.kill(victim).await;
    let task = swarm.member(other).task_when(&id, "it is done", |task| task["status"] == "completed").await;
    assert_eq!(swarm.number_of(&task["node_id"]), other, "{task}");
    swarm.restart(0).await;
    assert_eq!(swarm.member(0).result(&id).await, text);
    swarm.restart(victim).await;
    for index in 1..4 {
        knows_and_cannot_read(&swarm, index, &id, &[&text]).await;
    }
    within("the end of all nodes", swarm.stop_all()).await;
    nowhere(&swarm, &["4-41 4-42"]);
}

/// Returns to which workers a task is sealed, as everybody can see.
async fn sealed_to(swarm: &Swarm, id: &str) -> Vec<usize> {
    let stored = swarm.member(0).stored("swarm-tasks", id).await;
    let sealed = stored["value"]["sealed"].to_string();
    (1..swarm.len()).filter(|index| sealed.contains(swarm.id(*index))).collect()
}
