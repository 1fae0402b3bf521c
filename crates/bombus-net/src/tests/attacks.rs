use futures::StreamExt;
use libp2p::Multiaddr;
use libp2p::gossipsub::{self, IdentTopic, MessageAuthenticity};
use libp2p::swarm::{Swarm, SwarmEvent};

use super::raw::{OursEvent, Raw, RawEvent, beside, join, keypair, liar, listening, peer, peer_id, with_gossip};
use super::*;
use crate::stream::{INCOMING_MAX, INCOMING_PER_PEER_MAX};

#[tokio::test]
async fn messages_without_a_true_signature_are_not_delivered() {
    let node = Running::start(1, open()).await;
    let mut heard_there = node.net.subscribe("t", accept_all()).await.unwrap();
    let mut events = node.net.events();
    // It says that node 3 publishes, and signs nothing.
    let mut forger = peer(66, MessageAuthenticity::Author(peer_id(3)));
    join(&mut forger, &node, "t").await;
    forger.behaviour_mut().gossip.publish(IdentTopic::new("t"), b"forged".to_vec()).unwrap();
    beside(&mut forger, subscribed(&mut events, &id(66))).await;

    let mut honest = peer(2, MessageAuthenticity::Signed(keypair(2)));
    beside(&mut forger, join(&mut honest, &node, "t")).await;
    honest.behaviour_mut().gossip.publish(IdentTopic::new("t"), b"true".to_vec()).unwrap();
    let both = beside(&mut honest, timeout(LIMIT, heard_there.next()));
    let message = beside(&mut forger, both).await.unwrap().unwrap();
    assert_eq!((message.signer, message.data.as_slice()), (id(2), b"true".as_slice()));
}

#[tokio::test]
async fn who_sends_much_that_is_rejected_is_not_heard_any_more() {
    /// Below that, gossipsub takes nothing of a peer.
    const GREY_LIST: f64 = -80.0;
    let node = Running::start(1, open()).await;
    let no_nonsense = |_: &NodeId, data: &[u8]| match data {
        [b'?', ..] => Verdict::Reject,
        _ => Verdict::Accept,
    };
    let mut heard_there = node.net.subscribe("t", Arc::new(no_nonsense)).await.unwrap();
    let mut attacker = peer(66, MessageAuthenticity::Signed(keypair(66)));
    join(&mut attacker, &node, "t").await;
    let say = |peer: &mut Swarm<Raw>, text: &str| {
        peer.behaviour_mut().gossip.publish(IdentTopic::new("t"), text.as_bytes().to_vec()).unwrap();
    };
    say(&mut attacker, "heard");
    let first = beside(&mut attacker, timeout(LIMIT, heard_there.next())).await.unwrap().unwrap();
    assert_eq!(first.data, b"heard");

    for number in 0..10 {
        say(&mut attacker, &format!("?{number}"));
    }
    let is_low = |peers: &Vec<NetPeer>| peers.iter().any(|peer| peer.node_id == id(66) && peer.score < GREY_LIST);
    beside(&mut attacker, node.peers_with(is_low)).await;
    say(&mut attacker, "valid, and too late");
    let mut honest = peer(2, MessageAuthenticity::Signed(keypair(2)));
    beside(&mut attacker, join(&mut honest, &node, "t")).await;
    say(&mut honest, "true");
    let both = beside(&mut honest, timeout(LIMIT, heard_there.next()));
    let next = beside(&mut attacker, both).await.unwrap().unwrap();
    assert_eq!((next.signer, next.data.as_slice()), (id(2), b"true".as_slice()));
    let others = node.net.peers();
    assert!(others.iter().any(|peer| peer.node_id == id(2) && peer.score >= 0.0), "{others:?}");
}

