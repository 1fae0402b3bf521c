use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use super::*;

fn rebuilt(event: &NetEvent) -> Option<u64> {
    match event {
        NetEvent::Rebuilt { generation } => Some(*generation),
        _ => None,
    }
}

#[tokio::test]
async fn a_new_key_keeps_ports_subscriptions_and_protocols_and_ends_streams() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await);
    let addr = other.addr();
    other.echo("/test/echo/1");
    let mut heard_there = other.net.subscribe("t", accept_all()).await.unwrap();
    let _own = one.net.subscribe("t", accept_all()).await.unwrap();
    let (mut events, mut others_events) = (one.net.events(), other.net.events());
    one.net.dial(&addr).await.unwrap();
    one.hear_echo(&id(2), "/test/echo/1").await;
    let mut stream = one.net.open_stream(&id(2), "/test/echo/1").await.unwrap();
    connected(&mut events, &id(2)).await;

    for node in [&one, &other] {
        node.membership.send_modify(|state| {
            *state = MembershipState { generation: Generation(1), ..closed(8) };
        });
    }
    disconnected(&mut events, &id(2)).await;
    assert_eq!(heard(&mut events, rebuilt).await, 1);
    assert_eq!(heard(&mut others_events, rebuilt).await, 1);
    for node in [&one, &other] {
        assert_eq!(node.net.report().listen_failures, [], "connections that have just ended are not in the way");
    }
    let error = timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");

    connected(&mut events, &id(2)).await;
    let mut addrs = other.net.listen_addrs();
    timeout(LIMIT, addrs.wait_for(|addrs| addrs.contains(&addr))).await.expect("the port stays").unwrap();
    one.hear_echo(&id(2), "/test/echo/1").await;
    subscribed(&mut events, &id(2)).await;
    one.net.publish("t", b"after".to_vec()).await.unwrap();
    assert_eq!(timeout(LIMIT, heard_there.next()).await.unwrap().unwrap().data, b"after");
}

/// Listens on a node's port beside it, as libp2p lets others do: it stands for a process that has the port when the node lets go of it.
fn take_beside(port: u16) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::new(HERE, port).into()).unwrap();
    socket.listen(1).unwrap();
    socket
}

fn change_key(node: &Running) {
    node.membership.send_modify(|state| *state = MembershipState { generation: Generation(1), ..closed(8) });
}

#[tokio::test]
async fn a_chosen_port_that_another_process_takes_meanwhile_is_told_and_waited_for() {
    let port = TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap().port();
    let mut settings = NetConfig { listen: vec![ListenOn::fixed(HERE, port)], ..config() };
    settings.timing.relisten_pause = Duration::from_millis(200);
    settings.timing.port_patience = Duration::ZERO;
    let (one, other) = (Running::with(1, closed(7), settings).await, Running::start(2, closed(8)).await);
    let addr = one.addr();
    let taken = take_beside(port);
    let mut events = one.net.events();
    change_key(&one);
    let (failed, why) = heard(&mut events, |event| match event {
        NetEvent::ListenFailed { addr, why } => Some((addr.clone(), why.clone())),
        _ => None,
    })
    .await;
    assert_eq!(
        (failed.as_str(), why.as_str()),
        (&*format!("/ip4/127.0.0.1/tcp/{port}"), "another process listens there")
    );
    let report = one.report_with(|report| report.generation == 1 && !report.listen_failures.is_empty()).await;
    assert_eq!(report.listen_failures, [(failed, why)]);
    assert!(report.listen.is_empty() && one.net.listen_addrs().borrow().is_empty(), "{:?}", report.listen);
    one.net.dial(&other.addr()).await.expect("the rest of the mesh goes on");

    drop(taken);
    let report = one.report_with(|report| report.listen_failures.is_empty() && !report.listen.is_empty()).await;
    assert_eq!(report.listen, std::slice::from_ref(&addr), "what somebody chose is not replaced");
    let third = Running::start(3, closed(8)).await;
    third.net.dial(&addr).await.unwrap();
}

