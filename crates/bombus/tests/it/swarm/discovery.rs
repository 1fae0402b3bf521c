//! How nodes find each other on a network with real multicast, and without.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::meeting::is_within_a_second;
use super::{Plan, State, find};
use crate::harness::LIMIT;
use crate::lab::Lan;
use crate::model::eventually;

#[tokio::test]
async fn three_nodes_on_a_network_see_each_other_within_a_second() {
    let mut took = Vec::new();
    while !is_within_a_second(&took) {
        let Some(lan) = Lan::of(3).await else { return };
        let mut swarm = Plan::of(3).by_multicast().on(lan).undisturbed().prepared().await;
        let began = Instant::now();
        swarm.start_all().await;
        swarm.all_see_each_other().await;
        took.push(began.elapsed());
        // One that heard of this node first may be connected before this node hears of it.
        let found = async || swarm.member(0).get("/mesh/report").await["net"]["mdns"]["peers"] == 2;
        eventually("multicast tells of both", found).await;
    }
}

#[tokio::test]
async fn a_newcomer_on_a_network_is_seen_within_a_second() {
    let mut took = Vec::new();
    while !is_within_a_second(&took) {
        let Some(lan) = Lan::of(3).await else { return };
        let mut swarm = Plan::of(3).by_multicast().on(lan).undisturbed().prepared().await;
        for index in [0, 1] {
            swarm.member_mut(index).start().await;
        }
        swarm.see_each_other(&[0, 1]).await;
        let began = Instant::now();
        swarm.member_mut(2).start().await;
        swarm.all_see_each_other().await;
        took.push(began.elapsed());
    }
}

#[tokio::test]
async fn two_nodes_on_a_network_without_ipv4_find_each_other_and_talk_directly() {
    let Some(lan) = Lan::of_ipv6(2).await else { return };
    let swarm = Plan::of(2).by_multicast().on(lan).start().await;
    swarm.all_see_each_other().await;
    swarm.all_connected().await;
    for (index, other) in [(0, 1), (1, 0)] {
        let member = swarm.member(index);
        let peers = member.peers().await;
        assert_eq!(find(&peers, swarm.id(other)).unwrap()["path"], "direct", "{peers:?}");
        let told = member.done(&["ping", swarm.id(other), "--count", "1", "--json"]).await;
        let pong: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&pong["path"], &pong["lost"]), (&json!("direct"), &json!(0)), "{pong}");
        let over = format!("/ip6/fd77::{}/tcp/", other + 1);
        assert!(pong["via"].as_str().is_some_and(|via| via.starts_with(&over)), "{over}: {pong}");
    }
}

#[tokio::test]
async fn where_another_process_has_the_usual_port_a_node_that_was_given_none_takes_a_free_one() {
    let Some(lan) = Lan::of(2).await else { return };
    let machines = [lan.machine(0).clone(), lan.machine(0).clone(), lan.machine(1).clone()];
    let mut swarm = Plan::of(3).at(&machines).prepared().await;
    swarm.member_mut(1).listen_by_default();
    swarm.start_all().await;
    assert!(swarm.member(0).address().contains("/tcp/7891/"), "node 0 has it: {}", swarm.member(0).address());
    let recorded = swarm.member(1).home().node_json().expect("the node runs")["p2p"].to_string();
    assert!(recorded.contains("/tcp/") && !recorded.contains("/tcp/7891/"), "{recorded}");
    swarm.all_connected().await;
}

#[tokio::test]
async fn where_multicast_is_blocked_a_seed_and_what_peers_tell_are_enough() {
    let Some(lan) = Lan::of(4).await else { return };
    lan.block_multicast().await;
    let swarm = Plan::of(4).by_seed().multicast_too().on(lan).start().await;
    // Nodes 1, 2 and 3 were told of node 0 only.
    swarm.all_see_each_other().await;
}

#[tokio::test]
async fn where_multicast_is_blocked_and_nobody_is_told_nobody_is_found() {
    let Some(lan) = Lan::of(2).await else { return };
    lan.block_multicast().await;
    let swarm = Plan::of(2).by_multicast().on(lan).start().await;
    let other = swarm.id(1).to_owned();
    swarm.stays_out(0, &other, Duration::from_secs(3)).await;
}

#[tokio::test]
async fn nodes_meet_over_a_network_that_loses_a_tenth_of_all_packets() {
    let Some(lan) = Lan::of(3).await else { return };
    lan.lose(10).await;
    let swarm = Plan::of(3).by_multicast().on(lan).start().await;
    swarm.all_see_each_other().await;
}

#[tokio::test]
async fn a_node_that_changes_its_address_is_found_again() {
    let Some(lan) = Lan::of(4).await else { return };
    let elsewhere = lan.machine(3).clone();
    let mut swarm = Plan::of(3).on(lan).start().await;
    swarm.all_see_each_other().await;
    swarm.stop(2).await;
    swarm.wait_for_state(0, 2, &[State::Gone], LIMIT).await;
    swarm.member_mut(2).move_to(elsewhere);
    swarm.restart(2).await;
    swarm.all_see_each_other().await;
}
