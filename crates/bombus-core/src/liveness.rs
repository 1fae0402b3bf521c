//! Which peers are alive: a failure detector without I/O and without a clock.
//!
//! [`Detector`] is told what happens and when, and says what to send, when to wake it, and whose state has changed. It is fed with
//! peers that speak its protocol alone; others would count as silent.

mod config;
mod member;
mod news;
mod probe;
mod wire;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::identity::{BootId, NodeId};
use crate::random::Random;

pub use config::DetectorConfig;
use member::{Member, Mismatch, Path};
use wire::Key;
pub use wire::{DATAGRAM_BYTES_MAX, Datagram, DecodeError, Kind, Record, Standing};

/// What is known about a peer's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerState {
    /// It answers, or others vouch for it.
    Alive,
    /// It may be gone; it has some seconds to be heard of.
    Suspect,
    /// It is gone, by silence or by its own goodbye.
    Gone,
}

/// What a [`Detector`] is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LivenessInput {
    /// A connection to a peer that takes part in the protocol stands. Told again for a further connection, it does no harm.
    Connected(NodeId),
    /// The last connection to a peer was lost.
    Disconnected(NodeId),
    /// The last connection to a peer was closed on purpose, by this node or by the peer, since it was not needed: no sign of death.
    Released(NodeId),
    /// A datagram came from a peer, whose identity the connection proves.
    Datagram {
        /// Who sent it.
        from: NodeId,
        /// What came.
        bytes: Vec<u8>,
    },
    /// A peer said goodbye in some other way than by a datagram.
    Goodbye(NodeId),
    /// This node stops: say goodbye to all. Nothing but `Send` comes out from then on, and only now.
    Leave,
    /// Something depends on this peer: probe it directly at every period.
    Watch(NodeId),
    /// Nothing depends on it any more.
    Unwatch(NodeId),
    /// The time of the last [`LivenessOutput::WakeAt`] has come, or the node begins.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LivenessOutput {
    /// Send a datagram (at most 1,400 bytes). Where no connection stands, this asks for one; a datagram that cannot be sent is dropped.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        bytes: Vec<u8>,
    },
    /// A peer's state, or what is said about it, has changed.
    State {
        /// The peer.
        peer: NodeId,
        /// Its state.
        state: PeerState,
        /// Why, in a few words for people.
        reason: &'static str,
    },
    /// Two processes are alive under one node id.
    SameIdentity {
        /// The node id, which may be this node's own.
        peer: NodeId,
        /// Two of the runs.
        boots: [BootId; 2],
    },
    /// Hand in [`LivenessInput::Tick`] at this time, in milliseconds by the caller's clock. Comes last, every time; only the latest counts.
    WakeAt(u64),
}

/// Decides which peers are alive, by what it hears from them and from others.
///
/// # The protocol
///
/// The known nodes form a ring in the order of their public keys. Each node pings the next one that it is connected to, every 400 ms,
/// and says so in the ping; thus two others notice when it falls silent: the one that it pings, and the one that pings it. Traffic per
/// node does not depend on the number of nodes.
///
/// - **Doubt.** Who is silent for 900 ms is pinged once more, and up to three others are asked to try; whoever hears from it vouches.
/// - **Suspect.** Without an answer for another 500 ms, all are told, the suspect too. It contradicts with a greater *incarnation*, a
///   number that only the node itself raises, and is alive again. Who finds a suspect looks at all other connections as well, since a
///   cut cable is rarely about one peer.
/// - **Gone.** 6.5 s after it became suspect, each node counts it as gone by its own clock. Nobody is gone on hearsay alone: who is
///   said to be gone is first suspect, and has 2.5 s to contradict.
/// - **A lost connection** makes a peer suspect here at once; the others are told only if nobody vouches for it within 350 to 1,050 ms.
/// - **Goodbye** is told to all, and counts at once.
/// - **Restart.** A run of a process has a random boot id. A peer that speaks with a new one is told what is said about its earlier run,
///   and contradicts like a suspect. No clocks are compared. Where an earlier run goes on speaking, two processes have one identity.
/// - **Repair.** Each datagram carries a digest of the members that its sender counts on; where two nodes differ for 2 s, they exchange
///   their tables, so that lost news does not stay lost. One ping in twelve goes to a random peer, so that this spreads. A node that
///   nobody is connected to is looked for by its neighbour on the ring, so that no ghosts stay in the list.
/// - **Standstill.** A process that did not run for a while (SIGSTOP, a laptop's lid) blames nobody for the silence meanwhile.
///
/// # Source
///
/// SWIM (Das, Gupta, Motivala, 2002) with suspicion and indirect probes; but who is probed is not drawn at random. With random
/// probing a node is left out of one period in three by everybody (at 10 nodes, (8/9)^9 = 0.35), so that a limit of 2 s for every
/// failure would need periods of a tenth of a second. The crate `foca` implements SWIM so, and leaves no choice of whom to probe; it
/// also starts the time to contradict only at the node whose probe failed, and has two processes of one identity declare each other
/// gone for ever.
#[derive(Debug)]
pub struct Detector {
    config: DetectorConfig,
    me: Key,
    boot: BootId,
    incarnation: u32,
    random: Random,
    /// Other nodes. The map's order is that of the ring.
    members: BTreeMap<Key, Member>,
    watched: BTreeSet<Key>,
    now_ms: u64,
    wake_ms: Option<u64>,
    round_ms: u64,
    rounds: u64,
    /// Whom this node pings.
    successor: Option<Key>,
    heard_any_ms: u64,
    swept_ms: Option<u64>,
    orphan_ms: u64,
    table_ms: u64,
    /// Who asked to hear about whom, and until when.
    favours: Vec<Favour>,
    /// News that goes along with other datagrams, and how often it still does.
    queue: VecDeque<(Key, u32)>,
    /// News of this input for all, and for some.
    for_all: BTreeSet<Key>,
    for_some: BTreeSet<Key>,
    /// Another run that had, or has, this identity.
    rival: Option<Rival>,
    stopped: bool,
    outputs: Vec<LivenessOutput>,
}

