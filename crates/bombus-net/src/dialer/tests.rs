use bombus_core::identity::NodeKey;

use super::due::RELAY_AFTER;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn node(number: u8) -> NodeId {
    NodeKey::from_secret(&[number; 32]).node_id()
}

/// Two ids, the smaller first.
fn pair() -> (NodeId, NodeId) {
    let (one, other) = (node(1), node(2));
    if one < other { (one, other) } else { (other, one) }
}

fn addr(number: u8) -> Multiaddr {
    format!("/ip4/192.0.2.{number}/tcp/7891").parse().unwrap()
}

fn relayed(relay: &NodeId) -> Multiaddr {
    format!("/ip4/192.0.2.250/tcp/7891/p2p/{relay}/p2p-circuit").parse().unwrap()
}

fn direct(number: u8) -> Path {
    Path::Direct { addr: addr(number).to_string() }
}

fn connection(number: usize) -> ConnectionId {
    ConnectionId::new_unchecked(number)
}

fn settings() -> Settings {
    Settings {
        mesh_max: 32,
        redial_min: SECOND / 2,
        redial_max: 60 * SECOND,
        foreign_key_pause: 600 * SECOND,
        peer_expiry: 3600 * SECOND,
        redundant_grace: 2 * SECOND,
        idle_limit: 60 * SECOND,
    }
}

/// A dialer with a clock that tests move.
struct Bench {
    dialer: Dialer,
    now: Instant,
}

impl Bench {
    fn of(me: NodeId) -> Self {
        Self::with(me, settings(), Vec::new())
    }

    fn with(me: NodeId, settings: Settings, seeds: Vec<(Multiaddr, Option<NodeId>)>) -> Self {
        let now = Instant::now();
        Self { dialer: Dialer::new(now, me, settings, seeds, 7), now }
    }

    fn on(&mut self, input: Input) -> Vec<Output> {
        self.dialer.on(self.now, input)
    }

    fn after(&mut self, time: Duration) -> Vec<Output> {
        self.now += time;
        self.on(Input::Tick)
    }

    fn learn(&mut self, peer: &NodeId, addr: Multiaddr) -> Vec<Output> {
        self.learn_from(peer, addr, AddressSource::Mdns, Some(peer.clone()))
    }

    fn learn_from(
        &mut self,
        peer: &NodeId,
        addr: Multiaddr,
        source: AddressSource,
        teller: Option<NodeId>,
    ) -> Vec<Output> {
        self.on(Input::Learned { peer: peer.clone(), addr, source, teller })
    }

    fn connect(&mut self, peer: &NodeId, number: usize, path: Path, dialled: Option<Multiaddr>) -> Vec<Output> {
        self.on(Input::Connected { peer: peer.clone(), connection: connection(number), path, addr: dialled })
    }

    fn fail(&mut self, peer: &NodeId, addr: Multiaddr, why: DialFailure) {
        self.on(Input::Failed { peer: peer.clone(), addr, why: why.clone() });
        self.on(Input::DialEnded { peer: peer.clone(), why });
    }

    /// Ticks until a dial comes; returns how long that took.
    fn until_dial(&mut self, limit: Duration) -> Option<Duration> {
        let begun = self.now;
        while self.now - begun <= limit {
            if !dialled(&self.after(SECOND / 20)).is_empty() {
                return Some(self.now - begun);
            }
        }
        None
    }
}

fn dialled(outputs: &[Output]) -> Vec<(NodeId, Vec<Multiaddr>)> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::Dial { peer, addrs } => Some((peer.clone(), addrs.clone())),
            _ => None,
        })
        .collect()
}

fn closed(outputs: &[Output]) -> Vec<ConnectionId> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::Close { connection, .. } | Output::CloseIdle { connection, .. } => Some(*connection),
            _ => None,
        })
        .collect()
}

