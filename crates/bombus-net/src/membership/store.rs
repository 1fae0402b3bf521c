//! A node's membership: the rules, with their folder on disk.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bombus_core::identity::NodeId;
use serde::Serialize;

use super::clock::unix_seconds;
use super::folder::{self, Content, Folder, Marks};
use super::known_peers::KnownPeers;
use super::rules::Rules;
use super::{
    AddressOrigin, Applied, Generation, IgnoredChanges, InviteError, JoinError, KnownAddress, KnownPeer,
    MembershipError, MembershipState, OwnerError, OwnerKey, Privacy, SignedChange, SwarmId, SwarmKey, Ticket,
};
use crate::platform::create_private_dir;

/// Which swarm a node belongs to, as it stands on disk. Nothing is ever deleted: whoever joins or leaves keeps the old swarm's folder.
///
/// Whoever changes it has to hold the data directory alone: the running node does, and commands where none runs. Everybody may open it
/// to read.
#[derive(Debug)]
pub struct Membership {
    swarms: PathBuf,
    home: Home,
}

/// The swarm.
#[derive(Debug)]
enum Home {
    Closed(Box<Closed>),
    Open(Folder),
}

/// A swarm with a key.
#[derive(Debug)]
struct Closed {
    folder: Folder,
    content: Content,
    ignored: IgnoredChanges,
}

/// What a join did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Joined {
    /// The swarm before; the same one where the node was in it already.
    pub from: SwarmId,
    /// The swarm of the ticket.
    pub to: SwarmId,
    /// The key is another one than before.
    pub new_key: bool,
}

/// What a leave did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The swarm before. Its folder stays.
    pub from: SwarmId,
    /// The node's own swarm; the same as `from` where that one was never used.
    pub to: SwarmId,
}

/// A node's place in its swarm, for people and for the doctor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// The swarm.
    pub swarm_id: SwarmId,
    /// Whether it has a key.
    pub closed: bool,
    /// How often its key was changed, as far as this node knows.
    pub generation: Generation,
    /// Whether this machine has the owner key.
    pub owner: bool,
    /// How many peers its owner took out.
    pub removed: usize,
    /// When the node joined, in seconds since 1970; 0 where that is not known.
    pub joined_s: u64,
    /// When it was last connected to a member, in seconds since 1970; `None` for never. If it was once, and known members now answer as
    /// those of another swarm do, the key was changed while this machine was away: it needs a new ticket.
    pub last_contact_s: Option<u64>,
    /// Others know of this swarm, or may, or something is kept in it: a join needs `switch`.
    pub used: bool,
    /// The key was changed on this machine and the members were not told yet: that is done when the node runs.
    pub hand_over_due: bool,
}

impl Membership {
    /// Opens the membership of a data directory; the first time, a swarm is begun with a key and an owner key.
    ///
    /// # Errors
    ///
    /// See [`MembershipError`].
    pub fn open(dir: &Path) -> Result<Self, MembershipError> {
        let swarms = make_swarms(dir)?;
        match folder::read_current(&swarms)? {
            Some(swarm_id) => Self::read(swarms, &swarm_id, true),
            None => Self::begin(swarms),
        }
    }

    /// Opens the membership of a data directory without changing anything; `None` before its first start.
    ///
    /// # Errors
    ///
    /// See [`MembershipError`].
    pub fn existing(dir: &Path) -> Result<Option<Self>, MembershipError> {
        let swarms = dir.join("swarms");
        let Some(swarm_id) = folder::read_current(&swarms)? else { return Ok(None) };
        Self::read(swarms, &swarm_id, false).map(Some)
    }

    /// Opens what a node without a swarm key (`--open`) has: only peers met before. Its closed swarm stays as it is.
    ///
    /// # Errors
    ///
    /// See [`MembershipError`].
    pub fn open_without_key(dir: &Path) -> Result<Self, MembershipError> {
        let swarms = make_swarms(dir)?;
        let folder = Folder::of(&swarms, &SwarmId::open());
        folder.make()?;
        Ok(Self { swarms, home: Home::Open(folder) })
    }

