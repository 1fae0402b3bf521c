//! Machines and the cables between them, made of network namespaces; and proxies, which part the nodes of one machine where no namespaces
//! can be made.
//!
//! Each namespace belongs to a process that waits on a pipe from this one. Whatever ends the test, also a panic or SIGKILL, closes the
//! pipes, and the kernel takes the namespaces, their interfaces and their rules away. Nothing of it is ever seen from outside. Root makes
//! them directly, everybody else inside a user namespace of their own where the system allows that.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

use crate::harness::{take_environment, within};

mod disk;
mod lan;
mod nat;
mod network;
mod proxies;

pub(crate) use disk::Disk;
pub(crate) use lan::Lan;
pub(crate) use nat::{Mapping, Nat};
pub(crate) use network::Network;
pub(crate) use proxies::{Door, Proxies};

/// Says that a test cannot run on this machine, and why. Where everything has to run, that is a failure.
pub(crate) fn skip(reason: &str) {
    // Not `eprintln!`, which nobody sees of a test that passes. `scripts/test.sh` counts these lines.
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
    assert!(
        std::env::var_os("BOMBUS_TEST_ALL").is_none_or(|all| all != "1"),
        "BOMBUS_TEST_ALL=1 allows no skipped test: {reason}"
    );
}

/// How this process may make namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    /// Directly, as root.
    Own,
    /// Inside a user namespace.
    UserNamespace,
}

/// Finds out once how namespaces can be made here; the error says why they cannot.
async fn rights() -> Result<Rights, &'static str> {
    static RIGHTS: OnceCell<Result<Rights, String>> = OnceCell::const_new();
    let found = RIGHTS
        .get_or_init(|| async {
            for (program, package) in
                [("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux"), ("curl", "curl")]
            {
                if !is_program(program) {
                    return Err(format!("`{program}` is missing (Debian: {package}); `make setup` installs it"));
                }
            }
            // A bridge and a rule, since a kernel may have namespaces without them.
            let script = "ip link add lab type bridge && nft add table inet lab";
            let mut complaint = String::new();
            for rights in [Rights::Own, Rights::UserNamespace] {
                let mut attempt = system("unshare");
                if rights == Rights::UserNamespace {
                    attempt.args(["--user", "--map-root-user"]);
                }
                let output = attempt.args(["--net", "--", "sh", "-c", script]).output();
                let output = within("a network namespace", output).await.expect("util-linux has unshare");
                if output.status.success() {
                    return Ok(rights);
                }
                complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            }
            Err(format!("network namespaces cannot be made here: {complaint}"))
        })
        .await;
    found.as_ref().copied().map_err(String::as_str)
}

/// Says whether this machine has a program.
pub(crate) fn is_program(name: &str) -> bool {
    search_path().split(':').any(|folder| Path::new(folder).join(name).is_file())
}

/// The search path, with the folders for administrators, which other users may lack.
fn search_path() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Prepares one of the system's programs.
fn system(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What a namespace has of its own, as the system's programs name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    /// Interfaces, addresses, rules.
    Net,
    /// What is mounted where.
    Mount,
}

impl Own {
    fn flag(self) -> &'static str {
        match self {
            Self::Net => "--net",
            Self::Mount => "--mount",
        }
    }
}

/// A namespace and the process that keeps it.
struct Namespace {
    keeper: Child,
    rights: Rights,
    own: Own,
}

impl Namespace {
    async fn new(command: Command, rights: Rights) -> Self {
        let made = Self::made(command, rights, Own::Net, "true").await;
        made.expect("the namespace can be made, as another one could")
    }

    /// Makes a namespace, and runs a script of the shell in it that has to work; none where one of them does not.
    async fn made(mut command: Command, rights: Rights, own: Own, script: &str) -> Option<Self> {
        command.args([own.flag(), "--", "sh", "-c", &format!("{script} && echo ready && exec cat")]);
        let mut keeper = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(keeper.stdout.take().unwrap()).lines();
        let line = within("a namespace", lines.next_line()).await.unwrap();
        (line.as_deref() == Some("ready")).then_some(Self { keeper, rights, own })
    }

    fn pid(&self) -> u32 {
        self.keeper.id().expect("the keeper ends with this value only")
    }

    /// Prepares a program that runs inside; it takes the place of the process that enters, so that its pid is the one started here.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = system("nsenter");
        command.arg("--target").arg(self.pid().to_string());
        if self.rights == Rights::UserNamespace {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args([self.own.flag(), "--"]).arg(program);
        command
    }

