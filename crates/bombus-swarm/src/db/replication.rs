//! One open database on the mesh: its topic, its heads, and what its sync asks for.

mod held;
mod owed;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_net::{Incoming, NetStream, Published, Subscription, Verdict};
use orbitdb::manifest::Address;
use orbitdb::replica::Input;
use orbitdb::sync::Peer;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::held::Held;
use self::owed::Owed;
use super::config::QueuesConfig;
use super::direct::Links;
use super::exchange;
use super::oplog::Turns;
use super::shared::Shared;
use crate::places::{Place, Places};
use crate::supervised::PartEnded;

/// How long an entry waits that all peers get straight, until it is published for the nodes behind them. A newer one takes its place.
const PUBLISH_AFTER: Duration = Duration::from_secs(1);
/// How often it is looked which peers have no stream for entries and could have one.
const LINK_AGAIN: Duration = Duration::from_secs(10);
/// How many blocks are handed to the database in one go.
const INPUTS_MAX: usize = 256;
/// For so long, what an entry follows may only be a little later on its way, from another peer. Then a peer is asked for it.
const LATE_FOR: Duration = Duration::from_millis(50);
/// So many of the entries that wait for what they follow are tried again whenever something has come.
const TRIED_MAX: usize = 32;
/// How long they wait for a peer that was asked to begin. Then what they follow is fetched one by one.
const HELD_FOR: Duration = Duration::from_secs(1);
/// The longest time without a tick, and the shortest.
const TICK_MAX: Duration = Duration::from_secs(1);
const TICK_MIN: Duration = Duration::from_millis(10);

/// What the replication of a database is told.
pub(super) enum Order {
    /// Exchange heads with a peer.
    Exchange(NodeId),
    /// Hand this to the database.
    Input(Input),
}

/// An entry that a peer wrote, on a topic or straight to here.
pub(super) struct Heard {
    pub(super) from: NodeId,
    pub(super) block: Vec<u8>,
}

/// Where the replication of a database is told what to do.
#[derive(Clone)]
pub(super) struct Replication {
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) publications: mpsc::Sender<Arc<[u8]>>,
    pub(super) heard: mpsc::Sender<Heard>,
    pub(super) turns: Arc<Turns>,
    /// Whether something was not published, or not heard: heads are exchanged then.
    pub(super) behind: Arc<AtomicBool>,
}

/// The other ends, which outlive a failure of the replication.
pub(super) struct Ends {
    address: Address,
    orders: mpsc::Receiver<Order>,
    publications: mpsc::Receiver<Arc<[u8]>>,
    heard: mpsc::Receiver<Heard>,
    turns: Arc<Turns>,
    behind: Arc<AtomicBool>,
}

pub(super) fn replication(address: Address, queues: &QueuesConfig) -> (Replication, Ends) {
    let (order_sender, orders) = mpsc::channel(queues.orders_max.max(1));
    let (publication_sender, publications) = mpsc::channel(queues.publications_max.max(1));
    let (heard_sender, heard) = mpsc::channel(queues.heard_max.max(1));
    let (turns, behind) = (Arc::new(Turns::default()), Arc::new(AtomicBool::new(false)));
    let replication = Replication {
        orders: order_sender,
        publications: publication_sender,
        heard: heard_sender,
        turns: Arc::clone(&turns),
        behind: Arc::clone(&behind),
    };
    (replication, Ends { address, orders, publications, heard, turns, behind })
}

