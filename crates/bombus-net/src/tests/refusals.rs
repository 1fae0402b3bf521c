use std::collections::BTreeSet;
use std::net::TcpListener;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::*;
use crate::{DialFailure, ProbeVerdict, probe};

const STEP: Duration = Duration::from_secs(2);

async fn look(addr: &str, state: &MembershipState) -> ProbeVerdict {
    probe(addr, &state.privacy, &identity(99).key, STEP).await
}

#[tokio::test]
async fn a_node_with_another_key_is_told_so() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(8)).await);
    assert_eq!(one.net.dial(&other.addr()).await, Err(DialFailure::AnotherSwarmKey));
    other.report_with(|report| report.refused_strangers > 0).await;
    assert_eq!(one.net.report().connected + other.net.report().connected, 0);
}

#[tokio::test]
async fn open_and_closed_nodes_tell_each_other_apart() {
    let (closed, open) = (Running::start(1, closed(7)).await, Running::start(2, open()).await);
    assert_eq!(closed.net.dial(&open.addr()).await, Err(DialFailure::NoSwarmKey));
    assert_eq!(open.net.dial(&closed.addr()).await, Err(DialFailure::AnotherSwarmKey));
}

#[tokio::test]
async fn a_stranger_is_refused_before_noise() {
    let node = Running::start(1, closed(7)).await;
    // What comes out of the cipher differs with the nonce. Much of it the negotiation behind would take for the beginning of a message.
    for number in 1..=16 {
        let mut socket = TcpStream::connect((HERE, node.port())).await.unwrap();
        // As somebody would who knows the protocols, but not the key: a nonce, then libp2p's greeting and the offer of Noise in plain text.
        socket.write_all(&[number; 24]).await.unwrap();
        socket.write_all(b"\x13/multistream/1.0.0\n\x07/noise\n").await.unwrap();
        let mut answer = Vec::new();
        let refused = timeout(config().timing.handshake_limit, socket.read_to_end(&mut answer)).await;
        // A reset is a refusal as well.
        let _ = refused.expect("it is refused for what it said, and not when its time is over");
        assert!(answer.len() <= 24, "nothing but the nonce was said: {answer:?}");
    }
    node.report_with(|report| report.refused_strangers == 16).await;
}

#[tokio::test]
async fn half_open_connections_end_by_themselves() {
    let node = Running::start(1, closed(7)).await;
    let mut socket = TcpStream::connect((HERE, node.port())).await.unwrap();
    let mut heard = Vec::new();
    let ended = timeout(config().timing.handshake_limit * 4, socket.read_to_end(&mut heard)).await;
    assert!(ended.is_ok(), "who says nothing is let go");
    assert_eq!(heard.len(), 24, "the nonce");
}

#[tokio::test]
async fn probes_say_what_is_there() {
    let ours = closed(7);
    let member = Running::start(1, closed(7)).await;
    let verdict = look(&member.addr(), &ours).await;
    assert!(matches!(&verdict, ProbeVerdict::Fine { peer, .. } if *peer == id(1)), "{verdict:?}");
    let (plain, _) = member.addr().rsplit_once("/p2p/").map(|(addr, id)| (addr.to_owned(), id.to_owned())).unwrap();
    let verdict = look(&format!("{plain}/p2p/{}", id(50)), &ours).await;
    assert_eq!(verdict, ProbeVerdict::WrongPeer { found: id(1) });
    let verdict = probe(&plain, &ours.privacy, &identity(1).key, STEP).await;
    assert_eq!(verdict, ProbeVerdict::SameIdentity);

    assert_eq!(look(&plain, &closed(8)).await, ProbeVerdict::AnotherSwarmKey);
    assert_eq!(look(&plain, &open()).await, ProbeVerdict::AnotherSwarmKey);
    let open_node = Running::start(2, open()).await;
    assert_eq!(look(&open_node.addr(), &ours).await, ProbeVerdict::NoSwarmKey);

    let free = TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap();
    let verdict = look(&format!("/ip4/127.0.0.1/tcp/{}", free.port()), &ours).await;
    assert_eq!(verdict, ProbeVerdict::NothingListens);
    let verdict = look("/ip4/127.0.0.1", &ours).await;
    assert!(matches!(verdict, ProbeVerdict::InvalidAddress { .. }), "{verdict:?}");
    let verdict = look("/dns/no-such-name.invalid/tcp/7891", &ours).await;
    assert!(matches!(verdict, ProbeVerdict::UnknownName { .. } | ProbeVerdict::Timeout), "{verdict:?}");
}

