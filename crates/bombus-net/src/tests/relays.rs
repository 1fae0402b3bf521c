use futures::StreamExt;
use libp2p::swarm::{NetworkBehaviour, Swarm, SwarmEvent};
use libp2p::{SwarmBuilder, noise, relay, tcp, yamux};

use super::raw::keypair;
use super::*;
use crate::Path;

// Each with a key of its own: nodes that look for holes meet whoever has got a port meanwhile, and in other tests that is a namesake.

#[tokio::test]
async fn a_node_that_nobody_can_dial_is_reached_through_a_member() {
    let relay = Running::start(1, closed(21)).await;
    let hidden = Running::with(2, closed(21), NetConfig { listen: Vec::new(), ..config() }).await;
    let other = Running::start(3, closed(21)).await;
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

#[tokio::test]
async fn a_circuit_takes_no_more_of_its_relay_than_is_configured() {
    const RATE: u32 = 64 * 1024;
    const BYTES: usize = 128 * 1024;
    let relay = Running::with(1, closed(22), NetConfig { relay_bytes_per_s: RATE, ..config() }).await;
    let hidden = Running::with(2, closed(22), NetConfig { listen: Vec::new(), ..config() }).await;
    let other = Running::start(3, closed(22)).await;
    hidden.echo("/test/echo/1");
    relay.echo("/test/echo/1");
    let mut addrs = hidden.net.listen_addrs();
    hidden.net.dial(&relay.addr()).await.unwrap();
    let relayed = timeout(LIMIT, addrs.wait_for(|addrs| !addrs.is_empty())).await.expect("a reservation in time");
    let relayed = relayed.unwrap().first().unwrap().clone();
    other.net.dial(&relayed).await.unwrap();

    let time_for = async |peer: u8| {
        let mut stream = other.net.open_stream(&id(peer), "/test/echo/1").await.unwrap();
        let path = stream.path().clone();
        let begun = std::time::Instant::now();
        let echoed = async {
            let (mut reader, mut writer) = tokio::io::split(&mut stream);
            let written = async {
                writer.write_all(&vec![1; BYTES]).await.unwrap();
                writer.flush().await.unwrap();
            };
            let mut read = vec![0; BYTES];
            tokio::join!(written, async { reader.read_exact(&mut read).await.unwrap() });
        };
        timeout(LIMIT, echoed).await.expect("all comes back in time");
        (path, begun.elapsed())
    };
    let (path, took) = time_for(2).await;
    assert_eq!(path, Path::Relayed { via: id(1) });
    // There and back is twice as much; a quarter of a second's worth may go at once.
    assert!(took >= Duration::from_secs(3), "{took:?}");
    let (path, took) = time_for(1).await;
    assert!(matches!(path, Path::Direct { .. }), "{path:?}");
    assert!(took < Duration::from_secs(3), "what is for the relay itself is not held up: {took:?}");
}

/// A peer made of plain libp2p that wants to be reached through a relay.
#[derive(NetworkBehaviour)]
struct Hidden {
    relay: relay::client::Behaviour,
}

impl Hidden {
    fn with_key(number: u8) -> Swarm<Self> {
        SwarmBuilder::with_existing_identity(keypair(number))
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_, relay| Self { relay })
            .unwrap()
            .build()
    }
}

/// Asks a node for a place, and says whether there is one.
async fn has_place(hidden: &mut Swarm<Hidden>, node: &Running) -> bool {
    hidden.listen_on(format!("{}/p2p-circuit", node.addr()).parse().unwrap()).unwrap();
    let decided = async {
        loop {
            match hidden.select_next_some().await {
                SwarmEvent::Behaviour(HiddenEvent::Relay(relay::client::Event::ReservationReqAccepted { .. })) => {
                    return true;
                }
                SwarmEvent::ListenerClosed { .. } => return false,
                _ => {}
            }
        }
    };
    timeout(LIMIT, decided).await.expect("the relay decides in time")
}

#[tokio::test]
async fn a_relay_that_is_full_refuses_the_next_one() {
    /// As many as there may be.
    const RESERVATIONS_MAX: u8 = 128;
    let (node, other) = (Running::start(1, open()).await, Running::start(2, open()).await);
    // Only who is reached by others relays.
    other.net.dial(&node.addr()).await.unwrap();
    node.report_with(|report| report.relay.serving).await;
    let mut hidden = Vec::new();
    for number in 0..RESERVATIONS_MAX {
        hidden.push(Hidden::with_key(100 + number));
        assert!(has_place(hidden.last_mut().unwrap(), &node).await, "{number}");
    }
    assert!(!has_place(&mut Hidden::with_key(99), &node).await, "one too many");
}
