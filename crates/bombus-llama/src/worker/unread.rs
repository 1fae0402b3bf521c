//! Requests that have come and are still to be read.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bombus_core::chat::ChatRequest;

use crate::protocol::RunId;

/// Most bytes of the messages with requests that are still to be read, all together. A single one may be larger.
const UNREAD_BYTES_MAX: usize = 256 << 20;

/// Says how much room is taken by requests that are still to be read.
#[derive(Default)]
pub(super) struct Hall(Arc<AtomicUsize>);

/// The room that a request takes. Dropping it gives it back.
pub(super) struct Room {
    bytes: usize,
    taken: Arc<AtomicUsize>,
}

impl Hall {
    /// Takes room for a message of so many bytes. `None`: too much waits already.
    pub(super) fn take(&self, bytes: usize) -> Option<Room> {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        let room = Room { bytes, taken: Arc::clone(&self.0) };
        (before == 0 || before.saturating_add(bytes) <= UNREAD_BYTES_MAX).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A chat request whose prompt is still to be read.
pub(super) struct ChatMessage {
    pub(super) id: RunId,
    pub(super) credit: u32,
    pub(super) request: Box<ChatRequest>,
    pub(super) room: Room,
}

/// The line of chat requests whose prompts are still to be read. How long it may become is the node's to say, and how large that of the
/// [`Hall`].
#[derive(Default)]
pub(super) struct Unread {
    line: Mutex<VecDeque<ChatMessage>>,
    came: Condvar,
}

impl Unread {
    fn line(&self) -> MutexGuard<'_, VecDeque<ChatMessage>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, message: ChatMessage) {
        self.line().push_back(message);
        self.came.notify_one();
    }

    /// Waits for the next one.
    pub(super) fn take(&self) -> ChatMessage {
        let mut line = self.line();
        loop {
            match line.pop_front() {
                Some(message) => return message,
                None => line = self.came.wait(line).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Takes one out of which nobody wants to hear any more. Returns whether it was there.
    pub(super) fn cancel(&self, id: RunId) -> bool {
        let mut line = self.line();
        let at = line.iter().position(|message| message.id == id);
        at.and_then(|at| line.remove(at)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_refused_until_there_is_some_again() {
        let hall = Hall::default();
        let large = hall.take(UNREAD_BYTES_MAX + 1).expect("a single one may be as large as a message");
        assert!(hall.take(1).is_none());
        drop(large);
        let halves = [(); 2].map(|()| hall.take(UNREAD_BYTES_MAX / 2).expect("both fit"));
        assert!(hall.take(1).is_none());
        drop(halves);
        assert!(hall.take(UNREAD_BYTES_MAX).is_some());
    }
}
