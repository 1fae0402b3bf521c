//! The view of the network: which peers there are, what each said of itself, and whether it lives.
//!
//! [`View`] is a pure reducer: it takes what was heard ([`ViewInput`]), and returns what that changed ([`Change`]). Who lives is decided by
//! three sources, in this order: a connection that stands now, the failure detector's verdict, and silence. A message that others pass on brings
//! one that is gone back only if it was written since. What a peer says of itself
//! counts only when it is signed by that peer, or came over a connection to it.
//!
//! # Bounds
//!
//! At most [`ViewLimits::peers_max`] peers. When it is full, a new peer takes the place of the one that has been gone for longest; where none is
//! gone, a connected newcomer takes the place of the unconnected peer that has been silent for longest, and any other newcomer stays out and is
//! counted. A peer that is gone is forgotten after [`ViewLimits::forget_after_ms`].

mod peer;
mod row;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bombus_core::identity::NodeId;
use bombus_core::liveness::PeerState;
use bombus_core::topics::{Capabilities, TopicMessage};

pub use self::peer::{PeerPath, PeerView, word_of};
use self::row::Row;
use crate::seal::PublicSealKey;

/// A moment on both clocks that the view needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Milliseconds of a clock that never goes back.
    pub ms: u64,
    /// Unix time in milliseconds, to be shown.
    pub unix_ms: u64,
}

/// Limits of the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewLimits {
    /// Most peers.
    pub peers_max: usize,
    /// How long a peer that is gone is still shown, in milliseconds.
    pub forget_after_ms: u64,
    /// How long a connected peer may take to tell its name before it is announced without one, in milliseconds.
    pub announce_after_ms: u64,
    /// How long a peer without connection may be suspect, where the failure detector does not know it, in milliseconds.
    pub suspect_for_ms: u64,
}

impl Default for ViewLimits {
    fn default() -> Self {
        Self { peers_max: 1_024, forget_after_ms: 600_000, announce_after_ms: 1_000, suspect_for_ms: 10_000 }
    }
}

/// How a connected peer is reached, and how long a round trip takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// The peer.
    pub peer: NodeId,
    /// How it is reached.
    pub path: PeerPath,
    /// The last measured round trip in milliseconds.
    pub latency_ms: Option<f64>,
}

/// Something that was heard.
#[derive(Debug, Clone, PartialEq)]
pub enum ViewInput {
    /// A connection that stands goes another way.
    PathChanged {
        /// The peer.
        peer: NodeId,
        /// The way.
        path: PeerPath,
    },
    /// A connection to a peer stands that did not before.
    Connected {
        /// The peer.
        peer: NodeId,
        /// The way.
        path: PeerPath,
    },
    /// No connection to a peer is left.
    Disconnected {
        /// The peer.
        peer: NodeId,
    },
    /// The links that stand now. Peers that are not among them have none.
    Links(Vec<Link>),
    /// Something came from a peer over a connection to it.
    Heard {
        /// The peer.
        peer: NodeId,
    },
    /// A peer signed a message that is no recording.
    Message {
        /// Who signed it.
        peer: NodeId,
        /// What it says.
        message: Box<TopicMessage>,
        /// How far its clock is ahead of this node's, in milliseconds, where that is more than messages may be.
        skew_ms: Option<i64>,
    },
    /// A peer said over a connection what it can do. That counts whatever its clock says.
    Hello {
        /// The peer.
        peer: NodeId,
        /// Its capabilities message.
        message: Box<TopicMessage>,
        /// How far its clock is ahead of this node's, in milliseconds, where that is more than messages may be.
        skew_ms: Option<i64>,
    },
    /// The failure detector has a verdict.
    Judged {
        /// The peer.
        peer: NodeId,
        /// The verdict.
        state: PeerState,
        /// Why.
        reason: &'static str,
    },
    /// The failure detector began anew and knows nobody.
    Unjudged,
    /// A message that says nothing of its signer was ignored since its time is too far off.
    Skewed {
        /// Who signed it.
        peer: NodeId,
        /// How far its clock is ahead of this node's, in milliseconds.
        skew_ms: i64,
    },
    /// This node is in another swarm now: nobody of the one before is a peer.
    SwarmChanged,
    /// Time has passed.
    Tick {
        /// After how much silence a peer that nothing else speaks for is gone, in milliseconds.
        silent_after_ms: u64,
    },
}

