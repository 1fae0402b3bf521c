//! Many things go wrong: once they are over, all see the same.

use std::collections::BTreeSet;

use bombus_core::liveness::PeerState;
use bombus_core::topics::cadence::CadenceConfig;
use bombus_testkit::simulator::{Network, for_each_seed};

use crate::gossip::Message;
use crate::peer::{Swarm, detectors, settled, told_of, trouble, with_topics};

/// Asserts that each node that runs counts exactly the others that run as alive.
fn assert_converged(swarm: &Swarm) {
    let there: BTreeSet<usize> = swarm.nodes().map(|(index, _)| index).collect();
    for (index, node) in swarm.nodes() {
        let alive = node.alive();
        let missing: Vec<_> = there.iter().filter(|other| **other != index && !alive.contains(other)).collect();
        let ghosts: Vec<_> = alive.iter().filter(|other| !there.contains(other)).collect();
        assert!(
            missing.is_empty() && ghosts.is_empty(),
            "at {} ms, node {index} of {} misses {missing:?} and sees ghosts {ghosts:?}",
            swarm.now_ms(),
            there.len()
        );
    }
}

/// Lets nothing be lost for as long as each of so many nodes takes to tell again what it can do, and asserts that each that runs has the
/// last that each of the others told. Where not all are linked with all, chance has it that one in a thousand is missing until it is told again.
fn assert_heard(swarm: &mut Swarm, nodes: usize, all_linked: bool) {
    let cadence = CadenceConfig::default();
    let interval_ms = cadence.capabilities_ms_min.max(cadence.capabilities_ms_per_node * nodes as u64);
    swarm.set_network(Network::lan());
    swarm.run_for(interval_ms + interval_ms / 10);
    let told: Vec<Message> = swarm.nodes().filter_map(|(index, node)| node.capabilities(index)).collect();
    assert_eq!(told.len(), swarm.nodes().count(), "each tells something when it starts");
    // What was told just now is still under way; without a connection, it takes some heartbeats.
    swarm.run_for(20_000);
    let mut missing = Vec::new();
    for (index, node) in swarm.nodes() {
        let lacking = told.iter().filter(|message| node.capabilities(message.author) < Some(**message));
        missing.extend(lacking.map(|message| (index, message.author)));
    }
    let missing_max = if all_linked { 0 } else { told.len() * told.len() / 1_000 };
    assert!(missing.len() <= missing_max, "of {} nodes, these lack what those told last: {missing:?}", told.len());
}

/// Links each node with those before it, and with so many random others.
fn connect_some(swarm: &mut Swarm, nodes: usize, degree: usize) {
    for node in 1..nodes {
        swarm.connect(node, node - 1);
        for _ in 0..degree / 2 {
            let other = swarm.random().index(nodes);
            swarm.connect(node, other);
        }
    }
}

#[test]
fn a_hundred_nodes_in_a_rough_network_with_partitions_and_churn_see_the_same_in_the_end() {
    for_each_seed(0..8, |seed| {
        let network = Network { broken_after_ms: Some(15_000), ..Network::rough(0.05, 300) };
        let all_linked = seed % 2 == 0;
        let mut swarm = with_topics(seed, network, 100);
        if all_linked {
            swarm.connect_all();
        } else {
            connect_some(&mut swarm, 100, 32);
        }
        swarm.run_for(15_000);
        trouble(&mut swarm, 100, 25);
        swarm.set_network(Network::rough(0.01, 50));
        swarm.run_for(60_000);
        assert_converged(&swarm);
        assert_heard(&mut swarm, 100, all_linked);
    });
}

#[test]
fn small_swarms_see_the_same_after_whatever_happens() {
    for_each_seed(0..300, |seed| {
        let nodes = 2 + (seed % 12) as usize;
        let broken_after_ms = [None, Some(8_000), Some(60_000)][(seed % 3) as usize];
        let network = Network { broken_after_ms, ordered: seed % 2 == 0, ..Network::rough(0.05, 200) };
        let mut swarm = with_topics(seed, network, nodes);
        swarm.connect_all();
        swarm.run_for(5_000);
        trouble(&mut swarm, nodes, 30);
        swarm.set_network(Network::rough(0.01, 50));
        swarm.run_for(60_000);
        assert_converged(&swarm);
        assert_heard(&mut swarm, nodes, true);
    });
}

#[test]
fn the_halves_of_a_cut_network_lose_each_other_and_nobody_of_their_own_and_find_back() {
    for_each_seed(0..24, |seed| {
        let nodes = [4, 10, 20, 60][(seed % 4) as usize];
        let broken_after_ms = (seed % 2 == 0).then_some(12_000);
        let network = Network { delay_ms: 1..=20, broken_after_ms, ..Network::lan() };
        let mut swarm = settled(seed, network, nodes);
        let (left, right): (Vec<usize>, Vec<usize>) = (0..nodes).partition(|node| node % 2 == 0);
        swarm.partition(&[&left, &right]);
        swarm.run_for(2_500);
        for (index, node) in swarm.nodes() {
            let (own, other) = if index % 2 == 0 { (&left, &right) } else { (&right, &left) };
            assert!(other.iter().all(|peer| node.state(*peer) == Some(PeerState::Suspect)), "{index} of {nodes}");
            assert!(own.iter().all(|peer| *peer == index || node.state(*peer) == Some(PeerState::Alive)));
        }
        swarm.run_for(7_500);
        for (index, node) in swarm.nodes() {
            let own = if index % 2 == 0 { &left } else { &right };
            assert_eq!(node.alive(), own.iter().copied().filter(|peer| *peer != index).collect());
        }
        swarm.run_for(20_000);
        swarm.take_observed();
        swarm.heal();
        swarm.run_for(15_000);
        assert_converged(&swarm);
        assert_eq!(told_of(&swarm.take_observed(), PeerState::Gone), Vec::<String>::new(), "healing buries nobody");
    });
}

#[test]
fn a_swarm_that_starts_all_at_once_is_complete_within_seconds() {
    for nodes in [2, 10, 30, 100] {
        let mut swarm = detectors(nodes as u64, Network::lan(), nodes);
        swarm.connect_all();
        swarm.run_until(1_000);
        assert_converged(&swarm);
    }
    // With a third of all links, the rest is told.
    let mut swarm = detectors(7, Network::lan(), 100);
    connect_some(&mut swarm, 100, 32);
    swarm.run_until(30_000);
    assert_converged(&swarm);
}
