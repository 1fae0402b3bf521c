//! What the commands of a swarm print for programs.

use serde_json::{Value, json};

use super::{Member, Plan, State, Swarm, find, state_of};
use crate::harness::{LIMIT, Process, Signal};

/// Runs a command that prints one JSON object with these fields and nothing else, and returns the object.
async fn object(member: &Member, arguments: &[&str], fields: &[&str]) -> Value {
    let told = member.done(&[arguments, &["--json"]].concat()).await;
    let object: Value = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {told:?}"));
    assert_fields(&object, fields);
    object
}

fn assert_fields(object: &Value, fields: &[&str]) {
    let found: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(found, fields, "{object}");
}

/// Asserts that a list names this node and nobody else.
fn assert_names(list: &Value, id: &str, name: &str) {
    assert_eq!(*list, json!([{ "node_id": id, "hostname": name }]));
}

/// Reads the swarm that a node belongs to.
fn swarm_id(member: &Member) -> String {
    std::fs::read_to_string(member.home().data_dir().join("swarms/current")).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_ping_prints_one_object_for_programs() {
    let swarm = Swarm::of(2).await;
    let fields = ["node_id", "hostname", "path", "via", "round_trips_ms", "lost"];
    let told = object(swarm.member(0), &["ping", "node1", "--count", "2"], &fields).await;
    assert_eq!((&told["node_id"], &told["hostname"]), (&json!(swarm.id(1)), &json!("node1")), "{told}");
    assert_eq!((&told["path"], &told["lost"]), (&json!("direct"), &json!(0)), "{told}");
    assert!(told["via"].as_str().is_some_and(|via| via.starts_with("/ip4/127.0.0.1/tcp/")), "{told}");
    let times = told["round_trips_ms"].as_array().unwrap();
    assert_eq!(times.len(), 2, "{told}");
    assert!(times.iter().all(|time| time.as_f64().is_some_and(|ms| ms > 0.0)), "{told}");
}

#[tokio::test]
async fn leaving_and_joining_print_one_object_for_programs() {
    const JOINED: [&str; 5] = ["swarm_id", "left", "node_runs", "members", "failures"];
    let swarm = Swarm::of(2).await;
    let (node, first) = (swarm.member(1), swarm.id(0));
    let shared = swarm_id(node);
    let left = object(node, &["leave"], &["swarm_id", "left"]).await;
    assert_eq!(left, json!({ "swarm_id": swarm_id(node), "left": shared }));
    assert_ne!(left["swarm_id"], left["left"]);
    swarm.wait_for_state(0, 1, &[State::Gone], LIMIT).await;

    let ticket = swarm.member(0).invite().await;
    let joined = object(node, &["join", &ticket], &JOINED).await;
    assert_eq!((&joined["swarm_id"], &joined["left"]), (&json!(shared), &left["swarm_id"]), "{joined}");
    assert_eq!((&joined["node_runs"], &joined["failures"]), (&json!(true), &json!([])), "{joined}");
    assert_fields(&joined["members"][0], &["node_id", "hostname", "path"]);
    let member = find(joined["members"].as_array().unwrap(), first).expect("the one that invited is connected");
    assert_eq!(member["path"], "direct", "{joined}");

    let asleep = Plan::of(1).beside().prepared().await;
    let joined = object(asleep.member(0), &["join", &ticket], &JOINED).await;
    assert_eq!((&joined["swarm_id"], &joined["node_runs"]), (&json!(shared), &json!(false)), "{joined}");
    let answers = find(joined["members"].as_array().unwrap(), first);
    assert_eq!(answers, Some(&json!({ "node_id": first, "hostname": null, "path": null })), "{joined}");
}

#[tokio::test]
async fn a_kick_and_a_new_key_print_who_has_them_and_who_missed_them_for_programs() {
    const HANDED: [&str; 3] = ["generation", "reached", "missed"];
    let mut swarm = Swarm::of(4).await;
    swarm.all_connected().await;
    swarm.stop(2).await;
    swarm.wait_for_state(0, 2, &[State::Gone], LIMIT).await;
    for (arguments, generation) in [(&["kick", "node3"][..], 1), (&["rekey"][..], 2)] {
        let handed = object(swarm.member(0), arguments, &HANDED).await;
        assert_eq!(handed["generation"], generation, "{handed}");
        assert_names(&handed["reached"], swarm.id(1), "node1");
        assert_names(&handed["missed"], swarm.id(2), "node2");
        // A change of the key parts the nodes for a moment.
        swarm.see_each_other(&[0, 1]).await;
    }
}

#[tokio::test]
async fn the_owner_key_is_copied_by_programs_with_and_without_a_running_node() {
    let mut swarm = Swarm::of(2).await;
    let shared = swarm_id(swarm.member(0));
    for _ in 0..2 {
        let exported = object(swarm.member(0), &["owner", "export"], &["swarm_id", "key"]).await;
        assert_eq!(exported["swarm_id"], shared, "{exported}");
        let key = exported["key"].as_str().unwrap();
        let imported = object(swarm.member(1), &["owner", "import", key], &["swarm_id"]).await;
        assert_eq!(imported["swarm_id"], shared, "{imported}");
        swarm.stop_all().await;
    }
}

#[tokio::test]
async fn events_are_followed_beyond_the_end_of_their_node() {
    let mut swarm = Swarm::of(2).await;
    let id = swarm.id(1).to_owned();
    let command = swarm.member(0).command(&["events", "--follow", "--kind", "peer", "--json"]);
    let mut following = Process::start(command);
    let mut last = 0;
    next_event(&mut following, "peer:joined", &id, &mut last).await;
    swarm.stop(1).await;
    next_event(&mut following, "peer:left", &id, &mut last).await;
    swarm.stop(0).await;
    following.stderr_shows("waiting for it to come back").await;
    swarm.restart(0).await;
    swarm.restart(1).await;
    next_event(&mut following, "peer:joined", &id, &mut last).await;
    following.signal(Signal::Terminate);
    assert_eq!(following.ended().await.code(), None, "a signal ends it: {}", following.stderr());
}

/// Waits until a command that follows events prints one of this kind about a node; each event is of the family and comes once.
async fn next_event(following: &mut Process, kind: &str, id: &str, last: &mut u64) {
    loop {
        let line = following.stdout_line().await;
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        let number = event["id"].as_u64().expect("events are numbered");
        assert!(number > *last, "{event} comes after {last}");
        *last = number;
        assert!(event["kind"].as_str().is_some_and(|kind| kind.starts_with("peer:")), "{event}");
        if event["kind"] == kind && event["data"].to_string().contains(id) {
            return;
        }
    }
}

#[tokio::test]
async fn watched_peers_are_printed_as_they_change_until_the_command_is_stopped() {
    let mut swarm = Swarm::of(2).await;
    let id = swarm.id(1).to_owned();
    let mut lists = Process::start(swarm.member(0).command(&["peers", "--watch", "--json"]));
    let mut tables = Process::start(swarm.member(0).command(&["peers", "--watch"]));
    let first: Vec<Value> = serde_json::from_str(&lists.stdout_line().await).unwrap();
    assert_eq!(state_of(&first, &id), State::Alive, "{}", Value::from(first));
    let head = tables.stdout_line().await;
    assert!(head.starts_with("NAME"), "{head:?}");

    swarm.stop(1).await;
    loop {
        let line = lists.stdout_line().await;
        let peers: Vec<Value> = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        if state_of(&peers, &id) == State::Gone {
            break;
        }
    }
    loop {
        let line = tables.stdout_line().await;
        assert!(!line.is_empty(), "it goes on: {}", tables.stderr());
        if line.starts_with("node1") && line.contains(" gone ") {
            break;
        }
    }
    for mut watching in [lists, tables] {
        watching.signal(Signal::Terminate);
        assert_eq!(watching.ended().await.code(), None, "a signal ends it: {}", watching.stderr());
    }
}
