//! Tests with several whole nodes in one process.

mod answers;
mod db;
mod harness;
mod store;
mod tasks;
mod weights;

use std::time::{Duration, Instant};

use bombus_core::capability::{Hardware, NodeTier};
use bombus_core::liveness::{DetectorConfig, PeerState};
use bombus_core::topics::cadence::CadenceConfig;
use bombus_core::topics::{PresencePing, TaskClaim, TaskHelpRequest, Timestamp, Topic, TopicMessage};
use futures::FutureExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use self::harness::{LIMIT, Mesh, Node, event, member_of, node_id, until_it_shows};
use crate::{EventItem, MessageCounts, SwarmConfig, SwarmHandle, WallClock, hello, liveness};

/// A detector that is ten times as fast.
fn hasty() -> SwarmConfig {
    let detector = DetectorConfig {
        period_ms: 100,
        doubt_ms: 300,
        verify_ms: 100,
        lost_verify_ms: 100,
        suspect_ms: 700,
        confirm_ms: 250,
        ..DetectorConfig::default()
    };
    SwarmConfig { detector, ..SwarmConfig::default() }
}

fn counts_of(swarm: &SwarmHandle, number: u8) -> MessageCounts {
    let report = swarm.report();
    let found = report.peers.into_iter().find(|peer| peer.node_id == node_id(number));
    found.map(|peer| peer.messages).unwrap_or_default()
}

fn request(capability: &str) -> TaskHelpRequest {
    TaskHelpRequest {
        task_id: "#42".to_owned(),
        from_node: String::new(),
        reason: "missing capability".to_owned(),
        requested_capability: capability.to_owned(),
        timestamp: Timestamp::from_unix_ms(0),
    }
}

#[tokio::test]
async fn three_nodes_see_each_other() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a.mesh]).await;
    b.facts.send_modify(|facts| facts.hardware = Hardware { cpu_threads: 8, ..Hardware::default() });
    let c = Node::start(3, &[&a.mesh, &b.mesh]).await;
    for (own, peer) in [(&a, &b), (&a, &c), (&b, &a), (&b, &c), (&c, &a), (&c, &b)] {
        own.sees_whole(&peer.id()).await;
    }
    assert_eq!([&a, &b, &c].map(|node| node.swarm.nodes()), [3; 3]);
    let shown = c.sees(&b.id(), |b| b.node_tier == Some(NodeTier::Light) && b.latency_ms.is_some()).await;
    assert_eq!((shown.name.as_str(), shown.version.as_deref(), shown.port), ("node-2", Some("1.2.3"), Some(7_002)));
    assert_eq!((shown.ip.as_deref(), shown.slots), (Some("127.0.0.1"), Some(2)));
    assert_eq!(
        (shown.models, shown.capabilities),
        (vec!["smollm".to_owned()], c.sees_whole(&b.id()).await.capabilities)
    );
    let own = b.swarm.own();
    assert_eq!((own.name.as_str(), own.node_tier, own.path), ("node-2", Some(NodeTier::Light), None));
}

#[tokio::test]
async fn the_first_word_alone_makes_a_peer_known() {
    let never =
        CadenceConfig { presence_ms_min: 3_600_000, capabilities_ms_min: 3_600_000, ..CadenceConfig::default() };
    let config = || SwarmConfig { cadence: never, ..SwarmConfig::default() };
    let a = Node::start_with(1, &[], config()).await;
    let mut events = a.swarm.events(None);
    let b = Node::start_with(2, &[&a.mesh], config()).await;
    let joined = event(&mut events, "peer:joined", &b.id()).await;
    assert_eq!(joined.data["name"], "node-2");
    assert!(a.sees_whole(&b.id()).await.models.contains(&"smollm".to_owned()));
    assert_eq!(a.swarm.report().hello.exchanged, 1);
}

#[tokio::test]
async fn a_goodbye_is_seen_at_once() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a.mesh]).await;
    let (id, mut events) = (b.id(), a.swarm.events(None));
    a.sees_whole(&id).await;
    b.sees_whole(&a.id()).await;
    until_it_shows(|| async {}, || a.swarm.report().liveness.received > 0 && b.swarm.report().liveness.received > 0)
        .await;
    b.stop().await;
    let left = event(&mut events, "peer:left", &id).await;
    assert_eq!(left.data["reason"], "it said goodbye", "nobody waited until it was missed");
    assert_eq!(left.data["name"], "node-2");
    assert_eq!(a.swarm.peer(&id).unwrap().state, PeerState::Gone, "it is still shown");
}

