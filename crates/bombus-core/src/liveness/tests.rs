//! What one detector does by itself; swarms of them run in `tests/simulated`.

use proptest::prelude::*;

use super::*;
use crate::identity::NodeKey;

fn id(seed: u8) -> NodeId {
    NodeKey::from_secret(&[seed; 32]).node_id()
}

fn detector() -> Detector {
    Detector::new(&id(0), BootId::new(1), DetectorConfig::default(), 7)
}

fn datagram(kind: Kind, boot: u64, news: Vec<Record>) -> Vec<u8> {
    Datagram { kind, watch: false, boot: BootId::new(boot), incarnation: 0, digest: 0, news }.encode()
}

fn from(peer: u8, bytes: Vec<u8>) -> LivenessInput {
    LivenessInput::Datagram { from: id(peer), bytes }
}

fn states(outputs: &[LivenessOutput]) -> Vec<(NodeId, PeerState)> {
    let state = |output: &LivenessOutput| match output {
        LivenessOutput::State { peer, state, .. } => Some((peer.clone(), *state)),
        _ => None,
    };
    outputs.iter().filter_map(state).collect()
}

fn sent(outputs: &[LivenessOutput]) -> Vec<(NodeId, Datagram)> {
    let send = |output: &LivenessOutput| match output {
        LivenessOutput::Send { to, bytes } => Some((to.clone(), Datagram::decode(bytes).unwrap())),
        _ => None,
    };
    outputs.iter().filter_map(send).collect()
}

fn wake(outputs: &[LivenessOutput]) -> u64 {
    let Some(LivenessOutput::WakeAt(at_ms)) = outputs.last() else { panic!("the time to wake comes last") };
    *at_ms
}

/// Lets time pass without any word from anybody, and returns all outputs.
fn silence(detector: &mut Detector, from_ms: u64, until_ms: u64) -> Vec<(u64, LivenessOutput)> {
    let mut all = Vec::new();
    let mut now_ms = from_ms;
    while now_ms <= until_ms {
        let outputs = detector.on(now_ms, LivenessInput::Tick);
        let next_ms = wake(&outputs);
        assert!(next_ms > now_ms);
        all.extend(outputs.into_iter().map(|output| (now_ms, output)));
        now_ms = next_ms;
    }
    all
}

#[test]
fn a_silent_peer_becomes_suspect_and_then_gone_by_the_documented_times() {
    let mut detector = detector();
    let outputs = detector.on(10_000, LivenessInput::Connected(id(1)));
    assert_eq!(states(&outputs), [(id(1), PeerState::Alive)]);
    let told: Vec<_> = silence(&mut detector, wake(&outputs), 30_000)
        .into_iter()
        .filter_map(|(at_ms, output)| match output {
            LivenessOutput::State { state, .. } => Some((at_ms, state)),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(11_400, PeerState::Suspect), (17_900, PeerState::Gone)]);
}

#[test]
fn bytes_that_cannot_be_read_show_that_their_sender_lives() {
    let mut detector = detector();
    let mut now_ms = 0;
    detector.on(now_ms, LivenessInput::Connected(id(1)));
    for _ in 0..100 {
        now_ms += 300;
        let outputs = detector.on(now_ms, from(1, vec![200, 1, 2, 3]));
        assert!(!states(&outputs).iter().any(|(_, state)| *state != PeerState::Alive));
    }
    assert_eq!(detector.state(&id(1)), Some(PeerState::Alive));
}

#[test]
fn strangers_are_neither_answered_nor_believed() {
    let mut detector = detector();
    detector.on(0, LivenessInput::Connected(id(1)));
    let gone = Record { key: id(1).public_key(), boot: BootId::new(5), incarnation: 9, standing: Standing::Left };
    let outputs = detector.on(5, from(2, datagram(Kind::Ping, 3, vec![gone])));
    assert_eq!((sent(&outputs), states(&outputs)), (Vec::new(), Vec::new()));
    assert_eq!(detector.state(&id(2)), None);
}

#[test]
fn what_is_said_about_this_node_is_contradicted_to_all() {
    let mut detector = detector();
    for peer in 1..=3 {
        detector.on(0, LivenessInput::Connected(id(peer)));
    }
    let accusation =
        Record { key: id(0).public_key(), boot: BootId::new(1), incarnation: 4, standing: Standing::Suspect };
    let outputs = detector.on(5, from(2, datagram(Kind::News, 3, vec![accusation])));
    let contradicted: BTreeSet<NodeId> = sent(&outputs)
        .into_iter()
        .filter(|(_, datagram)| {
            datagram.news.iter().any(|record| record.incarnation == 5 && record.key == accusation.key)
        })
        .map(|(to, _)| to)
        .collect();
    assert_eq!(contradicted, (1..=3).map(id).collect());
}

