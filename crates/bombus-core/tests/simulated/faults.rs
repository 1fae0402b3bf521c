//! One thing goes wrong: what do the others see, and when?

use std::collections::BTreeSet;

use bombus_core::liveness::PeerState;
use bombus_testkit::simulator::{Network, Observed, for_each_seed};

use crate::peer::{Order, Seen, Swarm, detectors, first_told, id, of_ids, settled, told_of};

/// How a node is lost.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    Pause,
    Cut,
}

const FAULTS: [Fault; 3] = [Fault::Kill, Fault::Pause, Fault::Cut];

/// Sizes of swarms from 2 to 100, the small ones more often since they run faster.
fn size(seed: u64) -> usize {
    const SIZES: [usize; 12] = [2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 32, 100];
    SIZES[(seed / 3) as usize % SIZES.len()]
}

/// A local network that is neither very fast nor very good.
fn plain() -> Network {
    Network { delay_ms: 1..=20, ..Network::lan() }
}

fn strike(swarm: &mut Swarm, fault: Fault, victim: usize) {
    match fault {
        Fault::Kill => swarm.kill(victim),
        Fault::Pause => swarm.pause(victim),
        Fault::Cut => swarm.cut(victim),
    }
}

/// Strikes one node and returns what was seen within ten seconds.
fn struck(swarm: &mut Swarm, fault: Fault, victim: usize) -> Vec<Observed<Seen>> {
    strike(swarm, fault, victim);
    swarm.run_for(10_000);
    swarm.take_observed()
}

const BAD: [PeerState; 2] = [PeerState::Suspect, PeerState::Gone];

/// Asserts that all these nodes saw a peer suspect and gone in time after `since_ms`.
fn assert_told(observed: &[Observed<Seen>], watchers: &BTreeSet<usize>, peer: usize, since_ms: u64, suspect_ms: u64) {
    for (states, limit_ms) in [(&BAD[..], suspect_ms), (&BAD[1..], 10_000)] {
        let told = first_told(observed, peer, states);
        assert_eq!(told.keys().filter(|node| watchers.contains(node)).count(), watchers.len(), "{peer}: {told:?}");
        let late: Vec<_> =
            told.iter().filter(|(node, at_ms)| watchers.contains(node) && **at_ms - since_ms > limit_ms).collect();
        assert!(late.is_empty(), "{states:?} of {peer}, {since_ms}: {late:?}");
    }
}

#[test]
fn a_lost_node_is_suspect_within_two_seconds_and_gone_within_ten_however_it_was_lost() {
    for_each_seed(0..360, |seed| {
        let (nodes, fault) = (size(seed), FAULTS[(seed % 3) as usize]);
        let mut swarm = settled(seed, plain(), nodes);
        let (victim, since_ms) = (swarm.random().index(nodes), swarm.now_ms());
        let observed = struck(&mut swarm, fault, victim);
        let others: BTreeSet<usize> = (0..nodes).filter(|node| *node != victim).collect();
        assert_told(&observed, &others, victim, since_ms, 2_000);
        for other in &others {
            let told = first_told(&observed, *other, &BAD);
            if let Fault::Cut = fault {
                // Who is cut off sees the same of all others.
                assert_told(&observed, &BTreeSet::from([victim]), *other, since_ms, 2_000);
            } else {
                assert!(told.is_empty(), "{fault:?} of {victim} among {nodes}: {other} is there, and {told:?}");
            }
        }
    });
}

#[test]
fn in_a_rough_network_a_lost_node_is_still_gone_within_ten_seconds_and_nobody_else_is() {
    for_each_seed(0..360, |seed| {
        let (nodes, fault) = (size(seed).min(32), FAULTS[(seed % 3) as usize]);
        let mut swarm = settled(seed, Network::rough(0.05, 300), nodes);
        let (victim, since_ms) = (swarm.random().index(nodes), swarm.now_ms());
        let observed = struck(&mut swarm, fault, victim);
        let others: BTreeSet<usize> = (0..nodes).filter(|node| *node != victim).collect();
        assert_told(&observed, &others, victim, since_ms, 4_000);
        for other in &others {
            let mut told = first_told(&observed, *other, &[PeerState::Gone]);
            told.remove(&victim);
            assert!(told.is_empty(), "{fault:?} of {victim} among {nodes}: {other} is there, and {told:?}");
        }
    });
}