#[tokio::test]
async fn a_crash_is_suspected_and_then_believed_while_a_peer_of_another_program_is_left_alone() {
    let a = Node::start_with(1, &[], hasty()).await;
    let mut events = a.swarm.events(None);
    let foreign = Mesh::start(2, &[&a.mesh]).await;
    let c = Node::start_with(3, &[&a.mesh], hasty()).await;
    let joined = event(&mut events, "peer:joined", foreign.net.node_id()).await;
    assert!(joined.data["name"].is_null(), "it has told no name");
    a.sees_whole(&c.id()).await;
    until_it_shows(|| async {}, || a.swarm.report().liveness.received > 0).await;
    let (id, mut events) = (c.id(), a.swarm.events(Some(joined.id)));
    c.crash().await;
    event(&mut events, "peer:suspect", &id).await;
    event(&mut events, "peer:left", &id).await;
    let shown = a.swarm.peer(foreign.net.node_id()).unwrap();
    assert_eq!((shown.state, shown.complete), (PeerState::Alive, false), "who never took part is not missed");
    let foreign_id = foreign.net.node_id().clone();
    foreign.crash().await;
    event(&mut events, "peer:suspect", &foreign_id).await;
}

#[tokio::test]
async fn a_change_of_what_a_node_can_do_is_seen_by_its_peers() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a.mesh]).await;
    a.sees_whole(&b.id()).await;
    let mut events = a.swarm.events(None);
    b.facts.send_modify(|facts| facts.models.push("new-model".to_owned()));
    a.sees(&b.id(), |peer| peer.models.contains(&"new-model".to_owned())).await;
    let updated = event(&mut events, "peer:updated", &b.id()).await;
    assert_eq!((&updated.data["fields"], &updated.data["state"]), (&json!(["models"]), &json!("alive")));
}

#[tokio::test]
async fn a_request_for_help_is_answered_by_those_that_have_what_is_asked_for() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a.mesh]).await;
    let c = Node::start(3, &[&a.mesh, &b.mesh]).await;
    b.facts.send_modify(|facts| facts.installed.push("claude".to_owned()));
    a.sees(&b.id(), |peer| peer.installed.contains(&"claude".to_owned())).await;
    a.sees_whole(&c.id()).await;

    let began = Instant::now();
    let answers = a.swarm.ask_help(request("claude-cli"), LIMIT).await.unwrap();
    let from: Vec<_> = answers.iter().map(|answer| answer.from_node.clone()).collect();
    assert_eq!(from, [b.id().to_string()]);
    assert_eq!((answers[0].can_help, answers[0].eta_seconds, &answers[0].task_id[..]), (true, Some(0), "#42"));
    assert_eq!(answers[0].capabilities, ["claude"]);
    assert!(began.elapsed() < LIMIT, "it does not wait for those that cannot help");
    assert_eq!((b.swarm.report().help_answered, c.swarm.report().help_answered), (1, 0));

    for hinder in [|facts: &mut crate::OwnFacts| facts.running = 2, |facts: &mut crate::OwnFacts| facts.draining = true]
    {
        b.facts.send_modify(|facts| (facts.running, facts.draining) = (0, false));
        b.facts.send_modify(hinder);
        let answers = a.swarm.ask_help(request("claude"), Duration::from_millis(700)).await.unwrap();
        assert_eq!(answers, [], "who is full or draining takes nothing on");
    }
}

#[tokio::test]
async fn messages_are_handed_out_and_what_is_not_as_it_should_be_is_not() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a.mesh]).await;
    a.sees_whole(&b.id()).await;
    let mut claims = a.swarm.messages(Topic::TaskClaim);
    let claim = || {
        let task_claim =
            TaskClaim { task_id: "#42".to_owned(), node_id: b.id().to_string(), timestamp: b.swarm.stamp() };
        b.swarm.publish(TopicMessage::TaskClaim(task_claim))
    };
    // The first ones may come before the topics have found their ways.
    let claiming = async {
        loop {
            claim().await.unwrap();
            if let Ok(heard) = timeout(Duration::from_millis(200), claims.next()).await {
                return heard.unwrap();
            }
        }
    };
    let heard = timeout(LIMIT, claiming).await.unwrap();
    assert_eq!((heard.from, heard.message.topic()), (b.id(), Topic::TaskClaim));

    let publish = |topic: Topic, body: serde_json::Value| {
        let (net, name) = (b.mesh.net.clone(), topic.full_name(&b.swarm.swarm_id()));
        async move { net.publish(&name, body.to_string().into_bytes()).await.unwrap() }
    };
    let stamp = || b.swarm.stamp().to_string();
    let unknown = || publish(Topic::PresencePing, json!({ "type": "weather", "sky": "blue", "timestamp": stamp() }));
    until_it_shows(unknown, || counts_of(&a.swarm, 2).ignored.contains_key("unknown_type")).await;
    assert!(counts_of(&a.swarm, 2).rejected.is_empty(), "a later version may speak of weather");

    let forged = || {
        let ping = PresencePing {
            node_id: node_id(3).to_string(),
            name: "somebody else".to_owned(),
            timestamp: b.swarm.stamp(),
            version: None,
            boot: None,
        };
        publish(Topic::PresencePing, serde_json::to_value(TopicMessage::PresencePing(ping)).unwrap())
    };
    until_it_shows(forged, || counts_of(&a.swarm, 2).rejected.contains_key("sender_not_signer")).await;
    assert!(a.swarm.peer(&node_id(3)).is_none(), "nobody else was brought in");
    assert_eq!(a.swarm.peer(&b.id()).unwrap().name, "node-2");

    let not_own = TaskClaim { task_id: "#1".to_owned(), node_id: a.id().to_string(), timestamp: b.swarm.stamp() };
    assert!(b.swarm.publish(TopicMessage::TaskClaim(not_own)).await.is_err(), "it would be rejected everywhere");
}

