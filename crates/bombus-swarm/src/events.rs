//! The log of what happens in the swarm, for those who follow it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bombus_core::topics::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

/// How many events are kept. A reader may be as many behind.
pub const EVENTS_MAX: usize = 1_024;

/// Something that happened in the swarm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SwarmEvent {
    /// Its number: each event has the one after the event before it, and a node that starts again goes on with higher ones.
    pub id: u64,
    /// What kind of event, such as `peer:joined`.
    pub kind: &'static str,
    /// When, by this node's clock.
    pub at: Timestamp,
    /// What belongs to it, by the kind.
    pub data: Value,
}

/// What a reader of the log gets.
#[derive(Debug, Clone, PartialEq)]
pub enum EventItem {
    /// The next event.
    Event(SwarmEvent),
    /// Events are no longer there. As the first item it says that the log does not reach back to where the reader was, and events
    /// follow; later it says that the reader was too slow, and nothing follows.
    Lagged {
        /// How many events were missed; not known where the reader was in an earlier run of the node.
        missed: Option<u64>,
    },
}

/// The log: a ring of the last [`EVENTS_MAX`] events, read by anybody from wherever they are.
///
/// Writing never waits. A reader holds nothing but its place in the ring, so that a slow one costs no memory; when the ring has gone round
/// past its place, it is told so and ends.
#[derive(Debug, Clone)]
pub(crate) struct EventLog(Arc<Log>);

#[derive(Debug)]
struct Log {
    ring: Mutex<Ring>,
    news: watch::Sender<()>,
}

#[derive(Debug)]
struct Ring {
    /// The number of the first event of this run.
    first_id: u64,
    /// The number of the next event.
    next_id: u64,
    events: VecDeque<SwarmEvent>,
    closed: bool,
}

impl EventLog {
    /// Makes an empty log. With the start's wall clock in milliseconds as the first number, numbers also grow from one run of a node to the
    /// next.
    pub(crate) fn new(first_id: u64) -> Self {
        let first_id = first_id.max(1);
        let ring = Ring { first_id, next_id: first_id, events: VecDeque::new(), closed: false };
        Self(Arc::new(Log { ring: Mutex::new(ring), news: watch::Sender::new(()) }))
    }

    /// Adds an event, and forgets the oldest where the ring is full.
    pub(crate) fn push(&self, kind: &'static str, at: Timestamp, data: Value) {
        {
            let mut ring = self.0.ring();
            let id = ring.next_id;
            ring.next_id += 1;
            if ring.events.len() == EVENTS_MAX {
                ring.events.pop_front();
            }
            ring.events.push_back(SwarmEvent { id, kind, at, data });
        }
        self.0.news.send_replace(());
    }

    /// Begins to read behind the event with the number `after`, with 0 at the oldest that is kept; without one, with what happens from
    /// now on.
    pub(crate) fn subscribe(&self, after: Option<u64>) -> EventStream {
        let news = self.0.news.subscribe();
        let ring = self.0.ring();
        let next = match after {
            Some(0) => ring.oldest(),
            // A number that was never given here is from an earlier run under a clock that was ahead: all that is kept is new.
            Some(after) if after >= ring.next_id => ring.oldest(),
            // Numbers from before this run's first one are of an earlier run, of which nothing is kept.
            Some(after) => after.saturating_add(1),
            None => ring.next_id,
        };
        EventStream { log: Arc::clone(&self.0), news, next, begun: false, ended: false }
    }

    /// Ends the log: readers get what is left, and then the end.
    pub(crate) fn close(&self) {
        self.0.ring().closed = true;
        self.0.news.send_replace(());
    }
}

impl Log {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// Returns the number of the oldest event that is kept; that of the next one if none is.
    fn oldest(&self) -> u64 {
        self.next_id - self.events.len() as u64
    }

    fn get(&self, id: u64) -> Option<&SwarmEvent> {
        let index = usize::try_from(id.checked_sub(self.oldest())?).ok()?;
        self.events.get(index)
    }
}

/// One reader of the log.
#[derive(Debug)]
pub struct EventStream {
    log: Arc<Log>,
    news: watch::Receiver<()>,
    next: u64,
    begun: bool,
    ended: bool,
}

