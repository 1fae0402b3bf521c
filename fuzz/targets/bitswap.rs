//! Messages of the exchange of blocks, as a peer sends them on a stream, one after the other.
#![no_main]

use bombus_net::bitswap::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    fuzzing::messages(data);
});
