use super::*;
use crate::{DialFailure, OpenError, Path, PublishError};

#[tokio::test]
async fn two_nodes_with_one_key_talk_by_streams_and_topics() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await);
    other.echo("/test/echo/1");
    let mut events = one.net.events();
    let mut others_events = other.net.events();
    let mut heard_there = other.net.subscribe("bombus/test", accept_all()).await.unwrap();
    let _own = one.net.subscribe("bombus/test", accept_all()).await.unwrap();

    assert_eq!(one.net.dial(&other.addr()).await.unwrap(), id(2));
    connected(&mut events, &id(2)).await;
    connected(&mut others_events, &id(1)).await;
    one.hear_echo(&id(2), "/test/echo/1").await;
    other.net.ping(&id(1)).await.unwrap();
    let (round_trip, path) = one.net.ping(&id(2)).await.unwrap();
    assert!(round_trip < Duration::from_secs(2));
    assert!(matches!(path, Path::Direct { .. }), "{path:?}");

    subscribed(&mut events, &id(2)).await;
    one.net.publish("bombus/test", b"hello".to_vec()).await.unwrap();
    let message = timeout(LIMIT, heard_there.next()).await.unwrap().unwrap();
    assert_eq!((message.signer, message.data.as_slice(), message.lost), (id(1), b"hello".as_slice(), 0));

    let peer = one.net.peers().into_iter().find(|peer| peer.node_id == id(2)).unwrap();
    assert!(peer.connected.is_some() && peer.last_seen_ms > 0, "{peer:?}");
    one.stop().await;
    disconnected(&mut others_events, &id(1)).await;
    other.stop().await;
}

#[tokio::test]
async fn pings_at_the_same_time_are_all_answered() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await);
    one.net.dial(&other.addr()).await.unwrap();
    let id = id(2);
    let pinged = futures::future::join_all((0..8).map(|_| one.net.ping(&id))).await;
    assert!(pinged.iter().all(Result::is_ok), "{pinged:?}");
}

#[tokio::test]
async fn nodes_without_a_key_talk_in_the_open() {
    let (one, other) = (Running::start(1, open()).await, Running::start(2, open()).await);
    other.echo("/test/echo/1");
    one.net.dial(&other.addr()).await.unwrap();
    one.hear_echo(&id(2), "/test/echo/1").await;
}

#[tokio::test]
async fn streams_that_cannot_be_opened_say_why() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await);
    one.net.dial(&other.addr()).await.unwrap();
    let error = one.net.open_stream(&id(2), "/test/nobody/1").await.unwrap_err();
    assert!(matches!(error, OpenError::UnsupportedProtocol { .. }), "{error}");
    let error = one.net.open_stream(&id(9), "/test/echo/1").await.unwrap_err();
    assert!(matches!(error, OpenError::NotReached { why: DialFailure::NoAddress, .. }), "{error}");
    let error = one.net.open_stream(&id(1), "/test/echo/1").await.unwrap_err();
    assert!(matches!(error, OpenError::NotReached { why: DialFailure::SameIdentity, .. }), "{error}");
    let error = one.net.open_stream(&id(2), "no slash").await.unwrap_err();
    assert!(matches!(error, OpenError::InvalidProtocol(_)), "{error}");
}

#[tokio::test]
async fn topics_and_protocols_have_one_owner_each() {
    let one = Running::start(1, closed(7)).await;
    let first = one.net.subscribe("t", accept_all()).await.unwrap();
    assert!(matches!(one.net.subscribe("t", accept_all()).await, Err(NetError::AlreadySubscribed(_))));
    drop(first);
    one.net.subscribe("t", accept_all()).await.unwrap();
    let first = one.net.accept("/p/1").unwrap();
    assert!(matches!(one.net.accept("/p/1"), Err(NetError::AlreadyAccepted(_))));
    drop(first);
    one.net.accept("/p/1").unwrap();
    assert!(matches!(one.net.accept("p"), Err(NetError::InvalidProtocol(_))));
    assert!(matches!(one.net.subscribe("", accept_all()).await, Err(NetError::InvalidTopic(0))));
}

#[tokio::test]
async fn what_is_published_to_nobody_is_counted_and_what_is_too_large_refused() {
    let one = Running::start(1, closed(7)).await;
    one.net.publish("t", vec![0; 10]).await.unwrap();
    one.report_with(|report| report.dropped.published_to_nobody == 1).await;
    let error = one.net.publish("t", vec![0; 1024 * 1024]).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn only_what_the_judge_accepts_is_handed_out() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await);
    let by_first_byte = |_: &NodeId, data: &[u8]| match data.first() {
        Some(b'a') => Verdict::Accept,
        Some(b'i') => Verdict::Ignore,
        _ => Verdict::Reject,
    };
    let mut events = one.net.events();
    let mut heard_there = other.net.subscribe("t", Arc::new(by_first_byte)).await.unwrap();
    let _own = one.net.subscribe("t", accept_all()).await.unwrap();
    one.net.dial(&other.addr()).await.unwrap();
    subscribed(&mut events, &id(2)).await;
    for data in [b"ignored", b"refused", b"abcdefg"] {
        one.net.publish("t", data.to_vec()).await.unwrap();
    }
    let message = timeout(LIMIT, heard_there.next()).await.unwrap().unwrap();
    assert_eq!(message.data, b"abcdefg");
    other.report_with(|report| report.dropped.ignored == 1 && report.dropped.rejected == 1).await;
}