impl EventStream {
    /// Waits for the next item; `None` after [`EventItem::Lagged`] for slowness, and once the swarm has stopped. Safe to cancel.
    pub async fn next(&mut self) -> Option<EventItem> {
        loop {
            self.news.mark_unchanged();
            if self.ended {
                return None;
            }
            if let Some(item) = self.take() {
                return Some(item);
            }
            if self.ended || self.news.changed().await.is_err() {
                return None;
            }
        }
    }

    fn take(&mut self) -> Option<EventItem> {
        let ring = self.log.ring();
        let oldest = ring.oldest();
        let begun = std::mem::replace(&mut self.begun, true);
        if self.next < oldest {
            let missed = (self.next >= ring.first_id).then_some(oldest - self.next);
            self.next = oldest;
            self.ended = begun;
            return Some(EventItem::Lagged { missed });
        }
        let event = ring.get(self.next).cloned();
        match &event {
            Some(_) => self.next += 1,
            None => self.ended = ring.closed,
        }
        event.map(EventItem::Event)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::json;

    use super::*;

    fn fill(log: &EventLog, numbers: std::ops::Range<u64>) {
        for number in numbers {
            log.push("peer:updated", Timestamp::from_unix_ms(0), json!({ "number": number }));
        }
    }

    async fn ids(stream: &mut EventStream, count: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        while ids.len() < count {
            match stream.next().await {
                Some(EventItem::Event(event)) => ids.push(event.id),
                other => panic!("{other:?}"),
            }
        }
        ids
    }

    #[tokio::test]
    async fn a_reader_that_comes_back_misses_nothing_and_gets_nothing_twice() {
        let log = EventLog::new(1_000);
        let mut first = log.subscribe(None);
        fill(&log, 0..3);
        assert_eq!(ids(&mut first, 3).await, [1_000, 1_001, 1_002]);
        drop(first);
        fill(&log, 3..5);
        let mut second = log.subscribe(Some(1_002));
        assert_eq!(ids(&mut second, 2).await, [1_003, 1_004]);
        assert!(second.next().now_or_never().is_none(), "nothing more has happened");
        let waiting = tokio::spawn(async move { second.next().await });
        fill(&log, 5..6);
        assert!(matches!(waiting.await.unwrap(), Some(EventItem::Event(event)) if event.id == 1_005));
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_missed_and_ends() {
        let log = EventLog::new(1);
        let mut slow = log.subscribe(None);
        fill(&log, 0..1);
        assert_eq!(ids(&mut slow, 1).await, [1]);
        fill(&log, 0..EVENTS_MAX as u64 + 7);
        assert_eq!(slow.next().await, Some(EventItem::Lagged { missed: Some(7) }));
        assert_eq!(slow.next().await, None);
    }

    #[tokio::test]
    async fn a_reader_from_long_ago_is_told_of_the_gap_and_goes_on() {
        let log = EventLog::new(1);
        fill(&log, 0..EVENTS_MAX as u64 + 7);
        let mut reader = log.subscribe(Some(2));
        assert_eq!(reader.next().await, Some(EventItem::Lagged { missed: Some(5) }));
        assert_eq!(ids(&mut reader, 2).await, [8, 9]);
    }

    #[tokio::test]
    async fn nobody_knows_how_many_events_an_earlier_run_had() {
        let log = EventLog::new(1_000);
        fill(&log, 0..1);
        let mut reader = log.subscribe(Some(2));
        assert_eq!(reader.next().await, Some(EventItem::Lagged { missed: None }));
        assert_eq!(ids(&mut reader, 1).await, [1_000]);
    }

    #[tokio::test]
    async fn a_number_that_was_never_given_replays_all_that_is_kept() {
        let log = EventLog::new(1);
        fill(&log, 0..2);
        assert_eq!(ids(&mut log.subscribe(Some(99)), 2).await, [1, 2]);
    }

    #[tokio::test]
    async fn the_end_comes_after_what_is_left() {
        let log = EventLog::new(1);
        let mut reader = log.subscribe(None);
        fill(&log, 0..1);
        log.close();
        assert_eq!(ids(&mut reader, 1).await, [1]);
        assert_eq!(reader.next().await, None);
    }
}