/// Replicates a database until `stop`.
pub(super) async fn replicate(
    shared: &Arc<Shared>,
    ends: &Mutex<Ends>,
    stop: &CancellationToken,
) -> Result<(), PartEnded> {
    let mut ends = ends.lock().await;
    let Ends { address, orders, publications, heard, turns, behind } = &mut *ends;
    let topic = address.to_string();
    // Before the topic: peers that hear of the subscription open streams at once.
    let incoming = shared.net.accept(&address.heads_protocol())?;
    let bytes_max = shared.config.limits().block_bytes;
    let judge = move |_: &NodeId, block: &[u8]| {
        // What is wrong with an entry shows only where all that it follows is there, and peers in JavaScript judge otherwise.
        if block.is_empty() || block.len() > bytes_max { Verdict::Ignore } else { Verdict::Accept }
    };
    let subscription = shared.net.subscribe(&topic, Arc::new(judge)).await?;
    let peers = shared.net.topic_peers(&topic);
    let mut here = Here {
        shared,
        address: *address,
        turns,
        peers: BTreeSet::new(),
        running: JoinSet::new(),
        partners: HashMap::new(),
        answers: Places::new(shared.config.heads_streams_max, shared.config.heads_streams_per_peer_max),
        held: Held::new(shared.config.queues.clone()),
        held_since: Instant::now(),
        ask_at: None,
        behind,
        owed: Owed::default(),
        ticked: Instant::now(),
    };
    tokio::select! {
        biased;
        ended = here.run(orders, heard, incoming, subscription, peers.clone(), stop) => ended,
        ended = publish_all(shared, *address, publications, peers, behind) => ended,
    }
}

/// Sends own entries to the peers one after the other, beside everything else: to nodes straight, and by the topic to all others.
///
/// Where every peer gets them straight, the topic still tells the newest entry once in a while, for nodes that only peers of this one reach.
async fn publish_all(
    shared: &Arc<Shared>,
    address: Address,
    publications: &mut mpsc::Receiver<Arc<[u8]>>,
    mut peers: watch::Receiver<Vec<NodeId>>,
    behind: &Arc<AtomicBool>,
) -> Result<(), PartEnded> {
    let mut links = Links::new(shared, address, behind);
    let (mut look_at, mut newest, mut publish_at) = (Instant::now(), None, Instant::now());
    loop {
        tokio::select! {
            biased;
            Some(block) = publications.recv() => {
                if !links.send(&block, &peers.borrow()) {
                    newest = None;
                    publish(shared, address, &block, behind).await;
                } else if newest.replace(block).is_none() {
                    publish_at = Instant::now() + PUBLISH_AFTER;
                }
            }
            changed = peers.changed() => {
                changed.map_err(|_| PartEnded::MeshEnded)?;
                look_at = Instant::now();
            }
            () = sleep_until(look_at) => {
                links.follow(&peers.borrow_and_update());
                look_at = Instant::now() + LINK_AGAIN;
            }
            () = sleep_until(publish_at), if newest.is_some() => {
                if let Some(block) = newest.take() {
                    publish(shared, address, &block, behind).await;
                }
            }
        }
    }
}

async fn publish(shared: &Shared, address: Address, block: &[u8], behind: &AtomicBool) {
    if let Err(error) = shared.net.publish(&address.to_string(), block.to_vec()).await {
        tracing::debug!(db.address = %address, %error, "an entry was not published; it goes out with the heads");
        behind.store(true, Ordering::Relaxed);
    }
}

/// What is known of one database while it is replicated.
struct Here<'a> {
    shared: &'a Arc<Shared>,
    address: Address,
    turns: &'a Arc<Turns>,
    /// Those that have it open.
    peers: BTreeSet<NodeId>,
    /// Exchanges of heads; dropping it ends them.
    running: JoinSet<()>,
    /// With whom this node began one.
    partners: HashMap<Id, NodeId>,
    answers: Arc<Places>,
    held: Held,
    held_since: Instant,
    /// When a peer is asked for what they follow, unless that has come by then.
    ask_at: Option<Instant>,
    behind: &'a AtomicBool,
    owed: Owed,
    ticked: Instant,
}

