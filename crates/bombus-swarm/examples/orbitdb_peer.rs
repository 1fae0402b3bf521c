//! A node with databases and nothing else, which does what `bench/orbitdb.py` tells it: for measurements beside peers in JavaScript.
//!
//! `orbitdb_peer DIRECTORY` takes commands on stdin, one JSON object a line: `{"id": 1, "do": "open", ...}`. It answers on stdout, `{"id": 1,
//! "value": ...}` or `{"id": 1, "error": ...}`, with events `{"event": "update", ...}` between the answers; the first line is the event
//! `ready`. It ends with its stdin. It has no swarm key: peers in JavaScript reach it as they reach each other.

#![expect(clippy::unwrap_used, reason = "a measurement that panics says where")]

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bombus_swarm::db::Node;
use orbitdb::cbor::Value;
use orbitdb::manifest::DatabaseType;
use orbitdb::{Access, Database, Event, OpenOptions};
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;

/// Lines that wait; further ones stay in the pipe.
const LINES_MAX: usize = 16;

/// Returns milliseconds since 1970 with a fraction: one clock for all processes of a machine.
fn wall_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() * 1e3
}

fn say(line: &Json) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

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

/// Returns the memory that this process has, in MiB; 0 where the system does not tell.
fn rss_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

struct Peer {
    node: Node,
    open: Option<Database>,
}

impl Peer {
    fn database(&self) -> Result<&Database, Box<dyn Error>> {
        self.open.as_ref().ok_or_else(|| "nothing is open".into())
    }

    async fn obey(&mut self, command: &Json) -> Result<Json, Box<dyn Error>> {
        let text = |name: &str| command[name].as_str().ok_or_else(|| format!("\"{name}\" is missing"));
        let number = |name: &str| command[name].as_u64().ok_or_else(|| format!("\"{name}\" is missing"));
        match text("do")? {
            "dial" => {
                self.node.net().dial(text("address")?).await.map_err(|error| error.to_string())?;
                Ok(Json::Null)
            }
            "open" => {
                let name = text("name")?;
                let database = if name.starts_with("/orbitdb/") {
                    self.node.databases().open(name).await?
                } else {
                    let options = OpenOptions::of(DatabaseType::Documents).access(Access::Everyone);
                    self.node.databases().create(name, options).await?
                };
                if command["watch"] == json!(true) {
                    tell_updates(&database);
                }
                let address = database.address().to_string();
                self.open = Some(database);
                Ok(json!({ "address": address }))
            }
            "peers" => Ok(json!(self.node.databases().peers(&self.database()?.address()).len())),
            "put" => {
                let (database, from) = (self.database()?, number("from")?);
                let begin_ms = wall_ms();
                let mut head = None;
                for number in from..from + number("count")? {
                    head = Some(database.put_document(document(number)).await?);
                }
                Ok(json!({ "begin_ms": begin_ms, "end_ms": wall_ms(), "head": head.map(|head| head.to_string()) }))
            }
            "wait" => {
                let (database, head) = (self.database()?, text("head")?.parse()?);
                let mut events = database.events();
                let joined = async {
                    while !database.contains(&head) {
                        // Whatever happens, and however many events were missed: it is looked at again.
                        drop(events.recv().await);
                    }
                };
                let limit = Duration::from_millis(number("limit_ms")?);
                tokio::time::timeout(limit, joined).await.map_err(|_| "it never came")?;
                database.flush().await?;
                Ok(json!({ "at_ms": wall_ms() }))
            }
            "rss" => Ok(json!(rss_mib())),
            other => Err(format!("\"{other}\" is no command").into()),
        }
    }
}

/// Says which keys come to show something else, until the database is closed. It ends by itself and cannot fail.
fn tell_updates(database: &Database) {
    let mut events = database.events();
    tokio::spawn(async move {
        while let Ok(event) = events.recv().await {
            if let Event::Update(update) = event {
                let key = update.operation.and_then(|operation| operation.key).map(String::from);
                say(&json!({ "event": "update", "key": key, "at_ms": wall_ms() }));
            }
        }
    });
}

/// Reads stdin on a thread of its own, which ends with it.
fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}

#[tokio::main]
async fn main() {
    let directory = PathBuf::from(std::env::args_os().nth(1).expect("usage: orbitdb_peer DIRECTORY"));
    let node = Node::builder().directory(directory).listen(["/ip4/127.0.0.1/tcp/0"]).start().await.unwrap();
    say(&json!({ "event": "ready", "addresses": node.listen_addresses() }));

    let mut peer = Peer { node, open: None };
    let mut lines = lines();
    while let Some(line) = lines.recv().await {
        let command: Json = serde_json::from_str(&line).unwrap();
        match peer.obey(&command).await {
            Ok(value) => say(&json!({ "id": command["id"], "value": value })),
            Err(error) => say(&json!({ "id": command["id"], "error": error.to_string() })),
        }
    }
    peer.open = None;
    peer.node.stop().await.unwrap();
}