#[tokio::test]
async fn probes_know_other_services() {
    for greeting in [b"".as_slice(), b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", b"220 mail\r\n"] {
        let listener = tokio::net::TcpListener::bind((HERE, 0)).await.unwrap();
        let addr = format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().unwrap().port());
        // It says its greeting and waits for a request; a failure shows in the verdict.
        let service = tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                socket.write_all(greeting).await.unwrap();
                open.push(socket);
            }
        });
        assert_eq!(look(&addr, &closed(7)).await, ProbeVerdict::NotLibp2p, "{}", greeting.escape_ascii());
        service.abort();
    }
}

#[tokio::test]
async fn a_chosen_port_that_is_taken_is_an_error() {
    let taken = TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap();
    let _holder = TcpListener::bind(taken).unwrap();
    let (_membership, following) = watch::channel(closed(7));
    let config = NetConfig { listen: vec![ListenOn::fixed(HERE, taken.port())], ..config() };
    let (_net, service) = net(config, identity(1), MembershipHandle::following(following));
    let error = service.run(CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, NetError::PortTaken { .. }), "{error}");
}

#[tokio::test]
async fn a_setting_that_is_no_address_is_an_error() {
    let (_membership, following) = watch::channel(closed(7));
    let config = NetConfig { seeds: vec!["192.0.2.7:7891".to_owned()], ..config() };
    let (_net, service) = net(config, identity(1), MembershipHandle::following(following));
    let error = service.run(CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, NetError::InvalidAddress { .. }), "{error}");
}

#[tokio::test]
async fn two_processes_with_one_identity_are_told() {
    let (one, double) = (Running::start(1, closed(7)).await, Running::start(1, closed(7)).await);
    let (mut events, mut others_events) = (one.net.events(), double.net.events());
    let plain = double.addr().rsplit_once("/p2p/").unwrap().0.to_owned();
    assert_eq!(one.net.dial(&plain).await, Err(DialFailure::SameIdentity));
    let conflict = |event: &NetEvent| matches!(event, NetEvent::IdentityConflict { .. }).then_some(());
    heard(&mut events, conflict).await;
    heard(&mut others_events, conflict).await;
    assert_eq!(one.net.report().identity_conflicts.len(), 1);
}

#[tokio::test]
async fn a_node_that_dials_itself_is_no_conflict() {
    let one = Running::start(1, closed(7)).await;
    let mut events = one.net.events();
    let other_name = format!("/dns4/localhost/tcp/{}", one.port());
    let failure = one.net.dial(&other_name).await.unwrap_err();
    assert!(matches!(failure, DialFailure::SameIdentity | DialFailure::UnknownName { .. }), "{failure}");
    let told = timeout(Duration::from_secs(4), async {
        loop {
            if let Some(NetEvent::IdentityConflict { addr }) = events.next().await {
                return addr;
            }
        }
    });
    assert!(told.await.is_err(), "both ends were its own");
}

#[tokio::test]
async fn a_removed_peer_is_put_out_and_not_let_in_again() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await);
    let mut events = one.net.events();
    one.net.dial(&other.addr()).await.unwrap();
    connected(&mut events, &id(2)).await;
    let removed = Arc::new(BTreeSet::from([id(2)]));
    one.membership.send_modify(|state| state.removed = removed);
    disconnected(&mut events, &id(2)).await;
    assert_eq!(one.net.dial(&other.addr()).await, Err(DialFailure::NotAMember));
    // It may see the connection stand for a moment before it is closed.
    let _ = other.net.dial(&one.addr()).await;
    one.report_with(|report| report.refused_removed > 0).await;
    assert_eq!(one.net.report().connected, 0);
    assert!(one.net.peers().iter().all(|peer| peer.node_id != id(2)), "it is forgotten");
}
