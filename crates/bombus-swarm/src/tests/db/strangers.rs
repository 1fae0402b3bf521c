//! Peers that are no nodes like this one, and peers that are up to no good.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bombus_net::{Incoming, NetHandle, NetStream, Verdict};
use orbitdb::cid::Hash;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::harness::member_of;
use super::*;
use crate::db::{CatchUp, OPLOG_PROTOCOL, OplogConfig};

/// Takes part in the topic of a database without having it.
async fn pose(net: &NetHandle, database: &Database) -> bombus_net::Subscription {
    let judge = |_: &NodeId, _: &[u8]| Verdict::Accept;
    net.subscribe(&database.address().to_string(), Arc::new(judge)).await.unwrap()
}

async fn send(stream: &mut NetStream, message: &[u8]) {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    // Who was told enough may have gone.
    drop(stream.write_all(&[&length, message].concat()).await);
    drop(stream.flush().await);
}

/// Names a head that nobody has to all who ask, so that they want to catch up.
fn name_a_head(mut incoming: Incoming) -> JoinHandle<()> {
    let mut head = Vec::new();
    ciborium::into_writer(&json!({ "is": "nothing" }), &mut head).unwrap();
    tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            // Who has enough of it may have gone.
            drop(stream.write_all(&head).await);
            drop(stream.shutdown().await);
        }
    })
}

/// What a stranger says to who wants to catch up.
async fn say_sending(stream: &mut NetStream, entries: u64) {
    let mut answer = Vec::new();
    ciborium::into_writer(&json!({ "sending": { "entries": entries, "more": true } }), &mut answer).unwrap();
    send(stream, &answer).await;
}

/// Answers who wants to catch up with something. Returns how many did so far.
fn answer_with(net: &NetHandle, pieces: Vec<Vec<u8>>, end: bool) -> Arc<AtomicUsize> {
    answer_saying(net, 1_000, pieces, end)
}

/// Does so after it has said that so many entries come.
fn answer_saying(net: &NetHandle, entries: u64, pieces: Vec<Vec<u8>>, end: bool) -> Arc<AtomicUsize> {
    let mut incoming = net.accept(OPLOG_PROTOCOL).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    // It ends with the test; a failure shows in what the node does not get.
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Some((_, mut stream)) = incoming.next().await {
            count.fetch_add(1, Ordering::Relaxed);
            say_sending(&mut stream, entries).await;
            for piece in &pieces {
                send(&mut stream, piece).await;
            }
            if end {
                send(&mut stream, &[]).await;
                drop(stream.shutdown().await);
            } else {
                open.push(stream);
            }
        }
    });
    asked
}

/// Answers who wants to catch up with the same piece again and again, without an end. Returns how many pieces it has sent so far.
fn answer_without_end(net: &NetHandle, piece: Vec<u8>) -> Arc<AtomicUsize> {
    let mut incoming = net.accept(OPLOG_PROTOCOL).unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            say_sending(&mut stream, u64::MAX).await;
            let (piece, count) = (piece.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let mut pause = tokio::time::interval(Duration::from_millis(200));
                let length = u32::try_from(piece.len()).unwrap().to_be_bytes();
                // Until the node has enough of it.
                while stream.write_all(&[&length, &piece[..]].concat()).await.is_ok() && stream.flush().await.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                    pause.tick().await;
                }
            });
        }
    });
    sent
}

fn piece(blocks: &[Vec<u8>]) -> Vec<u8> {
    let lengths = blocks.iter().map(|block| u32::try_from(block.len()).unwrap().to_be_bytes());
    lengths.zip(blocks).flat_map(|(length, block)| [&length[..], block].concat()).collect()
}

#[tokio::test]
async fn peers_that_lie_or_say_nothing_keep_nobody_from_the_log() {
    let a = Keeper::start(1, &[]).await;
    let at_a = a.create("shared").await;
    put_many(&at_a, "a", 300).await;
    let (liar, silent, mute) =
        (Mesh::start(11, &[&a.mesh]).await, Mesh::start(12, &[&a.mesh]).await, Mesh::start(13, &[&a.mesh]).await);
    // One sends garbage without an end, one begins and goes no further, and one takes streams and says nothing.
    let garbage: Vec<Vec<u8>> = (0..50_u8).map(|number| vec![number; 300]).collect();
    let lies = answer_with(&liar.net, vec![piece(&garbage); 10], true);
    let silences = answer_with(&silent.net, Vec::new(), false);
    let mut topics = Vec::new();
    for net in [&liar.net, &silent.net, &mute.net] {
        topics.push(pose(net, &at_a).await);
    }
    let heads = |net: &NetHandle| net.accept(&at_a.address().heads_protocol()).unwrap();
    let (_of_liar, _of_silent, _of_mute) =
        (name_a_head(heads(&liar.net)), name_a_head(heads(&silent.net)), heads(&mute.net));
    let _nothing = mute.net.accept(OPLOG_PROTOCOL).unwrap();
    let oplog = OplogConfig { answer_limit_ms: 1_000, stall_limit_ms: 1_000, ..OplogConfig::default() };
    let hasty = DbConfig { oplog, heads_limit_ms: 1_000, ..config() };
    let b = Keeper::start_with(2, &[&a], hasty, TempDir::new().unwrap()).await;
    for stranger in [&liar, &silent, &mute] {
        timeout(LIMIT, b.mesh.net.dial(&stranger.address().await)).await.unwrap().unwrap();
    }
    let at_b = b.open(&at_a).await;
    has(&at_b, 300).await;
    assert!(said(&at_a) == said(&at_b), "they say the same");
    let were_asked = || lies.load(Ordering::Relaxed) > 0 && silences.load(Ordering::Relaxed) > 0;
    until_it_shows(|| async {}, || were_asked() && at_b.info().unwrap().broken > 0).await;
    put(&at_a, "later", "still").await;
    has(&at_b, 301).await;
    b.stop().await;
    a.stop().await;
}

