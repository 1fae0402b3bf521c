//! What a database costs one process: puts, reads, opening, joins, bytes. Never fails for a time.
//!
//! `cargo bench -p orbitdb` prints how it grows. With arguments it does one thing in a directory and prints one JSON object:
//! `put DIRECTORY FROM COUNT IN_FLIGHT durable|relaxed`, `read DIRECTORY COUNT`, `join DIRECTORY`. The storage is redb, so its disk decides
//! about durable puts.

#![expect(clippy::unwrap_used, reason = "a measurement that panics says where")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use orbitdb::{
    Access, Database, OpenOptions, OrbitDb,
    cbor::Value,
    crypt::Encryption,
    entry::{Codec, Limits},
    manifest::DatabaseType,
    replica::Input,
    sync::Peer,
};
use serde_json::{Value as Json, json};
use tokio::task::JoinSet;

const SIZES: [u64; 4] = [1_000, 5_000, 20_000, 100_000];

/// How many blocks join at once, as a peer sends them in bulk.
const BULK: usize = 1000;

/// A document of the size of a small task; every tenth is pending. The JavaScript side writes the same.
fn document(number: u64) -> Value {
    Value::map([
        ("_id", Value::from(format!("task-{number:08}"))),
        ("status", if number.is_multiple_of(10) { "PENDING" } else { "COMPLETED" }.into()),
        ("model", "mock-model".into()),
        ("prompt", format!("{}{number}", "Summarise the following paragraph in one sentence. ".repeat(4)).into()),
        ("createdAt", (1_790_000_000_000 + number).into()),
        ("requester", "12D3KooWBenchmarkRequester".into()),
    ])
}

async fn open(directory: &Path, relaxed: bool) -> (OrbitDb, Database) {
    let (orbit, _outputs) = OrbitDb::builder().directory(directory).build().unwrap();
    let options = OpenOptions::of(DatabaseType::Documents).access(Access::Everyone).relaxed(relaxed);
    let database = orbit.open("bench", options).await.unwrap();
    (orbit, database)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a measurement")]
fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// Puts documents with so many in flight.
async fn put(directory: &Path, from: u64, count: u64, in_flight: u64, relaxed: bool) -> Json {
    let (orbit, database) = open(directory, relaxed).await;
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
    let per_second = rate(count, start.elapsed());
    orbit.close().await.unwrap();
    json!({ "per_second": per_second })
}

/// Returns the median of the times of some calls, in seconds.
fn median_seconds(repeats: usize, mut work: impl FnMut(usize)) -> f64 {
    let mut times: Vec<Duration> = (0..repeats)
        .map(|repeat| {
            let start = Instant::now();
            work(repeat);
            start.elapsed()
        })
        .collect();
    times.sort();
    times[repeats / 2].as_secs_f64()
}

/// Returns the memory that this process has, in MiB; 0 where the system does not tell.
fn rss_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

/// Opens what was put, and reads it.
async fn read(directory: &Path, count: u64) -> Json {
    let before = rss_mib();
    let start = Instant::now();
    let (_orbit, database) = open(directory, false).await;
    let opened = start.elapsed();
    let rss = rss_mib();
    let batch = 100;
    let get = median_seconds(51, |repeat| {
        for number in 0..batch {
            let key = format!("task-{:08}", (repeat as u64 * batch + number) * 7919 % count);
            std::hint::black_box(database.get(&key).unwrap());
        }
    });
    let query = median_seconds(15, |_| {
        let pending = database.query(|value| value.get("status").and_then(Value::as_text) == Some("PENDING"));
        assert_eq!(pending.len() as u64, count.div_ceil(10));
    });
    let info = database.info().unwrap();
    json!({
        "open_ms": opened.as_secs_f64() * 1e3,
        "get_us": get * 1e6 / 100.0,
        "query_ms": query * 1e3,
        "rss_mib": rss,
        "rss_grown_mib": rss - before,
        "log_bytes_per_entry": info.log_bytes / count,
        "disk_bytes_per_entry": info.stored_bytes / count,
    })
}

/// Returns all blocks, each after those that it follows.
fn blocks_in_order(orbit: &OrbitDb, database: &Database) -> Vec<Vec<u8>> {
    let codec = Codec::new(database.address().to_string(), Encryption::default(), Limits::default());
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

/// Lets everything join another database, as a peer that has nothing yet: checked, safe and shown.
async fn join(directory: &Path) -> Json {
    let (orbit, database) = open(directory, false).await;
    let blocks = blocks_in_order(&orbit, &database);
    let elsewhere = tempfile::tempdir().unwrap();
    let (_orbit, joining) = open(elsewhere.path(), false).await;
    let start = Instant::now();
    for part in blocks.chunks(BULK) {
        joining.handle(Duration::ZERO, Input::Bulk(Peer::new("source"), part.to_vec())).await.unwrap();
    }
    joining.flush().await.unwrap();
    let taken = start.elapsed();
    let count = joining.info().unwrap().entries;
    assert_eq!(count, database.info().unwrap().entries);
    json!({ "per_second": rate(count, taken) })
}

async fn growth() {
    let columns = ["open_ms", "get_us", "query_ms", "rss_mib", "log_bytes_per_entry", "disk_bytes_per_entry"];
    println!("| entries | put, durable, 64 in flight (per s) | join (per s) | {} |", columns.join(" | "));
    println!("|{}", " --:|".repeat(columns.len() + 3));
    for size in SIZES {
        let directory = tempfile::tempdir().unwrap();
        let put = put(directory.path(), 0, size, 64, false).await;
        let (join, read) = (join(directory.path()).await, read(directory.path(), size).await);
        let cell = |value: &Json| format!("{:.2}", value.as_f64().unwrap());
        let cells = columns.iter().map(|column| cell(&read[column]));
        let cells: Vec<String> = [&put["per_second"], &join["per_second"]].into_iter().map(cell).chain(cells).collect();
        println!("| {size} | {} |", cells.join(" | "));
    }
}

#[tokio::main]
async fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    // Run as a test it has nothing to show.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    arguments.retain(|argument| argument != "--bench");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().unwrap();
    let result = match arguments[..] {
        ["put", directory, from, count, in_flight, durability] => {
            let relaxed = durability == "relaxed";
            put(Path::new(directory), number(from), number(count), number(in_flight), relaxed).await
        }
        ["read", directory, count] => read(Path::new(directory), number(count)).await,
        ["join", directory] => join(Path::new(directory)).await,
        _ => return growth().await,
    };
    println!("{result}");
}
