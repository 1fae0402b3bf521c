use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// What whoever asked and those that answer let each other know while there is nothing to hand on.
#[derive(Default)]
pub(super) struct Patience {
    /// Whether whoever asked has waited for too long.
    gave_up: AtomicBool,
    /// Runs that others are before at their backends.
    in_line: AtomicUsize,
    /// When a backend last said that it is at work.
    sign: Mutex<Option<Instant>>,
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
        self.in_line.load(Ordering::Relaxed) > 0
    }

    /// Takes note that a backend is at work.
    pub(super) fn note_sign(&self) {
        *self.sign.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn last_sign(&self) -> Option<Instant> {
        *self.sign.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a run behind others at its backend. Dropping it tells that it has its turn, or none any more.
pub(super) struct InLine(Arc<Patience>);

impl InLine {
    pub(super) fn of(patience: &Arc<Patience>) -> Self {
        patience.in_line.fetch_add(1, Ordering::Relaxed);
        Self(patience.clone())
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.0.in_line.fetch_sub(1, Ordering::Relaxed);
    }
}
