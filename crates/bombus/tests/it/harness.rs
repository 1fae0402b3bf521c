//! Runs `bombus` processes in homes of their own. A [`Home`] is a data directory with a configuration, a [`Node`] is a running
//! `bombus up` on one.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// Nothing here takes nearly so long; a machine that is busy with other builds may.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// Waits, but not for ever.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}

/// A configuration with one scripted backend, its model called `fake`, and more lines of its table.
pub(crate) fn fake(lines: &str) -> String {
    format!("default_model = 'fake'\n[api]\nlisten = '127.0.0.1:0'\n[[backends]]\nkind = 'fake'\n{lines}\n")
}

/// Begins the configuration of a node without backends; tables of backends are added behind it.
pub(crate) fn no_backends() -> String {
    "default_model = 'fake'\n[api]\nlisten = '127.0.0.1:0'\n".to_owned()
}

/// A table of a scripted backend with a name of its own, and more lines.
pub(crate) fn fake_named(name: &str, lines: &str) -> String {
    format!("[[backends]]\nkind = 'fake'\nname = '{name}'\n{lines}\n")
}

/// A table of a backend that is a server at this address, `ollama` or `openai`, with more lines.
pub(crate) fn server(kind: &str, name: &str, url: &str, lines: &str) -> String {
    format!("[[backends]]\nkind = '{kind}'\nname = '{name}'\nurl = '{url}'\n{lines}\n")
}

/// Returns an address of this machine at which nothing listens. Its port is none of those that connections get by themselves, so that it is
/// free still when a node starts there again.
pub(crate) fn free_address() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = COUNT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id());
        let port = 18_000 + u16::try_from(number % 14_000).unwrap();
        if let Ok(listener) = std::net::TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap().to_string();
        }
    }
}

/// A place for a node: data directory and configuration, both its own. Deleted in the end.
pub(crate) struct Home {
    folder: tempfile::TempDir,
}

/// What a command left behind.
pub(crate) struct Finished {
    /// Its exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// All of its stdout.
    pub(crate) stdout: String,
    /// All of its stderr.
    pub(crate) stderr: String,
}

impl Home {
    /// Makes a home with this configuration file.
    pub(crate) fn new(config: &str) -> Self {
        let home = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        std::fs::create_dir_all(home.config_file().parent().unwrap()).unwrap();
        std::fs::write(home.config_file(), config).unwrap();
        home
    }

    /// Returns the data directory; it is there only after something used it.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns the configuration file.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.path().join("config/bombus/config.toml")
    }

    /// Returns a path in the home for files of the test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Prepares a command that knows nothing of this machine's own Bombus.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bombus"));
        command.args(arguments).current_dir(self.folder.path()).kill_on_drop(true).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let foreign = name.to_string_lossy();
            if foreign.starts_with("BOMBUS_")
                || foreign.starts_with("OLLAMA_")
                || foreign.to_lowercase().ends_with("_proxy")
            {
                command.env_remove(name);
            }
        }
        command
            .env("BOMBUS_DATA_DIR", self.data_dir())
            // An Ollama of this machine is no part of any test.
            .env("BOMBUS_DISCOVER__OLLAMA", "false")
            // Nor are other nodes, be they of this machine, of its network, or of another test.
            .env("BOMBUS_P2P__LISTEN", "127.0.0.1:0")
            .env("BOMBUS_P2P__MDNS", "false")
            .env("XDG_CONFIG_HOME", self.folder.path().join("config"))
            .env("HOME", self.folder.path());
        command
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Finished {
        finish(self.command(arguments)).await
    }

    /// Runs a command to its end with this text on its stdin.
    pub(crate) async fn run_with_stdin(&self, arguments: &[&str], stdin: &str) -> Finished {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(stdin.as_bytes()).await.unwrap();
        drop(pipe);
        collect(child).await
    }

    /// Reads `node.json`.
    pub(crate) fn node_json(&self) -> Option<Value> {
        let text = std::fs::read_to_string(self.data_dir().join("node.json")).ok()?;
        Some(serde_json::from_str(&text).expect("node.json is JSON at every moment"))
    }
}

