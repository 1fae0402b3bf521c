//! Kills a process while it opens, puts and joins, at random moments: what it had acknowledged is there, and the index is what the log
//! says. `BOMBUS_FAULT_ROUNDS` repeats each loop more often, ten kills in each; `BOMBUS_FAULT_SEED` repeats the moments of a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use orbitdb::{
    Access, Database, OpenOptions, OrbitDb, Output,
    cbor::Value,
    cid::Hash,
    crypt::Encryption,
    entry::{Codec, Entry, Limits, Op},
    manifest::DatabaseType,
    replica::Input,
    sync::Peer,
};

const DIRECTORY: &str = "ORBITDB_FAULT_DIRECTORY";
const RELAXED: &str = "ORBITDB_FAULT_RELAXED";

/// Kills in one round.
const KILLS: u64 = 10;

/// How many entries join at once.
const BULK: u64 = 40;

fn rounds() -> u64 {
    std::env::var("BOMBUS_FAULT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2)
}

/// A generator of numbers from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    /// Begins with the seed that was asked for, or a new one; says which, for the log of a failure.
    fn new() -> Self {
        let given = std::env::var("BOMBUS_FAULT_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| u64::from(time.subsec_nanos()));
        let seed = given.unwrap_or_else(now);
        println!("BOMBUS_FAULT_SEED={seed}");
        Self(seed)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    /// Draws after how many lines and how long after them a process dies: often soon, so that many die while they open.
    fn moment(&mut self) -> (u64, Duration) {
        let longest = 1 << self.roll(9);
        (self.roll(longest), Duration::from_micros(self.roll(20_000)))
    }
}

async fn open(directory: &Path, relaxed: bool) -> (OrbitDb, tokio::sync::mpsc::Receiver<Output>, Database) {
    let (orbit, outputs) = OrbitDb::builder().directory(directory).build().unwrap();
    let options = OpenOptions::of(DatabaseType::Documents).access(Access::Everyone).relaxed(relaxed);
    let database = orbit.open("fault", options).await.unwrap();
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

/// Lets what another node writes join without end, one by one and many at once, and says what is safe.
async fn join_for_ever(database: Database) {
    let (other, mut outputs) = OrbitDb::builder().build().unwrap();
    let options = OpenOptions::of(DatabaseType::Documents).access(Access::Everyone);
    let source = other.open("fault", options).await.unwrap();
    let identity = other.block(&other.identity().hash()).unwrap().unwrap();
    let peer = Peer::new("other");
    for round in 0_u64.. {
        let mut written: Vec<(String, Vec<u8>)> = Vec::new();
        for number in 0..if round % 4 == 3 { BULK } else { 1 } {
            let key = format!("joined {} {round} {number}", std::process::id());
            let document = Value::map([("_id", Value::from(key.as_str())), ("n", number.into())]);
            source.put_document(document).await.unwrap();
            let Some(Output::Publish { block, .. }) = outputs.recv().await else { panic!("a put is published") };
            written.push((key, block.to_vec()));
        }
        let blocks = written.iter().map(|(_, block)| block.clone());
        let inputs = if let [(_, block)] = &written[..] {
            vec![Input::Published(peer.clone(), block.clone()), Input::Block(peer.clone(), identity.clone())]
        } else {
            vec![Input::Bulk(peer.clone(), [identity.clone()].into_iter().chain(blocks).collect())]
        };
        for input in inputs {
            database.handle(Duration::ZERO, input).await.unwrap();
        }
        database.flush().await.unwrap();
        for (key, block) in written {
            say(&format!("safe\t{key}\t{}", Hash::of(&block)));
        }
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

/// Runs the child until it has said so many lines, kills it some time later, and returns all that it said.
fn run_and_kill(directory: &Path, relaxed: bool, (lines, later): (u64, Duration)) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "faults::child", "--nocapture", "--test-threads", "1"]).env(DIRECTORY, directory);
    if relaxed {
        command.env(RELAXED, "1");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said: Vec<String> = Vec::new();
    while (said.len() as u64) < lines {
        let line = out.next().expect("the child ended by itself").unwrap();
        if line.contains('\t') {
            said.push(line);
        }
    }
    #[expect(clippy::disallowed_methods, reason = "not to wait for anything: to die at any moment")]
    thread::sleep(later);
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
    let mut shown: BTreeMap<String, Value> = BTreeMap::new();
    for (_, operation) in operations {
        match operation.op {
            Op::Put => drop(shown.insert(operation.key.unwrap().into(), operation.value)),
            _ => drop(shown.remove(operation.key.unwrap().as_str())),
        }
    }
    (shown, seen)
}

/// Makes a codec for the database that is killed: the name and the options give the same address everywhere.
async fn codec() -> Codec {
    let elsewhere = tempfile::tempdir().unwrap();
    let address = open(elsewhere.path(), false).await.2.address();
    Codec::new(address.to_string(), Encryption::default(), Limits::default())
}

/// Returns the entries that were published; the last line may have been cut off.
fn published(codec: &Codec, said: &[String]) -> Vec<Entry> {
    let blocks = said.iter().filter_map(|line| hex::decode(line.strip_prefix("published\t")?).ok());
    blocks.filter_map(|block| codec.read(&block).ok()).map(|received| received.entry.unwrap()).collect()
}

#[tokio::test]
async fn nothing_that_was_acknowledged_or_published_is_lost_by_kills() {
    let mut dice = Dice::new();
    let codec = codec().await;
    let (mut own, mut joined, mut told) = (0, 0, 0);
    for _ in 0..rounds() {
        let directory = tempfile::tempdir().unwrap();
        let mut safe: BTreeMap<String, String> = BTreeMap::new();
        for _ in 0..KILLS {
            let said = run_and_kill(directory.path(), false, dice.moment());
            for line in &said {
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
            for entry in published(&codec, &said) {
                assert!(database.contains(&entry.hash()), "{} was published and is lost", entry.hash());
                told += 1;
            }
            let (shown, entries) = replay(&database);
            let rows =
                database.query(|_| true).into_iter().map(|row| (row.key.to_string(), (*row.value).clone())).collect();
            assert_eq!(shown, rows, "the index is what the log says");
            assert_eq!(entries.len() as u64, database.info().unwrap().entries);
            orbit.close().await.unwrap();
        }
        own += safe.keys().filter(|key| key.starts_with("own")).count();
        joined += safe.keys().filter(|key| key.starts_with("joined")).count();
    }
    assert!(own > 0 && joined > 0, "{own} own entries and {joined} others were acknowledged");
    assert!(told > 0, "nothing was published");
}

#[tokio::test]
async fn a_relaxed_database_never_signs_two_entries_with_one_time() {
    let mut dice = Dice::new();
    let codec = codec().await;
    for _ in 0..rounds() {
        let directory = tempfile::tempdir().unwrap();
        let mut signed: BTreeMap<(String, u64), Hash> = BTreeMap::new();
        for _ in 0..KILLS {
            let said = run_and_kill(directory.path(), true, dice.moment());
            for entry in published(&codec, &said) {
                let before = signed.insert((entry.key().to_owned(), entry.time()), entry.hash());
                assert!(before.is_none_or(|before| before == entry.hash()), "two entries of time {}", entry.time());
            }
        }
        assert!(!signed.is_empty());
        let (_orbit, _outputs, database) = open(directory.path(), true).await;
        let (shown, _) = replay(&database);
        assert_eq!(shown.len(), database.query(|_| true).len());
    }
}
