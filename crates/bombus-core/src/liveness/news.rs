//! What nodes tell each other about nodes: who counts, who contradicts, and how it spreads.

use super::wire::{Key, RECORDS_MAX};
use super::{Datagram, Detector, Favour, Kind, LivenessOutput, Member, Mismatch, Path, Record, Rival, Standing};
use crate::identity::{BootId, NodeId};
use crate::random;

/// Records that go along with a datagram that is sent for another reason.
const PIGGYBACK_MAX: usize = 8;
/// News waiting to go along. Beyond, the oldest is dropped; the exchange of tables makes up for it.
const QUEUE_MAX: usize = 512;
/// Askers who wait for news of somebody. Beyond, they are not served; they ask several.
const FAVOURS_MAX: usize = 64;
/// How long who asked about somebody is told of it.
const FAVOUR_MS: u64 = 2_000;
/// Who was heard within this time is vouched for without asking it.
const VOUCH_FRESH_MS: u64 = 500;
/// How often a peer is told what is said about it.
const TELL_MS: u64 = 300;
/// How long an earlier run may still be heard on the way, before it counts as alive.
const RETIRED_MS: u64 = 2_000;
/// How often another run has to contradict this one before it counts as alive. News of one that has ended may be late, but ends.
const CONTRADICTIONS: u32 = 3;
/// How often two runs under one identity are reported.
const CONFLICT_MS: u64 = 10_000;
/// How long two nodes may count different members before they exchange their tables.
const MISMATCH_MS: u64 = 2_000;
/// How often a table is sent, to whomever.
const TABLE_MS: u64 = 500;

impl Detector {
    pub(super) fn receive(&mut self, from: Key, bytes: &[u8]) {
        if from == self.me || !self.members.contains_key(&from) {
            return;
        }
        self.hear(from);
        let Ok(datagram) = Datagram::decode(bytes) else {
            return;
        };
        if datagram.kind == Kind::Leave {
            let member = self.member(from);
            if member.spoken.is_none_or(|boot| boot == datagram.boot) {
                member.boot = Some(datagram.boot);
                member.incarnation = member.incarnation.max(datagram.incarnation);
                self.said_goodbye(from);
            }
            return;
        }
        let of_now = self.spoke(from, datagram.boot);
        if of_now {
            self.expect(from, datagram.watch);
            self.merge_own_word(from, datagram.boot, datagram.incarnation);
        }
        for record in &datagram.news {
            self.merge(from, *record);
        }
        match datagram.kind {
            Kind::Ping => {
                self.member(from).pings_ms = Some(self.now_ms);
                self.send(from, Kind::Ack);
            }
            Kind::Ask(subject) => self.asked(from, subject),
            Kind::Vouch(subject) => self.vouched(from, subject),
            Kind::Ack | Kind::News | Kind::Leave => {}
        }
        if of_now {
            self.tell(from);
            self.compare(from, datagram.digest);
        }
    }

    /// Takes note that a peer lives, where a connection to it stands. What was on its way when that was lost proves nothing.
    fn hear(&mut self, key: Key) {
        let now_ms = self.now_ms;
        let member = self.member(key);
        if member.is_connected() {
            member.heard_ms = Some(now_ms);
            member.check = None;
            self.heard_any_ms = now_ms;
            self.vouch_for(key);
        }
    }

    /// Takes note of whether a peer counts on this node to notice its silence.
    fn expect(&mut self, key: Key, watch: bool) {
        let member = self.member(key);
        member.expects = watch && member.is_connected();
    }

    /// Takes note of the run that spoke. Returns false for one that was replaced.
    fn spoke(&mut self, key: Key, boot: BootId) -> bool {
        let now_ms = self.now_ms;
        let member = self.member(key);
        let Some(spoken) = member.spoken.filter(|spoken| *spoken != boot) else {
            member.spoken = Some(boot);
            return true;
        };
        match member.retired {
            Some((retired, at_ms)) if retired == boot => {
                let reported = member.conflict_ms.is_some_and(|conflict_ms| now_ms - conflict_ms < CONFLICT_MS);
                if now_ms - at_ms > RETIRED_MS && !reported {
                    member.conflict_ms = Some(now_ms);
                    let peer = member.id.clone();
                    self.outputs.push(LivenessOutput::SameIdentity { peer, boots: [spoken, boot] });
                }
                false
            }
            _ => {
                member.retired = Some((spoken, now_ms));
                member.spoken = Some(boot);
                true
            }
        }
    }