#[tokio::test]
async fn everything_ends_when_the_mesh_stops() {
    let one = Running::start(1, closed(7)).await;
    let mut subscription = one.net.subscribe("t", accept_all()).await.unwrap();
    let mut incoming = one.net.accept("/p/1").unwrap();
    let mut events = one.net.events();
    let net = one.net.clone();
    one.stop().await;
    assert!(subscription.next().await.is_none());
    assert!(incoming.next().await.is_none());
    while events.next().await.is_some() {}
    assert_eq!(net.publish("t", Vec::new()).await, Err(PublishError::Stopped));
    assert!(matches!(net.open_stream(&id(2), "/p/1").await, Err(OpenError::Stopped)));
    assert_eq!(net.dial("/ip4/127.0.0.1/tcp/1").await, Err(DialFailure::Stopped));
}

#[tokio::test]
async fn nodes_that_know_one_all_find_each_other() {
    let first = Running::start(1, closed(7)).await;
    let mut nodes = Vec::new();
    for number in 2..=5 {
        let config = NetConfig { seeds: vec![first.addr()], ..config() };
        nodes.push(Running::with(number, closed(7), config).await);
    }
    for node in nodes.iter().chain([&first]) {
        node.report_with(|report| report.connected == 4).await;
    }
}

#[tokio::test]
async fn beyond_the_mesh_connections_are_made_on_demand_and_end_when_they_are_idle() {
    const MESH: usize = 2;
    let small = |seeds: Vec<String>| {
        let mut small = NetConfig { mesh_max: MESH, seeds, ..config() };
        small.timing.idle_limit = Duration::from_millis(500);
        small
    };
    let first = Running::with(1, closed(23), small(Vec::new())).await;
    let mut nodes = Vec::new();
    for number in 2..=5 {
        nodes.push(Running::with(number, closed(23), small(vec![first.addr()])).await);
    }
    nodes.insert(0, first);
    for node in &nodes {
        node.echo("/test/echo/1");
    }
    let are_few = async || {
        for node in &nodes {
            node.report_with(|report| (1..=MESH).contains(&report.connected)).await;
        }
    };
    are_few().await;
    // Nobody keeps a connection to everybody, and everybody reaches everybody.
    for node in &nodes {
        for number in (1..=5).filter(|number| id(*number) != *node.net.node_id()) {
            node.hear_echo(&id(number), "/test/echo/1").await;
        }
    }
    are_few().await;
}

#[tokio::test]
async fn up_to_the_mesh_connections_stay_though_nothing_uses_them() {
    let full = |seeds: Vec<String>| {
        let mut full = NetConfig { mesh_max: 4, seeds, ..config() };
        full.timing.idle_limit = Duration::from_millis(200);
        full
    };
    let first = Running::with(1, closed(24), full(Vec::new())).await;
    let mut nodes = Vec::new();
    for number in 2..=5 {
        nodes.push(Running::with(number, closed(24), full(vec![first.addr()])).await);
    }
    for node in nodes.iter().chain([&first]) {
        node.report_with(|report| report.connected == 4).await;
    }
    let mut events = first.net.events();
    let other = id(5);
    let quiet = timeout(Duration::from_secs(2), disconnected(&mut events, &other));
    assert!(quiet.await.is_err(), "a connection ended that should stay");
    for node in nodes.iter().chain([&first]) {
        node.report_with(|report| report.connected == 4).await;
    }
}

#[tokio::test]
async fn a_peer_that_is_said_to_be_there_is_found_though_all_looked_around_too_early() {
    // Neither of the two can be dialled, and until each has a relay nobody can tell the other how it is reached.
    let relay = Running::start(1, closed(25)).await;
    let hidden = || NetConfig { listen: Vec::new(), seeds: vec![relay.addr()], ..config() };
    let one = Running::with(2, closed(25), hidden()).await;
    let other = Running::with(3, closed(25), hidden()).await;
    other.echo("/test/echo/1");
    let mut events = one.net.events();
    one.net.expect([id(3)].into());
    connected(&mut events, &id(3)).await;
    one.hear_echo(&id(3), "/test/echo/1").await;
}

#[tokio::test]
async fn what_a_node_tells_of_itself_anew_is_not_taken_for_what_its_peer_says() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await);
    let mut events = one.net.events();
    one.net.dial(&other.addr()).await.unwrap();
    connected(&mut events, &id(2)).await;
    let speaks = |peers: &Vec<NetPeer>, protocol: &str| {
        peers.iter().any(|peer| peer.protocols.iter().any(|spoken| spoken == protocol))
    };
    one.peers_with(|peers| speaks(peers, "/ipfs/ping/1.0.0")).await;
    one.echo("/test/echo/1");
    // The other one hears of it, and tells of its own in the same way; by then this one has told.
    other.peers_with(|peers| speaks(peers, "/test/echo/1")).await;
    other.echo("/test/other/1");
    let peers = one.peers_with(|peers| speaks(peers, "/test/other/1")).await;
    assert!(!speaks(&peers, "/test/echo/1"), "its own words came back: {peers:?}");
    let own = one.addr().rsplit_once("/p2p/").unwrap().0.to_owned();
    assert!(peers.iter().all(|peer| peer.addresses.iter().all(|address| address.addr != own)), "{peers:?}");
}
