//! Tests of the view.

use std::collections::BTreeMap;

use bombus_core::identity::{BootId, NodeKey};
use bombus_core::topics::{PresencePing, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::seal::SealKey;

fn peer(number: u16) -> NodeId {
    let mut secret = [7; 32];
    secret[..2].copy_from_slice(&number.to_be_bytes());
    NodeKey::from_secret(&secret).node_id()
}

fn at(ms: u64) -> Moment {
    Moment { ms, unix_ms: 1_700_000_000_000 + ms }
}

fn view() -> View {
    View::new(peer(0), ViewLimits::default())
}

fn direct(addr: &str) -> PeerPath {
    PeerPath::Direct { addr: addr.to_owned() }
}

fn connected(number: u16) -> ViewInput {
    ViewInput::Connected { peer: peer(number), path: direct("/ip4/192.0.2.1/tcp/7891") }
}

fn capabilities(number: u16, ms: i64, change: impl FnOnce(&mut Capabilities)) -> Box<TopicMessage> {
    let mut told = Capabilities::new(peer(number).to_string(), Timestamp::from_unix_ms(ms));
    told.name = Some(format!("node-{number}"));
    told.boot = Some(BootId::new(1));
    change(&mut told);
    Box::new(TopicMessage::Capabilities(told))
}

fn told(number: u16, ms: i64, change: impl FnOnce(&mut Capabilities)) -> ViewInput {
    ViewInput::Message { peer: peer(number), message: capabilities(number, ms, change), skew_ms: None }
}

fn ping(number: u16, boot: u64) -> ViewInput {
    let message = PresencePing {
        node_id: peer(number).to_string(),
        name: format!("node-{number}"),
        timestamp: Timestamp::from_unix_ms(0),
        version: Some("0.1.0".to_owned()),
        boot: Some(BootId::new(boot)),
    };
    ViewInput::Message { peer: peer(number), message: Box::new(TopicMessage::PresencePing(message)), skew_ms: None }
}

fn judged(number: u16, state: PeerState) -> ViewInput {
    ViewInput::Judged { peer: peer(number), state, reason: "as the test wants" }
}

const TICK: ViewInput = ViewInput::Tick { silent_after_ms: 60_000 };

fn kinds(changes: &[Change]) -> Vec<&'static str> {
    let kind = |change: &Change| match change {
        Change::Joined { .. } => "joined",
        Change::Left { .. } => "left",
        Change::Suspected { .. } => "suspect",
        Change::Updated { .. } => "updated",
    };
    changes.iter().map(kind).collect()
}

fn state(view: &View, number: u16) -> PeerState {
    view.peer(&peer(number)).expect("it stands in the view").state
}

#[test]
fn a_peer_is_announced_with_its_name_as_soon_as_it_has_told_it() {
    let mut view = view();
    assert!(view.on(at(0), connected(1)).is_empty());
    let hello = ViewInput::Hello { peer: peer(1), message: capabilities(1, 0, |_| {}), skew_ms: None };
    let changes = view.on(at(20), hello);
    assert_eq!(changes, [Change::Joined { peer: peer(1), name: Some("node-1".to_owned()) }]);
    let shown = view.peer(&peer(1)).unwrap();
    assert!(shown.complete && shown.state == PeerState::Alive);
    assert_eq!((shown.name.as_str(), shown.ip.as_deref()), ("node-1", Some("192.0.2.1")));
}

#[test]
fn a_peer_that_never_tells_its_name_is_announced_without() {
    let mut view = view();
    view.on(at(0), connected(1));
    assert!(view.on(at(999), TICK).is_empty());
    assert_eq!(view.on(at(1_000), TICK), [Change::Joined { peer: peer(1), name: None }]);
    assert!(peer(1).as_str().ends_with(&view.peer(&peer(1)).unwrap().name));
}

#[test]
fn the_detector_decides_and_a_refuted_suspicion_is_told() {
    let mut view = view();
    view.on(at(0), connected(1));
    view.on(at(0), ping(1, 1));
    assert_eq!(kinds(&view.on(at(2_000), judged(1, PeerState::Suspect))), ["suspect"]);
    view.on(at(2_100), ping(1, 1));
    assert_eq!(state(&view, 1), PeerState::Suspect, "what others pass on refutes nothing");
    let changes = view.on(at(3_000), judged(1, PeerState::Alive));
    assert!(matches!(&changes[..], [Change::Updated { fields, .. }] if fields == &["state"]));
    view.on(at(5_000), judged(1, PeerState::Suspect));
    let changes = view.on(at(9_000), judged(1, PeerState::Gone));
    assert!(matches!(&changes[..], [Change::Left { reason: "as the test wants", .. }]));
    assert_eq!(view.nodes(), 1);
}

