//! How many bytes wait to be written.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// How many bytes of blocks may wait to be written: when so many do, further changes wait for room.
const QUEUED_BYTES_MAX: usize = 64 << 20;

/// The bytes of blocks that wait to be written, or are being written.
#[derive(Default)]
pub(super) struct Queued {
    bytes: AtomicUsize,
    /// Told when there is room again.
    freed: Notify,
}

/// The place of some blocks among those that wait. Dropping it makes room.
pub(super) struct Place {
    queued: Arc<Queued>,
    bytes: usize,
}

impl Queued {
    /// Waits until there is room. What is added then has no bound of its own: it is one entry, or one piece of a log.
    pub(super) async fn room(&self) {
        loop {
            // It hears what is told from here on, so that nothing is missed between the look and the wait.
            let freed = self.freed.notified();
            if self.bytes.load(Ordering::SeqCst) < QUEUED_BYTES_MAX {
                return;
            }
            freed.await;
        }
    }

    pub(super) fn add(self: &Arc<Self>, bytes: usize) -> Place {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
        Place { queued: Arc::clone(self), bytes }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let before = self.queued.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        if before >= QUEUED_BYTES_MAX && before - self.bytes < QUEUED_BYTES_MAX {
            self.queued.freed.notify_waiters();
        }
    }
}
