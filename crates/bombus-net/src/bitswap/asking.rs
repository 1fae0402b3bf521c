//! What one peer is asked for: pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::config::BitswapConfig;
use super::{Cid, wire};

/// How many wants to be taken back wait to be told; when there are more, the peer forgets by itself what it was asked for.
const CANCELS_MAX: usize = 1_024;

/// The limits of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct AskingLimits {
    /// How many blocks the peer is asked for at once.
    pub(super) asked: usize,
    /// How many wants may be, those included.
    pub(super) wants: usize,
    /// How long the peer may say nothing.
    pub(super) silence: Duration,
    /// How long one block may take.
    pub(super) answer: Duration,
}

impl From<&BitswapConfig> for AskingLimits {
    fn from(config: &BitswapConfig) -> Self {
        Self {
            asked: config.asked_per_peer,
            wants: config.waiting_per_peer,
            silence: config.answer(),
            answer: config.answer_max(),
        }
    }
}

/// What becomes of a new want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    New,
    Already,
    TooMany,
}

enum Place {
    /// Behind the others, by this number.
    Waiting(u64),
    /// The peer was asked at this time.
    Asked(Instant),
}

/// What one peer is asked for.
pub(super) struct Asking {
    limits: AskingLimits,
    wanted: HashMap<Cid, Place>,
    waiting: BTreeMap<u64, Cid>,
    number: u64,
    cancels: HashSet<Cid>,
    last_answer: Option<Instant>,
}

impl Asking {
    pub(super) fn new(limits: AskingLimits) -> Self {
        Self {
            limits,
            wanted: HashMap::new(),
            waiting: BTreeMap::new(),
            number: 0,
            cancels: HashSet::new(),
            last_answer: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.cancels.is_empty()
    }

    /// Says whether the peer was asked for anything.
    pub(super) fn is_asked(&self) -> bool {
        self.wanted.len() > self.waiting.len()
    }

    /// Says whether there is something to tell the peer.
    pub(super) fn has_news(&self) -> bool {
        !self.cancels.is_empty() || (!self.waiting.is_empty() && self.asked() < self.limits.asked)
    }

    fn asked(&self) -> usize {
        self.wanted.len() - self.waiting.len()
    }

    pub(super) fn want(&mut self, cid: Cid) -> Wanted {
        if self.wanted.contains_key(&cid) {
            return Wanted::Already;
        }
        if self.wanted.len() >= self.limits.wants {
            return Wanted::TooMany;
        }
        self.number += 1;
        self.wanted.insert(cid, Place::Waiting(self.number));
        self.waiting.insert(self.number, cid);
        Wanted::New
    }

    /// Takes a want back.
    pub(super) fn cancel(&mut self, cid: &Cid) {
        self.end(cid, true);
    }

    /// Takes note of a block; says whether the peer was asked for it.
    pub(super) fn arrived(&mut self, now: Instant, cid: &Cid) -> bool {
        if !matches!(self.wanted.get(cid), Some(Place::Asked(_))) {
            return false;
        }
        self.last_answer = Some(now);
        self.end(cid, false);
        true
    }

    /// Takes note that the peer has not got a block; says whether it was asked for it.
    pub(super) fn denied(&mut self, now: Instant, cid: &Cid) -> bool {
        if !matches!(self.wanted.get(cid), Some(Place::Asked(_))) {
            return false;
        }
        self.last_answer = Some(now);
        // Others keep a want that they cannot meet, and do not say again that they cannot.
        self.end(cid, true);
        true
    }

    /// Returns what to tell the peer next: what is taken back and, in a message after that, what it is asked for. In one message some
    /// programs take only the first of two entries with one name.
    pub(super) fn tell(&mut self, now: Instant) -> Vec<wire::Entry> {
        if !self.cancels.is_empty() {
            return self.cancels.drain().map(|cid| wire::Entry::cancel(&cid)).collect();
        }
        let mut entries = Vec::new();
        while self.asked() < self.limits.asked {
            let Some((_, cid)) = self.waiting.pop_first() else { break };
            self.wanted.insert(cid, Place::Asked(now));
            entries.push(wire::Entry::want(&cid));
        }
        entries
    }

    /// Ends wants that have waited too long, and returns them.
    ///
    /// A peer that answers others has longer for each. One that answers nothing it was asked for is not asked for what waits.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Cid> {
        let limits = self.limits;
        let last_answer = self.last_answer;
        let is_over = |at: Instant| {
            let heard = last_answer.map_or(at, |last| last.max(at));
            now.duration_since(heard) >= limits.silence || now.duration_since(at) >= limits.answer
        };
        let asked = self.wanted.iter().filter(|(_, place)| matches!(place, Place::Asked(at) if is_over(*at)));
        let mut over: Vec<Cid> = asked.map(|(cid, _)| *cid).collect();
        for cid in &over {
            self.end(cid, true);
        }
        let is_silent = last_answer.is_none_or(|last| now.duration_since(last) >= limits.silence);
        if !over.is_empty() && !self.is_asked() && is_silent {
            over.extend(self.waiting.values());
            self.waiting.clear();
            self.wanted.clear();
        }
        over
    }

    /// Ends all wants, and returns them: the peer is not reached.
    pub(super) fn fail(&mut self) -> Vec<Cid> {
        self.cancels.clear();
        self.waiting.clear();
        self.last_answer = None;
        self.wanted.drain().map(|(cid, _)| cid).collect()
    }

    fn end(&mut self, cid: &Cid, tell: bool) {
        match self.wanted.remove(cid) {
            Some(Place::Waiting(number)) => {
                self.waiting.remove(&number);
            }
            Some(Place::Asked(_)) if tell && self.cancels.len() < CANCELS_MAX => {
                self.cancels.insert(*cid);
            }
            Some(Place::Asked(_)) | None => {}
        }
    }
}

#[cfg(test)]
mod tests;
