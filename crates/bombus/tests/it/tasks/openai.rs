//! OpenAI's files and batches between nodes: uploaded at one, made at another, read at a third, whoever dies meanwhile.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{idle, team, words, worker};
use crate::harness::within;
use crate::swarm::Member;

const BOUNDARY: &str = "----bees";

/// A line of a file of requests for a conversation.
pub(super) fn line(custom_id: &str, body: &Value) -> String {
    let line = json!({ "custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body });
    format!("{line}\n")
}

pub(super) fn question(text: &str) -> Value {
    json!({ "model": "fake", "messages": [{ "role": "user", "content": text }] })
}

impl Member {
    /// Uploads a file of requests, and returns its id.
    pub(crate) async fn upload(&self, content: &str) -> String {
        let (status, file) = self.try_upload(content).await;
        assert_eq!(status, 200, "{file}");
        file["id"].as_str().unwrap().to_owned()
    }

    /// Uploads a file of requests, and returns what is answered.
    pub(super) async fn try_upload(&self, content: &str) -> (u16, Value) {
        let part = |head: &str, content: &str| {
            format!("--{BOUNDARY}\r\ncontent-disposition: form-data; {head}\r\n\r\n{content}\r\n")
        };
        let (purpose, file) = (part("name=\"purpose\"", "batch"), part("name=\"file\"; filename=\"q.jsonl\"", content));
        let request = self.client().post(self.url("/v1/files")).body(format!("{purpose}{file}--{BOUNDARY}--\r\n"));
        let request = request.header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"));
        let response = within("an upload", request.send()).await.unwrap();
        let status = response.status();
        (status.as_u16(), within("an upload", response.json()).await.unwrap())
    }

    /// Makes a batch of a file, and returns its id.
    pub(super) async fn batch_of(&self, file: &str) -> String {
        let batch = json!({ "input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h" });
        let (status, made) = self.post("/v1/batches", &batch).await;
        assert_eq!((status, &made["status"]), (200, &json!("validating")), "{made}\n{}", self.log());
        made["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a batch stands so by this node, and returns it.
    pub(super) async fn batch_when(&self, id: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut batch = Value::Null;
        let seen = async {
            while !holds(&batch) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                let sent = self.client().get(self.url(&format!("/v1/batches/{id}"))).send();
                batch = within("a batch", sent).await.unwrap().json().await.unwrap();
            }
        };
        let in_time = tokio::time::timeout(crate::harness::LIMIT, seen).await.is_ok();
        assert!(in_time, "{what}: {batch}\nthe node's log:\n{}", self.log());
        batch
    }

    async fn status_of(&self, path: &str) -> u16 {
        within(path, self.client().get(self.url(path)).send()).await.unwrap().status().as_u16()
    }

    /// Reads a file of results by the ids of its lines.
    pub(super) async fn results(&self, file: &Value) -> BTreeMap<String, Value> {
        let text = self.text(&format!("/v1/files/{}/content", file.as_str().expect("there is such a file"))).await;
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| (line["custom_id"].as_str().unwrap().to_owned(), line)).collect()
    }
}

fn said(line: &Value) -> &str {
    line["response"]["body"]["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("no answer: {line}"))
}

#[tokio::test]
async fn a_file_of_one_node_is_a_batch_at_another_and_its_answers_are_read_at_a_third() {
    let swarm = team(&[worker(0, ""), idle(""), idle("")]).await;
    let mut content: String = (0..20).map(|number| line(&format!("q{number}"), &question(&words(number, 4)))).collect();
    let long = words(99, 8_000);
    content += &line("long", &question(&long));
    content +=
        &line("streams", &json!({ "model": "fake", "messages": [{ "role": "user", "content": "x" }], "stream": true }));
    let mut twice = question("Two at once");
    twice["n"] = json!(2);
    content += &format!("\n{}", line("twice", &twice));

    let file = swarm.member(0).upload(&content).await;
    swarm
        .member(1)
        .batch_when("none", "a batch that is none is told", |told| told["error"]["code"] == "batch_not_found")
        .await;
    within("the file at another node", async {
        while swarm.member(1).status_of(&format!("/v1/files/{file}")).await != 200 {}
    })
    .await;
    let batch = swarm.member(1).batch_of(&file).await;
    let ended = swarm.member(2).batch_when(&batch, "it has ended", |batch| batch["status"] == "completed").await;
    assert_eq!(ended["request_counts"], json!({ "total": 23, "completed": 22, "failed": 1 }), "{ended}");

    let answers = swarm.member(2).results(&ended["output_file_id"]).await;
    assert_eq!(answers.len(), 22);
    for number in 0..20 {
        assert_eq!(said(&answers[&format!("q{number}")]), words(number, 4));
    }
    assert_eq!(said(&answers["long"]), long);
    let choices = answers["twice"]["response"]["body"]["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| &choice["index"]).collect::<Vec<_>>(), [0, 1]);
    let body = &answers["q0"]["response"]["body"];
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("fake")), "{body}");
    assert_eq!(
        (&body["usage"]["completion_tokens"], &body["choices"][0]["finish_reason"]),
        (&json!(4), &json!("stop"))
    );
    swarm.member(0).batch_when(&batch, "it has ended", |batch| batch["status"] == "completed").await;
    let errors = swarm.member(0).results(&ended["error_file_id"]).await;
    let refused = &errors["streams"]["response"];
    assert_eq!((errors.len(), &refused["status_code"]), (1, &json!(400)), "{errors:?}");
    assert_eq!(refused["body"]["error"]["param"], "stream");

    // They are tasks like others.
    let told = swarm.member(0).done(&["results", "--batch", &batch]).await;
    assert!(told.contains(&words(7, 4)) && told.lines().count() == 22, "{told}");

    // The batch needs what is in the file, though nobody sees the file any more.
    let removed =
        swarm.member(2).client().delete(swarm.member(2).url(&format!("/v1/files/{file}"))).send().await.unwrap();
    assert_eq!(removed.status(), 200);
    within("the removal at another node", async {
        while swarm.member(0).status_of(&format!("/v1/files/{file}")).await != 404 {}
    })
    .await;
    assert_eq!(swarm.member(0).results(&ended["output_file_id"]).await.len(), 22);
}

#[tokio::test]
async fn a_file_near_the_largest_is_whole_at_another_node_and_gone_once_it_is_removed_there() {
    let swarm = team(&[idle(""), idle("")]).await;
    // No two of its parts are alike, so that each is a block of its own.
    let lines = (1..8).map(|number| line(&format!("q{number}"), &question(&words(number, 1_000_000))));
    let content: String = lines.collect();
    assert!((56 << 20..64 << 20).contains(&content.len()), "{} bytes", content.len());

    let file = swarm.member(0).upload(&content).await;
    let path = format!("/v1/files/{file}");
    let other = swarm.member(1);
    within("the file at another node", async { while other.status_of(&path).await != 200 {} }).await;
    let told = other.get(&path).await;
    assert_eq!((&told["bytes"], &told["purpose"]), (&json!(content.len()), &json!("batch")), "{told}");
    let read = other.text(&format!("{path}/content")).await;
    // Not `assert_eq!`, which would print both.
    assert!(read == content, "{} bytes were read, and others than the {}", read.len(), content.len());

    let removed = within("the removal", other.client().delete(other.url(&path)).send()).await.unwrap();
    assert_eq!(removed.status(), 200);
    within("the removal at the first node", async { while swarm.member(0).status_of(&path).await != 404 {} }).await;
    assert_eq!(swarm.member(0).status_of(&format!("{path}/content")).await, 404);
}

#[tokio::test]
async fn a_batch_ends_though_the_node_that_made_it_is_killed() {
    for moment in ["validating", "in_progress"] {
        let mut swarm = team(&[idle(""), worker(10, ""), worker(10, "")]).await;
        let content: String =
            (0..40).map(|number| line(&format!("q{number}"), &question(&words(number, 10)))).collect();
        let file = swarm.member(1).upload(&content).await;
        within("the file at another node", async {
            while swarm.member(0).status_of(&format!("/v1/files/{file}")).await != 200 {}
        })
        .await;
        let batch = swarm.member(0).batch_of(&file).await;
        // Which of the two it is by then is up to the machine; before, the others knew nothing of it.
        let seen = |batch: &Value| match moment {
            "validating" => batch["status"].is_string(),
            _ => batch["request_counts"]["completed"].as_u64() > Some(3),
        };
        swarm.member(1).batch_when(&batch, "another node knows it", seen).await;
        swarm.kill(0).await;
        let ended = swarm.member(2).batch_when(&batch, "it has ended", |batch| batch["status"] == "completed").await;
        assert_eq!(ended["request_counts"], json!({ "total": 40, "completed": 40, "failed": 0 }), "{moment}: {ended}");
        // The end may come to the one node sooner than to the other.
        swarm.member(1).batch_when(&batch, "it has ended", |batch| batch["status"] == "completed").await;
        let answers = swarm.member(1).results(&ended["output_file_id"]).await;
        for number in 0..40 {
            assert_eq!(said(&answers[&format!("q{number}")]), words(number, 10), "{moment}");
        }
        within("the end of all nodes", swarm.stop_all()).await;
    }
}

#[tokio::test]
async fn a_batch_is_cancelled_at_any_node_and_what_was_done_stays() {
    let swarm = team(&[idle(""), worker(20, "max_concurrent = 1"), idle("")]).await;
    let content: String = (0..60).map(|number| line(&format!("q{number}"), &question(&words(number, 10)))).collect();
    let file = swarm.member(0).upload(&content).await;
    let batch = swarm.member(0).batch_of(&file).await;
    swarm
        .member(2)
        .batch_when(&batch, "some is done", |batch| batch["request_counts"]["completed"].as_u64() > Some(1))
        .await;
    let (status, told) = swarm.member(2).post(&format!("/v1/batches/{batch}/cancel"), &json!({})).await;
    assert_eq!((status, &told["status"]), (200, &json!("cancelling")), "{told}");
    let ended = swarm.member(1).batch_when(&batch, "it has ended", |batch| batch["status"] == "cancelled").await;
    let done = ended["request_counts"]["completed"].as_u64().unwrap();
    assert!((2..60).contains(&done), "{ended}");
    let answers = swarm.member(1).results(&ended["output_file_id"]).await;
    let errors = swarm.member(1).results(&ended["error_file_id"]).await;
    assert_eq!((answers.len() as u64, answers.len() + errors.len()), (done, 60), "{ended}");
    assert!(errors.values().all(|line| line["error"]["code"] == "batch_cancelled"), "{errors:?}");
    let (status, told) = swarm.member(0).post(&format!("/v1/batches/{batch}/cancel"), &json!({})).await;
    assert_eq!((status, &told["error"]["code"]), (409, &json!("batch_ended")), "{told}");
}

#[tokio::test]
async fn a_batch_goes_on_when_its_only_node_starts_again() {
    let mut swarm = team(&[worker(10, "")]).await;
    let content: String = (0..30).map(|number| line(&format!("q{number}"), &question(&words(number, 10)))).collect();
    let file = swarm.member(0).upload(&content).await;
    let batch = swarm.member(0).batch_of(&file).await;
    let begun = |batch: &Value| batch["request_counts"]["completed"].as_u64() > Some(1);
    swarm.member(0).batch_when(&batch, "some is done", begun).await;
    swarm.kill(0).await;
    swarm.restart(0).await;
    let ended = swarm.member(0).batch_when(&batch, "it has ended", |batch| batch["status"] == "completed").await;
    assert_eq!(ended["request_counts"], json!({ "total": 30, "completed": 30, "failed": 0 }), "{ended}");
    assert_eq!(swarm.member(0).results(&ended["output_file_id"]).await.len(), 30);
    assert_eq!(swarm.member(0).text(&format!("/v1/files/{file}/content")).await, content);
}
