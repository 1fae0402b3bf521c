//! Who may write: fixed lists, and rights that are granted and revoked, whoever made the database.

use serde_json::json;

use super::database::{Kind, Ours};
use super::peer::Installed;
use super::{Side, agree, of_each_release, pair};
use crate::model::eventually;

of_each_release! {
    a_fixed_list_holds_on_both_sides, we_grant_and_revoke, they_grant_and_revoke,
}

async fn a_fixed_list_holds_on_both_sides(installed: Installed) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let kind = Kind::KeyValue;
    // Ours alone; theirs alone.
    let address = peer.create("theirs alone", kind, &[peer.identity()]).await;
    peer.write(&address, &kind.put("a", json!(1))).await;
    let theirs = Ours::open(swarm.member(0), &address).await;
    agree("theirs alone", 1, &[Side::Ours(&theirs), Side::Js(&peer, &address)]).await;
    assert_eq!(theirs.writers().await, [peer.identity()]);
    let problem = theirs.try_write(&kind.put("b", json!(2))).await.expect_err("we may not write");
    assert_eq!(problem["status"], 403, "{problem}");

    let identity = theirs.identity().await;
    let ours = Ours::create(swarm.member(0), "ours alone", kind, Some(&[&identity])).await;
    let address = ours.address().to_owned();
    ours.write(&kind.put("a", json!(1))).await;
    peer.open_address(&address).await;
    agree("ours alone", 1, &[Side::Ours(&ours), Side::Js(&peer, &address)]).await;
    let refused = peer.try_write(&address, &kind.put("b", json!(2))).await.expect_err("it may not write");
    assert!(refused.contains("not allowed to write"), "{refused}");

    // Both by name.
    let both = Ours::create(swarm.member(0), "both", kind, Some(&[&identity, peer.identity()])).await;
    let address = both.address().to_owned();
    both.write(&kind.put("a", json!(1))).await;
    peer.open_address(&address).await;
    peer.write(&address, &kind.put("b", json!(2))).await;
    agree("both", 2, &[Side::Ours(&both), Side::Js(&peer, &address)]).await;
    peer.stop().await;
    swarm.stop_all().await;
}

async fn we_grant_and_revoke(installed: Installed) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let kind = Kind::Documents;
    let ours = Ours::create(swarm.member(0), "granted by ours", kind, None).await;
    let address = ours.address().to_owned();
    ours.write(&kind.put("ours", json!(1))).await;
    peer.open_address(&address).await;
    let sides = [Side::Ours(&ours), Side::Js(&peer, &address)];
    agree("before", 1, &sides).await;
    let refused = peer.try_write(&address, &kind.put("too early", json!(1))).await.expect_err("it may not write yet");
    assert!(refused.contains("not allowed to write"), "{refused}");

    ours.grant(peer.identity()).await;
    eventually("it hears that it may", async || peer.writers(&address).await.contains(&peer.identity().to_owned()))
        .await;
    peer.write(&address, &kind.put("theirs", json!(2))).await;
    agree("granted", 2, &sides).await;

    ours.revoke(peer.identity()).await;
    eventually("it hears that it may not", async || peer.writers(&address).await.is_empty()).await;
    let refused =
        peer.try_write(&address, &kind.put("too late", json!(1))).await.expect_err("it may not write any more");
    assert!(refused.contains("not allowed to write"), "{refused}");
    // What it wrote does not count with us any more, but what we write after it still reaches it.
    eventually("its entries do not count", async || ours.all().await.len() == 1).await;
    assert_eq!(ours.info().await["refused"], json!({ "access": 1 }));
    let after = ours.write(&kind.put("after", json!(3))).await;
    peer.hears("an entry after the revocation", |event| event["hash"] == *after).await;
    let shown: Vec<_> = ours.all().await.into_iter().filter_map(|row| row.key).collect();
    assert_eq!(shown, ["ours", "after"]);

    ours.grant(peer.identity()).await;
    eventually("its entries count again", async || ours.all().await.len() == 3).await;
    eventually("it hears that it may", async || peer.writers(&address).await.contains(&peer.identity().to_owned()))
        .await;
    peer.write(&address, &kind.put("theirs again", json!(4))).await;
    eventually("what it writes counts", async || ours.get("theirs again").await.is_some()).await;
    peer.stop().await;
    swarm.stop_all().await;
}

async fn they_grant_and_revoke(installed: Installed) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let kind = Kind::KeyValue;
    let address = peer.open(json!({ "name": "granted by theirs", "type": kind.name(), "access": "orbitdb" })).await;
    peer.write(&address, &kind.put("theirs", json!(1))).await;
    let ours = Ours::open(swarm.member(0), &address).await;
    let sides = [Side::Ours(&ours), Side::Js(&peer, &address)];
    agree("before", 1, &sides).await;
    let problem = ours.try_write(&kind.put("too early", json!(1))).await.expect_err("we may not write yet");
    assert_eq!(problem["status"], 403, "{problem}");

    let identity = ours.identity().await;
    peer.grant(&address, &identity).await;
    eventually("we hear that we may", async || ours.writers().await.contains(&identity)).await;
    ours.write(&kind.put("ours", json!(2))).await;
    agree("granted", 2, &sides).await;

    peer.revoke(&address, &identity).await;
    eventually("we hear that we may not", async || !ours.writers().await.contains(&identity)).await;
    let problem = ours.try_write(&kind.put("too late", json!(1))).await.expect_err("we may not write any more");
    assert_eq!(problem["status"], 403, "{problem}");
    eventually("our entries do not count with us", async || ours.all().await.len() == 1).await;
    let after = peer.write(&address, &kind.put("after", json!(3))).await;
    eventually("an entry after the revocation", async || ours.all().await.iter().any(|row| row.hash == after)).await;
    peer.stop().await;
    swarm.stop_all().await;
}
