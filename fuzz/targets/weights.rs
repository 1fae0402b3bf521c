//! Models between nodes: the first byte chooses requests for weights (`q`) and answers to them (`a`), requests to do something with models
//! (`m`) and answers to those (`s`).
#![no_main]

use bombus_swarm::fuzzing::{manage_answers, manage_requests, weights_answers, weights_requests};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    match first {
        b'q' => weights_requests(bytes),
        b'a' => weights_answers(bytes),
        b'm' => manage_requests(bytes),
        b's' => manage_answers(bytes),
        _ => {}
    }
});