/// Starts a node that keeps a database, and ends another one that has got the first entry of it. Returns where that one keeps what it has.
async fn one_left_behind() -> (Keeper, Database, TempDir) {
    let a = Keeper::start(1, &[]).await;
    let at_a = a.create("shared").await;
    put(&at_a, "first", "known").await;
    let b = Keeper::start(2, &[&a]).await;
    let at_b = b.open(&at_a).await;
    has(&at_b, 1).await;
    drop(at_b);
    let directory = b.stop().await;
    (a, at_a, directory)
}

/// Starts the one that was left behind again, with nobody else there than a stranger who names a head.
async fn alone_with(stranger: &Mesh, database: &Database, config: DbConfig, directory: TempDir) -> (Keeper, Database) {
    let topic = pose(&stranger.net, database).await;
    name_a_head(stranger.net.accept(&database.address().heads_protocol()).unwrap());
    // It takes part as long as the test runs.
    tokio::spawn(async move {
        let mut topic = topic;
        while topic.next().await.is_some() {}
    });
    let b = Keeper::start_with(2, &[], config, directory).await;
    timeout(LIMIT, b.mesh.net.dial(&stranger.address().await)).await.unwrap().unwrap();
    let at_b = b.db.database("shared").expect("it is open again");
    (b, at_b)
}

