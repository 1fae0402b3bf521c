//! Peers of OrbitDB in JavaScript that give nodes work, and that work for nodes, by documents alone.

use serde_json::{Value, json};

use super::database::{Kind, Operation, Ours};
use super::of_each_release;
use super::peer::{Installed, JsHome, JsPeer};
use crate::harness::within;
use crate::swarm::{Member, Plan, Swarm};
use crate::tasks::{idle, worker};

of_each_release! {
    a_peer_gives_a_node_work, a_peer_hears_why_its_work_failed, a_peer_ends_the_work_that_it_gave, a_peer_works_for_a_node_that_lets_it,
    a_claim_of_a_peer_that_nobody_asked_for_counts_for_nothing, a_task_that_is_taken_at_once_looks_free_to_no_peer,
    a_peer_that_is_not_let_works_in_vain, a_node_that_lets_peers_work_waits_for_them_and_then_does_it_itself,
}

/// The databases of tasks and results, by their addresses.
struct Opened {
    tasks: String,
    results: String,
}

/// A node in an open swarm, and a peer that has dialled it and opened the databases: by their addresses, or by their names alone.
async fn pair(installed: Installed, config: &str, by_name: bool) -> (Swarm, JsHome, JsPeer, Opened) {
    let mut swarm = Plan::of(1).open().prepared().await;
    swarm.member_mut(0).configure(config);
    swarm.start_all().await;
    let home = JsHome::new(installed);
    let peer = home.start().await;
    peer.dial(&swarm.member(0).address()).await;
    let opened = Opened {
        tasks: open(&peer, swarm.member(0), "swarm-tasks", by_name).await,
        results: open(&peer, swarm.member(0), "swarm-results", by_name).await,
    };
    (swarm, home, peer, opened)
}

async fn open(peer: &JsPeer, member: &Member, name: &str, by_name: bool) -> String {
    let address = member.get(&format!("/db/{name}")).await["address"].as_str().expect("a database has one").to_owned();
    if by_name {
        let opened = peer.open(json!({ "name": name, "type": "documents", "write": ["*"] })).await;
        assert_eq!(opened, address, "the name alone gives the address");
    } else {
        peer.open_address(&address).await;
    }
    address
}

/// A document as a program writes it that knows of no grants.
fn pending(id: &str, prompt: &str, peer: &JsPeer) -> Value {
    json!({
        "_id": id, "prompt": prompt, "model": "fake", "status": "PENDING", "requesterPeerId": peer.id(),
        "createdAt": 1_763_700_000_000_u64, "options": { "temperature": 0.5 },
    })
}

async fn put(peer: &JsPeer, address: &str, document: &Value) {
    let id = document["_id"].as_str().expect("a document has an id");
    peer.write(address, &Operation::Put(id.to_owned(), document.clone())).await;
}