#[test]
fn bad_news_about_a_peer_that_is_heard_is_passed_to_it_and_not_believed() {
    let mut detector = detector();
    detector.on(0, LivenessInput::Connected(id(1)));
    detector.on(0, LivenessInput::Connected(id(2)));
    detector.on(5, from(1, datagram(Kind::Ack, 11, Vec::new())));
    let gone = Record { key: id(1).public_key(), boot: BootId::new(11), incarnation: 0, standing: Standing::Gone };
    let outputs = detector.on(10, from(2, datagram(Kind::News, 12, vec![gone])));
    assert_eq!(states(&outputs), []);
    assert!(sent(&outputs).iter().any(|(to, datagram)| *to == id(1) && datagram.news.contains(&gone)));
    // Who was not heard for a second is suspect first, even if it is said to be gone.
    let outputs = detector.on(1_200, from(2, datagram(Kind::News, 12, vec![gone])));
    assert_eq!(states(&outputs), [(id(1), PeerState::Suspect)]);
}

#[test]
fn after_a_standstill_of_its_own_a_node_blames_nobody() {
    let mut detector = detector();
    detector.on(0, LivenessInput::Connected(id(1)));
    let outputs = detector.on(60_000, LivenessInput::Tick);
    assert_eq!(states(&outputs), []);
    let later = silence(&mut detector, wake(&outputs), 60_850);
    assert!(later.iter().all(|(_, output)| !matches!(output, LivenessOutput::State { .. })));
}

#[test]
fn having_said_goodbye_a_node_is_silent() {
    let mut detector = detector();
    detector.on(0, LivenessInput::Connected(id(1)));
    let outputs = detector.on(10, LivenessInput::Leave);
    assert!(matches!(&outputs[..], [LivenessOutput::Send { .. }]));
    assert_eq!(sent(&outputs)[0].1.kind, Kind::Leave);
    assert_eq!(detector.on(500, from(1, datagram(Kind::Ping, 3, Vec::new()))), []);
}

#[test]
fn a_goodbye_of_an_earlier_run_says_nothing_about_the_present_one() {
    let mut detector = detector();
    detector.on(0, LivenessInput::Connected(id(1)));
    detector.on(5, from(1, datagram(Kind::Ping, 11, Vec::new())));
    detector.on(10, from(1, datagram(Kind::Ping, 12, Vec::new())));
    let outputs = detector.on(15, from(1, datagram(Kind::Leave, 11, Vec::new())));
    assert_eq!(states(&outputs), []);
    let outputs = detector.on(20, from(1, datagram(Kind::Leave, 12, Vec::new())));
    assert_eq!(states(&outputs), [(id(1), PeerState::Gone)]);
}

#[test]
fn the_table_of_members_is_bounded_and_the_gone_make_room() {
    let config = DetectorConfig { members_max: 4, ..DetectorConfig::default() };
    let mut detector = Detector::new(&id(0), BootId::new(1), config, 7);
    for peer in 1..=3 {
        detector.on(0, LivenessInput::Connected(id(peer)));
    }
    let alive = |peer: u8| Record {
        key: id(peer).public_key(),
        boot: BootId::new(5),
        incarnation: 0,
        standing: Standing::Alive,
    };
    detector.on(5, from(1, datagram(Kind::News, 3, (10..40).map(alive).collect())));
    assert_eq!(detector.peers().count(), 4);
    detector.on(10, LivenessInput::Goodbye(id(10)));
    let outputs = detector.on(15, LivenessInput::Connected(id(4)));
    assert_eq!(states(&outputs), [(id(4), PeerState::Alive)]);
    assert_eq!((detector.peers().count(), detector.state(&id(10))), (4, None));
}

#[test]
fn keys_that_are_no_keys_are_not_taken_up() {
    let mut detector = detector();
    detector.on(0, LivenessInput::Connected(id(1)));
    let records = (0..=255_u8).map(|byte| Record {
        key: [byte; 32],
        boot: BootId::new(5),
        incarnation: 0,
        standing: Standing::Alive,
    });
    for record in records {
        detector.on(5, from(1, datagram(Kind::News, 3, vec![record])));
    }
    assert!(detector.peers().all(|(peer, _)| NodeId::parse(peer.as_str()).is_ok()));
}

