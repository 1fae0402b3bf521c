//! Members with real sockets on this machine.

use std::net::{IpAddr, Ipv4Addr};

use bombus_core::identity::NodeKey;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::wire::{Frame, Frames, PROTOCOL};
use super::super::{OwnerKey, Ticket};
use super::*;
use crate::{DialFailure, ListenOn, NetConfig, NetIdentity, NetTiming, net};

/// How long anything may take, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(60);

struct Real {
    id: NodeId,
    dir: TempDir,
    handle: MembershipHandle,
    net: NetHandle,
    stop: CancellationToken,
    mesh: JoinHandle<Result<(), NetError>>,
    membership: JoinHandle<Result<(), MembershipServiceError>>,
}

impl Real {
    /// Starts a node on a data directory, which dials some others.
    async fn start(number: u8, dir: TempDir, seeds: &[&Self]) -> Self {
        let key = NodeKey::from_secret(&[number; 32]);
        let id = key.node_id();
        let (handle, service) = Membership::open(dir.path()).unwrap().serve(MembershipTiming::default()).unwrap();
        let identity = NetIdentity { key, name: format!("node-{number}"), version: "0.0.0-test".to_owned() };
        let (net, mesh) = net(config(seeds), identity, handle.clone());
        let stop = CancellationToken::new();
        // Their results are looked at when the node is stopped.
        let mesh = tokio::spawn(mesh.run(stop.clone()));
        let membership = tokio::spawn(service.run(net.clone(), stop.clone()));
        let node = Self { id, dir, handle, net, stop, mesh, membership };
        node.addr().await;
        node
    }

    async fn addr(&self) -> String {
        let mut addrs = self.net.listen_addrs();
        let listening = timeout(LIMIT, addrs.wait_for(|addrs| !addrs.is_empty())).await;
        listening.expect("it listens in time").expect("it runs")[0].clone()
    }

    async fn ticket(&self) -> Ticket {
        self.handle.invite(vec![self.addr().await]).await.unwrap()
    }

    async fn stop(self) -> TempDir {
        self.stop.cancel();
        timeout(LIMIT, self.mesh).await.expect("the mesh stops in time").unwrap().unwrap();
        timeout(LIMIT, self.membership).await.expect("the membership stops in time").unwrap().unwrap();
        self.dir
    }

    /// Waits until there is a connection to another node, or none, under a generation of the key.
    async fn until(&self, other: &Self, generation: u64, connected: bool) {
        let mut ticks = interval(Duration::from_millis(50));
        let wanted = async {
            loop {
                ticks.tick().await;
                if self.handle.state().generation == Generation(generation) && self.sees(other) == connected {
                    return;
                }
            }
        };
        let came = timeout(LIMIT, wanted).await;
        assert!(came.is_ok(), "of {}: {:?}, {:?}", other.id, self.handle.state(), self.net.peers());
    }

    fn sees(&self, other: &Self) -> bool {
        self.net.peers().iter().any(|peer| peer.node_id == other.id && peer.connected.is_some())
    }
}

