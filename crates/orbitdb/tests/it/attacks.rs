//! What peers may try, each against an open database: it gets nothing in, nothing out, and holds nothing up.

use std::{collections::BTreeMap, time::Duration};

use orbitdb::{
    Access, Database, DatabaseError, Event, OpenOptions, OrbitDb, Output,
    cbor::Value,
    cid::Hash,
    crypt::Encryption,
    entry::{BlockError, Codec, Draft, Limits, Operation, Refusal},
    identity::Signer,
    index::Row,
    key::SecretKey,
    log::CLOCK_MAX,
    manifest::DatabaseType,
    replica::{HEADS_MAX, Input},
    sync::{Peer, SyncConfig},
};
use tokio::sync::mpsc;

const NOW: Duration = Duration::from_secs(1);

fn signer(seed: u8) -> Signer {
    let key = |seed| SecretKey::from_bytes(&[seed; 32]).unwrap();
    Signer::new(&key(seed), &key(seed + 100))
}

fn mallory() -> Peer {
    Peer::new("mallory")
}

/// A node that writes as Alice, and one of her databases.
struct Alice {
    orbit: OrbitDb,
    outputs: mpsc::Receiver<Output>,
    database: Database,
    signer: Signer,
}

impl Alice {
    async fn with(options: OpenOptions) -> Self {
        let signer = signer(1);
        let (orbit, outputs) = OrbitDb::builder().signer(signer.clone()).build().unwrap();
        let database = orbit.open("attacked", options).await.unwrap();
        Self { orbit, outputs, database, signer }
    }

    /// With a database of key and value that only she may write.
    async fn alone() -> Self {
        Self::with(OpenOptions::of(DatabaseType::KeyValue)).await
    }

    async fn open_to_all() -> Self {
        Self::with(OpenOptions::of(DatabaseType::KeyValue).access(Access::Everyone)).await
    }

    fn codec(&self) -> Codec {
        Codec::new(self.database.address().to_string(), Encryption::default(), Limits::default())
    }

    fn head(&self) -> Vec<Hash> {
        self.database.info().unwrap().heads
    }

    /// Writes a block as somebody else does, with everything right that a signature can show.
    fn write(&self, writer: &Signer, time: u64, next: Vec<Hash>, value: impl Into<Value>) -> Vec<u8> {
        let draft = Draft { time, next, refs: vec![] };
        self.codec().write(writer, draft, Operation::put("key", value).into_payload()).unwrap().block
    }

    async fn take(&self, input: Input) {
        self.database.handle(NOW, input).await.unwrap();
        self.database.flush().await.unwrap();
    }

    /// Takes a block on every way on which peers can give it, with the identity of its writer at hand.
    async fn take_every_way(&self, block: &[u8], identity: &Signer) {
        for input in [
            Input::Published(mallory(), block.to_vec()),
            Input::Block(mallory(), identity.block().to_vec()),
            Input::Heads(mallory(), block.to_vec()),
            Input::Block(mallory(), block.to_vec()),
            Input::Bulk(mallory(), vec![identity.block().to_vec(), block.to_vec()]),
        ] {
            self.take(input).await;
        }
    }

    fn shown(&self) -> Vec<Value> {
        self.database.query(|_| true).into_iter().map(|row: Row| (*row.value).clone()).collect()
    }

    /// Expects that only this is shown, and that a block is not given to anybody.
    fn expect(&self, shown: &[&str], not_served: &[u8]) {
        assert_eq!(self.shown(), shown.iter().map(|text| Value::from(*text)).collect::<Vec<_>>());
        assert_eq!(self.orbit.block(&Hash::of(not_served)).unwrap(), None, "what was refused is not passed on");
    }

    /// Returns the blocks that are asked for, without waiting.
    fn asked(&mut self) -> Vec<Hash> {
        let mut asked = Vec::new();
        while let Ok(output) = self.outputs.try_recv() {
            if let Output::Want { hashes, .. } = output {
                asked.extend(hashes);
            }
        }
        asked
    }
}

