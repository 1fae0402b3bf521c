//! Files of which one process at a time may change what they stand for.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longest wait for another process. What is done under these locks takes milliseconds, on a slow disk seconds; one that has a lock for
/// longer was stopped.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);
/// Time between two looks at a lock that another process has.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Makes a file, or opens it, and locks it, on a thread that may block. The lock goes with what is returned.
///
/// # Errors
///
/// When the file cannot be opened, and `TimedOut` when it was locked by others for all of `limit`.
#[expect(clippy::disallowed_methods, reason = "the lock of a file can be awaited without a limit only")]
pub(crate) fn lock_file(path: &Path, limit: Duration) -> io::Result<File> {
    let file = File::create(path)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < limit => sleep(LOOK_EVERY),
            Err(TryLockError::WouldBlock) => {
                let text = format!("another process has had it locked for {} s: end it and try again", limit.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_until_its_holder_lets_it_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = lock_file(&path, Duration::ZERO).unwrap();
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lock_file(&path, WAIT_MAX));
            assert_eq!(lock_file(&path, LOOK_EVERY).unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert!(!waiting.is_finished(), "two have one lock");
            drop(held);
            waiting.join().unwrap()
        });
        waiting.unwrap();
    }
}
