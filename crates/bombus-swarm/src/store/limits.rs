//! Bounds of the store.

use std::time::Duration;

/// Longest text of a task, in bytes, where nothing else is said: a prompt, a request as a whole, an answer.
pub const TEXT_BYTES_MAX: usize = 32 << 20;

/// Bounds of the task store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLimits {
    /// Longest prompt or answer that stands in its entry, in bytes; longer ones become blocks of their own. At most 64 KiB.
    pub inline_bytes: usize,
    /// Longest prompt or answer, in bytes. At most 64 MiB.
    pub text_bytes_max: usize,
    /// When all large texts take so many bytes in the storage, no more of others are fetched before somebody reads them.
    pub texts_bytes_max: u64,
    /// How many large texts of others are fetched at once before anybody reads them.
    pub fetches: usize,
    /// How long one may take, in milliseconds; it is tried again when somebody reads it.
    pub fetch_ms: u64,
    /// How many audit events wait to be written. When so many do, further ones are left out and counted.
    pub audit_queue: usize,
    /// How many changes wait for a reader of [`super::TaskStore::updates`]. One that is further behind is told how many it missed.
    pub updates: usize,
    /// How many finished tasks are kept in memory as they were last read.
    pub finished_views: usize,
    /// For so long large texts stay though nobody refers to them, since somebody may be about to, in milliseconds. At most ten minutes.
    pub young_ms: u64,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            inline_bytes: 8 << 10,
            text_bytes_max: TEXT_BYTES_MAX,
            texts_bytes_max: 8 << 30,
            fetches: 8,
            fetch_ms: 20_000,
            audit_queue: 4_096,
            updates: 4_096,
            finished_views: 1_024,
            young_ms: 600_000,
        }
    }
}

impl StoreLimits {
    pub(super) fn young(&self) -> Duration {
        Duration::from_millis(self.young_ms)
    }

    /// Brings what nobody could mean into range.
    pub(super) fn clamped(mut self) -> Self {
        self.inline_bytes = self.inline_bytes.min(64 << 10);
        self.text_bytes_max = self.text_bytes_max.min(64 << 20);
        for value in [&mut self.fetches, &mut self.audit_queue, &mut self.updates, &mut self.finished_views] {
            *value = (*value).max(1);
        }
        self.fetch_ms = self.fetch_ms.max(1);
        self
    }
}