/// Waits until what the peer shows of a document satisfies, and returns it.
async fn shown(peer: &JsPeer, address: &str, id: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    within(what, async {
        loop {
            match peer.get(address, Kind::Documents, id).await {
                Some(document) if holds(&document) => return document,
                _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    })
    .await
}

async fn a_peer_gives_a_node_work(installed: Installed) {
    for by_name in [false, true] {
        let (mut swarm, _home, peer, opened) = pair(installed, &worker(0, ""), by_name).await;
        let id = "6f9c2c1e-5f0e-4a57-9f0b-0d7f6f1f2a3b";
        put(&peer, &opened.tasks, &pending(id, "Hello from JavaScript", &peer)).await;
        let result = shown(&peer, &opened.results, id, "a result", |_| true).await;
        assert_eq!((&result["taskId"], &result["response"]), (&json!(id), &json!("Hello from JavaScript")), "{result}");
        assert_eq!(result["workerPeerId"], swarm.id(0));
        let task = shown(&peer, &opened.tasks, id, "the end", |task| task["status"] == "COMPLETED").await;
        assert_eq!((&task["prompt"], &task["requesterPeerId"]), (&json!("Hello from JavaScript"), &json!(peer.id())));
        let told = swarm.member(0).task_when(id, "the node shows it", |task| task["status"] == "completed").await;
        assert_eq!((&told["requester"]["node_id"], &told["mine"]), (&json!(peer.id()), &json!(false)), "{told}");
        assert_eq!(told["result"]["response"], "Hello from JavaScript");
        peer.stop().await;
        swarm.stop_all().await;
    }
}

async fn a_peer_hears_why_its_work_failed(installed: Installed) {
    let failing = worker(0, "").replace("token_ms = 0", "fail = 'after:2'");
    let (mut swarm, _home, peer, opened) = pair(installed, &failing, false).await;
    // Longer than what goes on where the first part broke off.
    let prompt = "one two three four five six seven eight nine";
    let mut document = pending("to-fail", prompt, &peer);
    // One after the other would come ever later.
    document["maxAttempts"] = json!(1);
    put(&peer, &opened.tasks, &document).await;
    let task = shown(&peer, &opened.tasks, "to-fail", "the end", |task| task["status"] == "FAILED").await;
    assert!(task["error"].as_str().is_some_and(|error| !error.is_empty()), "{task}");
    assert_eq!(task["prompt"], prompt);
    let result = shown(&peer, &opened.results, "to-fail", "the reason", |result| result["error"].is_string()).await;
    assert_eq!((&result["error"], &result["workerPeerId"]), (&task["error"], &json!(swarm.id(0))), "{result}");
    peer.stop().await;
    swarm.stop_all().await;
}

async fn a_peer_ends_the_work_that_it_gave(installed: Installed) {
    let (mut swarm, _home, peer, opened) = pair(installed, &worker(1_000, ""), false).await;
    let document = pending("to-be-ended", &"many words ".repeat(100), &peer);
    put(&peer, &opened.tasks, &document).await;
    swarm.member(0).task_when("to-be-ended", "it runs", |task| task["status"] == "running").await;
    let mut ended = document;
    ended["status"] = json!("CANCELLED");
    put(&peer, &opened.tasks, &ended).await;
    swarm.member(0).task_when("to-be-ended", "it is cancelled", |task| task["status"] == "cancelled").await;
    within("the end of the work", async { while swarm.member(0).get("/status").await["tasks_active"] != 0 {} }).await;
    peer.stop().await;
    swarm.stop_all().await;
}

/// Does a task as a worker does that knows of no grants.
async fn work(peer: &JsPeer, opened: &Opened, id: &str, response: &str) {
    let task = shown(peer, &opened.tasks, id, "a task", |task| task["status"] == "PENDING").await;
    let mut claimed = task.clone();
    claimed["status"] = json!("CLAIMED");
    claimed["workerPeerId"] = json!(peer.id());
    claimed["claimedAt"] = json!(1_763_700_000_100_u64);
    put(peer, &opened.tasks, &claimed).await;
    claimed["status"] = json!("RUNNING");
    put(peer, &opened.tasks, &claimed).await;
    let result = json!({
        "_id": id, "taskId": id, "response": response, "model": task["model"], "workerPeerId": peer.id(),
        "evalCount": 3, "completedAt": 1_763_700_000_200_u64,
    });
    put(peer, &opened.results, &result).await;
    claimed["status"] = json!("COMPLETED");
    claimed["completedAt"] = json!(1_763_700_000_200_u64);
    put(peer, &opened.tasks, &claimed).await;
}

async fn a_peer_works_for_a_node_that_lets_it(installed: Installed) {
    let config = idle("foreign_workers = true\nbid_ms = 2000");
    let (mut swarm, _home, peer, opened) = pair(installed, &config, true).await;
    let id = swarm.member(0).submit("What is two and two?", &["--model", "fake"]).await;
    work(&peer, &opened, &id, "Four, says JavaScript.").await;
    let settled = |task: &Value| task["settled"] == true;
    let told = swarm.member(0).task_when(&id, "it is settled", settled).await;
    assert_eq!((&told["status"], &told["node_id"]), (&json!("completed"), &json!(peer.id())), "{told}");
    assert_eq!(told["result"]["response"], "Four, says JavaScript.");
    // Both said so, perhaps at once: which of the two documents a peer without the view shows depends on their keys.
    shown(&peer, &opened.tasks, &id, "it has ended", |task| task["status"] == "COMPLETED").await;
    peer.stop().await;
    swarm.stop_all().await;
}

async fn a_task_that_is_taken_at_once_looks_free_to_no_peer(installed: Installed) {
    let (mut swarm, _home, peer, opened) = pair(installed, &worker(0, ""), false).await;
    let id = swarm.member(0).submit("taken", &[]).await;
    let waits = swarm.member(0).submit("not taken", &["--model", "nobody-has-it"]).await;
    shown(&peer, &opened.tasks, &id, "the end", |task| task["settled"] == true).await;
    shown(&peer, &opened.tasks, &waits, "the other one", |_| true).await;
    let values = peer.values(&opened.tasks).await;
    let written = |id: &str| values.iter().filter(|value| value["_id"] == id).collect::<Vec<_>>();
    let statuses: Vec<_> = written(&id).iter().map(|value| value["status"].as_str().unwrap_or_default()).collect();
    assert_eq!((statuses.first(), statuses.last()), (Some(&"CLAIMED"), Some(&"COMPLETED")), "{statuses:?}");
    assert!(!statuses.contains(&"PENDING"), "{statuses:?}");
    assert_eq!((&written(&id)[0]["epoch"], &written(&id)[0]["workerPeerId"]), (&json!(1), &json!(swarm.id(0))));
    assert_eq!(written(&waits)[0]["status"], "PENDING");
    peer.stop().await;
    swarm.stop_all().await;
}

async fn a_peer_that_is_not_let_works_in_vain(installed: Installed) {
    let (mut swarm, _home, peer, opened) = pair(installed, &idle(""), false).await;
    let id = swarm.member(0).submit("What is two and two?", &["--model", "fake"]).await;
    work(&peer, &opened, &id, "Four, says JavaScript.").await;
    let results = Ours::at(swarm.member(0), &opened.results);
    within("the result of the peer", async { while results.all().await.is_empty() {} }).await;
    let task = swarm.member(0).task(&id).await;
    assert_eq!((&task["status"], &task["settled"]), (&json!("pending"), &json!(false)), "{task}");
    peer.stop().await;
    swarm.stop_all().await;
}

async fn a_node_that_lets_peers_work_waits_for_them_and_then_does_it_itself(installed: Installed) {
    let config = worker(0, "foreign_workers = true\nbid_ms = 700");
    let (mut swarm, _home, peer, opened) = pair(installed, &config, false).await;
    let id = swarm.member(0).submit("nobody wants it", &[]).await;
    shown(&peer, &opened.tasks, &id, "the end", |task| task["settled"] == true).await;
    let values = peer.values(&opened.tasks).await;
    let about: Vec<&Value> = values.iter().filter(|value| value["_id"] == id).collect();
    assert_eq!((&about[0]["status"], &about[1]["status"]), (&json!("PENDING"), &json!("CLAIMED")), "{about:?}");
    assert_eq!(about[1]["workerPeerId"], swarm.id(0));
    let waited = about[1]["claimedAt"].as_u64().unwrap() - about[1]["createdAt"].as_u64().unwrap();
    assert!(waited >= 690, "bids had {waited} ms");
    peer.stop().await;
    swarm.stop_all().await;
}

async fn a_claim_of_a_peer_that_nobody_asked_for_counts_for_nothing(installed: Installed) {
    let (mut swarm, _home, peer, opened) = pair(installed, &worker(30, ""), false).await;
    let text = "one two three four five six seven eight nine ten ".repeat(6);
    let id = swarm.member(0).submit(text.trim(), &[]).await;
    // It has the task by whatever status, and writes as if it were its own.
    let task = shown(&peer, &opened.tasks, &id, "the task", |_| true).await;
    let mut own = task.clone();
    own["status"] = json!("COMPLETED");
    own["workerPeerId"] = json!(peer.id());
    put(&peer, &opened.tasks, &own).await;
    let result = json!({
        "_id": id, "taskId": id, "response": "nonsense", "model": "fake", "workerPeerId": peer.id(), "completedAt": 1,
    });
    put(&peer, &opened.results, &result).await;
    let settled = |task: &Value| task["settled"] == true;
    let told = swarm.member(0).task_when(&id, "it is settled", settled).await;
    assert_eq!((&told["result"]["response"], &told["node_id"]), (&json!(text.trim()), &json!(swarm.id(0))), "{told}");
    let rows = Ours::at(swarm.member(0), &opened.results).all().await;
    assert!(rows.iter().any(|row| row.value["response"] == text.trim()), "the database shows the result that counts");
    peer.stop().await;
    swarm.stop_all().await;
}