    /// Takes what a peer says about itself.
    fn merge_own_word(&mut self, key: Key, boot: BootId, incarnation: u32) {
        let now_ms = self.now_ms;
        let member = self.member(key);
        let first = member.boot.is_none();
        if first || incarnation > member.incarnation {
            let back = member.standing != Standing::Alive;
            member.boot = Some(boot);
            member.incarnation = incarnation;
            member.stand(Standing::Alive, "", now_ms);
            self.enqueue(key);
            if back {
                self.for_some.insert(key);
            }
        }
    }

    /// Takes what a peer says about any node.
    fn merge(&mut self, from: Key, record: Record) {
        let key = record.key;
        if key == self.me {
            self.accused(record);
            return;
        }
        if !self.members.contains_key(&key) {
            self.meet(record);
            return;
        }
        let (now_ms, fresh_ms) = (self.now_ms, self.config.fresh_ms);
        let member = self.member(key);
        if !supersedes(record, member) {
            return;
        }
        if record.standing == Standing::Alive {
            let back = member.standing != Standing::Alive || member.path == Path::Lost;
            member.boot = Some(record.boot);
            member.incarnation = record.incarnation;
            member.stand(Standing::Alive, "", now_ms);
            member.check = None;
            if member.path == Path::Lost {
                member.path = Path::Unreachable;
            }
            self.enqueue(key);
            if back {
                self.for_some.insert(key);
            }
            return;
        }
        let said_so_itself = record.standing == Standing::Left && member.spoken.is_none_or(|boot| boot == record.boot);
        if member.heard_within(fresh_ms, now_ms) && !said_so_itself && key != from {
            // It is heard here, so it hears of this and contradicts.
            self.tell_about(key, record);
            return;
        }
        self.merge_bad_news(record);
    }

    fn merge_bad_news(&mut self, record: Record) {
        let key = record.key;
        let (now_ms, suspect_ms, confirm_ms) = (self.now_ms, self.config.suspect_ms, self.config.confirm_ms);
        let member = self.member(key);
        let was = member.standing;
        member.boot = Some(record.boot);
        member.incarnation = record.incarnation;
        match (record.standing, was) {
            (Standing::Left, _) => {
                member.stand(Standing::Left, "it said goodbye", now_ms);
                member.check = None;
                member.expects = false;
            }
            // It may know better, and has time to say so.
            (_, Standing::Alive) => {
                let wait_ms = if record.standing == Standing::Gone { confirm_ms } else { suspect_ms };
                member.stand(Standing::Suspect, "others do not reach it", now_ms);
                member.gone_at_ms = now_ms + wait_ms;
                member.check = None;
            }
            (Standing::Gone, Standing::Suspect) => {
                member.gone_at_ms = member.gone_at_ms.min(member.since_ms + confirm_ms);
            }
            _ => {}
        }
        if was < Standing::Gone {
            self.enqueue(key);
            self.for_some.insert(key);
        }
        if was == Standing::Alive {
            // So that it hears of it, and contradicts.
            self.ping_if_connected(key);
        }
    }

    /// Takes up a node that others know.
    fn meet(&mut self, record: Record) {
        let (now_ms, suspect_ms) = (self.now_ms, self.config.suspect_ms);
        let Ok(id) = NodeId::from_public_key(&record.key) else {
            return;
        };
        if record.standing > Standing::Suspect || !self.make_room(&record.key) {
            return;
        }
        let mut member = Member::new(id, Path::Elsewhere, now_ms);
        member.boot = Some(record.boot);
        member.incarnation = record.incarnation;
        if record.standing == Standing::Suspect {
            member.stand(Standing::Suspect, "others do not reach it", now_ms);
            member.gone_at_ms = now_ms + suspect_ms;
        }
        self.members.insert(record.key, member);
        self.enqueue(record.key);
    }

    /// Takes what is said about this node itself, and contradicts where that is wrong.
    fn accused(&mut self, record: Record) {
        let own = record.boot == self.boot;
        let wrong = record.incarnation > self.incarnation
            || (record.incarnation == self.incarnation && (record.standing != Standing::Alive || !own));
        if !wrong {
            return;
        }
        if !own && !self.may_answer(record) {
            return;
        }
        self.incarnation = record.incarnation.saturating_add(1);
        if let Some(rival) = self.rival.as_mut().filter(|rival| rival.boot == record.boot) {
            rival.answered = self.incarnation;
        }
        self.for_all.insert(self.me);
        self.enqueue(self.me);
    }