#[test]
fn in_a_rough_network_nobody_is_ever_gone_by_mistake() {
    for_each_seed(0..60, |seed| {
        let nodes = size(seed * 3);
        let mut swarm = settled(seed, Network::rough(0.05, 300), nodes);
        let minutes = if nodes == 100 { 1 } else { 3 };
        swarm.run_for(minutes * 60_000);
        let observed = swarm.take_observed();
        let gone = told_of(&observed, PeerState::Gone);
        assert!(gone.is_empty(), "{nodes} nodes: {gone:#?}");
        let suspects = told_of(&observed, PeerState::Suspect).len() as u64;
        let pairs = (nodes * (nodes - 1)) as u64;
        assert!(suspects <= pairs * minutes * 4, "{nodes} nodes: {suspects} suspicions in {minutes} minutes");
    });
}

#[test]
fn in_a_plain_network_nobody_is_ever_suspect_by_mistake() {
    for_each_seed(0..36, |seed| {
        let mut swarm = settled(seed, plain(), size(seed * 3));
        swarm.run_for(120_000);
        let observed = swarm.take_observed();
        assert_eq!(told_of(&observed, PeerState::Suspect), Vec::<String>::new());
    });
}

#[test]
fn a_node_that_was_paused_for_some_seconds_is_alive_again_and_was_never_gone() {
    for_each_seed(0..60, |seed| {
        let nodes = size(seed * 3).min(32);
        let mut swarm = settled(seed, plain(), nodes);
        let victim = swarm.random().index(nodes);
        let others: Vec<usize> = (0..nodes).filter(|node| *node != victim).collect();
        swarm.pause(victim);
        swarm.run_for(4_000);
        let observed = swarm.take_observed();
        assert_eq!(first_told(&observed, victim, &[PeerState::Suspect]).len(), others.len());
        swarm.resume(victim);
        swarm.run_for(2_000);
        let observed = swarm.take_observed();
        assert_eq!(first_told(&observed, victim, &[PeerState::Alive]).len(), others.len());
        swarm.run_for(20_000);
        assert_eq!(told_of(&swarm.take_observed(), PeerState::Gone), Vec::<String>::new());
        // It blames nobody for its own absence.
        assert!(observed.iter().all(|seen| seen.node != victim), "{observed:?}");
    });
}

#[test]
fn a_node_that_was_paused_for_long_comes_back_without_a_new_connection() {
    for_each_seed(0..30, |seed| {
        let nodes = size(seed * 3).min(32);
        let mut swarm = settled(seed, plain(), nodes);
        let victim = swarm.random().index(nodes);
        swarm.pause(victim);
        swarm.run_for(60_000);
        assert_eq!(told_of(&swarm.take_observed(), PeerState::Gone).len(), nodes - 1);
        swarm.resume(victim);
        swarm.run_for(5_000);
        assert!(swarm.nodes().all(|(_, node)| node.alive().len() == nodes - 1));
        let blamed: Vec<_> = swarm.take_observed().into_iter().filter(|seen| seen.node == victim).collect();
        assert_eq!(blamed, []);
    });
}

