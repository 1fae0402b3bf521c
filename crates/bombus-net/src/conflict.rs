//! Two processes with one identity, told apart from a node that dialled itself (pure).

use std::time::{Duration, Instant};

/// The two ends of a connection to oneself show within this time.
const PAIR_WITHIN: Duration = Duration::from_secs(2);
/// How many single ends wait for their other.
const WAITING_MAX: usize = 16;

/// Which end of a connection showed this node's own identity at the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// This node had dialled.
    Dialled,
    /// This node was dialled.
    Accepted,
}

/// Pairs the ends: a node that dials itself sees both.
#[derive(Debug, Default)]
pub(crate) struct Conflicts {
    waiting: Vec<(Instant, End, String)>,
}

impl Conflicts {
    /// Takes in one end.
    pub(crate) fn seen(&mut self, now: Instant, end: End, addr: String) {
        match self.waiting.iter().position(|(_, other, _)| *other != end) {
            Some(at) => {
                self.waiting.remove(at);
            }
            None if self.waiting.len() < WAITING_MAX => self.waiting.push((now, end, addr)),
            None => {}
        }
    }

    /// Returns where another process with this identity was met: ends that stayed alone.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<String> {
        let is_due = |(at, _, _): &(Instant, End, String)| now.duration_since(*at) >= PAIR_WITHIN;
        self.waiting.extract_if(.., |waiting| is_due(waiting)).map(|(_, _, addr)| addr).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_dials_itself_is_no_conflict() {
        let now = Instant::now();
        let mut conflicts = Conflicts::default();
        conflicts.seen(now, End::Accepted, "a".to_owned());
        conflicts.seen(now, End::Dialled, "b".to_owned());
        assert!(conflicts.due(now + PAIR_WITHIN).is_empty());
    }

    #[test]
    fn an_end_that_stays_alone_is_another_process() {
        let now = Instant::now();
        let mut conflicts = Conflicts::default();
        conflicts.seen(now, End::Accepted, "a".to_owned());
        assert!(conflicts.due(now).is_empty(), "its other end may still come");
        assert_eq!(conflicts.due(now + PAIR_WITHIN), ["a"]);
        assert!(conflicts.due(now + PAIR_WITHIN).is_empty(), "it is told once");
    }
}