    /// Takes note that another run has this node's identity. An earlier run does not contradict in turn; another process does so again
    /// and again. Then it is reported, and the two stop raising their incarnations for a while.
    fn may_answer(&mut self, record: Record) -> bool {
        let now_ms = self.now_ms;
        let rival = match &mut self.rival {
            Some(rival) if rival.boot == record.boot => rival,
            rival => {
                rival.insert(Rival { boot: record.boot, answered: u32::MAX, contradictions: 0, reported_ms: None })
            }
        };
        if record.incarnation > rival.answered {
            rival.contradictions += 1;
        }
        if rival.contradictions < CONTRADICTIONS {
            return true;
        }
        if rival.reported_ms.is_some_and(|reported_ms| now_ms - reported_ms < CONFLICT_MS) {
            return false;
        }
        rival.reported_ms = Some(now_ms);
        rival.contradictions = 0;
        let boots = [self.boot, rival.boot];
        let peer = NodeId::from_public_key(&self.me).expect("a node's own key is one");
        self.outputs.push(LivenessOutput::SameIdentity { peer, boots });
        false
    }

    /// Serves a peer that does not hear from somebody.
    fn asked(&mut self, asker: Key, subject: Key) {
        let now_ms = self.now_ms;
        let Some(member) = self.members.get(&subject).filter(|member| member.is_connected() && asker != subject) else {
            return;
        };
        if member.heard_within(VOUCH_FRESH_MS, now_ms) {
            self.send(asker, Kind::Vouch(subject));
            return;
        }
        self.favours.retain(|favour| favour.until_ms > now_ms);
        if self.favours.len() < FAVOURS_MAX {
            self.favours.push(Favour { asker, subject, until_ms: now_ms + FAVOUR_MS });
            self.send(subject, Kind::Ping);
        }
    }

    /// Tells those who asked that a peer is heard.
    pub(super) fn vouch_for(&mut self, subject: Key) {
        let now_ms = self.now_ms;
        let done: Vec<Favour> =
            self.favours.extract_if(.., |favour| favour.subject == subject || favour.until_ms <= now_ms).collect();
        for favour in done {
            if favour.subject == subject && favour.until_ms > now_ms {
                self.send(favour.asker, Kind::Vouch(subject));
            }
        }
    }

    fn vouched(&mut self, by: Key, subject: Key) {
        let now_ms = self.now_ms;
        let Some(member) = self.members.get_mut(&subject) else {
            return;
        };
        if member.check.take().is_some() {
            // Its silence counts anew. Else each voice would bring the next question at once, to several.
            member.expected_ms = now_ms;
        }
        member.vouched_ms = Some(now_ms);
        if member.path == Path::Lost {
            member.path = Path::Unreachable;
        }
        // Whoever vouches can also tell a suspect that it is one.
        if member.standing == Standing::Suspect
            && let Some(record) = member.record(subject)
        {
            self.send_records(by, Kind::News, &[record]);
        }
    }

    /// Tells a peer what is wrongly said about it.
    fn tell(&mut self, key: Key) {
        let member = self.member(key);
        if member.must_hear()
            && let Some(record) = member.record(key)
        {
            self.tell_about(key, record);
        }
    }

    fn tell_about(&mut self, key: Key, record: Record) {
        let now_ms = self.now_ms;
        let member = self.member(key);
        if member.told_ms.is_none_or(|told_ms| now_ms - told_ms >= TELL_MS) {
            member.told_ms = Some(now_ms);
            self.send_records(key, Kind::News, &[record]);
        }
    }

    /// Compares whom a peer counts as members with this node's table, and sends that where they differ for long.
    fn compare(&mut self, key: Key, digest: u32) {
        let (now_ms, same) = (self.now_ms, digest == self.digest());
        let may = now_ms >= self.table_ms;
        let member = self.member(key);
        if same || !member.is_connected() {
            member.mismatch = Mismatch::default();
            return;
        }
        let since_ms = *member.mismatch.since_ms.get_or_insert(now_ms);
        // Each further table takes twice as long as the one before, in case the two can never agree.
        let due_ms = since_ms + (MISMATCH_MS << member.mismatch.sent.min(5));
        if now_ms >= due_ms && may {
            member.mismatch.sent += 1;
            self.table_ms = now_ms + TABLE_MS;
            let table: Vec<Record> = self.members.iter().filter_map(|(key, member)| member.record(*key)).collect();
            for records in table.chunks(RECORDS_MAX) {
                self.send_records(key, Kind::News, records);
            }
        }
    }