/// What a liar says does not keep a node from what another one has written meanwhile. Returns how often it has lied by then.
async fn gets_the_log_in_spite_of(answer: impl FnOnce(&NetHandle, Vec<u8>) -> Arc<AtomicUsize>) -> usize {
    let (a, at_a, directory) = one_left_behind().await;
    let liar = Mesh::start(11, &[]).await;
    let lies = answer(&liar.net, piece(&at_a.head_blocks().unwrap()));
    put_many(&at_a, "a", 300).await;
    let (b, at_b) = alone_with(&liar, &at_a, config(), directory).await;
    until_it_shows(|| async {}, || lies.load(Ordering::Relaxed) > 2).await;
    timeout(LIMIT, b.mesh.net.dial(&a.mesh.address().await)).await.unwrap().unwrap();
    has(&at_b, 301).await;
    assert!(said(&at_a) == said(&at_b), "they say the same");
    drop(at_b);
    b.stop().await;
    a.stop().await;
    lies.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_peer_that_sends_one_known_block_for_ever_keeps_nobody_from_the_log() {
    gets_the_log_in_spite_of(answer_without_end).await;
}

#[tokio::test]
async fn a_peer_that_says_for_ever_that_there_is_more_keeps_nobody_from_the_log() {
    let asked = gets_the_log_in_spite_of(|net, known| answer_saying(net, 1, vec![known], true)).await;
    assert!(asked < 40, "it was asked {asked} times: once with each exchange of heads is enough");
}

#[tokio::test]
async fn more_blocks_than_were_announced_are_not_taken() {
    let (a, at_a, directory) = one_left_behind().await;
    put_many(&at_a, "a", 5).await;
    let (_, blocks) = at_a.bulk(&at_a.lacking(&[]), 1 << 20, &mut orbitdb::Told::default()).unwrap();
    let liar = Mesh::start(11, &[]).await;
    let asked = answer_saying(&liar.net, 1, vec![piece(&blocks)], true);
    let (b, at_b) = alone_with(&liar, &at_a, config(), directory).await;
    until_it_shows(|| async {}, || asked.load(Ordering::Relaxed) > 1).await;
    at_b.flush().await.unwrap();
    assert_eq!(at_b.info().unwrap().entries, 1);
    drop(at_b);
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn how_far_catching_up_is_shows_while_it_goes_on() {
    let (a, at_a, directory) = one_left_behind().await;
    put_many(&at_a, "a", 5).await;
    let (entries, blocks) = at_a.bulk(&at_a.lacking(&[]), 1 << 20, &mut orbitdb::Told::default()).unwrap();
    // It says that more will come than the first piece has, and sends no second one.
    let slow = Mesh::start(11, &[]).await;
    answer_saying(&slow.net, 10, vec![piece(&blocks)], false);
    let (b, at_b) = alone_with(&slow, &at_a, config(), directory).await;
    let shown = || b.db.catching_up(&at_b.address());
    until_it_shows(|| async {}, || shown().iter().any(|of| of.blocks_done > 0)).await;
    let (blocks_done, bytes_done) = (blocks.len() as u64, blocks.iter().map(|block| block.len() as u64).sum());
    assert_eq!(shown(), [CatchUp { peer: slow.net.node_id().clone(), entries: 10, blocks_done, bytes_done }]);
    at_b.flush().await.unwrap();
    assert_eq!((entries, at_b.info().unwrap().entries), (6, 6));
    drop(at_b);
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn heads_that_are_too_large_are_not_looked_at() {
    let (a, at_a, directory) = one_left_behind().await;
    let stranger = Mesh::start(11, &[]).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let mut incoming = stranger.net.accept(&at_a.address().heads_protocol()).unwrap();
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut head = Vec::new();
        ciborium::into_writer(&json!({ "is": "nothing" }), &mut head).unwrap();
        while let Some((_, mut stream)) = incoming.next().await {
            count.fetch_add(1, Ordering::Relaxed);
            drop(stream.write_all(&head.repeat(1_000)).await);
            drop(stream.shutdown().await);
        }
    });
    let _topic = pose(&stranger.net, &at_a).await;
    let small = DbConfig { entry_kb_max: 1, heads_kb_max: 2, ..config() };
    let b = Keeper::start_with(2, &[], small, directory).await;
    timeout(LIMIT, b.mesh.net.dial(&stranger.address().await)).await.unwrap().unwrap();
    let at_b = b.db.database("shared").expect("it is open again");
    until_it_shows(|| async {}, || asked.load(Ordering::Relaxed) > 1).await;
    assert_eq!(at_b.info().unwrap().broken, 0);
    drop(at_b);
    b.stop().await;
    a.stop().await;
}

/// Asks a node for a log as one does that has nothing of it. Returns the first word of the answer, and the stream.
async fn ask(stranger: &Mesh, node: &Keeper, database: &Database) -> (String, NetStream) {
    let mut stream = stranger.net.open_stream(node.id(), OPLOG_PROTOCOL).await.unwrap();
    let mut request = Vec::new();
    let nothing: [&str; 0] = [];
    ciborium::into_writer(&json!({ "address": database.address().to_string(), "have": nothing }), &mut request)
        .unwrap();
    send(&mut stream, &request).await;
    let length = timeout(LIMIT, stream.read_u32()).await.expect("it answers").unwrap();
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await.unwrap();
    let answer: BTreeMap<String, Value> = ciborium::from_reader(&answer[..]).unwrap();
    (answer.into_keys().next().unwrap(), stream)
}

#[tokio::test]
async fn who_is_one_too_many_to_be_served_is_told_to_come_back() {
    let oplog = OplogConfig { serve_max: 2, serve_per_peer_max: 1, ..OplogConfig::default() };
    let a = Keeper::start_with(1, &[], DbConfig { oplog, ..config() }, TempDir::new().unwrap()).await;
    let at_a = a.create("shared").await;
    // More than fits on the way to somebody who does not read.
    for number in 0..40 {
        put(&at_a, &number.to_string(), &"x".repeat(200_000)).await;
    }
    let (first, second, third) =
        (Mesh::start(11, &[&a.mesh]).await, Mesh::start(12, &[&a.mesh]).await, Mesh::start(13, &[&a.mesh]).await);
    for stranger in [&first, &second, &third] {
        timeout(LIMIT, stranger.net.dial(&a.mesh.address().await)).await.unwrap().unwrap();
    }
    let (answer, held) = ask(&first, &a, &at_a).await;
    assert_eq!(answer, "sending");
    assert_eq!(ask(&first, &a, &at_a).await.0, "busy", "one peer gets one at a time");
    let (answer, _also_held) = ask(&second, &a, &at_a).await;
    assert_eq!(answer, "sending");
    assert_eq!(ask(&third, &a, &at_a).await.0, "busy", "two are served at a time");
    drop(held);
    let served = async {
        let mut pause = tokio::time::interval(Duration::from_millis(100));
        while ask(&third, &a, &at_a).await.0 != "sending" {
            pause.tick().await;
        }
    };
    timeout(LIMIT, served).await.expect("there is a place again");
    a.stop().await;
}

#[tokio::test]
async fn a_node_that_never_has_time_is_done_without() {
    let oplog = OplogConfig { serve_max: 0, ..OplogConfig::default() };
    let a = Keeper::start_with(1, &[], DbConfig { oplog, ..config() }, TempDir::new().unwrap()).await;
    let at_a = a.create("shared").await;
    put_many(&at_a, "a", 50).await;
    let b = Keeper::start(2, &[&a]).await;
    let at_b = b.open(&at_a).await;
    has(&at_b, 50).await;
    assert!(b.db.bitswap().blocks_received >= 50, "they came one by one");
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn of_one_peer_so_many_exchanges_of_heads_run_at_once_and_no_more() {
    let few = DbConfig { heads_streams_max: 2, heads_streams_per_peer_max: 1, ..config() };
    let a = Keeper::start_with(1, &[], few, TempDir::new().unwrap()).await;
    let at_a = a.create("shared").await;
    put(&at_a, "first", "known").await;
    let mut strangers = Vec::new();
    for number in 11..14 {
        let stranger = Mesh::start(number, &[&a.mesh]).await;
        timeout(LIMIT, stranger.net.dial(&a.mesh.address().await)).await.unwrap().unwrap();
        strangers.push(stranger);
    }
    let protocol = at_a.address().heads_protocol();
    // A stranger sends no end, so that the exchange goes on. Returns whether it was told the head.
    let is_told = |stranger: &Mesh| {
        let (net, id, protocol) = (stranger.net.clone(), a.id().clone(), protocol.clone());
        async move {
            let mut stream = net.open_stream(&id, &protocol).await.unwrap();
            // The protocol is agreed on with the first bytes; they are no head.
            drop(stream.write_all(&[0x00]).await);
            drop(stream.flush().await);
            let mut heads = Vec::new();
            let read = timeout(LIMIT, stream.read_to_end(&mut heads)).await.expect("it is answered or reset");
            (read.is_ok() && !heads.is_empty(), stream)
        }
    };
    let (told, _held) = is_told(&strangers[0]).await;
    assert!(told);
    assert!(!is_told(&strangers[0]).await.0, "one peer gets one at a time");
    let (told, _also_held) = is_told(&strangers[1]).await;
    assert!(told);
    assert!(!is_told(&strangers[2]).await.0, "two run at a time");
    a.stop().await;
}

#[tokio::test]
async fn towards_peers_in_javascript_each_head_goes_on_a_stream_of_its_own() {
    let a = Keeper::start(1, &[]).await;
    let b = Keeper::start(2, &[&a]).await;
    let at_a = a.create("shared").await;
    let at_b = b.open(&at_a).await;
    put(&at_a, "0", "together").await;
    says(&at_b, &[("0", "together")]).await;
    b.mesh.membership.send_replace(member_of(1));
    until_it_shows(|| async {}, || a.db.peers(&at_a.address()).is_empty()).await;
    put(&at_a, "a", "apart").await;
    put(&at_b, "b", "apart").await;
    b.mesh.membership.send_replace(member_of(0));
    has(&at_a, 3).await;
    let heads = at_a.info().unwrap().heads;
    assert_eq!(heads.len(), 2);

    // It speaks the protocol of the heads, as a peer in JavaScript does, and no bulk.
    let stranger = Mesh::start(11, &[&a.mesh]).await;
    let mut incoming = stranger.net.accept(&at_a.address().heads_protocol()).unwrap();
    let _topic = pose(&stranger.net, &at_a).await;
    let mut got = Vec::new();
    let gather = async {
        while got.len() < 2 {
            let (_, mut stream) = incoming.next().await.unwrap();
            stream.shutdown().await.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            let head = Hash::of(&bytes);
            if !got.contains(&head) {
                got.push(head);
            }
        }
    };
    timeout(LIMIT, gather).await.expect("both heads come");
    got.sort();
    let mut heads = heads;
    heads.sort();
    assert_eq!(got, heads, "each stream holds one block and nothing else");
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn a_stop_waits_for_no_peer() {
    let a = Keeper::start(1, &[]).await;
    let at_a = a.create("shared").await;
    put_many(&at_a, "a", 50).await;
    let silent = Mesh::start(11, &[&a.mesh]).await;
    let _silence = answer_with(&silent.net, Vec::new(), false);
    let _heads = name_a_head(silent.net.accept(&at_a.address().heads_protocol()).unwrap());
    let _topic = pose(&silent.net, &at_a).await;
    until_it_shows(|| async {}, || a.db.peers(&at_a.address()).contains(silent.net.node_id())).await;
    until_it_shows(|| async {}, || !a.db.catching_up(&at_a.address()).is_empty()).await;
    drop(at_a);
    a.stop.cancel();
    timeout(Duration::from_secs(5), a.task).await.expect("it stops at once").unwrap();
}
