use super::*;
use crate::Path;

#[tokio::test]
async fn a_node_that_nobody_can_dial_is_reached_through_a_member() {
    let relay = Running::start(1, closed(7)).await;
    let hidden = Running::with(2, closed(7), NetConfig { listen: Vec::new(), ..config() }).await;
    let other = Running::start(3, closed(7)).await;
    hidden.echo("/test/echo/1");
    let mut addrs = hidden.net.listen_addrs();
    let mut events = other.net.events();
    hidden.net.dial(&relay.addr()).await.unwrap();
    let relayed = timeout(LIMIT, addrs.wait_for(|addrs| !addrs.is_empty())).await.expect("a reservation in time");
    let relayed = relayed.unwrap().first().unwrap().clone();
    assert!(relayed.ends_with(&format!("/p2p/{}/p2p-circuit/p2p/{}", id(1), id(2))), "{relayed}");

    other.net.dial(&relayed).await.unwrap();
    connected(&mut events, &id(2)).await;
    other.hear_echo(&id(2), "/test/echo/1").await;
    let (_, path) = other.net.ping(&id(2)).await.unwrap();
    assert_eq!(path, Path::Relayed { via: id(1) });
    relay.report_with(|report| report.relay.serving && report.relay.circuits == 1).await;
    hidden.report_with(|report| report.relay.reservations == [id(1)]).await;
}