#[test]
fn a_late_message_does_not_bring_the_gone_back_but_a_new_one_and_a_connection_do() {
    // The peer's clock is ahead of this one.
    let written = |ms: i64| told(1, 3_600_000 + ms, |_| {});
    let mut view = view();
    view.on(at(300), written(0));
    view.on(at(600), written(590));
    view.on(at(1_000), judged(1, PeerState::Gone));
    for came_ms in [1_100, 4_000, 90_000] {
        assert!(view.on(at(came_ms), written(900)).is_empty(), "it was on its way when the peer went");
    }
    assert_eq!(kinds(&view.on(at(90_100), written(1_100))), ["joined"]);
    view.on(at(91_000), judged(1, PeerState::Gone));
    assert_eq!(kinds(&view.on(at(91_100), connected(1))), ["joined"]);
}

#[test]
fn a_restarted_process_leaves_and_joins() {
    let mut view = view();
    view.on(at(0), connected(1));
    view.on(at(10), ping(1, 1));
    let changes = view.on(at(500), ping(1, 2));
    assert!(matches!(&changes[..], [Change::Left { reason: "restarted", .. }, Change::Joined { .. }]), "{changes:?}");
}

#[test]
fn load_is_shown_and_no_event_but_models_are() {
    let mut view = view();
    view.on(at(0), told(1, 0, |_| {}));
    let revision = view.revision();
    let changes = view.on(at(1_000), told(1, 1_000, |told| (told.cpu, told.running) = (Some(80.0), Some(3))));
    assert!(changes.is_empty() && view.revision() > revision);
    assert_eq!(view.peer(&peer(1)).unwrap().running, Some(3));
    let changes = view.on(at(2_000), told(1, 2_000, |told| told.models.push("m".to_owned())));
    assert!(matches!(&changes[..], [Change::Updated { fields, .. }] if fields == &["models"]), "{changes:?}");
}

#[test]
fn an_older_message_does_not_undo_a_newer_one() {
    let mut view = view();
    view.on(at(0), told(1, 10_000, |told| told.models.push("new".to_owned())));
    view.on(at(1), told(1, 9_000, |told| told.models.push("old".to_owned())));
    assert_eq!(view.peer(&peer(1)).unwrap().models, ["new"]);
    view.on(at(2), told(1, 10_000 - 3_600_000, |told| told.models.push("clock set back".to_owned())));
    assert_eq!(view.peer(&peer(1)).unwrap().models, ["clock set back"]);
}

#[test]
fn a_clock_that_is_off_is_shown_and_what_it_says_counts() {
    let mut view = view();
    view.on(at(0), connected(1));
    let hello =
        ViewInput::Hello { peer: peer(1), message: capabilities(1, 3_600_000, |_| {}), skew_ms: Some(3_600_000) };
    view.on(at(1), hello);
    assert_eq!(view.peer(&peer(1)).unwrap().clock_skew_ms, Some(3_600_000));
    assert!(view.on(at(2), ViewInput::Skewed { peer: peer(2), skew_ms: 1 }).is_empty());
    assert!(view.peer(&peer(2)).is_none(), "a message that does not count brings nobody in");
    let changes = view.on(at(60_000), told(1, 60_000, |_| {}));
    assert!(matches!(&changes[..], [Change::Updated { fields, .. }] if fields == &["clock_skew_ms"]), "{changes:?}");
    assert_eq!(view.peer(&peer(1)).unwrap().clock_skew_ms, None);
}

#[test]
fn peers_that_the_detector_does_not_know_go_by_disconnection_or_silence() {
    let mut view = view();
    view.on(at(0), connected(1));
    view.on(at(0), ping(1, 1));
    assert!(view.on(at(90_000), TICK).is_empty(), "a connection that stands is enough");
    assert_eq!(kinds(&view.on(at(90_000), ViewInput::Disconnected { peer: peer(1) })), ["suspect", "updated"]);
    assert!(view.on(at(99_999), TICK).is_empty());
    assert!(matches!(&view.on(at(100_000), TICK)[..], [Change::Left { reason: "disconnected", .. }]));

    view.on(at(100_000), ping(2, 1));
    assert!(view.on(at(159_999), TICK).is_empty());
    assert!(matches!(&view.on(at(160_000), TICK)[..], [Change::Left { reason: "silent", .. }]));
}

