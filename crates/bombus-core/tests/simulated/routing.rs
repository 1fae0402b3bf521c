//! Whom requests are sent to: only those that live, not all to the same one, and how long it takes to decide that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bombus_core::liveness::PeerState;
use bombus_testkit::simulator::{Network, Observed, for_each_seed};

use crate::router::{Order, Routers, Seen, Shape, routers};

/// From then on nobody sends anything to a node that is lost: it is suspect.
const SUSPECT_MS: u64 = 2_000;
/// How long a lost connection takes to be told: two delays of the network.
const TOLD_MS: u64 = 40;

#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    Pause,
    Cut,
    Leave,
}

const FAULTS: [Fault; 4] = [Fault::Kill, Fault::Pause, Fault::Cut, Fault::Leave];

fn plain() -> Network {
    // A stream over a cut link ends some time, and what was told over it is told anew over the next.
    Network { delay_ms: 1..=20, ordered: true, broken_after_ms: Some(8_000), ..Network::lan() }
}

/// Has random nodes without a model ask for a while, one request each 4 ms, so that 40 run; numbers begin behind `asked`.
fn ask_for(swarm: &mut Routers, askers: &[usize], ms: u64, asked: &mut u64) {
    for _ in 0..ms / 4 {
        let asker = askers[swarm.random().index(askers.len())];
        *asked += 1;
        swarm.command(asker, Order::Ask(*asked));
        swarm.run_for(4);
    }
}

fn chosen(observed: &[Observed<Seen>]) -> impl Iterator<Item = (u64, usize, usize)> {
    observed.iter().filter_map(|seen| match seen.what {
        Seen::Chosen { worker } => Some((seen.at_ms, seen.node, worker)),
        _ => None,
    })
}

#[test]
fn requests_go_only_to_nodes_that_live_within_the_bound_of_the_detector() {
    for_each_seed(0..96, |seed| {
        let fault = FAULTS[(seed % 4) as usize];
        let (workers, others) = [(2, 1), (3, 3), (6, 4), (10, 10), (24, 8)][(seed / 4 % 5) as usize];
        // Capacity is never what decides here.
        let slots = (0..workers + others).map(|node| if node < workers { 256 } else { 0 }).collect();
        let mut swarm = routers(seed, plain(), &Shape { slots, answer_ms: 150 });
        let askers: Vec<usize> = (workers..workers + others).collect();
        let mut asked = 0;
        ask_for(&mut swarm, &askers, 1_000, &mut asked);
        let (victim, since_ms) = (swarm.random().index(workers), swarm.now_ms());
        let reached = chosen(&swarm.take_observed()).filter(|(_, _, worker)| *worker == victim).count();
        assert!(reached > 0, "{workers} workers: nothing was ever sent to {victim}");
        match fault {
            Fault::Kill => swarm.kill(victim),
            Fault::Pause => swarm.pause(victim),
            Fault::Cut => swarm.cut(victim),
            Fault::Leave => swarm.command(victim, Order::Leave),
        }
        ask_for(&mut swarm, &askers, 12_000, &mut asked);
        let bound_ms = match fault {
            Fault::Kill | Fault::Leave => TOLD_MS,
            Fault::Pause | Fault::Cut => SUSPECT_MS,
        };
        let observed = swarm.take_observed();
        let late: Vec<_> =
            chosen(&observed).filter(|(at_ms, _, worker)| *worker == victim && *at_ms > since_ms + bound_ms).collect();
        assert!(late.is_empty(), "{fault:?} of {victim} of {workers} workers at {since_ms}: {late:?}");
        assert!(observed.iter().all(|seen| seen.what != Seen::Refused), "the others are there");
        for (asker, node) in swarm.nodes().filter(|(node, _)| askers.contains(node)) {
            let first = node.ranking(&BTreeSet::new());
            assert_ne!(node.state(victim), Some(PeerState::Alive), "{asker} after 12 s");
            assert!(first[0].score().is_some_and(|score| score > 0.0));
        }
        if let Fault::Cut | Fault::Pause = fault {
            swarm.heal();
            swarm.resume(victim);
            swarm.run_for(20_000);
            swarm.take_observed();
            ask_for(&mut swarm, &askers, 3_000, &mut asked);
            let back = chosen(&swarm.take_observed()).filter(|(_, _, worker)| *worker == victim).count();
            assert!(back > 0, "{fault:?}: {victim} of {workers} is back, and gets nothing");
        }
    });
}

/// Has so many nodes send 200 requests at one moment and returns how many each worker was chosen for.
fn burst(seed: u64, slots: &[u32], askers: usize) -> (BTreeMap<usize, usize>, Vec<Observed<Seen>>) {
    const REQUESTS: u64 = 200;
    let workers = slots.len();
    let slots = slots.iter().copied().chain(std::iter::repeat_n(0, askers)).collect();
    let mut swarm = routers(seed, plain(), &Shape { slots, answer_ms: 400 });
    for number in 0..REQUESTS {
        let asker = workers + swarm.random().index(askers);
        swarm.command(asker, Order::Ask(number + 1));
    }
    swarm.run_for(30_000);
    let observed = swarm.take_observed();
    let mut counts = BTreeMap::new();
    for (_, _, worker) in chosen(&observed) {
        *counts.entry(worker).or_insert(0) += 1;
    }
    (counts, observed)
}