#[test]
fn the_smaller_id_dials_a_new_peer_at_once_and_the_greater_a_moment_later() {
    let (small, great) = pair();
    let mut bench = Bench::of(small.clone());
    bench.learn(&great, addr(1));
    assert_eq!(dialled(&bench.on(Input::Tick)), [(great.clone(), vec![addr(1)])]);
    let mut bench = Bench::of(great);
    bench.learn(&small, addr(1));
    assert!(dialled(&bench.on(Input::Tick)).is_empty());
    assert!(bench.until_dial(COURTESY).is_some(), "the other side may be unable to");
}

#[test]
fn all_addresses_are_tried_at_once_those_that_worked_first() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    bench.learn(&great, addr(1));
    bench.learn(&great, addr(2));
    bench.connect(&great, 1, direct(2), Some(addr(2)));
    bench.on(Input::Closed { peer: great.clone(), connection: connection(1), why: Some("reset".to_owned()) });
    bench.now += SECOND;
    assert_eq!(dialled(&bench.on(Input::Tick)), [(great, vec![addr(2), addr(1)])]);
}

#[test]
fn a_lost_peer_is_dialled_within_a_second_and_then_ever_more_rarely() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    bench.learn(&great, addr(1));
    bench.on(Input::Tick);
    bench.connect(&great, 1, direct(1), Some(addr(1)));
    bench.on(Input::Closed { peer: great.clone(), connection: connection(1), why: Some("reset".to_owned()) });
    let mut pauses = Vec::new();
    for _ in 0..12 {
        pauses.push(bench.until_dial(100 * SECOND).expect("it is never given up"));
        bench.fail(&great, addr(1), DialFailure::NothingListens);
    }
    assert!(pauses[0] < SECOND, "{pauses:?}");
    assert!(pauses[6] > 10 * SECOND, "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= 73 * SECOND), "the pause is bounded: {pauses:?}");
}

#[test]
fn who_is_needed_is_dialled_in_spite_of_pauses() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    bench.learn(&great, addr(1));
    bench.on(Input::Tick);
    for _ in 0..5 {
        bench.fail(&great, addr(1), DialFailure::Timeout);
        bench.learn_from(&great, addr(2), AddressSource::Ticket, None);
    }
    assert_eq!(dialled(&bench.on(Input::Want { peer: great })).len(), 1);
}

#[test]
fn a_peer_without_an_address_is_told_at_once() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    let outputs = bench.on(Input::Want { peer: great.clone() });
    assert!(
        matches!(&outputs[..], [Output::NotReached { peer, why: DialFailure::NoAddress }] if *peer == great),
        "{outputs:?}"
    );
}

#[test]
fn of_two_simultaneous_connections_the_smaller_id_closes_the_one_that_it_did_not_dial() {
    let (small, great) = pair();
    let mut smaller = Bench::of(small.clone());
    smaller.learn(&great, addr(1));
    smaller.connect(&great, 1, direct(1), Some(addr(1)));
    smaller.connect(&great, 2, direct(9), None);
    assert!(closed(&smaller.after(SECOND)).is_empty(), "what has just begun on it may end");
    assert_eq!(closed(&smaller.after(2 * SECOND)), [connection(2)]);
    let mut greater = Bench::of(great);
    greater.connect(&small, 1, direct(9), None);
    greater.connect(&small, 2, direct(1), Some(addr(1)));
    assert!(closed(&greater.after(3 * SECOND)).is_empty(), "only one side decides");
}

#[test]
fn a_connection_that_came_much_later_does_not_displace_the_first() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    bench.connect(&great, 1, direct(9), None);
    bench.now += 60 * SECOND;
    bench.connect(&great, 2, direct(1), Some(addr(1)));
    assert_eq!(closed(&bench.after(3 * SECOND)), [connection(2)]);
}

#[test]
fn a_direct_connection_displaces_a_relayed_one() {
    let (small, great) = pair();
    let relay = node(3);
    let mut bench = Bench::of(small);
    bench.connect(&great, 1, Path::Relayed { via: relay.clone() }, Some(relayed(&relay)));
    bench.now += 60 * SECOND;
    let outputs = bench.connect(&great, 2, direct(1), Some(addr(1)));
    assert!(
        outputs.iter().any(
            |output| matches!(output, Output::Prefer { connection: preferred, .. } if *preferred == connection(2))
        ),
        "new streams take the direct one: {outputs:?}"
    );
    assert!(outputs.iter().any(|output| matches!(output, Output::Tell(NetEvent::PathChanged { .. }))));
    assert_eq!(closed(&bench.after(3 * SECOND)), [connection(1)]);
}

