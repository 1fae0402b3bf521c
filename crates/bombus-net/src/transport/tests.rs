use std::future::poll_fn;
use std::pin::Pin;

use libp2p::core::Endpoint;
use libp2p::core::transport::{DialOpts, ListenerId, PortUse, TransportEvent};
use tokio::time::timeout;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

/// Nagle's algorithm with delayed acknowledgements costs 40 ms for each message.
#[tokio::test]
async fn neither_end_of_a_connection_holds_back_small_writes() {
    let (mut listening, mut dialling) = (tcp_with_names(LIMIT), tcp_with_names(LIMIT));
    listening.listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let addr = match poll_fn(|cx| Pin::new(&mut listening).poll(cx)).await {
        TransportEvent::NewAddress { listen_addr, .. } => listen_addr,
        event => panic!("{event:?}"),
    };
    let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
    let dialled = dialling.dial(addr, options).unwrap();
    let accepted = async {
        match poll_fn(|cx| Pin::new(&mut listening).poll(cx)).await {
            TransportEvent::Incoming { upgrade, .. } => upgrade.await,
            event => panic!("{event:?}"),
        }
    };
    let both = async { tokio::join!(dialled, accepted) };
    let (dialled, accepted) = timeout(LIMIT, both).await.expect("they meet in time");
    for socket in [dialled.unwrap(), accepted.unwrap()] {
        assert!(socket.0.nodelay().unwrap(), "{socket:?}");
    }
}