#[test]
fn a_goodbye_is_seen_at_once_and_is_no_failure() {
    for_each_seed(0..60, |seed| {
        let nodes = size(seed * 3);
        let mut swarm = settled(seed, plain(), nodes);
        let (leaver, since_ms) = (swarm.random().index(nodes), swarm.now_ms());
        swarm.command(leaver, Order::Leave);
        swarm.run_for(50);
        swarm.kill(leaver);
        swarm.run_for(20_000);
        let observed = swarm.take_observed();
        let told = first_told(&observed, leaver, &[PeerState::Gone]);
        assert_eq!(told.len(), nodes - 1);
        assert!(told.values().all(|at_ms| at_ms - since_ms <= 50), "{told:?}");
        assert_eq!(told_of(&observed, PeerState::Suspect), Vec::<String>::new());
        let farewells = told_of(&observed, PeerState::Gone);
        assert!(farewells.iter().all(|text| text.contains("goodbye")), "{farewells:?}");
    });
}

#[test]
fn a_restarted_node_is_alive_within_a_second_of_its_connection() {
    for_each_seed(0..90, |seed| {
        let nodes = size(seed);
        // At once, while it is suspect, and when it is gone.
        let away_ms = [100, 3_000, 15_000][(seed % 3) as usize];
        let mut swarm = settled(seed, plain(), nodes);
        let victim = swarm.random().index(nodes);
        swarm.kill(victim);
        swarm.run_for(away_ms);
        swarm.restart(victim);
        // Linking takes up to two delays.
        swarm.run_for(1_040);
        for (node, peer) in swarm.nodes().filter(|(node, _)| *node != victim) {
            assert_eq!(peer.state(victim), Some(PeerState::Alive), "{node} after {away_ms} ms");
        }
        assert_eq!(swarm.node(victim).unwrap().alive().len(), nodes - 1);
        swarm.take_observed();
        swarm.run_for(60_000);
        let bad = swarm.take_observed();
        assert!(bad.is_empty(), "what was said about the earlier run is forgotten: {bad:?}");
    });
}

#[test]
fn restarts_are_not_taken_for_two_processes_with_one_identity() {
    for_each_seed(0..30, |seed| {
        let nodes = size(seed * 3).min(20);
        let mut swarm = settled(seed, Network::rough(0.05, 300), nodes);
        for _ in 0..10 {
            let victim = swarm.random().index(nodes);
            let pause_ms = swarm.random().within(&(0..=8_000));
            swarm.restart(victim);
            swarm.run_for(pause_ms);
        }
        let observed = swarm.take_observed();
        assert!(!observed.iter().any(|seen| matches!(seen.what, Seen::SameIdentity { .. })));
    });
}

#[test]
fn two_processes_with_one_identity_are_noticed() {
    for_each_seed(0..30, |seed| {
        let nodes = size(seed * 3).clamp(3, 20);
        let mut ids: Vec<_> = (0..nodes).map(id).collect();
        ids[1] = ids[0].clone();
        let mut swarm = of_ids(seed, plain(), ids, false);
        for twin in [0, 1] {
            for other in 2..nodes {
                swarm.connect(twin, other);
            }
        }
        swarm.run_for(15_000);
        let observed = swarm.take_observed();
        let conflict = observed.iter().find(|seen| matches!(&seen.what, Seen::SameIdentity { peer } if *peer == id(0)));
        assert!(conflict.is_some(), "{nodes} nodes");
        let reports = observed.iter().filter(|seen| matches!(seen.what, Seen::SameIdentity { .. })).count();
        assert!(reports <= nodes * 3, "it is reported every ten seconds at most: {reports}");
    });
}

