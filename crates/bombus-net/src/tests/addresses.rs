//! Where nodes say that they are reached, and what others find of that.

use super::*;
use crate::{AddressSource, Reachability};

#[tokio::test]
async fn an_address_that_only_the_owner_knows_of_is_told_to_all() {
    const FORWARDED: &str = "/ip4/192.0.2.7/tcp/7891";
    let node = Running::with(1, closed(41), NetConfig { external: vec![FORWARDED.to_owned()], ..config() }).await;
    let report = node.report_with(|report| !report.external.is_empty()).await;
    assert_eq!(report.external, [FORWARDED]);
    let listen = node.net.listen_addrs().borrow().clone();
    assert!(listen.contains(&format!("{FORWARDED}/p2p/{}", id(1))), "tickets have it: {listen:?}");

    let other = Running::start(2, closed(41)).await;
    let by_loopback = listen.iter().find(|addr| addr.starts_with("/ip4/127.")).expect("it listens");
    other.net.dial(by_loopback).await.unwrap();
    let knows = |peer: &NetPeer| {
        let mut addresses = peer.addresses.iter();
        peer.node_id == id(1)
            && addresses.any(|address| address.addr == FORWARDED && address.source == AddressSource::Peer)
    };
    other.peers_with(|peers| peers.iter().any(knows)).await;
}

#[tokio::test]
async fn nodes_find_out_from_others_whether_they_are_reached_directly() {
    let (node, other) = (Running::start(1, closed(42)).await, Running::start(2, closed(42)).await);
    assert_eq!(node.net.report().reachability, Reachability::Unknown, "nobody has tried yet");
    let hidden = Running::with(3, closed(42), NetConfig { listen: Vec::new(), ..config() }).await;
    node.net.dial(&other.addr()).await.unwrap();
    hidden.net.dial(&other.addr()).await.unwrap();
    node.report_with(|report| report.reachability == Reachability::Public).await;
    hidden.report_with(|report| report.reachability == Reachability::Private).await;
}
