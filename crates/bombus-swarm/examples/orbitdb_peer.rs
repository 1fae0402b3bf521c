//! A node with databases and nothing else, which does what `bench/orbitdb.py` tells it: for measurements beside peers in JavaScript.
//!
//! `orbitdb_peer DIRECTORY` takes commands on stdin, one JSON object a line: `{"id": 1, "do": "open", ...}`. It answers on stdout, `{"id": 1,
//! "value": ...}` or `{"id": 1, "error": ...}`, with events `{"event": "update", ...}` between the answers; the first line is the event
//! `ready`. It ends with its stdin. It has no swarm key: peers in JavaScript reach it as they reach each other.

#![expect(clippy::unwrap_used, reason = "a measurement that panics says where")]

use std::collections::BTreeSet;
use std::error::Error;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bombus_core::identity::NodeKey;
use bombus_net::membership::{Generation, MembershipHandle, MembershipState, Privacy};
use bombus_net::{ListenOn, NetConfig, NetHandle, NetIdentity, net};
use bombus_swarm::db::{DbConfig, DbHandle, db};
use orbitdb::cbor::Value;
use orbitdb::key::SecretKey;
use orbitdb::manifest::DatabaseType;
use orbitdb::{Access, Database, Event, OpenOptions};
use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

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
    net: NetHandle,
    databases: DbHandle,
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
                self.net.dial(text("address")?).await.map_err(|error| error.to_string())?;
                Ok(Json::Null)
            }
            "open" => {
                let name = text("name")?;
                let database = if name.starts_with("/orbitdb/") {
                    self.databases.open(name).await?
                } else {
                    let options = OpenOptions::of(DatabaseType::Documents).access(Access::Everyone);
                    self.databases.create(name, options).await?
                };
                if command["watch"] == json!(true) {
                    tell_updates(&database);
                }
                let address = database.address().to_string();
                self.open = Some(database);
                Ok(json!({ "address": address }))
            }
            "peers" => Ok(json!(self.databases.peers(&self.database()?.address()).len())),
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
                let key = update.operation.and_then(|operation| operation.key);
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
    let config = NetConfig {
        listen: vec![ListenOn::fixed(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)],
        mdns: false,
        ..NetConfig::default()
    };
    let identity = NetIdentity {
        key: NodeKey::from_secret(&SecretKey::generate().unwrap().to_bytes()),
        name: "bench".to_owned(),
        version: "0".to_owned(),
    };
    let state = MembershipState {
        swarm_id: "a".repeat(16).parse().unwrap(),
        privacy: Privacy::Open,
        generation: Generation(0),
        removed: Arc::new(BTreeSet::new()),
    };
    let (_membership, state) = watch::channel(state);
    let (net, net_service) = net(config, identity, MembershipHandle::following(state));
    let (databases, db_service) = db(DbConfig::default(), net.clone(), &directory).unwrap();
    let (stop_mesh, stop_databases) = (CancellationToken::new(), CancellationToken::new());
    let mesh = tokio::spawn(net_service.run(stop_mesh.clone()));
    let replication = tokio::spawn(db_service.run(stop_databases.clone()));

    let mut addresses = net.listen_addrs();
    let listening = addresses.wait_for(|addresses| !addresses.is_empty()).await.unwrap().clone();
    let node_id = net.node_id().clone();
    let full = |address: &String| {
        if address.contains("/p2p/") { address.clone() } else { format!("{address}/p2p/{node_id}") }
    };
    say(&json!({ "event": "ready", "addresses": listening.iter().map(full).collect::<Vec<_>>() }));

    let mut peer = Peer { net, databases, open: None };
    let mut lines = lines();
    while let Some(line) = lines.recv().await {
        let command: Json = serde_json::from_str(&line).unwrap();
        match peer.obey(&command).await {
            Ok(value) => say(&json!({ "id": command["id"], "value": value })),
            Err(error) => say(&json!({ "id": command["id"], "error": error.to_string() })),
        }
    }
    drop(peer);
    stop_databases.cancel();
    replication.await.unwrap();
    stop_mesh.cancel();
    mesh.await.unwrap().unwrap();
}
