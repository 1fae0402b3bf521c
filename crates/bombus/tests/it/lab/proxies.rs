use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::skip;
use crate::harness::{free_address, within};

/// How many bytes a direction of a connection holds back beside what the system does.
const BUFFER_BYTES: usize = 16 * 1024;

/// Proxies between the nodes of one machine, which hold back what nodes send each other where a cut is.
///
/// Each node listens on loopback alone, and tells others a port of its proxy, at an address of this machine that is not on loopback. From
/// that address the proxy forwards, too: so both nodes take each other for one elsewhere, whose loopback addresses lead nowhere, and none
/// dials past the proxies. A cut is silent: what is on its way waits, new connections stand and say nothing.
pub(crate) struct Proxies {
    ip: Ipv4Addr,
    doors: Vec<Door>,
    cuts: watch::Sender<Cuts>,
    _listeners: JoinSet<()>,
}

impl Proxies {
    /// Makes proxies for so many nodes; `None` where this machine has no address for them (the test is skipped).
    pub(crate) async fn of(count: usize) -> Option<Self> {
        let Some(ip) = own_address() else {
            skip("this machine has no IPv4 address but those on loopback, and proxies need one");
            return None;
        };
        let mut sockets = Vec::new();
        for _ in 0..count {
            sockets.push(TcpListener::bind((ip, 0)).await.expect("a free port"));
        }
        let outside = sockets.iter().map(|socket| socket.local_addr().expect("it listens").port());
        let doors: Vec<_> = outside.map(|port| Door::new(SocketAddrV4::new(ip, port))).collect();
        let cuts = watch::Sender::default();
        let mut listeners = JoinSet::new();
        for (index, socket) in sockets.into_iter().enumerate() {
            listeners.spawn(serve(socket, index, doors.clone(), cuts.subscribe()));
        }
        Some(Self { ip, doors, cuts, _listeners: listeners })
    }

    /// Returns what a node has to know of its proxy.
    pub(crate) fn door(&self, index: usize) -> &Door {
        &self.doors[index]
    }

    /// Lets nothing pass between a node and all others.
    pub(super) fn unplug(&self, index: usize) {
        self.cuts.send_modify(|cuts| _ = cuts.unplugged.insert(index));
    }

    /// Takes that back.
    pub(super) fn plug_in(&self, index: usize) {
        self.cuts.send_modify(|cuts| _ = cuts.unplugged.remove(&index));
    }

    /// Lets nothing pass between a node and some others.
    pub(super) fn cut(&self, index: usize, others: &[usize]) {
        let pairs = others.iter().flat_map(|other| [(index, *other), (*other, index)]);
        self.cuts.send_modify(|cuts| cuts.pairs.extend(pairs));
    }

    /// Takes all cuts back.
    pub(super) fn heal(&self) {
        self.cuts.send_modify(|cuts| cuts.pairs.clear());
    }

    /// Counts the connections that nodes have taken, and asserts that each came from a proxy.
    pub(crate) fn connections(&self) -> usize {
        let connections = Connection::all();
        let taken =
            connections.iter().filter(|connection| self.doors.iter().any(|door| door.inside == connection.local));
        taken
            .inspect(|connection| assert_eq!(*connection.remote.ip(), self.ip, "past the proxies: {connection:?}"))
            .count()
    }
}

/// Finds an address of this machine that is not on loopback.
fn own_address() -> Option<Ipv4Addr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let mut addresses = interfaces.iter().filter_map(|interface| match interface.ip() {
        IpAddr::V4(ip) if !ip.is_loopback() => Some(ip),
        _ => None,
    });
    addresses.find(|ip| std::net::TcpListener::bind((*ip, 0)).is_ok())
}

/// A node's proxy, as the node sees it.
#[derive(Clone)]
pub(crate) struct Door {
    /// Where the node has to listen.
    inside: SocketAddrV4,
    /// Where others reach it.
    outside: SocketAddrV4,
    /// The node's process; 0 before there is one.
    pid: Arc<AtomicU32>,
}

impl Door {
    fn new(outside: SocketAddrV4) -> Self {
        let inside = free_address().parse().expect("loopback has addresses of IPv4");
        Self { inside, outside, pid: Arc::default() }
    }

    /// Returns where the node has to listen.
    pub(crate) fn inside(&self) -> String {
        self.inside.to_string()
    }

    /// Returns the multiaddr that the node has to tell others.
    pub(crate) fn outside(&self) -> String {
        format!("/ip4/{}/tcp/{}", self.outside.ip(), self.outside.port())
    }

    /// Takes note of the node's process, by which its connections are known.
    pub(crate) fn belongs_to(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Says whether the node has a socket.
    fn has(&self, inode: &str) -> bool {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid.load(Ordering::Relaxed)));
        let wanted = format!("socket:[{inode}]");
        // A process that has ended, or closes a file meanwhile, is no error.
        let mut links = files.into_iter().flatten().flatten().map(|file| fs::read_link(file.path()));
        links.any(|link| link.is_ok_and(|link| link == Path::new(&wanted)))
    }
}

/// An end of a connection on this machine.
#[derive(Debug)]
struct Connection {
    local: SocketAddrV4,
    remote: SocketAddrV4,
    inode: String,
}

