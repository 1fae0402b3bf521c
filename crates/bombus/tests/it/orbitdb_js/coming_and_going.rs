//! Peers that come late, leave, restart, or are cut off in the middle: everything reaches everybody in the end.

use serde_json::json;

use super::database::{Kind, Ours};
use super::peer::{Installed, JsHome};
use super::{Side, agree, of_each_release, pair};
use crate::model::eventually;

of_each_release! {
    one_that_joins_late_gets_all, one_that_leaves_and_comes_back_gets_what_it_missed,
    one_that_restarts_goes_on_where_it_was, what_was_written_apart_comes_together,
    a_node_that_restarts_goes_on_where_it_was,
}

async fn one_that_joins_late_gets_all(installed: Installed) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let kind = Kind::Documents;
    let ours = Ours::create(swarm.member(0), "late", kind, Some(&["*"])).await;
    let address = ours.address().to_owned();
    peer.open_address(&address).await;
    for number in 0..30 {
        let operation = kind.put(&format!("{number}"), json!(number));
        if number % 2 == 0 {
            ours.write(&operation).await
        } else {
            peer.write(&address, &operation).await
        };
    }
    agree("the first two", 30, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;
    let home = JsHome::new(installed);
    let late = home.start().await;
    late.dial(&swarm.member(0).address()).await;
    late.open_address(&address).await;
    let sides = [Side::Ours(&ours), Side::Js(&peer, &address), Side::Js(&late, &address)];
    agree("the late one", 30, &sides).await;
    late.write(&address, &kind.put("from the late one", json!(1))).await;
    agree("a row of the late one", 31, &sides).await;
    // The node has all that is needed by one that comes when the first is gone.
    peer.stop().await;
    late.stop().await;
    let home = JsHome::new(installed);
    let last = home.start().await;
    last.dial(&swarm.member(0).address()).await;
    last.open_address(&address).await;
    agree("the last one", 31, &[Side::Ours(&ours), Side::Js(&last, &address)]).await;
    last.stop().await;
    swarm.stop_all().await;
}

async fn one_that_leaves_and_comes_back_gets_what_it_missed(installed: Installed) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let kind = Kind::KeyValue;
    let ours = Ours::create(swarm.member(0), "leaving", kind, Some(&["*"])).await;
    let address = ours.address().to_owned();
    peer.open_address(&address).await;
    ours.write(&kind.put("a", json!(1))).await;
    agree("before", 1, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;
    let is_there = async || ours.peers().await.iter().any(|id| id == peer.id());
    eventually("we see it in the database", is_there).await;
    eventually("it sees us", async || peer.peers(&address).await.iter().any(|id| id == swarm.id(0))).await;

    peer.close(&address).await;
    eventually("we see that it has left", async || !is_there().await).await;
    for number in 0..20 {
        ours.write(&kind.put(&format!("missed {number}"), json!(number))).await;
    }
    peer.open_address(&address).await;
    let sides = [Side::Ours(&ours), Side::Js(&peer, &address)];
    agree("what was missed", 21, &sides).await;
    peer.write(&address, &kind.put("b", json!(2))).await;
    agree("after", 22, &sides).await;
    eventually("we see it again", is_there).await;
    peer.stop().await;
    eventually("we see that it is gone", async || ours.peers().await.is_empty()).await;
    swarm.stop_all().await;
}

async fn one_that_restarts_goes_on_where_it_was(installed: Installed) {
    let (mut swarm, home, peer) = pair(installed).await;
    let kind = Kind::Documents;
    let address = peer.create("restarted", kind, &["*"]).await;
    let ours = Ours::open(swarm.member(0), &address).await;
    peer.write(&address, &kind.put("a", json!(1))).await;
    ours.write(&kind.put("b", json!(2))).await;
    agree("before", 2, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;
    let identity = peer.identity().to_owned();
    peer.stop().await;
    for number in 0..10 {
        ours.write(&kind.put(&format!("meanwhile {number}"), json!(number))).await;
    }

    let peer = home.start().await;
    assert_eq!(peer.identity(), identity, "it is the same one");
    peer.dial(&swarm.member(0).address()).await;
    peer.open_address(&address).await;
    agree("after a stop", 12, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;
    peer.write(&address, &kind.put("c", json!(3))).await;
    agree("it writes again", 13, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;

    // What it acknowledged just before it is killed may not have left it; what came over stays whole.
    peer.kill().await;
    ours.write(&kind.put("d", json!(4))).await;
    let peer = home.start().await;
    peer.dial(&swarm.member(0).address()).await;
    peer.open_address(&address).await;
    agree("after a kill", 14, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;
    peer.stop().await;
    swarm.stop_all().await;
}

async fn what_was_written_apart_comes_together(installed: Installed) {
    let (mut swarm, home, peer) = pair(installed).await;
    let kind = Kind::Documents;
    let ours = Ours::create(swarm.member(0), "apart", kind, Some(&["*"])).await;
    let address = ours.address().to_owned();
    peer.open_address(&address).await;
    ours.write(&kind.put("both", json!("ours, before"))).await;
    agree("before", 1, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;
    peer.stop().await;
    // Both write without the other: two branches.
    for number in 0..15 {
        ours.write(&kind.put(&format!("ours {number}"), json!(number))).await;
    }
    ours.write(&kind.put("both", json!("ours, apart"))).await;
    let peer = home.start().await;
    peer.open_address(&address).await;
    for number in 0..25 {
        peer.write(&address, &kind.put(&format!("theirs {number}"), json!(number))).await;
    }
    peer.write(&address, &kind.put("both", json!("theirs, apart"))).await;
    peer.dial(&swarm.member(0).address()).await;
    let sides = [Side::Ours(&ours), Side::Js(&peer, &address)];
    let rows = agree("together again", 41, &sides).await;
    assert_eq!(ours.heads().await.len(), 2, "two branches have two heads");
    let both = rows.iter().find(|row| row.key.as_deref() == Some("both")).expect("it is there");
    assert_eq!(both.value["value"], "theirs, apart", "the longer branch has the later time");
    // The next entry joins the branches.
    ours.write(&kind.put("after", json!(1))).await;
    agree("one head", 42, &sides).await;
    assert_eq!(ours.heads().await.len(), 1);
    peer.stop().await;
    swarm.stop_all().await;
}

async fn a_node_that_restarts_goes_on_where_it_was(installed: Installed) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let kind = Kind::Events;
    let ours = Ours::create(swarm.member(0), "node restarts", kind, Some(&["*"])).await;
    let address = ours.address().to_owned();
    peer.open_address(&address).await;
    ours.write(&kind.put("a", json!(1))).await;
    peer.write(&address, &kind.put("b", json!(2))).await;
    agree("before", 2, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;
    for (way, number) in [("a stop", 0), ("a kill", 1)] {
        if number == 0 {
            swarm.stop(0).await;
        } else {
            swarm.kill(0).await;
        }
        eventually("it sees that we are gone", async || peer.peers(&address).await.is_empty()).await;
        for count in 0..5 {
            peer.write(&address, &kind.put(&format!("{way} {count}"), json!(count))).await;
        }
        swarm.restart(0).await;
        peer.dial(&swarm.member(0).address()).await;
        // It is open again by itself.
        let ours = Ours::at(swarm.member(0), &address);
        let sides = [Side::Ours(&ours), Side::Js(&peer, &address)];
        agree(way, 7 + 6 * number, &sides).await;
        ours.write(&kind.put("ours again", json!(way))).await;
        agree("it writes again", 8 + 6 * number, &sides).await;
    }
    peer.stop().await;
    swarm.stop_all().await;
}
