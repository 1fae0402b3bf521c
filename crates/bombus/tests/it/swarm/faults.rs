//! Nodes that die, freeze and lose their network, and how soon the others know. `BOMBUS_FAULT_ROUNDS` repeats each loop more often.

use std::time::{Duration, Instant};

use futures::future::join_all;

use super::{Plan, State, Swarm};
use crate::faults::rounds;
use crate::harness::LIMIT;
use crate::lab::{Network, Proxies};

/// The promises.
const SUSPECT_WITHIN: Duration = Duration::from_secs(2);
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// So many rounds may be late on a busy machine, as long as one is in time.
const LATE_MAX: usize = 5;

/// Ways to be no more, which must make no difference to the others.
#[derive(Debug, Clone, Copy)]
enum Way {
    Killed,
    Frozen,
    CableCut,
}

/// Four nodes, all of which are connected, on a network that can be cut; `None` where this system has none.
async fn four() -> Option<Swarm> {
    Some(four_on(Network::of(4).await?).await)
}

/// As [`four`], with proxies between them also where there could be something better.
async fn four_behind_proxies() -> Option<Swarm> {
    Some(four_on(Network::Proxies(Proxies::of(4).await?)).await)
}

async fn four_on(network: Network) -> Swarm {
    let swarm = Plan::of(4).on(network).undisturbed().start().await;
    swarm.all_see_each_other().await;
    // A node that others vouch for is seen before there is a way to it, and whom a cut keeps from ever having met does not find the other.
    swarm.all_connected().await;
    swarm
}

/// Takes node 3 away and returns the longest times until another node suspected it, and took it for gone.
async fn take_away(swarm: &mut Swarm, way: Way) -> (Duration, Duration) {
    let began = Instant::now();
    match way {
        Way::Killed => swarm.kill(3).await,
        Way::Frozen => swarm.pause(3),
        Way::CableCut => swarm.unplug(3).await,
    }
    let swarm = &*swarm;
    let watch = async |index| {
        swarm.wait_for_state(index, 3, &[State::Suspect, State::Gone], LIMIT).await;
        let suspected = began.elapsed();
        swarm.wait_for_state(index, 3, &[State::Gone], LIMIT).await;
        (suspected, began.elapsed())
    };
    let times = join_all([0, 1, 2].map(watch)).await;
    let longest = |pick: fn(&(Duration, Duration)) -> Duration| times.iter().map(pick).max().unwrap();
    (longest(|times| times.0), longest(|times| times.1))
}

async fn bring_back(swarm: &mut Swarm, way: Way) {
    match way {
        Way::Killed => swarm.restart(3).await,
        Way::Frozen => swarm.resume(3),
        Way::CableCut => swarm.plug_in(3).await,
    }
    swarm.all_see_each_other().await;
}

async fn is_noticed(mut swarm: Swarm, way: Way) {
    let (mut late, mut in_time) = (Vec::new(), 0);
    while in_time == 0 || in_time + late.len() < rounds() {
        let (suspected, gone) = take_away(&mut swarm, way).await;
        if suspected <= SUSPECT_WITHIN && gone <= GONE_WITHIN {
            in_time += 1;
        } else {
            late.push((suspected, gone));
        }
        assert!(
            late.len() <= LATE_MAX.max(rounds() / 10),
            "{way:?}: suspected and gone too late in {} of {} rounds: {late:?}",
            late.len(),
            in_time + late.len()
        );
        bring_back(&mut swarm, way).await;
    }
}

#[tokio::test]
async fn a_killed_node_is_suspect_within_2_s_and_gone_within_10_s() {
    let Some(swarm) = four().await else { return };
    is_noticed(swarm, Way::Killed).await;
}

#[tokio::test]
async fn a_frozen_node_is_suspect_within_2_s_and_gone_within_10_s() {
    let Some(swarm) = four().await else { return };
    is_noticed(swarm, Way::Frozen).await;
}

#[tokio::test]
async fn a_node_with_a_cut_cable_is_suspect_within_2_s_and_gone_within_10_s() {
    let Some(swarm) = four().await else { return };
    is_noticed(swarm, Way::CableCut).await;
}

#[tokio::test]
async fn a_node_that_proxies_hold_back_is_suspect_within_2_s_and_gone_within_10_s() {
    let Some(swarm) = four_behind_proxies().await else { return };
    is_noticed(swarm, Way::CableCut).await;
}

