//! What peers in JavaScript take for right and is not: they build on it, and what they build counts here all the same.

use serde_json::json;

use super::database::{Kind, Ours};
use super::peer::Installed;
use super::{Side, agree, of_each_release, pair};
use crate::model::eventually;

of_each_release! { an_entry_in_our_name_by_another_key_does_not_count_and_what_follows_it_does }

/// Honest entries on top of the forged one.
const HONEST: usize = 100;

async fn an_entry_in_our_name_by_another_key_does_not_count_and_what_follows_it_does(installed: Installed) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let kind = Kind::KeyValue;
    // Only the node may write to it, and the peer whose own entries are honest.
    let scratch = Ours::create(swarm.member(0), "scratch", kind, None).await;
    let identity = scratch.identity().await;
    let ours = Ours::create(swarm.member(0), "attacked", kind, Some(&[&identity, peer.identity()])).await;
    let address = ours.address().to_owned();
    ours.write(&kind.put("ours", json!("by us"))).await;
    peer.open_address(&address).await;
    agree("before", 1, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;

    // The peer believes it: signed by some key, it names our identity, which may write.
    let forged = peer.done("forge", json!({ "address": address, "key": "forged", "value": "not by us" })).await;
    assert_eq!(peer.get(&address, kind, "forged").await, Some(json!("not by us")), "JavaScript shows it");
    let honest: Vec<_> = (0..HONEST).map(|number| kind.put(&format!("honest {number}"), json!(number))).collect();
    peer.write_all(&address, &honest).await;

    eventually("all honest entries count", async || ours.all().await.len() == HONEST + 1).await;
    let rows = ours.all().await;
    assert!(
        rows.iter().all(|row| forged != row.hash && row.key.as_deref() != Some("forged")),
        "the forged one does not"
    );
    assert_eq!(ours.get("forged").await, None);
    assert_eq!(ours.info().await["refused"], json!({ "key": 1 }), "it is counted as what it is");
    assert_eq!(ours.heads().await, peer.heads(&address).await, "both stand on the same heads");

    // Both go on from there.
    let after = ours.write(&kind.put("after", json!("by us"))).await;
    peer.hears("our next entry", |event| event["hash"] == *after).await;
    peer.write(&address, &kind.put("after that", json!("by them"))).await;
    eventually("their next entry", async || ours.get("after that").await.is_some()).await;
    peer.stop().await;
    swarm.stop_all().await;
}