    fn read(swarms: PathBuf, swarm_id: &SwarmId, complete: bool) -> Result<Self, MembershipError> {
        let folder = Folder::of(&swarms, swarm_id);
        let content = folder.read(complete)?;
        if content.rules.swarm_id() != swarm_id {
            let reason = format!(
                "the folder {swarm_id} holds the swarm {}: give it the name of its swarm, or write that name here",
                content.rules.swarm_id()
            );
            return Err(MembershipError::damaged(&swarms.join("current"), reason));
        }
        let home = Home::Closed(Box::new(Closed { folder, content, ignored: IgnoredChanges::default() }));
        Ok(Self { swarms, home })
    }

    fn begin(swarms: PathBuf) -> Result<Self, MembershipError> {
        let (key, owner) = (SwarmKey::generate()?, OwnerKey::generate()?);
        let rules = Rules::new(owner.id(), Generation(0), key.hash());
        let marks = Marks { joined_s: unix_seconds(), used: false, hand_over_from: None };
        let content = Content { rules, marks, key, owner: Some(owner) };
        let folder = Folder::create(&swarms, &content)?;
        folder::write_current(&swarms, content.rules.swarm_id())?;
        let home = Home::Closed(Box::new(Closed { folder, content, ignored: IgnoredChanges::default() }));
        Ok(Self { swarms, home })
    }

    /// Returns the swarm.
    #[must_use]
    pub fn swarm_id(&self) -> SwarmId {
        match &self.home {
            Home::Closed(closed) => closed.content.rules.swarm_id().clone(),
            Home::Open(_) => SwarmId::open(),
        }
    }

    /// Returns the swarm's key, or that there is none.
    #[must_use]
    pub fn privacy(&self) -> Privacy {
        match &self.home {
            Home::Closed(closed) => Privacy::Closed(closed.content.key.clone()),
            Home::Open(_) => Privacy::Open,
        }
    }