#[derive(Debug, Clone, Copy)]
struct Favour {
    asker: Key,
    subject: Key,
    until_ms: u64,
}

#[derive(Debug, Clone, Copy)]
struct Rival {
    boot: BootId,
    /// The incarnation by which this node contradicted what is said about that run.
    answered: u32,
    /// How often it was contradicted in turn.
    contradictions: u32,
    reported_ms: Option<u64>,
}

impl Detector {
    /// Begins, with no peers. `boot` is drawn at random at every start of the process; the same `seed` gives the same choices.
    #[must_use]
    pub fn new(me: &NodeId, boot: BootId, config: DetectorConfig, seed: u64) -> Self {
        Self {
            config,
            me: me.public_key(),
            boot,
            incarnation: 0,
            random: Random::new(seed),
            members: BTreeMap::new(),
            watched: BTreeSet::new(),
            now_ms: 0,
            wake_ms: None,
            round_ms: 0,
            rounds: 0,
            successor: None,
            heard_any_ms: 0,
            swept_ms: None,
            orphan_ms: 0,
            table_ms: 0,
            favours: Vec::new(),
            queue: VecDeque::new(),
            for_all: BTreeSet::new(),
            for_some: BTreeSet::new(),
            rival: None,
            stopped: false,
            outputs: Vec::new(),
        }
    }

    /// Takes an input at the time `now_ms` of a clock that never goes back.
    pub fn on(&mut self, now_ms: u64, input: LivenessInput) -> Vec<LivenessOutput> {
        if self.stopped {
            return Vec::new();
        }
        self.now_ms = now_ms.max(self.now_ms);
        self.forgive_standstill();
        match input {
            LivenessInput::Connected(peer) => self.connected(&peer),
            LivenessInput::Disconnected(peer) => self.disconnected(&peer.public_key()),
            LivenessInput::Released(peer) => self.released(&peer.public_key()),
            LivenessInput::Datagram { from, bytes } => self.receive(from.public_key(), &bytes),
            LivenessInput::Goodbye(peer) => self.said_goodbye(peer.public_key()),
            LivenessInput::Leave => return self.leave(),
            LivenessInput::Watch(peer) => self.watch(peer.public_key()),
            LivenessInput::Unwatch(peer) => {
                self.watched.remove(&peer.public_key());
            }
            LivenessInput::Tick => {}
        }
        self.run_due();
        self.pass_on();
        self.report();
        let wake_ms = self.next_due_ms();
        self.wake_ms = Some(wake_ms);
        self.outputs.push(LivenessOutput::WakeAt(wake_ms));
        std::mem::take(&mut self.outputs)
    }

