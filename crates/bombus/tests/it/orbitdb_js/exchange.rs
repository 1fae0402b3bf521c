//! Databases that one side made and the other opens: put, change and delete, both ways.

use serde_json::{Value, json};

use super::database::{Kind, Operation, Ours};
use super::peer::{Installed, JsHome, JsPeer};
use super::{Side, agree, of_each_release, pair};
use crate::swarm::Plan;

of_each_release! {
    they_open_our_documents, they_open_our_events, they_open_our_keys,
    we_open_their_documents, we_open_their_events, we_open_their_keys,
    a_node_that_dials_a_peer_serves_it_as_well, two_of_them_agree_without_us,
}

async fn they_open_our_documents(installed: Installed) {
    they_open_ours(installed, Kind::Documents).await;
}

async fn they_open_our_events(installed: Installed) {
    they_open_ours(installed, Kind::Events).await;
}

async fn they_open_our_keys(installed: Installed) {
    they_open_ours(installed, Kind::KeyValue).await;
}

async fn we_open_their_documents(installed: Installed) {
    we_open_theirs(installed, Kind::Documents).await;
}

async fn we_open_their_events(installed: Installed) {
    we_open_theirs(installed, Kind::Events).await;
}

async fn we_open_their_keys(installed: Installed) {
    we_open_theirs(installed, Kind::KeyValue).await;
}

async fn they_open_ours(installed: Installed, kind: Kind) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let ours = Ours::create(swarm.member(0), "ours", kind, Some(&["*"])).await;
    let address = ours.address().to_owned();
    ours.write(&kind.put("a", json!(1))).await;
    ours.write(&kind.put("b", json!("two"))).await;
    peer.open_address(&address).await;
    agree("what was there before", 2, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;
    share(kind, &ours, &peer).await;
    peer.stop().await;
    swarm.stop_all().await;
}

async fn we_open_theirs(installed: Installed, kind: Kind) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let address = peer.create("theirs", kind, &["*"]).await;
    peer.write(&address, &kind.put("a", json!(1))).await;
    peer.write(&address, &kind.put("b", json!("two"))).await;
    let ours = Ours::open(swarm.member(0), &address).await;
    agree("what was there before", 2, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;
    share(kind, &ours, &peer).await;
    peer.stop().await;
    swarm.stop_all().await;
}

/// Has both sides write to a database with two rows, each upon what the other one wrote.
async fn share(kind: Kind, ours: &Ours<'_>, peer: &JsPeer) {
    let address = ours.address();
    let sides = [Side::Ours(ours), Side::Js(peer, address)];

    let written = ours.write(&kind.put("c", json!({ "by": "ours" }))).await;
    peer.hears("an update of ours", |event| event["event"] == "update" && event["hash"] == *written).await;
    agree("a row of ours", 3, &sides).await;
    let written = peer.write(address, &kind.put("d", json!({ "by": "theirs" }))).await;
    let rows = agree("a row of theirs", 4, &sides).await;
    assert_eq!(rows.last().map(|row| &row.hash), Some(&written));

    if kind == Kind::Events {
        let values: Vec<_> = rows.iter().map(|row| row.value["key"].clone()).collect();
        assert_eq!(values, ["a", "b", "c", "d"]);
        return;
    }
    // Each changes what the other one wrote.
    ours.write(&kind.put("d", json!("changed by ours"))).await;
    peer.hears("a change of ours", |event| event["event"] == "update" && event["key"] == "d").await;
    agree("a change of ours", 4, &sides).await;
    peer.write(address, &kind.put("c", json!("changed by theirs"))).await;
    agree("a change of theirs", 4, &sides).await;
    let value = |found: Option<Value>| {
        let found = found.expect("it is there");
        if kind == Kind::Documents { found["value"].clone() } else { found }
    };
    for (key, wanted) in [("c", "changed by theirs"), ("d", "changed by ours")] {
        assert_eq!(value(ours.get(key).await), wanted);
        assert_eq!(value(peer.get(address, kind, key).await), wanted);
    }
    // And takes it away.
    ours.write(&Operation::Del("d".into())).await;
    agree("a deletion of ours", 3, &sides).await;
    assert_eq!(peer.get(address, kind, "d").await, None);
    peer.write(address, &Operation::Del("c".into())).await;
    agree("a deletion of theirs", 2, &sides).await;
    assert_eq!(ours.get("c").await, None);
    // What was taken away can come back.
    ours.write(&kind.put("c", json!("again"))).await;
    agree("a row that comes back", 3, &sides).await;
    assert_eq!(value(peer.get(address, kind, "c").await), "again");
}

async fn a_node_that_dials_a_peer_serves_it_as_well(installed: Installed) {
    let home = JsHome::new(installed);
    let peer = home.start().await;
    let mut swarm = Plan::of(1).open().prepared().await;
    swarm.member_mut(0).add_argument("--seed");
    swarm.member_mut(0).add_argument(peer.address());
    swarm.member_mut(0).start().await;
    let address = peer.create("theirs", Kind::Events, &["*"]).await;
    peer.write(&address, &Kind::Events.put("a", json!(1))).await;
    let ours = Ours::open(swarm.member(0), &address).await;
    ours.write(&Kind::Events.put("b", json!(2))).await;
    agree("both wrote", 2, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;
    peer.stop().await;
    swarm.stop_all().await;
}

/// What fails here is no fault of ours.
async fn two_of_them_agree_without_us(installed: Installed) {
    let Some(other) = installed.release().other().installed().await else { return };
    let homes = [JsHome::new(installed), JsHome::new(other)];
    let (one, two) = (homes[0].start().await, homes[1].start().await);
    one.dial(two.address()).await;
    let address = one.create("theirs", Kind::Events, &["*"]).await;
    one.write(&address, &Kind::Events.put("a", json!(1))).await;
    two.open_address(&address).await;
    two.write(&address, &Kind::Events.put("b", json!(2))).await;
    agree("both wrote", 2, &[Side::Js(&one, &address), Side::Js(&two, &address)]).await;
    one.stop().await;
    two.stop().await;
}
