//! Databases as applications see them, between nodes over a wire in this process.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use orbitdb::{
    Access, Bounds, Database, DatabaseError, Event, OpenError, OpenOptions, OrbitDb, Output, Take, Told, Update,
    cbor::Value,
    cid::Hash,
    crypt::{Algorithm, Encryption},
    entry::{Limits, Op, Operation, WriteError},
    generation_name,
    index::{Record, Row, View},
    manifest::{Address, ControllerAddress, DatabaseType, Manifest, controller_block},
    replica::{AppendError, Input},
    storage::{Memory, Redb, RedbConfig, Space, Storage, StorageError},
    sync::Peer,
};
use tokio::{
    task::{JoinSet, spawn_blocking, unconstrained},
    time::timeout,
};

use crate::wire::{Failing, Wire, node};

fn document(id: &str, n: u64) -> Value {
    Value::map([("_id", Value::from(id)), ("n", n.into())])
}

fn keys(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| &*row.key).collect()
}

fn n(row: &Row) -> u64 {
    row.value.get("n").and_then(Value::as_u64).unwrap()
}

/// Returns the number that an event is.
fn n_of(row: &Row) -> u64 {
    row.value.as_u64().unwrap()
}

fn everyone(r#type: DatabaseType) -> OpenOptions {
    OpenOptions::of(r#type).access(Access::Everyone)
}

#[tokio::test]
async fn documents_are_put_read_and_taken_away() {
    let (orbit, _outputs) = node();
    let tasks = orbit.open_documents("tasks", "_id").await.unwrap();
    for (id, number) in [("b", 1), ("a", 2), ("c", 3), ("b", 4)] {
        tasks.put_document(document(id, number)).await.unwrap();
    }
    assert_eq!(n(&tasks.get("b").unwrap()), 4);
    assert_eq!(tasks.get("z"), None);
    tasks.del("c").await.unwrap();
    assert_eq!(tasks.get("c"), None);
    assert_eq!(keys(&tasks.query(|value| value.get("n").and_then(Value::as_u64) > Some(1))), ["a", "b"]);
    assert_eq!(keys(&tasks.all().unwrap()), ["a", "b"], "oldest first");
    assert_eq!(keys(&tasks.iterate(Bounds { amount: Some(1), ..Bounds::default() }).unwrap()), ["b"], "newest first");
    let refused = tasks.put_document(Value::map([("id", "x")])).await;
    assert_eq!(refused, Err(DatabaseError::Key("_id".into())));
    assert_eq!(tasks.add("x").await, Err(DatabaseError::Type(DatabaseType::Documents)));
    assert_eq!(tasks.put("x", "y").await, Err(DatabaseError::Type(DatabaseType::Documents)));
    let info = tasks.info().unwrap();
    assert_eq!((info.entries, info.rows, info.entries_grown), (5, 2, 5));
    assert!(info.log_bytes > 2000 && info.bytes_grown == info.log_bytes && info.heads.len() == 1);
}

#[tokio::test]
async fn keys_of_documents_keep_their_form_and_are_named_by_their_text() {
    let mut wire = Wire::of(2);
    let databases = wire.open("numbers", &everyone(DatabaseType::Documents)).await;
    let numbered = |id: &Value, n: u64| Value::map([("_id", id.clone()), ("n", n.into())]);
    let forms = |text: &str| -> Vec<Value> {
        let history = databases[0].history(text).unwrap();
        history.into_iter().map(|record| record.operation.key.unwrap().into_value()).collect()
    };
    let ids: [(Value, &str); 6] = [
        (5_u64.into(), "5"),
        ((-2_i64).into(), "-2"),
        (1.5.into(), "1.5"),
        (1e21.into(), "1e+21"),
        (true.into(), "true"),
        ("text".into(), "text"),
    ];
    for (id, text) in &ids {
        databases[0].put_document(numbered(id, 1)).await.unwrap();
        wire.settle().await;
        assert_eq!(*databases[1].get(text).unwrap().value, numbered(id, 1), "{text}");
        // By the node that did not put it.
        databases[1].del(text).await.unwrap();
        wire.settle().await;
        assert_eq!(databases[0].get(text), None, "{text}");
        assert_eq!(forms(text), [id.clone(), id.clone()], "what peers in JavaScript compare");
    }
    // Of a number and its text the newer one counts, on all nodes.
    for (n, id) in [(1, Value::from(7_u64)), (2, "7".into())] {
        databases[0].put_document(numbered(&id, n)).await.unwrap();
    }
    wire.settle().await;
    for database in &databases {
        assert_eq!((n(&database.get("7").unwrap()), keys(&database.all().unwrap())), (2, vec!["7"]));
    }
    databases[0].del("7").await.unwrap();
    assert_eq!(forms("7"), [Value::from(7_u64), "7".into(), "7".into()]);
    let refused = databases[0].put_document(numbered(&Value::Null, 1)).await;
    assert_eq!(refused, Err(DatabaseError::Key("_id".into())));
}

#[tokio::test]
async fn events_are_read_within_bounds() {
    let (orbit, _outputs) = node();
    let log = orbit.open_events("log").await.unwrap();
    let mut hashes = Vec::new();
    for number in 0..10_u64 {
        hashes.push(log.add(number).await.unwrap());
    }
    assert_eq!(n_of(&log.get(&hashes[3].to_string()).unwrap()), 3, "each is got by its hash");
    assert!(log.get("3").is_none() && log.get(&Hash::of(b"nothing").to_string()).is_none());
    let even = log.query(|value| value.as_u64().is_some_and(|number| number % 2 == 0));
    assert_eq!(even.iter().map(n_of).collect::<Vec<_>>(), [0, 2, 4, 6, 8], "oldest first");
    let read = |bounds: Bounds| -> Vec<u64> {
        log.iterate(bounds).unwrap().iter().map(|row| row.value.as_u64().unwrap()).collect()
    };
    let at = |number: usize| Some(hashes[number]);
    let none = Bounds::default();
    assert_eq!(read(none), (0..10).rev().collect::<Vec<_>>());
    assert_eq!(read(Bounds { amount: Some(3), ..none }), [9, 8, 7]);
    assert_eq!(read(Bounds { gt: at(6), ..none }), [9, 8, 7]);
    assert_eq!(read(Bounds { gte: at(6), lt: at(9), ..none }), [8, 7, 6]);
    assert_eq!(read(Bounds { lte: at(2), amount: Some(2), ..none }), [2, 1]);
    assert_eq!(read(Bounds { gt: at(2), amount: Some(2), ..none }), [4, 3], "the oldest above a lower bound alone");
    assert_eq!(read(Bounds { gt: at(5), lt: at(5), ..none }), Vec::<u64>::new());
    assert_eq!(read(Bounds { gte: at(7), lt: at(3), ..none }), Vec::<u64>::new());
    let unknown = Hash::of(b"unknown");
    assert_eq!(log.iterate(Bounds { gt: Some(unknown), ..none }), Err(DatabaseError::NotFound(unknown)));
    assert_eq!(log.all().unwrap().len(), 10);
    let mut pages = log.pages(Bounds { gt: at(2), lte: at(8), amount: Some(5), take: Take::Oldest, ..none }).unwrap();
    let mut page = || pages.read(3).unwrap().iter().map(n_of).collect::<Vec<_>>();
    assert_eq!([page(), page(), page()], [vec![3, 4, 5], vec![6, 7], vec![]]);
    assert_eq!(log.pages(Bounds { lt: Some(unknown), ..none }).unwrap_err(), DatabaseError::NotFound(unknown));
    assert_eq!(log.del("x").await, Err(DatabaseError::Type(DatabaseType::Events)));
}

#[tokio::test]
async fn rows_stand_in_the_order_of_their_entries_while_they_are_put_anew() {
    let (orbit, _outputs) = node();
    let numbers = orbit.open_key_value("numbers").await.unwrap();
    for number in 0..64_u64 {
        numbers.put(&number.to_string(), number).await.unwrap();
    }
    let writing = tokio::spawn({
        let numbers = numbers.clone();
        async move {
            for number in 64..1_000_u64 {
                numbers.put(&(number % 64).to_string(), number).await.unwrap();
            }
        }
    });
    while !writing.is_finished() {
        let rows: Vec<u64> = numbers.all().unwrap().iter().map(n_of).collect();
        assert!(rows.len() == 64 && rows.is_sorted(), "a row stands where its key stood before: {rows:?}");
        tokio::task::yield_now().await;
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn pages_go_on_where_they_were_whatever_is_put_between_them() {
    let (orbit, _outputs) = node();
    let database = orbit.open_key_value("letters").await.unwrap();
    for letter in ["a", "b", "c", "d", "e", "f"] {
        database.put(letter, 1_u64).await.unwrap();
    }
    let pages = |take| database.pages(Bounds { take, ..Bounds::default() }).unwrap();
    let (mut oldest, mut newest) = (pages(Take::Oldest), pages(Take::Newest));
    assert_eq!(keys(&oldest.read(2).unwrap()), ["a", "b"]);
    assert_eq!(keys(&newest.read(2).unwrap()), ["f", "e"]);
    for letter in ["b", "e"] {
        database.put(letter, 2_u64).await.unwrap();
    }
    assert_eq!(keys(&oldest.read(2).unwrap()), ["c", "d"]);
    assert_eq!(keys(&newest.read(2).unwrap()), ["d", "c"]);
    database.del("d").await.unwrap();
    assert_eq!(keys(&oldest.read(2).unwrap()), ["f", "b"]);
    assert_eq!(keys(&newest.read(2).unwrap()), ["a"]);
    let last = oldest.read(2).unwrap();
    assert_eq!((keys(&last), last.iter().map(n_of).collect::<Vec<_>>()), (vec!["e"], vec![2]));
    assert!(oldest.read(2).unwrap().is_empty() && newest.read(2).unwrap().is_empty());
}

#[tokio::test]
async fn pages_go_on_where_an_entry_was_that_a_revocation_took_away() {
    let mut wire = Wire::of(2);
    let options = OpenOptions::of(DatabaseType::KeyValue).access(Access::Capabilities(vec![]));
    let first = wire.orbit(0).open("guarded", options).await.unwrap();
    let (orbit, address) = (wire.orbit(1).clone(), first.address().to_string());
    let opening = tokio::spawn(async move { orbit.open(&address, OpenOptions::default()).await });
    let second = wire.supply_until(opening).await.unwrap();
    let id = wire.orbit(1).identity().id().to_owned();
    first.grant("write", &id).await.unwrap();
    first.put("a", 1_u64).await.unwrap();
    wire.until(|| second.admission().admits(&id) && second.get("a").is_some()).await;
    second.put("b", 2_u64).await.unwrap();
    wire.until(|| first.get("b").is_some()).await;
    first.put("c", 3_u64).await.unwrap();

    let mut pages = first.pages(Bounds { take: Take::Oldest, ..Bounds::default() }).unwrap();
    assert_eq!(keys(&pages.read(2).unwrap()), ["a", "b"]);
    first.revoke("write", &id).await.unwrap();
    assert_eq!(first.get("b"), None);
    assert_eq!(keys(&pages.read(2).unwrap()), ["c"]);
    assert!(pages.read(2).unwrap().is_empty());
}

#[tokio::test]
async fn what_was_put_is_there_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let open = async || {
        let (orbit, outputs) = OrbitDb::builder().directory(directory.path()).identity("me").build().unwrap();
        let database = orbit.open_key_value("settings").await.unwrap();
        (orbit, outputs, database)
    };
    let (orbit, _outputs, settings) = open().await;
    let (address, id) = (settings.address(), orbit.identity().id().to_owned());
    settings.put("a", 1_u64).await.unwrap();
    settings.put("b", 2_u64).await.unwrap();
    settings.del("a").await.unwrap();
    orbit.close().await.unwrap();
    assert_eq!(settings.put("c", 3_u64).await, Err(DatabaseError::Closed));
    assert_eq!(settings.all().map(|rows| rows.len()), Ok(1));
    drop((settings, orbit));

    let (orbit, _outputs, settings) = open().await;
    assert_eq!((settings.address(), orbit.identity().id()), (address, &*id));
    assert_eq!(keys(&settings.all().unwrap()), ["b"]);
    settings.put("c", 3_u64).await.unwrap();
    assert_eq!(settings.info().unwrap().entries, 4);
    assert_eq!(settings.info().unwrap().entries_grown, 1);
    let known = orbit.databases().unwrap();
    assert_eq!((known.len(), &*known[0].name, known[0].address), (1, "settings", address));
}

#[tokio::test]
async fn own_entries_name_no_more_than_may_be_read_of_them_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let options = everyone(DatabaseType::Events).limits(Limits { links: 4, ..Limits::default() });
    let open = async || {
        let (orbit, outputs) = OrbitDb::builder().directory(directory.path()).build().unwrap();
        let log = orbit.open("log", options.clone()).await.unwrap();
        (orbit, outputs, log)
    };
    let numbers = |log: &Database| -> BTreeSet<u64> { log.all().unwrap().iter().map(n_of).collect() };
    let (orbit, _outputs, log) = open().await;
    for number in 0..10_u64 {
        let (other, _outputs) = node();
        let theirs = other.open("log", options.clone()).await.unwrap();
        let hash = theirs.add(number).await.unwrap();
        let (_, blocks) = theirs.bulk(&[hash], usize::MAX, &mut Told::default()).unwrap();
        log.handle(Duration::ZERO, Input::Bulk(Peer::new("other"), blocks)).await.unwrap();
    }
    log.flush().await.unwrap();
    assert_eq!(log.info().unwrap().heads.len(), 10);
    for number in 10..40_u64 {
        log.add(number).await.unwrap();
    }
    assert_eq!(log.info().unwrap().heads.len(), 1, "the later ones follow what the first could not name");
    assert_eq!(numbers(&log), (0..40).collect());
    orbit.close().await.unwrap();
    drop((orbit, log));

    let (_orbit, _outputs, log) = open().await;
    assert_eq!(numbers(&log), (0..40).collect());
    assert!(log.info().unwrap().refused.is_empty());
}

#[tokio::test]
async fn opening_reads_the_log_once() {
    for options in [everyone(DatabaseType::Documents), everyone(DatabaseType::KeyValue).view(Arc::new(FirstCome))] {
        let (storage, control) = Failing::new(Memory::default());
        let (orbit, _outputs) = OrbitDb::builder().storage(Arc::new(storage)).build().unwrap();
        let database = orbit.open("log", options.clone()).await.unwrap();
        for number in 0..3000_u64 {
            database.append(Operation::put((number % 700).to_string(), number)).await.unwrap();
        }
        let before = database.query(|_| true);
        database.close().await.unwrap();
        control.logs_read.store(0, Ordering::SeqCst);
        let database = orbit.open("log", options).await.unwrap();
        assert_eq!(control.logs_read.load(Ordering::SeqCst), 1);
        assert_eq!((database.query(|_| true), database.info().unwrap().entries), (before, 3000));
    }
}

#[tokio::test]
async fn many_puts_in_flight_are_all_there() {
    let directory = tempfile::tempdir().unwrap();
    let (orbit, _outputs) = OrbitDb::builder().directory(directory.path()).build().unwrap();
    let tasks = orbit.open_documents("tasks", "_id").await.unwrap();
    let put = |number: u64| {
        let tasks = tasks.clone();
        tokio::spawn(async move { tasks.put_document(document(&number.to_string(), number)).await })
    };
    let running: Vec<_> = (0..300).map(put).collect();
    for put in running {
        put.await.unwrap().unwrap();
    }
    drop(tasks);
    let tasks = orbit.open_documents("tasks", "_id").await.unwrap();
    assert_eq!(tasks.all().unwrap().len(), 300);
    assert_eq!(tasks.info().unwrap().heads.len(), 1);
}

#[tokio::test]
async fn large_puts_wait_until_the_disk_has_taken_those_before_them() {
    const PUTS: u64 = 100;
    let (storage, control) = Failing::new(Memory::default());
    let (orbit, _outputs) = OrbitDb::builder().storage(Arc::new(storage)).build().unwrap();
    let log = orbit.open_events("log").await.unwrap();
    control.hold(true);
    let value = "x".repeat(1_000_000);
    let mut puts: Vec<_> = (0..PUTS).map(|_| Box::pin(log.add(value.as_str()))).collect();
    let begun = poll_fn(|context| {
        assert!(puts.iter_mut().all(|put| put.as_mut().poll(context).is_pending()));
        Poll::Ready(())
    });
    unconstrained(begun).await;
    let taken = log.info().unwrap().entries;
    assert!((60..=70).contains(&taken), "{taken} entries of 1 MB are in memory while nothing is written");
    control.hold(false);
    for put in puts {
        put.await.unwrap();
    }
    assert_eq!(log.info().unwrap().entries, PUTS);
}

#[tokio::test]
async fn two_writers_at_once_come_to_the_same_state() {
    let mut wire = Wire::of(3);
    let databases = wire.open("shared", &everyone(DatabaseType::Documents)).await;
    for round in 0..5_u64 {
        for (writer, database) in databases.iter().enumerate().take(2) {
            database.put_document(document("contested", round * 10 + writer as u64)).await.unwrap();
            database.put_document(document(&format!("{writer}/{round}"), round)).await.unwrap();
        }
        if round % 2 == 0 {
            wire.settle().await;
        }
    }
    wire.settle().await;
    let all = databases[0].all().unwrap();
    assert_eq!(all.len(), 11);
    for database in &databases[1..] {
        assert_eq!(database.all().unwrap(), all);
        assert_eq!(database.info().unwrap().heads, databases[0].info().unwrap().heads);
    }
}

#[tokio::test]
async fn a_node_that_joins_late_opens_by_address_and_gets_everything() {
    let mut wire = Wire::of(2);
    let options = everyone(DatabaseType::Events);
    let first = wire.orbit(0).open("late", options).await.unwrap();
    for number in 0..100_u64 {
        first.add(number).await.unwrap();
    }
    let (late, address) = (wire.orbit(1).clone(), first.address().to_string());
    let opening = tokio::spawn(async move { late.open(&address, OpenOptions::default()).await });
    let second = wire.supply_until(opening).await.unwrap();
    let mut events = second.events();
    wire.settle().await;
    assert_eq!(second.all().unwrap(), first.all().unwrap());
    let mut updates = 0;
    let mut joined = false;
    while let Ok(event) = events.try_recv() {
        match event {
            Event::Update(Update { peer: Some(_), operation: Some(operation), .. }) if operation.op == Op::Add => {
                updates += 1;
            }
            Event::Join { peer, .. } => joined = peer == Peer::new("0"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((updates, joined), (100, true));
    wire.part(1, 0).await;
    assert_eq!(events.try_recv(), Ok(Event::Leave { peer: Peer::new("0") }));
    let wrong = wire.orbit(1).open(&first.address().to_string(), OpenOptions::of(DatabaseType::KeyValue)).await;
    assert!(matches!(wrong, Err(OpenError::Type { found: DatabaseType::Events, .. })));
}

#[tokio::test]
async fn only_the_creator_writes_unless_it_is_said_otherwise() {
    let mut wire = Wire::of(2);
    let first = wire.orbit(0).open_key_value("mine").await.unwrap();
    let (other, address) = (wire.orbit(1).clone(), first.address().to_string());
    let second = wire.supply_until(tokio::spawn(async move { other.open_key_value(&address).await })).await.unwrap();
    assert_eq!(second.put("k", "v").await, Err(DatabaseError::Append(AppendError::NotAdmitted)));
    first.put("k", "v").await.unwrap();
    wire.settle().await;
    assert!(second.get("k").is_some());
    assert_eq!(first.grant("write", "someone").await, Err(DatabaseError::Fixed));
}

#[tokio::test]
async fn a_grant_lets_write_and_its_revocation_takes_away_what_was_written() {
    let mut wire = Wire::of(3);
    let options = OpenOptions::of(DatabaseType::Documents).access(Access::Capabilities(vec![]));
    let first = wire.orbit(0).open("guarded", options.clone()).await.unwrap();
    let mut others = Vec::new();
    for node in 1..3 {
        let (orbit, address) = (wire.orbit(node).clone(), first.address().to_string());
        let opening = tokio::spawn(async move { orbit.open(&address, OpenOptions::default()).await });
        others.push(wire.supply_until(opening).await.unwrap());
    }
    let (second, third) = (&others[0], &others[1]);
    let id = wire.orbit(1).identity().id().to_owned();
    assert_eq!(second.put_document(document("x", 1)).await, Err(DatabaseError::Append(AppendError::NotAdmitted)));
    first.grant("write", &id).await.unwrap();
    wire.settle().await;
    wire.until(|| second.admission().admits(&id)).await;
    second.put_document(document("x", 1)).await.unwrap();
    first.put_document(document("y", 2)).await.unwrap();
    wire.settle().await;
    wire.until(|| third.all().unwrap().len() == 2).await;

    first.revoke("write", &id).await.unwrap();
    wire.settle().await;
    wire.until(|| [&first, second, third].iter().all(|database| keys(&database.all().unwrap()) == ["y"])).await;
    assert_eq!(second.put_document(document("z", 3)).await, Err(DatabaseError::Append(AppendError::NotAdmitted)));
    assert_eq!(second.grant("write", &id).await, Err(DatabaseError::Append(AppendError::NotAdmitted)), "no admin");
}

#[tokio::test]
async fn what_guards_a_database_has_the_same_limits() {
    let (orbit, _outputs) = node();
    let limits = Limits { entry_bytes: 2_000, ..Limits::default() };
    let options = OpenOptions::of(DatabaseType::Events).limits(limits);
    let guarded = orbit.open("guarded", options.clone().access(Access::Capabilities(vec![]))).await.unwrap();
    let too_long = "x".repeat(2_000);
    let is_too_large = |granted: Result<(), DatabaseError>| {
        matches!(granted, Err(DatabaseError::Append(AppendError::Write(WriteError::Oversize { limit: 2_000, .. }))))
    };
    assert!(is_too_large(guarded.grant("write", &too_long).await));
    let address = guarded.address().to_string();
    guarded.close().await.unwrap();
    guarded.guard().unwrap().close().await.unwrap();
    drop(guarded);
    let again = orbit.open(&address, options).await.unwrap();
    assert!(is_too_large(again.grant("write", &too_long).await), "by its address, too");
}

/// Keeps everything in memory, but for one space.
struct Without {
    inner: Memory,
    space: String,
}

impl Storage for Without {
    fn open(&self, space: &str) -> Result<Arc<dyn Space>, StorageError> {
        if space == self.space {
            return Err(StorageError::Failed { place: "here".into(), reason: "no space is left".into() });
        }
        self.inner.open(space)
    }

    fn remove(&self, space: &str) -> Result<(), StorageError> {
        self.inner.remove(space)
    }
}

#[tokio::test]
async fn nothing_is_left_of_what_guards_a_database_that_cannot_be_opened() {
    let options = OpenOptions::of(DatabaseType::Events).access(Access::Capabilities(vec!["admin".to_owned()]));
    let (other, _outputs) = node();
    let guarded = other.open("guarded", options.clone()).await.unwrap();
    let storage = Without { inner: Memory::default(), space: guarded.address().manifest().to_string() };
    let (orbit, _outputs) = OrbitDb::builder().storage(Arc::new(storage)).build().unwrap();
    assert!(matches!(orbit.open("guarded", options).await, Err(OpenError::Database(DatabaseError::Storage(_)))));
    assert_eq!((orbit.databases().unwrap(), orbit.addresses().borrow().len()), (vec![], 0));
    let guard = guarded.guard().unwrap().address().to_string();
    let missing = orbit.missing();
    let opening = orbit.open(&guard, OpenOptions::default());
    assert!(timeout(Duration::from_millis(10), opening).await.is_err(), "it is not known any more");
    assert!(missing.borrow().is_empty());
}

/// Begins something, and gives it up.
async fn begin<T>(work: impl Future<Output = T>) {
    let mut work = Box::pin(work);
    unconstrained(poll_fn(|context| {
        assert!(work.as_mut().poll(context).is_pending());
        Poll::Ready(())
    }))
    .await;
}

/// Returns whether something takes longer than a moment.
async fn waits<T>(work: impl Future<Output = T>) -> bool {
    timeout(Duration::from_millis(10), work).await.is_err()
}

#[tokio::test]
async fn a_database_whose_opening_was_given_up_is_waited_for_by_the_next_one_too() {
    let (storage, control) = Failing::new(Memory::default());
    let (orbit, _outputs) = OrbitDb::builder().storage(Arc::new(storage)).build().unwrap();
    let log = orbit.open_events("log").await.unwrap();
    control.hold(true);
    begin(log.add("one")).await;
    drop(log);
    for _ in 0..2 {
        assert!(waits(orbit.open_events("log")).await, "its writer is still at work");
    }
    control.hold(false);
    let log = orbit.open_events("log").await.unwrap();
    log.add("two").await.unwrap();
    let rows = log.all().unwrap();
    let values: Vec<_> = rows.iter().filter_map(|row| row.value.as_text()).collect();
    assert_eq!(values, ["one", "two"]);
}

#[tokio::test]
async fn who_gives_up_closing_has_closed_nothing() {
    let (storage, control) = Failing::new(Memory::default());
    let (orbit, _outputs) = OrbitDb::builder().storage(Arc::new(storage)).build().unwrap();
    let log = orbit.open_events("log").await.unwrap();
    control.hold(true);
    // More than may wait to be written.
    for number in 0..2_000_u64 {
        begin(log.add(number)).await;
    }
    assert!(waits(log.close()).await);
    assert!(!log.is_closed());
    control.hold(false);
    log.add("the last").await.unwrap();
    log.close().await.unwrap();
    assert!(log.is_closed());
    orbit.open_events("log").await.unwrap();
}

#[tokio::test]
async fn closing_waits_for_what_was_let_go_and_is_still_written() {
    let (storage, control) = Failing::new(Memory::default());
    let (orbit, _outputs) = OrbitDb::builder().storage(Arc::new(storage)).build().unwrap();
    let log = orbit.open_events("log").await.unwrap();
    control.hold(true);
    begin(log.add("one")).await;
    drop(log);
    assert!(waits(orbit.close()).await);
    control.hold(false);
    orbit.close().await.unwrap();
}

#[tokio::test]
async fn a_database_whose_storage_failed_can_be_dropped() {
    let (storage, control) = Failing::new(Memory::default());
    let (orbit, _outputs) = OrbitDb::builder().storage(Arc::new(storage)).build().unwrap();
    let log = orbit.open_events("log").await.unwrap();
    log.add("one").await.unwrap();
    control.fails.store(true, Ordering::SeqCst);
    assert!(matches!(log.add("two").await, Err(DatabaseError::Storage(_))));
    control.fails.store(false, Ordering::SeqCst);
    orbit.drop_database(&log.address()).await.unwrap();
    assert_eq!(orbit.databases().unwrap(), []);
    drop(log);
    let log = orbit.open_events("log").await.unwrap();
    assert!(log.all().unwrap().is_empty());
}

#[tokio::test]
async fn databases_can_be_made_again_once_the_disk_takes_what_it_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (orbit, _outputs) = OrbitDb::builder().directory(directory.path()).build().unwrap();
    // Where the list of databases gets its journal there is something else.
    let in_the_way = directory.path().join("node.journal-new");
    std::fs::create_dir(&in_the_way).unwrap();
    let mut number = 0;
    while let Ok(log) = orbit.open_events(&number.to_string()).await {
        drop(log);
        number += 1;
        assert!(number < 100, "nothing was refused");
    }
    std::fs::remove_dir(&in_the_way).unwrap();
    for _ in 0..20 {
        orbit.open_events(&number.to_string()).await.unwrap();
        number += 1;
    }
    assert_eq!(orbit.databases().unwrap().len(), number);
}

#[tokio::test]
async fn what_guards_a_database_is_never_opened_beside_what_is_still_written_to_it() {
    let (storage, control) = Failing::new(Memory::default());
    let (orbit, _outputs) = OrbitDb::builder().storage(Arc::new(storage)).build().unwrap();
    let options = OpenOptions::of(DatabaseType::Events).access(Access::Capabilities(vec![]));
    let guarded = orbit.open("guarded", options.clone()).await.unwrap();
    let guard = guarded.guard().unwrap().clone();
    guarded.close().await.unwrap();
    drop(guarded);
    // Whoever granted has gone, and what was granted is not written yet.
    control.hold(true);
    begin(guard.put("write", vec![Value::from("somebody")])).await;
    // The last handle that others have goes in the midst of opening.
    *control.before_read.lock().unwrap() = Some(Box::new(move || drop(guard)));
    let again = orbit.open("guarded", options).await.unwrap();
    assert!(control.before_read.lock().unwrap().is_none());
    control.hold(false);
    again.guard().unwrap().flush().await.unwrap();
    again.flush().await.unwrap();
    assert!(again.admission().admits("somebody"));
}

#[tokio::test]
async fn a_grant_and_a_revocation_count_when_they_return() {
    let (orbit, _outputs) = node();
    let options = OpenOptions::of(DatabaseType::Events).access(Access::Capabilities(vec![]));
    let guarded = orbit.open("guarded", options).await.unwrap();
    for number in 0..200 {
        let id = number.to_string();
        guarded.grant("write", &id).await.unwrap();
        assert!(guarded.admission().admits(&id), "grant {number}");
        guarded.revoke("write", &id).await.unwrap();
        assert!(!guarded.admission().admits(&id), "revocation {number}");
    }
}

#[tokio::test]
async fn grants_and_revocations_at_once_are_all_done() {
    let (orbit, _outputs) = node();
    let options = OpenOptions::of(DatabaseType::Events).access(Access::Capabilities(vec![]));
    let guarded = orbit.open("guarded", options).await.unwrap();
    let id = |number: usize| format!("id {number:02}");
    let granted = || -> BTreeSet<String> {
        let row = guarded.guard().unwrap().get("write").unwrap();
        row.value.as_list().unwrap().iter().map(|id| id.as_text().unwrap().to_owned()).collect()
    };
    let mut running = JoinSet::new();
    for number in 0..10 {
        let guarded = guarded.clone();
        running.spawn(async move { guarded.grant("write", &id(number)).await });
    }
    running.join_all().await.into_iter().for_each(Result::unwrap);
    assert_eq!(granted(), (0..10).map(id).collect());

    let mut running = JoinSet::new();
    for number in 0..10 {
        let guarded = guarded.clone();
        running.spawn(async move {
            if number < 5 {
                guarded.revoke("write", &id(number)).await
            } else {
                guarded.grant("write", &id(number + 5)).await
            }
        });
    }
    running.join_all().await.into_iter().for_each(Result::unwrap);
    assert_eq!(granted(), (5..15).map(id).collect());
}

#[tokio::test]
async fn a_revocation_of_what_was_not_granted_says_so_and_writes_nothing() {
    let (orbit, _outputs) = node();
    let options = OpenOptions::of(DatabaseType::Events).access(Access::Capabilities(vec![]));
    let guarded = orbit.open("guarded", options).await.unwrap();
    guarded.grant("write", "somebody").await.unwrap();
    let written = guarded.guard().unwrap().info().unwrap().entries;
    for (capability, id) in [("admin", "somebody"), ("write", "somebody else")] {
        let refused = guarded.revoke(capability, id).await;
        assert_eq!(refused, Err(DatabaseError::NotGranted { capability: capability.into(), id: id.into() }));
    }
    assert_eq!(guarded.guard().unwrap().info().unwrap().entries, written);
    guarded.revoke("write", "somebody").await.unwrap();
    assert!(matches!(guarded.revoke("write", "somebody").await, Err(DatabaseError::NotGranted { .. })));
}

/// Shows the first value that was put: later writers cannot take a key over.
struct FirstCome;

impl View for FirstCome {
    fn evaluate(&self, _: &str, records: &[Record]) -> Option<Value> {
        let owner = &records.first()?.writer;
        let newest = records.iter().rev().find(|record| record.writer == *owner)?;
        (newest.operation.op == Op::Put).then(|| newest.operation.value.clone())
    }
}

#[tokio::test]
async fn a_view_of_the_application_shows_the_same_everywhere_and_after_opening_again() {
    let mut wire = Wire::of(2);
    let options = everyone(DatabaseType::KeyValue).view(Arc::new(FirstCome));
    let databases = wire.open("names", &options).await;
    databases[0].put("name", "first").await.unwrap();
    wire.settle().await;
    databases[1].put("name", "stolen").await.unwrap();
    wire.settle().await;
    databases[0].put("name", "renamed").await.unwrap();
    wire.settle().await;
    let address = databases[0].address();
    for database in &databases {
        assert_eq!(*database.get("name").unwrap().value, Value::from("renamed"));
    }
    databases[1].close().await.unwrap();
    let again = wire.orbit(1).open(&address.to_string(), options).await.unwrap();
    assert_eq!(*again.get("name").unwrap().value, Value::from("renamed"));
}

#[tokio::test]
async fn the_history_of_a_key_has_all_its_entries_oldest_first() {
    let (orbit, _outputs) = node();
    let plain = everyone(DatabaseType::KeyValue);
    for (name, options) in [("plain", plain.clone()), ("viewed", plain.view(Arc::new(FirstCome)))] {
        let database = orbit.open(name, options.clone()).await.unwrap();
        let mut hashes = Vec::new();
        for (key, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")] {
            hashes.push(database.put(key, value).await.unwrap());
        }
        hashes.push(database.del("a").await.unwrap());
        let wanted = [hashes[0], hashes[2], hashes[3], hashes[4]];
        let check = |database: &Database| {
            let history = database.history("a").unwrap();
            let found: Vec<Hash> = history.iter().map(|record| record.position.hash).collect();
            assert_eq!(found, wanted, "{name}");
            assert_eq!((&*history[1].writer, &history[1].operation.value), (orbit.identity().id(), &Value::from("3")));
            assert_eq!(history[3].operation.op, Op::Del);
            assert_eq!(database.history("c").unwrap(), []);
        };
        check(&database);
        database.close().await.unwrap();
        check(&orbit.open(name, options).await.unwrap());
    }
}

#[tokio::test]
async fn encrypted_documents_are_read_with_the_key_only() {
    let mut wire = Wire::of(2);
    let with = |seed: u8| {
        everyone(DatabaseType::Documents).encryption(Encryption::of_swarm_key(Algorithm::Aes256Gcm, &[seed; 32]))
    };
    let databases = wire.open("secret", &with(1)).await;
    databases[0].put_document(Value::map([("_id", "a"), ("text", "the hidden text")])).await.unwrap();
    let head = databases[0].head_blocks().unwrap().remove(0);
    assert!(!head.windows(6).any(|window| window == b"hidden"));
    wire.settle().await;
    assert_eq!(databases[0].all().unwrap(), databases[1].all().unwrap());
    assert_eq!(databases[1].get("a").unwrap().value.get("text"), Some(&"the hidden text".into()));
    let mut strangers = Wire::of(1);
    let stranger = strangers.open("secret", &with(2)).await.remove(0);
    stranger.handle(Duration::ZERO, Input::Published(Peer::new("x"), head)).await.unwrap();
    assert_eq!(stranger.info().unwrap().broken, 1);
}

#[tokio::test]
async fn an_old_generation_is_dropped_and_its_space_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let (orbit, _outputs) = OrbitDb::builder().directory(directory.path()).build().unwrap();
    assert_eq!((generation_name("tasks", 1), generation_name("tasks", 2)), ("tasks".into(), "tasks.2".into()));
    let old = orbit.open_events(&generation_name("tasks", 1)).await.unwrap();
    old.add(Value::Bytes(vec![7; 500_000])).await.unwrap();
    let new = orbit.open_events(&generation_name("tasks", 2)).await.unwrap();
    let used = || {
        std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let before = used();
    let address = old.address();
    orbit.drop_database(&address).await.unwrap();
    assert!(used() + 500_000 <= before);
    assert_eq!(old.add(1_u64).await, Err(DatabaseError::Closed));
    assert_eq!(orbit.databases().unwrap().len(), 1);
    assert!(new.add(1_u64).await.is_ok());
    let fresh = orbit.open_events("tasks").await.unwrap();
    assert_eq!((fresh.address(), fresh.all().unwrap().len()), (address, 0));
}

#[tokio::test]
async fn a_drop_that_was_interrupted_takes_nothing_that_is_put_after_it() {
    let (storage, control) = Failing::new(Memory::default());
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let node = || OrbitDb::builder().storage(Arc::clone(&storage)).build().unwrap();
    let (orbit, _outputs) = node();
    let log = orbit.open_events("log").await.unwrap();
    log.add("before").await.unwrap();
    control.keeps_all.store(true, Ordering::SeqCst);
    assert!(matches!(orbit.drop_database(&log.address()).await, Err(DatabaseError::Storage(_))));
    assert!(matches!(orbit.open_events("log").await, Err(OpenError::Database(_))), "half of it is not opened");
    control.keeps_all.store(false, Ordering::SeqCst);
    let fresh = orbit.open_events("log").await.unwrap();
    assert_eq!((fresh.address(), fresh.all().unwrap().len()), (log.address(), 0), "it was dropped");
    let after = fresh.add("after").await.unwrap();
    orbit.close().await.unwrap();
    drop((orbit, log, fresh));

    let (orbit, _outputs) = node();
    let log = orbit.open_events("log").await.unwrap();
    assert_eq!(log.all().unwrap().iter().map(|row| row.hash).collect::<Vec<_>>(), [after]);
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_go_on_while_it_is_worked_out_what_a_peer_lacks() {
    let (orbit, _outputs) = node();
    let log = orbit.open_events("log").await.unwrap();
    for number in 0..4_000_u64 {
        log.add(number).await.unwrap();
    }
    let done = Arc::new(AtomicU64::new(0));
    let walks = spawn_blocking({
        let (log, done) = (log.clone(), Arc::clone(&done));
        move || {
            let begun = Instant::now();
            let several_were_done = || {
                let before = done.load(Ordering::SeqCst);
                assert!(log.lacking(&[]).len() >= 4_000);
                done.load(Ordering::SeqCst) >= before + 5
            };
            while begun.elapsed() < Duration::from_secs(20) {
                if several_were_done() {
                    return true;
                }
            }
            false
        }
    });
    while !walks.is_finished() {
        log.add(0_u64).await.unwrap();
        done.fetch_add(1, Ordering::SeqCst);
    }
    assert!(walks.await.unwrap(), "each walk held up the puts to its end");
}

#[tokio::test]
async fn puts_go_on_while_a_long_log_joins() {
    let ((far_orbit, _outputs), (orbit, mut outputs)) = (node(), node());
    let far = far_orbit.open("log", everyone(DatabaseType::Events)).await.unwrap();
    let log = orbit.open("log", everyone(DatabaseType::Events)).await.unwrap();
    let oldest = far.add(0_u64).await.unwrap();
    for number in 1..1_500_u64 {
        far.add(number).await.unwrap();
    }
    let (now, peer) = (Duration::from_secs(1), Peer::new("far"));
    for head in far.head_blocks().unwrap() {
        log.handle(now, Input::Heads(peer.clone(), head)).await.unwrap();
    }
    // The peer gives blocks and nothing else, so that the oldest comes last.
    while let Ok(output) = outputs.try_recv() {
        let Output::Want { hashes, .. } = output else { continue };
        for hash in hashes.into_iter().filter(|hash| *hash != oldest) {
            let block = far_orbit.block(&hash).unwrap().unwrap();
            log.handle(now, Input::Block(peer.clone(), block)).await.unwrap();
        }
    }
    assert_eq!(log.info().unwrap().entries, 0);
    let block = far_orbit.block(&oldest).unwrap().unwrap();
    let (joined, own) = tokio::join!(log.handle(now, Input::Block(peer, block)), log.add("own"));
    joined.unwrap();
    own.unwrap();
    log.flush().await.unwrap();
    let info = log.info().unwrap();
    assert_eq!(info.entries, 1_501);
    assert_eq!(info.heads.len(), 2, "the own entry waited for the whole log");
}

#[tokio::test]
async fn what_is_open_can_be_watched() {
    let (orbit, _outputs) = node();
    let mut addresses = orbit.addresses();
    assert!(addresses.borrow_and_update().is_empty());
    let events = orbit.open_events("log").await.unwrap();
    assert!(addresses.borrow_and_update().contains(&events.address()));
    assert_eq!(orbit.open_events("log").await.unwrap().address(), events.address());
    let address = events.address();
    assert!(orbit.database(&address).is_some());
    drop(events);
    assert!(addresses.borrow_and_update().is_empty());
    assert!(orbit.database(&address).is_none());
}

#[tokio::test]
async fn a_wait_for_a_block_can_be_given_up() {
    let (orbit, _outputs) = node();
    let address = Address::new(Hash::of(b"nobody has this")).to_string();
    let missing = orbit.missing();
    let opening = orbit.open(&address, OpenOptions::default());
    assert!(timeout(Duration::from_millis(10), opening).await.is_err());
    assert!(missing.borrow().is_empty());
    let opening = tokio::spawn({
        let orbit = orbit.clone();
        async move { orbit.open(&Address::new(Hash::of(b"no manifest")).to_string(), OpenOptions::default()).await }
    });
    orbit.missing().wait_for(|missing| !missing.is_empty()).await.unwrap();
    orbit.supply(b"something else");
    orbit.supply(b"no manifest");
    assert!(matches!(opening.await.unwrap(), Err(OpenError::Manifest(_))));
}

#[tokio::test]
async fn a_chain_of_guards_is_refused_before_it_is_followed() {
    let (orbit, _outputs) = node();
    let list = controller_block(&["*".to_owned()]);
    let mut controller = ControllerAddress::Ipfs(Hash::of(&list));
    let mut manifests = Vec::new();
    for name in ["first", "second", "third"] {
        let manifest = Manifest { name: name.to_owned(), r#type: DatabaseType::KeyValue, controller, meta: None };
        manifests.push(manifest.block().unwrap());
        controller = ControllerAddress::OrbitDb(Address::new(Hash::of(manifests.last().unwrap())));
    }
    let mut missing = orbit.missing();
    let opening = tokio::spawn({
        let (orbit, address) = (orbit.clone(), controller.to_string());
        async move { orbit.open(&address, OpenOptions::default()).await }
    });
    for manifest in manifests[1..].iter().rev() {
        let asked = missing.wait_for(|missing| !missing.is_empty()).await.unwrap().clone();
        assert_eq!(asked, BTreeSet::from([Hash::of(manifest)]));
        orbit.supply(manifest);
    }
    let refused = timeout(Duration::from_secs(20), opening).await.expect("nothing more is waited for").unwrap();
    assert!(matches!(refused, Err(OpenError::Guard)), "{refused:?}");
    assert!(missing.borrow().is_empty() && orbit.databases().unwrap().is_empty());
}

#[tokio::test]
async fn a_put_is_published_and_its_block_is_served() {
    let (orbit, mut outputs) = node();
    let log = orbit.open_events("log").await.unwrap();
    let hash = log.add("x").await.unwrap();
    let Some(Output::Publish { address, block }) = outputs.recv().await else { panic!("a publication") };
    assert_eq!((address, Hash::of(&block)), (log.address(), hash));
    assert_eq!(orbit.block(&hash).unwrap().as_deref(), Some(&*block));
    for served in [log.address().manifest(), orbit.identity().hash()] {
        assert_eq!(Hash::of(&orbit.block(&served).unwrap().unwrap()), served);
    }
    assert_eq!(orbit.block(&Hash::of(b"not ours")).unwrap(), None);
}

#[tokio::test]
async fn a_relaxed_database_that_was_closed_loses_nothing_and_does_not_jump() {
    let storage: Arc<dyn Storage> = Arc::new(Memory::default());
    let open = async || {
        let (orbit, _outputs) = OrbitDb::builder().storage(Arc::clone(&storage)).build().unwrap();
        let log = orbit.open("log", OpenOptions::of(DatabaseType::Events).relaxed(true)).await.unwrap();
        (orbit, log)
    };
    let (orbit, log) = open().await;
    for number in 0..5_u64 {
        log.add(number).await.unwrap();
    }
    orbit.close().await.unwrap();
    drop((orbit, log));
    let (_orbit, log) = open().await;
    let mut events = log.events();
    log.add(5_u64).await.unwrap();
    let Ok(Event::Update(update)) = events.recv().await else { panic!("an update") };
    assert_eq!(update.time, 6);
}

#[tokio::test]
async fn a_storage_that_fails_stops_the_database_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (storage, control) = Failing::new(Redb::new(directory.path(), RedbConfig::default()).unwrap());
    let (orbit, mut outputs) = OrbitDb::builder().storage(Arc::new(storage)).build().unwrap();
    let log = orbit.open_events("log").await.unwrap();
    let kept = log.add("kept").await.unwrap();
    let mut events = log.events();
    control.fails.store(true, Ordering::SeqCst);
    assert!(matches!(log.add("lost").await, Err(DatabaseError::Storage(_))));
    assert!(matches!(log.add("lost too").await, Err(DatabaseError::Storage(_))));
    assert!(matches!(events.recv().await, Ok(Event::Error(_))));
    assert_eq!(log.all().unwrap().len(), 1, "what was not safe is not shown");
    let Ok(Output::Publish { block, .. }) = outputs.try_recv() else { panic!("what is safe is published") };
    assert_eq!(Hash::of(&block), kept);
    assert!(outputs.try_recv().is_err(), "what was not safe is not published");
}
