//! What the fuzz targets need of the messages.

use futures::FutureExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{self, ANSWER_MAX, ManageAnswer, ManageRequest, REQUEST_MAX, WeightsAnswer, WeightsRequest};

/// Reads requests for weights until the bytes end or are none.
///
/// # Panics
///
/// When one is not read as it is written, as those that follow.
pub fn weights_requests(bytes: &[u8]) {
    read_all::<WeightsRequest>(bytes, REQUEST_MAX);
}

/// Reads answers to requests for weights.
pub fn weights_answers(bytes: &[u8]) {
    read_all::<WeightsAnswer>(bytes, ANSWER_MAX);
}

/// Reads requests to do something with models.
pub fn manage_requests(bytes: &[u8]) {
    read_all::<ManageRequest>(bytes, REQUEST_MAX);
}

/// Reads answers to those.
pub fn manage_answers(bytes: &[u8]) {
    read_all::<ManageAnswer>(bytes, ANSWER_MAX);
}

fn read_all<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(mut bytes: &[u8], max: usize) {
    let there = "bytes in memory are there at once";
    while let Ok(message) = wire::read::<T>(&mut bytes, max).now_or_never().expect(there) {
        let mut written = Vec::new();
        // What was read from few bytes may take more than a message has, as numbers in a longer form do the other way round.
        if wire::write(&mut written, &message).now_or_never().expect("memory takes bytes at once").is_ok()
            && written.len() <= max
        {
            let read = wire::read::<T>(&mut written.as_slice(), max).now_or_never().expect(there);
            assert_eq!(read.ok().as_ref(), Some(&message), "it reads what it writes");
        }
    }
}
