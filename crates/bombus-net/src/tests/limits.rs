//! Limits on connections, filled until they hold.

use futures::StreamExt;
use libp2p::gossipsub::MessageAuthenticity;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, Swarm, SwarmEvent};
use libp2p::{Multiaddr, identify};
use tokio::net::{TcpListener, TcpStream};

use super::raw::{Raw, RawEvent, keypair, peer, peer_id};
use super::*;
use crate::DialFailure;

async fn limited(state: MembershipState, limits: NetLimits) -> Running {
    Running::with(1, state, NetConfig { limits, ..config() }).await
}

fn is_connected(peers: &[NetPeer], wanted: &NodeId) -> bool {
    peers.iter().any(|peer| peer.node_id == *wanted && peer.connected.is_some())
}

#[tokio::test]
async fn who_comes_when_all_places_are_taken_is_refused_until_somebody_leaves() {
    let node = limited(closed(31), NetLimits { incoming: 2, ..NetLimits::default() }).await;
    let (two, three) = (Running::start(2, closed(31)).await, Running::start(3, closed(31)).await);
    node.echo("/test/echo/1");
    for member in [&two, &three] {
        member.net.dial(&node.addr()).await.unwrap();
    }
    node.report_with(|report| report.connected == 2).await;

    let four = Running::start(4, closed(31)).await;
    let mut events = four.net.events();
    // Whoever is too many has shaken hands before it is refused, and may see the connection for a moment.
    if four.net.dial(&node.addr()).await.is_ok() {
        disconnected(&mut events, &id(1)).await;
    }
    assert!(!is_connected(&node.net.peers(), &id(4)), "{:?}", node.net.peers());
    for member in [&two, &three] {
        member.hear_echo(&id(1), "/test/echo/1").await;
    }
    two.stop().await;
    node.peers_with(|peers| is_connected(peers, &id(4)) && !is_connected(peers, &id(2))).await;
    four.hear_echo(&id(1), "/test/echo/1").await;
    three.hear_echo(&id(1), "/test/echo/1").await;
}

#[tokio::test]
async fn a_full_node_makes_no_connections_either() {
    let node = limited(closed(32), NetLimits { connections: 1, ..NetLimits::default() }).await;
    let (two, three) = (Running::start(2, closed(32)).await, Running::start(3, closed(32)).await);
    node.echo("/test/echo/1");
    two.net.dial(&node.addr()).await.unwrap();
    node.report_with(|report| report.connected == 1).await;
    assert_eq!(node.net.dial(&three.addr()).await, Err(DialFailure::TooManyConnections));
    two.hear_echo(&id(1), "/test/echo/1").await;
}

#[tokio::test]
async fn no_more_is_dialled_at_a_time_than_there_may_be() {
    let node = limited(closed(33), NetLimits { pending_outgoing: 1, ..NetLimits::default() }).await;
    let other = Running::start(2, closed(33)).await;
    // It takes connections and says nothing on them.
    let silent = TcpListener::bind((HERE, 0)).await.unwrap();
    let silent_addr = format!("/ip4/127.0.0.1/tcp/{}", silent.local_addr().unwrap().port());
    let addr = other.addr();
    let (silent, refused) = tokio::join!(node.net.dial(&silent_addr), node.net.dial(&addr));
    assert_eq!(refused, Err(DialFailure::TooManyConnections));
    assert!(silent.is_err(), "{silent:?}");
    node.net.dial(&addr).await.expect("there is room again");
}

#[tokio::test]
async fn handshakes_beyond_those_that_there_may_be_at_a_time_are_refused_at_once() {
    let mut settings = NetConfig { limits: NetLimits { pending_incoming: 2, ..NetLimits::default() }, ..config() };
    settings.timing.handshake_limit = LIMIT;
    let node = Running::with(1, closed(34), settings).await;
    let mut half_open = Vec::new();
    for _ in 0..2 {
        let mut socket = TcpStream::connect((HERE, node.port())).await.unwrap();
        let mut nonce = [0; 24];
        timeout(LIMIT, socket.read_exact(&mut nonce)).await.expect("the handshake begins").unwrap();
        half_open.push(socket);
    }
    let mut third = TcpStream::connect((HERE, node.port())).await.unwrap();
    let mut heard = Vec::new();
    // A reset is a refusal as well.
    let _ = timeout(LIMIT / 3, third.read_to_end(&mut heard)).await.expect("it is closed long before its time is over");
    assert!(heard.is_empty(), "nothing was said: {heard:?}");

    drop(half_open);
    let member = Running::with(2, closed(34), NetConfig { seeds: vec![node.addr()], ..config() }).await;
    member.peers_with(|peers| is_connected(peers, &id(1))).await;
}

/// Dials a node once more, whatever connections there are.
fn dial_again(raw: &mut Swarm<Raw>, addr: &Multiaddr) -> ConnectionId {
    let options = DialOpts::peer_id(peer_id(1)).addresses(vec![addr.clone()]).condition(PeerCondition::Always).build();
    let connection = options.connection_id();
    raw.dial(options).unwrap();
    connection
}

/// Waits until a node has introduced itself over a connection, or has closed it; says whether it stands.
async fn stands(raw: &mut Swarm<Raw>, connection: ConnectionId) -> bool {
    let decided = async {
        loop {
            match raw.select_next_some().await {
                SwarmEvent::ConnectionClosed { connection_id, .. } if connection_id == connection => return false,
                SwarmEvent::Behaviour(RawEvent::Identify(identify::Event::Received { connection_id, .. }))
                    if connection_id == connection =>
                {
                    return true;
                }
                SwarmEvent::OutgoingConnectionError { connection_id, error, .. } if connection_id == connection => {
                    panic!("it was not even made: {error}")
                }
                _ => {}
            }
        }
    };
    timeout(LIMIT, decided).await.expect("it is taken or refused in time")
}

#[tokio::test]
async fn one_peer_gets_only_so_many_connections() {
    let mut settings = NetConfig { limits: NetLimits { per_peer: 2, ..NetLimits::default() }, ..config() };
    // What is redundant stays open, so that there are as many as the peer wants.
    settings.timing.redundant_grace = LIMIT * 2;
    let node = Running::with(1, open(), settings).await;
    let addr: Multiaddr = node.addr().parse().unwrap();
    let mut raw = peer(66, MessageAuthenticity::Signed(keypair(66)));
    let mut connections = Vec::new();
    for _ in 0..2 {
        let connection = dial_again(&mut raw, &addr);
        assert!(stands(&mut raw, connection).await);
        connections.push(connection);
    }
    let third = dial_again(&mut raw, &addr);
    assert!(!stands(&mut raw, third).await, "two are taken");
    assert!(is_connected(&node.net.peers(), &id(66)));

    assert!(raw.close_connection(connections[0]));
    let again = async {
        loop {
            let connection = dial_again(&mut raw, &addr);
            if stands(&mut raw, connection).await {
                return;
            }
        }
    };
    timeout(LIMIT, again).await.expect("there is room again as soon as the node has noticed");
}

#[tokio::test]
async fn a_node_without_memory_to_spare_takes_and_makes_no_connections() {
    let node = limited(closed(35), NetLimits { memory_bytes: 1, ..NetLimits::default() }).await;
    let other = Running::start(2, closed(35)).await;
    assert_eq!(node.net.dial(&other.addr()).await, Err(DialFailure::TooManyConnections));
    let failure = other.net.dial(&node.addr()).await.unwrap_err();
    assert_ne!(failure, DialFailure::NothingListens, "it lives");
    assert_eq!(node.net.report().connected + other.net.report().connected, 0);
}