#[test]
fn two_hundred_requests_at_once_do_not_all_run_to_the_same_node() {
    println!("| workers | nodes that ask | most for one worker | fewest | ideal |");
    for (workers, askers) in [(4, 1), (10, 1), (10, 5), (10, 50), (40, 4)] {
        let ideal = 200 / workers;
        let (mut most, mut fewest) = (0, usize::MAX);
        for seed in 0..8 {
            let (counts, observed) = burst(seed, &vec![64; workers], askers);
            assert_eq!(observed.iter().filter(|seen| seen.what == Seen::Answered).count(), 200, "all are answered");
            let of = |worker| counts.get(&worker).copied().unwrap_or(0);
            most = most.max((0..workers).map(of).max().unwrap_or(0));
            fewest = fewest.min((0..workers).map(of).min().unwrap_or(0));
        }
        println!("| {workers} | {askers} | {most} | {fewest} | {ideal} |");
        // Nodes know nothing of what others send in this moment: with many of them that send a few each, chance has a say.
        let chance = if askers * workers > 200 { 4 } else { 0 };
        assert!(most <= ideal * 2 + chance, "{workers} workers, {askers} nodes ask: {most} where {ideal} are ideal");
        assert!(
            fewest * 2 + 2 * chance >= ideal,
            "{workers} workers, {askers} nodes ask: {fewest} where {ideal} are ideal"
        );
    }
}

#[test]
fn capacity_decides_who_gets_how_much_of_a_burst() {
    let slots = [8, 16, 32, 64, 128];
    let capacity: u32 = slots.iter().sum();
    for askers in [1, 5] {
        for seed in 0..8 {
            let (counts, _) = burst(seed, &slots, askers);
            for (worker, slots) in slots.iter().enumerate() {
                let ideal = 200.0 * f64::from(*slots) / f64::from(capacity);
                let had = counts.get(&worker).copied().unwrap_or(0) as f64;
                assert!((ideal / 2.0..=ideal * 2.0).contains(&had), "{slots} of {capacity}: {had}, ideal {ideal}");
            }
        }
    }
}

#[test]
fn what_is_declined_goes_elsewhere_until_it_is_taken() {
    // Five nodes send 200 to places for 210: some choose what others have filled meanwhile.
    let (counts, observed) = burst(3, &[10, 50, 70, 80], 5);
    let refused = observed.iter().filter(|seen| seen.what == Seen::Refused).count();
    let answered = observed.iter().filter(|seen| seen.what == Seen::Answered).count();
    assert_eq!((answered, refused), (200, 0), "{counts:?}");
}

#[test]
fn a_decision_costs_little_also_among_a_thousand_nodes() {
    println!("| nodes | a decision (us) |");
    for nodes in [10, 100, 1_000] {
        let us = decision_us(nodes);
        println!("| {nodes} | {us:.1} |");
        // It is printed to be looked at; only what is absurd fails, whatever else the machine does.
        assert!(us < 100.0 * nodes as f64, "{nodes} nodes: {us} us");
    }
}

/// Returns how long a ranking of so many nodes takes, the best of several, in microseconds.
fn decision_us(nodes: usize) -> f64 {
    use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
    use bombus_core::placement::{Candidate, Need, Offer, Peer, rank};

    let named = ModelInfo::named(ModelName::parse("m").expect("a plain word is a model name"));
    let info = std::sync::Arc::new(ModelInfo { capabilities: vec![ModelCapability::Completion], warm: true, ..named });
    let ids: Vec<_> = (0..nodes).map(crate::peer::id).collect();
    let candidates = || -> Vec<_> {
        let candidate = |(index, id): (usize, &bombus_core::identity::NodeId)| Candidate {
            peer: Some(Peer { latency_ms: Some(index as f64), ..Peer::new(id.clone(), "node") }),
            running: (index % 7) as u32,
            slots: Some(8),
            tokens_per_second: Some(20.0 + (index % 50) as f64),
            first_token_ms: Some(100.0),
            lot: index as u64,
            ..Candidate::new(id.to_string(), Offer::Has { info: info.clone(), alias_of: None })
        };
        ids.iter().enumerate().map(candidate).collect()
    };
    let need = Need::of([ModelCapability::Completion]);
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let candidates = candidates();
        let began = Instant::now();
        let ranking = rank(&need, candidates);
        best = best.min(began.elapsed());
        assert_eq!(ranking.len(), nodes);
    }
    best.as_secs_f64() * 1e6
}
