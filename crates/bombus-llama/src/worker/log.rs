//! Logs of the engine process: lines `LEVEL text` on stderr, which the node puts into its own log.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::protocol::LoadFailure;

/// Lines that are kept to explain a failure.
const LINES_MAX: usize = 8;

/// The last errors that llama.cpp reported. It says what is wrong only in its log.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogLines(Arc<Mutex<VecDeque<String>>>);

impl LogLines {
    /// Adds what was logged to the name of a failure to load a model. llama.cpp has no codes for it: where memory is what lacks, a
    /// line says that something was not allocated.
    pub(crate) fn explain_load(&self, what: &str) -> LoadFailure {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reason = what.to_owned();
        for line in lines.iter() {
            let _ = write!(reason, "; {line}");
        }
        LoadFailure { reason, out_of_memory: lines.iter().any(|line| line.contains("alloc")) }
    }

    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

struct Stderr {
    errors: LogLines,
}

impl<S: Subscriber> Layer<S> for Stderr {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = MessageText(String::new());
        event.record(&mut text);
        let line = text.0.split_whitespace().collect::<Vec<_>>().join(" ");
        eprintln!("{} {line}", event.metadata().level());
        if *event.metadata().level() == Level::ERROR {
            self.errors.push(line);
        }
    }
}

struct MessageText(String);

impl Visit for MessageText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}

/// Sends the logs of this process to stderr, down to the level `INFO`.
pub(crate) fn init() -> LogLines {
    let errors = LogLines::default();
    let layer = Stderr { errors: errors.clone() };
    tracing_subscriber::registry().with(layer.with_filter(LevelFilter::INFO)).init();
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failed_allocation_is_called_a_lack_of_memory() {
        let logs = LogLines::default();
        logs.push("unknown model architecture: 'x'".into());
        let failure = logs.explain_load("no model");
        assert_eq!(failure, LoadFailure::from("no model; unknown model architecture: 'x'".to_owned()));
        logs.push("failed to allocate buffer for kv cache".into());
        assert!(logs.explain_load("no context").out_of_memory);
    }
}
