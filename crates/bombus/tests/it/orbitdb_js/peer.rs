//! A peer of OrbitDB in JavaScript: a process of Node.js that does what it is told, line by line.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{OnceCell, mpsc, oneshot, watch};

use super::database::{Kind, Operation, Row};
use crate::harness::within;
use crate::lab::skip;

/// Installing a set of packages takes half a minute; a slow registry may take longer.
const INSTALL_LIMIT: Duration = Duration::from_secs(900);

/// Which release of `@orbitdb/core` a peer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Release {
    /// 3.0.2, with the libp2p and Helia of its time.
    Three,
    /// 4.0.0.
    Four,
}

impl Release {
    fn project(self) -> &'static str {
        match self {
            Self::Three => "tests/orbitdb-js-3",
            Self::Four => "tests/orbitdb-js",
        }
    }

    fn number(self) -> &'static str {
        match self {
            Self::Three => "3.0.2",
            Self::Four => "4.0.0",
        }
    }

    /// Returns the other one.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Three => Self::Four,
            Self::Four => Self::Three,
        }
    }

    /// Returns the folder with the release's packages and the peer's program, made once. Where it cannot be had the test is skipped:
    /// the reason is told and `None` comes back.
    pub(super) async fn installed(self) -> Option<Installed> {
        static THREE: OnceCell<Result<PathBuf, String>> = OnceCell::const_new();
        static FOUR: OnceCell<Result<PathBuf, String>> = OnceCell::const_new();
        let cell = match self {
            Self::Three => &THREE,
            Self::Four => &FOUR,
        };
        match cell.get_or_init(|| install(self.project())).await {
            Ok(folder) => Some(Installed { release: self, folder }),
            Err(reason) => {
                skip(&format!("OrbitDB {} cannot be installed here: {reason}", self.number()));
                None
            }
        }
    }
}

/// A release that can be run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Installed {
    release: Release,
    folder: &'static Path,
}

impl Installed {
    /// Returns the release.
    pub(super) fn release(self) -> Release {
        self.release
    }
}

async fn install(project: &str) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let mut script = Command::new(root.join("scripts/npm.sh"));
    script.arg(project).current_dir(&root).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(INSTALL_LIMIT, script.output());
    let output =
        output.await.map_err(|_| format!("not within {INSTALL_LIMIT:?}"))?.map_err(|error| error.to_string())?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(told.lines().last().unwrap_or("no word of why").to_owned());
    }
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    // Packages are found beside the file that imports them, and they are not installed in the repository.
    for entry in std::fs::read_dir(root.join("tests/orbitdb-js")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "mjs") {
            std::fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
        }
    }
    Ok(folder)
}

type Answer = Result<Value, String>;
type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A running peer. Killed when it is dropped; its directory is kept until its [`JsHome`] is dropped.
pub(super) struct JsPeer {
    child: Child,
    requests: mpsc::Sender<String>,
    pending: Pending,
    numbers: AtomicU64,
    events: watch::Receiver<Vec<Value>>,
    stderr: watch::Receiver<String>,
    ready: Value,
}

/// Where a peer keeps its key, its identity and its databases, while it runs and while it does not.
pub(super) struct JsHome {
    installed: Installed,
    folder: tempfile::TempDir,
    swarm_key: Option<PathBuf>,
}

impl JsHome {
    /// Makes a home for a peer of a release.
    pub(super) fn new(installed: Installed) -> Self {
        Self { installed, folder: tempfile::tempdir().expect("a temporary folder"), swarm_key: None }
    }

    /// Makes one for a member of the swarm of a key file.
    pub(super) fn with_key(installed: Installed, swarm_key: PathBuf) -> Self {
        Self { swarm_key: Some(swarm_key), ..Self::new(installed) }
    }

