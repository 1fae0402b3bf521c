//! What reaches a node from somebody who has no key, or an address of whom: the first byte chooses between addresses in their binary form
//! (`a`) and as text (`t`), and otherwise says how many of the first bytes on a connection come at once.
#![no_main]

use bombus_net::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    match first {
        b'a' => fuzzing::told_address(bytes),
        b't' => fuzzing::typed_address(&String::from_utf8_lossy(bytes)),
        other => fuzzing::first_bytes(bytes, usize::from(other >> 1), other & 1 == 1),
    }
});
