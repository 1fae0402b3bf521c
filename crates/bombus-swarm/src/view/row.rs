//! What the view keeps of one peer.

use bombus_core::identity::{BootId, NodeId};
use bombus_core::liveness::PeerState;
use bombus_core::topics::{Capabilities, TopicMessage};

use super::{Change, Moment, PeerPath, PeerView, Shown, ViewLimits};
use crate::seal::PublicSealKey;

/// Lists of links are some tenths of a second old: for so long after a connection began or ended, what they say about it does not count.
const LINKS_MAY_BE_OLD_MS: u64 = 1_000;
/// A message whose sender's clock is at most so far behind that of the message before it is taken for a late one, in milliseconds; one further
/// behind, for news from a clock that was set back.
const LATE_MS: i64 = 60_000;
/// How long a peer that others speak of may take to tell its name before it is announced without one, in milliseconds.
const ANNOUNCE_UNCONNECTED_AFTER_MS: u64 = 60_000;

#[derive(Debug)]
pub(super) struct Row {
    state: PeerState,
    reason: &'static str,
    since: Moment,
    first_ms: u64,
    /// The failure detector's verdict, where it has one since the connection began.
    judged: Option<PeerState>,
    path: Option<PeerPath>,
    /// When a connection last began or ended.
    path_changed_ms: Option<u64>,
    latency_ms: Option<f64>,
    heard: Moment,
    /// The shortest time from when a message was written, by the peer's clock, until it came, by this node's: by it the age of others is known.
    lag_ms: Option<i64>,
    name: Option<String>,
    version: Option<String>,
    boot: Option<BootId>,
    told: Option<Box<Capabilities>>,
    /// The key that texts for the peer are sealed to, once the peer's signature of it was found good.
    seal_key: Option<PublicSealKey>,
    skew_ms: Option<i64>,
    /// What was last told in changes; nothing as long as the peer is not announced.
    face: Option<Face>,
}

/// What changes are told of.
#[derive(Debug, Clone, PartialEq)]
struct Face {
    state: PeerState,
    boot: Option<BootId>,
    name: Option<String>,
    fields: [(&'static str, Field); 7],
}

#[derive(Debug, Clone, PartialEq)]
enum Field {
    Text(Option<String>),
    Texts(Vec<String>),
    Number(Option<i64>),
}

impl Row {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            state: PeerState::Alive,
            reason: "heard of",
            since: now,
            first_ms: now.ms,
            judged: None,
            path: None,
            path_changed_ms: None,
            latency_ms: None,
            heard: now,
            lag_ms: None,
            name: None,
            version: None,
            boot: None,
            told: None,
            seal_key: None,
            skew_ms: None,
            face: None,
        }
    }

    pub(super) fn is_present(&self) -> bool {
        self.state != PeerState::Gone
    }

    pub(super) fn is_connected(&self) -> bool {
        self.path.is_some()
    }

    pub(super) fn since_ms(&self) -> u64 {
        self.since.ms
    }

    pub(super) fn heard_ms(&self) -> u64 {
        self.heard.ms
    }

    pub(super) fn told(&self) -> Option<&Capabilities> {
        self.told.as_deref()
    }

    pub(super) fn seal_key(&self) -> Option<PublicSealKey> {
        self.seal_key
    }

    pub(super) fn heard(&mut self, now: Moment) {
        self.heard = now;
    }

    pub(super) fn connected(&mut self, now: Moment, path: PeerPath) -> Shown {
        let before = self.path.replace(path);
        if before.is_none() {
            self.path_changed_ms = Some(now.ms);
            self.judged = None;
        }
        self.heard(now);
        let entered = self.enter(now, PeerState::Alive, "connected");
        Shown::from(before != self.path || entered)
    }

    /// Takes note that a connection that stands goes another way: no sign of life, since the other end need not have done anything.
    pub(super) fn path_changed(&mut self, path: PeerPath) -> Shown {
        match &mut self.path {
            Some(known) if *known != path => *known = path,
            _ => return Shown::Same,
        }
        Shown::Changed
    }

    pub(super) fn disconnected(&mut self, now: Moment) -> Shown {
        if self.path.take().is_none() {
            return Shown::Same;
        }
        self.path_changed_ms = Some(now.ms);
        self.latency_ms = None;
        if self.state == PeerState::Alive && self.judged.is_none() {
            self.enter(now, PeerState::Suspect, "disconnected");
        }
        Shown::Changed
    }

