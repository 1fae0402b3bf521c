use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::RouteConfig;

/// Watches for answers that come to a standstill.
///
/// Only the time counts in which somebody waits for the next piece: whoever reads slowly makes no answer stall. One timer serves a
/// whole answer; it is set anew only when it fires.
pub(super) struct Stall {
    config: RouteConfig,
    /// The time between two pieces as others showed it. Counts until the answer shows its own.
    expected_gap: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when the next piece is waited for.
    since: Option<Instant>,
    /// How long was waited for all pieces so far.
    waited: Duration,
    pieces: u32,
}

impl Stall {
    /// Begins with an answer of which the pieces are expected to come so far apart. Where that is not known the answer gets more time
    /// until its second piece.
    pub(super) fn new(config: RouteConfig, expected_gap: Option<Duration>) -> Self {
        let expected_gap = expected_gap.unwrap_or_else(|| config.stall(Duration::ZERO));
        Self { config, expected_gap, timer: None, since: None, waited: Duration::ZERO, pieces: 0 }
    }

    /// Takes note of a piece.
    pub(super) fn came(&mut self) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
        self.pieces = self.pieces.saturating_add(1);
    }

    /// Begins to wait anew, although nothing came.
    pub(super) fn excuse(&mut self) {
        self.since = None;
    }

    /// Is called whenever there is no piece yet. Ready where none has come for too long, with how long that is.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let gap = if self.pieces > 1 { self.waited / (self.pieces - 1) } else { self.expected_gap };
        let limit = self.config.stall(gap);
        let end = *self.since.get_or_insert_with(Instant::now) + limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if timer.deadline() > end {
            timer.as_mut().reset(end);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= end {
                return Poll::Ready(limit);
            }
            timer.as_mut().reset(end);
        }
    }
}
