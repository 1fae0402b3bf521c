//! Streams about durable tasks: the first byte chooses what opens one (`q`), what requesters say after an offer (`w`) and what those say who
//! were asked (`a`).
#![no_main]

use bombus_swarm::fuzzing::{task_asks, task_sayings, task_words};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    match first {
        b'q' => task_asks(bytes),
        b'w' => task_words(bytes),
        b'a' => task_sayings(bytes),
        _ => {}
    }
});
