//! Nodes with real sockets on this machine.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::{NodeId, NodeKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::membership::{Generation, MembershipHandle, MembershipState, Privacy, SwarmId, SwarmKey};
use crate::{
    ListenOn, NetConfig, NetError, NetEvent, NetEvents, NetHandle, NetIdentity, NetLimits, NetPeer, NetReport,
    NetTiming, Subscription, Verdict, net,
};

mod addresses;
mod attacks;
mod bitswap;
mod bounds;
mod limits;
mod raw;
mod refusals;
mod relays;
mod swarms;
mod talk;
mod topics;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// How long anything may take, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(30);

/// Settings with short times.
fn config() -> NetConfig {
    NetConfig {
        listen: vec![ListenOn { ip: HERE, port: 0, port_is_fixed: false }],
        mdns: false,
        timing: NetTiming {
            handshake_limit: Duration::from_secs(2),
            redial_min: Duration::from_millis(200),
            redial_max: Duration::from_secs(1),
            redundant_grace: Duration::from_millis(500),
            ping_interval: Duration::from_secs(1),
            gossip_heartbeat: Duration::from_millis(200),
            ..NetTiming::default()
        },
        ..NetConfig::default()
    }
}

fn closed(key: u8) -> MembershipState {
    MembershipState {
        swarm_id: SwarmId::open(),
        privacy: Privacy::Closed(SwarmKey::from_bytes([key; 32])),
        generation: Generation(0),
        removed: Arc::default(),
    }
}

fn open() -> MembershipState {
    MembershipState { privacy: Privacy::Open, ..closed(0) }
}

fn identity(number: u8) -> NetIdentity {
    NetIdentity {
        key: NodeKey::from_secret(&[number; 32]),
        name: format!("node-{number}"),
        version: "0.0.0-test".to_owned(),
    }
}

fn id(number: u8) -> NodeId {
    identity(number).key.node_id()
}

/// A running node.
struct Running {
    net: NetHandle,
    membership: watch::Sender<MembershipState>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), NetError>>,
}

impl Running {
    /// Starts a node, with the number that its key is made of.
    async fn start(number: u8, state: MembershipState) -> Self {
        Self::with(number, state, config()).await
    }

    async fn with(number: u8, state: MembershipState, config: NetConfig) -> Self {
        let listens = !config.listen.is_empty();
        let (membership, following) = watch::channel(state);
        let (net, service) = net(config, identity(number), MembershipHandle::following(following));
        let stop = CancellationToken::new();
        let task = tokio::spawn(service.run(stop.clone()));
        if listens {
            let mut addrs = net.listen_addrs();
            let listening = addrs.wait_for(|addrs| !addrs.is_empty());
            timeout(LIMIT, listening).await.expect("it listens in time").expect("it runs");
        }
        Self { net, membership, stop, task }
    }

    /// Returns its address, with its id.
    fn addr(&self) -> String {
        self.net.listen_addrs().borrow().first().expect("it listens").clone()
    }

    /// Returns the port that it listens on.
    fn port(&self) -> u16 {
        self.addr().split('/').nth(4).unwrap().parse().unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(LIMIT, self.task).await.expect("it stops in time").unwrap().unwrap();
    }

    /// Waits until the node's report is as wanted.
    async fn report_with(&self, wanted: impl Fn(&NetReport) -> bool) -> NetReport {
        self.shown(NetHandle::report, wanted).await
    }

    /// Waits until the peers that the node knows are as wanted.
    async fn peers_with(&self, wanted: impl Fn(&Vec<NetPeer>) -> bool) -> Vec<NetPeer> {
        self.shown(NetHandle::peers, wanted).await
    }

    async fn shown<T: std::fmt::Debug>(&self, show: impl Fn(&NetHandle) -> T, wanted: impl Fn(&T) -> bool) -> T {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        let shown = async {
            loop {
                ticks.tick().await;
                let shown = show(&self.net);
                if wanted(&shown) {
                    return shown;
                }
            }
        };
        timeout(LIMIT, shown).await.unwrap_or_else(|_| panic!("it stays {:?}", show(&self.net)))
    }

    /// Accepts a protocol and sends back what comes, stream by stream.
    fn echo(&self, protocol: &str) {
        let mut incoming = self.net.accept(protocol).unwrap();
        // It ends with the node; a failure shows in the test that misses its answer.
        tokio::spawn(async move {
            while let Some((_, stream)) = incoming.next().await {
                let (mut reader, mut writer) = tokio::io::split(stream);
                tokio::spawn(async move { tokio::io::copy(&mut reader, &mut writer).await });
            }
        });
    }

    /// Sends some bytes to a peer's echo and waits for them.
    async fn hear_echo(&self, peer: &NodeId, protocol: &str) {
        let mut stream = self.net.open_stream(peer, protocol).await.unwrap();
        stream.write_all(b"is anybody there?").await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = [0; 17];
        timeout(LIMIT, stream.read_exact(&mut answer)).await.expect("an answer in time").unwrap();
        assert_eq!(&answer, b"is anybody there?");
    }
}

/// Waits for an event that says what is wanted.
async fn heard<T>(events: &mut NetEvents, wanted: impl Fn(&NetEvent) -> Option<T>) -> T {
    let heard = async {
        loop {
            let event = events.next().await.expect("the node runs");
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    };
    timeout(LIMIT, heard).await.expect("the event comes in time")
}

async fn connected(events: &mut NetEvents, wanted: &NodeId) {
    heard(events, |event| matches!(event, NetEvent::PeerConnected { peer, .. } if peer == wanted).then_some(())).await;
}

async fn disconnected(events: &mut NetEvents, wanted: &NodeId) {
    heard(events, |event| matches!(event, NetEvent::PeerDisconnected { peer, .. } if peer == wanted).then_some(()))
        .await;
}

async fn subscribed(events: &mut NetEvents, wanted: &NodeId) {
    heard(events, |event| matches!(event, NetEvent::PeerSubscribed { peer, .. } if peer == wanted).then_some(())).await;
}

fn accept_all() -> Arc<dyn crate::Judge> {
    Arc::new(|_: &NodeId, _: &[u8]| Verdict::Accept)
}
