//! What the fuzz targets need of the messages.

use bombus_core::tasks::TaskDocument;

use super::wire::{ASK_BYTES_MAX, Ask, Said, WORD_BYTES_MAX, Word};
use crate::fuzzing::{is_written_as_read, read_all};

/// Reads what opens streams about tasks, and the documents in offers.
///
/// # Panics
///
/// When something does not hold of them, as those that follow.
pub fn task_asks(bytes: &[u8]) {
    for ask in read_all::<Ask>(bytes, ASK_BYTES_MAX) {
        is_written_as_read(&ask, ASK_BYTES_MAX);
        let Ask::Offer(offer) = ask else { continue };
        let Some(document) = serde_json::from_str(&offer.task).ok().and_then(|json| TaskDocument::read(json).ok())
        else {
            continue;
        };
        let json = serde_json::to_value(&document).expect("a document is JSON");
        assert_eq!(TaskDocument::read(json).ok().as_ref(), Some(&document), "it reads what it writes");
    }
}

/// Reads what requesters say to workers.
pub fn task_words(bytes: &[u8]) {
    for word in read_all::<Word>(bytes, WORD_BYTES_MAX) {
        is_written_as_read(&word, WORD_BYTES_MAX);
    }
}

/// Reads what those say who were asked.
pub fn task_sayings(bytes: &[u8]) {
    for said in read_all::<Said>(bytes, WORD_BYTES_MAX) {
        is_written_as_read(&said, WORD_BYTES_MAX);
    }
}
