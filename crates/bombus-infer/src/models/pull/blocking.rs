//! Long work on files, with progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::interval;

use super::{PullProgress, PullStage, Report};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Does work on a thread that may block. The work counts the bytes that it has done.
pub(super) async fn watched<T: Send + 'static>(
    report: Report<'_>,
    stage: PullStage,
    total_bytes: Option<u64>,
    work: impl FnOnce(&AtomicU64) -> T + Send + 'static,
) -> T {
    let done = Arc::new(AtomicU64::new(0));
    let mut task = spawn_blocking({
        let done = Arc::clone(&done);
        move || work(&done)
    });
    let mut tell = || report(PullProgress::new(stage, done.load(Ordering::Relaxed), total_bytes));
    tell();
    let mut tick = interval(TELL_EVERY);
    loop {
        tokio::select! {
            biased;
            result = &mut task => {
                tell();
                return result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            }
            _ = tick.tick() => tell(),
        }
    }
}