/// Something that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A peer is there.
    Joined {
        /// The peer.
        peer: NodeId,
        /// Its name, once it is known.
        name: Option<String>,
    },
    /// A peer is there no more.
    Left {
        /// The peer.
        peer: NodeId,
        /// Its name.
        name: Option<String>,
        /// Why.
        reason: &'static str,
    },
    /// A peer may be gone.
    Suspected {
        /// The peer.
        peer: NodeId,
        /// Its name.
        name: Option<String>,
        /// Why.
        reason: &'static str,
    },
    /// Something about a peer is different, other than its load.
    Updated {
        /// The peer.
        peer: NodeId,
        /// Its name.
        name: Option<String>,
        /// What is different: names of fields of [`PeerView`].
        fields: Vec<&'static str>,
    },
}

/// The view.
#[derive(Debug)]
pub struct View {
    own: NodeId,
    limits: ViewLimits,
    rows: BTreeMap<NodeId, Row>,
    revision: u64,
    refused: u64,
}

impl View {
    /// Makes an empty view of the node `own`, which never stands in it.
    #[must_use]
    pub fn new(own: NodeId, limits: ViewLimits) -> Self {
        Self { own, limits, rows: BTreeMap::new(), revision: 0, refused: 0 }
    }

    /// Takes what was heard, and returns what it changed, in order.
    pub fn on(&mut self, now: Moment, input: ViewInput) -> Vec<Change> {
        let mut changes = Vec::new();
        match input {
            ViewInput::PathChanged { peer, path } => {
                self.with(now, &peer, Entry::Known, &mut changes, |row| row.path_changed(path));
            }
            ViewInput::Connected { peer, path } => {
                self.with(now, &peer, Entry::Connected, &mut changes, |row| row.connected(now, path));
            }
            ViewInput::Disconnected { peer } => {
                self.with(now, &peer, Entry::Known, &mut changes, |row| row.disconnected(now));
            }
            ViewInput::Links(links) => self.on_links(now, links, &mut changes),
            ViewInput::Heard { peer } => {
                if let Some(row) = self.rows.get_mut(&peer) {
                    row.heard(now);
                }
            }
            ViewInput::Message { peer, message, skew_ms } => {
                self.with(now, &peer, Entry::Heard, &mut changes, |row| row.message(now, *message, skew_ms));
            }
            ViewInput::Hello { peer, message, skew_ms } => {
                self.with(now, &peer, Entry::Connected, &mut changes, |row| row.hello(now, *message, skew_ms));
            }
            ViewInput::Judged { peer, state, reason } => {
                let entry = if state == PeerState::Alive { Entry::Heard } else { Entry::Known };
                self.with(now, &peer, entry, &mut changes, |row| row.judged(now, state, reason));
            }
            ViewInput::Unjudged => self.rows.values_mut().for_each(Row::unjudged),
            ViewInput::Skewed { peer, skew_ms } => {
                self.with(now, &peer, Entry::Known, &mut changes, |row| row.skewed(skew_ms));
            }
            ViewInput::SwarmChanged => self.forget_all(&mut changes),
            ViewInput::Tick { silent_after_ms } => self.on_tick(now, silent_after_ms, &mut changes),
        }
        self.revision += u64::from(!changes.is_empty());
        changes
    }

