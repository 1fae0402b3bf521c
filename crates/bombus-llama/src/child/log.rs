//! What an engine process writes to stderr: into the node's log, and into the reason of its death.
//!
//! Only lines of the process's own logger say nothing of requests. llama.cpp prints some things past it, grammars of requests among
//! them, so those lines stay at `debug` and out of what other clients are told.

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use crate::platform;

/// Last lines that are kept to explain a death.
const LINES_MAX: usize = 6;
/// What lines have that say why a process ends, though they come past its logger.
const LAST_WORDS: [&str; 3] = ["GGML_ASSERT", "GGML_ABORT", "panicked"];

/// The last lines that explain a death.
#[derive(Debug, Clone, Default)]
pub(super) struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

/// Reads the lines until the process closes the pipe.
pub(super) async fn read_lines(stderr: impl AsyncRead + Unpin, last: LastLines) {
    let mut reader = BufReader::new(stderr);
    let mut bytes = Vec::new();
    while matches!(reader.read_until(b'\n', &mut bytes).await, Ok(1..)) {
        // Not every line is UTF-8, and a process whose pipe nobody reads would stand still.
        note_line(String::from_utf8_lossy(&bytes).trim_end(), &last);
        bytes.clear();
    }
}

fn note_line(line: &str, last: &LastLines) {
    match line.split_once(' ') {
        Some(("ERROR", text)) => {
            tracing::warn!(target: "bombus_llama::engine", "{text}");
            last.push(text);
        }
        // llama.cpp calls much a warning that is none for a user.
        Some(("WARN" | "INFO", text)) => tracing::debug!(target: "bombus_llama::engine", "{text}"),
        _ => {
            tracing::debug!(target: "bombus_llama::engine", "{line}");
            if LAST_WORDS.iter().any(|words| line.contains(words)) {
                last.push(line);
            }
        }
    }
}

/// Says how a process ended and what it said last.
pub(super) fn death_reason(status: Option<ExitStatus>, lines: &LastLines) -> String {
    let how = status.map_or_else(|| "ended in an unknown way".to_owned(), platform::describe_exit);
    let said = lines.text();
    if said.is_empty() { format!("the engine process {how}") } else { format!("the engine process {how}: {said}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_request_may_have_put_into_the_log_explains_no_death() {
        let last = LastLines::default();
        let written = b"INFO loading\nroot ::= \"a secret\"\n\xff\xfe\nERROR no room\na.c:1: GGML_ASSERT(x) failed\n";
        read_lines(written.as_slice(), last.clone()).await;
        assert_eq!(last.text(), "no room; a.c:1: GGML_ASSERT(x) failed");
    }
}
