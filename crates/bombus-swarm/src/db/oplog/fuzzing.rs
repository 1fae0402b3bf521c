//! What the fuzz targets need of the messages.

use std::io;

use futures::FutureExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{self, Answer, PIECE_BLOCKS_MAX, PIECE_MAX, Request};

/// Most bytes of a piece of a log in bulk.
pub const OPLOG_PIECE_MAX: usize = PIECE_MAX;
/// Most blocks of one.
pub const OPLOG_PIECE_BLOCKS_MAX: usize = PIECE_BLOCKS_MAX;

/// Reads a request for a log in bulk; returns it as it would be written, or none where it is not one.
#[must_use]
pub fn oplog_request(bytes: &[u8]) -> Option<Vec<u8>> {
    written_again::<Request>(bytes)
}

/// Reads an answer to such a request; returns it as it would be written, or none where it is not one.
#[must_use]
pub fn oplog_answer(bytes: &[u8]) -> Option<Vec<u8>> {
    written_again::<Answer>(bytes)
}

/// Reads pieces of blocks until the bytes end or are none.
pub fn oplog_pieces(mut bytes: &[u8]) -> (Vec<Vec<Vec<u8>>>, io::Error) {
    let mut pieces = Vec::new();
    loop {
        match wire::read_piece(&mut bytes).now_or_never().expect("bytes in memory are there at once") {
            Ok(piece) => pieces.push(piece),
            Err(error) => return (pieces, error),
        }
    }
}

fn written_again<T: Serialize + DeserializeOwned>(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let message: T = wire::read(&mut bytes).now_or_never().expect("bytes in memory are there at once").ok()?;
    let mut written = Vec::new();
    // What was read from few bytes may take more than a message has, as numbers in a longer form do the other way round.
    wire::write(&mut written, &message).now_or_never().expect("memory takes bytes at once").ok()?;
    Some(written)
}
