//! A mesh without sockets: links are there between wired nodes whose transports would let each other in.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bombus_core::identity::NodeId;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::super::MembershipState;
use super::super::links::{LinkEvent, Links, SeenAddress};

type Pair = (NodeId, NodeId);

#[derive(Default)]
struct State {
    wires: BTreeSet<Pair>,
    nodes: BTreeMap<NodeId, HubNode>,
    links: BTreeMap<Pair, CancellationToken>,
}

struct HubNode {
    events: mpsc::Sender<LinkEvent<DuplexStream>>,
    state: MembershipState,
}

pub(super) struct Hub {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Hub {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: watch::channel(()).0 })
    }

    pub(super) fn wire(&self, a: &NodeId, b: &NodeId) {
        self.lock().wires.insert(pair(a, b));
    }

    pub(super) fn wire_all(&self, nodes: &[NodeId]) {
        for (i, a) in nodes.iter().enumerate() {
            nodes[i + 1..].iter().for_each(|b| self.wire(a, b));
        }
    }

    /// Adds a node, whose transport follows its membership from then on.
    pub(super) fn enter(hub: &Arc<Self>, id: &NodeId, mut state: watch::Receiver<MembershipState>) -> HubLinks {
        let (events, receiver) = mpsc::channel(1_024);
        let current = state.borrow_and_update().clone();
        hub.lock().nodes.insert(id.clone(), HubNode { events, state: current });
        hub.settle();
        let (following, node) = (Arc::clone(hub), id.clone());
        // It ends with the state's sender, and a panic in it fails the test by what then does not happen.
        tokio::spawn(async move {
            while state.changed().await.is_ok() {
                let next = state.borrow_and_update().clone();
                following.follow(&node, next);
            }
        });
        HubLinks { hub: Arc::clone(hub), own: id.clone(), events: receiver }
    }

    pub(super) fn exit(&self, id: &NodeId) {
        self.lock().nodes.remove(id);
        self.settle();
    }

    pub(super) fn are_linked(&self, a: &NodeId, b: &NodeId) -> bool {
        self.lock().links.contains_key(&pair(a, b))
    }

    pub(super) async fn until_linked(&self, a: &NodeId, b: &NodeId, linked: bool) {
        let mut changed = self.changed.subscribe();
        let _ = changed.wait_for(|()| self.are_linked(a, b) == linked).await;
    }

    pub(super) async fn open(hub: &Arc<Self>, from: NodeId, to: NodeId) -> io::Result<DuplexStream> {
        let not_linked = || io::Error::new(io::ErrorKind::NotConnected, "there is no link");
        let (events, ends) = {
            let state = hub.lock();
            let ends = state.links.get(&pair(&from, &to)).ok_or_else(not_linked)?.clone();
            (state.nodes.get(&to).ok_or_else(not_linked)?.events.clone(), ends)
        };
        let ((mine, mut here), (mut there, theirs)) = (duplex(1 << 16), duplex(1 << 16));
        // It ends with the link, as a stream does.
        tokio::spawn(async move { ends.run_until_cancelled(copy_bidirectional(&mut here, &mut there)).await });
        events.send(LinkEvent::Incoming(from, theirs)).await.map_err(|_| not_linked())?;
        Ok(mine)
    }

    fn follow(&self, id: &NodeId, next: MembershipState) {
        {
            let mut state = self.lock();
            let Some(node) = state.nodes.get_mut(id) else { return };
            let rebuilt = node.state.needs_new_transport(&next);
            node.state = next;
            if rebuilt {
                let links: Vec<_> = state.links.keys().filter(|(a, b)| a == id || b == id).cloned().collect();
                links.iter().for_each(|link| state.unlink(link));
            }
        }
        self.settle();
    }

    fn settle(&self) {
        {
            let mut state = self.lock();
            for link in state.wires.clone() {
                match (state.may_be_linked(&link), state.links.contains_key(&link)) {
                    (true, false) => state.link(&link),
                    (false, true) => state.unlink(&link),
                    _ => {}
                }
            }
        }
        self.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn may_be_linked(&self, (a, b): &Pair) -> bool {
        let (Some(x), Some(y)) = (self.nodes.get(a), self.nodes.get(b)) else { return false };
        !x.state.needs_new_transport(&y.state) && !x.state.removed.contains(b) && !y.state.removed.contains(a)
    }

    fn link(&mut self, link: &Pair) {
        self.links.insert(link.clone(), CancellationToken::new());
        self.tell(&link.0, LinkEvent::Connected(link.1.clone()));
        self.tell(&link.1, LinkEvent::Connected(link.0.clone()));
    }

    fn unlink(&mut self, link: &Pair) {
        if let Some(ends) = self.links.remove(link) {
            ends.cancel();
            self.tell(&link.0, LinkEvent::Disconnected(link.1.clone()));
            self.tell(&link.1, LinkEvent::Disconnected(link.0.clone()));
        }
    }

    fn tell(&self, id: &NodeId, event: LinkEvent<DuplexStream>) {
        if let Some(node) = self.nodes.get(id) {
            node.events.try_send(event).expect("a test has few events");
        }
    }
}

pub(super) struct HubLinks {
    hub: Arc<Hub>,
    own: NodeId,
    events: mpsc::Receiver<LinkEvent<DuplexStream>>,
}

impl Links for HubLinks {
    type Stream = DuplexStream;

    fn own(&self) -> NodeId {
        self.own.clone()
    }

    fn open(&self, peer: NodeId) -> impl Future<Output = io::Result<DuplexStream>> + Send + 'static {
        let (hub, own) = (Arc::clone(&self.hub), self.own.clone());
        async move { Hub::open(&hub, own, peer).await }
    }

    fn seen(&self) -> Vec<SeenAddress> {
        let state = self.hub.lock();
        let linked = state.nodes.keys().filter(|peer| state.links.contains_key(&pair(peer, &self.own)));
        let address = |peer: &NodeId| format!("/memory/{}", peer.as_str().len());
        let seen = |peer: &NodeId| SeenAddress { peer: peer.clone(), addr: address(peer), last_ok_s: Some(1) };
        linked.map(seen).collect()
    }

    async fn next(&mut self) -> Option<LinkEvent<DuplexStream>> {
        self.events.recv().await
    }
}

fn pair(a: &NodeId, b: &NodeId) -> Pair {
    if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}