#[tokio::test]
async fn messages_that_are_too_large_are_not_delivered() {
    let node = Running::start(1, open()).await;
    let mut heard_there = node.net.subscribe("t", accept_all()).await.unwrap();
    let mut large = peer(66, MessageAuthenticity::Signed(keypair(66)));
    join(&mut large, &node, "t").await;
    large.behaviour_mut().gossip.publish(IdentTopic::new("t"), vec![1; 2 * 1024 * 1024]).unwrap();
    let mut honest = peer(2, MessageAuthenticity::Signed(keypair(2)));
    beside(&mut large, join(&mut honest, &node, "t")).await;
    honest.behaviour_mut().gossip.publish(IdentTopic::new("t"), vec![2; 512 * 1024]).unwrap();
    let both = beside(&mut honest, timeout(LIMIT, heard_there.next()));
    let message = beside(&mut large, both).await.unwrap().unwrap();
    assert_eq!((message.signer, message.data.len()), (id(2), 512 * 1024));
}

#[tokio::test]
async fn ten_thousand_subscriptions_do_no_harm() {
    let (node, other) = (Running::start(1, open()).await, Running::start(2, open()).await);
    let _there = node.net.subscribe("t", accept_all()).await.unwrap();
    let mut heard_there = other.net.subscribe("t", accept_all()).await.unwrap();
    let mut events = node.net.events();
    let mut greedy = peer(66, MessageAuthenticity::Signed(keypair(66)));
    for number in 0..10_000 {
        greedy.behaviour_mut().gossip.subscribe(&IdentTopic::new(format!("topic-{number}"))).unwrap();
    }
    greedy.dial(node.addr().parse::<Multiaddr>().unwrap()).unwrap();
    beside(&mut greedy, connected(&mut events, &id(66))).await;
    let talked = async {
        node.net.dial(&other.addr()).await.unwrap();
        subscribed(&mut events, &id(2)).await;
        node.net.publish("t", b"still here".to_vec()).await.unwrap();
        timeout(LIMIT, heard_there.next()).await.unwrap().unwrap()
    };
    assert_eq!(beside(&mut greedy, talked).await.data, b"still here");
}

#[tokio::test]
async fn of_a_peers_subscriptions_a_bounded_number_is_remembered() {
    let topic = IdentTopic::new("t");
    let mut ours = with_gossip(1, crate::behaviour::gossip(&keypair(1), &config().timing).unwrap());
    ours.behaviour_mut().gossip.subscribe(&topic).unwrap();
    let addr = listening(&mut ours).await;
    let mut greedy = peer(66, MessageAuthenticity::Signed(keypair(66)));
    greedy.dial(addr).unwrap();
    let mut is_told = false;
    let heard = async {
        loop {
            tokio::select! {
                event = ours.select_next_some() => {
                    if let SwarmEvent::Behaviour(OursEvent::Gossip(gossipsub::Event::Message { .. })) = event {
                        return;
                    }
                }
                event = greedy.select_next_some() => {
                    if matches!(event, SwarmEvent::Behaviour(RawEvent::Gossip(gossipsub::Event::Subscribed { .. }))) && !is_told {
                        is_told = true;
                        for number in 0..1000 {
                            greedy.behaviour_mut().gossip.subscribe(&IdentTopic::new(number.to_string())).unwrap();
                        }
                        greedy.behaviour_mut().gossip.publish(topic.clone(), b"all told".to_vec()).unwrap();
                    }
                }
            }
        }
    };
    timeout(LIMIT, heard).await.expect("the message comes after the subscriptions");
    let remembered: usize = ours.behaviour().gossip.all_peers().map(|(_, topics)| topics.len()).sum();
    assert!((1..=256).contains(&remembered), "{remembered}");
}

#[tokio::test]
async fn a_flood_of_streams_is_reset_and_others_still_get_through() {
    let (node, flooder, other) =
        (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await, Running::start(3, closed(7)).await);
    let mut incoming = node.net.accept("/test/slow/1").unwrap();
    flooder.net.dial(&node.addr()).await.unwrap();
    other.net.dial(&node.addr()).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..INCOMING_MAX {
        open.push(flooder.net.open_stream(&id(1), "/test/slow/1").await.unwrap());
        // What is written makes the negotiation complete on the other side.
        let stream = open.last_mut().unwrap();
        let _ = stream.write_all(b"x").await;
        let _ = stream.flush().await;
    }
    let refused = INCOMING_MAX - INCOMING_PER_PEER_MAX;
    node.report_with(|report| report.dropped.streams == refused as u64).await;
    let mut stream = other.net.open_stream(&id(1), "/test/slow/1").await.unwrap();
    stream.write_all(b"y").await.unwrap();
    stream.flush().await.unwrap();
    let found = timeout(LIMIT, async {
        loop {
            let (peer, _) = incoming.next().await.unwrap();
            if peer == id(3) {
                return;
            }
        }
    });
    found.await.expect("the other's stream waits among them");
}