#[test]
fn a_peer_that_others_reach_is_alive_though_the_connection_to_it_is_lost() {
    for_each_seed(0..60, |seed| {
        let nodes = size(seed * 3).clamp(3, 32);
        let mut swarm = settled(seed, plain(), nodes);
        let since_ms = swarm.now_ms();
        swarm.block(0, 1);
        swarm.run_for(60_000);
        let observed = swarm.take_observed();
        for (node, peer) in [(0, 1), (1, 0)] {
            let told: Vec<_> = observed
                .iter()
                .filter_map(|seen| match seen.what {
                    Seen::State { peer: about, state, reason } if seen.node == node && about == peer => {
                        Some((seen.at_ms - since_ms, state, reason))
                    }
                    _ => None,
                })
                .collect();
            assert!(
                told[0].0 <= 20 && told[0].1 == PeerState::Suspect,
                "a lost connection is suspect at once: {told:?}"
            );
            assert!(told[1].0 <= 1_000 && told[1].1 == PeerState::Alive, "{told:?}");
            assert!(told[1].2.contains("unreachable from here"), "{told:?}");
            assert_eq!(told.len(), 2, "and so it stays: {told:?}");
        }
        let others: Vec<_> = observed.iter().filter(|seen| seen.node > 1).collect();
        assert!(others.is_empty(), "others see nothing of it: {others:?}");
    });
}

#[test]
fn a_connection_that_swallows_everything_costs_no_storm() {
    for_each_seed(0..30, |seed| {
        let nodes = size(seed * 3).clamp(3, 32);
        let mut swarm = settled(seed, plain(), nodes);
        let sent = |swarm: &Swarm| (0..nodes).map(|node| swarm.traffic(node).messages).sum::<u64>();
        let before = sent(&swarm);
        // Half of all are silent to the first, though others hear them.
        for node in 1..=nodes / 2 {
            swarm.swallow(0, node);
        }
        swarm.run_for(60_000);
        assert_eq!(told_of(&swarm.take_observed(), PeerState::Gone), Vec::<String>::new());
        let each = (sent(&swarm) - before) / nodes as u64;
        assert!(each <= 1_500, "{nodes} nodes: {each} messages of each in a minute");
    });
}

#[test]
fn a_connection_closed_by_accident_is_forgiven_when_it_is_made_again() {
    for_each_seed(0..30, |seed| {
        let nodes = size(seed * 3).min(32);
        let mut swarm = settled(seed, plain(), nodes);
        swarm.break_link(0, 1);
        swarm.run_for(10_000);
        assert!(swarm.nodes().all(|(_, node)| node.alive().len() == nodes - 1));
        assert_eq!(told_of(&swarm.take_observed(), PeerState::Gone), Vec::<String>::new());
    });
}

#[test]
fn a_watched_peer_is_probed_wherever_it_stands_on_the_ring() {
    let mut swarm = settled(1, plain(), 32);
    let before: Vec<u64> = (0..32).map(|node| swarm.traffic(node).messages).collect();
    for peer in 1..32 {
        swarm.command(0, Order::Watch(peer));
    }
    swarm.run_for(60_000);
    let sent = swarm.traffic(0).messages - before[0];
    // 31 peers, a ping each 400 ms, less those that ping it.
    assert!((4_000..=5_000).contains(&sent), "{sent}");
    swarm.take_observed();
    let since_ms = swarm.now_ms();
    swarm.pause(17);
    swarm.run_for(2_000);
    let told = first_told(&swarm.take_observed(), 17, &BAD);
    assert!(told[&0] - since_ms <= 1_600, "{told:?}");
}

#[test]
fn nodes_that_go_together_with_all_their_neighbours_leave_no_ghosts() {
    for_each_seed(0..20, |seed| {
        let nodes = 24;
        let mut swarm = detectors(seed, plain(), nodes);
        // A circle of links, in which each knows most others by hearsay alone.
        for node in 0..nodes {
            for distance in 1..=3 {
                swarm.connect(node, (node + distance) % nodes);
            }
        }
        swarm.run_until(60_000);
        assert!(swarm.nodes().all(|(_, node)| node.alive().len() == nodes - 1), "all know all");
        for node in 0..8 {
            swarm.kill(node);
        }
        swarm.run_for(60_000);
        let there: BTreeSet<usize> = (8..nodes).collect();
        for (index, node) in swarm.nodes() {
            let expected: BTreeSet<usize> = there.iter().copied().filter(|other| *other != index).collect();
            assert_eq!(node.alive(), expected, "as {index} sees it");
        }
    });
}
