//! What runs are writing: the text of each task that runs here or for this node, for all who follow it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bombus_core::tasks::{Epoch, TaskId};
use tokio::sync::watch;

/// The longest text that is kept for readers, in bytes. What an answer has beyond it comes with the result.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// The answers that are being written.
#[derive(Debug, Default)]
pub(super) struct LiveTasks {
    tasks: Mutex<HashMap<TaskId, Arc<Live>>>,
}

/// The answer to one task, as far as it is written.
#[derive(Debug)]
pub(super) struct Live {
    text: Mutex<Text>,
    news: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Text {
    epoch: Epoch,
    written: String,
    tokens: u64,
    ended: bool,
}

/// What has come since a reader looked last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// Another attempt than before: what was written before does not count.
    pub(super) anew: bool,
    /// Under which grant it is written.
    pub(super) epoch: Epoch,
    /// What has been added.
    pub(super) text: String,
    /// How many tokens have been written in all.
    pub(super) tokens: u64,
    /// Nothing follows in this attempt.
    pub(super) ended: bool,
}

/// Reads the answer to a task from wherever it stands.
#[derive(Debug)]
pub(super) struct Reader {
    live: Arc<Live>,
    news: watch::Receiver<()>,
    epoch: Option<Epoch>,
    read: usize,
    tokens: u64,
    ended: bool,
}

impl LiveTasks {
    fn tasks(&self) -> MutexGuard<'_, HashMap<TaskId, Arc<Live>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an attempt, unless it has begun. Readers of the one before see that it does not count any more.
    pub(super) fn begin(&self, task: &TaskId, epoch: Epoch) -> Arc<Live> {
        let live = {
            let mut tasks = self.tasks();
            Arc::clone(tasks.entry(task.clone()).or_insert_with(|| Arc::new(Live::new())))
        };
        live.change(|text| {
            if text.epoch < epoch {
                *text = Text { epoch, ..Text::default() };
            }
        });
        live
    }

    /// Returns the answer to a task that runs here or for this node.
    pub(super) fn get(&self, task: &TaskId) -> Option<Arc<Live>> {
        self.tasks().get(task).cloned()
    }

    /// Returns under which grant a task's run has begun, as far as is known here.
    pub(super) fn epoch(&self, task: &TaskId) -> Option<Epoch> {
        self.get(task).map(|live| live.text().epoch)
    }

    /// Returns how many tokens of a task have come.
    pub(super) fn tokens(&self, task: &TaskId) -> u64 {
        self.get(task).map_or(0, |live| live.text().tokens)
    }

    /// Forgets a task. Readers see its end.
    pub(super) fn end(&self, task: &TaskId) {
        let live = self.tasks().remove(task);
        if let Some(live) = live {
            live.end();
        }
    }
}

impl Live {
    fn new() -> Self {
        Self { text: Mutex::default(), news: watch::Sender::new(()) }
    }

    fn text(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Text)) {
        change(&mut self.text());
        self.news.send_replace(());
    }

    /// Adds a piece to the answer of an attempt. What comes late for one before is passed over.
    pub(super) fn write(&self, epoch: Epoch, piece: &str, tokens: u64) {
        self.change(|text| {
            if text.epoch == epoch {
                text.tokens = text.tokens.saturating_add(tokens);
                if text.written.len() + piece.len() <= TEXT_BYTES_MAX {
                    text.written.push_str(piece);
                }
            }
        });
    }

    /// Adds a piece that a worker tells, with the number of all tokens so far. Where it begins anew, what it told before does not count.
    pub(super) fn write_to(&self, epoch: Epoch, anew: bool, piece: &str, tokens: u64) {
        self.change(|text| {
            if text.epoch != epoch {
                return;
            }
            if anew {
                text.written.clear();
            }
            text.tokens = tokens;
            if text.written.len() + piece.len() <= TEXT_BYTES_MAX {
                text.written.push_str(piece);
            }
        });
    }

    /// Says that nothing follows in this attempt.
    pub(super) fn end(&self) {
        self.change(|text| text.ended = true);
    }

    /// Reads from the beginning of the attempt that goes on now.
    pub(super) fn read(self: &Arc<Self>) -> Reader {
        let news = self.news.subscribe();
        Reader { live: Arc::clone(self), news, epoch: None, read: 0, tokens: 0, ended: false }
    }
}

impl Reader {
    /// Takes what has come since the last time; `None` where that is nothing.
    pub(super) fn take(&mut self) -> Option<Piece> {
        self.news.mark_unchanged();
        let text = self.live.text();
        let anew = self.epoch != Some(text.epoch);
        if anew {
            (self.read, self.tokens, self.ended) = (0, 0, false);
        }
        let is_news = anew || text.written.len() > self.read || text.tokens != self.tokens || text.ended != self.ended;
        if !is_news {
            return None;
        }
        let piece = Piece {
            anew,
            epoch: text.epoch,
            // What is told again after a stream broke has not come as far as this yet.
            text: text.written.get(self.read..).unwrap_or_default().to_owned(),
            tokens: text.tokens,
            ended: text.ended,
        };
        (self.epoch, self.read, self.tokens, self.ended) =
            (Some(text.epoch), text.written.len().max(self.read), text.tokens, text.ended);
        Some(piece)
    }

    /// Waits until there may be something to take. Safe to cancel.
    pub(super) async fn changed(&mut self) {
        // The sender lives as long as the reader.
        drop(self.news.changed().await);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn id() -> TaskId {
        TaskId::parse("t").unwrap()
    }

    #[test]
    fn a_reader_gets_each_piece_once_and_is_told_of_another_attempt() {
        let tasks = LiveTasks::default();
        let live = tasks.begin(&id(), Epoch(1));
        live.write(Epoch(1), "one ", 1);
        let mut reader = live.read();
        live.write(Epoch(1), "two", 1);
        let piece = reader.take().unwrap();
        assert_eq!((piece.anew, piece.text.as_str(), piece.tokens), (true, "one two", 2));
        assert_eq!(reader.take(), None);
        tasks.begin(&id(), Epoch(1));
        assert_eq!(reader.take(), None, "the same attempt has not begun anew");
        tasks.begin(&id(), Epoch(2));
        live.write(Epoch(1), "late", 1);
        live.write(Epoch(2), "again", 1);
        let piece = reader.take().unwrap();
        assert_eq!((piece.anew, piece.epoch, piece.text.as_str(), piece.tokens), (true, Epoch(2), "again", 1));
    }

    #[test]
    fn the_end_is_seen_by_who_reads_on() {
        let tasks = LiveTasks::default();
        let mut reader = tasks.begin(&id(), Epoch(1)).read();
        assert!(reader.take().is_some());
        assert!(reader.changed().now_or_never().is_none());
        tasks.end(&id());
        assert!(reader.changed().now_or_never().is_some());
        assert!(reader.take().unwrap().ended && tasks.get(&id()).is_none());
    }

    #[test]
    fn what_is_kept_for_readers_is_bounded() {
        let tasks = LiveTasks::default();
        let live = tasks.begin(&id(), Epoch(1));
        for _ in 0..3 {
            live.write(Epoch(1), &"x".repeat(TEXT_BYTES_MAX / 2), 1);
        }
        let piece = live.read().take().unwrap();
        assert_eq!((piece.text.len(), piece.tokens), (TEXT_BYTES_MAX, 3));
    }
}