#[test]
fn a_key_that_texts_are_sealed_to_counts_once_the_peer_has_signed_it() {
    let key = |number| SealKey::from_secret(&[number; 32]).public();
    let node = |number: u16| {
        let mut secret = [7; 32];
        secret[..2].copy_from_slice(&number.to_be_bytes());
        NodeKey::from_secret(&secret)
    };
    let mut view = view();
    view.on(at(0), told(1, 0, |_| {}));
    assert_eq!(view.seal_key(&peer(1)), None);
    view.on(at(1), told(1, 1, |told| told.seal_key = Some(key(1).claimed_by(&node(1)))));
    assert_eq!(view.seal_key(&peer(1)), Some(key(1)));
    view.on(at(2), ping(1, 1));
    assert_eq!(view.seal_key(&peer(1)), Some(key(1)), "a message that says nothing of it changes nothing");
    view.on(at(3), told(1, 3, |told| told.seal_key = Some(key(2).claimed_by(&node(2)))));
    assert_eq!(view.seal_key(&peer(1)), None, "signed by another node");
    view.on(at(4), told(1, 4, |told| told.seal_key = Some(key(3).claimed_by(&node(1)))));
    assert_eq!(view.seal_key(&peer(1)), Some(key(3)), "a new key takes the place of the old one");
}

#[test]
fn the_gone_are_forgotten_after_ten_minutes() {
    let mut view = view();
    view.on(at(0), ping(1, 1));
    view.on(at(1_000), judged(1, PeerState::Gone));
    view.on(at(600_999), TICK);
    assert_eq!(view.peers().len(), 1);
    view.on(at(601_000), TICK);
    assert!(view.peers().is_empty());
}

#[test]
fn a_list_of_links_that_is_a_little_old_contradicts_no_event() {
    let mut view = view();
    let links = |numbers: &[u16]| {
        let link =
            |number: &u16| Link { peer: peer(*number), path: direct("/ip4/192.0.2.1/tcp/1"), latency_ms: Some(1.5) };
        ViewInput::Links(numbers.iter().map(link).collect())
    };
    view.on(at(0), connected(1));
    view.on(at(200), links(&[]));
    assert!(view.peer(&peer(1)).unwrap().path.is_some(), "the list was made before the connection");
    view.on(at(300), links(&[1]));
    assert_eq!(view.peer(&peer(1)).unwrap().latency_ms, Some(1.5));
    view.on(at(5_000), ViewInput::Disconnected { peer: peer(1) });
    view.on(at(5_200), links(&[1]));
    assert!(view.peer(&peer(1)).unwrap().path.is_none(), "the list was made before the end");
    view.on(at(7_000), links(&[1]));
    view.on(at(9_000), links(&[]));
    assert!(view.peer(&peer(1)).unwrap().path.is_none(), "an end that nobody saw shows in the list");
}

#[test]
fn who_finds_the_view_full_takes_the_place_of_the_least_needed() {
    let limits = ViewLimits { peers_max: 3, ..ViewLimits::default() };
    let mut view = View::new(peer(0), limits);
    view.on(at(0), connected(1));
    view.on(at(0), ping(1, 1));
    view.on(at(10), ping(2, 1));
    view.on(at(20), ping(3, 1));
    assert!(view.on(at(30), ping(4, 1)).is_empty());
    assert_eq!((view.refused(), view.peer(&peer(4)).is_none()), (1, true), "who is only heard of stays out");
    let changes = view.on(at(40), connected(5));
    assert!(
        matches!(&changes[..], [Change::Left { peer: left, reason: "forgotten", .. }] if *left == peer(2)),
        "{changes:?}"
    );
    view.on(at(50), judged(3, PeerState::Gone));
    assert_eq!(kinds(&view.on(at(60), ping(6, 1))), ["joined"], "who is gone makes room for anybody");
    let there: Vec<bool> = (1..=6).map(|number| view.peer(&peer(number)).is_some()).collect();
    assert_eq!(there, [true, false, false, false, true, true]);
}

#[test]
fn nobody_of_the_swarm_before_is_a_peer() {
    let mut view = view();
    view.on(at(0), ping(1, 1));
    let changes = view.on(at(1), ViewInput::SwarmChanged);
    assert!(matches!(&changes[..], [Change::Left { reason: "this node is in another swarm", .. }]));
    assert!(view.peers().is_empty());
}

