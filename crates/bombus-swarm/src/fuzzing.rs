//! What the fuzz targets need of what is private here.

use std::io;

use futures::FutureExt;

pub use crate::db::direct_fuzzing::entries_of_stream;
pub use crate::db::oplog_fuzzing::{
    OPLOG_PIECE_BLOCKS_MAX, OPLOG_PIECE_MAX, oplog_answer, oplog_pieces, oplog_request,
};
pub(crate) use crate::route::fuzzing::{is_written_as_read, read_all};
pub use crate::route::fuzzing::{route_offers, route_replies, route_requests};
pub use crate::tasks::fuzzing::{task_asks, task_sayings, task_words};
pub use crate::weights::fuzzing::{manage_answers, manage_requests, weights_answers, weights_requests};
use crate::wire::{DATAGRAM_MAX, HELLO_MAX, read_datagram, read_hello};

/// Most bytes of a frame of either kind.
pub const FRAME_MAX: [usize; 2] = [HELLO_MAX, DATAGRAM_MAX];

/// Reads frames with first words until the bytes end or are none.
pub fn hellos(mut bytes: &[u8]) -> (Vec<Vec<u8>>, io::Error) {
    let mut frames = Vec::new();
    loop {
        match read_hello(&mut bytes).now_or_never().expect("bytes in memory are there at once") {
            Ok(frame) => frames.push(frame),
            Err(error) => return (frames, error),
        }
    }
}

/// Reads frames with datagrams of the failure detector until the bytes end or are none.
pub fn datagrams(mut bytes: &[u8]) -> (Vec<Vec<u8>>, io::Error) {
    let mut frames = Vec::new();
    loop {
        match read_datagram(&mut bytes).now_or_never().expect("bytes in memory are there at once") {
            Ok(frame) => frames.push(frame),
            Err(error) => return (frames, error),
        }
    }
}