    /// Takes a link out of a list of those that stand.
    pub(super) fn link(&mut self, now: Moment, path: PeerPath, latency_ms: Option<f64>) -> Shown {
        // A frozen peer's connection may stand for long after it was found to be gone.
        if self.state == PeerState::Gone {
            return Shown::Same;
        }
        let is_new = self.path.is_none();
        if is_new {
            let changed_ms = self.path_changed_ms.unwrap_or(0);
            if self.path_changed_ms.is_some() && now.ms < changed_ms + LINKS_MAY_BE_OLD_MS {
                return Shown::Same;
            }
            self.connected(now, path.clone());
        }
        let changed = is_new || self.path.as_ref() != Some(&path) || self.latency_ms != latency_ms;
        (self.path, self.latency_ms) = (Some(path), latency_ms);
        changed.into()
    }

    /// Says whether a connection has ended of which a list says nothing.
    pub(super) fn is_lost(&self, now: Moment) -> bool {
        let settled = self.path_changed_ms.is_none_or(|changed_ms| now.ms >= changed_ms + LINKS_MAY_BE_OLD_MS);
        self.is_connected() && settled
    }

    /// Takes a message that the peer signed, whoever passed it on.
    pub(super) fn message(&mut self, now: Moment, message: TopicMessage, skew_ms: Option<i64>) -> Shown {
        let written_ms = self.written_ms(now, &message);
        if self.state == PeerState::Gone {
            // What others pass on may have been on its way for long: with a node that slept, for example.
            if written_ms <= clock(self.since.ms) {
                return Shown::Same;
            }
            self.judged = None;
            self.enter(now, PeerState::Alive, "heard of");
        } else if self.state == PeerState::Suspect && self.judged.is_none() {
            self.enter(now, PeerState::Alive, "heard of");
        }
        self.heard(now);
        self.skew_ms = skew_ms;
        match message {
            TopicMessage::Capabilities(told) => self.take(told, false),
            TopicMessage::PresencePing(ping) => self.named(Some(ping.name), ping.version, ping.boot),
            _ => {}
        }
        Shown::Changed
    }

    /// Returns when a message was written, by this node's clock and at the latest.
    fn written_ms(&mut self, now: Moment, message: &TopicMessage) -> i64 {
        let written_ms = message.timestamp().unix_ms();
        let lag_ms = clock(now.ms).saturating_sub(written_ms);
        let lag_ms = self.lag_ms.map_or(lag_ms, |shortest_ms| shortest_ms.min(lag_ms));
        self.lag_ms = Some(lag_ms);
        written_ms.saturating_add(lag_ms)
    }

    /// Takes what the peer said over a connection.
    pub(super) fn hello(&mut self, now: Moment, message: TopicMessage, skew_ms: Option<i64>) -> Shown {
        self.written_ms(now, &message);
        // One that was still being read when the connection ended says nothing about what came after.
        if self.path.is_some() && self.judged.is_none() {
            self.enter(now, PeerState::Alive, "connected");
        }
        self.heard(now);
        self.skew_ms = skew_ms;
        if let TopicMessage::Capabilities(told) = message {
            self.take(told, true);
        }
        Shown::Changed
    }

    pub(super) fn judged(&mut self, now: Moment, state: PeerState, reason: &'static str) -> Shown {
        self.judged = Some(state);
        let entered = match (self.state, state) {
            (PeerState::Gone, PeerState::Suspect) => false,
            _ => self.enter(now, state, reason),
        };
        entered.into()
    }

    pub(super) fn unjudged(&mut self) {
        self.judged = None;
    }

    pub(super) fn skewed(&mut self, skew_ms: i64) -> Shown {
        (self.skew_ms.replace(skew_ms) != Some(skew_ms)).into()
    }

    pub(super) fn gone(&mut self, now: Moment, reason: &'static str) {
        self.enter(now, PeerState::Gone, reason);
    }

    pub(super) fn tick(&mut self, now: Moment, silent_after_ms: u64, suspect_for_ms: u64) -> Shown {
        if self.is_connected() || self.judged.is_some() || !self.is_present() {
            return Shown::Same;
        }
        let in_state_ms = now.ms.saturating_sub(self.since.ms);
        let entered = if self.state == PeerState::Suspect && in_state_ms >= suspect_for_ms {
            self.enter(now, PeerState::Gone, "disconnected")
        } else if now.ms.saturating_sub(self.heard.ms.max(self.path_changed_ms.unwrap_or(0))) >= silent_after_ms {
            self.enter(now, PeerState::Gone, "silent")
        } else {
            false
        };
        entered.into()
    }

    fn enter(&mut self, now: Moment, state: PeerState, reason: &'static str) -> bool {
        if self.state == state {
            return false;
        }
        if self.state == PeerState::Gone {
            self.first_ms = now.ms;
        }
        (self.state, self.reason, self.since) = (state, reason, now);
        if state == PeerState::Gone {
            self.path = None;
            self.latency_ms = None;
        }
        true
    }

