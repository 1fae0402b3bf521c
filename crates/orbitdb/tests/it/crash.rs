//! Kills a process while it writes, again and again: what it had acknowledged is there, and the index is what the log says.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use orbitdb::{
    Access, Database, OpenOptions, OrbitDb, Output,
    cbor::Value,
    cid::Hash,
    crypt::Encryption,
    entry::{Codec, Limits, Op},
    manifest::DatabaseType,
    replica::Input,
    sync::Peer,
};

const DIRECTORY: &str = "ORBITDB_CRASH_DIRECTORY";
const RELAXED: &str = "ORBITDB_CRASH_RELAXED";

async fn open(directory: &Path, relaxed: bool) -> (OrbitDb, tokio::sync::mpsc::Receiver<Output>, Database) {
    let (orbit, outputs) = OrbitDb::builder().directory(directory).build().unwrap();
    let options = OpenOptions::of(DatabaseType::Documents).access(Access::Everyone).relaxed(relaxed);
    let database = orbit.open("crash", options).await.unwrap();
    (orbit, outputs, database)
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// Puts without end, and says what is safe: the key, its entry's time and its entry.
async fn put_for_ever(database: Database, worker: usize) {
    for number in 0_u64.. {
        let key = format!("own {} {worker} {number}", std::process::id());
        let document = Value::map([("_id", Value::from(key.as_str())), ("n", number.into())]);
        let hash = database.put_document(document).await.unwrap();
        say(&format!("safe\t{key}\t{hash}"));
    }
}

/// Lets what another node writes join without end, and says what is safe.
async fn join_for_ever(database: Database) {
    let (other, mut outputs) = OrbitDb::builder().build().unwrap();
    let options = OpenOptions::of(DatabaseType::Documents).access(Access::Everyone);
    let source = other.open("crash", options).await.unwrap();
    let peer = Peer::new("other");
    let mut events = database.events();
    for number in 0_u64.. {
        let key = format!("joined {} {number}", std::process::id());
        let document = Value::map([("_id", Value::from(key.as_str())), ("n", number.into())]);
        source.put_document(document).await.unwrap();
        let Some(Output::Publish { block, .. }) = outputs.recv().await else { continue };
        database.handle(Duration::ZERO, Input::Published(peer.clone(), block.to_vec())).await.unwrap();
        database
            .handle(Duration::ZERO, Input::Block(peer.clone(), other.block(&other.identity().hash()).unwrap().unwrap()))
            .await
            .unwrap();
        // Whatever happened, and however many events were missed: what is shown is safe.
        while database.get(&key).is_none() {
            drop(events.recv().await);
        }
        say(&format!("safe\t{key}\t{}", Hash::of(&block)));
    }
}

/// The process that is killed. Without being told where to write it has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let relaxed = std::env::var_os(RELAXED).is_some();
    let (_orbit, mut outputs, database) = open(Path::new(&directory), relaxed).await;
    let mut running = tokio::task::JoinSet::new();
    for worker in 0..4 {
        running.spawn(put_for_ever(database.clone(), worker));
    }
    running.spawn(join_for_ever(database));
    running.spawn(async move {
        // What leaves this process cannot be taken back.
        while let Some(output) = outputs.recv().await {
            if let Output::Publish { block, .. } = output {
                say(&format!("published\t{}", hex::encode(block)));
            }
        }
    });
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

/// Runs the child until it has said so many lines, kills it, and returns all that it said.
fn run_and_kill(directory: &Path, relaxed: bool, lines: usize) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::child", "--nocapture", "--test-threads", "1"]).env(DIRECTORY, directory);
    if relaxed {
        command.env(RELAXED, "1");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said: Vec<String> = Vec::new();
    while said.len() < lines {
        let line = out.next().expect("the child ended by itself").unwrap();
        if line.contains('\t') {
            said.push(line);
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it had said before it died and stood in the pipe counts too; a line that was cut off does not.
    said.extend(out.map_while(Result::ok).filter(|line| line.contains('\t')));
    said
}

/// Walks the whole log from its heads, and returns what each key shows by it, and which entries there are.
fn replay(database: &Database) -> (BTreeMap<String, Value>, BTreeSet<Hash>) {
    let codec = Codec::new(database.address().to_string(), Encryption::default(), Limits::default());
    let mut pool = database.info().unwrap().heads;
    let mut seen: BTreeSet<Hash> = pool.iter().copied().collect();
    let mut operations = Vec::new();
    while let Some(hash) = pool.pop() {
        let block = database.block(&hash).unwrap().unwrap_or_else(|| panic!("{hash} is missing"));
        let received = codec.read(&block).unwrap();
        let entry = received.entry.unwrap();
        operations.push(((entry.time(), entry.key().to_owned(), hash), codec.operation(&entry).unwrap()));
        pool.extend(received.links.next.iter().filter(|next| seen.insert(**next)));
        assert!(received.links.refs.iter().all(|reference| database.block(reference).unwrap().is_some()));
    }
    operations.sort_by(|(left, _), (right, _)| left.cmp(right));
    let mut shown = BTreeMap::new();
    for (_, operation) in operations {
        match operation.op {
            Op::Put => drop(shown.insert(operation.key.unwrap(), operation.value)),
            _ => drop(shown.remove(&operation.key.unwrap())),
        }
    }
    (shown, seen)
}

#[tokio::test]
async fn nothing_that_was_acknowledged_is_lost_by_kills() {
    let directory = tempfile::tempdir().unwrap();
    let mut safe: BTreeMap<String, String> = BTreeMap::new();
    for lines in [1, 2, 5, 9, 30, 14, 70, 3, 120, 41, 300, 17, 1, 800, 55, 6, 200, 91, 33, 11] {
        for line in run_and_kill(directory.path(), false, lines) {
            let fields: Vec<&str> = line.split('\t').collect();
            if let ["safe", key, hash] = fields[..]
                && hash.len() == 49
            {
                safe.insert(key.to_owned(), hash.to_owned());
            }
        }
        let (orbit, _outputs, database) = open(directory.path(), false).await;
        for (key, hash) in &safe {
            let row = database.get(key).unwrap_or_else(|| panic!("{key} was acknowledged and is lost"));
            assert_eq!(&row.hash.to_string(), hash);
        }
        let (shown, entries) = replay(&database);
        let rows =
            database.query(|_| true).into_iter().map(|row| (row.key.to_string(), (*row.value).clone())).collect();
        assert_eq!(shown, rows, "the index is what the log says");
        assert_eq!(entries.len() as u64, database.info().unwrap().entries);
        orbit.close().await.unwrap();
    }
    assert!(safe.keys().any(|key| key.starts_with("own")) && safe.keys().any(|key| key.starts_with("joined")));
}

#[tokio::test]
async fn a_relaxed_database_never_signs_two_entries_with_one_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut published: BTreeMap<(String, u64), Hash> = BTreeMap::new();
    // The name and the options give the same address everywhere.
    let elsewhere = tempfile::tempdir().unwrap();
    let address = open(elsewhere.path(), false).await.2.address();
    let codec = Codec::new(address.to_string(), Encryption::default(), Limits::default());
    for lines in [3, 40, 11, 90, 25, 60, 400, 1, 7, 150, 700, 12] {
        let said = run_and_kill(directory.path(), true, lines);
        for block in said.iter().filter_map(|line| hex::decode(line.strip_prefix("published\t")?).ok()) {
            // The last line may have been cut off.
            let Ok(received) = codec.read(&block) else { continue };
            let entry = received.entry.unwrap();
            let before = published.insert((entry.key().to_owned(), entry.time()), entry.hash());
            assert!(before.is_none_or(|before| before == entry.hash()), "two entries of time {}", entry.time());
        }
    }
    assert!(!published.is_empty());
    let (_orbit, _outputs, database) = open(directory.path(), true).await;
    let (shown, _) = replay(&database);
    assert_eq!(shown.len(), database.query(|_| true).len());
}