#[test]
fn a_much_shorter_round_trip_wins() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    bench.connect(&great, 1, direct(1), Some(addr(1)));
    bench.on(Input::RoundTrip { peer: great.clone(), connection: connection(1), time: SECOND / 20 });
    bench.now += 60 * SECOND;
    bench.connect(&great, 2, direct(2), Some(addr(2)));
    bench.on(Input::RoundTrip { peer: great.clone(), connection: connection(2), time: SECOND / 1000 });
    assert_eq!(closed(&bench.after(3 * SECOND)), [connection(1)]);
}

#[test]
fn better_addresses_of_a_distant_peer_are_tried_by_one_side() {
    let (small, great) = pair();
    let far = |bench: &mut Bench, peer: &NodeId| {
        bench.learn(peer, addr(1));
        bench.learn(peer, addr(2));
        bench.on(Input::Tick);
        bench.connect(peer, 1, direct(1), Some(addr(1)));
        bench.on(Input::RoundTrip { peer: peer.clone(), connection: connection(1), time: SECOND / 20 });
        dialled(&bench.after(10 * SECOND))
    };
    assert_eq!(far(&mut Bench::of(small.clone()), &great), [(great.clone(), vec![addr(2)])]);
    assert!(far(&mut Bench::of(great), &small).is_empty());
}

#[test]
fn relayed_addresses_are_tried_when_direct_ones_do_not_answer() {
    let (small, great) = pair();
    let relay = node(3);
    let mut bench = Bench::of(small);
    bench.learn(&great, addr(1));
    bench.learn(&great, relayed(&relay));
    assert_eq!(dialled(&bench.on(Input::Tick)), [(great.clone(), vec![addr(1)])]);
    assert_eq!(dialled(&bench.after(RELAY_AFTER)), [(great, vec![relayed(&relay)])]);
}

#[test]
fn another_swarms_key_is_left_alone_for_long() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    bench.learn(&great, addr(1));
    bench.on(Input::Tick);
    for _ in 0..2 {
        bench.fail(&great, addr(1), DialFailure::AnotherSwarmKey);
        bench.until_dial(10 * SECOND).expect("it may have been a disturbance");
    }
    bench.fail(&great, addr(1), DialFailure::AnotherSwarmKey);
    assert_eq!(bench.until_dial(590 * SECOND), None);
}

#[test]
fn while_the_own_key_changes_another_one_at_a_member_is_nothing_to_rest_for() {
    let (small, great) = pair();
    let seed = addr(7);
    for (has_gone_over, case) in [(false, "the node hands it over"), (true, "it has gone over")] {
        let mut bench = Bench::with(small.clone(), settings(), vec![(seed.clone(), None)]);
        bench.learn(&great, addr(1));
        bench.on(Input::Tick);
        for _ in 0..2 {
            bench.fail(&great, addr(1), DialFailure::AnotherSwarmKey);
            bench.on(Input::SeedFailed { addr: seed.clone(), why: DialFailure::AnotherSwarmKey });
        }
        if has_gone_over {
            bench.dialer.restart(bench.now);
        } else {
            bench.on(Input::KeyChanges);
        }
        let from = bench.dialer.foreign_keys_from().unwrap();
        assert!(from >= bench.now + 30 * SECOND, "{case}");
        let (mut dials, mut seed_dials) = (0, 0);
        while bench.now + SECOND < from {
            let outputs = bench.after(SECOND / 20);
            if !dialled(&outputs).is_empty() {
                dials += 1;
                bench.fail(&great, addr(1), DialFailure::AnotherSwarmKey);
            }
            if outputs.iter().any(|output| matches!(output, Output::DialSeed { .. })) {
                seed_dials += 1;
                bench.on(Input::SeedFailed { addr: seed.clone(), why: DialFailure::AnotherSwarmKey });
            }
        }
        assert!(dials >= 4 && seed_dials >= 4, "{case}: {dials} {seed_dials}");
        assert!(bench.dialer.peers()[&great].addresses.contains(&addr(1)), "{case}: it is not dropped either");
        // Then it counts again, from none on.
        bench.now = from;
        let mut later = (0, 0);
        for _ in 0..600 * 20 {
            let outputs = bench.after(SECOND / 20);
            if !dialled(&outputs).is_empty() {
                later.0 += 1;
                bench.fail(&great, addr(1), DialFailure::AnotherSwarmKey);
            }
            if outputs.iter().any(|output| matches!(output, Output::DialSeed { .. })) {
                later.1 += 1;
                bench.on(Input::SeedFailed { addr: seed.clone(), why: DialFailure::AnotherSwarmKey });
            }
        }
        let tries = if has_gone_over { 3 } else { 1 };
        assert_eq!(later, (tries, 3), "{case}");
    }
}

