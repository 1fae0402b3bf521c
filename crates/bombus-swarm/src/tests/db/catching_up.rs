//! Who comes late gets everything in one stream.

use super::*;
use crate::db::OplogConfig;

#[tokio::test]
async fn a_late_node_gets_the_whole_log_in_bulk() {
    let a = Keeper::start(1, &[]).await;
    let at_a = a.create("shared").await;
    put_many(&at_a, "a", 2_000).await;
    let b = Keeper::start(2, &[&a]).await;
    let at_b = b.open(&at_a).await;
    has(&at_b, 2_000).await;
    assert!(said(&at_a) == said(&at_b), "they say the same");
    let single = b.db.bitswap().blocks_received;
    assert!(single < 100, "{single} blocks came one by one: what it is, and little else");
    until_it_shows(|| async {}, || b.db.catching_up(&at_b.address()).is_empty()).await;
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn a_node_that_has_some_gets_the_rest_only_in_small_parts() {
    let oplog = OplogConfig { entries_max: 100, piece_kb: 16, ..OplogConfig::default() };
    let few = DbConfig { oplog, ..config() };
    let a = Keeper::start_with(1, &[], few, TempDir::new().unwrap()).await;
    let b = Keeper::start(2, &[&a]).await;
    let at_a = a.create("shared").await;
    let at_b = b.open(&at_a).await;
    put_many(&at_a, "first", 300).await;
    has(&at_b, 300).await;
    b.db.close(&at_b.address().to_string()).await.unwrap();
    drop(at_b);
    put_many(&at_a, "second", 700).await;
    let before = b.db.bitswap().blocks_received;
    let at_b = b.open(&at_a).await;
    has(&at_b, 1_000).await;
    let single = b.db.bitswap().blocks_received - before;
    assert!(single < 100, "{single} blocks came one by one");
    assert!(said(&at_a) == said(&at_b), "they say the same");
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn entries_of_a_writer_who_is_gone_come_from_a_third_node() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let at_a = a.create("shared").await;
    let at_b = b.open(&at_a).await;
    put_many(&at_a, "a", 100).await;
    has(&at_b, 100).await;
    put(&at_b, "b", "b").await;
    has(&at_a, 101).await;
    a.mesh.crash().await;
    let c = Keeper::start(3, &[&b]).await;
    let at_c = c.open(&at_b).await;
    has(&at_c, 101).await;
    assert!(said(&at_c) == said(&at_b), "they say the same");
    c.stop().await;
    b.stop().await;
}
