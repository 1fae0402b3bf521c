//! When a block counts, by what it states and what it follows: the rule stands at the top of [`super`].

use super::{CLOCK_MAX, CLOCK_STEP_MAX};

/// The time of a block, or the greatest of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Time {
    /// What it states.
    pub(super) stated: u64,
    /// At which it counts, or would.
    pub(super) counted: u64,
}

impl Time {
    /// Returns the greatest of several, of both kinds; zero where there are none.
    pub(super) fn greatest(times: impl Iterator<Item = Self>) -> Self {
        times.fold(Self::default(), |greatest, time| Self {
            stated: greatest.stated.max(time.stated),
            counted: greatest.counted.max(time.counted),
        })
    }

    /// Returns the time of a block that states one and follows others of which this is the greatest, and whether it may state that.
    pub(super) fn follow(self, stated: u64) -> (Self, bool) {
        let allowed = |step: &u64| (1..=CLOCK_STEP_MAX).contains(step) && stated <= CLOCK_MAX;
        let step = |from: u64| stated.checked_sub(from).filter(allowed);
        let step = step(self.counted).or_else(|| step(self.stated));
        (Self { stated, counted: self.counted + step.unwrap_or_default() }, step.is_some())
    }

    /// Returns what a new entry states that counts `step` above others of which this is the greatest; none at the end of time.
    ///
    /// It lies above all that they state, as peers in JavaScript order by that, unless this is the end of what can be stated.
    pub(super) fn next(self, step: u64) -> Option<u64> {
        let above = |time: u64| time.checked_add(step).filter(|time| *time <= CLOCK_MAX);
        above(self.stated.max(self.counted)).or_else(|| above(self.counted))
    }
}