    /// Moves a prepared command inside.
    fn host(&self, command: &Command) -> Command {
        let inner = command.as_std();
        let mut hosted = self.command(inner.get_program());
        hosted.args(inner.get_args());
        if let Some(folder) = inner.get_current_dir() {
            hosted.current_dir(folder);
        }
        take_environment(&mut hosted, command);
        hosted
    }

    /// Runs a script of the shell inside and expects it to work.
    async fn shell(&self, script: &str) {
        let mut command = self.command("sh");
        run(command.args(["-ec", script]), script).await;
    }

    /// Loads rules of nftables inside.
    async fn rules(&self, rules: &str) {
        let mut command = self.command("nft");
        let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(rules.as_bytes()).await.unwrap();
        drop(pipe);
        let output = within("nft", child.wait_with_output()).await.unwrap();
        assert!(output.status.success(), "{rules}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

async fn run(command: &mut Command, what: &str) -> String {
    let output = within(what, command.output()).await.unwrap();
    assert!(output.status.success(), "{what}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("tools answer in UTF-8")
}

/// The addresses that machines have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// A room with switches, in which machines are put.
pub(crate) struct Lab {
    space: Namespace,
}

impl Lab {
    /// Makes an empty room. Where that is impossible the test is skipped: the reason is told and `None` comes back.
    pub(crate) async fn new() -> Option<Self> {
        let rights = match rights().await {
            Ok(rights) => rights,
            Err(reason) => {
                skip(reason);
                return None;
            }
        };
        let mut command = system("unshare");
        if rights == Rights::UserNamespace {
            command.args(["--user", "--map-root-user"]);
        }
        let space = Namespace::new(command, rights).await;
        Some(Self { space })
    }

    /// Adds a switch, which carries multicast to everyone.
    async fn switch(&self, name: &str) {
        self.space.shell(&format!("ip link add {name} type bridge mcast_snooping 0 && ip link set {name} up")).await;
    }

    /// Adds a machine without cables, which will have addresses of one family.
    async fn machine(&self, family: Family) -> Machine {
        let mut command = system("unshare");
        if self.space.rights == Rights::UserNamespace {
            command = self.space.command("unshare");
        }
        let space = Namespace::new(command, self.space.rights).await;
        // Without the wait for duplicates an address of IPv6 is there at once.
        let quick = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad 2> /dev/null || true";
        space.shell(&format!("ip link set lo up; {quick}")).await;
        Machine { space: Arc::new(space), family }
    }

    /// Lays a cable from a machine to a switch. `cable` names its end at the switch, at most 15 characters.
    async fn plug(&self, machine: &Machine, interface: &str, address: &str, cable: &str, switch: &str) {
        let pid = machine.space.pid();
        let lay = format!("ip link add {cable} type veth peer name {interface} netns {pid}");
        self.space.shell(&format!("{lay} && ip link set {cable} master {switch} up")).await;
        machine.shell(&format!("ip address add {address} dev {interface} && ip link set {interface} up")).await;
    }

    /// Pulls a cable out of its switch, or puts it in again: the machine at its other end sees that too.
    async fn set_cable(&self, cable: &str, plugged: bool) {
        self.space.shell(&format!("ip link set {cable} {}", if plugged { "up" } else { "down" })).await;
    }
}

/// A machine: a network of its own, with this computer's files and processes.
#[derive(Clone)]
pub(crate) struct Machine {
    space: Arc<Namespace>,
    family: Family,
}

impl Machine {
    /// Returns what a program listens on that is to be reached at all addresses of this machine.
    pub(crate) fn everywhere(&self) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// Prepares a program that runs on this machine.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.space.command(program)
    }

    /// Moves a prepared command to this machine.
    pub(crate) fn host(&self, command: &Command) -> Command {
        self.space.host(command)
    }

    /// Runs a script of the shell on this machine.
    pub(crate) async fn shell(&self, script: &str) {
        self.space.shell(script).await;
    }

    /// Loads rules of nftables on this machine.
    pub(crate) async fn rules(&self, rules: &str) {
        self.space.rules(rules).await;
    }

    /// Fetches a page that this machine alone can reach; the error is what the client says.
    pub(crate) async fn fetch(&self, url: &str) -> Result<String, String> {
        let mut command = self.command("curl");
        command.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "20", url]);
        let output = within(url, command.output()).await.unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).expect("the API answers in UTF-8")),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}