#[tokio::test]
async fn a_port_that_nobody_chose_and_another_process_keeps_is_replaced() {
    let mut settings = config();
    settings.timing.relisten_pause = Duration::from_millis(200);
    settings.timing.port_patience = Duration::from_millis(500);
    let one = Running::with(1, closed(7), settings).await;
    let port = one.port();
    let _taken = take_beside(port);
    let mut events = one.net.events();
    change_key(&one);
    heard(&mut events, |event| matches!(event, NetEvent::ListenFailed { .. }).then_some(())).await;
    let report = one.report_with(|report| report.listen_failures.is_empty() && !report.listen.is_empty()).await;
    assert_ne!(one.port(), port);
    let other = Running::start(2, closed(8)).await;
    other.net.dial(&report.listen[0]).await.unwrap();
}

#[tokio::test]
async fn who_keeps_the_old_key_is_out() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await);
    let mut events = one.net.events();
    one.net.dial(&other.addr()).await.unwrap();
    connected(&mut events, &id(2)).await;
    one.membership.send_modify(|state| *state = MembershipState { generation: Generation(1), ..closed(8) });
    assert_eq!(heard(&mut events, rebuilt).await, 1);
    let why = heard(&mut events, |event| match event {
        NetEvent::DialFailed { why, .. } => Some(why.clone()),
        _ => None,
    });
    assert_eq!(why.await, crate::DialFailure::AnotherSwarmKey);
    assert_eq!(one.net.report().connected, 0);
}

#[tokio::test]
async fn a_peer_that_restarts_at_its_address_is_found_again() {
    let one = Running::start(1, closed(7)).await;
    let other = Running::start(2, closed(7)).await;
    let port = other.port();
    let mut events = one.net.events();
    one.net.dial(&other.addr()).await.unwrap();
    connected(&mut events, &id(2)).await;
    other.stop().await;
    disconnected(&mut events, &id(2)).await;
    let again = NetConfig { listen: vec![ListenOn::fixed(HERE, port)], ..config() };
    let other = Running::with(2, closed(7), again).await;
    connected(&mut events, &id(2)).await;
    other.echo("/test/echo/1");
    one.hear_echo(&id(2), "/test/echo/1").await;
}

#[tokio::test]
async fn a_seed_that_comes_later_is_found() {
    let first = Running::start(1, closed(7)).await;
    let (addr, port) = (first.addr(), first.port());
    first.stop().await;
    let other = Running::with(2, closed(7), NetConfig { seeds: vec![addr.clone()], ..config() }).await;
    let mut events = other.net.events();
    other.report_with(|report| report.seeds.iter().any(|seed| seed.tried > 0)).await;
    let again = NetConfig { listen: vec![ListenOn::fixed(HERE, port)], ..config() };
    let _first = Running::with(1, closed(7), again).await;
    connected(&mut events, &id(1)).await;
    let report = other.report_with(|report| report.seeds[0].failure.is_none()).await;
    assert_eq!(report.seeds[0].peer, Some(id(1)));
}

#[tokio::test]
async fn two_nodes_that_dial_each_other_end_with_one_connection() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await);
    other.echo("/test/echo/1");
    let (addr, others_addr) = (one.addr(), other.addr());
    let (dialled, dialled_back) = tokio::join!(one.net.dial(&others_addr), other.net.dial(&addr));
    dialled.unwrap();
    dialled_back.unwrap();
    let mut events = one.net.events();
    let other = id(2);
    let quiet = timeout(Duration::from_secs(3), disconnected(&mut events, &other));
    assert!(quiet.await.is_err(), "closing one of the two does not lose the peer");
    one.hear_echo(&id(2), "/test/echo/1").await;
}

#[tokio::test]
async fn a_panic_of_libp2p_costs_the_connections_and_not_the_node() {
    let (one, other) = (Running::start(1, closed(7)).await, Running::start(2, closed(7)).await);
    other.echo("/test/echo/1");
    let mut events = one.net.events();
    one.net.dial(&other.addr()).await.unwrap();
    connected(&mut events, &id(2)).await;
    one.net.shared.commands.send(crate::shared::Command::Panic).await.unwrap_or_else(|_| panic!("it runs"));
    disconnected(&mut events, &id(2)).await;
    connected(&mut events, &id(2)).await;
    one.hear_echo(&id(2), "/test/echo/1").await;
    one.stop().await;
}
