//! What the fuzz target needs of what is private here.

use std::sync::LazyLock;
use std::time::Duration;

use futures::AsyncReadExt;
use futures::io::Cursor;
use tokio::runtime::{Builder, Runtime};

use super::find;
use super::guard::{ForeignKey, GREETING, Greeted, NoGreeting, Recorded};

/// No input takes so long.
const LIMIT: Duration = Duration::from_secs(60);

static CLOCK: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime needs no more than memory"));

/// Reads what a stranger sends first, so many bytes at a time, and checks what has to hold: only the greeting gets through.
///
/// # Panics
///
/// When something does not hold.
pub fn first_bytes(bytes: &[u8], at_once: usize, is_private: bool) {
    let (passed, end) = CLOCK.block_on(async {
        let recorded = Recorded::new(Cursor::new(bytes));
        let nonce = recorded.nonce();
        let mut greeted = Greeted::new(recorded, LIMIT, is_private);
        let (mut passed, mut buffer) = (Vec::new(), vec![0; at_once.max(1)]);
        let end = loop {
            match greeted.read(&mut buffer).await {
                Ok(0) => break Ok(()),
                Ok(count) => passed.extend_from_slice(&buffer[..count]),
                Err(error) => break Err(error),
            }
        };
        assert_eq!(nonce.is_random(), !bytes.is_empty() && !nonce.is_text());
        (passed, end)
    });
    match end {
        Ok(()) => {
            assert!(bytes.starts_with(GREETING), "another greeting gets through");
            assert_eq!(passed, bytes);
        }
        Err(error) => {
            assert!(!bytes.starts_with(GREETING), "the greeting is refused: {error}");
            assert!(GREETING.starts_with(&passed), "{passed:?} got through");
            assert_eq!(find::<ForeignKey>(&error).is_some(), is_private);
            assert_eq!(find::<NoGreeting>(&error).is_some(), !is_private);
        }
    }
}