#[tokio::test]
async fn a_node_whose_clock_is_an_hour_off_is_seen_with_that() {
    let a = Node::start(1, &[]).await;
    let now_ms = WallClock::default().now().unix_ms();
    let late = WallClock::from_tokio(Timestamp::from_unix_ms(now_ms - 3_600_000));
    let b = Node::start_with(2, &[&a.mesh], SwarmConfig { clock: late, ..SwarmConfig::default() }).await;
    let seen = a.sees(&b.id(), |peer| peer.complete && peer.clock_skew_ms.is_some()).await;
    let minutes = |skew_ms: Option<i64>| (skew_ms.unwrap() as f64 / 60_000.0).round();
    assert_eq!((seen.name.as_str(), minutes(seen.clock_skew_ms)), ("node-2", -60.0));
    let seen = b.sees(&a.id(), |peer| peer.complete && peer.clock_skew_ms.is_some()).await;
    assert_eq!((seen.name.as_str(), minutes(seen.clock_skew_ms)), ("node-1", 60.0));
}

#[tokio::test]
async fn what_is_no_frame_ends_its_stream_alone() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a.mesh]).await;
    let stranger = Mesh::start(3, &[&a.mesh]).await;
    a.sees_whole(&b.id()).await;

    let mut stream = timeout(LIMIT, stranger.net.open_stream(&a.id(), liveness::PROTOCOL)).await.unwrap().unwrap();
    stream.write_all(&[0xff; 8]).await.unwrap();
    stream.flush().await.unwrap();
    assert!(timeout(LIMIT, stream.read_u8()).await.unwrap().is_err(), "the stream ends");
    until_it_shows(|| async {}, || a.swarm.report().liveness.malformed == 1).await;

    let mut stream = timeout(LIMIT, stranger.net.open_stream(&a.id(), hello::PROTOCOL)).await.unwrap().unwrap();
    let forged = json!({ "type": "capabilities", "node_id": b.id(), "name": "forged", "timestamp": a.swarm.stamp() });
    crate::wire::write_hello(&mut stream, forged.to_string().as_bytes()).await.unwrap();
    until_it_shows(|| async {}, || counts_of(&a.swarm, 3).rejected.contains_key("sender_not_signer")).await;
    assert_eq!(a.swarm.peer(&b.id()).unwrap().name, "node-2");
    assert_eq!(a.swarm.peer(&b.id()).unwrap().state, PeerState::Alive);
}

#[tokio::test]
async fn a_flood_of_datagrams_is_held_up_and_harms_nobody_else() {
    let a = Node::start(1, &[]).await;
    let mut events = a.swarm.events(None);
    let b = Node::start(2, &[&a.mesh]).await;
    let stranger = Mesh::start(3, &[&a.mesh]).await;
    a.sees_whole(&b.id()).await;
    let mut stream = timeout(LIMIT, stranger.net.open_stream(&a.id(), liveness::PROTOCOL)).await.unwrap().unwrap();
    for _ in 0..400 {
        crate::wire::write_datagram(&mut stream, &[7; 20]).await.unwrap();
    }
    until_it_shows(|| async {}, || a.swarm.report().liveness.held_up > 0).await;
    assert_eq!(a.swarm.report().liveness.dropped, 0, "who sends too much waits, and so nothing is lost");
    b.facts.send_modify(|facts| facts.models.push("new-model".to_owned()));
    a.sees(&b.id(), |peer| peer.models.contains(&"new-model".to_owned())).await;
    while let Some(Some(EventItem::Event(event))) = events.next().now_or_never() {
        let about_b = event.data["node_id"] == b.id().as_str();
        assert!(!about_b || !["peer:suspect", "peer:left"].contains(&event.kind), "{event:?}");
    }
}

