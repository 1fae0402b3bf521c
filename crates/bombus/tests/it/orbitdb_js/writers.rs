//! Several writers at once: whatever meets whatever, all end up with the same entries in the same order.

use std::path::PathBuf;

use futures::future::join_all;
use serde_json::json;

use super::database::{Kind, Operation, Ours};
use super::peer::{Installed, JsHome, JsPeer};
use super::{Side, agree, of_each_release, pair};
use crate::swarm::Plan;

of_each_release! {
    two_write_documents_at_once, two_write_keys_at_once, two_write_events_at_once, three_write_at_once,
    a_swarm_with_a_key_has_writers_of_both_releases,
}

/// How many entries each of the writers has.
const EACH: usize = 40;

/// What one of the writers writes: the keys are the same for all of them, and some go again.
fn operations(kind: Kind, writer: &str) -> Vec<Operation> {
    let one = |number: usize| kind.put(&format!("key {}", number % 7), json!({ "by": writer, "number": number }));
    (0..EACH).map(one).collect()
}

async fn ours_write(ours: &Ours<'_>, kind: Kind, writer: &str) {
    for operation in operations(kind, writer) {
        ours.write(&operation).await;
    }
}

async fn they_write(peer: &JsPeer, address: &str, kind: Kind, writer: &str) {
    for operation in operations(kind, writer) {
        peer.write(address, &operation).await;
    }
}

/// How many rows there are when so many have written.
fn rows(kind: Kind, writers: usize) -> usize {
    if kind == Kind::Events { writers * EACH } else { 7 }
}

async fn two_write_documents_at_once(installed: Installed) {
    two_write_at_once(installed, Kind::Documents).await;
}

async fn two_write_keys_at_once(installed: Installed) {
    two_write_at_once(installed, Kind::KeyValue).await;
}

async fn two_write_events_at_once(installed: Installed) {
    two_write_at_once(installed, Kind::Events).await;
}

async fn two_write_at_once(installed: Installed, kind: Kind) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let ours = Ours::create(swarm.member(0), "together", kind, Some(&["*"])).await;
    let address = ours.address().to_owned();
    peer.open_address(&address).await;
    tokio::join!(ours_write(&ours, kind, "ours"), they_write(&peer, &address, kind, "theirs"));
    let sides = [Side::Ours(&ours), Side::Js(&peer, &address)];
    agree("two writers", rows(kind, 2), &sides).await;
    if kind != Kind::Events {
        // One takes away what the other puts.
        let deletions = async {
            for number in 0..7 {
                ours.write(&Operation::Del(format!("key {number}"))).await;
            }
        };
        let last = kind.put("last", json!(1));
        tokio::join!(deletions, peer.write(&address, &last));
        agree("puts and deletions", 1, &sides).await;
    }
    assert_eq!(ours.info().await["refused"], json!({}));
    peer.stop().await;
    swarm.stop_all().await;
}

async fn three_write_at_once(installed: Installed) {
    let Some(other) = installed.release().other().installed().await else { return };
    let kind = Kind::Events;
    let (mut swarm, _home, peer) = pair(installed).await;
    let other_home = JsHome::new(other);
    let third = other_home.start().await;
    third.dial(&swarm.member(0).address()).await;
    let address = peer.create("of three", kind, &["*"]).await;
    let ours = Ours::open(swarm.member(0), &address).await;
    third.open_address(&address).await;
    tokio::join!(
        ours_write(&ours, kind, "ours"),
        they_write(&peer, &address, kind, "theirs"),
        they_write(&third, &address, kind, "others")
    );
    // The two in JavaScript know of each other through the node alone.
    let sides = [Side::Ours(&ours), Side::Js(&peer, &address), Side::Js(&third, &address)];
    agree("three writers", rows(kind, 3), &sides).await;
    let (one, two) = (peer.log(&address).await, third.log(&address).await);
    assert_eq!(one, two, "the same log in the same order");
    peer.stop().await;
    third.stop().await;
    swarm.stop_all().await;
}

async fn a_swarm_with_a_key_has_writers_of_both_releases(installed: Installed) {
    let Some(other) = installed.release().other().installed().await else { return };
    let kind = Kind::KeyValue;
    let mut swarm = Plan::of(2).start().await;
    swarm.all_see_each_other().await;
    let id = swarm.member(0).get("/swarm").await["swarm_id"].as_str().expect("a swarm has an id").to_owned();
    let key: PathBuf = swarm.member(0).home().data_dir().join("swarms").join(id).join("swarm.key");
    let homes = [installed, other].map(|release| JsHome::with_key(release, key.clone()));
    let peers = join_all(homes.iter().map(JsHome::start)).await;
    // Each at another node, so that what they write goes over two of them.
    for (index, peer) in peers.iter().enumerate() {
        peer.dial(&swarm.member(index).address()).await;
    }
    let first = Ours::create(swarm.member(0), "of the swarm", kind, Some(&["*"])).await;
    let address = first.address().to_owned();
    let second = Ours::open(swarm.member(1), &address).await;
    for peer in &peers {
        peer.open_address(&address).await;
    }
    tokio::join!(
        ours_write(&first, kind, "first"),
        ours_write(&second, kind, "second"),
        they_write(&peers[0], &address, kind, "third"),
        they_write(&peers[1], &address, kind, "fourth")
    );
    let sides = [Side::Ours(&first), Side::Ours(&second), Side::Js(&peers[0], &address), Side::Js(&peers[1], &address)];
    agree("four writers", rows(kind, 4), &sides).await;
    for peer in peers {
        peer.stop().await;
    }
    swarm.stop_all().await;
}
