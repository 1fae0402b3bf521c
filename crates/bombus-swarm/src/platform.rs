//! What differs between operating systems.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Makes a file, or empties the one that is there; on Unix a new one is readable by its owner alone.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Makes the name of a file safe, which its directory holds.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Returns how many bytes the disk of a directory has left; `None` where that cannot be told.
#[cfg(unix)]
pub(crate) fn free_bytes(directory: &Path) -> Option<u64> {
    let disk = nix::sys::statvfs::statvfs(directory).ok()?;
    #[expect(clippy::useless_conversion, reason = "the numbers are smaller on other systems")]
    let (blocks, size) = (u64::from(disk.blocks_available()), u64::from(disk.fragment_size()));
    Some(blocks.saturating_mul(size))
}

/// Returns how many bytes the disk of a directory has left; `None` where that cannot be told.
#[cfg(not(unix))]
pub(crate) fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// Tells the time since some moment before the start of the program, with the time during which the machine slept. It never goes back,
/// whatever is done to the time of day.
///
/// On Linux it is CLOCK_BOOTTIME; on macOS CLOCK_MONOTONIC, which counts sleep there. Elsewhere sleep may not be counted.
#[cfg(unix)]
pub(crate) fn time_with_sleep() -> Duration {
    // By the C library, as the clocks of the standard library are read, so that whoever stands before it changes all of them alike.
    use nix::time::{ClockId, clock_gettime};
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;
    clock_gettime(CLOCK).expect("every system has this clock").into()
}

/// Tells the time since the first call. It never goes back, whatever is done to the time of day.
#[cfg(not(unix))]
pub(crate) fn time_with_sleep() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_clock_of_leases_goes_on() {
        let before = time_with_sleep();
        tokio::time::sleep(Duration::from_millis(2)).await;
        let passed = time_with_sleep() - before;
        assert!(passed >= Duration::from_millis(2) && passed < Duration::from_secs(60), "{passed:?}");
    }
}
