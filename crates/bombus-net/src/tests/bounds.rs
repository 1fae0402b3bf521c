//! What happens when something is full.

use futures::future::join_all;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use super::*;
use crate::events::EVENTS_MAX;
use crate::membership::AddressOrigin;
use crate::shared::COMMANDS_MAX;
use crate::{DialFailure, OpenError, PublishError};

/// As many topics, and as many protocols, as there may be.
const WISHES_MAX: usize = 128;
/// As many requests as may wait for connections.
const WAITING_MAX: usize = 1024;

/// A mesh whose service does not run, so that whatever it is asked for waits.
fn at_rest() -> (NetHandle, crate::NetService) {
    let (_membership, following) = watch::channel(closed(7));
    net(config(), identity(1), MembershipHandle::following(following))
}

#[tokio::test(start_paused = true)]
async fn when_too_much_is_asked_for_at_once_who_comes_last_hears_that_the_mesh_is_busy() {
    let (net, _service) = at_rest();
    let asked = (0..COMMANDS_MAX).map(|_| net.publish("t", b"waits".to_vec()));
    assert!(join_all(asked).await.iter().all(|told| *told == Err(PublishError::Busy)));
    assert_eq!(net.shared.commands.capacity(), 0, "what was asked for still waits for the service");
    assert_eq!(net.publish("t", b"one too many".to_vec()).await, Err(PublishError::Busy));
}

#[tokio::test]
async fn when_too_much_waits_for_connections_who_comes_last_hears_that_the_mesh_is_busy() {
    // Somebody listens there, and never says a word.
    let silent = std::net::TcpListener::bind((HERE, 0)).unwrap();
    let addr = format!("/ip4/127.0.0.1/tcp/{}", silent.local_addr().unwrap().port());
    let (_membership, following) = watch::channel(closed(7));
    let members = MembershipHandle::following(following);
    members.learned(&id(2), &addr, AddressOrigin::Peer);
    let patient = NetTiming { handshake_limit: LIMIT, ..config().timing };
    let (net, service) = net(NetConfig { timing: patient, ..config() }, identity(1), members);
    // It ends with the test; were it to panic, nobody would be told.
    tokio::spawn(service.run(CancellationToken::new()));
    let peer = id(2);
    let mut asked: FuturesUnordered<_> = (0..=WAITING_MAX).map(|_| net.open_stream(&peer, "/test/echo/1")).collect();
    let first = timeout(LIMIT, asked.next()).await.expect("one is told in time").unwrap();
    assert!(matches!(first, Err(OpenError::NotReached { why: DialFailure::Busy, .. })), "{first:?}");
    assert_eq!(asked.len(), WAITING_MAX, "the others still wait");
    assert!(asked.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_reader_of_events_that_is_too_slow_hears_how_many_it_missed() {
    let (net, _service) = at_rest();
    let mut events = net.events();
    for number in 0..EVENTS_MAX + 3 {
        let happened = NetEvent::IdentityConflict { addr: number.to_string() };
        assert!(net.shared.events.send(happened).is_ok(), "somebody reads");
    }
    assert!(matches!(events.next().await, Some(NetEvent::Lagged(3))));
    let next = events.next().await;
    assert!(matches!(&next, Some(NetEvent::IdentityConflict { addr }) if addr == "3"), "{next:?}");
}

#[tokio::test]
async fn topics_and_protocols_beyond_those_that_there_may_be_are_refused_until_one_ends() {
    let (net, _service) = at_rest();
    let mut topics = Vec::new();
    let mut protocols = Vec::new();
    for number in 0..WISHES_MAX {
        topics.push(net.subscribe(&format!("topic-{number}"), accept_all()).await.unwrap());
        protocols.push(net.accept(&format!("/test/{number}")).unwrap());
    }
    let topic = net.subscribe("one-too-many", accept_all()).await.unwrap_err();
    let protocol = net.accept("/test/one-too-many").unwrap_err();
    for error in [topic, protocol] {
        assert!(matches!(error, NetError::TooMany(WISHES_MAX)), "{error}");
    }
    drop((topics.pop(), protocols.pop()));
    net.subscribe("one-too-many", accept_all()).await.unwrap();
    net.accept("/test/one-too-many").unwrap();
}
