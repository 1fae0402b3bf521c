//! What a detector knows about one node.

use super::PeerState;
use super::wire::{Key, Record, Standing};
use crate::identity::{BootId, NodeId};

/// How this node reaches another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// By a connection.
    Connected,
    /// The connection was lost, and whether others reach it is not known.
    Lost,
    /// The connection was lost, and others reach it.
    Unreachable,
    /// Not; others told of it, or the connection was closed on purpose.
    Elsewhere,
}

/// A question whether a node is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Check {
    /// When to ask once more.
    pub(super) repeat_ms: Option<u64>,
    /// When silence makes the node suspect.
    pub(super) deadline_ms: u64,
    /// Whether others are asked too.
    pub(super) ask_others: bool,
}

/// The exchange of whole tables with a peer that counts other members than this node.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mismatch {
    /// Since when the digests differ.
    pub(super) since_ms: Option<u64>,
    /// How often the table has been sent since.
    pub(super) sent: u32,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: NodeId,
    /// Of the run that its standing is about; `None` until it spoke.
    pub(super) boot: Option<BootId>,
    pub(super) incarnation: u32,
    pub(super) standing: Standing,
    /// Since when it stands so.
    pub(super) since_ms: u64,
    /// When it is gone, while it is suspect.
    pub(super) gone_at_ms: u64,
    /// Why it stands as it does.
    pub(super) reason: &'static str,
    pub(super) path: Path,
    /// When it was last heard.
    pub(super) heard_ms: Option<u64>,
    /// Since when it is expected to be heard regularly.
    pub(super) expected_ms: u64,
    /// Whether it counts on this node to notice its silence.
    pub(super) expects: bool,
    pub(super) check: Option<Check>,
    /// When it was last pinged.
    pub(super) pinged_ms: Option<u64>,
    /// When it last pinged this node.
    pub(super) pings_ms: Option<u64>,
    /// When it was last told what is said about it.
    pub(super) told_ms: Option<u64>,
    /// When others last vouched for it.
    pub(super) vouched_ms: Option<u64>,
    /// The run that speaks on its connection.
    pub(super) spoken: Option<BootId>,
    /// The run that spoke before, and when it was replaced.
    pub(super) retired: Option<(BootId, u64)>,
    /// When two runs were last reported.
    pub(super) conflict_ms: Option<u64>,
    pub(super) mismatch: Mismatch,
    /// What was last told about it.
    pub(super) reported: Option<(PeerState, &'static str)>,
}

impl Member {
    pub(super) fn new(id: NodeId, path: Path, now_ms: u64) -> Self {
        Self {
            id,
            boot: None,
            incarnation: 0,
            standing: Standing::Alive,
            since_ms: now_ms,
            gone_at_ms: u64::MAX,
            reason: "",
            path,
            heard_ms: None,
            expected_ms: now_ms,
            expects: false,
            check: None,
            pinged_ms: None,
            pings_ms: None,
            told_ms: None,
            vouched_ms: None,
            spoken: None,
            retired: None,
            conflict_ms: None,
            mismatch: Mismatch::default(),
            reported: None,
        }
    }

    pub(super) fn record(&self, key: Key) -> Option<Record> {
        self.boot.map(|boot| Record { key, boot, incarnation: self.incarnation, standing: self.standing })
    }

    pub(super) fn stand(&mut self, standing: Standing, reason: &'static str, now_ms: u64) {
        self.standing = standing;
        self.reason = reason;
        self.since_ms = now_ms;
        self.gone_at_ms = u64::MAX;
    }

    pub(super) fn is_connected(&self) -> bool {
        self.path == Path::Connected
    }

    /// Returns whether it is there as far as anybody knows.
    pub(super) fn is_active(&self) -> bool {
        self.standing <= Standing::Suspect
    }

    /// Returns whether it is connected and under no suspicion.
    pub(super) fn is_good(&self) -> bool {
        self.is_connected() && self.standing == Standing::Alive
    }

    /// Returns since when it has been silent.
    pub(super) fn silent_since_ms(&self) -> u64 {
        self.heard_ms.unwrap_or(0).max(self.expected_ms)
    }

    pub(super) fn heard_within(&self, limit_ms: u64, now_ms: u64) -> bool {
        self.is_connected() && self.heard_ms.is_some_and(|heard_ms| now_ms.saturating_sub(heard_ms) < limit_ms)
    }

    /// Returns whether it has to be told what is said about it, since that is wrong.
    pub(super) fn must_hear(&self) -> bool {
        let restarted = self.spoken.is_some() && self.spoken != self.boot;
        match self.standing {
            Standing::Alive | Standing::Left => restarted,
            Standing::Suspect | Standing::Gone => true,
        }
    }

    /// Returns its state and the reason, for people.
    pub(super) fn state(&self) -> (PeerState, &'static str) {
        match (self.standing, self.path) {
            (Standing::Alive, Path::Connected) => (PeerState::Alive, "it is connected"),
            (Standing::Alive, Path::Lost) => (PeerState::Suspect, "its connection was lost"),
            (Standing::Alive, Path::Unreachable) => {
                (PeerState::Alive, "it is unreachable from here, but others reach it")
            }
            (Standing::Alive, Path::Elsewhere) => (PeerState::Alive, "others reach it"),
            (Standing::Suspect, _) => (PeerState::Suspect, self.reason),
            (Standing::Gone | Standing::Left, _) => (PeerState::Gone, self.reason),
        }
    }
}