    /// Starts the peer, and waits until it is ready.
    pub(super) async fn start(&self) -> JsPeer {
        let Installed { release, folder } = self.installed;
        let mut command = Command::new(folder.join("node"));
        command.arg(folder.join("peer.mjs")).arg(self.folder.path()).args(&self.swarm_key);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (requests, lines) = mpsc::channel(64);
        let pending = Pending::default();
        let (heard, mut events) = watch::channel(Vec::new());
        let (complained, stderr) = watch::channel(String::new());
        // All three end with the pipes, which close with the process.
        tokio::spawn(write_lines(child.stdin.take().unwrap(), lines));
        tokio::spawn(read_lines(child.stdout.take().unwrap(), Arc::clone(&pending), heard));
        tokio::spawn(copy_lines(child.stderr.take().unwrap(), complained));
        let is_ready = |events: &Vec<Value>| events.iter().any(|event| event["event"] == "ready");
        let ready = match within("the peer is ready", events.wait_for(is_ready)).await {
            Ok(seen) => seen.iter().find(|event| event["event"] == "ready").expect("awaited").clone(),
            Err(_) => panic!("the peer ended: {}", *stderr.borrow()),
        };
        assert_eq!(ready["version"], release.number(), "the packages are those of the release");
        JsPeer { child, requests, pending, numbers: 0.into(), events, stderr, ready }
    }
}

impl JsPeer {
    /// Returns the peer's id in the network.
    pub(super) fn id(&self) -> &str {
        self.ready["peer"].as_str().expect("the peer told it")
    }

    /// Returns the id of its identity.
    pub(super) fn identity(&self) -> &str {
        self.ready["identity"].as_str().expect("the peer told it")
    }

    /// Returns where it listens.
    pub(super) fn address(&self) -> &str {
        self.ready["addresses"][0].as_str().expect("the peer told it")
    }

    /// Has something done, and returns what came of it.
    pub(super) async fn attempt(&self, what: &str, mut arguments: Value) -> Answer {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        arguments["id"] = number.into();
        arguments["do"] = what.into();
        let (sender, receiver) = oneshot::channel();
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(number, sender);
        let asked = async {
            if self.requests.send(arguments.to_string()).await.is_err() {
                return None;
            }
            receiver.await.ok()
        };
        let answer = within(what, asked).await;
        answer.unwrap_or_else(|| panic!("{what}: the peer is gone: {}", self.complaints()))
    }

    /// Has something done that has to work.
    pub(super) async fn done(&self, what: &str, arguments: Value) -> Value {
        let answer = self.attempt(what, arguments).await;
        answer.unwrap_or_else(|error| panic!("{what}: {error}\nits other complaints: {}", self.complaints()))
    }

    /// Connects to an address.
    pub(super) async fn dial(&self, address: &str) {
        self.done("dial", json!({ "address": address })).await;
    }

    /// Creates a database to which these identities may write.
    pub(super) async fn create(&self, name: &str, kind: Kind, write: &[&str]) -> String {
        self.open(json!({ "name": name, "type": kind.name(), "write": write })).await
    }

    /// Opens a database by its address.
    pub(super) async fn open_address(&self, address: &str) {
        let opened = self.open(json!({ "name": address })).await;
        assert_eq!(opened, address);
    }

    /// Opens a database with options of the peer's program, and returns its address.
    pub(super) async fn open(&self, options: Value) -> String {
        self.done("open", options).await["address"].as_str().expect("a database has an address").to_owned()
    }

    /// Closes a database.
    pub(super) async fn close(&self, address: &str) {
        self.done("close", json!({ "address": address })).await;
    }

    /// Writes, and returns the hash of the entry, or why it was refused.
    pub(super) async fn try_write(&self, address: &str, operation: &Operation) -> Result<String, String> {
        let answer = match operation {
            Operation::Put(key, value) => {
                self.attempt("write", json!({ "address": address, "key": key, "value": value })).await
            }
            Operation::Add(value) => self.attempt("write", json!({ "address": address, "value": value })).await,
            Operation::Del(key) => self.attempt("del", json!({ "address": address, "key": key })).await,
        };
        answer.map(|hash| hash.as_str().expect("an entry has a hash").to_owned())
    }

    /// Writes, which has to work, and returns the hash of the entry.
    pub(super) async fn write(&self, address: &str, operation: &Operation) -> String {
        let written = self.try_write(address, operation).await;
        written.unwrap_or_else(|error| panic!("{operation:?}: {error}\nits other complaints: {}", self.complaints()))
    }

    /// Writes one after another, without deletions.
    pub(super) async fn write_all(&self, address: &str, operations: &[Operation]) {
        let plain = |operation: &Operation| match operation {
            Operation::Put(key, value) => json!({ "key": key, "value": value }),
            Operation::Add(value) => json!({ "value": value }),
            Operation::Del(key) => panic!("{key} is deleted by `write`"),
        };
        let operations: Vec<_> = operations.iter().map(plain).collect();
        self.done("writeAll", json!({ "address": address, "operations": operations })).await;
    }

