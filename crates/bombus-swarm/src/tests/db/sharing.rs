//! What one writes, the others read.

use orbitdb::Event;
use orbitdb::cbor::Value;

use super::super::harness::member_of;
use super::*;
use crate::db::Node;

async fn node(directory: &TempDir, seeds: &[&Node]) -> Node {
    let seeds: Vec<String> = seeds.iter().flat_map(|seed| seed.listen_addresses()).collect();
    let builder = Node::builder().directory(directory.path()).listen(["/ip4/127.0.0.1/tcp/0"]).bootstrap(seeds);
    builder.config(config()).start().await.unwrap()
}

#[tokio::test]
async fn two_nodes_without_anything_around_them_share_databases_of_all_types() {
    let directories = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let a = node(&directories[0], &[]).await;
    let b = node(&directories[1], &[&a]).await;
    assert!(a.peer_id().as_str().starts_with("12D3KooW") && a.peer_id() != b.peer_id());
    let (documents, events, values) = (
        a.open_documents("people", "name").await.unwrap(),
        a.open_events("log").await.unwrap(),
        a.open_key_value("settings").await.unwrap(),
    );
    documents.put_document(json_value(&json!({ "name": "ada", "age": 36 }))).await.unwrap();
    events.add("began").await.unwrap();
    values.put("colour", "green").await.unwrap();
    let opened = (
        b.open_documents(&a.address(&documents), "name").await.unwrap(),
        b.open_events(&a.address(&events)).await.unwrap(),
        b.open_key_value(&a.address(&values)).await.unwrap(),
    );
    until_it_shows(|| async {}, || opened.0.get("ada").is_some()).await;
    until_it_shows(|| async {}, || opened.1.all().unwrap().len() == 1).await;
    until_it_shows(|| async {}, || opened.2.get("colour").is_some()).await;
    let age = opened.0.query(|person| person.get("age") == Some(&Value::from(36_u64)));
    assert_eq!(age.len(), 1);
    assert!(opened.2.put("colour", "red").await.is_err(), "only its creator may write to it");
    let mut heard = opened.2.events();
    values.put("colour", "blue").await.unwrap();
    let update = timeout(LIMIT, async {
        loop {
            if let Event::Update(update) = heard.recv().await.unwrap() {
                return update;
            }
        }
    });
    let update = update.await.expect("the update is told");
    assert_eq!(update.operation.unwrap().value, Value::from("blue"));
    assert_eq!(update.peer.unwrap().as_str(), a.peer_id().as_str());
    b.stop().await.unwrap();
    a.stop().await.unwrap();
}

#[tokio::test]
async fn two_writers_at_once_end_with_the_same() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let at_a = a.create("shared").await;
    let at_b = b.open(&at_a).await;
    a.shares(&at_a, &b).await;
    b.shares(&at_b, &a).await;
    tokio::join!(put_many(&at_a, "a", 200), put_many(&at_b, "b", 200));
    put(&at_a, "last", "a").await;
    has(&at_b, 401).await;
    put(&at_b, "last", "b").await;
    has(&at_a, 402).await;
    assert!(said(&at_a) == said(&at_b), "they say the same");
    assert_eq!(said(&at_a)["last"], "b");
    let order = |database: &Database| database.all().unwrap().into_iter().map(|row| row.hash).collect::<Vec<_>>();
    assert_eq!(order(&at_a), order(&at_b));
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn what_was_written_apart_comes_together_when_the_network_heals() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let c = Keeper::start(3, &[&a, &b]).await;
    let at_a = a.create("shared").await;
    let (at_b, at_c) = (b.open(&at_a).await, c.open(&at_a).await);
    put(&at_a, "before", "a").await;
    for database in [&at_b, &at_c] {
        says(database, &[("before", "a")]).await;
    }
    // Nodes of different swarms do not reach each other.
    c.mesh.membership.send_replace(member_of(1));
    until_it_shows(|| async {}, || c.db.peers(&at_c.address()).is_empty()).await;
    put(&at_a, "apart", "a").await;
    put(&at_b, "b", "b").await;
    put(&at_c, "c", "c").await;
    put(&at_c, "before", "c").await;
    says(&at_a, &[("before", "a"), ("apart", "a"), ("b", "b")]).await;
    says(&at_c, &[("before", "c"), ("c", "c")]).await;
    c.mesh.membership.send_replace(member_of(0));
    for database in [&at_a, &at_b, &at_c] {
        says(database, &[("before", "c"), ("apart", "a"), ("b", "b"), ("c", "c")]).await;
    }
    for keeper in [c, b, a] {
        keeper.stop().await;
    }
}

#[tokio::test]
async fn who_is_granted_it_may_write_and_who_is_revoked_may_not() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let options = OpenOptions::of(DatabaseType::Documents).access(Access::Capabilities(Vec::new()));
    let at_a = a.db.create("guarded", options).await.unwrap();
    let at_b = b.open(&at_a).await;
    assert!(at_b.put_document(json_value(&json!({ "_id": "1" }))).await.is_err());
    let id = b.db.orbit().identity().id().to_owned();
    at_a.grant("write", &id).await.unwrap();
    until_it_shows(|| async {}, || at_b.admission().admits(&id)).await;
    put(&at_b, "1", "granted").await;
    says(&at_a, &[("1", "granted")]).await;
    at_a.revoke("write", &id).await.unwrap();
    says(&at_a, &[]).await;
    says(&at_b, &[]).await;
    assert_eq!(a.db.list().unwrap().len(), 1, "what guards another is in no list");
    b.stop().await;
    a.stop().await;
}