    /// Returns all peers, ordered by id; those that are gone are among them until they are forgotten.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerView> {
        self.rows.iter().map(|(node_id, row)| row.show(node_id)).collect()
    }

    /// Returns one peer.
    #[must_use]
    pub fn peer(&self, node_id: &NodeId) -> Option<PeerView> {
        self.rows.get(node_id).map(|row| row.show(node_id))
    }

    /// Returns the key that texts for a peer are sealed to, where it has told one and signed it.
    #[must_use]
    pub fn seal_key(&self, node_id: &NodeId) -> Option<PublicSealKey> {
        self.rows.get(node_id).and_then(Row::seal_key)
    }

    /// Returns what the peers that are there said of themselves.
    pub fn told(&self) -> impl Iterator<Item = &Capabilities> {
        self.rows.values().filter(|row| row.is_present()).filter_map(Row::told)
    }

    /// Returns the peers that are there, as far as others say, and to which this node has no connection.
    pub fn unreached(&self) -> impl Iterator<Item = &NodeId> {
        self.rows.iter().filter(|(_, row)| row.is_present() && !row.is_connected()).map(|(node_id, _)| node_id)
    }

    /// Counts the nodes that are there, this one included.
    #[must_use]
    pub fn nodes(&self) -> usize {
        1 + self.rows.values().filter(|row| row.is_present()).count()
    }

    /// Returns a number that grows whenever something that is shown has changed, other than when a peer was last seen.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Counts the peers that found no place.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Lets a row take something, makes it before where it may, and tells what changed.
    fn with(
        &mut self,
        now: Moment,
        peer: &NodeId,
        entry: Entry,
        changes: &mut Vec<Change>,
        take: impl FnOnce(&mut Row) -> Shown,
    ) {
        if *peer == self.own || (!self.rows.contains_key(peer) && !self.make(now, peer, entry, changes)) {
            return;
        }
        if let Some(row) = self.rows.get_mut(peer) {
            self.revision += u64::from(take(row) == Shown::Changed);
            row.tell(now, &self.limits, peer, changes);
        }
    }

    /// Makes a row, if there may be one; says whether there is.
    fn make(&mut self, now: Moment, peer: &NodeId, entry: Entry, changes: &mut Vec<Change>) -> bool {
        if entry == Entry::Known {
            return false;
        }
        if self.rows.len() >= self.limits.peers_max {
            let Some(leaving) = self.least_needed(entry == Entry::Connected) else {
                self.refused += 1;
                return false;
            };
            if let Some(mut row) = self.rows.remove(&leaving) {
                row.gone(now, "forgotten");
                row.tell(now, &self.limits, &leaving, changes);
            }
        }
        self.rows.insert(peer.clone(), Row::new(now));
        self.revision += 1;
        true
    }

    fn least_needed(&self, newcomer_is_connected: bool) -> Option<NodeId> {
        let gone = self.rows.iter().filter(|(_, row)| !row.is_present()).min_by_key(|(_, row)| row.since_ms());
        let silent = || {
            let unconnected = self.rows.iter().filter(|(_, row)| !row.is_connected());
            unconnected.min_by_key(|(_, row)| row.heard_ms())
        };
        let leaving = gone.or_else(|| if newcomer_is_connected { silent() } else { None });
        leaving.map(|(peer, _)| peer.clone())
    }

    fn on_links(&mut self, now: Moment, links: Vec<Link>, changes: &mut Vec<Change>) {
        let linked: BTreeMap<NodeId, Link> = links.into_iter().map(|link| (link.peer.clone(), link)).collect();
        let lost: Vec<NodeId> = (self.rows.iter())
            .filter(|(peer, row)| row.is_lost(now) && !linked.contains_key(*peer))
            .map(|(peer, _)| peer.clone())
            .collect();
        for peer in lost {
            self.with(now, &peer, Entry::Known, changes, |row| row.disconnected(now));
        }
        for (peer, link) in linked {
            self.with(now, &peer, Entry::Connected, changes, |row| row.link(now, link.path, link.latency_ms));
        }
    }

    fn on_tick(&mut self, now: Moment, silent_after_ms: u64, changes: &mut Vec<Change>) {
        for (peer, row) in &mut self.rows {
            let shown = row.tick(now, silent_after_ms, self.limits.suspect_for_ms);
            self.revision += u64::from(shown == Shown::Changed);
            row.tell(now, &self.limits, peer, changes);
        }
        let before = self.rows.len();
        self.rows
            .retain(|_, row| row.is_present() || now.ms < row.since_ms().saturating_add(self.limits.forget_after_ms));
        self.revision += u64::from(self.rows.len() != before);
    }

    fn forget_all(&mut self, changes: &mut Vec<Change>) {
        for (peer, mut row) in std::mem::take(&mut self.rows) {
            row.leave("this node is in another swarm", &peer, changes);
        }
        self.revision += 1;
    }
}

/// What brings a peer into the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// A connection: it may take the place of one without.
    Connected,
    /// News of it.
    Heard,
    /// Nothing: what was heard is of interest only for a peer that stands there.
    Known,
}

/// Whether what is shown has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Changed,
    Same,
}

impl From<bool> for Shown {
    fn from(changed: bool) -> Self {
        if changed { Self::Changed } else { Self::Same }
    }
}