    /// Returns how often the key was changed.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.rules().map(Rules::generation).unwrap_or_default()
    }

    /// Returns the peers that the owner took out.
    #[must_use]
    pub fn removed(&self) -> Arc<BTreeSet<NodeId>> {
        self.rules().map(|rules| Arc::clone(rules.removed())).unwrap_or_default()
    }

    /// Says whether the owner took a peer out.
    #[must_use]
    pub fn is_removed(&self, peer: &NodeId) -> bool {
        self.rules().is_some_and(|rules| rules.removed().contains(peer))
    }

    /// Returns the owner key, where this machine has it.
    #[must_use]
    pub fn owner(&self) -> Option<&OwnerKey> {
        match &self.home {
            Home::Closed(closed) => closed.content.owner.as_ref(),
            Home::Open(_) => None,
        }
    }

    /// Returns what the transport stands on, with the key that counts.
    #[must_use]
    pub fn state(&self) -> MembershipState {
        MembershipState {
            swarm_id: self.swarm_id(),
            privacy: self.privacy(),
            generation: self.generation(),
            removed: self.removed(),
        }
    }

    /// Returns the node's place in its swarm.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let last_contact_s = self.read_known().last_contact_s();
        let (joined_s, used) = match &self.home {
            Home::Closed(closed) => (closed.content.marks.joined_s, closed.content.marks.used),
            Home::Open(_) => (0, false),
        };
        Standing {
            swarm_id: self.swarm_id(),
            closed: matches!(self.home, Home::Closed(_)),
            generation: self.generation(),
            owner: self.owner().is_some(),
            removed: self.removed().len(),
            joined_s,
            last_contact_s,
            used,
            hand_over_due: self.is_hand_over_due(),
        }
    }

    /// Returns the peers met before, those seen last first.
    #[must_use]
    pub fn known_peers(&self) -> Vec<KnownPeer> {
        self.read_known().peers()
    }

    /// Returns addresses to try, the most promising ones first.
    #[must_use]
    pub fn known_addresses(&self) -> Vec<KnownAddress> {
        self.read_known().addresses()
    }

    /// Returns the files that only their owner may read, those included that are not there.
    #[must_use]
    pub fn secrets(&self) -> Vec<PathBuf> {
        match &self.home {
            Home::Closed(closed) => closed.folder.secrets().into(),
            Home::Open(_) => Vec::new(),
        }
    }

    /// Makes a ticket with some of this node's addresses (multiaddrs; the first 16 that fit). From then on the swarm counts as used.
    ///
    /// # Errors
    ///
    /// See [`InviteError`].
    pub fn invite<S: AsRef<str>>(&mut self, addresses: &[S]) -> Result<Ticket, InviteError> {
        let ticket = self.ticket(addresses)?;
        self.mark_used()?;
        Ok(ticket)
    }

    fn ticket<S: AsRef<str>>(&self, addresses: &[S]) -> Result<Ticket, InviteError> {
        let Home::Closed(closed) = &self.home else { return Err(InviteError::Open) };
        let Content { rules, key, .. } = &closed.content;
        Ticket::new(key.clone(), *rules.owner(), rules.generation(), addresses)
    }

    /// Joins the swarm of a ticket. In the node's own swarm, a ticket with a newer key brings that key.
    ///
    /// # Errors
    ///
    /// See [`JoinError`]; without `switch`, a node that has data of another swarm stays in it.
    pub fn join(&mut self, ticket: &Ticket, switch: bool) -> Result<Joined, JoinError> {
        let Home::Closed(closed) = &mut self.home else { return Err(JoinError::Open) };
        let from = closed.content.rules.swarm_id().clone();
        let to = ticket.swarm_id();
        if from == to {
            let new_key = closed.renew(ticket)?;
            return Ok(Joined { from, to, new_key });
        }
        if closed.content.marks.used && !switch {
            return Err(JoinError::OtherSwarm { current: from, ticket: to });
        }
        let mut next = Closed::enter(&self.swarms, ticket)?;
        next.renew(ticket)?;
        folder::write_current(&self.swarms, &to)?;
        self.home = Home::Closed(Box::new(next));
        Ok(Joined { from, to, new_key: true })
    }

    /// Leaves for a fresh swarm of this node's own. Where its swarm was never used, there is nothing to leave.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    pub fn leave(&mut self) -> Result<Left, JoinError> {
        let Home::Closed(closed) = &self.home else { return Err(JoinError::Open) };
        let from = closed.content.rules.swarm_id().clone();
        if !closed.content.marks.used {
            return Ok(Left { to: from.clone(), from });
        }
        *self = Self::begin(self.swarms.clone())?;
        Ok(Left { from, to: self.swarm_id() })
    }

    /// Takes a peer out and changes the key, in one signed change. `own` is this node, which cannot take itself out.
    ///
    /// The members hear of it from the running node, or when the node runs next.
    ///
    /// # Errors
    ///
    /// See [`OwnerError`].
    pub fn kick(&mut self, own: &NodeId, peer: &NodeId) -> Result<SignedChange, OwnerError> {
        if own == peer {
            return Err(OwnerError::Oneself);
        }
        self.change(Some(peer))
    }

    /// Changes the key. The members hear of it from the running node, or when the node runs next.
    ///
    /// # Errors
    ///
    /// See [`OwnerError`].
    pub fn rekey(&mut self) -> Result<SignedChange, OwnerError> {
        self.change(None)
    }

    fn change(&mut self, remove: Option<&NodeId>) -> Result<SignedChange, OwnerError> {
        let Home::Closed(closed) = &mut self.home else { return Err(OwnerError::Open) };
        let owner = closed.content.owner.as_ref().ok_or(OwnerError::NotOwner)?;
        let rules = &closed.content.rules;
        if let Some(peer) = remove
            && rules.removed().contains(peer)
        {
            return Err(OwnerError::AlreadyRemoved(peer.clone()));
        }
        let key = SwarmKey::generate().map_err(MembershipError::from)?;
        let full = OwnerError::TooManyRemoved(rules.removed().len());
        let change = rules.next(owner, &key, remove).ok_or(full)?;
        let from = closed.content.marks.hand_over_from.unwrap_or(rules.generation());
        closed.folder.keep_previous_key(&closed.content.key)?;
        let marks = Marks { used: true, hand_over_from: Some(from), ..closed.content.marks };
        closed.take(&change, Some(&key), marks)?;
        Ok(change)
    }

    /// Returns the owner key for a copy in a safe place. From then on the swarm counts as used.
    ///
    /// # Errors
    ///
    /// See [`OwnerError`].
    pub fn export_owner(&mut self) -> Result<OwnerKey, OwnerError> {
        let Home::Closed(closed) = &mut self.home else { return Err(OwnerError::Open) };
        let owner = closed.content.owner.clone().ok_or(OwnerError::NotOwner)?;
        closed.mark(Marks { used: true, ..closed.content.marks })?;
        Ok(owner)
    }

    /// Takes over the owner key of this swarm.
    ///
    /// # Errors
    ///
    /// See [`OwnerError`]; the key of another swarm is refused.
    pub fn import_owner(&mut self, key: OwnerKey) -> Result<(), OwnerError> {
        let Home::Closed(closed) = &mut self.home else { return Err(OwnerError::Open) };
        let rules = &closed.content.rules;
        if key.id() != *rules.owner() {
            return Err(OwnerError::OtherOwner { found: SwarmId::of(&key.id()), current: rules.swarm_id().clone() });
        }
        closed.folder.write_owner(&key)?;
        closed.content.owner = Some(key);
        Ok(())
    }

    /// Takes a change that a peer sent, with the key that came with it. What counts is on disk when this returns.
    ///
    /// # Errors
    ///
    /// When it cannot be written; then nothing has changed.
    pub fn apply(&mut self, change: &SignedChange, key: Option<&SwarmKey>) -> Result<Applied, MembershipError> {
        match &mut self.home {
            Home::Closed(closed) => closed.take(change, key, closed.content.marks),
            Home::Open(_) => Ok(Applied::Nothing),
        }
    }

    /// Counts the changes that peers sent since this was opened and that changed nothing.
    #[must_use]
    pub fn ignored(&self) -> IgnoredChanges {
        match &self.home {
            Home::Closed(closed) => closed.ignored,
            Home::Open(_) => IgnoredChanges::default(),
        }
    }

    /// Remembers that others know of this swarm, or that something is kept in it: from then on a join needs `switch`.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn mark_used(&mut self) -> Result<(), MembershipError> {
        let Home::Closed(closed) = &mut self.home else { return Ok(()) };
        if closed.content.marks.used { Ok(()) } else { closed.mark(Marks { used: true, ..closed.content.marks }) }
    }

    /// Says whether others know of this swarm, or may, or something is kept in it.
    pub(super) fn is_used(&self) -> bool {
        match &self.home {
            Home::Closed(closed) => closed.content.marks.used,
            Home::Open(_) => true,
        }
    }

    /// Returns what the members still use where the key was changed on this machine and they were not told yet.
    pub(super) fn previous(&self) -> Result<Option<(Generation, SwarmKey)>, MembershipError> {
        let Home::Closed(closed) = &self.home else { return Ok(None) };
        let Some(from) = closed.content.marks.hand_over_from else { return Ok(None) };
        Ok(closed.folder.previous_key()?.map(|key| (from, key)))
    }

    /// Says whether the key was changed on this machine and the members were not told yet.
    pub(super) fn is_hand_over_due(&self) -> bool {
        matches!(&self.home, Home::Closed(closed) if closed.content.marks.hand_over_from.is_some())
    }

    /// Remembers that the members were told of the new key.
    pub(super) fn handed_over(&mut self) -> Result<(), MembershipError> {
        let Home::Closed(closed) = &mut self.home else { return Ok(()) };
        if closed.content.marks.hand_over_from.is_some() {
            closed.mark(Marks { hand_over_from: None, ..closed.content.marks })?;
        }
        closed.folder.drop_previous_key()
    }

    pub(super) fn rules(&self) -> Option<&Rules> {
        match &self.home {
            Home::Closed(closed) => Some(&closed.content.rules),
            Home::Open(_) => None,
        }
    }

    pub(super) fn key(&self) -> Option<&SwarmKey> {
        match &self.home {
            Home::Closed(closed) => Some(&closed.content.key),
            Home::Open(_) => None,
        }
    }

    pub(super) fn read_known(&self) -> KnownPeers {
        self.folder().read_peers()
    }

    pub(super) fn write_known(&self, known: &KnownPeers) -> Result<(), MembershipError> {
        self.folder().write_peers(known)
    }

    fn folder(&self) -> &Folder {
        match &self.home {
            Home::Closed(closed) => &closed.folder,
            Home::Open(folder) => folder,
        }
    }
}

