use std::time::Duration;

use bombus_core::chat::ChatEvent;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::Span;

use super::{ChatRun, EngineProcess, LoadError, OUTBOX_MESSAGES_MAX, RunFailure};
use crate::protocol::{LoadOptions, MESSAGE_BYTES_MAX, ModelKind, RunError};
use crate::scripted::{self, request};

const LIMIT: Duration = Duration::from_secs(30);

async fn start(
    folder: &std::path::Path,
    script: &str,
) -> Result<(EngineProcess, oneshot::Receiver<String>), LoadError> {
    let options = LoadOptions {
        path: scripted::model(folder, "scripted", 1, script).path,
        kind: ModelKind::Generate,
        context_tokens: 64,
        kv_tokens: 64,
        slots: 1,
        batch_tokens: 32,
        threads: 1,
        gpu_layers: 0,
        shelf_bytes: 0,
    };
    EngineProcess::start(scripted::program(), options, LIMIT, Span::none()).await
}

async fn text(run: &mut ChatRun) -> String {
    match timeout(LIMIT, run.next()).await.unwrap() {
        Some(Ok(ChatEvent::Delta(delta))) => delta.text,
        other => panic!("no text, but {other:?}"),
    }
}

#[tokio::test]
async fn a_cancel_arrives_also_when_the_process_reads_nothing_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let (process, _exited) = start(folder.path(), "load").await.unwrap();
    let mut held = process.chat(request("hold")).await.unwrap();
    assert_eq!(text(&mut held).await, "a text");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _stall = process.chat(request(format!("stall {address}"))).await.unwrap();
    let (stalled, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    // More than a pipe holds, so that the messages behind it wait.
    let _large = process.chat(request("x".repeat(4 << 20))).await.unwrap();
    let mut queued = Vec::new();
    for _ in 0..OUTBOX_MESSAGES_MAX {
        queued.push(process.chat(request("die")).await.unwrap());
    }
    drop(held);
    drop(queued);
    drop(stalled);
    let mut run = process.chat(request("cancelled")).await.unwrap();
    let cancelled = text(&mut run).await;
    // The runs that were never sent are not: `die` would have ended the process.
    assert!(cancelled.starts_with("[0"), "{cancelled}");
}

#[tokio::test]
async fn a_run_that_waits_hears_so_once_until_it_listens() {
    let folder = tempfile::tempdir().unwrap();
    let (process, _exited) = start(folder.path(), "load").await.unwrap();
    let mut queued = process.chat(request("queue")).await.unwrap();
    // Requests are answered in turn, so all that the first one is told is there when the second one has its answer.
    assert_eq!(text(&mut process.chat(request("Hi")).await.unwrap()).await, "a text");
    assert_eq!(timeout(LIMIT, queued.next()).await.unwrap(), Some(Ok(ChatEvent::Waiting {})));
    assert_eq!(text(&mut queued).await, "a text");
    assert!(matches!(timeout(LIMIT, queued.next()).await.unwrap(), Some(Ok(ChatEvent::Done { .. }))));
}

#[tokio::test]
async fn a_request_too_long_for_a_message_fails_and_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (process, _exited) = start(folder.path(), "load").await.unwrap();
    let failure = process.chat(request("x".repeat(MESSAGE_BYTES_MAX))).await.err();
    let Some(RunFailure::Run(RunError::Invalid { message, .. })) = failure else { panic!("{failure:?}") };
    assert!(message.contains("too long"), "{message}");
    assert_eq!(process.requests().get(), 0);
    assert_eq!(text(&mut process.chat(request("Hi")).await.unwrap()).await, "a text");
}

#[tokio::test]
async fn death_while_loading_is_told_from_a_refusal() {
    let folder = tempfile::tempdir().unwrap();
    let Err(LoadError::Died(reason)) = start(folder.path(), "crash").await.map(|_| ()) else { panic!("no death") };
    assert!(reason.contains("died of signal"), "{reason}");
    let folder = tempfile::tempdir().unwrap();
    let Err(LoadError::Failed(failure)) = start(folder.path(), "refuse").await.map(|_| ()) else {
        panic!("no refusal")
    };
    assert!(failure.out_of_memory);
}

#[tokio::test]
async fn the_end_is_reported_also_when_it_was_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let (process, exited) = start(folder.path(), "load").await.unwrap();
    drop(process);
    timeout(LIMIT, exited).await.unwrap().unwrap();
}
