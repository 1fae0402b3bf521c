//! What an idle swarm costs.

use std::io::Write;

use bombus_testkit::simulator::Network;

use crate::peer::{Swarm, connect_mesh, detectors, with_topics};

/// What one message costs besides its own bytes on a stream: frame, Yamux, Noise, and TCP/IP with the acknowledgement.
const OVERHEAD_BYTES: u64 = 140;

/// Returns messages and bytes that a node sent, on average and per minute, over ten minutes after the first.
fn per_minute(mut swarm: Swarm, nodes: usize) -> (f64, f64) {
    swarm.run_until(60_000);
    let sent = |swarm: &Swarm| {
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
        let mut swarm = detectors(1, Network::lan(), nodes);
        swarm.connect_all();
        let (messages, bytes) = per_minute(swarm, nodes);
        let wire = (bytes + messages * OVERHEAD_BYTES as f64) / 60.0;
        println!("{nodes} nodes: the detector of each sends {messages:.0} messages and {bytes:.0} bytes a minute");
        assert!(messages <= 330.0, "{nodes} nodes: {messages} messages a minute");
        assert!(bytes <= 8_000.0, "{nodes} nodes: {bytes} bytes a minute");
        assert!(wire <= 1_200.0, "{nodes} nodes: about {wire} bytes a second on the wire");
    }
}

#[test]
fn ten_times_as_many_nodes_cost_each_of_them_not_much_more() {
    let mut told = Vec::new();
    let mut all = Vec::new();
    for nodes in [10, 30, 100] {
        let [detector, both] = [detectors, with_topics].map(|make| {
            let mut swarm = make(1, Network::lan(), nodes);
            connect_mesh(&mut swarm, nodes);
            per_minute(swarm, nodes).0
        });
        told.push(format!(
            "{both:.0} at {nodes} nodes ({detector:.0} of the detector, {:.0} of topics)",
            both - detector
        ));
        all.push(both);
    }
    // Not `println!`, which nobody sees of a test that passes.
    let _ = writeln!(std::io::stderr(), "messages per node and minute: {}", told.join(", "));
    // The more nodes there are, the more rarely each speaks. The names of what is new go to a share of the connections, which do not grow
    // beyond a full mesh.
    assert!(all[1] <= all[0] * 1.4 && all[2] <= all[1] * 1.1, "{told:?}");
}