fn any_input() -> impl Strategy<Value = ViewInput> {
    let number = || 0..6_u16;
    let states = prop_oneof![Just(PeerState::Alive), Just(PeerState::Suspect), Just(PeerState::Gone)];
    prop_oneof![
        number().prop_map(connected),
        number().prop_map(|number| ViewInput::Disconnected { peer: peer(number) }),
        prop::collection::btree_set(number(), 0..4).prop_map(|numbers| {
            let link = |number| Link { peer: peer(number), path: direct("/ip4/192.0.2.1/tcp/1"), latency_ms: None };
            ViewInput::Links(numbers.into_iter().map(link).collect())
        }),
        number().prop_map(|number| ViewInput::Heard { peer: peer(number) }),
        (number(), 0..3_u64).prop_map(|(number, boot)| ping(number, boot)),
        (number(), 0..200_000_i64).prop_map(|(number, ms)| told(number, ms, |_| {})),
        (number(), any::<bool>()).prop_map(|(number, skewed)| ViewInput::Hello {
            peer: peer(number),
            message: capabilities(number, 0, |_| {}),
            skew_ms: skewed.then_some(3_600_000),
        }),
        (number(), states).prop_map(|(number, state)| judged(number, state)),
        Just(ViewInput::Unjudged),
        (number(), any::<i64>()).prop_map(|(number, skew_ms)| ViewInput::Skewed { peer: peer(number), skew_ms }),
        Just(ViewInput::SwarmChanged),
        Just(TICK),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_view_is_bounded_and_its_changes_tell_the_truth(
        inputs in prop::collection::vec((0..20_000_u64, any_input()), 0..120),
    ) {
        let limits = ViewLimits { peers_max: 3, ..ViewLimits::default() };
        let mut view = View::new(peer(0), limits.clone());
        let mut followed: BTreeMap<NodeId, PeerState> = BTreeMap::new();
        let mut now_ms = 0;
        for (passed_ms, input) in inputs {
            now_ms += passed_ms;
            let revision = view.revision();
            let was_tick = matches!(input, ViewInput::Tick { .. });
            let shown_before = view.peers();
            let changes = view.on(at(now_ms), input);
            for change in &changes {
                match change {
                    Change::Joined { peer, .. } => {
                        prop_assert!(followed.insert(peer.clone(), PeerState::Alive).is_none(), "joined twice");
                    }
                    Change::Left { peer, .. } => prop_assert!(followed.remove(peer).is_some(), "left without being there"),
                    Change::Suspected { peer, .. } => {
                        prop_assert_eq!(followed.insert(peer.clone(), PeerState::Suspect), Some(PeerState::Alive));
                    }
                    Change::Updated { peer, fields, .. } => {
                        prop_assert!(followed.contains_key(peer) && !fields.is_empty());
                        if fields.contains(&"state") {
                            followed.insert(peer.clone(), PeerState::Alive);
                        }
                    }
                }
            }
            let peers = view.peers();
            prop_assert!(peers.len() <= limits.peers_max);
            prop_assert!(peers.iter().all(|shown| shown.node_id != peer(0)), "this node is no peer of itself");
            // Who follows the changes knows what the view shows of those that are announced.
            for shown in &peers {
                let known = followed.get(&shown.node_id);
                prop_assert!(known.is_none_or(|known| *known == shown.state), "{known:?} {shown:?}");
            }
            for peer in followed.keys() {
                prop_assert!(peers.iter().any(|shown| shown.node_id == *peer));
            }
            prop_assert_eq!(view.nodes(), 1 + peers.iter().filter(|shown| shown.state != PeerState::Gone).count());
            let without_times = |peers: &[PeerView]| -> Vec<PeerView> {
                peers.iter().map(|shown| PeerView { last_seen: 0, ..shown.clone() }).collect()
            };
            if without_times(&shown_before) != without_times(&peers) {
                prop_assert!(view.revision() > revision, "what is shown has changed, and nobody is told");
            }
            if was_tick {
                let kept_ms = limits.forget_after_ms;
                let forgotten = |shown: &PeerView| shown.state == PeerState::Gone && shown.since * 1_000 + kept_ms + 1_000 <= at(now_ms).unix_ms;
                prop_assert!(!peers.iter().any(forgotten));
            }
        }
    }
}

#[test]
fn the_connection_of_a_frozen_peer_does_not_bring_it_back() {
    let mut view = view();
    let links = || {
        let link = Link { peer: peer(1), path: direct("/ip4/192.0.2.1/tcp/7891"), latency_ms: None };
        ViewInput::Links(vec![link])
    };
    view.on(at(0), connected(1));
    view.on(at(1), told(1, 0, |_| {}));
    view.on(at(9_000), judged(1, PeerState::Gone));
    let another_way = ViewInput::PathChanged { peer: peer(1), path: direct("/ip4/192.0.2.9/tcp/7891") };
    for (ms, input) in [(10_000, links()), (20_000, another_way), (30_000, links())] {
        view.on(at(ms), input);
        assert_eq!(view.peer(&peer(1)).unwrap().state, PeerState::Gone);
    }
    view.on(at(40_000), judged(1, PeerState::Alive));
    view.on(at(41_000), links());
    let back = view.peer(&peer(1)).unwrap();
    assert!(back.state == PeerState::Alive && back.path.is_some());
}
