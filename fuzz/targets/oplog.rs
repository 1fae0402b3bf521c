//! A log in bulk, as a peer sends it or asks for it: the first byte chooses requests (`q`), answers (`a`) and pieces of blocks (`p`).
#![no_main]

use bombus_swarm::fuzzing::{OPLOG_PIECE_BLOCKS_MAX, OPLOG_PIECE_MAX, oplog_answer, oplog_pieces, oplog_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    match first {
        b'q' | b'a' => {
            let read = if *first == b'q' { oplog_request } else { oplog_answer };
            if let Some(written) = read(bytes) {
                assert_eq!(read(&written).as_ref(), Some(&written), "what is written is read as the same");
            }
        }
        b'p' => {
            let (pieces, _) = oplog_pieces(bytes);
            let mut rest = bytes;
            for piece in pieces {
                let length: usize = piece.iter().map(|block| 4 + block.len()).sum();
                assert!(length <= OPLOG_PIECE_MAX, "a piece of {length} bytes");
                assert!(piece.len() <= OPLOG_PIECE_BLOCKS_MAX, "a piece of {} blocks", piece.len());
                assert!(piece.iter().all(|block| !block.is_empty()), "a block of no bytes");
                let blocks = piece.iter().flat_map(|block| {
                    let length = u32::try_from(block.len()).expect("a block is smaller than its piece");
                    [&length.to_be_bytes()[..], block].concat()
                });
                let (sent, behind) = rest[4..].split_at(length);
                assert!(blocks.eq(sent.iter().copied()), "blocks are what was sent, whole and in order");
                rest = behind;
            }
        }
        _ => {}
    }
});
