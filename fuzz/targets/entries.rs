//! A stream of entries, as a peer sends them straight to a database: which one it is about, and blocks, one after the other.
#![no_main]

use bombus_swarm::fuzzing::entries_of_stream;
use libfuzzer_sys::fuzz_target;

/// Most bytes of an entry here.
const BYTES_MAX: usize = 4_096;

fuzz_target!(|data: &[u8]| {
    let Some((address, entries)) = entries_of_stream(data, BYTES_MAX) else { return };
    let behind = |length: usize| u32::try_from(length).expect("it is short").to_be_bytes();
    let begun = [&behind(address.len())[..], address.as_bytes()].concat();
    let mut rest = data.strip_prefix(&begun[..]).expect("an address is written as it was read");
    for entry in entries {
        assert!((1..=BYTES_MAX).contains(&entry.len()), "an entry of {} bytes", entry.len());
        let sent = [&behind(entry.len())[..], &entry].concat();
        rest = rest.strip_prefix(&sent[..]).expect("entries are what was sent, whole and in order");
    }
});