#[test]
fn a_key_that_changed_forgives_all_failures_of_before() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    bench.learn_from(&great, addr(1), AddressSource::Ticket, None);
    for _ in 0..3 {
        bench.until_dial(10 * SECOND).expect("it is tried");
        bench.fail(&great, addr(1), DialFailure::AnotherSwarmKey);
    }
    bench.dialer.restart(bench.now);
    // Long after it only failures from then on count.
    bench.now += KEY_CHANGE_GRACE;
    for _ in 0..2 {
        bench.until_dial(SECOND).expect("it is tried");
        bench.fail(&great, addr(1), DialFailure::AnotherSwarmKey);
    }
    assert!(bench.until_dial(10 * SECOND).is_some());
}

#[test]
fn addresses_that_never_worked_go_and_with_them_the_peer() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    bench.learn(&great, addr(1));
    for _ in 0..4 {
        bench.until_dial(100 * SECOND).unwrap();
        bench.fail(&great, addr(1), DialFailure::Timeout);
    }
    bench.after(2 * SECOND);
    assert!(bench.dialer.peers().is_empty());
}

#[test]
fn peers_that_were_not_seen_for_long_expire() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    bench.learn(&great, addr(1));
    bench.connect(&great, 1, direct(1), Some(addr(1)));
    bench.after(7200 * SECOND);
    assert_eq!(bench.dialer.peers().len(), 1, "a connected peer stays");
    bench.on(Input::Closed { peer: great.clone(), connection: connection(1), why: None });
    bench.after(SECOND);
    assert_eq!(bench.dialer.peers().len(), 1);
    bench.fail(&great, addr(1), DialFailure::Timeout);
    bench.after(3600 * SECOND);
    bench.fail(&great, addr(1), DialFailure::Timeout);
    bench.after(SECOND);
    assert!(bench.dialer.peers().is_empty());
}

#[test]
fn a_liar_does_not_displace_an_address_that_worked() {
    let (small, great) = pair();
    let liar = node(3);
    let mut bench = Bench::of(small);
    bench.learn(&great, addr(1));
    bench.connect(&great, 1, direct(1), Some(addr(1)));
    for number in 2..=250 {
        bench.learn_from(&great, addr(number), AddressSource::Peer, Some(liar.clone()));
    }
    bench.on(Input::Closed { peer: great.clone(), connection: connection(1), why: Some("reset".to_owned()) });
    bench.now += SECOND;
    let outputs = bench.on(Input::Tick);
    assert_eq!(dialled(&outputs)[0].1[0], addr(1), "it is tried first");
}

#[test]
fn one_teller_can_tell_only_so_much_about_others() {
    let (small, _) = pair();
    let liar = node(200);
    let mut bench = Bench::of(small);
    for number in 1..=150 {
        for port in 1..=4 {
            let addr = format!("/ip4/192.0.2.{number}/tcp/{port}").parse().unwrap();
            bench.learn_from(&node(number), addr, AddressSource::Peer, Some(liar.clone()));
        }
    }
    let told: usize = bench.dialer.peers().values().map(|peer| peer.addresses.best_first().len()).sum();
    assert_eq!(told, 64);
    assert_eq!(bench.dialer.addresses_dropped, 600 - 4 - 64, "its own four are of no interest");
    let honest = node(201);
    let other = node(160);
    bench.learn_from(&other, addr(9), AddressSource::Peer, Some(honest));
    assert!(bench.dialer.peers().contains_key(&other), "others still get a word in");
}