/// Puts something else into a field of a block.
fn changed(block: &[u8], field: &str, value: impl Into<Value>) -> Vec<u8> {
    let Ok(Value::Map(mut map)) = Value::decode(block) else { panic!("an entry is a map") };
    map.insert(field, value);
    Value::Map(map).encode().unwrap()
}

#[tokio::test]
async fn a_foreign_key_that_names_an_admitted_identity_gets_nothing_in() {
    let alice = Alice::alone().await;
    alice.database.put("key", "honest").await.unwrap();
    let signed = alice.write(&signer(2), 2, alice.head(), "forged");
    let forged = changed(&signed, "identity", alice.signer.identity().hash().to_string());
    alice.take_every_way(&forged, &alice.signer).await;
    alice.expect(&["honest"], &forged);
    let info = alice.database.info().unwrap();
    assert!(info.dropped[&Refusal::Key] > 0 && info.dropped.len() == 1, "{:?}", info.dropped);

    // The key that the entry says, the one that signs and the one of the clock: each may be another.
    let own = alice.write(&alice.signer, 2, alice.head(), "forged");
    let others = signer(2).identity().key().to_string();
    let clock = Value::map([("id", Value::from(others.as_str())), ("time", 2_u64.into())]);
    for (block, refusal) in [
        (changed(&own, "key", others.as_str()), Refusal::Key),
        (changed(&own, "clock", clock), Refusal::ClockId),
        (changed(&own, "payload", Operation::put("key", "changed").into_payload()), Refusal::Signature),
    ] {
        alice.take(Input::Published(mallory(), block.clone())).await;
        alice.expect(&["honest"], &block);
        assert!(alice.database.info().unwrap().dropped.contains_key(&refusal), "{refusal:?}");
    }
}

#[tokio::test]
async fn an_entry_replayed_from_another_log_gets_nothing_in() {
    let alice = Alice::alone().await;
    let other = alice.orbit.open_key_value("another").await.unwrap();
    other.put("key", "said elsewhere").await.unwrap();
    let replayed = other.head_blocks().unwrap().remove(0);
    let mut events = alice.database.events();
    for input in [
        Input::Published(mallory(), replayed.clone()),
        Input::Heads(mallory(), replayed.clone()),
        Input::Bulk(mallory(), vec![replayed.clone()]),
    ] {
        alice.take(input).await;
        assert!(matches!(events.try_recv(), Ok(Event::Broken { error: BlockError::Log, .. })));
    }
    assert_eq!((alice.shown(), alice.database.info().unwrap().entries), (vec![], 0));
    // Under this log's name its signature no longer holds.
    let renamed = changed(&replayed, "id", alice.database.address().to_string());
    alice.take_every_way(&renamed, &alice.signer).await;
    alice.expect(&[], &renamed);
    assert!(alice.database.info().unwrap().dropped.contains_key(&Refusal::Signature));
}

#[tokio::test]
async fn a_clock_far_ahead_neither_wins_nor_moves_ours() {
    let alice = Alice::open_to_all().await;
    alice.database.put("key", "first").await.unwrap();
    let ahead = alice.write(&signer(2), 1 << 40, alice.head(), "from the future");
    alice.take_every_way(&ahead, &signer(2)).await;
    assert_eq!(alice.shown(), [Value::from("first")]);
    assert_eq!(alice.database.info().unwrap().refused[&Refusal::Clock], 1);
    let mut events = alice.database.events();
    alice.database.put("key", "second").await.unwrap();
    let Ok(Event::Update(update)) = events.try_recv() else { panic!("an update") };
    assert_eq!((update.time, alice.shown()), (2, vec![Value::from("second")]));
}