impl Closed {
    /// Opens the folder of a ticket's swarm, making it where the node was never in that swarm.
    fn enter(swarms: &Path, ticket: &Ticket) -> Result<Self, JoinError> {
        let folder = Folder::of(swarms, &ticket.swarm_id());
        let ignored = IgnoredChanges::default();
        if folder.exists() {
            let content = folder.read(true)?;
            return Ok(Self { folder, content, ignored });
        }
        let content = Content {
            rules: Rules::new(*ticket.owner(), ticket.generation(), ticket.key().hash()),
            marks: Marks { joined_s: unix_seconds(), used: true, hand_over_from: None },
            key: ticket.key().clone(),
            owner: None,
        };
        let folder = Folder::create(swarms, &content)?;
        Ok(Self { folder, content, ignored })
    }

    /// Takes over the key and the addresses of a ticket for this swarm, and says whether the key is another one.
    fn renew(&mut self, ticket: &Ticket) -> Result<bool, JoinError> {
        let newer = self.content.rules.outranked_by(ticket.generation(), ticket.key().hash());
        match newer {
            Some(false) => return Err(JoinError::OldTicket),
            Some(true) => {
                let mut rules = self.content.rules.clone();
                rules.rebase(ticket.generation(), ticket.key().hash());
                let marks = Marks { joined_s: unix_seconds(), used: true, hand_over_from: None };
                self.folder.write_rekeyed(&rules, marks, ticket.key())?;
                self.folder.drop_previous_key()?;
                self.content.key = ticket.key().clone();
                (self.content.rules, self.content.marks) = (rules, marks);
            }
            None => self.mark(Marks { used: true, ..self.content.marks })?,
        }
        let mut known = self.folder.read_peers();
        for address in ticket.addresses() {
            known.learned_whole(&address, AddressOrigin::Ticket, unix_seconds());
        }
        self.folder.write_peers(&known)?;
        Ok(newer == Some(true))
    }