#[tokio::test]
async fn an_address_that_is_not_the_peers_own_is_dropped_and_harms_nobody() {
    let node = Running::start(1, open()).await;
    let victim = Running::start(2, open()).await;
    let mut events = node.net.events();
    node.net.dial(&victim.addr()).await.unwrap();
    connected(&mut events, &id(2)).await;
    // It says that it listens where the victim does.
    let mut liar = peer(66, MessageAuthenticity::Signed(keypair(66)));
    let victims = victim.addr().rsplit_once("/p2p/").unwrap().0.to_owned();
    liar.add_external_address(victims.parse().unwrap());
    liar.dial(node.addr().parse::<Multiaddr>().unwrap()).unwrap();
    let learned =
        |event: &NetEvent| matches!(event, NetEvent::Discovered { peer, .. } if *peer == id(66)).then_some(());
    beside(&mut liar, heard(&mut events, learned)).await;
    drop(liar);
    let failed = |event: &NetEvent| match event {
        NetEvent::DialFailed { peer: Some(peer), why, .. } if *peer == id(66) => Some(why.clone()),
        _ => None,
    };
    let why = heard(&mut events, failed).await;
    assert_eq!(why, crate::DialFailure::WrongPeer { found: id(2) });
    node.peers_with(|peers| {
        let of = |number: u8| peers.iter().find(|peer| peer.node_id == id(number));
        let is_clean = of(66).is_none_or(|peer| peer.addresses.iter().all(|address| address.addr != victims));
        is_clean && of(2).is_some_and(|peer| peer.connected.is_some())
    })
    .await;
}

#[tokio::test]
async fn false_addresses_of_another_peer_are_few_and_do_not_keep_it_away() {
    let (node, victim) = (Running::start(1, open()).await, Running::start(2, open()).await);
    let other = Running::start(3, open()).await;
    let mut events = node.net.events();
    node.net.dial(&victim.addr()).await.unwrap();
    connected(&mut events, &id(2)).await;
    // At one of them is somebody else, at the others nobody.
    let somebody = other.addr().rsplit_once("/p2p/").unwrap().0.to_owned();
    let nobody = (1..=40).map(|port| format!("/ip4/127.0.0.1/tcp/{port}"));
    let lies: Vec<Multiaddr> = nobody.chain([somebody]).map(|lie| lie.parse().unwrap()).collect();
    let mut liar = liar(66, peer_id(2), &lies);
    let addr = listening(&mut liar).await;
    beside(&mut liar, node.net.dial(&format!("{addr}/p2p/{}", id(66)))).await.unwrap();
    let believed = |peers: &Vec<NetPeer>| {
        let known = peers.iter().find(|peer| peer.node_id == id(2)).expect("it was met");
        known.addresses.iter().filter(|known| lies.iter().any(|lie| lie.to_string() == known.addr)).count()
    };
    let told = beside(&mut liar, node.peers_with(|peers| believed(peers) > 0)).await;
    assert!(believed(&told) <= 8, "{told:?}");

    let port = victim.port();
    beside(&mut liar, victim.stop()).await;
    beside(&mut liar, disconnected(&mut events, &id(2))).await;
    let same_place = NetConfig { listen: vec![ListenOn::fixed(HERE, port)], ..config() };
    let victim = Running::with(2, open(), same_place).await;
    victim.echo("/test/echo/1");
    beside(&mut liar, connected(&mut events, &id(2))).await;
    beside(&mut liar, node.hear_echo(&id(2), "/test/echo/1")).await;
    let known = node.net.peers();
    assert!(believed(&known) <= 8, "{known:?}");
}
