//! A writer that never waits: a thread of its own writes out what has come in the meantime.
//!
//! Under load the thread is woken once for many lines. Being woken for every line would cost a request more than all the rest of its
//! logging, where there are few cores.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// How long lines may be collected before they are written out.
const COLLECT: Duration = Duration::from_millis(20);
/// What waits for a slow disk or terminal, in bytes; lines beyond it are dropped and counted.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// How long the end of the program waits for what is still to be written.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Takes lines. Cheap to clone; all clones write to the same place.
#[derive(Clone)]
pub(super) struct BatchedWriter(Arc<Shared>);

/// Writes out what waits, for at most a second, when it is dropped.
#[must_use]
pub(super) struct BatchedGuard {
    shared: Arc<Shared>,
    ended: Receiver<()>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped_lines: u64,
    thread_sleeps: bool,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread that writes to `out`.
pub(super) fn batched(out: impl Write + Send + 'static) -> io::Result<(BatchedWriter, BatchedGuard)> {
    let shared = Arc::new(Shared { waiting: Mutex::default(), changed: Condvar::new() });
    let (end, ended) = sync_channel(1);
    let of_thread = Arc::clone(&shared);
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        write_out(&of_thread, out);
        // Nobody waits for it where the guard was leaked.
        let _ = end.send(());
    })?;
    Ok((BatchedWriter(Arc::clone(&shared)), BatchedGuard { shared, ended }))
}

fn write_out(shared: &Shared, mut out: impl Write) {
    loop {
        let mut waiting = shared.lock();
        while waiting.bytes.is_empty() && !waiting.closed {
            waiting.thread_sleeps = true;
            waiting = shared.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.thread_sleeps = false;
        if !waiting.closed {
            let collected = shared.changed.wait_timeout_while(waiting, COLLECT, |waiting| !waiting.closed);
            waiting = collected.unwrap_or_else(PoisonError::into_inner).0;
        }
        let bytes = std::mem::take(&mut waiting.bytes);
        let dropped_lines = std::mem::take(&mut waiting.dropped_lines);
        let closed = waiting.closed;
        drop(waiting);
        // There is no other place to tell that logs cannot be written.
        let _ = out.write_all(&bytes);
        if dropped_lines > 0 {
            let _ =
                writeln!(out, "{dropped_lines} log lines were dropped: they came faster than they could be written");
        }
        let _ = out.flush();
        if closed {
            return;
        }
    }
}

impl Write for BatchedWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.lock();
        if waiting.bytes.len() + line.len() > WAITING_BYTES_MAX {
            waiting.dropped_lines += 1;
        } else {
            waiting.bytes.extend_from_slice(line);
        }
        if std::mem::take(&mut waiting.thread_sleeps) {
            self.0.changed.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for BatchedWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Drop for BatchedGuard {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        // Where nobody takes the lines in time, the program ends without them.
        let _ = self.ended.recv_timeout(END_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands each write over, and waits until it is taken.
    struct Slow(std::sync::mpsc::SyncSender<String>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.0.send(text).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_whole_and_in_order_and_the_end_waits_for_the_last() {
        let (sender, written) = sync_channel(64);
        let (mut writer, guard) = batched(Slow(sender)).unwrap();
        writer.write_all(b"first\n").unwrap();
        assert_eq!(written.recv().unwrap(), "first\n");
        for number in 0..100 {
            writeln!(writer, "line {number}").unwrap();
        }
        drop(guard);
        let rest: String = written.try_iter().collect();
        assert_eq!(rest, (0..100).map(|number| format!("line {number}\n")).collect::<String>());
    }

    #[test]
    fn a_reader_that_takes_nothing_holds_up_nobody_and_hears_of_what_was_dropped() {
        let (sender, written) = sync_channel(0);
        let (mut writer, guard) = batched(Slow(sender)).unwrap();
        let line = [b'x'; 1 << 20];
        for _ in 0..64 {
            writer.write_all(&line).unwrap();
        }
        drop(guard);
        let mut told = String::new();
        while !told.contains("log lines were dropped") {
            told = written.recv().unwrap();
        }
    }
}