    fn take(
        &mut self,
        change: &SignedChange,
        key: Option<&SwarmKey>,
        marks: Marks,
    ) -> Result<Applied, MembershipError> {
        let mut rules = self.content.rules.clone();
        let applied = rules.apply(change, key, &mut self.ignored);
        match (applied, key) {
            (Applied::Nothing, _) => return Ok(applied),
            (Applied::NewKey, Some(key)) => {
                self.folder.write_rekeyed(&rules, marks, key)?;
                self.content.key = key.clone();
            }
            (Applied::NewKey | Applied::Removals, _) => self.folder.write_record(&rules, marks)?,
        }
        (self.content.rules, self.content.marks) = (rules, marks);
        Ok(applied)
    }

    fn mark(&mut self, marks: Marks) -> Result<(), MembershipError> {
        if marks != self.content.marks {
            self.folder.write_record(&self.content.rules, marks)?;
            self.content.marks = marks;
        }
        Ok(())
    }
}

/// Makes the folder of all swarms.
fn make_swarms(dir: &Path) -> Result<PathBuf, MembershipError> {
    let swarms = dir.join("swarms");
    create_private_dir(&swarms).map_err(MembershipError::io(&swarms, "it cannot be made"))?;
    Ok(swarms)
}

#[cfg(test)]
mod tests;
