//! The handle of a running node's membership.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bombus_core::identity::NodeId;
use tokio::sync::{mpsc, oneshot, watch};

use super::clock::unix_seconds;
use super::known_peers::KnownPeers;
use super::{
    AddressOrigin, Generation, IgnoredChanges, InviteError, JoinError, Joined, KnownAddress, KnownPeer, Left,
    MembershipError, MembershipState, OwnerError, OwnerKey, Standing, Ticket,
};

/// How many commands may wait for the service; whoever sends one more waits for its turn.
pub(super) const COMMANDS_WAITING_MAX: usize = 16;

/// What the members heard of a new key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    /// The generation of the new key.
    pub generation: Generation,
    /// Members that have it, in the order of their ids.
    pub reached: Vec<NodeId>,
    /// Members known to this node that do not: they must join again with a new ticket.
    pub missed: Vec<NodeId>,
}

/// One request to the service, with the way back.
pub(super) enum Command {
    Invite(Vec<String>, oneshot::Sender<Result<Ticket, InviteError>>),
    Join(Box<Ticket>, bool, oneshot::Sender<Result<Joined, JoinError>>),
    Leave(oneshot::Sender<Result<Left, JoinError>>),
    Kick(NodeId, oneshot::Sender<Result<Handed, OwnerError>>),
    Rekey(oneshot::Sender<Result<Handed, OwnerError>>),
    ExportOwner(oneshot::Sender<Result<OwnerKey, OwnerError>>),
    ImportOwner(OwnerKey, oneshot::Sender<Result<(), OwnerError>>),
    MarkUsed(oneshot::Sender<Result<(), MembershipError>>),
    Standing(oneshot::Sender<Result<Standing, MembershipError>>),
    Ignored(oneshot::Sender<Result<IgnoredChanges, MembershipError>>),
}

/// A cheap way to a running node's membership: its state, its changes, and the peers met before.
#[derive(Clone)]
pub struct MembershipHandle {
    state: watch::Receiver<MembershipState>,
    commands: mpsc::Sender<Command>,
    known: Arc<Mutex<KnownPeers>>,
    handing_over: Arc<AtomicBool>,
}

impl MembershipHandle {
    pub(super) fn new(
        state: watch::Receiver<MembershipState>,
        commands: mpsc::Sender<Command>,
        known: Arc<Mutex<KnownPeers>>,
        handing_over: Arc<AtomicBool>,
    ) -> Self {
        Self { state, commands, known, handing_over }
    }

    /// Makes a handle without a service behind it: its state is what the sender says, and everything that would change it is refused
    /// with [`MembershipError::Stopped`].
    #[must_use]
    pub fn following(state: watch::Receiver<MembershipState>) -> Self {
        let (commands, _) = mpsc::channel(1);
        Self { state, commands, known: Arc::default(), handing_over: Arc::default() }
    }

    /// Returns the state, and tells when it changes. A change of the key is told once the members had time to hear of it.
    #[must_use]
    pub fn current(&self) -> watch::Receiver<MembershipState> {
        self.state.clone()
    }

    /// Returns the state as it is now.
    #[must_use]
    pub fn state(&self) -> MembershipState {
        self.state.borrow().clone()
    }

    /// Returns the peers that the owner took out.
    #[must_use]
    pub fn removed(&self) -> Arc<BTreeSet<NodeId>> {
        Arc::clone(&self.state.borrow().removed)
    }