#[tokio::test]
async fn two_entries_with_clocks_far_ahead_neither_win_for_ever_nor_end_the_clock() {
    let alice = Alice::open_to_all().await;
    let bob = signer(2);
    alice.database.put("key", "first").await.unwrap();
    // The second states what follows from the first, and stands above all that it follows.
    let ahead = alice.write(&bob, CLOCK_MAX - 1, alice.head(), "from the future");
    let on_top = alice.write(&bob, CLOCK_MAX, vec![Hash::of(&ahead)], "on top of it");
    alice.take_every_way(&ahead, &bob).await;
    alice.take_every_way(&on_top, &bob).await;
    assert_eq!(alice.shown(), [Value::from("on top of it")], "as after any entry of a member");
    assert_eq!(alice.database.info().unwrap().refused, BTreeMap::from([(Refusal::Clock, 1)]));
    alice.database.put("key", "second").await.unwrap();
    assert_eq!(alice.shown(), [Value::from("second")]);

    // Nor do they turn it back.
    let behind = alice.write(&bob, 1, alice.head(), "from the past");
    let on_top = alice.write(&bob, 2, vec![Hash::of(&behind)], "on top of it");
    alice.take_every_way(&behind, &bob).await;
    alice.take_every_way(&on_top, &bob).await;
    alice.database.put("key", "third").await.unwrap();
    assert_eq!(alice.shown(), [Value::from("third")]);
    let before = alice.database.info().unwrap();
    assert_eq!((before.entries, before.refused[&Refusal::Clock]), (5, 2));

    alice.database.close().await.unwrap();
    let options = OpenOptions::of(DatabaseType::KeyValue).access(Access::Everyone);
    let again = alice.orbit.open("attacked", options).await.unwrap();
    assert_eq!(*again.get("key").unwrap().value, Value::from("third"));
    let after = again.info().unwrap();
    assert_eq!((after.heads, after.entries, after.refused), (before.heads, before.entries, before.refused));
    again.put("key", "fourth").await.unwrap();
    assert_eq!(*again.get("key").unwrap().value, Value::from("fourth"));
}

#[tokio::test]
async fn two_entries_of_one_time_and_key_are_shown_alike_everywhere() {
    let nodes = [Alice::open_to_all().await, Alice::open_to_all().await];
    let bob = signer(2);
    let two = ["left", "right"].map(|value| nodes[0].write(&bob, 1, vec![], value));
    for (node, order) in nodes.iter().zip([[0, 1], [1, 0]]) {
        for number in order {
            node.take_every_way(&two[number], &bob).await;
        }
    }
    assert_eq!(nodes[0].database.info().unwrap().entries, 2, "both count");
    assert_eq!(nodes[0].shown(), nodes[1].shown());
    assert_eq!(nodes[0].database.all().unwrap(), nodes[1].database.all().unwrap());
    assert_eq!(nodes[0].head(), nodes[1].head());
}

#[tokio::test]
async fn an_unknown_writer_gets_nothing_in_and_nothing_fetched() {
    let mut alice = Alice::alone().await;
    let bait = Hash::of(b"bait");
    let entry = alice.write(&signer(2), 1, vec![bait], "unknown");
    alice.take_every_way(&entry, &signer(2)).await;
    alice.expect(&[], &entry);
    assert!(!alice.asked().contains(&bait), "nothing is fetched for strangers");
    let info = alice.database.info().unwrap();
    assert_eq!((info.entries, info.parked, info.missing), (0, 0, 0));
    assert!(info.dropped[&Refusal::Access] > 0);
}

#[tokio::test]
async fn an_entry_that_a_stranger_names_as_an_identity_is_shown_with_what_follows_it() {
    let alice = Alice::alone().await;
    alice.database.put("key", "first").await.unwrap();
    // She wrote both elsewhere, and the stranger was sooner here.
    let named = alice.write(&alice.signer, 2, alice.head(), "named");
    let on_top = alice.write(&alice.signer, 3, vec![Hash::of(&named)], "on top");
    let written = alice.write(&signer(2), 1, vec![], "stranger");
    let stranger = changed(&written, "identity", Hash::of(&named).to_string());
    let carol = Peer::new("carol");
    alice.take(Input::Published(mallory(), stranger.clone())).await;
    alice.take(Input::Published(carol.clone(), on_top)).await;
    alice.take(Input::Block(carol, named)).await;
    alice.expect(&["on top"], &stranger);
    alice.take_every_way(&stranger, &signer(2)).await;
    alice.expect(&["on top"], &stranger);
    let info = alice.database.info().unwrap();
    assert_eq!((info.entries, info.parked, info.missing, info.broken), (3, 0, 0, 0));
    assert_eq!(info.dropped.keys().copied().collect::<Vec<_>>(), [Refusal::Identity]);
}

