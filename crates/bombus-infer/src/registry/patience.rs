use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So long it counts that others are before a run, once that was said: a backend that hangs says nothing more. Backends say it about once a
/// second; the embedded engine only between two rounds, which take up to 2 s, and longer on a busy machine.
const LINE_AGE_MAX: Duration = Duration::from_secs(5);

/// What whoever asked and those that answer let each other know while there is nothing to hand on.
#[derive(Default)]
pub(super) struct Patience {
    /// Whether whoever asked has waited for too long.
    gave_up: AtomicBool,
    signs: Mutex<Signs>,
}

#[derive(Default)]
struct Signs {
    /// When a backend last said that it is at work.
    last: Option<Instant>,
    /// The line of the run of which that was said last. Of several runs, the others soon say so again.
    line: Option<Line>,
}

impl Patience {
    pub(super) fn give_up(&self) {
        self.gave_up.store(true, Ordering::Relaxed);
    }

    pub(super) fn gave_up(&self) -> bool {
        self.gave_up.load(Ordering::Relaxed)
    }

    /// Returns whether a run waits for others at its backend.
    pub(super) fn has_line(&self) -> bool {
        self.signs().line.is_some_and(Line::stands)
    }

    /// Takes note that a backend is at work.
    pub(super) fn note_sign(&self) {
        self.signs().last = Some(Instant::now());
    }

    /// Takes note that a backend is at work, but on others than a run; returns the run's place behind them.
    pub(super) fn note_line(&self) -> Line {
        let now = Instant::now();
        let line = Line(now);
        *self.signs() = Signs { last: Some(now), line: Some(line) };
        line
    }

    /// Takes note that a run has its turn, or ends.
    pub(super) fn end_line(&self) {
        self.signs().line = None;
    }

    pub(super) fn last_sign(&self) -> Option<Instant> {
        self.signs().last
    }

    fn signs(&self) -> MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a run behind others at its backend, by when that was last said.
#[derive(Clone, Copy)]
pub(super) struct Line(Instant);

impl Line {
    /// Returns whether it was said so lately that it still counts.
    pub(super) fn stands(self) -> bool {
        self.0.elapsed() < LINE_AGE_MAX
    }
}