#[tokio::test]
async fn who_says_its_first_word_again_and_again_is_refused() {
    let a = Node::start(1, &[]).await;
    let stranger = Mesh::start(3, &[&a.mesh]).await;
    let again = || async {
        let mut stream = stranger.net.open_stream(&a.id(), hello::PROTOCOL).await.unwrap();
        let told = json!({ "type": "capabilities", "node_id": node_id(3), "timestamp": a.swarm.stamp() });
        // It may be refused before it is written.
        drop(crate::wire::write_hello(&mut stream, told.to_string().as_bytes()).await);
        drop(timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await.unwrap());
    };
    a.sees(&node_id(3), |peer| peer.path.is_some()).await;
    let words = futures::future::join_all((0..8).map(|_| again()));
    timeout(LIMIT, words).await.unwrap();
    let report = a.swarm.report().hello;
    assert!(report.refused >= 2 && report.exchanged >= 5, "{report:?}");
}

#[tokio::test]
async fn a_node_that_goes_to_another_swarm_leaves_its_peers_behind() {
    let b = Node::start(2, &[]).await;
    let c = Node::start(3, &[]).await;
    c.mesh.membership.send_replace(member_of(1));
    let a = Node::start(1, &[&b.mesh, &c.mesh]).await;
    let mut events = a.swarm.events(None);
    a.sees_whole(&b.id()).await;
    a.mesh.membership.send_replace(member_of(1));
    let left = event(&mut events, "peer:left", &b.id()).await;
    assert_eq!(left.data["reason"], "this node is in another swarm");
    timeout(LIMIT, a.mesh.net.dial(&c.mesh.address().await)).await.unwrap().unwrap();
    a.sees_whole(&c.id()).await;
    assert!(a.swarm.peer(&b.id()).is_none());
    let mut presence = a.swarm.messages(Topic::PresencePing);
    c.facts.send_modify(|facts| facts.models.push("new-model".to_owned()));
    a.sees(&c.id(), |peer| peer.models.contains(&"new-model".to_owned())).await;
    let heard = timeout(LIMIT, presence.next()).await.unwrap().unwrap();
    assert_eq!(heard.from, c.id(), "the topics are those of the swarm that it is in now");
}

#[tokio::test]
async fn a_farewell_is_seen_at_once_and_taken_back_by_who_stays() {
    let a = Node::start(1, &[]).await;
    let config = SwarmConfig { farewell_silence: Duration::from_millis(300), ..SwarmConfig::default() };
    let b = Node::start_with(2, &[&a.mesh], config).await;
    let (id, mut events) = (b.id(), a.swarm.events(None));
    a.sees_whole(&id).await;
    until_it_shows(|| async {}, || a.swarm.report().liveness.received > 0 && b.swarm.report().liveness.received > 0)
        .await;
    b.swarm.farewell().await;
    let left = event(&mut events, "peer:left", &id).await;
    assert_eq!(left.data["reason"], "it said goodbye");
    // It is in the same swarm still, as after a change that failed.
    a.sees_whole(&id).await;
    b.sees_whole(&a.id()).await;
    b.crash().await;
    event(&mut events, "peer:suspect", &id).await;
}

#[tokio::test]
async fn who_has_nobody_to_say_goodbye_to_is_not_held_up() {
    let a = Node::start(1, &[]).await;
    timeout(LIMIT, a.swarm.farewell()).await.unwrap();
    let b = Node::start(2, &[&a.mesh]).await;
    b.sees_whole(&a.id()).await;
}

#[tokio::test]
async fn a_part_that_fails_is_started_again_while_the_others_go_on() {
    let a = Node::start(1, &[]).await;
    let mesh = Mesh::start(2, &[&a.mesh]).await;
    // The protocol is taken, so the failure detector cannot begin.
    let taken = mesh.net.accept(liveness::PROTOCOL).unwrap();
    let b = Node::on(mesh, 2, SwarmConfig::default());
    a.sees_whole(&b.id()).await;
    b.sees_whole(&a.id()).await;
    assert_eq!((b.swarm.report().liveness.sent, b.swarm.report().liveness.received), (0, 0));
    drop(taken);
    until_it_shows(|| async {}, || b.swarm.report().liveness.sent > 0 && b.swarm.report().liveness.received > 0).await;
    let (id, mut events) = (a.id(), b.swarm.events(None));
    a.stop().await;
    let left = event(&mut events, "peer:left", &id).await;
    assert_eq!(left.data["reason"], "it said goodbye");
}

#[tokio::test]
async fn peers_of_which_only_others_know_the_way_are_found() {
    // Neither can be dialled, and both have a relay only long after they looked around.
    let a = Node::start(1, &[]).await;
    let b = Node::on(Mesh::hidden(2, &[&a.mesh]).await, 2, SwarmConfig::default());
    let c = Node::on(Mesh::hidden(3, &[&a.mesh]).await, 3, SwarmConfig::default());
    b.sees(&c.id(), |c| c.path.is_some()).await;
    c.sees(&b.id(), |b| b.path.is_some()).await;
}
