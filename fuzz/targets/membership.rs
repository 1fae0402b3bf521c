//! What carries membership: the first byte chooses between frames of `/bombus/membership/1` (`f`), signed changes (`c`) and the content
//! of tickets (`t`), which stands in a line with a checksum that no fuzzer guesses.
#![no_main]

use bombus_net::membership::{SignedChange, Ticket, decode_frame};
use data_encoding::BASE32_NOPAD;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

/// The longest content that fits into a line.
const CONTENT_BYTES_MAX: usize = 600;

/// Writes content as the line of a ticket.
fn line(content: &[u8]) -> String {
    let length = u16::try_from(content.len()).expect("it is short");
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(content);
    let hash = Sha256::new().chain_update("bombus").chain_update([0]).chain_update(&bytes).finalize();
    bytes.extend_from_slice(&hash[..4]);
    format!("bombus1{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    match first {
        b'c' => {
            let Ok(change) = SignedChange::from_bytes(bytes) else { return };
            let again = SignedChange::from_bytes(&change.to_bytes()).expect("it reads what it writes");
            assert_eq!(again.to_bytes(), change.to_bytes());
            assert_eq!((again.generation(), again.removed()), (change.generation(), change.removed()));
        }
        b't' if bytes.len() <= CONTENT_BYTES_MAX => {
            let Ok(ticket) = line(bytes).parse::<Ticket>() else { return };
            assert!(ticket.addresses().len() <= 16);
            let written = ticket.to_string();
            assert!(
                written.len() <= 1_024 || written.len() <= line(bytes).len(),
                "it grew to {} characters",
                written.len()
            );
            let again: Ticket = written.parse().expect("it reads what it writes");
            assert!(again == ticket);
        }
        _ => {
            let _ = decode_frame(bytes);
        }
    }
});