#[test]
fn an_address_with_somebody_else_behind_it_becomes_that_peers() {
    let (small, great) = pair();
    let found = node(3);
    let mut bench = Bench::of(small);
    bench.learn_from(&great, addr(1), AddressSource::Peer, Some(node(4)));
    bench.on(Input::Tick);
    bench.fail(&great, addr(1), DialFailure::WrongPeer { found: found.clone() });
    assert!(bench.dialer.peers()[&found].addresses.contains(&addr(1)));
    assert!(!bench.dialer.peers()[&great].addresses.contains(&addr(1)));
}

#[test]
fn when_a_network_comes_back_nobody_waits_for_the_end_of_a_long_pause() {
    let (small, great) = pair();
    for me in [small.clone(), great.clone()] {
        let peer = if me == small { great.clone() } else { small.clone() };
        let mut bench = Bench::with(me, settings(), vec![(addr(7), None)]);
        // One that has never worked is dropped in time.
        bench.learn_from(&peer, addr(1), AddressSource::Ticket, None);
        for _ in 0..12 {
            bench.until_dial(120 * SECOND).expect("it is tried again and again");
            bench.fail(&peer, addr(1), DialFailure::Unreachable { why: "no network".to_owned() });
            bench.on(Input::SeedFailed { addr: addr(7), why: DialFailure::Timeout });
        }
        assert_eq!(bench.until_dial(20 * SECOND), None, "by now the pauses are long");
        bench.on(Input::NetworkCame);
        let outputs = bench.after(SECOND / 2);
        assert_eq!(dialled(&outputs), [(peer, vec![addr(1)])]);
        assert!(outputs.iter().any(|output| matches!(output, Output::DialSeed { .. })), "{outputs:?}");
    }
}

#[test]
fn beyond_the_mesh_only_who_is_needed_is_dialled() {
    let (small, _) = pair();
    let mut bench = Bench::with(small.clone(), Settings { mesh_max: 2, ..settings() }, Vec::new());
    let peers: Vec<_> = (10..15).map(node).filter(|peer| *peer != small).collect();
    for (at, peer) in (1..).zip(&peers) {
        bench.learn(peer, addr(at));
    }
    let mut first = dialled(&bench.after(SECOND));
    assert_eq!(first.len(), 2);
    for (at, (peer, _)) in first.drain(..).enumerate() {
        bench.connect(&peer, at, direct(1), Some(addr(1)));
    }
    assert!(dialled(&bench.after(60 * SECOND)).is_empty());
    let rest = peers.iter().find(|peer| !bench.dialer.is_connected(peer)).unwrap().clone();
    assert_eq!(dialled(&bench.on(Input::Want { peer: rest.clone() })).len(), 1);
    let outputs = bench.connect(&rest, 9, direct(1), Some(addr(1)));
    assert!(
        outputs.iter().any(|output| matches!(output, Output::Keep { peer, keep: false, .. } if *peer == rest)),
        "its connection may end when it is idle: {outputs:?}"
    );
    assert_eq!(closed(&bench.after(59 * SECOND)), []);
    assert_eq!(closed(&bench.after(2 * SECOND)), [connection(9)]);
    bench.on(Input::InUse { peer: rest });
    assert_eq!(closed(&bench.after(58 * SECOND)), [], "what is used stays");
    assert_eq!(closed(&bench.after(3 * SECOND)), [connection(9)]);
}