    /// Returns what a key shows; `None` where it shows nothing.
    pub(super) async fn get(&self, address: &str, kind: Kind, key: &str) -> Option<Value> {
        let found = self.done("get", json!({ "address": address, "key": key })).await;
        match kind {
            // Documents come with key and hash.
            Kind::Documents => found.get("value").cloned(),
            _ => Some(found).filter(|value| !value.is_null()),
        }
    }

    /// Returns everything that the database shows, oldest first.
    pub(super) async fn all(&self, address: &str) -> Vec<Row> {
        let rows = self.done("all", json!({ "address": address })).await;
        rows.as_array().expect("a list").iter().map(Row::of).collect()
    }

    /// Returns the hashes of all entries, oldest first.
    pub(super) async fn log(&self, address: &str) -> Vec<String> {
        strings(&self.done("log", json!({ "address": address })).await)
    }

    /// Returns what was written, oldest first.
    pub(super) async fn values(&self, address: &str) -> Vec<Value> {
        let values = self.done("values", json!({ "address": address })).await;
        values.as_array().expect("a list").clone()
    }

    /// Returns the hashes of the heads, in order.
    pub(super) async fn heads(&self, address: &str) -> Vec<String> {
        let mut heads = strings(&self.done("heads", json!({ "address": address })).await);
        heads.sort();
        heads
    }

    /// Returns who has the database open, as the peer sees it.
    pub(super) async fn peers(&self, address: &str) -> Vec<String> {
        strings(&self.done("peers", json!({ "address": address })).await)
    }

    /// Gives an identity the right to write.
    pub(super) async fn grant(&self, address: &str, identity: &str) {
        self.done("grant", json!({ "address": address, "capability": "write", "identity": identity })).await;
    }

    /// Takes the right to write from an identity.
    pub(super) async fn revoke(&self, address: &str, identity: &str) {
        self.done("revoke", json!({ "address": address, "capability": "write", "identity": identity })).await;
    }

    /// Returns who may write by the database that guards this one.
    pub(super) async fn writers(&self, address: &str) -> Vec<String> {
        let capabilities = self.done("capabilities", json!({ "address": address })).await;
        capabilities.get("write").map(strings).unwrap_or_default()
    }

    /// Waits until the peer tells of an event.
    pub(super) async fn hears(&self, what: &str, fits: impl Fn(&Value) -> bool) {
        let mut events = self.events.clone();
        let heard = within(what, events.wait_for(|events| events.iter().any(&fits))).await.is_ok();
        assert!(heard, "{what}: the peer is gone: {}", self.complaints());
    }

    /// Returns what went wrong in the peer beside answers, for messages of failed tests.
    pub(super) fn complaints(&self) -> String {
        let events = self.events.borrow();
        let errors: Vec<_> = events.iter().filter(|event| event["event"] == "error").map(Value::to_string).collect();
        format!("{}\n{}", errors.join("\n"), *self.stderr.borrow())
    }

    /// Stops the peer as its user would, and expects a clean end.
    pub(super) async fn stop(mut self) {
        // Its stdin ends with the sender of its lines.
        drop(self.requests);
        let status = within("the end of the peer", self.child.wait()).await.unwrap();
        assert!(status.success(), "{status}: {}", *self.stderr.borrow());
    }

    /// Ends the peer at once.
    pub(super) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

fn strings(list: &Value) -> Vec<String> {
    let text = |one: &Value| one.as_str().expect("text").to_owned();
    list.as_array().expect("a list").iter().map(text).collect()
}

async fn write_lines(mut pipe: ChildStdin, mut lines: mpsc::Receiver<String>) {
    while let Some(line) = lines.recv().await {
        if pipe.write_all(format!("{line}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read_lines(pipe: ChildStdout, pending: Pending, events: watch::Sender<Vec<Value>>) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let message: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let Some(number) = message["id"].as_u64() else {
            events.send_modify(|events| events.push(message));
            continue;
        };
        let answer = match message.get("error") {
            Some(error) => Err(error.as_str().unwrap_or_default().to_owned()),
            None => Ok(message["value"].clone()),
        };
        if let Some(sender) = pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&number) {
            // Whoever asked may have given up.
            let _ = sender.send(answer);
        }
    }
    // Nobody is answered any more.
    pending.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

async fn copy_lines(pipe: ChildStderr, text: watch::Sender<String>) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        text.send_modify(|text| {
            text.push_str(&line);
            text.push('\n');
        });
    }
}
