//! The clocks of the swarm.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bombus_core::topics::Timestamp;
use tokio::time::Instant;

use crate::view::Moment;

/// Tells the time of day, which is what messages carry. Tests hand in one of their own.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl WallClock {
    /// Takes a function that tells the time of day.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Makes a clock that begins at a time and goes with tokio's, which tests can pause.
    #[must_use]
    pub fn from_tokio(begin: Timestamp) -> Self {
        let started = Instant::now();
        Self::new(move || Timestamp::from_unix_ms(begin.unix_ms().saturating_add_unsigned(millis(started.elapsed()))))
    }

    /// Tells the time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for WallClock {
    /// Tells the system's time.
    fn default() -> Self {
        Self::new(|| {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Timestamp::from_unix_ms(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX))
        })
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WallClock").field(&self.now()).finish()
    }
}

/// Both clocks: the time of day, and milliseconds since the service was made, which never go back.
#[derive(Debug, Clone)]
pub(crate) struct Clocks {
    wall: WallClock,
    started: Instant,
}

impl Clocks {
    pub(crate) fn start(wall: WallClock) -> Self {
        Self { wall, started: Instant::now() }
    }

    pub(crate) fn wall(&self) -> Timestamp {
        self.wall.now()
    }

    /// Returns Unix time in milliseconds; 0 for all that was before 1970.
    pub(crate) fn unix_ms(&self) -> u64 {
        u64::try_from(self.wall().unix_ms()).unwrap_or(0)
    }

    pub(crate) fn ms(&self) -> u64 {
        millis(self.started.elapsed())
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment { ms: self.ms(), unix_ms: self.unix_ms() }
    }

    /// Returns when a number of milliseconds will have passed since the start.
    pub(crate) fn at(&self, ms: u64) -> Instant {
        self.started + Duration::from_millis(ms)
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