    /// Returns a peer's state; `None` for nodes never heard of, or long gone.
    #[must_use]
    pub fn state(&self, peer: &NodeId) -> Option<PeerState> {
        self.members.get(&peer.public_key()).map(|member| member.state().0)
    }

    /// Returns all peers known, those that are gone too until they are forgotten.
    pub fn peers(&self) -> impl Iterator<Item = (&NodeId, PeerState)> {
        self.members.values().map(|member| (&member.id, member.state().0))
    }

    fn connected(&mut self, peer: &NodeId) {
        let key = peer.public_key();
        if key == self.me || !self.make_room(&key) {
            return;
        }
        let now_ms = self.now_ms;
        let member = self.members.entry(key).or_insert_with(|| Member::new(peer.clone(), Path::Connected, now_ms));
        member.path = Path::Connected;
        member.check = None;
        member.heard_ms = Some(now_ms);
        member.mismatch = Mismatch::default();
        self.heard_any_ms = now_ms;
        self.vouch_for(key);
        self.choose_successor();
        if self.member(key).pinged_ms != Some(now_ms) {
            self.ping_if_connected(key);
        }
    }

    fn disconnected(&mut self, key: &Key) {
        let wait_ms = self.config.lost_verify_ms;
        let Some(member) = self.members.get_mut(key).filter(|member| member.is_connected()) else {
            return;
        };
        member.path = Path::Lost;
        member.expects = false;
        member.check = None;
        if member.standing == Standing::Alive {
            // When a node dies, all lose their connection to it at once: the first to be sure tells the others.
            let wait_ms = wait_ms / 2 + self.random.below(wait_ms);
            self.begin_check(*key, wait_ms, true);
        }
    }

    fn released(&mut self, key: &Key) {
        if let Some(member) = self.members.get_mut(key).filter(|member| member.is_connected()) {
            member.path = Path::Elsewhere;
            member.expects = false;
            member.check = None;
        }
    }

    fn said_goodbye(&mut self, key: Key) {
        let now_ms = self.now_ms;
        if let Some(member) = self.members.get_mut(&key)
            && member.standing != Standing::Left
        {
            member.stand(Standing::Left, "it said goodbye", now_ms);
            member.check = None;
            member.expects = false;
            self.for_some.insert(key);
            self.enqueue(key);
        }
    }

    fn leave(&mut self) -> Vec<LivenessOutput> {
        let peers: Vec<Key> =
            self.members.iter().filter(|(_, member)| member.is_connected()).map(|(key, _)| *key).collect();
        for key in peers {
            self.send(key, Kind::Leave);
        }
        self.stopped = true;
        std::mem::take(&mut self.outputs)
    }

    fn watch(&mut self, key: Key) {
        if self.watched.len() < self.config.members_max
            && self.watched.insert(key)
            && let Some(member) = self.members.get_mut(&key)
        {
            member.expected_ms = self.now_ms;
        }
    }

    /// Moves all silences by the time for which this process did not run, or was not told the time.
    fn forgive_standstill(&mut self) {
        let late_ms = self.wake_ms.map_or(0, |wake_ms| self.now_ms.saturating_sub(wake_ms));
        if late_ms < self.config.period_ms {
            return;
        }
        let now_ms = self.now_ms;
        self.heard_any_ms = (self.heard_any_ms + late_ms).min(now_ms);
        for member in self.members.values_mut() {
            member.expected_ms = (member.silent_since_ms() + late_ms).min(now_ms);
            member.gone_at_ms = member.gone_at_ms.saturating_add(late_ms);
            if let Some(check) = &mut member.check {
                check.deadline_ms += late_ms;
            }
        }
    }

    /// Makes room for a member. Returns false where there is none.
    fn make_room(&mut self, key: &Key) -> bool {
        if self.members.contains_key(key) || self.members.len() < self.config.members_max {
            return true;
        }
        let gone = self.members.iter().filter(|(_, member)| !member.is_active() && !member.is_connected());
        let oldest = gone.min_by_key(|(_, member)| member.since_ms).map(|(key, _)| *key);
        oldest.is_some_and(|oldest| self.members.remove(&oldest).is_some())
    }

    /// Tells what has changed.
    fn report(&mut self) {
        for member in self.members.values_mut() {
            let (state, reason) = member.state();
            if member.reported != Some((state, reason)) {
                member.reported = Some((state, reason));
                self.outputs.push(LivenessOutput::State { peer: member.id.clone(), state, reason });
            }
        }
    }
}

#[cfg(test)]
mod tests;