#[tokio::test]
async fn what_came_before_the_grant_of_its_writer_is_asked_for_with_the_grant() {
    let options = OpenOptions::of(DatabaseType::KeyValue).access(Access::Capabilities(vec![]));
    let mut alice = Alice::with(options).await;
    let (bob, carol) = (signer(2), Peer::new("carol"));
    alice.take(Input::Subscribed(carol.clone())).await;
    alice.take(Input::Exchanged(carol.clone(), true)).await;
    let early = alice.write(&bob, 1, vec![], "early");
    alice.take_every_way(&early, &bob).await;
    alice.expect(&[], &early);
    while alice.outputs.try_recv().is_ok() {}
    alice.database.grant("write", bob.identity().id()).await.unwrap();
    let mut asked = Vec::new();
    while let Ok(output) = alice.outputs.try_recv() {
        if let Output::OpenHeads { address, peer } = output {
            asked.push((address, peer));
        }
    }
    assert_eq!(asked, [(alice.database.address(), carol.clone())]);
    alice.take(Input::Heads(carol, early)).await;
    assert_eq!(alice.shown(), [Value::from("early")]);
}

#[tokio::test]
async fn what_is_too_large_gets_nothing_in() {
    let limits = Limits { entry_bytes: 4096, block_bytes: 16384, ..Limits::default() };
    let options = OpenOptions::of(DatabaseType::KeyValue).access(Access::Everyone).limits(limits);
    let alice = Alice::with(options).await;
    let (bob, of) = (signer(2), |bytes: usize| Value::Bytes(vec![7; bytes]));
    let fits = alice.write(&bob, 1, vec![], of(3000));
    let large = alice.write(&bob, 2, vec![Hash::of(&fits)], of(5000));
    let larger = alice.write(&bob, 3, vec![Hash::of(&large)], of(20_000));
    alice.take_every_way(&fits, &bob).await;
    alice.take_every_way(&large, &bob).await;
    alice.take_every_way(&larger, &bob).await;
    assert_eq!(alice.shown(), [of(3000)]);
    let info = alice.database.info().unwrap();
    assert!(info.dropped[&Refusal::Oversize] > 0 && info.broken > 0);
    assert!(matches!(alice.database.put("key", of(5000)).await, Err(DatabaseError::Append(_))));
}

#[tokio::test]
async fn deep_nesting_is_refused_wherever_it_stands() {
    let alice = Alice::open_to_all().await;
    let bob = signer(2);
    let block = alice.write(&bob, 1, vec![], "flat");
    // In place of the value: so many lists in one another.
    let at = block.windows(5).rposition(|window| window == b"\x64flat").unwrap();
    let nested = |levels: usize| [&block[..at], &vec![0x81; levels][..], &[0][..], &block[at + 5..]].concat();
    for levels in [65, 400_000] {
        alice.take_every_way(&nested(levels), &bob).await;
        alice.expect(&[], &nested(levels));
    }
    let info = alice.database.info().unwrap();
    assert_eq!(info.dropped.keys().copied().collect::<Vec<_>>(), [Refusal::Form]);
    // Neither as an identity nor as bytes of a stream does it do harm.
    for deep in [vec![0x81; 1_000_000], vec![0xa1; 1_000_000]] {
        alice.take(Input::Heads(mallory(), deep.clone())).await;
        alice.take(Input::Bulk(mallory(), vec![deep])).await;
    }
    alice.take_every_way(&block, &bob).await;
    assert_eq!(alice.shown(), [Value::from("flat")]);
}

