//! What members and strangers try, and that it gets them nowhere. An attacker and an honest peer, both made of libp2p alone, are connected
//! to one node: what the honest one hears is what the node let pass.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::raw_peer::{RawPeer, TOPICS, timestamp};
use super::{Plan, State, Swarm, state_of};
use crate::harness::within;
use crate::model::eventually;

/// Where a node counts messages that it did not pass on, and those for which it blames who passed them on.
const IGNORED: &str = "/net/dropped/ignored";
const REJECTED: &str = "/net/dropped/rejected";

/// Returns a count from a node's report on the mesh, by its place there.
async fn count(swarm: &Swarm, index: usize, place: &str) -> u64 {
    let report = swarm.member(index).get("/mesh/report").await;
    report.pointer(place).and_then(Value::as_u64).unwrap_or_else(|| panic!("{place} is no count: {report}"))
}

async fn count_reaches(swarm: &Swarm, index: usize, place: &str, wanted: u64) {
    eventually(&format!("{place} is {wanted}"), async || count(swarm, index, place).await >= wanted).await;
}

/// An attacker, an honest speaker and a listener around one node.
struct Ring {
    swarm: Swarm,
    attacker: RawPeer,
    honest: RawPeer,
    listener: RawPeer,
}

impl Ring {
    async fn new() -> Self {
        let swarm = Plan::of(1).start().await;
        let node = swarm.member(0);
        let attacker = RawPeer::member(node).await;
        let honest = RawPeer::member(node).await;
        let mut listener = RawPeer::member(node).await;
        for peer in [&attacker, &honest] {
            peer.meets(&mut listener).await;
        }
        Self { swarm, attacker, honest, listener }
    }

    /// Publishes what must not pass, waits until the node has counted it, and returns what the listener heard up to the honest peer's
    /// next message.
    async fn after_attack(&mut self, topic: &str, bytes: Vec<u8>, counter: &str) -> Vec<String> {
        let before = count(&self.swarm, 0, counter).await;
        self.attacker.publish_bytes(topic, bytes).await;
        count_reaches(&self.swarm, 0, counter, before + 1).await;
        self.honest.publish(topic, &self.honest.message(topic, "the end")).await;
        self.listener.hears(topic, "the end").await
    }
}

#[tokio::test]
async fn every_kind_of_message_passes_from_member_to_member() {
    let mut ring = Ring::new().await;
    for topic in TOPICS {
        ring.attacker.publish(topic, &ring.attacker.message(topic, "well-formed")).await;
        ring.listener.hears(topic, "well-formed").await;
    }
}

#[tokio::test]
async fn strangers_do_not_get_past_the_transport() {
    let swarm = Swarm::of(2).await;
    let node = swarm.member(0);
    for key in [None, Some([7; 32])] {
        let stranger = RawPeer::stranger(key);
        let refused = stranger.dial(&node.address()).await;
        assert!(refused.is_err(), "a stranger with the key {key:?} was let in: {refused:?}");
        assert_eq!(state_of(&swarm.peers(0).await, &stranger.id()), State::Gone);
    }
    count_reaches(&swarm, 0, "/net/refused_strangers", 1).await;
    swarm.all_see_each_other().await;
}

#[tokio::test]
async fn a_sender_that_is_not_the_signer_is_rejected() {
    let mut ring = Ring::new().await;
    let mut forged = ring.attacker.message("presence_ping", "forged");
    forged["node_id"] = json!(ring.honest.id());
    let heard = ring.after_attack("presence_ping", forged.to_string().into_bytes(), REJECTED).await;
    assert!(!heard.iter().any(|text| text.contains("forged")), "{heard:?}");
}

#[tokio::test]
async fn a_sender_of_a_request_for_help_is_its_signer_too() {
    let mut ring = Ring::new().await;
    let mut forged = ring.attacker.message("task_help_request", "forged");
    forged["from_node"] = json!(ring.honest.id());
    let heard = ring.after_attack("task_help_request", forged.to_string().into_bytes(), REJECTED).await;
    assert!(!heard.iter().any(|text| text.contains("forged")), "{heard:?}");
}

#[tokio::test]
async fn what_is_no_message_is_rejected() {
    let mut ring = Ring::new().await;
    let heard = ring.after_attack("task_claim", b"{\"type\":\"task_claim\", broken".to_vec(), REJECTED).await;
    assert!(heard.is_empty(), "{heard:?}");
}

