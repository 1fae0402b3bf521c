//! Databases that several nodes have open.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::databases::beside_tasks;
use crate::harness::within;
use crate::model::eventually;
use crate::swarm::{Member, Swarm};

/// Looks again and again until there is something.
async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut found = None;
    eventually("what is waited for", async || {
        found = look().await;
        found.is_some()
    })
    .await;
    found.expect("it is waited for until it is there")
}

/// Runs `bombus db` with `--json` on a node and reads its one JSON object.
async fn object(member: &Member, arguments: &[&str]) -> Value {
    let said = member.done(&[&["db"], arguments, &["--json"]].concat()).await;
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
}

/// Gets lines of JSON from a node's API.
async fn rows(member: &Member, path: &str) -> Vec<Value> {
    let response = within(path, member.client().get(member.url(path)).send()).await.unwrap();
    let text = within(path, response.text()).await.unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until a node shows so many rows of a database, and returns them.
async fn shows(member: &Member, database: &str, count: usize) -> Vec<Value> {
    until(async || {
        let rows = rows(member, &format!("/db/{database}/all")).await;
        (rows.len() == count).then_some(rows)
    })
    .await
}

async fn put(member: &Member, database: &str, value: Value) {
    let (status, answer) = member.post(&format!("/db/{database}/put"), &json!({ "value": value })).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn two_nodes_write_one_database_and_show_the_same() {
    let swarm = Swarm::of(2).await;
    let (one, two) = (swarm.member(0), swarm.member(1));
    let address = one.done(&["db", "create", "notes", "--type", "documents", "--write", "*"]).await.trim().to_owned();
    put(one, "notes", json!({ "_id": "first", "from": 0 })).await;
    let opened = two.done(&["db", "open", &address]).await;
    assert_eq!(opened.trim(), address);
    let mut watch =
        two.command(&["db", "watch", "notes", "--quiet"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut changes = BufReader::new(watch.stdout.take().unwrap()).lines();

    assert_eq!(shows(two, "notes", 1).await[0]["value"]["from"], 0, "what was there before comes, too");
    // Nothing tells from outside that the watch has begun, so writing goes on until it shows something.
    let mut number = 0;
    let first = loop {
        put(one, "notes", json!({ "_id": format!("probe{number}") })).await;
        number += 1;
        let line = tokio::time::timeout(std::time::Duration::from_millis(200), changes.next_line()).await;
        if let Ok(line) = line {
            break line.unwrap().expect("the watch goes on");
        }
    };
    let mut change: Value = serde_json::from_str(&first).unwrap();
    put(one, "notes", json!({ "_id": "second", "from": 0 })).await;
    while change["key"] != "second" {
        assert!(["update", "join"].contains(&change["event"].as_str().unwrap()), "{change}");
        let line = within("the next change", changes.next_line()).await.unwrap().expect("the watch goes on");
        change = serde_json::from_str(&line).unwrap();
    }
    assert_eq!((&change["event"], &change["op"]), (&json!("update"), &json!("put")));
    assert_eq!((&change["node_id"], &change["value"]["from"]), (&json!(one.id()), &json!(0)), "{change}");

    put(two, "notes", json!({ "_id": "third", "from": 1 })).await;
    put(two, "notes", json!({ "_id": "first", "from": 1 })).await;
    let count = number + 3;
    let changed = async |member: &Member| {
        until(async || {
            let all = rows(member, "/db/notes/all").await;
            let last = all.last().is_some_and(|row| row["key"] == "first");
            (all.len() == count && last).then_some(all)
        })
        .await
    };
    assert_eq!(changed(one).await, changed(two).await, "the same rows by the same entries in the same order");
    let info = object(one, &["info", "notes"]).await;
    assert_eq!(info["peers"], json!([{ "node_id": two.id(), "hostname": "node1" }]), "{info}");
    assert_eq!(info["refused"], json!({}), "{info}");

    let mut told = async |event: &str| {
        loop {
            let line = within(event, changes.next_line()).await.unwrap().expect("the watch goes on");
            let change: Value = serde_json::from_str(&line).unwrap();
            if change["event"] == event {
                break change;
            }
        }
    };
    one.done(&["db", "close", "notes"]).await;
    let change = told("leave").await;
    assert_eq!(change["node_id"], one.id(), "{change}");
    one.done(&["db", "open", "notes"]).await;
    let change = told("join").await;
    let heads = object(two, &["info", "notes"]).await["heads"].clone();
    assert_eq!((&change["node_id"], &change["heads"]), (&json!(one.id()), &heads), "{change}");
    eventually("they are peers again", async || object(one, &["info", "notes"]).await["peers"] != json!([])).await;

    two.done(&["db", "drop", "notes"]).await;
    let left = async || object(one, &["info", "notes"]).await["peers"] == json!([]);
    eventually("the other node is no peer of the database any more", left).await;
    assert_eq!(rows(one, "/db/notes/all").await.len(), count, "the other copy is as it was");
}

#[tokio::test]
async fn a_writer_is_granted_and_revoked() {
    let swarm = Swarm::of(2).await;
    let (one, two) = (swarm.member(0), swarm.member(1));
    let address = one.done(&["db", "create", "notes", "--type", "documents"]).await.trim().to_owned();
    put(one, "notes", json!({ "_id": "own" })).await;
    two.done(&["db", "open", &address]).await;
    let refused = two.run(&["db", "put", "notes", "{\"_id\": \"theirs\"}"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("may not write"), "{}", refused.stderr);
    let refused = two.run(&["db", "grant", "notes", "*"]).await;
    assert_eq!(refused.code, Some(1), "who may not grant cannot let himself in: {}", refused.stderr);

    let identity = object(two, &["list"]).await["identity"].as_str().unwrap().to_owned();
    let granted = object(one, &["grant", "notes", &identity]).await;
    let writers = granted["access"]["write"].as_array().unwrap();
    assert!(writers.len() == 2 && writers.contains(&json!(identity)), "{granted}");
    until(async || {
        let written = two.run(&["db", "put", "notes", "{\"_id\": \"theirs\"}"]).await;
        (written.code == Some(0)).then_some(())
    })
    .await;
    shows(one, "notes", 2).await;

    one.done(&["db", "revoke", "notes", &identity]).await;
    for member in [one, two] {
        let left = shows(member, "notes", 1).await;
        assert_eq!(left[0]["key"], "own", "what the revoked identity wrote no longer counts");
    }
    let info = object(one, &["info", "notes"]).await;
    assert_eq!((&info["refused"], &info["entries"]), (&json!({ "access": 1 }), &json!(1)), "{info}");
    until(async || {
        let refused = two.run(&["db", "put", "notes", "{\"_id\": \"more\"}"]).await;
        (refused.code == Some(1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_was_away_gets_what_it_missed() {
    let mut swarm = Swarm::of(2).await;
    let address = {
        let one = swarm.member(0);
        one.done(&["db", "create", "log", "--type", "events", "--write", "*"]).await.trim().to_owned()
    };
    // The name and the type alone give the address where everybody may write.
    let same = swarm.member(1).done(&["db", "create", "log", "--type", "events", "--write", "*"]).await;
    assert_eq!(same.trim(), address);
    let add = async |member: &Member, value: &str| {
        let (status, answer) = member.post("/db/log/add", &json!({ "value": value })).await;
        assert_eq!(status, 200, "{answer}");
    };
    add(swarm.member(1), "before").await;
    shows(swarm.member(0), "log", 1).await;
    swarm.kill(1).await;
    for number in 0..300 {
        add(swarm.member(0), &number.to_string()).await;
    }
    swarm.restart(1).await;
    let late = shows(swarm.member(1), "log", 301).await;
    assert_eq!(late, rows(swarm.member(0), "/db/log/all").await, "in the same order");

    swarm.stop(0).await;
    add(swarm.member(1), "while the other is away").await;
    swarm.restart(0).await;
    let back = shows(swarm.member(0), "log", 302).await;
    assert_eq!(back.last().unwrap()["value"], "while the other is away");
}

#[tokio::test]
async fn an_address_that_nobody_has_is_told_in_time() {
    let mut swarm = Swarm::of(2).await;
    swarm.stop(1).await;
    swarm.member_mut(1).set_variable("BOMBUS_DB__OPEN_LIMIT_MS", "500");
    swarm.restart(1).await;
    let address = "/orbitdb/zdpuAkwTad8UFrrtsFv42ZWfN2dKCXDHUDcUxRtGs22qxdbi5";
    let refused = swarm.member(1).run(&["db", "open", address]).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(4), ""), "{}", refused.stderr);
    assert!(refused.stderr.contains("no peer") && refused.stderr.contains("bombus peers"), "{}", refused.stderr);
    assert_eq!(beside_tasks(&object(swarm.member(1), &["list"]).await), json!([]), "it is not kept");
}

#[tokio::test]
async fn each_swarm_has_databases_of_its_own() {
    let swarm = Swarm::of(2).await;
    let member = swarm.member(1);
    member.done(&["db", "create", "notes", "--type", "events"]).await;
    member.done(&["db", "add", "notes", "1"]).await;
    let before = object(member, &["list"]).await;
    let ticket = swarm.member(0).invite().await;

    member.done(&["leave"]).await;
    // The databases of the old swarm are closed, and those of the new one opened, in the moments after.
    let list = async || {
        let listed = member.run(&["db", "list", "--json"]).await;
        serde_json::from_str::<Value>(&listed.stdout).ok()
    };
    let alone = until(async || list().await.filter(|listed| listed["identity"] != before["identity"])).await;
    assert_eq!(beside_tasks(&alone), json!([]), "another swarm sees none of them, and another identity writes");

    member.done(&["join", "--switch", &ticket]).await;
    let back = until(async || list().await.filter(|listed| listed["identity"] == before["identity"])).await;
    assert_eq!(back, before, "they are back with the swarm");
    assert_eq!(member.done(&["db", "all", "notes"]).await, "1\n");
}
