//! The service of a running node's membership.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bombus_core::identity::NodeId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::clock::unix_seconds;
use super::exchange::{Cause, Exchange, Input, Output, Token};
use super::handle::{COMMANDS_WAITING_MAX, Command};
use super::known_peers::KnownPeers;
use super::links::{LinkEvent, Links, NetLinks, SeenAddress};
use super::rules::CHANGES_MAX;
use super::session::{Parcel, Request, Taken, push, serve};
use super::wire::ChangeHash;
use super::{
    Applied, Generation, Handed, JoinError, Joined, Left, Membership, MembershipError, MembershipHandle,
    MembershipState, OwnerError, Privacy, SignedChange, SwarmKey,
};
use crate::{NetError, NetHandle};

/// How many streams of peers are answered at once; one more is reset.
const SERVED_MAX: usize = 64;
/// How many of one peer.
const SERVED_OF_PEER_MAX: usize = 2;
/// How many requests of served streams wait for the service; a stream with one more waits.
const REQUESTS_WAITING_MAX: usize = 64;

/// How long things may take. Tests shorten them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipTiming {
    /// How long a new key may take to the members in reach. 10 s.
    pub hand_over: Duration,
    /// How long a node that starts waits for members, if its owner changed the key while it was off. 30 s.
    pub hand_over_at_start: Duration,
    /// How often the peers met are written to disk. 60 s.
    pub save_every: Duration,
}

impl Default for MembershipTiming {
    fn default() -> Self {
        Self {
            hand_over: Duration::from_secs(10),
            hand_over_at_start: Duration::from_secs(30),
            save_every: Duration::from_secs(60),
        }
    }
}

/// Owns a running node's membership: it does what its [`MembershipHandle`]s ask for, and speaks `/bombus/membership/1` with the peers.
pub struct MembershipService {
    membership: Membership,
    timing: MembershipTiming,
    state: watch::Sender<MembershipState>,
    commands: mpsc::Receiver<Command>,
    known: Arc<Mutex<KnownPeers>>,
    handing_over: Arc<AtomicBool>,
}

impl Membership {
    /// Makes the two halves of a running node's membership. The caller holds the data directory alone.
    ///
    /// Where the owner changed the key while the node was off, the state begins with the key that the members still have; they are told
    /// first.
    ///
    /// # Errors
    ///
    /// When what is needed for that cannot be read.
    pub fn serve(self, timing: MembershipTiming) -> Result<(MembershipHandle, MembershipService), MembershipError> {
        let mut begin = self.state();
        if let Some((generation, key)) = self.previous()? {
            (begin.generation, begin.privacy) = (generation, Privacy::Closed(key));
        }
        let (state, current) = watch::channel(begin);
        let (requests, commands) = mpsc::channel(COMMANDS_WAITING_MAX);
        let known = Arc::new(Mutex::new(self.read_known()));
        let handing_over = Arc::<AtomicBool>::default();
        let handle = MembershipHandle::new(current, requests, Arc::clone(&known), Arc::clone(&handing_over));
        Ok((handle, MembershipService { membership: self, timing, state, commands, known, handing_over }))
    }
}

impl MembershipService {
    /// Runs until it is told to stop, or the mesh stops.
    ///
    /// # Errors
    ///
    /// When the mesh lets it not speak its protocol, or the disk takes no more.
    pub async fn run(self, net: NetHandle, stop: CancellationToken) -> Result<(), MembershipServiceError> {
        Ok(self.run_over(NetLinks::new(net)?, stop).await?)
    }

    pub(super) async fn run_over<L: Links>(self, links: L, stop: CancellationToken) -> Result<(), MembershipError> {
        let (requests_in, requests) = mpsc::channel(REQUESTS_WAITING_MAX);
        let mut actor = Actor {
            own: links.own(),
            links,
            membership: Some(self.membership),
            timing: self.timing,
            state: self.state,
            known: self.known,
            handing_over: self.handing_over,
            exchange: Exchange::default(),
            begun: Instant::now(),
            wake_at: None,
            pushes: JoinSet::new(),
            served: JoinSet::new(),
            served_of: BTreeMap::new(),
            requests_in,
            telling: BTreeMap::new(),
            next_token: 0,
            asked: Vec::new(),
        };
        actor.run(self.commands, requests, stop).await
    }
}

