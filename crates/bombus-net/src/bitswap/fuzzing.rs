//! What the fuzz target needs of what is private here.

use std::io;

use futures::FutureExt;

use super::{BitswapConfig, wire};

/// Reads messages until the bytes end or are none, checks what has to hold for each, and returns how many there were.
///
/// # Panics
///
/// When something does not hold.
pub fn messages(mut bytes: &[u8]) -> usize {
    let max = BitswapConfig::default().message_bytes_max;
    let mut count = 0;
    while let Ok(Some(body)) = next(&mut bytes, max) {
        assert!(body.len() <= max, "a message of {} bytes", body.len());
        let Ok(heard) = wire::decode(&body) else { break };
        for block in &heard.blocks {
            let Some(cid) = block.name() else { continue };
            assert!(wire::is_checkable(&cid), "{cid} is no name to check by");
            assert_eq!(wire::Block::new(&cid, block.data.clone()), *block, "a name is written as it was read");
        }
        let read_again = wire::decode(&heard.encode()).expect("it reads what it writes");
        assert_eq!(read_again.wants, heard.wants);
        assert_eq!(read_again.presences, heard.presences);
        assert_eq!((read_again.is_full, read_again.unreadable), (heard.is_full, 0));
        count += 1;
    }
    count
}

fn next(bytes: &mut &[u8], max: usize) -> io::Result<Option<Vec<u8>>> {
    let there = "bytes in memory are there at once";
    let Some(length) = wire::read_length(bytes, max).now_or_never().expect(there)? else { return Ok(None) };
    wire::read_body(bytes, length).now_or_never().expect(there).map(Some)
}