    /// Returns a number that is the same for nodes that count the same members in the same way.
    fn digest(&self) -> u32 {
        let own = Record { key: self.me, boot: self.boot, incarnation: self.incarnation, standing: Standing::Alive };
        let active = self.members.iter().filter(|(_, member)| member.is_active());
        let records = active.filter_map(|(key, member)| member.record(*key)).chain([own]);
        let sum = records.fold(0, |sum: u64, record| {
            let [key, ..] = record.key.as_chunks::<8>().0 else { return sum };
            let stand = u64::from(record.incarnation) << 8 | record.standing as u64;
            sum.wrapping_add(random::mix(
                u64::from_le_bytes(*key) ^ random::mix(record.boot.bits() ^ random::mix(stand)),
            ))
        });
        (sum >> 32) as u32
    }

    /// Lets news about a node go along with the next datagrams.
    pub(super) fn enqueue(&mut self, key: Key) {
        let nodes = self.members.len() as u64 + 1;
        self.queue.retain(|(queued, _)| *queued != key);
        if self.queue.len() == QUEUE_MAX {
            self.queue.pop_front();
        }
        self.queue.push_back((key, 4 + nodes.ilog2()));
    }

    /// Sends the news of this input to those who are to have it at once.
    pub(super) fn pass_on(&mut self) {
        let for_all = std::mem::take(&mut self.for_all);
        let for_some = std::mem::take(&mut self.for_some);
        let connected = |member: &&Member| member.is_connected() && member.standing != Standing::Left;
        let peers: Vec<Key> =
            self.members.iter().filter(|(_, member)| connected(member)).map(|(key, _)| *key).collect();
        let records: Vec<Record> = for_all.iter().filter_map(|key| self.record(*key)).collect();
        for peer in &peers {
            for records in records.chunks(RECORDS_MAX) {
                self.send_records(*peer, Kind::News, records);
            }
        }
        let records: Vec<Record> = for_some.difference(&for_all).filter_map(|key| self.record(*key)).collect();
        if !records.is_empty() {
            for peer in self.random.pick(peers, self.config.fanout) {
                for records in records.chunks(RECORDS_MAX) {
                    self.send_records(peer, Kind::News, records);
                }
            }
        }
    }

    pub(super) fn send(&mut self, to: Key, kind: Kind) {
        self.send_records(to, kind, &[]);
    }

    /// Sends a datagram with these records, what the receiver must hear about itself, and other news as long as there is room.
    fn send_records(&mut self, to: Key, kind: Kind, records: &[Record]) {
        let mut news = records.to_vec();
        let now_ms = self.now_ms;
        let Some(member) = self.members.get_mut(&to) else {
            return;
        };
        let id = member.id.clone();
        if member.must_hear()
            && let Some(record) = member.record(to)
            && !news.iter().any(|told| told.key == to)
        {
            news.push(record);
            member.told_ms = Some(now_ms);
        }
        for _ in 0..self.queue.len().min(PIGGYBACK_MAX) {
            let Some((key, left)) = self.queue.pop_front() else { break };
            let told = news.len() >= RECORDS_MAX || news.iter().any(|told| told.key == key) || key == to;
            if let Some(record) = self.record(key).filter(|_| !told) {
                news.push(record);
                if left > 1 {
                    self.queue.push_back((key, left - 1));
                }
            } else if told {
                self.queue.push_back((key, left));
            }
        }
        let watch = self.successor == Some(to);
        let datagram =
            Datagram { kind, watch, boot: self.boot, incarnation: self.incarnation, digest: self.digest(), news };
        self.outputs.push(LivenessOutput::Send { to: id, bytes: datagram.encode() });
    }

    fn record(&self, key: Key) -> Option<Record> {
        if key == self.me {
            return Some(Record { key, boot: self.boot, incarnation: self.incarnation, standing: Standing::Alive });
        }
        self.members.get(&key).and_then(|member| member.record(key))
    }

    pub(super) fn member(&mut self, key: Key) -> &mut Member {
        self.members.get_mut(&key).expect("the caller has looked it up")
    }
}

/// Returns whether a record says more than what is known.
fn supersedes(record: Record, member: &Member) -> bool {
    member.boot.is_none()
        || record.incarnation > member.incarnation
        || (record.incarnation == member.incarnation && record.standing > member.standing)
}
