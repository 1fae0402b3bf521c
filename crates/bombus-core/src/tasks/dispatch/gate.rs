use std::time::Duration;

/// Keeps a node that was away from acting before it knows what the others know.
#[derive(Debug)]
pub(super) struct Gate {
    closed: Option<Closed>,
}

#[derive(Debug)]
struct Closed {
    since: Duration,
    until: Duration,
    /// Whether the node has just been started.
    is_start: bool,
}

impl Gate {
    /// Begins closed.
    pub(super) fn started(now: Duration, limit: Duration) -> Self {
        Self { closed: Some(Closed { since: now, until: now + limit, is_start: true }) }
    }

    /// Closes it. Returns false where it is closed already: whoever syncs then learns of this too.
    pub(super) fn close(&mut self, now: Duration, limit: Duration) -> bool {
        match &mut self.closed {
            Some(_) => false,
            None => {
                self.closed = Some(Closed { since: now, until: now + limit, is_start: false });
                true
            }
        }
    }

    pub(super) fn open(&mut self) {
        self.closed = None;
    }

    pub(super) fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    /// Returns when it opens by itself.
    pub(super) fn opens(&self) -> Option<Duration> {
        self.closed.as_ref().map(|closed| closed.until)
    }

    /// Returns whether a task that this run of the node made, at that time, may pass: nobody else can have had it.
    pub(super) fn lets_through(&self, came: Duration) -> bool {
        self.closed.as_ref().is_none_or(|closed| closed.is_start || came >= closed.since)
    }
}
