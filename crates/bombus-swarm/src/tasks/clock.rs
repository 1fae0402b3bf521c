//! The clock of leases: it counts the time during which the machine sleeps, so that a lease runs out meanwhile.

use std::time::Duration;

/// Tells the time since some moment before the start of the program. It never goes back, whatever is done to the time of day.
///
/// On Linux it is CLOCK_BOOTTIME; on macOS CLOCK_MONOTONIC, which counts sleep there. Elsewhere sleep may not be counted.
#[cfg(unix)]
pub(super) fn now() -> Duration {
    // By the C library, as the clocks of the standard library are read, so that whoever stands before it changes all of them alike.
    use nix::time::{ClockId, clock_gettime};
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;
    clock_gettime(CLOCK).expect("every system has this clock").into()
}

#[cfg(not(unix))]
pub(super) fn now() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_goes_on() {
        let before = now();
        tokio::time::sleep(Duration::from_millis(2)).await;
        let passed = now() - before;
        assert!(passed >= Duration::from_millis(2) && passed < Duration::from_secs(60), "{passed:?}");
    }
}
