//! Whom a message on a topic reaches, and when.

use std::collections::BTreeMap;
use std::io::Write;

use bombus_testkit::simulator::Network;

use crate::gossip::{Message, Topic};
use crate::peer::{MESH_MAX, Order, Seen, Swarm, connect_mesh, with_topics};

/// How many broadcasts of tasks are followed.
const TASKS: usize = 100;
/// How long each of them has, in milliseconds: some heartbeats.
const HEARD_WITHIN_MS: u64 = 20_000;

/// Has random nodes publish broadcasts of tasks, one after the other, and returns for each how long it took to the nodes that heard it.
fn broadcast(mut swarm: Swarm, nodes: usize) -> Vec<Vec<u64>> {
    connect_mesh(&mut swarm, nodes);
    swarm.run_until(60_000);
    swarm.take_observed();
    for _ in 0..TASKS {
        let author = swarm.random().index(nodes);
        swarm.command(author, Order::Publish);
        let pause_ms = swarm.random().within(&(0..=1_000));
        swarm.run_for(pause_ms);
    }
    swarm.run_for(HEARD_WITHIN_MS);
    let mut published: BTreeMap<Message, u64> = BTreeMap::new();
    let mut heard: BTreeMap<Message, Vec<u64>> = BTreeMap::new();
    for seen in swarm.take_observed() {
        match seen.what {
            Seen::Told(message) if message.topic != Topic::TaskBroadcast => {}
            Seen::Told(message) if message.author == seen.node => {
                published.insert(message, seen.at_ms);
                heard.insert(message, Vec::new());
            }
            Seen::Told(message) => {
                let took_ms = seen.at_ms - published[&message];
                heard.entry(message).or_default().push(took_ms);
            }
            _ => {}
        }
    }
    assert_eq!(heard.len(), TASKS);
    heard.into_values().collect()
}

#[test]
fn up_to_a_full_mesh_all_hear_a_task_at_once() {
    let nodes = MESH_MAX + 1;
    for times in broadcast(with_topics(2, Network::lan(), nodes), nodes) {
        assert!(times.len() == nodes - 1 && times.iter().all(|took_ms| *took_ms <= 2), "{times:?}");
    }
}

#[test]
fn in_a_crowd_all_hear_a_task_within_some_heartbeats() {
    let nodes = 100;
    let heard = broadcast(with_topics(2, Network::lan(), nodes), nodes);
    let count: usize = heard.iter().map(Vec::len).sum();
    let share = count as f64 / (TASKS * (nodes - 1)) as f64;
    let by_all = heard.iter().filter(|times| times.len() == nodes - 1).count();
    let mut times: Vec<u64> = heard.into_iter().flatten().collect();
    times.sort_unstable();
    // Not `println!`, which nobody sees of a test that passes.
    let _ = writeln!(
        std::io::stderr(),
        "of {nodes} nodes with {MESH_MAX} connections each, {:.2} % hear a task, half of these within {} ms, the last after {} ms; \
         {by_all} of {TASKS} tasks are heard by all",
        share * 100.0,
        times[count / 2],
        times[count - 1]
    );
    assert!(share >= 0.999, "{share}");
}