#[test]
fn who_closes_a_connection_in_a_crowd_is_left_alone_unless_all_are_lost() {
    let (small, _) = pair();
    let mut bench = Bench::with(small.clone(), Settings { mesh_max: 2, ..settings() }, Vec::new());
    let peers: Vec<_> = (10..14).map(node).filter(|peer| *peer != small).collect();
    for (at, peer) in (1..).zip(&peers) {
        bench.learn(peer, addr(at));
    }
    let kept: Vec<_> = dialled(&bench.after(SECOND)).into_iter().map(|(peer, _)| peer).collect();
    for (at, peer) in kept.iter().enumerate() {
        bench.connect(peer, at, direct(1), Some(addr(1)));
    }
    let close = |bench: &mut Bench, peer: &NodeId, at: usize| {
        let why = Some("connection is closed".to_owned());
        bench.on(Input::Closed { peer: peer.clone(), connection: connection(at), why });
    };
    close(&mut bench, &kept[0], 0);
    let next: Vec<_> = (0..600).flat_map(|_| dialled(&bench.after(SECOND / 10))).map(|(peer, _)| peer).collect();
    assert!(next.len() == 1 && !kept.contains(&next[0]), "another one takes its place: {next:?}");
    bench.connect(&next[0], 7, direct(1), Some(addr(1)));
    close(&mut bench, &next[0], 7);
    close(&mut bench, &kept[1], 1);
    let next: Vec<_> = (0..20).flat_map(|_| dialled(&bench.after(SECOND / 10))).map(|(peer, _)| peer).collect();
    assert!(next.contains(&kept[1]), "the last one is looked for at once: {next:?}");
}

#[test]
fn a_seed_is_dialled_until_it_answers_and_then_known_by_its_peer() {
    let (small, great) = pair();
    let mut bench = Bench::with(small, settings(), vec![(addr(1), None)]);
    let seeds = |outputs: &[Output]| outputs.iter().filter(|output| matches!(output, Output::DialSeed { .. })).count();
    assert_eq!(seeds(&bench.on(Input::Tick)), 1);
    assert_eq!(seeds(&bench.after(SECOND)), 0, "one dial at a time");
    bench.on(Input::SeedFailed { addr: addr(1), why: DialFailure::NothingListens });
    assert_eq!(seeds(&bench.after(SECOND)), 1);
    bench.on(Input::SeedReached { addr: addr(1), peer: great.clone() });
    bench.connect(&great, 1, direct(1), Some(addr(1)));
    assert_eq!(seeds(&bench.after(60 * SECOND)), 0);
    bench.on(Input::Closed { peer: great.clone(), connection: connection(1), why: Some("reset".to_owned()) });
    assert_eq!(dialled(&bench.after(SECOND)), [(great, vec![addr(1)])]);
}

#[test]
fn the_number_of_configured_addresses_is_bounded() {
    let (small, _) = pair();
    let seed = |port: usize| -> Multiaddr { format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap() };
    let mut bench = Bench::with(small, settings(), (1..=SEEDS_MAX + 5).map(|port| (seed(port), None)).collect());
    bench.dialer.add_seed(bench.now, seed(60_000));
    let outputs = bench.on(Input::Tick);
    let dialled = outputs.iter().filter(|output| matches!(output, Output::DialSeed { .. })).count();
    assert_eq!(dialled, SEEDS_MAX);
}

#[test]
fn the_number_of_peers_is_bounded() {
    let (small, _) = pair();
    let mut bench = Bench::of(small);
    for number in 0..1200u32 {
        let mut secret = [9; 32];
        secret[..4].copy_from_slice(&number.to_be_bytes());
        let peer = NodeKey::from_secret(&secret).node_id();
        bench.learn(&peer, addr(1));
    }
    assert_eq!(bench.dialer.peers().len(), PEERS_MAX);
}

#[test]
fn a_new_swarm_begins_without_connections_and_with_all_addresses() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    bench.learn(&great, addr(1));
    bench.connect(&great, 1, direct(1), Some(addr(1)));
    let told = bench.dialer.restart(bench.now);
    assert!(matches!(&told[..], [Output::Tell(NetEvent::PeerDisconnected { .. })]), "{told:?}");
    assert_eq!(dialled(&bench.on(Input::Tick)), [(great, vec![addr(1)])]);
}