fn config(seeds: &[&Real]) -> NetConfig {
    let seed = |node: &&Real| node.net.listen_addrs().borrow()[0].clone();
    NetConfig {
        listen: vec![ListenOn { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 0, port_is_fixed: false }],
        seeds: seeds.iter().map(seed).collect(),
        mdns: false,
        timing: NetTiming {
            handshake_limit: Duration::from_secs(2),
            redial_min: Duration::from_millis(200),
            redial_max: Duration::from_secs(1),
            ..NetTiming::default()
        },
        ..NetConfig::default()
    }
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Makes a data directory whose node is in the swarm of a ticket.
fn joined(ticket: &Ticket) -> TempDir {
    let dir = dir();
    Membership::open(dir.path()).unwrap().join(ticket, false).unwrap();
    dir
}

/// Three members that all see each other.
async fn three() -> [Real; 3] {
    let a = Real::start(1, dir(), &[]).await;
    let b = Real::start(2, joined(&a.ticket().await), &[]).await;
    let c = Real::start(3, joined(&b.ticket().await), &[&a]).await;
    for (x, y) in [(&a, &b), (&b, &c), (&a, &c), (&b, &a), (&c, &b), (&c, &a)] {
        x.until(y, 0, true).await;
    }
    [a, b, c]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kicked_peer_stays_out_also_after_everybody_started_again() {
    let [a, b, c] = three().await;
    let handed = a.handle.kick(c.id.clone()).await.unwrap();
    assert_eq!((handed.reached, handed.missed), (vec![b.id.clone()], Vec::new()));
    a.until(&b, 1, true).await;
    b.until(&a, 1, true).await;
    a.until(&c, 1, false).await;
    b.until(&c, 1, false).await;
    let refused = c.net.dial(&a.addr().await).await.unwrap_err();
    assert!(matches!(refused, DialFailure::AnotherSwarmKey), "{refused}");

    let ticket = a.ticket().await;
    let [dir_a, dir_b, dir_c] = [a.stop().await, b.stop().await, c.stop().await];
    // Somebody passed the new key on to it.
    Membership::open(dir_c.path()).unwrap().join(&ticket, false).unwrap();
    let a = Real::start(1, dir_a, &[]).await;
    let b = Real::start(2, dir_b, &[&a]).await;
    let c = Real::start(3, dir_c, &[&a, &b]).await;
    a.until(&b, 1, true).await;
    for member in [&a, &b] {
        let refused = c.net.dial(&member.addr().await).await;
        assert!(!member.sees(&c), "{refused:?}");
    }
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_when_the_key_was_changed_comes_back_by_a_new_ticket() {
    let [a, b, c] = three().await;
    let c_id = c.id.clone();
    let dir_c = c.stop().await;
    let handed = a.handle.rekey().await.unwrap();
    assert_eq!((handed.reached, handed.missed), (vec![b.id.clone()], vec![c_id]));
    a.until(&b, 1, true).await;
    let c = Real::start(3, dir_c, &[&a]).await;
    let refused = c.net.dial(&b.addr().await).await.unwrap_err();
    assert!(matches!(refused, DialFailure::AnotherSwarmKey), "{refused}");
    assert!(c.handle.standing().await.unwrap().last_contact_s.is_some());
    c.handle.join(b.ticket().await, false).await.unwrap();
    c.until(&a, 1, true).await;
    c.until(&b, 1, true).await;
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_and_removals_outlast_a_restart_and_reach_who_joins_later() {
    let [a, b, c] = three().await;
    a.handle.kick(c.id.clone()).await.unwrap();
    a.until(&b, 1, true).await;
    let d = Real::start(4, joined(&b.ticket().await), &[]).await;
    let mut state = d.handle.current();
    let removed = timeout(LIMIT, state.wait_for(|state| state.removed.contains(&c.id))).await;
    removed.expect("who joins later hears of the removed").unwrap();
    let dir_d = d.stop().await;
    let known = Membership::open(dir_d.path()).unwrap().read_known();
    assert!(known.addresses().iter().any(|known| known.peer.as_ref() == Some(&b.id)), "{:?}", known.addresses());
    // Nobody tells it where the others are.
    let d = Real::start(4, dir_d, &[]).await;
    d.until(&b, 1, true).await;
    for node in [a, b, c, d] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_change_of_a_member_changes_nothing() {
    let a = Real::start(1, dir(), &[]).await;
    let b = Real::start(2, joined(&a.ticket().await), &[]).await;
    b.until(&a, 0, true).await;
    let before = a.handle.state();
    let (forger, key) = (OwnerKey::from_secret(&[9; 32]), SwarmKey::from_bytes([9; 32]));
    let mut forged =
        serde_json::to_value(SignedChange::sign(&forger, Generation(9), &key, [b.id.clone()].into())).unwrap();
    forged["swarm_id"] = before.swarm_id.to_string().into();
    let change: Box<SignedChange> = Box::new(serde_json::from_value(forged).unwrap());
    let hash = change.hash();

    let mut frames = Frames::new(b.net.open_stream(&a.id, PROTOCOL).await.unwrap());
    frames.send(&Frame::Offer { swarm_id: before.swarm_id.to_string(), changes: vec![hash] }).await.unwrap();
    assert_eq!(frames.next().await.unwrap(), Some(Frame::Want { changes: vec![hash] }));
    frames.send(&Frame::Change { change, key: Some(key), within_ms: 100 }).await.unwrap();
    assert_eq!(frames.next().await.unwrap(), Some(Frame::Ack { change: hash, stored: false }));
    assert_eq!(a.handle.state(), before);
    assert_eq!(a.handle.ignored().await.unwrap().forged, 1);
    for node in [a, b] {
        node.stop().await;
    }
}
