use super::*;

/// Sends a running number to all neighbours every 100 ms, and tells what it hears.
struct Counter {
    peers: BTreeSet<usize>,
    count: u64,
}

impl Machine for Counter {
    type Message = u64;
    type Command = ();
    type Observation = String;

    fn on(&mut self, now_ms: u64, event: Event<u64, ()>) -> Vec<Effect<u64, String>> {
        match event {
            Event::Start | Event::Command(()) => vec![Effect::WakeAt(now_ms + 100)],
            Event::Wake => {
                self.count += 1;
                let message = self.count;
                let sends = self.peers.iter().map(|peer| Effect::Send { to: *peer, message });
                sends.chain([Effect::WakeAt(now_ms + 100)]).collect()
            }
            Event::Message { from, message } => vec![Effect::Observe(format!("{from}:{message}"))],
            Event::LinkUp(peer) => {
                self.peers.insert(peer);
                vec![Effect::Observe(format!("+{peer}"))]
            }
            Event::LinkDown(peer) => {
                self.peers.remove(&peer);
                vec![Effect::Observe(format!("-{peer}"))]
            }
        }
    }

    fn size(_message: &u64) -> usize {
        8
    }
}

fn counters(seed: u64, network: Network, nodes: usize) -> Simulation<Counter> {
    let mut simulation = Simulation::new(seed, network, nodes, |_| Counter { peers: BTreeSet::new(), count: 0 });
    simulation.connect_all();
    simulation
}

fn heard(simulation: &mut Simulation<Counter>, node: usize) -> Vec<String> {
    simulation.take_observed().into_iter().filter(|seen| seen.node == node).map(|seen| seen.what).collect()
}

#[test]
fn the_same_seed_makes_the_same_history_and_another_one_another() {
    let history = |seed| {
        let mut simulation = counters(seed, Network::rough(0.2, 50), 4);
        simulation.run_until(2_000);
        simulation.cut(1);
        simulation.run_until(3_000);
        simulation.take_observed()
    };
    assert_eq!(history(1), history(1));
    assert_ne!(history(1), history(2));
}

#[test]
fn messages_are_lost_as_often_as_asked_for_and_overtake_each_other_unless_links_keep_the_order() {
    for ordered in [false, true] {
        let network = Network { ordered, ..Network::rough(0.25, 300) };
        let mut simulation = counters(3, network, 2);
        simulation.run_until(200_000);
        let heard: Vec<u64> =
            heard(&mut simulation, 0).iter().filter_map(|text| text.strip_prefix("1:")?.parse().ok()).collect();
        assert!((1_400..=1_600).contains(&heard.len()), "{}", heard.len());
        assert_eq!(heard.is_sorted(), ordered);
        let traffic = simulation.traffic(0);
        assert!(traffic.messages >= 1_990 && traffic.bytes == traffic.messages * 8);
    }
}

#[test]
fn a_killed_process_is_noticed_and_a_paused_or_cut_one_is_not() {
    let mut simulation = counters(5, Network::lan(), 3);
    simulation.run_until(1_050);
    heard(&mut simulation, 0);
    simulation.pause(1);
    simulation.cut(2);
    simulation.run_for(1_000);
    assert_eq!(heard(&mut simulation, 0), Vec::<String>::new());
    simulation.heal();
    simulation.kill(2);
    simulation.run_for(50);
    assert_eq!(heard(&mut simulation, 0), ["-2"]);
    assert!(simulation.node(2).is_none());
}

#[test]
fn a_paused_node_gets_on_resuming_what_came_meanwhile() {
    let mut simulation = counters(5, Network::lan(), 2);
    simulation.run_until(1_050);
    heard(&mut simulation, 0);
    simulation.pause(0);
    simulation.run_for(1_000);
    assert_eq!(heard(&mut simulation, 0).len(), 0);
    simulation.resume(0);
    simulation.run_for(5);
    assert_eq!(heard(&mut simulation, 0).len(), 10);
}

#[test]
fn a_restarted_process_is_a_new_machine_and_is_linked_anew() {
    let mut simulation = counters(5, Network::lan(), 2);
    simulation.run_until(1_050);
    heard(&mut simulation, 0);
    simulation.restart(1);
    simulation.run_for(250);
    let heard = heard(&mut simulation, 0);
    assert!(heard.starts_with(&["-1".to_owned(), "+1".to_owned(), "1:1".to_owned()]), "{heard:?}");
}

#[test]
fn links_through_which_nothing_gets_break_in_time_and_are_made_again() {
    let network = Network { broken_after_ms: Some(2_000), ..Network::lan() };
    let mut simulation = counters(5, network, 3);
    simulation.run_until(1_050);
    simulation.partition(&[&[0], &[1, 2]]);
    simulation.run_for(1_900);
    assert!(!heard(&mut simulation, 0).contains(&"-1".to_owned()));
    simulation.run_for(200);
    assert_eq!(heard(&mut simulation, 0), ["-1", "-2"]);
    simulation.heal();
    simulation.run_for(50);
    let mut links = heard(&mut simulation, 0);
    links.sort();
    assert_eq!(links, ["+1", "+2"]);
}

#[test]
fn a_blocked_pair_has_no_link_while_others_have() {
    let mut simulation = counters(5, Network::lan(), 3);
    simulation.run_until(1_050);
    heard(&mut simulation, 0);
    simulation.block(0, 1);
    simulation.run_for(5_000);
    let heard = heard(&mut simulation, 0);
    assert_eq!(heard[0], "-1");
    assert!(heard[1..].iter().all(|text| text.starts_with("2:")));
}
