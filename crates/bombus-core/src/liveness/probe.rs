//! Who is probed when, and what follows from silence.

use std::ops::Bound;

use super::member::Check;
use super::wire::Key;
use super::{Detector, Kind, Member, Path, Standing};

/// One round in so many also pings a random peer.
const RANDOM_ROUNDS: u64 = 12;
/// One round in so many pings one of the peers that are connected and count as gone.
const GONE_ROUNDS: u64 = 5;
/// How often a suspect is pinged, by each node that is connected to it.
const SUSPECT_PING_MS: u64 = 1_500;
/// How often all connections are looked at.
const SWEEP_MS: u64 = 2_000;
/// How long a node that no connection leads to has to be found: time to dial it, or for others to answer.
const ORPHAN_VERIFY_MS: u64 = 2_000;
/// A node that no connection leads to is not dialled while others vouched for it within this time.
const VOUCHED_MS: u64 = 15_000;

impl Detector {
    /// Does all that is due by now.
    pub(super) fn run_due(&mut self) {
        self.choose_successor();
        if self.now_ms >= self.round_ms {
            self.probe_round();
            self.round_ms = self.now_ms + self.random.around(self.config.period_ms);
        }
        self.doubt_the_silent();
        self.follow_checks();
        self.give_up_suspects();
        self.choose_successor();
    }

    /// Returns when the next thing is due.
    pub(super) fn next_due_ms(&self) -> u64 {
        let mut due_ms = self.round_ms;
        for (key, member) in &self.members {
            due_ms = due_ms.min(member.gone_at_ms);
            if let Some(check) = member.check {
                due_ms = due_ms.min(check.deadline_ms).min(check.repeat_ms.unwrap_or(u64::MAX));
            } else if self.is_expected(key, member) {
                due_ms = due_ms.min(member.silent_since_ms() + self.config.doubt_ms);
            }
        }
        due_ms
    }

    /// Finds the next good connection on the ring, and tells the one before that it is no longer needed.
    pub(super) fn choose_successor(&mut self) {
        let successor = self.next_on_ring(&self.me, Member::is_good);
        if successor == self.successor {
            return;
        }
        let before = std::mem::replace(&mut self.successor, successor);
        if let Some(before) = before
            && self.members.get(&before).is_some_and(Member::is_good)
        {
            self.send(before, Kind::News);
        }
        if let Some(key) = successor {
            let now_ms = self.now_ms;
            self.member(key).expected_ms = now_ms;
            self.ping_if_connected(key);
        }
    }

    /// Returns the first node after `key`, around the ring, that is fit.
    fn next_on_ring(&self, key: &Key, fit: impl Fn(&Member) -> bool) -> Option<Key> {
        let after = self.members.range::<Key, _>((Bound::Excluded(key), Bound::Unbounded));
        let before = self.members.range::<Key, _>((Bound::Unbounded, Bound::Excluded(key)));
        after.chain(before).find(|(_, member)| fit(member)).map(|(key, _)| *key)
    }

    /// Returns the last node before `key`, around the ring, that is fit.
    fn last_on_ring(&self, key: &Key, fit: impl Fn(&Member) -> bool) -> Option<Key> {
        let after = self.members.range::<Key, _>((Bound::Excluded(key), Bound::Unbounded));
        let before = self.members.range::<Key, _>((Bound::Unbounded, Bound::Excluded(key)));
        before.rev().chain(after.rev()).find(|(_, member)| fit(member)).map(|(key, _)| *key)
    }

    /// Returns whether a peer should be heard regularly.
    fn is_expected(&self, key: &Key, member: &Member) -> bool {
        member.is_good() && (member.expects || self.successor == Some(*key) || self.watched.contains(key))
    }

    fn probe_round(&mut self) {
        self.rounds += 1;
        let (now_ms, period_ms) = (self.now_ms, self.config.period_ms);
        let mut targets = Vec::new();
        let mut gone = Vec::new();
        let mut good = Vec::new();
        let mut forgotten = Vec::new();
        for (key, member) in &self.members {
            let pinged_within = |limit_ms| member.pinged_ms.is_some_and(|pinged_ms| now_ms - pinged_ms < limit_ms);
            match member.standing {
                Standing::Alive if member.is_connected() => {
                    let probed = self.successor == Some(*key) || self.watched.contains(key);
                    // Where two nodes would ping each other, one of them will do.
                    let pings = member.pings_ms.is_some_and(|pings_ms| now_ms - pings_ms < period_ms * 5 / 4);
                    if probed && !pings && !pinged_within(period_ms / 2) {
                        targets.push(*key);
                    }
                    good.push(*key);
                }
                Standing::Suspect if member.is_connected() && !pinged_within(SUSPECT_PING_MS) => targets.push(*key),
                Standing::Gone if member.is_connected() => gone.push(*key),
                Standing::Gone | Standing::Left
                    if !member.is_connected() && now_ms - member.since_ms >= self.config.forget_ms =>
                {
                    forgotten.push(*key);
                }
                _ => {}
            }
        }
        if self.rounds.is_multiple_of(RANDOM_ROUNDS) {
            targets.extend(self.random.pick(good, 1));
        }
        if self.rounds.is_multiple_of(GONE_ROUNDS) {
            targets.extend(self.random.pick(gone, 1));
        }
        for key in targets {
            self.ping_if_connected(key);
        }
        for key in forgotten {
            self.members.remove(&key);
        }
        self.look_for_orphan();
    }

