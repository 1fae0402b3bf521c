//! Own entries go straight to the nodes that have the database open, and by the topic to everybody else.

use std::sync::Arc;

use bombus_net::{NetStream, Subscription, Verdict};
use futures::FutureExt;
use orbitdb::cid::Hash;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::db::{ENTRIES_PROTOCOL, EntriesConfig, QueuesConfig};

/// Takes part in the topic of a database without having it.
async fn pose(mesh: &Mesh, database: &Database) -> Subscription {
    let judge = |_: &NodeId, _: &[u8]| Verdict::Accept;
    mesh.net.subscribe(&database.address().to_string(), Arc::new(judge)).await.unwrap()
}

async fn frame(stream: &mut NetStream) -> Vec<u8> {
    let length = stream.read_u32().await.unwrap();
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

async fn put_some(database: &Database, count: u8) -> Vec<Hash> {
    let mut hashes = Vec::new();
    for number in 0..count {
        let document = json_value(&json!({ "_id": number.to_string(), "says": "so" }));
        hashes.push(database.put_document(document).await.unwrap());
    }
    hashes
}

#[tokio::test]
async fn where_all_peers_are_nodes_the_topic_is_told_the_newest_alone() {
    let a = Keeper::start(1, &[]).await;
    let at_a = a.create("shared").await;
    let stranger = Mesh::start(11, &[&a.mesh]).await;
    let mut incoming = stranger.net.accept(ENTRIES_PROTOCOL).unwrap();
    let mut topic = pose(&stranger, &at_a).await;
    let (from, mut stream) = timeout(LIMIT, incoming.next()).await.expect("a stream is opened").unwrap();
    assert_eq!(from, *a.id());
    let address = timeout(LIMIT, frame(&mut stream)).await.expect("it says what it is about");
    assert_eq!(address, at_a.address().to_string().as_bytes());

    let written = put_some(&at_a, 50).await;
    let last = written.last().unwrap();
    let (mut straight, mut told) = (Vec::new(), Vec::new());
    let gather = async {
        while straight.last() != Some(last) {
            straight.push(Hash::of(&frame(&mut stream).await));
        }
        while told.last() != Some(last) {
            told.push(Hash::of(&topic.next().await.unwrap().data));
        }
    };
    timeout(LIMIT, gather).await.expect("the last one comes on both ways");
    // The first ones may have been written before the stream was known to be open.
    assert!(written.ends_with(&straight), "in the order in which they were written, each once");
    assert!(straight.len() > 25 && told.len() < 25, "{} straight and {} by the topic", straight.len(), told.len());

    // What is on its way when the stream ends goes out with the heads; what comes after that, by the topic.
    drop((stream, incoming));
    for _ in 0..20 {
        let written = put_some(&at_a, 3).await;
        let mut told = Vec::new();
        let hear = async {
            while told.last() != written.last() {
                told.push(Hash::of(&topic.next().await.unwrap().data));
            }
        };
        timeout(LIMIT, hear).await.expect("the last one is told in any case");
        if told.ends_with(&written) {
            a.stop().await;
            return;
        }
    }
    panic!("who ended the stream does not hear of each by the topic");
}

#[tokio::test]
async fn a_node_shows_what_comes_straight_before_the_topic_is_told() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let at_a = a.create("shared").await;
    let witness = Mesh::start(11, &[&a.mesh]).await;
    let mut incoming = witness.net.accept(ENTRIES_PROTOCOL).unwrap();
    let mut topic = pose(&witness, &at_a).await;
    let _stream = timeout(LIMIT, incoming.next()).await.expect("a stream is opened").unwrap();
    let at_b = b.open(&at_a).await;
    a.shares(&at_a, &b).await;
    // The first ones may come in other ways.
    for number in 0..100 {
        while topic.next().now_or_never().is_some() {}
        put(&at_a, "it", &number.to_string()).await;
        says(&at_b, &[("it", &number.to_string())]).await;
        if topic.next().now_or_never().is_none() {
            b.stop().await;
            a.stop().await;
            return;
        }
    }
    panic!("each was told on the topic before it was shown");
}