impl Here<'_> {
    async fn run(
        &mut self,
        orders: &mut mpsc::Receiver<Order>,
        heard: &mut mpsc::Receiver<Heard>,
        mut incoming: Incoming,
        mut subscription: Subscription,
        mut peers: watch::Receiver<Vec<NodeId>>,
        stop: &CancellationToken,
    ) -> Result<(), PartEnded> {
        peers.mark_changed();
        loop {
            let (due, ask_at) = (self.due(), self.ask_at);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = sleep_until(due) => self.on_tick().await,
                () = sleep_until(ask_at.unwrap_or(due)), if ask_at.is_some() => self.on_late().await,
                Some(ended) = self.running.join_next_with_id(), if !self.running.is_empty() => self.on_ended(ended).await,
                changed = peers.changed() => {
                    changed.map_err(|_| PartEnded::MeshEnded)?;
                    let now = peers.borrow_and_update().iter().cloned().collect();
                    self.on_peers(now).await;
                }
                Some(order) = orders.recv() => self.on_order(order, orders).await,
                stream = incoming.next() => {
                    let (peer, stream) = stream.ok_or(PartEnded::MeshEnded)?;
                    self.on_stream(peer, stream);
                }
                Some(entry) = heard.recv() => self.on_heard(entry).await,
                published = subscription.next() => self.on_published(published.ok_or(PartEnded::MeshEnded)?).await,
            }
        }
    }

    /// Returns when the next tick is due: when sync wants one, and once in a while, since a relaxed database is made safe then.
    fn due(&self) -> Instant {
        let wanted = self.shared.database(&self.address).and_then(|database| database.deadline());
        let wanted = wanted.map(|deadline| self.shared.at(deadline).max(self.ticked + TICK_MIN));
        let latest = self.ticked + TICK_MAX;
        wanted.map_or(latest, |wanted| wanted.min(latest))
    }

    async fn input(&self, input: Input) {
        self.shared.input(&self.address, input).await;
    }

    async fn on_tick(&mut self) {
        self.ticked = Instant::now();
        self.input(Input::Tick).await;
        // One that was closed and opened again knows nobody; the others know them all.
        for peer in &self.peers {
            self.input(Input::Subscribed(Peer::new(peer.as_str()))).await;
        }
        self.let_go().await;
        if self.behind.swap(false, Ordering::Relaxed) {
            self.owed.all(&self.peers);
        }
        let partners = &self.partners;
        let due = self.owed.due(&self.peers, |peer| partners.values().any(|partner| partner == peer));
        for peer in due {
            self.exchange(peer).await;
        }
    }

    async fn on_peers(&mut self, now: BTreeSet<NodeId>) {
        let before = std::mem::replace(&mut self.peers, now);
        for gone in before.difference(&self.peers) {
            self.input(Input::Unsubscribed(Peer::new(gone.as_str()))).await;
        }
        for new in self.peers.difference(&before) {
            self.input(Input::Subscribed(Peer::new(new.as_str()))).await;
        }
    }

    async fn on_order(&mut self, order: Order, orders: &mut mpsc::Receiver<Order>) {
        let mut exchanges = Vec::new();
        let mut inputs = Vec::new();
        let mut next = Some(order);
        while let Some(order) = next.take() {
            match order {
                Order::Exchange(peer) => exchanges.push(peer),
                Order::Input(input) => inputs.push(input),
            }
            if inputs.len() < INPUTS_MAX {
                next = orders.try_recv().ok();
            }
        }
        if !inputs.is_empty() {
            self.shared.inputs_aside(self.address, inputs).await;
        }
        for peer in exchanges {
            if self.is_meeting(&peer) {
                self.owed.note(Some(peer));
            } else {
                self.exchange(peer).await;
            }
        }
    }

    fn is_meeting(&self, peer: &NodeId) -> bool {
        self.partners.values().any(|partner| partner == peer)
    }

    /// Begins an exchange of heads, unless one with this peer runs.
    async fn exchange(&mut self, peer: NodeId) {
        if self.is_meeting(&peer) {
            return;
        }
        if self.partners.len() >= self.shared.config.heads_streams_max {
            self.input(Input::Exchanged(Peer::new(peer.as_str()), false)).await;
            return;
        }
        let (shared, turns, address) = (Arc::clone(self.shared), Arc::clone(self.turns), self.address);
        let partner = peer.clone();
        let task = self.running.spawn(async move { exchange::meet(&shared, address, &turns, &partner).await });
        self.partners.insert(task.id(), peer);
    }

    fn on_stream(&mut self, peer: NodeId, stream: NetStream) {
        // Dropping the stream resets it, and the peer tries again later.
        let Some(place) = self.answers.take(&peer) else { return };
        let (shared, turns, address) = (Arc::clone(self.shared), Arc::clone(self.turns), self.address);
        self.running.spawn(async move {
            let _place: Place = place;
            exchange::answer(&shared, address, &turns, &peer, stream).await;
        });
    }

    async fn on_ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let partner = self.partners.remove(&id);
        if let Err(error) = ended {
            tracing::error!(db.address = %self.address, %error, "an exchange of heads failed");
            if let Some(peer) = partner {
                self.input(Input::Exchanged(Peer::new(peer.as_str()), false)).await;
            }
        }
        self.let_go().await;
    }

    async fn on_published(&mut self, published: Published) {
        if published.lost > 0 {
            self.behind.store(true, Ordering::Relaxed);
        }
        self.on_heard(Heard { from: published.signer, block: published.data }).await;
    }

    /// Takes what a peer wrote. What follows entries that are not here waits for them: each peer sends its own, so they may be just behind it.
    /// Those that are not come in bulk, from who wrote it, or else from another peer, where nothing is coming already.
    async fn on_heard(&mut self, entry: Heard) {
        if self.take(&entry).await {
            self.take_held().await;
            return;
        }
        let source = self.peers.get(&entry.from).cloned();
        if self.held.is_empty() {
            self.held_since = Instant::now();
        }
        if !self.held.hold(source.clone(), entry) {
            // It comes with the heads of that one: nobody else is asked for what one peer sends too much of.
            self.owed.note(source);
            return;
        }
        if self.partners.is_empty() && !self.turns.is_flowing() {
            self.ask_at.get_or_insert_with(|| Instant::now() + LATE_FOR);
        }
    }

    /// Hands an entry to the database; false where that lacks what it follows.
    async fn take(&self, entry: &Heard) -> bool {
        let Some(database) = self.shared.database(&self.address) else { return true };
        let peer = Peer::new(entry.from.as_str());
        // One that is closed needs it no more, and one that failed has told so itself.
        database.take_published(self.shared.now(), &peer, &entry.block).await.unwrap_or(true)
    }

    /// Takes of what was held back all that can be. Where much of a peer was, it comes in bulk.
    async fn take_held(&mut self) {
        let mut few = self.held.take_few(TRIED_MAX);
        let mut tried = 0;
        while tried < few.len() {
            let Some(waiting) = few.pop_front() else { break };
            if self.take(&waiting.entry).await {
                tried = 0;
            } else {
                few.push_back(waiting);
                tried += 1;
            }
        }
        self.held.put_back(few);
    }

    /// Asks for what is still missing.
    async fn on_late(&mut self) {
        self.ask_at = None;
        self.take_held().await;
        let Some(writer) = self.held.first() else { return };
        if self.partners.is_empty() && !self.turns.is_flowing() {
            self.held_since = Instant::now();
            match self.peers.get(writer).or_else(|| self.peers.first()).cloned() {
                Some(source) => self.exchange(source).await,
                None => self.let_go().await,
            }
        }
    }

    /// Hands on what was held back, once nothing comes in bulk any more, or none of the peers that were asked has begun to send.
    async fn let_go(&mut self) {
        let is_asking = !self.partners.is_empty() && self.held_since.elapsed() < HELD_FOR;
        if self.held.is_empty() || self.turns.is_flowing() || is_asking || self.ask_at.is_some() {
            return;
        }
        for entry in self.held.take_all() {
            self.input(Input::Published(Peer::new(entry.from.as_str()), entry.block)).await;
        }
    }
}