    /// Says whether a new key is on its way to the members: some of them may use it already.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.handing_over.load(Ordering::Relaxed)
    }

    /// Says whether the owner took a peer out.
    #[must_use]
    pub fn is_removed(&self, peer: &NodeId) -> bool {
        self.state.borrow().removed.contains(peer)
    }

    /// Makes a ticket with some of this node's addresses (multiaddrs; the first 16 that fit). From then on the swarm counts as used.
    ///
    /// # Errors
    ///
    /// See [`InviteError`].
    pub async fn invite(&self, addresses: Vec<String>) -> Result<Ticket, InviteError> {
        self.ask(|reply| Command::Invite(addresses, reply)).await?
    }

    /// Joins the swarm of a ticket. The answer comes when the new membership is on disk; the transport follows.
    ///
    /// # Errors
    ///
    /// See [`JoinError`]; without `switch`, a node that has data of another swarm stays in it.
    pub async fn join(&self, ticket: Ticket, switch: bool) -> Result<Joined, JoinError> {
        self.ask(|reply| Command::Join(Box::new(ticket), switch, reply)).await?
    }

    /// Leaves for a fresh swarm of this node's own.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    pub async fn leave(&self) -> Result<Left, JoinError> {
        self.ask(Command::Leave).await?
    }

    /// Takes a peer out and changes the key. The answer comes when all members in reach have the key, after 10 s at the latest.
    ///
    /// # Errors
    ///
    /// See [`OwnerError`].
    pub async fn kick(&self, peer: NodeId) -> Result<Handed, OwnerError> {
        self.ask(|reply| Command::Kick(peer, reply)).await?
    }

    /// Changes the key. The answer comes when all members in reach have it, after 10 s at the latest.
    ///
    /// # Errors
    ///
    /// See [`OwnerError`].
    pub async fn rekey(&self) -> Result<Handed, OwnerError> {
        self.ask(Command::Rekey).await?
    }

    /// Returns the owner key, for a copy in a safe place.
    ///
    /// # Errors
    ///
    /// See [`OwnerError`].
    pub async fn export_owner(&self) -> Result<OwnerKey, OwnerError> {
        self.ask(Command::ExportOwner).await?
    }

    /// Takes over the owner key of this swarm.
    ///
    /// # Errors
    ///
    /// See [`OwnerError`].
    pub async fn import_owner(&self, key: OwnerKey) -> Result<(), OwnerError> {
        self.ask(|reply| Command::ImportOwner(key, reply)).await?
    }

    /// Remembers that something is kept in this swarm: from then on a join needs `switch`. When this returns, that is on disk.
    ///
    /// # Errors
    ///
    /// When it cannot be written, or the service does not run.
    pub async fn mark_used(&self) -> Result<(), MembershipError> {
        self.ask(Command::MarkUsed).await?
    }

    /// Returns what is known about this node's place in its swarm.
    ///
    /// # Errors
    ///
    /// When the service does not run.
    pub async fn standing(&self) -> Result<Standing, MembershipError> {
        self.ask(Command::Standing).await?
    }

    /// Counts the changes that peers sent and that changed nothing.
    ///
    /// # Errors
    ///
    /// When the service does not run.
    pub async fn ignored(&self) -> Result<IgnoredChanges, MembershipError> {
        self.ask(Command::Ignored).await?
    }

    /// Returns the peers met before, those seen last first.
    #[must_use]
    pub fn known_peers(&self) -> Vec<KnownPeer> {
        self.known().peers()
    }

    /// Returns addresses to try, the most promising ones first.
    #[must_use]
    pub fn known_addresses(&self) -> Vec<KnownAddress> {
        self.known().addresses()
    }

    /// Remembers an address of a peer (a multiaddr, with or without the peer's id at its end). What is no multiaddr is left out.
    pub fn learned(&self, peer: &NodeId, address: &str, origin: AddressOrigin) {
        self.known().learned(peer, address, origin, unix_seconds());
    }

    /// Remembers that there is a connection to a peer, over an address that this node dialled or over one that is not known.
    pub fn connected(&self, peer: &NodeId, address: Option<&str>) {
        self.known().connected(peer, address, unix_seconds());
    }

    /// Remembers that an address of a peer did not answer.
    pub fn failed(&self, peer: &NodeId, address: &str) {
        self.known().failed(peer, address, unix_seconds());
    }

    /// Remembers what people call a peer.
    pub fn named(&self, peer: &NodeId, name: &str) {
        self.known().named(peer, name);
    }

    fn known(&self) -> MutexGuard<'_, KnownPeers> {
        // What is remembered stays sound when a thread that changed it panicked: each change is made in one piece.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, MembershipError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| MembershipError::Stopped)?;
        answer.await.map_err(|_| MembershipError::Stopped)
    }
}

impl fmt::Debug for MembershipHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MembershipHandle").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}
