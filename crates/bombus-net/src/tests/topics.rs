use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity};

use super::raw::{beside, join, keypair, peer, peer_id};
use super::*;

/// The name of a topic as databases have it: nothing says whose swarm it is.
const FOREIGN: &str = "/orbitdb/zdpuAm2CkQhsVqJNZT1WbKV6GTjJMUzj6uNQLzPe1Tp1kXbLc";

async fn takes_part(peers: &mut watch::Receiver<Vec<NodeId>>, wanted: &[NodeId]) {
    let shown = timeout(LIMIT, peers.wait_for(|peers| peers == wanted)).await;
    shown.expect("it is shown in time").expect("the mesh runs");
}

#[tokio::test]
async fn who_takes_part_in_a_topic_is_told_also_when_it_began_before() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await);
    let mut events = one.net.events();
    let before = other.net.subscribe(FOREIGN, accept_all()).await.unwrap();
    let _elsewhere = other.net.subscribe("elsewhere", accept_all()).await.unwrap();
    let _own = one.net.subscribe("elsewhere", accept_all()).await.unwrap();
    one.net.dial(&other.addr()).await.unwrap();
    subscribed(&mut events, &id(2)).await;

    // It has told by now, and nobody asked.
    let mut peers = one.net.topic_peers(FOREIGN);
    takes_part(&mut peers, &[id(2)]).await;
    drop(before);
    takes_part(&mut peers, &[]).await;
    let _again = other.net.subscribe(FOREIGN, accept_all()).await.unwrap();
    takes_part(&mut peers, &[id(2)]).await;
    let mut second = one.net.topic_peers(FOREIGN);
    takes_part(&mut second, &[id(2)]).await;
    other.stop().await;
    takes_part(&mut peers, &[]).await;
    takes_part(&mut second, &[]).await;
    one.stop().await;
    assert!(peers.changed().await.is_err(), "it ends with the mesh");
}

#[tokio::test]
async fn what_is_published_also_gets_to_where_no_connection_leads() {
    // Neither of the two can be dialled, and the one between them does not relay connections.
    let between = Running::with(1, closed(7), NetConfig { relay: false, ..config() }).await;
    let hidden = || NetConfig { listen: Vec::new(), seeds: vec![between.addr()], ..config() };
    let (one, other) = (Running::with(2, closed(7), hidden()).await, Running::with(3, closed(7), hidden()).await);
    let _passed_on = between.net.subscribe("t", accept_all()).await.unwrap();
    let mut heard = other.net.subscribe("t", accept_all()).await.unwrap();
    takes_part(&mut between.net.topic_peers("t"), &[id(3)]).await;
    takes_part(&mut one.net.topic_peers("t"), &[id(1)]).await;
    one.net.publish("t", b"hello".to_vec()).await.unwrap();
    let message = timeout(LIMIT, heard.next()).await.unwrap().unwrap();
    assert_eq!((message.signer, message.data.as_slice()), (id(2), b"hello".as_slice()));
    assert!(one.net.peers().iter().all(|peer| peer.node_id != id(3) || peer.connected.is_none()));
}

#[tokio::test]
async fn what_is_published_goes_on_over_another_connection_when_the_one_it_took_is_closed() {
    // Nothing else is said on the connections, and so nothing else has them look for what to send.
    let quiet = || {
        let mut config = config();
        config.timing.ping_interval = Duration::from_secs(3_600);
        config.timing.gossip_heartbeat = Duration::from_secs(3_600);
        config
    };
    let (low, high) = if id(1) < id(2) { (1, 2) } else { (2, 1) };
    let (low, high) = (Running::with(low, closed(7), quiet()).await, Running::with(high, closed(7), quiet()).await);
    let mut heard_low = low.net.subscribe("t", accept_all()).await.unwrap();
    let mut heard_high = high.net.subscribe("t", accept_all()).await.unwrap();
    high.net.dial(&low.addr()).await.unwrap();
    takes_part(&mut low.net.topic_peers("t"), &[high.net.node_id().clone()]).await;
    takes_part(&mut high.net.topic_peers("t"), &[low.net.node_id().clone()]).await;
    let hear = async |from: &Running, heard: &mut Subscription, number: u8| {
        from.net.publish("t", vec![number]).await.unwrap();
        let message = timeout(LIMIT, heard.next()).await.expect("it comes in time").unwrap();
        assert_eq!(message.data, [number]);
    };
    hear(&high, &mut heard_low, 0).await;
    hear(&low, &mut heard_high, 0).await;
    // Of two connections that came about at the same time, the one that the lower id dialled stays; it closes the other one later.
    low.net.dial(&high.addr()).await.unwrap();
    let mut ticks = tokio::time::interval(config().timing.redundant_grace / 10);
    for number in 1..60 {
        ticks.tick().await;
        hear(&low, &mut heard_high, number).await;
    }
    for number in 1..4 {
        hear(&high, &mut heard_low, number).await;
    }
    low.stop().await;
    high.stop().await;
}

#[tokio::test]
async fn a_topic_of_another_program_carries_its_messages_as_they_are() {
    let node = Running::start(1, open()).await;
    let mut heard_here = node.net.subscribe(FOREIGN, accept_all()).await.unwrap();
    let mut peers = node.net.topic_peers(FOREIGN);
    let mut other = peer(2, MessageAuthenticity::Signed(keypair(2)));
    join(&mut other, &node, FOREIGN).await;
    beside(&mut other, takes_part(&mut peers, &[id(2)])).await;
    let data = vec![0xa9, 0x61, 0x76, 0x02, 0xff, 0x00];
    other.behaviour_mut().gossip.publish(IdentTopic::new(FOREIGN), data.clone()).unwrap();
    let message = beside(&mut other, timeout(LIMIT, heard_here.next())).await.unwrap().unwrap();
    assert_eq!((message.signer, message.data, message.topic.as_str()), (id(2), data, FOREIGN));
}

#[test]
fn messages_have_the_names_that_js_peers_give_them() {
    let message = gossipsub::Message {
        source: Some(peer_id(1)),
        data: Vec::new(),
        sequence_number: Some(0x0102_0304_0506_0708),
        topic: IdentTopic::new("t").hash(),
    };
    let key = keypair(1).public().encode_protobuf();
    assert_eq!(key[..4], [0x08, 0x01, 0x12, 0x20]);
    let expected = [key.as_slice(), &[1, 2, 3, 4, 5, 6, 7, 8]].concat();
    assert_eq!(crate::behaviour::message_id(&message).0, expected);
}
