use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::harness::{Finished, Home, Process, Signal, client, fake, finish, free_address, take_environment, within};
use crate::lab::{Disk, Door, Machine};
use crate::model::eventually;

/// Where nodes listen for each other on a machine of their own.
const PORT: u16 = 7891;

/// A node of a swarm: its home, its machine, and its process while it runs.
pub(crate) struct Member {
    home: Home,
    machine: Option<Machine>,
    disk: Option<Disk>,
    door: Option<Door>,
    process: Option<Process>,
    record: Value,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    listens_by_default: bool,
    client: reqwest::Client,
}

impl Member {
    pub(super) fn new(index: usize, machine: Option<Machine>, mdns: bool, open: bool) -> Self {
        let home = Home::new(&fake(""));
        // A node keeps its port over restarts, as real ones do.
        let listen = match &machine {
            Some(machine) => SocketAddr::new(machine.everywhere(), PORT).to_string(),
            None => free_address(),
        };
        let mut arguments = vec!["up".to_owned(), format!("--name=node{index}"), format!("--p2p={listen}")];
        if !mdns {
            arguments.push("--no-mdns".to_owned());
        }
        if open {
            arguments.push("--open".to_owned());
        }
        let environment = if mdns { vec![("BOMBUS_P2P__MDNS".to_owned(), "true".to_owned())] } else { Vec::new() };
        let client = client();
        Self {
            home,
            machine,
            disk: None,
            door: None,
            process: None,
            record: Value::Null,
            arguments,
            environment,
            listens_by_default: false,
            client,
        }
    }

    /// Returns the node's home.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// Gives the node another configuration, from its next start on.
    pub(crate) fn configure(&mut self, config: &str) {
        std::fs::write(self.home.config_file(), config).unwrap();
    }

    /// Moves the node to another machine, from its next start on.
    pub(crate) fn move_to(&mut self, machine: Machine) {
        self.machine = Some(machine);
    }

    /// Puts the node behind a proxy, from its next start on.
    pub(super) fn put_behind(&mut self, door: &Door) {
        self.listen_on(&door.inside());
        self.set_variable("BOMBUS_P2P__EXTERNAL", &door.outside());
        self.door = Some(door.clone());
    }

    /// Puts the node's data directory on a disk of its own of so many MiB, as long as nothing is in it; says whether that can be done here.
    pub(crate) async fn put_on_disk(&mut self, mib: u32) -> bool {
        self.disk = Disk::under(&self.home.data_dir(), mib).await;
        self.disk.is_some()
    }