#[test]
fn a_peer_is_dialled_at_its_other_addresses_at_once_where_somebody_else_answered_at_one() {
    let (me, peer) = pair();
    let mut bench = Bench::of(me);
    bench.learn_from(&peer, addr(1), AddressSource::Peer, None);
    bench.learn_from(&peer, addr(2), AddressSource::Peer, None);
    assert_eq!(dialled(&bench.after(SECOND)), [(peer.clone(), vec![addr(1), addr(2)])]);
    // Whoever answers first ends the dial: the address that leads to the peer had no chance.
    let stranger = DialFailure::WrongPeer { found: node(3) };
    bench.on(Input::Failed { peer: peer.clone(), addr: addr(1), why: stranger.clone() });
    let again = bench.on(Input::DialEnded { peer: peer.clone(), why: stranger });
    assert_eq!(dialled(&again), [(peer, vec![addr(2)])]);
}

#[test]
fn a_configured_address_where_somebody_else_answers_is_left_alone_for_a_while() {
    let (me, peer) = pair();
    let mut bench = Bench::with(me, settings(), vec![(addr(1), Some(peer.clone()))]);
    bench.after(SECOND);
    bench.learn_from(&peer, addr(2), AddressSource::Peer, None);
    let stranger = DialFailure::WrongPeer { found: node(3) };
    bench.on(Input::Failed { peer: peer.clone(), addr: addr(1), why: stranger.clone() });
    let again = bench.on(Input::DialEnded { peer: peer.clone(), why: stranger });
    assert_eq!(dialled(&again), [(peer, vec![addr(2)])]);
}

#[test]
fn a_hole_is_looked_for_again_while_there_is_only_a_relay() {
    let (me, peer) = pair();
    let relay = node(9);
    let mut bench = Bench::of(me);
    bench.learn(&peer, relayed(&relay));
    bench.connect(&peer, 1, Path::Relayed { via: relay.clone() }, Some(relayed(&relay)));
    let mut tries = Vec::new();
    for second in 1..=60 {
        let dials = dialled(&bench.after(SECOND));
        if dials.iter().any(|(_, addrs)| addrs.iter().any(address::is_relayed)) {
            tries.push(second);
            bench.on(Input::DialEnded { peer: peer.clone(), why: DialFailure::Timeout });
        }
    }
    assert!(tries.len() >= 3 && tries[0] <= 5, "a new relayed connection is a new try: {tries:?}");
    let pauses: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.is_sorted(), "and they become fewer: {tries:?}");
}

#[test]
fn what_lookups_tell_is_bounded_for_all_together() {
    let mut bench = Bench::of(node(0));
    let strangers = |number: usize| {
        let secret: [u8; 32] = std::array::from_fn(|at| if at < 2 { number.to_be_bytes()[6 + at] } else { 77 });
        NodeKey::from_secret(&secret).node_id()
    };
    for number in 0..600 {
        bench.learn_from(&strangers(number), addr(1), AddressSource::Peer, None);
    }
    assert_eq!(bench.dialer.peers().len(), 512);
    assert_eq!(bench.dialer.addresses_dropped, 600 - 512);
    let own = strangers(700);
    bench.learn(&own, addr(2));
    assert!(bench.dialer.peers().contains_key(&own), "what a peer tells of itself has room all the same");
}

#[test]
fn dials_are_counted_by_where_their_addresses_are_from() {
    let (small, great) = pair();
    let mut bench = Bench::of(small);
    let ipv6: Multiaddr = "/ip6/2001:db8::1/tcp/7891".parse().unwrap();
    bench.learn(&great, addr(1));
    bench.learn(&great, ipv6.clone());
    bench.learn_from(&great, addr(2), AddressSource::Ticket, None);
    bench.learn_from(&great, addr(3), AddressSource::Peer, Some(great.clone()));
    for _ in 0..2 {
        bench.fail(&great, addr(1), DialFailure::Timeout);
    }
    bench.fail(&great, ipv6, DialFailure::NothingListens);
    bench.fail(&great, addr(2), DialFailure::Timeout);
    bench.connect(&great, 1, direct(3), Some(addr(3)));
    bench.connect(&great, 2, direct(9), None);
    let tries = bench.dialer.tries;
    assert_eq!((tries.mdns_v4, tries.mdns_v6, tries.tickets, tries.learned), (2, 1, 1, 1), "nobody dialled who came");
}