    fn take(&mut self, told: Capabilities, direct: bool) {
        if let Some(before) = &self.told
            && !direct
        {
            let (before, now) = (before.timestamp.unix_ms(), told.timestamp.unix_ms());
            if now < before && before - now <= LATE_MS {
                return;
            }
        }
        self.named(told.name.clone(), told.version.clone(), told.boot);
        self.take_seal_key(&told);
        self.told = Some(Box::new(told));
    }

    fn take_seal_key(&mut self, told: &Capabilities) {
        let before = self.told.as_ref().and_then(|before| before.seal_key.as_ref());
        if before == told.seal_key.as_ref() {
            return;
        }
        let verified = |claim| PublicSealKey::verified(claim, &NodeId::parse(&told.node_id).ok()?).ok();
        self.seal_key = told.seal_key.as_ref().and_then(verified);
    }

    fn named(&mut self, name: Option<String>, version: Option<String>, boot: Option<BootId>) {
        self.name = name.filter(|name| !name.is_empty()).or(self.name.take());
        self.version = version.or(self.version.take());
        self.boot = boot.or(self.boot.take());
    }

    pub(super) fn show(&self, node_id: &NodeId) -> PeerView {
        let mut view = PeerView {
            state: self.state,
            reason: self.reason,
            since: self.since.unix_ms / 1_000,
            last_seen: self.heard.unix_ms / 1_000,
            latency_ms: self.latency_ms,
            ip: self.path.as_ref().and_then(PeerPath::ip).map(str::to_owned),
            path: self.path.clone(),
            clock_skew_ms: self.skew_ms,
            ..PeerView::unknown(node_id)
        };
        if let Some(told) = &self.told {
            view.take(told);
        }
        if let Some(name) = &self.name {
            view.name.clone_from(name);
        }
        if self.version.is_some() {
            view.version.clone_from(&self.version);
        }
        view
    }

    /// Tells what is different from what was told before.
    pub(super) fn tell(&mut self, now: Moment, limits: &ViewLimits, peer: &NodeId, changes: &mut Vec<Change>) {
        if !self.is_present() {
            self.leave(self.reason, peer, changes);
            return;
        }
        let face = self.face_now();
        let restarted =
            |before: &Face| matches!((&before.boot, &face.boot), (Some(before), Some(now)) if before != now);
        if self.face.as_ref().is_some_and(restarted) {
            self.leave("restarted", peer, changes);
        }
        let Some(before) = self.face.take() else {
            let patience_ms =
                if self.is_connected() { limits.announce_after_ms } else { ANNOUNCE_UNCONNECTED_AFTER_MS };
            if self.name.is_some() || now.ms.saturating_sub(self.first_ms) >= patience_ms {
                changes.push(Change::Joined { peer: peer.clone(), name: self.name.clone() });
                if self.state == PeerState::Suspect {
                    changes.push(self.suspected(peer));
                }
                self.face = Some(face);
            }
            return;
        };
        let became_suspect = face.state == PeerState::Suspect && before.state != PeerState::Suspect;
        if became_suspect {
            changes.push(self.suspected(peer));
        }
        let mut fields = Vec::new();
        if face.state != before.state && !became_suspect {
            fields.push("state");
        }
        if face.name != before.name {
            fields.push("name");
        }
        let pairs = face.fields.iter().zip(&before.fields);
        fields.extend(pairs.filter(|(now, before)| now != before).map(|((name, _), _)| *name));
        if !fields.is_empty() {
            changes.push(Change::Updated { peer: peer.clone(), name: self.name.clone(), fields });
        }
        self.face = Some(face);
    }

    /// Tells that the peer is there no more, if it was told that it is.
    pub(super) fn leave(&mut self, reason: &'static str, peer: &NodeId, changes: &mut Vec<Change>) {
        if self.face.take().is_some() {
            changes.push(Change::Left { peer: peer.clone(), name: self.name.clone(), reason });
        }
    }

    fn suspected(&self, peer: &NodeId) -> Change {
        Change::Suspected { peer: peer.clone(), name: self.name.clone(), reason: self.reason }
    }

    fn face_now(&self) -> Face {
        let told = self.told.as_deref();
        let texts = |list: fn(&Capabilities) -> &Vec<String>| Field::Texts(told.map(list).cloned().unwrap_or_default());
        Face {
            state: self.state,
            boot: self.boot,
            name: self.name.clone(),
            fields: [
                ("version", Field::Text(self.version.clone())),
                ("node_tier", Field::Text(told.and_then(|told| told.node_tier).map(|tier| format!("{tier:?}")))),
                ("capabilities", texts(|told| &told.capabilities)),
                ("models", texts(|told| &told.models)),
                ("installed", texts(|told| &told.installed)),
                ("path", Field::Text(self.path.as_ref().map(|path| path.as_str().to_owned()))),
                ("clock_skew_ms", Field::Number(self.skew_ms.map(i64::signum))),
            ],
        }
    }
}

fn clock(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
