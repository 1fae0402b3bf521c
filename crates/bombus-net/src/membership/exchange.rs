//! Who is told what, and when a node goes over to a new key.
//!
//! Whoever gets a connection offers its changes to the peer, and whoever learns of a change offers it to all its peers, so that a change
//! goes through the whole swarm. A new key cannot be used at once: it ends all connections, also those to peers that do not have it yet.
//! So each node first hands it over to its own peers, and waits until they have handed it over to theirs (each waits for those that
//! have it from itself, which is a tree). Then it tells whom it has it from which members were reached, and goes over. Each step has
//! half the time of the one before, so that answers come back in time also where some member does not answer.
//!
//! The old key still opens the door meanwhile, also to a machine that was removed and comes back under another name. So the new key goes
//! only to those that the node knew before it heard of the change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;

/// The time for a push where no key is handed over.
const PUSH_LIMIT: Duration = Duration::from_secs(5);
/// The least time for a hand-over.
const HAND_OVER_MIN: Duration = Duration::from_millis(500);
/// The most time that a peer may ask for.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);
/// How long a node waits for those that it has the key from to hear whom it reached.
const TELL_LIMIT: Duration = Duration::from_secs(1);

/// Names a peer's stream over which a new key came and that waits to hear whom it reached.
pub(super) type Token = u64;

/// What happened.
#[derive(Debug)]
pub(super) enum Input {
    /// There is a connection to a peer.
    Connected(NodeId),
    /// There is none any more.
    Disconnected(NodeId),
    /// The membership changed. `members` are those that this node knows.
    Changed { cause: Cause, new_key: bool, removed: Arc<BTreeSet<NodeId>>, members: BTreeSet<NodeId> },
    /// A push ended: the peer has everything, and reached others in turn; or it failed.
    Pushed { peer: NodeId, heard: Option<Vec<NodeId>> },
    /// Whoever a key came from has heard whom it reached.
    Told { token: Token },
    /// Time has passed.
    Tick,
}

/// Why the membership changed.
#[derive(Debug)]
pub(super) enum Cause {
    /// By the owner, on this node.
    Owner { limit: Duration },
    /// By the owner, while this node did not run: the members have yet to connect.
    OwnerBefore { limit: Duration },
    /// By a peer, which wants to hear soon whom it reached.
    Peer { from: NodeId, token: Token, within: Duration },
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Offer everything to a peer. It all has to be done within some time.
    Push { peer: NodeId, within: Duration },
    /// Say whom the key reached.
    Tell { token: Token, reached: Vec<NodeId> },
    /// Go over to the new key.
    GoOver { reached: BTreeSet<NodeId> },
    /// Say [`Input::Tick`] at this time.
    WakeAt(Duration),
}

/// The state of one node.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    connected: BTreeSet<NodeId>,
    removed: Arc<BTreeSet<NodeId>>,
    /// Pushes under way, and whether something was added since they began.
    pushing: BTreeMap<NodeId, bool>,
    hand_over: Option<HandOver>,
}

/// A new key on its way to the members.
#[derive(Debug)]
struct HandOver {
    ends: Duration,
    /// Who may be told.
    members: BTreeSet<NodeId>,
    waiting: BTreeSet<NodeId>,
    /// Members without a connection for which it is worth waiting.
    expected: BTreeSet<NodeId>,
    reached: BTreeSet<NodeId>,
    tokens: BTreeSet<Token>,
    /// The tokens are being told, and until when that may take.
    telling_ends: Option<Duration>,
}

impl Exchange {
    /// Takes an input at a time (since any fixed moment) and says what is to be done.
    pub(super) fn on(&mut self, now: Duration, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        match input {
            Input::Connected(peer) => self.on_connected(now, peer, &mut outputs),
            Input::Disconnected(peer) => drop(self.connected.remove(&peer)),
            Input::Changed { cause, new_key, removed, members } => {
                self.removed = removed;
                self.on_changed(now, cause, new_key.then_some(members), &mut outputs);
            }
            Input::Pushed { peer, heard } => self.on_pushed(now, peer, heard, &mut outputs),
            Input::Told { token } => {
                if let Some(hand_over) = &mut self.hand_over {
                    hand_over.tokens.remove(&token);
                }
            }
            Input::Tick => {}
        }
        self.advance(now, &mut outputs);
        outputs
    }

    pub(super) fn connected(&self) -> &BTreeSet<NodeId> {
        &self.connected
    }

    /// Says whether a key is being handed over.
    pub(super) fn is_handing_over(&self) -> bool {
        self.hand_over.is_some()
    }

    /// Returns who may be told of the key that is being handed over.
    pub(super) fn members(&self) -> Option<&BTreeSet<NodeId>> {
        self.hand_over.as_ref().map(|hand_over| &hand_over.members)
    }

    /// Says whether a peer may be told what this node knows. Whoever comes during a hand-over may be a removed machine under another name.
    pub(super) fn may_be_told(&self, peer: &NodeId) -> bool {
        !self.removed.contains(peer) && self.members().is_none_or(|members| members.contains(peer))
    }

