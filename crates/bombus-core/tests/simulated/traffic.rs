//! What an idle swarm costs.

use bombus_testkit::simulator::{Network, Simulation};

use crate::peer::{Peer, detectors, with_topics};

/// What one message costs besides its own bytes on a stream: frame, Yamux, Noise, and TCP/IP with the acknowledgement.
const OVERHEAD_BYTES: u64 = 140;

/// Returns messages and bytes that a node sent, on average and per minute, over ten minutes after the first.
fn per_minute(mut swarm: Simulation<Peer>, nodes: usize) -> (f64, f64) {
    swarm.connect_all();
    swarm.run_until(60_000);
    let sent = |swarm: &Simulation<Peer>| {
        let each = (0..nodes).map(|node| swarm.traffic(node));
        each.fold((0, 0), |sum, sent| (sum.0 + sent.messages, sum.1 + sent.bytes))
    };
    let before = sent(&swarm);
    swarm.run_for(600_000);
    let after = sent(&swarm);
    let share = |count: u64| count as f64 / nodes as f64 / 10.0;
    (share(after.0 - before.0), share(after.1 - before.1))
}

#[test]
fn the_detector_of_an_idle_swarm_costs_the_same_at_ten_and_at_a_hundred_nodes() {
    for nodes in [2, 10, 100] {
        let (messages, bytes) = per_minute(detectors(1, Network::lan(), nodes), nodes);
        let wire = (bytes + messages * OVERHEAD_BYTES as f64) / 60.0;
        println!("{nodes} nodes: the detector of each sends {messages:.0} messages and {bytes:.0} bytes a minute");
        assert!(messages <= 330.0, "{nodes} nodes: {messages} messages a minute");
        assert!(bytes <= 8_000.0, "{nodes} nodes: {bytes} bytes a minute");
        assert!(wire <= 1_200.0, "{nodes} nodes: about {wire} bytes a second on the wire");
    }
}

#[test]
fn messages_per_node_per_minute_of_detector_and_topics() {
    println!("| nodes | detector | topics | all, a minute and node |");
    for nodes in [10, 30, 100] {
        let (detector, _) = per_minute(detectors(1, Network::lan(), nodes), nodes);
        let (all, _) = per_minute(with_topics(1, Network::lan(), nodes), nodes);
        let topics = all - detector;
        println!("| {nodes} | {detector:.0} | {topics:.0} | {all:.0} |");
        // Each message is passed on by all to a bounded number of peers: what makes it rarer outweighs the growth in nodes.
        assert!(topics <= 500.0, "{nodes} nodes: {topics} messages of topics a minute");
    }
}