    /// Returns the disk on which the node's data directory is.
    pub(crate) fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("the node was put on a disk")
    }

    /// Adds an argument to `bombus up`, from the next start on.
    pub(crate) fn add_argument(&mut self, argument: &str) {
        self.arguments.push(argument.to_owned());
    }

    /// Has the node listen for others at a port of all its machine's addresses, from the next start on.
    pub(crate) fn listen_at(&mut self, port: u16) {
        let everywhere = self.machine.as_ref().map_or(Ipv4Addr::UNSPECIFIED.into(), Machine::everywhere);
        self.listen_on(&SocketAddr::new(everywhere, port).to_string());
    }

    fn listen_on(&mut self, address: &str) {
        self.arguments.retain(|argument| !argument.starts_with("--p2p="));
        self.arguments.push(format!("--p2p={address}"));
    }

    /// Has nobody choose where the node listens for others, from the next start on.
    pub(crate) fn listen_by_default(&mut self) {
        self.arguments.retain(|argument| !argument.starts_with("--p2p="));
        self.listens_by_default = true;
    }

    /// Sets a variable in the environment of `bombus up`, from the next start on.
    pub(crate) fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Returns the node's id.
    pub(crate) fn id(&self) -> &str {
        self.record["node_id"].as_str().expect("the node has been started")
    }

    /// Returns the process id of the running node.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the node runs").pid()
    }

    /// Returns where the node can be reached by others: multiaddrs that end in its id.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let listed = self.record["p2p"].as_array().expect("node.json tells the mesh's addresses");
        listed.iter().map(|address| address.as_str().unwrap().to_owned()).collect()
    }

    /// Returns the address that others on other machines can use.
    pub(crate) fn address(&self) -> String {
        let addresses = self.addresses();
        let best = addresses.iter().find(|address| is_wide(address)).or_else(|| addresses.first());
        best.expect("a node that listens tells where").clone()
    }

    /// Returns where the node's API listens, without the scheme.
    pub(crate) fn api_address(&self) -> String {
        self.url("").trim_start_matches("http://").trim_end_matches('/').to_owned()
    }

    /// Says whether the node runs without a swarm key.
    pub(crate) fn is_open(&self) -> bool {
        self.arguments.iter().any(|argument| argument == "--open")
    }

    /// Says whether the node was started and neither stopped nor killed.
    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Prepares a command on the node's data directory and machine.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.placed(self.home.command(arguments))
    }

    /// Moves a prepared command to where the node is.
    fn placed(&self, command: Command) -> Command {
        let command = match &self.disk {
            Some(disk) => disk.host(&command),
            None => command,
        };
        match &self.machine {
            Some(machine) => machine.host(&command),
            None => command,
        }
    }

    /// Runs a command on the node's data directory and machine to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Finished {
        finish(self.command(arguments)).await
    }

    /// Runs a command that has to work and returns its stdout.
    pub(crate) async fn done(&self, arguments: &[&str]) -> String {
        let finished = self.run(arguments).await;
        let Finished { code, stdout, stderr } = &finished;
        assert_eq!(*code, Some(0), "{arguments:?}: {stdout}{stderr}\nthe node's log:\n{}", self.log_end());
        finished.stdout
    }

    /// Invites: returns the ticket.
    pub(crate) async fn invite(&self) -> String {
        let ticket = self.done(&["invite"]).await.trim().to_owned();
        let is_one_line = ticket.starts_with("bombus1") && !ticket.contains(char::is_whitespace);
        assert!(is_one_line, "one line and nothing else: {ticket:?}");
        ticket
    }

    /// Returns a ticket that has the key, but leads nowhere.
    pub(super) async fn invite_nowhere(&self) -> String {
        let invitation: Value = serde_json::from_str(&self.done(&["invite", "--json"]).await).unwrap();
        assert_eq!(
            invitation["addresses"],
            serde_json::json!([]),
            "a node that does not run and takes any port has no address"
        );
        invitation["ticket"].as_str().unwrap().to_owned()
    }

    /// Joins the swarm of a ticket.
    pub(crate) async fn join(&self, ticket: &str) {
        self.done(&["join", ticket]).await;
    }

    /// Prepares `bombus up`. The process ends with the thread that starts it, however that ends.
    fn up(&self) -> Command {
        let arguments: Vec<_> = self.arguments.iter().map(String::as_str).collect();
        let plain = self.home.command(&arguments);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(plain.as_std().get_program()).args(plain.as_std().get_args());
        command.current_dir(plain.as_std().get_current_dir().unwrap()).kill_on_drop(true).stdin(Stdio::null());
        take_environment(&mut command, &plain);
        if self.listens_by_default {
            command.env_remove("BOMBUS_P2P__LISTEN");
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.placed(command)
    }

    /// Starts the node and waits until it serves.
    pub(crate) async fn start(&mut self) {
        assert!(self.process.is_none(), "the node runs already");
        let mut process = Process::start(self.up());
        if let Some(door) = &self.door {
            door.belongs_to(process.pid());
        }
        process.stderr_shows(" serves on ").await;
        self.record = self.node_json();
        assert_eq!(self.record["pid"], process.pid());
        self.process = Some(process);
        if self.machine.is_some() {
            // An interface's address may become known a moment after the node serves.
            let listen = async || self.get("/swarm").await["listen"].clone();
            let wide = |address: &Value| address.as_str().is_some_and(is_wide);
            let told = async || listen().await.as_array().is_some_and(|addresses| addresses.iter().any(wide));
            eventually("an address that other machines reach", told).await;
            self.record["p2p"] = listen().await;
        }
    }

    fn node_json(&self) -> Value {
        let read = match &self.disk {
            Some(disk) => {
                serde_json::from_slice(&std::fs::read(disk.path().join("node.json")).unwrap_or_default()).ok()
            }
            None => self.home.node_json(),
        };
        read.expect("a node that serves has written node.json")
    }

    pub(super) fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("the node runs").signal(signal);
    }

    pub(super) async fn stop(&mut self) {
        self.signal(Signal::Terminate);
        self.stopped().await;
    }

    /// Waits for the end of a node that was told to stop, and expects a clean one.
    pub(super) async fn stopped(&mut self) {
        let mut process = self.process.take().expect("the node runs");
        let status = process.ended().await;
        assert_eq!(status.code(), Some(0), "{}", process.stderr());
    }

    pub(super) async fn kill(&mut self) {
        let mut process = self.process.take().expect("the node runs");
        process.signal(Signal::Kill);
        process.ended().await;
    }

    /// Returns all that the running node has logged.
    pub(crate) fn log(&self) -> String {
        self.process.as_ref().map(Process::stderr).unwrap_or_default()
    }

    pub(super) fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Returns the address of a path of the node's API.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.record["api"].as_str().expect("the node has been started"))
    }

    /// Gets JSON from the node's API.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let text = self.text(path).await;
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"))
    }

    /// Gets a text from the node's API.
    pub(crate) async fn text(&self, path: &str) -> String {
        match &self.machine {
            Some(machine) => match machine.fetch(&self.url(path)).await {
                Ok(text) => text,
                Err(error) => panic!("{path}: {error}\nthe node's log:\n{}", self.log_end()),
            },
            None => {
                let response = within(path, self.client.get(self.url(path)).send()).await.unwrap();
                assert!(response.status().is_success(), "{path}: {}", response.status());
                within(path, response.text()).await.unwrap()
            }
        }
    }

    /// Posts JSON to the API of a node on loopback; returns the status and the JSON that came back.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = within(path, self.client.post(self.url(path)).json(body).send()).await.unwrap();
        let status = response.status().as_u16();
        let text = within(path, response.text()).await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Returns the machine on which the node is; `None`: this one.
    pub(super) fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// Returns the client with which the node's API is asked.
    pub(crate) fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Returns the node's peers, as it tells them now.
    pub(crate) async fn peers(&self) -> Vec<Value> {
        match self.get("/peers").await {
            Value::Array(peers) => peers,
            other => panic!("/peers is a list: {other}"),
        }
    }

    /// Follows the node's events from now on.
    pub(crate) async fn events(&self, query: &str) -> SwarmEvents {
        let mut command = match &self.machine {
            Some(machine) => machine.command("curl"),
            None => Command::new("curl"),
        };
        command
            .args(["--silent", "--no-buffer", "--noproxy", "*", "--include"])
            .arg(self.url(&format!("/events{query}")));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Behind its headers the stream is open: what happens from here on is in it.
        let head = within("the head of the events", lines.next_line()).await.unwrap().unwrap_or_default();
        assert!(head.contains(" 200"), "{head}");
        while within("the head of the events", lines.next_line()).await.unwrap().is_some_and(|line| !line.is_empty()) {}
        SwarmEvents { _curl: child, lines, past: VecDeque::new() }
    }
}