    /// Forgets a hand-over, since the node goes to another swarm, and returns whom it reached.
    pub(super) fn abandon(&mut self, removed: Arc<BTreeSet<NodeId>>) -> BTreeSet<NodeId> {
        self.removed = removed;
        self.hand_over.take().map(|hand_over| hand_over.reached).unwrap_or_default()
    }

    fn on_connected(&mut self, now: Duration, peer: NodeId, outputs: &mut Vec<Output>) {
        self.connected.insert(peer.clone());
        if !self.may_be_told(&peer) {
            return;
        }
        if let Some(hand_over) = &mut self.hand_over {
            hand_over.waiting.insert(peer.clone());
        }
        self.push(now, peer, outputs);
    }

    /// Takes a change; with a new key, `members` are those that this node knows.
    fn on_changed(
        &mut self,
        now: Duration,
        cause: Cause,
        members: Option<BTreeSet<NodeId>>,
        outputs: &mut Vec<Output>,
    ) {
        let is_late = matches!(cause, Cause::OwnerBefore { .. });
        let (from, token, limit) = match cause {
            Cause::Owner { limit } | Cause::OwnerBefore { limit } => (None, None, limit),
            Cause::Peer { from, token, within } => {
                (Some(from), Some(token), within.clamp(HAND_OVER_MIN, HAND_OVER_MAX))
            }
        };
        if let Some(mut members) = members {
            let expected = if is_late { members.difference(&self.removed).cloned().collect() } else { BTreeSet::new() };
            members.extend(self.connected.iter().cloned());
            let mut tokens = BTreeSet::new();
            if let Some(older) = self.hand_over.take() {
                // Whoever gave an older key that is still on its way hears of this one instead. Who came since that one is still no member.
                (tokens, members) = (older.tokens, older.members);
            }
            tokens.extend(token);
            let (waiting, reached) = (BTreeSet::new(), BTreeSet::new());
            let ends = now + limit;
            self.hand_over = Some(HandOver { ends, members, waiting, expected, reached, tokens, telling_ends: None });
        }
        let told = self.connected.iter().filter(|peer| Some(*peer) != from.as_ref() && self.may_be_told(peer));
        let told: BTreeSet<_> = told.cloned().collect();
        if let Some(hand_over) = &mut self.hand_over {
            hand_over.waiting.extend(told.iter().cloned());
        }
        for peer in told {
            self.push(now, peer, outputs);
        }
    }

    fn on_pushed(&mut self, now: Duration, peer: NodeId, heard: Option<Vec<NodeId>>, outputs: &mut Vec<Output>) {
        let again = self.pushing.remove(&peer).unwrap_or(false);
        if again && self.connected.contains(&peer) && self.may_be_told(&peer) {
            self.push(now, peer, outputs);
            return;
        }
        if let Some(hand_over) = &mut self.hand_over {
            hand_over.waiting.remove(&peer);
            if let Some(others) = heard {
                hand_over.reached.extend(others.into_iter().filter(|other| !self.removed.contains(other)));
                hand_over.reached.insert(peer);
            }
        }
    }

    fn push(&mut self, now: Duration, peer: NodeId, outputs: &mut Vec<Output>) {
        if let Some(again) = self.pushing.get_mut(&peer) {
            *again = true;
            return;
        }
        self.pushing.insert(peer.clone(), false);
        let within = match &self.hand_over {
            // The rest is for the way back.
            Some(hand_over) => (hand_over.ends.saturating_sub(now) * 4 / 5).max(HAND_OVER_MIN),
            None => PUSH_LIMIT,
        };
        outputs.push(Output::Push { peer, within });
    }

    fn advance(&mut self, now: Duration, outputs: &mut Vec<Output>) {
        let Some(hand_over) = &mut self.hand_over else { return };
        if hand_over.telling_ends.is_none() && hand_over.is_done(now) {
            hand_over.telling_ends = Some(now + TELL_LIMIT);
            let reached = || hand_over.reached.iter().cloned().collect();
            outputs.extend(hand_over.tokens.iter().map(|token| Output::Tell { token: *token, reached: reached() }));
        }
        match hand_over.telling_ends {
            Some(ends) if hand_over.tokens.is_empty() || now >= ends => {
                outputs.extend(self.hand_over.take().map(|done| Output::GoOver { reached: done.reached }));
            }
            Some(ends) => outputs.push(Output::WakeAt(ends)),
            None => outputs.push(Output::WakeAt(hand_over.ends)),
        }
    }
}

impl HandOver {
    fn is_done(&self, now: Duration) -> bool {
        let all_told = self.waiting.is_empty() && self.expected.is_subset(&self.reached);
        all_told || now >= self.ends
    }
}

/// Returns how long a peer gets that is told of a new key.
pub(super) fn share_of(within: Duration) -> Duration {
    within / 2
}

#[cfg(test)]
mod tests;