/// Gives a command of another program the environment of a prepared `bombus`.
pub(crate) fn take_environment(command: &mut Command, from: &Command) {
    for (name, value) in from.as_std().get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

/// Runs a prepared command to its end.
pub(crate) async fn finish(mut command: Command) -> Finished {
    collect(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()).await
}

async fn collect(child: Child) -> Finished {
    let output = within("the command", child.wait_with_output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A running `bombus up`. Killed when it is dropped.
pub(crate) struct Node {
    process: Process,
    record: Value,
}

impl Node {
    /// Starts a node and waits until it serves.
    pub(crate) async fn start(home: &Home) -> Self {
        Self::start_with(home, &[]).await
    }

    /// Starts a node with more arguments and waits until it serves.
    pub(crate) async fn start_with(home: &Home, arguments: &[&str]) -> Self {
        Self::start_command(home, home.command(&[&["up"], arguments].concat())).await
    }

    /// Starts a prepared `bombus up` and waits until it serves: `node.json` names it, and it answers there.
    pub(crate) async fn start_command(home: &Home, command: Command) -> Self {
        let mut process = Process::start(command);
        process.stderr_shows(" serves on ").await;
        let record = home.node_json().expect("a node that serves has written node.json");
        assert_eq!(record["pid"], process.pid());
        let node = Self { process, record };
        let health: Value = node.get("/health").await.json().await.unwrap();
        assert_eq!(health["node_id"], node.record["node_id"]);
        node
    }

    /// Returns the process.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Returns what `node.json` said when the node began to serve.
    pub(crate) fn record(&self) -> &Value {
        &self.record
    }

    /// Returns the node's id.
    pub(crate) fn id(&self) -> &str {
        self.record["node_id"].as_str().unwrap()
    }

    /// Returns the address of a path of the API.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.record["api"].as_str().unwrap())
    }

    /// Gets a path of the API.
    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        within(path, client().get(self.url(path)).send()).await.unwrap()
    }

    /// Begins a streamed answer of the model `fake`.
    pub(crate) async fn chat_stream(&self, prompt: &str) -> reqwest::Response {
        let body = serde_json::json!({
            "model": "fake", "stream": true, "messages": [{ "role": "user", "content": prompt }],
        });
        within("a chat", client().post(self.url("/v1/chat/completions")).json(&body).send()).await.unwrap()
    }

    /// Stops the node as a service manager does, and expects a clean end.
    pub(crate) async fn stop(mut self) {
        self.process.signal(Signal::Terminate);
        let status = self.process.ended().await;
        assert_eq!(status.code(), Some(0), "{}", self.process.stderr());
    }

    /// Kills the node as a crash would.
    pub(crate) async fn crash(mut self) {
        self.process.signal(Signal::Kill);
        self.process.ended().await;
    }
}

/// Makes a client that goes to this machine directly.
pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Signals that tests send.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
    /// SIGSTOP: the process lives, but does nothing.
    Pause,
    /// SIGCONT, the end of a pause.
    Resume,
}

/// A running `bombus` whose output can be awaited.
pub(crate) struct Process {
    child: Child,
    pid: u32,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: watch::Receiver<String>,
}

impl Process {
    /// Starts a prepared command.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, stderr) = watch::channel(String::new());
        tokio::spawn(copy_lines(child.stderr.take().unwrap(), sender));
        let stdout = child.stdout.take().map(BufReader::new);
        Self { pid: child.id().expect("a child that was not awaited has a pid"), child, stdout, stderr }
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to this process alone.
    pub(crate) fn signal(&self, signal: Signal) {
        use rustix::process;
        let signal = match signal {
            Signal::Interrupt => process::Signal::INT,
            Signal::Terminate => process::Signal::TERM,
            Signal::Kill => process::Signal::KILL,
            Signal::Pause => process::Signal::STOP,
            Signal::Resume => process::Signal::CONT,
        };
        let pid = process::Pid::from_raw(self.pid.try_into().unwrap()).unwrap();
        process::kill_process(pid, signal).unwrap();
    }

    /// Ends its stdin.
    pub(crate) fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Stops reading its stdout.
    pub(crate) fn close_stdout(&mut self) {
        self.stdout = None;
    }

    /// Waits for the process to end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let status = within("the end of the process", self.child.wait()).await.unwrap();
        // What it wrote last may still be in the pipe.
        let closed = async { while self.stderr.changed().await.is_ok() {} };
        within("the end of stderr", closed).await;
        status
    }

    /// Returns what came on stderr so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.borrow().clone()
    }

    /// Waits until stderr has this text.
    pub(crate) async fn stderr_shows(&mut self, wanted: &str) {
        let shown =
            timeout(LIMIT, self.stderr.wait_for(|text| text.contains(wanted))).await.is_ok_and(|seen| seen.is_ok());
        assert!(shown, "stderr lacks {wanted:?}: {}", self.stderr());
    }

    /// Reads stdout until it has this many bytes more.
    pub(crate) async fn stdout_bytes(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        within("output", self.stdout.as_mut().unwrap().read_exact(&mut bytes)).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Reads the next line of stdout; nothing at its end.
    pub(crate) async fn stdout_line(&mut self) -> String {
        let mut line = String::new();
        within("a line of output", self.stdout.as_mut().unwrap().read_line(&mut line)).await.unwrap();
        line
    }

    /// Returns how many bytes of stdout wait in the pipe.
    pub(crate) fn stdout_bytes_waiting(&self) -> u64 {
        rustix::io::ioctl_fionread(self.stdout.as_ref().unwrap().get_ref()).unwrap()
    }

    /// Reads the rest of stdout.
    pub(crate) async fn stdout_rest(&mut self) -> String {
        let mut text = String::new();
        within("the end of stdout", self.stdout.as_mut().unwrap().read_to_string(&mut text)).await.unwrap();
        text
    }
}

/// Ends with the pipe, which closes with the process.
async fn copy_lines(pipe: impl AsyncRead + Unpin, sender: watch::Sender<String>) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        sender.send_modify(|text| {
            text.push_str(&line);
            text.push('\n');
        });
    }
}

/// Returns the permission bits of a file.
pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