#[tokio::test]
async fn peers_that_do_not_take_entries_straight_hear_of_each_by_the_topic() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let at_a = a.create("shared").await;
    let at_b = b.open(&at_a).await;
    a.shares(&at_a, &b).await;
    let stranger = Mesh::start(11, &[&a.mesh]).await;
    let mut topic = pose(&stranger, &at_a).await;
    until_it_shows(|| async {}, || a.db.peers(&at_a.address()).contains(stranger.net.node_id())).await;
    let written = put_some(&at_a, 20).await;
    for hash in written {
        let heard = timeout(LIMIT, topic.next()).await.expect("it is published").unwrap();
        assert_eq!(Hash::of(&heard.data), hash, "each, in order");
    }
    has(&at_b, 20).await;
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn streams_of_nonsense_are_ended_and_change_nothing() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let at_a = a.create("shared").await;
    let at_b = b.open(&at_a).await;
    let stranger = Mesh::start(11, &[]).await;
    timeout(LIMIT, stranger.net.dial(&a.mesh.address().await)).await.unwrap().unwrap();
    let address = at_a.address().to_string();
    let other = address.replace("zdpu", "zdpv");
    let begun = |address: &str| [&u32::try_from(address.len()).unwrap().to_be_bytes(), address.as_bytes()].concat();
    let too_long = u32::MAX.to_be_bytes();
    let wrong: [Vec<u8>; 5] = [
        begun("no address"),
        begun(&"a".repeat(10_000)),
        [&begun(&other)[..], &[0, 0, 0, 1, 7]].concat(),
        [&begun(&address)[..], &[0; 4]].concat(),
        [&begun(&address)[..], &too_long].concat(),
    ];
    for bytes in wrong {
        let mut stream = stranger.net.open_stream(a.id(), ENTRIES_PROTOCOL).await.unwrap();
        drop(stream.write_all(&bytes).await);
        drop(stream.flush().await);
        let mut rest = Vec::new();
        let ended = timeout(LIMIT, stream.read_to_end(&mut rest)).await.expect("the stream is ended");
        assert!(ended.is_err() || rest.is_empty());
    }
    // What is no entry is passed over.
    let mut stream = stranger.net.open_stream(a.id(), ENTRIES_PROTOCOL).await.unwrap();
    stream.write_all(&[&begun(&address)[..], &[0, 0, 0, 1, 7]].concat()).await.unwrap();
    stream.flush().await.unwrap();
    until_it_shows(|| async {}, || at_a.info().unwrap().broken == 1).await;
    put(&at_a, "a", "still").await;
    says(&at_b, &[("a", "still")]).await;
    b.stop().await;
    a.stop().await;
}

/// Starts a node with a database and these bounds of streams, and a stranger that has dialled it.
async fn bounded(entries: EntriesConfig) -> (Keeper, Database, Mesh) {
    let config = DbConfig { entries, ..config() };
    let a = Keeper::start_with(1, &[], config, TempDir::new().unwrap()).await;
    let at_a = a.create("shared").await;
    let stranger = Mesh::start(11, &[]).await;
    timeout(LIMIT, stranger.net.dial(&a.mesh.address().await)).await.unwrap().unwrap();
    (a, at_a, stranger)
}

/// Opens a stream, and says on it what it is about.
async fn say(stranger: &Mesh, a: &Keeper, address: &[u8]) -> NetStream {
    let mut stream = stranger.net.open_stream(a.id(), ENTRIES_PROTOCOL).await.unwrap();
    drop(stream.write_u32(u32::try_from(address.len()).unwrap()).await);
    drop(stream.write_all(address).await);
    drop(stream.flush().await);
    stream
}

async fn ends(stream: &mut NetStream) {
    let mut rest = Vec::new();
    let ended = timeout(LIMIT, stream.read_to_end(&mut rest)).await.expect("the stream is ended");
    assert!(ended.is_err() || rest.is_empty());
}

#[tokio::test]
async fn a_peer_has_so_many_streams_and_no_more() {
    let entries = EntriesConfig { streams_per_peer_max: 2, ..EntriesConfig::default() };
    let (a, at_a, stranger) = bounded(entries).await;
    let address = at_a.address().to_string();
    let mut first = say(&stranger, &a, address.as_bytes()).await;
    let mut second = say(&stranger, &a, address.as_bytes()).await;
    ends(&mut say(&stranger, &a, address.as_bytes()).await).await;
    for stream in [&mut first, &mut second] {
        assert!(stream.read_u8().now_or_never().is_none(), "it stays");
    }
    drop(at_a);
    a.stop().await;
}

#[tokio::test]
async fn a_stream_on_which_nothing_is_said_is_ended() {
    let entries = EntriesConfig { stall_limit_ms: 200, ..EntriesConfig::default() };
    let (a, at_a, stranger) = bounded(entries).await;
    let mut stream = stranger.net.open_stream(a.id(), ENTRIES_PROTOCOL).await.unwrap();
    // It begins, and says no more.
    stream.write_all(&[0, 0]).await.unwrap();
    stream.flush().await.unwrap();
    ends(&mut stream).await;
    drop(at_a);
    a.stop().await;
}

#[tokio::test]
async fn what_finds_no_place_in_a_queue_comes_with_the_heads() {
    let queues = QueuesConfig {
        orders_max: 1,
        publications_max: 1,
        heard_max: 1,
        held_max: 1,
        held_kb_max: 1,
        held_per_peer_max: 1,
        held_kb_per_peer_max: 1,
    };
    let entries = EntriesConfig { waiting_max: 1, ..EntriesConfig::default() };
    let config = DbConfig { queues, entries, ..config() };
    let a = Keeper::start_with(1, &[], config.clone(), TempDir::new().unwrap()).await;
    let b = Keeper::start_with(2, &[&a], config, TempDir::new().unwrap()).await;
    let at_a = a.create("shared").await;
    let at_b = b.open(&at_a).await;
    a.shares(&at_a, &b).await;
    tokio::join!(put_many(&at_a, "a", 150), put_many(&at_b, "b", 150));
    has(&at_a, 300).await;
    has(&at_b, 300).await;
    b.stop().await;
    a.stop().await;
}