#[tokio::test]
async fn a_message_beyond_its_size_is_rejected() {
    let mut ring = Ring::new().await;
    let mut large = ring.attacker.message("task_result", "large");
    large["padding"] = json!("x".repeat(70 * 1024));
    let heard = ring.after_attack("task_result", large.to_string().into_bytes(), REJECTED).await;
    assert!(heard.is_empty(), "{} of {} bytes", heard.len(), heard.first().map_or(0, String::len));
}

#[tokio::test]
async fn a_message_said_again_is_not_passed_on_again() {
    let mut ring = Ring::new().await;
    let message = ring.attacker.message("task_claim", "once");
    ring.attacker.publish("task_claim", &message).await;
    ring.listener.hears("task_claim", "once").await;
    // libp2p gives it a new number and signs it again, so only its content tells.
    let heard = ring.after_attack("task_claim", message.to_string().into_bytes(), IGNORED).await;
    assert!(!heard.iter().any(|text| text.contains("once")), "{heard:?}");
}

#[tokio::test]
async fn messages_from_another_time_are_not_passed_on() {
    let mut ring = Ring::new().await;
    for minutes in [60, -60] {
        let mut message = ring.attacker.message("presence_ping", "from another time");
        message["timestamp"] = json!(timestamp(time::Duration::minutes(minutes)));
        let heard = ring.after_attack("presence_ping", message.to_string().into_bytes(), IGNORED).await;
        assert!(!heard.iter().any(|text| text.contains("from another time")), "{minutes} minutes: {heard:?}");
    }
    // It was ignored and not rejected: whose clock is off loses nothing, and is heard when it is right.
    ring.attacker.publish("presence_ping", &ring.attacker.message("presence_ping", "in time")).await;
    ring.listener.hears("presence_ping", "in time").await;
}

#[tokio::test]
async fn a_flood_by_one_member_is_bounded_and_disturbs_nobody() {
    const FLOOD: usize = 3_000;
    let mut ring = Ring::new().await;
    for number in 0..FLOOD {
        let message = ring.attacker.message("task_claim", &format!("flood {number}"));
        ring.attacker.publish("task_claim", &message).await;
    }
    count_reaches(&ring.swarm, 0, IGNORED, 1).await;
    ring.honest.publish("task_claim", &ring.honest.message("task_claim", "the end")).await;
    let heard = ring.listener.hears("task_claim", "the end").await;
    assert!(heard.len() < FLOOD / 4, "{} of {FLOOD} messages were passed on", heard.len());
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let began = tokio::time::Instant::now();
        ring.swarm.peers(0).await;
        fastest = fastest.min(began.elapsed());
    }
    assert!(fastest < Duration::from_secs(2), "the node answers slowly: {fastest:?}");
}

/// Returns a process's resident memory in KiB.
fn memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn ten_thousand_subscriptions_of_one_peer_cost_nothing() {
    let mut ring = Ring::new().await;
    let pid = ring.swarm.member(0).pid();
    let before = memory_kib(pid);
    for number in 0..10_000 {
        ring.attacker.subscribe(&format!("a topic that nobody else has, number {number}")).await;
    }
    ring.honest.publish("task_claim", &ring.honest.message("task_claim", "the end")).await;
    ring.listener.hears("task_claim", "the end").await;
    let grown = memory_kib(pid).saturating_sub(before);
    assert!(grown < 8 * 1024, "the node grew by {grown} KiB");
}

#[tokio::test]
async fn half_open_connections_are_closed_and_keep_nobody_out() {
    let mut swarm = Plan::of(2).prepared().await;
    swarm.member_mut(0).start().await;
    let ticket = swarm.member(0).invite().await;
    swarm.member(1).join(&ticket).await;
    let address = socket_address(&swarm.member(0).address());
    let connections = join_all((0..300).map(|_| TcpStream::connect(address.clone()))).await;
    let mut open: Vec<_> = connections.into_iter().filter_map(Result::ok).collect();
    assert!(!open.is_empty());
    swarm.member_mut(1).start().await;
    swarm.all_see_each_other().await;
    for connection in &mut open {
        let end = async { while connection.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {} };
        within("the node closes what says nothing", end).await;
    }
    swarm.stop_all().await;
}

/// Returns the address of a multiaddr like `/ip4/127.0.0.1/tcp/7891/p2p/...` for a socket.
pub(super) fn socket_address(multiaddr: &str) -> String {
    let parts: Vec<_> = multiaddr.split('/').collect();
    assert_eq!((parts[1], parts[3]), ("ip4", "tcp"), "{multiaddr}");
    format!("{}:{}", parts[2], parts[4])
}
