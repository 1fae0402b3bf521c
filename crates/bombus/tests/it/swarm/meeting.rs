//! Nodes that meet, part and come back, on loopback.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Plan, State, Swarm, find};
use crate::harness::{LIMIT, Signal, mode};
use crate::model::eventually;

/// One round of up to five has to be in time: a busy machine may be late in the others.
const IN_TIME_MIN: usize = 1;
const LATE_MAX: usize = 4;

/// Says whether the rounds up to now, which took so long, settle that it is done within a second.
pub(super) fn is_within_a_second(took: &[Duration]) -> bool {
    let in_time = took.iter().filter(|took| **took < Duration::from_secs(1)).count();
    assert!(took.len() - in_time <= LATE_MAX, "it took {took:?}");
    in_time >= IN_TIME_MIN
}

#[tokio::test]
async fn three_nodes_see_each_other_after_an_invitation() {
    let mut swarm = Swarm::of(3).await;
    for index in 0..swarm.len() {
        let peers = swarm.peers(index).await;
        assert_eq!(peers.len(), 2, "{}", Value::from(peers.clone()));
        for other in (0..swarm.len()).filter(|other| *other != index) {
            let id = swarm.id(other);
            let named =
                |peers: &[Value]| find(peers, id).is_some_and(|peer| peer["hostname"] == format!("node{other}"));
            swarm.wait_until(index, "the other's name", LIMIT, named).await;
            let models =
                |peers: &[Value]| find(peers, id).is_some_and(|peer| peer["available_models"][0] == "fake:latest");
            swarm.wait_until(index, "the other's models", LIMIT, models).await;
        }
        let listed: Value = serde_json::from_str(&swarm.member(index).done(&["peers", "--json"]).await).unwrap();
        assert_eq!(listed.as_array().map(Vec::len), Some(2), "the command tells the same: {listed}");
    }
    swarm.stop_all().await;
}

#[tokio::test]
async fn the_secrets_of_a_swarm_are_for_their_owner_only() {
    let swarm = Swarm::of(2).await;
    for index in 0..2 {
        let swarms = swarm.member(index).home().data_dir().join("swarms");
        let id = std::fs::read_to_string(swarms.join("current")).unwrap();
        assert_eq!(mode(&swarms.join(id.trim()).join("swarm.key")), 0o600);
        let key = std::fs::read_to_string(swarms.join(id.trim()).join("swarm.key")).unwrap();
        let digits = key.lines().nth(2).unwrap();
        assert!(
            key.starts_with("/key/swarm/psk/1.0.0/\n/base16/\n") && digits.len() == 64,
            "peers in other languages read it"
        );
        assert!(!swarm.member(index).log().contains(digits), "keys are never logged");
    }
    let ids = [0, 1]
        .map(|index| std::fs::read_to_string(swarm.member(index).home().data_dir().join("swarms/current")).unwrap());
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn nodes_meet_by_a_seed() {
    let swarm = Plan::of(3).by_seed().start().await;
    swarm.all_see_each_other().await;
}

#[tokio::test]
async fn an_open_swarm_needs_no_key_and_says_so_loudly() {
    let swarm = Plan::of(2).open().start().await;
    swarm.all_see_each_other().await;
    let log = swarm.member(0).log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("open")), "{log}");
}

#[tokio::test]
async fn a_node_that_joins_while_it_runs_needs_no_restart() {
    let swarm = Plan::of(1).start().await;
    let other = Plan::of(1).beside().start().await;
    let ticket = other.member(0).invite().await;
    swarm.member(0).join(&ticket).await;
    let id = other.id(0).to_owned();
    let alive = |peers: &[Value]| super::state_of(peers, &id) == State::Alive;
    swarm.wait_until(0, "the one that invited", LIMIT, alive).await;
    assert!(swarm.member(0).is_running());
}

#[tokio::test]
async fn a_restarted_node_keeps_its_identity_and_is_found_again() {
    let mut swarm = Swarm::of(3).await;
    let id = swarm.id(1).to_owned();
    swarm.stop(1).await;
    swarm.wait_for_state(0, 1, &[State::Gone], LIMIT).await;
    swarm.restart(1).await;
    assert_eq!(swarm.id(1), id);
    swarm.all_see_each_other().await;
    swarm.kill(1).await;
    swarm.restart(1).await;
    assert_eq!(swarm.id(1), id);
    swarm.all_see_each_other().await;
}

#[tokio::test]
async fn a_goodbye_is_seen_at_once() {
    let mut took = Vec::new();
    while !is_within_a_second(&took) {
        let swarm = Plan::of(3).undisturbed().start().await;
        swarm.all_see_each_other().await;
        let mut events = swarm.member(0).events("").await;
        let id = swarm.id(2).to_owned();
        let asked = Instant::now();
        swarm.member(2).signal(Signal::Terminate);
        events.wait_for("peer:left", &id).await;
        swarm.wait_for_state(0, 2, &[State::Gone], LIMIT).await;
        took.push(asked.elapsed());
    }
}

#[tokio::test]
async fn events_tell_who_came_and_can_be_resumed() {
    let mut swarm = Plan::of(3).prepared().await;
    swarm.member_mut(0).start().await;
    let ticket = swarm.member(0).invite().await;
    let mut events = swarm.member(0).events("?kind=peer:joined").await;
    swarm.member(1).join(&ticket).await;
    swarm.member_mut(1).start().await;
    let first = events.wait_for("peer:joined", swarm.id(1)).await;
    let number = first.id.expect("events are numbered");
    drop(events);
    swarm.member(2).join(&ticket).await;
    swarm.member_mut(2).start().await;
    swarm.wait_for_state(0, 2, &[State::Alive], LIMIT).await;
    let mut resumed = swarm.member(0).events(&format!("?kind=peer:joined&after={number}")).await;
    let second = resumed.wait_for("peer:joined", swarm.id(2)).await;
    assert!(second.id.is_some_and(|id| id > number), "{second:?}");
}

#[tokio::test]
async fn two_nodes_on_one_identity_are_told_so() {
    let mut swarm = Swarm::of(3).await;
    // A copy of a whole data directory, as a restored backup or a cloned disk gives.
    let original = swarm.member(1).home().data_dir();
    let copy = swarm.member(2).home().data_dir();
    swarm.stop(2).await;
    std::fs::copy(original.join("identity.key"), copy.join("identity.key")).unwrap();
    swarm.restart(2).await;
    assert_eq!(swarm.id(2), swarm.id(1));
    let complains = |log: &str| {
        log.lines().any(|line| line.contains("identity") && (line.contains("ERROR") || line.contains("WARN")))
    };
    let told = async || [1, 2].iter().any(|index| complains(&swarm.member(*index).log()));
    eventually("one of them complains of the other", told).await;
    // The copy does not throw the others apart.
    swarm.wait_for_state(0, 1, &[State::Alive], LIMIT).await;
}

#[tokio::test]
async fn ping_tells_the_round_trip_and_the_path() {
    let swarm = Swarm::of(2).await;
    let told = swarm.member(0).done(&["ping", swarm.id(1)]).await;
    assert!(told.contains("ms") && told.contains("direct"), "{told}");
    let by_name = swarm.member(0).done(&["ping", "node1"]).await;
    assert!(by_name.contains("direct"), "{by_name}");
    let nobody = swarm.member(0).run(&["ping", "nobody"]).await;
    assert!(nobody.code != Some(0) && nobody.stderr.contains("hint: "), "{}", nobody.stderr);
}
