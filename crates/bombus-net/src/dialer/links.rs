//! The connections to one peer, and which of them is the best.

use std::time::{Duration, Instant};

use libp2p::swarm::ConnectionId;

use crate::peer::Path;

/// Connections that came within so much time of each other were dialled at the same time.
const SIMULTANEOUS: Duration = Duration::from_secs(2);
/// A round trip counts as much shorter when it is by at least this much, and less than two thirds.
const SHORTER_BY: Duration = Duration::from_millis(2);

/// One connection.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) connection: ConnectionId,
    pub(crate) path: Path,
    pub(crate) dialled_by_smaller: bool,
    pub(crate) since: Instant,
    pub(crate) round_trip: Option<Duration>,
}

impl Link {
    fn is_relayed(&self) -> bool {
        matches!(self.path, Path::Relayed { .. })
    }

    fn beats(&self, other: &Self) -> bool {
        if self.is_relayed() != other.is_relayed() {
            return other.is_relayed();
        }
        if let (Some(own), Some(others)) = (self.round_trip, other.round_trip) {
            if is_much_shorter(own, others) {
                return true;
            }
            if is_much_shorter(others, own) {
                return false;
            }
        }
        let apart = self.since.max(other.since) - self.since.min(other.since);
        if apart < SIMULTANEOUS && self.dialled_by_smaller != other.dialled_by_smaller {
            return self.dialled_by_smaller;
        }
        // What runs on the older one goes on.
        self.since < other.since
    }
}

fn is_much_shorter(one: Duration, other: Duration) -> bool {
    one + SHORTER_BY <= other && one * 3 < other * 2
}

/// All connections to one peer.
#[derive(Debug, Default)]
pub(crate) struct Links {
    all: Vec<Link>,
    chosen: Option<ConnectionId>,
    kept: Vec<(ConnectionId, bool)>,
    redundant_since: Option<Instant>,
}

impl Links {
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns the connection in use.
    pub(crate) fn best(&self) -> Option<&Link> {
        let chosen = self.all.iter().find(|link| Some(link.connection) == self.chosen);
        chosen.or_else(|| self.all.first())
    }

    /// Says whether one of them goes such a way.
    pub(crate) fn any(&self, way: impl Fn(&Path) -> bool) -> bool {
        self.all.iter().any(|link| way(&link.path))
    }

    /// Returns all of them.
    pub(super) fn connections(&self) -> impl Iterator<Item = ConnectionId> {
        self.all.iter().map(|link| link.connection)
    }

    /// Returns how long there has been a connection.
    pub(super) fn since(&self) -> Option<Instant> {
        self.all.iter().map(|link| link.since).min()
    }

    pub(super) fn add(&mut self, link: Link) {
        if self.all.is_empty() {
            self.chosen = Some(link.connection);
        } else if self.all.len() == 1 {
            self.redundant_since = Some(link.since);
        }
        self.all.push(link);
    }

    pub(super) fn remove(&mut self, connection: ConnectionId) -> bool {
        let before = self.all.len();
        self.all.retain(|link| link.connection != connection);
        self.kept.retain(|(kept, _)| *kept != connection);
        if self.all.len() < 2 {
            self.redundant_since = None;
        }
        self.all.len() < before
    }

    pub(super) fn measured(&mut self, connection: ConnectionId, time: Duration) {
        if let Some(link) = self.all.iter_mut().find(|link| link.connection == connection) {
            link.round_trip = Some(time);
        }
    }

    /// Chooses the best connection; returns it if that changed, and whether the way did.
    pub(super) fn choose(&mut self) -> Option<(ConnectionId, Path, bool)> {
        let before = self.all.iter().find(|link| Some(link.connection) == self.chosen).map(|link| link.path.clone());
        let best = self.all.iter().reduce(|best, link| if link.beats(best) { link } else { best })?;
        if self.chosen == Some(best.connection) {
            return None;
        }
        let (connection, path) = (best.connection, best.path.clone());
        self.chosen = Some(connection);
        let changed = before.as_ref() != Some(&path);
        Some((connection, path, changed))
    }

    /// Returns the connections beside the best one, once there has been time to move away from them.
    pub(super) fn redundant(&self, now: Instant, grace: Duration) -> impl Iterator<Item = &Link> {
        let is_over = self.redundant_for(now) >= grace;
        let newest = self.all.iter().map(|link| link.since).max();
        let has_settled = newest.is_some_and(|newest| now.duration_since(newest) >= grace);
        self.all.iter().filter(move |link| is_over && has_settled && Some(link.connection) != self.chosen)
    }

    /// Returns for how long there has been more than one connection.
    pub(super) fn redundant_for(&self, now: Instant) -> Duration {
        self.redundant_since.map(|since| now.duration_since(since)).unwrap_or_default()
    }

    /// Says for each connection whether it is kept, where that changed.
    pub(super) fn keep(&mut self, keep: bool) -> Vec<(ConnectionId, bool)> {
        let mut changed = Vec::new();
        for link in &self.all {
            match self.kept.iter_mut().find(|(connection, _)| *connection == link.connection) {
                Some((_, kept)) if *kept == keep => continue,
                Some((_, kept)) => *kept = keep,
                // Connections begin as kept.
                None => {
                    self.kept.push((link.connection, keep));
                    if keep {
                        continue;
                    }
                }
            }
            changed.push((link.connection, keep));
        }
        changed
    }
}