/// Says why the membership's service ended.
#[derive(Debug, thiserror::Error)]
pub enum MembershipServiceError {
    /// The mesh does not take its protocol.
    #[error("the mesh does not let the membership speak: {0}")]
    Net(#[from] NetError),
    /// The disk takes no more.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// Who asked for a new key to be handed over, and waits to hear whom it reached.
struct Asked {
    generation: Generation,
    reply: oneshot::Sender<Result<Handed, OwnerError>>,
}

/// The service while it runs.
struct Actor<L: Links> {
    own: NodeId,
    links: L,
    /// Lent out to another thread while it writes to disk.
    membership: Option<Membership>,
    timing: MembershipTiming,
    state: watch::Sender<MembershipState>,
    known: Arc<Mutex<KnownPeers>>,
    /// For the handles: whether a new key is on its way to the members.
    handing_over: Arc<AtomicBool>,
    exchange: Exchange,
    begun: Instant,
    wake_at: Option<Instant>,
    pushes: JoinSet<(NodeId, io::Result<Vec<NodeId>>)>,
    served: JoinSet<(NodeId, io::Result<()>)>,
    served_of: BTreeMap<NodeId, usize>,
    requests_in: mpsc::Sender<Request>,
    telling: BTreeMap<Token, oneshot::Sender<Vec<NodeId>>>,
    next_token: Token,
    asked: Vec<Asked>,
}

impl<L: Links> Actor<L> {
    async fn run(
        &mut self,
        mut commands: mpsc::Receiver<Command>,
        mut requests: mpsc::Receiver<Request>,
        stop: CancellationToken,
    ) -> Result<(), MembershipError> {
        let mut save = interval(self.timing.save_every);
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.begin().await?;
        loop {
            let wake_at = self.wake_at;
            let wake = async move {
                match wake_at {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(command) = commands.recv() => self.on_command(command).await?,
                Some(request) = requests.recv() => self.on_request(request).await?,
                Some(pushed) = self.pushes.join_next() => self.on_pushed(pushed).await?,
                Some(served) = self.served.join_next() => self.on_served(served),
                event = self.links.next() => match event {
                    Some(event) => self.on_link(event).await?,
                    None => break,
                },
                () = wake => self.on_wake().await?,
                _ = save.tick() => self.save().await?,
            }
        }
        self.save().await
    }

    /// Goes on with what the owner changed while the node was off.
    async fn begin(&mut self) -> Result<(), MembershipError> {
        let state = self.membership()?.state();
        if *self.state.borrow() == state {
            return Ok(());
        }
        tracing::info!(generation = %state.generation, "the swarm's key was changed while this node was off; the members are told first");
        // What is in memory has who came since the start, too.
        let members = ids(&self.membership()?.read_known());
        let cause = Cause::OwnerBefore { limit: self.timing.hand_over_at_start };
        self.input(Input::Changed { cause, new_key: true, removed: state.removed, members }).await
    }

    async fn on_command(&mut self, command: Command) -> Result<(), MembershipError> {
        // Whoever asked may have gone away: then nobody needs the answer.
        match command {
            Command::Invite(addresses, reply) => {
                drop(reply.send(self.with(move |membership| membership.invite(&addresses)).await?));
            }
            Command::Join(ticket, switch, reply) => {
                self.save().await?;
                let joined = self.with(move |membership| membership.join(&ticket, switch)).await?;
                self.on_joined(&joined).await?;
                drop(reply.send(joined));
            }
            Command::Leave(reply) => {
                self.save().await?;
                let left = self.with(Membership::leave).await?;
                self.on_left(&left).await?;
                drop(reply.send(left));
            }
            Command::Kick(peer, reply) => {
                let (own, members) = (self.own.clone(), ids(&self.known()));
                let changed = self.with(move |membership| membership.kick(&own, &peer)).await?;
                self.on_owner_changed(changed, members, reply).await?;
            }
            Command::Rekey(reply) => {
                let members = ids(&self.known());
                let changed = self.with(Membership::rekey).await?;
                self.on_owner_changed(changed, members, reply).await?;
            }
            Command::ExportOwner(reply) => drop(reply.send(self.with(Membership::export_owner).await?)),
            Command::ImportOwner(key, reply) => {
                drop(reply.send(self.with(move |membership| membership.import_owner(key)).await?));
            }
            Command::MarkUsed(reply) => drop(reply.send(self.with(Membership::mark_used).await?)),
            Command::Standing(reply) => {
                self.save().await?;
                drop(reply.send(Ok(self.membership()?.standing())));
            }
            Command::Ignored(reply) => drop(reply.send(Ok(self.membership()?.ignored()))),
        }
        Ok(())
    }

    async fn on_joined(&mut self, joined: &Result<Joined, JoinError>) -> Result<(), MembershipError> {
        if joined.is_ok() { self.enter_swarm().await } else { Ok(()) }
    }

    async fn on_left(&mut self, left: &Result<Left, JoinError>) -> Result<(), MembershipError> {
        match left {
            Ok(left) if left.from != left.to => self.enter_swarm().await,
            _ => Ok(()),
        }
    }

    /// Goes over to what is on disk at once.
    async fn enter_swarm(&mut self) -> Result<(), MembershipError> {
        let state = self.membership()?.state();
        let reached = self.exchange.abandon(Arc::clone(&state.removed));
        self.show_hand_over();
        let missed = self.missed(&reached);
        self.answer_asked(&reached, &missed);
        *self.known() = self.membership()?.read_known();
        self.with(Membership::handed_over).await??;
        tracing::info!(swarm.id = %state.swarm_id, generation = %state.generation, "in another swarm, or with another key");
        self.state.send_replace(state);
        Ok(())
    }

    /// Tells the members, as they were known before, what the owner changed.
    async fn on_owner_changed(
        &mut self,
        changed: Result<SignedChange, OwnerError>,
        members: BTreeSet<NodeId>,
        reply: oneshot::Sender<Result<Handed, OwnerError>>,
    ) -> Result<(), MembershipError> {
        let change = match changed {
            Ok(change) => change,
            Err(error) => {
                drop(reply.send(Err(error)));
                return Ok(());
            }
        };
        self.asked.push(Asked { generation: change.generation(), reply });
        self.put_out_removed()?;
        let cause = Cause::Owner { limit: self.timing.hand_over };
        let removed = self.membership()?.removed();
        self.input(Input::Changed { cause, new_key: true, removed, members }).await
    }

    async fn on_request(&mut self, request: Request) -> Result<(), MembershipError> {
        match request {
            Request::Offer { from, swarm_id, changes, reply } => {
                let wanted = if self.is_removed(&from)? { Vec::new() } else { self.lacking(&swarm_id, changes)? };
                drop(reply.send(wanted));
            }
            Request::Change { from, change, key, within, reply } => {
                let taken = self.take(from, change, key, within).await?;
                drop(reply.send(taken));
            }
            Request::Told { token } => self.input(Input::Told { token }).await?,
        }
        Ok(())
    }

    /// Returns which of the changes that a peer offers are not known here.
    fn lacking(&self, swarm_id: &str, mut changes: Vec<ChangeHash>) -> Result<Vec<ChangeHash>, MembershipError> {
        let Some(rules) = self.membership()?.rules() else { return Ok(Vec::new()) };
        if rules.swarm_id().as_str() != swarm_id {
            tracing::debug!(offered = swarm_id, "a peer offers changes of another swarm");
            return Ok(Vec::new());
        }
        changes.truncate(CHANGES_MAX);
        changes.retain(|hash| !rules.has(hash));
        Ok(changes)
    }

    async fn take(
        &mut self,
        from: NodeId,
        change: Box<SignedChange>,
        key: Option<SwarmKey>,
        within: Duration,
    ) -> Result<Taken, MembershipError> {
        if self.is_removed(&from)? {
            return Ok(Taken { stored: false, passed: None });
        }
        let members = ids(&self.known());
        let before = self.membership()?.ignored();
        let generation = change.generation();
        let applied = self.with(move |membership| membership.apply(&change, key.as_ref())).await??;
        let after = self.membership()?.ignored();
        if applied == Applied::Nothing {
            let harmless = after.known + after.older > before.known + before.older;
            if !harmless {
                tracing::warn!(peer.id = %from, ?after, "a change of the swarm that a peer sent counts for nothing");
            }
            return Ok(Taken { stored: harmless, passed: None });
        }
        tracing::info!(peer.id = %from, %generation, ?applied, "the swarm's owner changed it");
        self.put_out_removed()?;
        let new_key = applied == Applied::NewKey;
        self.next_token += 1;
        let token = self.next_token;
        let passed = new_key.then(|| {
            let (tell, told) = oneshot::channel();
            self.telling.insert(token, tell);
            (token, told)
        });
        let removed = self.membership()?.removed();
        self.input(Input::Changed { cause: Cause::Peer { from, token, within }, new_key, removed, members }).await?;
        Ok(Taken { stored: true, passed })
    }

    async fn on_pushed(
        &mut self,
        pushed: Result<(NodeId, io::Result<Vec<NodeId>>), tokio::task::JoinError>,
    ) -> Result<(), MembershipError> {
        // A push that panicked has no name, so its peer counts as missed when the time is over.
        let (peer, pushed) = match pushed {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "an exchange with a peer failed");
                return Ok(());
            }
        };
        let heard = pushed.inspect_err(|error| tracing::debug!(peer.id = %peer, %error, "a peer was not told")).ok();
        self.input(Input::Pushed { peer, heard }).await
    }

    fn on_served(&mut self, served: Result<(NodeId, io::Result<()>), tokio::task::JoinError>) {
        match served {
            Ok((peer, result)) => {
                if let Some(count) = self.served_of.get_mut(&peer) {
                    *count -= 1;
                    if *count == 0 {
                        self.served_of.remove(&peer);
                    }
                }
                if let Err(error) = result {
                    tracing::debug!(peer.id = %peer, %error, "a peer's stream about the membership ended early");
                }
            }
            Err(error) => tracing::error!(%error, "an exchange with a peer failed"),
        }
    }

    async fn on_link(&mut self, event: LinkEvent<L::Stream>) -> Result<(), MembershipError> {
        match event {
            LinkEvent::Connected(peer) => self.on_connected(peer).await,
            LinkEvent::Disconnected(peer) => self.input(Input::Disconnected(peer)).await,
            LinkEvent::NoneConnected => self.on_none_connected().await,
            LinkEvent::Incoming(peer, stream) => {
                self.answer(peer, stream);
                Ok(())
            }
        }
    }

    async fn on_connected(&mut self, peer: NodeId) -> Result<(), MembershipError> {
        {
            let mut known = self.known();
            known.connected(&peer, None, unix_seconds());
            known.has_key(&peer);
        }
        if !self.membership()?.is_used() {
            self.with(Membership::mark_used).await??;
        }
        if !self.exchange.may_be_told(&peer) {
            tracing::info!(peer.id = %peer, "a peer that was not known before the key was changed is not told the new one");
        }
        self.input(Input::Connected(peer)).await
    }

    async fn on_none_connected(&mut self) -> Result<(), MembershipError> {
        for peer in self.exchange.connected().clone() {
            self.input(Input::Disconnected(peer)).await?;
        }
        Ok(())
    }

    fn answer(&mut self, peer: NodeId, stream: L::Stream) {
        let of_peer = self.served_of.entry(peer.clone()).or_default();
        if self.served.len() >= SERVED_MAX || *of_peer >= SERVED_OF_PEER_MAX {
            tracing::debug!(peer.id = %peer, "a peer's stream about the membership is one too many");
            return;
        }
        *of_peer += 1;
        let service = self.requests_in.clone();
        self.served.spawn(async move {
            let served = serve(peer.clone(), stream, service).await;
            (peer, served)
        });
    }

    async fn on_wake(&mut self) -> Result<(), MembershipError> {
        self.wake_at = None;
        self.input(Input::Tick).await
    }

    async fn input(&mut self, input: Input) -> Result<(), MembershipError> {
        for output in self.exchange.on(self.begun.elapsed(), input) {
            match output {
                Output::Push { peer, within } => self.push(peer, within)?,
                Output::Tell { token, reached } => {
                    if let Some(tell) = self.telling.remove(&token) {
                        // A stream that is gone hears nothing; nobody waits for it for long.
                        let _ = tell.send(reached);
                    }
                }
                Output::GoOver { reached } => self.go_over(&reached).await?,
                Output::WakeAt(at) => self.wake_at = Some(self.begun + at),
            }
        }
        self.show_hand_over();
        Ok(())
    }

    fn show_hand_over(&self) {
        self.handing_over.store(self.exchange.is_handing_over(), Ordering::Relaxed);
    }

    fn push(&mut self, peer: NodeId, within: Duration) -> Result<(), MembershipError> {
        let membership = self.membership()?;
        let parcel = membership.rules().zip(membership.key()).map(|(rules, key)| Parcel {
            swarm_id: rules.swarm_id().clone(),
            changes: rules.changes().cloned().collect(),
            key: key.clone(),
        });
        let opening = self.links.open(peer.clone());
        self.pushes.spawn(async move {
            let pushed = async {
                // A swarm without a key has nothing to exchange, nor has one that nobody changed.
                let Some(parcel) = parcel.filter(|parcel| !parcel.changes.is_empty()) else { return Ok(Vec::new()) };
                let began = Instant::now();
                let stream = tokio::time::timeout(within, opening).await??;
                push(stream, Arc::new(parcel), within.saturating_sub(began.elapsed())).await
            };
            let pushed = pushed.await;
            (peer, pushed)
        });
        Ok(())
    }

    /// Lets the transport know who has to go, before it hears of the new key.
    fn put_out_removed(&mut self) -> Result<(), MembershipError> {
        let removed = self.membership()?.removed();
        {
            let mut known = self.known();
            removed.iter().for_each(|peer| known.forget(peer));
        }
        self.state.send_if_modified(|state| {
            let is_new = state.removed != removed;
            state.removed = removed;
            is_new
        });
        Ok(())
    }

    async fn go_over(&mut self, reached: &BTreeSet<NodeId>) -> Result<(), MembershipError> {
        let missed = self.missed(reached);
        if self.membership()?.is_hand_over_due() {
            self.remember_missed(&missed).await?;
        }
        self.with(Membership::handed_over).await??;
        self.answer_asked(reached, &missed);
        let state = self.membership()?.state();
        tracing::info!(generation = %state.generation, "over to the swarm's new key");
        self.state.send_replace(state);
        Ok(())
    }

    /// Returns the members that a new key did not reach.
    fn missed(&self, reached: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let removed = Arc::clone(&self.state.borrow().removed);
        let mut members = ids(&self.known());
        members.extend(self.exchange.connected().iter().cloned());
        members.retain(|peer| !removed.contains(peer) && !reached.contains(peer) && *peer != self.own);
        members
    }

    /// Names those who have to join again, and keeps who they are. This comes before the end of the hand-over is on disk: one that breaks off
    /// is begun anew at the next start, and names them then.
    async fn remember_missed(&mut self, missed: &BTreeSet<NodeId>) -> Result<(), MembershipError> {
        self.known().missed_key(missed);
        if !missed.is_empty() {
            let known = self.known().peers();
            let name = |id: &NodeId| known.iter().find(|peer| peer.node_id == *id)?.name.clone();
            let members: Vec<_> = missed.iter().map(|id| name(id).unwrap_or_else(|| id.to_string())).collect();
            tracing::warn!(
                members = members.join(", "),
                "nothing says that the swarm's new key reached these members; who does not come back has to join again, with a new ticket (bombus invite)"
            );
        }
        self.save().await
    }

    fn answer_asked(&mut self, reached: &BTreeSet<NodeId>, missed: &BTreeSet<NodeId>) {
        let reached: Vec<_> = reached.iter().filter(|peer| **peer != self.own).cloned().collect();
        let missed: Vec<_> = missed.iter().cloned().collect();
        for Asked { generation, reply } in self.asked.drain(..) {
            let handed = Handed { generation, reached: reached.clone(), missed: missed.clone() };
            drop(reply.send(Ok(handed)));
        }
    }

    /// Writes the peers met to disk where something changed. What cannot be written is tried again later. Who came since a key was changed is
    /// not written before that is with the members: a hand-over that breaks off is begun anew, for those that are on disk.
    async fn save(&mut self) -> Result<(), MembershipError> {
        let seen = self.links.seen();
        let removed = self.membership()?.removed();
        let changed = {
            let mut known = self.known();
            for peer in self.exchange.connected().difference(&removed) {
                known.connected(peer, None, unix_seconds());
            }
            for SeenAddress { peer, addr, last_ok_s } in seen.into_iter().filter(|seen| !removed.contains(&seen.peer)) {
                known.seen(&peer, &addr, last_ok_s, unix_seconds());
            }
            known.decay(unix_seconds());
            known.take_changed().then(|| {
                let mut written = known.clone();
                if let Some(members) = self.exchange.members() {
                    written.keep_only(members);
                }
                written
            })
        };
        if let Some(known) = changed
            && let Err(error) = self.with(move |membership| membership.write_known(&known)).await?
        {
            tracing::warn!(%error, "the peers met cannot be written to disk");
        }
        Ok(())
    }

    fn is_removed(&self, peer: &NodeId) -> Result<bool, MembershipError> {
        Ok(self.membership()?.is_removed(peer))
    }

    fn known(&self) -> MutexGuard<'_, KnownPeers> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn membership(&self) -> Result<&Membership, MembershipError> {
        self.membership.as_ref().ok_or(MembershipError::Stopped)
    }

    /// Changes the membership on a thread that may wait for the disk.
    async fn with<T: Send + 'static>(
        &mut self,
        change: impl FnOnce(&mut Membership) -> T + Send + 'static,
    ) -> Result<T, MembershipError> {
        let mut membership = self.membership.take().ok_or(MembershipError::Stopped)?;
        let changed = spawn_blocking(move || {
            let result = change(&mut membership);
            (membership, result)
        });
        // Only where the change panicked is there no result; then the membership is gone, and the service ends.
        let (membership, result) = changed.await.map_err(|_| MembershipError::Stopped)?;
        self.membership = Some(membership);
        Ok(result)
    }
}

fn ids(known: &KnownPeers) -> BTreeSet<NodeId> {
    known.peers().into_iter().map(|peer| peer.node_id).collect()
}

#[cfg(test)]
mod hub;
#[cfg(test)]
mod sockets;
#[cfg(test)]
mod tests;
