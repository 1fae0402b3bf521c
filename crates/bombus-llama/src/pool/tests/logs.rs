//! Under whose name the lines of an engine process stand.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::timeout;
use tracing::{Instrument, Level, info_span};

use super::{Bench, LIMIT};
use crate::scripted::request;

/// What all tests of this crate log, once it is captured.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

fn log() -> MutexGuard<'static, Vec<u8>> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Captured;

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        log().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_process_is_loaded_under_the_id_of_a_request_and_lives_under_the_name_of_its_model() {
    let lines = tracing_subscriber::fmt().with_max_level(Level::INFO).with_ansi(false).with_writer(|| Captured);
    tracing::subscriber::set_global_default(lines.finish()).expect("no other test sets one");
    let bench = Bench::with_memory(1_000);
    let model = bench.model("hive", "load");
    let lease = bench.acquire(&model).instrument(info_span!("request", request_id = "the-first")).await.unwrap();
    let mut run = lease.process.chat(request("die of old age")).await.unwrap();
    // A death is told when all that the process wrote has been read.
    while let Some(Ok(_)) = timeout(LIMIT, run.next()).await.unwrap() {}

    let log = String::from_utf8(log().clone()).unwrap();
    assert!(log.lines().any(|line| line.contains("loaded") && line.contains("the-first")), "{log}");
    let words: Vec<&str> = log.lines().filter(|line| line.contains("of old age")).collect();
    assert!(!words.is_empty(), "{log}");
    assert!(words.iter().all(|line| line.contains("model.name=hive") && !line.contains("the-first")), "{words:#?}");
}