impl Connection {
    /// Returns all that stand. Source: <https://docs.kernel.org/networking/proc_net_tcp.html>
    fn all() -> Vec<Self> {
        let table = fs::read_to_string("/proc/net/tcp").expect("Linux tells its sockets");
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row[3] == "01")
            .map(|row| Self { local: address(row[1]), remote: address(row[2]), inode: row[9].to_owned() })
            .collect()
    }
}

/// Reads an address as the kernel writes it: in hexadecimal, the bytes of the IP address as this machine orders those of a number.
fn address(text: &str) -> SocketAddrV4 {
    let (ip, port) = text.split_once(':').expect("ADDRESS:PORT");
    let ip = u32::from_str_radix(ip, 16).expect("hexadecimal").to_ne_bytes();
    SocketAddrV4::new(ip.into(), u16::from_str_radix(port, 16).expect("hexadecimal"))
}

/// Between whom nothing passes.
#[derive(Default)]
struct Cuts {
    pairs: HashSet<(usize, usize)>,
    unplugged: HashSet<usize>,
}

/// The way from one node to another.
#[derive(Clone)]
struct Way {
    ends: (usize, usize),
    cuts: watch::Receiver<Cuts>,
}

impl Way {
    /// Waits as long as there is a cut.
    async fn open(&mut self) {
        self.becomes(false).await;
    }

    /// Waits for a cut.
    async fn cut(&mut self) {
        self.becomes(true).await;
    }

    async fn becomes(&mut self, cut: bool) {
        let (one, other) = self.ends;
        let is_cut = |cuts: &Cuts| {
            cuts.pairs.contains(&self.ends) || cuts.unplugged.contains(&one) || cuts.unplugged.contains(&other)
        };
        // Without a sender the swarm has ended, and this task with it.
        let _ = self.cuts.wait_for(|cuts| is_cut(cuts) == cut).await;
    }
}

/// Takes what comes for a node.
async fn serve(listener: TcpListener, index: usize, doors: Vec<Door>, cuts: watch::Receiver<Cuts>) {
    let mut forwarded = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("a listener goes on");
                // Whose it is shows as long as it stands; strangers have no business here.
                if let Some(other) = owner(&stream, &doors) {
                    let way = Way { ends: (other, index), cuts: cuts.clone() };
                    forwarded.spawn(forward(stream, doors[index].clone(), way));
                }
            }
            // A connection that breaks is the affair of its nodes.
            Some(_) = forwarded.join_next() => {}
        }
    }
}

/// Finds out which node is at the other end of a connection.
fn owner(stream: &TcpStream, doors: &[Door]) -> Option<usize> {
    let (here, there) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    let connections = Connection::all();
    let end = connections.iter().find(|end| (here, there) == (end.remote.into(), end.local.into()))?;
    doors.iter().position(|door| door.has(&end.inode))
}

async fn forward(mut outer: TcpStream, door: Door, mut way: Way) -> io::Result<()> {
    way.open().await;
    let socket = TcpSocket::new_v4()?;
    socket.bind((*door.outside.ip(), 0).into())?;
    let mut inner = socket.connect(door.inside.into()).await?;
    outer.set_nodelay(true)?;
    inner.set_nodelay(true)?;
    let (from_outside, to_outside) = outer.split();
    let (from_inside, to_inside) = inner.split();
    tokio::try_join!(carry(from_outside, to_inside, way.clone()), carry(from_inside, to_outside, way))?;
    Ok(())
}

/// Carries what comes from one side to the other until it ends; while there is a cut, not even the end.
async fn carry(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut way: Way) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await;
        way.open().await;
        let mut rest = &buffer[..read?];
        if rest.is_empty() {
            return to.shutdown().await;
        }
        while !rest.is_empty() {
            way.open().await;
            tokio::select! {
                biased;
                () = way.cut() => {}
                written = to.write(rest) => rest = &rest[written?..],
            }
        }
    }
}

#[tokio::test]
async fn what_a_cut_holds_back_comes_when_it_is_healed() {
    let Some(proxies) = Proxies::of(2).await else { return };
    // This process is node 0, and serves as node 1.
    let (caller, served) = (proxies.door(0), proxies.door(1));
    caller.belongs_to(std::process::id());
    let listener = TcpListener::bind(served.inside).await.unwrap();
    let mut outer = TcpStream::connect(served.outside).await.unwrap();
    let (mut inner, from) = within("the proxy", listener.accept()).await.unwrap();
    assert_eq!(from.ip(), proxies.ip);

    let moment = Duration::from_millis(200);
    let mut seen = [0; 4];
    proxies.cut(1, &[0]);
    outer.write_all(b"held").await.unwrap();
    outer.shutdown().await.unwrap();
    assert!(timeout(moment, inner.read(&mut seen)).await.is_err(), "something passes: {seen:?}");
    let _late = TcpStream::connect(served.outside).await.expect("a cut refuses nobody");
    assert!(timeout(moment, listener.accept()).await.is_err(), "somebody passes");

    proxies.heal();
    within("what was held", inner.read_exact(&mut seen)).await.unwrap();
    assert_eq!(&seen, b"held");
    assert_eq!(within("the end", inner.read(&mut seen)).await.unwrap(), 0);
    inner.write_all(b"back").await.unwrap();
    within("the other direction", outer.read_exact(&mut seen)).await.unwrap();
    assert_eq!(&seen, b"back");
    within("who came meanwhile", listener.accept()).await.unwrap();
}