/// Says whether other machines reach a multiaddr: it is of more than this machine or this link.
fn is_wide(address: &str) -> bool {
    match address.split('/').nth(2).and_then(|ip| ip.parse().ok()) {
        Some(IpAddr::V4(ip)) => !ip.is_loopback(),
        Some(IpAddr::V6(ip)) => !ip.is_loopback() && !ip.is_unicast_link_local(),
        None => false,
    }
}

/// The events of a node, as they come over its API.
pub(crate) struct SwarmEvents {
    _curl: Child,
    lines: Lines<BufReader<ChildStdout>>,
    past: VecDeque<SwarmEvent>,
}

/// One event.
#[derive(Debug, Clone)]
pub(crate) struct SwarmEvent {
    /// Its number, where it has one.
    pub(crate) id: Option<u64>,
    /// Its kind, such as `peer:joined`.
    pub(crate) kind: String,
    /// What it says.
    pub(crate) data: Value,
}

impl SwarmEvents {
    /// Returns the next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<SwarmEvent> {
        let (mut id, mut kind, mut data) = (None, String::new(), String::new());
        loop {
            let line = within("the next event", self.lines.next_line()).await.unwrap()?;
            match line.split_once(':').map(|(field, value)| (field, value.strip_prefix(' ').unwrap_or(value))) {
                Some(("id", value)) => id = value.parse().ok(),
                Some(("event", value)) => kind = value.to_owned(),
                Some(("data", value)) => data.push_str(value),
                // A heartbeat is a comment.
                Some(_) => {}
                None if line.is_empty() && !data.is_empty() => {
                    let event = SwarmEvent { id, kind, data: serde_json::from_str(&data).unwrap_or(Value::Null) };
                    if self.past.len() == 64 {
                        self.past.pop_front();
                    }
                    self.past.push_back(event.clone());
                    return Some(event);
                }
                None => {}
            }
        }
    }

    /// Waits for an event of a kind that names a node.
    pub(crate) async fn wait_for(&mut self, kind: &str, node_id: &str) -> SwarmEvent {
        loop {
            let Some(event) = self.next().await else {
                panic!("no {kind} of {node_id} until the end: {:?}", self.past)
            };
            if event.kind == kind && event.data.to_string().contains(node_id) {
                return event;
            }
        }
    }
}