#[tokio::test]
async fn a_node_that_freezes_for_a_moment_is_suspect_and_then_alive_again() {
    let mut swarm = Swarm::of(3).await;
    for _ in 0..rounds() {
        let id = swarm.id(2).to_owned();
        swarm.pause(2);
        let mut events = swarm.member(0).events("?kind=peer:left").await;
        swarm.wait_for_state(0, 2, &[State::Suspect], LIMIT).await;
        swarm.resume(2);
        swarm.wait_for_state(0, 2, &[State::Alive], LIMIT).await;
        // It never left: the next to leave is another one, and then it.
        swarm.stop(1).await;
        let left = events.next().await.expect("somebody left");
        assert!(!left.data.to_string().contains(&id), "a suspect that answers has not left: {left:?}");
        swarm.restart(1).await;
        swarm.all_see_each_other().await;
    }
}

#[tokio::test]
async fn two_halves_of_a_cut_network_know_it_and_come_together_again() {
    let Some(swarm) = four().await else { return };
    part_and_come_together(&swarm).await;
}

#[tokio::test]
async fn two_halves_that_proxies_part_know_it_and_come_together_again() {
    let Some(swarm) = four_behind_proxies().await else { return };
    part_and_come_together(&swarm).await;
}

async fn part_and_come_together(swarm: &Swarm) {
    for _ in 0..rounds() {
        for index in [0, 1] {
            swarm.cut(index, &[2, 3]).await;
        }
        for (index, peer) in [(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (3, 0), (3, 1)] {
            swarm.wait_for_state(index, peer, &[State::Gone], LIMIT).await;
        }
        swarm.see_each_other(&[0, 1]).await;
        swarm.see_each_other(&[2, 3]).await;
        swarm.heal().await;
        swarm.all_see_each_other().await;
        swarm.all_connected().await;
    }
}

#[tokio::test]
async fn no_node_gets_past_a_proxy() {
    let Some(mut swarm) = four_behind_proxies().await else { return };
    let connections = |swarm: &Swarm| match swarm.network() {
        Network::Proxies(proxies) => proxies.connections(),
        Network::Lan(_) => unreachable!("the nodes are behind proxies"),
    };
    assert!(connections(&swarm) >= 6, "each pair has one");
    swarm.unplug(3).await;
    // It comes back as another process, which knows where the others were.
    swarm.kill(3).await;
    swarm.restart(3).await;
    for index in [0, 1, 2] {
        swarm.wait_for_state(index, 3, &[State::Gone], LIMIT).await;
        let id = swarm.id(index).to_owned();
        swarm.stays_out(3, &id, GONE_WITHIN / 2).await;
    }
    assert!(connections(&swarm) >= 3, "each pair of the others has one");
    swarm.plug_in(3).await;
    swarm.all_see_each_other().await;
    swarm.all_connected().await;
    assert!(connections(&swarm) >= 6, "each pair has one again");
}

#[tokio::test]
async fn two_nodes_that_cannot_reach_each_other_are_not_gone_for_those_who_reach_both() {
    let Some(swarm) = four().await else { return };
    swarm.cut(0, &[1]).await;
    for (index, peer) in [(2, 0), (2, 1), (3, 0), (3, 1)] {
        let id = swarm.id(peer).to_owned();
        let began = Instant::now();
        while began.elapsed() < GONE_WITHIN / 2 {
            let peers = swarm.peers(index).await;
            assert_ne!(super::state_of(&peers, &id), State::Gone, "node {index} lost {peer}, which it reaches");
        }
    }
    swarm.heal().await;
    swarm.all_see_each_other().await;
}

#[tokio::test]
async fn a_swarm_survives_the_restart_of_every_node_in_turn() {
    let mut swarm = Swarm::of(3).await;
    for _ in 0..rounds() {
        for index in 0..swarm.len() {
            swarm.kill(index).await;
            swarm.restart(index).await;
            swarm.all_see_each_other().await;
        }
    }
    // And of all at once: they find each other by what they have on disk.
    for index in 0..swarm.len() {
        swarm.kill(index).await;
    }
    for index in 0..swarm.len() {
        swarm.restart(index).await;
    }
    swarm.all_see_each_other().await;
    swarm.stop_all().await;
}