#[test]
fn a_peer_that_nobody_watches_any_more_is_left_to_its_neighbours() {
    let mut detector = detector();
    let outputs: Vec<_> = (1..=4).flat_map(|peer| detector.on(1_000, LivenessInput::Connected(id(peer)))).collect();
    let pinged = |outputs: &[LivenessOutput]| -> BTreeSet<NodeId> {
        sent(outputs).into_iter().filter(|(_, sent)| sent.kind == Kind::Ping).map(|(to, _)| to).collect()
    };
    assert_eq!(pinged(&outputs).len(), 4, "whoever is connected is greeted");
    let answered = |detector: &mut Detector, now_ms: u64| {
        for peer in 1..=4 {
            detector.on(now_ms, from(peer, datagram(Kind::Ack, u64::from(peer), Vec::new())));
        }
    };
    // How often each is pinged in ten rounds, in none of which chance decides.
    let rounds = |detector: &mut Detector, begin_ms: u64| {
        let mut counts: BTreeMap<NodeId, u32> = BTreeMap::new();
        let mut now_ms = begin_ms;
        while now_ms < begin_ms + 4_000 {
            let outputs = detector.on(now_ms, LivenessInput::Tick);
            answered(detector, now_ms);
            for peer in pinged(&outputs) {
                *counts.entry(peer).or_default() += 1;
            }
            now_ms = wake(&outputs).max(now_ms + 1);
        }
        counts
    };
    let before = rounds(&mut detector, 1_100);
    let neighbour = before.iter().max_by_key(|(_, count)| **count).map(|(peer, _)| peer.clone()).unwrap();
    let watched = (1..=4).map(id).find(|peer| *peer != neighbour).unwrap();
    detector.on(5_200, LivenessInput::Watch(watched.clone()));
    let during = rounds(&mut detector, 5_300);
    detector.on(9_400, LivenessInput::Unwatch(watched.clone()));
    let after = rounds(&mut detector, 9_500);
    let of = |counts: &BTreeMap<NodeId, u32>| counts.get(&watched).copied().unwrap_or(0);
    assert!(of(&before) <= 1 && of(&during) >= 8 && of(&after) <= 1, "{before:?} {during:?} {after:?}");
}

fn inputs() -> impl Strategy<Value = LivenessInput> {
    let standing =
        prop_oneof![Just(Standing::Alive), Just(Standing::Suspect), Just(Standing::Gone), Just(Standing::Left)];
    let record = (0..6_u8, 0..3_u64, prop_oneof![0..4_u32, Just(u32::MAX)], standing).prop_map(
        |(peer, boot, incarnation, standing)| Record {
            key: id(peer).public_key(),
            boot: BootId::new(boot),
            incarnation,
            standing,
        },
    );
    let kind = prop_oneof![
        Just(Kind::Ping),
        Just(Kind::Ack),
        Just(Kind::News),
        (0..6_u8).prop_map(|peer| Kind::Ask(id(peer).public_key())),
        (0..6_u8).prop_map(|peer| Kind::Vouch(id(peer).public_key())),
        Just(Kind::Leave),
    ];
    let heard = (0..6_u8, kind, any::<bool>(), 0..3_u64, 0..4_u32, prop::collection::vec(record, 0..4)).prop_map(
        |(peer, kind, watch, boot, incarnation, news)| {
            let datagram = Datagram { kind, watch, boot: BootId::new(boot), incarnation, digest: 0, news };
            LivenessInput::Datagram { from: id(peer), bytes: datagram.encode() }
        },
    );
    prop_oneof![
        4 => heard,
        2 => (0..6_u8).prop_map(|peer| LivenessInput::Connected(id(peer))),
        1 => (0..6_u8).prop_map(|peer| LivenessInput::Disconnected(id(peer))),
        1 => (0..6_u8).prop_map(|peer| LivenessInput::Released(id(peer))),
        1 => (0..6_u8).prop_map(|peer| LivenessInput::Goodbye(id(peer))),
        1 => (0..6_u8).prop_map(|peer| LivenessInput::Watch(id(peer))),
        1 => (0..6_u8).prop_map(|peer| LivenessInput::Unwatch(id(peer))),
        4 => Just(LivenessInput::Tick),
        1 => (0..6_u8, prop::collection::vec(any::<u8>(), 0..60))
            .prop_map(|(peer, bytes)| LivenessInput::Datagram { from: id(peer), bytes }),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_it_wakes_later_sends_what_fits_and_repeats_itself_exactly(
        steps in prop::collection::vec((0..1_500_u64, inputs()), 0..120),
    ) {
        let (mut one, mut two) = (detector(), detector());
        let mut now_ms = 0;
        let mut wake_ms = u64::MAX;
        for (wait_ms, input) in steps {
            // Mostly on time, so that silence has its consequences.
            let until_ms = now_ms + wait_ms;
            while wake_ms < until_ms && wait_ms < 1_200 {
                now_ms = wake_ms;
                let outputs = one.on(now_ms, LivenessInput::Tick);
                prop_assert_eq!(&outputs, &two.on(now_ms, LivenessInput::Tick));
                wake_ms = wake(&outputs);
                prop_assert!(wake_ms > now_ms);
            }
            now_ms = until_ms;
            let outputs = one.on(now_ms, input.clone());
            prop_assert_eq!(&outputs, &two.on(now_ms, input));
            wake_ms = wake(&outputs);
            prop_assert!(wake_ms > now_ms);
            for (to, _) in sent(&outputs) {
                prop_assert_ne!(to, id(0));
            }
        }
        prop_assert_eq!(one.peers().find(|(peer, _)| **peer == id(0)), None);
    }
}