#[tokio::test]
async fn heads_without_number_are_one_event_to_who_listens() {
    let alice = Alice::alone().await;
    alice.database.put("key", "value").await.unwrap();
    let mut events = alice.database.events();
    alice.take(Input::Heads(mallory(), vec![0; 4 << 20])).await;
    assert!(matches!(events.try_recv(), Ok(Event::Broken { .. })));
    assert!(events.try_recv().is_err());
    assert_eq!(alice.database.info().unwrap().broken, 1);
    // Whether there is anything to fetch is asked of those that would be taken.
    let head = alice.database.head_blocks().unwrap().remove(0);
    assert!(!alice.database.contains_heads(&[&head[..], &[0]].concat()));
    assert!(alice.database.contains_heads(&[&head.repeat(HEADS_MAX)[..], &[0]].concat()));
}

#[tokio::test]
async fn only_blocks_of_open_databases_are_given_to_peers() {
    let alice = Alice::alone().await;
    alice.database.put("key", "value").await.unwrap();
    let entry = alice.head()[0];
    assert!(alice.orbit.block(&entry).unwrap().is_some());
    // What others sent without being asked is not taken, however right it is.
    let unasked = alice.write(&alice.signer, 2, alice.head(), "never asked for");
    alice.take(Input::Block(mallory(), unasked.clone())).await;
    alice.take(Input::Block(mallory(), signer(2).block().to_vec())).await;
    alice.expect(&["value"], &unasked);
    assert_eq!(alice.orbit.block(&signer(2).identity().hash()).unwrap(), None);
    // What waits for something else is not passed on before it was checked.
    let waits = alice.write(&alice.signer, 2, vec![Hash::of(b"missing")], "waits");
    alice.take(Input::Published(mallory(), waits.clone())).await;
    assert_eq!(alice.database.info().unwrap().parked, 1);
    alice.expect(&["value"], &waits);
    alice.database.close().await.unwrap();
    assert_eq!(alice.orbit.block(&entry).unwrap(), None, "a database that is closed gives nothing");
}

#[tokio::test]
async fn a_peer_that_never_answers_holds_nothing_up() {
    let config = SyncConfig { rounds: 2, ..SyncConfig::default() };
    let options = OpenOptions::of(DatabaseType::KeyValue).access(Access::Everyone).sync(config);
    let mut alice = Alice::with(options).await;
    let (bob, carol) = (signer(2), Peer::new("carol"));
    let parent = alice.write(&bob, 1, vec![], "parent");
    let child = alice.write(&bob, 2, vec![Hash::of(&parent)], "child");
    alice.take(Input::Subscribed(mallory())).await;
    alice.take(Input::Bulk(mallory(), vec![bob.block().to_vec(), child.clone()])).await;
    assert_eq!(alice.asked(), [Hash::of(&parent)]);
    alice.database.put("own", "does not wait").await.unwrap();
    assert_eq!(alice.shown(), [Value::from("does not wait")]);

    // Another peer is asked when the first one has had its time, and what it gives completes the rest.
    alice.take(Input::Subscribed(carol.clone())).await;
    let mut now = NOW;
    while alice.asked().is_empty() {
        now = alice.database.deadline().expect("something is waited for").max(now + Duration::from_millis(1));
        assert!(now < NOW + 2 * config.want_timeout, "the second peer was never asked");
        alice.database.handle(now, Input::Tick).await.unwrap();
    }
    alice.take(Input::Block(carol, parent)).await;
    assert_eq!(alice.shown(), [Value::from("child"), Value::from("does not wait")]);

    // What nobody ever gives is given up, and takes no room any more.
    let orphan = alice.write(&bob, 9, vec![Hash::of(b"nobody has this")], "orphan");
    alice.take(Input::Published(mallory(), orphan)).await;
    assert_eq!(alice.database.info().unwrap().missing, 1);
    while alice.database.info().unwrap().missing > 0 {
        now = alice.database.deadline().expect("it is asked for again").max(now + Duration::from_millis(1));
        assert!(now < NOW + Duration::from_secs(600), "it was never given up");
        alice.database.handle(now, Input::Tick).await.unwrap();
    }
    assert_eq!(alice.database.info().unwrap().parked, 0);
}