    /// Looks for the next node on the ring where no connection leads to it: if it is gone, nobody else may notice.
    fn look_for_orphan(&mut self) {
        let now_ms = self.now_ms;
        if now_ms < self.orphan_ms {
            return;
        }
        self.orphan_ms = now_ms + self.random.around(self.config.orphan_ms);
        let next = self.next_on_ring(&self.me, |member| member.standing == Standing::Alive);
        if let Some(key) = next
            && matches!(self.members[&key].path, Path::Elsewhere | Path::Unreachable)
            && self.members[&key].check.is_none()
        {
            self.begin_check(key, ORPHAN_VERIFY_MS, true);
        }
    }

    fn doubt_the_silent(&mut self) {
        let (now_ms, doubt_ms) = (self.now_ms, self.config.doubt_ms);
        let silent: Vec<Key> = self
            .members
            .iter()
            .filter(|(key, member)| member.check.is_none() && self.is_expected(key, member))
            .filter(|(_, member)| now_ms - member.silent_since_ms() >= doubt_ms)
            .map(|(key, _)| *key)
            .collect();
        for key in &silent {
            self.begin_check(*key, self.config.verify_ms, true);
        }
        // Nobody at all is heard: it may be this node that is cut off, so all are in doubt.
        if !silent.is_empty() && now_ms - self.heard_any_ms >= doubt_ms {
            self.sweep();
        }
    }

    /// Checks every connection that was not heard lately.
    fn sweep(&mut self) {
        let (now_ms, fresh_ms) = (self.now_ms, self.config.fresh_ms);
        if self.swept_ms.is_some_and(|swept_ms| now_ms - swept_ms < SWEEP_MS) {
            return;
        }
        self.swept_ms = Some(now_ms);
        let unheard: Vec<Key> = self
            .members
            .iter()
            .filter(|(_, member)| member.is_good() && member.check.is_none() && !member.heard_within(fresh_ms, now_ms))
            .map(|(key, _)| *key)
            .collect();
        for key in unheard {
            self.begin_check(key, self.config.verify_ms, false);
        }
    }

    pub(super) fn begin_check(&mut self, key: Key, wait_ms: u64, ask_others: bool) {
        let now_ms = self.now_ms;
        let check = Check { repeat_ms: Some(now_ms + wait_ms / 2), deadline_ms: now_ms + wait_ms, ask_others };
        self.member(key).check = Some(check);
        if ask_others {
            self.ask(key);
        } else {
            self.ping_if_connected(key);
        }
    }

    /// Asks a node itself, and others who may reach it: its neighbours on the ring first, then any.
    fn ask(&mut self, key: Key) {
        let now_ms = self.now_ms;
        let member = &self.members[&key];
        let vouched = member.vouched_ms.is_some_and(|vouched_ms| now_ms - vouched_ms < VOUCHED_MS);
        if member.is_connected() || !vouched {
            self.ping(key);
        }
        let mut helpers = Vec::new();
        for neighbour in [self.next_on_ring(&key, Member::is_good), self.last_on_ring(&key, Member::is_good)] {
            helpers.extend(neighbour.filter(|neighbour| *neighbour != key && !helpers.contains(neighbour)));
        }
        helpers.truncate(self.config.helpers);
        let others: Vec<Key> = self
            .members
            .iter()
            .filter(|(other, member)| member.is_good() && **other != key && !helpers.contains(*other))
            .map(|(other, _)| *other)
            .collect();
        let more = self.config.helpers - helpers.len();
        helpers.extend(self.random.pick(others, more));
        for helper in helpers {
            self.send(helper, Kind::Ask(key));
        }
    }

    fn follow_checks(&mut self) {
        let now_ms = self.now_ms;
        let mut failed = Vec::new();
        let mut repeated = Vec::new();
        for (key, member) in &mut self.members {
            let Some(check) = &mut member.check else { continue };
            if now_ms >= check.deadline_ms {
                failed.push(*key);
            } else if check.repeat_ms.is_some_and(|repeat_ms| now_ms >= repeat_ms) {
                check.repeat_ms = None;
                repeated.push((*key, check.ask_others));
            }
        }
        for (key, ask_others) in repeated {
            if ask_others {
                self.ask(key);
            } else {
                self.ping_if_connected(key);
            }
        }
        let mut cut = false;
        for key in failed {
            cut |= self.suspect(key);
        }
        if cut {
            self.sweep();
        }
    }

    /// Makes a node suspect that did not answer. Returns whether a connection to it stands that may be cut.
    fn suspect(&mut self, key: Key) -> bool {
        let (now_ms, suspect_ms) = (self.now_ms, self.config.suspect_ms);
        let member = self.member(key);
        member.check = None;
        if member.standing != Standing::Alive {
            return false;
        }
        let connected = member.is_connected();
        let reason = if connected { "it does not answer" } else { "nobody reaches it" };
        member.stand(Standing::Suspect, reason, now_ms);
        member.gone_at_ms = now_ms + suspect_ms;
        self.for_all.insert(key);
        self.enqueue(key);
        connected
    }

    fn give_up_suspects(&mut self) {
        let now_ms = self.now_ms;
        let mut gone = Vec::new();
        for (key, member) in &mut self.members {
            if member.standing == Standing::Suspect && now_ms >= member.gone_at_ms {
                member.stand(Standing::Gone, "it was silent for too long", now_ms);
                member.expects = false;
                gone.push(*key);
            }
        }
        for key in gone {
            self.enqueue(key);
        }
    }

    pub(super) fn ping_if_connected(&mut self, key: Key) {
        if self.members.get(&key).is_some_and(Member::is_connected) {
            self.ping(key);
        }
    }

    fn ping(&mut self, key: Key) {
        let now_ms = self.now_ms;
        self.member(key).pinged_ms = Some(now_ms);
        self.send(key, Kind::Ping);
    }
}
