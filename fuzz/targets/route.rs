//! Requests between nodes: the first byte chooses requests (`q`), what workers say (`a`) and what nodes tell of what they offer (`o`).
#![no_main]

use bombus_swarm::fuzzing::{route_offers, route_replies, route_requests};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    match first {
        b'q' => route_requests(bytes),
        b'a' => route_replies(bytes),
        b'o' => route_offers(bytes),
        _ => {}
    }
});
