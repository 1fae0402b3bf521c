//! What a database costs: puts, joins, reads, opening, and bytes. Prints a table; never fails for a time.
//!
//! `cargo bench -p orbitdb`. The storage is redb in a temporary directory, so its disk decides about durable puts.

#![expect(clippy::unwrap_used, reason = "a measurement that panics says where")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use orbitdb::{
    Access, Database, OpenOptions, OrbitDb, cbor::Value, entry::Codec, manifest::DatabaseType, replica::Input,
    sync::Peer,
};
use tokio::task::JoinSet;

fn document(number: u64) -> Value {
    Value::map([
        ("_id", Value::from(format!("task-{number:08}"))),
        ("status", if number.is_multiple_of(10) { "PENDING" } else { "COMPLETED" }.into()),
        ("model", "a-model-of-some-name:8b".into()),
        ("prompt", "a prompt of a usual length, as tasks have it; ".repeat(3).into()),
        ("createdAt", (1_780_000_000_000 + number).into()),
    ])
}

async fn open(directory: &Path, relaxed: bool) -> (OrbitDb, Database) {
    let (orbit, _outputs) = OrbitDb::builder().directory(directory).build().unwrap();
    let options = OpenOptions::of(DatabaseType::Documents).access(Access::Everyone).relaxed(relaxed);
    let database = orbit.open("bench", options).await.unwrap();
    (orbit, database)
}

/// Puts documents with so many in flight, and returns how many a second that were.
async fn put(database: &Database, from: u64, count: u64, in_flight: u64) -> f64 {
    let start = Instant::now();
    let mut running = JoinSet::new();
    for lane in 0..in_flight {
        let database = database.clone();
        running.spawn(async move {
            for number in (from..from + count).filter(|number| number % in_flight == lane) {
                database.put_document(document(number)).await.unwrap();
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    rate(count, start.elapsed())
}

#[expect(clippy::cast_precision_loss, reason = "counts of a measurement")]
fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

fn per(time: Duration, count: u32) -> f64 {
    time.as_secs_f64() * 1e6 / f64::from(count)
}

/// Returns all blocks, each after those that it follows.
fn blocks_in_order(orbit: &OrbitDb, database: &Database) -> Vec<Vec<u8>> {
    let codec = Codec::new(
        database.address().to_string(),
        orbitdb::crypt::Encryption::default(),
        orbitdb::entry::Limits::default(),
    );
    let mut pool = database.info().unwrap().heads;
    let mut blocks = Vec::new();
    while let Some(hash) = pool.pop() {
        let block = database.block(&hash).unwrap().unwrap();
        pool.extend(codec.read(&block).unwrap().links.next);
        blocks.push(block);
    }
    blocks.push(orbit.block(&orbit.identity().hash()).unwrap().unwrap());
    blocks.reverse();
    blocks
}

async fn cold_join(blocks: &[Vec<u8>], size: u64) {
    let directory = tempfile::tempdir().unwrap();
    let (_orbit, database) = open(directory.path(), false).await;
    let start = Instant::now();
    for part in blocks.chunks(1000) {
        database.handle(Duration::ZERO, Input::Bulk(Peer::new("source"), part.to_vec())).await.unwrap();
    }
    database.close().await.unwrap();
    println!("cold join of {size}, durable       {:>12.0} entries/s", rate(size, start.elapsed()));
}

async fn measure(size: u64) {
    let directory = tempfile::tempdir().unwrap();
    let (orbit, database) = open(directory.path(), true).await;
    println!("puts up to {size}, relaxed, 64      {:>12.0} /s", put(&database, 0, size, 64).await);
    let start = Instant::now();
    for number in 0..10_000_u64 {
        let key = format!("task-{:08}", number * 7919 % size);
        std::hint::black_box(database.get(&key).unwrap());
    }
    println!("get over {size}                     {:>12.2} us", per(start.elapsed(), 10_000));
    let start = Instant::now();
    for _ in 0..20 {
        let pending = database.query(|value| value.get("status").and_then(Value::as_text) == Some("PENDING"));
        assert_eq!(pending.len() as u64, size.div_ceil(10));
    }
    println!("query over {size}                   {:>12.2} us", per(start.elapsed(), 20));
    let info = database.info().unwrap();
    println!(
        "bytes of an entry over {size}       {:>12} in the log, {} on the disk",
        info.log_bytes / size,
        info.stored_bytes / size
    );
    let blocks = blocks_in_order(&orbit, &database);
    orbit.close().await.unwrap();
    drop((database, orbit));
    let start = Instant::now();
    let opened = open(directory.path(), false).await;
    println!("opening {size}                      {:>12.1} ms", start.elapsed().as_secs_f64() * 1e3);
    drop(opened);
    cold_join(&blocks, size).await;
}

#[tokio::main]
async fn main() {
    // Run as a test it has nothing to show.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (_orbit, database) = open(directory.path(), false).await;
    println!("puts, durable, one after another   {:>12.0} /s", put(&database, 0, 1_000, 1).await);
    println!("puts, durable, 64 in flight        {:>12.0} /s", put(&database, 1_000, 10_000, 64).await);
    for size in [1_000, 5_000, 50_000, 100_000] {
        measure(size).await;
    }
}
