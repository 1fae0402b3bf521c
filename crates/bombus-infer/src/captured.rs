//! What a test logs.

use std::cell::RefCell;
use std::io;
use std::sync::Once;

use serde_json::Value;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::{Registry, fmt};

thread_local! {
    static CAPTURED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

struct ThreadLog;

impl io::Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        CAPTURED.with_borrow_mut(|log| {
            if let Some(log) = log {
                log.extend_from_slice(bytes);
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All that this project's code logs on the current thread while it lives, down to `trace`.
///
/// One subscriber serves all threads: with one for each, a place in the code that another thread without a subscriber comes to first
/// would be noted as one that nobody listens to.
pub(crate) struct Log;

impl Log {
    /// Begins to capture.
    pub(crate) fn capture() -> Self {
        static SUBSCRIBER: Once = Once::new();
        SUBSCRIBER.call_once(|| {
            let ours = Targets::new().with_target("bombus", LevelFilter::TRACE);
            let layer = fmt::layer().json().flatten_event(true).with_writer(|| ThreadLog).with_filter(ours);
            tracing::subscriber::set_global_default(Registry::default().with(layer)).expect("nobody else sets one");
        });
        CAPTURED.set(Some(Vec::new()));
        Self
    }

    /// Returns the log so far.
    pub(crate) fn text(&self) -> String {
        let bytes = CAPTURED.with_borrow(|log| log.clone().unwrap_or_default());
        String::from_utf8(bytes).expect("a log is text")
    }

    /// Returns the lines of a level with a message.
    pub(crate) fn lines(&self, level: &str, message: &str) -> Vec<Value> {
        let lines: Vec<Value> =
            self.text().lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
        lines.into_iter().filter(|line| line["level"] == level && line["message"] == message).collect()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        CAPTURED.set(None);
    }
}
