//! A thousand entries each way, to one that has nothing of them yet; and more than fit into what may wait for its beginning.

use serde_json::json;

use super::database::{Kind, Operation, Ours};
use super::peer::{Installed, JsHome};
use super::{Side, agree, of_each_release, pair};
use crate::swarm::Plan;

of_each_release! { a_thousand_entries_each_way, a_log_that_does_not_fit_into_what_may_wait_joins_all_the_same }

const ENTRIES: usize = 1_000;

fn operations(kind: Kind, writer: &str) -> Vec<Operation> {
    (0..ENTRIES)
        .map(|number| kind.put(&format!("{writer} {number}"), json!({ "number": number, "half": 0.5 })))
        .collect()
}

async fn a_thousand_entries_each_way(installed: Installed) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let kind = Kind::Documents;
    let theirs = peer.create("a thousand of theirs", kind, &["*"]).await;
    peer.write_all(&theirs, &operations(kind, "theirs")).await;
    let ours = Ours::open(swarm.member(0), &theirs).await;
    agree("a thousand of theirs", ENTRIES, &[Side::Ours(&ours), Side::Js(&peer, &theirs)]).await;

    let ours = Ours::create(swarm.member(0), "a thousand of ours", kind, Some(&["*"])).await;
    let address = ours.address().to_owned();
    ours.write_all(&operations(kind, "ours")).await;
    peer.open_address(&address).await;
    let sides = [Side::Ours(&ours), Side::Js(&peer, &address)];
    agree("a thousand of ours", ENTRIES, &sides).await;
    assert_eq!(peer.log(&address).await.len(), ENTRIES);

    // And a thousand more while both are there.
    let more = operations(kind, "more");
    tokio::join!(ours.write_all(&more[..ENTRIES / 2]), peer.write_all(&address, &more[ENTRIES / 2..]));
    agree("a thousand more", 2 * ENTRIES, &sides).await;
    peer.stop().await;
    swarm.stop_all().await;
}

async fn a_log_that_does_not_fit_into_what_may_wait_joins_all_the_same(installed: Installed) {
    let home = JsHome::new(installed);
    let peer = home.start().await;
    let kind = Kind::Documents;
    let theirs = peer.create("more than fits", kind, &["*"]).await;
    // With what is noted of each, they take some 2 MB while they wait.
    peer.write_all(&theirs, &operations(kind, "theirs")).await;
    let mut swarm = Plan::of(1).open().prepared().await;
    swarm.member_mut(0).configure("[db.sync]\nwaiting_mb_per_peer = 1\n");
    swarm.start_all().await;
    peer.dial(&swarm.member(0).address()).await;
    let ours = Ours::open(swarm.member(0), &theirs).await;
    agree("more than fits", ENTRIES, &[Side::Ours(&ours), Side::Js(&peer, &theirs)]).await;
    peer.stop().await;
    swarm.stop_all().await;
}
